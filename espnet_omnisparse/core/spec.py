"""Specs: immutable values that name one subnet of a supernet.

A `SubnetSpec` is handed to the forward pass (as gates), to the cost functions and to
extraction; nothing keeps an "active" subnet.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from espnet_omnisparse.core.branches import MERGE, SIDES
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.decoder import (
    DECODER,
    decoder_text,
    in_layers,
    keeps,
    layer_count,
)
from espnet_omnisparse.core.gate import Gate, mask_gates
from espnet_omnisparse.core.search_space import SearchSpace, place
from espnet_omnisparse.errors import UserError

FULL = "full"
REPAIRED = "-repaired"  # behind a size's name: the same size after its repair


def fingerprint(state: Mapping[str, torch.Tensor], tokens: Sequence[str]) -> str:
    """Names a supernet by its shape: encoder tensors, their sizes, and the tokens.

    Two trainings of the same architecture share a fingerprint, so a selection learned
    in one can be cut out of the other; anything that a spec could not be applied to
    differs.

    Args:
        state: The model's state dict.
        tokens: Its token list.
    """
    shapes = sorted(
        (name, list(tensor.shape))
        for name, tensor in state.items()
        if name.startswith("encoder.")
    )
    text = json.dumps([shapes, list(tokens)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SubnetSpec:
    """Which units of which supernet are kept, and how many of their weights.

    Attributes:
        name: The size's name, e.g. `small`.
        supernet: Fingerprint of the supernet it belongs to.
        space: That supernet's units.
        mask: One boolean per unit.
        sparsity: Per weight of the space, the share of its groups that is zero;
            empty where none is.
        chunk: What its frames see in a stream; `None`: the whole recording.
        decoder: How many layers of the attention decoder it keeps; `None`: all that
            there are, 0: it has no decoder.

    >>> space = SearchSpace(1)
    >>> spec = SubnetSpec("small", "0f", space, (True, True, False, False))
    >>> spec.kept_branches
    (('ffn1', 'mhsa'),)
    """

    name: str
    supernet: str
    space: SearchSpace
    mask: tuple[bool, ...]
    sparsity: tuple[float, ...] = ()
    chunk: Chunk | None = None
    decoder: int | None = None

    def __post_init__(self):
        if len(self.mask) != len(self.space):
            raise ValueError(f"{len(self.mask)} mask entries, {len(self.space)} units")
        if not any(self.sparsity):
            # equal subnets are equal values
            object.__setattr__(self, "sparsity", ())
            return
        if len(self.sparsity) != len(self.space.weights):
            raise ValueError(
                f"{len(self.sparsity)} sparsities, {len(self.space.weights)} weights"
            )
        if not all(0.0 <= share < 1.0 for share in self.sparsity):
            raise ValueError("a sparsity is at least 0 and below 1")

    @classmethod
    def full(
        cls, supernet: str, space: SearchSpace, chunk: Chunk | None = None
    ) -> "SubnetSpec":
        """The spec that keeps everything.

        Args:
            supernet: The supernet's fingerprint.
            space: Its units.
            chunk: What its frames see; `None`: the whole recording.
        """
        return cls(FULL, supernet, space, (True,) * len(space), chunk=chunk)

    @property
    def kept(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Per block of the full net: each kept branch, and which of its parts."""
        if self.space.granularity == "block":
            whole = dict.fromkeys(self.space.branches, (0,))
            return tuple(dict(whole) if keep else {} for keep in self.mask)
        entries = iter(self.mask)
        rows = []
        for _ in range(self.space.num_blocks):
            row = {}
            for branch, parts in self.space.parts.items():
                chosen = tuple(part for part in range(parts) if next(entries))
                if chosen:
                    row[branch] = chosen
            rows.append(row)
        return tuple(rows)

    @property
    def slices(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Per block of the full net: `kept`, and of a merge the sides that are kept."""
        rows = []
        for row in self.kept:
            sides = tuple(n for n, side in enumerate(SIDES) if side in row)
            there = sides and MERGE in self.space.slices
            rows.append({**row, MERGE: sides} if there else row)
        return tuple(rows)

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """The weights of the space that are there, masked or not -> their slices."""
        rows, found = self.slices, {}
        for name in self.space.weights:
            at = place(name)
            if at.block is not None:
                kept = rows[at.block].get(at.branch)
            elif name.startswith(DECODER):
                kept = (0,) if keeps(self.decoder, in_layers(name)) else None
            else:
                kept = (0,)  # no selection removes the front end
            if kept:
                found[name] = kept
        return found

    @property
    def kept_branches(self) -> tuple[tuple[str, ...], ...]:
        """The branches of each block of the full net of which anything is kept."""
        return tuple(tuple(row) for row in self.kept)

    @property
    def num_branches(self) -> int:
        """How many branches are kept, at least in part."""
        return sum(len(branches) for branches in self.kept_branches)

    @property
    def counts(self) -> tuple[int, int, str]:
        """What is kept, of how many, and what they are: branches or components."""
        if self.space.granularity == "component":
            return sum(self.mask), len(self.mask), "components"
        of = self.space.num_blocks * len(self.space.branches)
        return self.num_branches, of, "branches"

    @property
    def sparsities(self) -> dict[str, float]:
        """Sparsity of each weight that is masked."""
        if not self.sparsity:
            return {}
        pairs = zip(self.space.weights, self.sparsity, strict=True)
        return {name: share for name, share in pairs if share > 0.0}

    @property
    def is_full(self) -> bool:
        """Whether no unit is dropped; weights may be masked."""
        return all(self.mask)

    def gates(self) -> tuple[Gate, ...]:
        """The gates that run this subnet inside its supernet."""
        return mask_gates(self.mask)

    def check_supernet(self, supernet: str) -> None:
        """Refuses a supernet that this spec was not made for.

        Raises:
            UserError: If the fingerprints differ.
        """
        if self.supernet != supernet:
            raise UserError(
                f"The spec {self.name!r} belongs to supernet {self.supernet}, but this "
                f"one is {supernet}: use a spec selected from a supernet of the same "
                "shape and token list."
            )

    def check_space(self, space: SearchSpace) -> None:
        """Refuses units other than the supernet's.

        Raises:
            UserError: If blocks, granularity, heads, the masks' pattern or the weights
                that take one differ. A net that was trained without masks can be
                masked by any pattern.
        """
        mine, theirs = (
            f"{one.pattern} (norm {one.pattern.norm})" if one.pattern else ""
            for one in (self.space, space)
        )
        if self.sparsity and theirs and mine != theirs:
            raise UserError(
                f"The spec {self.name!r} masks weights by the pattern {mine}, but its "
                f"supernet has {theirs}: search the sizes again."
            )
        others = [name for name in self.sparsities if name not in space.weights]
        if theirs and others:
            raise UserError(
                f"The spec {self.name!r} masks {', '.join(others)}, on which its "
                "supernet was trained without masks: search the sizes again."
            )
        if self.space.branches != space.branches:
            raise UserError(
                f"The spec {self.name!r} is of blocks of "
                f"{', '.join(self.space.branches)}, but its supernet's are of "
                f"{', '.join(space.branches)}: select the sizes again."
            )
        mine = (self.space.num_blocks, self.space.granularity, self.space.heads)
        if mine != (space.num_blocks, space.granularity, space.heads):
            raise UserError(
                f"The spec {self.name!r} has {self.space.num_blocks} blocks and "
                f"granularity {self.space.granularity} ({len(self.space)} units), but "
                f"its supernet has {space.num_blocks} and {space.granularity} "
                f"({len(space)}): select the sizes again."
            )

    def check_decoder(self, tensors: Collection[str]) -> None:
        """Refuses a supernet whose attention decoder cannot have less in it.

        Args:
            tensors: Names of the supernet's.

        Raises:
            UserError: If it has none, or not more layers than are kept.
        """
        layers = layer_count(tensors)
        if self.decoder is not None and self.decoder >= layers:
            raise UserError(
                f"The spec {self.name!r} keeps {decoder_text(self.decoder)} of the "
                f"layers of an attention decoder, but its supernet has {layers}: "
                "select the sizes again."
            )
