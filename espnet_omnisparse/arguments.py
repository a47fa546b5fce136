"""What the commands of `omnisparse` share: how one is registered, and arguments."""

import argparse
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espnet_omnisparse.errors import UserError

#: What `add_subparsers` returns.
Commands = Any
Run = Callable[[argparse.Namespace], None]


def add_command(commands: Commands, run: Run) -> argparse.ArgumentParser:
    """Registers a command under its function's name, its docstring as its help.

    Args:
        commands: The commands so far.
        run: Runs it with its parsed arguments; `argv` among them is all that was
            typed.
    """
    text = run.__doc__
    command = commands.add_parser(run.__name__, help=text, description=text)
    command.set_defaults(run=run)
    return command


def split_words(option: str, text: str) -> list[str]:
    """The arguments for another command that an option holds in one text.

    Args:
        option: Its name.
        text: Its value.

    Raises:
        UserError: If a quote is not closed.

    >>> split_words("--search", "--objective wer --init 'a b'")
    ['--objective', 'wer', '--init', 'a b']
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"{option} holds no arguments ({error}): close its quotes."
        ) from error


def refuse_in_one_sentence(parser: argparse.ArgumentParser, option: str = "") -> None:
    """Has a parser raise a `UserError` where it would print its usage and exit.

    Args:
        parser: It.
        option: That which holds the arguments, if they are not the command's own.
    """

    def refuse(message: str) -> None:
        raise UserError(f"{option}: {message}." if option else f"{message}.")

    def no_help(file: Any = None) -> None:
        raise UserError(f"{option} holds --help, which would end us: leave it out.")

    parser.error = refuse
    if option:
        parser.print_help = no_help


def count(text: str) -> int:
    """A number of at least 1, as the `type` of an argument.

    Raises:
        ArgumentTypeError: If it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text}")
    return int(text)


def count_from_0(text: str) -> int:
    """A number of at least 0, as the `type` of an argument.

    Raises:
        ArgumentTypeError: If it is none.
    """
    return 0 if text == "0" else count(text)


def positive(text: str) -> float:
    """A finite number above 0, as the `type` of an argument.

    Raises:
        ArgumentTypeError: If it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


def named_path(text: str) -> Path:
    """A path whose last part is a name, as the `type` of an argument.

    What is made of a folder is called after it: `.` needs its whole path.

    >>> named_path("exp/asr_x/").name, named_path(".") == Path.cwd()
    ('asr_x', True)
    """
    path = Path(text)
    return path if path.name not in ("", "..") else path.resolve()


def add_exp(command: argparse.ArgumentParser) -> None:
    """Adds `EXP`."""
    command.add_argument(
        "exp", type=named_path, metavar="EXP", help="the supernet's folder"
    )


def add_checkpoint(command: argparse.ArgumentParser, default: str) -> None:
    """Adds `--checkpoint`.

    Args:
        command: The parser of a command.
        default: The file's name.
    """
    command.add_argument(
        "--checkpoint", default=default, help="file in EXP (%(default)s)"
    )


def add_rounds(command: argparse.ArgumentParser) -> None:
    """Adds `--rounds`."""
    command.add_argument(
        "--rounds", type=count, default=15, help="of the timing (%(default)s)"
    )
