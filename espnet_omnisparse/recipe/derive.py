"""A supernet's configuration, derived from that of an ordinary ESPnet training."""

from collections.abc import Mapping
from typing import Any

from espnet_omnisparse.core.layout import (
    ASR_LAYOUT,
    LAYER_PRUNABLE,
    OMNI_SPARSE,
    is_standalone,
)
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.options import CRITERION, supernet_section

#: Axis -> what the names of its encoders begin with, before the stock's.
ENCODERS = {"layer": LAYER_PRUNABLE, "weight": OMNI_SPARSE}
#: Axis -> the section that makes a training a supernet's.
SUPERNETS: Mapping[str, Mapping[str, Any]] = {
    "layer": {"method": "simple_topk", "sizes": {"small": 0.33, "medium": 0.67}},
    "weight": {
        "sizes": {
            "s50": {"sparsity": 0.5},
            "s70": {"sparsity": 0.7},
            "s80": {"sparsity": 0.8},
            "s90": {"sparsity": 0.9},
        },
        "sparsity": {
            "final": 0.9,
            "ramp": 0.3,
            "settle": 0.35,
            "own": "norms_and_biases",
            "sandwich": ["dense", "sparsest", "sparsest", "size"],
        },
        "update": "split_batch",
        "subnet_weight": 1.0,
        "warm_start": 0.3,
    },
}
# of the stock's blocks; the supernet has layer dropout of its own
_OF_STOCK_BLOCKS = ("stochastic_depth_rate", "layer_drop_rate")
# losses within the encoder; each subnet is a shorter encoder with a loss of its own
_INTERMEDIATE_CTC = {
    "encoder_conf": ("interctc_layer_idx", "interctc_use_conditioning", "ctc_trim"),
    "model_conf": ("interctc_weight", "aux_ctc"),
}
_CTC_WEIGHT = 0.3  # what ESPnet's recipes have beside attention or a transducer


def derive(config: Mapping[str, Any], axis: str) -> dict[str, Any]:
    """Makes a supernet's configuration of an ordinary one.

    What is not named here stays: data, features, decoder, optimiser, scheduler. So does
    the scale of the loss (`loss_normalization: batch` is ESPnet's), for which clipping
    and rates were chosen. Intermediate CTC is left out, and a model without CTC gets
    one, by which subnets are taught.

    Args:
        config: Of a training of the task `asr` or `asr_transducer`.
        axis: `layer` or `weight`.

    Returns:
        The configuration; `config` is left as it is.

    Raises:
        UserError: If the model has no supernet of this kind.
    """
    return _trained(derive_model(config, axis))


def derive_model(config: Mapping[str, Any], axis: str) -> dict[str, Any]:
    """The part of `derive` that concerns the model, whoever trains it.

    Args:
        config: A configuration, or the section `model` of one of ESPnet3.
        axis: `layer` or `weight`.

    Returns:
        The configuration; `config` is left as it is.

    Raises:
        UserError: If the model has no supernet of this kind.
    """
    if supernet_section(config):
        raise UserError("It trains a supernet already: use it as it is.")
    if not is_standalone(config):
        _check_model(config)
        encoder = _encoder(config, axis)
        return _supernet(_with_ctc_at_its_end(config), SUPERNETS[axis], encoder)
    derived = _supernet(config, SUPERNETS[axis])
    if axis == "weight":
        derived["encoder_conf"]["pattern"] = "8x1"
    return derived


def with_supernet(
    config: Mapping[str, Any], supernet: Mapping[str, Any], encoder: str | None = None
) -> dict[str, Any]:
    """The configuration that trains a supernet and is the same in all else.

    Args:
        config: An ordinary one.
        supernet: The section of that name.
        encoder: Of the task `asr`: the one in place of its own.
    """
    return _trained(_supernet(config, supernet, encoder))


def _trained(derived: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what ESPnet2's trainer needs for a supernet."""
    kept = {key: value for key, value in derived.items() if key != "patience"}
    return kept | {
        "best_model_criterion": [CRITERION],
        "num_att_plot": 0,  # a pass has the attention of several subnets
    }


def _supernet(
    config: Mapping[str, Any], supernet: Mapping[str, Any], encoder: str | None = None
) -> dict[str, Any]:
    derived = dict(config)
    encoder_conf = dict(config.get("encoder_conf") or {})
    if encoder is not None:
        derived |= {"encoder": encoder, "model": "omni"}
        if config.get("encoder") == ASR_LAYOUT.stock:
            # ESPnet's default, not ours
            encoder_conf.setdefault("macaron_style", False)
        for name in _OF_STOCK_BLOCKS:
            encoder_conf.pop(name, None)
    model_conf = {
        **(config.get("model_conf") or {}),
        # the scale for which the rate and clipping were chosen
        "loss_normalization": "batch",
        "supernet": dict(supernet),
    }
    return derived | {"encoder_conf": encoder_conf, "model_conf": model_conf}


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys that a derived configuration has changed, one of a section as `a.b`.

    Args:
        before: The ordinary configuration.
        after: What `derive` made of it.

    >>> changed_keys({"a": 1, "b": {"c": 2}, "p": 3}, {"a": 1, "b": {"c": 2, "d": 4}})
    ['b.d', 'p (left out)']
    """
    changed = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if key not in after:
            changed.append(f"{key} (left out)")
        elif isinstance(new, Mapping) and isinstance(old, Mapping | None):
            inner = changed_keys(old or {}, new)
            changed += [f"{key}.{one}" for one in inner if key not in _WHOLE]
            changed += [key] if key in _WHOLE and inner else []
        elif old != new:
            changed.append(key)
    return changed


# sections that are told as one
_WHOLE = ("supernet",)


def _encoder(config: Mapping[str, Any], axis: str) -> str:
    from espnet_omnisparse.tasks import encoder_choices  # slow

    given = config.get("encoder", "rnn")  # ESPnet's default
    start = ENCODERS[axis]
    name = start + given
    if name not in encoder_choices.classes:
        known = [
            other.removeprefix(start)
            for other in encoder_choices.classes
            if other.startswith(start)
        ]
        raise UserError(
            f"Its encoder is {given}, which cannot be pruned: name a configuration "
            f"with one of {', '.join(known)}."
        )
    return name


def _with_ctc_at_its_end(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with one CTC loss, which is that of the encoder's output."""
    changed = dict(config)
    for section, names in _INTERMEDIATE_CTC.items():
        conf = dict(config.get(section) or {})
        changed[section] = {k: v for k, v in conf.items() if k not in names}
    if changed["model_conf"].get("ctc_weight") == 0.0:
        changed["model_conf"]["ctc_weight"] = _CTC_WEIGHT
    return changed


def _check_model(config: Mapping[str, Any]) -> None:
    model = config.get("model", "espnet")
    if model != "espnet":
        raise UserError(
            f"Its model is {model}, of which there is no supernet: name a "
            "configuration with model: espnet."
        )
    if postencoder := config.get("postencoder"):
        raise UserError(
            f"Its postencoder is {postencoder}, which a supernet cannot have: name a "
            "configuration without one."
        )
