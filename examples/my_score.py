"""Two scores of one's own for `surgeon rank`, each a function, the second with a row.

cd examples
surgeon rank ... --select my_score:digits
surgeon rank ... --select my_score:weakest
"""

from surgeon.activations import Recording
from surgeon.rank import RankedResponse, Score


def digits(response: RankedResponse) -> float | None:
    """Digits in the answer; a response without an answer has no value."""
    if response.answer is None:
        return None
    return sum(character.isdigit() for character in response.answer)


def least_logprob(recording: Recording) -> float:
    """Log-probability of the response's least likely token, nats."""
    return float(recording.logprob_T.min())


weakest = Score(
    "Weakest token", "nats", "log-probability of the least likely token", measure=least_logprob
)
