"""The stand-in for sph2pipe gives the samples that are in the file."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import REPOSITORY

from espnet_omnisparse.recipe import sph2pipe

PROGRAM = REPOSITORY / "espnet_omnisparse" / "recipe" / "bin" / "sph2pipe"


@pytest.fixture
def sphere(tmp_path):
    samples = np.random.default_rng(0).integers(-3000, 3000, (800, 2), dtype=np.int16)
    path = tmp_path / "a.sph"
    soundfile.write(path, samples, 16000, "PCM_16", format="NIST")
    return path, samples


def test_as_recipes_call_it(sphere):
    path, samples = sphere
    assert path.read_bytes().startswith(b"NIST_1A")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [PROGRAM, "-f", "wav", "-p", "-c", "2", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    wave, rate = soundfile.read(io.BytesIO(done.stdout), dtype="int16")
    assert rate == 16000 and (wave == samples[:, 1]).all()


def test_all_channels_into_a_file(sphere, tmp_path):
    path, samples = sphere
    sph2pipe.main(["-f", "wav", str(path), str(tmp_path / "a.wav")])
    assert (soundfile.read(tmp_path / "a.wav", dtype="int16")[0] == samples).all()


@pytest.mark.parametrize(
    "change, options, sentence",
    [
        (Path.unlink, [], "does not exist"),
        (lambda path: path.write_bytes(b"NIST_1A\n"), [], "without sph2pipe itself"),
        (lambda path: None, ["-c", "3"], "has 2 channels"),
    ],
)
def test_what_cannot_be_given_is_told(sphere, capsys, change, options, sentence):
    path, _ = sphere
    change(path)
    with pytest.raises(SystemExit):
        sph2pipe.main(["-f", "wav", "-p", *options, str(path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and sentence in line
