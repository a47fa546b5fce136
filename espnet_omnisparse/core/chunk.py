"""Chunks: how far a streaming encoder looks, and the masks that train it so.

In a stream every output frame waits for the end of its chunk and then sees that chunk
and a limited past, in every block. A full-sequence forward under the mask of the same
chunks computes the same, which is how a net is trained to stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from espnet_omnisparse.errors import UserError, check_keys


@dataclass(frozen=True)
class Chunk:
    """What the attention of a streaming encoder sees.

    Attributes:
        size: Frames, after subsampling, that are encoded together.
        left: Frames before them that they see as well.
    """

    size: int
    left: int

    def __post_init__(self):
        for name, least in (("size", 1), ("left", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(
                    f"A chunk's {name} must be a number of encoder frames, at least "
                    f"{least}, not {value!r}."
                )

    @classmethod
    def parse(cls, value: Any, where: str) -> "Chunk | None":
        """A chunk as options give it: `{size: 16, left: 32}`, or `full` for none.

        Args:
            value: The option.
            where: Its name, for messages.

        Raises:
            UserError: If it is neither.
        """
        if value is None or value == "full":
            return None
        if not isinstance(value, Mapping) or set(value) != {"size", "left"}:
            check_keys(where, value if isinstance(value, Mapping) else {}, _KEYS)
            raise UserError(
                f"{where} must be full, or a chunk such as {{size: 16, left: 32}}, not "
                f"{value!r}."
            )
        return cls(**value)

    def as_dict(self) -> dict[str, int]:
        """What `parse` reads."""
        return {"size": self.size, "left": self.left}

    def mask(self, frames: int, device: torch.device | None = None) -> torch.Tensor:
        """Which frames (columns) each frame (row) sees `[frames, frames]`.

        Args:
            frames: How many frames there are.
            device: Of the mask; `None`: the CPU.

        >>> Chunk(2, 1).mask(4).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [0, 1, 1, 1],
                [0, 1, 1, 1]], dtype=torch.int32)
        """
        at = torch.arange(frames, device=device)
        start = (at // self.size * self.size)[:, None]
        return (at >= start - self.left) & (at < start + self.size)


_KEYS = ("size", "left")
