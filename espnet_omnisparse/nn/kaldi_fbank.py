"""Kaldi's log-mel filterbank, as other run times compute it of live audio.

Kaldi's `compute-fbank-feats` (feat/feature-fbank.cc) with `--snip-edges=false`, no
dither, no energy and the highest frequency 400 Hz below Nyquist, of samples in [-1, 1):
what sherpa-onnx feeds to models. ESPnet's own features differ from it in the frames'
centres, the window, the pre-emphasis and the mel scale.
"""

import humanfriendly
import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torchaudio.compliance import kaldi

FRAME_SECONDS, SHIFT_SECONDS = 0.025, 0.010
PRE_EMPHASIS = 0.97
LOWEST, BELOW_NYQUIST = 20.0, 400.0  # Hz
#: The least energy of a bin: the float32 epsilon.
FLOOR = torch.finfo(torch.float32).eps


class KaldiFbank(AbsFrontend):
    """A frontend of ESPnet that gives Kaldi's filterbank features.

    Frame `i` is centred at sample `(i + 1/2) * hop`, and of `n` samples there are
    `n / hop` frames, rounded. Beyond its ends a recording is mirrored, with the sample
    at the end itself in the mirror.

    Args:
        fs: Sampling rate in Hz, or as text such as `16k`.
        n_mels: Filters.

    Attributes:
        fs: Sampling rate in Hz.
        window_length: Samples of a frame.
        hop_length: Samples from a frame to the next.
        window: What a frame is weighted with `[window_length]`: Povey's.
        melmat: The filters `[n_fft / 2 + 1, n_mels]`, on the power spectrum.
    """

    def __init__(self, fs: int | str = 16000, n_mels: int = 80):
        super().__init__()
        self.fs = humanfriendly.parse_size(fs) if isinstance(fs, str) else fs
        self.n_mels = n_mels
        self.window_length = int(self.fs * FRAME_SECONDS)
        self.hop_length = int(self.fs * SHIFT_SECONDS)
        self.n_fft = 1 << (self.window_length - 1).bit_length()
        window = torch.hann_window(self.window_length, periodic=False) ** 0.85
        filters, _ = kaldi.get_mel_banks(
            n_mels, self.n_fft, self.fs, LOWEST, -BELOW_NYQUIST, 100.0, -500.0, 1.0
        )
        # not in checkpoints: they follow from the configuration
        self.register_buffer("window", window, persistent=False)
        melmat = torch.nn.functional.pad(filters, (0, 1)).T.contiguous()
        self.register_buffer("melmat", melmat, persistent=False)

    def output_size(self) -> int:
        """Features of a frame."""
        return self.n_mels

    @property
    def before(self) -> int:
        """Samples of the first frame that lie before the recording."""
        return (self.window_length - self.hop_length) // 2

    @torch.no_grad()
    def forward(
        self, input: torch.Tensor, input_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes features of recordings.

        Args:
            input: Samples `[batch, samples]`, full scale being 1; of several channels
                `[batch, samples, channels]` the first is taken.
            input_lengths: Samples of each recording `[batch]`.

        Returns:
            `[batch, frames, n_mels]`, zero beyond a recording's end, and the frames of
            each recording `[batch]`.
        """
        audio = input[..., 0] if input.dim() == 3 else input
        hop = self.hop_length
        frames = (input_lengths + hop // 2) // hop
        if not frames.any():
            return audio.new_zeros(len(audio), 0, self.n_mels), frames
        samples = (int(frames.max()) - 1) * hop + self.window_length
        place = torch.arange(samples, device=audio.device) - self.before
        # mirrored again and again, where a recording is shorter than a window
        period = 2 * input_lengths.to(audio.device).clamp(min=1)[:, None]
        index = place.remainder(period)
        audio = audio.gather(1, torch.minimum(index, period - 1 - index))
        feats = self.of_windows(audio.unfold(1, self.window_length, hop))
        padding = torch.arange(feats.size(1), device=frames.device) >= frames[:, None]
        padding = padding.to(feats.device)[..., None]
        return feats.masked_fill(padding, 0.0), frames

    def of_windows(self, windows: torch.Tensor) -> torch.Tensor:
        """The features of single frames.

        Args:
            windows: Their samples `[..., window_length]`.

        Returns:
            `[..., n_mels]`.
        """
        spectrum = self.spectrum(windows.float())
        power = spectrum.real**2 + spectrum.imag**2
        return (power @ self.melmat).clamp(min=FLOOR).log()

    def spectrum(self, windows: torch.Tensor) -> torch.Tensor:
        """The complex spectrum of single frames, linear in their samples.

        Args:
            windows: Their samples `[..., window_length]`.

        Returns:
            `[..., n_fft / 2 + 1]`.
        """
        x = windows - windows.mean(-1, keepdim=True)
        x = x - PRE_EMPHASIS * torch.cat((x[..., :1], x[..., :-1]), -1)
        return torch.fft.rfft(x * self.window, self.n_fft)
