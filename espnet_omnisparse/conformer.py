"""ESPnet's Conformer with prunable branches.

The blocks are ESPnet's own modules under their own parameter names, so a stock
checkpoint loads by name; a branch whose gate is `None` is not computed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.legacy.nets.pytorch_backend.conformer.encoder_layer import EncoderLayer
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
    check_short_utt,
)

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.gate import Gate
from espnet_omnisparse.subnet import BRANCH_PARTS, BRANCHES, SearchSpace

CONV_NORMS = ("batch_norm", "layer_norm")
_FIXED = {
    "macaron_style": True,
    "use_cnn_module": True,
    "normalize_before": True,
    "concat_after": False,
    "interctc_layer_idx": [],
    "interctc_use_conditioning": False,
    "ctc_trim": False,
    "stochastic_depth_rate": 0.0,
    "layer_drop_rate": 0.0,
}


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
        kept: Names of the branches to keep; the others do not exist here.
    """

    def __init__(self, layer: EncoderLayer, kept: Sequence[str] = BRANCHES):
        super().__init__()
        self.kept = tuple(branch for branch in BRANCHES if branch in kept)
        for branch in self.kept:
            norm, module, _ = BRANCH_PARTS[branch]
            setattr(self, norm, getattr(layer, norm))
            setattr(self, module, getattr(layer, module))
        self.norm_final = layer.norm_final
        self.dropout = layer.dropout

    def forward(self, frames: Frames, gates: Sequence[Gate]) -> torch.Tensor:
        """Runs the branches whose gate is not `None`.

        Args:
            frames: The block's input.
            gates: One gate per kept branch.

        Returns:
            `[batch, time, size]`.
        """
        x = frames.x
        for branch, gate in zip(self.kept, gates, strict=True):
            if gate is None:
                continue
            norm, _, scale = BRANCH_PARTS[branch]
            normed = getattr(self, norm)(x)
            x = x + gate * scale * self.dropout(self._run(branch, normed, frames))
        return self.norm_final(x)

    def _run(self, branch: str, x: torch.Tensor, frames: Frames) -> torch.Tensor:
        module = getattr(self, BRANCH_PARTS[branch][1])
        if branch == "mhsa":
            positions = () if frames.pos_emb is None else (frames.pos_emb,)
            return module(x, x, x, *positions, frames.mask)
        if branch == "conv":
            return module(x, mask_pad=frames.mask)
        return module(x)


