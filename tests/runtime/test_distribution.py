"""What goes on a device: the engine with NumPy alone, and the program in C."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers import REPOSITORY
from helpers.engine import CSRC, compiler
from helpers.tiny import asr_config, build

import espnet_omnisparse
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import write_packed
from espnet_omnisparse.runtime.library import Library

IMPORTS = """
import sys
import espnet_omnisparse.runtime
ours = {n for n in sys.modules if n.startswith("espnet_omnisparse.")}
print(*sorted(n for n in ("torch", "espnet2", "yaml", "pydantic") if n in sys.modules))
print(*sorted({n.split(".")[1] for n in ours}))
"""
RECOGNISE = """
import sys, numpy, omnisparse_runtime
assert "torch" not in sys.modules
samples = numpy.load(sys.argv[2])
print(omnisparse_runtime.load(sys.argv[1]).recognize(samples, 16000))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed model, audio, and the text that PyTorch makes of it."""
    folder = tmp_path_factory.mktemp("packed")
    config = asr_config(
        input_size=None,
        frontend="default",
        frontend_conf={"n_fft": 512, "hop_length": 160, "n_mels": 20},
        token_type="char",
    )
    del config["model_conf"]["supernet"]
    model = build(config)
    write_packed(folder / "model.omni", model, describe(model, config))
    samples = (0.1 * np.random.default_rng(0).standard_normal(32000)).astype("float32")
    np.save(folder / "samples.npy", samples)
    soundfile.write(folder / "speech.wav", samples, 16000, "FLOAT")
    with torch.no_grad():
        speech = torch.from_numpy(samples)[None]
        encoded, _ = model.encode(speech, torch.tensor([len(samples)]))
        best = model.ctc.argmax(encoded)[0].tolist()
    joined = [b for a, b in zip([0, *best], best, strict=False) if b not in (0, a)]
    tokens = [config["token_list"][token] for token in joined]
    return folder, "".join(t for t in tokens if t != "<sos/eos>")


def test_the_binding_needs_numpy_alone():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    others, ours = done.stdout.splitlines()
    assert others == "" and set(ours.split()) <= {"errors", "moved", "runtime"}


def test_the_engine_is_of_the_packages_version(engine_library):
    assert Library(engine_library).version().decode() == espnet_omnisparse.__version__


@pytest.mark.slow
def test_the_wheel_recognises_without_torch_and_without_a_compiler(tmp_path, packed):
    if compiler() is None:
        pytest.skip("no C++ compiler on this machine: no wheel can be made")
    folder, expected = packed
    source = REPOSITORY / "runtime_dist"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = tmp_path.glob("omnisparse_runtime-*-py3-none-*.whl")
    assert wheel.stat().st_size < 1_000_000
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    python = str(clean / "bin" / "python")
    bare = {"PATH": str(clean / "bin"), "HOME": str(tmp_path)}
    subprocess.run(
        [python, "-m", "pip", "install", "-q", str(wheel)], env=bare, check=True
    )
    files = [str(folder / "model.omni"), str(folder / "samples.npy")]
    done = subprocess.run(
        [python, "-c", RECOGNISE, *files],
        env=bare,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip("\n") == expected


@pytest.mark.slow
def test_the_program_built_by_cmake_recognises(tmp_path, packed):
    if shutil.which("cmake") is None or compiler() is None:
        pytest.skip("no CMake or no C++ compiler on this machine")
    folder, expected = packed
    subprocess.run(["cmake", "-S", str(CSRC), "-B", str(tmp_path)], check=True)
    subprocess.run(["cmake", "--build", str(tmp_path), "-j", "2"], check=True)
    program = str(tmp_path / "omnisparse-run")
    arguments = [str(folder / "model.omni"), str(folder / "speech.wav")]
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip("\n").strip() == expected.strip()
    missing = subprocess.run(
        [program, arguments[0], str(Path(tmp_path) / "no.wav")],
        env={**os.environ},
        capture_output=True,
        text=True,
    )
    assert missing.returncode != 0 and len(missing.stderr.splitlines()) == 1
