"""The parts of LibriSpeech: what is published, and how a corpus comes by them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from espnet_omnisparse.data.download import (
    Archive,
    bring,
    check_place,
    forget,
    partial,
)
from espnet_omnisparse.errors import UserError

OPENSLR = "https://www.openslr.org/resources/12"
ARCHIVES: Mapping[str, Archive] = {
    "dev-clean": Archive(337926286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": Archive(314305928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": Archive(346663984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": Archive(328757843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": Archive(6387309499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": Archive(23049477885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": Archive(30593501606, "d1a0fd59409feb2c614ce4d30c387708"),
}
#: How many utterances each has.
UTTERANCES: Mapping[str, int] = {
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
}
SPEAKERS = "SPEAKERS.TXT"
#: What every archive brings along.
_TEXTS = (SPEAKERS, "CHAPTERS.TXT", "BOOKS.TXT", "LICENSE.TXT", "README.TXT")


def ensure_parts(
    corpus: Path,
    parts: Iterable[str],
    url: str = OPENSLR,
    archives: Mapping[str, Archive] = ARCHIVES,
) -> None:
    """Downloads the standard parts that the corpus lacks.

    Args:
        corpus: The corpus folder.
        parts: Names of its parts.
        url: Where they are downloaded from.
        archives: Name of a part -> its archive.

    Raises:
        UserError: If a missing part is not a standard one, cannot be reached, or
            arrives damaged, or if the corpus is another tree.
    """
    parts = list(parts)
    missing = [part for part in parts if not (corpus / part).is_dir()]
    unknown = [part for part in missing if part not in archives]
    if unknown:
        present = folders_in(corpus) if corpus.is_dir() else []
        raise UserError(
            f"{', '.join(unknown)} cannot be found in {corpus}, which holds "
            f"{', '.join(present) or 'no part at all'}: correct the names of the "
            "parts, or point --corpus or LIBRISPEECH at the folder that holds them."
        )
    if missing:
        _check_place(corpus, parts, archives)
    for part in missing:
        if os.path.lexists(corpus / part):
            raise UserError(
                f"{corpus / part} is there, but is no folder: remove it to have the "
                "part downloaded."
            )
    for part in archives.keys() & {*parts} - {*missing}:
        forget(corpus, _packed(part))
    for index, part in enumerate(missing):
        try:
            _bring(corpus, part, url, archives[part])
        except ConnectionError as error:
            raise UserError(
                f"{', '.join(missing[index:])} of LibriSpeech cannot be found in "
                f"{corpus} nor downloaded from {url} ({error}): connect to the "
                f"network and run again, unpack openslr.org/12 so that {corpus / part} "
                "exists, or point --corpus or LIBRISPEECH at a copy."
            ) from error


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in one, sorted, without hidden ones.

    Args:
        folder: It must be there.
    """
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _packed(part: str) -> str:
    return f"{part}.tar.gz"


def _bring(corpus: Path, part: str, url: str, archive: Archive) -> None:
    def take(unpacked: Path) -> None:
        # the part last: once it is there, nothing is looked for any more
        for text in unpacked.glob("LibriSpeech/*.TXT"):
            if not (corpus / text.name).exists():
                text.rename(corpus / text.name)
        (unpacked / "LibriSpeech" / part).rename(corpus / part)

    bring(corpus, _packed(part), url, archive, take, (corpus / part).is_dir)


def _check_place(
    corpus: Path, parts: Sequence[str], archives: Mapping[str, Archive]
) -> None:
    if corpus.name in archives:
        raise UserError(
            f"{corpus} has the name of a part, and {', '.join(parts)} would lie in it: "
            f"point --corpus or LIBRISPEECH at {corpus.parent}."
        )
    left = [partial(_packed(part)) for part in archives]
    texts = [name for name in _TEXTS if (corpus / name).is_file()]
    check_place(
        corpus,
        parts,
        [*archives, *left, *texts],
        "point --corpus or LIBRISPEECH at the folder that holds the parts, or at an "
        "empty or a new one to download them into",
    )
