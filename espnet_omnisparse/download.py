"""LibriSpeech's archives on OpenSLR: downloaded resumably, verified, unpacked."""

import hashlib
import http.client
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.progress import bar, say

OPENSLR = "https://www.openslr.org/resources/12"
_CHUNK = 1 << 20
_TIMEOUT = 30.0


@dataclass(frozen=True)
class Archive:
    """What a downloaded archive must be: its size in bytes and its MD5."""

    size: int
    md5: str


ARCHIVES: Mapping[str, Archive] = {
    "dev-clean": Archive(337926286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": Archive(314305928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": Archive(346663984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": Archive(328757843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": Archive(6387309499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": Archive(23049477885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": Archive(30593501606, "d1a0fd59409feb2c614ce4d30c387708"),
}


def download_part(corpus: Path, part: str, url: str, archive: Archive) -> None:
    """Downloads one part, verifies it and unpacks it into the corpus.

    What an interruption leaves, `<part>.tar.gz.part`, is continued by the next call.

    Args:
        corpus: Folder that is to hold the part; made if need be.
        part: Name of the part.
        url: Where `<part>.tar.gz` lies.
        archive: What it must be.

    Raises:
        ConnectionError: If the server cannot be reached or stops sending.
        UserError: If what arrives is not the archive; it is then removed.
    """
    path = corpus / f"{part}.tar.gz.part"
    source = f"{url.rstrip('/')}/{part}.tar.gz"
    say(f"downloading {source} ({archive.size / 1e9:.1f} GB) into {corpus}")
    received = _size(path)
    while received < archive.size:
        before = received
        reason = _fetch(source, path, archive.size)
        received = _size(path)
        # a connection may break many times in 30 GB; one that brings nothing is dead
        if received <= before:
            raise ConnectionError(reason)
    if received > archive.size or _md5(path) != archive.md5:
        path.unlink()
        raise UserError(
            f"{source} did not arrive as published (size or MD5 differs) and was "
            "removed: run again to download it anew."
        )
    _unpack(path, corpus, part)
    path.unlink()


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


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, bar("verifying", _size(path), "B") as shown:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            shown.update(len(chunk))
    return digest.hexdigest()


def _unpack(path: Path, corpus: Path, part: str) -> None:
    """Unpacks beside the corpus's parts, then moves the part to its place at once."""
    say(f"unpacking {part} into {corpus}")
    with tempfile.TemporaryDirectory(dir=corpus, prefix=f".{part}.") as temporary:
        try:
            with tarfile.open(path, "r:gz") as archive:
                archive.extractall(temporary, filter="data")
            unpacked = Path(temporary, "LibriSpeech")
            (unpacked / part).rename(corpus / part)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UserError(
                f"{path} cannot be unpacked into {corpus} ({error}): free enough "
                "space, or delete the file, and run again."
            ) from error
        # SPEAKERS.TXT and the like, which every archive brings along
        for text in unpacked.glob("*.TXT"):
            if not (corpus / text.name).exists():
                text.rename(corpus / text.name)
