"""ASR recipes of ESPnet3: what `omnisparse recipe` writes, and that it runs."""

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from helpers.recipes import CONFORMER, recipe_environment
from omegaconf import OmegaConf

from espnet_omnisparse import cli
from espnet_omnisparse.files import load_tensors, read_yaml, write_yaml
from espnet_omnisparse.recipe import espnet3, template
from espnet_omnisparse.recipe.adoption import STARTER
from espnet_omnisparse.recipe.derive import derive_model
from espnet_omnisparse.train.journal import read_log

MODEL = {
    "vocab_size": "${tokenizer.vocab_size}",
    "token_list": "${tokenizer.save_path}/tokens.txt",
    **CONFORMER,
    "normalize": "global_mvn",
    "normalize_conf": {"stats_file": "${stats_dir}/train/feats_stats.npz"},
}
SUMMARY = {"_target_": "lightning.pytorch.callbacks.ModelSummary"}
EARLY = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "x"}
TRAINING = {
    "task": "espnet3.systems.esp2_asr.task.ASRTask",
    "exp_tag": "conformer",
    "exp_dir": "elsewhere/${exp_tag}",
    "tokenizer": {"vocab_size": 30, "save_path": "${data_dir}/bpe_30"},
    "model": MODEL,
    "optimizer": {"lr": 0.005},
    "best_model_criterion": [["valid/acc", 5, "max"]],
    "trainer": {"max_epochs": 7, "callbacks": [SUMMARY, EARLY]},
}
INFERENCE = {
    "exp_tag": "conformer",
    "dataset": {"test": [{"name": "eval", "data_src_args": {"split": "eval"}}]},
    "model": {
        "_target_": "espnet2.bin.asr_inference.Speech2Text",
        "asr_train_config": "${exp_dir}/config.yaml",
        "asr_model_file": "${exp_dir}/valid.acc.ave_10best.pth",
        "beam_size": 3,
        "ctc_weight": 0.3,
    },
    "batch_size": 2,
}


@pytest.fixture
def recipe(tmp_path):
    """A recipe in a checkout of ESPnet."""
    recipe = tmp_path / "egs3" / "x" / "esp2_asr"
    (recipe / "conf").mkdir(parents=True)
    (recipe / "run.py").write_text("print('a recipe')\n")
    write_yaml(recipe / "conf" / "training.yaml", TRAINING)
    write_yaml(recipe / "conf" / "inference.yaml", INFERENCE)
    return recipe


def told(recipe, *options):
    cli.main(["recipe", str(recipe), *options])
    return read_yaml(recipe / "conf" / "training_omnisparse.yaml")


