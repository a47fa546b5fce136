"""A training in which the zeros of a pruned net stay zero."""

from collections.abc import Mapping, Sequence

import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import load_tensors


def zeros_of(init_param: Sequence[str]) -> dict[str, torch.Tensor]:
    """Name -> where a weight is zero, of the file that a training begins from.

    Of the file and not of the model, which may go on from a checkpoint: a repair that
    goes on has the zeros that it began with. Biases and norms have none to keep.

    Args:
        init_param: As ESPnet's `--init_param`; one whole file.

    Raises:
        UserError: If it is not exactly that.
    """
    if len(init_param) != 1 or ":" in init_param[0]:
        raise UserError(
            "keep_zeros needs the pruned net to begin from: --init_param with one "
            "whole model file."
        )
    weights = load_tensors(init_param[0]).items()
    zeros = {name: weight == 0 for name, weight in weights if weight.dim() > 1}
    return {name: where for name, where in zeros.items() if where.any()}


def keep_zeros(
    model: torch.nn.Module,
    zeros: Mapping[str, torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Keeps weights zero in a training.

    They have no gradient, so that they count neither in its norm nor in an optimiser's
    averages; after an update they are set to zero again, whatever made them move, such
    as noise on gradients.

    Args:
        model: What is trained.
        zeros: Name -> where a weight is zero; of tensors that are no parameters
            nothing is kept.
        optimizers: Whose steps are the updates.
    """
    held = []
    for name, parameter in model.named_parameters():
        if name not in zeros:
            continue
        where = zeros[name].to(parameter.device)
        held.append((parameter, where))
        if parameter.requires_grad:
            parameter.register_hook(lambda grad, w=where: grad.masked_fill(w, 0.0))

    @torch.no_grad()
    def set_to_zero(*_) -> None:
        for parameter, where in held:
            parameter.masked_fill_(where, 0.0)

    for optimizer in optimizers:
        optimizer.register_step_post_hook(set_to_zero)
