"""The packed file: a size as one safetensors file, its masked weights by their blocks.

Tensors keep ESPnet's names, so that an fp32 file turns back into the size that it was
made from. What the run time needs beside them is JSON in the file's metadata.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, safe_open, save_file

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import atomic_path

FORMAT, VERSION = "omnisparse", "1"
DTYPES = ("fp32", "fp16", "int8")
#: Blocks of outputs x inputs that are tried; the smallest storage is taken.
BLOCKS = ((8, 1), (4, 1), (16, 1), (1, 1))
_COLUMNS = 2**16  # of 16-bit indices
_CRC_KEY = b'"crc32":"'
#: What is stored for ESPnet alone, and a run time leaves alone, is called so.
APART = "espnet."
_EXACT = f"{APART}state."
# what a file tells when it was not made from a folder
_NO_ORIGIN = {"espnet": None, "provenance": None, "licence": None}

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sparse:
    """A matrix by its blocks that are not all zero.

    Attributes:
        values: `[blocks, rows * cols]`, row-major within a block.
        columns: Block column of each `[blocks]`, uint16.
        rows: Where each row of blocks begins, and the last one's end, int32.
        shape: Of the matrix, out x in.
        block: Rows and columns of a block.
    """

    values: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    shape: tuple[int, int]
    block: tuple[int, int]

    def nbytes(self, value_bytes: int) -> int:
        """Bytes in a file whose values take so many each."""
        values = self.values.size * value_bytes
        return values + self.columns.nbytes + self.rows.nbytes

    def dense(self) -> np.ndarray:
        """The matrix `[out, in]`."""
        (out, inputs), (height, width) = self.shape, self.block
        down, across = -(-out // height), -(-inputs // width)
        full = np.zeros((down, across, height, width), self.values.dtype)
        row = np.repeat(np.arange(down), np.diff(self.rows))
        full[row, self.columns] = self.values.reshape(-1, height, width)
        full = full.transpose(0, 2, 1, 3).reshape(down * height, across * width)
        return np.ascontiguousarray(full[:out, :inputs])


def by_blocks(matrix: np.ndarray, block: tuple[int, int]) -> Sparse:
    """The blocks of a matrix `[out, in]` that are not all zero.

    Args:
        matrix: Padded with zeros where a block sticks out.
        block: Its rows and columns.

    >>> sparse = by_blocks(np.array([[0, 1], [0, 2], [3, 0], [0, 0]]), (2, 1))
    >>> sparse.values.tolist(), sparse.columns.tolist(), sparse.rows.tolist()
    ([[1, 2], [3, 0]], [1, 0], [0, 1, 2])
    """
    (out, inputs), (height, width) = matrix.shape, block
    down, across = -(-out // height), -(-inputs // width)
    padding = (0, down * height - out), (0, across * width - inputs)
    tiles = np.pad(matrix, padding).reshape(down, height, across, width)
    tiles = tiles.transpose(0, 2, 1, 3).reshape(down, across, height * width)
    kept = (tiles != 0).any(2)
    rows = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    columns = np.nonzero(kept)[1].astype(np.uint16)
    return Sparse(tiles[kept], columns, rows, (out, inputs), block)


def matrices_of(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """The weights that are multiplied with activations, and their shapes as matrices.

    Linear layers, pointwise convolutions, convolutions of the front end over their
    window, recurrent layers; no depthwise convolution, no embedding.

    Args:
        model: Any.
    """
    found = {}
    for name, module in model.named_modules():
        for own, tensor in module.named_parameters(recurse=False):
            if tensor.dim() >= 2 and _is_matrix(module, own):
                found[f"{name}.{own}"] = (len(tensor), tensor[0].numel())
    return found


def _is_matrix(module: torch.nn.Module, name: str) -> bool:
    if isinstance(module, torch.nn.LSTM | torch.nn.GRU):
        return True
    if name != "weight":
        return False
    if isinstance(module, torch.nn.Conv2d):
        return module.groups == 1 and module.in_channels > 1
    if isinstance(module, torch.nn.Conv1d):
        return module.groups == 1 and module.kernel_size == (1,)
    return isinstance(module, torch.nn.Linear)


def stored(
    state: Mapping[str, torch.Tensor],
    matrices: Mapping[str, tuple[int, int]],
    dtype: str,
    filters: str | None = None,
) -> tuple[Tensors, dict[str, dict[str, list[int]]]]:
    """The tensors of a file, and which of them are stored by blocks.

    Args:
        state: State dict of the model.
        matrices: What `matrices_of` returned.
        dtype: Of the matrices, one of `DTYPES`.
        filters: Name of the mel filters `[bins, mels]`, mostly zeros, which stay fp32.

    Returns:
        Arrays by name, and the shape of the tensor and the block of each matrix that is
        stored by its blocks.
    """
    tensors: Tensors = {}
    sparse = {}
    for name, tensor in state.items():
        array = tensor.detach().cpu().numpy()
        if array.dtype == np.float64:  # as some statistics are
            tensors[_EXACT + name] = array
            array = array.astype(np.float32)
        if name not in matrices and name != filters:
            # depthwise kernels, the first convolution, positions' biases, embeddings
            half = dtype != "fp32" and array.ndim > 1 and array.dtype == np.float32
            tensors[name] = array.astype(np.float16) if half else array
            continue
        matrix = array.reshape(matrices.get(name, array.shape))
        values, scale = _quantised(matrix, "fp32" if name == filters else dtype)
        if scale is not None:
            tensors[f"{name}.scale"] = scale
        # by the weights' own zeros: a rounded one is still a weight
        best = _smallest(matrix, values.itemsize)
        if best is None:
            tensors[name] = values.reshape(array.shape)
            continue
        tensors[f"{name}.values"] = _taken(best, matrix, values)
        tensors[f"{name}.columns"] = best.columns
        tensors[f"{name}.rows"] = best.rows
        sparse[name] = {"shape": list(array.shape), "block": list(best.block)}
    return tensors, sparse


def _quantised(matrix: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A matrix in a file's type, and the scale of each row if it is int8."""
    if dtype == "fp32":
        return matrix, None
    if dtype == "fp16":
        return matrix.astype(np.float16), None
    largest = np.abs(matrix).max(1)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(matrix / scale[:, None]).astype(np.int8), scale


