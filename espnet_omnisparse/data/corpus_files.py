"""Files and transcripts of a corpus, as systems and editors leave them.

Names and text are compared in Unicode's composed form (NFC), as macOS decomposes names
that a transcript has composed.
"""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from espnet_omnisparse.errors import UserError

_MARK = "\ufeff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f](?<!\s)")  # but for blanks
# Kaldi's scripts split lines at ASCII's blanks, and join them with single spaces
_LOST = re.compile(r"^ |  |[\t\v\f]")


def composed(text: str) -> str:
    """Text in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


def files_by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Finds the files of some kinds, hidden ones passed over as shells do.

    Args:
        folder: Where to look; none are found where it is absent.
        suffixes: The ends of their names, in lower case; files may have any case.

    Returns:
        The files by their names, composed and without the suffix, in order.

    Raises:
        UserError: If two have the same name, or one cannot stand in a Kaldi table.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        lower = path.name.lower()
        suffix = next((one for one in suffixes if lower.endswith(one)), None)
        if suffix is None or path.name.startswith("."):
            continue
        _check_name(path)
        name = composed(path.name[: -len(suffix)])
        if name in found:
            raise UserError(
                f"The name {name} occurs twice, in {found[name]} and {path}: remove "
                "one of them."
            )
        found[name] = path
    return found


def refuse_strays(folder: Path, suffixes: Sequence[str], layout: str) -> None:
    """Refuses what would be lost in silence in a folder that is to hold only folders.

    Args:
        folder: Where no file of the corpus belongs.
        suffixes: The ends of names that files of the corpus have, in lower case.
        layout: Where they belong.

    Raises:
        UserError: If there is one, or a link to a folder that is not there.
    """
    for path in files_by_name(folder, suffixes).values():
        raise UserError(f"{path} is not in its place: move it to {layout}.")
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists() and not path.name.startswith("."):
            raise UserError(
                f"{path} is a link to what is not there: restore that or remove it."
            )


def read_lines(path: Path, strict: bool = True) -> list[tuple[int, str]]:
    """Reads the lines of a text that are not blank, with their numbers.

    Lines end at line feeds, or where other systems end them (CR, CR LF). Whatever else
    Unicode takes for the end of a line, or `str.splitlines` does, is a blank inside it.
    Byte order marks, also those of files that were joined, are no part of the text.

    Args:
        path: UTF-8 text.
        strict: Whether everything in it has to be text.

    Raises:
        UserError: If it cannot be read or, where `strict`, is not UTF-8 or holds
            control characters, which Kaldi's tables must not.
    """
    try:
        text = path.read_text(
            encoding="utf-8", errors="strict" if strict else "replace"
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: convert or restore it.") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): restore it."
        ) from error
    lines = composed(text.replace(_MARK, "")).split("\n")
    for number, line in enumerate(lines, 1) if strict else ():
        if control := _CONTROL.search(line):
            raise UserError(
                f"Line {number} of {path} holds the control character "
                f"U+{ord(control[0]):04X}: remove it."
            )
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _check_name(path: Path) -> None:
    """Refuses a path that a table of UTF-8 lines cannot hold."""
    text = str(path)
    if "\n" in text or "\r" in text:
        raise UserError(f"{text!r} has a line break in its name: rename it.")
    if _LOST.search(text):
        raise UserError(
            f"{text!r} has a tab, or spaces in a row or to begin with, which the "
            "recipe's scripts do not keep: rename the folder or file that has them, or "
            "name the corpus by a link without."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The name of {text!a} is not UTF-8: rename it.") from error
