"""ESPnet's Conformer with prunable branches.

The blocks are ESPnet's own modules under their own parameter names, so a stock
checkpoint loads by name; a branch whose gate is `None` is not computed.
"""

from collections.abc import Mapping

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    RelPositionMultiHeadedAttention,
)

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.layout import ASR_LAYOUT
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.asr_encoder import FIXED, OmniSparse, PrunableAsrEncoder
from espnet_omnisparse.nn.block import CausalConv1d, ChannelNorm, PrunableBlock
from espnet_omnisparse.nn.encoder import CONV_NORMS


class LayerPrunableConformerEncoder(PrunableAsrEncoder, ConformerEncoder):
    """ESPnet's Conformer encoder, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        conv_norm: Norm of the Conv module: `batch_norm` as in ESPnet, or
            `layer_norm`, whose statistics do not depend on the subnet.
        causal: Whether the Conv modules see the past alone, which a stream needs.
        chunk: What each frame sees, as in a stream, such as `{size: 16, left: 32}`;
            `None` or `full`: the whole recording.
        macaron_style: Whether a block has an FFN before the attention too.
        **options: Those of `PrunableAsrEncoder`, and all other options of ESPnet's
            `conformer`.

    Raises:
        UserError: If an option excludes pruning.
    """

    layout = ASR_LAYOUT
    block_class = PrunableBlock
    can_stream = True
    fixed = {
        "use_cnn_module": True,
        "normalize_before": True,
        "concat_after": False,
        **FIXED,
        "ctc_trim": False,
        "stochastic_depth_rate": 0.0,
    }

    def __init__(
        self,
        input_size: int,
        conv_norm: str = "batch_norm",
        causal: bool = False,
        chunk: Mapping[str, int] | str | None = None,
        macaron_style: bool = True,
        **options,
    ):
        if conv_norm not in CONV_NORMS:
            raise UserError(
                f"encoder_conf.conv_norm must be one of {', '.join(CONV_NORMS)}, "
                f"not {conv_norm!r}."
            )
        # what `_change` makes of the blocks; they are no modules
        self.conv_norm, self.causal = conv_norm, causal
        self.chunk = Chunk.parse(chunk, "encoder_conf.chunk")
        super().__init__(input_size, macaron_style=macaron_style, **options)
        self._arguments["conv_norm"] = conv_norm

    def _change(self, layers: torch.nn.ModuleList) -> None:
        if self.causal or self.chunk is not None:
            _check_streaming(self)
        for layer in layers:
            if self.conv_norm == "layer_norm":
                layer.conv_module.norm = ChannelNorm(layer.size)
            if self.causal:
                conv = layer.conv_module
                conv.depthwise_conv = CausalConv1d(conv.depthwise_conv)


class OmniSparseConformerEncoder(OmniSparse, LayerPrunableConformerEncoder):
    """The same, with masks on the weights of its blocks by default."""


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
