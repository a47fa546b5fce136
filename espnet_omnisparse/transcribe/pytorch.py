"""Models that the engine cannot have, or where there is none, computed by PyTorch."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

import humanfriendly
import numpy as np
import torch
from espnet2.asr_transducer.utils import TooShortUttError as TransducerTooShort
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
)

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.description import SILENT
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.runtime import Token
from espnet_omnisparse.streaming.encoder import EncoderStream
from espnet_omnisparse.streaming.features import FeatureStream
from espnet_omnisparse.streaming.search import Search, beam_search, greedy_search
from espnet_omnisparse.transcribe.windows import joined

_LEAST = 0.1  # seconds that a front end needs
_PROBED = 4  # seconds from which the distance of frames is found


class TorchModel:
    """A size's folder; see `recordings.Transcriber`.

    A size with a chunk of its own hears a recording as a stream, any other in windows,
    as with a beam.

    Args:
        folder: Of the size, or of any model of ESPnet's ASR tasks.
        threads: Of PyTorch.
        beam: Hypotheses kept; 1: greedy search.

    Raises:
        UserError: If there is no such size, or it hears no audio, or has attention
            alone.
    """

    def __init__(self, folder: Path, threads: int = 1, beam: int = 1):
        torch.set_num_threads(threads)
        config = family.located(family.read_config(folder), folder)
        model = family.load_size(folder)
        if model.frontend is None:
            raise UserError(
                f"{folder} hears features and not audio: train with a frontend."
            )
        transducer = getattr(model, "joint_network", None) is not None
        if not transducer and model.ctc is None:
            raise UserError(
                f"{folder} has neither CTC nor a transducer, and attention alone tells "
                "no times: decode with ESPnet's Speech2Text."
            )
        self._model, self._beam = model, beam
        rate = (config.get("frontend_conf") or {}).get("fs") or 16000
        self.sample_rate = int(humanfriendly.parse_size(str(rate)))
        self.text = {"kind": config.get("token_type"), "space": "<space>"}
        self._names = config["token_list"]
        self._loudness = config.get("speech_volume_normalize")
        self._frame = self._frame_samples()

    def tokens(self, blocks: Iterable[np.ndarray]) -> Iterator[Token]:
        """The tokens of a recording of any length, without those that are no text.

        Args:
            blocks: Its samples `[n]`, one block after the other, full scale being 1.
        """
        chunk = getattr(self._model.encoder, "chunk", None)
        if chunk is None or self._beam > 1 or self._loudness:
            rate, frame = self.sample_rate, self._frame
            return joined(blocks, rate, frame, self._tokens_of)
        return self._told(self._streamed(blocks))

    def _tokens_of(self, samples: np.ndarray) -> Iterator[Token]:
        return self._told([self._encoded(torch.from_numpy(samples))])

    def _told(self, parts: Iterable[torch.Tensor]) -> Iterator[Token]:
        greedy = self._beam == 1
        model = self._model
        search = greedy_search(model) if greedy else beam_search(model, self._beam)
        second = self._frame / self.sample_rate
        for id, frame in timed(search, parts):
            if self._names[id] not in SILENT:
                yield Token(self._names[id], id, frame * second)

    @torch.no_grad()
    def _encoded(self, samples: torch.Tensor) -> torch.Tensor:
        """The encoder's output `[frames, size]` of samples `[n]`."""
        nothing = samples.new_empty(0, 1)
        if len(samples) < _LEAST * self.sample_rate:
            return nothing
        loudest = samples.abs().max()
        if self._loudness and loudest > 0:  # as ESPnet's preprocessor does it
            samples = samples * self._loudness / loudest
        try:
            encoded = self._model.encode(samples[None], torch.tensor([len(samples)]))
        except (TooShortUttError, TransducerTooShort):
            return nothing
        return encoded[0][0]

    def _streamed(self, blocks: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        features = FeatureStream(self._model.frontend, self._model.normalize)
        encoder = EncoderStream(self._model.encoder)
        for block in blocks:
            yield encoder.push(features.push(torch.from_numpy(block)))
        yield encoder.push(features.finish())
        yield encoder.finish()

    def _frame_samples(self) -> int:
        """Samples from a frame of the encoder's output to the next."""
        rate, hop = self.sample_rate, getattr(self._model.frontend, "hop_length", 1)
        counts = [len(self._encoded(torch.zeros(n * _PROBED * rate))) for n in (1, 2)]
        if counts[0] == counts[1]:
            raise UserError("This model's encoder has no output for audio.")
        return max(round(_PROBED * rate / (counts[1] - counts[0]) / hop), 1) * hop


def timed(search: Search, parts: Iterable[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """The tokens that a search finds, and the frames at which it first had them.

    Args:
        search: Of a recording.
        parts: Encoder frames `[frames, size]`, one part after the other.
    """
    found: list[tuple[int, int]] = []
    number = 0

    def look() -> None:
        best, kept = search.best(), len(found)
        if search.revises:
            pairs = zip(found, best, strict=False)
            kept = sum(1 for _ in takewhile(lambda pair: pair[0][0] == pair[1], pairs))
        found[kept:] = [(id, number) for id in best[kept:]]

    for part in parts:
        for frame in part.split(1) if len(part) else ():
            search.push(frame)
            look()
            number += 1
    search.finish()
    look()
    yield from found
