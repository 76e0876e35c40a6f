"""`surgeon pick`: best, random and worst by every rule, from a ranking and by the checkpoint."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgeon import evidence_file, nex
from surgeon.errors import BadInput
from surgeon.pick import pick
from surgeon.pick.comparing import by_prompt, drawn
from surgeon.rank import rank
from surgeon.scoring.ranked import crossed
from surgeon.scoring.rules import RULES
from surgeon.scoring.voting import pooled
from surgeon.traces import read_traces


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    """Checkpoints `m` and `o`, rankings of both on `mini` and `task`; read only."""
    root = tmp_path_factory.mktemp("pick")
    make_checkpoint(root / "m")
    make_checkpoint(root / "o", seed=5)
    for name, first, n in (("mini", 0, 3), ("task", 3, 3)):
        rows = [{"id": f"p{i}", "prompt": f"w{i} w1"} for i in range(first, first + n)]
        rows = [row | {"answer": str(i)} for i, row in enumerate(rows)] if first else rows
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rank([str(root / "m"), str(root / "o")], mini_set=root / f"{name}.jsonl", out=root / name,
             samples=3, max_tokens=12, row_tokens=1, top_k=8)  # fmt: skip
    return root


def test_a_rankings_answers_and_the_same_ones_read_by_the_checkpoint_are_scored_alike(
    ranked: Path, tmp_path: Path
):
    kept = pick([str(ranked / "task")], weights=ranked / "mini", out=tmp_path / "kept")
    assert kept.weights == "given" and kept.labelled == 3 and len(kept.candidates) == 2
    read = pick(
        [str(ranked / "m"), str(ranked / "o")], traces=ranked / "task", weights=ranked / "mini",
        prompts=ranked / "task.jsonl", out=tmp_path / "read",
    )  # fmt: skip
    one, two = (lines(tmp_path / name / "picks.jsonl") for name in ("kept", "read"))
    by_name = {(row["candidate"], row["prompt_id"]): row for row in two}
    assert len(one) == len(two) == 6
    for row in one:
        other = by_name[row["candidate"], row["prompt_id"]]
        for a, b in zip(row["answers"], other["answers"], strict=True):
            assert a["nex"] == pytest.approx(b["nex"], abs=1e-4)
            assert a["hes"] == pytest.approx(b["hes"], rel=1e-3)
            assert (a["tokens"], a.get("agreement")) == (b["tokens"], b.get("agreement"))
        assert row["sample"] == row["picks"]["nex"] == other["sample"]
        chosen = next(a for a in row["answers"] if a["sample"] == row["sample"])
        assert chosen["nex"] == max(a["nex"] for a in row["answers"])
        longest = next(a for a in row["answers"] if a["sample"] == row["picks"]["longest"])
        assert longest["tokens"] == max(a["tokens"] for a in row["answers"])
    assert [r.by for r in kept.candidates[0].rules] == [r.by for r in read.candidates[0].rules]
    picked = read_traces(tmp_path / "kept" / "picked" / "m.jsonl")
    assert [(t.prompt_id, t.sample) for t in picked] == [
        (r["prompt_id"], r["sample"]) for r in one if r["candidate"] == "m"
    ]
    assert kept.overall is not None and kept.overall.prompts == 3


@pytest.mark.slow
def test_workers_read_what_one_process_does(ranked: Path, tmp_path: Path):
    given: dict[str, Any] = dict(
        prompts=ranked / "task.jsonl", weights=ranked / "mini", traces=ranked / "task"
    )
    found = []
    for workers in ("1", "2"):
        made = pick([str(ranked / "m")], out=tmp_path / workers, workers=workers, **given)
        found.append([a["nex"] for row in lines(made.out / "picks.jsonl") for a in row["answers"]])
    assert found[0] == pytest.approx(found[1], abs=1e-5) and len(found[0]) == 9


def test_a_prompts_answers_have_no_part_in_the_weights_that_score_them(ranked: Path):
    """Held against weights learned by hand from the responses to the other prompts."""
    file = ranked / "task" / "candidates" / "m" / evidence_file.FILE
    kept = evidence_file.read(file)
    n = kept.n_layers * kept.d_ff
    found = crossed(file, n)
    assert len(found) == 9
    for r in kept.responses:
        others = [o.evidence for o in kept.responses if o.prompt_id != r.prompt_id]
        weight_N = nex.weights(*nex.accumulate(others, n))
        score = nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N).score
        assert found[r.prompt_id, r.sample] == pytest.approx(score, abs=1e-6)


def test_a_killed_run_goes_on_with_the_answers_that_it_lacks(
    ranked: Path, tmp_path: Path, monkeypatch
):
    given: dict[str, Any] = dict(
        prompts=ranked / "task.jsonl", weights=ranked / "mini", samples=3, max_tokens=12, seed=2,
        by=["nex", "consensus"], consensus_top=0.1,
    )  # fmt: skip
    made = pick([str(ranked / "m")], out=tmp_path / "whole", **given)
    assert made.overall is None and {r.by for r in made.candidates[0].rules} >= {"consensus", "hes"}
    gathered: Any = importlib.import_module("surgeon.pick.gathered")
    values, read = gathered.read_values, []

    def dying(model: Any, traces: Any, asked: Any) -> Any:
        if len(read) == 4:
            raise KeyboardInterrupt
        read.extend(trace.key for trace in traces)
        return values(model, traces, asked)

    monkeypatch.setattr(gathered, "WINDOW", 4)
    monkeypatch.setattr(gathered, "read_values", dying)
    with pytest.raises(KeyboardInterrupt):
        pick([str(ranked / "m")], out=tmp_path / "out", **given)
    file = tmp_path / "out.partial" / "readings" / "m.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    rest: list[Any] = []
    monkeypatch.setattr(
        gathered, "read_values", lambda m, t, a: (rest.extend(x.key for x in t), values(m, t, a))[1]
    )
    assert not pick([str(ranked / "m")], out=tmp_path / "out", **given).already
    assert rest[0] == read[3] and len(rest) == 6
    assert pick([str(ranked / "m")], out=tmp_path / "out", **given).already and len(rest) == 6
    one, two = ((tmp_path / n / "picks.jsonl").read_bytes() for n in ("whole", "out"))
    assert one == two


def test_best_random_and_worst_of_two_prompts():
    """p: lengths 5 (right), 3 (wrong), 3 (right): the shortest are a tie, right half the time; the
    worst is the longest. q: 2 (wrong), 9 (right). Among right ones of p, a shortest has 3 tokens
    and 0 words against means of 4 and 1."""
    told = [("p", 5, 1, 2), ("p", 3, 0, 0), ("p", 3, 1, 0), ("q", 2, 0, 0), ("q", 9, 1, 1)]
    rows = [
        {"prompt_id": p, "sample": n, "tokens": t, "correct": bool(c), "words": w}
        for n, (p, t, c, w) in enumerate(told)
    ]
    found = by_prompt("length", RULES["length"], rows)
    assert found.right.tolist() == [0.5, 0] and found.worst.tolist() == [1, 1]
    assert found.tokens.tolist() == [3, 2]
    assert found.right_tokens[0] == -1 and math.isnan(found.right_tokens[1])
    assert found.right_words[0] == -1
    random, oracle = drawn(rows)
    assert random == pytest.approx([2 / 3, 1 / 2]) and oracle.tolist() == [1, 1]
    # An answer without a value is neither picked nor the worst.
    hes = [row | ({} if n == 1 else {"hes": float(n)}) for n, row in enumerate(rows)]
    found = by_prompt("low-hes", RULES["low-hes"], hes)
    assert found.right.tolist() == [1, 0] and found.worst.tolist() == [1, 1]
    # Nobody has one: a fair draw.
    found = by_prompt("nex", RULES["nex"], rows)
    assert np.allclose(found.right, random) and np.allclose(found.worst, random)


def test_the_others_vote_with_one_voice_each():
    """a says x, x, y; b says y. An x of a finds nobody, its y all of b; b finds a third of a."""
    found = pooled(["x", "x", "y", "y", None], ["a", "a", "a", "b", "b"])
    assert found == pytest.approx([0, 0, 0.5, 1 / 3, None])
    assert pooled(["x", "x"], ["a", "a"]) == [None, None]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"sources": []}, "found no source"),
        ({"sources": ["task", "m"]}, "expected a ranking or checkpoints"),
        ({"sources": ["task", "mini"]}, "found 2 rankings"),
        ({"sources": ["task#x"]}, "found no candidate 'x'"),
        ({"sources": ["task"], "weights": "task"}, "learned on these responses"),
        ({"sources": ["task#m"], "by": ["vote"]}, "the others that vote"),
        ({"sources": ["task"], "by": ["votes"]}, "Did you mean 'vote'"),
        ({"sources": ["task"], "prompts": "mini.jsonl"}, "lacks the prompt 'p3'"),
        ({"sources": ["task"], "traces": "task"}, "its candidates have answered"),
        ({"sources": ["m"]}, "found no prompts"),
        ({"sources": ["m"], "prompts": "task.jsonl"}, "found no weights, expected --weights"),
        ({"sources": ["m"], "prompts": "task.jsonl", "by": ["length"], "samples": 1}, "no choice"),
        (
            {"sources": ["m"], "prompts": "task.jsonl", "weights": "mini#o"},
            "was computed on .*, not on .*m ",
        ),
        (
            {"sources": ["m"], "prompts": "task.jsonl", "by": ["consensus"], "consensus_top": 5000},
            "keeps all .* neurons",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(ranked: Path, tmp_path: Path, monkeypatch, given, said):
    monkeypatch.chdir(ranked)
    with pytest.raises(BadInput, match=said) as caught:
        pick(**{"out": tmp_path / "out", **given})
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out*"))
