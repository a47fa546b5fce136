"""`omnisparse bench`."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command, count
from espnet_omnisparse.errors import UserError


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, bench)
    command.add_argument(
        "models",
        nargs="*",
        type=Path,
        metavar="MODEL",
        help="sizes' folders, packed files, ONNX folders, of CTC models",
    )
    command.add_argument(
        "--random",
        metavar="BLOCKSxWIDTH",
        help="instead: a Conformer of this size with random weights, in every run time",
    )
    command.add_argument(
        "--sparsity",
        type=float,
        nargs="+",
        default=[0.8, 0.9],
        help="of its masked forms (%(default)s)",
    )
    command.add_argument(
        "--seconds", type=count, default=10, help="of a whole recording (%(default)s)"
    )
    command.add_argument(
        "--chunks",
        type=count,
        nargs="*",
        default=[],
        metavar="FRAMES",
        help="of streams, each with 32 frames before it",
    )
    command.add_argument("--rounds", type=count, default=9, help="(%(default)s)")
    command.add_argument("--threads", type=count, default=1, help="(%(default)s)")
    command.add_argument("--out", type=Path, help="file to append JSON lines to")


def bench(args: argparse.Namespace) -> None:
    """Times models in their run times, all of them in turn: whole and in streams."""
    import torch

    from espnet_omnisparse.bench.runtimes import measure, table

    torch.set_num_threads(args.threads)
    if bool(args.models) == bool(args.random):
        raise UserError("Name models, or give --random such as 12x256.")
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            found = _random(Path(folder), args)
        else:
            found = [_opened(path, args.threads) for path in args.models]
        rows = measure(found, args.seconds, args.chunks, args.rounds, args.threads)
    print(table(rows, args.seconds), end="")
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.writelines(f"{row.as_json()}\n" for row in rows)


def _opened(path: Path, threads: int):
    from espnet_omnisparse.bench.contestants import Engine, OnnxRuntime, PyTorch

    if path.is_file():
        found = Engine(path, threads)
    elif (path / "ctc.onnx").is_file():
        found = OnnxRuntime(path, "ONNX Runtime", threads)
    else:
        found = PyTorch(path)
    found.name = f"{path.name}: {found.name}"
    return found


def _random(folder: Path, args: argparse.Namespace) -> Sequence:
    """One net in every run time, dense, and masked where that changes anything."""
    from espnet_omnisparse.bench.contestants import Engine, OnnxRuntime, PyTorch
    from espnet_omnisparse.bench.random_net import masked, write_size
    from espnet_omnisparse.bench.runtimes import LEFT
    from espnet_omnisparse.core.chunk import Chunk
    from espnet_omnisparse.export.description import describe
    from espnet_omnisparse.export.packed import write_packed
    from espnet_omnisparse.extract import experiment as family

    blocks, _, width = args.random.partition("x")
    if not (blocks.isdecimal() and width.isdecimal() and int(blocks) and int(width)):
        raise UserError(f"--random must be such as 12x256, not {args.random}.")
    if not all(0.0 < one < 1.0 for one in args.sparsity):
        raise UserError("--sparsity must be shares of zeros between 0 and 1.")
    if len(args.chunks) > 1:
        raise UserError("--random takes one size of --chunks at a time.")
    size = folder / "net"
    chunk = Chunk(args.chunks[0], LEFT) if args.chunks else None
    write_size(size, int(blocks), int(width), chunk)
    found: list = [PyTorch(size), PyTorch(size, quantised=True)]
    for dtype in ("fp32", "int8"):
        written = folder / f"onnx_{dtype}"
        _export_onnx(size, written, dtype)
        name = f"ONNX Runtime {dtype}"
        found.append(OnnxRuntime(written, name, args.threads))
    config = family.read_config(size)
    for sparsity in (0.0, *args.sparsity):
        model = family.load_size(size)
        if sparsity:
            masked(model, sparsity)
        for dtype in ("fp32", "int8"):
            path = folder / f"{sparsity}_{dtype}.omni"
            write_packed(path, model, describe(model, config), dtype)
            engine = Engine(path, args.threads)
            engine.name = f"engine {dtype}, {sparsity:.0%} zeros"
            found.append(engine)
    return found


def _export_onnx(size: Path, out: Path, dtype: str) -> None:
    from espnet_omnisparse.export.onnx_folder import export

    given = {"size": size, "dtype": dtype, "head": None, "chunk": None, "left": None}
    export(argparse.Namespace(**given), out)
