"""Connected digits: strings joined from recordings of the Free Spoken Digit Dataset.

Small enough that two CPU cores train on it to a low error. Laid out as LibriSpeech is:

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python3 -m espnet_omnisparse.data.digits_corpus --fsdd free-spoken-digit-dataset

The dataset is by Zohar Jackson and others, CC BY-SA 4.0, and so is what this writes.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from espnet_omnisparse.console import bar
from espnet_omnisparse.data import made_corpus
from espnet_omnisparse.data.made_corpus import SAMPLE_RATE, Utterance, Voice
from espnet_omnisparse.errors import UserError, one_sentence

WORDS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
VOICES = [
    Voice(9001 + number, "M", name)
    for number, name in enumerate("george jackson lucas nicolas theo yweweler".split())
]
UTTERANCES = {"digits-train": 1500, "digits-dev": 120, "digits-test": 300}
#: Which of the 50 recordings of each digit and speaker a part is joined from: those of
#: the test are the dataset's own test set.
RECORDINGS = {
    "digits-train": range(9, 50),
    "digits-dev": range(5, 9),
    "digits-test": range(5),
}
DIGITS = (3, 7)
PAUSE = (0.05, 0.2)  # seconds, before each digit and after the last
_RATE = 8000  # of the recordings

Recordings = Mapping[tuple[str, str, int], np.ndarray]


def plan() -> list[Utterance]:
    """What the corpus consists of: every utterance, the same each time."""
    utterances = []
    for index, (part, count) in enumerate(UTTERANCES.items()):
        source = random.Random(part)
        for number in range(count):
            voice = VOICES[number % len(VOICES)]
            words = " ".join(source.choices(WORDS, k=source.randint(*DIGITS)))
            chapter, place = 100 * voice.speaker + index, number // len(VOICES)
            utterances.append(Utterance(part, chapter, place, voice, words))
    return utterances


def read_recordings(fsdd: Path) -> Recordings:
    """All recordings of the dataset: (speaker, word, number) -> samples.

    Args:
        fsdd: Its folder, a clone.

    Raises:
        UserError: If one is missing or not what it was.
    """
    found = {}
    numbers = sorted({number for numbers in RECORDINGS.values() for number in numbers})
    for voice, (digit, word), number in product(VOICES, enumerate(WORDS), numbers):
        path = fsdd / "recordings" / f"{digit}_{voice.name}_{number}.wav"
        try:
            samples, rate = soundfile.read(path)
        except (OSError, soundfile.LibsndfileError) as error:
            raise UserError(
                f"--fsdd: {path} cannot be read ({error}): give a clone of "
                "https://github.com/Jakobovski/free-spoken-digit-dataset."
            ) from error
        if rate != _RATE or samples.ndim != 1 or not len(samples):
            raise UserError(
                f"--fsdd: {path} is not mono audio of {_RATE} Hz, as the dataset has "
                "it: give an unchanged clone."
            )
        found[voice.name, word, number] = samples
    return found


def join(recordings: Recordings, utterance: Utterance) -> np.ndarray:
    """An utterance: its digits one after the other, with pauses.

    Args:
        recordings: See `read_recordings`.
        utterance: What is said, by whom, in which part.

    Returns:
        Samples at `SAMPLE_RATE`, float64 within -1 and 1.
    """
    source = random.Random(utterance.name)
    numbers = RECORDINGS[utterance.part]

    def pause() -> np.ndarray:
        return np.zeros(round(_RATE * source.uniform(*PAUSE)))

    pieces = [pause()]
    for word in utterance.words.split():
        recording = recordings[utterance.voice.name, word, source.choice(numbers)]
        pieces += [recording, pause()]
    joined = resample_poly(np.concatenate(pieces), SAMPLE_RATE // _RATE, 1)
    return np.clip(joined, -1, 1)


def write_corpus(fsdd: Path, out: Path) -> str:
    """Writes the corpus, or leaves it alone when it is there.

    Args:
        fsdd: The dataset's folder.
        out: Folder to make; it appears only when the corpus is finished.

    Returns:
        A line on what the folder holds.

    Raises:
        UserError: If the dataset is not whole, or the folder holds something else.
    """
    utterances = plan()
    recordings = cache(partial(read_recordings, fsdd))  # not read if nothing is written

    def speak(utterance: Utterance) -> np.ndarray:
        return join(recordings(), utterance)

    with bar("joined", len(utterances), "utterance") as told:
        made_corpus.write_corpus(out, utterances, speak, told.update)
    return made_corpus.summary(out, utterances)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_omnisparse.data.digits_corpus",
        description="Write a corpus of connected digits, joined from the recordings of "
        "the Free Spoken Digit Dataset and laid out as LibriSpeech is.",
    )
    parser.add_argument("--fsdd", type=Path, required=True, help="the dataset's clone")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("downloads/digits/LibriSpeech"),
        help="folder to make (default: %(default)s)",
    )
    with one_sentence():
        arguments = parser.parse_args(argv)
        print(write_corpus(arguments.fsdd, arguments.out))


if __name__ == "__main__":
    main()
