"""The run times of one model that a benchmark sets against each other."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from espnet_omnisparse import runtime
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.onnx_session import session
from espnet_omnisparse.runtime import Token
from espnet_omnisparse.transcribe.words import as_text, collapsed, words_of

RATE = 16000
LEFT = 32  # frames that a stream sees before its chunk


class Contestant(Protocol):
    """A model in a run time.

    Attributes:
        LIBRARIES: Modules that it needs.
        bytes: Of its file.
    """

    LIBRARIES: ClassVar[tuple[str, ...]]
    bytes: int

    def whole(self, samples: np.ndarray) -> Any:
        """Computes a whole recording, samples `[n]`."""

    def text(self, samples: np.ndarray) -> str:
        """What it recognises in one, the best token of each frame."""

    def chunks(self, size: int) -> Iterator[None]:
        """A stream: each step takes one more chunk of audio and computes it.

        Args:
            size: Of a chunk, in encoder frames.

        Raises:
            UserError: If it has no such stream.
        """


@dataclass(frozen=True)
class Entry:
    """A model in a run time, not yet opened.

    Attributes:
        model: Its name.
        run_time: What computes it.
        kind: Of contestant.
        given: What that is made of.
        macs: Multiplications with weights for 10 s of the dense form.
    """

    model: str
    run_time: str
    kind: Callable[..., Contestant]
    given: tuple[Any, ...]
    macs: int | None = None

    def open(self, threads: int = 1) -> Contestant:
        """Opens it, in this process or in another.

        Args:
            threads: That it has.
        """
        return self.kind(*self.given, threads=threads)


@dataclass(frozen=True)
class Spelling:
    """How a CTC model's tokens become text.

    Attributes:
        told: The model's `tokens`, `blank`, `silent` and `text`, as in a packed file.
    """

    told: dict[str, Any]

    def text(self, log_probs: np.ndarray) -> str:
        """The text of the best tokens.

        Args:
            log_probs: `[frames, tokens]`.
        """
        told, best = self.told, log_probs.argmax(-1).tolist()
        found = collapsed(best, told["blank"])
        spelt = [Token(told["tokens"][token], token, 0.0) for token, _ in found]
        shown = [token for token in spelt if token.text not in told["silent"]]
        return as_text(list(words_of(shown, told["text"])))


class PyTorch:
    """A size in ESPnet's own code, a stream in this package's.

    Args:
        folder: Of the size.
        quantised: Whether its linear layers are quantised dynamically.
        spelling: Of the model.
        threads: Of all of PyTorch.
    """

    LIBRARIES = ("espnet_omnisparse.tasks", "espnet_omnisparse.extract.experiment")

    def __init__(
        self, folder: Path, quantised: bool, spelling: Spelling, threads: int = 1
    ):
        import torch

        from espnet_omnisparse.extract import experiment as family

        torch.set_num_threads(threads)
        self._spelling, self._model = spelling, family.load_size(folder)
        if quantised:
            linear = {torch.nn.Linear}
            self._model = torch.ao.quantization.quantize_dynamic(self._model, linear)
        self.bytes = (folder / family.MODEL).stat().st_size

    def whole(self, samples: np.ndarray) -> np.ndarray:
        """See `Contestant`."""
        import torch

        with torch.no_grad():
            speech = torch.from_numpy(samples)[None]
            encoded, _ = self._model.encode(speech, torch.tensor([len(samples)]))
            return self._model.ctc.log_softmax(encoded)[0].numpy()

    def text(self, samples: np.ndarray) -> str:
        """See `Contestant`."""
        return self._spelling.text(self.whole(samples))

    def chunks(self, size: int) -> Iterator[None]:
        """See `Contestant`."""
        import torch

        from espnet_omnisparse.core.chunk import Chunk
        from espnet_omnisparse.streaming.encoder import EncoderStream
        from espnet_omnisparse.streaming.features import FeatureStream

        features = FeatureStream(self._model.frontend, self._model.normalize)
        encoder = EncoderStream(self._model.encoder, Chunk(size, LEFT))
        step = size * encoder.subsampling.stride * features.hop
        samples = torch.from_numpy(noise(step))
        while True:
            with torch.no_grad():
                encoded = encoder.push(features.push(samples))
                self._model.ctc.log_softmax(encoded[None])
            yield


class Engine:
    """A packed file in the engine.

    Args:
        path: The file.
        threads: Of each computation.
    """

    LIBRARIES = ()

    def __init__(self, path: Path, threads: int = 1):
        self._model = runtime.load(path, threads)
        self._whole = self._model.whole()
        self.bytes = path.stat().st_size

    def whole(self, samples: np.ndarray) -> None:
        """See `Contestant`."""
        self._whole.reset()
        self._whole.push(samples)
        self._whole.finish()

    def text(self, samples: np.ndarray) -> str:
        """See `Contestant`."""
        return self._model.recognize(samples, RATE)

    def chunks(self, size: int) -> Iterator[None]:
        """See `Contestant`."""
        stream = self._model.stream(size, LEFT)
        samples = noise(size * self._model.frame_samples)
        while True:
            stream.push(samples)
            yield


class OnnxRuntime:
    """Folders that `omnisparse export --to onnx` wrote.

    Args:
        folders: Of one model, each with its own chunk.
        threads: Of each computation.
    """

    LIBRARIES = ("onnxruntime",)

    def __init__(self, folders: list[Path], threads: int = 1):
        self._folders, self._threads = folders, threads
        self._whole = session(folders[0] / "ctc.onnx", threads)
        self.bytes = (folders[0] / "ctc.onnx").stat().st_size

    def whole(self, samples: np.ndarray) -> np.ndarray:
        """See `Contestant`."""
        return self._whole.run(["log_probs"], {"samples": samples[None]})[0][0]

    def text(self, samples: np.ndarray) -> str:
        """See `Contestant`."""
        told = self._whole.get_modelmeta().custom_metadata_map
        if "silent" not in told:
            raise UserError(
                f"{self._folders[0]} does not say how its tokens are spelt: export the "
                "size again."
            )
        names = ("tokens", "blank", "silent", "text")
        spelling = Spelling({name: json.loads(told[name]) for name in names})
        return spelling.text(self.whole(samples))

    def chunks(self, size: int) -> Iterator[None]:
        """See `Contestant`."""
        opened, told = self._stream(size)
        samples = noise(int(told["window_samples"]))[None]
        state = {
            one.name: np.zeros(one.shape, "int64" if "int64" in one.type else "float32")
            for one in opened.get_inputs()[1:]
        }
        while True:
            _, *kept = opened.run(None, {"samples": samples, **state})
            state = dict(zip(state, kept, strict=True))
            yield

    def _stream(self, size: int) -> tuple[Any, dict[str, str]]:
        for folder in self._folders:
            if (folder / "ctc_stream.onnx").is_file():
                opened = session(folder / "ctc_stream.onnx", self._threads)
                told = opened.get_modelmeta().custom_metadata_map
                if (int(told["chunk"]), int(told["left"])) == (size, LEFT):
                    return opened, told
        raise UserError(
            f"{self._folders[0]} has no stream of {size} frames after "
            f"{LEFT}: export it with --chunk {size} --left {LEFT}."
        )


class Sherpa:
    """Folders that `omnisparse export --to sherpa` wrote: features to text.

    Args:
        folders: By the size of their chunk; the first has whole recordings, too.
        threads: Of each computation.
    """

    LIBRARIES = ("sherpa_onnx",)

    def __init__(self, folders: dict[int | None, Path], threads: int = 1):
        from espnet_omnisparse.export.sherpa_run import load

        self._folders, self._threads = folders, threads
        whole = next(iter(folders.values()))
        self._whole, self._tail = load(whole, threads)
        self.bytes = sum(file.stat().st_size for file in whole.glob("*.onnx"))

    def whole(self, samples: np.ndarray) -> str:
        """See `Contestant`."""
        from espnet_omnisparse.export.sherpa_run import recognise

        return recognise(self._whole, samples, RATE, self._tail)

    def text(self, samples: np.ndarray) -> str:
        """See `Contestant`."""
        return self.whole(samples)

    def chunks(self, size: int) -> Iterator[None]:
        """See `Contestant`."""
        from espnet_omnisparse.export.sherpa_run import load

        recogniser, _ = load(self._folders[size], self._threads)
        stream = recogniser.create_stream()
        samples = noise(4 * size * RATE // 100)  # 10 ms, subsampled by 4
        while True:
            # what is ready is computed, a chunk once there is enough for the first
            stream.accept_waveform(RATE, samples)
            while recogniser.is_ready(stream):
                recogniser.decode_stream(stream)
            yield


def noise(samples: int) -> np.ndarray:
    """So many samples of noise `[n]`, float32."""
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal(samples)).astype(np.float32)
