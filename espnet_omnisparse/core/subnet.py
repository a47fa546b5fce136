"""Subnets: the search space of a supernet, and specs that name one point of it.

A `SubnetSpec` is an immutable value. It is handed to the forward pass (as gates), to
the cost functions and to extraction; nothing keeps an "active" subnet.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import BRANCHES, FFN_CHUNKS, PRUNABLE
from espnet_omnisparse.core.gate import Gate, mask_gates
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_yaml, write_yaml

GRANULARITIES = ("branch", "block", "component")
FULL = "full"
_FORMAT = 1


@dataclass(frozen=True)
class SearchSpace:
    """What can be pruned in a Conformer: its units, and the weights that take a mask.

    Both are in the order in which they are computed.

    Attributes:
        num_blocks: Conformer blocks of the full net.
        granularity: `"branch"`: each FFN1, MHSA, Conv and FFN2 is a unit and the
            block-final norm always stays; `"block"`: a unit is a whole block, final
            norm included; `"component"`: a unit is a quarter of an FFN's channels, an
            attention head, or a Conv.
        heads: Attention heads of a block; only components depend on it.
        pattern: Of the weights' masks; `None`: weights are not masked.
        positional: Whether the attention has a layer for relative positions; only
            weights depend on it.

    >>> SearchSpace(2).units[:5]
    ('0.ffn1', '0.mhsa', '0.conv', '0.ffn2', '1.ffn1')
    >>> SearchSpace(2, "block").units
    ('0', '1')
    >>> SearchSpace(1, "component", heads=2).units[3:8]
    ('0.ffn1.3', '0.mhsa.0', '0.mhsa.1', '0.conv.0', '0.ffn2.0')
    >>> SearchSpace(1, pattern=Pattern(rows=8)).weights[:3]
    ('0.ffn1.w_1', '0.ffn1.w_2', '0.mhsa.linear_q')
    """

    num_blocks: int
    granularity: str = "branch"
    heads: int = 1
    pattern: Pattern | None = None
    positional: bool = True

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

    @property
    def parts(self) -> dict[str, int]:
        """Into how many units each branch of a block is divided."""
        if self.granularity != "component":
            return dict.fromkeys(BRANCHES, 1)
        return {"ffn1": FFN_CHUNKS, "mhsa": self.heads, "conv": 1, "ffn2": FFN_CHUNKS}

    def unit(self, block: int, branch: str, part: int = 0) -> str:
        """Name of the unit that a part of a branch belongs to."""
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
        """Names of the weights that take a mask: block, branch, layer."""
        if self.pattern is None:
            return ()
        return tuple(
            f"{block}.{branch}.{layer}"
            for block in range(self.num_blocks)
            for branch, layers in PRUNABLE.items()
            for layer in layers
            if self.positional or layer != "linear_pos"
        )

    @property
    def noun(self) -> str:
        """What a unit is called, in the plural."""
        return {"branch": "branches"}.get(self.granularity, f"{self.granularity}s")

    def __len__(self) -> int:
        if self.granularity == "block":
            return self.num_blocks
        return self.num_blocks * sum(self.parts.values())


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
        """The spec that keeps everything."""
        return cls(FULL, supernet, space, (True,) * len(space), chunk=chunk)

    @property
    def kept(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Per block of the full net: each kept branch, and which of its parts."""
        if self.space.granularity == "block":
            whole = dict.fromkeys(BRANCHES, (0,))
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
        return self.num_branches, self.space.num_blocks * len(BRANCHES), "branches"

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
            UserError: If blocks, granularity, heads or the masks' pattern differ. A
                net that was trained without masks can be masked by any pattern.
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
        mine = (self.space.num_blocks, self.space.granularity, self.space.heads)
        if mine != (space.num_blocks, space.granularity, space.heads):
            raise UserError(
                f"The spec {self.name!r} has {self.space.num_blocks} blocks and "
                f"granularity {self.space.granularity} ({len(self.space)} units), but "
                f"its supernet has {space.num_blocks} and {space.granularity} "
                f"({len(space)}): select the sizes again."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the spec as YAML, atomically."""
        kept, of, noun = self.counts
        rows: list = [list(branches) for branches in self.kept_branches]
        if self.space.granularity == "component":
            rows = [{b: list(parts) for b, parts in row.items()} for row in self.kept]
        value = {
            "format": _FORMAT,
            "name": self.name,
            "supernet": self.supernet,
            "granularity": self.space.granularity,
            noun: {"kept": kept, "of": of},
            "kept": rows,
        }
        pattern = self.space.pattern
        if pattern is not None:
            value["weights"] = {
                "pattern": str(pattern),
                "norm": pattern.norm,
                "positional": self.space.positional,
                "sparsity": self.sparsities,
            }
        if self.chunk is not None:
            value["chunk"] = self.chunk.as_dict()
        write_yaml(path, value)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SubnetSpec":
        """Reads a spec.

        Raises:
            UserError: If the file is missing, names an unknown branch, or
                contradicts itself.
        """
        return _parse_spec(read_yaml(path), str(path))


def _parse_spec(value: Any, source: str) -> SubnetSpec:
    components = isinstance(value, dict) and value.get("granularity") == "component"
    noun = "components" if components else "branches"
    keys = {"format", "name", "supernet", "granularity", noun, "kept"}
    if not isinstance(value, dict) or set(value) - {"weights", "chunk"} != keys:
        raise UserError(
            f"{source} is not a subnet spec: it needs exactly the keys "
            f"{', '.join(sorted(keys))}, weights where it masks them, and chunk where "
            "it streams."
        )
    if value["format"] != _FORMAT:
        raise UserError(
            f"{source} has spec format {value['format']!r}, this version reads "
            f"{_FORMAT}: select the sizes again."
        )
    rows, row_type = value["kept"], dict if components else list
    if not isinstance(rows, list) or not all(isinstance(row, row_type) for row in rows):
        raise UserError(f"{source}: kept must list what each block keeps.")
    space = _space_of(value, rows, source)
    for block, row in enumerate(rows):
        _check_row(row, block, space, source)
    if not components:
        rows = [{branch: [0] for branch in row} for row in rows]
    if space.granularity == "block":
        mask = tuple(bool(row) for row in rows)
    else:
        mask = tuple(
            part in row.get(branch, ())
            for row in rows
            for branch, parts in space.parts.items()
            for part in range(parts)
        )
    space, sparsity = _weights_of(value.get("weights"), space, source)
    chunk = Chunk.parse(value.get("chunk"), f"{source}: chunk")
    name, supernet = str(value["name"]), str(value["supernet"])
    spec = SubnetSpec(name, supernet, space, mask, sparsity, chunk)
    kept, of, _ = spec.counts
    if value[noun] != {"kept": kept, "of": of}:
        raise UserError(
            f"{source} contradicts itself: it lists {kept} of {of} {noun} but declares "
            f"{value[noun]}: make {noun} and kept agree."
        )
    return spec


def _space_of(value: Mapping[str, Any], rows: list, source: str) -> SearchSpace:
    if value["granularity"] != "component":
        return SearchSpace(len(rows), value["granularity"])
    declared = value["components"]
    units = declared.get("of") if isinstance(declared, dict) else None
    # what is not an attention head has a fixed number of parts
    fixed = len(rows) * sum(
        n for b, n in SearchSpace(1, "component").parts.items() if b != "mhsa"
    )
    heads, left = 0, 1
    if isinstance(units, int) and rows:
        heads, left = divmod(units - fixed, len(rows))
    if heads < 1 or left:
        raise UserError(
            f"{source} contradicts itself: {len(rows)} blocks cannot have "
            f"{units} components."
        )
    return SearchSpace(len(rows), "component", heads)


def _weights_of(
    section: Any, space: SearchSpace, source: str
) -> tuple[SearchSpace, tuple[float, ...]]:
    """The space with its masks' pattern, and the sparsity of every weight."""
    if section is None:
        return space, ()
    keys = {"pattern", "norm", "positional", "sparsity"}
    if not isinstance(section, dict) or set(section) != keys:
        raise UserError(
            f"{source}: weights needs exactly the keys {', '.join(sorted(keys))}."
        )
    try:
        pattern = Pattern.parse(section["pattern"], section["norm"])
    except UserError as error:
        # which names the option that it is elsewhere
        wrong = str(error).replace("encoder_conf.pattern_norm", "weights.norm")
        wrong = wrong.replace("encoder_conf.pattern", "weights.pattern")
        raise UserError(f"{source}: {wrong}") from error
    if not isinstance(section["positional"], bool):
        raise UserError(f"{source}: weights.positional must be true or false.")
    space = dataclasses.replace(
        space, pattern=pattern, positional=section["positional"]
    )
    given = section["sparsity"]
    if not isinstance(given, dict):
        raise UserError(f"{source}: weights.sparsity must map weights to sparsities.")
    for name, share in given.items():
        if name not in space.weights:
            raise UserError(f"{source}: there is no weight {name!r} to mask.")
        if isinstance(share, bool) or not isinstance(share, int | float):
            share = -1.0
        if not 0.0 <= share < 1.0:
            raise UserError(
                f"{source}: the sparsity of {name} must be a number of at least 0 and "
                "below 1."
            )
    return space, tuple(float(given.get(name, 0.0)) for name in space.weights)


def _check_row(row: list | dict, block: int, space: SearchSpace, source: str) -> None:
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
    for branch, parts in row.items() if isinstance(row, dict) else ():
        known = range(space.parts[branch])
        listed = isinstance(parts, list) and all(part in known for part in parts)
        if not parts or not listed or len(set(parts)) != len(parts):
            raise UserError(
                f"{source}: block {block} keeps parts {parts} of {branch}; name each "
                f"of 0 to {len(known) - 1} at most once, and at least one."
            )
