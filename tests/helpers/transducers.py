"""The training of a standalone transducer, and a transducer's loss, the obvious way."""

import itertools

import torch

from helpers.tiny import FEATURES
from helpers.training import TOKENS as LETTERS

# waveforms instead of features
AUDIO = {
    "input_size": None,
    "frontend": "default",
    "frontend_conf": {"n_fft": 512, "hop_length": 160, "n_mels": FEATURES},
    "token_type": "char",
}
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
    """The mean of `forward_algorithm` over logits `[B, T, U + 1, V]`."""
    losses = [
        forward_algorithm(
            joint[b, :t, : u + 1].double().log_softmax(-1), labels[b, :u], blank
        )
        for b, (t, u) in enumerate(zip(t_len.tolist(), u_len.tolist(), strict=True))
    ]
    return sum(losses) / len(losses)


def features(frames=(60, 52, 47, 40)):
    return torch.randn(len(frames), max(frames), FEATURES), torch.tensor(frames)


def encode(model, feats, lengths, spec=None):
    with torch.no_grad():
        if spec is None:
            return model.encoder(feats, lengths)[0]
        hidden = model.encoder.front_end(feats, lengths).with_chunk_mask(spec.chunk)
        return model.encoder.blocks(hidden, spec.gates(), spec.sparsity)[0]
