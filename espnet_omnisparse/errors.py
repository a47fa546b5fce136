"""How a user's mistake is told: one sentence that says what to do."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake the user can mend; its text is one sentence that says how."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns a `UserError` into a line on stderr and exit status 1, no traceback.

    Every command of the package runs inside it; anything else that goes wrong is a
    defect of ours and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
