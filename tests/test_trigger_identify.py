"""`surgeon trigger identify`: components that persist through a span, channels, fallbacks said."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trigger_labels import MODEL, lines, make_labels, random_labels

from surgeon import attribution, jsonl
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.neureasoner.steps import Span, StepEnds, split_steps
from surgeon.trigger.artifacts import read_labels
from surgeon.trigger.identify import (
    Found,
    Identified,
    LayerSize,
    draw,
    identify,
    level_channels,
    read_channels,
    show,
)
from surgeon.watch.spans import read_spans

UNITS, HEADS = 384, 4


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labels(tmp_path_factory.mktemp("identify"))


@pytest.fixture(scope="module")
def found(labels: Path) -> tuple[Identified, Path]:
    """Channels by the logit lens, and what `identify` returned; read only."""
    out = labels.parent / "channels"
    return identify(MODEL, labels=labels, out=out, spans=4, channels=8, k=0.5), out


def names_in(result: Identified, level: str) -> set[int]:
    row = result.levels[level]
    return {*row.units, *(UNITS + head for head in row.heads)}


def test_components_that_persist_in_the_counterpart_too_are_counted_or_dropped():
    """Three failing spans; the first shares 10 with its counterpart, the third has none.

    Counted: 1 of the 5 components kept in the two pairs is in both. Dropped: 7 and 3 have a vote
    each of span 1, 3 and 9 of span 2; span 3 has no counterpart, so its 4 doesn't vote: of the
    channels 3, 10 and 4 two are gone.
    """
    spans = [
        Found("inter", [10, 7, 3], 1.0, False),
        Found("inter", [3, 9], 1.0, False),
        Found("inter", [10, 4], 1.0, False),
    ]
    others = [Found("inter", [10, 5], 1.0, False), Found("inter", [8], 1.0, False), None]
    counted = level_channels(spans, 3, 10, others)
    assert (counted.units, counted.heads) == ([3, 4], [0])  # 10 and 3 have two votes
    assert (counted.pairs, counted.in_both, counted.dropped) == (2, 1 / 5, 0)
    dropped = level_channels(spans, 3, 10, others, drop=True)
    assert (dropped.units, dropped.heads) == ([3, 7, 9], [])
    assert (dropped.pairs, dropped.in_both, dropped.dropped) == (2, 1 / 5, 2)
    assert dropped.in_spans == (1.0, 0.5, 0.5)
    nothing = level_channels(spans[:1], 3, 10, [Found("inter", [3, 7, 10], 1.0, False)], drop=True)
    assert (nothing.units, nothing.heads, nothing.dropped) == ([], [], 3)


def test_inter_is_attributed_at_the_first_steps_of_its_attempts(tmp_path: Path):
    """Of the stretch 0 to 4 with attempts at 1 and 3 only those two steps' tokens count."""
    labels = make_labels(tmp_path)
    spans = read_spans(labels / "spans.jsonl")
    key = next(s.key for s in spans if s.level == "inter" and s.failing)
    kept = Span(*key, "inter", 0, 4, attempts=(1, 3))
    jsonl.write(labels / "spans.jsonl", [kept._asdict()])
    out = tmp_path / "out"
    result = identify(MODEL, labels=labels, out=out, k=0.5, contrast="none")
    (row,) = lines(out / "components.jsonl")
    checkpoint = resolve(MODEL)
    trace = read_labels(labels, checkpoint, checkpoint.tokenizer()).traces[key]
    steps = split_steps(StepEnds(checkpoint.tokenizer()), trace.token_ids)
    ranges = tuple((steps[at].start, steps[at].end) for at in (1, 3))
    (expected,) = attribution.attribute(
        checkpoint.model(), [trace], [attribution.Where(0, ranges)], layer=2, k=result.k or 0
    )
    assert row["numbers"] == list(expected.numbers) and result.levels["inter"].whole == 0
    jsonl.write(labels / "spans.jsonl", [kept._replace(attempts=())._asdict()])
    result = identify(MODEL, labels=labels, out=tmp_path / "whole", k=0.5, contrast="none")
    assert lines(tmp_path / "whole" / "components.jsonl") != [row]
    assert result.levels["inter"].whole == 1


