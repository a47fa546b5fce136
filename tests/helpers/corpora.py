"""Small corpora as LibriSpeech and TED-LIUM lay them out, and what is made of them."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_omnisparse.data.librispeech import prepare
from espnet_omnisparse.errors import UserError
from helpers import REPOSITORY

FORMATS = {
    ".flac": {"format": "FLAC"},
    ".wav": {"format": "WAV"},
    ".opus": {"format": "OGG", "subtype": "OPUS"},
}
SPEAKERS = """; a comment
;ID  |SEX| SUBSET           |MINUTES| NAME
7    | F | train-clean-100  | 25.03 | A | B
12   | M | test-clean       | 8.02  | C
"""


def write_audio(path: Path, seconds: float = 0.5) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(16000 * seconds))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 16000, **FORMATS[path.suffix])


def write_chapter(part: Path, reader: int, chapter: int, suffix: str = ".flac") -> Path:
    """Two utterances; returns the chapter's folder."""
    folder = part / str(reader) / str(chapter)
    lines = []
    for number, words in enumerate(("HELLO THERE", "GOOD BYE")):
        name = f"{reader}-{chapter}-{number:04d}"
        write_audio(folder / f"{name}{suffix}")
        lines.append(f"{name} {words}\n")
    (folder / f"{reader}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


def write_librispeech(corpus: Path) -> Path:
    """Parts `one` (readers 7 and 12), `two` (reader 12) and `test-it` (reader 7)."""
    write_chapter(corpus / "one", 7, 70, ".flac")
    write_chapter(corpus / "one", 12, 30, ".wav")
    write_chapter(corpus / "two", 12, 31, ".opus")
    write_chapter(corpus / "test-it", 7, 71, ".flac")
    (corpus / "SPEAKERS.TXT").write_text(SPEAKERS)
    return corpus


def contents(folder: Path) -> dict[str, str]:
    """The text of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(call: Callable[[], object], *expected: str) -> None:
    """The call raises one sentence that holds the expected texts."""
    with pytest.raises(UserError) as caught:
        call()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    for text in expected:
        assert text in sentence


@dataclass
class Server:
    """Serves one archive; may break each connection after some bytes.

    What `instead` holds is answered first, one after the other: a status, or a page.
    """

    body: bytes
    break_after: int | None = None
    honour_range: bool = True
    instead: list[int | bytes | None] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers["Range"]
                state.ranges.append(wanted)
                other = state.instead.pop(0) if state.instead else None
                if isinstance(other, int):
                    self.send_error(other)
                    return
                if other is not None:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.end_headers()
                    self.wfile.write(other)
                    return
                start = 0
                if wanted and state.honour_range:
                    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(state.body) - start))
                self.end_headers()
                stop = len(state.body)
                if state.break_after is not None:
                    stop = start + state.break_after
                self.wfile.write(state.body[start:stop])

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/resources/12"
        return server


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs a program with this Python and package."""
    return subprocess.run(
        arguments,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        },
    )


def prepared(corpus: Path, data_dir: Path, **options) -> list[Path]:
    """Prepares the parts of `write_librispeech`, unless the options say otherwise."""
    given = {
        "train_set": "train",
        "train_parts": ["one", "two"],
        "valid_set": "dev",
        "valid_parts": ["test-it"],
        "test_parts": ["test-it"],
    }
    return prepare(corpus, data_dir, **{**given, **options})


def write_sphere(path: Path, seconds: float) -> np.ndarray:
    samples = np.random.default_rng(0).integers(-9999, 9999, int(16000 * seconds))
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = samples.astype(np.int16)
    soundfile.write(path, samples, 16000, format="NIST", subtype="PCM_16")
    return samples


def write_talk(split: Path, talk: str, *lines: str, seconds: float = 12) -> None:
    """A talk whose lines are given from their times on: `1.00 2.00 <label> words`."""
    write_sphere(split / "sph" / f"{talk}.sph", seconds)
    stm = split / "stm" / f"{talk}.stm"
    stm.parent.mkdir(exist_ok=True)
    stm.write_text("".join(f"{talk} 1 {talk} {line}\n" for line in lines))


def write_tedlium(corpus: Path) -> Path:
    """One talk of one utterance in each split."""
    write_talk(corpus / "train", "Ann_2001", "1.00 2.00 <o,f0,female> hello there")
    write_talk(corpus / "dev", "Bob_2002", "1.00 2.00 <F0_M> good morning")
    write_talk(corpus / "test", "Cid_2003", "1.00 2.00 <o,f0,male> good bye")
    return corpus


def table(path: Path) -> dict[str, str]:
    """A Kaldi table; it is sorted in C order."""
    rows = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    assert list(rows) == sorted(rows)
    return rows


def words(folder: Path) -> list[str]:
    """The transcripts of a data folder, in its order."""
    return list(table(folder / "text").values())
