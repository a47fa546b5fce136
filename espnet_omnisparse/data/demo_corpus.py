"""The demo corpus: twenty minutes of device commands by synthetic voices.

It is laid out as LibriSpeech is, so that the recipe reads it with no exception made:

    python3 -m espnet_omnisparse.data.demo_corpus --out downloads/LibriSpeech
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from espnet_omnisparse.data import made_corpus, synthesis
from espnet_omnisparse.data.made_corpus import Utterance, Voice
from espnet_omnisparse.errors import one_sentence

UTTERANCES = {"demo-train": 608, "demo-dev": 48, "demo-test": 80}
WORDS = {
    "V": "OPEN CLOSE START STOP RAISE LOWER SHOW CHECK".split(),
    "R": "KITCHEN BEDROOM BATHROOM HALLWAY OFFICE GARAGE GARDEN".split(),
    "T": "LAMP DOOR WINDOW HEATER CAMERA RADIO".split(),
    "C": "RED GREEN BLUE WHITE YELLOW".split(),
    "N": "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split(),
}
# each letter is one word of the class above: verb, room, thing, colour, number
PATTERNS = (
    "VT RT TN CT NN VRT VCT VTN RTN CTN VRTN VRCT RCTN VNCT VTNN "
    "VRCTN VRTNN RTNNN VRCTNN VRTNNN"
).split()
_VOCABULARY = [word for words in WORDS.values() for word in words]


VOICES = (
    Voice(9001, "M", "en-us+m3"),
    Voice(9002, "F", "en-us+f2"),
    Voice(9003, "M", "en+m1"),
    Voice(9004, "F", "en+f4"),
    Voice(9005, "M", "en-gb-scotland+m7"),
    Voice(9006, "F", "en-gb-scotland+f3"),
    Voice(9007, "M", "en-gb-x-rp+m2"),
    Voice(9008, "F", "en-us-nyc+f1"),
)


def plan() -> list[Utterance]:
    """What the corpus consists of: every utterance, the same each time.

    No string of words occurs twice, so that development and test hold none that
    training holds.
    """
    source = random.Random("espnet-omnisparse demo 1")
    seen: set[str] = set()
    utterances = []
    # the small parts draw first: the rare two-word strings reach them as well
    for index, part in enumerate(sorted(UTTERANCES, key=UTTERANCES.__getitem__)):
        for count in range(UTTERANCES[part]):
            words = _new_words(source, seen)
            voice = VOICES[count % len(VOICES)]
            chapter = 100 * voice.speaker + index
            number = count // len(VOICES)
            utterances.append(Utterance(part, chapter, number, voice, words))
    return utterances


def _new_words(source: random.Random, seen: set[str]) -> str:
    while True:
        pattern = source.choice(PATTERNS)
        words = " ".join(source.choice(WORDS[kind]) for kind in pattern)
        if words not in seen:
            seen.add(words)
            return words


def write_corpus(out: Path) -> str:
    """Writes the demo corpus, or leaves it alone when it is there.

    Args:
        out: Folder to make; it appears only when the corpus is finished.

    Returns:
        A line on what the folder holds: utterances and minutes of each part.

    Raises:
        UserError: If the folder holds something else, or espeakng-loader is missing.
    """
    utterances = plan()
    made_corpus.write_corpus(out, utterances, synthesis.speak)
    words = f"{len(VOICES)} voices, {len(_VOCABULARY)} words"
    return f"{made_corpus.summary(out, utterances)}; {words}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_omnisparse.data.demo_corpus",
        description="Write the demo corpus: twenty minutes of device commands by "
        "synthetic voices, laid out as LibriSpeech is.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("downloads/LibriSpeech"),
        help="folder to make (default: %(default)s)",
    )
    with one_sentence():
        arguments = parser.parse_args(argv)
        print(write_corpus(arguments.out))


if __name__ == "__main__":
    main()
