"""The page of `surgeon read` at 19 candidates x 300 responses of 2,000 tokens, in Chromium.

    python -m benchmarks.reading_page [--keep DIR]

Target: the page answers within 100 ms to whatever is done in it (the largest of five times, in ms),
the search through all texts aside, which shows what it has found so far.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np

from surgeon.report.browser import (
    BrowsedCycle,
    BrowsedResponse,
    BrowserPage,
    CandidateLine,
    Shelf,
    write_browser,
    write_response,
)

CANDIDATES, PROMPTS, SAMPLES, ROWS, ROW_TOKENS = 19, 100, 3, 63, 32
WORDS = ("so", "we", "have", "that", "the sum of all terms is", "wait", "but", "check", "equals")
DRIVER = """
const wait = ms => new Promise(done => setTimeout(done, ms));
const frame = document.querySelector("iframe"), out = {};
async function until(test) { while (!test()) await wait(2); }
async function timed(name, view, act, test) {
  const times = [];
  for (let i = 0; i < 5; i++) {
    const begun = performance.now();
    act(i);
    await until(() => test(i));
    // Until what was done is drawn.
    await new Promise(done => view.requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - begun);
    await wait(50);
  }
  out[name] = Math.max(...times);
}
const begun = performance.now();
frame.addEventListener("load", async function () {
  const view = frame.contentWindow, page = frame.contentDocument, $ = id => page.getElementById(id);
  try {
    await until(() => page.querySelector(".pane .strip"));
    out["open the page"] = performance.now() - begun;
    const key = (node, name) =>
      node.dispatchEvent(new view.KeyboardEvent("keydown", { key: name, bubbles: true }));
    const set = (id, value) => {
      $(id).value = value;
      $(id).dispatchEvent(new view.Event("input"));
    };
    const said = () => $("found").textContent;
    let last;
    await timed("show the next response", view, () => {
      last = page.querySelector(".pane");
      key($("list"), "ArrowDown");
    }, () => page.querySelector(".pane") !== last);
    await timed("another candidate beside it, or none", view, () => {
      last = page.querySelector(".pane");
      key(page.body, "b");
    }, () => page.querySelector(".pane") !== last);
    await timed("filter by candidate", view, i => {
      last = $("all").firstChild;
      set("of-candidate", String(i));
    }, () => $("all").firstChild !== last);
    set("of-candidate", "");
    await wait(300);
    await timed("order by tokens, segments, score, ...", view, i => {
      last = $("all").firstChild;
      set("order", ["10", "7", "6", "10", "7"][i]);
    }, () => $("all").firstChild !== last);
    set("order", "");
    await wait(300);
    await timed("scroll the list", view, i => {
      last = $("all").lastChild;
      $("list").scrollTop = 30000 * (i + 1);
    }, () => $("all").lastChild !== last);
    await timed("search prompts (120 ms after the last key)", view, i => {
      last = said();
      set("query", "how many".slice(0, 3 + i) + (i % 2 ? "" : "zz"));
    }, () => said() !== last);
    $("in-text").checked = true;
    last = said();
    let longest = 0, at = performance.now(), started = at, first = 0;
    set("query", "needle");
    await until(() => {
      const now = performance.now();
      longest = Math.max(longest, now - at);
      at = now;
      if (!first && said() !== last) first = now - started;
      return said() !== last && !said().includes("read");
    });
    out["search all texts"] = performance.now() - started;
    out["longest pause in it"] = longest;
    out["found"] = said();
    started = performance.now();
    set("query", "the needle");
    await wait(125);
    await until(() => !said().includes("read"));
    out["search them again"] = performance.now() - started;
    out["heap, MiB"] = view.performance.memory.usedJSHeapSize / 2 ** 20;
  } catch (error) { out.error = String(error.stack || error); }
  const body = JSON.stringify(out);
  await fetch("http://127.0.0.1:PORT", { method: "POST", mode: "no-cors", body });
});
"""


def response(rng: np.random.Generator, candidate: int, prompt: int, sample: int) -> BrowsedResponse:
    """A response of 2,000 tokens, in rows of 32."""
    edges = np.sort(rng.choice(np.arange(2, ROWS - 2), 10, replace=False))
    explore_R = np.searchsorted(edges, np.arange(ROWS), "right") % 2 == 0
    text = [" ".join(rng.choice(WORDS, ROW_TOKENS - 6)) + ". " for _ in range(ROWS)]
    if (prompt + sample) % 50 == 0:
        text[ROWS // 2] = f"the needle {candidate} is here "
    bounds = [0, *edges.tolist(), ROWS]
    verdicts = ("effective", "redundant", "even", "weak")
    cycles = [
        BrowsedCycle(a, b, c, int(rng.integers(900)), 4.0, 2.0, float(rng.random()),
                     float(rng.normal()), float(rng.random()), True, verdicts[n % 4])
        for n, (a, b, c) in enumerate(zip(bounds[::2], bounds[1::2], bounds[2::2], strict=False))
    ]  # fmt: skip
    return BrowsedResponse(
        f"slerp-{candidate:02d}", f"p{prompt}", sample, bool(rng.random() > 0.1),
        str(int(rng.integers(10))), float(rng.random()), [ROW_TOKENS] * ROWS, text,
        rng.exponential(3, ROWS).tolist(), rng.normal(size=ROWS).tolist(),
        rng.exponential(0.3, ROWS).tolist(), explore_R.tolist(), cycles,
    )  # fmt: skip


def make(directory: Path) -> None:
    """The page, and its responses."""
    rng = np.random.default_rng(0)
    names = [f"slerp-{c:02d}" for c in range(CANDIDATES)]
    shelf = Shelf(names, {f"p{n}": f"Problem {n}: how many are there?" for n in range(PROMPTS)})
    for c in range(CANDIDATES):
        for n in range(PROMPTS * SAMPLES):
            made = response(rng, c, n // SAMPLES, n % SAMPLES)
            write_response(directory, c, n, made)
            shelf.add(c, made, ())
    page = BrowserPage(
        "A synthetic reading", [], [], [], [("score", "")],
        [CandidateLine(name, [("0.5", 0.5)]) for name in names], (), (), (),
    )  # fmt: skip
    write_browser(directory, page, shelf)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = given.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        if not (directory / "report.html").is_file():
            make(directory)
        seconds = time.perf_counter() - begun
        sizes = [f.stat().st_size for f in (directory / "data").rglob("*.js")]
        print(
            f"{len(sizes):,} responses, {sum(sizes) / 2**20:.0f} MiB of data, report.html "
            f"{(directory / 'report.html').stat().st_size / 2**20:.1f} MiB, written in "
            f"{seconds:.0f} s"
        )
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if chromium is None:
            print("no chromium on the PATH: not opened")
            return
        for name, value in opened(chromium, directory, f"{scratch}/profile").items():
            print(f"{name}: {value if isinstance(value, str) else f'{value:,.0f}'}")


def opened(chromium: str, directory: Path, profile: str) -> dict[str, float | str]:
    """What was timed in the page."""
    said: dict[str, float | str] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    server.timeout = 300
    harness = directory / "harness.html"
    harness.write_text(
        "<!doctype html><body><iframe src='report.html' width=1400 height=1400></iframe>"
        f"<script>{DRIVER.replace('PORT', str(server.server_port))}</script>"
    )
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--allow-file-access-from-files",
        "--enable-precise-memory-info", f"--user-data-dir={profile}",
        "--remote-debugging-port=0", harness.as_uri(),
    ]  # fmt: skip
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server.handle_request()
    finally:
        browser.terminate()
        browser.wait()
        server.server_close()
        harness.unlink()
    return said or {"error": "the page said nothing within 300 s"}


if __name__ == "__main__":
    main()
