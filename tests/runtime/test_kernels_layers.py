"""Norms, activations, convolution and attention of the engine against PyTorch's."""

import numpy as np
import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    RelPositionalEncoding,
)

FRAMES = (1, 7, 8, 9, 31, 32, 33, 100)
FUNCTIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "swish": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "hardtanh": torch.nn.functional.hardtanh,
    "selu": torch.selu,
}


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def close(y, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(y, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("channels", (1, 5, 64))
def test_layer_norm(kernels, rng, frames, channels):
    x, gamma, beta = (
        normal(rng, *s) for s in ((frames, channels), (channels,), (channels,))
    )
    x = 3 * x + 5
    for epsilon in (1e-12, 1e-5, 0.1):
        expected = torch.nn.functional.layer_norm(
            *(torch.from_numpy(x).double(), (channels,)),
            *(torch.from_numpy(gamma).double(), torch.from_numpy(beta).double()),
            epsilon,
        )
        # one channel: 0 / sqrt(epsilon), of which rounding makes no fair question
        if channels > 1:
            close(kernels.layer_norm(x, gamma, beta, epsilon), expected, 1e-4, 1e-4)


def test_layer_norm_of_one_broken_frame(kernels, rng):
    x, gamma, beta = normal(rng, 33, 12), normal(rng, 12), normal(rng, 12)
    clean = kernels.layer_norm(x, gamma, beta, 1e-5)
    x[4, 2] = np.nan
    y = kernels.layer_norm(x, gamma, beta, 1e-5)
    assert np.isnan(y[4]).all()
    assert (np.delete(y, 4, 0) == np.delete(clean, 4, 0)).all()


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations(kernels, rng, activation):
    """From the smallest numbers to far beyond where exponentials overflow."""
    large = np.logspace(-30, 37, 600).astype(np.float32)
    small = np.linspace(-20, 20, 4001).astype(np.float32)
    x = np.concatenate([-large, large, small, [0.0]]).astype(np.float32)
    expected = FUNCTIONS[activation](torch.from_numpy(x).double()).numpy()
    close(kernels.activate(x, activation), expected, 2e-5, 3e-7)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations_of_what_is_not_finite(kernels, activation):
    x = np.array([1.0, np.nan, 2.0, np.inf] + [0.5] * 20, np.float32)
    y = kernels.activate(x, activation)
    assert np.isnan(y[1])
    end = FUNCTIONS[activation](torch.tensor(torch.inf)).item()
    assert y[3] == end
    assert np.isfinite(np.delete(y, (1, 3))).all()


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("channels", (1, 2, 500))
def test_log_softmax(kernels, rng, frames, channels):
    x = 10 * normal(rng, frames, channels)
    expected = torch.log_softmax(torch.from_numpy(x).double(), dim=-1)
    close(kernels.log_softmax(x), expected)
    close(kernels.log_softmax(x + 1000), expected, atol=2e-4)


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("kernel", (1, 3, 15, 31))
def test_depthwise_convolution(kernels, rng, frames, kernel):
    """Centred on a frame, and looking back alone."""
    channels = 11
    x, weight = normal(rng, frames, channels), normal(rng, channels, kernel)
    bias = normal(rng, channels)
    for before in ((kernel - 1) // 2, kernel - 1):
        padded = torch.nn.functional.pad(
            torch.from_numpy(x).T[None], (before, kernel - 1 - before)
        )
        expected = torch.nn.functional.conv1d(
            *(padded, torch.from_numpy(weight)[:, None], torch.from_numpy(bias)),
            groups=channels,
        )[0].T
        close(kernels.depthwise(x, weight, bias, before), expected)


@pytest.mark.parametrize("parts", ((8, 8, 8, 9), (1, 1, 30, 1), (3, 40)))
@pytest.mark.parametrize("kernel", (1, 4, 15))
def test_depthwise_convolution_in_parts_is_that_of_the_whole(
    kernels, rng, parts, kernel
):
    channels = 6
    weight, bias = normal(rng, channels, kernel), normal(rng, channels)
    x = normal(rng, sum(parts), channels)
    whole = kernels.depthwise(x, weight, bias, kernel - 1)
    past = np.zeros((channels, kernel - 1), np.float32)
    pieces = np.split(x, np.cumsum(parts)[:-1])
    results = [kernels.depthwise(p, weight, bias, kernel - 1, past) for p in pieces]
    close(np.concatenate(results), whole, atol=1e-6)


def attention(rng, heads, width, relative):
    """ESPnet's attention, of which the linear layers let all through."""
    size = heads * width
    kind = RelPositionMultiHeadedAttention if relative else MultiHeadedAttention
    module = kind(heads, size, 0.0).eval()
    with torch.no_grad():
        for layer in ("linear_q", "linear_k", "linear_v", "linear_out"):
            getattr(module, layer).weight.copy_(torch.eye(size))
            getattr(module, layer).bias.zero_()
        if relative:
            module.pos_bias_u.normal_()
            module.pos_bias_v.normal_()
    return module


@pytest.mark.parametrize("frames", (1, 7, 8, 9, 32, 75))
@pytest.mark.parametrize("before", (0, 1, 16, 37))
@pytest.mark.parametrize("heads, width", ((1, 8), (2, 16), (3, 5)))
@pytest.mark.parametrize("relative", (True, False))
def test_attention(kernels, rng, frames, before, heads, width, relative):
    """The last frames of a recording, whose first are cached keys and values."""
    size, keys = heads * width, before + frames
    q, k, v = (normal(rng, keys, size) for _ in range(3))
    module = attention(rng, heads, width, relative)
    tensors = [torch.from_numpy(a)[None] for a in (q, k, v)]
    with torch.no_grad():
        if relative:
            encoding = RelPositionalEncoding(size + size % 2, 0.0)
            distances = encoding(torch.zeros(1, keys, size + size % 2))[1][..., :size]
            expected = module(*tensors, distances, None)[0]
            positions = module.linear_pos(distances)[0].numpy()
            biases = [
                b.detach().numpy() for b in (module.pos_bias_u, module.pos_bias_v)
            ]
        else:
            expected = module(*tensors, None)[0]
            positions, biases = None, (None, None)
    qkv = np.concatenate([q, k, v], axis=1)[before:]
    past = np.concatenate([k, v], axis=1)[:before]
    for threads in (1, 2):
        y = kernels.attend(
            np.ascontiguousarray(qkv), heads, past, positions, *biases, threads
        )
        close(y, expected[before:], 1e-4, 2e-5)
