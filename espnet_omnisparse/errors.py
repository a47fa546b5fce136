"""How a user's mistake is told: one sentence that says what to do."""

import difflib
import errno
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """A mistake the user can mend; its text is one sentence that says how."""


# what the machine refuses: nothing that a program of ours could have done better
_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    errno.EBUSY,
}


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns a `UserError` into a line on stderr and exit status 1, no traceback.

    Every command of the package runs inside it. A place that the machine does not let
    us write to, or a full disk, is told in a sentence as well. Ctrl-C is told in a
    word, with status 130, and a reader of our output that has gone away ends us without
    one, as it ends other programs. Of an output that the shell has closed nothing is
    said. Anything else that goes wrong is a defect of ours and keeps its traceback.
    """
    _open_closed()
    # commands draw into files; a notebook hands down a backend that only it has, and
    # Matplotlib cannot even be imported with
    os.environ["MPLBACKEND"] = "agg"
    try:
        try:
            yield
        except SystemExit:  # after a --help, too
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # a full disk is noticed here, not after our end
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _drop_output()
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _drop_output()
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        _drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        place = error.filename2 or error.filename or "The output"
        print(
            f"error: {place} could not be read or written ({error.strerror}): mend "
            "that, or choose another place for it.",
            file=sys.stderr,
        )
        _drop_output()
        sys.exit(1)


def _open_closed() -> None:
    """Puts the null device where the shell has closed a standard stream.

    The next file that is opened would take its number, and get what libraries and other
    processes print. `sys.stdin` stays as it is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # lowest number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


def _drop_output() -> None:
    """What cannot be written is lost, or Python would fail once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_keys(section: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Refuses unknown keys of a config section, with the likeliest correction.

    Args:
        section: What messages call the section.
        given: The section.
        known: Keys that there are.

    Raises:
        UserError: Naming the first unknown key.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {known}."
            raise UserError(f"{section} has an unknown key {key!r}; {hint}")
