"""How a user's mistake is told: one sentence that says what to do."""

import difflib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """A mistake the user can mend; its text is one sentence that says how."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns a `UserError` into a line on stderr and exit status 1, no traceback.

    Every command of the package runs inside it. Ctrl-C is told in a word, with status
    130, and a reader of our output that has gone away ends us without one, as it ends
    other programs. Anything else that goes wrong is a defect of ours and keeps its
    traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # or Python would fail once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def check_keys(section: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Refuses unknown keys of a config section, with the likeliest correction.

    Raises:
        UserError: Naming the first unknown key.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {known}."
            raise UserError(f"{section} has an unknown key {key!r}; {hint}")
