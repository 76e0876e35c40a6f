"""Two scores of one's own for `surgeon rank`, each a function, the second with a row.

cd examples
surgeon rank ... --select my_score:digits
surgeon rank ... --select my_score:sure
"""

from surgeon.activations import Recording
from surgeon.rank import RankedResponse, Score


def digits(response: RankedResponse) -> float:
    """Digits in the answer; a response without an answer has no value."""
    if response.answer is None:
        return float("nan")
    return sum(character.isdigit() for character in response.answer)


def sure_tokens(recording: Recording) -> float:
    """Share of the response's tokens that the model gave a probability of at least a half."""
    return float((recording.logprob_T >= -0.6931).mean())


sure = Score("Sure tokens", "", "share of tokens given a half or more", measure=sure_tokens)
