"""The configuration that builds one size: an ordinary ESPnet configuration."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_omnisparse.core.branches import QUARTERS
from espnet_omnisparse.core.layout import (
    LAYER_PRUNABLE,
    expanded,
    is_standalone,
    stock_encoder,
)
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.cut import block_numbers

# options of the encoders that ESPnet's own have not
OURS_ONLY = (
    *("conv_norm", "granularity", "kept", "pattern", "pattern_norm"),
    *("causal", "chunk", "mask_front_end"),
)


def cut_config(config: Mapping[str, Any], spec: SubnetSpec) -> dict[str, Any]:
    """The configuration that builds what `cut_state` cuts.

    It is an ordinary ESPnet configuration: `model: espnet`, unless the model is a
    transducer, and ESPnet's own `encoder` where it can build the size as it is.

    Args:
        config: The supernet's configuration.
        spec: The size.
    """
    small = without_training(config, spec)
    conf = small["encoder_conf"]
    numbers = block_numbers(spec)
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
    if is_stock(config, spec):
        return as_stock(small)
    # what is masked is in the weights; a net trained alone may be ESPnet's own
    small["encoder"] = LAYER_PRUNABLE + stock_encoder(config)
    return _with_kept(small, spec)


def _with_kept(small: dict[str, Any], spec: SubnetSpec) -> dict[str, Any]:
    """A size's configuration, with what its blocks keep."""
    conf = small["encoder_conf"]
    for name in ("granularity", "pattern", "pattern_norm", "mask_front_end"):
        conf.pop(name, None)
    if spec.is_full or spec.space.granularity == "block":
        return small
    widths = _ffn_widths(spec) if is_standalone(small) else None
    if widths is not None:
        for block, width in zip(conf["body_conf"], widths, strict=True):
            block["linear_size"] = block["linear_size"] * width // QUARTERS
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
        counts = {branch: len(row.get(branch, ())) for branch in parts}
        whole = all(counts[branch] == parts[branch] for branch in ("mhsa", "conv"))
        if not whole or counts["ffn1"] != counts["ffn2"] or not counts["ffn1"]:
            return None
        widths.append(counts["ffn1"])
    return widths if spec.space.granularity == "component" else None


def has_stock_shape(config: Mapping[str, Any], spec: SubnetSpec) -> bool:
    """Whether ESPnet's standalone transducer can be as small as a size.

    Args:
        config: An ESPnet configuration.
        spec: The size.
    """
    whole_blocks = spec.is_full or spec.space.granularity == "block"
    small = whole_blocks or _ffn_widths(spec) is not None
    return small and conv_norm_of(config) == "batch_norm"


def without_training(config: Mapping[str, Any], spec: SubnetSpec) -> dict[str, Any]:
    """A configuration that builds the net alone, with what a size has of the decoder.

    Args:
        config: The supernet's configuration, which is left as it is.
        spec: The size.
    """
    small = copy.deepcopy(dict(config))
    if spec.decoder == 0:
        small = without_decoder(small)
    elif spec.decoder is not None:
        small["decoder_conf"]["num_blocks"] = spec.decoder
    # what it was once started from has no part in it any more
    small["init_param"] = []
    for name in ("supernet", "loss_normalization", "mask_decoder"):
        small["model_conf"].pop(name, None)
    if is_standalone(config):
        return small
    # ESPnet's own model has a transducer only where warprnnt_pytorch is installed
    small["model"] = "omni_transducer" if is_transducer(config) else "espnet"
    if stock_encoder(config) == "conformer":  # ours has it by default, ESPnet's not
        small["encoder_conf"].setdefault("macaron_style", True)
    return small


def without_decoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the CTC model that a hybrid one contains."""
    model_conf = {**config["model_conf"], "ctc_weight": 1.0}
    return {**config, "decoder": None, "decoder_conf": {}, "model_conf": model_conf}


def as_stock(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, changed in place to build ESPnet's own encoder."""
    config["encoder"] = stock_encoder(config)
    for name in OURS_ONLY:
        config["encoder_conf"].pop(name, None)
    return config


def is_stock(config: Mapping[str, Any], spec: SubnetSpec) -> bool:
    """Whether ESPnet's own encoder is a size's encoder; zeros do not matter to it.

    Args:
        config: An ESPnet configuration.
        spec: The size.
    """
    if config["encoder_conf"].get("causal"):
        return False
    whole_blocks = spec.is_full or spec.space.granularity == "block"
    return whole_blocks and conv_norm_of(config) == "batch_norm"


def is_transducer(config: Mapping[str, Any]) -> bool:
    """Whether the model of the `asr` task is a transducer."""
    return config.get("decoder") == "transducer"


def conv_norm_of(config: Mapping[str, Any]) -> str:
    """The normalisation in the Conv modules."""
    return config["encoder_conf"].get("conv_norm", "batch_norm")


def token_list_of(tokens: Sequence[str] | str) -> list[str]:
    """The tokens of a configuration, which may name their file.

    Raises:
        UserError: If there is no such file.
    """
    if not isinstance(tokens, str):
        return list(tokens)
    path = Path(tokens)
    if not path.is_file():
        raise UserError(f"{path}, the list of tokens, is not there: restore it.")
    with path.open(encoding="utf-8") as lines:
        return [line.rstrip() for line in lines]  # as ESPnet reads it
