"""Which encoders can be shrunk: what each becomes on either axis."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from espnet_omnisparse.errors import UserError


class Axes(NamedTuple):
    """The encoders, of the same parameter names, that a supernet may have instead.

    Attributes:
        layers: The one whose branches are dropped.
        weights: The one whose weights are masked.
    """

    layers: str
    weights: str


_CONFORMER = Axes("layer_prunable_conformer", "omni_sparse_conformer")
#: Encoder of the `asr` task -> ours. The next one is a line here.
ENCODERS: Mapping[str, Axes] = {
    "conformer": _CONFORMER,
    # the full size of a family, whose Conv modules may have LayerNorm
    _CONFORMER.layers: _CONFORMER,
}


def axes_of(config: Mapping[str, Any], name: str) -> Axes:
    """What the encoder of a model becomes.

    Args:
        config: The model's configuration.
        name: What messages call the model.

    Raises:
        UserError: If there is nothing for it.
    """
    encoder = config.get("encoder")
    if encoder not in ENCODERS:
        raise UserError(
            f"{name} has the encoder {encoder}, which cannot be shrunk; the encoders "
            f"that can are {', '.join(ENCODERS)}."
        )
    if config["encoder_conf"].get("kept"):
        raise UserError(
            f"{name} is a size that has lost branches already: shrink the full size of "
            "its family instead."
        )
    return ENCODERS[encoder]
