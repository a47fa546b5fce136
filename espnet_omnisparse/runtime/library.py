"""The engine as a shared library: where it lies, and its functions as ctypes sees them.

`csrc/include/omnisparse.h` says what each of them does.
"""

import ctypes
import functools
import os
from pathlib import Path

from espnet_omnisparse.errors import UserError

#: A library to use instead of the one that was built with the package.
VARIABLE = "OMNISPARSE_ENGINE"
_NAME = "omnisparse_engine"

_Int, _Size, _Text = ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_Handle = ctypes.c_void_p
Ints, Floats = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_float)


class Options(ctypes.Structure):
    """`omnisparse_stream_options`."""

    _fields_ = [(name, _Int) for name in ("whole", "chunk", "left", "beam", "keep")]

    def __init__(self, **values: int):
        super().__init__(**{name: saturated(value) for name, value in values.items()})


def saturated(number: int) -> int:
    """A number as C can have it: ctypes would make a small one of a large one.

    >>> saturated(2**32 + 1) == 2**31 - 1
    True
    """
    return max(-(2**31), min(number, 2**31 - 1))


# name without its prefix -> what it returns, and its arguments
_FUNCTIONS = {
    "last_error": (_Text,),
    "version": (_Text,),
    "load": (_Handle, _Text, _Int),
    "free": (None, _Handle),
    "info": (_Text, _Handle),
    "sample_rate": (_Int, _Handle),
    "can_stream": (_Int, _Handle),
    "chunk": (_Int, _Handle),
    "isa": (_Text,),
    "isas": (_Text,),
    "force_isa": (_Int, _Text),
    "stream_new": (_Handle, _Handle, ctypes.POINTER(Options)),
    "stream_free": (None, _Handle),
    "stream_push": (_Int, _Handle, Floats, _Size),
    "stream_finish": (_Int, _Handle),
    "stream_reset": (None, _Handle),
    "stream_text": (_Text, _Handle),
    "stream_tokens": (_Size, _Handle, ctypes.POINTER(Ints), ctypes.POINTER(Floats)),
    "stream_output": (
        *(_Size, _Handle, _Int),
        *(ctypes.POINTER(Floats), ctypes.POINTER(_Size)),
    ),
}


class Library:
    """The engine's functions, by their names without `omnisparse_`.

    Args:
        path: The shared library.

    Raises:
        UserError: If it is none, or one of another version.
    """

    def __init__(self, path: Path):
        try:
            library = ctypes.CDLL(str(path))
            for name, (returned, *arguments) in _FUNCTIONS.items():
                function = getattr(library, f"omnisparse_{name}")
                function.restype, function.argtypes = returned, arguments
                setattr(self, name, function)
        except (OSError, AttributeError) as error:
            raise UserError(
                f"{path} is not the engine of this version ({error}): build it again "
                "(docs/devices.md)."
            ) from error

    def error(self) -> UserError:
        """What went wrong last."""
        return UserError(self.last_error().decode())


def library() -> Library:
    """The engine.

    Raises:
        UserError: If it has not been built.
    """
    if given := os.environ.get(VARIABLE):
        return _opened(Path(given))
    found = sorted(Path(__file__).parent.glob(f"{_NAME}*.so"))
    if not found:
        raise UserError(
            "The engine of packed models is not built: install a C++ compiler (g++ or "
            "clang++) and install this package again, or set "
            f"{VARIABLE} to a library built elsewhere (docs/devices.md)."
        )
    return _opened(found[0])


_opened = functools.cache(Library)
