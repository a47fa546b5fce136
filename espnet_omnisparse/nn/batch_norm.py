"""Whether a net keeps running statistics, which differ from subnet to subnet."""

import torch


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether anything in the model keeps running statistics.

    Args:
        model: Any module.
    """
    return any(isinstance(m, torch.nn.BatchNorm1d) for m in model.modules())
