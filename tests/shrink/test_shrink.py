import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml
from espnet2.bin.asr_inference import Speech2Text
from helpers import REPOSITORY, stock
from helpers.trained import assert_same_tensors, load
from helpers.training import files_below

from espnet_omnisparse import cli
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.report.scores import read_score
from espnet_omnisparse.shrink import run
from espnet_omnisparse.shrink.original import read_original
from espnet_omnisparse.shrink.plan import (
    Length,
    layer_axis,
    training_config,
    weight_axis,
)

LAYERS = ("--sizes", "small:0.4 medium:5", "--epochs", "2")
WEIGHTS = ("--sparsity", "50% 0.8", "--updates", "10")
SIZES = ("small", "medium", "full")


def command(model, corpus, out, *options):
    """The arguments of `omnisparse` for a run of a few updates."""
    train, dev = (str(corpus.folder / part) for part in ("train", "valid"))
    return [
        *("shrink", str(model), "--data", train, "--dev", dev, "--out", str(out)),
        *("--rounds", "1", "--utterances", "4", "--ngpu", "0", *options),
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return stock.stock_model(tmp_path_factory.mktemp("user") / "asr_ctc")


@pytest.fixture(scope="module")
def layer_family(model, corpus, tmp_path_factory):
    """A family of the layer axis, made without an interruption, from a console."""
    out = tmp_path_factory.mktemp("exp") / "asr_family"
    argv = command(model, corpus, out, *LAYERS)
    typed = [sys.executable, "-m", "espnet_omnisparse.cli", *argv]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(typed, env=environment, check=True)
    return out


@pytest.mark.parametrize(
    "axis, lr, expected",
    [
        (layer_axis({"small": 0.5}), None, 0.002),
        (weight_axis({"s90": {"sparsity": 0.9}}), None, 0.004),
        (weight_axis({"s90": {"sparsity": 0.9}}), 0.03, 0.03),
        (layer_axis({"watch": {"units": 0.5, "sparsity": 0.9}}), None, 0.004),
    ],
)
def test_the_highest_rate_is_of_the_axis(model, tmp_path, axis, lr, expected):
    original = read_original(str(model), None, tmp_path / "unpacked")
    config = training_config(original, axis, Length(updates=10), lr)
    rates = config["scheduler_conf"]["warmup_lr_list"]
    assert rates == pytest.approx([0.0, expected, 0.0])


def size_of(family, name):
    return family.with_name(f"{family.name}_{name}")


def scored(size):
    """The word scores of a size's folder."""
    return read_score(size / "decode_greedy/dev/score_wer/result.txt")


def assert_same_family(found, expected):
    for name in SIZES:
        one, other = (size_of(family, name) for family in (found, expected))
        assert_same_tensors(load(one / "model.pth"), load(other / "model.pth"))
        assert scored(one) == scored(other)
    assert (found / "one_shot.json").read_text() == (
        expected / "one_shot.json"
    ).read_text()


def test_a_stock_model_becomes_a_family_of_layer_sizes(layer_family, model):
    for name, kept in (("small", 3), ("medium", 5), ("full", 8)):
        size = size_of(layer_family, name)
        assert read_yaml(size / "subnet.yaml")["branches"]["kept"] == kept
        assert scored(size).sentences == 4
        Speech2Text(size / "config.yaml", size / "model.pth", ctc_weight=1.0)
    assert (layer_family / "RESULTS.md").is_file()
    config = read_yaml(layer_family / "config.yaml")
    theirs = read_yaml(model / "config.yaml")
    for name in ("token_list", "frontend_conf", "normalize", "optim"):
        assert config[name] == theirs[name]
    weights = str((model / "valid.loss.ave.pth").resolve())
    assert config["init_param"] == [weights]
    assert config["model_conf"]["supernet"]["teacher"] == weights


def test_a_packed_model_gives_the_same_family(
    layer_family, model, corpus, tmp_path, capsys
):
    out = tmp_path / "asr_family"
    packed = stock.packed(model, tmp_path / "asr.zip")
    cli.main(command(packed, corpus, out, *LAYERS))
    assert_same_family(out, layer_family)
    told = capsys.readouterr()
    assert "Without any training" in told.err
    lines = told.out.splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == [*SIZES]
    assert [line.split(", ")[-1] for line in lines] == [
        str(size_of(out, name)) for name in SIZES
    ]


def test_a_killed_run_goes_on_to_the_same_family(layer_family, model, corpus, tmp_path):
    out = tmp_path / "asr_family"
    arguments = command(model, corpus, out, *LAYERS)
    code = f"""
import os, signal
from espnet_omnisparse import cli
from espnet_omnisparse.supernet.supernet import Supernet
count = Supernet.count_update
def count_update(supernet):
    count(supernet)
    if supernet.update == 7:  # of 10, in the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
Supernet.count_update = count_update
cli.main({arguments!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert not size_of(out, "small").exists()
    cli.main(arguments)
    assert_same_family(out, layer_family)


def test_what_is_done_is_not_done_again(layer_family, model, corpus, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in layer_family.parent.rglob("*.pth")}
    monkeypatch.setattr(run.asr_train, "main", None)
    monkeypatch.setattr(run, "score", lambda *_: None)  # scores are there
    cli.main(command(model, corpus, layer_family, *LAYERS))
    sizes = [size_of(layer_family, name) / "model.pth" for name in SIZES]
    assert all(before[path] == path.stat().st_mtime_ns for path in sizes)


def test_a_stock_model_becomes_a_family_of_sparsities(model, corpus, tmp_path):
    out = tmp_path / "asr_family"
    cli.main(command(model, corpus, out, *WEIGHTS))
    for name, share in (("s50", 0.5), ("s80", 0.8), ("full", 0.0)):
        weight = load(size_of(out, name) / "model.pth")[
            "encoder.encoders.0.feed_forward.w_1.weight"
        ]
        assert float((weight == 0).float().mean()) == pytest.approx(share, abs=0.07)


def test_a_stock_model_becomes_a_family_of_both_axes(model, corpus, tmp_path):
    out = tmp_path / "asr_family"
    sizes = "watch:4@70% phone:0.75@50% car:@80% server:0.75"
    cli.main(command(model, corpus, out, "--sizes", sizes, "--updates", "10"))
    for name, kept, share in (
        *(("watch", 4, 0.7), ("phone", 6, 0.5), ("car", 8, 0.8)),
        *(("server", 6, 0.0), ("full", 8, 0.0)),
    ):
        size = size_of(out, name)
        spec = read_yaml(size / "subnet.yaml")
        assert spec["branches"]["kept"] == kept
        weights = [
            weight
            for key, weight in load(size / "model.pth").items()
            if key.endswith(("w_1.weight", "w_2.weight", "linear_out.weight"))
        ]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        count = sum(weight.numel() for weight in weights)
        assert zeros / count == pytest.approx(share, abs=0.07)
        Speech2Text(size / "config.yaml", size / "model.pth", ctc_weight=1.0)
    config = read_yaml(out / "config.yaml")
    assert config["scheduler_conf"]["warmup_lr_list"][1] == 0.004


OTHERS = {
    "transducer": (stock.TRANSDUCER, LAYERS),
    "E-Branchformer": (stock.E_BRANCHFORMER, LAYERS),
    "E-Branchformer, masked": (stock.E_BRANCHFORMER, WEIGHTS),
    "Transformer": (stock.BARE_TRANSFORMER, LAYERS),
    "hybrid, 6x": (
        {**stock.HYBRID, "encoder_conf": {"input_layer": "conv2d6"}},
        WEIGHTS,
    ),
    "absolute positions, wider, 8x": (
        {
            "encoder_conf": {
                "output_size": 24,
                "attention_heads": 4,
                "input_layer": "conv2d8",
                "pos_enc_layer_type": "abs_pos",
                "selfattention_layer_type": "selfattn",
                "rel_pos_type": "legacy",
            },
            "token_list": ["<blank>", "<unk>", "C", "B", "A", "D", "é", "<sos/eos>"],
        },
        LAYERS,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_become_families(kind, corpus, tmp_path):
    changes, options = OTHERS[kind]
    given = stock.stock_model(tmp_path / "asr_given", **changes)
    out = tmp_path / "asr_family"
    cli.main(command(given, corpus, out, *options))
    theirs = read_yaml(given / "config.yaml")
    for name in read_yaml(out / "shrink.yaml")["supernet"]["sizes"]:
        size = size_of(out, name)
        assert scored(size).sentences == 4
        assert read_yaml(size / "config.yaml")["token_list"] == theirs["token_list"]


def refusal(capsys, arguments):
    """The sentence with which a command refuses."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error: " in x]
    return line


