"""Files that are either whole or absent, and checkpoints of tensors and plain types.

What is being written lies beside its target under a name that tells the machine, and
is locked until it is whole. A lock ends with its process, however that ends: so the
next writing into the same folder can tell what a killed one has left, and removes it.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from espnet_omnisparse.errors import UserError

# all that differs is in the last suffix: PyTorch writes the rest of a name into a file
_PARTIAL = re.compile(
    r"\.(?P<name>.+)\.partial-(?P<host>[\w-]+)-[a-z0-9_]{8}", re.DOTALL
)
# a shared file system need not pass on locks: what another machine writes is dead when
# nothing has moved in it for so long, and unlocked
_ELSEWHERE_SECONDS = 24 * 3600
_OLD, _NEW = ".replaced", ".new"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it onto `path` on success.

    An interruption at any point leaves `path` as it was.
    """
    path = Path(path)
    with _partial(path, tempfile.mkstemp) as temporary:
        yield temporary
        # mkstemp makes private files, as some writers do that replace them; these are
        # ordinary results, for all to read, and what was made a program stays one
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(temporary.stat().st_mode | 0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder; moves it to `path` on success.

    What lay at `path` before, a link included, is replaced as a whole; what a link
    points to is left alone. An interruption leaves `path` as it was, or, within the two
    renames of a replacement, absent until the next writing into the same folder.
    """
    path = Path(path)
    with temporary_folder(path) as temporary:
        (temporary / _NEW).mkdir()
        yield temporary / _NEW
        _replace(temporary, path)


def require_replaceable(path: str | os.PathLike, mark: str, what: str) -> None:
    """Checks that a folder that is to be written would replace nothing but its like.

    Args:
        path: The folder, which may be absent or empty.
        mark: Pattern of a file that all of its like have.
        what: What is to be written there.

    Raises:
        UserError: If something else is there.
    """
    path = Path(path)
    if path.is_dir():
        ours = any(path.glob(mark)) or not any(path.iterdir())
    else:
        ours = not os.path.lexists(path)
    if not ours:
        raise UserError(
            f"{path} is there already and is not {what}: remove it, or choose another "
            "place."
        )


@contextmanager
def temporary_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder beside `path`, where `path` is prepared; removes it."""
    with _partial(Path(path), _make_folder) as temporary:
        yield temporary


def _replace(temporary: Path, path: Path) -> None:
    """Moves the new folder to `path`, and what is there aside."""
    while True:
        with suppress(FileNotFoundError):
            # aside, not away: the moment without a folder is that of a rename
            path.replace(temporary / _OLD)
        try:
            (temporary / _NEW).replace(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            # another process was faster: what it wrote is replaced, too
            _remove(temporary / _OLD)


def _make_folder(**where: Any) -> tuple[int, str]:
    """As `tempfile.mkstemp`, for folders."""
    name = tempfile.mkdtemp(**where)
    return os.open(name, os.O_RDONLY), name


@contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """Has the folder that `path` lies in; what it made and nothing came into goes.

    Args:
        path: What is to be written in there.
    """
    made = [one for one in (path.parent, *path.parent.parents) if not one.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # something came into it
                folder.rmdir()


@contextmanager
def _partial(path: Path, make: Callable[..., tuple[int, str]]) -> Iterator[Path]:
    """Yields something new and locked beside `path`; removes what is left of it."""
    with folder_for(path), _beside(path, make) as temporary:
        yield temporary


@contextmanager
def _beside(path: Path, make: Callable[..., tuple[int, str]]) -> Iterator[Path]:
    """The same, in a folder that is there."""
    remove_dead(path.parent)
    prefix = f".{path.name}.partial-{_host()}-"
    while True:
        handle, name = make(dir=path.parent, prefix=prefix)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            break
        os.close(handle)  # taken for dead before it was locked
    temporary = Path(name)
    try:
        yield temporary
    finally:
        _discard(temporary, path)
        os.close(handle)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname()) or "localhost"


def remove_dead(folder: Path) -> None:
    """Removes what killed processes were writing into a folder.

    Args:
        folder: It must be there; every writing into it does so first.
    """
    for entry in list(os.scandir(folder)):
        match = _PARTIAL.fullmatch(entry.name)
        if match is None:
            continue
        try:
            handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # gone by now, or another user's
            continue
        try:
            # shared: for an exclusive lock NFS wants the file open for writing
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            here = match["host"] == _host()
            if here or time.time() - _touched(entry.path) > _ELSEWHERE_SECONDS:
                _discard(Path(entry.path), folder / match["name"])
        except OSError:  # locked: alive
            pass
        finally:
            os.close(handle)


def _touched(path: str) -> float:
    """When anything in a file or folder last changed; unpacking sets other times."""
    inside = (Path(top, name) for top, _, names in os.walk(path) for name in names)
    return max(one.lstat().st_ctime for one in (Path(path), *inside))


def _discard(temporary: Path, path: Path) -> None:
    """Removes a temporary; what it took from `path` and did not replace goes back."""
    old = temporary / _OLD
    if os.path.lexists(old) and not os.path.lexists(path):
        old.replace(path)
    _remove(temporary)


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it can."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically.

    Args:
        path: File to write.
        text: Its text.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: str | os.PathLike, value: Any) -> None:
    """Writes plain types as YAML, atomically, in the order given.

    Args:
        path: File to write.
        value: Plain types.
    """
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


def read_json_lines(path: str | os.PathLike) -> list[Any]:
    """Reads a file of a JSON value per line; none, if it is not there.

    A last line without an end was cut off while it was written, and is left out.

    Raises:
        UserError: Naming the first line that is garbled.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    values = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}: line {number} is not JSON ({error}): correct or remove it."
            ) from error
    return values


def append_lines(path: str | os.PathLike, text: str) -> None:
    """Appends lines; what an earlier writing that was cut off has left goes first.

    Args:
        path: File, which need not be there; other processes may append to it, too.
        text: Whole lines.
    """
    with Path(path).open("a+b") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text.encode("utf-8"))


_WRITE_FAILED = ("iostream error", "inline_container", "PytorchStreamWriter")


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

    Raises:
        UserError: If there is no room for it.
    """
    import torch  # slow, and data preparation needs only the rest of this module

    with atomic_path(path) as temporary:
        try:
            (save or torch.save)(value, temporary)
        except RuntimeError as error:
            # so PyTorch's own writer ends on a full disk, without saying it is full
            if not any(sign in str(error) for sign in _WRITE_FAILED):
                raise
            raise UserError(
                f"{path} cannot be written to its end: make room on its disk, or "
                "choose another place, and run again."
            ) from error


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
