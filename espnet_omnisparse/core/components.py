"""Components: the parts by which a branch of a block can be narrowed.

An FFN is divided into chunks of its hidden channels, an attention into its heads, and a
cgMLP into chunks of its gated channels; a Conv is one part. Dropping a part removes the
same hidden units from every tensor that has them: a chunk's rows of the first weight
and its columns of the second. What is left is the narrower module: the LayerNorm in a
cgMLP knows nothing of channels that are dropped.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import functional_call

from espnet_omnisparse.core.branches import MERGE, is_ffn


class _Axis(NamedTuple):
    """Along which dimension of a tensor the parts lie, one after the other.

    Attributes:
        dimension: The dimension.
        runs: How often all of them do.
    """

    dimension: int
    runs: int = 1


_OUT, _IN = (_Axis(0),), (_Axis(1),)
# module's tensor -> where the parts lie
_FFN = {"w_1.weight": _OUT, "w_1.bias": _OUT, "w_2.weight": _IN}
_MHSA = {
    **dict.fromkeys(("linear_q.weight", "linear_q.bias"), _OUT),
    **dict.fromkeys(("linear_k.weight", "linear_k.bias"), _OUT),
    **dict.fromkeys(("linear_v.weight", "linear_v.bias"), _OUT),
    **dict.fromkeys(("linear_pos.weight", "pos_bias_u", "pos_bias_v"), _OUT),
    "linear_out.weight": _IN,
}
_CGMLP = {
    # the channels that are gated, then those that the gates are made of
    **dict.fromkeys(("channel_proj1.0.weight", "channel_proj1.0.bias"), (_Axis(0, 2),)),
    **dict.fromkeys(("csgu.norm.weight", "csgu.norm.bias"), _OUT),
    **dict.fromkeys(("csgu.conv.weight", "csgu.conv.bias"), _OUT),
    "csgu.linear.weight": (*_OUT, *_IN),
    "csgu.linear.bias": _OUT,
    "channel_proj2.weight": _IN,
}
_MERGE = {
    "depthwise_conv_fusion.weight": _OUT,
    "depthwise_conv_fusion.bias": _OUT,
    "merge_proj.weight": _IN,
}
_AXES = {
    "ffn1": _FFN,
    "mhsa": _MHSA,
    "conv": {},
    "cgmlp": _CGMLP,
    "ffn2": _FFN,
    MERGE: _MERGE,
}
_OUTPUTS = {
    "ffn1": "w_2",
    "mhsa": "linear_out",
    "cgmlp": "channel_proj2",
    "ffn2": "w_2",
}
_CLOSED = 1e-6  # gates that add up to less


@dataclass(frozen=True)
class Masked:
    """The weights of a branch's module, or of a merge, that are not its own.

    Attributes:
        weights: Name inside the module -> the weight, zero where it is masked; of a
            merge, in the block.
        density: Share of the branch's weights that is not masked.
    """

    weights: Mapping[str, torch.Tensor]
    density: float = 1.0


class _GatedNorm(torch.nn.Module):
    """A LayerNorm to whose statistics each channel counts as much as it is open.

    Args:
        norm: The norm of `[..., channels]`.
        gates: `[channels]`; zeros and ones give the norm of the channels with a one.
    """

    def __init__(self, norm: torch.nn.LayerNorm, gates: torch.Tensor):
        super().__init__()
        self._norm = norm
        total = gates.sum()
        # where nothing is open nothing comes out, but its gradient tells what would
        shares = gates / total.clamp(min=_CLOSED)
        self._shares = torch.where(total > _CLOSED, shares, 1.0 / gates.numel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `[..., channels]`."""
        mean = (x * self._shares).sum(-1, keepdim=True)
        x = x - mean
        variance = (x.square() * self._shares).sum(-1, keepdim=True)
        scaled = x * torch.rsqrt(variance + self._norm.eps)
        return scaled * self._norm.weight + self._norm.bias


