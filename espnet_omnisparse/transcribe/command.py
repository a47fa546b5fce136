"""`omnisparse transcribe`."""

import argparse
import sys
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command, count
from espnet_omnisparse.errors import UserError

FORMATS = ("text", "json", "srt")


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, transcribe)
    command.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a packed file, a size's folder, or its folder of ONNX files",
    )
    command.add_argument("audio", nargs="+", metavar="FILE", help="any audio files")
    command.add_argument(
        "--format", choices=FORMATS, default="text", help="(%(default)s)"
    )
    command.add_argument(
        "--beam", type=count, default=1, help="hypotheses kept (%(default)s: greedy)"
    )
    command.add_argument(
        "--threads", type=count, default=1, help="of the computation (%(default)s)"
    )


def transcribe(args: argparse.Namespace) -> None:
    """Recognises audio files of any length: text, JSON or subtitles."""
    from espnet_omnisparse.console import say
    from espnet_omnisparse.transcribe.models import opened
    from espnet_omnisparse.transcribe.recordings import words_in
    from espnet_omnisparse.transcribe.words import as_json, as_srt, as_text

    failed = []
    with opened(args.model, args.threads, args.beam) as model:
        for name in args.audio:
            try:
                words = list(words_in(model, Path(name)))
            except UserError as error:  # the other files are recognised all the same
                say(f"error: {error}")
                failed.append(name)
                continue
            if args.format == "json":
                print(as_json(name, words), flush=True)
            elif args.format == "srt":
                print(as_srt(words), flush=True)
            else:
                before = f"{name}: " if len(args.audio) > 1 else ""
                print(before + as_text(words), flush=True)
    if failed:
        sys.exit(1)
