"""Who takes part in a benchmark: every model in every run time that can have it."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet_omnisparse import runtime
from espnet_omnisparse.arguments import named_path
from espnet_omnisparse.bench.contestants import (
    LEFT,
    Engine,
    Entry,
    OnnxRuntime,
    PyTorch,
    Sherpa,
    Spelling,
)
from espnet_omnisparse.bench.random_net import Net, masked, write_size
from espnet_omnisparse.console import say
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.cost.count import count_macs
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.onnx_session import require
from espnet_omnisparse.export.packed import write_packed
from espnet_omnisparse.extract import experiment as family

DTYPES = ("fp32", "int8")
SHERPA = ("sherpa-onnx", "onnx", "onnxruntime", "sherpa_onnx")


def of_files(named: Sequence[str], chunks: Sequence[int], folder: Path) -> list[Entry]:
    """The entries of models: of a size's folder all run times, of a file its own.

    Args:
        named: Paths, or `NAME=path`.
        chunks: Sizes of those of the streams, in encoder frames.
        folder: For what is exported.

    Raises:
        UserError: If something of that name is no model.
    """
    entries: list[Entry] = []
    for number, given in enumerate(named):
        name, _, path = given.rpartition("=")
        path = named_path(path)
        name = name or path.name
        if path.is_file():
            run_time = f"engine {runtime.load(path).info['dtype']}"
            entries.append(Entry(name, run_time, Engine, (path,)))
        elif (path / "ctc.onnx").is_file():
            require("onnxruntime")
            entries.append(Entry(name, "ONNX Runtime", OnnxRuntime, ([path],)))
        else:
            entries += _size(name, path, chunks, folder / str(number))
    return entries


def _size(
    name: str, size: Path, chunks: Sequence[int], folder: Path
) -> Iterator[Entry]:
    """A size's folder in all run times."""
    folder.mkdir()
    config, model = family.read_config(size), family.load_size(size)
    told = describe(model, config)
    if told["task"] != "ctc":
        raise UserError(
            f"{size} is a transducer, and run times are timed by CTC models."
        )
    macs = count_macs(model, family.feature_size(config), 10)
    spelling = Spelling(told)
    yield Entry(name, "PyTorch", PyTorch, (size, False, spelling), macs)
    yield Entry(name, "PyTorch int8", PyTorch, (size, True, spelling), macs)
    for dtype in DTYPES if _has("ONNX Runtime", "onnx", "onnxruntime") else ():
        folders = [
            _onnx(size, folder / f"onnx_{dtype}_{n}", dtype, chunk)
            for n, chunk in enumerate(chunks or [None])
        ]
        run_time = f"ONNX Runtime {dtype}"
        yield Entry(name, run_time, OnnxRuntime, (folders,), macs)
    if told["features"]["kind"] == "kaldi" and _has(*SHERPA):
        for dtype in DTYPES:
            yield _sherpa(name, size, chunks, folder, dtype)
    yield from _engines(name, model, config, folder / "engine", macs)


def _engines(
    name: str, model: Any, config: dict[str, Any], out: Path, macs: int | None = None
) -> Iterator[Entry]:
    """A model in the engine, packed beside `out`."""
    told = describe(model, config)
    for dtype in DTYPES:
        path = out.with_name(f"{out.name}_{dtype}.omni")
        write_packed(path, model, told, dtype)
        yield Entry(name, f"engine {dtype}", Engine, (path,), macs)


def of_random(
    net: Net,
    sparsities: Sequence[float],
    kept: Sequence[float],
    chunks: Sequence[int],
    folder: Path,
) -> list[Entry]:
    """The entries of a net with random weights, and of its smaller forms.

    Args:
        net: The dense net.
        sparsities: Shares of zeros that its masked forms have.
        kept: Shares of branches that its layer-dropped forms keep.
        chunks: Sizes of those of the streams, in encoder frames.
        folder: For what is exported.
    """
    first = Chunk(chunks[0], LEFT) if chunks else None
    size = folder / "net"
    write_size(size, net, first)
    entries = list(_size("dense", size, chunks, folder / "dense"))
    if _has(*SHERPA):  # which computes other features than ESPnet's default ones
        heard = folder / "kaldi_fbank"
        write_size(heard, Net(net.blocks, net.width, features="kaldi_fbank"), first)
        entries += [_sherpa("dense", heard, chunks, folder, dtype) for dtype in DTYPES]
    config = family.read_config(size)
    for sparsity in sparsities:
        model = masked(family.load_size(size), sparsity)
        out = folder / f"zeros_{sparsity}"
        entries += _engines(f"{sparsity:.0%} zeros", model, config, out)
    for share in kept:
        smaller = folder / f"kept_{share}"
        write_size(smaller, Net(net.blocks, net.width, share), first)
        config, model = family.read_config(smaller), family.load_size(smaller)
        macs = count_macs(model, family.feature_size(config), 10)
        entries += _engines(f"{share:.0%} of branches", model, config, smaller, macs)
    return entries


def _has(run_time: str, *packages: str) -> bool:
    """Whether a run time is installed; if not, it is told that it is left out."""
    try:
        require(*packages, what=f"{run_time} is left out: it")
    except UserError as error:
        say(str(error))
        return False
    return True


def _onnx(size: Path, out: Path, dtype: str, chunk: int | None) -> Path:
    from espnet_omnisparse.export.onnx_folder import export

    export(_asked(size, dtype, chunk), out)
    return out


def _sherpa(
    name: str, size: Path, chunks: Sequence[int], folder: Path, dtype: str
) -> Entry:
    from espnet_omnisparse.export.sherpa import export

    streams: dict[int | None, Path] = {}
    for chunk in chunks or [None]:
        streams[chunk] = folder / f"sherpa_{dtype}_{chunk}"
        export(_asked(size, dtype, chunk), streams[chunk])
    return Entry(name, f"sherpa-onnx {dtype}", Sherpa, (streams,))


def _asked(size: Path, dtype: str, chunk: int | None) -> argparse.Namespace:
    """What `omnisparse export` is asked for."""
    given = {"size": size, "dtype": dtype, "head": None, "chunk": None, "left": None}
    if chunk is not None:
        given |= {"chunk": chunk, "left": LEFT}
    return argparse.Namespace(**given)
