"""The weights of a net that take masks, and what else subnets have instead of its own.

The masks of all weights are in one place, the encoder, by the names that the search
space gives them: those of its blocks, of its front end, and of an attention decoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from espnet_omnisparse.core.decoder import DECODER
from espnet_omnisparse.core.layout import weight_tensors
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.own_parameters import OwnParameters
from espnet_omnisparse.core.search_space import FRONT, SearchSpace
from espnet_omnisparse.core.weight_masks import MaskOrder, WeightMasks


class MaskedWeights:
    """Mixin of an encoder that keeps the masks of a model's weights.

    Attributes:
        space: What can be pruned.
        layers: The blocks.
        embed: The front end.
    """

    space: SearchSpace
    layers: torch.nn.ModuleList
    embed: torch.nn.Module
    _masks: WeightMasks | None = None
    # in tuples, or PyTorch would take them for parts of the encoder
    _own: tuple[OwnParameters, ...] = ()
    _decoder: tuple[torch.nn.Module, ...] = ()

    def set_pattern(self, pattern: Pattern | None) -> None:
        """Says in which groups weights are masked; `None`: they are not."""
        self._masks = None if pattern is None else WeightMasks(pattern)

    def mask_decoder(self, decoder: torch.nn.Module) -> None:
        """Adds an attention decoder's weights to those that take masks.

        Args:
            decoder: ESPnet's, with a list `decoders` of layers.
        """
        self.space = replace(self.space, decoder=len(decoder.decoders))
        self._decoder = (decoder,)

    def attach(self, order: MaskOrder | None, own: OwnParameters | None) -> None:
        """Gives subnets what a supernet keeps for them.

        Args:
            order: What the masks stay like once it is settled; `None`: they do not.
            own: Norms and biases by sparsity; `None`: all have the dense net's.
        """
        if self._masks is not None:
            self._masks.order = order
        self._own = () if own is None else (own,)

    def maskable(self) -> dict[str, torch.nn.Parameter]:
        """The weights of `self.space.weights`, by name."""
        parameters = self._model_parameters()
        tensors = weight_tensors(self.space, parameters)
        return {weight: parameters[name] for weight, name in tensors.items()}

    def vectors(self) -> dict[str, torch.nn.Parameter]:
        """What each sparsity may have for itself; see `OwnParameters`.

        Weights and biases of the norms, biases of the layers; those of the front end
        and of the decoder's layers where they take masks.
        """
        found = dict(self.layers.named_parameters())
        if self.space.front_end:
            inside = self.embed.named_parameters()
            found |= {f"{FRONT}.{name}": parameter for name, parameter in inside}
        for decoder in self._decoder:
            inside = decoder.decoders.named_parameters()
            found |= {f"{DECODER}{name}": parameter for name, parameter in inside}
        return {name: p for name, p in found.items() if p.dim() == 1}

    def _model_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters, by their names in a model."""
        found = {f"encoder.{name}": p for name, p in self.named_parameters()}
        for decoder in self._decoder:
            inside = decoder.named_parameters()
            found |= {f"{DECODER}{name}": parameter for name, parameter in inside}
        return found

    def refresh_masks(self) -> None:
        """Makes the masks follow the weights' present magnitudes."""
        if self._masks is not None:
            self._masks.refresh(self.maskable())

    def mask_ranks(self) -> dict[str, torch.Tensor]:
        """Of each weight that takes a mask the order of its groups, up to date."""
        self.refresh_masks()
        return {} if self._masks is None else self._masks.ranks()

    def kept_weights(self, sparsity: Sequence[float]) -> dict[str, torch.Tensor]:
        """Which elements of each weight a subnet keeps, by the last refresh.

        Args:
            sparsity: A sparsity per weight of `self.space`.
        """
        return {
            name: self._masks.kept(name, weight.shape, share)
            for (name, weight), share in zip(
                self.maskable().items(), sparsity, strict=True
            )
        }

    def decoder_tensors(self, sparsity: Sequence[float]) -> dict[str, torch.Tensor]:
        """What a subnet has instead of tensors of the decoder, by names in its layers.

        Args:
            sparsity: As in `blocks`.
        """
        if not self._decoder:
            return {}
        weights = {
            name: f"{name.removeprefix(DECODER)}.weight"
            for name in self.space.weights
            if name.startswith(DECODER)
        }
        layers = self._decoder[0].decoders
        return self._tensors_of(DECODER, layers, weights, sparsity)

    def _tensors_of(
        self,
        part: str,
        module: torch.nn.Module,
        weights: Mapping[str, str],
        sparsity: Sequence[float],
    ) -> dict[str, torch.Tensor]:
        """What a subnet has instead of tensors outside of the blocks, by their names.

        Args:
            part: Where they are, as the names of weights have it.
            module: Has them.
            weights: Those that can be masked -> their tensors in the module.
            sparsity: As in `blocks`.
        """
        own = self._own[0].of(sparsity) if self._own else {}
        tensors = dict(own.get(part.removesuffix("."), {}))
        shares = self._shares(sparsity)
        for weight, name in weights.items():
            if share := shares.get(weight, 0.0):
                parameter = module.get_parameter(name)
                tensors[name] = self._masks.masked(weight, parameter, share)
        return tensors

    def _shares(self, sparsity: Sequence[float]) -> dict[str, float]:
        """Weight -> sparsity, of those that are masked."""
        if not any(sparsity):
            return {}
        pairs = zip(self.space.weights, sparsity, strict=True)
        return {name: share for name, share in pairs if share > 0.0}
