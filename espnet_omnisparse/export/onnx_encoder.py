"""An encoder as a module that becomes an ONNX graph: caches as tensors, no tables.

It computes with the model's own layers. What differs is what a graph cannot have:
Python state, and positions that end at some length. `streaming/encoder.py` explains
what a stream keeps; here that is input and output, of one size from the start on.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import conv1d, pad

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import heads_of

_HIDDEN = -1e9  # a score that no softmax notices


class Subsampling(torch.nn.Module):
    """The front end of convolutions.

    Args:
        model: Whose it is.
        description: What `describe` tells of it.

    Attributes:
        stride: Feature frames per output frame.
        field: Feature frames that one output frame sees.
    """

    def __init__(self, model: Any, description: Mapping[str, Any]):
        super().__init__()
        told, embed = description["front_end"], model.encoder.embed
        self.conv, self.scale = embed.conv, told["scale"]
        output = told["output"]
        if output is not None:
            name = output["weight"].removesuffix(".weight")
            self.output = model.get_submodule(name)
        else:
            self.output = torch.nn.Identity()
        self.along_time = [(c["kernel"][0], c["stride"][0]) for c in told["convs"]]
        self.stride = self.field = 1
        for kernel, stride in self.along_time:
            self.field += (kernel - 1) * self.stride
            self.stride *= stride

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        """Encoder frames `[batch, time, size]` of features `[batch, frames, dim]`."""
        x = self.conv(feats[:, None])
        return self.output(x.transpose(1, 2).flatten(2)) * self.scale

    def lengths(self, frames: torch.Tensor) -> torch.Tensor:
        """Encoder frames of so many feature frames, for each sequence."""
        for kernel, stride in self.along_time:
            frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
        return frames


def encodings(distances: torch.Tensor, size: int) -> torch.Tensor:
    """ESPnet's relative positional encodings.

    Args:
        distances: Frames into the past `[n]`.
        size: Of the encoder.

    Returns:
        `[1, n, size]`.
    """
    steps = torch.arange(0, size, 2, dtype=torch.float32)
    angles = distances[:, None].float() * torch.exp(steps * -(math.log(1e4) / size))
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[None]


class Attention(torch.nn.Module):
    """Relative attention, to itself and to a past that is given.

    Args:
        attention: ESPnet's module.
        chunk: Of a stream, whose past has always `chunk.left` frames: what positions
            there are is then computed once for all.
    """

    def __init__(self, attention: Any, chunk: Chunk | None = None):
        super().__init__()
        self.inner = attention
        self.heads, self.width = heads_of(attention), attention.d_k
        self.size = attention.linear_q.in_features
        self.chunk = chunk
        if chunk is not None:
            distances = torch.arange(chunk.left + chunk.size - 1, -chunk.size, -1)
            with torch.no_grad():
                self.register_buffer("table", self._positions(distances))

    def _positions(self, distances: torch.Tensor) -> torch.Tensor:
        """`[1, heads, width, distances]`."""
        positions = self.inner.linear_pos(encodings(distances, self.size))
        return positions.view(1, -1, self.heads, self.width).permute(0, 2, 3, 1)

    def forward(
        self,
        x: torch.Tensor,
        hidden: torch.Tensor | None,
        past: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends.

        Args:
            x: `[batch, time, size]`.
            hidden: True where a frame does not see another, `[batch, 1, 1 or time,
                frames]`; `None`: each sees all.
            past: Keys and values of the frames before `[batch, heads, left, width]`.

        Returns:
            `[batch, time, size]`, and all keys and values.
        """
        query, key, value = self.inner.forward_qkv(x, x, x)
        if past is not None:
            key = torch.cat((past[0], key), 2)
            value = torch.cat((past[1], value), 2)
        queries, keys = query.size(2), key.size(2)
        if self.chunk is not None:  # the last chunk of a recording may be shorter
            first = self.chunk.size - queries
            positions = self.table[..., first : first + keys + queries - 1]
        else:
            count = torch.arange(2 * keys - 1, device=x.device)
            positions = self._positions(keys - 1 - count)
        content = (query + self.inner.pos_bias_u[:, None]) @ key.transpose(2, 3)
        place = (query + self.inner.pos_bias_v[:, None]) @ positions
        scores = (content + by_key(place, keys)) / math.sqrt(self.width)
        if hidden is not None:
            scores = scores.masked_fill(hidden, _HIDDEN)
        seen = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
        return self.inner.linear_out(seen), key, value


