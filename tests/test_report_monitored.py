"""The page of a monitored trace: it stands alone, escapes its text, and shows what fired where.

The traces are made up; they have the shape that `replay` returns, which one test asks for.
"""

import base64
import json
import re
import struct
import subprocess
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_report import CHROMIUM, HOSTILE, LOADS, Page, contrast

from surgeon.neureasoner.steps import Step
from surgeon.report import monitored
from surgeon.report.page import HERE
from surgeon.report.tracks import MOST_ROWS, NAMED_CHANNELS, SHADES
from surgeon.report.words import DASH, visible
from surgeon.watch.replay import Replay, ReplayFiring, ReplayLevel, ReplayReading

LEVELS = ("intra", "inter", "instance")
THRESHOLD = {"intra": 0.5, "inter": 0.6, "instance": 0.7}


def replay_of(data: dict[str, Any]) -> Replay:
    """The replay of such a trace."""
    kinds = {"firings": ReplayFiring, "readings": ReplayReading}
    rows = {name: [kind(**row) for row in data[name]] for name, kind in kinds.items()}
    levels = {level: ReplayLevel(**row) for level, row in data["levels"].items()}
    steps = [Step(*step) for step in data["steps"]]
    fields: dict[str, Any] = {name: data[name] for name in Replay._fields}
    return Replay(**{**fields, **rows, "levels": levels, "steps": steps})


def page(data: dict[str, Any]) -> str:
    return monitored.page(replay_of(data), data.get("rates"))


