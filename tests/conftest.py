import os

import pytest

pytest.register_assert_rewrite("helpers")

from helpers import tiny  # noqa: E402
from helpers.engine import engine_library  # noqa: E402, F401
from helpers.training import corpus, uninterrupted  # noqa: E402, F401

# ESPnet's optional parts look for models on the net when they are imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def tiny_config():
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
        sizes = {"sizes": tiny.BLOCK_SIZES} if granularity == "block" else {}
        config = tiny.asr_config(
            {"conv_norm": conv_norm, "granularity": granularity, **(encoder or {})},
            {**sizes, "heads": heads, **(supernet or {})},
            decoder="transformer" if attention else None,
            decoder_conf=tiny.DECODER if attention else {},
        )
        config["model_conf"] |= {"ctc_weight": 0.3 if attention else 1.0, **model_conf}
        return config

    return make


@pytest.fixture
def build():
    """Builds a configuration's model with nothing left at its neutral initial value."""
    return tiny.build


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
        "speech": torch.randn(4, 60, tiny.FEATURES, generator=generator),
        "speech_lengths": torch.tensor([60, 52, 47, 40]),
        "text": text,
        "text_lengths": text_lengths,
    }
