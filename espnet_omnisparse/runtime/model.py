"""A packed model, and recordings on their way through it."""

import ctypes
import functools
import json
import math
import os
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.runtime.library import (
    Floats,
    Ints,
    Library,
    Options,
    library,
    saturated,
)

_LOG_PROBABILITIES = 2  # of `omnisparse_stream_output`
_FULL_SCALE = 2**15  # of int16


@dataclass(frozen=True)
class Token:
    """A recognised token.

    Attributes:
        text: As the vocabulary spells it.
        id: Its number there.
        seconds: When it was recognised, from the recording's beginning on.
    """

    text: str
    id: int
    seconds: float


def load(path: str | os.PathLike, threads: int = 1) -> "Model":
    """Loads a packed model.

    Args:
        path: A file that `omnisparse export --to packed` has written.
        threads: Of each computation.

    Raises:
        UserError: If it is none, or is damaged, or the engine is not built.
    """
    return Model(path, threads)


def instruction_set() -> str:
    """What the engine computes with on this CPU, such as `avx2`."""
    return library().isa().decode()


class Model:
    """A packed model. Any number of streams may run over it, in any threads.

    Args:
        path: The file.
        threads: Of each computation.

    Raises:
        UserError: If the file is no whole packed model, or the engine is not built.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        self._library = library()
        name = os.fsencode(path)
        if b"\0" in name:  # where the name would end for C
            raise UserError(f"{str(path)!r} is no file's name: correct it.")
        self._handle = self._library.load(name, saturated(threads))
        if not self._handle:
            raise self._library.error()
        weakref.finalize(self, self._library.free, self._handle)

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        """The model's description, as docs/devices.md explains it."""
        return json.loads(self._library.info(self._handle))

    @property
    def sample_rate(self) -> int:
        """Samples per second that it hears."""
        return self._library.sample_rate(self._handle)

    @property
    def tokens(self) -> list[str]:
        """Its vocabulary, by id."""
        return self.info["tokens"]

    @property
    def frame_samples(self) -> int:
        """Samples from an encoder frame to the next."""
        features = self.info["features"]
        hop = features["hop_length" if features["kind"] == "stft" else "frame_shift"]
        return math.prod(c["stride"][0] for c in self.info["front_end"]["convs"]) * hop

    @property
    def can_stream(self) -> bool:
        """Whether it can recognise chunk by chunk."""
        return bool(self._library.can_stream(self._handle))

    @property
    def chunk(self) -> int | None:
        """Frames of its own chunk; `None`: it has none."""
        return self._library.chunk(self._handle) or None

    def recognize(self, waveform: np.ndarray, rate: int, beam: int = 1) -> str:
        """The text of a recording.

        Args:
            waveform: Samples `[n]`, floats of which 1 is full scale, or int16.
            rate: Samples per second.
            beam: Hypotheses kept; 1: greedy search.

        Raises:
            UserError: If the samples are no such, or at another rate than the model's.
        """
        self._check_rate(rate)
        stream = Stream(self, self._library, Options(left=-1, beam=beam))
        stream.push(waveform)
        return stream.finish()

    def whole(self, beam: int = 1) -> "Stream":
        """A new recording that is encoded at once, when it has ended.

        A size with a chunk hears it as its stream does.

        Args:
            beam: Hypotheses kept; 1: greedy search.
        """
        return Stream(self, self._library, Options(whole=1, left=-1, beam=beam))

    def log_probs(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        """What the CTC head says of each frame of a recording.

        Args:
            waveform: As `recognize` takes it.
            rate: Samples per second.

        Returns:
            Natural logarithms of probabilities `[frames, tokens]`.

        Raises:
            UserError: As `recognize`, and if the model has no CTC head.
        """
        if self.info["head"] is None:
            raise UserError("This model has no CTC head: recognize gives its text.")
        self._check_rate(rate)
        stream = Stream(self, self._library, Options(left=-1, beam=1, keep=1))
        stream.push(waveform)
        before = stream.output(_LOG_PROBABILITIES)
        stream.finish()
        return np.concatenate((before, stream.output(_LOG_PROBABILITIES)))

    def stream(
        self, chunk: int | None = None, left: int | None = None, beam: int = 1
    ) -> "Stream":
        """A new recording, recognised while it is arriving.

        Args:
            chunk: Encoder frames encoded together; `None`: the model's own.
            left: Frames seen before a chunk; `None`: the model's own, or four chunks.
            beam: Hypotheses kept; 1: greedy search.

        Raises:
            UserError: If the model cannot stream, or not so.
        """
        if not self.can_stream:
            raise UserError(
                "This model cannot stream, since it sees the future: recognize takes "
                "whole recordings."
            )
        if chunk is None and self.chunk is None:
            raise UserError(
                "This model has no chunk of its own: give a chunk to stream with, such "
                "as stream(chunk=16, left=32)."
            )
        if left is None:
            left = -1 if chunk is None else 4 * chunk
        if chunk is not None and chunk < 1 or left < -1:
            raise UserError(
                "A chunk has at least 1 frame, and sees 0 or more before it, not "
                f"chunk {chunk}, left {left}."
            )
        options = Options(chunk=chunk or 0, left=left, beam=beam)
        return Stream(self, self._library, options)

    def _check_rate(self, rate: int) -> None:
        if rate != self.sample_rate:
            raise UserError(
                f"The audio has {rate} samples per second, and the model hears "
                f"{self.sample_rate}: resample it."
            )

    def _new_stream(self, options: Options) -> int:
        handle = self._library.stream_new(self._handle, ctypes.byref(options))
        if not handle:
            raise self._library.error()
        return handle


class Stream:
    """One recording on its way through a model; used by one thread at a time.

    Made by `Model.stream`.

    Args:
        model: Whose stream it is.
        engine: The engine.
        options: Of the stream.

    Raises:
        UserError: If the model has no such stream.
    """

    def __init__(self, model: Model, engine: Library, options: Options):
        self._model = model
        self._library = engine
        self._handle = model._new_stream(options)
        self._ended = False
        weakref.finalize(self, engine.stream_free, self._handle)

    def push(self, samples: np.ndarray) -> None:
        """Takes the next samples in, and recognises what is complete with them.

        Args:
            samples: `[n]`, floats of which 1 is full scale, or int16.

        Raises:
            UserError: If they are no such, or the recording has ended.
        """
        if self._ended:
            raise UserError("This recording has ended: make another stream, or reset.")
        samples = _checked(samples)
        pointer = samples.ctypes.data_as(Floats)
        if self._library.stream_push(self._handle, pointer, samples.size):
            raise self._library.error()

    def finish(self) -> str:
        """Ends the recording.

        Returns:
            Its text.
        """
        self._ended = True
        if self._library.stream_finish(self._handle):
            raise self._library.error()
        return self.text

    def reset(self) -> None:
        """Begins another recording."""
        self._library.stream_reset(self._handle)
        self._ended = False

    @property
    def text(self) -> str:
        """The text so far."""
        return self._library.stream_text(self._handle).decode()

    @property
    def tokens(self) -> list[Token]:
        """The tokens so far."""
        ids, seconds = Ints(), Floats()
        count = self._library.stream_tokens(
            self._handle, ctypes.byref(ids), ctypes.byref(seconds)
        )
        names = self._model.tokens
        return [Token(names[ids[n]], ids[n], seconds[n]) for n in range(count)]

    def output(self, kind: int) -> np.ndarray:
        """Rows that the last push or finish has made, of a stream that keeps them.

        Args:
            kind: 0: features, 1: the encoder's output, 2: log-probabilities.

        Returns:
            `[rows, columns]`.
        """
        values, columns = Floats(), ctypes.c_size_t()
        rows = self._library.stream_output(
            self._handle, kind, ctypes.byref(values), ctypes.byref(columns)
        )
        if rows == 0:
            return np.zeros((0, columns.value or len(self._model.tokens)), np.float32)
        return np.ctypeslib.as_array(values, (rows, columns.value)).copy()


def _checked(samples: np.ndarray) -> np.ndarray:
    """Samples as the engine takes them: float32, one after the other."""
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise UserError(
            f"Audio is one channel of samples [n], not of shape {list(samples.shape)}."
        )
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / _FULL_SCALE
    if samples.dtype.kind != "f":
        raise UserError(
            f"Samples are floats, of which 1 is full scale, or int16, not "
            f"{samples.dtype}."
        )
    return np.ascontiguousarray(samples, np.float32)
