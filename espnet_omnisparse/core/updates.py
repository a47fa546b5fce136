"""When an optimiser has made an update."""

from collections.abc import Callable

import torch
from torch.utils.hooks import RemovableHandle


def after_each_update(
    optimizer: torch.optim.Optimizer, call: Callable[[], object]
) -> RemovableHandle:
    """Calls something after each update, not after those skipped for a bad gradient.

    Where gradients are scaled for float16, PyTorch does not call an optimiser for
    those; a fused one it calls, and tells it to leave the parameters as they are.

    Args:
        optimizer: Makes the updates.
        call: What to call.

    Returns:
        Whose `remove` ends it.
    """

    def hook(optimizer: torch.optim.Optimizer, *_) -> None:
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is None or not skipped.item():
            call()

    return optimizer.register_step_post_hook(hook)
