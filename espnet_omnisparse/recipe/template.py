"""Finds ESPnet's recipe template and links it into a recipe folder.

Stock `asr.sh` and its helpers are not in ESPnet's wheel, only in its repository and,
whole, in its sdist. So a recipe runs with nothing but pip at hand: no git, no GitHub.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.files import temporary_folder

ESPNET_VERSION = 202611
SDIST_SHA256 = "eb5816c4d2e4a18eaa2afacc2f8cf74f93e5534dec0fdcee0b2c89b6f7ddd1fd"

# path.sh of the template sources ../../../tools/extra_path.sh, hence tools
NEEDED = ("egs2/TEMPLATE/", "tools/")
LINKED = (
    "asr.sh",
    "path.sh",
    "db.sh",
    "cmd.sh",
    "scripts",
    "pyscripts",
    "steps",
    "utils",
)


def require_versions() -> None:
    """Checks that this Python and the installed ESPnet are new enough.

    ESPnet is looked up, not imported: an old one may fail in a less obvious way.

    Raises:
        UserError: If Python or ESPnet is too old, or ESPnet is missing.
    """
    if sys.version_info < (3, 12):  # noqa: UP036 (a checkout runs under any Python)
        found = ".".join(map(str, sys.version_info[:3]))
        raise UserError(
            f"Python {found} is too old for ESPnet {ESPNET_VERSION}: use Python 3.12 "
            "or 3.13, which ./setup_env.sh finds and sets up."
        )
    wanted = f'pip install "espnet[asr,train]=={ESPNET_VERSION}"'
    try:
        installed = version("espnet")
    except PackageNotFoundError:
        raise UserError(
            f"ESPnet is not installed in {sys.prefix}: run ./setup_env.sh or {wanted}."
        ) from None
    if int(re.match(r"\d*", installed).group() or 0) < ESPNET_VERSION:
        raise UserError(
            f"ESPnet {installed} is too old: run ./setup_env.sh or {wanted}."
        )


def locate() -> Path:
    """Returns the root of a tree that holds ESPnet's recipe template and tools.

    It is `$ESPNET_ROOT` when set. Otherwise it is a cache that the first call fills
    from the sdist of the pinned ESPnet.

    Raises:
        UserError: If `$ESPNET_ROOT` is no such tree, or the sdist cannot be had.
    """
    chosen = os.environ.get("ESPNET_ROOT")
    if chosen:
        root = Path(chosen).expanduser().resolve()
        if not _holds_template(root):
            raise UserError(
                f"ESPNET_ROOT={chosen} has no egs2/TEMPLATE/asr1/asr.sh and tools/: "
                "set it to the top folder of an ESPnet checkout, or unset it to have "
                "the template fetched."
            )
        return root
    root = _cache()
    if not _holds_template(root):
        try:
            _fetch(root)
        except OSError as error:
            raise UserError(
                f"{root} could not be written ({error.strerror}): set XDG_CACHE_HOME "
                "to a folder that can, or ESPNET_ROOT to an ESPnet checkout."
            ) from error
    return root


def link(recipe: Path, root: Path) -> None:
    """Makes `recipe` a folder in which the stock `asr.sh` of `root` runs.

    Links the template's parts into the recipe and ESPnet's `tools` three levels up,
    where the template expects them, and adds an empty `local/path.sh`. What the user
    put there (an edited `cmd.sh`, a real `tools`) stays.

    Args:
        recipe: Recipe folder, such as `egs2/librispeech/asr1`.
        root: What `locate` returned.

    Raises:
        UserError: If `recipe` is not a folder.
    """
    if not recipe.is_dir():
        raise UserError(
            f"{recipe} is not a folder: name a recipe, such as egs2/librispeech/asr1."
        )
    recipe = recipe.resolve()
    above = recipe.parents[2:3]
    if not above or (above[0] == above[0].parent and not (above[0] / "tools").exists()):
        raise UserError(
            f"{recipe} is not deep enough for a recipe, which finds tools three levels "
            "up: put it into folders of its own, such as egs2/my_corpus/asr1."
        )
    for name in LINKED:
        _point(recipe / name, root, f"egs2/TEMPLATE/asr1/{name}")
    _point(recipe.parents[2] / "tools", root, "tools")
    (recipe / "local").mkdir(exist_ok=True)
    own = recipe / "local" / "path.sh"
    if not own.exists():
        own.touch()


def download(folder: Path) -> Path:
    """Downloads the pinned ESPnet's sdist into `folder` and returns its path.

    pip does it, because pip knows the user's index, proxy and certificates.

    Raises:
        UserError: If pip cannot get it.
    """
    command = [sys.executable, "-m", "pip", "download", f"espnet=={ESPNET_VERSION}"]
    command += ["--no-deps", "--no-binary", "espnet", "--dest", str(folder)]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode != 0 or not found:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        reason = (errors or lines)[-1].removeprefix("ERROR: ").rstrip(".")
        raise UserError(
            f"ESPnet's recipe template could not be fetched (pip: {reason}): set "
            "ESPNET_ROOT to an ESPnet checkout, or connect to the network and try "
            "again."
        )
    return found[0]


def _holds_template(root: Path) -> bool:
    asr = root / "egs2" / "TEMPLATE" / "asr1" / "asr.sh"
    return asr.is_file() and (root / "tools").is_dir()


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = f"espnet-{ESPNET_VERSION}"
    return Path(base).absolute() / "espnet-omnisparse" / name


def _fetch(root: Path) -> None:
    """Fills `root` from the sdist in one rename: it is whole or not there."""
    with temporary_folder(root) as folder:
        print(f"Fetching ESPnet {ESPNET_VERSION}'s sdist (36 MB, once) ...", flush=True)
        sdist = download(folder)
        _verify(sdist)
        print(f"Unpacking the recipe template into {root} ...", flush=True)
        _unpack(sdist, folder)
        try:
            (folder / root.name).rename(root)
        except OSError as error:
            # another process may have been first, and its tree is as good as ours
            if not _holds_template(root):
                raise UserError(
                    f"{root} is in the way and incomplete: delete it and try again."
                ) from error


def _verify(sdist: Path) -> None:
    with sdist.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SDIST_SHA256:
        raise UserError(
            f"{sdist.name} is not the ESPnet {ESPNET_VERSION} this package was made "
            f"for (sha256 {found[:12]}... instead of {SDIST_SHA256[:12]}...): check "
            "pip's index settings, or set ESPNET_ROOT to an ESPnet checkout."
        )


def _unpack(sdist: Path, folder: Path) -> None:
    """Extracts the needed parts as `folder/espnet-<version>/...`."""
    wanted = tuple(f"espnet-{ESPNET_VERSION}/{part}" for part in NEEDED)
    with tarfile.open(sdist) as archive:
        members = [one for one in archive if one.name.startswith(wanted)]
        archive.extractall(folder, members, filter="data")


def _point(place: Path, root: Path, inside: str) -> None:
    """Links `place` to `inside` of `root`, unless the user has something else there."""
    target = root / inside
    if place == target:  # of the checkout that the recipe is in
        return
    if place.is_symlink():
        current = os.readlink(place)
        others = place.exists() and not current.endswith(inside)
        if others or current == str(target):
            return
    elif place.exists():
        return
    with temporary_folder(place) as folder:
        (folder / place.name).symlink_to(target)
        (folder / place.name).replace(place)


def main() -> None:
    """Links the template into each recipe folder given, fetching it when needed."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_omnisparse.recipe.template", description=main.__doc__
    )
    parser.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE_DIR")
    with one_sentence():
        recipes = parser.parse_args().recipes
        require_versions()
        root = locate()
        print(f"ESPnet's recipe template: {root}")
        for recipe in recipes:
            link(recipe, root)
            print(f"Linked into: {recipe}")


if __name__ == "__main__":
    main()
