"""Which encoders can be shrunk: what each becomes on either axis."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from espnet_omnisparse.core.layout import (
    LAYER_PRUNABLE,
    LAYOUTS,
    OMNI_SPARSE,
    TRANSDUCER_LAYOUT,
)
from espnet_omnisparse.errors import UserError


class Axes(NamedTuple):
    """The encoders, of the same parameter names, that a supernet may have instead.

    Attributes:
        layers: The one whose branches are dropped.
        weights: The one whose weights are masked.
    """

    layers: str
    weights: str


def axes_of(config: Mapping[str, Any], name: str) -> Axes:
    """What the encoder of a model becomes.

    Args:
        config: The model's configuration, of the task `asr`.
        name: What messages call the model.

    Raises:
        UserError: If there is nothing for it.
    """
    encoder = config.get("encoder")
    # the full size of a family is of ours, and is shrunk like ESPnet's own
    stock = str(encoder).removeprefix(LAYER_PRUNABLE)
    known = [one.stock for one in LAYOUTS if one is not TRANSDUCER_LAYOUT]
    if stock not in known:
        raise UserError(
            f"{name} has the encoder {encoder}, which cannot be shrunk; the encoders "
            f"that can are {', '.join(known)}."
        )
    if config["encoder_conf"].get("kept"):
        raise UserError(
            f"{name} is a size that has lost branches already: shrink the full size of "
            "its family instead."
        )
    return Axes(LAYER_PRUNABLE + stock, OMNI_SPARSE + stock)
