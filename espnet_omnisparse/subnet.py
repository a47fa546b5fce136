"""Subnets: the search space of a supernet, and specs that name one point of it.

A `SubnetSpec` is an immutable value. It is handed to the forward pass (as gates), to
the cost functions and to extraction; nothing keeps an "active" subnet.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_yaml, write_yaml
from espnet_omnisparse.gate import Gate, mask_gates

# branch -> (its pre-norm, its module, its residual scale), under ESPnet's names and in
# the order in which a block computes them
BRANCH_PARTS = {
    "ffn1": ("norm_ff_macaron", "feed_forward_macaron", 0.5),
    "mhsa": ("norm_mha", "self_attn", 1.0),
    "conv": ("norm_conv", "conv_module", 1.0),
    "ffn2": ("norm_ff", "feed_forward", 0.5),
}
BRANCHES = tuple(BRANCH_PARTS)
GRANULARITIES = ("branch", "block")
FULL = "full"
_FORMAT = 1


@dataclass(frozen=True)
class SearchSpace:
    """The prunable units of a Conformer, in the order in which they are computed.

    Attributes:
        num_blocks: Conformer blocks of the full net.
        granularity: `"branch"`: each FFN1, MHSA, Conv and FFN2 is a unit and the
            block-final norm always stays; `"block"`: a unit is a whole block, final
            norm included.

    >>> SearchSpace(2).units[:5]
    ('0.ffn1', '0.mhsa', '0.conv', '0.ffn2', '1.ffn1')
    >>> SearchSpace(2, "block").units
    ('0', '1')
    """

    num_blocks: int
    granularity: str = "branch"

    def __post_init__(self):
        if self.granularity not in GRANULARITIES:
            raise UserError(
                f"granularity must be one of {', '.join(GRANULARITIES)}, "
                f"not {self.granularity!r}."
            )

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units."""
        blocks = range(self.num_blocks)
        if self.granularity == "block":
            return tuple(str(block) for block in blocks)
        return tuple(f"{block}.{branch}" for block in blocks for branch in BRANCHES)

    def __len__(self) -> int:
        per_block = 1 if self.granularity == "block" else len(BRANCHES)
        return self.num_blocks * per_block


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
    """Which units of which supernet are kept.

    Attributes:
        name: The size's name, e.g. `small`.
        supernet: Fingerprint of the supernet it belongs to.
        space: That supernet's units.
        mask: One boolean per unit.

    >>> space = SearchSpace(1)
    >>> spec = SubnetSpec("small", "0f", space, (True, True, False, False))
    >>> spec.kept_branches
    (('ffn1', 'mhsa'),)
    """

    name: str
    supernet: str
    space: SearchSpace
    mask: tuple[bool, ...]

    def __post_init__(self):
        if len(self.mask) != len(self.space):
            raise ValueError(f"{len(self.mask)} mask entries, {len(self.space)} units")

    @classmethod
    def full(cls, supernet: str, space: SearchSpace) -> "SubnetSpec":
        """The spec that keeps everything."""
        return cls(FULL, supernet, space, (True,) * len(space))

    @property
    def kept_branches(self) -> tuple[tuple[str, ...], ...]:
        """The kept branches of each block of the full net."""
        if self.space.granularity == "block":
            return tuple(BRANCHES if keep else () for keep in self.mask)
        width = len(BRANCHES)
        rows = (self.mask[i : i + width] for i in range(0, len(self.mask), width))
        return tuple(
            tuple(b for b, keep in zip(BRANCHES, row, strict=True) if keep)
            for row in rows
        )

    @property
    def num_branches(self) -> int:
        """How many branches are kept."""
        return sum(len(branches) for branches in self.kept_branches)

    @property
    def is_full(self) -> bool:
        """Whether nothing is dropped."""
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
            UserError: If the number of blocks or the granularity differs.
        """
        if self.space != space:
            raise UserError(
                f"The spec {self.name!r} has {self.space.num_blocks} blocks and "
                f"granularity {self.space.granularity}, but its supernet has "
                f"{space.num_blocks} and {space.granularity}: select the sizes again."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the spec as YAML, atomically."""
        write_yaml(
            path,
            {
                "format": _FORMAT,
                "name": self.name,
                "supernet": self.supernet,
                "granularity": self.space.granularity,
                "branches": {
                    "kept": self.num_branches,
                    "of": self.space.num_blocks * len(BRANCHES),
                },
                "kept": [list(branches) for branches in self.kept_branches],
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SubnetSpec":
        """Reads a spec.

        Raises:
            UserError: If the file is missing, names an unknown branch, or
                contradicts itself.
        """
        return _parse_spec(read_yaml(path), str(path))


def _parse_spec(value: Any, source: str) -> SubnetSpec:
    keys = {"format", "name", "supernet", "granularity", "branches", "kept"}
    if not isinstance(value, dict) or set(value) != keys:
        raise UserError(
            f"{source} is not a subnet spec: it needs exactly the keys "
            f"{', '.join(sorted(keys))}."
        )
    if value["format"] != _FORMAT:
        raise UserError(
            f"{source} has spec format {value['format']!r}, this version reads "
            f"{_FORMAT}: select the sizes again."
        )
    kept = value["kept"]
    if not isinstance(kept, list) or not all(isinstance(row, list) for row in kept):
        raise UserError(f"{source}: kept must be a list of branches for every block.")
    space = SearchSpace(len(kept), value["granularity"])
    for block, row in enumerate(kept):
        _check_row(row, block, space, source)
    counts = {"kept": sum(map(len, kept)), "of": len(kept) * len(BRANCHES)}
    if value["branches"] != counts:
        raise UserError(
            f"{source} contradicts itself: it lists {counts['kept']} of {counts['of']} "
            f"branches but declares {value['branches']}: make branches and kept agree."
        )
    if space.granularity == "block":
        mask = tuple(bool(row) for row in kept)
    else:
        mask = tuple(branch in row for row in kept for branch in BRANCHES)
    return SubnetSpec(str(value["name"]), str(value["supernet"]), space, mask)


def _check_row(row: list, block: int, space: SearchSpace, source: str) -> None:
    for branch in row:
        if branch not in BRANCHES:
            raise UserError(
                f"{source}: block {block} keeps an unknown branch {branch!r}; the "
                f"branches are {', '.join(BRANCHES)}."
            )
    if len(set(row)) != len(row):
        raise UserError(f"{source} contradicts itself: block {block} repeats a branch.")
    if space.granularity == "block" and len(row) not in (0, len(BRANCHES)):
        raise UserError(
            f"{source} contradicts itself: granularity is block, but block {block} "
            "keeps only some of its branches."
        )
