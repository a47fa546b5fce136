"""Hybrid models: families whose sizes have less of the attention decoder."""

import pytest
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.fileio.sound_scp import SoundScpReader
from espnet2.tasks.asr import ASRTask
from helpers import stock
from helpers.tiny import DECODER
from helpers.trained import load
from helpers.training import launch

from espnet_omnisparse import cli
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.report.results import read_size

SEARCH = {"beam_size": 4, "ctc_weight": 0.3}


def shrunk(corpus, folder, *options):
    """A family of a hybrid model with two decoder layers."""
    decoder = {"decoder_conf": {**DECODER, "num_blocks": 2}}
    given = stock.stock_model(folder / "asr_given", **{**stock.HYBRID, **decoder})
    train, dev = (str(corpus.folder / part) for part in ("train", "valid"))
    out = folder / "asr_family"
    arguments = ["shrink", str(given), "--data", train, "--dev", dev]
    arguments += ["--out", str(out), "--rounds", "1", "--utterances", "4"]
    cli.main([*arguments, "--ngpu", "0", "--epochs", "2", *options])
    return out


@pytest.fixture(scope="module")
def ctc_family(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc")
    return shrunk(corpus, folder, "--sizes", "small:0.4", "--decoder", "none")


def size_of(family, name):
    return family.with_name(f"{family.name}_{name}")


def test_sizes_without_a_decoder_are_ctc_models_of_espnet(ctc_family):
    small, full = (size_of(ctc_family, name) for name in ("small", "full"))
    config = read_yaml(small / "config.yaml")
    assert config["decoder"] is None and config["model_conf"]["ctc_weight"] == 1.0
    assert not [name for name in load(small / "model.pth") if name[:8] == "decoder."]
    assert [name for name in load(full / "model.pth") if name[:8] == "decoder."]
    found = read_size(small)
    assert found.decoder == "none" and read_size(full).decoder is None
    model, _ = ASRTask.build_model_from_file(small / "config.yaml", small / "model.pth")
    assert model.decoder is None
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert found.cost["parameters"] == counted


def test_the_report_has_the_wer_of_both_searches_for_all_sizes(ctc_family):
    for name in ("small", "full"):
        scores = read_size(size_of(ctc_family, name)).wer
        assert {*scores} == {"decode_greedy/dev", "decode_beam/dev"}
    text = (ctc_family / "RESULTS.md").read_text()
    assert text.count("| decode_beam/dev") >= 2
    assert "where not all are kept: small none." in text


def test_beam_search_without_a_decoder_is_by_ctc_alone(ctc_family, corpus, tmp_path):
    folder = size_of(ctc_family, "small")
    recordings = corpus.folder / "valid/wav.scp"
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    files = [str(folder / name) for name in ("config.yaml", "model.pth")]
    done = launch(
        *("-m", "espnet2.bin.asr_inference", "--output_dir", str(tmp_path / "out")),
        *("--config", str(tmp_path / "search.yaml")),
        *("--data_path_and_name_and_type", f"{recordings},speech,sound"),
        *("--asr_train_config", files[0], "--asr_model_file", files[1]),
    )
    assert done.returncode == 0, done.stderr
    assert "decoded by CTC alone" in done.stderr
    recognise = Speech2Text(*files, beam_size=4, ctc_weight=1.0)
    expected = {
        name: recognise(samples.astype("float32") / 2**15)[0][0]
        for name, (_, samples) in SoundScpReader(str(recordings), dtype="int16").items()
    }
    lines = (tmp_path / "out/1best_recog/text").read_text().splitlines()
    assert dict((f"{line} ").split(" ", 1) for line in lines) == {
        name: f"{text} " for name, text in expected.items()
    }


def test_sizes_of_fewer_masked_layers_load_by_stock_espnet(corpus, tmp_path):
    options = ("--sparsity", "50%", "--decoder", "1")
    family = shrunk(corpus, tmp_path, *options)
    size = size_of(family, "s50")
    assert read_yaml(size / "config.yaml")["decoder_conf"]["num_blocks"] == 1
    assert read_yaml(size / "subnet.yaml")["decoder"] == 1
    assert {*read_size(size).wer} == {"decode_greedy/dev", "decode_beam/dev"}
    model, _ = ASRTask.build_model_from_file(size / "config.yaml", size / "model.pth")
    (layer,) = model.decoder.decoders
    for linear in (layer.src_attn.linear_k, layer.feed_forward.w_1):
        zeros = float((linear.weight == 0).float().mean())
        assert zeros == pytest.approx(0.5, abs=0.05)


def test_a_decoder_that_is_not_there_is_told(corpus, tmp_path, capsys):
    given = stock.stock_model(tmp_path / "asr_ctc")
    train = str(corpus.folder / "train")
    for decoder, sentence in (
        ("none", "asr_ctc cannot be shrunk: supernet.sizes: small says what it keeps"),
        ("all", "--decoder must be none (CTC alone) or a number"),
    ):
        arguments = ["shrink", str(given), "--data", train, "--dev", train]
        arguments += ["--sizes", "small:0.4", "--decoder", decoder]
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--out", str(tmp_path / "out")])
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
