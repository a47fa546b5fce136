"""A family: one experiment folder and the folders of the sizes cut out of it.

`exp/asr_tag` holds the supernet and `subnets/*.yaml`; `exp/asr_tag_small` and its
siblings are ordinary ESPnet experiment folders, each with `model.pth`, `config.yaml`,
`subnet.yaml` and `cost.json`.
"""

import argparse
import hashlib
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.tasks.asr import frontend_choices

from espnet_omnisparse import __version__
from espnet_omnisparse.core.layout import space_of
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import write_spec
from espnet_omnisparse.cost.count import Cost, count_cost
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.batch_norm import reestimate
from espnet_omnisparse.extract.calibration import calibration_batches
from espnet_omnisparse.extract.config import token_list_of
from espnet_omnisparse.extract.cut import State, cut_state
from espnet_omnisparse.extract.forms import form_of
from espnet_omnisparse.files import (
    atomic_folder,
    load_tensors,
    read_yaml,
    require_replaceable,
    save_tensors,
    write_text,
    write_yaml,
)
from espnet_omnisparse.nn.batch_norm import has_batch_norm
from espnet_omnisparse.tasks import task_of
from espnet_omnisparse.train.journal import SNAPSHOTS, SUBNETS, read_specs

MODEL, CONFIG = "model.pth", "config.yaml"
SPEC, ORIGIN, COST = "subnet.yaml", "origin.yaml", "cost.json"
WRITTEN = ("token_list", "encoder_conf", "model_conf")  # into every config.yaml


def read_config(folder: Path) -> dict[str, Any]:
    """An experiment's `config.yaml`.

    Raises:
        UserError: If there is none, or it is not what a training has written.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise UserError(
            f"{folder} is not an experiment folder (it has no {CONFIG}): check its "
            "name (of a recipe --asr_exp or --asr_tag), or train first (stage 11)."
        )
    config = read_yaml(path)
    lacking = [k for k in WRITTEN if not isinstance(config, dict) or k not in config]
    if lacking:
        raise UserError(
            f"{path} is not the configuration of a training (it has no {lacking[0]}): "
            "train again (stage 11), or extract this size again (stage 12)."
        )
    # ESPnet2 writes the tokens themselves, ESPnet3 the name of their file
    return {**config, "token_list": token_list_of(config["token_list"])}


def build(
    config: Mapping[str, Any], state: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Builds a model on the CPU and fills it, strictly.

    Args:
        config: An ESPnet configuration.
        state: Its tensors; `None`: freshly drawn ones.

    Raises:
        UserError: If the tensors do not fit the configuration, or the feature
            statistics that it names are not there.
    """
    statistics = (config.get("normalize_conf") or {}).get("stats_file")
    if statistics and not Path(statistics).exists():
        raise UserError(
            f"The model's feature statistics {statistics} are not there: run in the "
            "recipe's folder, or restore them."
        )
    model = task_of(config).build_model(argparse.Namespace(**config))
    if state is not None:
        try:
            model.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            found = textwrap.shorten(str(error).splitlines()[-1], 120)
            raise UserError(
                f"The checkpoint does not fit its config.yaml ({found}): they come "
                "from different trainings."
            ) from error
    return model.eval()


def feature_size(config: Mapping[str, Any]) -> int:
    """Input dimension of the encoder."""
    if config.get("input_size"):
        return config["input_size"]
    frontend = frontend_choices.get_class(config["frontend"])
    return frontend(**config["frontend_conf"]).output_size()


def load_size(folder: Path) -> Any:
    """The model of a size folder, in eval."""
    config = located(read_config(folder), folder)
    return build(config, load_tensors(Path(folder) / MODEL))


