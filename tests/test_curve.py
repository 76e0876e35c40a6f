"""The same ranking from fewer prompts: what it agrees with, and what it says."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgeon import artifact, evidence_file, nex, rank
from surgeon.errors import BadInput
from surgeon.rank import candidates, curve
from surgeon.rank.plan import curve_sizes
from surgeon.ranking import CurveRow, Ranking


@pytest.fixture(scope="module")
def made(pico_source, tmp_path_factory) -> dict[str, Any]:
    """The arguments of a finished ranking of two checkpoints on six prompts."""
    root = tmp_path_factory.mktemp("curve")
    rows = [{"id": f"q{n}", "prompt": f"w{n} w{n + 1} + 3"} for n in range(6)]
    (root / "mini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "truth.json").write_text(json.dumps({p.name: 0.2 + 0.5 * (p.name == "b")
                                                 for p in pico_source}))  # fmt: skip
    given: dict[str, Any] = dict(
        checkpoints=[str(p) for p in pico_source], mini_set=str(root / "mini.jsonl"),
        out=root / "out", samples=2, max_tokens=64, row_tokens=2, top_k=6, seed=3,
    )  # fmt: skip
    rank.rank(**given)
    return given


def test_a_part_is_ranked_as_if_it_were_all(made, tmp_path: Path, monkeypatch):
    """NEX of a part equals that of a ranking of just its prompts, and no model is loaded."""
    monkeypatch.setattr(candidates, "live", None)
    found = rank.rank(**made, curve="3:6:3", draws=4).curve
    assert found is not None and not found.held and found.asked == "3:6:3"
    assert {(row.prompts, row.draws) for row in found.rows} == {(3, 4), (6, 1)}
    ranking = artifact.read(Ranking, made["out"])
    assert ranking.curve == found
    for row in found.rows:
        if row.prompts == 6 and row.score != curve.ALL:
            assert row.same in (1, None) and row.regret is None
    place = {f"q{n}": n for n in range(6)}
    chosen_BP = curve.parts(6, [3], 4, seed=3)[3]
    assert (chosen_BP.sum(1) == 3).all() and len(np.unique(chosen_BP, axis=0)) > 1
    kept = evidence_file.read(made["out"] / "candidates" / "a", rows=False)
    own = [r for r in kept.responses if chosen_BP[0, place[r.prompt_id]]]
    weight_N = nex.weights(*nex.accumulate((r.evidence for r in own), kept.n_layers * kept.d_ff))

    def mean(responses: Any) -> float:
        scores = [nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N) for r in responses]
        return float(np.mean([s.score for s in scores if s.mass > 0]))

    pairs = [nex.Response(r.evidence, r.neuron_K, r.mass_K) for r in kept.responses]
    prompt_N = np.array([place[r.prompt_id] for r in kept.responses])
    first = chosen_BP[:1].astype(float)
    assert nex.relearned(pairs, prompt_N, first)[0] == pytest.approx(mean(own), abs=1e-4)
    everything = nex.relearned(pairs, prompt_N, first, scored_BP=np.ones((1, 6)))
    assert everything[0] == pytest.approx(mean(kept.responses), abs=1e-4)


def test_a_curve_is_held_against_the_truth_and_drawn(made, capsys):
    truth = str(Path(made["mini_set"]).parent / "truth.json")
    ranking = rank.rank(**made, curve="2,4,6", draws=3, truth=truth)
    assert ranking.curve is not None
    rank.show(ranking)
    said = capsys.readouterr().out
    assert "picks lost" in said and "nex regret" in said and "error of est." in said
    row = next(r for r in ranking.curve.rows if r.score == "length" and r.prompts == 6)
    quality = (ranking.selection_quality or {})["length"]
    assert row.regret == pytest.approx(quality.regret_at_1)
    assert row.pearson == pytest.approx(quality.pearson)
    page = (made["out"] / "report.html").read_text()
    assert "How many prompts are enough" in page and "against the number of prompts" in page
    # The same question again is answered from the file; without it the panel goes.
    assert rank.rank(**made, curve="2,4,6", draws=3, truth=truth).curve == ranking.curve


def test_sizes_are_a_range_or_a_list():
    assert curve_sizes("10:100:10", 55) == [10, 20, 30, 40, 50]
    assert curve_sizes("40,10,10", 100) == [10, 40]
    for text in ("", "10:5:1", "10:20:0", "1,5", "ten", "10:20", "0.5", "-3"):
        with pytest.raises(BadInput, match=r"found curve = .*, such as 10:100:10"):
            curve_sizes(text, 100)
    with pytest.raises(BadInput, match="expected numbers up to 5"):
        curve_sizes("10:100:10", 5)


def test_the_sentence_names_where_it_becomes_steady():
    def row(prompts: int, regret: float | None, same: float) -> CurveRow:
        return CurveRow(prompts=prompts, score="nex", draws=4, regret=regret, same=same, spread={})

    rows = [row(10, 9.0, 0.5), row(20, 1.0, 1.0), row(30, 3.5, 0.9), row(40, 2.9, 1.0)]
    rows += [row(50, 2.0, 1.0)]
    known = curve.sentence(rows, "nex", known=True)
    assert "lost 9.0 pp on average with 10 prompts and 2.0 pp with 50" in known
    assert known.endswith("within 1 pp of that from 40 prompts on.")
    assert "all prompts from 40 prompts on" in curve.sentence(rows, "nex", known=False)
    nobody = np.full(3, 0.5)
    empty = curve.row_of(10, "nex", [nobody], nobody, np.full(3, math.nan))
    assert empty.same is None and empty.order is None
