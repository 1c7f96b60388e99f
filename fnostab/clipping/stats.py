"""What one call of a clipping rule reports."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class ClipStats(NamedTuple):
    """What one call has clipped; the host has read none of these tensors yet."""

    norm_preclip: Float[Tensor, ""]  #: 2-norm of all gradients before clipping
    norm_postclip: Float[Tensor, ""]  #: 2-norm of all gradients after clipping; 0 for a step that is left out
    clipped_fraction: Float[Tensor, ""]  #: share of what the rule looks at (steps, tensors, units, elements) it changed
    skip: Bool[Tensor, ""] | None = None  #: whether the optimizer has to leave this step out; None: it never has to


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value`, given for the parameter `name`, is one of the `known` words."""
    if value not in known:
        raise ValueError(f"`{name}` (={value}) must be one of {', '.join(known)}")
