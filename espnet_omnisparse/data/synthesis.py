"""Synthetic speech by espeak-ng."""

import ctypes
import math
import random
from functools import cache

import numpy as np
from scipy.signal import resample_poly

from espnet_omnisparse.data.made_corpus import SAMPLE_RATE, Utterance
from espnet_omnisparse.errors import UserError

NOISE_DB = (18.0, 35.0)


class Synthesiser:
    """The espeak-ng library, through ctypes.

    The library keeps its state in globals, and what it says depends on what it said
    before; hence one instance a process (`synthesiser()`), used in a fixed order.

    Raises:
        UserError: If espeakng-loader is not installed or does not start.
    """

    # names and numbers of espeak's C interface, speak_lib.h
    _SYNCHRONOUS = 2
    _DONT_EXIT = 0x8000
    _RATE = 1
    _PITCH = 3
    _POS_CHARACTER = 1
    _UTF8 = 1
    _CALLBACK = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "Synthetic speech needs espeakng-loader, which is not "
                "installed: run pip install 'espnet-omnisparse[demo]'."
            ) from error
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self.sample_rate = self._library.espeak_Initialize(
            self._SYNCHRONOUS,
            0,
            str(espeakng_loader.get_data_path()).encode(),
            self._DONT_EXIT,
        )
        if self.sample_rate <= 0:
            raise UserError(
                "espeak-ng does not start from the installed espeakng-loader: "
                "reinstall it with pip install --force-reinstall espeakng-loader."
            )
        self._chunks: list[bytes] = []
        # held by the object: ctypes does not keep a callback alive by itself
        self._receive = self._CALLBACK(self._keep)
        self._library.espeak_SetSynthCallback(self._receive)

    def _keep(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(
        self, text: str, voice: str, rate: int, pitch: int, seed: int
    ) -> np.ndarray:
        """Speaks a text.

        Args:
            text: Words in lower case.
            voice: espeak's name, such as `en-us+f2`.
            rate: Words a minute.
            pitch: 0 (low) to 99 (high); 50 is the voice's own.
            seed: For espeak's own small variations.

        Returns:
            Samples at `sample_rate`, float64 within -1 and 1.
        """
        self._chunks.clear()
        # unset, espeak takes the seed from the clock
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._check(self._library.espeak_SetVoiceByName(voice.encode()), voice)
        self._check(self._library.espeak_SetParameter(self._RATE, rate, 0), voice)
        self._check(self._library.espeak_SetParameter(self._PITCH, pitch, 0), voice)
        spoken = text.encode()
        status = self._library.espeak_Synth(
            spoken,
            ctypes.c_size_t(len(spoken) + 1),
            0,
            self._POS_CHARACTER,
            0,
            self._UTF8,
            None,
            None,
        )
        self._check(status, voice)
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16) / 32768

    @staticmethod
    def _check(status: int, voice: str) -> None:
        if status:
            raise RuntimeError(f"espeak-ng fails with {status} for voice {voice}")


@cache
def synthesiser() -> Synthesiser:
    """The one synthesiser of this process."""
    return Synthesiser()


def speak(utterance: Utterance, noise_db: tuple[float, float] = NOISE_DB) -> np.ndarray:
    """Speaks one planned utterance, with its own speed, pitch, gain and noise.

    Args:
        utterance: What is said, by whom.
        noise_db: Least and largest ratio of speech to noise, in decibels.

    Returns:
        Samples at `SAMPLE_RATE`, float64 within -1 and 1.
    """
    source = random.Random(utterance.name)
    engine = synthesiser()
    clean = engine.say(
        utterance.words.lower(),
        utterance.voice.name,
        rate=source.randint(140, 200),
        pitch=source.randint(35, 65),
        seed=source.randrange(1, 2**31),
    )
    common = math.gcd(SAMPLE_RATE, engine.sample_rate)
    clean = resample_poly(clean, SAMPLE_RATE // common, engine.sample_rate // common)
    pauses = [int(SAMPLE_RATE * source.uniform(0.05, 0.25)) for _ in range(2)]
    clean = np.pad(clean, pauses)
    peak = np.abs(clean).max()
    if not peak:
        raise UserError(
            f"The synthesiser says nothing of {utterance.words!r}: leave it out of the "
            "text."
        )
    clean *= source.uniform(0.15, 0.85) / peak
    noise_ratio = 10 ** (-source.uniform(*noise_db) / 20)
    noise = np.random.default_rng(source.randrange(2**31)).standard_normal(len(clean))
    noisy = clean + noise * noise_ratio * np.sqrt(np.mean(clean**2))
    return np.clip(noisy, -1, 1)
