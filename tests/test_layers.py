"""The house: imports go one way, files are short, and each package has its place."""

import ast
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import REPOSITORY

ROOT = REPOSITORY / "espnet_omnisparse"
#: from the bottom up: a module imports from its own package and from those before it
ORDER = (
    *("moved", "errors", "runtime", "arguments", "console", "options", "files"),
    "environment",
    *("core", "cost", "losses", "selection", "supernet", "nn", "train", "tasks"),
    *("extract", "export", "data", "streaming", "transcribe", "report", "publish"),
    *("search", "recipe", "bench", "bin", "shrink"),
    *("cli", "launch"),
)
#: these know PyTorch and nothing of ESPnet
WITHOUT_ESPNET = ("core", "cost", "losses", "selection", "supernet")
FILES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


def place(path: Path) -> str:
    """The package, or the module at the top, that a file is in."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return {name for name in found if name.startswith("espnet_omnisparse.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    if path == ROOT / "__init__.py":
        return
    here = ORDER.index(place(path))
    for name in imported(path):
        there = name.split(".")[1]
        if there in ORDER:  # else a name of the package itself, such as __version__
            assert ORDER.index(there) <= here, f"{path.name} imports {name}"


def test_there_is_no_circle_of_modules():
    modules = {
        ".".join(
            ("espnet_omnisparse", *path.relative_to(ROOT).with_suffix("").parts)
        ).removesuffix(".__init__"): path
        for path in FILES
    }
    needs = {name: imported(path) & {*modules} for name, path in modules.items()}
    for name in needs:  # `from package import module` needs the module alone
        needs[name] -= {other for other in needs[name] if name.startswith(f"{other}.")}
    done: set[str] = set()
    while ready := {n for n in needs if n not in done and needs[n] - {n} <= done}:
        done |= ready
    assert done == {*modules}, sorted({*modules} - done)


def test_every_package_and_module_has_its_place():
    assert {place(path) for path in FILES} - {"__init__"} == {*ORDER}


def test_files_can_be_read_in_one_sitting():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert max(lines.values()) <= 400, max(lines, key=lines.get)
    assert statistics.median(lines.values()) < 150


@pytest.mark.parametrize("package", WITHOUT_ESPNET)
def test_the_core_knows_only_torch(package):
    names = [
        ".".join(("espnet_omnisparse", *path.relative_to(ROOT).with_suffix("").parts))
        for path in FILES
        if place(path) == package and path.name != "__init__.py"
    ]
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += "assert 'espnet2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_order_is_told_as_it_is():
    text = (ROOT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[text.index("| package |") :]
    places = [table.index(f"`{name}/`") for name in ORDER if (ROOT / name).is_dir()]
    assert all(before < after for before, after in pairwise(places))


def test_tests_lie_as_what_they_test():
    folders = {path.parent.name for path in TESTS} - {"tests"}
    assert folders <= {name for name in ORDER if (ROOT / name).is_dir()}
    assert len({path.name for path in TESTS}) == len(TESTS)


def test_tests_share_helpers_and_not_one_another():
    others = "|".join(path.stem for path in TESTS)
    asked = re.compile(rf"^ *(from|import) ({others})\b", re.MULTILINE)
    files = Path(__file__).parent.rglob("*.py")
    assert [p.name for p in files if asked.search(p.read_text(encoding="utf-8"))] == []


def public_functions(node: ast.AST):
    """The functions, and the methods of classes, whose names have no underscore."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child)
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            yield child


def arguments_of(function: ast.FunctionDef) -> list[str]:
    """Its arguments, but not the object itself."""
    every = [*function.args.args, *function.args.kwonlyargs]
    return [one.arg for one in every if one.arg not in ("self", "cls")]


def test_public_functions_tell_their_arguments():
    told, silent = set(), []
    for path in FILES:
        for function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            names = arguments_of(function)
            document = ast.get_docstring(function) or ""
            if "Args:" in document or document.startswith("See `"):
                told.add((function.name, *names))
            elif len(names) > 1:
                silent.append((path.name, (function.name, *names)))
    # a method that overrides one has what is told there
    assert [one for one in silent if one[1] not in told] == []
