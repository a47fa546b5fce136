"""The engine of packed files, built once for all test runs from the same sources."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import REPOSITORY

CSRC = REPOSITORY / "espnet_omnisparse/runtime/csrc"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", f"-I{CSRC / 'include'}")


def compiler() -> str | None:
    """The C++ compiler of this machine, if it has one."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next(
        (found for name in names if name and (found := shutil.which(name))), None
    )


def sources() -> list[Path]:
    """The engine's translation units, without the command-line program."""
    return sorted((CSRC / "src").rglob("*.cpp"))


def build(cxx: str, flags: tuple[str, ...] = ()) -> Path:
    """Compiles what has changed since it was last compiled, and links it.

    Args:
        cxx: The compiler.
        flags: More of its flags, such as a sanitizer's.

    Returns:
        The shared library.
    """
    flags = (*FLAGS, *flags)
    cache = Path(tempfile.gettempdir()) / f"omnisparse-engine-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    headers = sorted(path for path in CSRC.rglob("*.h"))
    shared = _digest(cxx, *flags, *(path.read_bytes() for path in headers))

    def compiled(source: Path) -> Path:
        key = _digest(shared, source.name, source.read_bytes())
        command = [cxx, *flags, "-c", str(source)]
        return _made(cache / f"{source.stem}-{key}.o", command)

    # two: as many as the smallest machines have
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources()))
    library = cache / f"omnisparse_engine-{_digest(*(o.name for o in objects))}.so"
    return _made(library, [cxx, *flags, "-shared", *map(str, objects)])


def _digest(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode() if isinstance(part, str) else part)
        whole.update(b"\0")
    return whole.hexdigest()[:16]


def _made(path: Path, command: list[str]) -> Path:
    """The file, made by a command unless it is there; other runs may make it too."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        partial.replace(path)
    return path


@pytest.fixture(scope="session")
def engine_library() -> Path:
    """The engine as a shared library."""
    cxx = compiler()
    if cxx is None:
        pytest.skip("no C++ compiler on this machine: the engine was not built")
    if not sources():
        pytest.skip("this tree has no sources of the engine")
    return build(cxx)
