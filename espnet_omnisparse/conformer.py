"""ESPnet's Conformer with prunable branches.

The blocks are ESPnet's own modules under their own parameter names, so a stock
checkpoint loads by name; a branch whose gate is `None` is not computed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.legacy.nets.pytorch_backend.conformer.encoder_layer import EncoderLayer
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
    check_short_utt,
)

from espnet_omnisparse.components import (
    BRANCH_PARTS,
    BRANCHES,
    FFN_CHUNKS,
    narrowed,
    run_narrowed,
    run_scaled,
)
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.gate import Gate, same_gate, stack_gates
from espnet_omnisparse.subnet import SearchSpace

CONV_NORMS = ("batch_norm", "layer_norm")
# a branch's gate, or the gates of its parts where they differ
BranchGate = Gate | tuple[Gate, ...]
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

    def forward(self, frames: Frames, gates: Sequence[BranchGate]) -> torch.Tensor:
        """Runs the branches whose gate is not `None`.

        Args:
            frames: The block's input.
            gates: One gate per kept branch, or a gate for each of its parts.

        Returns:
            `[batch, time, size]`.
        """
        x = frames.x
        for branch, gate in zip(self.kept, gates, strict=True):
            if gate is None:
                continue
            norm, _, scale = BRANCH_PARTS[branch]
            out = self._run(branch, getattr(self, norm)(x), frames, gate)
            factor = scale if isinstance(gate, tuple) else gate * scale
            x = x + factor * self.dropout(out)
        return self.norm_final(x)

    def _run(
        self, branch: str, x: torch.Tensor, frames: Frames, gate: BranchGate
    ) -> torch.Tensor:
        module = getattr(self, BRANCH_PARTS[branch][1])
        if branch == "conv":
            return module(x, mask_pad=frames.mask)
        inputs: tuple[torch.Tensor, ...] = (x,)
        if branch == "mhsa":
            positions = () if frames.pos_emb is None else (frames.pos_emb,)
            inputs = (x, x, x, *positions, frames.mask)
        if not isinstance(gate, tuple):
            return module(*inputs)
        if any(isinstance(one, torch.Tensor) for one in gate):
            return run_scaled(branch, module, stack_gates(gate), inputs)
        kept = [part for part, one in enumerate(gate) if one is not None]
        return run_narrowed(branch, module, kept, len(gate), inputs)


class LayerPrunableConformerEncoder(ConformerEncoder):
    """ESPnet's Conformer encoder, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        conv_norm: Norm of the Conv module: `batch_norm` as in ESPnet, or
            `layer_norm`, whose statistics do not depend on the subnet.
        granularity: `branch`, `block` or `component`; see `SearchSpace`.
        kept: Of an extracted size: the branches that each block has, or their names
            with the number of parts each is narrowed to. `None`: all.
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
        kept: Sequence[Sequence[str] | Mapping[str, int]] | None = None,
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
        self._arguments = {
            **conformer_conf,
            "input_size": input_size,
            "conv_norm": conv_norm,
        }
        heads = getattr(self.encoders[0].self_attn, "h", 1)
        self.space = SearchSpace(len(self.encoders), granularity, heads)
        if granularity == "component":
            _check_components(self.encoders[0])
        if conv_norm == "layer_norm":
            for layer in self.encoders:
                layer.conv_module.norm = ChannelNorm(layer.size)
        rows = kept if kept is not None else [BRANCHES] * len(self.encoders)
        self.encoders = torch.nn.ModuleList(
            PrunableBlock(layer, row)
            for layer, row in zip(self.encoders, rows, strict=True)
        )

    @property
    def input_size(self) -> int:
        """Feature dimension."""
        return self._arguments["input_size"]

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
        (encoded,) = self.exits(frames, (len(self.encoders),), gates)
        return encoded, frames.lengths

    def exits(
        self,
        frames: Frames,
        after: Collection[int],
        gates: Sequence[Gate] | None = None,
    ) -> list[torch.Tensor]:
        """The outputs of one pass, each as if the encoder ended there.

        Args:
            frames: Output of `front_end`.
            after: Numbers of blocks to end after.
            gates: As in `blocks`.

        Returns:
            `[batch, time, size]` for each of `after`, in ascending order.
        """
        outputs = []
        for number, row in enumerate(self._rows(gates), start=1):
            if row is not None:
                x = self._run_block(self.encoders[number - 1], frames, row)
                frames = Frames(x, frames.pos_emb, frames.mask)
            if number in after:
                outputs.append(self.after_norm(frames.x))
        return outputs

    def _rows(
        self, gates: Sequence[Gate] | None
    ) -> Iterator[tuple[BranchGate, ...] | Gate]:
        """Per block: its branches' gates, or at block granularity the one gate."""
        if gates is None:
            yield from ((1.0,) * len(block.kept) for block in self.encoders)
        elif len(gates) != len(self.space):
            raise ValueError(f"{len(gates)} gates for {len(self.space)} units")
        elif self.space.granularity == "block":
            yield from gates
        else:
            rest = iter(gates)
            for _ in self.encoders:
                parts = (
                    tuple(islice(rest, count)) for count in self.space.parts.values()
                )
                # a branch whose parts share a gate is gated as a whole
                yield tuple(one[0] if same_gate(one) else one for one in parts)

    @staticmethod
    def _run_block(
        block: PrunableBlock, frames: Frames, row: tuple[BranchGate, ...] | Gate
    ) -> torch.Tensor:
        if isinstance(row, tuple):
            return block(frames, row)
        full = block(frames, (1.0,) * len(block.kept))
        # the gate of a whole block fades between its input and its output
        return full if isinstance(row, float) else frames.x + row * (full - frames.x)

    def resized(
        self, kept: Sequence[Sequence[str] | Mapping[str, int]]
    ) -> "LayerPrunableConformerEncoder":
        """An encoder of the same options that has less in it, freshly initialised.

        Args:
            kept: As in the constructor; fewer blocks than this one has are possible.
        """
        arguments = {**self._arguments, "num_blocks": len(kept)}
        return LayerPrunableConformerEncoder(**arguments, kept=kept)

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


def _check_components(layer: EncoderLayer) -> None:
    """Refuses what cannot be divided into components."""
    hidden = getattr(getattr(layer.feed_forward, "w_1", None), "out_features", 0)
    if not hidden or hidden % FFN_CHUNKS:
        raise UserError(
            "encoder_conf.granularity: component needs positionwise_layer_type: linear "
            f"and linear_units divisible by {FFN_CHUNKS}."
        )
    if layer.self_attn.use_flash_attn:
        raise UserError(
            "encoder_conf.granularity: component cannot be combined with "
            "use_flash_attn: set it to false."
        )
