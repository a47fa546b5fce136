"""`omnisparse bench`."""

import argparse
import re
import tempfile
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command, count
from espnet_omnisparse.console import bar
from espnet_omnisparse.environment import require_png, require_writable
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import append_lines


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, bench)
    command.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="sizes' folders (in all run times), packed files, ONNX folders, of CTC "
        "models, or NAME=path; a figure joins SERIES:NAME by series",
    )
    command.add_argument(
        "--random",
        metavar="BLOCKSxWIDTH",
        help="instead: a Conformer of this size with random weights",
    )
    command.add_argument(
        "--sparsity",
        type=float,
        nargs="*",
        help="of its masked forms (0.8 0.9)",
    )
    command.add_argument(
        "--keep",
        type=float,
        nargs="*",
        metavar="SHARE",
        help="of the branches, in its layer-dropped forms",
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
    command.add_argument(
        "--threads", type=count, nargs="+", default=[1], help="one after the other (1)"
    )
    command.add_argument(
        "--test",
        type=Path,
        metavar="DIR",
        help="data folder (wav.scp, text): each run time's WER, by its best tokens",
    )
    command.add_argument(
        "--plot", type=Path, metavar="PNG", help="WER against time and bytes"
    )
    command.add_argument("--out", type=Path, help="file to append JSON lines to")


def bench(args: argparse.Namespace) -> None:
    """Times models in their run times, all of them in turn: whole and in streams."""
    _check(args)
    from espnet_omnisparse.bench.entries import of_files, of_random
    from espnet_omnisparse.bench.footprint import peak
    from espnet_omnisparse.bench.random_net import Net
    from espnet_omnisparse.bench.runtimes import Plan, measure, table

    test = None
    if args.test:
        from espnet_omnisparse.bench.accuracy import TestSet

        test = TestSet(args.test)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.random:
            net = Net(*(int(part) for part in args.random.split("x")))
            sparsity = [0.8, 0.9] if args.sparsity is None else args.sparsity
            entries = of_random(net, sparsity, args.keep or [], args.chunks, folder)
        else:
            entries = of_files(args.models, args.chunks, folder)
        plan = Plan(args.seconds, args.chunks, args.rounds)
        rows = [row for n in args.threads for row in measure(entries, plan, n)]
        with bar("memory and text", len(entries), "model") as shown:
            for number, entry in enumerate(entries):
                memory = peak(entry, args.chunks)
                wer = test.wer(entry.open()) if test else None
                for row in rows[number :: len(entries)]:
                    row.memory, row.wer = memory, wer
                shown.update()
    print(table(rows), end="")
    if args.out:
        append_lines(args.out, "".join(f"{row.as_json()}\n" for row in rows))
    if args.plot:
        from espnet_omnisparse.bench.figure import figure
        from espnet_omnisparse.report.plots import save_figure

        save_figure(figure(rows), args.plot, dpi=150)


def _check(args: argparse.Namespace) -> None:
    if bool(args.models) == bool(args.random):
        raise UserError("Name models, or give --random such as 12x256.")
    if args.random and not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", args.random):
        raise UserError(f"--random must be such as 12x256, not {args.random}.")
    shares = [*(args.sparsity or []), *(args.keep or [])]
    if args.models and not (args.sparsity is None and args.keep is None):
        raise UserError("--sparsity and --keep are of --random: leave them out.")
    if not all(0.0 < one < 1.0 for one in shares):
        raise UserError("--sparsity and --keep must be shares between 0 and 1.")
    if args.random and args.test:
        raise UserError("A net with random weights has no WER: leave out --test.")
    if args.plot and not args.test:
        raise UserError("--plot needs WERs: give --test beside it.")
    for path in filter(None, (args.out, args.plot)):
        if not path.absolute().parent.is_dir():
            raise UserError(f"There is no folder for {path}: make it first.")
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file.")
        require_writable(path)
    if args.plot:
        require_png("--plot", args.plot)
