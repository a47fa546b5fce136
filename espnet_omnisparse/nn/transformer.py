"""ESPnet's Transformer with prunable branches: attention and FFN."""

from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_omnisparse.core.layout import TRANSFORMER_LAYOUT
from espnet_omnisparse.nn.asr_encoder import FIXED, OmniSparse, PrunableAsrEncoder
from espnet_omnisparse.nn.block import PrunableBlock


class TransformerBlock(PrunableBlock):
    """A Transformer block, which has no norm of its own at its end."""

    layout = TRANSFORMER_LAYOUT
    ff_scale = 1.0


class LayerPrunableTransformerEncoder(PrunableAsrEncoder, TransformerEncoder):
    """ESPnet's Transformer encoder, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        **options: Those of `PrunableAsrEncoder`, and all of ESPnet's `transformer`.

    Raises:
        UserError: If an option excludes pruning.
    """

    layout = TRANSFORMER_LAYOUT
    block_class = TransformerBlock
    fixed = {"normalize_before": True, "concat_after": False, **FIXED}


class OmniSparseTransformerEncoder(OmniSparse, LayerPrunableTransformerEncoder):
    """The same, with masks on the weights of its blocks by default."""
