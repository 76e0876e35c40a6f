"""NEX: Neuron Explore-Exploit Scoring for Label-Free Chain-of-Thought Selection and Model Ranking.

A response is cut into rows of tokens. Rows that recruit many new FFN neurons explore (E), the
others exploit (X). Neurons that an E phase introduces are credited when the X phase after it uses
them, and debited when it doesn't. A model's score is the share of its activation mass that sits on
credited neurons. Arrays in, arrays out: no model, no file, no randomness.

Equation -> function (numbers are the paper's; 3, 4 and 17 happen while recording):

    1          novelty slope per row                     first_seen, novelty
    2          neurons a cycle introduces                cycle_readings
    3, 4       h = phi(gate) * up; mass = max(0, h)      surgeon.activations.record
    5, 6       reuse share, progress                     cycle_readings
    7, 8       consolidation, strength gate              cycle_readings
    9, 10      effective and redundant evidence          cycle_credit, accumulate
    11         neuron weights                            weights
    12-14      Good-Mass Fraction                        good_mass_fraction
    15, 16     auxiliaries Reward and Bad                good_mass_fraction
    17         neuron keys                               surgeon.neurons (R7)
    18-20      log, log-time trend, median and MAD       standardise
    21         two Gaussian emissions                    emissions
    22         sticky transitions, Viterbi               viterbi
    sec. 3.3   model score: a mean over responses        counted
    sec. 4.4   baselines                                 hes entropy_top20 mean_logprob; length
    Fig. 1a    high-entropy rows per response            entropy_rows
    sec. 5.2   number of E segments                      segments

Readings: places where the paper is silent or differs from the published reference code.
`surgeon.settings.nex.NexReadings` holds them; `PRESETS` sets all of them at once; the default is
the reference's.

    R1  log-time of Eq. 19 starts at r = 1 (paper) or r = 0 (reference). On the reference's own
        example 35 exploring rows become 28 of 83.
    R2  the median of Eq. 6 is over all cycles (paper), or over those that pass the strength gate
        and introduce neurons (reference).
    R3  a run shorter than `min_run` joins its longer neighbour (paper) or the run before it
        (reference). The order of the joins is in `smooth`.
    R4  a response without any mass scores 0 (paper) or is left out of the model score
        (reference). One with mass but no weighted mass scores 0 in both.
    R5  neurons kept per token: the paper keeps 2000; the reference's example cache holds 203-438
        keys per row. It is `top_k` of surgeon.activations.record, which also says how much mass
        was kept.
    R6  the paper doesn't say what a trace with a MAD of 0 or with very few rows gives. Reference:
        E where the residual is positive; fewer than 3 rows have no cycles. In both presets.
    R7  a key is layer * d_ff + unit (int64), not (layer << 16) | unit, which overflows for wide
        layers and in the reference empties rows of models deeper than 64 layers. Sums are float32
        or wider, never float16. Lives in surgeon.neurons and surgeon.activations.
    R8  scores saturate near 1: `saturation` spreads them. Rankings use the score itself.
    R18 the median of Eq. 6 is exact (paper) or, with the sums of Eq. 5, in float32 (reference):
        there the cycle that is the median itself has a progress of about 1e-8 instead of 0, of
        either sign, and credits or debits what it introduced. `Evidence.faint_K` counts it apart.

Degenerate inputs, decided by conditions and never by catching exceptions:

    fewer than `min_rows` rows         no row explores, so no cycles and no evidence (R6)
    MAD = 0                            `zero_mad` (R6)
    z constant (spread below 1e-6)     no state has the larger mean: no row explores
    a row without entries              its slope is 0 (the reference drops the row)
    a single cycle                     its progress is 0 (Eq. 6): no evidence (R18: about 1e-8)
    a response without entries         no evidence; reward and bad are nan; R4 decides its score

The paper names neither the mixture's number of EM steps (`gmm_steps`) nor its variance floor: 50
and 1e-6 are the reference's. A fit that stops at its last step is used as it stands.

Files: presets (readings), exploring (sec. 3.1), crediting (3.2), good_mass (3.3), resampled
(weights learned anew), baselines (4.4).
"""

from surgeon.nex.baselines import entropy_rows, entropy_top20, hes, mean_logprob, row_entropy
from surgeon.nex.crediting import CycleReading, Evidence, credit, cycle_credit, cycle_readings
from surgeon.nex.exploring import (
    Cycle,
    Emissions,
    Observations,
    cycles,
    decode,
    emissions,
    first_seen,
    novelty,
    phases,
    segment_bounds,
    segments,
    smooth,
    standardise,
    viterbi,
)
from surgeon.nex.good_mass import (
    ResponseScore,
    accumulate,
    counted,
    faint_share,
    good_mass_fraction,
    response_mass,
    resting_on,
    saturation,
    weights,
)
from surgeon.nex.presets import DEFAULT, EPS, FAINT, PRESETS, Readings
from surgeon.nex.resampled import Response, relearned

__all__ = [
    "DEFAULT",
    "EPS",
    "FAINT",
    "PRESETS",
    "Cycle",
    "CycleReading",
    "Emissions",
    "Evidence",
    "Observations",
    "Readings",
    "Response",
    "ResponseScore",
    "accumulate",
    "counted",
    "credit",
    "cycle_credit",
    "cycle_readings",
    "cycles",
    "decode",
    "emissions",
    "entropy_rows",
    "entropy_top20",
    "faint_share",
    "first_seen",
    "good_mass_fraction",
    "hes",
    "mean_logprob",
    "novelty",
    "phases",
    "relearned",
    "response_mass",
    "resting_on",
    "row_entropy",
    "saturation",
    "segment_bounds",
    "segments",
    "smooth",
    "standardise",
    "viterbi",
    "weights",
]
