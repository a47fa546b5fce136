"""Small transducers, their training, and their loss by the obvious way."""

import copy
import functools
import itertools

import torch
from conftest import FEATURES, TOKENS

from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.tasks import OmniASRTransducerTask
from espnet_omnisparse.train.transducer_model import OmniTransducerModel
from helpers.training import TOKENS as LETTERS

BLOCK = {
    "block_type": "conformer",
    "hidden_size": 16,
    "linear_size": 32,
    "heads": 2,
    "conv_mod_kernel_size": 5,
}


STREAMING = {"dynamic_chunk_training": True}


SUPERNET = {"method": "simple_topk", "sizes": {"small": 4, "medium": 8}}


# waveforms instead of features
AUDIO = {
    "input_size": None,
    "frontend": "default",
    "frontend_conf": {"n_fft": 512, "hop_length": 160, "n_mels": FEATURES},
    "token_type": "char",
}


@functools.cache
def defaults():
    return vars(OmniASRTransducerTask.get_parser().parse_args(["--output_dir", "x"]))


def transducer_config(supernet=None, blocks=3, main=None, encoder=None, **model_conf):
    """The configuration of a small transducer, streaming and masked by default.

    Without `supernet` it is that of a plain net.
    """
    config = {
        **defaults(),
        "token_list": TOKENS,
        "input_size": FEATURES,
        "frontend": None,
        "specaug": None,
        "normalize": None,
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


def shaken(model):
    """Nothing is left at its neutral initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def build(config, run_length=100, update=60):
    torch.manual_seed(0)
    model = shaken(family.build(config))
    if isinstance(model, OmniTransducerModel):
        model.supernet.set_run_length(run_length)
        model.supernet.update = update
    return model


TRAINING = {
    "ngpu": 0,
    "num_workers": 0,
    "batch_type": "sorted",
    "batch_size": 4,
    "max_epoch": 2,
    "seed": 3,
    "token_list": list(LETTERS),
    "num_att_plot": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "keep_nbest_models": 10,
    "optim": "adamw",
    "optim_conf": {"lr": 0.01},
    "normalize": None,
}


def forward_algorithm(log_probs, labels, blank):
    """-log P(labels) of one utterance `[T, U + 1, V]`, node after node."""
    frames, states, _ = log_probs.shape
    alpha = {(0, 0): log_probs.new_zeros(())}
    for t, u in itertools.product(range(frames), range(states)):
        ways = []
        if t > 0:
            ways.append(alpha[t - 1, u] + log_probs[t - 1, u, blank])
        if u > 0:
            ways.append(alpha[t, u - 1] + log_probs[t, u - 1, labels[u - 1]])
        if ways:
            alpha[t, u] = torch.logsumexp(torch.stack(ways), 0)
    return -(alpha[frames - 1, states - 1] + log_probs[-1, -1, blank])


def slow_loss(joint, labels, t_len, u_len, blank):
    """The mean of `forward_algorithm` over the utterances of logits `[B, T, U + 1, V]`."""
    losses = [
        forward_algorithm(
            joint[b, :t, : u + 1].double().log_softmax(-1), labels[b, :u], blank
        )
        for b, (t, u) in enumerate(zip(t_len.tolist(), u_len.tolist(), strict=True))
    ]
    return sum(losses) / len(losses)
