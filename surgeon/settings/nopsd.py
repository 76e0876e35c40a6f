"""The free choices of Neuron-OPSD; surgeon/nopsd.py says what each one means."""

from typing import Literal

from surgeon.errors import BadInput
from surgeon.settings.schema import Count, Positive, Probability, Share, settings

TOP_GLOBAL = 0.014277
"""The paper's share: 5,000 of the 350,208 neurons of its model."""
TOP_LAYER = 0.20559
"""2,000 of the 9,728 neurons of one of its layers."""


@settings
class NopsdReadings:
    """The method's free choices."""

    sets: Literal["main", "appendix"] = "main"
    """R9: how N(x) is formed."""
    activation: Literal["gate", "gated"] = "gate"
    """The unit's activation in Eq. 3: act(gate), or act(gate) * up."""
    top_global: Positive = TOP_GLOBAL
    """R9: neurons kept over all layers, per token (main) or per response (appendix); at least 1 is
    a number of neurons, below 1 a share of all. By default the paper's share, 5,000 of 350,208."""
    top_layer: Positive = TOP_LAYER
    """R9, appendix: neurons kept per layer and chunk; a number, or a share of the layer's. By
    default the paper's share, 2,000 of 9,728."""
    chunk_tokens: Count = 128
    """R9, appendix: response tokens in a chunk."""
    demonstration: Literal["answer", "response"] = "answer"
    """R13: what of the model's own response is shown to the teacher."""
    loss: Literal["mean", "sum"] = "mean"
    """R14: mean over response tokens, or their sum in each response, mean over responses."""

    def __post_init__(self) -> None:
        """Raise BadInput for a budget that is neither a number nor a share."""
        for name in ("top_global", "top_layer"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise BadInput(
                    f"found {name} = {value!r}, expected a number of neurons or a share of them "
                    "between 0 and 1."
                )


@settings
class Selection:
    """Which questions of the pool are trained on, by their consensus s(x)."""

    select: Literal["bottom", "top", "auto", "band", "all", "random"] = "bottom"
    """The smallest s(x), the largest, whichever end answers of this pool agree more with the vote
    (auto; bottom where it isn't clear), those between two shares of the ranking, all, or random
    ones."""
    share: Probability = 0.2
    """Share of the pool that bottom, top and random keep."""
    band: tuple[Share, Share] = (0.4, 0.6)
    """The shares of the ranking between which band keeps."""

    def __post_init__(self) -> None:
        if not self.band[0] < self.band[1]:
            raise BadInput(f"found band = {self.band}, expected two shares in ascending order.")
