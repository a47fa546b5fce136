"""ESPnet's Conformer with prunable branches.

The blocks are ESPnet's own modules under their own parameter names, so a stock
checkpoint loads by name; a branch whose gate is `None` is not computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.legacy.nets.pytorch_backend.conformer.encoder_layer import EncoderLayer
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    RelPositionMultiHeadedAttention,
)
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
    check_short_utt,
)

from espnet_omnisparse.core.branches import BRANCHES, FFN_CHUNKS
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import heads_of
from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.layout import ASR_LAYOUT
from espnet_omnisparse.core.mask import DEFAULT_PATTERN, Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.block import CausalConv1d, ChannelNorm, Frames, PrunableBlock
from espnet_omnisparse.nn.encoder import CONV_NORMS, PrunableEncoder
from espnet_omnisparse.nn.recording import telling_if_long

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


class LayerPrunableConformerEncoder(PrunableEncoder, ConformerEncoder):
    """ESPnet's Conformer encoder, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        conv_norm: Norm of the Conv module: `batch_norm` as in ESPnet, or
            `layer_norm`, whose statistics do not depend on the subnet.
        granularity: `branch`, `block` or `component`; see `SearchSpace`.
        kept: Of an extracted size: the branches that each block has, or their names
            with the number of parts each is narrowed to. `None`: all.
        pattern: Of the masks on the blocks' weights, such as `8x1`; `None`: weights are
            not masked. See `Pattern`.
        pattern_norm: By which groups of weights are compared, `l1` or `l2`.
        mask_front_end: Whether the front end's weights take masks too: all
            convolutions but the first, as matrices over their window, and the output
            layer.
        causal: Whether the Conv modules see the past alone, which a stream needs.
        chunk: What each frame sees, as in a stream, such as `{size: 16, left: 32}`;
            `None` or `full`: the whole recording.
        macaron_style: Must be true: both FFNs are prunable branches.
        **conformer_conf: All other options of ESPnet's `conformer`.

    Raises:
        UserError: If an option excludes pruning.
    """

    layout = ASR_LAYOUT

    def __init__(
        self,
        input_size: int,
        conv_norm: str = "batch_norm",
        granularity: str = "branch",
        kept: Sequence[Sequence[str] | Mapping[str, int]] | None = None,
        pattern: str | None = None,
        pattern_norm: str = "l1",
        mask_front_end: bool = False,
        causal: bool = False,
        chunk: Mapping[str, int] | str | None = None,
        macaron_style: bool = True,
        **conformer_conf,
    ):
        conformer_conf["macaron_style"] = macaron_style
        for name, needed in _FIXED.items():
            given = conformer_conf.get(name, needed)
            if not _same(given, needed):
                raise UserError(
                    f"encoder_conf.{name}: {given} cannot be combined with prunable "
                    f"branches: set it to {needed} or leave it out"
                    + (
                        " (layer dropout is an option of model_conf.supernet)."
                        if "rate" in name
                        else "."
                    )
                )
            if name in conformer_conf:  # ESPnet counts the blocks of a list of rates
                conformer_conf[name] = needed
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
        self.causal = causal
        self.width = self.output_size()
        self.chunk = Chunk.parse(chunk, "encoder_conf.chunk")
        if causal or self.chunk is not None:
            _check_streaming(self)
        self._arguments = {
            **conformer_conf,
            "input_size": input_size,
            "conv_norm": conv_norm,
        }
        self.space = SearchSpace(
            len(self.encoders),
            granularity,
            heads_of(self.encoders[0].self_attn),
            None if pattern is None else Pattern.parse(pattern, pattern_norm),
            hasattr(self.encoders[0].self_attn, "linear_pos"),
            self._maskable_front_end(mask_front_end, pattern),
        )
        if granularity == "component":
            _check_components(self.encoders[0])
        if self.space.pattern is not None:
            _check_maskable(self.encoders[0])
        self.set_pattern(self.space.pattern)
        if conv_norm == "layer_norm":
            for layer in self.encoders:
                layer.conv_module.norm = ChannelNorm(layer.size)
        if causal:
            for layer in self.encoders:
                conv = layer.conv_module
                conv.depthwise_conv = CausalConv1d(conv.depthwise_conv)
        rows = kept if kept is not None else [BRANCHES] * len(self.encoders)
        self.encoders = torch.nn.ModuleList(
            PrunableBlock(layer, row)
            for layer, row in zip(self.encoders, rows, strict=True)
        )

    @property
    def input_size(self) -> int:
        """Feature dimension."""
        return self._arguments["input_size"]

    def front_end(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor,
        sparsity: Sequence[float] = (),
    ) -> Frames:
        """See `PrunableEncoder.front_end`."""
        # ESPnet's own make_pad_mask takes memory by the square of the length
        times = torch.arange(feats.size(1), device=feats.device)
        mask = times < lengths.to(feats.device)[:, None, None]
        too_short, limit = check_short_utt(self.embed, feats.size(1))
        if too_short:
            raise TooShortUttError(
                f"has {feats.size(1)} frames and is too short for subsampling (it "
                f"needs more than {limit} frames), return empty results",
                feats.size(1),
                limit,
            )
        if isinstance(self.embed, torch.nn.Sequential):
            embedded = self._embed(sparsity, feats)
        else:
            embedded, mask = self._embed(sparsity, feats, mask)
        x, pos_emb = embedded if isinstance(embedded, tuple) else (embedded, None)
        return Frames(x, pos_emb, mask).with_chunk_mask(self.chunk)

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        """The norm after the last block."""
        return self.after_norm(x)

    def subsample(self, feats: torch.Tensor) -> torch.Tensor:
        """The front end on features without padding, as the blocks take its output."""
        (x, _), _ = self.embed(feats, None)
        return x

    def positions(self, queries: int, keys: int) -> torch.Tensor:
        """See `PrunableEncoder.positions`."""
        encoding = self.embed.pos_enc
        encoding.extend_pe(self.after_norm.weight.new_empty(1, keys))
        now = encoding.pe.size(1) // 2
        return encoding.pe[:, now - keys + 1 : now + queries]

    def resized(
        self,
        kept: Sequence[Sequence[str] | Mapping[str, int]],
        blocks: Sequence[int] | None = None,
    ) -> "LayerPrunableConformerEncoder":
        """An encoder of the same options that has less in it, freshly initialised.

        Args:
            kept: As in the constructor, of the blocks that it has.
            blocks: Their numbers, if not all; those of `asr` Conformers are alike.
        """
        arguments = {**self._arguments, "num_blocks": len(kept)}
        return LayerPrunableConformerEncoder(**arguments, kept=kept)

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
        gates: Sequence[Gate] | None = None,
        sparsity: Sequence[float] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Encodes features, as ESPnet's encoders do, optionally through a subnet.

        Args:
            xs_pad: Features `[batch, frames, input_size]`.
            ilens: Frames of each sequence `[batch]`.
            prev_states: Unused, part of ESPnet's interface.
            gates: A gate per unit; `None` for the full net.
            sparsity: A sparsity per weight; empty: nothing is masked.

        Returns:
            Output `[batch, time, size]`, lengths `[batch]`, and `None`.

        Raises:
            UserError: If the memory does not suffice for a long recording.
        """
        frames = self.front_end(xs_pad, ilens, sparsity)
        with telling_if_long(self, frames.x.size(1)):
            encoded, lengths = self.blocks(frames, gates, sparsity)
        return encoded, lengths, None


