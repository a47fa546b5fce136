"""LibriSpeech, or any corpus laid out as it is, as the Kaldi folders ESPnet reads.

    python3 -m espnet_omnisparse.librispeech --corpus downloads/LibriSpeech

Everything is read and checked before anything is written, so that a mistake in the
corpus leaves the data folders as they were.
"""

import argparse
import hashlib
import http.client
import os
import struct
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import soundfile
from tqdm import tqdm

from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.files import atomic_folder

OPENSLR = "https://www.openslr.org/resources/12"
AUDIO_SUFFIXES = (".flac", ".wav", ".opus")
_CHECKING_THREADS = 8
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

    Returns:
        The folders written.

    Raises:
        UserError: If a part cannot be had or anything in it is wrong; no folder is
            then touched.
    """
    if (corpus / "LibriSpeech").is_dir():
        corpus = corpus / "LibriSpeech"
    parts = list(dict.fromkeys([*train_parts, *valid_parts, *test_parts]))
    if not parts:
        raise UserError("No part of the corpus is given: name one in --test_parts.")
    sets = {part.replace("-", "_"): (part,) for part in parts}
    for name, members in ((train_set, train_parts), (valid_set, valid_parts)):
        members = tuple(dict.fromkeys(members))
        if members and sets.setdefault(name, members) != members:
            raise UserError(
                f"{name} cannot name {' + '.join(members)}, because the folder holds "
                f"{' + '.join(sets[name])}: choose another name."
            )
    ensure_parts(corpus, parts, url, archives)
    readings = {part: read_part(corpus / part) for part in parts}
    combined = {
        name: combine([readings[part] for part in members])
        for name, members in sets.items()
    }
    genders = read_genders(corpus)
    for name, utterances in combined.items():
        write_data_folder(data_dir / name, utterances, genders)
        _say(f"{data_dir / name}: {len(utterances)} utterances")
    return [data_dir / name for name in combined]


def _say(text: str) -> None:
    """Tells how far it is; stdout is for the folders written."""
    print(text, file=sys.stderr, flush=True)


def _bar(name: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A progress bar; where stderr is a log file it is drawn twice a minute."""
    seconds = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        desc=name,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=unit == "B",
        mininterval=seconds,
        maxinterval=seconds,
    )


# Downloading -------------------------------------------------------------------------


def ensure_parts(
    corpus: Path,
    parts: Iterable[str],
    url: str = OPENSLR,
    archives: Mapping[str, Archive] = ARCHIVES,
) -> None:
    """Downloads the standard parts that the corpus lacks.

    Raises:
        UserError: If a missing part is not a standard one, cannot be reached, or
            arrives damaged.
    """
    missing = [part for part in parts if not (corpus / part).is_dir()]
    unknown = [part for part in missing if part not in archives]
    if unknown:
        present = _folders_in(corpus) if corpus.is_dir() else []
        raise UserError(
            f"{', '.join(unknown)} cannot be found in {corpus}, which holds "
            f"{', '.join(present) or 'no part at all'}: correct the names of the "
            "parts, or point --corpus or LIBRISPEECH at the folder that holds them."
        )
    for index, part in enumerate(missing):
        try:
            download_part(corpus, part, url, archives[part])
        except ConnectionError as error:
            raise UserError(
                f"{', '.join(missing[index:])} of LibriSpeech cannot be found in "
                f"{corpus} nor downloaded from {url} ({error}): connect to the "
                f"network and run again, unpack openslr.org/12 so that {corpus / part} "
                "exists, or point --corpus or LIBRISPEECH at a copy."
            ) from error


