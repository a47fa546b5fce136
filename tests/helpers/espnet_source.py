"""ESPnet's own unit tests and recipe configurations, which its wheel has not."""

import importlib.util
import itertools
import random
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import temporary_folder
from espnet_omnisparse.recipe import template

_TESTS = "test/espnet2/asr/encoder"


def espnet_source() -> Path:
    """The tests of its encoders and the asr1 configurations of the pinned ESPnet.

    They are unpacked from its sdist, which is fetched once, into the folder beside that
    of the recipe template. Without a network the test is skipped.
    """
    root = template._cache().with_name(f"espnet-{template.ESPNET_VERSION}-tests")
    if not root.is_dir():
        with temporary_folder(root) as folder:
            try:
                sdist = template.download(folder)
            except UserError as error:
                pytest.skip(str(error))
            template._verify(sdist)
            with tarfile.open(sdist) as archive:
                wanted = [one for one in archive if _is_wanted(one)]
                archive.extractall(folder, wanted, filter="data")
            try:
                (folder / f"espnet-{template.ESPNET_VERSION}").rename(root)
            except OSError:
                assert root.is_dir()  # another process was faster
    return root


def _is_wanted(member: tarfile.TarInfo) -> bool:
    """Whether a file is what `espnet_source` is for; packages need their beginnings."""
    path = Path(*Path(member.name).parts[1:])
    if not member.isfile():
        return False
    if path.is_relative_to("egs2"):
        return path.parts[2:4] == ("asr1", "conf")
    is_package = path.is_relative_to("test") and path.name == "__init__.py"
    return is_package or path.is_relative_to(_TESTS)


@contextmanager
def espnets_tests(name: str) -> Iterator[ModuleType]:
    """A copy of one of ESPnet's test modules, in which classes may be replaced.

    Args:
        name: Of its file, such as `test_conformer_encoder`.
    """
    root = espnet_source()
    spec = importlib.util.spec_from_file_location(name, root / _TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # its helpers are in a package that is called like one of Python's own
    hidden = {one: sys.modules.pop(one) for one in _modules_of_test()}
    sys.path.insert(0, str(root))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(root))
        for one in _modules_of_test():
            del sys.modules[one]
        sys.modules.update(hidden)


def _modules_of_test() -> list[str]:
    return [one for one in sys.modules if one.split(".")[0] == "test"]


def cases_of(function: Callable[..., None]) -> list[dict[str, Any]]:
    """The arguments of every case that pytest would run a function with."""
    axes = []
    for mark in getattr(function, "pytestmark", ()):
        names, values = mark.args
        names = [name.strip() for name in names.split(",")]
        rows = (value if len(names) > 1 else (value,) for value in values)
        axes.append([dict(zip(names, row, strict=True)) for row in rows])
    return [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*axes)
    ]


def pairwise(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fewer cases that still have every pair of values that any case has."""
    seen: set[Any] = set()
    chosen = []
    for case in random.Random(0).sample(cases, len(cases)):
        pairs = set(itertools.combinations(_values(case), 2)) or {()}
        if not pairs <= seen:
            seen |= pairs
            chosen.append(case)
    return chosen


def _values(case: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in sorted(case.items())]
