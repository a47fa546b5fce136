"""The recordings of a corpus, judged together: refused, converted, or left out.

What does not fit is told at once, before anything is written.
"""

import argparse
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import humanfriendly
import soundfile

from espnet_omnisparse.console import say
from espnet_omnisparse.data.audio_files import (
    AudioError,
    Recording,
    check_audio,
    over_files,
    write_audio,
)
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import atomic_folder, require_replaceable

_EXAMPLES = 3
_BLOCK_SECONDS = 10.0
_HIGHEST_RATE = 655_350  # of a FLAC file


@dataclass(frozen=True)
class AudioRules:
    """What recordings have to be, and what becomes of others.

    Attributes:
        rate: Samples per second, as asr.sh's --fs; `None`: as most recordings have.
        shortest: Seconds that what is decoded has at least: 7 frames, 10 ms apart, make
            one of the encoder's. Training leaves out by itself what is too short.
        convert: Resample and mix down recordings that need it.
        leave_out: Go on without recordings that cannot be used.
        perturb: Those to train on are also made faster and slower.
    """

    rate: int | None = 16000
    shortest: float = 0.06
    convert: bool = False
    leave_out: bool = False
    perturb: bool = False


USUAL_RULES = AudioRules()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `take_rules` reads."""
    parser.add_argument(
        "--fs",
        type=_rate,
        default=None,
        help="samples per second, as given to asr.sh (default: as most have)",
    )
    parser.add_argument(
        "--shortest",
        type=_seconds,
        default=0.06,
        help="seconds that test utterances have at least (default: %(default)s)",
    )
    for name, what in (
        ("convert", "resample and mix down recordings that need it"),
        ("leave_out", "go on without recordings that cannot be used"),
        ("perturb", "asr.sh perturbs the speed of the training set"),
    ):
        parser.add_argument(
            f"--{name}",
            choices=("true", "false"),
            default="false",
            help=f"{what} (default: false)",
        )


def take_rules(options: dict[str, Any]) -> AudioRules:
    """Takes the options that `add_arguments` added out of all of them."""
    return AudioRules(
        rate=options.pop("fs"),
        shortest=options.pop("shortest"),
        convert=options.pop("convert") == "true",
        leave_out=options.pop("leave_out") == "true",
        perturb=options.pop("perturb") == "true",
    )


def _rate(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        rate = humanfriendly.parse_size(text)  # as ESPnet reads its own --fs
    except humanfriendly.InvalidSize:
        rate = 0
    if not 1000 <= rate <= _HIGHEST_RATE:
        raise UserError(
            "--fs is a rate such as 16k or 8000, from 1000 to "
            f"{_HIGHEST_RATE}, not {text}."
        )
    return rate


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise UserError(f"--shortest is a number of seconds, not {text}.")
    return seconds


def judge(
    parts: Mapping[str, Sequence[Path]],
    rules: AudioRules,
    tested: Collection[str] = (),
) -> dict[Path, Recording]:
    """Checks all recordings of a corpus.

    Args:
        parts: Audio files by part.
        rules: What they have to be.
        tested: The parts whose recordings are decoded, each as a whole.

    Returns:
        The recordings to use, those to be converted among them.

    Raises:
        UserError: If some cannot be used, telling all of them, unless they are to be
            left out.
    """
    found: dict[Path, Recording] = {}
    faults: dict[Path, AudioError] = {}
    for part, paths in parts.items():
        checked = over_files(_check, part, paths)
        for path, result in zip(paths, checked, strict=True):
            if isinstance(result, AudioError):
                faults[path] = result
            elif part in tested and result.seconds < rules.shortest:
                faults[path] = too_short(f"The audio file {path}", result.seconds)
            else:
                found[path] = result
    rate, channels = _format(found.values(), rules)
    others = {
        path: fault
        for path, one in found.items()
        if (fault := _format_fault(path, one, rate, channels)) is not None
    }
    if rules.convert:  # which decodes them: before anything is written
        checked = over_files(_decoding_fault, "to be converted", list(others))
        pairs = zip(others, checked, strict=True)
        others = {path: fault for path, fault in pairs if fault is not None}
    for path, fault in others.items():
        faults[path] = fault
        del found[path]
    settle(list(faults.values()), len(found) + len(faults), rules)
    loud = {path: one.peak for path, one in found.items() if one.peak > 1.0}
    if loud:
        path = max(loud, key=loud.__getitem__)
        say(
            f"notice: {len(loud)} recordings exceed full scale, and ESPnet clips them; "
            f"the loudest, {path}, up to {loud[path]:.2f}"
        )
    return found


def settle(faults: Sequence[AudioError], total: int, rules: AudioRules) -> None:
    """Refuses what cannot be used, or says that it is left out.

    Args:
        faults: Why, for each.
        total: How many there are with those that can be used.
        rules: Whether to leave them out.

    Raises:
        UserError: If there are faults and they are not to be left out.
    """
    kinds: dict[str, list[AudioError]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault)
    if rules.leave_out:
        for kind, alike in kinds.items():
            who = f"{_count(alike)} {kind}"
            say(f"notice: left out of {total}: {who}: {_examples(alike)}")
        return
    way_out = "or go on without with --leave_out true"
    if len(faults) == 1:
        raise UserError(
            f"{faults[0].subject} {faults[0].what}: {faults[0].remedy}, {way_out}."
        )
    if faults:
        groups = (
            f"{_count(alike)} {kind} ({_examples(alike)}; {alike[0].remedy})"
            for kind, alike in kinds.items()
        )
        raise UserError(
            f"Of {total} recordings {len(faults)} cannot be used: {', '.join(groups)}: "
            f"mend them, {way_out}."
        )


def too_short(subject: str, seconds: float) -> AudioError:
    """The fault of what is too short to be decoded.

    Args:
        subject: What it is, as a sentence begins with it.
        seconds: Its length.
    """
    return AudioError(
        subject,
        f"is {seconds:.3f} s long, too short to be decoded",
        "remove it, decode with --use_streaming true, which takes any length",
        "is too short to be decoded",
    )


def convert(
    parts: Mapping[str, Sequence[Path]],
    found: Mapping[Path, Recording],
    rules: AudioRules,
    folder: Path,
) -> dict[Path, Path]:
    """Converts the recordings that need it and are to be converted.

    Args:
        parts: Audio files by part; their names are unique in a part.
        found: What `judge` returned.
        rules: What they have to be.
        folder: Where converted ones go, as FLAC, in a folder for each part.

    Returns:
        The file to use, for each recording.
    """
    rate, channels = _format(found.values(), rules)
    used = {path: path for path in found}
    unfit_of = {
        part: [
            path
            for path in paths
            if path in found and _format_fault(path, found[path], rate, channels)
        ]
        for part, paths in parts.items()
    }
    unfit_of = {part: unfit for part, unfit in unfit_of.items() if unfit}
    for part in unfit_of:
        require_replaceable(folder / part, "*.flac", "a folder of converted recordings")
    for part, unfit in unfit_of.items():
        with atomic_folder(folder / part) as temporary:

            def write(path: Path, temporary: Path = temporary) -> None:
                _write(path, temporary / f"{path.stem}.flac", rate)

            over_files(write, f"converting {part}", unfit)
        used |= {path: folder / part / f"{path.stem}.flac" for path in unfit}
        say(f"{folder / part}: {len(unfit)} recordings converted to {rate} Hz, mono")
    return used


def _check(path: Path) -> Recording | AudioError:
    try:
        return check_audio(path)
    except AudioError as fault:
        return fault


def _decoding_fault(path: Path) -> AudioError | None:
    """What is wrong with a recording between its header and its end."""
    try:
        with soundfile.SoundFile(path) as sound:
            size, read = round(_BLOCK_SECONDS * sound.samplerate), 0
            while block := len(sound.read(size)):
                read += block
            if read >= sound.frames:
                return None
            # damaged pages of an Ogg file are passed over
            lost = (sound.frames - read) / sound.samplerate
            reason = f"{lost:.2f} s of it cannot be decoded"
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
    what = f"is damaged ({reason})"
    return AudioError(f"The audio file {path}", what, "restore it", "is damaged")


def _format(found: Collection[Recording], rules: AudioRules) -> tuple[int, int]:
    """Rate and number of channels that all recordings have to have."""
    if not found:
        return rules.rate or 0, 1
    (rate, _), *_ = Counter(one.rate for one in found).most_common(1)
    (channels, _), *_ = Counter(one.channels for one in found).most_common(1)
    return rules.rate or rate, 1 if rules.convert else channels


def _format_fault(
    path: Path, one: Recording, rate: int, channels: int
) -> AudioError | None:
    subject = f"The audio file {path}"
    if one.rate != rate and find_spec("resampy") is None:  # ESPnet's own resampler
        return AudioError(
            subject,
            f"has a sampling rate of {one.rate} Hz, not {rate}",
            f"resample with --convert true, run with --fs {one.rate} if all are so",
        )
    if one.channels != channels:
        return AudioError(
            subject,
            f"has a number of channels, {one.channels}, other than the {channels} of "
            "most",
            "mix down to one with --convert true",
        )
    return None


def _count(alike: Sequence[AudioError]) -> str:
    return "1, which" if len(alike) == 1 else f"{len(alike)}, each of which"


def _examples(alike: Sequence[AudioError]) -> str:
    names = [one.subject.removeprefix("The audio file ") for one in alike[:_EXAMPLES]]
    return ", ".join(names) + (", ..." if len(alike) > _EXAMPLES else "")


def _write(path: Path, target: Path, rate: int) -> None:
    # it needs PyTorch, slow to import, which nothing else here does
    from espnet_omnisparse.data.audio_blocks import file_blocks

    blocks = file_blocks(path, rate, _BLOCK_SECONDS, notice=lambda _: None)
    write_audio(target, (block.numpy() for block in blocks), rate)
