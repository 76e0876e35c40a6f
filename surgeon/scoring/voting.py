"""What the answers to one prompt say of each other, without labels."""

from collections.abc import Sequence

from surgeon.answers import classes_of


def agreement(votes: Sequence[str | None], places: Sequence[int]) -> dict[int, float]:
    """Place -> share of the prompt's other answers that are in the same class; none for an answer
    that couldn't be read, or is the only one."""
    own = [votes[n] for n in places]
    if len(places) < 2:
        return {}
    return {
        n: (own.count(vote) - 1) / (len(places) - 1)
        for n, vote in zip(places, own, strict=True)
        if vote is not None
    }


def places_of(prompt_ids: Sequence[str]) -> dict[str, list[int]]:
    """Prompt -> the places of its answers."""
    places: dict[str, list[int]] = {}
    for n, prompt_id in enumerate(prompt_ids):
        places.setdefault(prompt_id, []).append(n)
    return places


def votes_of(answers: Sequence[str | None], prompt_ids: Sequence[str]) -> list[str | None]:
    """The class of each answer among all to its prompt: equal values, one class."""
    places = places_of(prompt_ids)
    votes: list[str | None] = [None] * len(answers)
    groups = classes_of([[answers[n] for n in members] for members in places.values()])
    for members, group in zip(places.values(), groups, strict=True):
        for n, vote in zip(members, group, strict=True):
            votes[n] = vote
    return votes


def pooled(votes: Sequence[str | None], owners: Sequence[str]) -> list[float | None]:
    """Share of the other owners' answers to one prompt that are in each answer's class, each owner
    with one vote that its answers split; None for an answer that couldn't be read, and where
    nobody else answered.

    An owner's answers have no vote on each other, as in `surgeon.estimate`.
    """
    of: dict[str, list[str | None]] = {}
    for vote, owner in zip(votes, owners, strict=True):
        of.setdefault(owner, []).append(vote)
    found: list[float | None] = []
    for vote, owner in zip(votes, owners, strict=True):
        others = [given.count(vote) / len(given) for name, given in of.items() if name != owner]
        known = vote is not None and others
        found.append(sum(others) / len(others) if known else None)
    return found