class OmniSparseConformerEncoder(LayerPrunableConformerEncoder):
    """The same, with masks on the weights of its blocks by default.

    Args:
        input_size: Feature dimension.
        pattern: Of the masks.
        **options: As for `LayerPrunableConformerEncoder`.
    """

    def __init__(self, input_size: int, pattern: str = DEFAULT_PATTERN, **options):
        super().__init__(input_size, pattern=pattern, **options)


def _same(given: Any, needed: Any) -> bool:
    """Whether an option says what is needed, in whatever spelling.

    >>> _same([0.0, 0.0], 0.0), _same((), []), _same(None, False), _same([0.1], 0.0)
    (True, True, True, False)
    """
    if isinstance(needed, float) and isinstance(given, list | tuple):
        return not any(given)
    return given == needed or (not needed and not given)


def _check_streaming(encoder: "LayerPrunableConformerEncoder") -> None:
    """Refuses what has no equal in a stream."""
    if not encoder.causal:
        raise UserError(
            "encoder_conf.chunk needs causal: true: the Conv modules would see the "
            "future otherwise."
        )
    attention = encoder.encoders[0].self_attn
    relative = isinstance(attention, RelPositionMultiHeadedAttention)
    if not relative or attention.zero_triu:
        raise UserError(
            "encoder_conf.causal needs rel_pos_type: latest, with its rel_pos and "
            "rel_selfattn and without zero_triu: positions in a stream are relative."
        )
    if attention.use_flash_attn:
        raise UserError(
            "encoder_conf.causal cannot be combined with use_flash_attn, which has no "
            "masks of chunks: set it to false."
        )


def _check_maskable(layer: EncoderLayer) -> None:
    """Refuses blocks whose weights are not those of linear layers."""
    if not isinstance(getattr(layer.feed_forward, "w_1", None), torch.nn.Linear):
        raise UserError(
            "encoder_conf.pattern needs positionwise_layer_type: linear: set it, or "
            "leave the pattern out."
        )


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
