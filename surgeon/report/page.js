(function () {
  "use strict";
  // One candidate, many places: pointing at it anywhere marks it everywhere.
  const places = new Map();
  document.querySelectorAll("[data-c]").forEach(function (node) {
    const key = node.dataset.c;
    if (!places.has(key)) places.set(key, []);
    places.get(key).push(node);
  });
  let marked = null;
  function mark(key) {
    if (key === marked) return;
    (places.get(marked) || []).forEach(function (node) { node.classList.remove("on"); });
    document.querySelectorAll(".readout.live").forEach(function (out) {
      out.textContent = out.dataset.note;
      out.classList.remove("live");
    });
    marked = key;
    (places.get(key) || []).forEach(function (node) {
      node.classList.add("on");
      const title = node.querySelector(":scope > title");
      const panel = title && node.closest(".panel");
      const out = panel && panel.querySelector(".readout");
      if (!out) return;
      out.textContent = title.textContent;
      out.classList.add("live");
    });
  }
  function point(event) {
    const node = event.target.closest && event.target.closest("[data-c]");
    mark(node ? node.dataset.c : null);
  }
  document.addEventListener("pointerover", point);
  document.addEventListener("pointerdown", point);

  // Tables sort by their headings; missing values stay last.
  function value(row, column) { return row.cells[column].dataset.v; }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      head.firstElementChild.addEventListener("click", function () {
        const numeric = head.classList.contains("num");
        const first = numeric && column > 0 ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach(function (cell) { cell.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const body = table.tBodies[0];
        const rows = Array.from(body.rows);
        rows.sort(function (a, b) {
          const x = value(a, column), y = value(b, column);
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
        });
        body.append.apply(body, rows);
      });
    });
  });

  // A trace: the row under the pointer is marked in the curves and in the text.
  document.querySelectorAll(".strip").forEach(function (strip) {
    const section = strip.parentNode;
    const area = strip.querySelector(".area");
    const cursor = strip.querySelector(".cursor");
    const box = section.querySelector(".trace-text");
    const readout = section.querySelector(".row-readout");
    const rows = new Map();
    const n = Number(strip.dataset.rows);
    let current = -1;
    box.querySelectorAll(".row").forEach(function (node) { rows.set(Number(node.dataset.r), node); });
    function show(row, scroll) {
      if (row < 0 || row >= n || row === current) return;
      const before = rows.get(current), node = rows.get(row);
      if (before) before.classList.remove("on");
      current = row;
      cursor.hidden = false;
      cursor.style.left = (100 * row) / n + "%";
      cursor.style.width = 100 / n + "%";
      readout.textContent = node ? node.title : "row " + (row + 1) + " is not shown in the text";
      strip.setAttribute("aria-valuenow", row + 1);
      strip.setAttribute("aria-valuetext", readout.textContent);
      if (!node) return;
      node.classList.add("on");
      if (scroll) {
        const shift = node.getClientRects()[0].top - box.getBoundingClientRect().top;
        if (shift < 0 || shift > box.clientHeight - 40) box.scrollTop += shift - box.clientHeight / 3;
      }
    }
    function track(event) {
      const bounds = area.getBoundingClientRect();
      show(Math.min(n - 1, Math.floor(((event.clientX - bounds.left) / bounds.width) * n)), true);
    }
    area.addEventListener("pointermove", track);
    area.addEventListener("pointerdown", track);
    box.addEventListener("pointerover", function (event) {
      const node = event.target.closest(".row");
      if (node) show(Number(node.dataset.r), false);
    });
    strip.addEventListener("keydown", function (event) {
      const to = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: n - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(Math.max(0, Math.min(n - 1, to)), true);
    });
  });
})();
