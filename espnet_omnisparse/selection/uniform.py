"""Uniform depth: every n-th block, chosen without looking at the data.

The usual way to shorten a network; a baseline. It has no step 1, and a step 2.
"""

import torch

from espnet_omnisparse.selection import Selection


class Uniform(Selection, name="uniform"):
    """Keeps blocks that lie evenly, of each size evenly among the next larger one's."""

    learns = False

    def ranking(self) -> torch.Tensor:
        """By how many sizes keep the block, within a block by position."""
        kept = list(range(self.space.num_blocks))
        order: list[int] = []
        for size in self.sizes.values():
            share = size.units / len(self.space)
            count = max(1, min(round(share * self.space.num_blocks), len(kept)))
            thinned = _evenly(kept, count)
            order = [block for block in kept if block not in thinned] + order
            kept = thinned
        places = {block: place for place, block in enumerate(kept + order)}
        units = enumerate(self.space.blocks)
        return torch.tensor([n for n, _ in sorted(units, key=lambda u: places[u[1]])])


def _evenly(blocks: list[int], count: int) -> list[int]:
    """`count` of the blocks, as evenly spaced as can be.

    >>> _evenly(list(range(12)), 4)
    [1, 4, 7, 10]
    """
    step = len(blocks) / count
    return [blocks[int((number + 0.5) * step)] for number in range(count)]
