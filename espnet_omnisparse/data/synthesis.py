"""Synthetic speech by espeak-ng, laid out as LibriSpeech is."""

import ctypes
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from espnet_omnisparse.data.audio_files import AudioError, check_audio, write_audio
from espnet_omnisparse.data.librispeech_parts import SPEAKERS
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import atomic_folder

SAMPLE_RATE = 16000
SUBSET = "demo"
NOISE_DB = (18.0, 35.0)


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker: its id, its sex (M or F) and espeak's voice+variant."""

    speaker: int
    sex: str
    name: str


@dataclass(frozen=True)
class Utterance:
    """One line to be spoken: where it lies in the corpus, by whom, and its words."""

    part: str
    chapter: int
    number: int
    voice: Voice
    words: str

    @property
    def name(self) -> str:
        """The utterance id, as LibriSpeech forms it."""
        return f"{self.voice.speaker}-{self.chapter}-{self.number:04d}"

    @property
    def folder(self) -> Path:
        """The chapter's folder, relative to the corpus."""
        return Path(self.part, str(self.voice.speaker), str(self.chapter))

    @property
    def audio(self) -> Path:
        """The audio file, relative to the corpus."""
        return self.folder / f"{self.name}.flac"


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


def transcripts(utterances: Iterable[Utterance]) -> dict[Path, str]:
    """The text of every transcript file, by its path relative to the corpus."""
    texts: dict[Path, str] = {}
    for utterance in utterances:
        chapter = f"{utterance.voice.speaker}-{utterance.chapter}.trans.txt"
        path = utterance.folder / chapter
        texts[path] = texts.get(path, "") + f"{utterance.name} {utterance.words}\n"
    return texts


def is_complete(corpus: Path, utterances: Sequence[Utterance]) -> bool:
    """Whether a folder holds the whole planned corpus.

    Args:
        corpus: The corpus folder.
        utterances: What is planned.
    """
    texts = transcripts(utterances)
    if not all((corpus / path).is_file() for path in (SPEAKERS, *texts)):
        return False
    if any((corpus / path).read_text("utf-8") != text for path, text in texts.items()):
        return False
    try:
        for utterance in utterances:
            check_audio(corpus / utterance.audio)
    except AudioError:
        return False
    return True


def write_corpus(
    out: Path,
    utterances: Sequence[Utterance],
    noise_db: tuple[float, float] = NOISE_DB,
    told: Callable[[], object] = lambda: None,
) -> None:
    """Writes a planned corpus, or leaves it alone when it is there.

    The audio is the same, byte for byte, whenever a fresh process writes it.

    Args:
        out: Folder to make; it appears only when the corpus is finished.
        utterances: All of them.
        noise_db: As in `speak`.
        told: Is called after each utterance.

    Raises:
        UserError: If the folder holds something else, or espeakng-loader is missing.
    """
    if is_complete(out, utterances):
        return
    _refuse_foreign(out, {*(one.part for one in utterances), SPEAKERS})
    with atomic_folder(out) as folder:
        _write(folder, utterances, noise_db, told)


def summary(corpus: Path, utterances: Sequence[Utterance]) -> str:
    """A line on what a corpus holds: utterances and minutes of each part.

    Args:
        corpus: Its folder.
        utterances: All of them.
    """
    told = []
    for part in reversed(dict.fromkeys(one.part for one in utterances)):
        paths = [corpus / item.audio for item in utterances if item.part == part]
        minutes = sum(soundfile.info(path).duration for path in paths) / 60
        told.append(f"{part} {len(paths)} utterances {minutes:.1f} min")
    return f"{corpus}: {', '.join(told)}"


def _refuse_foreign(out: Path, ours: set[str]) -> None:
    """Replacing the folder as a whole must not take a real corpus along."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out a folder.")
    present = out.iterdir() if out.exists() else ()
    foreign = [path for path in present if path.name not in ours]
    if foreign:
        raise UserError(
            f"{out} already holds {min(foreign).name}, which is not of this corpus: "
            "give --out another folder."
        )


def _write(
    folder: Path,
    utterances: Sequence[Utterance],
    noise_db: tuple[float, float],
    told: Callable[[], object],
) -> None:
    seconds: defaultdict[Voice, float] = defaultdict(float)
    for utterance in utterances:
        path = folder / utterance.audio
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = speak(utterance, noise_db)
        write_audio(path, [samples], SAMPLE_RATE)
        seconds[utterance.voice] += len(samples) / SAMPLE_RATE
        told()
    for name, text in transcripts(utterances).items():
        (folder / name).write_text(text, encoding="utf-8")
    rows = [";ID | SEX | SUBSET | MINUTES | NAME\n"]
    for voice in dict.fromkeys(one.voice for one in utterances):
        minutes = f"{seconds[voice] / 60:.2f}"
        rows.append(
            f"{voice.speaker} | {voice.sex} | {SUBSET} | {minutes} | {voice.name}\n"
        )
    (folder / SPEAKERS).write_text("".join(rows), encoding="utf-8")
