"""What an encoder is, in plain types: its positions, its blocks, their norms."""

from collections.abc import Mapping
from typing import Any

import torch

from espnet_omnisparse.core.branches import is_ffn
from espnet_omnisparse.core.components import heads_of
from espnet_omnisparse.core.layout import Layout, layout_of
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.modules import (
    activation_of,
    epsilon_of,
    name_of,
    weight_of,
)

# ESPnet's class of positions -> whether they are added to the frames
_ADDED = {
    "PositionalEncoding": True,
    "ScaledPositionalEncoding": True,
    "RelPositionalEncoding": False,
    "LegacyRelPositionalEncoding": False,
    "NoneType": False,
}

# ESPnet's class of attention -> its relative positions
_RELATIVE = {
    "RelPositionMultiHeadedAttention": "relative",
    "LegacyRelPositionMultiHeadedAttention": "legacy",
}
# in which the parts of any block are computed
_ORDER = ("ffn1", "merge", "mhsa", "conv", "ffn2")

Told = dict[str, Any]


def describe_encoder(model: Any, config: Mapping[str, Any]) -> Told:
    """The blocks behind the front end, in the order of computation.

    Args:
        model: With an encoder of this package or of ESPnet.
        config: The configuration that it was built with.

    Returns:
        Plain types, as `docs/devices.md` explains them.

    Raises:
        UserError: If the encoder has a part that no packed file can have.
    """
    encoder, layout = model.encoder, layout_of(config)
    block_modules = encoder.get_submodule(layout.blocks)
    attention = layout.parts["mhsa"][1]
    found = (getattr(block, attention, None) for block in block_modules)
    relative = {_relative(module) for module in found if module is not None}
    blocks = [_block(model, block, layout) for block in block_modules]
    last = getattr(encoder, "after_norm", None)
    if last is None:
        last = encoder.encoders.norm_blocks
    pre_norms = {
        branch["norm"]
        for block in blocks
        for one in block["branches"]
        for branch in one.get("sides", [one])
    }
    names = {*pre_norms, *(block["norm"] for block in blocks), name_of(model, last)}
    epsilons = {epsilon_of(model.get_submodule(name)) for name in names - {None}}
    if len(epsilons) > 1 or len(relative) > 1:
        raise UserError("A model whose blocks are not of one kind cannot be exported.")
    chunk = getattr(encoder, "chunk", None)
    return {
        "width": getattr(encoder, "width", None) or encoder.output_size(),
        "causal": bool(getattr(encoder, "causal", False)),
        "chunk": None if chunk is None else {"size": chunk.size, "left": chunk.left},
        **_positions(encoder, next(iter(relative), None)),
        "blocks": blocks,
        "norm": name_of(model, last),
        "norm_eps": epsilons.pop(),
    }


def input_scale(encoder: Any) -> float:
    """By what the front end's output is multiplied.

    Args:
        encoder: Of ESPnet or this package.
    """
    positions = getattr(encoder.embed, "pos_enc", None)
    if type(positions).__name__ == "ScaledPositionalEncoding":
        return 1.0  # it has the attribute and makes no use of it
    return float(getattr(positions, "xscale", 1.0))


def _positions(encoder: Any, relative: str | None) -> Told:
    """Which positions an encoder's frames have.

    Args:
        encoder: Of ESPnet or this package.
        relative: What `_relative` tells of its attentions.
    """
    encoding = getattr(encoder.embed, "pos_enc", None)
    name = type(encoding).__name__
    if relative == "legacy":
        return {"positions": relative, "position_count": encoding.pe.size(1)}
    if relative is not None:
        return {"positions": relative}
    if name not in _ADDED:
        raise UserError(
            f"The positions {name} cannot be exported: train with pos_enc_layer_type: "
            "rel_pos or abs_pos."
        )
    if not _ADDED[name]:
        return {"positions": "none"}
    scaled = name == "ScaledPositionalEncoding"
    scale = encoding.alpha.item() if scaled else 1.0
    return {"positions": "absolute", "position_scale": scale}


