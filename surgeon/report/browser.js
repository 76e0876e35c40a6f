
// The responses of a reading: a list that draws only what is in sight, and panes that load a
// response from a script beside the page. All text is set as text, never as markup.
(function () {
  "use strict";
  const block = document.getElementById("index");
  if (!block) return;
  const index = JSON.parse(block.textContent);
  const LINES = index.responses, NAMES = Object.keys(index.verdicts), HEIGHT = 30, KEPT = 60, AT_ONCE = 24;
  const CAND = 0, NUMBER = 1, PROMPT = 2, SAMPLE = 3, TOKENS = 4, ROWS = 5, EROWS = 6, SEGMENTS = 7, CYCLES = 8, ENDED = 9, SCORE = 10, ANSWER = 11;
  const $ = function (id) { return document.getElementById(id); };
  const list = $("list"), all = $("all"), panes = $("panes");
  const MINUS = surgeonShelf.MINUS, DASH = surgeonShelf.DASH, number = surgeonShelf.number, grouped = surgeonShelf.grouped, make = surgeonShelf.make;
  function draw(tag, values) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const name in values) node.setAttribute(name, values[name]);
    return node;
  }

  const bring = surgeonShelf.loader(KEPT);
  function keyOf(n) { return LINES[n][CAND] + "/" + LINES[n][NUMBER]; }
  function load(n, keep) { return bring(keyOf(n), keep); }

  // ---- the list
  let order = [], chosen = -1, other = -1;
  function counts(line) {
    if (!line[CYCLES]) return "cycles not known";
    const some = NAMES.map(function (name, i) { return line[CYCLES][i] ? line[CYCLES][i] + " " + name : ""; });
    return some.filter(Boolean).join(", ") || "no cycle";
  }
  function brief(line) {
    return line[CYCLES] && line[CYCLES][0] + line[CYCLES][1] ? line[CYCLES][0] + " effective, " + line[CYCLES][1] + " redundant" : counts(line);
  }
  function item(n) {
    const line = LINES[n], node = make("div");
    const prompt = make("span", "prompt-of");
    prompt.append(make("bdi", "", index.prompts[line[PROMPT]][0]), " ", make("small", "", index.prompts[line[PROMPT]][1].slice(0, 160)));
    node.append(
      make("span", "name", index.candidates[line[CAND]]), prompt,
      make("span", "num sample", "sample " + line[SAMPLE]),
      make("span", "num tokens", grouped(line[TOKENS]) + " tok"),
      make("span", "num segments", line[SEGMENTS] + " E"),
      make("span", "num cycles-of", brief(line)), make("span", "num score", number(line[SCORE], 3)));
    return node;
  }
  const shelf = surgeonShelf.listed(list, all, HEIGHT, item, function (node, n) {
    node.setAttribute("aria-selected", n === chosen ? "true" : "false");
    node.classList.toggle("other", n === other);
  });
  function paint() {
    shelf.paint();
    list.setAttribute("aria-activedescendant", chosen >= 0 ? "item-" + chosen : "");
  }

  // ---- filters; the texts of responses are searched one after another, with what was found so far
  const lower = LINES.map(function (line) {
    return (index.candidates[line[CAND]] + "\n" + index.prompts[line[PROMPT]].join("\n") + "\n" + (line[ANSWER] || "")).toLowerCase();
  });
  const texts = new Map();
  let search = 0;
  function fits(line) {
    const candidate = $("of-candidate").value, cycles = $("of-cycles").value, end = $("of-end").value;
    if (candidate !== "" && line[CAND] !== Number(candidate)) return false;
    if (end !== "" && line[ENDED] !== Number(end)) return false;
    if (cycles === "") return true;
    if (!line[CYCLES]) return false;
    if (cycles === "none") return line[CYCLES].every(function (n) { return n === 0; });
    return line[CYCLES][Number(cycles)] > 0;
  }
  function sorted(found) {
    const by = $("order").value, down = $("turn").getAttribute("aria-pressed") !== "true";
    const value = function (n) {
      if (by === "") return -n;
      return Number(by) === EROWS ? LINES[n][EROWS] / Math.max(1, LINES[n][ROWS]) : LINES[n][Number(by)];
    };
    return found.sort(function (a, b) { return (down ? 1 : -1) * (value(b) - value(a)) || a - b; });
  }
  function say(text) { $("found").textContent = text; }
  function filter() {
    const mine = ++search, query = $("query").value.trim().toLowerCase();
    const inText = $("in-text").checked && query !== "";
    const open = [], found = [];
    LINES.forEach(function (line, n) {
      if (!fits(line)) return;
      if (query === "" || lower[n].includes(query)) found.push(n);
      else if (inText) open.push(n);
    });
    function settle(note) {
      order = sorted(found.slice());
      shelf.fill(order);
      say(grouped(order.length) + " of " + grouped(LINES.length) + " responses" + note);
    }
    settle(open.length ? "; reading the others" : "");
    list.scrollTop = 0;
    paint();
    if (!open.length) return;
    let next = 0, done = 0, lost = 0, shown = performance.now();
    function step() {
      if (mine !== search) return;
      if (next >= open.length) {
        if (done === open.length) settle(lost ? "; " + lost + " could not be read" : "");
        return;
      }
      const n = open[next++];
      const text = texts.has(n) ? Promise.resolve(texts.get(n)) : load(n, false).then(function (content) {
        const whole = content.text.join("").toLowerCase();
        texts.set(n, whole);
        return whole;
      });
      text.then(function (whole) { if (whole.includes(query)) found.push(n); }, function () { lost++; }).then(function () {
        done++;
        if (mine === search && performance.now() - shown > 250) { shown = performance.now(); settle("; read " + grouped(done) + " of " + grouped(open.length)); }
        step();
      });
    }
    for (let i = 0; i < AT_ONCE; i++) step();
  }

  // ---- one response
  function path(values, n, low, high) {
    const size = Math.max(1, Math.ceil(n / 4000));
    let points = "";
    for (let start = 0; start < n; start += size) {
      let sum = 0, count = 0;
      for (let r = start; r < Math.min(n, start + size); r++) { sum += values[r]; count++; }
      points += (start + count / 2).toFixed(2) + "," + (100 - (100 * (sum / count - low)) / (high - low)).toFixed(2) + " ";
    }
    return points;
  }
  function bands(phase) {
    const found = [];
    for (let r = 0; r < phase.length; r++) {
      const last = found[found.length - 1];
      if (last && last.kind === phase[r]) last.end = r + 1;
      else found.push({ start: r, end: r + 1, kind: phase[r] });
    }
    return found;
  }
  function canvas(n, label) {
    const svg = draw("svg", { viewBox: "0 0 " + n + " 100", preserveAspectRatio: "none", role: "img", "aria-label": label, focusable: "false" });
    return svg;
  }
  const TICKS = [0, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000];
  function plot(area, name, unit, values, runs, to, kind) {
    const n = values.length, placed = values.map(to);
    let low = 0, high = 0;
    placed.forEach(function (v) { low = Math.min(low, v); high = Math.max(high, v); });
    if (high - low < 1e-9) high = low + 1;
    const title = make("p", "track-name");
    title.append(make("b", "", name), " " + unit);
    const box = make("div", "plot"), svg = canvas(n, name + " per row");
    runs.forEach(function (band) {
      svg.append(draw("rect", { class: "shade " + band.kind.toLowerCase(), x: band.start, y: 0, width: band.end - band.start, height: 100 }));
    });
    box.append(svg);
    let before = -1;
    TICKS.concat(low < 0 ? [-2, -5] : []).forEach(function (tick) {
      const at = (to(tick) - low) / (high - low);
      if (at < 0 || at > 1 || (before >= 0 && tick >= 0 && at - before < 0.24)) return;
      if (tick >= 0) before = at;
      svg.append(draw("line", { class: tick === 0 && low < 0 ? "zero" : "grid", x1: 0, x2: n, y1: 100 - 100 * at, y2: 100 - 100 * at }));
      const label = make("span", "y", String(tick).replace("-", MINUS));
      label.style.top = 100 - 100 * at + "%";
      box.append(label);
    });
    svg.append(draw("polyline", { class: "signal " + (kind || ""), points: path(placed, n, low, high) }));
    area.append(title, box);
  }
  function steps(area, title, words, runs, n, kind) {
    const name = make("p", "track-name");
    name.append(make("b", "", title), " " + words);
    const box = make("div", "plot " + kind), svg = canvas(n, title + " per row");
    runs.forEach(function (band) {
      const e = band.kind === "E";
      const rect = draw("rect", { class: "block " + band.kind.toLowerCase(), x: band.start, y: e ? 4 : 52, width: band.end - band.start, height: 44 });
      const said = draw("title", {});
      said.textContent = "Rows " + (band.start + 1) + " to " + band.end + ": " + band.kind;
      rect.append(said);
      svg.append(rect);
    });
    box.append(svg);
    area.append(name, box);
  }
  function fact(facts, term, value) {
    const box = make("div"), dd = make("dd");
    dd.append(make("bdi", "", value));
    box.append(make("dt", "", term), dd);
    facts.append(box);
  }
  function facts(n) {
    const line = LINES[n], box = make("dl", "facts small");
    fact(box, "length", grouped(line[TOKENS]) + " tokens, " + grouped(line[ROWS]) + " rows");
    fact(box, "ended", line[ENDED] ? "by itself" : "cut at the limit");
    fact(box, "E rows", line[ROWS] ? Math.round((100 * line[EROWS]) / line[ROWS]) + "%, " + line[SEGMENTS] + " segments" : DASH);
    fact(box, "cycles", counts(line));
    fact(box, "score", number(line[SCORE], 4));
    fact(box, "answer", line[ANSWER] === null ? "none read" : line[ANSWER]);
    return box;
  }
  function wording(box, content, runs, query) {
    // Rows as text nodes in one fragment; the number stands where the row's words begin.
    const starts = new Map(runs.map(function (band) { return [band.start, band.kind]; }));
    const nodes = [];
    content.text.forEach(function (text, r) {
      const kind = content.phase[r], node = make("span", "row " + kind.toLowerCase());
      const words = text.replace(/^\n+/, ""), lead = words === "" ? "" : text.slice(0, text.length - words.length);
      const number = make("i");
      number.dataset.n = starts.has(r) ? kind + "\u00a0" + (r + 1) : r + 1;
      node.dataset.r = r;
      node.append(lead, number);
      const shown = words === "" ? text : words;
      const at = query ? shown.toLowerCase().indexOf(query) : -1;
      if (at < 0) node.append(shown);
      else node.append(shown.slice(0, at), make("mark", "", shown.slice(at, at + query.length)), shown.slice(at + query.length));
      nodes.push(node);
    });
    box.append.apply(box, nodes);
    return nodes;
  }
  function cycleTable(content, mark) {
    const scroll = make("div", "scroll short"), table = make("table", "plain cycles"), head = make("tr");
    scroll.tabIndex = 0;
    ["Cycle", "E rows", "X rows", "Introduced", "Reuse share", "Progress", "Consolidation", "Verdict"].forEach(function (name, i) {
      const cell = make("th", i && i < 7 ? "num" : "", name);
      cell.scope = "col";
      head.append(cell);
    });
    const top = make("thead"), body = make("tbody");
    top.append(head);
    content.cycles.forEach(function (c, i) {
      const row = make("tr"), name = make("th"), button = make("button", "", String(i + 1));
      button.type = "button";
      button.setAttribute("aria-label", "Show cycle " + (i + 1));
      name.scope = "row";
      name.append(button);
      row.append(name);
      const span = function (a, b) { return b - a === 1 ? String(a + 1) : a + 1 + DASH + b; };
      [span(c[0], c[1]), span(c[1], c[2]), grouped(c[3]), number(c[6], 2),
        Math.abs(c[7]) < 1e-6 ? "0" : number(c[7], 3), number(c[8], 2)].forEach(function (text) { row.append(make("td", "num", text)); });
      const verdict = make("td");
      const word = make("b", "verdict " + NAMES[NAMES.indexOf(c[10])], c[10]);
      word.title = index.verdicts[c[10]] || "";
      verdict.append(word);
      row.append(verdict);
      row.addEventListener("click", function () { mark(i, row); });
      body.append(row);
    });
    table.append(top, body);
    scroll.append(table);
    return scroll;
  }
  function pane(n, content) {
    const line = LINES[n], rows = content.phase.length, box = make("article", "pane");
    const head = make("h3");
    head.append(make("bdi", "", index.candidates[line[CAND]]), ", sample " + line[SAMPLE]);
    box.append(head, facts(n));
    if (!rows) { box.append(make("p", "", "The response is empty.")); return box; }
    const strip = make("div", "strip"), area = make("div", "area"), cursor = make("div", "cursor");
    const runs = bands(content.phase);
    strip.tabIndex = 0;
    strip.setAttribute("role", "slider");
    strip.setAttribute("aria-label", "Row of the response of " + index.candidates[line[CAND]]);
    strip.setAttribute("aria-valuemin", 1);
    strip.setAttribute("aria-valuemax", rows);
    strip.setAttribute("aria-valuenow", 1);
    plot(area, "novelty s", "new neurons per token (log scale)", content.slope, runs, function (v) { return Math.log1p(Math.max(0, v)); });
    plot(area, "z", "novelty against its own trend, cut at ±8", content.z, runs, function (v) { return Math.max(-8, Math.min(8, v)); });
    plot(area, "entropy", "nats per token", content.entropy, runs, function (v) { return v; }, "entropy-line");
    steps(area, "phase", "E, exploring (upper), or X, exploiting (lower)", runs, rows, "steps");
    const labels = index.labels[keyOf(n)] || [], by = new Map();
    labels.forEach(function (one) {
      for (const name in one[2]) {
        if (!by.has(name)) by.set(name, []);
        by.get(name).push({ start: one[0], end: one[1], kind: one[2][name] });
      }
    });
    by.forEach(function (said, name) { steps(area, name, "labels of blocks", said, rows, "steps"); });
    cursor.hidden = true;
    area.append(cursor);
    strip.append(area, make("p", "axis-name", grouped(rows) + " rows of the response (" + content.tokens[0] + (content.tokens[0] === 1 ? " token" : " tokens") + " each)"));
    const readout = make("p", "row-readout", "\u00a0"), text = make("div", "trace-text");
    readout.setAttribute("aria-live", "polite");
    text.tabIndex = 0;
    text.setAttribute("role", "region");
    text.setAttribute("aria-label", "Text of the response of " + index.candidates[line[CAND]]);
    const query = $("in-text").checked ? $("query").value.trim().toLowerCase() : "";
    const nodes = wording(text, content, runs, query);
    let current = -1;
    function scrollTo(node) {
      const shift = node.getClientRects()[0].top - text.getBoundingClientRect().top;
      if (shift < 0 || shift > text.clientHeight - 40) text.scrollTop += shift - text.clientHeight / 3;
    }
    function show(r, scroll) {
      if (r < 0 || r >= rows || r === current) return;
      if (nodes[current]) nodes[current].classList.remove("on");
      current = r;
      cursor.hidden = false;
      cursor.style.left = (100 * r) / rows + "%";
      cursor.style.width = 100 / rows + "%";
      readout.textContent = "row " + (r + 1) + ", " + (content.phase[r] === "E" ? "exploring" : "exploiting") + ": s = " + number(content.slope[r], 2) + ", z = " + number(content.z[r], 2) + ", entropy " + number(content.entropy[r], 3);
      strip.setAttribute("aria-valuenow", r + 1);
      strip.setAttribute("aria-valuetext", readout.textContent);
      nodes[r].classList.add("on");
      if (scroll) scrollTo(nodes[r]);
    }
    function track(event) {
      const bounds = area.getBoundingClientRect();
      show(Math.min(rows - 1, Math.floor(((event.clientX - bounds.left) / bounds.width) * rows)), true);
    }
    area.addEventListener("pointermove", track);
    area.addEventListener("pointerdown", track);
    text.addEventListener("pointerover", function (event) {
      const node = event.target.closest(".row");
      if (node) show(Number(node.dataset.r), false);
    });
    strip.addEventListener("keydown", function (event) {
      const to = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: rows - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(Math.max(0, Math.min(rows - 1, to)), true);
    });
    box.append(strip, readout);
    let frames = [];
    function markCycle(i, row) {
      const c = content.cycles[i];
      box.querySelectorAll(".cycles tr.on").forEach(function (node) { node.classList.remove("on"); });
      row.classList.add("on");
      frames.forEach(function (node) { node.remove(); });
      frames = Array.from(area.querySelectorAll("svg"), function (svg) {
        const frame = draw("rect", { class: "cycle-area", x: c[0], y: 0, width: c[2] - c[0], height: 100 });
        svg.append(frame);
        return frame;
      });
      nodes.forEach(function (node, r) { node.classList.toggle("in-cycle", r >= c[0] && r < c[2]); });
      current = -1;
      show(c[0], true);
      text.scrollTop += nodes[c[0]].getClientRects()[0].top - text.getBoundingClientRect().top - 30;
    }
    if (!content.cycles) box.append(make("p", "note", "The ranking kept no rows of this response, so its cycles have no reuse."));
    else if (content.cycles.length) box.append(cycleTable(content, markCycle));
    else box.append(make("p", "note", "No cycle: no run of exploring rows with exploiting rows after it."));
    box.append(text);
    return box;
  }

  // ---- what is shown, also in the address, so that it can be named
  const places = new Map(LINES.map(function (line, n) { return [keyOf(n), n]; }));
  function same() {
    const line = LINES[chosen];
    const found = [];
    LINES.forEach(function (one, n) { if (one[PROMPT] === line[PROMPT] && n !== chosen) found.push(n); });
    return found.sort(function (a, b) { return (LINES[a][SAMPLE] !== line[SAMPLE]) - (LINES[b][SAMPLE] !== line[SAMPLE]) || a - b; });
  }
  let turn = 0;
  function show() {
    const mine = ++turn;
    if (chosen < 0) return;
    $("shown").hidden = false;
    const line = LINES[chosen], choices = $("beside"), others = same();
    $("prompt-id").textContent = index.prompts[line[PROMPT]][0];
    $("prompt").textContent = index.prompts[line[PROMPT]][1] || "(its text is not known)";
    if (other >= 0 && !others.includes(other)) {
      // The same candidate beside it, on the other prompt.
      const candidate = LINES[other][CAND];
      other = others.find(function (n) { return LINES[n][CAND] === candidate; });
      if (other === undefined) other = -1;
    }
    choices.replaceChildren(new Option("nothing", ""));
    others.forEach(function (n) {
      choices.append(new Option(index.candidates[LINES[n][CAND]] + ", sample " + LINES[n][SAMPLE], n));
    });
    choices.value = other < 0 ? "" : other;
    const at = order.indexOf(chosen);
    $("before").disabled = at <= 0;
    $("after").disabled = at < 0 || at >= order.length - 1;
    const address = "#r=" + keyOf(chosen) + (other >= 0 ? "&b=" + keyOf(other) : "");
    if (location.hash !== address) history.replaceState(null, "", address);
    paint();
    const wanted = other >= 0 ? [chosen, other] : [chosen];
    Promise.all(wanted.map(function (n) {
      return load(n, true).then(function (content) { return pane(n, content); }, function (error) {
        const box = make("article", "pane");
        box.append(make("p", "warnings", error.message + ": keep the folder data with report.html."));
        return box;
      });
    })).then(function (boxes) {
      if (mine !== turn) return;
      panes.classList.toggle("two", boxes.length > 1);
      panes.replaceChildren.apply(panes, boxes);
    });
  }
  function choose(n) { if (n >= 0 && n !== chosen) { chosen = n; if (other === n) other = -1; show(); } }
  function go(place) {
    if (!order.length) return;
    const to = Math.max(0, Math.min(order.length - 1, place));
    shelf.reveal(to);
    choose(order[to]);
    paint();
  }
  function fromAddress() {
    const found = new URLSearchParams(location.hash.slice(1));
    const n = places.get(found.get("r"));
    if (n === undefined) return false;
    const b = places.get(found.get("b"));
    chosen = n;
    other = b === undefined || b === n ? -1 : b;
    const at = order.indexOf(n);
    if (at >= 0) shelf.reveal(at);
    show();
    return true;
  }

  list.addEventListener("click", function (event) {
    const node = event.target.closest(".item");
    if (node) choose(Number(node.id.slice(5)));
  });
  list.addEventListener("keydown", function (event) {
    const to = shelf.to(event.key, order.indexOf(chosen));
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "/") { event.preventDefault(); $("query").focus(); }
    else if (event.key === "[" || event.key === "]") go(order.indexOf(chosen) + (event.key === "]" ? 1 : -1));
    else if (event.key === "b" && chosen >= 0) {
      const others = same();
      other = other >= 0 || !others.length ? -1 : others.find(function (n) { return LINES[n][CAND] !== LINES[chosen][CAND]; });
      if (other === undefined) other = others[0];
      show();
    }
  });
  $("before").addEventListener("click", function () { go(order.indexOf(chosen) - 1); });
  $("after").addEventListener("click", function () { go(order.indexOf(chosen) + 1); });
  $("beside").addEventListener("change", function () { other = this.value === "" ? -1 : Number(this.value); show(); });
  index.candidates.forEach(function (name, n) { $("of-candidate").append(new Option(name, n)); });
  let pause = 0;
  ["query", "in-text", "of-candidate", "of-cycles", "of-end", "order"].forEach(function (id) {
    $(id).addEventListener("input", function () { clearTimeout(pause); pause = setTimeout(filter, id === "query" ? 120 : 0); });
  });
  $("turn").addEventListener("click", function () {
    const up = this.getAttribute("aria-pressed") !== "true";
    this.setAttribute("aria-pressed", up);
    this.textContent = up ? "↑" : "↓";
    filter();
  });
  window.addEventListener("hashchange", fromAddress);
  filter();
  if (!fromAddress() && order.length) { chosen = order[0]; show(); }
})();
