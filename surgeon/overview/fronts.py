"""Who isn't beaten in accuracy and tokens at once."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (tokens, value) pairs that no other beats: as few tokens and a higher value,
    or fewer tokens and as high a value. By tokens; equal pairs are on it together."""
    order = sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1]))
    kept: list[int] = []
    for n in order:
        if not kept or points[n][1] > points[kept[-1]][1] or points[n] == points[kept[-1]]:
            kept.append(n)
    return kept
