"""`surgeon read`: the phases and cycles of every response of a ranking; kills, pages, labels."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoints import served
from safetensors.numpy import load_file, save_file

from surgeon import evidence_file, nex
from surgeon.errors import BadInput
from surgeon.rank import rank
from surgeon.read import read
from surgeon.read.phase_entropy import disagreement, phase_entropy, uncertainty_warnings
from surgeon.report.browser import BrowsedResponse
from surgeon.traces import read_traces, row_texts


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    """A checkpoint `m` and a ranking of it; read only."""
    root = tmp_path_factory.mktemp("read")
    make_checkpoint(root / "m")
    rows = [{"id": f"p{i}", "prompt": f"w{i} w1"} for i in range(3)]
    (root / "mini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rank([str(root / "m")], mini_set=root / "mini.jsonl", out=root / "ranking", samples=2,
         max_tokens=24, row_tokens=1, top_k=8)  # fmt: skip
    return root


@pytest.fixture(scope="module")
def reading(ranked: Path) -> Path:
    """Its reading; read only."""
    return read(str(ranked / "ranking"), out=ranked / "reading").out


def test_every_response_is_kept_with_its_rows_phases_and_cycles(ranked: Path, reading: Path):
    kept = evidence_file.read(ranked / "ranking" / "candidates" / "m")
    traces = read_traces(ranked / "ranking" / "candidates" / "m" / "traces.jsonl")
    rows = lines(reading / "responses" / "m.jsonl")
    assert len(rows) == len(traces) == 6
    for row, r in zip(rows, kept.responses, strict=True):
        assert row["slope_R"] == pytest.approx(r.evidence.slope_R, abs=1e-6)
        assert row["explore_R"] == r.evidence.explore_R.tolist()
        assert row["entropy_R"] == pytest.approx(r.entropy_R, abs=1e-6)
        assert len(row["cycles"]) == r.evidence.cycles
        assert sum(c["gate"] for c in row["cycles"]) == r.evidence.gated
        trace = next(t for t in traces if t.key == (row["prompt_id"], row["sample"]))
        text = "".join(row["text_R"])
        assert text.startswith(trace.text) and len(row["text_R"]) == len(row["tokens_R"])
    cycles = lines(reading / "cycles.jsonl")
    assert len(cycles) == sum(len(row["cycles"]) for row in rows) > 0
    by_key = {(row["prompt_id"], row["sample"]): row for row in rows}
    for cycle in cycles:
        row = by_key[cycle["prompt_id"], cycle["sample"]]
        (first, turn), (again, end) = cycle["explore"], cycle["exploit"]
        assert turn == again and cycle["explore_text"] == "".join(row["text_R"][first:turn])
        assert cycle["exploit_text"] == "".join(row["text_R"][turn:end])
        effective = cycle["progress"] > 0 and cycle["consolidation"] > 0
        if cycle["verdict"] in ("effective", "redundant"):
            assert cycle["gate"] and effective == (cycle["verdict"] == "effective")
    # What is credited is what the cycles say (Eq. 9, 10).
    r = kept.responses[0]
    assert r.activations is not None
    found = nex.cycle_readings(
        r.activations, nex.first_seen(r.activations), r.evidence.slope_R, r.evidence.explore_R
    )
    effective_N = np.zeros(kept.n_layers * kept.d_ff)
    for one in found:
        if one.strong and one.progress > 0 and one.consolidation > 0:
            effective_N[one.neuron_K] += one.mass_K * one.progress * one.consolidation
    expected_N = np.zeros_like(effective_N)
    expected_N[r.evidence.neuron_K] = r.evidence.effective_K
    assert effective_N == pytest.approx(expected_N)


def test_the_page_holds_a_line_for_every_response_and_loads_the_rest(reading: Path):
    page = (reading / "report.html").read_text()
    data = page.partition('id="index">')[2].partition("</script>")[0]
    index = json.loads(data)
    assert len(index["responses"]) == 6 and index["candidates"] == ["m"]
    assert index["prompts"][0] == ["p0", "w0 w1"]
    script = (reading / "data" / "0" / "3.js").read_text()
    assert script.startswith('surgeonTake("0/3",{') and script.endswith(");\n")
    content = json.loads(script[len('surgeonTake("0/3",') : -3])
    row = lines(reading / "responses" / "m.jsonl")[3]
    assert content["text"] == row["text_R"] and len(content["cycles"]) == len(row["cycles"])
    assert content["phase"] == "".join("E" if e else "X" for e in row["explore_R"])


def test_a_killed_reading_goes_on_with_the_responses_that_it_lacks(
    ranked: Path, reading: Path, tmp_path: Path, monkeypatch
):
    phased: Any = importlib.import_module("surgeon.read.phased")
    write, seen = phased.write_response, []

    def dying(work: Path, place: int, number: int, response: BrowsedResponse) -> None:
        seen.append(number)
        if seen.count(4) == 1 and number == 4:
            raise KeyboardInterrupt
        write(work, place, number, response)

    monkeypatch.setattr(phased, "write_response", dying)
    with pytest.raises(KeyboardInterrupt):
        read(str(ranked / "ranking"), out=tmp_path / "out")
    file = tmp_path / "out.partial" / "responses" / "m.jsonl"
    # The kill may have come within a line.
    file.write_bytes(file.read_bytes()[:-5])
    read(str(ranked / "ranking"), out=tmp_path / "out")
    assert seen == [0, 1, 2, 3, 4, 3, 4, 5]
    for name in ("cycles.jsonl", "report.html", "read.json", "responses/m.jsonl", "data/0/4.js"):
        assert (tmp_path / "out" / name).read_bytes() == (reading / name).read_bytes(), name
    assert read(str(ranked / "ranking"), out=tmp_path / "out").already


def test_what_the_ranking_did_not_keep_is_recorded_again(
    ranked: Path, reading: Path, tmp_path: Path, capsys
):
    place = Path(shutil.copytree(ranked / "ranking", tmp_path / "ranking", symlinks=True))
    file = place / "candidates" / "m" / "evidence.safetensors"
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
    tensors = {k: v for k, v in load_file(file).items() if not k.startswith("rows.")}
    save_file(tensors, file, metadata)
    result = read(str(place), out=tmp_path / "phases", record=False)
    assert "kept no rows" in result.warnings[-1] and result.candidates[0].cycles is None
    assert lines(tmp_path / "phases" / "cycles.jsonl") == []
    again = read(str(place), out=tmp_path / "again")
    assert "recorded again" in capsys.readouterr().err
    assert again.candidates[0].cycles is not None
    for name in ("cycles.jsonl", "responses/m.jsonl"):
        made, known = lines(tmp_path / "again" / name), lines(reading / name)
        assert len(made) == len(known)
        for one, other in zip(made, known, strict=True):
            assert one.get("verdict") == other.get("verdict")
            assert one.get("explore_R") == other.get("explore_R")
    file.unlink()
    with pytest.raises(BadInput, match="--no-record"):
        read(str(place), out=tmp_path / "nothing", record=False)
    assert not (tmp_path / "nothing.partial").exists()


def browsed(prompt_id: str, explore: str, entropy: list[float], slope: list[float]):
    n = len(explore)
    return BrowsedResponse(
        "m", prompt_id, 0, True, None, 0.5, [2] * n, ["x"] * n, slope, slope, entropy,
        [e == "E" for e in explore], [],
    )  # fmt: skip


def test_entropy_by_phase_and_its_warning():
    responses = [
        browsed("a", "EEXX", [0.1, 0.3, 0.4, 0.8], [4.0, 3.0, 2.0, 1.0]),
        browsed("b", "EXXE", [0.2, 0.6, 0.6, 0.2], [4.0, 2.0, 1.0, 3.0]),
    ]
    found = phase_entropy("m", responses, seed=0)
    assert found.entropy_explore == pytest.approx(0.2)
    assert found.entropy_exploit == pytest.approx(0.6) and found.segments == 1.5
    assert found.spearman is not None and found.spearman < -0.8
    # Above the medians (2.5 and .35): slope in 4 of 8 rows, entropy in the other 4.
    assert found.disagreement == 1.0
    assert "not the more uncertain phase of m" in uncertainty_warnings([found])[0]
    turned = [r._replace(explore_R=[not e for e in r.explore_R]) for r in responses]
    assert uncertainty_warnings([phase_entropy("m", turned, seed=0)]) == []
    assert disagreement(np.array([1.0]), np.array([1.0])) is None
    empty = phase_entropy("m", [], seed=0)
    assert empty.entropy_explore is None and uncertainty_warnings([empty]) == []


def test_rows_of_text_never_end_within_a_character(ranked: Path):
    class Bytes:
        """A tokenizer of bytes."""

        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(ids).decode("utf-8", "replace")

    text = "a\N{SNOWMAN}bc\N{GRINNING FACE}d"
    ids = list(text.encode())
    tokenizer: Any = Bytes()
    for size in (1, 2, 3, 5):
        sizes = [min(size, len(ids) - at) for at in range(0, len(ids), size)]
        rows = row_texts(tokenizer, ids, sizes)
        assert "".join(rows) == text and len(rows) == len(sizes)
        assert not any("\ufffd" in row for row in rows)
    assert "".join(row_texts(tokenizer, ids[:-3], [4] * 3)).startswith("a\N{SNOWMAN}bc")


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def changed_settings(ranking: Path, **changes: Any) -> None:
    said = json.loads((ranking / "ranking.json").read_text())["settings"]
    change(ranking / "ranking.json", settings=said | changes)


CANT_BE_READ: dict[str, tuple[Any, list[str], str]] = {
    "a stranger": (None, ["--candidates", "x"], "found no candidate 'x' in ranking, expected m"),
    "a cache": (lambda p: changed_settings(p, nex_cache="c"), [], "hold no text to read"),
    "no scores": (lambda p: (p / "candidates/m/scores.json").unlink(), [], "is damaged"),
    "no traces": (lambda p: (p / "candidates/m/traces.jsonl").unlink(), [], "with --traces"),
    "no evidence": (
        lambda p: (p / "candidates/m/evidence.safetensors").unlink(), ["--no-record"],
        "leave --no-record away",
    ),
    "other traces": (
        lambda p: (p / "candidates/m/traces.jsonl").write_text(""), [], "found none as sample 0",
    ),
    "an out that is there": (lambda p: (p.parent / "out").mkdir(), [], "not written by surgeon"),
}  # fmt: skip


@pytest.mark.parametrize("case", CANT_BE_READ.values(), ids=list(CANT_BE_READ))
def test_a_ranking_that_cant_be_read(
    ranked: Path, tmp_path: Path, capsys, monkeypatch, case: tuple[Any, list[str], str]
):
    from surgeon import cli

    damage, options, words = case
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ranked / "ranking", "ranking", symlinks=True)
    if damage:
        damage(tmp_path / "ranking")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught:
        cli.main(["read", "ranking", "--out", "out", *options])
    line = capsys.readouterr().err
    assert caught.value.code == 2 and line.startswith("Error: ") and line.count("\n") == 1
    assert words in line and sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_dry_run_says_what_is_read_and_writes_nothing(ranked: Path, tmp_path: Path, capsys):
    from surgeon import cli

    given = ["read", str(ranked / "ranking"), "--out", str(tmp_path / "out"), "--dry-run"]
    cli.main([*given, "--judge", "test_read:first_block"])
    said = capsys.readouterr().out
    assert "m: 6 responses, read from what the ranking kept." in said
    assert "labels at most 200 blocks" in said and "nothing was written" in said
    assert list(tmp_path.iterdir()) == []


# --- labels of blocks -----------------------------------------------------------------------------


def first_block(question: str, before: str, block: str) -> str | None:
    """A judge that calls what begins a response exploring."""
    assert question.startswith("w")
    return "explore" if not before else "X"


def test_a_finished_reading_is_labelled_without_being_read_again(
    ranked: Path, reading: Path, tmp_path: Path, monkeypatch
):
    out = Path(shutil.copytree(reading, tmp_path / "out"))
    phased: Any = importlib.import_module("surgeon.read.phased")
    monkeypatch.setattr(phased, "browse", None)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    ranking = str(ranked / "ranking")
    judged = read(ranking, out=out, judge="test_read:first_block", markers=True)
    assert [a.annotator for a in judged.agreement] == ["markers", "test_read:first_block"]
    assert (judged.annotators[0].one, judged.annotators[0].other) == (
        "markers", "test_read:first_block",
    )  # fmt: skip
    rows = lines(out / "responses" / "m.jsonl")
    called = [row["explore_R"][0] for row in rows]
    found = judged.agreement[1]
    assert found.counts[0] == sum(called) and found.counts[1] == 6 - sum(called)
    said = lines(out / "labels.jsonl")
    assert found.blocks == len(said) == sum(found.counts)
    labelled = json.loads(
        (out / "report.html").read_text().partition('id="index">')[2].partition("</script>")[0]
    )["labels"]
    assert set(labelled) == {f"0/{n}" for n in range(6)}
    # The judge isn't asked again, and a torn reply is.
    file = out / "labels.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    asked: list[str] = []
    module: Any = importlib.import_module("test_read")
    monkeypatch.setattr(module, "first_block", lambda q, b, t: asked.append(t) or "X")
    read(ranking, out=out, judge="test_read:first_block")
    assert len(asked) == 1 and len(lines(file)) == len(said)


def test_labels_of_people_come_back(ranked: Path, reading: Path, tmp_path: Path):
    import csv

    out = Path(shutil.copytree(reading, tmp_path / "out"))
    with open(out / "blocks.csv", encoding="utf-8", newline="") as stream:
        blocks = list(csv.DictReader(stream))
    assert all(not row["label"] for row in blocks) and len({r["id"] for r in blocks}) == len(blocks)
    rows = {(r["prompt_id"], r["sample"]): r for r in lines(out / "responses" / "m.jsonl")}
    text = {t for r in rows.values() for t in ("".join(r["text_R"]),)}
    assert all(any(b["block"].lstrip("'") in whole for whole in text) for b in blocks)
    with open(tmp_path / "ann.csv", "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, blocks[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows({**row, "label": "Explore", "annotator": "Ann"} for row in blocks)
    (tmp_path / "bob.jsonl").write_text(
        "".join(json.dumps({"id": b["id"], "label": "EX"[i % 2]}) + "\n"
                for i, b in enumerate(blocks))
    )  # fmt: skip
    ranking = str(ranked / "ranking")
    given = [str(tmp_path / "ann.csv"), str(tmp_path / "bob.jsonl")]
    found = read(ranking, out=out, labels=given)
    ann, bob, both = found.agreement
    assert (ann.annotator, bob.annotator, both.annotator) == ("Ann", "bob", "all who agree")
    assert ann.blocks == len(blocks) and ann.of_e == 1.0 and ann.kappa == 0.0
    assert ann.accuracy == ann.e_found and ann.x_found is None
    assert both.blocks == -(-len(blocks) // 2) and found.annotators[0].kappa == 0.0
    assert found.annotators[0].accuracy == pytest.approx(both.blocks / len(blocks))
    for text, words in (
        ("id,label\nnobody,E\n", "labels block 'nobody', which"),
        (f"id,label\n{blocks[0]['id']},Z\n", "found the label 'Z', expected E or X"),
        (f"id,label\n{blocks[0]['id']},E\n{blocks[0]['id']},X\n", "twice"),
        ("id,label\n", "holds no label"),
        ("name\n", "no columns id and label"),
        ('{"id": 1}\n', "an object with id and label"),
        (f"id,label,annotator\n{blocks[0]['id']},E,markers\n", "who is there already"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(BadInput, match=words):
            read(ranking, out=out, labels=[str(tmp_path / "bad.csv")])
    for judge, words in (
        ("nobody", "expected builtin, URL#model"),
        ("builtin", "found the prompt"),
    ):
        with pytest.raises(BadInput, match=words):
            read(ranking, out=out, judge=judge)


def test_a_model_at_an_endpoint_labels_blocks(ranked: Path, reading: Path, tmp_path: Path):
    pytest.importorskip("openai")
    out = Path(shutil.copytree(reading, tmp_path / "out"))
    asked: list[str] = []

    def answer(path: str, body: Any, headers: Any) -> Any:
        if not body:
            return 200, {"data": []}, {}
        asked.append(body["messages"][1]["content"])
        said = json.dumps({"phase": "explore", "reason": "it waits"})
        reply = {"choices": [{"message": {"content": said}}], "usage": {"prompt_tokens": 7}}
        return 200, reply, {}

    with served(answer) as url:
        found = read(str(ranked / "ranking"), out=out, judge=f"{url}#judge", blocks=1)
    assert len(asked) == found.agreement[0].blocks
    assert "w1" in asked[0] and '"explore" | "exploit"' in asked[0]
    assert {row["reason"] for row in lines(out / "labels.jsonl")} == {"it waits"}


def test_the_words_of_the_papers_guideline_and_the_tasks_own_knowledge_label_blocks():
    from surgeon.read.labelling import by_markers, parse_phase_judge
    from surgeon.read.passages import passages
    from surgeon.settings.asking import EndpointSettings

    rows = [
        "<think>\n",
        "So *7 -2: 7 = 7\n\n",
        "Next +9: 7 = 6\n\n",
        "Wait, check +9",
        ": 7 = 6, ok.\n\n",
    ]
    response = browsed("a", "XEXEE", [0.0] * 5, [1.0] * 5)._replace(text_R=rows)
    blocks = list(passages(0, response))
    assert [b.text for b in blocks] == [rows[0], rows[1], rows[2], "".join(rows[3:])]
    assert list(by_markers(blocks).values()) == ["X", "X", "X", "E"]
    judge = parse_phase_judge("builtin", EndpointSettings(), None)
    said = [judge.say(b, "Start 7. Apply *7 -2 +9. Find x.").label for b in blocks]
    assert said == [None, "E", "X", "E"]
