"""The engine's layers under sanitizers, and on a CPU that is emulated."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.engine import CSRC, compiler

DRIVER = Path(__file__).with_name("kernels_driver.cpp")


def made(cxx, folder, *flags):
    """The driver as a program, of the layers and nothing else of the engine."""
    program = folder / "driver"
    sources = sorted((CSRC / "src/kernels").glob("*.cpp"))
    command = [cxx, "-std=c++17", "-pthread", f"-I{CSRC / 'include'}", *flags]
    done = subprocess.run(
        [*command, *map(str, sources), str(DRIVER), "-o", str(program)],
        capture_output=True,
        text=True,
    )
    return program if done.returncode == 0 else pytest.fail(done.stderr)


def instruction_sets(*command):
    """Those that the driver ran and found equal."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ("address,undefined", "thread"))
def test_layers_under_sanitizers(tmp_path, sanitizers):
    if (cxx := compiler()) is None:
        pytest.skip("no C++ compiler on this machine")
    flags = ("-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    program = made(cxx, tmp_path, *flags)
    assert "plain" in instruction_sets(str(program))


@pytest.mark.slow
def test_neon(tmp_path):
    """Its layers equal the plain ones, on an emulated CPU."""
    cxx, emulator = map(shutil.which, ("aarch64-linux-gnu-g++", "qemu-aarch64"))
    if cxx is None or emulator is None:
        pytest.skip("no compiler for ARM, or no emulator: NEON was not tested")
    program = made(cxx, tmp_path, "-O2", "-static")
    assert instruction_sets(emulator, str(program)) == ["neon", "plain"]
