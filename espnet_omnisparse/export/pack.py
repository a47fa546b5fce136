"""`--to packed`: a size's folder as one file, with all that turns it back into one."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from espnet_omnisparse import __version__
from espnet_omnisparse.console import say
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import APART, Tensors, write_packed
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.config import without_decoder
from espnet_omnisparse.files import load_tensors

#: Files of a size beside its model and its configuration, which a packed file carries.
CARRIED = (family.SPEC, family.ORIGIN, family.COST)
#: Options that name a file which a packed one carries, and its section.
FILES = {"stats_file": "normalize_conf", "bpemodel": None}


def export(args: argparse.Namespace, out: Path) -> None:
    """Writes the file, whole or not at all.

    Args:
        args: As `omnisparse export` has them.
        out: File to write.

    Raises:
        UserError: If the size cannot be packed.
    """
    left_out = pack(args.size, out, args.dtype, args.licence)
    if left_out:
        say(f"{out} is without {left_out}.")


def pack(
    folder: Path, path: Path, dtype: str = "fp32", licence: str | None = None
) -> str:
    """Writes a size as a packed file.

    Args:
        folder: Of the size, as `omnisparse extract` or stage 11 wrote it.
        path: The file, replaced if it is there.
        dtype: Of the matrices, one of `packed.DTYPES`.
        licence: Under which the model may be used, for the file to tell.

    Returns:
        What of the model is not in the file, in words; empty: nothing.

    Raises:
        UserError: If the folder is not that of a size, or a packed file cannot have
            what the model consists of.
    """
    folder = Path(folder)
    config = size_config(folder)
    located = family.located(config, folder)
    model = family.build(located, load_tensors(folder / family.MODEL))
    description = describe(model, config)
    left_out = ""
    if description["transducer"] is None and config.get("decoder") is not None:
        left_out = "its attention decoder: it recognises by its CTC head alone"
        config = without_decoder(config)
    description |= {
        "espnet": {"config": _yaml(config), "files": _carried(folder)},
        "provenance": {
            "size": folder.resolve().name,
            "made_by": f"espnet-omnisparse {__version__}",
            "source_sha256": _sha256(folder / family.MODEL),
        },
        "licence": licence,
    }
    write_packed(path, model, description, dtype, _apart(located))
    return left_out


def size_config(folder: Path) -> dict[str, Any]:
    """The configuration of a size, and of nothing else.

    Args:
        folder: Of the size.

    Raises:
        UserError: If it is the folder of a supernet, a language model, or no model.
    """
    _refuse_other_tasks(folder)
    config = family.read_config(folder)
    if config["model_conf"].get("supernet"):
        raise UserError(
            f"{folder} is a supernet, which has no size of its own: extract one first, "
            f"such as with omnisparse extract {folder}, and export {folder}_SIZE."
        )
    if not (folder / family.MODEL).is_file():
        raise UserError(
            f"{folder} has no {family.MODEL}: name the folder of a size, such as "
            "exp/asr_x_s80 (run.sh's stage 11, or omnisparse extract, writes it)."
        )
    return config


def _refuse_other_tasks(folder: Path) -> None:
    """A language model's configuration has no encoder, which is no mistake in it."""
    path = folder / family.CONFIG
    if not path.is_file():
        return
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # told by what reads it next
    if isinstance(config, dict) and "lm" in config and "encoder_conf" not in config:
        raise UserError(
            f"{folder} is a language model: only speech recognisers can be exported."
        )


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _carried(folder: Path) -> dict[str, str]:
    paths = (folder / name for name in CARRIED)
    return {p.name: p.read_text(encoding="utf-8") for p in paths if p.is_file()}


def _apart(config: Mapping[str, Any]) -> Tensors:
    """The files that a configuration names, byte by byte."""
    arrays: Tensors = {}
    for option, section in FILES.items():
        name = (config.get(section) or {} if section else config).get(option)
        if name and Path(name).is_file():
            arrays[APART + option] = np.frombuffer(Path(name).read_bytes(), np.uint8)
    return arrays


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
