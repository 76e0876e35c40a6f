"""What is known of a method before it gathers or trains anything."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field


@dataclass(frozen=True)
class MethodTraits:
    """What a method needs, and what it takes where nothing else is asked for."""

    what: str
    """As the model card says it: `made by ...`."""
    _: KW_ONLY
    needs_sets: bool = False
    """Whether it selects questions by their contribution sets; else it trains on all of them."""
    rate: Mapping[str, float] = field(default_factory=lambda: {"lora": 1e-4, "full": 1e-6})
    """Tuning -> the peak learning rate unless another is given."""
    epochs: int | None = None
    """Passes over the questions, where neither steps nor epochs are given; None: 150 steps."""
    may_lag: bool = False
    """Whether its rollouts may be drawn with older weights than those that it updates."""
    needs_labels: bool = False
    """Whether training reads labels: it then trains on the labelled questions only."""
    by_question: bool = True
    """Whether a step's examples are questions; else they are answers."""
    options: tuple[str, ...] | None = None
    """Which of the settings that are for some methods only it takes; None: all."""
    extra: str | None = None
    """A package that it needs, which is an extra of this one."""
    one_process: bool = False
    """Whether it can't be run in several processes."""