def test_kept_components_are_in_the_top_of_every_token_of_a_span(labels: Path, found):
    """R16: where none is, the most frequent ones stand in. From each token's attributions, by
    hand."""
    result, out = found
    assert result.k == round(0.5 * (UNITS + HEADS)) and result.layer == 2
    checkpoint = resolve(MODEL)
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    read = read_labels(labels, checkpoint, tokenizer)
    told = lines(out / "components.jsonl")
    spans = draw(read, 4, 0)
    assert len(told) == len(spans) and {s.level for s in spans} == set(result.levels)
    kinds = set()
    for span, row in zip(spans, told, strict=True):
        assert row["level"] == span.level and span.failing
        trace = read.traces[span.prompt_id, span.sample]
        steps = split_steps(StepEnds(tokenizer), trace.token_ids)
        at = range(steps[span.first].start, steps[span.last].end)
        ids = [*trace.prompt_token_ids, *trace.token_ids]
        place_T = torch.tensor([len(trace.prompt_token_ids) + t for t in at])
        phi_TC, _ = attribution.direct(model, ids, layer=2)(place_T - 1, torch.tensor(ids)[place_T])
        tops = [set(phi_C.topk(result.k).indices.tolist()) for phi_C in phi_TC]
        kept = set.intersection(*tops)
        if not kept:
            counts = {n: sum(n in top for top in tops) for n in set.union(*tops)}
            most = max(counts.values())
            kept = {n for n, count in counts.items() if count == most}
            assert row["share"] == pytest.approx(most / len(tops))
        assert set(row["numbers"]) == kept
        assert row["fell_back"] == (row["share"] < 1)
        kinds.add(row["fell_back"])
    assert kinds == {True, False}


def test_channels_are_what_most_spans_kept():
    """Unit 3 in three of three spans; head 0 (number 10) and unit 7 in two, the head earlier in
    them; unit 9 in one."""
    spans = [
        Found("intra", [10, 3], 1.0, False),
        Found("intra", [10, 7, 3], 1.0, False),
        Found("intra", [3, 7, 9], 0.5, True),
    ]
    row = level_channels(spans, 3, 10)
    assert (row.units, row.heads, row.in_spans) == ([3, 7], [0], (1.0, 2 / 3, 2 / 3))
    assert (row.spans, row.fell_back) == (3, 1)
    assert row.share == pytest.approx(2.5 / 3)
    assert row.components_per_span == pytest.approx(8 / 3)
    assert row.share_of_heads == 2 / 8
    assert level_channels(spans, 2, 10).heads == [0]  # of equals the one that ranks higher


@pytest.mark.parametrize("method", ["direct", "adjoint", "softmax"])
def test_each_method_names_units_and_heads_of_the_layer(labels: Path, tmp_path: Path, method: str):
    result = identify(
        MODEL, labels=labels, out=tmp_path / "out", method=method, spans=2, channels=5, layer=1,
        k=20, shortlist=40,
    )  # fmt: skip
    assert (result.method, result.layer, result.layers) == (method, 1, 4)
    assert result.components == LayerSize(units=UNITS, heads=HEADS)
    for row in result.levels.values():
        assert 0 < len(row.units) + len(row.heads) <= 5 and row.spans == 2
        assert all(0 <= unit < UNITS for unit in row.units)
        assert all(0 <= head < HEADS for head in row.heads)
    assert read_channels(tmp_path / "out") == result


def test_a_wider_top_keeps_more(labels: Path, found, tmp_path: Path):
    wide = identify(MODEL, labels=labels, out=tmp_path / "w", spans=4, channels=400, k=0.9)
    for level, row in found[0].levels.items():
        assert wide.levels[level].components_per_span > row.components_per_span
        assert wide.levels[level].fell_back <= row.fell_back


def test_falling_back_is_said_aloud(labels: Path, found, tmp_path: Path, capsys):
    result, out = found
    show(result)
    printed = " ".join(capsys.readouterr().out.split())
    for level, row in result.levels.items():
        count = sum(one["fell_back"] for one in lines(out / "components.jsonl")
                    if one["level"] == level)  # fmt: skip
        assert row.fell_back == count
        said = f"{level}: in {count} of {row.spans} spans no component is among the top"
        assert (said in printed) == (count > 0)
    assert sum(row.fell_back for row in result.levels.values()) > 0
    all_kept = identify(MODEL, labels=labels, out=tmp_path / "out", spans=2, k=UNITS + HEADS)
    show(all_kept)
    assert "no component" not in capsys.readouterr().out


