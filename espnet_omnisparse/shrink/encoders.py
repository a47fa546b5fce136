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
_E_BRANCHFORMER = Axes("layer_prunable_e_branchformer", "omni_sparse_e_branchformer")
_TRANSFORMER = Axes("layer_prunable_transformer", "omni_sparse_transformer")
#: Encoder of the `asr` task -> ours. The next one is a line here.
ENCODERS: Mapping[str, Axes] = {
    "conformer": _CONFORMER,
    "e_branchformer": _E_BRANCHFORMER,
    "transformer": _TRANSFORMER,
    # the full size of a family, whose Conv modules may have LayerNorm
    _CONFORMER.layers: _CONFORMER,
    _E_BRANCHFORMER.layers: _E_BRANCHFORMER,
    _TRANSFORMER.layers: _TRANSFORMER,
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
