
// The prompts of a pick: a list, and the answers to the chosen one, loaded from a script beside the
// page. All text is set as text, never as markup.
(function () {
  "use strict";
  const block = document.getElementById("index");
  if (!block) return;
  const index = JSON.parse(block.textContent), LINES = index.lines, HEIGHT = 30;
  const CAND = 0, NUMBER = 1, PROMPT = 2, ANSWERS = 3, RIGHT = 4, BY_RULE = 5, DIFFERENT = 6, PICKS = 7;
  const make = surgeonShelf.make, grouped = surgeonShelf.grouped, DASH = surgeonShelf.DASH;
  const $ = function (id) { return document.getElementById(id); };
  const list = $("list"), bring = surgeonShelf.loader(60);
  let order = [], chosen = -1, turn = 0;
  function rule() { return Number($("of-rule").value) || 0; }
  function keyOf(n) { return LINES[n][CAND] + "/" + LINES[n][NUMBER]; }
  function verdict(right) {
    if (right === null || right === "-") return make("span", "", "not judged");
    const yes = right === true || right === "1";
    return make("span", yes ? "mark-right" : "mark-wrong", yes ? "✓ right" : "✗ wrong");
  }
  function short(value) {
    if (value === null) return DASH;
    const size = Math.abs(value);
    const text = Number.isInteger(value) ? String(value) : size >= 100 ? value.toFixed(1) : size >= 1 ? value.toFixed(3) : size >= .99 ? value.toFixed(6) : value.toPrecision(4);
    return text.replace("-", surgeonShelf.MINUS);
  }
  function item(n) {
    const line = LINES[n], node = make("div"), prompt = make("span", "prompt-of"), picked = make("span", "num picked-of");
    prompt.append(make("bdi", "", index.prompts[line[PROMPT]][0]), " ", make("small", "", index.prompts[line[PROMPT]][1].slice(0, 160)));
    picked.append("sample " + line[PICKS][rule()]);
    if (line[BY_RULE][rule()] !== "-") picked.append(" ", verdict(line[BY_RULE][rule()]));
    node.append(
      make("span", "name", index.candidates[line[CAND]]), prompt, picked,
      make("span", "num right-of", line[RIGHT] === null ? line[ANSWERS] + " answers" : line[RIGHT] + " of " + line[ANSWERS] + " right"));
    return node;
  }
  const shelf = surgeonShelf.listed(list, $("all"), HEIGHT, item, function (node, n) {
    node.setAttribute("aria-selected", n === chosen ? "true" : "false");
  });
  function paint() {
    shelf.paint();
    list.setAttribute("aria-activedescendant", chosen >= 0 ? "item-" + chosen : "");
  }

  const lower = LINES.map(function (line) {
    return (index.candidates[line[CAND]] + "\n" + index.prompts[line[PROMPT]].join("\n")).toLowerCase();
  });
  function fits(line) {
    const candidate = $("of-candidate").value, kind = $("of-kind").value, mine = line[BY_RULE][rule()];
    if (candidate !== "" && line[CAND] !== Number(candidate)) return false;
    if (kind === "lost") return mine === "0" && line[RIGHT] > 0;
    if (kind === "other") return line[PICKS][rule()] !== line[PICKS][0];
    if (kind === "split") return line[DIFFERENT] > 1;
    return kind === "" || mine === kind;
  }
  function filter() {
    const query = $("query").value.trim().toLowerCase();
    order = [];
    LINES.forEach(function (line, n) { if (fits(line) && (query === "" || lower[n].includes(query))) order.push(n); });
    let right = 0, judged = 0;
    order.forEach(function (n) {
      const mine = LINES[n][BY_RULE][rule()];
      if (mine !== "-") judged++;
      if (mine === "1") right++;
    });
    shelf.fill(order);
    list.scrollTop = 0;
    paint();
    $("found").textContent = grouped(order.length) + " of " + grouped(LINES.length) + (LINES.length === 1 ? " prompt" : " prompts") +
      (judged ? "; " + index.rules[rule()] + " is right in " + grouped(right) : "");
  }

  function table(content) {
    const scroll = make("div", "scroll fit"), found = make("table", "plain scores"), head = make("tr"), top = make("thead"), body = make("tbody");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Values of the answers under each rule; the highest is picked");
    head.append(make("th", "", "Picked by"));
    content.answers.forEach(function (answer) { head.append(make("th", "num", "sample " + answer[0])); });
    Array.from(head.cells).forEach(function (cell) { cell.scope = "col"; });
    top.append(head);
    index.rules.forEach(function (name, r) {
      const row = make("tr", r === rule() ? "chosen" : ""), first = make("th");
      first.scope = "row";
      first.append(make("bdi", "", name));
      row.append(first);
      content.answers.forEach(function (answer, n) {
        const taken = content.picks[r] === n, cell = make("td", taken ? "num taken" : "num");
        cell.append(make("b", "", (taken ? "● " : "") + short(answer[5][r])));
        if (taken) cell.append(make("span", "said", " (picked)"));
        row.append(cell);
      });
      body.append(row);
    });
    found.append(top, body);
    scroll.append(found);
    return scroll;
  }
  function article(content, n) {
    const answer = content.answers[n], mine = content.picks[rule()] === n, box = make("article", mine ? "picked" : "");
    const head = make("h3", "", "Sample " + answer[0] + " "), about = make("p"), by = make("p", "picked-by");
    head.append(verdict(answer[2]));
    about.append(grouped(answer[1]) + (answer[1] === 1 ? " token" : " tokens") + (answer[3] ? "" : ", cut at the limit") + "; answer ", make("bdi", "", answer[4] === null ? "none read" : answer[4]));
    const names = index.rules.filter(function (name, r) { return content.picks[r] === n; });
    if (mine) by.append(make("b", "", "picked by " + index.rules[rule()]), " ");
    const others = names.filter(function (name) { return !mine || name !== index.rules[rule()]; });
    by.append(others.length ? (mine ? "and by " : "picked by ") + others.join(", ") : mine ? "" : "picked by no rule");
    const text = make("pre", "", answer[6] === null ? "(its text was not kept)" : answer[6]);
    text.tabIndex = 0;
    text.setAttribute("aria-label", "Text of sample " + answer[0]);
    text.setAttribute("role", "region");
    box.append(head, about, by, text);
    return box;
  }
  function show() {
    const mine = ++turn;
    if (chosen < 0) return;
    $("shown").hidden = false;
    const line = LINES[chosen], at = order.indexOf(chosen), address = "#r=" + keyOf(chosen);
    $("prompt-id").textContent = index.prompts[line[PROMPT]][0] + ", " + index.candidates[line[CAND]];
    $("prompt").textContent = index.prompts[line[PROMPT]][1] || "(its text is not known)";
    $("before").disabled = at <= 0;
    $("after").disabled = at < 0 || at >= order.length - 1;
    if (location.hash !== address) history.replaceState(null, "", address);
    paint();
    bring(keyOf(chosen), true).then(function (content) {
      if (mine !== turn) return;
      $("scores").replaceChildren(table(content));
      $("answers").replaceChildren.apply($("answers"), content.answers.map(function (answer, n) { return article(content, n); }));
    }, function (error) {
      if (mine !== turn) return;
      $("scores").replaceChildren();
      $("answers").replaceChildren(make("p", "warnings", error.message + ": keep the folder data with report.html."));
    });
  }
  function go(place) {
    if (!order.length) return;
    const to = Math.max(0, Math.min(order.length - 1, place));
    shelf.reveal(to);
    if (order[to] !== chosen) { chosen = order[to]; show(); }
    paint();
  }
  const places = new Map(LINES.map(function (line, n) { return [keyOf(n), n]; }));
  function fromAddress() {
    const n = places.get(new URLSearchParams(location.hash.slice(1)).get("r"));
    if (n === undefined) return false;
    chosen = n;
    const at = order.indexOf(n);
    if (at >= 0) shelf.reveal(at);
    show();
    return true;
  }

  list.addEventListener("click", function (event) {
    const node = event.target.closest(".item");
    if (node) go(order.indexOf(Number(node.id.slice(5))));
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
  });
  $("before").addEventListener("click", function () { go(order.indexOf(chosen) - 1); });
  $("after").addEventListener("click", function () { go(order.indexOf(chosen) + 1); });
  index.candidates.forEach(function (name, n) { $("of-candidate").append(new Option(name, n)); });
  index.rules.forEach(function (name, n) { $("of-rule").append(new Option(name, n)); });
  let pause = 0;
  ["query", "of-candidate", "of-rule", "of-kind"].forEach(function (id) {
    $(id).addEventListener("input", function () {
      clearTimeout(pause);
      pause = setTimeout(function () { filter(); show(); }, id === "query" ? 120 : 0);
    });
  });
  window.addEventListener("hashchange", fromAddress);
  filter();
  if (!fromAddress() && order.length) { chosen = order[0]; show(); }
})();
