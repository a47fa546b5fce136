"""Selections: how a supernet learns which units each size keeps.

A method is one file in this package: a subclass of `Selection` registered by name.
Adding one touches nothing else.

>>> class Reversed(Selection, name="reversed-for-doctest"):
...     def masks(self):
...         order = -torch.arange(len(self.space), dtype=torch.float)
...         return {name: top_k_mask(order, k) for name, k in self.sizes.items()}
>>> "reversed-for-doctest" in Selection.registry
True
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import ClassVar

import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.gate import Gate
from espnet_omnisparse.mask import top_k_mask
from espnet_omnisparse.subnet import SearchSpace


class Selection(torch.nn.Module):
    """What a supernet asks of a selection method.

    Times are updates since step 1 began; `length` is the length of step 1. Parameters
    of a method are trained by the common optimiser, with the learning rate
    `score_lr`, and without weight decay.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one, as units kept, largest first.
    """

    registry: ClassVar[dict[str, type["Selection"]]] = {}
    #: Whether the method learns in step 1; if not, step 1 is empty.
    learns: ClassVar[bool] = True

    def __init_subclass__(cls, name: str, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.registry[name] = cls

    def __init__(self, space: SearchSpace, sizes: Mapping[str, int]):
        super().__init__()
        self.space = space
        self.sizes = dict(sizes)

    def gates(self, time: int, length: int) -> tuple[Gate, ...]:
        """Gates of the subnet trained beside the full net at this time of step 1."""
        raise NotImplementedError

    def mask_now(self, time: int, length: int) -> torch.Tensor:
        """The hard mask `[units]` that step 1 has come to at this time."""
        raise NotImplementedError

    def penalty(self, time: int, length: int) -> torch.Tensor | float:
        """A term added to the loss of step 1."""
        return 0.0

    def after_update(self, time: int, length: int) -> None:
        """Called after each update of step 1, the first one with time 1."""

    def masks(self) -> dict[str, torch.Tensor]:
        """The mask `[units]` of each size below the full one, from what was learned.

        Only meaningful once step 1 has ended; nothing may change it afterwards.
        """
        raise NotImplementedError

    def scores_now(self) -> torch.Tensor | None:
        """A score per unit `[units]` for the log and the plots, if there are any."""
        return None


def build_selection(
    method: str, space: SearchSpace, sizes: Mapping[str, int], conf: Mapping
) -> Selection:
    """Makes the method named `method` from its options.

    Raises:
        UserError: If the method, or one of its options, is unknown.
    """
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    if method not in Selection.registry:
        raise UserError(
            f"supernet.method {method!r} is unknown; the methods are "
            f"{', '.join(sorted(Selection.registry))}."
        )
    try:
        return Selection.registry[method](space, sizes, **conf)
    except TypeError as error:
        raise UserError(f"supernet.method_conf of {method}: {error}.") from error


__all__ = ["Selection", "build_selection", "top_k_mask"]
