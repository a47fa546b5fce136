"""The branches of an encoder's blocks as modules that become ONNX graphs."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import conv1d, linear, pad

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import heads_of

_HIDDEN = -1e9  # a score that no softmax notices


def encodings(distances: torch.Tensor, size: int) -> torch.Tensor:
    """ESPnet's encodings of places, relative and absolute.

    Args:
        distances: Frames into the past `[n]`, or numbers of frames.
        size: Of the encoder.

    Returns:
        `[1, n, size]`.
    """
    steps = torch.arange(0, size, 2, dtype=torch.float32)
    angles = distances[:, None].float() * torch.exp(steps * -(math.log(1e4) / size))
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[None]


class Attention(torch.nn.Module):
    """Attention, relative or not, to itself and to a past that is given.

    Args:
        attention: ESPnet's module.
        chunk: Of a stream, whose past has always `chunk.left` frames: what positions
            there are is then computed once for all.
        table: Entries of ESPnet's table, of attentions of `rel_pos_type: legacy`, whose
            positions begin at its end.
    """

    def __init__(
        self, attention: Any, chunk: Chunk | None = None, table: int | None = None
    ):
        super().__init__()
        self.inner = attention
        self.heads, self.width = heads_of(attention), attention.d_k
        self.size = attention.linear_q.in_features
        self.chunk, self.relative = chunk, hasattr(attention, "linear_pos")
        self.last = None if table is None else table - 1
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
        scores = self._scores(query, key) / math.sqrt(self.width)
        if hidden is not None:
            scores = scores.masked_fill(hidden, _HIDDEN)
        seen = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
        return self.inner.linear_out(seen), key, value

    def _scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """`[batch, heads, queries, keys]`."""
        queries, keys = query.size(2), key.size(2)
        if not self.relative:
            return query @ key.transpose(2, 3)
        if self.chunk is not None:  # the last chunk of a recording may be shorter
            first = self.chunk.size - queries
            positions = self.table[..., first : first + keys + queries - 1]
        elif self.last is not None:
            count = torch.arange(keys, device=query.device)
            last = count[-1].clamp(min=self.last)
            positions = self._positions(last - count)
        else:
            count = torch.arange(2 * keys - 1, device=query.device)
            positions = self._positions(keys - 1 - count)
        content = (query + self.inner.pos_bias_u[:, None]) @ key.transpose(2, 3)
        place = (query + self.inner.pos_bias_v[:, None]) @ positions
        return content + by_key(place, keys)


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
        x = _silenced(x, real).transpose(1, 2)
        x = pad(x, self.padding) if past is None else torch.cat((past, x), 2)
        out = conv1d(x, depthwise.weight, depthwise.bias, groups=depthwise.groups)
        out = inner.activation(inner.norm(out)).transpose(1, 2)
        return _pointwise(inner.pointwise_conv2, out), x


def _pointwise(conv: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of kernel 1 as the matrix product that it is."""
    return linear(x, conv.weight[..., 0], conv.bias)


def _silenced(x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """`[batch, time, size]` with zeros where there is no real frame."""
    return x if real is None else x.masked_fill(~real[..., None], 0.0)


def _convolved(
    conv: torch.nn.Conv1d, x: torch.Tensor, real: torch.Tensor | None
) -> torch.Tensor:
    """A depthwise convolution `[batch, time, size]` of the real frames."""
    return conv(_silenced(x, real).transpose(1, 2)).transpose(1, 2)


class Gating(torch.nn.Module):
    """A cgMLP: one half of its channels is gated by the other one.

    Args:
        gating: ESPnet's module.
    """

    def __init__(self, gating: Any):
        super().__init__()
        self.inner = gating

    def forward(self, x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """Maps `[batch, time, size]`.

        Args:
            x: The input.
            real: As in `Convolution`.
        """
        unit = self.inner.csgu
        gated, gate = self.inner.channel_proj1(x).chunk(2, -1)
        gate = _convolved(unit.conv, unit.norm(gate), real)
        if unit.linear is not None:
            gate = unit.linear(gate)
        return self.inner.channel_proj2(gated * unit.act(gate))


class Merge(torch.nn.Module):
    """An E-Branchformer's sides and what merges them.

    Args:
        model: Whose they are.
        told: What its description tells of the merge.
        table: As in `Attention`.
    """

    def __init__(self, model: Any, told: Mapping[str, Any], table: int | None):
        super().__init__()
        sides = told["sides"]
        self.norms = torch.nn.ModuleList(
            model.get_submodule(side["norm"]) for side in sides
        )
        modules = ((one["kind"], model.get_submodule(one["module"])) for one in sides)
        self.sides = torch.nn.ModuleList(
            Attention(module, None, table) if kind == "mhsa" else Gating(module)
            for kind, module in modules
        )
        self.bias = model.get_parameter(told["projection"]["bias"])
        if sides:
            name = told["projection"]["weight"].removesuffix(".weight")
            self.projection = model.get_submodule(name)
            name = told["fusion"]["weight"].removesuffix(".weight")
            self.fusion = model.get_submodule(name)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor | None, real: torch.Tensor | None
    ) -> torch.Tensor:
        """What is added to `x`.

        Args:
            x: The block's input `[batch, time, size]`.
            hidden: As in `Attention`.
            real: As in `Convolution`.
        """
        if not self.sides:
            return self.bias
        outs = [
            (
                side(norm(x), hidden)[0]
                if isinstance(side, Attention)
                else side(norm(x), real)
            )
            for norm, side in zip(self.norms, self.sides, strict=True)
        ]
        both = torch.cat(outs, -1)
        return self.projection(both + _convolved(self.fusion, both, real))
