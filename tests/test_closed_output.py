"""Commands whose output is closed, or read no further, end without a traceback."""

import os
import re
import signal
import subprocess
import sys

import pytest
from helpers import REPOSITORY

COMMANDS = (
    *("extract", "export", "search", "stream", "transcribe", "bench", "profile"),
    *("report", "compare", "publish", "recipe", "template", "shrink", "info"),
)
#: what each of them says of a mistake, having imported what it needs for that alone
MISTAKES = (
    ["export", "x", "--to", "onnx", "--left", "2"],
    ["shrink", "x", "--data", "d", "--dev", "d", "--sizes", "a:0.5", "--fraction", "2"],
    ["bench"],
    ["recipe", "x", "--name", "a/b"],
)
#: output is buffered, as a user has it
ENVIRONMENT = {
    **{name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"},
    "PYTHONPATH": str(REPOSITORY),
}


def omnisparse(arguments, redirected="", stdout=subprocess.PIPE, cwd=None):
    """Runs `omnisparse` in a shell that closes or redirects what it is told to."""
    command = 'exec "$@" ' + redirected
    python = [sys.executable, "-m", "espnet_omnisparse.cli"]
    return subprocess.run(
        ["bash", "-c", command, "-", *python, *arguments],
        env=ENVIRONMENT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


@pytest.fixture
def unread():
    """The writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_these_are_the_commands():
    usage = omnisparse(["--help"]).stdout
    assert {*re.findall(r"^    (\w+)", usage, re.MULTILINE)} == {*COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone(command, unread):
    asked = [] if command == "info" else ["--help"]
    done = omnisparse([command, *asked], stdout=unread)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(command, closed):
    asked = [] if command == "info" else ["--help"]
    done = omnisparse([command, *asked], closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (closed == "2>&-")


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda one: one[0])
def test_a_mistake_is_told_on_stderr_or_not_at_all(arguments, unread):
    for redirected in ("", ">&-"):
        done = omnisparse(arguments, redirected, unread)
        assert done.returncode == 1
        # ESPnet tells what it has not got
        lines = [x for x in done.stderr.splitlines() if "Flash Attention" not in x]
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    done = omnisparse(arguments, "2>&-")
    assert (done.returncode, done.stdout) == (1, "")


SCRIPT = """
import os, subprocess, sys
from espnet_omnisparse.console import bar, say
from espnet_omnisparse.errors import UserError, one_sentence
with one_sentence():
    with open("result", "w") as file:
        print("printed")
        say("told")
        with bar("counted", 1, "") as shown:
            shown.update()
        subprocess.run(["sh", "-c", "echo of another; echo told >&2"])
        os.write(1, b"of a library")
        file.write("written")
        {end}
"""


@pytest.mark.parametrize("end", ["pass", "raise UserError('no')"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_nothing_that_is_printed_gets_into_a_file(tmp_path, closed, end):
    script = SCRIPT.format(end=end)
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "-", sys.executable, "-c", script],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (tmp_path / "result").read_text() == "written"
    assert done.returncode == (0 if end == "pass" else 1)
    assert "told" not in done.stdout and "error" not in done.stdout
    assert "printed" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "UserError('no')"])
def test_what_was_printed_before_the_end_costs_no_second_message(raised, unread):
    script = (
        "from espnet_omnisparse.errors import UserError, one_sentence\n"
        "with one_sentence():\n"
        "    print('some lines')\n"
        f"    raise {raised}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=ENVIRONMENT,
        stdout=unread,
        stderr=subprocess.PIPE,
        text=True,
    )
    word, code = {"K": ("interrupted", 130), "U": ("error: no", 1)}[raised[0]]
    assert (done.returncode, done.stderr) == (code, f"{word}\n")
