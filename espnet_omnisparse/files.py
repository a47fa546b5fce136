"""Files that are either whole or absent, and checkpoints of tensors and plain types."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from espnet_omnisparse.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it onto `path` on success.

    An interruption at any point leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    # mkstemp makes private files; these are ordinary results, for all to read
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; moves it to `path` on success.

    What lay at `path` before is replaced as a whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            # aside, not away: the moment without a folder is that of a rename
            path.replace(temporary.with_suffix(".old"))
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(temporary.with_suffix(".old"), ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: str | os.PathLike, value: Any) -> None:
    """Writes plain types as YAML, atomically, in the order given."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, default_flow_style=None))


def read_yaml(path: str | os.PathLike) -> Any:
    """Reads a YAML file of plain types.

    Raises:
        UserError: If it is missing or not YAML.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not valid YAML: {first}.") from error


def save_tensors(
    path: str | os.PathLike,
    value: Any,
    save: Callable[[Any, Any], None] | None = None,
) -> None:
    """Saves tensors and plain types atomically, in PyTorch's own format.

    Args:
        path: File to write.
        value: State dict, or any nesting of tensors and plain types.
        save: The writing function; `None`: `torch.save`.
    """
    import torch  # slow, and data preparation needs only the rest of this module

    with atomic_path(path) as temporary:
        (save or torch.save)(value, temporary)


def load_tensors(path: str | os.PathLike) -> Any:
    """Loads a checkpoint onto the CPU without unpickling code.

    Raises:
        UserError: If the file is missing, truncated or not a plain checkpoint.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise UserError(f"The checkpoint {path} does not exist: train it first.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"The checkpoint {path} is corrupt or not a file of plain tensors: "
            "delete it and train or extract again."
        ) from error


def supernet_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The supernet's options in a configuration; empty where absent or null.

    `--print_config` writes the section as null where every option has its default.
    """
    return (config.get("model_conf") or {}).get("supernet") or {}
