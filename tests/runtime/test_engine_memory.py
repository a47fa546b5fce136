"""A stream takes memory while it starts, and none while it goes on."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from helpers.engine import CSRC, compiler
from helpers.engine_models import write

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


def test_an_hour_holds_its_memory_but_for_the_text(engine_library, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HOUR, write(tmp_path, "live", "fp32")],
        env={**os.environ, VARIABLE: str(engine_library)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    begun, ended, tokens = map(int, done.stdout.split())
    assert tokens > 10
    # kilobytes: some tens of bytes for each token
    assert ended - begun < 1024 + 0.1 * tokens