def checked(text: str) -> Page:
    """Parse a page and require good form and nothing to fetch."""
    parsed = Page(text)
    assert parsed.faults == []
    for tag, attributes in parsed.elements:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has an inline handler {name}"
            if name in LOADS:
                assert value.startswith(("#", "data:image/png;base64,")) or value == "data:,"
    assert parsed.count("script") == 1
    assert not re.search(r"url\(|@import", parsed.text("style"))
    (policy,) = [a["content"] for a in parsed.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'") and "'unsafe-inline'; script-src" in policy
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    for _, attributes in parsed.elements:
        for name in ("points", "d", "x", "y1", "width", "style"):
            assert not re.search("nan|inf", attributes.get(name, ""))
    return parsed


def traced(
    steps: list[list[str]],
    fired: dict[int, str] | None = None,
    *,
    after: tuple[str, ...] = (),
    channels: int = 6,
    seed: int = 0,
) -> dict[str, Any]:
    """A trace of these steps, each a list of tokens; `fired` names the level of those steps after
    which the next step's first token was forced."""
    fired, rng = fired or {}, np.random.default_rng(seed)
    tokens = [token for step in steps for token in step] + list(after)
    edges = np.cumsum([0, *map(len, steps)]).tolist()
    bounds = [list(pair) for pair in pairwise(edges)]
    T, thinking = len(tokens), edges[-1]
    levels = {}
    for number, level in enumerate(LEVELS):
        known = bounds[min(3, len(bounds) - 1)][1] if level == "instance" and bounds else thinking
        low = rng.uniform(0, 0.9 * THRESHOLD[level], T).tolist()
        levels[level] = {
            "columns": list(range(number, channels)),
            "threshold": THRESHOLD[level],
            "window": 4,
            "probability_T": [p if t < known else None for t, p in enumerate(low)],
        }
    firings, readings = [], []
    for s, (start, end) in enumerate(bounds):
        if end >= T:
            continue
        if s in fired:
            level = fired[s]
            levels[level]["probability_T"][end - 1] = 0.93
            firings.append({
                "position": end, "start": end, "end": end + 1, "level": level,
                "probability": 0.93, "read_back": 0.93, "step": s,
                "text": "".join(tokens[start:end]).strip(),
            })  # fmt: skip
        for level in LEVELS:
            if level != "instance" or s == 3:
                p = levels[level]["probability_T"][end - 1]
                readings.append(
                    {"position": end, "level": level, "probability": p, "open": True, "step": s}
                )
    return {
        "prompt_id": "q-1", "sample": 2, "prompt": "Find x.", "finish_reason": "stop",
        "tokens": tokens, "layer": 7, "units": list(range(10, 8 + channels)), "heads": [3, 5],
        "activation_TC": np.abs(rng.normal(size=(T, channels))).round(3).tolist(),
        "steps": bounds, "levels": levels, "readings": readings, "firings": firings,
    }  # fmt: skip


STEPS = [
    ["So", " x", " =", " 3", ".\n\n"],
    ["Wait", ",", " 4", "\n", "\n"],
    ["<INTRA>", " no", ".\n\n"],
    ["Hm", "\n\n"],
    ["<INTER>", " x", " is", " 3", "\n"],
]
PLAIN = traced(STEPS, {1: "intra", 3: "inter"}, after=("</think>", "\n\n", "3", "<|end|>"))


def rows_of(parsed: Page) -> list[dict[str, str]]:
    return list(parsed.all("span", "row"))


# ---------------------------------------------------------------- what is said


def test_the_headline_counts_tokens_and_firings_by_level():
    parsed = checked(page(PLAIN))
    assert parsed.text("h1") == "2 firings in 24 tokens: intra 1, inter 1, instance 0."
    lead = parsed.text(".lead")
    assert lead == "The response ended by itself after 5 steps; 2 tokens (8.3%) were forced."
    cut = checked(page({**PLAIN, "finish_reason": "length"}))
    assert "cut at the token limit after 5 steps" in cut.text(".lead")
    facts = " ".join(parsed.text("dl").split())
    assert "promptq-1, sample 2" in facts and "4 units, 2 headsof layer 7" in facts
    assert "readings11 intra" in facts and "without a firing" not in facts
    assert "inter1 firingfires from 0.600" in facts


def test_readings_at_the_threshold_that_fired_nothing_are_counted():
    data = {**PLAIN, "firings": PLAIN["firings"][:1]}
    facts = " ".join(checked(page(data)).text("dl").split())
    assert "readings111 at the threshold without a firing" in facts


def test_the_text_comes_step_by_step_with_what_was_forced():
    parsed = checked(page(PLAIN))
    text = parsed.text(".words")
    assert text == "So x = 3.Wait, 4<INTRA> no.Hm<INTER> x is 3</think>\n\n3<|end|>"
    assert parsed.text(".number") == "12345"
    marks = [a for a in parsed.all("mark") if "data-c" in a]
    assert [(a["class"], a["id"]) for a in marks] == [
        ("forced l-intra", "firing-0"),
        ("forced l-inter", "firing-1"),
    ]
    assert "<INTRA>" in parsed.text("mark") and " no" not in parsed.text("mark")
    assert [a["class"] for a in parsed.all("div", "fired")] == [
        "step fired l-intra",
        "step fired l-inter",
    ]
    assert parsed.text(".flag") == "1 intra 0.9302 inter 0.930"


def test_every_token_is_a_place_to_point_at():
    rows = rows_of(checked(page(PLAIN)))
    assert [row["data-r"] for row in rows] == [str(t) for t in range(24)]
    known = PLAIN["levels"]["inter"]["probability_T"][6]
    assert rows[6]["title"].startswith("token 7, step 2: intra 0.")
    assert f"inter {known:.2f}, instance 0." in rows[6]["title"]
    assert rows[23]["title"] == f"token 24, no step: intra {DASH}, inter {DASH}, instance {DASH}"
    # Tokens of nothing but line breaks at a step's end have a sign instead of text.
    assert [t for t, row in enumerate(rows) if row["class"] == "row ends"] == [8, 9, 14, 19]


def test_detectors_stand_beside_the_steps_they_read():
    parsed = checked(page(PLAIN))
    said = [a["title"] for a in parsed.all("div", "said-by")]
    at = {s: PLAIN["steps"][s][1] - 1 for s in range(5)}
    value = {level: PLAIN["levels"][level]["probability_T"] for level in LEVELS}
    assert said[0] == f"intra {value['intra'][at[0]]:.2f}, inter {value['inter'][at[0]]:.2f}"
    assert said[1].startswith("intra 0.93, inter 0.") and "instance" not in said[1]
    assert said[3].endswith(f"inter 0.93, instance {value['instance'][at[3]]:.2f}")
    widths = re.findall(r'class="meter l-(\w+)"><i style="width:([\d.]+)%', page(PLAIN))[:2]
    assert [level for level, _ in widths] == ["intra", "inter"]
    assert [float(w) / 100 for _, w in widths] == pytest.approx(
        [value["intra"][at[0]], value["inter"][at[0]]], abs=1e-5
    )


def test_firings_are_the_same_in_charts_text_and_table():
    parsed = checked(page(PLAIN))
    for n in ("0", "1"):
        places = [tag for tag, a in parsed.elements if a.get("data-c") == n]
        # The flag above the charts, the circle on the curve, the step's flag, the mark, the row.
        assert sorted(places) == ["a", "a", "mark", "span", "span", "tr"]
    table = [" ".join(line.split()) for line in parsed.lines("tbody")]
    assert table[0] == "1intra" and table[1:7] == [
        "11", "2", "0.930", "0.500", "<INTRA>", "Wait, 4",
    ]  # fmt: skip
    links = {a["href"] for a in parsed.all("a", "pin")}
    assert links == {"#firing-0", "#firing-1"}
    assert links <= {f"#{a['id']}" for _, a in parsed.elements if "id" in a}


def test_a_trace_without_firings_or_without_text_is_a_page_too():
    parsed = checked(page(traced(STEPS)))
    assert parsed.text("h1") == "Nothing fired in 20 tokens."
    assert "forced." not in parsed.text(".lead") and "No detector fired." in parsed.text("main")
    assert parsed.count("table") == parsed.count("a", "pin") == parsed.count("div", "pins") == 0
    assert parsed.count("svg") > 3 and len(rows_of(parsed)) == 20
    nothing = checked(page(traced([])))
    assert nothing.text("h1") == "Nothing fired in 0 tokens."
    assert "The response is empty." in nothing.text("main")
    one = checked(page(traced([["a"]], channels=3)))
    assert one.text("h1") == "Nothing fired in 1 token." and len(rows_of(one)) == 1
    stepless = {**traced([], after=("a", "b")), "readings": []}
    assert checked(page(stepless)).text(".words") == "ab"


def test_random_firing_shows_its_rate_and_the_detectors_word():
    data = json.loads(json.dumps(PLAIN))
    data["firings"][0]["probability"] = 0.1
    parsed = checked(page(data))
    table = [" ".join(line.split()) for line in parsed.lines("tbody")]
    assert "0.100read back 0.930" in table and "drawn at random" in parsed.text(".note")
    assert "read back" not in page(PLAIN) and "drawn at random" not in page(PLAIN)
    told = checked(page({**data, "rates": {"intra": 0.1, "inter": 0.25}}))
    assert "at random" in told.text(".lead") and "at random" not in parsed.text(".lead")
    assert "1 firingfires at random, at 0.250 of the step ends" in told.text("dl")


def test_what_was_forced_may_be_cut_off_or_begin_with_a_separator():
    """A separator and a trigger after the last token that the model chose; the limit came first."""
    data = traced([["a", "b"]], {})
    data["firings"] = [{
        "position": 2, "start": 1, "end": 2, "level": "intra", "probability": 0.9,
        "read_back": 0.9, "step": 0, "text": "a",
    }]  # fmt: skip
    parsed = checked(page(data))
    assert parsed.text("h1").startswith("1 firing in 2 tokens")
    assert parsed.count("a", "pin") == 2 and parsed.text(".words") == "ab"


# ---------------------------------------------------------------- charts


def pixels(url: str) -> tuple[np.ndarray, bytes]:
    """The (height, width) shades of a heat map, and its palette."""
    body = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    assert body.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(body):
        (size,) = struct.unpack(">I", body[at : at + 4])
        kind, content = body[at + 4 : at + 8], body[at + 8 : at + 8 + size]
        assert struct.unpack(">I", body[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + content
        )
        chunks[kind] = content
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    packed = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)[:, 1:]
    return np.stack([packed >> 4, packed & 15], -1).reshape(height, -1)[:, :width], chunks[b"PLTE"]


def test_heat_maps_show_each_channel_on_its_own_scale():
    data = traced([["a"] * 40, ["b"] * 41], channels=4)
    x_TC = np.zeros((81, 4))
    x_TC[:, 0] = np.linspace(0, 1, 81)
    x_TC[:, 1] = 1000 + np.linspace(5, 0, 81)
    x_TC[7, 2] = 1e6
    data["activation_TC"] = x_TC.tolist()
    parsed = checked(page(data))
    light, palette = pixels(next(parsed.all("img"))["src"])
    dark, other = pixels(next(parsed.all("source"))["srcset"])
    assert light.shape == (4, 81) and (light == dark).all()
    assert len(palette) == len(other) == 3 * SHADES
    assert palette[0] > palette[-1] and other[0] < other[-1]
    assert (light[0, 0], light[0, -1]) == (light[1, -1], light[1, 0]) == (0, SHADES - 1)
    assert (np.diff(light[0].astype(int)) >= 0).all()
    assert light[2, 7] == light[2].max() and np.delete(light[2], 7).max() == light[3].max() == 0
    assert parsed.text(".heat").strip().startswith("unit 10unit 11head 3head 5")
    many = traced([["a"] * 9], channels=NAMED_CHANNELS + 1)
    assert checked(page(many)).text(".heat").strip().startswith("15 units2 heads")


def test_curves_have_a_dot_for_each_reading_and_break_where_nothing_is_known():
    data = json.loads(json.dumps(PLAIN))
    data["levels"]["inter"]["probability_T"][3] = None
    parsed = checked(page(data))
    dots = [a["d"].count("M") for a in parsed.all("path", "read")][3:]
    # below the threshold (drawn twice, as a hollow dot) and from it on
    assert dots == [4, 4, 1, 4, 4, 1, 1, 1, 0]
    lines = [len(a["points"].split()) for a in parsed.all("polyline", "signal")][1:]
    assert lines == [20, 3, 16, 15]
    first = next(a for a in parsed.all("path", "read") if "M4.5" in a["d"])
    y = float(first["d"].split("h0")[0].split()[1])
    known = PLAIN["levels"]["intra"]["probability_T"][4]
    assert y == pytest.approx(100 * (1.04 - known) / 1.08, abs=0.06)
    silent = json.loads(json.dumps(PLAIN))
    silent["levels"]["intra"]["threshold"] = 2.0
    assert "2.00" in checked(page(silent)).text(".at")


def long(n_steps: int = 400) -> dict[str, Any]:
    steps = [[f" w{i}" for i in range(39)] + [".\n\n"] for _ in range(n_steps)]
    levels = {9: "intra", 60: "inter", 61: "inter", 62: "inter", 380: "instance"}
    return traced(steps, levels, after=("</think>", "\n\n", "x"), channels=60)


def test_sixteen_thousand_tokens_make_a_page_of_moderate_size():
    data = long()
    begun = time.perf_counter()
    text = page(data)
    assert time.perf_counter() - begun < 10
    parsed = checked(text)
    assert len(data["tokens"]) == 16_003 and len(text) < 2_000_000
    rows = rows_of(parsed)
    n_rows = len(rows)
    assert MOST_ROWS / 2 < n_rows <= MOST_ROWS
    assert [int(row["data-r"]) for row in rows] == list(range(n_rows))
    assert rows[0]["title"].startswith("tokens 1 to 14, step 1: intra 0.")
    assert parsed.text(".words") == "".join(data["tokens"]).replace(".\n\n", ".")
    assert pixels(next(parsed.all("img"))["src"])[0].shape == (60, n_rows)
    assert all(len(a["points"].split()) <= n_rows for a in parsed.all("polyline"))
    # Flags that would cover each other are set apart.
    lanes = [
        [int(re.findall(rf"--{width}:(\d+)", a["style"])[0]) for a in parsed.all("a", "pin")
         if "style" in a]
        for width in ("wide", "narrow")
    ]  # fmt: skip
    assert lanes == [[0, 0, 1, 2, 0], [0, 0, 1, 2, 0]]
    (box,) = parsed.all("div", "pins")
    assert box["style"] == "--wide:2;--narrow:2"
    assert len([a for a in parsed.all("mark") if "id" in a]) == 5


def test_endless_tokens_are_cut_and_the_page_says_so():
    wide = {**traced([["x" * 10**6] * 3, ["y" * 10**6] * 90]), "prompt": "z" * 10**6}
    text = page(wide)
    assert len(text) < 900_000
    parsed = checked(text)
    assert "not shown" in parsed.text(".omitted") and parsed.text(".omitted").count("Rows") == 1
    assert parsed.text(".words").count("the rest of this row is not shown") > 10
    assert parsed.text(".prompt").endswith("[the rest of the prompt is not shown]")
    shown = [int(row["data-r"]) for row in rows_of(parsed)]
    assert shown[0] == 0 and shown[-1] == 92 and len(shown) < 93


# ---------------------------------------------------------------- foreign text


def shown(tokens: list[str]) -> list[str]:
    """The text of each token, without the line breaks at both ends of a step."""
    edges = [*(start for start, _ in PLAIN["steps"]), PLAIN["steps"][-1][1], len(tokens)]
    found = list(tokens)
    for first, end in pairwise(edges):
        found[first] = found[first].lstrip("\n")
        found[end - 1] = found[end - 1].rstrip("\n")
    return found


SHAPE = [tag for tag, _ in checked(page(PLAIN)).elements]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=st.lists(HOSTILE, min_size=24, max_size=24), name=HOSTILE)
def test_foreign_text_is_shown_as_it_is_and_never_becomes_markup(words: list[str], name: str):
    tokens = [f"{word}." for word in words]
    data = {**PLAIN, "tokens": tokens, "prompt": name, "prompt_id": name}
    data["firings"] = [{**firing, "text": name} for firing in PLAIN["firings"]]
    parsed = checked(page(data))
    assert [tag for tag, _ in parsed.elements] == SHAPE
    assert parsed.text(".words") == "".join(map(visible, shown(tokens)))
    assert parsed.text(".prompt") == visible(name)
    assert f"{visible(name)}, sample 2" in parsed.text("bdi")


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_what_was_forced_can_be_read_in_every_scheme(scheme: int):
    style = Page(page(PLAIN)).text("style")
    own = (HERE / "monitored.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", block))
    paper = colour["paper"]
    paper = paper if len(paper) == 7 else "#" + "".join(2 * c for c in paper[1:])
    for level in LEVELS:
        (name,) = re.findall(rf"\.l-{level} {{ --l: var\(--(\w+)\)", own)
        assert contrast(colour[name], paper) >= 4.5, level