def located(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration whose files are found from the folder that it lies in.

    An unpacked size brings its statistics and BPE model along, under the names that
    they had in the recipe's folder: these lie below one of its own parents. Where
    ESPnet unpacked it, it wrote its place before them, which holds until the folder is
    moved: what follows that place still does.

    Args:
        config: An ESPnet configuration.
        folder: Where the configuration lies.
    """
    roots = [Path(folder).resolve(), *Path(folder).resolve().parents]

    def found(name: str | None) -> str | None:
        parts = Path(name).parts if name else ()
        # a file's name alone would fit the statistics of any model
        tails = [Path(*parts[start:]) for start in range(max(len(parts) - 1, 1))]
        paths = (root / tail for tail in tails for root in roots) if name else ()
        return next((str(path) for path in paths if path.is_file()), name)

    located = {**config, "bpemodel": found(config.get("bpemodel"))}
    normalize = config.get("normalize_conf") or {}
    if "stats_file" in normalize:
        stats = found(normalize["stats_file"])
        located["normalize_conf"] = {**normalize, "stats_file": stats}
    return located


def selected_specs(folder: Path) -> dict[str, SubnetSpec]:
    """The specs of a trained supernet, smallest first.

    Raises:
        UserError: If its selection is not settled yet.
    """
    read_config(folder)
    specs = read_specs(Path(folder) / SUBNETS)
    if not specs:
        raise UserError(
            f"{folder}/{SUBNETS} has no sizes yet: training must pass step 1 first "
            "(run stage 11 to its end)."
        )
    return specs


def wanted_specs(
    folder: Path, subnets: Path | None, sizes: Sequence[str]
) -> dict[str, SubnetSpec]:
    """The specs that a command asks for.

    Args:
        folder: Experiment folder of the supernet.
        subnets: Folder of specs to use instead of the experiment's own.
        sizes: Names of the wanted sizes; empty: all.

    Raises:
        UserError: If there are no specs, or none of a wanted name.
    """
    specs = read_specs(subnets) if subnets else selected_specs(folder)
    if not specs:
        raise UserError(f"--subnets: {subnets} has no specs (*.yaml) in it.")
    for size in sizes:
        if size not in specs:
            raise UserError(f"--sizes: {size} is not one of {', '.join(specs)}.")
    return {size: specs[size] for size in sizes or specs}


def checkpoint_of(asr_exp: Path, size: str, checkpoint: str) -> Path:
    """The file that a size is cut out of.

    Args:
        asr_exp: The experiment folder.
        size: The size's name.
        checkpoint: That of all sizes, unless a training has kept the size's own net.
    """
    own = Path(asr_exp) / SNAPSHOTS / f"{size}.pth"
    return own if own.exists() else Path(asr_exp) / checkpoint


def cut(
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    spec: SubnetSpec,
    stock: bool = False,
) -> tuple[Mapping[str, Any], State]:
    """Configuration and tensors of one size, its BatchNorm statistics untouched.

    Args:
        config: The supernet's configuration.
        state: Its state dict.
        spec: The size.
        stock: See `form_of`.

    Raises:
        UserError: If the spec belongs to another supernet, or has no stock form.
    """
    spec.check_supernet(fingerprint(state, config["token_list"]))
    spec.check_space(space_of(config, state))
    spec.check_decoder(state)
    form = form_of(config, spec, stock)
    return form.config, form.state(cut_state(state, spec), state, spec)


def extract_size(
    source: Path,
    checkpoint: Path,
    spec: SubnetSpec,
    out: Path,
    stock: bool = False,
    calibration: int = 400,
) -> bool:
    """Writes one size as an experiment folder of its own, or leaves it if it is there.

    Args:
        source: Experiment folder that has the configuration.
        checkpoint: Its model file.
        spec: The size.
        out: Folder to write, replaced as a whole.
        stock: Write the form that an ESPnet without this package loads.
        calibration: Training utterances for re-estimating BatchNorm statistics.

    Returns:
        Whether anything had to be done.

    Raises:
        UserError: If the checkpoint is missing or corrupt, or the spec does not fit.
    """
    require_replaceable(out, ORIGIN, "a size")
    config = read_config(source)
    state = load_tensors(checkpoint)
    form = form_of(config, spec, stock)
    origin = {
        "version": __version__,
        "supernet": str(source),
        "checkpoint": _below(Path(checkpoint), Path(source)),
        "sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        "form": form.name,
        "calibration": calibration,
        "mask": [int(keep) for keep in spec.mask],
    }
    if spec.chunk is not None:
        origin["chunk"] = spec.chunk.as_dict()
    if spec.decoder is not None:
        origin["decoder"] = spec.decoder
    if spec.sparsity:
        pattern = spec.space.pattern
        origin["weights"] = {
            "pattern": str(pattern),
            "norm": pattern.norm,
            "sparsity": spec.sparsities,
        }
    if is_current(out, origin):
        return False
    small_config, small = cut(config, state, spec)
    model = build(small_config, small)
    if has_batch_norm(model):
        reestimate(
            model,
            lambda batch: model.encode(**batch),
            calibration_batches(config, calibration),
        )
        small = model.state_dict()
    if form.config != small_config:
        small = form.state(small, state, spec)
        model = build(form.config, small)
    write_size(out, model, form.config, spec, origin, source / "images")
    return True


def write_size(
    out: Path,
    model: Any,
    config: Mapping[str, Any],
    spec: SubnetSpec,
    origin: Mapping[str, Any],
    images: Path,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a size's folder, whole or not at all.

    Args:
        out: The folder, replaced as a whole.
        model: The size.
        config: What builds it.
        spec: Which it is.
        origin: Where it comes from.
        images: Plots of its training, if they are there.
        notes: Further YAML files, by name.
    """
    require_replaceable(out, ORIGIN, "a size")
    cost = count_cost(model, feature_size(config), spec.space.pattern)
    with atomic_folder(out) as folder:
        # clones: a tensor cut out of a larger file must not carry it along
        tensors = {name: one.clone() for name, one in model.state_dict().items()}
        save_tensors(folder / MODEL, tensors)
        write_yaml(folder / CONFIG, {**config, "output_dir": str(out)})
        write_spec(spec, folder / SPEC)
        _write_cost(folder, cost)
        write_yaml(folder / ORIGIN, dict(origin))
        for name, values in (notes or {}).items():
            write_yaml(folder / name, values)
        if images.is_dir():
            shutil.copytree(images, folder / "images")


def _below(path: Path, folder: Path) -> str:
    """A file's name as a command on the folder gives it."""
    inside = path.is_relative_to(folder)
    return path.relative_to(folder).as_posix() if inside else path.name


def is_current(out: Path, origin: dict[str, Any]) -> bool:
    """Whether a size's folder is there and comes from where it should.

    Args:
        out: The folder.
        origin: Where it should come from.
    """
    path = out / ORIGIN
    return path.exists() and read_yaml(path) == origin


def _write_cost(folder: Path, cost: Cost) -> None:
    values = {**cost.as_dict(), "file_bytes": (folder / MODEL).stat().st_size}
    write_text(folder / COST, json.dumps(values, indent=2) + "\n")


def read_cost(folder: Path) -> dict[str, int]:
    """The costs written at extraction, with `file_bytes`.

    Raises:
        UserError: If the file is garbled.
    """
    path = Path(folder) / COST
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is garbled: extract this size again.") from error
