"""A corpus of many synthetic voices that speak phrases of transcripts.

An open vocabulary, hours long: on it the size of a net matters, and two CPU cores can
train on it. Laid out as LibriSpeech is:

    python3 -m espnet_omnisparse.data.voices_corpus --text train-clean-100.txt.gz
"""

import argparse
import gzip
import random
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from espnet_omnisparse.arguments import positive
from espnet_omnisparse.console import bar
from espnet_omnisparse.data import made_corpus, synthesis
from espnet_omnisparse.data.made_corpus import Utterance, Voice
from espnet_omnisparse.errors import UserError, one_sentence

ACCENTS = "en en-us en-gb-scotland en-gb-x-rp en-us-nyc en-gb-x-gbclan en-029".split()
# espeak's variants: manners of speaking, and named voices
MEN = (
    "m1 m2 m3 m4 m5 m6 m7 m8 Andy Denis Gene Lee Marco Michael adam antonio benjamin "
    "boris caleb david edward ian iven john max paul quincy robert travis victor zac"
).split()
WOMEN = (
    "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda linda shelby steph steph2"
).split()
NOISE_DB = (15.0, 35.0)  # the ratio of speech to noise
#: What a word takes to say, in seconds (measured): hours become a number of phrases.
WORD_SECONDS = 0.46
PHRASE = (1, 5)  # words: short ones are aligned soonest
HELD_OUT = {"voices-dev": 200, "voices-test": 600}
PART = "voices-train"


def voices() -> tuple[list[Voice], list[Voice]]:
    """The speakers of the training part, and those of the other parts alone."""
    pairs = [
        *((accent, "M", variant) for accent in ACCENTS for variant in MEN),
        *((accent, "F", variant) for accent in ACCENTS for variant in WOMEN),
    ]
    random.Random("voices").shuffle(pairs)
    made = [
        Voice(10_000 + number, sex, f"{accent}+{variant}")
        for number, (accent, sex, variant) in enumerate(pairs)
    ]
    return made[24:], made[:24]


def phrases(lines: Sequence[str]) -> list[str]:
    """Runs of a few words, cut out of transcripts `id WORDS`; none occurs twice.

    >>> phrases(["1-2-0000 " + "A B C D E F G H"])[0].split()[0]
    'A'
    """
    source = random.Random("phrases")
    found = []
    for line in lines:
        # a dash is not spoken
        words = [word for word in line.split()[1:] if any(map(str.isalnum, word))]
        while words:
            length = source.randint(*PHRASE)
            found.append(" ".join(words[:length]))
            words = words[length:]
    return list(dict.fromkeys(found))


def plan(lines: Sequence[str], hours: float) -> list[Utterance]:
    """What the corpus consists of: every utterance, the same each time.

    The phrases of development and test come from the end of the transcripts, and their
    voices are heard nowhere else.

    Args:
        lines: Transcripts, `id WORDS`.
        hours: Of the training part, about.

    Raises:
        UserError: If the transcripts have too few words for that.
    """
    texts = phrases(lines)
    mean = sum(PHRASE) / 2
    wanted = round(hours * 3600 / (mean * WORD_SECONDS))
    held_out = sum(HELD_OUT.values())
    if len(texts) < wanted + held_out:
        raise UserError(
            f"--text has {len(texts)} phrases, and {hours:g} hours take "
            f"{wanted + held_out}: give more transcripts, or fewer --hours."
        )
    heard, unheard = voices()
    later = texts[len(texts) - held_out :]
    parts = [(PART, texts[: len(texts) - held_out], wanted, heard)]
    for part, count in HELD_OUT.items():
        parts.append((part, later[:count], count, unheard))
        later = later[count:]
    utterances = []
    for index, (part, chosen, count, speakers) in enumerate(parts):
        # a sample of all chapters, so that the words are of many books
        chosen = random.Random(part).sample(chosen, count)
        for number, text in enumerate(chosen):
            speaker = speakers[number % len(speakers)]
            chapter = 10 * speaker.speaker + index
            place = number // len(speakers)
            utterances.append(Utterance(part, chapter, place, speaker, text))
    return utterances


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped or not.

    Raises:
        UserError: If it cannot be read.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"--text: {path} cannot be read ({error}).") from error


def write_corpus(text: Path, hours: float, out: Path) -> str:
    """Writes the corpus, or leaves it alone when it is there.

    Args:
        text: Transcripts, `id WORDS`, gzipped or not.
        hours: Of the training part, about.
        out: Folder to make; it appears only when the corpus is finished.

    Returns:
        A line on what the folder holds.

    Raises:
        UserError: If the text does not suffice, the folder holds something else, or
            espeakng-loader is missing.
    """
    utterances = plan(read_lines(text), hours)
    with bar("spoken", len(utterances), "utterance") as told:
        speak = partial(synthesis.speak, noise_db=NOISE_DB)
        made_corpus.write_corpus(out, utterances, speak, told.update)
    return made_corpus.summary(out, utterances)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_omnisparse.data.voices_corpus",
        description="Write a corpus of synthetic voices that speak phrases of "
        "transcripts, laid out as LibriSpeech is.",
    )
    parser.add_argument("--text", type=Path, required=True, help="lines of `id WORDS`")
    parser.add_argument("--hours", type=positive, default=4.0, help="(%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("downloads/voices/LibriSpeech"),
        help="folder to make (default: %(default)s)",
    )
    with one_sentence():
        arguments = parser.parse_args(argv)
        print(write_corpus(arguments.text, arguments.hours, arguments.out))


if __name__ == "__main__":
    main()
