"""LibriSpeech, or any corpus laid out as it is, as the Kaldi folders ESPnet reads.

    python3 -m espnet_omnisparse.data.librispeech --corpus downloads/LibriSpeech

Everything is read and checked before anything is written, so that a mistake in the
corpus leaves the data folders as they were.
"""

import argparse
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from espnet_omnisparse.console import say
from espnet_omnisparse.data import recordings
from espnet_omnisparse.data.corpus_files import (
    composed,
    files_by_name,
    read_lines,
    refuse_strays,
)
from espnet_omnisparse.data.download import Archive, expanded
from espnet_omnisparse.data.kaldi import (
    CONVERTED,
    check_commands,
    check_order,
    name_list,
    require_data_folders,
    write_tables,
)
from espnet_omnisparse.data.librispeech_parts import (
    ARCHIVES,
    OPENSLR,
    SPEAKERS,
    UTTERANCES,
    ensure_parts,
    folders_in,
)
from espnet_omnisparse.data.recordings import USUAL_RULES, AudioRules
from espnet_omnisparse.errors import UserError, one_sentence

AUDIO_SUFFIXES = (".flac", ".wav", ".opus")
_TRANSCRIPT = ".trans.txt"
_LAYOUT = "reader/chapter/, beside its transcript, as LibriSpeech is laid out"


@dataclass(frozen=True)
class Utterance:
    """One recording with its words; the speaker is `reader-chapter`.

    Means and variances are then taken over one chapter, recorded in one sitting.
    """

    name: str
    speaker: str
    audio: Path
    words: str

    @property
    def reader(self) -> str:
        """The reader's number in SPEAKERS.TXT."""
        return self.speaker.split("-", 1)[0]


def prepare(
    corpus: Path,
    data_dir: Path,
    train_set: str,
    train_parts: Sequence[str],
    valid_set: str,
    valid_parts: Sequence[str],
    test_parts: Sequence[str],
    url: str = OPENSLR,
    archives: Mapping[str, Archive] = ARCHIVES,
    rules: AudioRules = USUAL_RULES,
) -> list[Path]:
    """Writes a Kaldi folder for every part and for the combined sets.

    Args:
        corpus: Folder that holds the parts, or the parent of `LibriSpeech` that does.
        data_dir: Folder to write the Kaldi folders into.
        train_set: Name of the folder that combines `train_parts`.
        train_parts: Parts to train on; may be empty.
        valid_set: Name of the folder that combines `valid_parts`.
        valid_parts: Parts to validate on; may be empty.
        test_parts: Parts to test on; may be empty.
        url: Where `<part>.tar.gz` lies for a part that is missing.
        archives: What those archives must be; only these are downloaded.
        rules: What recordings have to be; those converted go to `data_dir/converted`.

    Returns:
        The folders written.

    Raises:
        UserError: If a part cannot be had or anything in it is wrong; no folder is
            then touched.
    """
    corpus = expanded(corpus)
    if (corpus / "LibriSpeech").is_dir():
        corpus = corpus / "LibriSpeech"
    train_parts, valid_parts, test_parts = (
        [part.rstrip("/") or part for part in given]
        for given in (train_parts, valid_parts, test_parts)
    )
    parts = list(dict.fromkeys([*train_parts, *valid_parts, *test_parts]))
    if not parts:
        raise UserError("No part of the corpus is given: name one in --test_parts.")
    sets: dict[str, tuple[str, ...]] = {}
    wanted = [(part.replace("-", "_"), [part]) for part in parts]
    for name, given in (*wanted, (train_set, train_parts), (valid_set, valid_parts)):
        members = tuple(dict.fromkeys(given))
        if members and sets.setdefault(name, members) != members:
            raise UserError(
                f"{name} cannot name {' + '.join(members)}, because the folder holds "
                f"{' + '.join(sets[name])}: choose another name."
            )
    require_data_folders(data_dir, sets)
    ensure_parts(corpus, parts, url, archives)
    readings = {part: read_part(corpus / part) for part in parts}
    audio = {part: [one.audio for one in read] for part, read in readings.items()}
    found = recordings.judge(audio, rules, test_parts)
    readings = {part: _usable(part, read, found) for part, read in readings.items()}
    combined = {
        name: combine([readings[part] for part in members])
        for name, members in sets.items()
    }
    for utterances in combined.values():
        check_order({one.name: one.speaker for one in utterances})
    if rules.perturb:
        check_commands(one.audio for one in combined.get(train_set, ()))
    genders = read_genders(corpus)

    used = recordings.convert(audio, found, rules, data_dir / CONVERTED)
    for name, utterances in combined.items():
        utterances = [replace(one, audio=used[one.audio]) for one in utterances]
        write_data_folder(data_dir / name, utterances, genders)
        say(f"{data_dir / name}: {len(utterances)} utterances")
    return [data_dir / name for name in combined]


