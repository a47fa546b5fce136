"""The search space of a supernet: its units, and the weights that take a mask."""

from dataclasses import dataclass

from espnet_omnisparse.core.branches import (
    BRANCHES,
    MERGE,
    MERGE_PRUNABLE,
    PRUNABLE,
    SIDES,
    parts_of,
)
from espnet_omnisparse.core.decoder import DECODER, MASKABLE
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.errors import UserError

GRANULARITIES = ("branch", "block", "component")
FRONT = "front"


@dataclass(frozen=True)
class Place:
    """Where a weight that takes a mask is.

    Attributes:
        block: Number of its block; `None`: it is the front end's or the decoder's.
        branch: One of `SearchSpace.branches`, `MERGE`, `FRONT`, or the decoder and the
            number of its layer.
        layer: Its layer's name there.
    """

    block: int | None
    branch: str
    layer: str

    @property
    def kind(self) -> str:
        """What it has in common with weights of other blocks, or decoder layers."""
        return f"{self.branch.split('.')[0]}.{self.layer}"


def place(weight: str) -> Place:
    """Where a weight is, by its name.

    Args:
        weight: One of `SearchSpace.weights`.

    >>> place("3.mhsa.linear_q"), place("front.out").kind
    (Place(block=3, branch='mhsa', layer='linear_q'), 'front.out')
    >>> place("decoder.1.self_attn.linear_q")
    Place(block=None, branch='decoder.1', layer='self_attn.linear_q')
    """
    first, _, rest = weight.partition(".")
    if first == FRONT:
        return Place(None, FRONT, rest)
    second, layer = rest.split(".", 1)
    if weight.startswith(DECODER):
        return Place(None, f"{first}.{second}", layer)
    return Place(int(first), second, layer)


@dataclass(frozen=True)
class SearchSpace:
    """What can be pruned in an encoder: its units, and the weights that take a mask.

    Both are in the order in which they are computed.

    Attributes:
        num_blocks: Blocks of the full net.
        granularity: `"branch"`: each branch of a block is a unit and the
            block-final norm always stays; `"block"`: a unit is a whole block, final
            norm included; `"component"`: a unit is a quarter of an FFN's or a
            cgMLP's channels, an attention head, or a whole Conv.
        heads: Attention heads of a block; only components depend on it.
        pattern: Of the weights' masks; `None`: weights are not masked.
        positional: Whether the attention has a layer for relative positions; only
            weights depend on it.
        front_end: The front end's layers whose weights take a mask too; see
            `layout.front_layers`.
        branches: Those of a block, in the order in which it computes them.
        gate_linear: Whether a cgMLP has a linear layer behind its convolution; only
            weights, and what components cost, depend on it.
        decoder: Layers of the attention decoder whose weights take masks too.

    >>> SearchSpace(2).units[:5]
    ('0.ffn1', '0.mhsa', '0.conv', '0.ffn2', '1.ffn1')
    >>> SearchSpace(2, "block").units
    ('0', '1')
    >>> SearchSpace(1, "component", heads=2).units[3:8]
    ('0.ffn1.3', '0.mhsa.0', '0.mhsa.1', '0.conv.0', '0.ffn2.0')
    >>> SearchSpace(1, pattern=Pattern(rows=8)).weights[:3]
    ('0.ffn1.w_1', '0.ffn1.w_2', '0.mhsa.linear_q')
    >>> SearchSpace(1, pattern=Pattern(rows=8), front_end=("conv2", "out")).weights[:3]
    ('front.conv2', 'front.out', '0.ffn1.w_1')
    """

    num_blocks: int
    granularity: str = "branch"
    heads: int = 1
    pattern: Pattern | None = None
    positional: bool = True
    front_end: tuple[str, ...] = ()
    branches: tuple[str, ...] = BRANCHES
    gate_linear: bool = False
    decoder: int = 0

    def __post_init__(self):
        if self.granularity not in GRANULARITIES:
            raise UserError(
                f"granularity must be one of {', '.join(GRANULARITIES)}, "
                f"not {self.granularity!r}."
            )
        if self.granularity != "component":
            # spaces that differ in nothing else are the same
            object.__setattr__(self, "heads", 1)
        if self.pattern is None:
            object.__setattr__(self, "positional", True)
            object.__setattr__(self, "front_end", ())
            object.__setattr__(self, "decoder", 0)

    @property
    def parts(self) -> dict[str, int]:
        """Into how many units each branch of a block is divided."""
        if self.granularity != "component":
            return dict.fromkeys(self.branches, 1)
        return {branch: parts_of(branch, self.heads) for branch in self.branches}

    @property
    def slices(self) -> dict[str, int]:
        """Into how many slices the tensors of each branch are divided, and of a merge.

        A branch's slices are its units; a merge has one for each side, whatever the
        units are.
        """
        found = {}
        for branch, count in self.parts.items():
            found[branch] = count
            if branch == SIDES[-1]:
                found[MERGE] = len(SIDES)
        return found

    def layers(self, branch: str) -> tuple[str, ...]:
        """The layers of a branch, or of a merge, whose weights can be masked.

        Args:
            branch: A key of `slices`.
        """
        if branch == MERGE:
            return MERGE_PRUNABLE
        there = {"linear_pos": self.positional, "csgu.linear": self.gate_linear}
        return tuple(one for one in PRUNABLE[branch] if there.get(one, True))

    def unit(self, block: int, branch: str, part: int = 0) -> str:
        """Name of the unit that a part of a branch belongs to.

        Args:
            block: Number of the block.
            branch: One of `branches`.
            part: Number of the part in its branch.
        """
        if self.granularity == "block":
            return f"{block}"
        if self.granularity == "branch":
            return f"{block}.{branch}"
        return f"{block}.{branch}.{part}"

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units."""
        names = (
            self.unit(block, branch, part)
            for block in range(self.num_blocks)
            for branch, count in self.parts.items()
            for part in range(count)
        )
        return tuple(dict.fromkeys(names))  # a block is named by each of its branches

    @property
    def groups(self) -> tuple[int, ...]:
        """Per unit, the number of the branch (or block) that it is a part of."""
        if self.granularity != "component":
            return tuple(range(len(self)))
        counts = list(self.parts.values()) * self.num_blocks
        return tuple(group for group, count in enumerate(counts) for _ in range(count))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Per unit, the block that it is in."""
        return tuple(int(unit.split(".")[0]) for unit in self.units)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that take a mask; see `place`."""
        if self.pattern is None:
            return ()
        front = (f"{FRONT}.{layer}" for layer in self.front_end)
        blocks = (
            f"{block}.{branch}.{layer}"
            for block in range(self.num_blocks)
            for branch in self.slices
            for layer in self.layers(branch)
        )
        decoder = (
            f"{DECODER}{number}.{layer}"
            for number in range(self.decoder)
            for layer in MASKABLE
        )
        return (*front, *blocks, *decoder)

    @property
    def noun(self) -> str:
        """What a unit is called, in the plural."""
        return {"branch": "branches"}.get(self.granularity, f"{self.granularity}s")

    def __len__(self) -> int:
        if self.granularity == "block":
            return self.num_blocks
        return self.num_blocks * sum(self.parts.values())
