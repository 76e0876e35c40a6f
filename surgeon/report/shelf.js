
// What the pages over records that lie beside them share: scripts that bring a record, and a list
// that draws only what is in sight. All text is set as text, never as markup.
const surgeonShelf = (function () {
  "use strict";
  const MINUS = "−", DASH = "–";
  function number(value, digits) {
    if (value === null || value === undefined) return DASH;
    return value.toFixed(digits).replace(/^-(?=0(\.0*)?$)/, "").replace("-", MINUS);
  }
  function grouped(value) { return String(value).replace(/\B(?=(\d{3})+(?!\d))/g, ","); }
  function make(tag, kind, text) {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // Each record is a script that calls surgeonTake; the last ones asked for are kept.
  function loader(most) {
    const kept = new Map(), waiting = new Map();
    window.surgeonTake = function (key, content) {
      const wait = waiting.get(key);
      if (wait) wait.take(content);
    };
    return function (key, keep) {
      if (kept.has(key)) {
        const found = kept.get(key);
        kept.delete(key); kept.set(key, found);
        return Promise.resolve(found);
      }
      if (waiting.has(key)) return waiting.get(key).promise;
      const wait = {};
      wait.promise = new Promise(function (resolve, reject) {
        const script = document.createElement("script");
        wait.take = function (content) {
          if (keep) {
            kept.set(key, content);
            if (kept.size > most) kept.delete(kept.keys().next().value);
          }
          resolve(content);
        };
        script.onload = function () { script.remove(); waiting.delete(key); reject(new Error("data/" + key + ".js holds no response")); };
        script.onerror = function () { script.remove(); waiting.delete(key); reject(new Error("data/" + key + ".js is not beside this page")); };
        script.src = "data/" + key + ".js";
        document.head.append(script);
      });
      waiting.set(key, wait);
      return wait.promise;
    };
  }

  // A list of lines of one height: `item` makes the node of a line, `mark` says what is chosen.
  function listed(list, all, height, item, mark) {
    const drawn = new Map();
    let order = [];
    function paint() {
      const first = Math.max(0, Math.floor(list.scrollTop / height) - 6);
      const last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 6);
      drawn.forEach(function (node, place) {
        if (place < first || place >= last) { node.remove(); drawn.delete(place); }
      });
      for (let place = first; place < last; place++) {
        if (!drawn.has(place)) {
          const node = item(order[place]);
          node.classList.add("item");
          node.id = "item-" + order[place];
          node.setAttribute("role", "option");
          node.style.top = place * height + "px";
          drawn.set(place, node);
          all.append(node);
        }
        mark(drawn.get(place), order[place]);
      }
    }
    list.addEventListener("scroll", paint);
    window.addEventListener("resize", paint);
    return {
      paint: paint,
      fill: function (lines) {
        order = lines;
        drawn.forEach(function (node) { node.remove(); });
        drawn.clear();
        all.style.height = order.length * height + "px";
        paint();
      },
      reveal: function (place) {
        const top = place * height;
        if (top < list.scrollTop) list.scrollTop = top;
        else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
      },
      // Where a key leads from a place; undefined for other keys.
      to: function (key, at) {
        const page = Math.max(1, Math.floor(list.clientHeight / height) - 1);
        return { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: order.length - 1, PageDown: at + page, PageUp: at - page }[key];
      },
    };
  }
  return { MINUS: MINUS, DASH: DASH, number: number, grouped: grouped, make: make, loader: loader, listed: listed };
})();
