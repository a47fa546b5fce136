"""How much of a hybrid model's attention decoder a size keeps, by ESPnet's names.

A size has all of its layers, the first few, or no decoder, and then CTC alone. The
weights of these layers can be masked.
"""

from collections.abc import Collection
from typing import Any

from espnet_omnisparse.errors import UserError

DECODER = "decoder."
_LAYERS = "decoder.decoders."
_NONE = "none"
_ATTENTION = ("linear_q", "linear_k", "linear_v", "linear_out")
# a layer's modules -> their linear layers
_MASKABLE = {
    "self_attn": _ATTENTION,
    "src_attn": _ATTENTION,
    "feed_forward": ("w_1", "w_2"),
}
#: The linear layers of one decoder layer whose weights can be masked.
MASKABLE = tuple(f"{part}.{name}" for part in _MASKABLE for name in _MASKABLE[part])


def parse_decoder(value: Any, where: str) -> int:
    """How many layers of the decoder an option keeps.

    Args:
        value: `none`, or a number of layers.
        where: What a message calls the option.

    Raises:
        UserError: If it is neither.

    >>> parse_decoder("none", "decoder"), parse_decoder(2, "decoder")
    (0, 2)
    """
    if value == _NONE:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"{where} must be none (CTC alone) or a number of the attention decoder's "
            f"layers, at least 1, not {value!r}."
        )
    return value


def decoder_text(layers: int) -> int | str:
    """The inverse of `parse_decoder`: what stands in YAML.

    Args:
        layers: How many are kept.
    """
    return layers or _NONE


def layer_of(name: str) -> int | None:
    """The decoder layer that a tensor of the model is in; `None`: it is in none.

    Args:
        name: The tensor's.

    >>> layer_of("decoder.decoders.3.norm1.weight"), layer_of("decoder.embed.0.weight")
    (3, None)
    """
    if not name.startswith(_LAYERS):
        return None
    return int(name.removeprefix(_LAYERS).split(".", 1)[0])


def layer_count(names: Collection[str]) -> int:
    """How many layers the decoder of a model has; 0: there is no such decoder.

    Args:
        names: Of the model's tensors.
    """
    return len({layer_of(name) for name in names} - {None})


def in_layers(name: str) -> str:
    """The name in the model of what has a name of the search space, or of its own.

    Args:
        name: The number of the layer, and the name there, behind `DECODER`.

    >>> in_layers("decoder.3.src_attn.linear_q")
    'decoder.decoders.3.src_attn.linear_q'
    """
    return _LAYERS + name.removeprefix(DECODER)


def is_maskable(name: str) -> bool:
    """Whether a tensor of the model is a weight of the decoder that can be masked.

    Args:
        name: The tensor's.

    >>> is_maskable("decoder.decoders.3.src_attn.linear_q.weight")
    True
    >>> is_maskable("decoder.output_layer.weight")
    False
    """
    if layer_of(name) is None:
        return False
    inside, _, leaf = name.split(".", 3)[3].rpartition(".")
    return inside in MASKABLE and leaf == "weight"


def keeps(layers: int | None, name: str) -> bool:
    """Whether a size has a tensor of the model, as far as its decoder goes.

    Args:
        layers: How many of the decoder's layers it keeps; `None`: all, 0: it has no
            decoder.
        name: The tensor's.
    """
    if layers is None or not name.startswith(DECODER):
        return True
    number = layer_of(name)
    return layers > 0 and (number is None or number < layers)
