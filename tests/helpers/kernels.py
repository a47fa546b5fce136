"""The engine's layers by themselves, called through their C functions."""

import ctypes
from contextlib import contextmanager
from pathlib import Path

import numpy as np

EPILOGUES = (
    *("store", "relu", "swish", "tanh", "gelu"),
    *("gate", "add", "hardtanh", "selu"),
)
ACTIVATIONS = ("none", "relu", "swish", "tanh", "gelu", "hardtanh", "selu")
TYPES = {np.float32: 0, np.float16: 1, np.int8: 2}

LETTERS = {
    "": None,
    "i": ctypes.c_int,
    "n": ctypes.c_size_t,
    "f": ctypes.c_float,
    "s": ctypes.c_char_p,
    "p": ctypes.c_void_p,
}
#: of include/omnisparse_kernels.h: what a function returns and takes
SIGNATURES = {
    "isas": ("s", ""),
    "isa": ("s", ""),
    "force_isa": ("i", "s"),
    "linear_new": ("p", "iiippiipppii"),
    "linear_free": ("", "p"),
    "linear_bytes": ("n", "p"),
    "linear_run": ("i", "ppiifip"),
    "linear_repeat": ("", "pi"),
    "layer_norm": ("", "piippfp"),
    "activate": ("", "pii"),
    "log_softmax": ("", "piip"),
    "depthwise": ("", "piippiipp"),
    "attend": ("", "piiiippppip"),
}


def _pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def _float32(array):
    return None if array is None else np.ascontiguousarray(array, np.float32)


def split_blocks(matrix, rows, columns):
    """The blocks of a matrix that are not all zeros, as a packed file has them.

    Returns:
        Values [blocks, rows * columns], the block column of each, and where each row of
        blocks begins.
    """
    height, width = (
        -(-n // by) for n, by in zip(matrix.shape, (rows, columns), strict=True)
    )
    padded = np.zeros((height * rows, width * columns), matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    values, numbers, begins = [], [], [0]
    for i in range(height):
        for j in range(width):
            block = padded[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            if block.any():
                values.append(block.ravel())
                numbers.append(j)
        begins.append(len(values))
    return (
        np.array(values, matrix.dtype).reshape(-1, rows * columns),
        np.array(numbers, np.uint16),
        np.array(begins, np.int32),
    )


class Linear:
    """A linear layer of the engine."""

    def __init__(self, library, handle, outputs):
        self.library, self.handle, self.outputs = library, handle, outputs

    def run(self, x, epilogue="store", factor=1.0, width=0, y=None):
        """y [frames, outputs] of x [frames, inputs]."""
        if y is None:
            y = np.zeros((len(x), self.outputs), np.float32)
        y = np.array(y, np.float32)
        number = EPILOGUES.index(epilogue)
        failed = self.library.omnisparse_linear_run(
            self.handle, _pointer(x), len(x), number, factor, width, _pointer(y)
        )
        assert not failed
        return y


class Kernels:
    """The C functions of a library of the engine."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self.library, f"omnisparse_{name}")
            function.restype = LETTERS[result]
            function.argtypes = [LETTERS[letter] for letter in arguments]

    @property
    def isas(self):
        return self.library.omnisparse_isas().decode().split()

    def force(self, isa):
        return self.library.omnisparse_force_isa(isa.encode())

    @contextmanager
    def linear(self, matrix, bias=None, scale=None, block=None, gated=False, threads=1):
        """A layer of a matrix [outputs, inputs], dense or by its blocks."""
        rows, columns = matrix.shape
        values, numbers, begins = np.ascontiguousarray(matrix), None, None
        if block is not None:
            values, numbers, begins = split_blocks(matrix, *block)
        handle = self.library.omnisparse_linear_new(
            rows,
            columns,
            TYPES[matrix.dtype.type],
            _pointer(values),
            _pointer(scale),
            *(block or (0, 0)),
            _pointer(numbers),
            _pointer(begins),
            _pointer(_float32(bias)),
            gated,
            threads,
        )
        assert handle
        try:
            yield Linear(self.library, handle, rows // 2 if gated else rows)
        finally:
            self.library.omnisparse_linear_free(handle)

    def layer_norm(self, x, gamma, beta, epsilon):
        y = np.empty_like(x)
        self.library.omnisparse_layer_norm(
            _pointer(x), *x.shape, _pointer(gamma), _pointer(beta), epsilon, _pointer(y)
        )
        return y

    def activate(self, x, activation):
        y = np.array(x, np.float32)
        number = ACTIVATIONS.index(activation)
        self.library.omnisparse_activate(_pointer(y), len(y), number)
        return y

    def log_softmax(self, x):
        y = np.empty_like(x)
        self.library.omnisparse_log_softmax(_pointer(x), *x.shape, _pointer(y))
        return y

    def depthwise(self, x, weight, bias, before=0, past=None):
        """Replaces `past` [channels, kernel - 1], if there is one."""
        y = np.empty_like(x)
        self.library.omnisparse_depthwise(
            _pointer(x),
            *x.shape,
            _pointer(weight),
            _pointer(bias),
            weight.shape[1],
            before,
            _pointer(past),
            _pointer(y),
        )
        return y

    def attend(self, qkv, heads, past, positions, bias_u, bias_v, threads=1):
        """qkv [frames, 3 * channels] attends to past [frames, 2 * channels] and it."""
        channels = qkv.shape[1] // 3
        y = np.empty((len(qkv), channels), np.float32)
        self.library.omnisparse_attend(
            _pointer(qkv),
            len(qkv),
            len(qkv) + len(past),
            heads,
            channels // heads,
            _pointer(past),
            _pointer(positions),
            _pointer(bias_u),
            _pointer(bias_v),
            threads,
            _pointer(y),
        )
        return y
