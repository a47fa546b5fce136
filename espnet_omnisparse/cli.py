"""Searches, extracts, profiles and reports sizes of a supernet: `omnisparse`.

Run it in the recipe's folder, where the paths of `config.yaml` start. Each package's
`command` registers what it offers, and imports what it needs when it runs: PyTorch and
ESPnet take seconds, `--help` none.
"""

import argparse
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import espnet_omnisparse
from espnet_omnisparse.arguments import add_command
from espnet_omnisparse.bench import command as bench
from espnet_omnisparse.errors import one_sentence
from espnet_omnisparse.export import command as export
from espnet_omnisparse.extract import command as extract
from espnet_omnisparse.publish import command as publish
from espnet_omnisparse.recipe import command as recipe
from espnet_omnisparse.report import command as report
from espnet_omnisparse.search import command as search
from espnet_omnisparse.shrink import command as shrink
from espnet_omnisparse.streaming import command as streaming
from espnet_omnisparse.transcribe import command as transcribe


def info(args: argparse.Namespace) -> None:
    """Prints what a report of a defect should state."""
    found = {
        "espnet-omnisparse": espnet_omnisparse.__version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "espnet": _version("espnet"),
        "sclite": _sclite(),
    }
    for name, value in found.items():
        print(f"{name}: {value}")


def _sclite() -> str:
    found = shutil.which("sclite")
    ours = Path(espnet_omnisparse.__file__).parent / "recipe/bin"
    # the recipe puts the stand-in on PATH under the same name
    if found is None or Path(found).resolve().parent == ours.resolve():
        return "the stand-in of espnet-omnisparse"
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omnisparse", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    packages = (extract, export, search, streaming, transcribe, bench, report)
    packages += (publish, recipe, shrink)
    for package in packages:
        package.add_commands(commands)
    add_command(commands, info)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with one_sentence():
        args = _parser().parse_args(argv, argparse.Namespace(argv=argv))
        args.run(args)


if __name__ == "__main__":
    main()
