"""Endpoints whose vocabularies differ, given the same rows: cropped, padded, or the union of both.

Shape legend: V rows of an embedding or a head (one per token id, and padding), D model width.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from surgeon import lineage
from surgeon.checkpoint import TEMPLATE_FILES, Checkpoint
from surgeon.errors import BadInput
from surgeon.families import label
from surgeon.merge.aligned import Aligned, Piece
from surgeon.merge.preflight import require_tokenizers, vocabulary, vocabulary_difference
from surgeon.merge.tensor_names import TensorNames

How = Literal["crop", "pad", "union"]


class Rows(NamedTuple):
    """The vocabulary rows of two endpoints."""

    names: tuple[str, ...]
    """Tensors with a row per token, as the files call them."""
    counts: tuple[int, int]
    """Rows of the first and of the second endpoint."""


def rows(first: Checkpoint, second: Checkpoint) -> Rows | None:
    """The vocabulary rows where they differ in number; None where the shapes agree."""
    differing = {n for n, i in first.tensors.items() if i.shape != second.tensors[n].shape}
    if not differing:
        return None
    found = vocabulary_rows(first, second)
    if found.counts[0] == found.counts[1] or not differing <= set(found.names):
        return None  # they differ in more than a vocabulary
    return found


def vocabulary_rows(first: Checkpoint, second: Checkpoint) -> Rows:
    """The tensors with a row per token, and how many rows each endpoint has."""
    # A view's own files may spell their tensors otherwise, but its names are those of the first.
    names = TensorNames(first).vocabulary_tensors()
    counts = tuple(c.tensors[names[0]].shape[0] for c in (first, second))
    return Rows(tuple(names), (counts[0], counts[1]))


def highest_id(checkpoint: Checkpoint) -> int:
    """The highest token id of a checkpoint's tokenizer; raises `BadInput` without a tokenizer."""
    tokens = vocabulary(checkpoint)
    return max(checkpoint.tokenizer().get_vocab().values()) if tokens is None else max(tokens)


def refusal(first: Checkpoint, second: Checkpoint, found: Rows, again: Callable[[str], str]) -> str:
    """Why two vocabularies of different size aren't merged without being asked to, and the way."""
    name = found.names[0]
    difference = vocabulary_difference(first, second)
    tokens = max(map(highest_id, (first, second))) + 1
    if difference is not None:
        why, how = difference, "union"
    elif tokens <= min(found.counts):
        why, how = f"the tokenizers are equal and use {tokens} of these rows", "crop"
    else:
        why, how = f"the tokenizers are equal and have {tokens} tokens", "pad"
    shapes = [list(c.tensors[name].shape) for c in (first, second)]
    return (
        f"{name} has shape {shapes[0]} in {first.spec} and {shapes[1]} in {second.spec}. The "
        f"vocabularies have different sizes; {why}. Run: {again(how)}"
    )


def fitted(
    first: Checkpoint, second: Checkpoint, how: How, tokenizer: str | None
) -> tuple[Checkpoint, Checkpoint, list[str]]:
    """The endpoints with the same vocabulary rows, and a sentence for what was done.

    `tokenizer` is the side the user chose, None where none was. Raises `BadInput` where rows that
    stand for tokens would be lost, or two tokens would be mixed into one.
    """
    if how == "union":
        return _union(first, second, tokenizer or "first")
    found = rows(first, second)
    if found is None:
        return first, second, []
    difference = vocabulary_difference(first, second)
    if difference is not None and tokenizer is None:
        raise BadInput(
            f"--vocabulary {how} is for padding rows, and {difference}. Take --vocabulary union, "
            "or say whose tokenizer the candidates get: --tokenizer first or --tokenizer second"
        )
    chosen = {"first": [first], "second": [second]}.get(tokenizer or "", [first, second])
    tokens = max(map(highest_id, chosen)) + 1
    n_rows = min(found.counts) if how == "crop" else max(found.counts)
    if tokens > n_rows:
        way = "pad" if tokens <= max(found.counts) else "union"
        raise BadInput(
            f"--vocabulary {how} leaves {n_rows} rows, and the tokenizer has {tokens} tokens. "
            f"Take --vocabulary {way}."
        )
    names = f"{label(first)} ({found.counts[0]} rows) and {label(second)} ({found.counts[1]})"
    done = "cropped" if how == "crop" else "padded with the rows of the other"
    said = f"vocabularies of {names} are {done}: candidates have {n_rows} rows for {tokens} tokens"
    pair = (first, second)
    made = [
        one
        if one.tensors[found.names[0]].shape[0] == n_rows
        else _resized(one, other, found.names, how, n_rows)
        for one, other in (pair, pair[::-1])
    ]
    return made[0], made[1], [said]