def is_divided(branch: str, name: str) -> bool:
    """Whether the parts of a branch, or the sides of a merge, divide a tensor.

    Args:
        branch: A key of `PRUNABLE`, or `MERGE`.
        name: The tensor's name inside the branch's module; of a merge, in the block.
    """
    return name in _AXES[branch]


def select(
    branch: str, name: str, tensor: torch.Tensor, kept: Sequence[int], of: int
) -> torch.Tensor:
    """What the kept parts of a branch, or sides of a merge, have of one of its tensors.

    Args:
        branch: A key of `PRUNABLE`, or `MERGE`.
        name: The tensor's name inside the branch's module; of a merge, in the block.
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
    if len(kept) == of:
        return tensor
    for dimension, runs in _AXES[branch].get(name, ()):
        pieces = tensor.tensor_split(runs * of, dimension)
        chosen = [pieces[number] for number in _pieces(kept, of, runs)]
        tensor = torch.cat(chosen, dimension)
    return tensor


def scatter(
    branch: str, name: str, small: torch.Tensor, kept: Sequence[int], of: int
) -> torch.Tensor:
    """The inverse of `select`: the whole tensor, zero where nothing is kept.

    Args:
        branch: A key of `PRUNABLE`, or `MERGE`.
        name: The tensor's name inside the branch's module; of a merge, in the block.
        small: The narrower tensor.
        kept: Numbers of the kept parts, ascending.
        of: How many parts there are.
    """
    if len(kept) == of:
        return small
    for dimension, runs in _AXES[branch].get(name, ()):
        pieces = small.tensor_split(runs * len(kept), dimension)
        chosen = dict(zip(_pieces(kept, of, runs), pieces, strict=True))
        empty = torch.zeros_like(pieces[0])
        every = [chosen.get(number, empty) for number in range(runs * of)]
        small = torch.cat(every, dimension)
    return small


def _pieces(kept: Sequence[int], of: int, runs: int) -> list[int]:
    """Numbers of the kept parts where all of them lie so often one after the other."""
    return [run * of + part for run in range(runs) for part in kept]


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
    for name, whole in module.named_parameters():
        if _Axis(1) in _AXES[branch].get(name, ()):
            columns = gates.repeat_interleave(whole.size(1) // parts)
            # of a convolution at every place of its window
            columns = columns.view(-1, *[1] * (whole.dim() - 2))
            tensors[name] = tensors.get(name, whole) * columns
    bias = f"{_OUTPUTS[branch]}.bias"
    tensors[bias] = module.get_parameter(bias) * gates.amax()
    if branch == "cgmlp":
        norm = skeleton.csgu.norm
        columns = gates.repeat_interleave(norm.weight.numel() // parts)
        skeleton.csgu.norm = _GatedNorm(norm, columns)
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
            target.out_channels, inputs, _ = target.weight.shape
            target.in_channels = target.groups * inputs
    return small


def joins_parts(branch: str, module: torch.nn.Module) -> bool:
    """Whether a weight leads from each part of a branch to each other.

    Args:
        branch: A key of `PRUNABLE`.
        module: The branch's module.
    """
    names = (name for name, _ in module.named_parameters())
    return any(len(_AXES[branch].get(name, ())) > 1 for name in names)


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
    elif branch == "cgmlp":
        csgu = _own_view(skeleton, "csgu")
        norm, conv = _own_view(csgu, "norm"), _own_view(csgu, "conv")
        channels = conv.groups * len(kept) // of
        norm.normalized_shape = (channels,)
        conv.in_channels = conv.out_channels = conv.groups = channels
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
        if name in _AXES[branch] or name in masked.weights
    }
    return skeleton, tensors


def _own_view(view: torch.nn.Module, name: str) -> torch.nn.Module:
    """Makes a submodule of a view a view as well: of the same tensors."""
    view._modules = dict(view._modules)
    view._modules[name] = copy.copy(view._modules[name])
    return view._modules[name]
