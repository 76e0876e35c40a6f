"""Averages of several checkpoints: exact, and greedy by the estimate."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon import artifact, soups
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import subjects
from surgeon.merge import sweep
from surgeon.rank import rank
from surgeon.ranking import Ranking
from surgeon.soups import Soup, soup
from surgeon.traces import Prompt, read_traces


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_checkpoint) -> Path:
    """Four checkpoints of one training run, siblings of each other; read only."""
    root = tmp_path_factory.mktemp("soup") / "run"
    first = make_checkpoint(root / "checkpoint-10")
    for n, step in enumerate((200, 30, 1000), 1):
        make_checkpoint(root / f"checkpoint-{step}", seed=n, noise_from=first)
    return root


def test_a_uniform_average_is_that_of_all_in_float32(run: Path, tmp_path: Path):
    report = sweep(a=f"{run}/checkpoint-*", uniform=True, out=tmp_path / "all")
    assert report.family is not None and "checkpoint-1000" in "\n".join(report.lines())
    assert [c.name for c in report.family.candidates] == [
        "checkpoint-10", "uniform-4", "checkpoint-30"
    ]  # fmt: skip
    parts = [Checkpoint.open(path) for path in run.iterdir()]
    made = Checkpoint.open(tmp_path / "all" / "uniform-4")
    for name in parts[0].tensors:
        whole = torch.stack([part.tensor(name).float() for part in parts]).mean(0)
        torch.testing.assert_close(made.tensor(name), whole.bfloat16(), rtol=2**-8, atol=0)
    # It is a family as any: what it is made of names it, and the same again is nothing to do.
    (found,) = subjects([f"{tmp_path / 'all'}#uniform-4"])
    assert found.digest == report.family.candidate("uniform-4").digest
    assert sweep(a=f"{run}/checkpoint-*", uniform=True, out=tmp_path / "all").written == ()
    two = sweep(*map(str, sorted(run.iterdir())[:2]), uniform=True, virtual=True,
                out=tmp_path / "two").family  # fmt: skip
    assert two is not None and two.candidates[1].ratio == 0.5
    with pytest.raises(BadInput, match=r"found 4 checkpoints, expected two endpoints\. Give --uni"):
        sweep("a", "b", more=["c", "d"], out=tmp_path / "x")
    # mergekit takes what follows a + in a path for an adapter.
    plus = shutil.copytree(run / "checkpoint-200", tmp_path / "base+lora@x")
    paths = [str(plus), str(run / "checkpoint-10"), str(run / "checkpoint-30")]
    kept = sweep(*paths[:2], more=paths[2:], uniform=True, out=tmp_path / "plus").family
    assert kept is not None and kept.candidates[0].name == "base+lora-x"
    with pytest.raises(BadInput, match="found 1 checkpoint, expected two or more"):
        sweep(a=str(run / "checkpoint-10"), uniform=True, out=tmp_path / "x")


@pytest.fixture(scope="module")
def ranked(run: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ranked")
    rows = [{"id": f"q{n}", "prompt": f"w{n} w{n + 1} + 3"} for n in range(4)]
    (root / "mini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rank([f"{run}/checkpoint-*"], mini_set=root / "mini.jsonl", out=root / "out", samples=2,
         max_tokens=32, row_tokens=2, top_k=6, seed=3, answer=r"w(\d+)")  # fmt: skip
    return root / "out"


def test_a_soup_takes_those_with_which_the_estimate_does_not_fall(
    ranked: Path, tmp_path: Path, monkeypatch
):
    """A killed soup goes on with the answers that it has, to the same end."""
    real, calls = soups.judged, []

    def killed_at_once(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    partial = tmp_path / "soup.partial"
    with monkeypatch.context() as patch:
        patch.setattr(soups, "sampled", killed_at_once)
        with pytest.raises(KeyboardInterrupt):
            soup(str(ranked), out=tmp_path / "soup")
    # The average of two is left, which is no hindrance to that of others.
    assert (partial / "merge").is_dir()
    monkeypatch.setattr(soups, "judged", killed)
    with pytest.raises(KeyboardInterrupt):
        soup(str(ranked), out=tmp_path / "soup")
    drawn = {f.name: f.read_bytes() for f in (partial / "traces").iterdir()}
    assert len(drawn) == 2 and not (partial / "merge").exists()
    # The first is joined, the second is not, the third is.
    verdicts = iter([True, False, True])
    monkeypatch.setattr(soups, "judged", lambda *a: replace(real(*a), joined=next(verdicts)))
    found = soup(str(ranked), out=tmp_path / "soup")
    for name, content in drawn.items():
        assert (found.out / "traces" / name).read_bytes() == content
    ingredients = found.ingredients
    assert [s.joined for s in found.steps] == [True, False, True] and len(ingredients) == 3
    assert found.steps[0].added in ingredients and found.steps[1].added not in ingredients
    # Two of four are in the first average, so all vote.
    assert len(found.steps[0].jury) == 4
    parts = {s.name: s.source for s in subjects([c.checkpoint for c in of(ranked).candidates])}
    made = Checkpoint.open(found.out / "checkpoint")
    for name in made.tensors:
        whole = torch.stack([parts[n].tensor(name).float() for n in ingredients]).mean(0)
        torch.testing.assert_close(made.tensor(name), whole.bfloat16(), rtol=2**-8, atol=0)
    assert artifact.read(Soup, found.out).line == found.line
    assert soup(str(ranked), out=tmp_path / "soup").already
    assert len(read_traces(found.out / "traces" / "001.jsonl")) == 8
    soups.show(found)


def of(out: Path) -> Ranking:
    return artifact.read(Ranking, out)


def test_a_soup_that_nobody_joins_is_the_best_alone(ranked: Path, tmp_path: Path, monkeypatch):
    real = soups.judged
    monkeypatch.setattr(soups, "judged", lambda *a: replace(real(*a), joined=False))
    found = soup(str(ranked), out=tmp_path / "soup", most=2)
    (best,) = found.ingredients
    assert "the soup is" in found.line and len(found.steps) == 1
    paths = {c.name: c.checkpoint for c in of(ranked).candidates}
    made = Checkpoint.open(found.out / "checkpoint")
    assert made.digest == Checkpoint.open(paths[best]).digest


def test_averages_are_judged_by_the_same_votes():
    """By hand: three voters; the first prompt's vote is 1, the second's 2."""
    prompts = [Prompt(name, ({"role": "user", "content": ""},)) for name in "pq"]
    voters: list[soups.Answers] = [{"p": ["1"], "q": ["2"]} for _ in range(3)]
    right = soups.estimated(prompts, voters, {"p": ["1", "1"], "q": ["2", None]})
    wrong = soups.estimated(prompts, voters, {"p": ["5", "1"], "q": ["7", None]})
    assert right.match_PC[:, -1].tolist() == [1.0, 0.5]
    assert wrong.match_PC[:, -1].tolist() == [0.5, 0.0]
    # Equal by value is equal.
    halves: list[soups.Answers] = [{"p": ["1/2"]} for _ in range(3)]
    equal = soups.estimated(prompts, halves, {"p": ["0.5"]})
    assert equal.match_PC[0, -1] == 1


def test_what_makes_no_soup_is_refused(ranked: Path, pico_source, tmp_path: Path):
    two = tmp_path / "two"
    rank(list(map(str, pico_source)), mini_set=ranked.parent / "mini.jsonl", out=two, samples=2,
         max_tokens=16, row_tokens=2, top_k=6, answer=r"w(\d+)")  # fmt: skip
    with pytest.raises(BadInput, match=r"candidates? with an estimated accuracy, expected 3"):
        soup(str(two), out=tmp_path / "soup")
    with pytest.raises(BadInput, match=r"ranking\.json can't be read"):
        soup(str(tmp_path), out=tmp_path / "soup")
    assert not (tmp_path / "soup.partial").exists()
