"""The pages of `surgeon read` and `pick`: hostile text, widths and keys, in Chromium."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from surgeon.report.annotator import BlockShown, write_annotator
from surgeon.report.browser import (
    AgreementLine,
    BrowsedCycle,
    BrowsedResponse,
    BrowserPage,
    CandidateLine,
    Labelled,
    Shelf,
    write_browser,
    write_response,
)
from surgeon.report.picked import (
    CandidateRow,
    PickColumn,
    PickedAnswer,
    PickedPrompt,
    PickNumber,
    PickPage,
    PickShelf,
    ShownRule,
    write_picked,
)

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = (
    "</script><script>window.hit=1;throw 1</script><img src=x onerror=alert(1)>\x00\u2028`${1}`'\"&"
)


def response(candidate: str, sample: int, *, rows: int = 12) -> BrowsedResponse:
    """A response of hostile rows, in two cycles."""
    explore = [r % 6 < 3 for r in range(rows)]
    cycles = [
        BrowsedCycle(r, r + 3, r + 6, 5, 3.0, 1.0, 0.5, 0.2, 0.6, True, verdict)
        for r, verdict in ((0, "effective"), (6, "redundant"))
    ]
    return BrowsedResponse(
        candidate, HOSTILE, sample, True, HOSTILE, 0.5, [4] * rows,
        [f"{HOSTILE} {r}\n" for r in range(rows)], [float(r) for r in range(rows)],
        [r - 5.0 for r in range(rows)], [0.1 * r for r in range(rows)], explore, cycles,
    )  # fmt: skip


def write(directory: Path) -> None:
    """A reading of two hostile candidates, and its blocks."""
    names = [f"a {HOSTILE}" * 3, "b"]
    shelf = Shelf(names, {HOSTILE: HOSTILE * 20})
    for place, name in enumerate(names):
        for number in range(40):
            made = response(name, number)
            write_response(directory, place, number, made)
            labels = [Labelled(0, 3, {HOSTILE: "E"}), Labelled(3, 6, {HOSTILE: "X"})]
            shelf.add(place, made, labels if number == 0 else ())
    page = BrowserPage(
        HOSTILE, [HOSTILE], [HOSTILE], [(HOSTILE, HOSTILE, HOSTILE)], [("score", "nats")],
        [CandidateLine(name, [("0.5", 0.5)]) for name in names], ["blocks"],
        [AgreementLine(HOSTILE, ["3"])], [HOSTILE],
    )  # fmt: skip
    write_browser(directory, page, shelf)
    write_annotator(directory, [BlockShown(f"id{n}", HOSTILE, HOSTILE, HOSTILE) for n in range(3)])


def write_picks(directory: Path) -> None:
    """A pick among two answers of two hostile candidates to 30 prompts; `odd` picks the second."""
    rules, names = [f"nex {HOSTILE}", "odd"], [f"a {HOSTILE}" * 3, "b"]
    shelf = PickShelf(directory, names, rules, {f"{HOSTILE} {n}": HOSTILE * 9 for n in range(30)})
    for candidate in range(2):
        for n in range(30):
            answers = [
                PickedAnswer(s, 7, None if n == 29 else s == n % 2, True, HOSTILE,
                             [0.99 - s, None if n else -1e-9], f"{HOSTILE} {n}\n")
                for s in range(2)
            ]  # fmt: skip
            shelf.add(PickedPrompt(candidate, f"{HOSTILE} {n}", answers, [0, 1]))
    columns = [PickColumn(HOSTILE, "%", 1, charted=True), PickColumn("b", "", 0)]
    numbers = [PickNumber(50.0, 40.0, 60.0), PickNumber(None)]
    lines = [ShownRule(name, HOSTILE, numbers) for name in rules]
    rows = [CandidateRow(name, numbers) for name in names]
    page = PickPage(
        HOSTILE, [HOSTILE], [HOSTILE], [(HOSTILE, HOSTILE, HOSTILE)], columns, lines, columns,
        rows, [HOSTILE],
    )  # fmt: skip
    write_picked(page, shelf)


class Elements(HTMLParser):
    """The names of a page's elements."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def test_foreign_text_is_never_markup_nor_script(tmp_path: Path):
    write(tmp_path)
    for name, scripts in (("report.html", 2), ("annotate.html", 2)):
        found = Elements((tmp_path / name).read_text(encoding="utf-8")).found
        assert found.count("script") == scripts and "img" not in found, name
        policy = (tmp_path / name).read_text(encoding="utf-8").partition("script-src ")[2]
        beside = " 'self' file:" if name == "report.html" else ""
        assert policy.partition(";")[0].partition("' ")[2].strip() == beside.strip()
    script = (tmp_path / "data" / "0" / "0.js").read_text(encoding="utf-8")
    content = json.loads(script.removeprefix('surgeonTake("0/0",').removesuffix(");\n"))
    assert script.isascii() and script.count("\n") == 1
    assert content["text"][0] == HOSTILE.replace("\x00", "\u2400") + " 0\n"
    write_picks(tmp_path / "picks")
    text = (tmp_path / "picks" / "report.html").read_text(encoding="utf-8")
    found = Elements(text).found
    assert found.count("script") == 2 and "img" not in found and found.count("figure") == 1
    script = (tmp_path / "picks" / "data" / "1" / "29.js").read_text(encoding="utf-8")
    content = json.loads(script.removeprefix('surgeonTake("1/29",').removesuffix(");\n"))
    assert [answer[2] for answer in content["answers"]] == [None, None]
    assert content["answers"][0][5] == [0.99, None] and content["picks"] == [0, 1]


