import copy
import os

import pytest

# ESPnet's optional parts look for models on the net when they are imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

TOKENS = ["<blank>", "<unk>", "a", "b", "c", "<sos/eos>"]
FEATURES = 20
ENCODER = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 3,
    "cnn_module_kernel": 7,
    "rel_pos_type": "latest",
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}
DECODER = {
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 1,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
}
SUPERNET = {"method": "simple_topk", "sizes": {"small": 4, "medium": 8}}
BLOCK_SIZES = {"small": 1, "medium": 2}


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def default_config():
    from espnet_omnisparse.tasks import OmniASRTask

    return vars(OmniASRTask.get_parser().parse_args(["--output_dir", "unused"]))


@pytest.fixture
def tiny_config(default_config):
    """The configuration of a small supernet: 3 blocks, d 16, no dropout."""

    def make(
        conv_norm="layer_norm",
        granularity="branch",
        heads="shared",
        attention=False,
        encoder=None,
        supernet=None,
        **model_conf,
    ):
        sizes = {"sizes": BLOCK_SIZES} if granularity == "block" else {}
        config = {
            **default_config,
            "token_list": TOKENS,
            "input_size": FEATURES,
            "frontend": None,
            "specaug": None,
            "normalize": None,
            "model": "omni",
            "encoder": "layer_prunable_conformer",
            "encoder_conf": {
                **ENCODER,
                "conv_norm": conv_norm,
                "granularity": granularity,
                **(encoder or {}),
            },
            "decoder": "transformer" if attention else None,
            "decoder_conf": DECODER if attention else {},
            "ctc_conf": {},
            "model_conf": {
                "ctc_weight": 0.3 if attention else 1.0,
                "supernet": {**SUPERNET, **sizes, "heads": heads, **(supernet or {})},
                **model_conf,
            },
        }
        return copy.deepcopy(config)

    return make


@pytest.fixture
def build():
    """Builds a configuration's model with nothing left at its neutral initial value."""
    import torch

    from espnet_omnisparse.extract import experiment as family

    def make(config, run_length=100, update=0):
        torch.manual_seed(0)
        model = family.build(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm1d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 1.5)
                norm.num_batches_tracked.fill_(1000)
        if config["model"] == "omni":
            model.supernet.set_run_length(run_length)
            model.supernet.update = update
        return model

    return make


@pytest.fixture
def tiny_model(tiny_config, build):
    """Builds a small supernet; step 2 begins at update 60 of 100."""

    def make(update=0, **options):
        return build(tiny_config(**options), update=update)

    return make


@pytest.fixture
def batch():
    """Four utterances of different lengths, as the model's forward takes them."""
    import torch

    generator = torch.Generator().manual_seed(1)
    text = torch.randint(2, 5, (4, 4), generator=generator)
    text_lengths = torch.tensor([4, 3, 4, 2])
    text[torch.arange(4) >= text_lengths[:, None]] = -1
    return {
        "speech": torch.randn(4, 60, FEATURES, generator=generator),
        "speech_lengths": torch.tensor([60, 52, 47, 40]),
        "text": text,
        "text_lengths": text_lengths,
    }
