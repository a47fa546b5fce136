"""The tensors of one size: physically small, or in the full net's shape with zeros.

Functions of state dicts; no model is needed.
"""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.components import scatter, select
from espnet_omnisparse.core.decoder import keeps
from espnet_omnisparse.core.layout import (
    MASK_ORDER,
    OWN_PARAMETERS,
    TRAINING_ONLY,
    head_name,
    layout_in,
    locate,
    own_tensor,
    weight_tensors,
)
from espnet_omnisparse.core.mask import group_ranks, weight_mask
from espnet_omnisparse.core.own_parameters import own_tensors
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.errors import UserError

State = dict[str, torch.Tensor]


def cut_state(state: Mapping[str, torch.Tensor], spec: SubnetSpec) -> State:
    """The tensors of one size: what it keeps, its own CTC head, nothing else.

    Masked weights are zero in them, norms and biases those of the size's sparsity.

    Args:
        state: State dict of the supernet, or of the same net trained alone.
        spec: The size.

    Returns:
        State dict of the extracted model; whole blocks that a block-granular spec
        drops are gone and the others renumbered.
    """
    rows, slices = spec.slices, spec.space.slices
    layout = layout_in(state)
    prefix = layout.prefix
    numbers = block_numbers(spec)
    own = own_tensors(_below(OWN_PARAMETERS, state), spec.sparsity)
    own = {own_tensor(name, layout): tensor for name, tensor in own.items()}
    state = {**state, **_masked_weights(state, spec), **own}
    small: State = {}
    for name, tensor in state.items():
        if name.startswith(TRAINING_ONLY) or not keeps(spec.decoder, name):
            continue
        if not name.startswith(prefix):
            small[name] = tensor
            continue
        number, branch, rest = locate(name, layout)
        if number not in numbers or branch not in (*rows[number], None):
            continue
        if branch is not None:
            kept, inner = rows[number][branch], layout.inside(branch, rest)
            tensor = select(branch, inner, tensor, kept, slices[branch])
        small[f"{prefix}{numbers[number]}.{rest}"] = tensor
    head = f"size_ctc.{head_name(spec.name)}."
    for name, tensor in state.items():
        if name.startswith(head):
            small[f"ctc.{name.removeprefix(head)}"] = tensor
    return small


def full_shape_state(
    small: State, full: Mapping[str, torch.Tensor], spec: SubnetSpec
) -> State:
    """The tensors of a size in the full net's shape, its dropped branches zero.

    A branch, or a part of it, whose output projection is zero adds nothing, so a plain
    Conformer computes the size's output. The rest of it is zeroed as well, so that the
    non-zero count is the size's own.

    Args:
        small: What `cut_state` cut, calibrated or not.
        full: The supernet's state dict.
        spec: The size, at branch or component granularity.
    """
    rows, slices = spec.slices, spec.space.slices
    layout = layout_in(full)
    stock: State = {}
    for name, tensor in full.items():
        if name.startswith(TRAINING_ONLY) or not keeps(spec.decoder, name):
            continue
        if not name.startswith(layout.prefix):
            stock[name] = small[name]
            continue
        number, branch, rest = locate(name, layout)
        if name in small:
            stock[name] = small[name]
            if branch is not None:
                kept, inner = rows[number][branch], layout.inside(branch, rest)
                stock[name] = scatter(branch, inner, small[name], kept, slices[branch])
            continue
        # a variance of 0 would divide by the square root of epsilon: harmless, but 1
        # is what an unused BatchNorm has
        fill = torch.ones_like if rest.endswith("running_var") else torch.zeros_like
        stock[name] = fill(tensor)
    return stock


def block_numbers(spec: SubnetSpec) -> dict[int, int]:
    """Block of the supernet -> block of the size."""
    rows = spec.kept_branches
    if spec.space.granularity != "block":
        return {number: number for number in range(len(rows))}
    kept = [number for number, row in enumerate(rows) if row]
    return {number: position for position, number in enumerate(kept)}


def _masked_weights(state: Mapping[str, torch.Tensor], spec: SubnetSpec) -> State:
    """The weights that a spec masks, whole, with their zeros."""
    if not spec.sparsities:
        return {}
    there, pattern = spec.weights, spec.space.pattern
    tensors = weight_tensors(spec.space, state)
    fixed = _below(MASK_ORDER, state)
    found: State = {}
    for name, sparsity in spec.sparsities.items():
        if name not in there:
            continue
        full_name = tensors.get(name)
        weight = state.get(full_name)
        if weight is None:
            raise UserError(
                f"The spec {spec.name!r} masks {name}, which this net has not: use a "
                "spec of the same encoder options."
            )
        ranks = group_ranks(weight, pattern, fixed.get(name))
        keep = weight_mask(ranks, weight.shape, sparsity, pattern)
        found[full_name] = weight.masked_fill(~keep, 0.0)
    return found


def _below(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
