"""Any recipe of ESPnet: what `omnisparse recipe` writes, and that it runs."""

import argparse
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from helpers import REPOSITORY
from helpers.recipes import CONFORMER, recipe_environment

from espnet_omnisparse import cli
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_yaml, write_yaml
from espnet_omnisparse.recipe import adopt, template
from espnet_omnisparse.recipe.derive import SUPERNETS, changed_keys, derive

TRAINING = {
    "max_epoch": 5,
    "patience": 3,
    "best_model_criterion": [["valid", "acc", "max"]],
    **CONFORMER,
    "optim_conf": {"lr": 0.005},
}
RUN_SH = """#!/usr/bin/env bash
set -euo pipefail

asr_config=conf/train_asr.yaml
log() { echo "${BASH_SOURCE[1]##*/}: $*"; }
log "a recipe"

./asr.sh \\
    --lang en \\
    --asr_config "${asr_config}" \\
    --lm_config conf/train_lm.yaml \\
    --test_sets "a b" "$@"
"""


@pytest.fixture
def asr1(tmp_path, monkeypatch):
    """A recipe in a checkout of ESPnet."""
    root = template.locate()
    for variable, value in recipe_environment(tmp_path / "checkout").items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("ESPNET_ROOT")
    checkout = tmp_path / "checkout"
    (checkout / "egs2").mkdir(parents=True)
    (checkout / "egs2" / "TEMPLATE").symlink_to(root / "egs2" / "TEMPLATE")
    (checkout / "tools").symlink_to(root / "tools")
    asr1 = checkout / "egs2" / "x" / "asr1"
    (asr1 / "conf").mkdir(parents=True)
    (asr1 / "run.sh").write_text(RUN_SH)
    (asr1 / "run.sh").chmod(0o755)
    write_yaml(asr1 / "conf" / "train_asr.yaml", TRAINING)
    return asr1


def told(asr1, *options):
    cli.main(["recipe", str(asr1), *options])
    return read_yaml(asr1 / "conf" / "omnisparse.yaml")


