"""Audio in, text out, as it is spoken: one model, any number of streams."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.text.token_id_converter import TokenIDConverter

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.streaming.audio import checked
from espnet_omnisparse.streaming.encoder import EncoderStream
from espnet_omnisparse.streaming.features import FeatureStream
from espnet_omnisparse.streaming.search import Search, beam_search, greedy_search
from espnet_omnisparse.streaming.text import settled_text, tokenizer_of


class Recogniser:
    """A trained model that recognises streams.

    Args:
        model: An extracted size, or any other model with a causal prunable encoder.
        config: The configuration of its training.
        chunk: What each frame sees; `None`: as in training.
        beam: Hypotheses that are kept; 1: greedy search.

    Raises:
        UserError: If the model cannot stream.

    Examples:
        >>> recogniser = Recogniser.load("exp/asr_x_s80")  # doctest: +SKIP
        >>> stream = recogniser.stream()  # doctest: +SKIP
        >>> for block in microphone:  # doctest: +SKIP
        ...     stream.push(block)
        ...     print(stream.text)
    """

    def __init__(
        self,
        model: Any,
        config: Mapping[str, Any],
        chunk: Chunk | None = None,
        beam: int = 1,
    ):
        _refuse_what_streams_have_not(model, config)
        if beam < 1:
            raise UserError(f"A beam has at least 1 hypothesis, not {beam}.")
        self.model = model.eval()
        self._chunk = chunk
        self._beam = beam
        self._converter = TokenIDConverter(config["token_list"])
        self._tokenizer = tokenizer_of(config)
        example = self.stream()  # a model that cannot stream is told of at once
        self.chunk = example.encoder.chunk
        self.sample_rate = example.features.sample_rate
        front = example.encoder.subsampling
        samples = front.stride * example.features.hop
        beyond = (front.field - 1 - front.stride) * example.features.hop
        #: Duration of a chunk, in seconds.
        self.chunk_seconds = self.chunk.size * samples / self.sample_rate
        #: Audio after a chunk's end that its features need, in seconds.
        self.lookahead_seconds = (
            beyond + example.features.lookahead
        ) / self.sample_rate

    @classmethod
    def load(
        cls, folder: Path | str, chunk: Chunk | None = None, beam: int = 1
    ) -> "Recogniser":
        """The recogniser of an extracted size.

        Args:
            folder: Of the size.
            chunk: As in the constructor.
            beam: As in the constructor.

        Raises:
            UserError: If there is no such size, or it cannot stream.
        """
        folder = Path(folder)
        config = family.located(family.read_config(folder), folder)
        if not (folder / family.MODEL).exists():
            raise UserError(
                f"{folder} has no {family.MODEL}: name the folder of a size, such as "
                "exp/asr_x_s80 (run.sh's stage 11, or omnisparse extract, writes it)."
            )
        return cls(family.load_size(folder), config, chunk, beam)

    def stream(self) -> "Stream":
        """A new stream."""
        features = FeatureStream(self.model.frontend, self.model.normalize)
        encoder = EncoderStream(self.model.encoder, self._chunk)
        return Stream(self, features, encoder, self._search())

    def text(self, tokens: list[int]) -> str:
        """The text that token ids spell."""
        return self._tokenizer.tokens2text(self._converter.ids2tokens(tokens))

    def tokens(self, ids: list[int]) -> list[str]:
        """The tokens of ids."""
        return self._converter.ids2tokens(ids)

    def _search(self) -> Search:
        if self._beam == 1:
            return greedy_search(self.model)
        return beam_search(self.model, self._beam)


class Stream:
    """One recording on its way through a recogniser; holds all of its state.

    Args:
        recogniser: Whose model it uses.
        features: Its features.
        encoder: Its encoder.
        search: Its search.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        features: FeatureStream,
        encoder: EncoderStream,
        search: Search,
    ):
        self._recogniser = recogniser
        self.features = features
        self.encoder = encoder
        self._search = search
        self._ended = False

    def push(self, samples: torch.Tensor) -> None:
        """Takes the next samples `[n]`, full scale being 1.

        Raises:
            UserError: If a sample is not finite, far beyond full scale, or an integer.
            RuntimeError: If the recording has ended.
        """
        if self._ended:
            raise RuntimeError("this stream has ended: make another one")
        self._recognise(self.features.push(checked(samples)))

    def finish(self) -> str:
        """Ends the recording.

        Returns:
            Its text.
        """
        self._ended = True
        self._recognise(self.features.finish())
        self._search.push(self.encoder.finish())
        self._search.finish()
        return self.text

    def _recognise(self, feats: torch.Tensor) -> None:
        encoded = self.encoder.push(feats)
        # a search would go on with it, and find nothing any more
        if not encoded.isfinite().all():
            raise UserError(
                "The encoder's output is not finite: the model's weights are damaged."
            )
        self._search.push(encoded)

    @property
    def ids(self) -> list[int]:
        """Token ids of the best hypothesis so far."""
        return self._search.best()

    @property
    def likely_text(self) -> str:
        """The text so far without what the next chunks may well change."""
        return settled_text(self.text, self._search.revises)

    @property
    def text(self) -> str:
        """The best hypothesis so far."""
        return self._recogniser.text(self.ids)


def _refuse_what_streams_have_not(model: Any, config: Mapping[str, Any]) -> None:
    for part in ("preencoder", "postencoder"):
        if getattr(model, part, None) is not None:
            raise UserError(
                f"This model has a {part}, which has no equal in a stream: train one "
                "without."
            )
    if config.get("speech_volume_normalize"):
        raise UserError(
            "This model was trained with speech_volume_normalize, which needs whole "
            "recordings: train one without it to stream."
        )
