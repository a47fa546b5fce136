"""Corpora that are made here, planned by the utterance, laid out as LibriSpeech is."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from espnet_omnisparse.data.audio_files import AudioError, check_audio, write_audio
from espnet_omnisparse.data.librispeech_parts import SPEAKERS
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import atomic_folder

SAMPLE_RATE = 16000
_SUBSET = "made"


@dataclass(frozen=True)
class Voice:
    """One speaker: its id, its sex (M or F), and its name, for espeak voice+variant."""

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
    speak: Callable[[Utterance], np.ndarray],
    told: Callable[[], object] = lambda: None,
) -> None:
    """Writes a planned corpus, or leaves it alone when it is there.

    Args:
        out: Folder to make; it appears only when the corpus is finished.
        utterances: All of them.
        speak: Gives the samples of one at `SAMPLE_RATE`, within -1 and 1.
        told: Is called after each utterance.

    Raises:
        UserError: If the folder holds something else.
    """
    if is_complete(out, utterances):
        return
    _refuse_foreign(out, {*(one.part for one in utterances), SPEAKERS})
    with atomic_folder(out) as folder:
        _write(folder, utterances, speak, told)


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
    speak: Callable[[Utterance], np.ndarray],
    told: Callable[[], object],
) -> None:
    seconds: defaultdict[Voice, float] = defaultdict(float)
    for utterance in utterances:
        path = folder / utterance.audio
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = speak(utterance)
        write_audio(path, [samples], SAMPLE_RATE)
        seconds[utterance.voice] += len(samples) / SAMPLE_RATE
        told()
    for name, text in transcripts(utterances).items():
        (folder / name).write_text(text, encoding="utf-8")
    rows = [";ID | SEX | SUBSET | MINUTES | NAME\n"]
    for voice in dict.fromkeys(one.voice for one in utterances):
        minutes = f"{seconds[voice] / 60:.2f}"
        rows.append(
            f"{voice.speaker} | {voice.sex} | {_SUBSET} | {minutes} | {voice.name}\n"
        )
    (folder / SPEAKERS).write_text("".join(rows), encoding="utf-8")