class LayerPrunableConformerEncoder(ConformerEncoder):
    """ESPnet's Conformer encoder, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        conv_norm: Norm of the Conv module: `batch_norm` as in ESPnet, or
            `layer_norm`, whose statistics do not depend on the subnet.
        granularity: `branch` or `block`; see `SearchSpace`.
        kept: Of an extracted size: the branches that each block has. `None`: all.
        macaron_style: Must be true: both FFNs are prunable branches.
        **conformer_conf: All other options of ESPnet's `conformer`.

    Raises:
        UserError: If an option excludes pruning.
    """

    def __init__(
        self,
        input_size: int,
        conv_norm: str = "batch_norm",
        granularity: str = "branch",
        kept: list[list[str]] | None = None,
        macaron_style: bool = True,
        **conformer_conf,
    ):
        conformer_conf["macaron_style"] = macaron_style
        for name, needed in _FIXED.items():
            given = conformer_conf.get(name, needed)
            if given != needed:
                raise UserError(
                    f"encoder_conf.{name}: {given} cannot be combined with prunable "
                    f"branches: set it to {needed} or leave it out"
                    + (
                        " (layer dropout is an option of model_conf.supernet)."
                        if "rate" in name
                        else "."
                    )
                )
        if conv_norm not in CONV_NORMS:
            raise UserError(
                f"encoder_conf.conv_norm must be one of {', '.join(CONV_NORMS)}, "
                f"not {conv_norm!r}."
            )
        super().__init__(input_size, **conformer_conf)
        if kept is not None and len(kept) != len(self.encoders):
            raise UserError(
                f"encoder_conf.kept names {len(kept)} blocks, but num_blocks is "
                f"{len(self.encoders)}."
            )
        self.conv_norm = conv_norm
        self.space = SearchSpace(len(self.encoders), granularity)
        if conv_norm == "layer_norm":
            for layer in self.encoders:
                layer.conv_module.norm = ChannelNorm(layer.size)
        rows = kept if kept is not None else [BRANCHES] * len(self.encoders)
        self.encoders = torch.nn.ModuleList(
            PrunableBlock(layer, row)
            for layer, row in zip(self.encoders, rows, strict=True)
        )

    def front_end(self, feats: torch.Tensor, lengths: torch.Tensor) -> Frames:
        """Subsampling and positions, shared by all subnets of an update.

        Args:
            feats: `[batch, frames, input_size]`.
            lengths: Frames of each sequence `[batch]`.

        Raises:
            TooShortUttError: ESPnet's, if the input is too short to subsample.
        """
        mask = (~make_pad_mask(lengths)[:, None, :]).to(feats.device)
        too_short, limit = check_short_utt(self.embed, feats.size(1))
        if too_short:
            raise TooShortUttError(
                f"has {feats.size(1)} frames and is too short for subsampling (it "
                f"needs more than {limit} frames), return empty results",
                feats.size(1),
                limit,
            )
        if isinstance(self.embed, torch.nn.Sequential):
            embedded = self.embed(feats)
        else:
            embedded, mask = self.embed(feats, mask)
        x, pos_emb = embedded if isinstance(embedded, tuple) else (embedded, None)
        return Frames(x, pos_emb, mask)

    def blocks(
        self, frames: Frames, gates: Sequence[Gate] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs one subnet on the front end's output.

        Args:
            frames: Output of `front_end`.
            gates: A gate per unit of `self.space`; `None` runs every branch that
                exists.

        Returns:
            `[batch, time, size]`, and the number of frames of each sequence.
        """
        for block, row in zip(self.encoders, self._rows(gates), strict=True):
            if row is None:
                continue
            x = self._run_block(block, frames, row)
            frames = Frames(x, frames.pos_emb, frames.mask)
        return self.after_norm(frames.x), frames.mask.squeeze(1).sum(1)

    def _rows(self, gates: Sequence[Gate] | None) -> Iterator[Sequence[Gate] | Gate]:
        """Per block: its branches' gates, or at block granularity the one gate."""
        if gates is None:
            return ((1.0,) * len(block.kept) for block in self.encoders)
        if self.space.granularity == "block":
            return iter(gates)
        width = len(BRANCHES)
        return (tuple(gates[i : i + width]) for i in range(0, len(gates), width))

    @staticmethod
    def _run_block(
        block: PrunableBlock, frames: Frames, row: Sequence[Gate] | Gate
    ) -> torch.Tensor:
        if isinstance(row, tuple):
            return block(frames, row)
        full = block(frames, (1.0,) * len(block.kept))
        # the gate of a whole block fades between its input and its output
        return full if isinstance(row, float) else frames.x + row * (full - frames.x)

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
        gates: Sequence[Gate] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Encodes features, as ESPnet's encoders do, optionally through a subnet.

        Args:
            xs_pad: Features `[batch, frames, input_size]`.
            ilens: Frames of each sequence `[batch]`.
            prev_states: Unused, part of ESPnet's interface.
            gates: A gate per unit; `None` for the full net.

        Returns:
            Output `[batch, time, size]`, lengths `[batch]`, and `None`.
        """
        encoded, lengths = self.blocks(self.front_end(xs_pad, ilens), gates)
        return encoded, lengths, None

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """Inside, BatchNorms use the batch's statistics but do not record them.

        Subnets shift the statistics; only the full net may update the running ones.
        """
        norms = [m for m in self.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True
