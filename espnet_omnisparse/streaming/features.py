"""Features of a live stream, exactly those of the whole recording.

A frontend mirrors the recording at its two ends and is otherwise local. So a stream
mirrors them itself, the start when enough audio has arrived and the end when it is
there, and computes the features of whole windows.
"""

import copy
from typing import Protocol

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.kaldi_fbank import KaldiFbank


class FeatureStream:
    """Turns samples as they come into the model's normalised features.

    What all calls return, concatenated, is what the frontend and the normalisation make
    of the whole recording, however it is divided. The object keeps less than a window
    and a hop of audio between calls; any number of streams may share a frontend.

    Args:
        frontend: The model's frontend; it is copied, not changed.
        normalize: The model's normalisation, if it has one.

    Attributes:
        sample_rate: Of the audio, in samples per second.
        hop: Samples from a frame to the next.
        lookahead: Frame `i` is complete when `i * hop + lookahead` samples are there.

    Raises:
        UserError: If the features of a frame depend on all of the audio or on
            other channels.
    """

    def __init__(
        self, frontend: torch.nn.Module | None, normalize: torch.nn.Module | None
    ):
        _check(frontend, normalize)
        self._normalize = normalize
        kaldi = isinstance(frontend, KaldiFbank)
        self._windows = KaldiWindows(frontend) if kaldi else StftWindows(frontend)
        self.sample_rate = self._windows.sample_rate
        self.hop = self._windows.hop
        self.lookahead = self._windows.length - self._windows.before
        self._begin()

    def _begin(self) -> None:
        self._buffer = self._windows.no_audio()
        self._started = False
        # frames at the front of the buffer that were returned already
        self._returned = 0

    def push(self, samples: torch.Tensor) -> torch.Tensor:
        """Takes audio and returns the frames that it completes.

        Args:
            samples: The next samples `[n]`, full scale being 1.

        Returns:
            Features `[frames, dim]`, often of no frame.

        Raises:
            UserError: If the audio has several channels.
        """
        if samples.dim() != 1:
            raise UserError(
                f"Streaming takes audio of one channel, not of shape "
                f"{list(samples.shape)}: mix the channels down."
            )
        self._buffer = torch.cat([self._buffer, samples.to(self._buffer)])
        if not self._started:
            if len(self._buffer) < self._windows.shortest:
                return self._no_frames()
            start = self._windows.mirrored_start(self._buffer)
            self._buffer = torch.cat([start, self._buffer])
            self._started = True
        return self._complete_frames()

    def finish(self) -> torch.Tensor:
        """Ends the recording; the next `push` begins another one.

        A recording too short for ESPnet's STFT, which refuses it with an error of
        PyTorch, is lengthened with zeros as far as needed; of no audio there is no
        frame.

        Returns:
            The last features `[frames, dim]`.
        """
        if self._started:
            end = self._windows.mirrored_end(self._buffer)
            self._buffer = torch.cat([self._buffer, end])
            features = self._complete_frames()
        else:
            features = self._normalised(self._windows.of_short(self._buffer))
        self._begin()
        return features

    def _no_frames(self) -> torch.Tensor:
        return self._buffer.new_empty(0, self._windows.size)

    @torch.no_grad()
    def _complete_frames(self) -> torch.Tensor:
        window = self._windows.length
        frames = (len(self._buffer) - window) // self.hop + 1
        if frames <= self._returned:
            return self._no_frames()
        last = (frames - 1) * self.hop
        audio = self._buffer[self._returned * self.hop : last + window]
        features = self._normalised(self._windows.features(audio))
        # the last frame stays, as its samples may be reflected at the end; a copy, so
        # that a long push does not stay with it
        self._buffer = self._buffer[last:].clone()
        self._returned = 1
        return features

    @torch.no_grad()
    def _normalised(self, features: torch.Tensor) -> torch.Tensor:
        if self._normalize is None or not len(features):
            return features
        lengths = torch.tensor([len(features)], device=features.device)
        return self._normalize(features[None], lengths)[0][0]


