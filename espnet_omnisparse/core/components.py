"""Components: the parts by which a branch of a block can be narrowed.

An FFN is divided into chunks of its hidden channels, an attention into its heads; a
Conv and a cgMLP are one part each. Dropping a part removes the same hidden units from
every tensor that has them: a chunk's rows of the first weight and its columns of the
second.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.func import functional_call

from espnet_omnisparse.core.branches import is_ffn

# module's tensor -> the dimension along which its parts lie, one after the other
_FFN = {"w_1.weight": 0, "w_1.bias": 0, "w_2.weight": 1}
_MHSA = {
    **dict.fromkeys(("linear_q.weight", "linear_q.bias"), 0),
    **dict.fromkeys(("linear_k.weight", "linear_k.bias"), 0),
    **dict.fromkeys(("linear_v.weight", "linear_v.bias"), 0),
    **dict.fromkeys(("linear_pos.weight", "pos_bias_u", "pos_bias_v"), 0),
    "linear_out.weight": 1,
}
_DIMENSIONS = {"ffn1": _FFN, "mhsa": _MHSA, "conv": {}, "cgmlp": {}, "ffn2": _FFN}
_OUTPUTS = {"ffn1": "w_2", "mhsa": "linear_out", "ffn2": "w_2"}


@dataclass(frozen=True)
class Masked:
    """The weights of a branch's module that are not its own.

    Attributes:
        weights: Name inside the module -> the weight, zero where it is masked.
        density: Share of the branch's weights that is not masked.
    """

    weights: Mapping[str, torch.Tensor]
    density: float = 1.0


def select(
    branch: str, name: str, tensor: torch.Tensor, kept: Sequence[int], of: int
) -> torch.Tensor:
    """What the kept parts of a branch have of one of its tensors.

    Args:
        branch: A key of `PRUNABLE`.
        name: The tensor's name inside the branch's module.
        tensor: The whole tensor.
        kept: Numbers of the kept parts, ascending.
        of: How many parts there are.

    Returns:
        The tensor itself where parts do not divide it.

    >>> weight = torch.arange(8.0).view(4, 2)
    >>> select("ffn1", "w_1.weight", weight, [1, 3], of=4)
    tensor([[2., 3.],
            [6., 7.]])
    """
    dimension = _DIMENSIONS[branch].get(name)
    if dimension is None or len(kept) == of:
        return tensor
    parts = tensor.tensor_split(of, dimension)
    return torch.cat([parts[part] for part in kept], dimension)


def scatter(
    branch: str, name: str, small: torch.Tensor, kept: Sequence[int], of: int
) -> torch.Tensor:
    """The inverse of `select`: the whole tensor, zero where nothing is kept.

    Args:
        branch: A key of `PRUNABLE`.
        name: The tensor's name inside the branch's module.
        small: The narrower tensor.
        kept: Numbers of the kept parts, ascending.
        of: How many parts there are.
    """
    dimension = _DIMENSIONS[branch].get(name)
    if dimension is None or len(kept) == of:
        return small
    chosen = dict(zip(kept, small.tensor_split(len(kept), dimension), strict=True))
    empty = torch.zeros_like(chosen[kept[0]])
    return torch.cat([chosen.get(part, empty) for part in range(of)], dimension)


def run_narrowed(
    branch: str,
    module: torch.nn.Module,
    kept: Sequence[int],
    of: int,
    inputs: Sequence[torch.Tensor | None],
    masked: Masked | None = None,
) -> torch.Tensor:
    """Runs a branch's module with some of its parts, computing nothing of the others.

    In training, an FFN's dropout rate shrinks with its kept fraction (arXiv
    2501.18895), of parts and of weights.

    Args:
        branch: A key of `PRUNABLE`.
        module: Its module.
        kept: Numbers of the kept parts, ascending.
        of: How many parts there are.
        inputs: Of the module.
        masked: Weights to use instead of the module's own.
    """
    skeleton, tensors = _narrow(branch, module, kept, of, masked)
    # no two tensors of a branch are one: looking for such costs more than the call
    return functional_call(skeleton, tensors, tuple(inputs), tie_weights=False)


def run_scaled(
    branch: str,
    module: torch.nn.Module,
    gates: torch.Tensor,
    inputs: Sequence[torch.Tensor | None],
    masked: Masked | None = None,
) -> torch.Tensor:
    """Runs a branch's module with a soft gate for each of its parts.

    Gates of zeros and ones give what `run_narrowed` gives. The output's bias, which
    belongs to no part, has the gate of the most open one.

    Args:
        branch: A key of `PRUNABLE`.
        module: Its module.
        gates: `[parts]`.
        inputs: Of the module.
        masked: Weights to use instead of the module's own.
    """
    parts = gates.numel()
    skeleton, tensors = _narrow(branch, module, range(parts), parts, masked)
    weight, bias = f"{_OUTPUTS[branch]}.weight", f"{_OUTPUTS[branch]}.bias"
    whole = tensors.get(weight, module.get_parameter(weight))
    columns = gates.repeat_interleave(whole.size(1) // parts)
    # of a convolution at every place of its window
    tensors[weight] = whole * columns.view(-1, *[1] * (whole.dim() - 2))
    tensors[bias] = module.get_parameter(bias) * gates.amax()
    return functional_call(skeleton, tensors, tuple(inputs), tie_weights=False)


def heads_of(attention: torch.nn.Module) -> int:
    """How many heads an attention of either task has."""
    return getattr(attention, _heads_name(attention), 1)


def _heads_name(attention: torch.nn.Module) -> str:
    return "h" if hasattr(attention, "h") else "num_heads"


def narrowed(
    branch: str, module: torch.nn.Module, count: int, of: int
) -> torch.nn.Module:
    """A module of its own with the first `count` of a branch's parts.

    Args:
        branch: A key of `PRUNABLE`.
        module: The branch's module.
        count: How many parts are kept.
        of: How many parts there are.
    """
    skeleton, tensors = _narrow(branch, module, range(count), of)
    small = copy.deepcopy(skeleton)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        target = small.get_submodule(owner)
        setattr(target, leaf, torch.nn.Parameter(tensor.detach().clone()))
        if isinstance(target, torch.nn.Linear):
            target.out_features, target.in_features = target.weight.shape
        elif isinstance(target, torch.nn.Conv1d):
            target.out_channels, target.in_channels, _ = target.weight.shape
    return small


def _narrow(
    branch: str,
    module: torch.nn.Module,
    kept: Sequence[int],
    of: int,
    masked: Masked | None = None,
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A view of the module that expects narrower tensors, and these tensors."""
    masked = masked or Masked({})
    skeleton = copy.copy(module)
    if branch == "mhsa":
        setattr(skeleton, _heads_name(module), heads_of(module) * len(kept) // of)
        if hasattr(module, "compute_att_score"):
            # the standalone transducer's keeps a method that is bound to the original
            skeleton.compute_att_score = skeleton.compute_attention_score
    elif is_ffn(branch):  # no part and no weight owns the activations of others
        rate = module.dropout.p * masked.density * len(kept) / of
        skeleton._modules = dict(module._modules)
        skeleton.dropout = torch.nn.Dropout(rate)
        skeleton.dropout.train(module.training)
    if len(kept) == of:  # all that is not masked stays where it is
        return skeleton, dict(masked.weights)
    tensors = {
        name: select(branch, name, masked.weights.get(name, tensor), kept, of)
        for name, tensor in module.named_parameters()
        if name in _DIMENSIONS[branch] or name in masked.weights
    }
    return skeleton, tensors