def test_a_killed_run_continues_to_the_same_channels(
    labels: Path, found, tmp_path: Path, monkeypatch
):
    _, whole = found
    given: dict[str, Any] = dict(labels=labels, out=tmp_path / "out", spans=4, channels=8, k=0.5)
    append, calls = jsonl.append, []

    def stop_at_the_sixth(file: Path, row: dict[str, Any]) -> None:
        calls.append(row)
        if len(calls) == 6:
            raise KeyboardInterrupt
        append(file, row)

    with monkeypatch.context() as patched:
        patched.setattr(jsonl, "append", stop_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            identify(MODEL, **given)
    file = tmp_path / "out.partial" / "components.jsonl"
    os.truncate(file, file.stat().st_size - 9)  # the kill cut the last line
    again: list[Any] = []
    monkeypatch.setattr(jsonl, "append", lambda f, r: (again.append(r), append(f, r)))
    identify(MODEL, **given)
    files = ("components.jsonl", "counterparts.jsonl")
    assert len(again) == sum(len(lines(whole / name)) for name in files) - 4
    for name in ("channels.json", *files):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_is_read_and_other_arguments_are_told(labels: Path, found, monkeypatch):
    result, out = found
    monkeypatch.setattr(Checkpoint, "model", None)
    again = identify(MODEL, labels=labels, out=out, spans=4, channels=8, k=0.5)
    assert again == replace(result, already=True)
    with pytest.raises(BadInput, match=r"arguments\.channels is 8 there and 9 here"):
        identify(MODEL, labels=labels, out=out, spans=4, channels=9, k=0.5)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"method": "lens"}, "expected one of: direct, adjoint, softmax"),
        ({"k": 0}, "k = 0, expected a number above 0"),
        ({"k": 2.5}, "k = 2.5, expected a whole number, or a share"),
        ({"k": 389}, "k is 389; layer 2 of builtin:thinking has 384 units and 4 heads"),
        ({"shortlist": 400}, "shortlist is 400; layer 2"),
        ({"k": 50, "shortlist": 40}, r"shortlist is 40; it must be at least k \(50\)"),
        ({"spans": 0}, "spans = 0"),
        ({"channels": 0}, "channels = 0"),
        ({"layer": 4}, "layer is 4; builtin:thinking has the layers 0 to 3"),
        ({"layer": -1}, "layer = -1"),
        ({"labels": "nowhere"}, "nowhere has no traces.jsonl"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"checkpoint": "builtin:nobody"}, "nobody"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    labels: Path, tmp_path: Path, monkeypatch, changes: dict[str, Any], said: str
):
    monkeypatch.setattr(Checkpoint, "model", None)
    given = {"checkpoint": MODEL, "labels": labels, **changes}
    with pytest.raises(BadInput, match=said) as caught:
        identify(out=tmp_path / "out", **given)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_mixtures_of_experts_are_refused_by_name(make_checkpoint, tmp_path: Path):
    experts = make_checkpoint(tmp_path / "m", "qwen3_moe")
    labels = random_labels(tmp_path / "labels", experts)
    with pytest.raises(BadInput, match=r"\(qwen3_moe\) is a mixture of experts in layer 1"):
        identify(str(experts), labels=labels, out=tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_channels_can_be_written_by_hand(tmp_path: Path):
    file = tmp_path / "channels.json"
    file.write_text('{"layer": 1, "levels": {"inter": {"units": [3], "heads": []}}}')
    assert read_channels(file) == read_channels(tmp_path)
    rows = ("[]", "{}", '{"layer": 1, "levels": {}}', '{"layer": "1", "levels": {"inter": {}}}')
    for text in rows:
        file.write_text(text)
        with pytest.raises(BadInput, match=r"channels.json"):
            read_channels(file)
    for level, row in (
        ("outer", '{"units": [3], "heads": []}'),
        ("inter", '{"units": [3]}'),
        ("inter", '{"units": null, "heads": [1]}'),
        ("inter", '{"units": [], "heads": []}'),
        ("inter", '{"units": ["3"], "heads": []}'),
        ("inter", "[3]"),
    ):
        file.write_text(f'{{"layer": 1, "levels": {{"{level}": {row}}}}}')
        with pytest.raises(BadInput, match=f"level '{level}' is not one of|found levels.{level}"):
            read_channels(file)
    with pytest.raises(BadInput, match="find channels with surgeon trigger identify"):
        read_channels(tmp_path / "nowhere")