REFUSED = {
    "attention": ({**stock.HYBRID, "model_conf": {"ctc_weight": 0.0}}, "above 0"),
    "rate": ({"frontend_conf": {"fs": 8000}}, "has 16000 samples a second, but the"),
    "tokens": (
        {"token_list": ["<blank>", "<unk>", "a", "b", "c", "<sos/eos>"]},
        "100 % of the tokens of",
    ),
    "learning rate": ({"scheduler": "noamlr", "scheduler_conf": {}}, "with --lr"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shrunk_is_told_in_a_sentence(case, corpus, tmp_path, capsys):
    changes, sentence = REFUSED[case]
    given = stock.stock_model(tmp_path / "asr_given", **changes)
    before = files_below(tmp_path)
    out = tmp_path / "exp" / "asr_out"
    line = refusal(capsys, command(given, corpus, out, *LAYERS))
    assert sentence in line
    assert files_below(tmp_path) == before


def test_an_encoder_that_is_not_known_is_refused(model, corpus, tmp_path, capsys):
    given = tmp_path / model.name
    shutil.copytree(model, given)
    config = read_yaml(given / "config.yaml")
    (given / "config.yaml").write_text(yaml.safe_dump({**config, "encoder": "rnn"}))
    line = refusal(capsys, command(given, corpus, tmp_path / "out", *LAYERS))
    assert "has the encoder rnn, which cannot be shrunk" in line
    assert not (tmp_path / "out").exists()


def test_sizes_and_folders_that_make_no_sense_are_refused(
    layer_family, model, corpus, tmp_path, capsys
):
    def told(*options, given=model, out=tmp_path / "out"):
        return refusal(capsys, command(given, corpus, out, *options))

    assert "name 0.5 as well" in told("--sizes", "0.5")
    assert "must be a share of zeros" in told("--sparsity", "120%")
    assert "supernet.sizes" in told("--sizes", "small:99")
    assert "name @70% as well" in told("--sizes", "@70%")
    assert "8MB in a:8MB@70% must be a fraction" in told("--sizes", "a:8MB@70%")
    assert "no size drops a branch" in told("--sizes", "car:@80% phone:@50%")
    assert "--sizes: nothing must be a share" in told("--sizes", "small:0.5@")
    assert "--sizes: 99.99% cannot be met" in told("--sizes", "small:0.5@99.99%")
    assert "has small twice" in told("--sizes", "small:0.5 small:0.3")
    assert "has s50 twice" in told("--sparsity", "50% 0.5")
    assert "--sizes: 'nan' must be" in told("--sizes", "small:nan")
    assert "does not exist: give an experiment folder" in told(*LAYERS, given="nowhere")
    other = told("--sizes", "small:0.5", out=layer_family)
    assert "is the family of another model" in other
    (tmp_path / "mine").mkdir()
    assert "no family of omnisparse shrink" in told(*LAYERS, out=tmp_path / "mine")
    assert "is a supernet already" in told(*LAYERS, given=layer_family)
    (tmp_path / "bad.zip").write_text("no zip")
    assert "is no packed model" in told(*LAYERS, given=tmp_path / "bad.zip")

    def train_args(text):
        return told(*LAYERS, f"--train_args={text}")

    assert "--train_args: unrecognized arguments: --lr_ 1" in train_args("--lr_ 1")
    assert "--train_args: argument --max_epoch: invalid" in train_args("--max_epoch x")
    assert "no arguments (No closing quotation)" in train_args("--optim 'adam")
    assert "supernet.update must be one of" in train_args(
        "--model_conf supernet.update=all"
    )
    assert "--resume=false is given by omnisparse" in train_args("--resume=false")
    assert "--outp is given by omnisparse shrink" in train_args("--outp elsewhere")
    assert not (tmp_path / "out").exists()
    assert "--train_args holds --help" in train_args("-h")
    for option in ("--lr=nan", "--lr=-1", "--ngpu=-1"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command(model, corpus, tmp_path / "out", *LAYERS, option))
        assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        cli.main(command(model, corpus, tmp_path / "out"))
    assert "--sizes --sparsity is required" in capsys.readouterr().err


def test_what_the_training_would_end_with_is_told_before_it(
    model, corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "exp" / "asr_out"
    line = refusal(capsys, command(model, corpus, out, *LAYERS, "--ngpu", "2"))
    assert "--ngpu 2 needs 2 GPUs, and PyTorch finds none" in line
    assert not out.parent.exists()
    for options, sentence in (
        (("--sparsity", "50% 99.99%"), "--sparsity: 99.99% cannot be met; the nearest"),
        (("--sizes", "fast:0.001ms"), "supernet.sizes: fast asks for 0.00 ms for 10 s"),
        (("--sizes", "tiny:1kB"), "supernet.sizes: tiny asks for 1,000 packed bytes"),
    ):
        line = refusal(capsys, command(model, corpus, out, *options))
        assert sentence in line
        assert not out.parent.exists()
    (tmp_path / "exp" / "asr_out_full").mkdir(parents=True)
    (tmp_path / "exp" / "asr_out_full" / "mine").touch()
    before = files_below(tmp_path)
    line = refusal(capsys, command(model, corpus, out, *LAYERS))
    assert "asr_out_full is there already and is not a size" in line
    assert files_below(tmp_path) == before


def test_a_packed_model_is_not_unpacked_into_the_family_of_another(
    layer_family, model, corpus, tmp_path, capsys
):
    packed = stock.packed(model, tmp_path / "asr.zip")
    before = files_below(layer_family)
    line = refusal(capsys, command(packed, corpus, layer_family, *LAYERS))
    assert "is the family of another model" in line
    assert files_below(layer_family) == before


def test_data_that_cannot_be_read_is_refused(model, tmp_path, capsys):
    train = tmp_path / "train"
    train.mkdir()
    sound = tmp_path / "a.wav"
    soundfile.write(sound, [0.0] * 16000, 16000)

    def told():
        arguments = ["shrink", str(model), "--data", str(train), "--dev", str(train)]
        arguments += ["--out", str(tmp_path / "out"), "--sizes", "small:0.5"]
        return refusal(capsys, arguments)

    assert "wav.scp does not exist" in told()
    (train / "wav.scp").write_text(f"a {sound}\n")
    (train / "text").write_text("b AB\n")
    assert "no utterance with both audio and text" in told()
    (train / "text").write_text("a AB\n")
    (train / "wav.scp").write_text("a sox a.sph -t wav - |\n")
    assert "has a command" in told()
    (train / "wav.scp").write_text(f"a {Path('nowhere.wav')}\n")
    assert "is not there, or no audio" in told()
    (train / "segments").write_text("a a 0 1\n")
    assert "has segments" in told()
    assert not (tmp_path / "out").exists()
