"""One table of a pair of endpoints and nine merges: `python -m benchmarks.family.table A B --out
DIR`.

Accuracy, tokens and the share of answers that were cut on labelled problems; on the mini-set, at
each number of tokens a row, explore segments, responses with at least three cycles, and every
label-free score. The answers are sampled once; only the rows differ. Each part is kept: a killed
run goes on.
"""

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.family import card, sets
from benchmarks.family.features import ENOUGH, ROWS, TOP_K
from surgeon import artifact
from surgeon.evaluate import evaluate
from surgeon.merge import sweep
from surgeon.rank import SCORES, Ranking, rank
from surgeon.ranking import CandidateScores
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.settings.merge_sweep import MergeSweepSettings
from surgeon.settings.rank import RankSettings, Scoring
from surgeon.settings.sampling import Sampling
from surgeon.truth import Evaluation


@dataclass(frozen=True)
class Work:
    """What is asked of a pair."""

    a: str
    b: str
    out: Path
    problems: int = 1000
    samples: int = 3
    mini_set: str = "builtin:mini-set"


def measured(work: Work) -> tuple[Evaluation, dict[int, Ranking]]:
    """The accuracies, and a ranking for each number of tokens a row."""
    family = work.out / "family"
    sweep(
        MergeSweepSettings(
            a=work.a, b=work.b, out=family, ratios="0.1:0.9:0.1", virtual=True, smoke=False
        )
    )
    sampling = Sampling(samples=1, max_tokens=card.MAX_TOKENS, seed=1)
    truth = evaluate(
        EvaluateSettings(
            checkpoints=(str(family),),
            task=str(problems(work)),
            out=work.out / "truth",
            sampling=sampling,
        )
    )
    rankings, traces = {}, None
    for row_tokens in ROWS:
        out = work.out / f"rows-{row_tokens}"
        rankings[row_tokens] = rank(
            RankSettings(
                checkpoints=(str(family),),
                mini_set=work.mini_set,
                out=out,
                traces=traces,
                truth=str(work.out / "truth"),
                scoring=Scoring(row_tokens=row_tokens, top_k=TOP_K),
                sampling=replace(sampling, samples=work.samples, seed=0),
            )
        )
        traces = traces or str(_traces(work.out, rankings[row_tokens]))
    return truth, rankings


def problems(work: Work) -> Path:
    """The labelled problems: the test set's kind, as many as asked for."""
    file = work.out / "problems.jsonl"
    test = replace(next(s for s in sets.SETS if s.name == "test"), size=work.problems)
    rows = [
        {"id": str(i), "prompt": problem.prompt, "answer": str(problem.answer())}
        for i, problem in enumerate(sets.draw_set(test))
    ]
    work.out.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _traces(out: Path, ranking: Ranking) -> Path:
    """The sampled answers, as `rank --traces` takes them."""
    directory = out / "traces"
    directory.mkdir(exist_ok=True)
    for candidate in ranking.candidates:
        link = directory / f"{candidate.name}.jsonl"
        if not link.exists():
            source = ranking.out / "candidates" / candidate.name / "traces.jsonl"
            os.link(source, link)
    return directory


def table(work: Work) -> str:
    """Markdown: a row for each candidate, then how well each score would have chosen."""
    truth, rankings = measured(work)
    known = sorted(truth.candidates, key=lambda c: c.ratio or 0)
    head = ["candidate", "accuracy", "tokens", "cut"]
    head += [f"E, 3 cycles at {r}" for r in ROWS]
    lines = [_line(head), _line(["---"] * len(head))]
    for candidate in known:
        cells = [candidate.name, f"{candidate.avg:.3f}", f"{candidate.tokens:.0f}"]
        cells.append(f"{candidate.truncated:.1%}")
        for row_tokens, ranking in rankings.items():
            del row_tokens
            cells.append(_explored(ranking, candidate.name))
        lines.append(_line(cells))
    return "\n".join([*lines, "", *_scores(rankings), "", *_quality(rankings)]) + "\n"


def _explored(ranking: Ranking, name: str) -> str:
    found = artifact.read(CandidateScores, ranking.out / "candidates" / name).responses
    segments = float(np.mean([r.explore_segments for r in found]))
    return f"{segments:.1f}, {np.mean([r.cycles >= ENOUGH for r in found]):.0%}"


def _scores(rankings: dict[int, Ranking]) -> list[str]:
    """Every score of every candidate; those that don't read rows are the same at every size."""
    scores = list(SCORES)
    by_row = [(score, r) for score in scores for r in ROWS]
    found = {
        (score, r, c.name): c.scores.get(score)
        for score, r in by_row
        for c in rankings[r].candidates
    }
    candidates = sorted(rankings[ROWS[0]].candidates, key=lambda c: c.ratio or 0)
    columns: list[tuple[str, tuple[int, ...]]] = []
    for score in scores:
        same = all(
            found[score, r, c.name] == found[score, ROWS[0], c.name]
            for r in ROWS
            for c in candidates
        )
        columns += [(score, ROWS)] if same else [(score, (r,)) for r in ROWS]
    head = ["candidate"] + [s if rs == ROWS else f"{s} at {rs[0]}" for s, rs in columns]
    lines = [_line(head), _line(["---"] * len(head))]
    for candidate in candidates:
        values = [found[score, rs[0], candidate.name] for score, rs in columns]
        lines.append(_line([candidate.name, *map(_number, values)]))
    return lines


def _quality(rankings: dict[int, Ranking]) -> list[str]:
    head = ["score", "tokens a row", "Pearson r", "Spearman", "Regret@1 (pp)", "Hit@3", "favourite"]
    lines = [_line(head), _line(["---"] * len(head))]
    before: dict[str, str] = {}
    for row_tokens, ranking in rankings.items():
        for score, quality in (ranking.selection_quality or {}).items():
            cells = [quality.pearson, quality.spearman, quality.regret_at_1, quality.hit_at_3]
            favourite = ranking.favourites.get(score) or ""
            said = _line([*map(_number, cells), favourite])
            if before.get(score) != said:
                before[score] = said
                lines.append(f"| {score} | {row_tokens} {said}")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.table", description=__doc__)
    parser.add_argument("a", help="the first endpoint, such as builtin:instruct")
    parser.add_argument("b", help="the second endpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=Work.problems)
    parser.add_argument("--samples", type=int, default=Work.samples, help="on each mini-set prompt")
    parser.add_argument("--mini-set", default=Work.mini_set)
    args = parser.parse_args()
    text = table(Work(**vars(args)))
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
