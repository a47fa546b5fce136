"""`espnet2.bin.asr_transducer_inference` for our models, streaming without loss.

ESPnet's script finds its task, and with it the encoder, under a global name. So this is
that script once more, as a module of our own in which the name means our task; nothing
that others import is changed.

ESPnet's streaming trims the first and last frame of every chunk and keeps its caches
in the model. Here `streaming: true` goes through `EncoderStream`, which loses nothing,
with ESPnet's beam search.

>>> from espnet_omnisparse.bin import asr_transducer_inference  # doctest: +SKIP
>>> speech2text = asr_transducer_inference.Speech2Text(  # doctest: +SKIP
...     "exp/x/config.yaml", "exp/x/model.pth", streaming=True
... )  # doctest: +SKIP
"""

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from espnet2.asr_transducer.beam_search_transducer import Hypothesis

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.streaming.audio import checked
from espnet_omnisparse.streaming.encoder import EncoderStream
from espnet_omnisparse.streaming.features import FeatureStream
from espnet_omnisparse.tasks import OmniASRTransducerTask


def _stock_script() -> ModuleType:
    # ESPnet's type checks read the source of whatever is imported under its name
    spec = importlib.import_module("espnet2.bin.asr_transducer_inference").__spec__
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.ASRTransducerTask = OmniASRTransducerTask
    return script


_script = _stock_script()


class Speech2Text(_script.Speech2Text):
    """ESPnet's `Speech2Text` of the transducer task, whose options these are.

    Streaming needs `decoding_window` to be a whole number of encoder frames; the frames
    of a window are a chunk. `left_context` is as in ESPnet. A size that was trained
    with a chunk keeps it whatever the window.
    """

    def reset_streaming_cache(self) -> None:
        """Begins another recording."""
        model = self.asr_model
        self._features = FeatureStream(model.frontend, model.normalize)
        chunk = model.encoder.chunk
        if chunk is None:
            chunk = Chunk(self._window_frames(), self.left_context)
        self._encoder = EncoderStream(model.encoder, chunk)
        self.beam_search.reset_cache()

    def _window_frames(self) -> int:
        samples = self._features.hop * self.asr_model.encoder.embed.subsampling_factor
        frames, rest = divmod(self.audio_processor.decoding_samples, samples)
        if rest or not frames:
            raise UserError(
                f"decoding_window must be a multiple of "
                f"{1000 * samples / self._features.sample_rate:g} ms, an encoder frame."
            )
        return frames

    @torch.no_grad()
    def streaming_decode(
        self, speech: torch.Tensor | np.ndarray, is_final: bool = False
    ) -> list[Hypothesis]:
        """Takes the next samples `[n]`; `is_final` ends the recording.

        Args:
            speech: Samples `[n]`.
            is_final: Whether the recording ends with them.

        Returns:
            The best hypotheses so far.

        Raises:
            UserError: If the samples are no finite floating-point numbers.
        """
        speech = checked(speech).to(self.device)
        encoded = [self._encoder.push(self._features.push(speech))]
        if is_final:
            encoded.append(self._encoder.push(self._features.finish()))
            encoded.append(self._encoder.finish())
        hyps = self.beam_search(torch.cat(encoded), is_final=is_final)
        if is_final:
            self.reset_streaming_cache()
        return hyps


_script.Speech2Text = Speech2Text


def main(cmd: Sequence[str] | None = None) -> None:
    """Decodes a Kaldi-style list of recordings, as ESPnet does."""
    with one_sentence():
        _script.main(cmd)


if __name__ == "__main__":
    main()
