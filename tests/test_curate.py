"""`surgeon curate`: selections of equal tokens, from a ranking and from a file; exclusions."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgeon import evidence_file, nex
from surgeon.curate import curate
from surgeon.curate.plan import prepare
from surgeon.curate.written import whole
from surgeon.errors import BadInput
from surgeon.rank import rank
from surgeon.scoring.rules import RULES, order, within
from surgeon.scoring.voting import agreement
from surgeon.settings import bind
from surgeon.settings.curate import CurateSettings
from surgeon.sft.lessons import encoder, read_lessons
from surgeon.traces import Prompt, read_traces
from surgeon.traces.overlap import left_out, runs

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    """A checkpoint `m`, and rankings of it on a mini-set and on a pool; read only."""
    root = tmp_path_factory.mktemp("curate")
    make_checkpoint(root / "m")
    for name, first, n in (("mini", 0, 3), ("pool", 2, 6)):
        rows = [{"id": f"p{i}", "prompt": f"w{i} w1"} for i in range(first, first + n)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rank([str(root / "m")], mini_set=root / f"{name}.jsonl", out=root / name, samples=2,
             max_tokens=16, row_tokens=1, top_k=8)  # fmt: skip
    return root


def test_a_rankings_responses_are_scored_from_what_it_kept_and_by_the_reader_alike(
    ranked: Path, tmp_path: Path, monkeypatch
):
    given: dict[str, Any] = dict(
        pool=f"{ranked / 'pool'}", weights=f"{ranked / 'mini'}", by=["nex", "hes", "length"],
        keep=0.4, exclude=[ranked / "mini.jsonl"],
    )  # fmt: skip
    found = curate(out=tmp_path / "kept", **given)
    assert found.excluded_by_id == 1 and found.responses == 10 and found.messages
    rows = lines(tmp_path / "kept" / "scores.jsonl")
    assert len(rows) == 12
    kept = evidence_file.read(ranked / "pool" / "candidates" / "m")
    from safetensors.numpy import load_file

    file = ranked / "mini" / "candidates" / "m" / "weights.safetensors"
    weight_N = load_file(file)["weight_LF"].ravel()
    own = {
        (r.prompt_id, r.sample): nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N).score
        for r in kept.responses
    }
    assert {(r["prompt_id"], r["sample"]): r["nex"] for r in rows} == pytest.approx(own)
    for selection in found.selections:
        traces = read_traces(tmp_path / "kept" / f"{selection.by}.jsonl")
        assert sum(len(t.token_ids) for t in traces) == selection.tokens <= found.budget
        assert found.budget - selection.tokens < 16 and "p2" not in {t.prompt_id for t in traces}
        asked = lines(tmp_path / "kept" / "trl" / f"{selection.by}.jsonl")
        assert [row["completion"][0]["content"] for row in asked] == [whole(t.text) for t in traces]
    assert whole("w1[/THINK]w2") == "[THINK]\nw1[/THINK]w2"
    # Activations are kept as the ranking of the weights kept them.
    plan = prepare(bind(CurateSettings, dict(given, reader=f"{ranked / 'm'}", out=tmp_path / "x")))
    assert plan.top_k == 8 and plan.run.arguments["top_k"] == 8
    info = json.loads((tmp_path / "kept" / "llamafactory" / "dataset_info.json").read_text())
    assert set(info) == {"nex", "hes", "length"}
    # The model reads the same responses.
    read = curate(out=tmp_path / "read", reader=str(ranked / "m"), **given)
    again = {(r["prompt_id"], r["sample"]): r for r in lines(tmp_path / "read" / "scores.jsonl")}
    for row in rows:
        other = again[row["prompt_id"], row["sample"]]
        if row["prompt_id"] != "p2":
            assert other["nex"] == pytest.approx(row["nex"], abs=1e-4)
            assert other["hes"] == pytest.approx(row["hes"], rel=1e-3)
    assert [s.responses for s in read.selections] == [s.responses for s in found.selections]
    # What was kept is what `sft` learns.
    from surgeon.checkpoint import Checkpoint

    tokenizer = Checkpoint.open(ranked / "m").tokenizer()
    taught = read_lessons(
        [str(tmp_path / "kept" / "nex.jsonl")], encoder(tokenizer, None, None), 512, prompts={}
    )
    assert sum(lesson.tokens for lesson in taught.lessons) == found.selections[0].tokens


def test_a_killed_reading_goes_on_with_the_answers_that_it_lacks(
    ranked: Path, tmp_path: Path, monkeypatch
):
    given: dict[str, Any] = dict(
        pool=f"{ranked / 'pool'}", reader=str(ranked / "m"), weights=f"{ranked / 'mini'}",
        by=["nex"], keep=0.4,
    )  # fmt: skip
    curate(out=tmp_path / "whole", **given)
    scored: Any = importlib.import_module("surgeon.curate.scored")
    values, read = scored._values, []

    def dying(plan: Any, model: Any, traces: Any) -> Any:
        if len(read) == 8:
            raise KeyboardInterrupt
        read.extend(trace.key for trace in traces)
        return values(plan, model, traces)

    monkeypatch.setattr(scored, "WINDOW", 4)
    monkeypatch.setattr(scored, "_values", dying)
    with pytest.raises(KeyboardInterrupt):
        curate(out=tmp_path / "out", **given)
    (partial,) = tmp_path.glob("out*")
    file = partial / scored.READINGS
    assert partial.name != "out" and len(lines(file)) == 8
    # The kill may have come within a line.
    file.write_bytes(file.read_bytes()[:-5])
    rest: list[Any] = []
    monkeypatch.setattr(
        scored, "_values", lambda p, m, t: (rest.extend(x.key for x in t), values(p, m, t))[1]
    )
    made = curate(out=tmp_path / "out", **given)
    assert rest[0] == read[7] and len(rest) == 12 - 7 and not set(read[:7]) & set(rest)
    assert curate(out=tmp_path / "out", **given).already and len(rest) == 5
    for name in ("scores.jsonl", "nex.jsonl"):
        one, two = (tmp_path / n / name for n in ("whole", "out"))
        assert one.read_bytes() == two.read_bytes()
    assert not (made.out / scored.READINGS).exists()


def test_a_reader_of_another_vocabulary_is_refused(ranked: Path, tmp_path: Path):
    """The same weights, though token n is the word that token n + 1 was."""
    other = shutil.copytree(ranked / "m", tmp_path / "other")
    file = other / "tokenizer.json"
    told = json.loads(file.read_text())
    names = {i: word for word, i in told["model"]["vocab"].items()}
    words = sorted(i for i in names if names[i][0] in "wx")
    for i, j in zip(words, words[1:] + words[:1], strict=True):
        told["model"]["vocab"][names[j]] = i
    file.write_text(json.dumps(told))
    with pytest.raises(BadInput, match=r"whose tokenizer reads the tokens of .* as other") as error:
        curate(pool=str(ranked / "pool"), reader=str(other), by=["hes"], out=tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, "found no weights, expected --weights"),
        ({"weights": "pool"}, "learned on the pool itself"),
        ({"by": ["consensus"]}, "found no reader"),
        ({"by": ["best"]}, "found by = best, expected one of"),
        ({"pool": "pool.jsonl", "by": ["length"]}, "found no answer"),
        ({"pool": "pool#x"}, "found no candidate 'x'"),
    ],
)
def test_what_cannot_be_done_is_refused(ranked: Path, tmp_path: Path, monkeypatch, given, said):
    monkeypatch.chdir(ranked)
    with pytest.raises(BadInput, match=said) as caught:
        curate(**{"pool": "pool", "out": tmp_path / "out", **given})
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out*"))


def test_masses_are_those_of_the_whole_file_whatever_fits_in_memory(ranked: Path):
    file = ranked / "pool" / "candidates" / "m" / evidence_file.FILE
    kept = evidence_file.read(file)
    for entries in (1, 50, 1 << 20):
        found = list(evidence_file.masses(file, entries=entries))
        assert [(m.prompt_id, m.sample) for m in found] == [
            (r.prompt_id, r.sample) for r in kept.responses
        ]
        for m, r in zip(found, kept.responses, strict=True):
            assert np.array_equal(m.neuron_K, r.neuron_K) and np.array_equal(m.mass_K, r.mass_K)


def test_prompts_of_tasks_are_left_out_by_thirteen_words_and_wording_is_not():
    def asked(name: str, text: str) -> Prompt:
        return Prompt(name, ({"role": "user", "content": text},))

    task = [asked("t1", f"Say: {LONG}!"), asked("t2", "What is 2 + 3?")]
    pool: dict[str, str | None] = {
        "a": f"{LONG.upper()} and more", "b": "what is 2 + 3", "c": "what is 2 - 3", "t1": "other",
        "d": LONG.replace("seven", "7"),
    }  # fmt: skip
    left = left_out(pool, [task])
    assert left.by_id == {"t1"} and left.by_text == {"a", "b"}
    assert len(runs(LONG + " fourteen")) == 2
    many = pool | {f"x{n}": f"{LONG} {n}" for n in range(20)}
    assert left_out(many, [task]).by_text == {"b"}
    numbered = [asked(str(n), f"q{n}") for n in range(1, 4)]
    assert not left_out({"1": "q9", "2": "q8"}, [numbered]).all
    assert left_out({"1": None}, [numbered]).all == {"1"}


def test_order_and_budget():
    """Lengths 5, 3, 3, 9: the shortest first, equals by the seed; 11 tokens hold 3 + 3 + 5."""
    rows = [{"prompt_id": f"p{n}", "sample": 0, "tokens": t} for n, t in enumerate([5, 3, 3, 9])]
    orders = {
        tuple(order("length", RULES["length"], rows, seed=seed, worst=False)) for seed in range(20)
    }
    assert orders == {(1, 2, 0, 3), (2, 1, 0, 3)}
    order_N = np.array([1, 2, 0, 3])
    tokens_N = np.array([5, 3, 3, 9])
    assert within(order_N, tokens_N, 11).tolist() == [True, True, True, False]
    assert within(order_N, tokens_N, 10).tolist() == [False, True, True, False]
    assert within(order_N, tokens_N, 1).sum() == 1
    worst = order("length", RULES["length"], rows, seed=0, worst=True)
    assert worst[0] == 3
    assert agreement(["a", "a", "b", None], [0, 1, 2, 3]) == pytest.approx(
        {0: 1 / 3, 1: 1 / 3, 2: 0.0}
    )
