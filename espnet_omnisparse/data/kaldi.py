"""Kaldi folders, which ESPnet's recipes read: tables of lines that start with an id."""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import atomic_folder, require_replaceable

#: Where converted recordings go, among the data folders.
CONVERTED = "converted"
_NOT_PLAIN = re.compile(r"[\s\"'`$&|;<>()*?\[{\\]")  # to a shell, outside quotes


def check_order(speakers: Mapping[str, str]) -> None:
    """Checks what Kaldi demands: utterances sorted by id are sorted by speaker, too.

    Args:
        speakers: Speaker by utterance id.

    Raises:
        UserError: If they are not.
    """
    for one, other in pairwise(sorted(speakers)):
        if speakers[one] > speakers[other]:
            raise UserError(
                f"{one} comes before {other}, but its speaker {speakers[one]} after "
                f"{speakers[other]}, and Kaldi's tables need one order: rename the "
                "speaker, with its ids, so that the two names do not begin alike."
            )


def check_commands(paths: Iterable[Path]) -> None:
    """Checks that ESPnet's stage 2 can write audio files into commands, unquoted.

    Args:
        paths: Those that it makes faster and slower.

    Raises:
        UserError: If a shell would not take one as it is.
    """
    for path in paths:
        if found := _NOT_PLAIN.search(str(path)):
            raise UserError(
                f"{str(path)!r} has {found[0]!r} in it, and ESPnet's speed "
                "perturbation writes paths into commands, unquoted: name the corpus by "
                'a link without, or run with --speed_perturb_factors "".'
            )


def write_tables(
    folder: Path, tables: Mapping[str, Iterable[str]], speakers: Mapping[str, str]
) -> None:
    """Writes a Kaldi folder as a whole.

    Args:
        folder: Folder to write; one that is there is replaced.
        tables: Lines by file name, without utt2spk and spk2utt.
        speakers: Speaker by utterance id, sorted.
    """
    spoken: dict[str, list[str]] = {}
    for name, speaker in speakers.items():
        spoken.setdefault(speaker, []).append(name)
    tables = {
        **tables,
        "utt2spk": [f"{name} {speaker}" for name, speaker in speakers.items()],
        "spk2utt": [" ".join([who, *spoken[who]]) for who in sorted(spoken)],
    }
    with atomic_folder(folder) as temporary:
        for name, lines in tables.items():
            text = "".join(f"{line}\n" for line in lines)
            (temporary / name).write_text(text, encoding="utf-8")


def require_data_folders(data_dir: Path, names: Iterable[str]) -> None:
    """Checks that Kaldi folders can be written without the loss of anything else.

    Args:
        data_dir: Where they go.
        names: Theirs.

    Raises:
        UserError: If a name is none, or something else is in a folder's place.
    """
    for name in names:
        if not name or Path(name).name != name or name in ("..", CONVERTED):
            raise UserError(
                f"{name!r} cannot be the name of a data folder: a name is needed, not "
                f"a path, and not {CONVERTED}, which holds converted recordings."
            )
        require_replaceable(data_dir / name, "utt2spk", "a Kaldi folder")


def name_list(text: str) -> list[str]:
    """Reads a list as a shell gives it, separated by spaces or commas."""
    return text.replace(",", " ").split()
