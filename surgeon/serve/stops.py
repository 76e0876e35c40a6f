"""Where a stop string ends a text that comes in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first stop string; what may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str], keep: bool = False):
        self.stops, self.keep = stops, keep
        """`keep`: the stop string itself is passed on as well."""
        self.longest = max(map(len, stops), default=0)
        self.waiting = ""
        self.hit: str | None = None

    def push(self, piece: str) -> str:
        """The text that can be passed on now; `hit` is set once a stop string is complete."""
        if not self.stops:
            return piece
        if self.hit is not None:
            return ""
        text = self.waiting + piece
        hits = [(text.find(stop), stop) for stop in self.stops if stop in text]
        if hits:
            at, self.hit = min(hits)
            self.waiting = ""
            return text[: at + len(self.hit) if self.keep else at]
        length = next(
            (
                n
                for n in range(min(self.longest - 1, len(text)), 0, -1)
                if any(stop.startswith(text[-n:]) for stop in self.stops)
            ),
            0,
        )
        cut = len(text) - length
        self.waiting = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was waiting for a stop string that didn't come."""
        piece, self.waiting = self.waiting, ""
        return piece
