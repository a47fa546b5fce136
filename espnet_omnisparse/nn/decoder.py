"""ESPnet's attention decoder as a size has it: its first layers, or none."""

import copy
from collections.abc import Iterable

import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.errors import UserError


def check_decoders(sizes: Iterable[Size], decoder: torch.nn.Module | None) -> None:
    """Refuses sizes that keep less than all of a decoder that cannot have less.

    Args:
        sizes: The wanted sizes.
        decoder: The model's; `None`: it recognises by CTC alone.

    Raises:
        UserError: If it is no attention decoder of Transformer layers, or has not
            more layers than a size keeps.
    """
    for size in sizes:
        if size.decoder is None:
            continue
        if not isinstance(decoder, TransformerDecoder):
            raise UserError(
                f"supernet.sizes: {size.name} says what it keeps of an attention "
                "decoder, for which the model needs decoder: transformer and "
                "0 < ctc_weight < 1: leave its decoder out."
            )
        if size.decoder >= len(decoder.decoders):
            raise UserError(
                f"supernet.sizes: {size.name} keeps {size.decoder} layers of the "
                f"decoder, which has {len(decoder.decoders)}: name fewer, or leave its "
                "decoder out to keep all."
            )


def first_layers(decoder: TransformerDecoder, layers: int) -> TransformerDecoder:
    """A view of a decoder that ends after some layers; it shares all tensors.

    Args:
        decoder: The whole decoder.
        layers: How many are kept, at least 1.
    """
    view = copy.copy(decoder)
    view._modules = {**decoder._modules, "decoders": decoder.decoders[:layers]}
    return view
