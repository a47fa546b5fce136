"""What both of ESPnet's Conformers become: blocks run through one gate per unit."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.func import functional_call

from espnet_omnisparse.core.branches import MERGE, SIDES
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import Masked
from espnet_omnisparse.core.gate import Gate, same_gate
from espnet_omnisparse.core.layout import (
    FRONT_END,
    Layout,
    front_layers,
)
from espnet_omnisparse.core.search_space import FRONT, SearchSpace
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.block import BranchGate, Frames, PrunableBlock
from espnet_omnisparse.nn.masked_weights import MaskedWeights

CONV_NORMS = ("batch_norm", "layer_norm")


class PrunableEncoder(MaskedWeights):
    """Mixin of an encoder whose blocks are `PrunableBlock`s.

    Attributes:
        layout: Where the blocks are.
        space: What can be pruned.
        causal: Whether the Conv modules see the past alone.
        chunk: What its frames see; `None`: the whole recording.
        width: Of its output.
        subnet_dropout: See `as_subnet`.
    """

    layout: Layout
    space: SearchSpace
    causal: bool
    chunk: Chunk | None
    width: int
    subnet_dropout = "adaptive"

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The blocks."""
        return self.get_submodule(self.layout.blocks)

    def _maskable_front_end(self, mask: bool, pattern: str | None) -> tuple[str, ...]:
        """What `SearchSpace.front_end` is of a net whose options say this.

        Args:
            mask: The option `mask_front_end`.
            pattern: The option `pattern`.

        Raises:
            UserError: If it cannot be masked.
        """
        if not mask:
            return ()
        if pattern is None:
            raise UserError(
                "encoder_conf.mask_front_end needs a pattern: set one, such as 8x1, or "
                "leave it out."
            )
        layers = tuple(front_layers(self._model_parameters()))
        if not layers:
            raise UserError(
                "encoder_conf.mask_front_end needs a front end of convolutions, such "
                f"as input_layer: conv2d, not {type(self.embed).__name__}: leave it "
                "out."
            )
        return layers

    def front_end(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor,
        sparsity: Sequence[float] = (),
    ) -> Frames:
        """Subsampling and positions of a subnet; see `has_own_front_end`.

        Args:
            feats: `[batch, frames, input_size]`.
            lengths: Frames of each sequence `[batch]`.
            sparsity: As in `blocks`.

        Raises:
            TooShortUttError: ESPnet's, if the input is too short to subsample.
        """
        raise NotImplementedError

    def has_own_front_end(self, sparsity: Sequence[float]) -> bool:
        """Whether a subnet's front end is another than the full net's.

        Args:
            sparsity: As in `blocks`.
        """
        masked = any(sparsity[: len(self.space.front_end)])  # which come first
        return masked or bool(self._own and FRONT in self._own[0].of(sparsity))

    def _embed(self, sparsity: Sequence[float], *inputs: torch.Tensor | None) -> Any:
        """What the front end's module returns as a subnet has it."""
        if not self.has_own_front_end(sparsity):
            return self.embed(*inputs)
        return functional_call(self.embed, self._front_end_tensors(sparsity), inputs)

    def _front_end_tensors(self, sparsity: Sequence[float]) -> dict[str, torch.Tensor]:
        """What a subnet has instead of the front end's tensors, by names in it."""
        names = [FRONT_END + name for name, _ in self.embed.named_parameters()]
        weights = {
            f"{FRONT}.{layer}": name.removeprefix(FRONT_END)
            for layer, name in front_layers(names).items()
        }
        return self._tensors_of(FRONT, self.embed, weights, sparsity)

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        """The norm after the last block."""
        raise NotImplementedError

    def subsample(self, feats: torch.Tensor) -> torch.Tensor:
        """The front end on features without padding, as the blocks take its output."""
        raise NotImplementedError

    def positions(self, queries: int, keys: int) -> torch.Tensor:
        """Encodings of how far the last `queries` of `keys` frames are from each.

        Args:
            queries: How many frames ask.
            keys: How many frames there are.

        Returns:
            `[1, queries + keys - 1, size]`, from the farthest in the past on.
        """
        raise NotImplementedError

    def blocks(
        self,
        frames: Frames,
        gates: Sequence[Gate] | None = None,
        sparsity: Sequence[float] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs one subnet on the front end's output.

        Args:
            frames: Output of `front_end`, for the same sparsity.
            gates: A gate per unit of `self.space`; `None` runs every branch that
                exists.
            sparsity: A sparsity per weight of `self.space`; empty: nothing is masked.

        Returns:
            `[batch, time, size]`, and the number of frames of each sequence.
        """
        (encoded,) = self.intermediate_outputs(
            frames, (len(self.layers),), gates, sparsity
        )
        return encoded, frames.lengths

    def intermediate_outputs(
        self,
        frames: Frames,
        after: Collection[int],
        gates: Sequence[Gate] | None = None,
        sparsity: Sequence[float] = (),
    ) -> list[torch.Tensor]:
        """The outputs of one pass, each as if the encoder ended there.

        Args:
            frames: Output of `front_end`.
            after: Numbers of blocks to end after.
            gates: As in `blocks`.
            sparsity: As in `blocks`.

        Returns:
            `[batch, time, size]` for each of `after`, in ascending order.
        """
        outputs = []
        shares = self._shares(sparsity)
        own = self._own[0].of(sparsity) if self._own else {}
        for number, row in enumerate(self._rows(gates), start=1):
            if row is not None:
                masked = self._masked(number - 1, row, shares)
                block, vectors = self.layers[number - 1], own.get(f"{number - 1}")
                x = self._run_block(block, frames, row, masked, vectors)
                frames = replace(frames, x=x)
            if number in after:
                outputs.append(self.final_norm(frames.x))
        return outputs

    def _rows(
        self, gates: Sequence[Gate] | None
    ) -> Iterator[tuple[BranchGate, ...] | Gate]:
        """Per block: its branches' gates, or at block granularity the one gate."""
        if gates is None:
            yield from ((1.0,) * len(block.kept) for block in self.layers)
        elif len(gates) != len(self.space):
            raise ValueError(f"{len(gates)} gates for {len(self.space)} units")
        elif self.space.granularity == "block":
            yield from gates
        else:
            rest = iter(gates)
            for _ in self.layers:
                parts = (
                    tuple(islice(rest, count)) for count in self.space.parts.values()
                )
                # a branch whose parts share a gate is gated as a whole
                yield tuple(one[0] if same_gate(one) else one for one in parts)

    @staticmethod
    def _run_block(
        block: PrunableBlock,
        frames: Frames,
        row: tuple[BranchGate, ...] | Gate,
        masked: Mapping[str, Masked],
        own: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        gates = row if isinstance(row, tuple) else (1.0,) * len(block.kept)
        arguments = frames, gates, masked
        if own:
            full = functional_call(block, own, arguments, tie_weights=False)
        else:
            full = block(*arguments)
        if isinstance(row, tuple):
            return full
        # the gate of a whole block fades between its input and its output
        return full if isinstance(row, float) else frames.x + row * (full - frames.x)

    def _masked(
        self,
        number: int,
        row: tuple[BranchGate, ...] | Gate,
        shares: Mapping[str, float],
    ) -> dict[str, Masked]:
        """The masked weights of what is computed of a block: branches, and a merge."""
        if not shares:
            return {}
        block = self.layers[number]
        gates = row if isinstance(row, tuple) else (row,) * len(block.kept)
        pairs = zip(block.kept, gates, strict=True)
        there = [branch for branch, gate in pairs if gate is not None]
        if MERGE in self.space.slices and any(side in there for side in SIDES):
            there.append(MERGE)
        found = {}
        for branch in there:
            weights, kept, total = {}, 0.0, 0
            for layer in self.space.layers(branch):
                name = f"{number}.{branch}.{layer}"
                weight = block.get_parameter(self.layout.weight_of(branch, layer))
                share = shares.get(name, 0.0)
                total += weight.numel()
                kept += (1.0 - share) * weight.numel()
                if share > 0.0:
                    weights[f"{layer}.weight"] = self._masks.masked(name, weight, share)
            if weights:
                scaled = self.subnet_dropout == "adaptive"
                found[branch] = Masked(weights, kept / total if scaled else 1.0)
        return found

    @contextmanager
    def as_subnet(self, dropout: str = "adaptive") -> Iterator[None]:
        """Inside, the encoder is trained as a subnet is, not as the full net.

        BatchNorms use the batch's statistics but do not record them: subnets shift the
        statistics, and only the full net may update the running ones.

        Args:
            dropout: `adaptive`: an FFN's rate shrinks with the share of its weights
                that is not masked; `full`: it does not; `none`: nothing is dropped.
        """
        norms = [m for m in self.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        for norm in norms:
            norm.track_running_stats = False
        rates = self._dropout_rates() if dropout == "none" else []
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        before, self.subnet_dropout = self.subnet_dropout, dropout
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True
            for module, name, rate in rates:
                setattr(module, name, rate)
            self.subnet_dropout = before

    def _dropout_rates(self) -> list[tuple[torch.nn.Module, str, float]]:
        """Where the blocks keep their dropout rates."""
        found = []
        for module in self.layers.modules():
            if isinstance(module, torch.nn.Dropout):
                found.append((module, "p", module.p))
            elif hasattr(module, "dropout_rate"):  # of fused attention
                found.append((module, "dropout_rate", module.dropout_rate))
        return found
