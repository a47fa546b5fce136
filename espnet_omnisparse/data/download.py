"""Corpora's archives: downloaded resumably, verified, unpacked whole or not at all."""

import hashlib
import http.client
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from espnet_omnisparse.console import bar, say
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import temporary_folder

OPENSLR = "https://www.openslr.org/resources/12"
_CHUNK = 1 << 20
_TIMEOUT = 30.0
_PART = ".part"
_SHOWN = 5


@dataclass(frozen=True)
class Archive:
    """What a downloaded archive must be: its size in bytes and its checksum.

    Attributes:
        size: Size in bytes.
        checksum: Hexadecimal checksum.
        algorithm: What made the checksum, as hashlib calls it.
    """

    size: int
    checksum: str
    algorithm: str = "md5"


ARCHIVES: Mapping[str, Archive] = {
    "dev-clean": Archive(337926286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": Archive(314305928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": Archive(346663984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": Archive(328757843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": Archive(6387309499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": Archive(23049477885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": Archive(30593501606, "d1a0fd59409feb2c614ce4d30c387708"),
}


def expanded(folder: Path) -> Path:
    """The folder that a leading `~` stands for, which shells leave alone in quotes.

    Raises:
        UserError: If it names no user's home.
    """
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{folder} begins with {folder.parts[0]}, which is nobody's home: write "
            "the whole path."
        ) from error


def check_place(
    folder: Path, expected: Sequence[str], others: Iterable[str], way_out: str
) -> None:
    """Checks that a corpus may be downloaded into a folder.

    Args:
        folder: It may be absent, be empty, or hold a part of the corpus.
        expected: Names of the corpus's parts.
        others: Further names that tell the corpus, such as those that an interrupted
            download has left, as `partial` calls them.
        way_out: What to do where it is another tree.

    Raises:
        UserError: If it is no folder, or holds something, and nothing of the corpus.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise UserError(
                f"{folder} is there, but is no folder: point --corpus at one, or at a "
                "new place to download into."
            )
        return
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if names and set(names).isdisjoint([*expected, *others]):
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"{folder} is there, but holds {', '.join(names[:_SHOWN])}{more}, none of "
            f"the expected {', '.join(expected)}: {way_out}."
        )


def partial(name: str) -> str:
    """What an archive is called until it is whole and unpacked."""
    return f"{name}{_PART}"


def download_part(corpus: Path, part: str, url: str, archive: Archive) -> None:
    """Downloads one part of LibriSpeech and unpacks it into the corpus.

    Args:
        corpus: Folder that is to hold the part; made if need be.
        part: Name of the part.
        url: Where `<part>.tar.gz` lies.
        archive: What it must be.

    Raises:
        ConnectionError: If the server cannot be reached or stops sending.
        UserError: If what arrives is not the archive.
    """
    path = download(corpus, f"{part}.tar.gz", url, archive)
    with unpacked(path) as folder:
        (folder / "LibriSpeech" / part).rename(corpus / part)
        # SPEAKERS.TXT and the like, which every archive brings along
        for text in folder.glob("LibriSpeech/*.TXT"):
            if not (corpus / text.name).exists():
                text.rename(corpus / text.name)


def download(folder: Path, name: str, url: str, archive: Archive) -> Path:
    """Downloads and verifies one archive.

    What an interruption leaves, `<name>.part`, is continued by the next call.

    Args:
        folder: Folder to download into; made if need be.
        name: Name of the archive.
        url: Where it lies.
        archive: What it must be.

    Returns:
        `<name>.part`, for `unpacked`.

    Raises:
        ConnectionError: If the server cannot be reached or stops sending.
        UserError: If what arrives is not the archive; it is then removed.
    """
    path = folder / partial(name)
    source = f"{url.rstrip('/')}/{name}"
    say(f"downloading {source} ({archive.size / 1e9:.1f} GB) into {folder}")
    received = _size(path)
    while received < archive.size:
        before = received
        reason = _fetch(source, path, archive.size)
        received = _size(path)
        # a connection may break many times in 30 GB; one that brings nothing is dead
        if received <= before:
            raise ConnectionError(reason)
    if received > archive.size or _checksum(path, archive) != archive.checksum:
        path.unlink()
        raise UserError(
            f"{source} did not arrive as published (size or "
            f"{archive.algorithm.upper()} differs) and was removed: run again to "
            "download it anew."
        )
    return path


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpacks an archive into a temporary folder beside it, to be moved from there.

    The archive is removed when the block ends without an error.

    Raises:
        UserError: If it cannot be unpacked, or what the block moves is not in it.
    """
    folder = path.parent
    with temporary_folder(path) as temporary:
        try:
            with (
                path.open("rb") as file,
                bar("unpacking", _size(path), "B") as shown,
                tarfile.open(fileobj=file, mode="r:gz") as archive,
            ):
                members = _watched(archive, lambda: shown.update(file.tell() - shown.n))
                archive.extractall(temporary, members, filter="data")
            yield temporary
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UserError(
                f"{path} cannot be unpacked into {folder} ({error}): free enough "
                "space, or delete the file, and run again."
            ) from error
    path.unlink()


def _watched(
    archive: tarfile.TarFile, after_each: Callable[[], None]
) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        yield member
        after_each()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(source: str, path: Path, size: int) -> str:
    """Appends to `path` until the connection ends; says how it ended."""
    received = _size(path)
    wanted = {"Range": f"bytes={received}-"} if received else {}
    try:
        request = urllib.request.Request(source, headers=wanted)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            resumed = response.status == http.client.PARTIAL_CONTENT
            with (
                path.open("ab" if resumed else "wb") as file,
                bar(path.stem, size, "B", received if resumed else 0) as shown,
            ):
                while chunk := response.read1(_CHUNK):
                    file.write(chunk)
                    shown.update(len(chunk))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
    return "the connection was closed early"


def _checksum(path: Path, archive: Archive) -> str:
    digest = hashlib.new(archive.algorithm, usedforsecurity=False)
    with path.open("rb") as file, bar("verifying", _size(path), "B") as shown:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            shown.update(len(chunk))
    return digest.hexdigest()
