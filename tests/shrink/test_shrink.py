import pytest
from espnet2.bin.asr_inference import Speech2Text
from helpers import stock
from helpers.trained import load

from espnet_omnisparse import cli
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.report.results import read_score

DATA = "train", "valid"


def command(model, corpus, out, *options):
    """The arguments of `omnisparse` for a run of a few updates."""
    train, dev = (str(corpus.folder / part) for part in DATA)
    return [
        *("shrink", str(model), "--data", train, "--dev", dev, "--out", str(out)),
        *("--rounds", "1", "--utterances", "4", "--ngpu", "0", *options),
    ]


LAYERS = ("--sizes", "small:0.4 medium:5", "--epochs", "2")
WEIGHTS = ("--sparsity", "50% 0.8", "--updates", "10")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return stock.stock_model(tmp_path_factory.mktemp("user") / "asr_ctc")


def wer(size):
    return read_score(size / "decode_greedy/dev/score_wer/result.txt")


def refusal(capsys, arguments):
    """The sentence with which a command refuses."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error: " in x]
    return line


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_stock_model_becomes_a_family_of_layer_sizes(
    form, model, corpus, tmp_path, capsys
):
    given = model
    if form == "zip":
        given = stock.packed(model, tmp_path / "asr.zip")
    out = tmp_path / "asr_family"
    cli.main(command(given, corpus, out, *LAYERS))
    told = capsys.readouterr()
    assert "Without any training" in told.err
    lines = told.out.splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["small", "medium", "full"]
    for name, kept in (("small", 3), ("medium", 5), ("full", 8)):
        size = tmp_path / f"asr_family_{name}"
        assert read_yaml(size / "subnet.yaml")["branches"]["kept"] == kept
        assert wer(size).sentences == 4
        Speech2Text(size / "config.yaml", size / "model.pth", ctc_weight=1.0)
    assert (out / "RESULTS.md").is_file()
    config = read_yaml(out / "config.yaml")
    theirs = read_yaml(model / "config.yaml")
    for name in ("token_list", "frontend_conf", "normalize", "optim"):
        assert config[name] == theirs[name]
    folder = out / "model" / "asr_ctc" if form == "zip" else model
    weights = folder.resolve() / "valid.loss.ave.pth"
    assert config["init_param"] == [str(weights)]


def test_a_stock_model_becomes_a_family_of_sparsities(model, corpus, tmp_path):
    out = tmp_path / "asr_family"
    cli.main(command(model, corpus, out, *WEIGHTS))
    for name, share in (("s50", 0.5), ("s80", 0.8), ("full", 0.0)):
        weight = load(tmp_path / f"asr_family_{name}" / "model.pth")[
            "encoder.encoders.0.feed_forward.w_1.weight"
        ]
        assert float((weight == 0).float().mean()) == pytest.approx(share, abs=0.07)
