"""How much memory a model takes in its run time, each in a process of its own."""

import importlib
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from espnet_omnisparse.bench.contestants import RATE, Entry, noise

SECONDS = 10  # of the recording, or of the stream


def peak(entry: Entry, chunks: Sequence[int]) -> int | None:
    """The peak of loading a model and of using it, above what its libraries take.

    Args:
        entry: The model and its run time.
        chunks: Sizes of those of streams: the first is used, or a whole recording
            where there is none.

    Returns:
        Bytes of resident memory; `None` where the system does not tell.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    here, there = multiprocessing.Pipe()
    # a fresh interpreter: a forked one has this one's pages
    process = multiprocessing.get_context("spawn").Process(
        target=_measure, args=(there, entry, list(chunks))
    )
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:  # it ended without an answer
        return None
    finally:
        process.join()


def _measure(out: Connection, entry: Entry, chunks: Sequence[int]) -> None:
    for name in entry.kind.LIBRARIES:
        importlib.import_module(name)
    samples = np.tile(noise(RATE), SECONDS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    contestant = entry.open()
    if chunks:
        stream = contestant.chunks(chunks[0])
        for _ in range(-(-SECONDS * 25 // chunks[0])):  # 25 frames in a second
            next(stream)
    else:
        contestant.whole(samples)
    out.send(_status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
