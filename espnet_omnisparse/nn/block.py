"""An encoder's blocks as lists of branches, each with a gate, on ESPnet's modules."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm

from espnet_omnisparse.core.branches import is_ffn, parts_of
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import (
    Masked,
    heads_of,
    narrowed,
    run_narrowed,
    run_scaled,
)
from espnet_omnisparse.core.gate import Gate, stack_gates
from espnet_omnisparse.core.layout import ASR_LAYOUT, TRANSDUCER_LAYOUT

# a branch's gate, or the gates of its parts where they differ
BranchGate = Gate | tuple[Gate, ...]


@dataclass(frozen=True)
class Frames:
    """What the front end hands to the blocks.

    Attributes:
        x: `[batch, time, size]`.
        pos_emb: Relative positions, or `None` where the attention takes none.
        mask: `[batch, 1, time]`, true on real frames.
        attention_mask: `[time, time]`, true where a frame (row) may see another
            (column); `None`: each sees all.
    """

    x: torch.Tensor
    pos_emb: torch.Tensor | None
    mask: torch.Tensor
    attention_mask: torch.Tensor | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """Real frames of each sequence `[batch]`."""
        return self.mask.squeeze(1).sum(1)

    def with_chunk_mask(self, chunk: Chunk | None) -> "Frames":
        """The same frames, seeing each other as in a stream of such chunks.

        Args:
            chunk: `None`: each sees all.
        """
        mask = None
        if chunk is not None:
            mask = chunk.mask(self.x.size(1), self.x.device)
        return replace(self, attention_mask=mask)


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


class CausalConv1d(torch.nn.Conv1d):
    """A depthwise convolution that sees the past alone.

    Args:
        conv: The one, with padding on both sides, whose weights this one takes over.
    """

    def __init__(self, conv: torch.nn.Conv1d):
        channels, (kernel,) = conv.out_channels, conv.kernel_size
        bias = conv.bias is not None
        super().__init__(channels, channels, kernel, groups=channels, bias=bias)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolves `[batch, channels, time]`."""
        past = self.kernel_size[0] - 1
        return super().forward(torch.nn.functional.pad(x, (past, 0)))


class PrunableBlock(torch.nn.Module):
    """A block: a list of scaled residual branches, then the final norm if it has one.

    Args:
        layer: ESPnet's block, whose modules this one takes over.
        kept: The branches to keep, by name, or with the number of parts that each is
            narrowed to; the others do not exist here.

    Attributes:
        layout: Where it keeps them.
        ff_scale: Of its FFNs, where ESPnet's block does not say it.
    """

    layout = ASR_LAYOUT
    ff_scale = 0.5

    def __init__(
        self,
        layer: torch.nn.Module,
        kept: Collection[str] | Mapping[str, int],
    ):
        super().__init__()
        self.kept = tuple(branch for branch in self.layout.parts if branch in kept)
        for branch in self.kept:
            norm, name = self.layout.parts[branch]
            module = getattr(layer, name)
            of = parts_of(branch, heads_of(module))
            if isinstance(kept, Mapping) and of > 1:
                module = narrowed(branch, module, kept[branch], of)
            setattr(self, norm, getattr(layer, norm))
            setattr(self, name, module)
        self.norm_final = getattr(layer, "norm_final", torch.nn.Identity())
        self.ff_scale = getattr(layer, "ff_scale", self.ff_scale)
        self.dropout = layer.dropout

    def norm(self, branch: str) -> torch.nn.Module:
        """The pre-norm of a branch."""
        return getattr(self, self.layout.parts[branch][0])

    def scale(self, branch: str) -> float:
        """By what the output of a branch is multiplied before it is added."""
        return self.ff_scale if is_ffn(branch) else 1.0

    def module(self, branch: str) -> torch.nn.Module:
        """The module of a branch."""
        return getattr(self, self.layout.parts[branch][1])

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
            if gate is not None:
                x = x + self._residual(branch, x, frames, gate, masked)
        return self.norm_final(x)

    def _residual(
        self,
        branch: str,
        x: torch.Tensor,
        frames: Frames,
        gate: BranchGate,
        masked: Mapping[str, Masked] | None,
    ) -> torch.Tensor:
        """What a branch adds."""
        scale = self.scale(branch)
        inputs = self._inputs(branch, self.norm(branch)(x), frames)
        weights = masked.get(branch) if masked else None
        out = self._run(branch, inputs, gate, weights)
        factor = scale if isinstance(gate, tuple) else gate * scale
        return factor * self.dropout(out)

    def _inputs(
        self, branch: str, x: torch.Tensor, frames: Frames
    ) -> tuple[torch.Tensor | None, ...]:
        """What the branch's module is called with."""
        if branch in ("conv", "cgmlp"):
            return (x, frames.mask)
        if branch == "mhsa":
            mask = frames.mask
            if frames.attention_mask is not None:
                mask = mask & frames.attention_mask
            positions = () if frames.pos_emb is None else (frames.pos_emb,)
            return (x, x, x, *positions, mask)
        return (x,)

    def _run(
        self,
        branch: str,
        inputs: tuple[torch.Tensor | None, ...],
        gate: BranchGate,
        masked: Masked | None,
    ) -> torch.Tensor:
        module = self.module(branch)
        if not isinstance(gate, tuple):
            if masked is None:
                return module(*inputs)
            return run_narrowed(branch, module, (0,), 1, inputs, masked)
        if any(isinstance(one, torch.Tensor) for one in gate):
            return run_scaled(branch, module, stack_gates(gate), inputs, masked)
        kept = [part for part, one in enumerate(gate) if one is not None]
        return run_narrowed(branch, module, kept, len(gate), inputs, masked)


class TransducerBlock(PrunableBlock):
    """The same of the standalone transducer's Conformer."""

    layout = TRANSDUCER_LAYOUT

    def _inputs(
        self, branch: str, x: torch.Tensor, frames: Frames
    ) -> tuple[torch.Tensor | None, ...]:
        hidden = ~frames.mask.squeeze(1)  # its masks say what is not seen
        if branch == "conv":
            return (x, hidden)
        if branch == "mhsa":
            allowed = frames.attention_mask
            unseen = None if allowed is None else ~allowed
            return (x, x, x, frames.pos_emb, hidden, unseen)
        return (x,)

    def _run(self, branch: str, *args) -> torch.Tensor:
        out = super()._run(branch, *args)
        return out[0] if branch == "conv" else out  # without its cache
