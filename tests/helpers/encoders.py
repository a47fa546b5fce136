"""Small Conformer encoders, with nothing left at a neutral initial value."""

import torch

from espnet_omnisparse.nn.conformer import LayerPrunableConformerEncoder

FEATURES = 20


CONF = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 3,
    "cnn_module_kernel": 7,
    "rel_pos_type": "latest",
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
    "macaron_style": True,
}


ABSOLUTE = {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"}


VARIANTS = {
    "latest": {},
    "legacy": {"rel_pos_type": "legacy"},
    "absolute": ABSOLUTE,
    "sdpa": {"use_sdpa": True},
    "linear-input": {"input_layer": "linear"},
    "conv1d-feed-forward": {"positionwise_layer_type": "conv1d"},
}


def randomize(encoder):
    """Adds the same noise every time, to running statistics as well."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in encoder.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor += noise if "var" in name else 0.3 * (noise - 0.5)
    return encoder


def prunable(**conf):
    """A prunable encoder; options as in `encoder_conf`."""
    torch.manual_seed(0)
    return randomize(LayerPrunableConformerEncoder(FEATURES, **{**CONF, **conf}))