def by_key(scores: torch.Tensor, keys: int) -> torch.Tensor:
    """Scores by distance as scores by key.

    Args:
        scores: `[batch, heads, queries, distances]`.
        keys: How many there are.
    """
    batch, heads, queries, distances = scores.shape
    shifted = pad(scores, (1, 0)).view(batch, heads, distances + 1, queries)
    shifted = shifted[:, :, 1:].reshape(batch, heads, queries, distances)
    return shifted[..., :keys]


class Convolution(torch.nn.Module):
    """A Conv module, whose past is given or silence.

    Args:
        conv: ESPnet's module.
        causal: Whether it sees the past alone.
    """

    def __init__(self, conv: Any, causal: bool):
        super().__init__()
        self.inner = conv
        depthwise = conv.depthwise_conv
        self.kernel = depthwise.kernel_size[0]
        half = (self.kernel - 1) // 2
        self.padding = (self.kernel - 1, 0) if causal else (half, half)

    def forward(
        self,
        x: torch.Tensor,
        real: torch.Tensor | None,
        past: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolves.

        Args:
            x: `[batch, time, size]`.
            real: True on real frames `[batch, time]`; `None`: all are.
            past: Inputs of the frames before `[batch, size, kernel - 1]`.

        Returns:
            `[batch, time, size]`, and all inputs of the depthwise convolution.
        """
        inner, depthwise = self.inner, self.inner.depthwise_conv
        x = torch.nn.functional.glu(_pointwise(inner.pointwise_conv1, x), 2)
        if real is not None:
            x = x.masked_fill(~real[..., None], 0.0)
        x = x.transpose(1, 2)
        x = pad(x, self.padding) if past is None else torch.cat((past, x), 2)
        out = conv1d(x, depthwise.weight, depthwise.bias, groups=depthwise.groups)
        out = inner.activation(inner.norm(out)).transpose(1, 2)
        return _pointwise(inner.pointwise_conv2, out), x


def _pointwise(conv: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of kernel 1 as the matrix product that it is."""
    return torch.nn.functional.linear(x, conv.weight[..., 0], conv.bias)


class Encoder(torch.nn.Module):
    """The blocks and the norm behind them.

    Args:
        model: Whose they are.
        description: What `describe` tells of it.
        chunk: Of a stream; `None`: whole recordings.

    Attributes:
        attentions: How many blocks have an attention, and so keep keys and values.
        convolutions: The same of the Conv modules and their inputs.
        kernel: The longest of these.
    """

    def __init__(
        self, model: Any, description: Mapping[str, Any], chunk: Chunk | None = None
    ):
        super().__init__()
        told = description["encoder"]
        self.width, self.chunk = told["width"], chunk
        self.plan = []
        self.norms, self.branches = torch.nn.ModuleList(), torch.nn.ModuleList()
        for block in told["blocks"]:
            for branch in block["branches"]:
                module = model.get_submodule(branch["module"])
                if branch["kind"] == "mhsa":
                    module = Attention(module, chunk)
                elif branch["kind"] == "conv":
                    module = Convolution(module, told["causal"])
                self.plan.append((branch["kind"], branch["scale"]))
                self.norms.append(model.get_submodule(branch["norm"]))
                self.branches.append(module)
            self.plan.append(("norm", 1.0))
            self.norms.append(model.get_submodule(block["norm"]))
            self.branches.append(torch.nn.Identity())
        self.last = model.get_submodule(told["norm"])
        kinds = [kind for kind, _ in self.plan]
        self.attentions, self.convolutions = kinds.count("mhsa"), kinds.count("conv")
        kernels = [m.kernel for m in self.branches if isinstance(m, Convolution)]
        self.kernel = max(kernels, default=1)

    def forward(
        self,
        x: torch.Tensor,
        hidden: torch.Tensor | None = None,
        real: torch.Tensor | None = None,
        attended: torch.Tensor | None = None,
        convolved: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encodes.

        Args:
            x: The front end's output `[batch, time, size]`.
            hidden: As in `Attention`.
            real: As in `Convolution`.
            attended: Keys and values before `[attentions, batch, 2, left, size]`;
                `None`: there are none.
            convolved: Inputs before `[convolutions, batch, size, kernel - 1]`.

        Returns:
            `[batch, time, size]`, and what the next chunk is given as `attended` and
            `convolved`.
        """
        kept, inputs = [], []
        for (kind, scale), norm, module in zip(
            self.plan, self.norms, self.branches, strict=True
        ):
            if kind == "norm":
                x = norm(x)
            elif kind == "mhsa":
                past = None
                if attended is not None:
                    past = _unpacked(attended[len(kept)], module)
                out, key, value = module(norm(x), hidden, past)
                x = x + scale * out
                if attended is not None:
                    kept.append(self._packed(key, value))
            elif kind == "conv":
                past = None
                if convolved is not None:
                    past = convolved[len(inputs)][:, :, self.kernel - module.kernel :]
                out, seen = module(norm(x), real, past)
                x = x + scale * out
                if convolved is not None:
                    seen = seen[:, :, seen.size(2) - (module.kernel - 1) :]
                    inputs.append(pad(seen, (self.kernel - module.kernel, 0)))
            else:
                x = x + scale * module(norm(x))
        x = self.last(x)
        if attended is None:
            return x, x, x
        attended = torch.stack(kept) if kept else attended
        return x, attended, torch.stack(inputs) if inputs else convolved

    def cache_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what a stream keeps; nothing has one row all the same."""
        attentions, convolutions = max(self.attentions, 1), max(self.convolutions, 1)
        return {
            "attended": (attentions, 1, 2, self.chunk.left, self.width),
            "convolved": (convolutions, 1, self.width, self.kernel - 1),
        }

    def _packed(self, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The last keys and values `[batch, 2, left, size]`."""
        both = torch.stack((key, value), 1).transpose(2, 3).flatten(3)
        both = both[:, :, both.size(2) - self.chunk.left :]
        return pad(both, (0, self.width - both.size(3)))


def _unpacked(
    cache: torch.Tensor, attention: Attention
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[batch, heads, left, width]` of `[batch, 2, left, size]`."""
    used = cache[..., : attention.heads * attention.width]
    batch, left = used.size(0), used.size(2)
    used = used.view(batch, 2, left, attention.heads, attention.width).transpose(2, 3)
    return used[:, 0], used[:, 1]


def chunk_hides(chunk: Chunk, frames: int) -> torch.Tensor:
    """Which frames a frame does not see under a chunk's mask `[1, 1, T, T]`.

    Args:
        chunk: The chunk.
        frames: T.
    """
    at = torch.arange(frames)
    start = torch.div(at, chunk.size, rounding_mode="floor") * chunk.size
    start = start[:, None]
    return ((at < start - chunk.left) | (at >= start + chunk.size))[None, None]


def hides_unfilled(left: int, queries: int, frames: torch.Tensor) -> torch.Tensor:
    """What of a cache is not filled yet `[batch, 1, 1, left + queries]`.

    Args:
        left: Frames of the cache.
        queries: Frames behind it.
        frames: Frames so far, of each sequence `[batch]`.
    """
    at = torch.arange(left + queries)
    return (at < left - frames[:, None])[:, None, None]
