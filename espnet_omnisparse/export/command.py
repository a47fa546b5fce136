"""`omnisparse export`."""

import argparse
import importlib
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command, count
from espnet_omnisparse.errors import UserError

#: Format -> the module whose `export` writes it.
FORMATS = {
    "onnx": "espnet_omnisparse.export.onnx_folder",
    "sherpa": "espnet_omnisparse.export.sherpa",
}
DTYPES = ("fp32", "fp16", "int8")


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, export)
    command.add_argument("size", type=Path, metavar="SIZE", help="a size's folder")
    command.add_argument(
        "--to", required=True, choices=FORMATS, help="the run time's format"
    )
    command.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of the weights (%(default)s)"
    )
    command.add_argument(
        "-o", "--out", type=Path, metavar="PATH", help="default: SIZE_FORMAT[_DTYPE]"
    )
    command.add_argument(
        "--head", choices=("ctc", "transducer"), help="of two that a model has"
    )
    command.add_argument(
        "--chunk", type=count, metavar="FRAMES", help="of a stream (as trained)"
    )
    command.add_argument(
        "--left", type=count, metavar="FRAMES", help="seen before it (4 chunks)"
    )


def export(args: argparse.Namespace) -> None:
    """Writes a size in the format of another run time."""
    if args.left is not None and args.chunk is None:
        raise UserError("--left needs --chunk beside it.")
    dtype = "" if args.dtype == "fp32" else f"_{args.dtype}"
    out = args.out or args.size.with_name(f"{args.size.name}_{args.to}{dtype}")
    importlib.import_module(FORMATS[args.to]).export(args, out)
    print(f"{out}: exported")
