"""Extraction: a size as tensors and a configuration of its own, physically small.

Both the supernet and what is extracted are described by an ESPnet configuration and a
state dict, so extraction is a function from pairs to pairs and needs no model.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from espnet_omnisparse.core.components import (
    ASR_LAYOUT,
    BRANCHES,
    FFN_CHUNKS,
    TRANSDUCER_LAYOUT,
    Layout,
    scatter,
    select,
)
from espnet_omnisparse.core.mask import (
    DEFAULT_PATTERN,
    Pattern,
    group_ranks,
    weight_mask,
)
from espnet_omnisparse.core.subnet import SearchSpace, SubnetSpec
from espnet_omnisparse.errors import UserError

State = dict[str, torch.Tensor]
_TRAINING_ONLY = ("supernet.", "size_ctc.")
_STOCK_HEADS = 4  # ESPnet's default
_OURS_ONLY = (
    *("conv_norm", "granularity", "kept", "pattern", "pattern_norm"),
    *("causal", "chunk"),
)
_POSITIONS = "linear_pos.weight"


def space_of(config: Mapping[str, Any], state: Mapping[str, Any]) -> SearchSpace:
    """What can be pruned in the net that a configuration and its tensors describe."""
    prefix = _blocks(layout_of(config))
    blocks = {
        name.removeprefix(prefix).split(".")[0]
        for name in state
        if name.startswith(prefix)
    }
    conf = config["encoder_conf"]
    if is_standalone(config):
        heads = conf["body_conf"][0].get("heads", _STOCK_HEADS)
    else:
        heads = conf.get("attention_heads", _STOCK_HEADS)
    masked = config.get("encoder") == "omni_sparse_conformer"
    pattern = conf.get("pattern", DEFAULT_PATTERN if masked else None)
    return SearchSpace(
        len(blocks),
        conf.get("granularity", "branch"),
        heads,
        (
            None
            if pattern is None
            else Pattern.parse(pattern, conf.get("pattern_norm", "l1"))
        ),
        any(name.endswith(_POSITIONS) for name in state),
    )


def expanded(body_conf: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A configuration for each block, as ESPnet reads `num_blocks`.

    >>> expanded([{"linear_size": 8, "num_blocks": 2}, {"linear_size": 4}])
    [{'linear_size': 8}, {'linear_size': 8}, {'linear_size': 4}]
    """
    blocks = []
    for block in body_conf:
        one = {name: value for name, value in block.items() if name != "num_blocks"}
        blocks += [dict(one) for _ in range(block.get("num_blocks") or 1)]
    return blocks