DRIVER = """
const key = (view, node, name) =>
  node.dispatchEvent(new view.KeyboardEvent("keydown", { key: name, bubbles: true }));
const wait = () => new Promise(done => setTimeout(done, 300));
function act(frame) {
  const view = frame.contentWindow, page = frame.contentDocument, $ = id => page.getElementById(id);
  const out = {}, title = () => page.querySelector(".pane h3").textContent;
  const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new view.Event("input")); };
  return Promise.resolve().then(() => {
    out.items = page.querySelectorAll(".item").length;
    out.first = view.location.hash;
    key(view, $("list"), "End");
    return wait();
  }).then(() => {
    out.last = view.location.hash;
    key(view, page.body, "b");
    return wait();
  }).then(() => {
    out.beside = view.location.hash;
    out.panes = page.querySelectorAll(".pane").length;
    key(view, page.body, "b");
    key(view, $("list"), "Home");
    return wait();
  }).then(() => {
    const strip = page.querySelector(".strip");
    key(view, strip, "ArrowRight"); key(view, strip, "ArrowRight");
    out.row = page.querySelector(".row-readout").textContent;
    out.lit = Array.from(page.querySelectorAll(".row.on"), node => node.dataset.r);
    page.querySelectorAll(".cycles tbody tr")[1].click();
    out.framed = page.querySelectorAll(".cycle-area").length;
    out.cycle = page.querySelectorAll(".row.in-cycle").length;
    out.text = page.querySelector(".row").textContent;
    out.tracks = page.querySelectorAll(".pane .track-name").length;
    set("of-candidate", "1");
    return wait();
  }).then(() => {
    out.filtered = $("found").textContent;
    $("in-text").checked = true;
    set("query", "1)> 11".slice(0, 3));
    return wait();
  }).then(() => { out.searched = $("found").textContent; out.hit = view.hit; return out; });
}
function annotate(frame) {
  const view = frame.contentWindow, page = frame.contentDocument;
  key(view, page.body, "e"); key(view, page.body, "x"); key(view, page.body, "ArrowLeft");
  return { said: page.getElementById("found").textContent, hit: view.hit,
           block: page.getElementById("block").textContent };
}
function pickedOf(frame) {
  const view = frame.contentWindow, page = frame.contentDocument, $ = id => page.getElementById(id);
  const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new view.Event("input")); };
  const texts = selector => Array.from(page.querySelectorAll(selector), node => node.textContent);
  const out = { first: view.location.hash, marked: texts("article.picked .picked-by b") };
  key(view, $("list"), "End");
  return wait().then(() => {
    out.last = view.location.hash;
    out.unknown = texts("article.picked h3");
    key(view, page.body, "[");
    return wait();
  }).then(() => {
    out.before = view.location.hash;
    out.verdicts = texts("article h3");
    out.text = page.querySelector("article pre").textContent;
    set("of-rule", "1"); set("of-kind", "lost");
    return wait();
  }).then(() => {
    out.lost = $("found").textContent;
    out.taken = texts(".scores tr.chosen td.taken");
    out.marked.push(...texts("article.picked .picked-by b"));
    set("of-candidate", "0"); set("of-kind", ""); set("query", "> 11".slice(2));
    return wait();
  }).then(() => { out.searched = $("found").textContent; out.hit = view.hit; return out; });
}
window.onload = async function () {
  await wait();
  const frames = Array.from(document.querySelectorAll("iframe")), found = { pages: [] };
  for (const frame of frames) {
    const page = frame.contentDocument;
    found.pages.push({ width: frame.clientWidth, needs: page.scrollingElement.scrollWidth,
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name) });
  }
  found.acted = await act(frames[2]);
  found.annotated = annotate(frames[5]);
  found.picked = await pickedOf(frames[8]);
  document.body.textContent = JSON.stringify(found);
};
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; the form is checked above")
def test_the_pages_work_in_a_browser_without_errors_or_requests(tmp_path: Path):
    assert CHROMIUM is not None
    write(tmp_path)
    write_picks(tmp_path / "picks")
    frames = [
        f'<iframe src="{name}.html" width="{width}" height="900"></iframe>'
        for name in ("report", "annotate", "picks/report")
        for width in (400, 900, 2000)
    ]
    harness = f"<!doctype html><body>{''.join(frames)}<script>{DRIVER}</script></body>"
    (tmp_path / "harness.html").write_text(harness)
    run = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-dev-shm-usage", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
            "--window-size=2100,1000", "--virtual-time-budget=20000", "--dump-dom",
            (tmp_path / "harness.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(HTMLText(run.stdout).text)
    for page in found["pages"]:
        assert page["needs"] <= page["width"]
        assert all("/data/" in name and name.startswith(tmp_path.as_uri())
                   for name in page["fetched"])  # fmt: skip
    acted = found["acted"]
    assert acted["first"] == "#r=0/0" and acted["last"] == "#r=1/39"
    assert 0 < acted["items"] < 40
    assert acted["beside"] == "#r=1/39&b=0/39" and acted["panes"] == 2
    assert acted["row"].startswith("row 2, exploring: s = 1.00") and acted["lit"] == ["1"]
    # Novelty, z, entropy, phases, and the annotator's labels.
    assert acted["tracks"] == acted["framed"] == 5 and acted["cycle"] == 6
    assert acted["text"] == HOSTILE.replace("\x00", "\u2400") + " 0\n"
    assert acted["filtered"] == "40 of 80 responses" and acted["searched"].startswith("40 of 80")
    assert found["annotated"]["said"].startswith("block 2 of 3; 2 labelled; this one X")
    assert found["annotated"]["block"] == HOSTILE.replace("\x00", "\u2400")
    picked = found["picked"]
    assert picked["first"] == "#r=0/0" and picked["last"] == "#r=1/29"
    assert picked["unknown"] == ["Sample 0 not judged"] and picked["before"] == "#r=1/28"
    assert picked["verdicts"] == ["Sample 0 ✓ right", "Sample 1 ✗ wrong"]
    assert picked["marked"] == [f"picked by nex {HOSTILE.replace(chr(0), chr(0x2400))}",
                                "picked by odd"]  # fmt: skip
    assert picked["text"] == HOSTILE.replace("\x00", "\u2400") + " 28\n"
    # Every second prompt of both, but for those that weren't judged.
    assert picked["lost"] == "30 of 60 prompts; odd is right in 0"
    assert picked["taken"] == ["● – (picked)"]
    assert picked["searched"] == "1 of 60 prompts; odd is right in 1" and picked.get("hit") is None
    assert acted.get("hit") is None and found["annotated"].get("hit") is None


class HTMLText(HTMLParser):
    """The text of the body."""

    def __init__(self, page: str):
        super().__init__()
        self.text = ""
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside |= tag == "body"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""
