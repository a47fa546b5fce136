"""Selections: how a supernet comes to know which units each size keeps.

A method is one file in this package: a subclass of `Selection` registered by name.
Adding one touches nothing else.

>>> class Reversed(Selection, name="reversed-for-doctest"):
...     learns = False
...     def ranking(self):
...         return torch.arange(len(self.space)).flip(0)
>>> "reversed-for-doctest" in Selection.registry
True
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol, get_type_hints

import pydantic
import torch

from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.options import Section


class Net(Protocol):
    """What a method may ask of the net that step 1 has trained."""

    def dev_loss(self, mask: torch.Tensor, utterances: int) -> float:
        """Validation loss of the subnet that keeps the units in `mask`.

        Args:
            mask: Units to keep `[units]`.
            utterances: Validation utterances that it is taken over.
        """

    def magnitudes(self) -> torch.Tensor:
        """Root mean square of the weights of each unit `[units]`."""


class Selection(torch.nn.Module):
    """What a supernet asks of a selection method.

    Times are updates since step 1 began; `length` is the length of step 1. Parameters
    of a method are trained by the common optimiser, with the learning rate
    `score_lr`, and without weight decay.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one, largest first.
    """

    registry: ClassVar[dict[str, type["Selection"]]] = {}
    #: Whether there is a step 1, in which the method learns.
    learns: ClassVar[bool] = True
    #: Whether there is a step 2, in which all sizes are trained together.
    joint: ClassVar[bool] = True

    def __init_subclass__(cls, name: str, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.registry[name] = cls

    @classmethod
    def options(cls) -> type[Section]:
        """The method's options, as the section `method_conf` that its constructor has.

        They are the arguments behind `space` and `sizes`; `Annotated` ones have their
        bounds and their meaning from `pydantic.Field`.
        """
        hints = get_type_hints(cls.__init__, include_extras=True)
        _, _, _, *declared = inspect.signature(cls.__init__).parameters.values()
        fields = {one.name: (hints.get(one.name, Any), one.default) for one in declared}
        section = pydantic.create_model(cls.__name__, __base__=Section, **fields)
        section.name = "supernet.method_conf"
        return section

    def __init__(self, space: SearchSpace, sizes: Mapping[str, Size]):
        super().__init__()
        self.space = space
        self.sizes = dict(sizes)

    def check_length(self, length: int) -> None:
        """Refuses a step 1 of `length` updates if the method cannot do with it.

        Args:
            length: Of step 1, in updates.

        Raises:
            UserError: If it is too short.
        """
        if length < 1:
            raise UserError(
                "supernet.step1 has no update, but the method learns in it: lengthen "
                "it, or choose a method without a step 1, such as uniform."
            )

    def gates(self, time: int, length: int) -> tuple[Gate, ...] | None:
        """Gates of the subnet that step 1 trains beside the full net, if any.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        return None

    def full_gates(self, time: int, length: int) -> tuple[Gate, ...] | None:
        """Gates on the full net where it is trained alone; `None`: it is whole.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        return None

    def exits(self) -> Mapping[str, int]:
        """Sizes that are exits of the full net -> the blocks that they end after.

        Only without a step 2.
        """
        return {}

    def mask_now(self, time: int, length: int) -> torch.Tensor | None:
        """The hard mask `[units]` that step 1 has come to, where there is one.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        return None

    def penalty(self, time: int, length: int) -> torch.Tensor | float:
        """A term added to the loss of step 1.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        return 0.0

    def after_update(self, time: int, length: int) -> None:
        """Called after each update of step 1, the first one with time 1.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """

    def settle(self, net: Net | None) -> None:
        """Called once, when step 1 has ended."""

    def ranking(self) -> torch.Tensor:
        """Numbers of the units `[units]`, the most important first."""
        raise NotImplementedError

    def masks(self) -> dict[str, torch.Tensor]:
        """The mask `[units]` of each size below the full one, largest first: nested.

        Only meaningful once step 1 has ended; nothing may change it afterwards.
        """
        ranking = self.ranking()
        masks = {name: size.mask(ranking) for name, size in self.sizes.items()}
        # limits on different kinds of cost have no order before the ranking is known
        return dict(sorted(masks.items(), key=lambda item: -int(item[1].sum())))

    def scores_now(self) -> torch.Tensor | None:
        """A score per unit `[units]` for the log and the plots, if there are any."""
        return None


def build_selection(
    method: str,
    space: SearchSpace,
    sizes: Mapping[str, Size],
    conf: Mapping[str, Any] | None,
) -> Selection:
    """Makes the method named `method` from its options.

    Args:
        method: A key of `Selection.registry`.
        space: The supernet's units.
        sizes: Wanted sizes below the full one, largest first.
        conf: The method's options; `None`: none are given.

    Raises:
        UserError: If the method, or one of its options, is unknown or impossible.
    """
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    if method not in Selection.registry:
        raise UserError(
            f"supernet.method {method!r} is unknown; the methods are "
            f"{', '.join(sorted(Selection.registry))}."
        )
    chosen = Selection.registry[method]
    return chosen(space, sizes, **dict(chosen.options().read(conf)))