def _resized(
    one: Checkpoint, other: Checkpoint, names: tuple[str, ...], how: How, n_rows: int
) -> Aligned:
    """A checkpoint with `n_rows` vocabulary rows: its first ones, or further ones of the other."""

    def make(name: str) -> Tensor:
        own_VD = one.tensor(name)
        if how == "crop":
            return own_VD[:n_rows].contiguous()
        return torch.cat([own_VD, other.tensor(name)[len(own_VD) :].to(own_VD.dtype)])

    of = (one.digest,) if how == "crop" else (one.digest, other.digest)
    changes = {"vocabulary": how, "rows": n_rows}
    return _with_rows(one, names, n_rows, make, of, changes)


def _with_rows(
    one: Checkpoint,
    names: tuple[str, ...],
    n_rows: int,
    make: Callable[[str], Tensor],
    of: tuple[str, ...],
    changes: dict[str, Any],
    **more: Any,
) -> Aligned:
    pieces = {}
    for name, info in one.tensors.items():
        if name in names:
            nbytes = info.nbytes // info.shape[0] * n_rows
            resized = info._replace(shape=(n_rows, *info.shape[1:]), nbytes=nbytes)
            pieces[name] = Piece(resized, lambda name=name: make(name))
        else:
            pieces[name] = Piece(info, lambda name=name: one.tensor(name))
    size = {"vocab_size": n_rows}
    return Aligned(one.path, one.spec, pieces, changes, of, size, **more)


# --- both tokenizers ------------------------------------------------------------------------------


def _union(
    first: Checkpoint, second: Checkpoint, side: str
) -> tuple[Checkpoint, Checkpoint, list[str]]:
    """The endpoints with a row for each token of either, as mergekit's union has them.

    A token that only one endpoint has takes that endpoint's row in both.
    """
    require_tokenizers(first, second)
    found = vocabulary_rows(first, second)
    info, references = _mergekits_union(first, second, side)
    place = lineage.scratch() / "union"
    info.tokenizer.save_pretrained(place)
    for file in TEMPLATE_FILES:  # each endpoint keeps its own
        (place / file).unlink(missing_ok=True)
    tokens: dict[str, int] = info.tokenizer.get_vocab()
    n_rows = max(tokens.values()) + 1
    moved = [_moved(info.permutations[r], n_rows) for r in references]
    pair, made = (first, second), []
    for i, one in enumerate(pair):
        make = _permuted(one, pair[1 - i], moved[i], moved[1 - i])
        old = {int(o): n for n, o in enumerate(moved[i].tolist()) if o >= 0 and o != n}
        of = (one.digest, pair[1 - i].digest)
        changes = {"vocabulary": "union", "base": side, "which": i}
        more: dict[str, Any] = {"tokenizer_from": place, "new_id": old}
        made.append(_with_rows(one, found.names, n_rows, make, of, changes, **more))
    only = [int((m < 0).sum()) for m in moved]
    said = (
        f"vocabularies of {label(first)} ({found.counts[0]} rows) and {label(second)} "
        f"({found.counts[1]}) are united: candidates have {n_rows} rows, {only[1]} of them from "
        f"{label(first)} alone and {only[0]} from {label(second)} alone"
    )
    return made[0], made[1], [said]


def _mergekits_union(first: Checkpoint, second: Checkpoint, side: str) -> tuple[Any, list[Any]]:
    """mergekit's tokenizer with its permutations, and its references to the two endpoints."""
    with warnings.catch_warnings():  # it touches numpy names that are deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        from mergekit.common import ModelPath, ModelReference
        from mergekit.tokenizer.build import build_tokenizer

    paths = [ModelPath(path=str(c.path.resolve())) for c in (first, second)]
    references = [ModelReference(model=path) for path in paths]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            info = build_tokenizer(
                base_model=references[0 if side == "first" else 1],
                referenced_models=references,
                tokenizer_source="union",
                trust_remote_code=False,
                add_tokens=[],
            )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        text = " ".join(str(error).split())
        raise BadInput(f"mergekit can't unite the two tokenizers: {text}") from error
    if len(info.original_vocabs) < 2:
        raise BadInput("found one tokenizer for two endpoints, expected one of each to unite.")
    return info, references


def _moved(permutation: dict[int, int], n_rows: int) -> Tensor:
    """Row of the union -> row of an endpoint, -1 where the endpoint has none."""
    moved_V = torch.full((n_rows,), -1)
    for new, old in permutation.items():
        moved_V[new] = old
    return moved_V


def _permuted(
    one: Checkpoint, other: Checkpoint, own_V: Tensor, others_V: Tensor
) -> Callable[[str], Tensor]:
    """Makes an embedding or a head with the rows of the union."""

    def make(name: str) -> Tensor:
        own = one.tensor(name)
        made = own.new_zeros((len(own_V), *own.shape[1:]))
        has = own_V >= 0
        made[has] = own[own_V[has]]
        lent = ~has & (others_V >= 0)
        if lent.any():
            made[lent] = other.tensor(name)[others_V[lent]].to(own.dtype)
        empty = ~has & (others_V < 0)
        if empty.any():
            made[empty] = made[~empty].mean(dim=0)  # an id that no token has, as mergekit pads
        return made

    return make
