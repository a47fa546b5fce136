"""What a recipe gets, of ESPnet2 or ESPnet3, and how it is written beside its files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import atomic_path
from espnet_omnisparse.recipe import template

NAME = "omnisparse"
OWN = Path(__file__).parent / "conf"
STARTER = OWN / "conformer_ctc.yaml"
DECODE_CTC = OWN / "decode_ctc.yaml"


@dataclass(frozen=True)
class Adoption:
    """What a recipe gets.

    Attributes:
        wrapper: The name of the wrapper.
        files: Name -> content, of it and of what else is written, in the recipe.
        source: What the supernet's configuration is derived from.
        changed: The keys in which it differs.
        inference_config: What sizes are decoded with; empty: what `run.sh` says.
        root: The tree whose template is linked into the recipe; `None`: it needs none.
    """

    wrapper: str
    files: Mapping[str, str]
    source: Path
    changed: tuple[str, ...]
    inference_config: str
    root: Path | None = None


def find_config(recipe: Path, config: Path) -> Path:
    """The file that `--config` names, in the recipe or from where we are.

    Args:
        recipe: Its folder.
        config: As given.

    Raises:
        UserError: If there is none.
    """
    for path in (recipe / config, config):
        if path.is_file():
            return path
    raise UserError(f"--config {config} exists neither here nor in {recipe}.")


def commented(config: Mapping[str, Any], origin: str, changed: Sequence[str]) -> str:
    """A configuration as YAML that begins with what differs.

    Args:
        config: The supernet's.
        origin: What it is derived from, in words.
        changed: The keys in which it differs.
    """
    comment = f"# {origin} as a supernet, by `omnisparse recipe`. What differs:\n"
    comment += "".join(f"#   {key}\n" for key in changed)
    text = yaml.safe_dump(dict(config), sort_keys=False, default_flow_style=None)
    return comment + text


def write(recipe: Path, adoption: Adoption) -> list[str]:
    """Writes what a recipe gets, and links what its stages need.

    Args:
        recipe: Its folder.
        adoption: What is planned for it.

    Returns:
        The names of the files that were written; those that were there are not.

    Raises:
        UserError: If a file is there with other content; then nothing is written.
    """
    for name, text in adoption.files.items():
        path = recipe / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path} exists with other content than it would get now: delete it, "
                "or give the new files another name with --name."
            )
    if adoption.root is not None:
        template.link(recipe, adoption.root)
    (recipe / "conf").mkdir(exist_ok=True)
    missing = [name for name in adoption.files if not (recipe / name).exists()]
    for name in missing:
        with atomic_path(recipe / name) as path:
            path.write_text(adoption.files[name], encoding="utf-8")
            if name == adoption.wrapper:
                path.chmod(path.stat().st_mode | 0o111)
    return missing


def below(path: Path, recipe: Path) -> str:
    """A file's name as seen from a recipe's folder.

    Args:
        path: The file.
        recipe: The recipe's folder.
    """
    return os.path.relpath(path.resolve(), recipe.resolve())