def refused(capsys, *arguments):
    with pytest.raises(SystemExit):
        cli.main(["recipe", *map(str, arguments)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def asked(asr1, wrapper="run_omnisparse.sh", *options):
    """The options that reach asr.sh's place, and all that was printed."""
    folder = asr1.parents[3] / "package"
    (folder / "espnet_omnisparse").mkdir(parents=True, exist_ok=True)
    (folder / "espnet_omnisparse" / "__init__.py").touch()
    (folder / "espnet_omnisparse" / "recipe.py").write_text(
        "import os, sys\n"
        "print('root', os.environ['ESPNET_ROOT'])\n"
        "print('typed', os.environ['OMNISPARSE_TYPED'])\n"
        "print(*sys.argv[1:], sep='|')\n"
    )
    done = subprocess.run(
        [asr1 / wrapper, *options],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    given = done.stdout.splitlines()[-1].split("|")
    return dict(zip(given[::2], given[1::2], strict=True)), done.stdout


def test_nothing_of_the_recipe_changes_and_twice_is_once(asr1, capsys):
    before = {p: p.read_bytes() for p in asr1.rglob("*") if p.is_file()}
    config = told(asr1)
    first = capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    assert config == derive(TRAINING, "layer")
    assert f"Next: cd {asr1} && ./run_omnisparse.sh" in first
    assert "Sizes are decoded with: what run.sh says" in first
    assert "Python of its stages: /" in first
    for key in ("encoder", "model_conf.supernet", "patience (left out)"):
        assert key in first
        comment = (asr1 / "conf" / "omnisparse.yaml").read_text()
        assert f"#   {key}\n" in comment
    after = {p: p.lstat().st_mtime_ns for p in asr1.rglob("*")}
    told(asr1)
    assert "(was there)" in capsys.readouterr().out
    assert {p: p.lstat().st_mtime_ns for p in asr1.rglob("*")} == after


def test_run_sh_says_what_it_says_and_the_wrapper_the_rest(asr1):
    told(asr1)
    options, printed = asked(asr1, "run_omnisparse.sh", "--stage", "3", "--lang", "de")
    assert options == {
        "--lang": "de",
        "--asr_config": "conf/omnisparse.yaml",
        "--lm_config": "conf/train_lm.yaml",
        "--test_sets": "a b",
        "--stage": "3",
    }
    assert "run.sh: a recipe" in printed  # its own name, as when it runs itself
    assert f"root {asr1.parents[2]}" in printed
    assert "run_omnisparse.sh --stage 3 --lang de" in printed


def test_ctc_alone_brings_its_decoding_configuration(asr1):
    config = TRAINING | {"model_conf": {"ctc_weight": 1.0}}
    write_yaml(asr1 / "conf" / "ctc.yaml", config)
    cli.main(["recipe", str(asr1), "--config", "conf/ctc.yaml", "--name", "ctc_only"])
    options, _ = asked(asr1, "run_ctc_only.sh")
    assert options["--use_lm"] == "false"
    decoding = read_yaml(asr1 / options["--inference_config"])
    assert decoding == read_yaml(REPOSITORY / "conf" / "decode_ctc.yaml")


def test_a_recipe_without_a_prunable_encoder_gets_a_conformer(asr1, capsys):
    write_yaml(asr1 / "conf" / "train_asr.yaml", {"encoder": "rnn"})
    config = told(asr1, "--axis", "weight")
    assert config == derive(read_yaml(adopt.STARTER), "weight")
    assert "Its encoder is rnn" in capsys.readouterr().out


def test_the_standalone_transducer_is_of_its_own_task(asr1):
    body = [{"block_type": "conformer", "hidden_size": 8, "linear_size": 16}]
    config = {"encoder_conf": {"body_conf": body}, "joint_network_conf": {}}
    write_yaml(asr1 / "conf" / "train_asr.yaml", config)
    config = told(asr1, "--axis", "weight")
    assert config["encoder_conf"] == {"body_conf": body, "pattern": "8x1"}
    assert "model" not in config and "encoder" not in config
    assert asked(asr1)[0]["--asr_task"] == "asr_transducer"


def test_mistakes_are_told_in_one_sentence_and_nothing_is_written(asr1, capsys):
    everything = sorted(asr1.parents[2].rglob("*"))
    assert "no recipe" in refused(capsys, asr1.parent)
    assert "use letters" in refused(capsys, asr1, "--name", "a/b")
    assert "exists neither" in refused(capsys, asr1, "--config", "conf/none.yaml")
    write_yaml(asr1 / "conf" / "rnn.yaml", {"encoder": "rnn"})
    assert "conformer" in refused(capsys, asr1, "--config", "conf/rnn.yaml")
    (asr1 / "conf" / "rnn.yaml").unlink()
    assert sorted(asr1.parents[2].rglob("*")) == everything
    (asr1 / "run_omnisparse.sh").write_text("mine\n")
    assert "--name" in refused(capsys, asr1)
    assert not (asr1 / "conf" / "omnisparse.yaml").exists()


def test_a_python_without_the_package_is_told(asr1, capsys, monkeypatch):
    told(asr1)
    capsys.readouterr()
    (asr1 / "local" / "path.sh").write_text(
        "python3() { return 1; }\nexport -f python3\n"
    )
    assert "has no espnet-omnisparse" in refused(capsys, asr1)
    done = subprocess.run([asr1 / "run_omnisparse.sh"], capture_output=True, text=True)
    assert done.returncode == 1 and "install it there" in done.stderr


# --- the configuration -------------------------------------------------------------


@pytest.mark.parametrize("axis", SUPERNETS)
def test_a_derived_configuration_trains(axis):
    from espnet_omnisparse.tasks import OmniASRTask

    derived = derive(TRAINING, axis)
    args = OmniASRTask.get_default_config() | derived
    args |= {"token_list": ["<blank>", "<unk>", "a", "<sos/eos>"]}
    model = OmniASRTask.build_model(argparse.Namespace(**args))
    model.supernet.set_run_length(1000)
    assert {*model.supernet.sizes} == {*SUPERNETS[axis]["sizes"]}
    assert changed_keys(TRAINING, derived)[:2] == [
        "patience (left out)",
        "best_model_criterion",
    ]
    assert TRAINING["patience"] == 3  # the original is left alone


def test_a_derived_configuration_has_one_ctc_loss_and_the_blocks_of_the_original():
    config = {
        "encoder": "conformer",
        "encoder_conf": {
            **{"interctc_layer_idx": [1], "interctc_use_conditioning": True},
            **{"ctc_trim": True, "num_blocks": 2},
        },
        "model_conf": {"ctc_weight": 0.0, "interctc_weight": 0.5, "aux_ctc": {}},
    }
    derived = derive(config, "layer")
    assert derived["encoder_conf"] == {"num_blocks": 2, "macaron_style": False}
    supernet = derived["model_conf"].pop("supernet")
    assert supernet == SUPERNETS["layer"]
    assert derived["model_conf"] == {"ctc_weight": 0.3, "loss_normalization": "batch"}
    assert {"encoder_conf.interctc_layer_idx (left out)", "model_conf.ctc_weight"} < {
        *changed_keys(config, derived)
    }
    kept = derive(TRAINING, "layer")
    assert kept["encoder_conf"]["macaron_style"] is True
    assert kept["model_conf"]["ctc_weight"] == 0.3


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"encoder": "vgg_rnn"}, "Its encoder is vgg_rnn"),
        ({"model": "maskctc"}, "Its model is maskctc"),
        ({"postencoder": "length_adaptor"}, "Its postencoder is length_adaptor"),
        ({"model_conf": {"supernet": {"method": "uniform"}}}, "a supernet already"),
    ],
)
def test_what_has_no_supernet_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        derive(TRAINING | changes, "layer")


# --- a whole recipe ----------------------------------------------------------------


@pytest.mark.slow
def test_mini_an4_from_its_audio_to_packed_sizes(tmp_path, monkeypatch):
    """ESPnet's smallest recipe, as its sdist has it, in stages 1 to 14."""
    try:
        sdist = template.download(tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    with tarfile.open(sdist) as archive:
        top = f"espnet-{template.ESPNET_VERSION}/egs2/mini_an4/asr1/"
        parts = [one for one in archive if one.name.startswith(top)]
        archive.extractall(tmp_path, parts, filter="data")
    asr1 = tmp_path / top
    for variable, value in recipe_environment(tmp_path / "x").items():
        monkeypatch.setenv(variable, value)
    config = TRAINING | {"max_epoch": 2, "batch_type": "unsorted", "batch_size": 2}
    write_yaml(asr1 / "conf" / "train_conformer.yaml", config)
    cli.main(["recipe", str(asr1), "--config", "conf/train_conformer.yaml"])
    options = "--ngpu 0 --nj 1 --inference_nj 1 --use_lm false --skip_packing false"
    done = subprocess.run(
        ["./run_omnisparse.sh", *options.split(), "--sizes", "small full"],
        cwd=asr1,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    exp = asr1 / "exp" / "asr_omnisparse_raw_en_bpe30"
    for size in ("small", "full"):
        folder = Path(f"{exp}_{size}")
        assert list(folder.glob("*.zip"))
        assert list(folder.glob("decode_*/test/score_wer/result.txt"))
    rows = (exp / "RESULTS.md").read_text().splitlines()
    assert any(row.startswith("| small ") and "| test |" in row for row in rows)
