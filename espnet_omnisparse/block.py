"""A Conformer block as a list of branches, each with a gate, on ESPnet's modules."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from espnet2.legacy.nets.pytorch_backend.conformer.encoder_layer import EncoderLayer
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm

from espnet_omnisparse.components import (
    BRANCH_PARTS,
    BRANCHES,
    FFN_CHUNKS,
    Masked,
    narrowed,
    run_narrowed,
    run_scaled,
)
from espnet_omnisparse.gate import Gate, stack_gates

# a branch's gate, or the gates of its parts where they differ
BranchGate = Gate | tuple[Gate, ...]


@dataclass(frozen=True)
class Frames:
    """What the front end hands to the blocks.

    Attributes:
        x: `[batch, time, size]`.
        pos_emb: Relative positions, or `None` where the attention takes none.
        mask: `[batch, 1, time]`, true on real frames.
    """

    x: torch.Tensor
    pos_emb: torch.Tensor | None
    mask: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Real frames of each sequence `[batch]`."""
        return self.mask.squeeze(1).sum(1)


class ChannelNorm(torch.nn.Module):
    """LayerNorm over the channels of `[batch, channels, time]`.

    Its parameters are named unlike BatchNorm's, so that a BatchNorm checkpoint can
    never fill them.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = LayerNorm(channels, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `[batch, channels, time]`."""
        return self.channels(x)


class PrunableBlock(torch.nn.Module):
    """A Conformer block: a list of scaled residual branches, then the final norm.

    Args:
        layer: ESPnet's block, whose modules this one takes over.
        kept: The branches to keep, by name, or with the number of parts that each is
            narrowed to; the others do not exist here.
    """

    def __init__(
        self, layer: EncoderLayer, kept: Collection[str] | Mapping[str, int] = BRANCHES
    ):
        super().__init__()
        self.kept = tuple(branch for branch in BRANCHES if branch in kept)
        for branch in self.kept:
            norm, name, _ = BRANCH_PARTS[branch]
            module = getattr(layer, name)
            if isinstance(kept, Mapping) and branch != "conv":
                of = module.h if branch == "mhsa" else FFN_CHUNKS
                module = narrowed(branch, module, kept[branch], of)
            setattr(self, norm, getattr(layer, norm))
            setattr(self, name, module)
        self.norm_final = layer.norm_final
        self.dropout = layer.dropout

    def forward(
        self,
        frames: Frames,
        gates: Sequence[BranchGate],
        masked: Mapping[str, Masked] | None = None,
    ) -> torch.Tensor:
        """Runs the branches whose gate is not `None`.

        Args:
            frames: The block's input.
            gates: One gate per kept branch, or a gate for each of its parts.
            masked: Weights of each branch that are used instead of its own.

        Returns:
            `[batch, time, size]`.
        """
        x = frames.x
        for branch, gate in zip(self.kept, gates, strict=True):
            if gate is None:
                continue
            norm, _, scale = BRANCH_PARTS[branch]
            weights = masked.get(branch) if masked else None
            out = self._run(branch, getattr(self, norm)(x), frames, gate, weights)
            factor = scale if isinstance(gate, tuple) else gate * scale
            x = x + factor * self.dropout(out)
        return self.norm_final(x)

    def _run(
        self,
        branch: str,
        x: torch.Tensor,
        frames: Frames,
        gate: BranchGate,
        masked: Masked | None,
    ) -> torch.Tensor:
        module = getattr(self, BRANCH_PARTS[branch][1])
        inputs: tuple[torch.Tensor, ...] = (x,)
        if branch == "conv":
            inputs = (x, frames.mask)
        elif branch == "mhsa":
            positions = () if frames.pos_emb is None else (frames.pos_emb,)
            inputs = (x, x, x, *positions, frames.mask)
        if not isinstance(gate, tuple):
            if masked is None:
                return module(*inputs)
            return run_narrowed(branch, module, (0,), 1, inputs, masked)
        if any(isinstance(one, torch.Tensor) for one in gate):
            return run_scaled(branch, module, stack_gates(gate), inputs, masked)
        kept = [part for part, one in enumerate(gate) if one is not None]
        return run_narrowed(branch, module, kept, len(gate), inputs, masked)