# ---------------------------------------------------------------- a real one


def test_a_replayed_trace_is_drawn():
    import torch

    from surgeon.channels import Channels
    from surgeon.checkpoint import resolve
    from surgeon.neureasoner.detectors import Detector
    from surgeon.neureasoner.features import FEATURES
    from surgeon.settings.neureasoner import WatchSettings
    from surgeon.traces import Sampling, read_prompts, sample
    from surgeon.watch.monitor import Monitor
    from surgeon.watch.replay import replay

    checkpoint = resolve("builtin:thinking")
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    torch.manual_seed(0)
    channels = {level: Channels(2, (1, 5), (0,)) for level in LEVELS}
    detectors = {level: Detector(3 * len(FEATURES[level])) for level in LEVELS}
    monitor = Monitor(channels, detectors, WatchSettings(), checkpoint.digest)
    (trace,) = sample(
        model,
        tokenizer,
        read_prompts("builtin:test")[:1],
        Sampling(samples=1, temperature=0.6, max_tokens=90),
    )
    found = replay(model, tokenizer, monitor, trace, [])
    parsed = checked(monitored.page(found))
    assert len(rows_of(parsed)) == len(trace.token_ids)
    shown, given = (re.sub(r"\s", "", words) for words in (parsed.text(".words"), trace.text))
    assert shown.startswith(given[:40]) and given in shown
    assert parsed.text(".heat").strip().startswith("unit 1unit 5head 0")
    assert str(len(found.readings)) in parsed.text("dl")


