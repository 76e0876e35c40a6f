"""The readings of NEX by preset, and the numbers that its equations share."""

from surgeon.settings.nex import NexReadings as Readings

EPS = 1e-6
"""The epsilon of Eq. 5, 7, 11 and 20."""
FAINT = 1e-6
"""A progress (Eq. 6) below this is rounding, not reuse."""


PRESETS: dict[str, Readings] = {
    "paper": Readings(
        log_time_from=1,
        reuse_median_over="all",
        short_run_joins="longer",
        empty_response="zero",
        reuse_median_in="float64",
    ),
    "reference": Readings(),
}
"""All readings at once: as the paper is worded, and as its published code computes."""

DEFAULT = PRESETS["reference"]