def is_standalone(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of the standalone transducer's task."""
    return "body_conf" in config["encoder_conf"]


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Where the model of a configuration keeps its blocks."""
    return TRANSDUCER_LAYOUT if is_standalone(config) else ASR_LAYOUT


def _blocks(layout: Layout) -> str:
    return f"encoder.{layout.blocks}."


def _layout_in(state: Mapping[str, Any]) -> Layout:
    """The layout that the names of tensors show."""
    prefix = _blocks(TRANSDUCER_LAYOUT)
    standalone = any(name.startswith(prefix) for name in state)
    return TRANSDUCER_LAYOUT if standalone else ASR_LAYOUT


def cut_state(state: Mapping[str, torch.Tensor], spec: SubnetSpec) -> State:
    """The tensors of one size: kept branches, its own CTC head, nothing else.

    Masked weights are zero in them.

    Args:
        state: State dict of the supernet, or of the same net trained alone.
        spec: The size.

    Returns:
        State dict of the extracted model; whole blocks that a block-granular spec
        drops are gone and the others renumbered.
    """
    rows, parts = spec.kept, spec.space.parts
    layout = _layout_in(state)
    prefix = _blocks(layout)
    numbers = _block_numbers(spec)
    state = {**state, **_masked_weights(state, spec)}
    small: State = {}
    for name, tensor in state.items():
        if name.startswith(_TRAINING_ONLY):
            continue
        if not name.startswith(prefix):
            small[name] = tensor
            continue
        number, branch, rest = _locate(name, layout)
        if number not in numbers or branch not in (*rows[number], None):
            continue
        if branch is not None:
            inner = rest.split(".", 1)[1]
            tensor = select(branch, inner, tensor, rows[number][branch], parts[branch])
        small[f"{prefix}{numbers[number]}.{rest}"] = tensor
    head = f"size_ctc.{head_name(spec.name)}."
    for name, tensor in state.items():
        if name.startswith(head):
            small[f"ctc.{name.removeprefix(head)}"] = tensor
    return small


def cut_config(config: Mapping[str, Any], spec: SubnetSpec) -> dict[str, Any]:
    """The configuration that builds what `cut_state` cuts.

    It is an ordinary ESPnet configuration: `model: espnet`, unless the model is a
    transducer, and `encoder: conformer` where stock ESPnet can build the size as it is.
    """
    small = _without_training(config)
    conf = small["encoder_conf"]
    numbers = _block_numbers(spec)
    conf.pop("chunk", None)
    if spec.chunk is not None:
        conf["chunk"] = spec.chunk.as_dict()
    if is_standalone(config):
        body = expanded(conf["body_conf"])
        conf["body_conf"] = [body[number] for number in numbers]
        return _with_kept(small, spec)
    conf["num_blocks"] = len(numbers)
    for name in ("stochastic_depth_rate", "layer_drop_rate", "interctc_layer_idx"):
        # nothing, in a spelling that may have the number of the blocks
        conf.pop(name, None)
    if _is_conformer(config, spec):
        return _as_conformer(small)
    # what is masked is in the weights; a net trained alone may be ESPnet's own
    small["encoder"] = "layer_prunable_conformer"
    return _with_kept(small, spec)


def _with_kept(small: dict[str, Any], spec: SubnetSpec) -> dict[str, Any]:
    """A size's configuration, with what its blocks keep."""
    conf = small["encoder_conf"]
    for name in ("granularity", "pattern", "pattern_norm"):
        conf.pop(name, None)
    if spec.is_full or spec.space.granularity == "block":
        return small
    widths = _ffn_widths(spec) if is_standalone(small) else None
    if widths is not None:
        for block, width in zip(conf["body_conf"], widths, strict=True):
            block["linear_size"] = block["linear_size"] * width // FFN_CHUNKS
        return small
    conf["kept"] = [list(row) for row in spec.kept_branches]
    if spec.space.granularity == "component":
        conf["kept"] = [{b: len(kept) for b, kept in row.items()} for row in spec.kept]
    return small


def _ffn_widths(spec: SubnetSpec) -> list[int] | None:
    """The chunks that both FFNs of each block keep, if nothing else is dropped.

    ESPnet's standalone transducer has a width per block for both of its FFNs.
    """
    parts = spec.space.parts
    widths = []
    for row in spec.kept:
        counts = {branch: len(row.get(branch, ())) for branch in BRANCHES}
        whole = all(counts[branch] == parts[branch] for branch in ("mhsa", "conv"))
        if not whole or counts["ffn1"] != counts["ffn2"] or not counts["ffn1"]:
            return None
        widths.append(counts["ffn1"])
    return widths if spec.space.granularity == "component" else None


def loads_in_stock(config: Mapping[str, Any], spec: SubnetSpec) -> bool:
    """Whether an ESPnet without this package builds the small form itself."""
    if is_standalone(config):
        return spec.chunk is None and _has_stock_shape(config, spec)
    return _is_conformer(config, spec) and not _is_transducer(config)


def _has_stock_shape(config: Mapping[str, Any], spec: SubnetSpec) -> bool:
    """Whether ESPnet's standalone transducer can be as small as a size."""
    whole_blocks = spec.is_full or spec.space.granularity == "block"
    small = whole_blocks or _ffn_widths(spec) is not None
    return small and _conv_norm(config) == "batch_norm"


def stock_state(small: State, full: Mapping[str, torch.Tensor], spec: SubnetSpec):
    """The tensors of a size in the full net's shape, its dropped branches zero.

    A branch, or a part of it, whose output projection is zero adds nothing, so a plain
    Conformer computes the size's output. The rest of it is zeroed as well, so that the
    non-zero count is the size's own.

    Args:
        small: What `cut_state` cut, calibrated or not.
        full: The supernet's state dict.
        spec: The size, at branch or component granularity.
    """
    rows, parts = spec.kept, spec.space.parts
    layout = _layout_in(full)
    stock: State = {}
    for name, tensor in full.items():
        if name.startswith(_TRAINING_ONLY):
            continue
        if not name.startswith(_blocks(layout)):
            stock[name] = small[name]
            continue
        number, branch, rest = _locate(name, layout)
        if name in small:
            stock[name] = small[name]
            if branch is not None:
                kept, inner = rows[number][branch], rest.split(".", 1)[1]
                stock[name] = scatter(branch, inner, small[name], kept, parts[branch])
            continue
        # a variance of 0 would divide by the square root of epsilon: harmless, but 1
        # is what an unused BatchNorm has
        fill = torch.ones_like if rest.endswith("running_var") else torch.zeros_like
        stock[name] = fill(tensor)
    return stock


def stock_form(
    config: Mapping[str, Any],
    small: State,
    full: Mapping[str, torch.Tensor],
    spec: SubnetSpec,
) -> tuple[dict[str, Any], State]:
    """Configuration and tensors that an ESPnet without this package loads.

    Args:
        config: The supernet's.
        small: What `cut_state` cut, calibrated or not.
        full: The supernet's state dict.
        spec: The size.

    Raises:
        UserError: As in `stock_config`.
    """
    stock = stock_config(config, spec)
    if is_small_in_stock(config, spec):
        return stock, small
    return stock, stock_state(small, full, spec)


def is_small_in_stock(config: Mapping[str, Any], spec: SubnetSpec) -> bool:
    """Whether the stock form of a size is physically small, not full with zeros."""
    if is_standalone(config):
        return _has_stock_shape(config, spec)
    return loads_in_stock(config, spec)


def stock_config(config: Mapping[str, Any], spec: SubnetSpec) -> dict[str, Any]:
    """The configuration that loads `stock_state` in an ESPnet without this package.

    Raises:
        UserError: If the Conv modules have LayerNorm, which stock ESPnet has not, or
            the model is a transducer, for which it needs more than itself.
    """
    if _is_transducer(config):
        raise UserError(
            "A transducer has no form that stock ESPnet loads, whose own needs "
            "warprnnt_pytorch: extract without --stock."
        )
    if _conv_norm(config) != "batch_norm":
        raise UserError(
            "A size with encoder_conf.conv_norm: layer_norm has no form that stock "
            "ESPnet loads: train with batch_norm, or extract without --stock."
        )
    if is_standalone(config):
        small = _without_training(config)
        if _has_stock_shape(config, spec):
            small = cut_config(config, spec)
        for name in _OURS_ONLY:
            small["encoder_conf"].pop(name, None)
        return small
    if config["encoder_conf"].get("causal"):
        raise UserError(
            "A size with encoder_conf.causal: true has no form that stock ESPnet "
            "loads, whose own Conformer is not causal: extract without --stock."
        )
    if loads_in_stock(config, spec):
        return cut_config(config, spec)
    return _as_conformer(_without_training(config))


def head_name(size: str) -> str:
    """Key of a size's own CTC head; the prefix keeps `half` from being a method."""
    return f"ctc_{size}"


def unit_magnitudes(
    state: Mapping[str, torch.Tensor], space: SearchSpace
) -> torch.Tensor:
    """Root mean square of the weight matrices of each unit `[units]`.

    Args:
        state: State dict of the full net's encoder.
        space: Its units.
    """
    state = {f"encoder.{name}": tensor for name, tensor in state.items()}
    layout = _layout_in(state)
    squares = dict.fromkeys(space.units, 0.0)
    counts = dict.fromkeys(space.units, 0)
    for name, tensor in state.items():
        # an attention's positional biases are matrices as well, but no weights
        if tensor.dim() < 2 or not name.startswith(_blocks(layout)):
            continue
        if not name.endswith(".weight"):
            continue
        number, branch, rest = _locate(name, layout)
        if branch is None:
            continue
        for part in range(space.parts[branch]):
            inner = rest.split(".", 1)[1]
            mine = select(branch, inner, tensor, [part], space.parts[branch])
            unit = space.unit(number, branch, part)
            squares[unit] += float(mine.square().sum())
            counts[unit] += mine.numel()
    return torch.tensor([(squares[u] / counts[u]) ** 0.5 for u in space.units])


def _locate(name: str, layout: Layout) -> tuple[int, str | None, str]:
    """Block, branch (`None`: the block's own) and name within the block of a tensor."""
    number, rest = name.removeprefix(_blocks(layout)).split(".", 1)
    return int(number), layout.branch_of(rest), rest


def _block_numbers(spec: SubnetSpec) -> dict[int, int]:
    """Block of the supernet -> block of the size."""
    rows = spec.kept_branches
    if spec.space.granularity != "block":
        return {number: number for number in range(len(rows))}
    kept = [number for number, row in enumerate(rows) if row]
    return {number: position for position, number in enumerate(kept)}


def _masked_weights(state: Mapping[str, torch.Tensor], spec: SubnetSpec) -> State:
    """The weights that a spec masks, whole, with their zeros."""
    rows, pattern = spec.kept, spec.space.pattern
    layout = _layout_in(state)
    found: State = {}
    for name, sparsity in spec.sparsities.items():
        block, branch, layer = name.split(".")
        if branch not in rows[int(block)]:
            continue
        module = layout.parts[branch][1]
        full_name = f"{_blocks(layout)}{block}.{module}.{layer}.weight"
        weight = state.get(full_name)
        # a pointwise convolution's has a third dimension of 1
        if weight is None or weight.dim() < 2 or weight[0, 0].numel() != 1:
            raise UserError(
                f"The spec {spec.name!r} masks {name}, which is no linear layer of "
                "this net: use a spec of the same encoder options."
            )
        keep = weight_mask(
            group_ranks(weight, pattern), weight.shape, sparsity, pattern
        )
        found[full_name] = weight.masked_fill(~keep, 0.0)
    return found


def _without_training(config: Mapping[str, Any]) -> dict[str, Any]:
    small = copy.deepcopy(dict(config))
    # what it was once started from has no part in it any more
    small["init_param"] = []
    for name in ("supernet", "loss_normalization"):
        small["model_conf"].pop(name, None)
    if is_standalone(config):
        return small
    # ESPnet's own model has a transducer only where warprnnt_pytorch is installed
    small["model"] = "omni_transducer" if _is_transducer(config) else "espnet"
    small["encoder_conf"]["macaron_style"] = True
    return small


def _as_conformer(config: dict[str, Any]) -> dict[str, Any]:
    config["encoder"] = "conformer"
    for name in _OURS_ONLY:
        config["encoder_conf"].pop(name, None)
    return config


def _is_conformer(config: Mapping[str, Any], spec: SubnetSpec) -> bool:
    """Whether ESPnet's Conformer is a size's encoder; zeros do not matter to it."""
    if config["encoder_conf"].get("causal"):
        return False
    whole_blocks = spec.is_full or spec.space.granularity == "block"
    return whole_blocks and _conv_norm(config) == "batch_norm"


def _is_transducer(config: Mapping[str, Any]) -> bool:
    return config.get("decoder") == "transducer"


def _conv_norm(config: Mapping[str, Any]) -> str:
    return config["encoder_conf"].get("conv_norm", "batch_norm")
