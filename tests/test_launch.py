"""The launcher runs what it is given as Python does, and refuses what cannot be."""

import pytest
from helpers.training import launch

SCRIPT = """
import sys
print(__name__, sys.argv)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 7])
def test_the_launcher_runs_a_script_unchanged(tmp_path, code):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = launch(str(script), str(code), "--name", "a b", "-m")
    assert done.returncode == code
    expected = [str(script), str(code), "--name", "a b", "-m"]
    assert done.stdout == f"__main__ {expected}\n"


def test_the_launcher_finds_a_scripts_neighbours_as_python_does(tmp_path):
    (tmp_path / "neighbour.py").write_text("value = 5\n")
    script = tmp_path / "script.py"
    script.write_text("import neighbour; print(neighbour.value)\n")
    done = launch(str(script))
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


@pytest.mark.parametrize("code", [0, 7])
def test_the_launcher_runs_a_module_unchanged(tmp_path, code):
    (tmp_path / "a_module.py").write_text(SCRIPT)
    done = launch("-m", "a_module", str(code), "--name", "a b", cwd=tmp_path)
    assert done.returncode == code
    path = str(tmp_path / "a_module.py")
    assert done.stdout == f"__main__ {[path, str(code), '--name', 'a b']}\n"


def test_the_launcher_keeps_the_traceback_of_a_failing_module(tmp_path):
    (tmp_path / "a_module.py").write_text("raise ValueError('its own')\n")
    done = launch("-m", "a_module", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: its own" in done.stderr


@pytest.mark.parametrize(
    "module, word",
    [
        ("espnet2.bin.lightning_train", "use_lightning"),
        ("espnet2.bin.asr_inference_k2", "use_k2"),
    ],
)
def test_the_launcher_refuses_what_supernets_exclude(module, word):
    done = launch("-m", module, "--help")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and word in line


def test_the_launcher_tells_of_a_script_that_is_not_there():
    done = launch("no/such.py")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no/such.py does not exist")


def test_the_launcher_without_arguments_says_how_to_use_it():
    done = launch()
    assert done.returncode == 1
    assert "usage: " in done.stderr