def _relative(attention: Any) -> str | None:
    """Which relative positions an attention takes, if any."""
    name = type(attention).__name__
    if name in _RELATIVE:
        if getattr(attention, "zero_triu", False):
            raise UserError("A model with zero_triu cannot be exported.")
        return _RELATIVE[name]
    if name == "MultiHeadedAttention":
        if not isinstance(attention.q_norm, torch.nn.Identity):
            raise UserError("A model with qk_norm cannot be exported.")
        return None
    raise UserError(
        f"The attention {name} cannot be exported: train with relative or absolute "
        "positions."
    )


def _block(model: Any, block: torch.nn.Module, layout: Layout) -> Told:
    """A block as a list of what is added to its input, one after the other."""
    found = {
        branch: _branch(model, block, branch, getattr(block, norm), module)
        for branch, (norm, name) in layout.parts.items()
        if (module := getattr(block, name, None)) is not None
    }
    if layout.sides:
        sides = [found.pop(side) for side in layout.sides if side in found]
        found["merge"] = _merge(model, block, sides)
    norm = getattr(block, "norm_final", None)
    named = norm is not None and not isinstance(norm, torch.nn.Identity)
    return {
        "branches": [found[branch] for branch in _ORDER if branch in found],
        "norm": name_of(model, norm) if named else None,
    }


def _branch(
    model: Any,
    block: torch.nn.Module,
    branch: str,
    norm: torch.nn.Module,
    module: Any,
) -> Told:
    """A branch: its pre-norm, its module, and what their tensors do not tell."""
    told = {
        "kind": "ffn" if is_ffn(branch) else branch,
        "scale": _ffn_scale(block) if is_ffn(branch) else 1.0,
        "norm": name_of(model, norm),
        "module": name_of(model, module),
    }
    if branch == "mhsa":
        return told | {"heads": heads_of(module), "head_width": module.d_k}
    if branch == "conv":
        return told | _conv(module)
    if branch == "cgmlp":
        return told | _gating(module)
    if not isinstance(getattr(module, "w_1", None), torch.nn.Linear):
        raise UserError(
            "Feed-forward modules of convolutions cannot be exported: train with "
            "positionwise_layer_type: linear."
        )
    return told | {"activation": activation_of(module.activation)}


def _ffn_scale(block: torch.nn.Module) -> float:
    """The residual scale of a block's FFNs, under the names that ESPnet has for it."""
    names = ("ff_scale", "feed_forward_scale")
    return next((getattr(block, name) for name in names if hasattr(block, name)), 1.0)


def _conv(module: Any) -> Told:
    norm = module.norm
    batch = isinstance(norm, torch.nn.BatchNorm1d)
    return {
        "kernel": module.depthwise_conv.kernel_size[0],
        "activation": activation_of(module.activation),
        "conv_norm": "batch_norm" if batch else "layer_norm",
        "norm_eps": norm.eps if batch else epsilon_of(norm.channels),
    }


def _gating(module: Any) -> Told:
    unit = module.csgu
    return {
        "activation": activation_of(module.channel_proj1[1]),
        "kernel": unit.conv.kernel_size[0],
        "linear": unit.linear is not None,
        "gate_activation": activation_of(unit.act),
        "norm_eps": epsilon_of(unit.norm),
    }


def _merge(model: Any, block: Any, sides: list[Told]) -> Told:
    """What merges the sides of a block; of one without sides a bias is left."""
    told = {
        "kind": "merge",
        "scale": 1.0,
        "sides": sides,
        "projection": weight_of(model, block.merge_proj),
    }
    if not sides:
        return told
    fusion = block.depthwise_conv_fusion
    return told | {"kernel": fusion.kernel_size[0], "fusion": weight_of(model, fusion)}
