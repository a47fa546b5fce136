"""Old import paths still work, and say what they are called now."""

import importlib
import subprocess
import sys

import pytest

from espnet_omnisparse.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_module_of_the_new_one(old):
    if old.startswith(("asr_", "bench_")):
        pytest.importorskip("espnet2")
    sys.modules.pop(f"espnet_omnisparse.{old}", None)
    with pytest.warns(FutureWarning, match=f"is now espnet_omnisparse.{MOVED[old]};"):
        found = importlib.import_module(f"espnet_omnisparse.{old}")
    assert found is importlib.import_module(f"espnet_omnisparse.{MOVED[old]}")
    assert found.__spec__.name == f"espnet_omnisparse.{MOVED[old]}"


@pytest.mark.parametrize("old", ["librispeech", "sclite"])
def test_an_old_command_runs_and_says_its_new_name(old):
    command = [sys.executable, "-m", f"espnet_omnisparse.{old}", "--no_such_option"]
    result = subprocess.run(command, capture_output=True, text=True)
    new = [sys.executable, "-m", f"espnet_omnisparse.{MOVED[old]}", "--no_such_option"]
    expected = subprocess.run(new, capture_output=True, text=True)
    assert result.returncode == expected.returncode != 0
    assert result.stderr.endswith(expected.stderr)
    assert f"is now espnet_omnisparse.{MOVED[old]};" in result.stderr
