"""The modules of sherpa-onnx's contracts: its shapes around our encoder.

sherpa-onnx computes features itself, knows the inputs and outputs by their places, and
learns sizes from metadata (csrc/online-wenet-ctc-model.cc, online-conformer-transducer-
model.cc and offline-zipformer-ctc-model.cc of 2.0.1).
"""

import math

import torch
from torch.nn.functional import pad

from espnet_omnisparse.export.onnx_encoder import (
    Encoder,
    Subsampling,
    chunk_hides,
    hides_unfilled,
)
from espnet_omnisparse.export.onnx_features import Normalise
from espnet_omnisparse.export.onnx_modules import Head, Predictor
from espnet_omnisparse.export.source import Source
from espnet_omnisparse.nn.kaldi_fbank import FLOOR

#: By which features of 16-bit samples lie above those of samples in [-1, 1).
INT16 = math.log(2.0**30)


class Batch(torch.nn.Module):
    """Recordings of any lengths, as features.

    Args:
        source: What is exported.
        head: Behind the encoder.
    """

    def __init__(self, source: Source, head: Head):
        super().__init__()
        model, description = source.model, source.description
        self.normalise = Normalise(model, description)
        self.subsampling = Subsampling(model, description)
        self.encoder = Encoder(model, description)
        self.head, self.chunk = head, source.chunk

    def forward(
        self, x: torch.Tensor, x_lens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes.

        Args:
            x: Features `[batch, frames, dim]`.
            x_lens: Frames of each recording `[batch]`.

        Returns:
            `[batch, time, outputs]` and the real frames of each `[batch]`.
        """
        # or the front end would refuse what is too short for one frame
        x = pad(x, (0, 0, 0, self.subsampling.field))
        real = torch.arange(x.size(1)) < x_lens[:, None]
        x = self.normalise(x, real).masked_fill(~real[..., None], 0.0)
        x = self.subsampling(x)
        lengths = self.subsampling.lengths(x_lens).clamp(min=0)
        real = torch.arange(x.size(1)) < lengths[:, None]
        hidden = ~real[:, None, None]
        if self.chunk is not None:
            hidden = hidden | chunk_hides(self.chunk, x.size(1))
        return self.head(self.encoder(x, hidden, real)[0]), lengths


class _Live(torch.nn.Module):
    """What both streaming contracts have in common.

    Attributes:
        frames: Feature frames of a call.
        shift: Feature frames from a call to the next.
    """

    def __init__(self, source: Source, head: Head):
        super().__init__()
        model, description, chunk = source.model, source.description, source.chunk
        self.normalise = Normalise(model, description)
        self.subsampling = Subsampling(model, description)
        self.encoder = Encoder(model, description, chunk)
        self.head, self.chunk = head, chunk
        self.shift = chunk.size * self.subsampling.stride
        self.frames = self.shift - self.subsampling.stride + self.subsampling.field
        # room for the inputs of the convolutions, of which there may be none
        self.kernel = max(self.encoder.kernel, 2)


class WenetChunk(_Live):
    """A chunk of WeNet's streaming CTC.

    Args:
        source: What is exported, with a chunk.
        head: Of CTC.

    Attributes:
        rows: Of the caches: as many as WeNet's would have blocks.
    """

    def __init__(self, source: Source, head: Head):
        super().__init__(source, head)
        self.rows = max(self.encoder.attentions, self.encoder.convolutions, 1)

    def forward(
        self,
        x: torch.Tensor,
        attn_cache: torch.Tensor,
        conv_cache: torch.Tensor,
        attn_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encodes.

        Args:
            x: Features of 16-bit samples `[1, frames, dim]`.
            attn_cache: `[rows, 1, left, 2 * size]`: WeNet's of one head.
            conv_cache: `[rows, 1, size, kernel - 1]`.
            attn_mask: True on what is seen `[1, 1, left + chunk]`.

        Returns:
            Log-probabilities `[1, chunk, tokens]`, and the two caches.
        """
        # digital silence is at the floor in both scales
        x = (x - INT16).clamp(min=math.log(FLOOR))
        x = self.subsampling(self.normalise(x))
        width, left = self.encoder.width, self.chunk.left
        attended = attn_cache.view(self.rows, 1, 2, left, width)
        x, attended, convolved = self.encoder(
            x, ~attn_mask[:, None], None, attended, conv_cache
        )
        attended = _rows(attended, self.rows).view(self.rows, 1, left, 2 * width)
        return self.head(x), attended, _rows(convolved, self.rows)


class ConformerChunk(_Live):
    """A chunk of icefall's streaming Conformer transducer.

    Args:
        source: What is exported, with a chunk.
        head: Into the joint network.

    Attributes:
        rows: Of the caches: as many as icefall's would have layers. It keeps one tensor
            of a layer where we keep keys and values, so each takes a row.
    """

    def __init__(self, source: Source, head: Head):
        super().__init__(source, head)
        self.rows = max(2 * self.encoder.attentions, self.encoder.convolutions, 1)

    def forward(
        self,
        x: torch.Tensor,
        cached_attn: torch.Tensor,
        cached_conv: torch.Tensor,
        processed_lens: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encodes.

        Args:
            x: Features `[batch, frames, dim]`.
            cached_attn: `[rows, left, batch, size]`.
            cached_conv: `[rows, kernel - 1, batch, size]`.
            processed_lens: Feature frames so far `[batch]`.

        Returns:
            `[batch, chunk, joint]`, and the two caches.
        """
        x = self.subsampling(self.normalise(x))
        stride = self.subsampling.stride
        frames = torch.div(processed_lens, stride, rounding_mode="floor")
        hidden = hides_unfilled(self.chunk.left, x.size(1), frames)
        pairs = max(self.encoder.attentions, 1)
        left, width, batch = self.chunk.left, self.encoder.width, cached_attn.size(2)
        kept = pad(cached_attn, (0, 0, 0, 0, 0, 0, 0, self.rows % 2))
        kept = kept[: 2 * pairs].view(pairs, 2, left, batch, width)
        x, attended, convolved = self.encoder(
            x,
            hidden,
            None,
            kept.permute(0, 3, 1, 2, 4),
            cached_conv.permute(0, 2, 3, 1),
        )
        attended = attended.permute(0, 2, 3, 1, 4).flatten(0, 1)
        convolved = convolved.permute(0, 3, 1, 2)
        return self.head(x), _rows(attended, self.rows), _rows(convolved, self.rows)


def _rows(cache: torch.Tensor, rows: int) -> torch.Tensor:
    """A cache with as many rows as its contract has."""
    missing = rows - cache.size(0)
    if missing < 1:
        return cache[:rows]
    return torch.cat((cache, torch.zeros(missing, *cache.shape[1:])))


class Context(torch.nn.Module):
    """A prediction network that sees the last label, -1 being none.

    Args:
        predictor: It is stateless.
    """

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """`[batch, joint]` of labels `[batch, 1]`."""
        return self.predictor(y.clamp(min=0))[0]
