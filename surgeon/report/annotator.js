(function () {
  "use strict";
  const content = JSON.parse(document.getElementById("blocks").textContent);
  const blocks = content.blocks, KEY = "surgeon-labels-" + content.key;
  const $ = function (id) { return document.getElementById(id); };
  let kept = { labels: {}, annotator: "" }, at = 0, saved = true;
  // A browser may forbid a page from disk to keep anything.
  try { kept = Object.assign(kept, JSON.parse(localStorage.getItem(KEY) || "{}")); } catch (error) { kept.off = true; }
  function keep() {
    saved = false;
    try { localStorage.setItem(KEY, JSON.stringify(kept)); } catch (error) { kept.off = true; }
  }
  function show() {
    const done = blocks.filter(function (b) { return kept.labels[b[0]]; }).length;
    if (!blocks.length) { $("found").textContent = "There are no blocks."; return; }
    const block = blocks[at], label = kept.labels[block[0]];
    $("found").textContent = "block " + (at + 1) + " of " + blocks.length + "; " + done + " labelled" + (label ? "; this one " + label : "") + (kept.off ? "; this browser keeps nothing: save often" : "");
    $("question").textContent = block[1] || "(not known)";
    $("said").textContent = block[2] || "(nothing: it begins the response)";
    $("block").textContent = block[3];
    $("said").scrollTop = $("said").scrollHeight;
    $("block").scrollTop = 0;
    $("e").setAttribute("aria-pressed", label === "E");
    $("x").setAttribute("aria-pressed", label === "X");
    $("before").disabled = at === 0;
    $("after").disabled = at === blocks.length - 1;
  }
  function go(to) { at = Math.max(0, Math.min(blocks.length - 1, to)); show(); }
  function label(value) {
    if (!blocks.length) return;
    if (value) kept.labels[blocks[at][0]] = value; else delete kept.labels[blocks[at][0]];
    keep();
    if (value && at < blocks.length - 1) go(at + 1); else show();
  }
  function open() {
    for (let i = 1; i <= blocks.length; i++) {
      const to = (at + i) % blocks.length;
      if (!kept.labels[blocks[to][0]]) { go(to); return; }
    }
    show();
  }
  function cell(text) {
    // A spreadsheet would run what begins like a formula.
    const plain = /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
    return '"' + plain.replace(/"/g, '""') + '"';
  }
  function save() {
    const name = kept.annotator.trim() || "annotator";
    const rows = blocks.filter(function (b) { return kept.labels[b[0]]; }).map(function (b) {
      return b[0] + "," + kept.labels[b[0]] + "," + cell(name);
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["id,label,annotator\r\n" + rows.map(function (r) { return r + "\r\n"; }).join("")], { type: "text/csv" }));
    link.download = "labels-" + (name.replace(/[^\w-]+/g, "_") || "annotator") + ".csv";
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
    saved = true;
  }
  $("annotator").value = kept.annotator;
  $("annotator").addEventListener("input", function () { kept.annotator = this.value; keep(); });
  $("before").addEventListener("click", function () { go(at - 1); });
  $("after").addEventListener("click", function () { go(at + 1); });
  $("open").addEventListener("click", open);
  $("save").addEventListener("click", save);
  $("e").addEventListener("click", function () { label("E"); });
  $("x").addEventListener("click", function () { label("X"); });
  $("none").addEventListener("click", function () { label(""); });
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    const act = {
      e: function () { label("E"); }, x: function () { label("X"); }, 0: function () { label(""); },
      n: open, ArrowLeft: function () { go(at - 1); }, ArrowRight: function () { go(at + 1); },
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  window.addEventListener("beforeunload", function (event) { if (!saved && kept.off) event.preventDefault(); });
  show();
})();
