"""What a run needs of the machine, looked at before its first stage."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from espnet_omnisparse.errors import UserError

# what cmd.sh names to run a job on this very machine; others send it elsewhere
LOCAL = ("run.pl", "stdout.pl")


def require_plain_paths(options: Mapping[str, str]) -> None:
    """Checks that ESPnet's scripts can work in the present folder and those given.

    They take the present one from `$PWD`, put it on `$PATH`, and leave paths unquoted
    here and there.

    Args:
        options: Option -> path.

    Raises:
        UserError: If a path has a space, or that of the present folder a colon.
    """
    for name, value in options.items():
        if re.search(r"\s", value):
            raise UserError(
                f"{name} {value!r} has a space, with which ESPnet's scripts cannot "
                "work: choose a name without."
            )
    folder = Path(os.environ.get("PWD", ""))
    # as a shell does: a link's own path counts, if it leads here
    if not (folder.is_absolute() and folder.exists() and folder.samefile(".")):
        folder = Path.cwd()
    if re.search(r"[\s:]", str(folder)):
        raise UserError(
            f"The path of this folder, {str(folder)!r}, has a space or a colon, with "
            "which ESPnet's scripts cannot work: move or rename the folder that has "
            "it, or enter it through a link without."
        )


def require_writable(path: str | os.PathLike) -> None:
    """Checks that a file or folder can be made, or written to, at `path`.

    Raises:
        UserError: If it cannot, or leads through something that is no folder.
    """
    path = Path(path)
    found = path
    while not os.path.lexists(found) and found != found.parent:
        found = found.parent
    if not found.exists():
        raise UserError(
            f"{path} cannot be written: {found} is a link to nothing; remove it, or "
            "make what it points to."
        )
    if found != path and not found.is_dir():
        raise UserError(
            f"{path} cannot be written: {found} is a file, not a folder; remove it, "
            "or choose another place."
        )
    if not os.access(found, os.W_OK | (os.X_OK if found.is_dir() else 0)):
        raise UserError(
            f"{path} cannot be written: {found} is read-only for this user; change "
            "its permissions, or choose another place."
        )


def require_png(option: str, path: str | os.PathLike) -> None:
    """Checks that a figure is to be written as what we write.

    Args:
        option: That which names it.
        path: The file.

    Raises:
        UserError: If its name ends otherwise.
    """
    if Path(path).suffix != ".png":
        raise UserError(f"{option} must be a .png file, not {path}.")


def require_folders(paths: Iterable[str | os.PathLike]) -> None:
    """Checks that each path is a folder to write in, or can become one.

    Raises:
        UserError: If one cannot.
    """
    for path in map(Path, paths):
        require_writable(path / "any")


def require_gpus(option: str, wanted: int, cmd: Path | None = None) -> None:
    """Checks that PyTorch finds as many GPUs as the jobs on this machine want.

    Args:
        option: The option that wants them, for the sentence.
        wanted: How many.
        cmd: ESPnet's `cmd.sh`, which says where such jobs run; `None`: here. Of
            another machine nothing can be known.

    Raises:
        UserError: If there are fewer.
    """
    if wanted < 1 or (cmd is not None and not _runs_here(cmd)):
        return
    import torch  # slow

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < wanted:
        finds = {0: "none"}.get(found, f"only {found}")
        raise UserError(
            f"{option} needs {wanted} GPU{'s' if wanted > 1 else ''}, and PyTorch "
            f"finds {finds} on this machine: give --ngpu {found}"
            f"{' to use the CPU' if not found else ''}, or check the driver "
            "(nvidia-smi) and CUDA_VISIBLE_DEVICES."
        )


def _runs_here(cmd: Path) -> bool:
    script = '. "$0" && echo "${cuda_cmd}"'
    done = subprocess.run(["bash", "-c", script, cmd], capture_output=True, text=True)
    return (done.stdout.split() or [""])[0] in LOCAL
