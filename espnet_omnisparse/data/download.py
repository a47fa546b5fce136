"""Corpora's archives: downloaded resumably, verified, unpacked whole or not at all."""

import fcntl
import hashlib
import http.client
import os
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from espnet_omnisparse.console import bar, say
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import folder_for, remove_dead, temporary_folder

_CHUNK = 1 << 20
_TIMEOUT = 30.0
# once something has come: how often a server may then bring nothing, and the seconds
# between
_TRIES, _PAUSE = 3, 2.0
_BROKEN = (OSError, ValueError, http.client.HTTPException)
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


def bring(
    folder: Path,
    name: str,
    url: str,
    archive: Archive,
    take: Callable[[Path], None],
    is_there: Callable[[], bool],
) -> None:
    """Downloads, verifies and unpacks one archive, as one process of several may.

    What an interruption leaves, `<name>.part`, is continued by the next call.

    Args:
        folder: Folder to download into; made if need be.
        name: Name of the archive.
        url: Where it lies.
        archive: What it must be.
        take: Moves what is wanted from the folder that it is unpacked into.
        is_there: Whether that has been done; nothing is then downloaded.

    Raises:
        ConnectionError: If the server cannot be reached, stops sending or sends
            something else; what has arrived is kept.
        UserError: If what arrives is not the archive, which is then removed; if it
            cannot be unpacked, or another process is downloading it.
    """
    path = folder / partial(name)
    with _held(path):
        if not is_there():  # another process may have been faster
            _download(f"{url.rstrip('/')}/{name}", path, archive)
            with _unpacked(path) as unpacked:
                take(unpacked)
        path.unlink(missing_ok=True)


def forget(folder: Path, name: str) -> None:
    """Removes what an interruption has left of an archive that is no longer wanted.

    Args:
        folder: Where it was downloaded into.
        name: Name of the archive.
    """
    path = folder / partial(name)
    # another process may be about to, and a finished corpus may be write-protected
    if path.is_file():
        with suppress(UserError, OSError), _held(path):
            path.unlink(missing_ok=True)
            remove_dead(folder)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds an archive's file, made if need be, so that no other process writes it.

    Raises:
        UserError: If another one does.
    """
    with folder_for(path), _locked(path):
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The same, in a folder that is there."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"{path} is being downloaded by another process: wait until that has "
                "ended, then run again."
            ) from error
        except OSError:  # a file system without locks
            break
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # removed by its holder before it was ours
    try:
        yield
    finally:
        if not _size(path):
            path.unlink(missing_ok=True)
        file.close()


def _download(source: str, path: Path, archive: Archive) -> None:
    """Downloads and verifies an archive; goes on with what is there of it."""
    say(f"downloading {source} ({archive.size / 1e9:.1f} GB) into {path.parent}")
    received, tries = _size(path), 1
    while received < archive.size:
        before = received
        reason = _fetch(source, path, archive.size)
        received = _size(path)
        # a connection may break many times in 30 GB, and a server be away for a while
        tries = _TRIES if received > before else tries - 1
        if not tries:
            raise ConnectionError(reason)
        if received == before:
            time.sleep(_PAUSE)
    if received > archive.size or _checksum(path, archive) != archive.checksum:
        path.unlink()
        raise UserError(
            f"{source} did not arrive as published (size or "
            f"{archive.algorithm.upper()} differs) and was removed: run again to "
            "download it anew."
        )


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Unpacks an archive into a temporary folder beside it, to be moved from there.

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
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except _BROKEN as error:
        return str(getattr(error, "reason", error))
    with response:
        begin = received if response.status == http.client.PARTIAL_CONTENT else 0
        other = _something_else(response, begin, size)
        if other:  # what has arrived is left alone
            return other
        try:
            with (
                path.open("ab" if begin else "wb") as file,
                bar(path.stem, size, "B", begin) as shown,
            ):
                return _copy(response, file, shown.update)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _something_else(
    response: http.client.HTTPResponse, begin: int, size: int
) -> str | None:
    """What a server sends instead of an archive of so many bytes, from `begin` on.

    A proxy or a portal answers with a page of its own, as if all were well.
    """
    # of what is to come; None where the server does not say, or says no number
    end = None if response.length is None else begin + response.length
    given = response.headers.get("Content-Range")
    if begin and given and not given.startswith(f"bytes {begin}-"):
        return f"the server answers with {given}, not from byte {begin} on"
    if end not in (None, size):
        return f"the server answers with {end} bytes, where the archive has {size}"
    if response.headers.get_content_type() == "text/html":
        return "the server answers with a web page"
    return None


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, told: Callable[[int], Any]
) -> str:
    """Writes what comes, until the connection ends; says how it ended."""
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except _BROKEN as error:
            return str(error)
        if not chunk:
            return "the connection was closed early"
        file.write(chunk)
        told(len(chunk))


def _checksum(path: Path, archive: Archive) -> str:
    digest = hashlib.new(archive.algorithm, usedforsecurity=False)
    with path.open("rb") as file, bar("verifying", _size(path), "B") as shown:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            shown.update(len(chunk))
    return digest.hexdigest()