# Reading and checking ----------------------------------------------------------------


def read_part(part: Path) -> list[Utterance]:
    """Reads and checks one part, `part/reader/chapter/reader-chapter-NNNN.flac`.

    The audio is looked for, not into.

    Returns:
        Its utterances, sorted.

    Raises:
        UserError: If transcripts and audio do not match one to one, a transcript has
            no words, or something of it is not in its place.
    """
    readers = [part / reader for reader in folders_in(part)]
    for folder in (part, *readers):
        refuse_strays(folder, (*AUDIO_SUFFIXES, _TRANSCRIPT), _LAYOUT)
    chapters = {reader: folders_in(reader) for reader in readers}
    for reader, inside in chapters.items():
        if not inside:
            raise UserError(
                f"{reader} has no chapter: restore it, or remove the empty folder."
            )
    utterances = combine(
        read_chapter(reader / chapter)
        for reader, inside in chapters.items()
        for chapter in inside
    )
    if not utterances:
        raise UserError(
            f"{part} holds no utterance: lay it out as reader/chapter folders, as "
            "LibriSpeech does."
        )
    published = UTTERANCES.get(part.name, len(utterances))
    if len(utterances) != published:
        say(
            f"notice: {part.name} has {len(utterances)} utterances; the whole part: "
            f"{published}"
        )
    return utterances


def _usable(
    part: str, utterances: Iterable[Utterance], found: Container[Path]
) -> list[Utterance]:
    """The utterances whose recordings were found fit for use."""
    usable = [one for one in utterances if one.audio in found]
    if not usable:
        raise UserError(f"{part} has no recording that can be used: mend them.")
    return usable


def combine(groups: Iterable[Iterable[Utterance]]) -> list[Utterance]:
    """Joins utterances and sorts them in C order.

    Raises:
        UserError: If two have the same id.
    """
    found: dict[str, Utterance] = {}
    for group in groups:
        for utterance in group:
            first = found.setdefault(utterance.name, utterance)
            if first is not utterance:
                raise UserError(
                    f"The utterance id {utterance.name} occurs twice, in "
                    f"{first.audio} and {utterance.audio}: remove one of them."
                )
    return [found[name] for name in sorted(found)]


def read_chapter(folder: Path) -> list[Utterance]:
    """Reads one chapter: its transcript file and the names of its audio files.

    Raises:
        UserError: If they do not match one to one.
    """
    speaker = composed(f"{folder.parent.name}-{folder.name}")
    transcripts = files_by_name(folder, [_TRANSCRIPT])
    transcript = transcripts.get(speaker, folder / f"{speaker}{_TRANSCRIPT}")
    texts = _read_transcript(transcript, speaker)
    audio = files_by_name(folder, AUDIO_SUFFIXES)
    for name, path in audio.items():
        if name not in texts:
            raise UserError(
                f"{path} has no line in {transcript.name}: add its words there or "
                "remove the audio file."
            )
    for inner in folders_in(folder):
        refuse_strays(folder / inner, (*AUDIO_SUFFIXES, _TRANSCRIPT), _LAYOUT)
    for name in texts:
        if name not in audio:
            raise UserError(
                f"{transcript} has words for {name} but there is no {name}.flac, .wav "
                "or .opus beside it: restore the audio file or remove the line."
            )
    return [Utterance(name, speaker, audio[name], texts[name]) for name in texts]


