"""Features of a live stream, exactly those of the whole recording.

ESPnet's STFT reflects the recording at its two ends and is otherwise local. So a stream
adds these reflections itself, the first when enough audio has arrived and the second at
the end, and runs the frontend, without padding, on whole windows.
"""

import copy

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN

from espnet_omnisparse.errors import UserError


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
        self._frontend = copy.deepcopy(frontend).eval()
        self._normalize = normalize
        stft = self._frontend.stft
        self._window = stft.n_fft
        self._reflected = stft.n_fft // 2 if stft.center else 0
        # reflecting n samples takes one more, about which they are reflected
        self._shortest = self._reflected + 1 if stft.center else stft.n_fft
        stft.center = False
        self.sample_rate = self._frontend.logmel.mel_options["sr"]
        self.hop = stft.hop_length
        self.lookahead = self._window - self._reflected
        self._begin()

    def _begin(self) -> None:
        self._buffer = self._frontend.logmel.melmat.new_empty(0)
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
            if len(self._buffer) < self._shortest:
                return self._no_frames()
            start = self._buffer[1 : self._reflected + 1].flip(0)
            self._buffer = torch.cat([start, self._buffer])
            self._started = True
        return self._complete_frames()

    def finish(self) -> torch.Tensor:
        """Ends the recording; the next `push` begins another one.

        A recording too short to be reflected, which ESPnet refuses with an error of
        PyTorch, is lengthened with zeros as far as needed; of no audio there is no
        frame.

        Returns:
            The last features `[frames, dim]`.
        """
        features = self._no_frames()
        if not self._started and len(self._buffer):
            missing = self._shortest - len(self._buffer)
            features = self.push(self._buffer.new_zeros(missing))
        if self._started and self._reflected:
            end = self._buffer[-self._reflected - 1 : -1].flip(0)
            self._buffer = torch.cat([self._buffer, end])
            features = torch.cat([features, self._complete_frames()])
        self._begin()
        return features

    def _no_frames(self) -> torch.Tensor:
        return self._buffer.new_empty(0, self._frontend.output_size())

    @torch.no_grad()
    def _complete_frames(self) -> torch.Tensor:
        frames = (len(self._buffer) - self._window) // self.hop + 1
        if frames <= self._returned:
            return self._no_frames()
        last = (frames - 1) * self.hop
        audio = self._buffer[None, self._returned * self.hop : last + self._window]
        length = torch.tensor([audio.size(1)], device=audio.device)
        features, lengths = self._frontend(audio, length)
        if self._normalize is not None:
            features, _ = self._normalize(features, lengths)
        # the last frame stays, as its samples may be reflected at the end; a copy, so
        # that a long push does not stay with it
        self._buffer = self._buffer[last:].clone()
        self._returned = 1
        return features[0]


def _check(frontend: torch.nn.Module | None, normalize: torch.nn.Module | None) -> None:
    """Refuses what has no exact features before the recording has ended."""
    # a subclass may do anything, so the type itself is asked for
    if type(frontend) is not DefaultFrontend or frontend.stft is None:
        name = type(frontend).__name__ if frontend is not None else "none"
        raise UserError(
            f"Streaming needs ESPnet's default frontend, with its STFT, and the model "
            f"has {name}: train with --frontend default."
        )
    enhancement = frontend.frontend
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
