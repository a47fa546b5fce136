"""Costs, defined once.

- **parameters**: elements of trainable tensors; BatchNorm statistics are not counted.
  `total` is the whole model, `encoder` the encoder alone (front end to final norm),
  `nonzero` those of the total that are not zero.
- **packed bytes**: of the model's tensors if the maskable weights (linear layers and
  pointwise convolutions of the encoder's blocks; the front end's output layer and its
  convolutions but the first, as matrices; linear layers of the attention decoder's
  layers) are stored by groups of a pattern: 4
  bytes for each element of a group that is not all zero, 2 for the group's column, and
  4 for each row of groups, and one more, for where it begins. Groups at an edge are
  padded; a group of N:M is one weight. A weight for which this is no gain, and
  everything else (parameters and floating buffers), takes 4 bytes per element. A packed
  file has a header too, and takes less for the mel filters.
- **MACs**: multiply-accumulates of matrix products and convolutions, attention
  included, from log-mel features to CTC log-probabilities, batch 1, for 10 s and 30 s
  of audio (100 feature frames per second).
- **file bytes**: of the model's file on disk.
- **latency**: time from waveform to CTC log-probabilities for 10 s of audio, batch 1,
  one thread, median of repeated runs.
- **RTF** (real-time factor): time from waveform to CTC log-probabilities divided by
  the audio's duration, batch 1, one thread, median of repeated runs.
"""

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_omnisparse.core.branches import MERGE, MERGE_PRUNABLE, PRUNABLE
from espnet_omnisparse.core.decoder import is_maskable
from espnet_omnisparse.core.layout import LAYOUTS, front_layers
from espnet_omnisparse.core.mask import Pattern, matrix_shape, nonzero_groups

FRAMES_PER_SECOND = 100
SAMPLE_RATE = 16_000
VALUE, _COLUMN, _BEGIN = 4, 2, 4  # bytes
_MASKABLE = re.compile(
    "|".join(
        rf"{re.escape(layout.prefix)}\d+\.{re.escape(layout.weight_of(branch, layer))}"
        for layout in LAYOUTS
        for branch in (*layout.parts, MERGE)
        for layer in {**PRUNABLE, MERGE: MERGE_PRUNABLE}[branch]
    )
)


@dataclass(frozen=True)
class Cost:
    """Costs of one model that do not depend on the machine.

    Attributes:
        parameters: Of the whole model.
        encoder_parameters: Of the encoder.
        nonzero_parameters: Of the whole model, not zero.
        macs_10s: Multiply-accumulates for 10 s of audio.
        macs_30s: For 30 s of audio.
        packed_bytes: Of the model, masked weights stored by their non-zero groups.
    """

    parameters: int
    encoder_parameters: int
    nonzero_parameters: int
    macs_10s: int
    macs_30s: int
    packed_bytes: int

    def as_dict(self) -> dict[str, int]:
        """Plain types, for JSON and YAML."""
        return asdict(self)


def count_cost(model: Any, feature_size: int, pattern: Pattern | None = None) -> Cost:
    """Counts a model's costs.

    Args:
        model: Has `encoder(feats, lengths)`, and `ctc` or a joint network.
        feature_size: Input dimension of the encoder.
        pattern: By whose groups weights are packed; `None`: all are stored densely.
    """
    parameters = dict(model.named_parameters())
    encoder = [p for name, p in parameters.items() if name.startswith("encoder.")]
    return Cost(
        parameters=sum(p.numel() for p in parameters.values()),
        encoder_parameters=sum(p.numel() for p in encoder),
        nonzero_parameters=sum(int(p.count_nonzero()) for p in parameters.values()),
        macs_10s=count_macs(model, feature_size, 10),
        macs_30s=count_macs(model, feature_size, 30),
        packed_bytes=count_packed_bytes(model, pattern),
    )


@torch.no_grad()
def count_packed_bytes(model: Any, pattern: Pattern | None = None) -> int:
    """Bytes of a model whose maskable weights are stored by their non-zero groups.

    Args:
        model: A model or an extracted size.
        pattern: The groups; `None`: all weights are stored densely.
    """
    floating = (buffer for buffer in model.buffers() if buffer.is_floating_point())
    total = VALUE * sum(buffer.numel() for buffer in floating)
    parameters = dict(model.named_parameters())
    front = set(front_layers(parameters).values())
    for name, parameter in parameters.items():
        maskable = name in front or _MASKABLE.fullmatch(name) or is_maskable(name)
        if pattern is not None and maskable:
            groups = nonzero_groups(parameter, pattern)
            total += packed_bytes(parameter.shape, groups, pattern)
        else:
            total += VALUE * parameter.numel()
    return total


def packed_bytes(shape: Sequence[int], groups: int, pattern: Pattern) -> int:
    """Bytes of one weight of which so many groups are stored; never above the dense.

    Args:
        shape: Of the weight; see `mask.matrix_shape`.
        groups: How many are stored.
        pattern: The groups; those of N:M are single weights.

    >>> packed_bytes((16, 10), 5, Pattern(rows=8))
    182
    >>> packed_bytes((16, 10), 19, Pattern(rows=8))
    640
    """
    out, inputs = matrix_shape(shape)
    rows = -(-out // pattern.rows)
    each = VALUE * pattern.rows * pattern.cols + _COLUMN
    return min(groups * each + _BEGIN * (rows + 1), VALUE * out * inputs)


@torch.no_grad()
def count_macs(model: Any, feature_size: int, seconds: int) -> int:
    """Multiply-accumulates from features to CTC, or to one joint output, per frame.

    Args:
        model: The model.
        feature_size: Input dimension of the encoder.
        seconds: Length of the audio, in seconds.
    """
    frames = seconds * FRAMES_PER_SECOND
    model.eval()
    feats = torch.zeros(1, frames, feature_size)
    # the counter does not know the fused attention kernels of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoded = model.encoder(feats, torch.tensor([frames]))[0]
        _output(model, encoded)
    return counter.get_total_flops() // 2  # the counter counts mul and add apart


def _output(model: Any, encoded: torch.Tensor) -> torch.Tensor:
    """What recognition computes of every frame: CTC, or the joint network once."""
    if getattr(model, "ctc", None) is not None:
        return model.ctc.log_softmax(encoded)
    predicted = encoded.new_zeros(1, 1, model.decoder.output_size)
    return model.joint_network(encoded, predicted)


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
    """Median over the rounds of `name`'s time divided by `other`'s.

    Args:
        times: Name -> time of each round.
        name: Name of what is divided.
        other: Name of what it is divided by.
    """
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
        return lambda: _output(model, model.encode(speech, lengths)[0])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = measure_paired({n: recogniser(m) for n, m in models.items()}, rounds)
    finally:
        torch.set_num_threads(threads)
    return {name: [t / seconds for t in row] for name, row in times.items()}