def _read_transcript(path: Path, speaker: str) -> dict[str, str]:
    if not path.is_file():
        raise UserError(
            f"The transcript file {path} is missing: restore it or remove its folder."
        )
    texts: dict[str, str] = {}
    for number, line in read_lines(path):
        name, *words = line.split()
        if not words:
            raise UserError(
                f"Line {number} of {path} has no words: complete or remove it."
            )
        if not name.startswith(f"{speaker}-"):
            raise UserError(
                f"Line {number} of {path} is for {name}, which does not begin with "
                f"{speaker}-: correct the id."
            )
        if name in texts:
            raise UserError(
                f"The utterance id {name} occurs twice in {path}: remove one line."
            )
        texts[name] = " ".join(words)
    return texts


def read_genders(corpus: Path) -> dict[str, str]:
    """Reads `m` or `f` by reader from SPEAKERS.TXT; empty where that is absent."""
    path = corpus / SPEAKERS
    if not path.is_file():
        say(f"{path} is not there")
        return {}
    genders = {}
    # readers' names may be in any encoding; ids and sexes are ASCII
    for _, line in read_lines(path, strict=False):
        columns = [column.strip() for column in line.split("|")]
        if not line.startswith(";") and columns[1:2] in (["M"], ["F"]):
            genders[columns[0]] = columns[1].lower()
    return genders


# Writing -----------------------------------------------------------------------------


def write_data_folder(
    folder: Path, utterances: Sequence[Utterance], genders: Mapping[str, str]
) -> None:
    """Writes wav.scp, text, utt2spk, spk2utt and spk2gender, as a whole.

    Args:
        folder: Folder to write; one that is there is replaced.
        utterances: What to write, sorted by id.
        genders: `m` or `f` by reader; spk2gender needs them for all readers.
    """
    tables = {
        "wav.scp": [f"{item.name} {item.audio}" for item in utterances],
        "text": [f"{item.name} {item.words}" for item in utterances],
    }
    readers = {item.speaker: item.reader for item in utterances}
    unlisted = sorted(set(readers.values()) - genders.keys())
    if unlisted:
        say(f"{folder} goes without spk2gender: no sex is known of {unlisted[0]}")
    else:
        tables["spk2gender"] = [
            f"{speaker} {genders[readers[speaker]]}" for speaker in sorted(readers)
        ]
    write_tables(folder, tables, {item.name: item.speaker for item in utterances})


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; prints the folders written, one a line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_omnisparse.data.librispeech",
        description="Write the Kaldi folders of LibriSpeech, or of a corpus laid out "
        "as it is; standard parts that are missing are downloaded.",
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        default=Path(os.environ.get("LIBRISPEECH") or "downloads/LibriSpeech"),
        help="folder that holds the parts, or its parent (default: %(default)s)",
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--train_set", default="train_960")
    parser.add_argument(
        "--train_parts",
        type=name_list,
        default="train-clean-100 train-clean-360 train-other-500",
        help="parts, separated by spaces or commas (default: %(default)s)",
    )
    parser.add_argument("--valid_set", default="dev")
    parser.add_argument("--valid_parts", type=name_list, default="dev-clean dev-other")
    parser.add_argument(
        "--test_parts",
        type=name_list,
        default="test-clean test-other dev-clean dev-other",
    )
    parser.add_argument("--url", default=OPENSLR, help="default: %(default)s")
    recordings.add_arguments(parser)
    with one_sentence():
        options = vars(parser.parse_args(argv))
        rules = recordings.take_rules(options)
        for folder in prepare(**options, rules=rules):
            print(folder)


if __name__ == "__main__":
    main()
