"""Which run time recognises: the engine, onnxruntime or PyTorch."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from espnet_omnisparse.console import say
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.runtime.library import library
from espnet_omnisparse.transcribe.recordings import Transcriber


@contextmanager
def opened(path: Path, threads: int = 1, beam: int = 1) -> Iterator[Transcriber]:
    """A model of any kind.

    A size's folder is packed for the engine. Where that cannot be, or where the engine
    is not built, PyTorch computes it, and a line on stderr tells why.

    Args:
        path: A packed file, a size's folder, or one of ONNX files.
        threads: Of the computation.
        beam: Hypotheses kept; 1: greedy search.

    Raises:
        UserError: If there is no such model, or nothing that computes it.
    """
    from espnet_omnisparse.transcribe.onnx import FILES, OnnxModel

    if path.suffix == ".onnx" and path.is_file():
        path = path.parent
    if path.is_dir() and any((path / name).is_file() for name in FILES):
        yield OnnxModel(path, threads, beam)
    elif path.is_dir():
        with _size(path, threads, beam) as model:
            yield model
    elif path.is_file():
        with _packed(path, threads, beam) as model:
            yield model
    else:
        raise UserError(
            f"There is no model {path}: name a packed file, such as x.omni, or the "
            "folder of a size, such as exp/asr_x_s80, or of its ONNX files."
        )


@contextmanager
def _size(folder: Path, threads: int, beam: int) -> Iterator[Transcriber]:
    """A size's folder: packed, where that can be."""
    from espnet_omnisparse.export.pack import pack, size_config
    from espnet_omnisparse.transcribe.engine import PackedModel

    size_config(folder)  # what is no size is told of at once
    with tempfile.TemporaryDirectory() as temporary:
        try:
            library()
            packed = Path(temporary) / "model.omni"
            pack(folder, packed)
        except UserError as error:
            yield _pytorch(folder, threads, beam, error)
        else:
            yield PackedModel(packed, threads, beam)


@contextmanager
def _packed(path: Path, threads: int, beam: int) -> Iterator[Transcriber]:
    """A packed file: by the engine, or, if it was a folder once, as one again."""
    from espnet_omnisparse.transcribe.engine import PackedModel

    try:
        library()
    except UserError as error:
        from espnet_omnisparse.export.packed import read_packed
        from espnet_omnisparse.export.unpack import unpack

        if read_packed(path)[0]["espnet"] is None:
            raise
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / path.stem
            unpack(path, folder)
            yield _pytorch(folder, threads, beam, error)
        return
    yield PackedModel(path, threads, beam)


def _pytorch(folder: Path, threads: int, beam: int, reason: UserError) -> Transcriber:
    from espnet_omnisparse.transcribe.pytorch import TorchModel

    model = TorchModel(folder, threads, beam)
    say(f"PyTorch recognises in place of the engine: {reason}")
    return model
