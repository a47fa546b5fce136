"""Waveform to features as a module that becomes an ONNX graph."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import conv1d, pad

from espnet_omnisparse.nn.kaldi_fbank import FLOOR, KaldiFbank


class Features(torch.nn.Module):
    """A frontend and the normalisation behind it, on one recording.

    A spectrum is linear in the samples of its window, with whatever is done to them
    before: so its matrix is what the frontend makes of unit impulses.

    Args:
        model: Whose frontend it is.
        description: What `describe` tells of it.
    """

    def __init__(self, model: Any, description: Mapping[str, Any]):
        super().__init__()
        frontend, told = model.frontend, description["features"]
        self.kaldi = isinstance(frontend, KaldiFbank)
        if self.kaldi:
            self.length, self.hop = frontend.window_length, frontend.hop_length
            self.before = frontend.before
            self.behind = self.length - self.before - self.hop // 2
            spectrum = frontend.spectrum(torch.eye(self.length, dtype=torch.float64))
            spectrum = torch.view_as_real(spectrum)
            melmat, self.floor, log_base = frontend.melmat, FLOOR, None
        else:
            self.length, self.hop = told["n_fft"], told["hop_length"]
            self.before = self.behind = self.length // 2 if told["center"] else 0
            spectrum = self._stft(frontend.stft, torch.eye(self.length))
            melmat, self.floor = frontend.logmel.melmat, told["floor"]
            log_base = told["log_base"]
        self.scale = 1.0 if log_base is None else 1.0 / math.log(log_base)
        # real parts, then imaginary ones `[2 * bins, 1, length]`
        basis = spectrum.float().permute(2, 1, 0).flatten(0, 1)[:, None]
        self.register_buffer("basis", basis.contiguous())
        # as convolutions: they stay in fp32 where matrix products become int8
        self.register_buffer("filters", melmat.T[:, :, None].contiguous())
        self.normalise = Normalise(model, description)

    @staticmethod
    def _stft(stft: Any, windows: torch.Tensor) -> torch.Tensor:
        centred, stft.center = stft.center, False
        try:
            return stft(windows)[0][:, 0]
        finally:
            stft.center = centred

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """The normalised features `[1, frames, dim]` of a recording `[1, samples]`."""
        if self.kaldi:
            start = samples[:, : self.before].flip(1)
            end = samples[:, -self.behind :].flip(1)
            samples = torch.cat((start, samples, end), 1)
        elif self.before:
            mirrored = (self.before, self.behind)
            samples = pad(samples[:, None], mirrored, mode="reflect")[:, 0]
        return self.of_windows(samples)

    def of_windows(self, samples: torch.Tensor) -> torch.Tensor:
        """Those of all windows that are whole in `[1, samples]`."""
        spectrum = conv1d(samples[:, None], self.basis, stride=self.hop)
        real, imaginary = spectrum.tensor_split(2, 1)
        power = real**2 + imaginary**2
        energies = conv1d(power, self.filters).clamp(min=self.floor)
        return self.normalise(energies.log().transpose(1, 2) * self.scale)


class Normalise(torch.nn.Module):
    """ESPnet's normalisation of features.

    Args:
        model: Whose it is.
        description: What `describe` tells of it.
    """

    def __init__(self, model: Any, description: Mapping[str, Any]):
        super().__init__()
        self.told = description["normalize"] or {"kind": None}
        if self.told["kind"] == "global_mvn":
            self.register_buffer("mean", model.normalize.mean.float())
            self.register_buffer("std", model.normalize.std.float())

    def forward(
        self, feats: torch.Tensor, real: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalises `[batch, frames, dim]`.

        Args:
            feats: The features.
            real: True on real frames `[batch, frames]`; `None`: all are.
        """
        if self.told["kind"] is None:
            return feats
        if self.told["kind"] == "global_mvn":
            mean, std = self.mean, self.std
        else:
            mean = _mean(feats, real)
            variance = _mean((feats - mean) ** 2, real)
            std = variance.sqrt().clamp(min=self.told["eps"])
        if self.told["norm_means"]:
            feats = feats - mean
        return feats / std if self.told["norm_vars"] else feats


def _mean(x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Of the real frames `[batch, 1, dim]`."""
    if real is None:
        return x.mean(1, keepdim=True)
    total = x.masked_fill(~real[..., None], 0.0).sum(1, keepdim=True)
    return total / real.sum(1).clamp(min=1)[:, None, None]
