"""The run times of one model that a benchmark sets against each other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from espnet_omnisparse import runtime
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family


class Contestant(Protocol):
    """A model in a run time.

    Attributes:
        name: What a table calls it.
        bytes: Of its file.
    """

    name: str
    bytes: int

    def whole(self, samples: np.ndarray) -> None:
        """Waveform `[n]` to log-probabilities."""

    def chunk(self, chunk: Chunk) -> Iterator[None]:
        """A stream: each step takes one more chunk of audio and computes it.

        Raises:
            UserError: If it has no such stream.
        """


class PyTorch:
    """A size in ESPnet's own code, a stream in this package's.

    Args:
        folder: Of the size.
        quantised: Whether its linear layers are quantised dynamically.
    """

    def __init__(self, folder: Path, quantised: bool = False):
        self.name = "PyTorch int8" if quantised else "PyTorch"
        self._model = family.load_size(folder)
        if quantised:
            linear = {torch.nn.Linear}
            self._model = torch.ao.quantization.quantize_dynamic(self._model, linear)
        self.bytes = (folder / family.MODEL).stat().st_size

    @torch.no_grad()
    def whole(self, samples: np.ndarray) -> None:
        """See `Contestant`."""
        speech = torch.from_numpy(samples)[None]
        encoded, _ = self._model.encode(speech, torch.tensor([len(samples)]))
        self._model.ctc.log_softmax(encoded)

    @torch.no_grad()
    def chunk(self, chunk: Chunk) -> Iterator[None]:
        """See `Contestant`."""
        from espnet_omnisparse.streaming.encoder import EncoderStream
        from espnet_omnisparse.streaming.features import FeatureStream

        features = FeatureStream(self._model.frontend, self._model.normalize)
        encoder = EncoderStream(self._model.encoder, chunk)
        step = chunk.size * encoder.subsampling.stride * features.hop
        samples = torch.from_numpy(noise(step))
        while True:
            encoded = encoder.push(features.push(samples))
            self._model.ctc.log_softmax(encoded[None])
            yield


class Engine:
    """A packed file in the engine.

    Args:
        path: The file.
        threads: Of each computation.
    """

    def __init__(self, path: Path, threads: int = 1):
        self._model = runtime.load(path, threads)
        self._whole = self._model.whole()
        self.name = f"engine {self._model.info['dtype']}"
        self.bytes = path.stat().st_size

    def whole(self, samples: np.ndarray) -> None:
        """See `Contestant`."""
        self._whole.reset()
        self._whole.push(samples)
        self._whole.finish()

    def chunk(self, chunk: Chunk) -> Iterator[None]:
        """See `Contestant`."""
        stream = self._model.stream(chunk.size, chunk.left)
        samples = noise(chunk.size * self._model.frame_samples)
        while True:
            stream.push(samples)
            yield


class OnnxRuntime:
    """A folder that `omnisparse export --to onnx` wrote.

    Args:
        folder: It.
        name: What a table calls it.
        threads: Of each computation.
    """

    def __init__(self, folder: Path, name: str, threads: int = 1):
        from espnet_omnisparse.export.onnx_file import require

        require("onnxruntime")
        self.name, self._folder, self._threads = name, folder, threads
        self._whole = self._session("ctc.onnx")
        self.bytes = (folder / "ctc.onnx").stat().st_size

    def _session(self, name: str) -> Any:
        import onnxruntime

        if not (self._folder / name).is_file():
            raise UserError(f"{self._folder} has no {name}: export it with a chunk.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            self._folder / name, options, providers=["CPUExecutionProvider"]
        )

    def whole(self, samples: np.ndarray) -> None:
        """See `Contestant`."""
        self._whole.run(["log_probs"], {"samples": samples[None]})

    def chunk(self, chunk: Chunk) -> Iterator[None]:
        """See `Contestant`."""
        session = self._session("ctc_stream.onnx")
        told = session.get_modelmeta().custom_metadata_map
        if (int(told["chunk"]), int(told["left"])) != (chunk.size, chunk.left):
            raise UserError(f"{self._folder} was exported with another chunk.")
        samples = noise(int(told["window_samples"]))[None]
        state = {
            one.name: np.zeros(one.shape, "int64" if "int64" in one.type else "float32")
            for one in session.get_inputs()[1:]
        }
        while True:
            _, *kept = session.run(None, {"samples": samples, **state})
            state = dict(zip(state, kept, strict=True))
            yield


def noise(samples: int) -> np.ndarray:
    """So many samples of noise `[n]`, float32."""
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal(samples)).astype(np.float32)
