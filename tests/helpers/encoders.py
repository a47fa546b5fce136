"""Small Conformer encoders, with nothing left at a neutral initial value."""

import torch

from espnet_omnisparse.nn.conformer import LayerPrunableConformerEncoder
from espnet_omnisparse.nn.transducer_encoder import OmniTransducerEncoder
from helpers.tiny import BLOCK, ENCODER, FEATURES, STREAMING

CONF = {**ENCODER, "macaron_style": True}
#: of any encoder of three blocks; of an E-Branchformer's sides, of its FFNs
PLAIN = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 3,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}
SIDES = {**PLAIN, "cgmlp_linear_units": 24, "cgmlp_conv_kernel": 7}
FFNS = {"use_ffn": True, "macaron_ffn": True}
ABSOLUTE = {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"}
VARIANTS = {
    "latest": {},
    "legacy": {"rel_pos_type": "legacy"},
    "absolute": ABSOLUTE,
    "sdpa": {"use_sdpa": True},
    "linear-input": {"input_layer": "linear"},
    "conv1d-feed-forward": {"positionwise_layer_type": "conv1d"},
    "conv1d-linear-feed-forward": {"positionwise_layer_type": "conv1d-linear"},
}


#: task -> an encoder of one block
ONE_BLOCK = {
    "asr": lambda: LayerPrunableConformerEncoder(
        20, **{**CONF, "linear_units": 16, "num_blocks": 1}
    ),
    "asr_transducer": lambda: OmniTransducerEncoder(
        20, [{**BLOCK, "linear_size": 16}], {"conv_size": 16, "subsampling_factor": 4}
    ),
}
# sizes of three blocks
BRANCH_MASKS = {
    "scattered": (1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 0),
    "empty-block": (1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1),
    "one-branch": (0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0),
    "full": (1,) * 12,
}
COMPONENTS = "1010 01 1 0001  0100 11 0 1111  1111 10 1 0110".replace(" ", "")
SPARSE = {
    "scattered": ("branch", BRANCH_MASKS["scattered"]),
    "full": ("branch", BRANCH_MASKS["full"]),
    "block": ("block", (1, 0, 1)),
    "component": ("component", tuple(map(int, COMPONENTS))),
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


def transducer_encoder(inputs=None, main=None, **conf):
    """A standalone transducer's encoder of 2 blocks, as initialised."""
    torch.manual_seed(0)
    body = [{**BLOCK, "num_blocks": 2}]
    inputs = {"vgg_like": False, **(inputs or {})}
    main = STREAMING if main is None else main
    return OmniTransducerEncoder(FEATURES, body, inputs, main, **conf)


def log_probs(model, batch, gates=None, head=None, sparsity=()):
    speech = batch["speech"], batch["speech_lengths"]
    more = {} if gates is None else {"gates": gates}
    more |= {"sparsity": sparsity} if any(sparsity) else {}
    with torch.no_grad():
        encoded, lengths, _ = model.encoder(*speech, **more)
        return (head or model.ctc).log_softmax(encoded), lengths
