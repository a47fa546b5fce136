"""What a training leaves beside its checkpoints: the selection and its history.

`selection_log.jsonl` has a line per epoch; `subnets/<size>.yaml` is written when
step 1 has ended. Neither is ever averaged, unlike tensors in a checkpoint.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_omnisparse.core.spec import FULL, SubnetSpec
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.files import read_json_lines, write_text
from espnet_omnisparse.supernet.supernet import Supernet

LOG = "selection_log.jsonl"
SUBNETS = "subnets"
#: Where a gradual pruning in stages keeps the net of each size.
SNAPSHOTS = "snapshots"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of an experiment's selection log, oldest first.

    Raises:
        UserError: If one is garbled.
    """
    return read_json_lines(Path(folder) / LOG)


def log_epoch(
    folder: Path,
    epoch: int,
    supernet: Supernet,
    seconds: float,
    flip_rates: Mapping[str, float] | None = None,
    gradients: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Appends an epoch's state; lines of a later, interrupted attempt are dropped.

    Args:
        folder: The experiment's folder.
        epoch: Its number, from 1.
        supernet: The state to write down.
        seconds: What the epoch's updates took.
        flip_rates: Size -> how much of its mask has changed in the epoch; none: no
            weights are masked.
        gradients: Size -> name -> number, as of `diagnosis.compare`; none: nothing was
            measured.
    """
    scores = supernet.selection.scores_now()
    line = {
        "epoch": epoch,
        "update": supernet.update,
        "phase": supernet.phase,
        "max_sparsity": supernet.max_sparsity,
        "train_seconds": round(seconds, 2),
        "kept": {
            draw.size: sum(gate is not None for gate in draw.gates)
            for draw in supernet.validation_subnets()
        },
        "scores": None if scores is None else [float(score) for score in scores],
    }
    if flip_rates:
        line["flip_rate"] = {name: round(one, 6) for name, one in flip_rates.items()}
    if gradients:
        line["gradients"] = {
            size: {name: float(f"{value:.6g}") for name, value in found.items()}
            for size, found in gradients.items()
        }
    lines = [old for old in read_log(folder) if old["epoch"] < epoch] + [line]
    write_text(Path(folder) / LOG, "".join(json.dumps(one) + "\n" for one in lines))


def log_plain_epoch(folder: Path, epoch: int, made: int, seconds: float) -> None:
    """Appends an epoch of a training of one net, as `log_epoch` does a supernet's.

    Args:
        folder: The experiment's folder.
        epoch: Its number, from 1.
        made: Updates that it made.
        seconds: What they took.
    """
    before = [old for old in read_log(folder) if old["epoch"] < epoch]
    line = {
        "epoch": epoch,
        "update": made + (before[-1]["update"] if before else 0),
        "train_seconds": round(seconds, 2),
    }
    text = "".join(json.dumps(one) + "\n" for one in [*before, line])
    write_text(Path(folder) / LOG, text)


def settled_specs(supernet: Supernet, fingerprint: str) -> dict[str, SubnetSpec]:
    """The spec of every size trained, the full one last, once step 1 has ended.

    Args:
        supernet: The supernet.
        fingerprint: Its fingerprint.
    """
    space = supernet.space
    specs = {
        name: SubnetSpec(
            name,
            fingerprint,
            space,
            tuple(mask.tolist()),
            supernet.size_sparsity(name),
            supernet.sizes[name].chunk,
            supernet.sizes[name].decoder,
        )
        for name, mask in reversed(supernet.size_masks().items())
    }
    plan = supernet.config.sparsity
    alone = plan is not None and not plan.trains_dense
    if specs and alone and not plan.snapshots:
        return specs  # the masked weights of the full net mean nothing
    return {**specs, FULL: SubnetSpec.full(fingerprint, space, supernet.chunks[0])}


def write_specs(folder: Path, specs: dict[str, SubnetSpec]) -> None:
    """Writes the spec of each size as `folder/<size>.yaml`, each atomically.

    Args:
        folder: Folder to write into.
        specs: Name -> spec.
    """
    for name, spec in specs.items():
        write_spec(spec, Path(folder) / f"{name}.yaml")


def read_specs(folder: Path) -> dict[str, SubnetSpec]:
    """The specs in a folder, smallest first; empty if there are none."""
    paths = sorted(Path(folder).glob("*.yaml"))
    specs = [read_spec(path) for path in paths]

    def size(spec: SubnetSpec) -> tuple[float, ...]:
        layers = math.inf if spec.decoder is None else spec.decoder
        # of those that keep as many units the one with most zeros is the smallest
        return sum(spec.mask), -sum(spec.sparsity), layers

    return {spec.name: spec for spec in sorted(specs, key=size)}
