"""`--to espnet`: a packed file as an ordinary ESPnet folder again."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_omnisparse.console import say
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.pack import CARRIED, FILES
from espnet_omnisparse.export.packed import APART, Tensors, read_packed, restored
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import atomic_folder, save_tensors, write_text, write_yaml


def export(args: argparse.Namespace, out: Path) -> None:
    """Writes the folder, whole or not at all.

    Args:
        args: As `omnisparse export` has them; `size` is a packed file.
        out: Folder to write.

    Raises:
        UserError: If there is no such file, or the folder is there already.
    """
    dtype = unpack(args.size, out)
    if dtype != "fp32":
        say(f"{args.size} is of {dtype}: {out} has its weights as they were rounded.")


def unpack(path: Path, out: Path) -> str:
    """Writes the folder of the size that a packed file was made from.

    Tensors and configuration are what they were, save that the configuration names the
    files that came along, feature statistics and BPE model, in their new place.

    Args:
        path: The packed file.
        out: Folder to write; nothing may be there.

    Returns:
        The type of the file's matrices; of others than fp32 the weights are rounded.

    Raises:
        UserError: If the file is none, or damaged, or has no configuration of ESPnet.
    """
    out = Path(out)
    if path.is_dir():
        raise UserError(f"{path} is a folder already: --to espnet takes a packed file.")
    description, tensors = read_packed(path)
    told = description["espnet"]
    if told is None:
        raise UserError(
            f"{path} was not made from a folder, and cannot become one: pack a size's "
            "folder with omnisparse export."
        )
    if out.exists():
        raise UserError(f"{out} is there already: remove it, or choose another -o.")
    state = {
        name: torch.from_numpy(array.copy())
        for name, array in restored(description, tensors).items()
    }
    config = yaml.safe_load(told["config"])
    with atomic_folder(out) as folder:
        save_tensors(folder / family.MODEL, state)
        write_yaml(folder / family.CONFIG, _with_files(config, tensors, folder, out))
        for name in CARRIED:  # no other names: the file may be anyone's
            if name in told["files"]:
                write_text(folder / name, told["files"][name])
    return description["dtype"]


def _with_files(
    config: Mapping[str, Any], tensors: Tensors, folder: Path, out: Path
) -> dict[str, Any]:
    """Writes the files that came along; the configuration that names them so.

    Args:
        config: The configuration that was packed.
        tensors: Of the packed file.
        folder: Where to write them.
        out: Where they will be.
    """
    config = dict(config)
    for option, section in FILES.items():
        if APART + option not in tensors:
            continue
        place = dict(config[section]) if section else config
        # two names: the files of other models are called the same
        parts = [
            part for part in Path(place[option]).parts[-2:] if part not in ("/", "..")
        ]
        (folder / Path(*parts)).parent.mkdir(exist_ok=True)
        (folder / Path(*parts)).write_bytes(tensors[APART + option].tobytes())
        place[option] = str(out / Path(*parts))
        if section:
            config[section] = place
    return config
