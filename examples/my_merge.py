"""A merge method of your own: `surgeon merge-sweep A B --method examples.my_merge:elect --out DIR`.

A method is a function of a piece of one tensor of each endpoint and of the ratio. surgeon calls it
on the CPU, element by element, for candidates on disk and for virtual ones. A virtual candidate is
merged when it is used: its method must be on the Python path then (PYTHONPATH=.), because reading a
family runs no code of the current directory.
"""

import torch
from torch import Tensor


def elect(a_N: Tensor, b_N: Tensor, t: float) -> Tensor:
    """The sum of `(1 - t) a` and `t b` where they agree in sign, else the larger of the two.

    TIES' election of signs, between two checkpoints and without trimming.
    """
    first_N, second_N = (1 - t) * a_N, t * b_N
    larger_N = torch.where(first_N.abs() >= second_N.abs(), first_N, second_N)
    return torch.where(first_N * second_N > 0, first_N + second_N, larger_N)


def orthogonal(a_N: Tensor, b_N: Tensor, t: float, cosine: float) -> Tensor:
    """Linear interpolation, longer the less the two tensors agree.

    A function that asks for `cosine` gets that of the two whole tensors.
    """
    return torch.lerp(a_N, b_N, t) * (1 + 0.1 * (1 - cosine))
