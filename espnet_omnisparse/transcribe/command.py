"""`omnisparse transcribe`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command, count
from espnet_omnisparse.errors import UserError

FORMATS = ("text", "json", "srt")


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, transcribe)
    command.add_argument(
        "model", type=Path, metavar="MODEL", help="a packed file, or a size's folder"
    )
    command.add_argument("audio", nargs="+", metavar="FILE", help="any audio files")
    command.add_argument(
        "--format", choices=FORMATS, default="text", help="(%(default)s)"
    )
    command.add_argument(
        "--beam", type=count, default=1, help="hypotheses kept (%(default)s: greedy)"
    )
    command.add_argument(
        "--threads", type=count, default=1, help="of the engine (%(default)s)"
    )


def transcribe(args: argparse.Namespace) -> None:
    """Recognises audio files of any length: text, JSON or subtitles."""
    from espnet_omnisparse.console import say
    from espnet_omnisparse.transcribe.recordings import words_in
    from espnet_omnisparse.transcribe.words import as_json, as_srt, as_text

    failed = []
    with _loaded(args.model, args.threads) as model:
        for name in args.audio:
            try:
                words = list(words_in(model, Path(name), args.beam))
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


@contextmanager
def _loaded(path: Path, threads: int) -> Iterator:
    """The engine's model of a packed file, or of a folder, which is packed for it."""
    import tempfile

    from espnet_omnisparse import runtime

    if path.is_file():
        yield runtime.load(path, threads)
        return
    if not path.is_dir():
        raise UserError(
            f"There is no model {path}: name a packed file, such as x.omni, or the "
            "folder of a size, such as exp/asr_x_s80."
        )
    from espnet_omnisparse.export.pack import pack

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model.omni"
        pack(path, packed)
        yield runtime.load(packed, threads)