def refused(capsys, *arguments):
    with pytest.raises(SystemExit):
        cli.main(["recipe", *map(str, arguments)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def merged(path, role):
    """A configuration as ESPnet3's `launch` has it."""
    from espnet3.utils.config_utils import load_and_merge_config

    config = load_and_merge_config(path, f"{role}.yaml", "egs3.TEMPLATE.esp2_asr")
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("axis", ["layer", "weight"])
def test_only_what_makes_it_a_supernet_differs(recipe, capsys, axis):
    before = {p: p.read_bytes() for p in recipe.rglob("*") if p.is_file()}
    config = told(recipe, "--axis", axis)
    first = capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    callback = {"_target_": espnet3._CALLBACK, "exp_dir": "${exp_dir}"}
    assert config == {
        "task": "espnet_omnisparse.tasks.OmniASRTask",
        "tokenizer": TRAINING["tokenizer"],
        "model": derive_model(MODEL, axis),
        "optimizer": TRAINING["optimizer"],
        "best_model_criterion": [["valid/loss_sizes", 5, "min"]],
        "trainer": {"max_epochs": 7, "callbacks": [SUMMARY, callback]},
        "fit": {"ckpt_path": "last"},
    }
    for key in ("task", "model.encoder", "model.model_conf.supernet", "trainer"):
        assert key in first
    after = {p: p.lstat().st_mtime_ns for p in recipe.rglob("*")}
    told(recipe, "--axis", axis)
    assert "(was there)" in capsys.readouterr().out
    assert {p: p.lstat().st_mtime_ns for p in recipe.rglob("*")} == after
    other = "weight" if axis == "layer" else "layer"
    assert "--name" in refused(capsys, recipe, "--axis", other)


def test_experiments_have_names_of_their_own_in_espnet3_s_eyes(recipe, monkeypatch):
    told(recipe)
    training = merged(recipe / "conf" / "training_omnisparse.yaml", "training")
    assert training["exp_dir"] == "./exp/training_omnisparse"
    assert training["trainer"]["callbacks"][-1]["exp_dir"] == training["exp_dir"]
    monkeypatch.setenv("SIZE", "small")
    inference = merged(recipe / "conf" / "inference_omnisparse.yaml", "inference")
    folder = "./exp/training_omnisparse_small"
    assert inference["inference_dir"] == f"{folder}/inference_omnisparse"
    model = inference["model"]
    assert model.pop("_target_") == "espnet_omnisparse.bin.asr_inference.Speech2Text"
    assert model.pop("asr_train_config") == f"{folder}/config.yaml"
    assert model.pop("asr_model_file") == f"{folder}/model.pth"
    assert model == {"beam_size": 3, "ctc_weight": 0.3, "_convert_": "all"}
    assert [one["name"] for one in inference["dataset"]["test"]] == ["eval"]


def test_a_recipe_without_a_prunable_encoder_gets_a_conformer(recipe, capsys):
    rnn = {**MODEL, "encoder": "rnn", "encoder_conf": {"num_layers": 2}}
    write_yaml(recipe / "conf" / "training.yaml", {**TRAINING, "model": rnn})
    config = told(recipe)
    assert "Its encoder is rnn" in capsys.readouterr().out
    model, starter = config["model"], read_yaml(STARTER)
    assert model["encoder"] == "layer_prunable_conformer"
    assert model["encoder_conf"] == starter["encoder_conf"]
    assert model["token_list"] == MODEL["token_list"]
    assert "decoder" not in model and "optimizer" not in config
    assert config["trainer"]["max_epochs"] == starter["max_epoch"]
    decoding = read_yaml(recipe / "conf" / "inference_omnisparse.yaml")["model"]
    assert (decoding["beam_size"], decoding["ctc_weight"]) == (1, 1.0)


def test_a_configuration_made_of_others_is_read_with_them(recipe):
    tuning = recipe / "conf" / "tuning"
    tuning.mkdir()
    wide = {"defaults": ["../training", "_self_"], "model": {"vocab_size": 50}}
    write_yaml(tuning / "wide.yaml", wide)
    config = told(recipe, "--config", "conf/tuning/wide.yaml")
    assert config["model"]["vocab_size"] == 50
    assert config["model"]["encoder_conf"]["output_size"] == 16
    assert "defaults" not in config


def test_mistakes_are_told_in_one_sentence_and_nothing_is_written(recipe, capsys):
    conf = recipe / "conf"
    write_yaml(conf / "rnn.yaml", {**TRAINING, "model": {"encoder": "rnn"}})
    write_yaml(conf / "tts.yaml", {**TRAINING, "task": "x.TTSTask"})
    everything = sorted(recipe.parents[2].rglob("*"))
    assert "exists neither" in refused(capsys, recipe, "--config", "conf/none.yaml")
    assert "conformer" in refused(capsys, recipe, "--config", "conf/rnn.yaml")
    assert "x.TTSTask" in refused(capsys, recipe, "--config", "conf/tts.yaml")
    assert sorted(recipe.parents[2].rglob("*")) == everything
    (conf / "training.yaml").unlink()
    assert "has no conf/training.yaml" in refused(capsys, recipe)


def test_the_wrapper_tells_a_name_that_is_no_size_before_anything_is_run(recipe):
    told(recipe)
    path = str(Path(espnet3.__file__).parents[2])

    def run(*sizes):
        return subprocess.run(
            [recipe / "run_omnisparse.sh", *sizes],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )

    done = run("small", "smal")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: smal is no size: it is not one of small, medium, full."
    )
    assert done.stdout == ""  # which run.py prints into
    # what is made elsewhere in the configuration is not known yet
    path_of = recipe / "conf" / "training_omnisparse.yaml"
    whole = read_yaml(path_of)
    sizes = whole["model"]["model_conf"]["supernet"].pop("sizes")
    apart = {**whole, "wanted": sizes}
    apart["model"]["model_conf"]["supernet"]["sizes"] = "${wanted}"
    write_yaml(path_of, apart)
    assert "a recipe" in run("smal").stdout
    whole["model"]["model_conf"]["supernet"]["sizes"] = sizes
    write_yaml(path_of, whole)
    specs = recipe / "exp" / "training_omnisparse" / "subnets"
    specs.mkdir(parents=True)
    (specs / "smal.yaml").touch()  # of a search
    assert "a recipe" in run("small", "smal", "full").stdout


def test_the_wrapper_runs_espnet_s_stages_and_extracts_between_them(recipe):
    told(recipe)
    folder = recipe.parents[2] / "package"
    (folder / "espnet_omnisparse").mkdir(parents=True)
    (folder / "espnet_omnisparse" / "__init__.py").touch()
    (folder / "espnet_omnisparse" / "recipe").mkdir()
    (folder / "espnet_omnisparse" / "recipe" / "espnet3.py").touch()
    (folder / "espnet_omnisparse" / "cli.py").write_text(
        "import pathlib, sys\n"
        "print('cli', *sys.argv[1:])\n"
        "specs = pathlib.Path(sys.argv[2]) / 'subnets'\n"
        "specs.mkdir(parents=True, exist_ok=True)\n"
        "for size in ('full', 'small'): (specs / f'{size}.yaml').touch()\n"
    )
    (recipe / "run.py").write_text(
        "import os, sys\nprint(os.environ.get('SIZE'), *sys.argv[1:])\n"
    )

    def run(*sizes):
        done = subprocess.run(
            [recipe / "run_omnisparse.sh", *sizes],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    training = "--training_config conf/training_omnisparse.yaml"
    decoding = (
        "--stages infer measure --inference_config conf/inference_omnisparse.yaml "
        "--metrics_config conf/metrics.yaml"
    )
    exp = "exp/training_omnisparse"
    trained = [
        f"None --stages create_dataset train_tokenizer collect_stats {training}",
        f"None --stages train {training}",
        f"cli extract {exp}",
    ]
    decoded = [f"full {decoding}", f"small {decoding}"]
    assert run() == [*trained, *decoded, f"cli report {exp}"]
    assert run("small") == [*trained, decoded[1], f"cli report {exp}"]


# --- a whole recipe ----------------------------------------------------------------

EPOCHS, BATCHES = 12, 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "axis, accumulated, sizes",
    [("layer", 3, ("small", "full")), ("weight", 2, ("s90",))],
)
def test_mini_an4_from_its_audio_to_scored_sizes(
    tmp_path, monkeypatch, axis, accumulated, sizes
):
    """ESPnet3's smallest recipe, in its own stages, its training interrupted once."""
    from espnet_omnisparse.errors import UserError

    try:
        sdist = template.download(tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    with tarfile.open(sdist) as archive:
        top = f"espnet-{template.ESPNET_VERSION}/egs3/mini_an4/esp2_asr/"
        parts = [one for one in archive if one.name.startswith(top)]
        archive.extractall(tmp_path, parts, filter="data")
    recipe = tmp_path / top
    for variable, value in recipe_environment(tmp_path / "x").items():
        monkeypatch.setenv(variable, value)
    config = read_yaml(recipe / "conf" / "training_asr_transformer.yaml")
    config["model"] |= MODEL
    config["dataloader"]["train"]["iter_factory"]["batches"]["batch_size"] = 1
    trainer = {"max_epochs": EPOCHS, "accumulate_grad_batches": accumulated}
    write_yaml(recipe / "conf" / "small.yaml", {**config, "trainer": trainer})
    options = ["--config", "conf/small.yaml", "--axis", axis, "--name", axis]
    cli.main(["recipe", str(recipe), *options])
    exp = recipe / "exp" / f"training_{axis}"
    interrupt(recipe, f"./run_{axis}.sh", lambda: len(read_log(exp)) >= 3)
    made = len(read_log(exp))
    assert 3 <= made < EPOCHS and not (exp / "valid.loss_sizes.ave.pth").exists()
    done = subprocess.run(
        [f"./run_{axis}.sh", *sizes],
        cwd=recipe,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]

    # an epoch's last update has what micro-batches remain
    per_epoch = -(-BATCHES // accumulated)
    log = read_log(exp)
    assert [line["epoch"] for line in log] == [*range(1, EPOCHS + 1)]
    assert [line["update"] for line in log] == [
        per_epoch * epoch for epoch in range(1, EPOCHS + 1)
    ]
    average = load_tensors(exp / "valid.loss_sizes.ave.pth")
    assert int(average["supernet.updates"]) <= per_epoch * EPOCHS
    rows = (exp / "RESULTS.md").read_text().splitlines()
    for size in sizes:
        scored = Path(f"{exp}_{size}") / f"inference_{axis}"
        assert (scored / "metrics.json").exists()
        assert any(row.startswith(f"| {size} ") and "| test |" in row for row in rows)
        config = read_yaml(Path(f"{exp}_{size}") / "config.yaml")
        assert config["normalize"] == "global_mvn"  # which collect_stats takes away


def interrupt(recipe, command, when):
    """Starts a wrapper and kills all of it once that holds."""
    with subprocess.Popen(
        [command],
        cwd=recipe,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:
        while running.poll() is None and not when():
            time.sleep(0.05)
        assert running.poll() is None
        os.killpg(running.pid, 9)
