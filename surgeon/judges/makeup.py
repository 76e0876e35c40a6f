"""What a made-up failure is to be like, and the fixed sentences after a trigger (App. G)."""

from collections.abc import Mapping
from random import Random

Control = Mapping[str, str | int]

SIGNALS = {
    "intra": "[FAILURE_INTRA] A key reasoning error surfaced a few steps back. I should identify "
    "the mistaken span, briefly analyze it, and correct it before continuing.",
    "inter": "[FAILURE_INTER] I'm stuck in an inter-step loop: I keep revisiting the same near "
    "equivalent checks and switching between them whenever one stalls, without any progress. Let "
    "me summarize the loop, then pivot to a genuinely different route.",
}
"""p of Eq. 5, by level."""
ERROR_LENGTHS = {
    "short": "a phrase or a single line",
    "medium": "two to four lines",
    "long": "a paragraph",
}
ERROR_TYPES = {
    "dropped_case": "a case is left out",
    "invalid_division": "something is divided by what may be zero",
    "sign_error": "a sign is lost or turned",
    "algebra_simplification_error": "an expression is simplified wrongly",
    "mistaken_assumption": "something is assumed that nobody gave",
    "domain_violation": "a rule is used where it doesn't hold",
}
LOOP_LENGTHS = (3, 4, 5)
LOOP_THEMES = {
    "mod_checks": "checks modulo one number after another",
    "bounds": "bounds that narrow nothing down",
    "symmetry_observations": "remarks on symmetry",
    "equivalent_reformulations": "the same relation put in other ways",
}
COPIED = (2, 3, 4)
"""Steps of a reference that are copied before the failure."""


def drawn_control(level: str, rng: Random) -> dict[str, str | int]:
    """The CONTROL of a made-up failure."""
    if level == "intra":
        return {
            "error_length": rng.choice(list(ERROR_LENGTHS)),
            "error_type": rng.choice(list(ERROR_TYPES)),
        }
    return {
        "loop_length": rng.choice(LOOP_LENGTHS),
        "loop_theme": rng.choice(list(LOOP_THEMES)),
    }


def words_of(control: Control) -> str:
    """A control as a writer is told it; empty where there is none."""
    if "error_type" in control:
        kind, length = str(control["error_type"]), str(control["error_length"])
        return (
            f"Kind of the mistake: {kind.replace('_', ' ')} ({ERROR_TYPES[kind]}). Its length: "
            f"{length} ({ERROR_LENGTHS[length]})."
        )
    if "loop_theme" in control:
        theme = str(control["loop_theme"])
        return (
            f"Length: exactly {control['loop_length']} steps. What they go round in: "
            f"{theme.replace('_', ' ')} ({LOOP_THEMES[theme]})."
        )
    return ""
