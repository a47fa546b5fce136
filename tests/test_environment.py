"""What the machine lacks is told before the first stage, in one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY
from helpers.recipes import copy_recipe, recipe_environment, refusal

from espnet_omnisparse import environment
from espnet_omnisparse.errors import UserError

CONFIG = ("--asr_config", "conf/demo_supernet.yaml", "--speed_perturb_factors", "")
CPU = ("--ngpu", "0")


@pytest.fixture
def asr1(tmp_path):
    return copy_recipe(tmp_path / "work")


@pytest.mark.parametrize("name", ["my work", "my:work"])
def test_a_checkout_whose_path_breaks_the_scripts_is_told(tmp_path, name):
    asr1 = copy_recipe(tmp_path / name)
    sentence = refusal(asr1, *CONFIG, *CPU, PWD=str(asr1))
    assert name in sentence and "a space or a colon" in sentence


def test_a_link_without_a_space_is_a_way_round(tmp_path, monkeypatch):
    (tmp_path / "my work").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "my work")
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    environment.require_plain_paths({})
    monkeypatch.setenv("PWD", str(tmp_path))  # stale: not where we are
    with pytest.raises(UserError, match="my work"):
        environment.require_plain_paths({})


@pytest.mark.parametrize("option", ["--dumpdir", "--expdir", "--asr_exp"])
def test_a_folder_with_a_space_is_told(asr1, option):
    assert option in refusal(asr1, *CONFIG, *CPU, option, "my data")


@pytest.mark.parametrize("option", ["--dumpdir", "--expdir", "--asr_exp"])
def test_output_that_cannot_be_made_is_told_before_stage_1(asr1, option):
    (asr1 / "taken").touch()
    sentence = refusal(asr1, *CONFIG, *CPU, option, "taken/here")
    assert "taken is a file" in sentence


def test_a_dangling_link_and_a_read_only_folder_are_told(tmp_path, monkeypatch):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link to nothing"):
        environment.require_writable(tmp_path / "gone" / "x")
    environment.require_writable(tmp_path / "new" / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may always
    with pytest.raises(UserError, match="read-only"):
        environment.require_writable(tmp_path / "new" / "x")


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    "options, word",
    [
        ((), "--ngpu 1 needs 1 GPU,"),
        (("--ngpu", "2", "--stage", "11"), "--ngpu 2 needs 2 GPUs,"),
        (("--ngpu", "0", "--gpu_inference", "true"), "--gpu_inference true"),
        (("--ngpu", "one"), "number of GPUs"),
    ],
)
def test_a_missing_gpu_is_told_before_stage_1(asr1, options, word):
    assert word in refusal(asr1, *CONFIG, *options, **NO_GPU)


@pytest.mark.parametrize(
    "options, cuda_cmd",
    [
        (("--stop_stage", "10", "--use_lm", "false"), "run.pl"),
        (("--stage", "12"), "run.pl"),
        (("--skip_train", "true"), "run.pl"),
        ((), "slurm.pl --gres gpu:1"),  # the job runs on a machine that has one
    ],
)
def test_a_gpu_is_asked_for_only_where_one_is_used_here(
    tmp_path, monkeypatch, options, cuda_cmd
):
    import torch

    from espnet_omnisparse.recipe import run as recipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("cmd.sh").write_text(f'export cuda_cmd="{cuda_cmd}"\n')
    recipe.check_machine(recipe.parse(options), tmp_path)


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
    )


def test_the_plotting_backend_of_a_notebook_does_no_harm(tmp_path):
    script = tmp_path / "draw.py"
    script.write_text("import matplotlib.pyplot as plt\nplt.figure()\nprint('drawn')\n")
    backend = "module://matplotlib_inline.backend_inline"
    done = command("-m", "espnet_omnisparse.launch", str(script), MPLBACKEND=backend)
    assert done.stdout == "drawn\n", done.stderr


def test_a_full_disk_behind_stdout_is_one_sentence():
    script = f"exec {sys.executable} -m espnet_omnisparse.cli info > /dev/full"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "No space left" in line


def test_a_file_in_the_place_of_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "taken").touch()
    script = (
        "from espnet_omnisparse.errors import one_sentence\n"
        "from espnet_omnisparse.files import write_text\n"
        "with one_sentence():\n"
        f"    write_text({str(tmp_path / 'taken' / 'deep' / 'x')!r}, 'text')\n"
    )
    done = command("-c", script)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "taken" in line


def copy_digits(asr1: Path) -> None:
    """Copies what the digits have besides the recipe's own scripts."""
    source = REPOSITORY / "egs2/librispeech/asr1"
    for name in ("run_digits.sh", "run_stock_digits.sh", "local/digits.sh"):
        shutil.copy(source / name, asr1 / name)


def test_espnet_alone_trains_on_the_digits_that_were_prepared(asr1):
    copy_digits(asr1)
    for name in ("run.sh", "asr.sh"):
        (asr1 / name).write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
        (asr1 / name).chmod(0o755)

    def options(script: str, *given: str) -> dict[str, str]:
        done = subprocess.run(
            [f"./{script}", *given],
            cwd=asr1,
            env=recipe_environment(asr1.parents[2]),
            capture_output=True,
            text=True,
            check=True,
        )
        words = done.stdout.split("\n")
        return dict(zip(words[::2], words[1::2], strict=False))

    ours = options("run_digits.sh", "--asr_tag", "mine", "--lang", "other")
    stock = options("run_stock_digits.sh", "--asr_tag", "mine", "--lang", "other")
    assert ours["--lang"] == "other" and ours["--token_type"] == "char"
    assert ours["--speed_perturb_factors"] == ""
    assert ours["--local_data_opts"].endswith(" --test_parts digits-test")
    assert ours.pop("--asr_config") == "conf/tuning/digits_simple_topk.yaml"
    assert {name: stock.pop(name) for name in ours} == ours
    assert Path(stock.pop("--python")).name == "python3"
    assert stock == {"--stage": "11", "--stop_stage": "11", "--use_lm": "false"}


def test_the_report_names_the_command_that_was_typed(asr1):
    show = "import sys, espnet_omnisparse.recipe.run as r; print(r.command_line())"
    fake = asr1 / "bin"
    fake.mkdir()
    python = fake / "python3"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -c "{show}" "$@"\n')
    python.chmod(0o755)
    copy_digits(asr1)
    done = subprocess.run(
        ["./run_digits.sh", "--stage", "10", "--sizes", "small full"],
        cwd=asr1,
        env=recipe_environment(asr1.parents[2], PATH=f"{fake}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
    )
    typed, between, resolved = done.stdout.splitlines()
    assert typed == r"./run_digits.sh --stage 10 --sizes small\ full"
    assert between.startswith("#")
    assert resolved.startswith("./run.sh --lang en --ngpu 1")
    assert resolved.endswith("--stage 10 --sizes 'small full'")
