"""The configuration of the supernet that a model becomes, made of the model's own."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_omnisparse.core.layout import has_ctc_alone
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.repair import own_options
from espnet_omnisparse.recipe.derive import with_supernet
from espnet_omnisparse.shrink.encoders import axes_of
from espnet_omnisparse.shrink.original import Original
from espnet_omnisparse.shrink.sizes import SPARSITY

#: How the text is spelt is the model's own.
_TEXT = (
    *("token_list", "token_type", "bpemodel", "cleaner", "g2p"),
    "non_linguistic_symbols",
)
#: Epochs of a run whose length is given in updates.
_EPOCHS = 10
_WARM_UP = 0.1
#: Highest rate against the original's. With half of it sizes of 70 % zeros and more are
#: worse (measured); for branches that was not compared.
_PEAK_OF_LAYERS, _PEAK_OF_ZEROS = 0.5, 1.0
#: Of either axis. One subnet an update costs least; no size of a trained net that is
#: taught was told to be worse by it, and some were better (measured).
_TRAINING = {"update": "in_turn", "subnet_weight": 1.0, "distillation": "kl"}
#: Rates of these are no learning rates.
_RELATIVE = ("noamlr",)


@dataclass(frozen=True)
class Length:
    """How long the supernet is trained; one of the first two, or neither.

    Attributes:
        epochs: So many.
        updates: So many, or up to an epoch's rounding more.
        fraction: Of the epochs that the model's own training had at most.
    """

    epochs: int | None = None
    updates: int | None = None
    fraction: float = 0.3

    def options(self, config: Mapping[str, Any]) -> dict[str, int]:
        """As ESPnet's options have it.

        Args:
            config: The model's configuration.
        """
        if self.updates is not None:
            epochs = min(_EPOCHS, self.updates)
            batches = math.ceil(self.updates / epochs) * config["accum_grad"]
            return {"max_epoch": epochs, "num_iters_per_epoch": batches}
        epochs = self.epochs or max(round(self.fraction * config["max_epoch"]), 1)
        return {"max_epoch": epochs}


def layer_axis(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The section `supernet` of the layer axis, or of both if sizes have zeros."""
    section = {
        "method": "taylor",  # a trained net's gates need no scores that are learned
        "sizes": dict(sizes),
        "step1": 0.1,
        **_TRAINING,
    }
    if any(isinstance(one, Mapping) and SPARSITY in one for one in sizes.values()):
        section[SPARSITY] = _masks(sizes, ["dense", "size", "size", "size"])
    return section


def weight_axis(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The section `supernet` of the weight axis."""
    return {
        "sizes": dict(sizes),
        SPARSITY: _masks(sizes, ["dense", "sparsest", "sparsest", "size"]),
        **_TRAINING,
    }


def _masks(sizes: Mapping[str, Any], sandwich: list[str]) -> dict[str, Any]:
    """The section `supernet.sparsity`."""
    options = (one for one in sizes.values() if isinstance(one, Mapping))
    return {
        "final": max(one.get(SPARSITY, 0.0) for one in options),
        "ramp": 0.4,
        "settle": 0.35,
        "own": "norms_and_biases",
        "sandwich": sandwich,
    }


def training_config(
    original: Original,
    supernet: Mapping[str, Any],
    length: Length,
    lr: float | None = None,
) -> dict[str, Any]:
    """What a training of the supernet reads, but for its data.

    Args:
        original: The model that it begins from.
        supernet: The section of that name.
        length: Of the training.
        lr: The highest learning rate; `None`: the model's own where weights are
            masked, else half of it.

    Raises:
        UserError: If the model has no encoder or rate that one can go by.
    """
    theirs = original.config
    axes = axes_of(theirs, original.name)
    config = copy.deepcopy(own_options(theirs))
    taught = {**supernet, "teacher": str(original.checkpoint)}
    parts = {name: theirs[name] for name in ("encoder_conf", "model_conf")}
    masked = SPARSITY in supernet
    encoder = axes.weights if masked else axes.layers
    peak = _PEAK_OF_ZEROS if masked else _PEAK_OF_LAYERS
    if masked and theirs["decoder"] == "transformer" and not has_ctc_alone(theirs):
        parts["model_conf"] = {**theirs["model_conf"], "mask_decoder": True}
    config.pop("num_iters_per_epoch", None)
    if config.get("batch_type", "folded") == "folded":
        config["fold_length"] = [80000]
    return {
        **with_supernet({**config, **parts}, taught, encoder),
        **{name: theirs[name] for name in _TEXT},
        **length.options(theirs),
        "scheduler": "piecewiselinearwarmuplr",
        "scheduler_conf": {
            "warmup_steps_list": [0.0, _WARM_UP, 1.0],
            "warmup_lr_list": [0.0, lr or peak * _rate(original), 0.0],
        },
    }


def data_options(folder: Path) -> dict[str, Any]:
    """Where a training finds its data.

    Args:
        folder: With a folder of lists for each part.
    """
    options: dict[str, Any] = {}
    for part, lists in (("train", "train"), ("valid", "dev")):
        options[f"{part}_data_path_and_name_and_type"] = [
            [str(folder / lists / "wav.scp"), "speech", "sound"],
            [str(folder / lists / "text"), "text", "text"],
        ]
        options[f"{part}_shape_file"] = [str(folder / lists / "speech_shape")]
    return options


def _rate(original: Original) -> float:
    rate = (original.config.get("optim_conf") or {}).get("lr")
    if rate is None or original.config.get("scheduler") in _RELATIVE:
        raise UserError(
            f"{original.name} does not say with which learning rate it was trained: "
            "give the highest one of the supernet's training with --lr."
        )
    return rate