# ---------------------------------------------------------------- in a browser

DRIVER = """
window.onload = function () {
  const found = { pages: [] };
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow;
    const rows = Array.from(page.querySelectorAll(".row"));
    const images = Array.from(page.querySelectorAll(".heat img"));
    found.pages.push({
      name: frame.dataset.name, width: frame.clientWidth,
      needs: page.scrollingElement.scrollWidth,
      heights: Array.from(page.querySelectorAll(".plot"), node => node.clientHeight),
      images: images.map(image => [image.complete, image.naturalWidth, image.naturalHeight]),
      rows: rows.length, drawn: rows.filter(row => row.getClientRects().length > 0).length,
      fetched: view.performance.getEntriesByType("resource").map(e => e.name)
        .filter(name => !name.startsWith("data:")),
    });
  }
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const view = frame.contentWindow, strip = page.querySelector(".strip");
  const fire = node => node.dispatchEvent(
    new view.PointerEvent("pointerover", { bubbles: true, clientX: 0, clientY: 0 }));
  const key = name => strip.dispatchEvent(new view.KeyboardEvent("keydown", { key: name }));
  for (let i = 0; i < 11; i++) key("ArrowRight");
  found.said = page.querySelector(".row-readout").textContent;
  found.lit = Array.from(page.querySelectorAll(".row.on"), node => node.dataset.r);
  found.cursor = page.querySelector(".cursor").style.left;
  fire(page.querySelector('.row[data-r="3"]'));
  found.pointed = strip.getAttribute("aria-valuenow");
  fire(page.querySelector('.pins [data-c="1"]'));
  found.marked = Array.from(page.querySelectorAll(".on[data-c]"), node => node.dataset.c);
  page.querySelectorAll("th button")[1].click();
  const table = page.querySelector(".firings");
  found.sorted = Array.from(table.tBodies[0].rows, row => row.cells[1].textContent.trim());
  document.body.textContent = JSON.stringify(found);
};
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; the form is checked above")
def test_pages_render_in_a_browser_without_errors_or_requests(tmp_path: Path):
    assert CHROMIUM is not None
    hostile = {**PLAIN, "tokens": ["</script><script>throw 1</script>"] * 24}
    pages = {"plain": PLAIN, "none": traced(STEPS), "long": long(), "hostile": hostile}
    written = {name: page(data) for name, data in pages.items()}
    # A page that does break the rule shows that breaking it is noticed.
    broken = "<script>let injected;</script></body>"
    written["control"] = written["none"].replace("</body>", broken)
    frames = []
    for name, text in written.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        frames += [
            f'<iframe data-name="{name}" src="{name}.html" width="{width}" height="900"></iframe>'
            for width in (1400, 380)
        ]
    harness = f"<!doctype html><body>{''.join(frames)}<script>{DRIVER}</script></body>"
    (tmp_path / "harness.html").write_text(harness)
    run = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-dev-shm-usage", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
            "--window-size=1500,1000", "--dump-dom", (tmp_path / "harness.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in console if "control.html" in line], "the console is not read"
    assert [line for line in console if "control.html" not in line] == []
    found = json.loads(Page(run.stdout).text("body"))
    assert len(found["pages"]) == len(frames)
    for one in found["pages"]:
        assert one["fetched"] == [], one["name"]
        assert one["needs"] <= one["width"], f"{one['name']} is wider than its window"
        assert len(one["heights"]) == 7 and min(one["heights"]) > 10
        assert all(done and w * h > 0 for done, w, h in one["images"]) and len(one["images"]) == 3
        assert one["drawn"] == one["rows"] > 0
    assert found["said"].startswith("token 11, step 3: ") and found["lit"] == ["10"]
    assert float(found["cursor"].removesuffix("%")) == pytest.approx(100 * 10 / 24)
    assert found["pointed"] == "4"
    assert found["marked"] == ["1"] * 6
    assert found["sorted"] == ["16", "11"]
