"""The free choices of NEX; surgeon/nex says what each one means."""

from dataclasses import asdict, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from surgeon.settings.schema import Count, settings


@settings
class NexReadings:
    """The method's free choices; the defaults are the published reference code's."""

    log_time_from: Literal[0, 1] = 0
    """R1: log-time of row r (counted from 0) is log(1 + log_time_from + r), Eq. 19."""
    reuse_median_over: Literal["all", "gated"] = "gated"
    """R2: the cycles whose reuse shares enter the median of Eq. 6."""
    short_run_joins: Literal["longer", "previous"] = "previous"
    """R3: the neighbour that a run shorter than `min_run` joins (sec. A.5)."""
    empty_response: Literal["zero", "omitted"] = "omitted"
    """R4: what a response without any mass adds to the model score."""
    zero_mad: Literal["residual", "epsilon"] = "residual"
    """R6: with a MAD of 0, E is where the residual is positive, or Eq. 20 divides by epsilon."""
    min_rows: Annotated[int, Ge(3)] = 3
    """R6: a response with fewer rows has no phases."""
    rho: Annotated[float, Gt(0), Lt(1)] = 0.95
    """Probability of staying in a state (Eq. 22)."""
    min_run: Count = 2
    """Shortest run of rows that stands as a phase (sec. A.5)."""
    gmm_steps: Count = 50
    """Most steps of EM for the mixture of Eq. 21."""
    reuse_median_in: Literal["float32", "float64"] = "float32"
    """R18: how exact the median of Eq. 6 and the sums of Eq. 5 are."""
    credit: Literal["introduced", "active"] = "introduced"
    """Neurons a cycle credits: those its E phase introduces (Eq. 2) or, as the ablation of
    sec. 5.3, all that are active in it, each with its mass summed over the E phase."""


@settings
class ReadingChoices:
    """Readings one by one; what is left out is the preset's (docs/readings.md)."""

    log_time_from: Literal[0, 1] | None = None
    """R1: log-time starts at log 1 or log 2."""
    reuse_median_over: Literal["all", "gated"] | None = None
    """R2: cycles whose reuse enters the median of Eq. 6."""
    short_run_joins: Literal["longer", "previous"] | None = None
    """R3: the neighbour that a short run joins."""
    empty_response: Literal["zero", "omitted"] | None = None
    """R4: what a response without mass adds."""
    zero_mad: Literal["residual", "epsilon"] | None = None
    """R6: how rows explore where the MAD is 0."""
    min_rows: Annotated[int, Ge(3)] | None = None
    """R6: fewest rows that have phases."""
    rho: Annotated[float, Gt(0), Lt(1)] | None = None
    """Probability of staying in a phase."""
    min_run: Count | None = None
    """Shortest run of rows that is a phase."""
    gmm_steps: Count | None = None
    """Most steps of EM of the mixture."""
    reuse_median_in: Literal["float32", "float64"] | None = None
    """R18: how exact the median of Eq. 6 is."""

    def over(self, preset: NexReadings) -> NexReadings:
        """The preset with what was chosen in place of its own."""
        return replace(preset, **{k: v for k, v in asdict(self).items() if v is not None})
