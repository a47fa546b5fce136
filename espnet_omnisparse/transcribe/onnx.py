"""Folders of `omnisparse export --to onnx`, computed by onnxruntime."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.onnx_session import require, session
from espnet_omnisparse.runtime import Token
from espnet_omnisparse.transcribe.windows import joined
from espnet_omnisparse.transcribe.words import collapsed

#: What a folder is told by: of CTC, and of a transducer.
FILES = ("ctc.onnx", "encoder.onnx")
_SYMBOLS = 5  # of a frame of a transducer at most, as in `streaming.search`


class OnnxModel:
    """An exported folder; see `recordings.Transcriber`.

    One with a stream's graph hears a recording chunk by chunk, any other in windows.

    Args:
        folder: That `omnisparse export --to onnx` has written.
        threads: Of onnxruntime.
        beam: 1: these folders are searched greedily.

    Raises:
        UserError: If onnxruntime is not installed, a file is missing or none of ours,
            or a beam is asked for.
    """

    def __init__(self, folder: Path, threads: int = 1, beam: int = 1):
        if beam > 1:
            raise UserError(
                "A folder of ONNX files is searched greedily: leave out --beam, or "
                "transcribe the packed file."
            )
        require("onnxruntime", what=f"Transcribing {folder}")
        self._transducer = not (folder / FILES[0]).is_file()
        kind = Path(FILES[self._transducer]).stem
        live = folder / f"{kind}_stream.onnx"
        self._live = live.is_file()
        path = live if self._live else folder / f"{kind}.onnx"
        self._encoder, told = _opened(path, threads)
        self._told = {name: _number(value) for name, value in told.items()}
        self.sample_rate = self._told["sample_rate"]
        self.text = json.loads(told["text"])
        self._names = json.loads(told["tokens"])
        self._blank = self._told["blank"]
        self._silent = frozenset(json.loads(told["silent"]))
        if self._live:
            self._frame = self._told["shift_samples"] // self._told["chunk"]
        else:
            self._frame = self._told["frame_samples"]
        if self._transducer:
            self._predictor, _ = _opened(folder / "predictor.onnx", threads)
            self._joiner, _ = _opened(folder / "joiner.onnx", threads)

    def tokens(self, blocks: Iterable[np.ndarray]) -> Iterator[Token]:
        """The tokens of a recording of any length, without those that are no text.

        Args:
            blocks: Its samples `[n]`, one block after the other, full scale being 1.
        """
        if self._live:
            return self._searched(self._chunks(blocks))
        return joined(blocks, self.sample_rate, self._frame, self._tokens_of)

    def _tokens_of(self, samples: np.ndarray) -> Iterator[Token]:
        if len(samples) < self._told["least_samples"]:
            return iter(())
        return self._searched([self._encoder.run(None, {"samples": samples[None]})[0]])

    def _searched(self, parts: Iterable[np.ndarray]) -> Iterator[Token]:
        """The tokens of outputs `[1, frames, size]`, one after the other."""
        frames = (frame for part in parts for frame in part[0])
        if self._transducer:
            found = self._transduced(frames)
        else:
            found = collapsed((int(one.argmax()) for one in frames), self._blank)
        for id, frame in found:
            name = self._names[id]
            if name not in self._silent:
                yield Token(name, id, frame * self._frame / self.sample_rate)

    def _transduced(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[int, int]]:
        """A transducer: the best token of a frame again and again until it is blank."""
        names = [one.name for one in self._predictor.get_inputs()][1:]
        state = {
            one.name: np.zeros((one.shape[0], 1, one.shape[2]), np.float32)
            for one in self._predictor.get_inputs()[1:]
        }

        def step(label: int) -> np.ndarray:
            feed = {"labels": np.array([[label]]), **state}
            predicted, *kept = self._predictor.run(None, feed)
            state.update(zip(names, kept, strict=True))
            return predicted

        predicted = step(self._blank)
        for number, encoded in enumerate(frames):
            for _ in range(_SYMBOLS):
                feed = {"encoded": encoded[None], "predicted": predicted}
                best = int(self._joiner.run(None, feed)[0].argmax())
                if best == self._blank:
                    break
                yield best, number
                predicted = step(best)

    def _chunks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Outputs of the stream's graph, as docs/other_runtimes.md calls it."""
        told = self._told
        before, behind, mode = told["before"], told["behind"], told["mirror"]
        state = {
            one.name: np.zeros(one.shape, np.int64 if "int64" in one.type else "f4")
            for one in self._encoder.get_inputs()[1:]
        }

        def run(samples: np.ndarray) -> np.ndarray:
            feed = {"samples": samples[None, : told["window_samples"]], **state}
            output, *kept = self._encoder.run(None, feed)
            state.update(zip(state, kept, strict=True))
            return output

        audio, begun = np.empty(0, np.float32), False
        for block in blocks:
            audio = np.concatenate([audio, block])
            if not begun and len(audio) > max(before, behind):
                audio, begun = np.pad(audio, (before, 0), mode=mode), True
            while begun and len(audio) >= told["window_samples"]:
                yield run(audio)
                audio = audio[told["shift_samples"] :]
        if not begun:  # less than the features mirror
            return
        audio = np.pad(audio, (0, behind), mode=mode)
        while len(audio) >= told["least_samples"]:
            yield run(audio)
            audio = audio[told["shift_samples"] :]


def _opened(path: Path, threads: int) -> tuple[Any, Mapping[str, str]]:
    """A file in onnxruntime, and its metadata."""
    if not path.is_file():
        raise UserError(f"{path} is missing: export the size again.")
    try:
        opened = session(path, threads)
    except Exception as error:  # onnxruntime's own kinds
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"{path} is damaged ({reason}): copy it, or export the size, again."
        ) from error
    told = opened.get_modelmeta().custom_metadata_map
    if "silent" not in told:
        raise UserError(
            f"{path} was not written by this version's omnisparse export --to onnx: "
            "export the size again."
        )
    return opened, told


def _number(text: str) -> int | str:
    """A value of the metadata."""
    return int(text) if text.isdecimal() else text
