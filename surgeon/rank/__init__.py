"""`surgeon rank`: order checkpoints without labels, and say how far the order can be trusted.

plan.py         every input checked, before anything is computed
candidates.py   one candidate: sample, record, credit, weights, scores
reduced.py      what of it is on disk: reduced recordings, weights, evidence, scores
caches.py       the published NEX code's caches instead of checkpoints
costs.py        what it will take, for a dry run
curve.py        the same ranking from fewer prompts
exploration.py  accuracy as a parabola of the E segments
rounds.py       candidates that can't be the best any more stop early
scores.py       every score, a row each
signal.py       whether s(x) of Neuron-OPSD tells responses that agree with the vote
sensitivity.py  the same ranking under other readings, from kept rows
conclusion.py   all candidates: intervals, warnings, headline, `best`, report
pooled.py       several families together: the verb `summary`
show.py         the tables of a terminal

What it writes for others to read is typed in `surgeon.ranking`.
"""

from pathlib import Path

from surgeon import artifact
from surgeon.errors import BadInput
from surgeon.rank.caches import prepare_caches, score_caches
from surgeon.rank.candidates import score_candidates
from surgeon.rank.conclusion import conclude
from surgeon.rank.costs import forecast
from surgeon.rank.plan import prepare
from surgeon.rank.rounds import score_in_rounds
from surgeon.rank.scores import SCORES, Score
from surgeon.rank.show import show
from surgeon.rank.signal import require_signal, write_signal
from surgeon.ranking import RankedResponse, Ranking
from surgeon.settings import verb
from surgeon.settings.rank import RankSettings

__all__ = [
    "SCORES",
    "RankSettings",
    "RankedResponse",
    "Ranking",
    "Score",
    "forecast",
    "prepare",
    "rank",
    "show",
]


@verb(RankSettings)
def rank(settings: RankSettings) -> Ranking:
    """Rank checkpoints on an unlabelled mini-set and write the ranking to the directory `out`.

    Every candidate answers each prompt `samples` times (or its responses come from `traces`), and
    is scored with NEX and its baselines, and the others' votes estimate its accuracy; `select`
    names the score that orders them. `truth` adds each score's selection quality. A finished
    ranking is not computed again: another `select`, `truth` or panel, or what is behind one of
    them edited, redoes only its last stage. Raises `BadInput` before anything is sampled.
    """
    if settings.dry_run:
        raise BadInput(
            "found dry_run, expected forecast(settings): from Python that says what it will take."
        )
    plan = prepare_caches(settings) if settings.nex_cache else prepare(settings)
    require_signal(plan)

    def work(partial: Path) -> Ranking:
        if settings.adaptive:
            return conclude(plan, partial, score_in_rounds(plan, partial))
        if plan.caches:
            score_caches(plan, partial)
        else:
            score_candidates(plan, partial)
        return conclude(plan, partial)

    ranking = artifact.once(settings.out, Ranking, work, run=plan.run)
    asked = (settings.select, settings.truth, settings.panels, plan.last_stage)
    stored = ranking.select, ranking.truth, ranking.panels, ranking.last_stage
    drawn = None if ranking.curve is None else (ranking.curve.asked, ranking.curve.draws)
    lacks = settings.sensitivity and ranking.sensitivity is None
    lacks |= settings.curve is not None and drawn != (settings.curve, settings.draws)
    if ranking.already and (stored != asked or lacks):
        ranking = conclude(plan, settings.out, ranking.rounds)
        artifact.write(settings.out, ranking)
    if settings.consensus:
        write_signal(plan, ranking)
    return ranking