class Windows(Protocol):
    """A frontend as what it computes of whole windows, and how it mirrors the ends.

    Attributes:
        sample_rate: Of the audio, in samples per second.
        hop: Samples from a window to the next.
        length: Samples of a window.
        before: Samples of the first window that lie before the recording.
        shortest: Samples that it takes to mirror the start.
        size: Features of a frame.
    """

    sample_rate: int
    hop: int
    length: int
    before: int
    shortest: int
    size: int

    def no_audio(self) -> torch.Tensor:
        """No samples, of the type and on the device of the frontend."""

    def mirrored_start(self, audio: torch.Tensor) -> torch.Tensor:
        """What lies before a recording that begins so `[before]`."""

    def mirrored_end(self, audio: torch.Tensor) -> torch.Tensor:
        """What lies behind a recording that ends so."""

    def features(self, audio: torch.Tensor) -> torch.Tensor:
        """The features `[frames, size]` of all windows that are whole in `audio`."""

    def of_short(self, audio: torch.Tensor) -> torch.Tensor:
        """The features of a whole recording of less than `shortest` samples."""


class StftWindows(Windows):
    """ESPnet's default frontend; it mirrors about the sample at the end.

    Args:
        frontend: It is copied, not changed.
    """

    def __init__(self, frontend: DefaultFrontend):
        self._frontend = copy.deepcopy(frontend).eval()
        stft = self._frontend.stft
        self.sample_rate = self._frontend.logmel.mel_options["sr"]
        self.hop, self.length = stft.hop_length, stft.n_fft
        self.size = self._frontend.output_size()
        self.before = stft.n_fft // 2 if stft.center else 0
        # reflecting n samples takes one more, about which they are reflected
        self.shortest = self.before + 1 if stft.center else stft.n_fft
        stft.center = False

    def no_audio(self) -> torch.Tensor:
        """See `Windows.no_audio`."""
        return self._frontend.logmel.melmat.new_empty(0)

    def mirrored_start(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.mirrored_start`."""
        return audio[1 : self.before + 1].flip(0)

    def mirrored_end(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.mirrored_end`."""
        return audio[len(audio) - self.before - 1 : -1].flip(0)

    def features(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.features`."""
        length = torch.tensor([len(audio)], device=audio.device)
        return self._frontend(audio[None], length)[0][0]

    @torch.no_grad()
    def of_short(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.of_short`."""
        if not len(audio):
            return audio.new_empty(0, self.size)
        missing = self.shortest - len(audio)
        audio = torch.nn.functional.pad(audio, (0, missing))
        parts = (self.mirrored_start(audio), audio, self.mirrored_end(audio))
        return self.features(torch.cat(parts))


class KaldiWindows(Windows):
    """Kaldi's filterbank; it mirrors the samples at the ends as well.

    Args:
        frontend: It is read only.
    """

    def __init__(self, frontend: KaldiFbank):
        self._frontend = frontend
        self.sample_rate, self.size = frontend.fs, frontend.n_mels
        self.hop, self.length = frontend.hop_length, frontend.window_length
        self.before = self.shortest = frontend.before

    def no_audio(self) -> torch.Tensor:
        """See `Windows.no_audio`."""
        return self._frontend.melmat.new_empty(0)

    def mirrored_start(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.mirrored_start`."""
        return audio[: self.before].flip(0)

    def mirrored_end(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.mirrored_end`."""
        # a frame is the last whose centre, half a hop on, lies within the recording
        behind = self.length - self.before - self.hop // 2
        return audio[-behind:].flip(0)

    def features(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.features`."""
        return self._frontend.of_windows(audio.unfold(0, self.length, self.hop))

    def of_short(self, audio: torch.Tensor) -> torch.Tensor:
        """See `Windows.of_short`."""
        length = torch.tensor([len(audio)], device=audio.device)
        return self._frontend(audio[None], length)[0][0]


def _check(frontend: torch.nn.Module | None, normalize: torch.nn.Module | None) -> None:
    """Refuses what has no exact features before the recording has ended."""
    # a subclass may do anything, so the type itself is asked for
    if type(frontend) is KaldiFbank:
        enhancement = None
    elif type(frontend) is DefaultFrontend and frontend.stft is not None:
        enhancement = frontend.frontend
    else:
        name = type(frontend).__name__ if frontend is not None else "none"
        raise UserError(
            "Streaming needs ESPnet's default frontend, with its STFT, and the model "
            f"has {name}: train with --frontend default, or kaldi_fbank."
        )
    if enhancement is not None and (enhancement.use_wpe or enhancement.use_beamformer):
        raise UserError(
            "Streaming takes audio of one channel, and the model's frontend has WPE or "
            "a beamformer for several: train without use_wpe and use_beamformer."
        )
    if normalize is not None and not isinstance(normalize, GlobalMVN):
        raise UserError(
            f"Streaming needs feats_normalize global_mvn, and the model has "
            f"{type(normalize).__name__}, which needs the whole recording: train with "
            "--feats_normalize global_mvn."
        )
