# ruff: noqa: E501
"""Every page that a verb writes, made of hostile names and texts, opened in Chromium.

Ids, prompts, answers, tokens of answers and directories hold markup that sets `top.hit` where it is
taken for markup. Every page is opened in a frame, everything in it that can be opened or pressed is,
and then nothing may have set it. A page that is made to break the rule shows that the browser sees it.
"""

import json
import shutil
import subprocess
from pathlib import Path

import chain
from chain import Step

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NAME = "<img src=x onerror=top.hit=1>"
TEXT = f"</script><script>top.hit=2</script>{NAME}'\"`${{top.hit=3}}`&lt;img src=x onerror=top.hit=4&gt;]]>-->\u2028"
TINY = "--max-tokens 60 --samples 2 --seed 0"
STEPS = [
    Step("family", f"merge-sweep|a{NAME}|b{NAME}|--ratios|0.5|--virtual|--out|family", "family"),
    Step("ranking", f"rank|family|--mini-set|mini.jsonl|{TINY}|--row-tokens|4|--top-k|9|--out|ranking{NAME}", f"ranking{NAME}"),
    Step("truth", f"evaluate|family|--task|task.jsonl|{TINY}|--out|truth", "truth"),
    Step("again", f"rank|family|--mini-set|mini.jsonl|{TINY}|--row-tokens|4|--top-k|9|--out|ranking{NAME}|--truth|truth", f"ranking{NAME}"),
    Step("reading", f"read|ranking{NAME}|--out|reading", "reading"),
    Step("picked", f"pick|a{NAME}|--prompts|task.jsonl|{TINY}|--by|logprob|--by|length|--out|picked", "picked"),
    Step("stopping", f"early-stop|b{NAME}|--easy|task.jsonl|--hard|other.jsonl|--samples|2|--max-tokens|100|--updates|20|--folds|2|--answer-tokens|8|--seed|0|--out|stopping", "stopping"),
    Step("monitored", "monitor|stopping|--prompts|task.jsonl|--samples|1|--max-tokens|100|--seed|0|--out|monitored", "monitored"),
    Step("difference", f"diff|a{NAME}|b{NAME}|--out|difference", "difference"),
    Step("page", f"report|ranking{NAME}|truth|picked|--out|page{NAME}", f"page{NAME}"),
]  # fmt: skip
DRIVER = """
const report = async () => {
  const frames = [...document.querySelectorAll('iframe')];
  await new Promise(done => setTimeout(done, 3000));
  for (const frame of frames) {
    const page = frame.contentDocument;
    for (const one of page.querySelectorAll('details')) one.open = true;
    for (const one of page.querySelectorAll('button, th, tr, summary, [role=button], rect, circle')) {
      one.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
      one.dispatchEvent(new MouseEvent('click', {bubbles: true}));
    }
    for (const one of page.querySelectorAll('select')) {
      one.selectedIndex = one.options.length - 1; one.dispatchEvent(new Event('change', {bubbles: true}));
    }
    for (const one of page.querySelectorAll('input')) {
      one.value = "<img src=x onerror=top.hit=5>"; one.dispatchEvent(new Event('input', {bubbles: true}));
    }
  }
  await new Promise(done => setTimeout(done, 1500));
  const texts = frames.map(f => f.contentDocument.body.innerHTML.length);
  document.body.textContent = JSON.stringify({hit: window.hit ?? null, texts});
};
addEventListener('load', report);
"""


def run(out: Path) -> bool:
    """Make the pages and open them; True where nothing ran, or there is no Chromium."""
    if CHROMIUM is None:
        print("pages: skipped, there is no chromium on the PATH")
        return True
    place = out / "hostile"
    made = make(place)
    pages = sorted(p for p in place.rglob("*.html") if ".partial" not in str(p))
    hit, sizes = opened(pages, out / "harness")
    control = out / "control.html"
    control.write_text(f"<!doctype html><body>{NAME}</body>")
    seen, _ = opened([control], out / "harness")
    print(
        f"pages: {len(pages)} of {len(STEPS)} steps in Chromium, scripts that ran: {0 if hit is None else 1}"
    )
    for page, size in zip(pages, sizes, strict=True):
        print(f"  {page.relative_to(place)}: {size} characters")
    if seen is None:
        print("the browser doesn't see a page that breaks the rule")
    return made and hit is None and seen is not None


def make(place: Path) -> bool:
    """The hostile pages."""
    from surgeon import builtin

    chain.warm_up()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, source in (("a", "instruct"), ("b", "thinking")):
        shutil.copytree(builtin.path(source), place / f"{name}{NAME}")
    rows = [{"id": f"{n}{TEXT}", "prompt": f"Start {n}. {TEXT}", "answer": TEXT} for n in range(4)]
    for file in ("mini.jsonl", "task.jsonl"):
        (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = [{**row, "id": f"hard {row['id']}", "prompt": f"Also {row['prompt']}"} for row in rows]
    (place / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    good = True
    for step in STEPS:
        words = [
            w
            for part in step.command.split("|")
            for w in ([part] if NAME in part else part.split())
        ]
        process = chain.Running(words, place)
        ended = process.wait()
        assert ended is not None
        if ended.code:
            print(f"{step.name} ended with {ended.code}: {ended.printed[-600:]}")
            good = False
    return good


def opened(pages: list[Path], place: Path) -> tuple[int | None, list[int]]:
    """What was set by a script that ran, and how much each page holds."""
    assert CHROMIUM is not None
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    frames = "".join(
        f'<iframe src="{page.as_uri()}" width="1200" height="900"></iframe>' for page in pages
    )
    (place / "harness.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{frames}<script>{DRIVER}</script></body>"
    )
    ran = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--allow-file-access-from-files", f"--user-data-dir={place / 'profile'}", "--virtual-time-budget=20000",
         "--dump-dom", (place / "harness.html").as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    text = ran.stdout.partition("<body>")[2].partition("</body>")[0]
    found = json.loads(text)
    return found["hit"], found["texts"]
