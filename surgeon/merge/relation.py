"""How two endpoints are related, from samples of their weights: one lineage or two, what changed.

A merge of weights makes sense between checkpoints that come of one. The sampled figures say whether
they do, for a small share of the reading that a merge needs.

The thresholds are settings of judgement, not fitted. Matrices of models that were started from
different random numbers are close to orthogonal, those tuned from one base close to parallel;
`UNRELATED` lies halfway. Reinforcement learning leaves most bits of a bfloat16 checkpoint alone
("Reinforcement Learning Finetunes Small Subnetworks", arXiv 2505.11711: 70 to 95 %); `SPARSE` lies
below that.

Shape legend: N sampled elements of one tensor.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from surgeon.checkpoint import DTYPES, FLOATS, Checkpoint, stored_dtype
from surgeon.families import label
from surgeon.progress import bar

BLOCKS, BLOCK = 4, 1 << 14
"""Pieces sampled per tensor, evenly spread, and elements in each."""
UNRELATED = 0.5
"""Cosine below which FFN and attention say that the endpoints have no common ancestor."""
SPARSE = 0.5
"""Share of equal weights from which the second is a sparse update of the first."""
FEW = 0.5
"""Share of equal tensors from which that is worth a line."""
KINDS = {
    "FFN": re.compile(r"mlp|ffn|feed_forward|experts|block_sparse_moe|moe"),
    "attention": re.compile(r"attn|attention"),
}


class Relation(NamedTuple):
    """What samples of two endpoints say."""

    tensors: int
    differing: tuple[str, ...]
    """Tensors that aren't equal in every bit."""
    sampled: int
    """Weights looked at, in the tensors that differ."""
    equal: int
    """Those of them that are the same in both."""
    cosine: dict[str, float]
    """Kind of block -> cosine between the endpoints' matrices; without norms and embeddings."""
    whole: bool = False
    """Whether every weight was looked at, not samples."""

    @property
    def equal_share(self) -> float:
        """Share of sampled weights that are the same in both, of the tensors that differ."""
        return self.equal / self.sampled if self.sampled else 1.0

    @property
    def figures(self) -> dict[str, float]:
        """The numbers by name, for `family.json`."""
        return {
            "tensors": self.tensors,
            "differing_tensors": len(self.differing),
            "equal_share": self.equal_share,
            **{f"cosine_{kind.lower()}": value for kind, value in self.cosine.items()},
        }

    def line(self) -> str:
        """One sentence with the figures."""
        cosines = ", ".join(f"{kind} {value:.3f}" for kind, value in self.cosine.items())
        differing = f"{len(self.differing)} of {self.tensors} tensors differ"
        if not self.differing:
            return f"endpoints: no tensor of {self.tensors} differs"
        share = f"{self.equal_share:.0%} of the weights sampled in them are equal"
        return f"endpoints: {differing}, {share}; cosine of {cosines or 'no block'}"


def relation(first: Checkpoint, second: Checkpoint) -> Relation:
    """Compare two endpoints of the same tensors, one tensor of each at a time."""
    products: dict[str, list[float]] = {}
    differing, sampled, equal = [], 0, 0
    with bar("comparing", len(first.tensors)) as advance:
        for name, info in first.tensors.items():
            one, two = first.read_many([name])[name], second.read_many([name])[name]
            advance(1)
            if one.shape != two.shape:  # an embedding that mergekit gives other rows
                differing.append(name)
                continue
            a_N, b_N = sample(one), sample(two)
            same = int((a_N == b_N).sum())
            kind = next((k for k, pattern in KINDS.items() if pattern.search(name)), None)
            if kind and info.dtype in FLOATS and len(info.shape) > 1:
                a, b = a_N.double(), b_N.double()
                sums = products.setdefault(kind, [0.0, 0.0, 0.0])
                for i, (x, y) in enumerate(((a, b), (a, a), (b, b))):
                    sums[i] += float(x @ y)
            if same == a_N.numel() and torch.equal(one, two):
                continue
            differing.append(name)
            sampled, equal = sampled + a_N.numel(), equal + same
    cosine = {
        kind: ab / (aa * bb) ** 0.5 if aa * bb > 0 else 0.0
        for kind in KINDS
        if kind in products
        for ab, aa, bb in [products[kind]]
    }
    return Relation(len(first.tensors), tuple(differing), sampled, equal, cosine)


def sample(tensor: Tensor) -> Tensor:
    """Up to `BLOCKS` x `BLOCK` elements of a tensor, flat; only their pages are read."""
    flat = tensor.reshape(-1)
    if flat.numel() <= BLOCKS * BLOCK:
        return flat
    last = flat.numel() - BLOCK
    starts = [last * i // (BLOCKS - 1) for i in range(BLOCKS)]
    return torch.cat([flat[start : start + BLOCK] for start in starts])


def warnings(first: Checkpoint, second: Checkpoint, found: Relation) -> list[str]:
    """Where a merge of the two is known to go wrong, a sentence with figures each."""
    one, two = label(first), label(second)
    if one == two:
        one, two = first.spec, second.spec
    names = f"{one} and {two}"
    warned = []
    if not found.differing:
        warned.append(f"the weights of {names} are equal: every candidate is the same model")
    elif len(found.differing) <= (1 - FEW) * found.tensors:
        n, some = len(found.differing), ", ".join(found.differing[:3])
        warned.append(
            f"{found.tensors - n} of {found.tensors} tensors are equal in {names}: candidates "
            f"differ in {n} only ({some}{', ...' if n > 3 else ''})"
        )
    cosines = ", ".join(f"{kind} {value:.3f}" for kind, value in found.cosine.items())
    if found.cosine and max(found.cosine.values()) < UNRELATED:
        warned.append(
            f"{names} show no common ancestor: cosine of {cosines}, expected above {UNRELATED} of "
            "checkpoints that were tuned from one base. Merges of such weights rarely work"
        )
    if found.differing and found.equal_share >= SPARSE:
        looked_at = "" if found.whole else "sampled "
        warned.append(
            f"{names} differ by a sparse update, as reinforcement learning makes: "
            f"{found.equal_share:.0%} of {found.sampled} weights {looked_at}in "
            f"{len(found.differing)} tensors are equal bit by bit. A ratio t keeps the share t of "
            "that update, and methods that drop weights at random (dare, density below 1) may lose "
            "it"
        )
    stored = [DTYPES[name].torch for c in (first, second) if (name := stored_dtype(c))]
    if len(set(stored)) > 1:
        warned.append(
            f"the weights of {names} are {stored[0]} and {stored[1]}: both are rounded to the "
            "candidates' dtype (--dtype) before they are mixed"
        )
    rope = [rope_settings(c) for c in (first, second)]
    keys = [key for key in sorted(rope[0] | rope[1]) if rope[0].get(key) != rope[1].get(key)]
    if keys:
        text = ", ".join(f"{key} {rope[0].get(key)} and {rope[1].get(key)}" for key in keys)
        warned.append(
            f"{names} rotate positions differently ({text}): attention weights were trained for "
            f"their own, and candidates take those of {one}"
        )
    return warned


def rope_settings(checkpoint: Checkpoint) -> dict[str, object]:
    """The rotary embedding's settings of a checkpoint, transformers' defaults included."""
    text = checkpoint.full_config.get_text_config()
    settings = getattr(text, "rope_parameters", None) or {}
    return {key: value for key, value in settings.items() if value is not None}
