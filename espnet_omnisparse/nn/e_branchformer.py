"""ESPnet's E-Branchformer with prunable branches (arXiv 2210.00077).

Its attention and cgMLP run side by side; both outputs, one after the other in channels,
go through a depthwise convolution and a projection. A side that is dropped takes half
of that convolution's channels and of that projection's inputs with it. The projection's
bias belongs to neither side and stays.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.layers.fastformer import FastSelfAttention
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import (
    mask_padded_frames,
)

from espnet_omnisparse.core.branches import MERGE, SIDES
from espnet_omnisparse.core.components import Masked, select
from espnet_omnisparse.core.gate import stack_gates
from espnet_omnisparse.core.layout import E_BRANCHFORMER_LAYOUT
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.asr_encoder import OmniSparse, PrunableAsrEncoder
from espnet_omnisparse.nn.block import BranchGate, Frames, PrunableBlock


class _Bias(torch.nn.Module):
    """What is left of a projection without inputs."""

    def __init__(self, projection: torch.nn.Linear):
        super().__init__()
        self.bias = projection.bias


class EBranchformerBlock(PrunableBlock):
    """An E-Branchformer block: its sides are merged, its FFNs are around them."""

    layout = E_BRANCHFORMER_LAYOUT

    def __init__(
        self, layer: torch.nn.Module, kept: Collection[str] | Mapping[str, int]
    ):
        super().__init__(layer, kept)
        self._sides = tuple(side for side in SIDES if side in self.kept)
        size, fusion = layer.size, layer.depthwise_conv_fusion
        count = len(self._sides)
        self.merge_proj = layer.merge_proj
        if count == len(SIDES):
            self.depthwise_conv_fusion = fusion
        elif count:
            self.depthwise_conv_fusion = torch.nn.Conv1d(
                count * size,
                count * size,
                fusion.kernel_size,
                padding=fusion.padding,
                groups=count * size,
            )
            self.merge_proj = torch.nn.Linear(count * size, size)
        else:
            self.merge_proj = _Bias(layer.merge_proj)

    def forward(
        self,
        frames: Frames,
        gates: Sequence[BranchGate],
        masked: Mapping[str, Masked] | None = None,
    ) -> torch.Tensor:
        """See `PrunableBlock.forward`."""
        row = dict(zip(self.kept, gates, strict=True))
        x = frames.x
        if (gate := row.get("ffn1")) is not None:
            x = x + self._residual("ffn1", x, frames, gate, masked)
        x = x + self.dropout(self._merged(x, frames, row, masked))
        if (gate := row.get("ffn2")) is not None:
            x = x + self._residual("ffn2", x, frames, gate, masked)
        return self.norm_final(x)

    def _inputs(
        self, branch: str, x: torch.Tensor, frames: Frames
    ) -> tuple[torch.Tensor | None, ...]:
        if branch == "mhsa" and isinstance(self.attn, FastSelfAttention):
            return (x, frames.mask)
        return super()._inputs(branch, x, frames)

    def _merged(
        self,
        x: torch.Tensor,
        frames: Frames,
        row: Mapping[str, BranchGate],
        masked: Mapping[str, Masked] | None,
    ) -> torch.Tensor:
        """The projection of the sides whose gate is not `None`."""
        outs, places, open_gates = [], [], []
        for place, side in enumerate(self._sides):
            if (gate := row[side]) is None:
                continue
            outs.append(self._residual(side, x, frames, gate, masked))
            places.append(place)
            open_gates.append(_openness(gate))
        if not outs:
            return torch.zeros_like(x) + self.merge_proj.bias
        sides = torch.cat(outs, -1)
        if not masked and all(isinstance(row[side], float) for side in self._sides):
            return self._whole(sides, frames)
        fusion, projection = self.depthwise_conv_fusion, self.merge_proj
        tensors = {
            "depthwise_conv_fusion.weight": fusion.weight,
            "depthwise_conv_fusion.bias": fusion.bias,
            "merge_proj.weight": projection.weight,
        }
        if masked and MERGE in masked:
            tensors |= masked[MERGE].weights
        kernel, bias, weight = (
            select(MERGE, name, tensor, places, len(self._sides))
            for name, tensor in tensors.items()
        )
        if any(isinstance(one, torch.Tensor) for one in open_gates):
            # the outputs have their gates; the bias belongs to the whole side
            sizes = zip(bias.chunk(len(places)), open_gates, strict=True)
            bias = torch.cat([gate * part for part, gate in sizes])
        padded = mask_padded_frames(sides.transpose(1, 2), frames.mask)
        (padding,) = fusion.padding
        groups = kernel.size(0)
        fused = F.conv1d(padded, kernel, bias, padding=padding, groups=groups)
        return F.linear(sides + fused.transpose(1, 2), weight, projection.bias)

    def _whole(self, sides: torch.Tensor, frames: Frames) -> torch.Tensor:
        """The projection of all sides, by the modules: they may be quantised ones."""
        padded = mask_padded_frames(sides.transpose(1, 2), frames.mask)
        fused = self.depthwise_conv_fusion(padded).transpose(1, 2)
        return self.merge_proj(sides + fused)


def _openness(gate: BranchGate) -> torch.Tensor | float:
    """The gate of a side, or that of its most open part."""
    if not isinstance(gate, tuple):
        return gate
    if any(isinstance(one, torch.Tensor) for one in gate):
        return stack_gates(gate).amax()
    return 1.0


class LayerPrunableEBranchformerEncoder(PrunableAsrEncoder, EBranchformerEncoder):
    """ESPnet's E-Branchformer encoder, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        **options: Those of `PrunableAsrEncoder`, and all of ESPnet's
            `e_branchformer`.

    Raises:
        UserError: If an option excludes pruning.
    """

    layout = E_BRANCHFORMER_LAYOUT
    block_class = EBranchformerBlock

    def __init__(self, input_size: int, **options):
        if options.get("gradient_checkpoint_layers"):
            raise UserError(
                "encoder_conf.gradient_checkpoint_layers cannot be combined with "
                "prunable branches: leave it out."
            )
        super().__init__(input_size, **options)

    def _change(self, layers: torch.nn.ModuleList) -> None:
        is_fast = isinstance(layers[0].attn, FastSelfAttention)
        space = self.space
        if is_fast and (space.pattern or space.granularity == "component"):
            raise UserError(
                "encoder_conf.attention_layer_type: fast_selfattn has neither masks "
                "nor components: choose rel_selfattn or selfattn, or prune whole "
                "branches, without a pattern."
            )


class OmniSparseEBranchformerEncoder(OmniSparse, LayerPrunableEBranchformerEncoder):
    """The same, with masks on the weights of its blocks by default."""
