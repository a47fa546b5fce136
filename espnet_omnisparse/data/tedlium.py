"""TED-LIUM release 2 as the Kaldi folders that ESPnet's own recipe makes of it.

    python3 -m espnet_omnisparse.data.tedlium --corpus downloads/TEDLIUM_release2

Everything is read and checked before anything is written, so that a mistake in the
corpus leaves the data folders as they were.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from espnet_omnisparse.console import say
from espnet_omnisparse.data import recordings, stm
from espnet_omnisparse.data.audio_files import Recording
from espnet_omnisparse.data.corpus_files import files_by_name, refuse_strays
from espnet_omnisparse.data.download import Archive, expanded
from espnet_omnisparse.data.kaldi import (
    CONVERTED,
    check_commands,
    check_order,
    name_list,
    require_data_folders,
    write_tables,
)
from espnet_omnisparse.data.recordings import USUAL_RULES, AudioRules
from espnet_omnisparse.data.stm import Segment
from espnet_omnisparse.data.tedlium_release import (
    ARCHIVE,
    OPENSLR,
    RELEASE,
    SEGMENTS,
    SPLITS,
    TALKS,
    check_release_place,
    ensure_release,
    release_folder,
)
from espnet_omnisparse.errors import UserError, one_sentence

# train's segments are cut too tightly, above all where they begin (milliseconds)
PAD_BEFORE, PAD_AFTER = 150, 100
LONGEST_SPEAKER = 180_000
# as much may a segment exceed its recording where Kaldi cuts it out
OVERSHOOT = 500


@dataclass(frozen=True)
class Reading:
    """One split, ready to be written.

    Attributes:
        segments: Sorted by id.
        audio: Audio file of every talk of the split.
        speakers: Speaker by utterance id.
    """

    segments: Sequence[Segment]
    audio: Mapping[str, Path]
    speakers: Mapping[str, str]


def prepare(
    corpus: Path,
    data_dir: Path,
    splits: Sequence[str] = SPLITS,
    keep_noise_tags: bool = True,
    url: str = OPENSLR,
    archive: Archive = ARCHIVE,
    rules: AudioRules = USUAL_RULES,
) -> list[Path]:
    """Writes a Kaldi folder with `segments` for every split.

    Args:
        corpus: The release's folder, or the one that `TEDLIUM_release2` is in.
        data_dir: Folder to write the Kaldi folders into.
        splits: Which of train, dev and test to prepare.
        keep_noise_tags: Keep tags such as `{NOISE}`, as words such as `[NOISE]`.
        url: Where the release's archive lies if the corpus is absent.
        archive: What that archive must be.
        rules: What recordings have to be; those converted go to `data_dir/converted`.

    Returns:
        The folders written.

    Raises:
        UserError: If the corpus cannot be had or anything in it is wrong; no folder
            is then touched.
    """
    splits = list(dict.fromkeys(splits))
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise UserError(
            f"--splits takes some of {', '.join(SPLITS)}, not "
            f"{', '.join(unknown) or 'nothing'}."
        )
    require_data_folders(data_dir, splits)
    corpus = expanded(corpus)
    check_release_place(corpus)
    corpus = release_folder(corpus)
    check_release_place(corpus)
    ensure_release(corpus, url, archive)
    missing = [split for split in splits if not (corpus / split).is_dir()]
    if missing:
        raise UserError(
            f"{corpus} has no folder {' and no '.join(missing)}: unpack the release "
            "again, remove the folder to have it downloaded, point --corpus or "
            "TEDLIUM2 at a whole copy, or name other --splits."
        )
    talks = {split: list(_files(corpus / split, "sph").values()) for split in splits}
    found = recordings.judge(talks, rules)
    readings = {
        split: read_split(corpus / split, found, rules, keep_noise_tags)
        for split in splits
    }
    _compare(readings)
    for reading in readings.values():
        check_order(reading.speakers)
    if rules.perturb and "train" in readings:
        check_commands(readings["train"].audio.values())
    used = recordings.convert(talks, found, rules, data_dir / CONVERTED)
    for split, reading in readings.items():
        audio = {talk: used[path] for talk, path in reading.audio.items()}
        reading = replace(reading, audio=audio)
        write_split(data_dir / split, reading)
        say(f"{data_dir / split}: {len(reading.segments)} utterances")
    return [data_dir / split for split in readings]


# Reading and checking ----------------------------------------------------------------


def read_split(
    folder: Path,
    found: Mapping[Path, Recording],
    rules: AudioRules,
    keep_noise_tags: bool = True,
) -> Reading:
    """Reads and checks `folder/stm/*.stm`, for `folder/sph/*.sph`; prints the counts.

    Args:
        folder: The split's.
        found: The recordings to use; others are left out with their segments.
        rules: What segments have to be.
        keep_noise_tags: Keep tags such as `{NOISE}`, as words such as `[NOISE]`.

    Raises:
        UserError: If transcripts and audio do not match, a transcript is malformed,
            or an audio file ends before its segments do, or one is too short.
    """
    transcripts = _files(folder, "stm").values()
    lines = [line for path in transcripts for line in stm.read_stm(path)]
    audio = _files(folder, "sph")
    _check_talks(folder, lines, audio)
    audio = {talk: path for talk, path in audio.items() if path in found}
    lines = [line for line in lines if line.talk in audio]

    say(f"{folder.name}: {len(audio)} talks, {len(lines)} lines")
    segments = [line for line in lines if not line.ignored]
    _say_filter(folder, lines, segments, "without those not to be scored")
    segments = sorted(segments, key=lambda segment: segment.name)
    segments = _edit(folder, segments, keep_noise_tags)
    before, segments = segments, stm.without_repeats(segments)
    _say_filter(folder, before, segments, "without repeated lines")
    before, segments = segments, [one for one in segments if one.words]
    _say_filter(folder, before, segments, "without those that have no words")
    if not segments:
        raise UserError(f"{folder} has no segment with words: restore its transcripts.")

    _check_times(segments, {talk: found[path].seconds for talk, path in audio.items()})
    if folder.name == "train":
        segments = stm.pad(segments, PAD_BEFORE, PAD_AFTER)
    else:
        segments = _long_enough(segments, rules)
    speakers = stm.speakers(segments, LONGEST_SPEAKER)
    talks = len({segment.talk for segment in segments})
    say(
        f"{folder.name}: {talks} talks -> {len(set(speakers.values()))} speakers of "
        f"at most {LONGEST_SPEAKER // 1000} s"
    )
    return Reading(segments, audio, speakers)


def _files(folder: Path, kind: str) -> dict[str, Path]:
    """Files by talk."""
    home = folder / kind
    for other in (folder, *(path for path in home.glob("[!.]*/") if path.is_dir())):
        refuse_strays(other, [f".{kind}"], str(home))
    found = files_by_name(home, [f".{kind}"])
    if not found:
        raise UserError(
            f"{folder / kind} holds no .{kind} file: lay the corpus out as "
            "{train,dev,test}/{sph,stm}, as TED-LIUM release 2 is."
        )
    return found


def _check_talks(
    folder: Path, lines: Sequence[Segment], audio: Mapping[str, Path]
) -> None:
    transcribed = {line.talk: line for line in lines}
    for talk, line in transcribed.items():
        if talk not in audio:
            raise UserError(
                f"{line.source} is of the talk {talk}, but there is no "
                f"{folder / 'sph' / talk}.sph: restore it or correct the line."
            )
    for talk, path in audio.items():
        if talk not in transcribed:
            raise UserError(
                f"{path} has no line in {folder / 'stm'}: restore its transcript or "
                "remove the audio file."
            )


def _edit(
    folder: Path, segments: Sequence[Segment], keep_noise_tags: bool
) -> Sequence[Segment]:
    for edit in stm.edits(keep_noise_tags):
        before, segments = segments, edit(segments)
        changed = sum(a != b for a, b in zip(before, segments, strict=True))
        say(f"{folder.name}: {edit.what} in {changed} of {len(segments)} segments")
    return segments


def _say_filter(
    folder: Path, before: Sequence[Segment], after: Sequence[Segment], what: str
) -> None:
    say(f"{folder.name}: {len(before)} -> {len(after)} segments {what}")


def _check_times(segments: Sequence[Segment], lengths: Mapping[str, float]) -> None:
    for segment in segments:
        length = 1000 * lengths[segment.talk]
        if segment.end > length + OVERSHOOT or segment.start >= length:
            raise UserError(
                f"{segment.source} ends at {segment.end / 1000:.2f} s, but the audio "
                f"of {segment.talk} is {lengths[segment.talk]:.2f} s long: restore "
                "the audio file or correct the line."
            )


def _long_enough(segments: Sequence[Segment], rules: AudioRules) -> list[Segment]:
    """The segments that can be decoded, if those that cannot are to be left out."""
    lengths = {one.name: (one.end - one.start) / 1000 for one in segments}
    short = [one for one in segments if lengths[one.name] < rules.shortest]
    faults = [recordings.too_short(one.source, lengths[one.name]) for one in short]
    recordings.settle(faults, len(segments), rules)
    return [one for one in segments if one not in short]


def _compare(readings: Mapping[str, Reading]) -> None:
    """Compares the splits with each other, and with the whole release.

    Raises:
        UserError: If a talk is in two splits.
    """
    homes: dict[str, Path] = {}
    for reading in readings.values():
        for talk, path in reading.audio.items():
            if talk in homes:
                raise UserError(
                    f"The talk {talk} occurs twice, in {homes[talk]} and {path}: "
                    "remove one of them, with its transcript."
                )
            homes[talk] = path
    expected = {f"{split} has": (SEGMENTS[split], "segments") for split in readings}
    found = {f"{split} has": len(one.segments) for split, one in readings.items()}
    if len(readings) == len(SPLITS):
        expected["there are"] = TALKS, "talks"
        found["there are"] = len(homes)
    for what, (number, things) in expected.items():
        if found[what] != number:
            say(f"notice: {what} {found[what]} {things}; the whole release: {number}")


# Writing -----------------------------------------------------------------------------


def write_split(folder: Path, reading: Reading) -> None:
    """Writes wav.scp, segments, text, utt2spk and spk2utt, as a whole.

    Args:
        folder: Folder to write.
        reading: What was read of the split.
    """
    talks = sorted({segment.talk for segment in reading.segments})
    tables = {
        "wav.scp": [f"{talk} {reading.audio[talk]}" for talk in talks],
        "segments": [
            f"{one.name} {one.talk} {one.start / 1000:.3f} {one.end / 1000:.3f}"
            for one in reading.segments
        ],
        "text": [f"{one.name} {one.words}" for one in reading.segments],
    }
    write_tables(folder, tables, reading.speakers)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise UserError(f"--keep_noise_tags is true or false, not {text}.")
    return text == "true"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; prints the folders written, one a line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_omnisparse.data.tedlium",
        description="Write the Kaldi folders of TED-LIUM release 2, which is "
        "downloaded if it is absent.",
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        default=Path(os.environ.get("TEDLIUM2") or f"downloads/{RELEASE}"),
        help="folder that holds train, dev and test, or its parent (default: "
        "%(default)s)",
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument(
        "--splits",
        type=name_list,
        default=" ".join(SPLITS),
        help="separated by spaces or commas (default: %(default)s)",
    )
    parser.add_argument(
        "--keep_noise_tags",
        type=_boolean,
        default="true",
        help="true: {NOISE} becomes [NOISE]; false: it is dropped (default: true)",
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
