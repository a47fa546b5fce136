"""TED-LIUM release 2: what is published, and how a machine comes by it."""

from pathlib import Path

from espnet_omnisparse.data.download import (
    Archive,
    bring,
    check_place,
    forget,
    partial,
)
from espnet_omnisparse.errors import UserError

RELEASE = "TEDLIUM_release2"
SPLITS = ("train", "dev", "test")
OPENSLR = "https://www.openslr.org/resources/19"
_PACKED = f"{RELEASE}.tar.gz"
# OpenSLR publishes no checksum of it. This one is in torchaudio's data sets and, with
# the size, in TensorFlow's.
ARCHIVE = Archive(
    36791529840,
    "93281b5fcaaae5c88671c9d000b443cb3c7ea3499ad12010b3934ca41a7b9c58",
    "sha256",
)
#: The whole release, as prepared by Kaldi's and ESPnet's recipes
TALKS = 1514
SEGMENTS = {"train": 92973, "dev": 507, "test": 1155}


def release_folder(corpus: Path) -> Path:
    """The folder that holds the splits, or is to hold them."""
    is_release = any((corpus / split).is_dir() for split in SPLITS)
    return corpus if is_release or corpus.name == RELEASE else corpus / RELEASE


def check_release_place(corpus: Path) -> None:
    """Checks that the release lies in a folder, or may be downloaded into it.

    Args:
        corpus: As the user names it.

    Raises:
        UserError: If it is another tree.
    """
    if (corpus / "sph").is_dir():
        way_out = f"point --corpus or TEDLIUM2 at {corpus.parent}"
    else:
        way_out = (
            "point --corpus or TEDLIUM2 at a copy of the release, or at "
            f"{corpus / RELEASE}, which is new, to download it there"
        )
    check_place(corpus, SPLITS, [RELEASE, partial(_PACKED)], way_out)


def ensure_release(
    folder: Path, url: str = OPENSLR, archive: Archive = ARCHIVE
) -> None:
    """Downloads the release if `folder` is absent or empty.

    It is downloaded beside the folder, verified by size and checksum and unpacked
    there; the folder appears at once and whole.

    Args:
        folder: Where the release has to be.
        url: Where they are downloaded from.
        archive: The release's archive.

    Raises:
        UserError: If it cannot be reached, or arrives damaged.
    """
    folder = folder.resolve()  # a link's target may be on another disk

    def is_there() -> bool:
        return folder.is_dir() and any(folder.iterdir())

    if is_there():
        forget(folder.parent, _PACKED)
        return

    def take(unpacked: Path) -> None:
        (unpacked / RELEASE).rename(folder)

    try:
        bring(folder.parent, _PACKED, url, archive, take, is_there)
    except ConnectionError as error:
        raise UserError(
            f"TED-LIUM 2 cannot be found in {folder} nor downloaded from {url} "
            f"({error}): connect to the network and run again, choose a mirror with "
            f"--url, unpack openslr.org/19 so that {folder} exists, or point --corpus "
            "or TEDLIUM2 at a copy."
        ) from error
