"""Settings of `surgeon weights`."""

from typing import Annotated

from surgeon.settings.schema import POSITIONAL, UNRECORDED, Many, Metavar, Out, settings


@settings
class WeightsSettings:
    """Compare neuron weights: do they agree, and whose can score whom?"""

    weights: Annotated[Many[str], POSITIONAL, UNRECORDED, Metavar("RANKING[#NAME]|FILE...")] = ()
    """Rankings (all their candidates, or one), or files weights.safetensors; two or more in all."""
    out: Out | None = None
    """Directory to write weights.json to; without it the comparison is only printed."""
