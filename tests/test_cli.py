"""`omnisparse`: each package registers its commands, and `--help` takes no time."""

import subprocess
import sys

import pytest

from espnet_omnisparse import cli

COMMANDS = "extract search stream profile report compare template info".split()
# seconds each, and needed by no --help
SLOW = ("torch", "espnet2", "matplotlib", "pydantic", "numpy")


def test_help_lists_every_command_and_imports_nothing_slow():
    code = f"""
import sys
from espnet_omnisparse import cli
try:
    cli.main(["--help"])
finally:
    assert not {{*{SLOW}}} & {{*sys.modules}}, {{*{SLOW}}} & {{*sys.modules}}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"usage: omnisparse {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["profile", "x", "--rounds", "0"], "must be a number of at least 1, not 0"),
        (["search", "x"], "the following arguments are required: --budgets"),
        (["stream", "x"], "the following arguments are required: --model"),
    ],
)
def test_what_is_wrong_with_arguments_is_told(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_defaults_are_the_recipes():
    from espnet_omnisparse.extract.names import CALIBRATION, CHECKPOINT
    from espnet_omnisparse.recipe.options import OWN_OPTIONS, STOCK_DEFAULTS

    assert OWN_OPTIONS["calibration"] == str(CALIBRATION) == "400"
    assert STOCK_DEFAULTS["inference_asr_model"] == CHECKPOINT
