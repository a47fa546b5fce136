"""Costs, defined once.

- **parameters**: elements of trainable tensors; BatchNorm statistics are not counted.
  `total` is the whole model, `encoder` the encoder alone (front end to final norm),
  `nonzero` those of the total that are not zero.
- **MACs**: multiply-accumulates of matrix products and convolutions, attention
  included, from log-mel features to CTC log-probabilities, batch 1, for 10 s and 30 s
  of audio (100 feature frames per second).
- **file bytes**: of the model's file on disk.
- **RTF** (real-time factor): time from waveform to CTC log-probabilities divided by
  the audio's duration, batch 1, one thread, median of repeated runs.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FRAMES_PER_SECOND = 100
SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Cost:
    """Costs of one model that do not depend on the machine.

    Attributes:
        parameters: Of the whole model.
        encoder_parameters: Of the encoder.
        nonzero_parameters: Of the whole model, not zero.
        macs_10s: Multiply-accumulates for 10 s of audio.
        macs_30s: For 30 s of audio.
    """

    parameters: int
    encoder_parameters: int
    nonzero_parameters: int
    macs_10s: int
    macs_30s: int

    def as_dict(self) -> dict[str, int]:
        """Plain types, for JSON and YAML."""
        return asdict(self)


def count_cost(model: Any, feature_size: int) -> Cost:
    """Counts a model's costs.

    Args:
        model: Has `encoder(feats, lengths)` and `ctc.log_softmax(encoded)`.
        feature_size: Input dimension of the encoder.
    """
    parameters = dict(model.named_parameters())
    encoder = [p for name, p in parameters.items() if name.startswith("encoder.")]
    return Cost(
        parameters=sum(p.numel() for p in parameters.values()),
        encoder_parameters=sum(p.numel() for p in encoder),
        nonzero_parameters=sum(int(p.count_nonzero()) for p in parameters.values()),
        macs_10s=count_macs(model, feature_size, 10),
        macs_30s=count_macs(model, feature_size, 30),
    )


@torch.no_grad()
def count_macs(model: Any, feature_size: int, seconds: int) -> int:
    """Multiply-accumulates from features to CTC log-probabilities, batch 1."""
    frames = seconds * FRAMES_PER_SECOND
    model.eval()
    feats = torch.zeros(1, frames, feature_size)
    # the counter does not know the fused attention kernels of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoded = model.encoder(feats, torch.tensor([frames]))[0]
        model.ctc.log_softmax(encoded)
    return counter.get_total_flops() // 2  # the counter counts mul and add apart


def measure_paired(
    runs: Mapping[str, Callable[[], Any]], rounds: int = 15, warmup: int = 2
) -> dict[str, list[float]]:
    """Times several functions in turn, so that a slow moment hits all alike.

    Args:
        runs: Name -> function.
        rounds: How often each is timed.
        warmup: Untimed rounds before.

    Returns:
        Name -> seconds of each round; entries of the same round are a pair.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number >= warmup:
                times[name].append(elapsed)
    return times


def paired_ratio(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """Median over the rounds of `name`'s time divided by `other`'s."""
    pairs = zip(times[name], times[other], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


@torch.no_grad()
def measure_rtf(
    models: Mapping[str, Any], seconds: int = 10, rounds: int = 15
) -> dict[str, list[float]]:
    """Paired times of several models on the same audio, one thread, batch 1.

    Args:
        models: Name -> model with ESPnet's `encode` and `ctc`.
        seconds: Length of the (noise) input.
        rounds: Timed rounds.

    Returns:
        Name -> real-time factor of each round.
    """
    generator = torch.Generator().manual_seed(0)
    speech = 0.1 * torch.randn(1, seconds * SAMPLE_RATE, generator=generator)
    lengths = torch.tensor([speech.size(1)])

    def recogniser(model: Any) -> Callable[[], Any]:
        model.eval()
        return lambda: model.ctc.log_softmax(model.encode(speech, lengths)[0])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = measure_paired({n: recogniser(m) for n, m in models.items()}, rounds)
    finally:
        torch.set_num_threads(threads)
    return {name: [t / seconds for t in row] for name, row in times.items()}
