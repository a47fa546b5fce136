"""A stream takes memory while it starts, and none while it goes on."""

import subprocess

import pytest
from helpers.engine import CSRC, compiler
from helpers.engine_models import write


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
