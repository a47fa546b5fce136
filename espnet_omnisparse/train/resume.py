"""Before a training begins or goes on: whether what it begins with belongs to it."""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.train.reporter import Reporter

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import load_tensors
from espnet_omnisparse.supernet.plan import Plan, differences, plain
from espnet_omnisparse.supernet.sparsity import SparsityConfig
from espnet_omnisparse.train.update import NOT_SELECTED, SupernetModel

CHECKPOINT = "checkpoint.pth"
PLAN = "plan"  # its key in the checkpoint
_TIED = (
    *("method", "method_conf", "sizes", "fraction_of", "chunks", "heads"),
    *("warm_start", "step1"),
)
_SPARSITY = "supernet.sparsity"
_AT_ANY_TIME = ("refresh", "diagnose")  # how often may change


def plan_of(model: SupernetModel) -> Plan:
    """The plan of a model in training."""
    supernet = model.supernet
    return Plan(_tied_options(model), supernet.timeline, supernet.total)


def differing_options(plan: Plan, model: SupernetModel) -> list[str]:
    """What a training cannot go on with, in words.

    Args:
        plan: Of the run that its checkpoint is of.
        model: What is to go on.
    """
    return differences(_one_by_one(plan.options), _one_by_one(_tied_options(model)))


def check_checkpoint(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Looks at the checkpoint that a training would go on from, before it begins.

    A supernet takes from it what decides its plan: the timeline, measured costs.

    Args:
        args: The task's arguments.
        model: The model built from them.

    Raises:
        UserError: If the checkpoint is of another model or plan, or a file that
            averaging needs is missing.
    """
    folder = Path(args.output_dir)
    path = folder / CHECKPOINT
    if not args.resume or not path.exists() or getattr(args, "use_adapter", False):
        return
    states = load_tensors(path)
    differing: list[str] = []
    plan = None
    if isinstance(model, SupernetModel) and PLAN in states:
        plan = Plan.from_dict(states[PLAN])
        differing = differing_options(plan, model)
    differing = differing or list(_shape_differences(states["model"], model))
    if differing:
        raise UserError(
            f"{path} was trained with {differing[0]}{_more(differing)}: go on with the "
            "configuration that it began with, or train under another name (--asr_tag "
            "or --output_dir)."
        )
    _check_epoch_files(folder, states["reporter"], args)
    if isinstance(model, SupernetModel):
        model.supernet.go_on(plan, _below("supernet.", states["model"]))


def check_initial_parameters(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Looks at the files of `--init_param`, before ESPnet loads them.

    Args:
        args: The task's arguments.
        model: The model built from them.

    Raises:
        UserError: If one has tensors that do not fit the model.
    """
    if args.ignore_init_mismatch:
        return
    for init_param in args.init_param:
        parts = init_param.split(":")
        path, source, target = (*parts, "", "")[:3]
        state = load_tensors(path)
        state = state.get("module", state)
        # in the order in which ESPnet does it
        outside = tuple(parts[3].split(",")) if len(parts) > 3 else ()
        state = {n: t for n, t in state.items() if not n.startswith(outside)}
        if source:
            state = {
                n[len(source) + 1 :]: t
                for n, t in state.items()
                if n.startswith(source)
            }
        prefix = f"{target}." if target else ""
        state = {f"{prefix}{n}": t for n, t in state.items()}
        differing = list(_shape_differences(state, model, lacking=False))
        if differing:
            raise UserError(
                f"--init_param {path} has {differing[0]}{_more(differing)}: start from "
                "a model of the same shape and vocabulary, leave parts out with "
                f"--init_param {path}:::ctc,decoder, or take what fits with "
                "--ignore_init_mismatch true."
            )


def _tied_options(model: SupernetModel) -> dict[str, Any]:
    config, space = model.supernet.config, model.encoder.space
    options = {f"supernet.{name}": getattr(config, name) for name in _TIED}
    options[_SPARSITY] = config.sparsity
    options["encoder's width"] = model.encoder.width
    options |= {f"encoder's {name}": value for name, value in plain(space).items()}
    tokens = json.dumps(list(model.token_list))
    digest = hashlib.sha256(tokens.encode()).hexdigest()[:8]
    options["token_list"] = f"{len(model.token_list)} tokens ({digest})"
    return {name: plain(value) for name, value in options.items()}


def _one_by_one(options: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's options, each of the sparsities' by itself.

    Those that an earlier version did not know had their defaults.

    Args:
        options: Of this version's plan or an earlier one's.
    """
    apart = dict(options)
    section = apart.pop(_SPARSITY, None)
    apart[_SPARSITY] = "none" if section is None else "given"
    if section is not None:
        for name, value in plain(SparsityConfig.read(section)).items():
            if name not in _AT_ANY_TIME:
                apart[f"{_SPARSITY}.{name}"] = value
    return apart


def _shape_differences(
    state: Mapping[str, Any], model: torch.nn.Module, lacking: bool = True
) -> Iterator[str]:
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            yield f"{name}, which this model has not"
        elif own[name].shape != tensor.shape:
            yield f"{name} of shape {[*tensor.shape]}, not {[*own[name].shape]}"
    if lacking:
        yield from (f"no {name}" for name in own if name not in state)


def _more(differing: list[str]) -> str:
    return f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else ""


def _below(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _check_epoch_files(
    folder: Path, reported: dict[str, Any], args: argparse.Namespace
) -> None:
    """Refuses to go on where a file is missing that the average may be made of."""
    reporter = Reporter()
    reporter.load_state_dict(reported)
    kept = args.keep_nbest_models
    nbest = kept if isinstance(kept, int) else max(kept, default=1)
    for phase, key, mode in args.best_model_criterion:
        if not reporter.has(phase, key):
            continue
        ranked = reporter.sort_epochs_and_values(phase, key, mode)[:nbest]
        for place, (epoch, value) in enumerate(ranked):
            unsettled = key == "loss_sizes" and value >= NOT_SELECTED
            if unsettled or epoch == reporter.get_epoch():
                continue  # never averaged; in the checkpoint as well
            file = folder / f"{epoch}epoch.pth"
            if not file.exists():
                lower = f", or set keep_nbest_models to {place}" if place else ""
                raise UserError(
                    f"{file} is missing, one of the {nbest} best epochs by "
                    f"{phase}.{key}, which are averaged: restore it{lower}, or train "
                    "under another name (--asr_tag or --output_dir)."
                )
