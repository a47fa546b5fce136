"""`omnisparse stream`."""

import argparse
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command, count
from espnet_omnisparse.errors import UserError


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, stream)
    command.add_argument("audio", metavar="FILE|-", help="audio; - for PCM on stdin")
    command.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="SIZE",
        help="a size's folder, or a packed file",
    )
    command.add_argument(
        "--chunk", type=count, metavar="FRAMES", help="of the encoder (as trained)"
    )
    command.add_argument(
        "--left", type=int, metavar="FRAMES", help="seen before a chunk (4 chunks)"
    )
    command.add_argument(
        "--beam", type=count, default=1, help="hypotheses kept (%(default)s: greedy)"
    )
    command.add_argument(
        "--json", action="store_true", help="print text and times as JSON"
    )


def stream(args: argparse.Namespace) -> None:
    """Recognises a file, or raw 16-bit PCM on stdin, printing words as they come."""
    import torch

    from espnet_omnisparse.core.chunk import Chunk
    from espnet_omnisparse.streaming import live
    from espnet_omnisparse.streaming.packed import PackedRecogniser
    from espnet_omnisparse.streaming.recogniser import Recogniser

    torch.set_num_threads(1)
    chunk = None
    if args.chunk is not None:
        left = 4 * args.chunk if args.left is None else args.left
        chunk = Chunk(args.chunk, left)
    elif args.left is not None:
        raise UserError("--left needs --chunk beside it.")
    load = PackedRecogniser if args.model.is_file() else Recogniser.load
    live.run(load(args.model, chunk, args.beam), args.audio, args.json)
