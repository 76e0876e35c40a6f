"""What a monitor watches for and how it steps in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import pi

from surgeon.errors import BadInput

THINKING = ("<think>", "</think>")


def even_probes(n: int) -> tuple[float, ...]:
    """`n` frequencies in radians per token, evenly over (0, pi]; raises BadInput below two."""
    if n < 2:
        raise BadInput(f"found {n} probe frequencies, expected at least 2.")
    return tuple(pi * ((i + 1) / n) for i in range(n))


@dataclass(frozen=True)
class Settings:
    """What a monitor watches for and how it steps in."""

    k: int = 4
    """Steps that the features of `intra` and `inter` reach over, the latest included."""
    k_intra: int | None = None
    """Another number for `intra`."""
    k_inter: int | None = None
    """Another number for `inter`."""
    instance_steps: int = 4
    """The first steps (K), over which the features of `instance` reach."""
    probes: tuple[float, ...] = even_probes(16)
    """Frequencies in radians per token, ascending, at most pi."""
    cooldown: int = 1
    """Steps after a firing at whose ends nothing fires."""
    cap: int = 8
    """Most firings in a response."""
    triggers: Mapping[str, str] = field(
        default_factory=lambda: {"intra": "<INTRA>", "inter": "<INTER>"}
    )
    """Level -> the token that is forced when it fires."""
    finish: str = "Okay, I have finished thinking."
    """The text that is forced when `instance` fires; the end of the thinking block follows."""
    thinking: tuple[str, str] = THINKING
    """The tokens that open and close the thinking block."""
    around: tuple[str, str] = ("\n", "\n\n")
    """What the chat template puts before and after the closing token."""

    def __post_init__(self) -> None:
        """Raise BadInput for a value out of range."""
        probes = self.probes

        def whole(name: str, least: int) -> bool:
            return type(getattr(self, name)) is int and getattr(self, name) >= least

        def text(*parts: object) -> bool:
            return all(isinstance(part, str) for part in parts)

        for name, good, expected in (
            ("k", whole("k", 1), "at least 1 step"),
            ("k_intra", self.k_intra is None or whole("k_intra", 1), "at least 1 step"),
            ("k_inter", self.k_inter is None or whole("k_inter", 1), "at least 1 step"),
            ("instance_steps", whole("instance_steps", 1), "at least 1 step"),
            (
                "probes",
                len(probes) > 1
                and min(probes) > 0
                and max(probes) <= pi
                and list(probes) == sorted(set(probes)),
                "two or more ascending frequencies above 0, at most pi",
            ),
            ("cooldown", whole("cooldown", 0), "0 or more steps"),
            ("cap", whole("cap", 0), "0 or more firings"),
            (
                "triggers",
                set(self.triggers) == {"intra", "inter"} and text(*self.triggers.values()),
                "one for intra and inter each",
            ),
            ("finish", text(self.finish), "text"),
            (
                "thinking",
                len(self.thinking) == 2 and text(*self.thinking),
                "an opening and a closing token",
            ),
            (
                "around",
                len(self.around) == 2 and text(*self.around),
                "text before and after the closing token",
            ),
        ):
            if not good:
                raise BadInput(f"found {name} = {getattr(self, name)!r}, expected {expected}.")

    def steps(self, level: str) -> int:
        """Steps that the features of a level reach over."""
        if level == "instance":
            return self.instance_steps
        other = self.k_intra if level == "intra" else self.k_inter
        return self.k if other is None else other
