"""The tiny configuration: a net of d 16 for either task, without dropout, on features.

`asr_config` and `transducer_config` are the arguments of a training by name, as a
config.yaml has them; `TRAINING` is the part of one that a recipe's YAML file holds.
ESPnet is imported where it is used: tests of the recipe alone start without it.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

TOKENS = ["<blank>", "<unk>", "a", "b", "c", "<sos/eos>"]
FEATURES = 20
ON_FEATURES = {
    "token_list": TOKENS,
    "input_size": FEATURES,
    "frontend": None,
    "specaug": None,
    "normalize": None,
}
#: features of waveforms, 25 ms every 10 ms
FRONTEND = {"n_fft": 512, "win_length": 400, "hop_length": 160}

#: a Conformer's size; the rest is ESPnet's default, dropout too
SHAPE = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 2,
    "cnn_module_kernel": 7,
    "rel_pos_type": "latest",
}
ENCODER = {
    **SHAPE,
    "num_blocks": 3,
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
#: no two numbers alike: 4 heads of 6 channels, FFN chunks of 10
WIDE = {"output_size": 24, "attention_heads": 4, "linear_units": 40}
#: a block of the standalone transducer's encoder
BLOCK = {
    "block_type": "conformer",
    "hidden_size": 16,
    "linear_size": 32,
    "heads": 2,
    "conv_mod_kernel_size": 5,
}
STREAMING = {"dynamic_chunk_training": True}

#: of the 12 units that the 3 blocks have
SUPERNET = {"method": "simple_topk", "sizes": {"small": 4, "medium": 8}}
BLOCK_SIZES = {"small": 1, "medium": 2}

TRAINING = {
    "num_workers": 0,
    "num_att_plot": 0,
    "best_model_criterion": [["valid", "loss_sizes", "min"]],
    "frontend_conf": FRONTEND,
    "encoder": "layer_prunable_conformer",
    "encoder_conf": SHAPE,
    "model": "omni",
    "model_conf": {
        "ctc_weight": 1.0,
        "supernet": {
            "method": "simple_topk",
            "sizes": {"small": 3, "medium": 5},
            "step1": 0.5,
            "score_lr": 0.1,
        },
    },
    "optim": "adamw",
    "optim_conf": {"lr": 0.002},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 5},
}


@functools.cache
def asr_defaults() -> dict[str, Any]:
    """What a training of the task `asr` has where its configuration says nothing."""
    from espnet_omnisparse.tasks import OmniASRTask

    return vars(OmniASRTask.get_parser().parse_args(["--output_dir", "unused"]))


@functools.cache
def transducer_defaults() -> dict[str, Any]:
    """The same of the task `asr_transducer`."""
    from espnet_omnisparse.tasks import OmniASRTransducerTask

    parser = OmniASRTransducerTask.get_parser()
    return vars(parser.parse_args(["--output_dir", "unused"]))


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with changes; nested sections are merged, not replaced."""
    result = dict(config)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        result[key] = changed(old, value) if both else value
    return result


def asr_config(encoder=None, supernet=None, /, **changes):
    """The configuration of a supernet of CTC alone, on features.

    Args:
        encoder: Options to add to `encoder_conf`.
        supernet: Options to add to `model_conf.supernet`.
        changes: Options to put in place of others.
    """
    config = {
        **asr_defaults(),
        **ON_FEATURES,
        "encoder": "layer_prunable_conformer",
        "encoder_conf": {**ENCODER, **(encoder or {})},
        "decoder": None,
        "ctc_conf": {},
        "model": "omni",
        "model_conf": {"ctc_weight": 1.0, "supernet": {**SUPERNET, **(supernet or {})}},
        **changes,
    }
    return copy.deepcopy(config)


def transducer_config(supernet=None, blocks=3, main=None, encoder=None, **model_conf):
    """The configuration of a small transducer, streaming and masked by default.

    Without `supernet` it is that of a plain net.
    """
    config = {
        **transducer_defaults(),
        **ON_FEATURES,
        "encoder_conf": {
            "body_conf": [{**BLOCK, "num_blocks": blocks}],
            "input_conf": {"vgg_like": False},
            "main_conf": STREAMING if main is None else main,
            "pattern": "8x1",
            **(encoder or {}),
        },
        "decoder": "rnn",
        "decoder_conf": {"embed_size": 8, "hidden_size": 8},
        "joint_network_conf": {"joint_space_size": 8},
        "model_conf": dict(model_conf),
    }
    if supernet is not None:
        config["model_conf"]["supernet"] = supernet
    return copy.deepcopy(config)


def shaken(module):
    """Leaves nothing of a module at its neutral initial value."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
            norm.num_batches_tracked.fill_(1000)
    return module.eval()


def build(config, run_length=100, update=0, noise=None):
    """A configuration's model, shaken; a supernet is at `update` of `run_length`.

    Without a seed of its own the noise goes on with the generator of the weights.
    """
    import torch

    from espnet_omnisparse.extract import experiment as family

    torch.manual_seed(0)
    model = family.build(config)
    if noise is not None:
        torch.manual_seed(noise)
    shaken(model)
    if hasattr(model, "supernet"):
        model.supernet.set_run_length(run_length)
        model.supernet.update = update
    return model
