"""Specs as YAML files: written, and read with everything in them checked."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from espnet_omnisparse.core.branches import BRANCHES, PRUNABLE, parts_of
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.decoder import decoder_text, parse_decoder
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.search_space import GRANULARITIES, SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_yaml, write_yaml

_FORMAT = 1
_OPTIONAL = {"weights", "chunk", "block", "gate_linear", "decoder"}


def write_spec(spec: SubnetSpec, path: str | os.PathLike) -> None:
    """Writes a spec as YAML, atomically.

    Args:
        spec: The size.
        path: File to write.
    """
    kept, of, noun = spec.counts
    rows: list = [list(branches) for branches in spec.kept_branches]
    if spec.space.granularity == "component":
        rows = [{b: list(parts) for b, parts in row.items()} for row in spec.kept]
    value = {
        "format": _FORMAT,
        "name": spec.name,
        "supernet": spec.supernet,
        "granularity": spec.space.granularity,
        noun: {"kept": kept, "of": of},
        "kept": rows,
    }
    if spec.space.branches != BRANCHES:
        value["block"] = list(spec.space.branches)
    if spec.space.gate_linear:
        value["gate_linear"] = True
    pattern = spec.space.pattern
    if pattern is not None:
        value["weights"] = {
            "pattern": str(pattern),
            "norm": pattern.norm,
            "positional": spec.space.positional,
            "sparsity": spec.sparsities,
        }
        if spec.space.front_end:
            value["weights"]["front_end"] = list(spec.space.front_end)
        if spec.space.decoder:
            value["weights"]["decoder"] = spec.space.decoder
    if spec.chunk is not None:
        value["chunk"] = spec.chunk.as_dict()
    if spec.decoder is not None:
        value["decoder"] = decoder_text(spec.decoder)
    write_yaml(path, value)


def read_spec(path: str | os.PathLike) -> SubnetSpec:
    """Reads a spec.

    Raises:
        UserError: If the file is missing, names an unknown branch, or contradicts
            itself.
    """
    return _parse_spec(read_yaml(path), str(path))


def _parse_spec(value: Any, source: str) -> SubnetSpec:
    components = isinstance(value, dict) and value.get("granularity") == "component"
    noun = "components" if components else "branches"
    keys = {"format", "name", "supernet", "granularity", noun, "kept"}
    if not isinstance(value, dict) or set(value) - _OPTIONAL != keys:
        raise UserError(
            f"{source} is not a subnet spec: it needs exactly the keys "
            f"{', '.join(sorted(keys))}, weights where it masks them, chunk where it "
            "streams, decoder where it keeps less of one, and block and gate_linear "
            "where its blocks are not a Conformer's."
        )
    if value["format"] != _FORMAT:
        raise UserError(
            f"{source} has spec format {value['format']!r}, this version reads "
            f"{_FORMAT}: select the sizes again."
        )
    if value["granularity"] not in GRANULARITIES:
        raise UserError(
            f"{source}: granularity must be one of {', '.join(GRANULARITIES)}, not "
            f"{value['granularity']!r}."
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
    decoder = None
    if "decoder" in value:
        decoder = parse_decoder(value["decoder"], f"{source}: decoder")
    name, supernet = str(value["name"]), str(value["supernet"])
    spec = SubnetSpec(name, supernet, space, mask, sparsity, chunk, decoder)
    kept, of, _ = spec.counts
    if value[noun] != {"kept": kept, "of": of}:
        raise UserError(
            f"{source} contradicts itself: it lists {kept} of {of} {noun} but declares "
            f"{value[noun]}: make {noun} and kept agree."
        )
    return spec


def _space_of(value: Mapping[str, Any], rows: list, source: str) -> SearchSpace:
    branches = value.get("block", list(BRANCHES))
    known = isinstance(branches, list) and all(
        isinstance(branch, str) and branch in PRUNABLE for branch in branches
    )
    if not known or not branches or len(set(branches)) != len(branches):
        raise UserError(
            f"{source}: block must list the branches of a block, each once, of "
            f"{', '.join(PRUNABLE)}."
        )
    gate_linear = value.get("gate_linear", False)
    if not isinstance(gate_linear, bool):
        raise UserError(f"{source}: gate_linear must be true or false.")
    space = SearchSpace(len(rows), branches=tuple(branches), gate_linear=gate_linear)
    if value["granularity"] != "component":
        return dataclasses.replace(space, granularity=value["granularity"])
    declared = value["components"]
    units = declared.get("of") if isinstance(declared, dict) else None
    # what is not an attention head has a fixed number of parts
    fixed = len(rows) * sum(parts_of(b, 0) for b in branches)
    heads, left = 0, 1
    if isinstance(units, int) and rows:
        heads, left = divmod(units - fixed, len(rows))
    if heads < 1 or left:
        raise UserError(
            f"{source} contradicts itself: {len(rows)} blocks cannot have "
            f"{units} components."
        )
    return dataclasses.replace(space, granularity="component", heads=heads)


def _weights_of(
    section: Any, space: SearchSpace, source: str
) -> tuple[SearchSpace, tuple[float, ...]]:
    """The space with its masks' pattern, and the sparsity of every weight."""
    if section is None:
        return space, ()
    keys = {"pattern", "norm", "positional", "sparsity"}
    more = {"front_end", "decoder"}
    if not isinstance(section, dict) or set(section) - more != keys:
        raise UserError(
            f"{source}: weights needs exactly the keys {', '.join(sorted(keys))}, "
            "front_end where it masks layers of the front end, and decoder where it "
            "masks layers of the decoder."
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
    front = section.get("front_end", [])
    if not isinstance(front, list) or not all(isinstance(one, str) for one in front):
        raise UserError(f"{source}: weights.front_end must list layers.")
    decoder = section.get("decoder", 0)
    if isinstance(decoder, bool) or not isinstance(decoder, int) or decoder < 0:
        raise UserError(f"{source}: weights.decoder must be a number of layers.")
    space = dataclasses.replace(
        space,
        pattern=pattern,
        positional=section["positional"],
        front_end=tuple(front),
        decoder=decoder,
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
        if branch not in space.branches:
            raise UserError(
                f"{source}: block {block} keeps an unknown branch {branch!r}; the "
                f"branches are {', '.join(space.branches)}."
            )
    if len(set(row)) != len(row):
        raise UserError(f"{source} contradicts itself: block {block} repeats a branch.")
    if space.granularity == "block" and len(row) not in (0, len(space.branches)):
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