def _smallest(matrix: np.ndarray, value_bytes: int) -> Sparse | None:
    """The storage by blocks that takes least; `None`: the dense one does."""
    least, best = matrix.size * value_bytes, None
    for block in BLOCKS:
        if matrix.shape[1] > _COLUMNS * block[1]:
            continue
        candidate = by_blocks(matrix, block)
        if candidate.nbytes(value_bytes) < least:
            least, best = candidate.nbytes(value_bytes), candidate
    return best


def _taken(sparse: Sparse, matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The blocks of `values` where `sparse` has those of `matrix`."""
    if values is matrix:
        return sparse.values
    (out, inputs), (height, width) = sparse.shape, sparse.block
    down, across = len(sparse.rows) - 1, -(-inputs // width)
    padding = (0, down * height - out), (0, across * width - inputs)
    tiles = np.pad(values, padding).reshape(down, height, across, width)
    row = np.repeat(np.arange(down), np.diff(sparse.rows))
    return np.ascontiguousarray(
        tiles.transpose(0, 2, 1, 3)[row, sparse.columns].reshape(-1, height * width)
    )


def write_packed(
    path: Path,
    model: torch.nn.Module,
    description: Mapping[str, Any],
    dtype: str = "fp32",
    apart: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a model as a packed file, whole or not at all.

    Args:
        path: The file, replaced if it is there.
        model: In eval.
        description: What `description.describe` returned, and whatever else the file
            shall tell.
        dtype: Of the matrices, one of `DTYPES`.
        apart: Arrays that ESPnet alone needs, under names that begin with `APART`.
    """
    state = model.state_dict()
    if description["transducer"] is None:
        # an attention decoder beside CTC: no run time has a use for it
        state = {n: t for n, t in state.items() if not n.startswith("decoder.")}
    filters = description["features"].get("mel")
    tensors, sparse = stored(state, matrices_of(model), dtype, filters)
    tensors |= apart or {}
    told = {**_NO_ORIGIN, **description, "dtype": dtype, "sparse": sparse}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "crc32": "0" * 8,
        "model": json.dumps(told, ensure_ascii=False, separators=(",", ":")),
    }
    with atomic_path(path) as temporary:
        # one after the other in memory, as the library writes them
        save_file({n: t.copy("C") for n, t in tensors.items()}, temporary, metadata)
        _seal(temporary)


def _seal(path: Path) -> None:
    """Writes the checksum over the zeros that stand for it."""
    content = path.read_bytes()
    place = content.index(_CRC_KEY) + len(_CRC_KEY)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(f"{zlib.crc32(content):08x}".encode())


def read_packed(path: Path) -> tuple[dict[str, Any], Tensors]:
    """The description and the tensors of a packed file, as they are stored.

    Raises:
        UserError: If it is none, is damaged, or is of a later version.
    """
    try:
        content = Path(path).read_bytes()
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{path} is not a packed model: omnisparse export makes one."
            )
        if metadata["version"] != VERSION:
            raise UserError(
                f"{path} is a packed model of version {metadata['version']}, and this "
                f"package reads version {VERSION}: install a newer one."
            )
        place = content.index(_CRC_KEY) + len(_CRC_KEY)
        blank = content[:place] + b"0" * 8 + content[place + 8 :]
        if f"{zlib.crc32(blank):08x}" != metadata["crc32"]:
            raise UserError(f"{path} is damaged: copy or export it again.")
        return json.loads(metadata["model"]), load_file(path)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is not a whole packed model ({error}).") from error


def restored(description: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The state dict that a file was written from; fp16 and int8 as far as they go.

    Args:
        description: Of the file.
        tensors: As they are stored.
    """
    state = {}
    sparse = description["sparse"]
    for name, array in tensors.items():
        base, _, part = name.rpartition(".")
        if name.startswith(APART):
            continue
        if base in sparse:
            if part == "values":
                shape, block = sparse[base]["shape"], tuple(sparse[base]["block"])
                columns, rows = tensors[f"{base}.columns"], tensors[f"{base}.rows"]
                matrix = shape[0], math.prod(shape[1:])
                by_block = Sparse(array, columns, rows, matrix, block)
                state[base] = by_block.dense().reshape(shape)
            continue
        if part == "scale" and (base in tensors or base in sparse):
            continue
        state[name] = array
    for name, array in state.items():
        if f"{name}.scale" in tensors:
            scale = tensors[f"{name}.scale"]
            array = array * scale.reshape(-1, *[1] * (array.ndim - 1))
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        state[name] = tensors.get(_EXACT + name, array)
    return state
