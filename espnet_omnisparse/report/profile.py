"""The costs of sizes and of models, their times measured in turn."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec
from espnet_omnisparse.cost.count import count_cost, measure_rtf
from espnet_omnisparse.cost.metrics import METRICS
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.names import CHECKPOINT
from espnet_omnisparse.files import load_tensors, save_tensors
from espnet_omnisparse.report.tables import Table
from espnet_omnisparse.tasks import is_supernet
from espnet_omnisparse.train.journal import SUBNETS, read_specs

_PROFILED = "params encoder nonzero macs_10s macs_30s bytes file rtf".split()


def measured_costs(
    folders: Sequence[Path],
    spec: Path | None,
    checkpoint: str,
    random: bool,
    rounds: int,
) -> dict[str, dict[str, float]]:
    """What sizes and models cost.

    Args:
        folders: Of sizes, supernets and ordinary models.
        spec: A size to cut out of each of them; `None`: all that it has.
        checkpoint: Name of a supernet's file in its folder.
        random: Whether the weights are freshly drawn.
        rounds: Of the timing.

    Returns:
        Model -> a `cost.json`'s fields and `rtf`.

    Raises:
        UserError: If a folder has no model.
    """
    models: dict[str, Any] = {}
    costs: dict[str, dict[str, float]] = {}
    for folder in folders:
        for name, (model, cost) in _models(folder, spec, checkpoint, random).items():
            models[name], costs[name] = model, cost
    for name, row in measure_rtf(models, rounds=rounds).items():
        costs[name]["rtf"] = statistics.median(row)
    return costs


def costs_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """The costs as a table for a terminal."""
    metrics = [METRICS[name] for name in _PROFILED]
    table = Table(["", *(metric.heading for metric in metrics)])
    for name, cost in costs.items():
        # sizes extracted by an earlier version have no packed bytes
        numbers = ((metric, cost.get(metric.field)) for metric in metrics)
        cells = ("" if n is None else metric.shown(n, 4) for metric, n in numbers)
        table.rows.append([name, *cells])
    return table.text()


def _models(
    folder: Path, spec: Path | None, checkpoint: str, random: bool
) -> dict[str, tuple[Any, dict[str, float]]]:
    """What a folder holds: name -> model and its costs."""
    config = family.located(family.read_config(folder), folder)
    extracted = (folder / family.COST).exists()
    if extracted and checkpoint != CHECKPOINT:
        raise UserError(
            f"{folder} is an extracted size, whose model is {family.MODEL}: leave "
            "--checkpoint out."
        )
    if extracted and not spec and not random:
        return {str(folder): (family.load_size(folder), family.read_cost(folder))}
    # an unpacked size has its model alone, under the name that sizes give it
    names = (checkpoint, family.MODEL)
    trained = next((folder / n for n in names if (folder / n).exists()), None)
    if random:
        state = family.build(config).state_dict()
    elif trained:
        state = load_tensors(trained)
    else:
        raise UserError(
            f"{folder} has no {checkpoint}: name its model with --checkpoint, or "
            "profile freshly drawn weights with --random."
        )
    if spec:
        loaded = read_spec(spec)
        specs = {loaded.name: loaded}
    else:
        specs = read_specs(folder / SUBNETS)
    if not specs and is_supernet(config):  # still in step 1
        space = family.build(config).encoder.space
        mark = fingerprint(state, config["token_list"])
        specs = {FULL: SubnetSpec.full(mark, space)}
    cuts = {name: family.cut(config, state, one) for name, one in specs.items()}
    if not specs:  # a model of ordinary training
        cuts = {"": (config, state)}
    found = {}
    for name, (small_config, small) in cuts.items():
        model = family.build(small_config, small)
        pattern = specs[name].space.pattern if name in specs else None
        cost = count_cost(model, family.feature_size(config), pattern).as_dict()
        cost["file_bytes"] = _file_bytes(small)
        found[f"{folder} {name}".strip()] = model, cost
    return found


def _file_bytes(state: Mapping[str, Any]) -> int:
    """The size of the model file that extraction would write."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        save_tensors(path, {name: tensor.clone() for name, tensor in state.items()})
        return path.stat().st_size
