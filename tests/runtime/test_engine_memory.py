"""A stream takes memory while it starts, and none while it goes on."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from helpers.engine import CSRC, compiler
from helpers.engine_models import ctc, write

from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import write_packed
from espnet_omnisparse.runtime.library import VARIABLE

# an hour of noise, half a minute at a time; memory after a minute, and at the end
HOUR = """
import sys, numpy
from espnet_omnisparse import runtime

def held():
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0])

samples = numpy.random.default_rng(0).standard_normal(30 * 16000) * 0.05
stream = runtime.load(sys.argv[1]).stream()
for half in range(120):
    stream.push(samples.astype("float32"))
    if half == 1:
        begun = held()
print(begun, held(), len(stream.tokens))
"""

# a minute at once; what was held before it and at its peak
MINUTE = """
import sys, numpy
from espnet_omnisparse import runtime

def highest():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0])

samples = numpy.random.default_rng(0).standard_normal(60 * 16000) * 0.05
samples = samples.astype("float32")
model = runtime.load(sys.argv[1])
model.whole()
before = highest()
stream = model.whole()
stream.push(samples)
stream.finish()
print(before, highest())
"""


@pytest.fixture(scope="module")
def counted(engine_library, tmp_path_factory):
    """The program that counts."""
    program = tmp_path_factory.mktemp("counted") / "allocations"
    source = CSRC.parents[2] / "tests/runtime/allocations.cpp"
    command = [compiler(), "-std=c++17", f"-I{CSRC / 'include'}", str(source)]
    command += [str(engine_library), f"-Wl,-rpath,{engine_library.parent}"]
    subprocess.run([*command, "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("kind", ["live", "live-masked", "kaldi", "transducer", "gru"])
def test_a_stream_takes_no_memory_after_its_first_chunks(counted, tmp_path, kind):
    for dtype in ("fp32", "int8"):
        command = [counted, write(tmp_path, kind, dtype), "1", "20"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken, tokens = map(int, done.stdout.split())
        assert tokens > 10
        assert taken == 0


def printed(program, file, library):
    """What a program prints of a packed file, with an engine."""
    done = subprocess.run(
        [sys.executable, "-c", program, file],
        env={**os.environ, VARIABLE: str(library)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return map(int, done.stdout.split())


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_recording_holds_one_branch_at_a_time(engine_library, tmp_path, dtype):
    """Not what all of them together have taken, which grows with the blocks."""
    grown = {}
    for blocks in (2, 12):
        model, config = ctc({"num_blocks": blocks, "linear_units": 512})
        file = tmp_path / f"{blocks}.omni"
        write_packed(file, model, describe(model, config), dtype)
        before, highest = printed(MINUTE, file, engine_library)
        grown[blocks] = highest - before
    hidden = 512 * 60 * 25 * 4 // 1024  # kilobytes of an FFN's, 25 frames a second
    assert grown[2] > hidden
    assert grown[12] < grown[2] + hidden


def test_an_hour_holds_its_memory_but_for_the_text(engine_library, tmp_path):
    begun, ended, tokens = printed(
        HOUR, write(tmp_path, "live", "fp32"), engine_library
    )
    assert tokens > 10
    # kilobytes: some tens of bytes for each token
    assert ended - begun < 1024 + 0.1 * tokens