def _folders_in(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


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
    _say(f"downloading {source} ({archive.size / 1e9:.1f} GB) into {corpus}")
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
                _bar(path.stem, size, "B", received if resumed else 0) as bar,
            ):
                while chunk := response.read1(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
    return "the connection was closed early"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _bar("verifying", _size(path), "B") as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _unpack(path: Path, corpus: Path, part: str) -> None:
    """Unpacks beside the corpus's parts, then moves the part to its place at once."""
    _say(f"unpacking {part} into {corpus}")
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


# Reading and checking ----------------------------------------------------------------


def read_part(part: Path) -> list[Utterance]:
    """Reads and checks one part, `part/reader/chapter/reader-chapter-NNNN.flac`.

    Of the audio only the header and the end are read.

    Returns:
        Its utterances, sorted.

    Raises:
        UserError: If transcripts and audio do not match one to one, a transcript has
            no words, or an audio file is empty or truncated.
    """
    utterances = combine(
        read_chapter(part / reader / chapter)
        for reader in _folders_in(part)
        for chapter in _folders_in(part / reader)
    )
    if not utterances:
        raise UserError(
            f"{part} holds no utterance: lay it out as reader/chapter folders, as "
            "LibriSpeech does."
        )
    paths = [utterance.audio for utterance in utterances]
    with (
        ThreadPool(_CHECKING_THREADS) as pool,
        _bar(part.name, len(paths), " files") as bar,
    ):
        for _ in pool.imap(check_audio, paths, chunksize=16):
            bar.update()
    return utterances


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
    speaker = f"{folder.parent.name}-{folder.name}"
    transcript = folder / f"{speaker}.trans.txt"
    texts = _read_transcript(transcript, speaker)
    audio: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in AUDIO_SUFFIXES:
            continue
        if path.stem not in texts:
            raise UserError(
                f"{path} has no line in {transcript.name}: add its words there or "
                "remove the audio file."
            )
        if path.stem in audio:
            raise UserError(
                f"The utterance id {path.stem} occurs twice, in {audio[path.stem]} "
                f"and {path}: remove one of them."
            )
        audio[path.stem] = path
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: convert or restore it.") from error
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, *words = line.split() or [""]
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


def check_audio(path: Path) -> None:
    """Checks that an audio file holds samples and is there to its end.

    Args:
        path: FLAC, WAV or Ogg Opus file, by its suffix.

    Raises:
        UserError: If it is empty, truncated or no audio.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise _broken(path, "is empty")
            cut = (path.suffix == ".wav" and _wav_is_cut(file)) or (
                path.suffix == ".opus" and _ogg_is_cut(file)
            )
        if cut:
            raise _broken(path, "is truncated")
        with soundfile.SoundFile(path) as sound:
            if sound.frames == 0:
                raise _broken(path, "holds no samples")
            if path.suffix == ".flac" and _flac_is_cut(sound):
                raise _broken(path, "is truncated")
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise _broken(path, f"cannot be read ({reason})") from error


def _broken(path: Path, what: str) -> UserError:
    return UserError(f"The audio file {path} {what}: copy or download it again.")


def _flac_is_cut(sound: soundfile.SoundFile) -> bool:
    """FLAC has no mark at its end; its last sample has to be decoded."""
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(1)) == 0
    except soundfile.LibsndfileError:
        return True


def _wav_is_cut(file: BinaryIO) -> bool:
    """Whether a RIFF file ends before its data chunk does, or without one.

    What is not RIFF is left to soundfile to judge.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != b"RIFF":
        return False
    position = 12  # after RIFF, the file's length and WAVE
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            return position + 8 + length > size
        position += 8 + length + length % 2  # chunks are padded to even lengths
    return True


def _ogg_is_cut(file: BinaryIO) -> bool:
    """Whether an Ogg file's last page is cut or lacks the end-of-stream flag.

    What is not Ogg is left to soundfile to judge.
    """
    header = struct.Struct("<4sBBqIIIB")  # up to the number of segments
    largest_page = header.size + 255 + 255 * 255
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - largest_page))
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0:
        return False
    if len(tail) < start + header.size:
        return True
    _, _, flags, *_, segments = header.unpack_from(tail, start)
    lengths = tail[start + header.size :][:segments]
    end = start + header.size + segments + sum(lengths)
    end_of_stream = 4
    return end > len(tail) or not flags & end_of_stream


def read_genders(corpus: Path) -> dict[str, str]:
    """Reads `m` or `f` by reader from SPEAKERS.TXT; empty where that is absent."""
    path = corpus / "SPEAKERS.TXT"
    if not path.is_file():
        _say(f"{path} is not there")
        return {}
    genders = {}
    # readers' names may be in any encoding; ids and sexes are ASCII
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
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
    speakers: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    tables = {
        "wav.scp": [f"{item.name} {item.audio}" for item in utterances],
        "text": [f"{item.name} {item.words}" for item in utterances],
        "utt2spk": [f"{item.name} {item.speaker}" for item in utterances],
        "spk2utt": [
            " ".join([speaker, *(item.name for item in speakers[speaker])])
            for speaker in sorted(speakers)
        ],
    }
    readers = {speaker: speakers[speaker][0].reader for speaker in sorted(speakers)}
    unlisted = sorted(set(readers.values()) - genders.keys())
    if unlisted:
        _say(f"{folder} goes without spk2gender: no sex is known of {unlisted[0]}")
    else:
        tables["spk2gender"] = [
            f"{speaker} {genders[reader]}" for speaker, reader in readers.items()
        ]
    with atomic_folder(folder) as temporary:
        for name, lines in tables.items():
            text = "".join(f"{line}\n" for line in lines)
            (temporary / name).write_text(text, encoding="utf-8")


def _parts(text: str) -> list[str]:
    """A list of parts as a shell gives it, separated by spaces or commas."""
    return text.replace(",", " ").split()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; prints the folders written, one a line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_omnisparse.librispeech",
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
        type=_parts,
        default="train-clean-100 train-clean-360 train-other-500",
        help="parts, separated by spaces or commas (default: %(default)s)",
    )
    parser.add_argument("--valid_set", default="dev")
    parser.add_argument("--valid_parts", type=_parts, default="dev-clean dev-other")
    parser.add_argument(
        "--test_parts",
        type=_parts,
        default="test-clean test-other dev-clean dev-other",
    )
    parser.add_argument("--url", default=OPENSLR, help="default: %(default)s")
    with one_sentence():
        for folder in prepare(**vars(parser.parse_args(argv))):
            print(folder)


if __name__ == "__main__":
    main()
