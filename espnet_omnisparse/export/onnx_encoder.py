"""An encoder as a module that becomes an ONNX graph: caches as tensors, no tables.

It computes with the model's own layers. What differs is what a graph cannot have:
Python state, and positions that end at some length. `streaming/encoder.py` explains
what a stream keeps; here that is input and output, of one size from the start on.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import pad

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.export.onnx_branches import (
    Attention,
    Convolution,
    Merge,
    encodings,
)


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
        self.place_scale, table = told.get("position_scale"), told.get("position_count")
        self.plan = []
        self.norms, self.branches = torch.nn.ModuleList(), torch.nn.ModuleList()
        for block in told["blocks"]:
            for branch in block["branches"]:
                if branch["kind"] == "merge":
                    self._add("merge", 1.0, None, Merge(model, branch, table))
                    continue
                module = model.get_submodule(branch["module"])
                if branch["kind"] == "mhsa":
                    module = Attention(module, chunk, table)
                elif branch["kind"] == "conv":
                    module = Convolution(module, told["causal"])
                norm = model.get_submodule(branch["norm"])
                self._add(branch["kind"], branch["scale"], norm, module)
            if block["norm"] is not None:
                self._add("norm", 1.0, model.get_submodule(block["norm"]), None)
        self.last = model.get_submodule(told["norm"])
        kinds = [kind for kind, _ in self.plan]
        self.attentions, self.convolutions = kinds.count("mhsa"), kinds.count("conv")
        kernels = [m.kernel for m in self.branches if isinstance(m, Convolution)]
        self.kernel = max(kernels, default=1)

    def _add(
        self,
        kind: str,
        scale: float,
        norm: torch.nn.Module | None,
        module: torch.nn.Module | None,
    ) -> None:
        self.plan.append((kind, scale))
        self.norms.append(norm or torch.nn.Identity())
        self.branches.append(module or torch.nn.Identity())

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
        if self.place_scale is not None:
            places = torch.arange(x.size(1), device=x.device)
            x = x + self.place_scale * encodings(places, self.width)
        for (kind, scale), norm, module in zip(
            self.plan, self.norms, self.branches, strict=True
        ):
            if kind == "norm":
                x = norm(x)
            elif kind == "merge":
                x = x + module(x, hidden, real)
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
