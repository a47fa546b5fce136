"""ESPnet's attention decoder as a subnet has it: masked, its first layers, or none."""

import copy
from collections.abc import Iterable, Mapping

import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

from espnet_omnisparse.core.search_space import SearchSpace
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


def check_maskable(decoder: torch.nn.Module | None, space: SearchSpace) -> None:
    """Refuses to mask the weights of a decoder that cannot be masked.

    Args:
        decoder: The model's.
        space: What is masked in the encoder.

    Raises:
        UserError: If it is no attention decoder of Transformer layers, or the encoder
            has no pattern.
    """
    if not isinstance(decoder, TransformerDecoder):
        raise UserError(
            "model_conf.mask_decoder needs decoder: transformer and "
            "0 < ctc_weight < 1: leave it out."
        )
    if space.pattern is None:
        raise UserError(
            "model_conf.mask_decoder needs an encoder whose weights are masked: set "
            "encoder_conf.pattern, such as 8x1, or leave it out."
        )


def subnet_decoder(
    decoder: TransformerDecoder,
    layers: int | None,
    tensors: Mapping[str, torch.Tensor],
) -> TransformerDecoder:
    """A view of a decoder as a subnet has it; it shares all other tensors.

    Args:
        decoder: The whole decoder.
        layers: How many are kept, at least 1; `None`: all.
        tensors: Name in its list of layers -> what is there instead.
    """
    view = copy.copy(decoder)
    kept = decoder.decoders[:layers]
    inside = {n: t for n, t in tensors.items() if int(n.split(".", 1)[0]) < len(kept)}
    view._modules = {**decoder._modules, "decoders": _with_tensors(kept, inside)}
    return view


def _with_tensors(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    """A view of a module that has other tensors under some names.

    Unlike a functional call, it is the same when its forward is computed again in the
    backward pass.
    """
    view = copy.copy(module)
    view._parameters, view._modules = dict(module._parameters), dict(module._modules)
    inside: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        child, _, rest = name.partition(".")
        if rest:
            inside.setdefault(child, {})[rest] = tensor
        else:
            view._parameters[child] = tensor
    for child, theirs in inside.items():
        view._modules[child] = _with_tensors(module._modules[child], theirs)
    return view
