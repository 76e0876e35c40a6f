"""A surgery of your own: `surgeon transplant --surgery examples.my_surgery:rescaled ...`.

A surgery gets two tensors of one projection, the units that move, and the units' axis (0 for rows
of gate and up and their biases, 1 for columns of down). It returns the recipient's new tensor; what
it does outside the mask is dropped.
"""

from torch import Tensor


def rescaled(recipient: Tensor, donor: Tensor, mask_F: Tensor, axis: int) -> Tensor:
    """The donor's units, each as long as the recipient's unit it replaces.

    The direction of a unit says what it looks for, its length how loud it is: this moves the first
    and leaves the second.
    """
    if recipient.dim() == 1:
        return recipient.clone()  # a bias has no direction
    lengths = [
        part.float().norm(dim=1 - axis, keepdim=True).clamp_min(1e-12)
        for part in (recipient, donor)
    ]
    return (donor.float() * (lengths[0] / lengths[1])).to(donor.dtype)
