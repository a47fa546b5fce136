"""`omnisparse export`."""

import argparse
import importlib
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command, count, named_path
from espnet_omnisparse.errors import UserError

#: Format -> the module whose `export` writes it, and what a name ends with.
FORMATS = {
    "packed": ("espnet_omnisparse.export.pack", "{dtype}.omni"),
    "espnet": ("espnet_omnisparse.export.unpack", "_espnet"),
    "onnx": ("espnet_omnisparse.export.onnx_folder", "_onnx{dtype}"),
    "sherpa": ("espnet_omnisparse.export.sherpa", "_sherpa{dtype}"),
}
#: Options that only some formats have -> these formats.
OF_SOME = {
    "dtype": ("packed", "onnx", "sherpa"),
    "licence": ("packed",),
    "head": ("onnx", "sherpa"),
    "chunk": ("onnx", "sherpa"),
    "left": ("onnx", "sherpa"),
}
DTYPES = ("fp32", "fp16", "int8")


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, export)
    command.add_argument(
        "size",
        type=named_path,
        metavar="SIZE",
        help="a size's folder; with --to espnet a packed file",
    )
    command.add_argument(
        "--to", required=True, choices=FORMATS, help="the run time's format"
    )
    command.add_argument("--dtype", choices=DTYPES, help="of the weights (fp32)")
    command.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="PATH",
        help="default: SIZE_FORMAT[_DTYPE]; of packed files SIZE[_DTYPE].omni",
    )
    command.add_argument(
        "--licence", metavar="TEXT", help="of the model, for the packed file to tell"
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
    for option, formats in OF_SOME.items():
        if args.to not in formats and getattr(args, option) is not None:
            raise UserError(f"--{option} is not an option of --to {args.to}.")
    args.dtype = args.dtype or "fp32"
    dtype = "" if args.dtype == "fp32" else f"_{args.dtype}"
    module, ending = FORMATS[args.to]
    stem = args.size.stem if args.to == "espnet" else args.size.name
    out = args.out or args.size.with_name(stem + ending.format(dtype=dtype))
    if ending.startswith("{dtype}.") and out.is_dir():
        raise UserError(f"{out} is a folder: name the file to write with -o.")
    importlib.import_module(module).export(args, out)
    print(f"{out}: exported")
