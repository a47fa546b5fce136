"""Folders as packed files and back: what comes back is what was packed."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
import yaml
from helpers.learned import config_of
from helpers.tiny import DECODER, FEATURES, asr_config, build, transducer_config
from helpers.trained import assert_same_tensors, load
from helpers.transducers import AUDIO

from espnet_omnisparse import cli
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import matrices_of, read_packed, write_packed
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import read_yaml, save_tensors, write_yaml


def plain(encoder=None, **changes):
    """The configuration of a CTC model on audio that is no supernet."""
    config = asr_config(encoder, **AUDIO, **changes)
    config["model_conf"].pop("supernet", None)
    return config


def statistics(folder):
    """Feature statistics, in double precision, where a recipe has them."""
    path = folder / "exp" / "asr_stats" / "train" / "feats_stats.npz"
    path.parent.mkdir(parents=True)
    mean = np.random.default_rng(0).standard_normal(FEATURES)
    np.savez(path, count=10, sum=10 * mean, sum_square=10 * (mean**2 + 2))
    return path


def size_of(folder, config, model=None):
    """The folder of a size."""
    size = folder / "exp" / "asr_x_s80"
    size.mkdir(parents=True)
    model = model or build(config)
    save_tensors(size / family.MODEL, model.state_dict())
    write_yaml(size / family.CONFIG, json.loads(json.dumps(config, default=str)))
    return size


def masked(model, share, everywhere=False):
    """The model with zeros in blocks of 8 x 1 weights."""
    generator = torch.Generator().manual_seed(1)
    for name, (out, inputs) in matrices_of(model).items():
        if everywhere or ".encoders." in name:
            kept = torch.rand(-(-out // 8), inputs, generator=generator) > share
            mask = kept.repeat_interleave(8, 0)[:out]
            weight = model.get_parameter(name)
            with torch.no_grad():
                weight *= mask.view(weight.shape)
    return model


#: the branches of blocks with one side, without any, and with both
SIDES = [["mhsa", "ffn2"], [], ["mhsa", "cgmlp"]]


def other(encoder, model="omni", **options):
    """The same of an encoder that is no Conformer."""
    conf = {**plain()["encoder_conf"], **options}
    del conf["cnn_module_kernel"]
    if "transformer" in encoder:
        del conf["rel_pos_type"]
    name = encoder if model == "espnet" else f"layer_prunable_{encoder}"
    return {**plain(), "encoder": name, "encoder_conf": conf, "model": model}


CONFIGS = {
    "ctc": lambda folder: plain(),
    "statistics": lambda folder: plain(
        normalize="global_mvn", normalize_conf={"stats_file": str(statistics(folder))}
    ),
    "branches dropped": lambda folder: plain(
        {"kept": [["mhsa"], [], ["ffn1", "conv"]], "conv_norm": "layer_norm"}
    ),
    "streaming": lambda folder: plain(
        {"causal": True, "chunk": {"size": 4, "left": 8}}
    ),
    "e_branchformer": lambda folder: other("e_branchformer", kept=SIDES, use_ffn=True),
    "e_branchformer with linear gates": lambda folder: other(
        "e_branchformer", use_linear_after_conv=True, gate_activation="selu"
    ),
    "transformer": lambda folder: other("transformer", kept=[["mhsa"], [], ["ffn2"]]),
    "asr transducer": lambda folder: plain(
        model="omni_transducer",
        model_conf={"ctc_weight": 0.3},
        decoder="transducer",
        decoder_conf={"num_layers": 1, "hidden_size": 8},
        joint_net_conf={"joint_space_size": 8},
    ),
    "asr_transducer": lambda folder: {
        **transducer_config(auxiliary_ctc_weight=0.3),
        **AUDIO,
    },
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_size_comes_back_as_it_was(tmp_path, kind, capsys):
    config = CONFIGS[kind](tmp_path)
    size = size_of(tmp_path, config, masked(build(config), 0.8))
    (size / family.ORIGIN).write_text("version: 0.2.0\n")
    cli.main(["export", str(size), "--to", "packed", "--licence", "CC-BY-4.0"])
    path = size.with_name("asr_x_s80.omni")
    assert capsys.readouterr().out.splitlines()[-1] == f"{path}: exported"
    told, tensors = read_packed(path)
    assert told["licence"] == "CC-BY-4.0"
    assert told["provenance"]["size"] == "asr_x_s80"
    assert told["dtype"] == "fp32" and told["sparse"]
    out = tmp_path / "elsewhere" / "asr_x"
    cli.main(["export", str(path), "--to", "espnet", "-o", str(out)])
    expected = load(size / family.MODEL)
    assert_same_tensors(load(out / family.MODEL), expected)
    for name, tensor in load(out / family.MODEL).items():
        assert tensor.dtype == expected[name].dtype, name
    found, before = read_yaml(out / family.CONFIG), read_yaml(size / family.CONFIG)
    if kind == "statistics":
        before_stats = before["normalize_conf"].pop("stats_file")
        stats = found["normalize_conf"].pop("stats_file")
        assert stats == str(out / "train" / "feats_stats.npz")
        with open(stats, "rb") as ours, open(before_stats, "rb") as theirs:
            assert ours.read() == theirs.read()
        assert any(name.startswith("espnet.state.normalize") for name in tensors)
        assert tensors["normalize.mean"].dtype == np.float32
    assert found == before
    assert (out / family.ORIGIN).read_text() == "version: 0.2.0\n"
    family.load_size(out)  # strictly


def test_a_bpe_model_comes_along(tmp_path):
    bpe = tmp_path / "data" / "bpe_unigram30" / "bpe.model"
    bpe.parent.mkdir(parents=True)
    bpe.write_bytes(bytes(range(256)))
    size = size_of(tmp_path, {**plain(), "token_type": "bpe", "bpemodel": str(bpe)})
    out = tmp_path / "out"
    cli.main(["export", str(size), "--to", "packed", "-o", str(tmp_path / "m.omni")])
    bpe.unlink()
    cli.main(["export", str(tmp_path / "m.omni"), "--to", "espnet", "-o", str(out)])
    found = read_yaml(out / family.CONFIG)["bpemodel"]
    assert found == str(out / "bpe_unigram30" / "bpe.model")
    assert (out / "bpe_unigram30" / "bpe.model").read_bytes() == bytes(range(256))


def test_a_hybrid_model_leaves_its_decoder_and_says_so(tmp_path, capsys):
    config = plain(decoder="transformer", decoder_conf=DECODER)
    config["model_conf"]["ctc_weight"] = 0.3
    size = size_of(tmp_path, config)
    path, out = tmp_path / "m.omni", tmp_path / "out"
    cli.main(["export", str(size), "--to", "packed", "-o", str(path)])
    assert "is without its attention decoder" in "".join(capsys.readouterr())
    assert not any(name.startswith("decoder.") for name in read_packed(path)[1])
    cli.main(["export", str(path), "--to", "espnet", "-o", str(out)])
    model, whole = family.load_size(out), family.load_size(size)
    assert model.decoder is None
    speech, lengths = 0.1 * torch.randn(1, 16000), torch.tensor([16000])
    with torch.no_grad():
        found = model.ctc.log_softmax(model.encode(speech, lengths)[0])
        expected = whole.ctc.log_softmax(whole.encode(speech, lengths)[0])
    assert torch.equal(found, expected)


def test_a_rounded_file_becomes_a_folder_that_says_so(tmp_path, capsys):
    size = size_of(tmp_path, plain())
    cli.main(["export", str(size), "--to", "packed", "--dtype", "int8"])
    path = size.with_name("asr_x_s80_int8.omni")
    cli.main(["export", str(path), "--to", "espnet"])
    assert "weights as they were rounded" in "".join(capsys.readouterr())
    found = family.load_size(size.with_name("asr_x_s80_int8_espnet")).state_dict()
    for name, tensor in load(size / family.MODEL).items():
        assert (found[name] - tensor).abs().max() <= tensor.abs().max() / 200, name


def altered(config, **encoder):
    return {**config, "encoder_conf": {**config["encoder_conf"], **encoder}}


REFUSED = {
    "is a supernet": lambda: asr_config(**AUDIO),
    "preencoder": lambda: plain(
        preencoder="linear",
        preencoder_conf={"input_size": FEATURES, "output_size": 16},
    ),
    "normalize_before": lambda: other("transformer", "espnet", normalize_before=False),
    "FastSelfAttention": lambda: other(
        "e_branchformer",
        "espnet",
        attention_layer_type="fast_selfattn",
        pos_enc_layer_type="abs_pos",
    ),
    "qk_norm": lambda: other("transformer", "espnet", qk_norm=True),
    "rel_pos or abs_pos": lambda: other(
        "e_branchformer",
        attention_layer_type="selfattn",
        pos_enc_layer_type="conv",
    ),
    "only conformer, e_branchformer, transformer": lambda: {
        **plain(),
        "encoder": "branchformer",
        "encoder_conf": {"output_size": 16, "num_blocks": 1, "attention_heads": 2},
        "model": "espnet",
    },
    "positionwise_layer_type": lambda: altered(
        plain(), positionwise_layer_type="conv1d"
    ),
    "default frontend": lambda: plain() | {"frontend": None, "input_size": FEATURES},
    "volume_normalize": lambda: plain() | {"speech_volume_normalize": 0.5},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_a_file_cannot_have_is_told(tmp_path, sentence, capsys):
    size = size_of(tmp_path, REFUSED[sentence]())
    path = tmp_path / "m.omni"
    with pytest.raises(SystemExit):
        cli.main(["export", str(size), "--to", "packed", "-o", str(path)])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and sentence in told
    assert not path.exists()


def test_other_folders_and_options_are_told_of(tmp_path, capsys):
    lm = tmp_path / "lm"
    lm.mkdir()
    (lm / family.CONFIG).write_text("lm: seq_rnn\nlm_conf: {}\n")
    size = size_of(tmp_path, plain())
    unpacked = tmp_path / "memory.omni"
    config = config_of("ctc", tmp_path)
    np.savez(tmp_path / "stats.npz", count=1, sum=np.zeros(80), sum_square=np.ones(80))
    model = build(config)
    write_packed(unpacked, model, describe(model, config))
    for arguments, sentence in (
        ([str(lm), "--to", "packed"], "is a language model"),
        ([str(tmp_path / "no"), "--to", "packed"], "is not an experiment folder"),
        ([str(size), "--to", "packed", "--chunk", "4"], "--chunk is not an option"),
        ([str(unpacked), "--to", "espnet"], "was not made from a folder"),
        ([str(size), "--to", "espnet"], "is a folder already"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["export", *arguments])
        assert sentence in capsys.readouterr().err
    cli.main(["export", str(size), "--to", "packed"])
    packed = str(size.with_name("asr_x_s80.omni"))
    with pytest.raises(SystemExit):
        cli.main(["export", packed, "--to", "espnet", "-o", str(size)])
    assert "is there already" in capsys.readouterr().err
    (size / family.MODEL).unlink()
    with pytest.raises(SystemExit):
        cli.main(["export", str(size), "--to", "packed"])
    assert "has no model.pth" in capsys.readouterr().err


def test_nothing_of_a_file_is_unpickled_or_written_elsewhere(tmp_path):
    """A file from anyone: what it names as its own files stays in the folder."""
    model, config = build(plain()), {**plain(), "bpemodel": "../../../evil"}
    told = {
        **describe(model, config),
        "espnet": {
            "config": yaml.safe_dump(json.loads(json.dumps(config, default=str))),
            "files": {"../evil": "x", "/tmp/evil": "x", "origin.yaml": "fine: 1\n"},
        },
    }
    path, out = tmp_path / "m.omni", tmp_path / "a" / "out"
    code = np.frombuffer(pickle.dumps(print), np.uint8)
    write_packed(path, model, told, apart={"espnet.bpemodel": code})
    cli.main(["export", str(path), "--to", "espnet", "-o", str(out)])
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    names = ["config.yaml", "evil", "model.pth", "origin.yaml"]
    assert found == ["a", "a/out", *(f"a/out/{name}" for name in names), "m.omni"]
    with zipfile.ZipFile(out / "model.pth"):
        pass  # PyTorch's plain format


def big():
    """A net of 12 blocks of width 256, at 80 % zeros."""
    shape = {
        "output_size": 256,
        "attention_heads": 4,
        "linear_units": 2048,
        "num_blocks": 12,
        "cnn_module_kernel": 31,
    }
    return plain(shape, token_list=[*map(str, range(500)), "<sos/eos>"])


@pytest.mark.slow
def test_files_are_as_small_as_their_weights(tmp_path):
    size = size_of(tmp_path, big(), masked(build(big()), 0.8, everywhere=True))
    whole = (size / family.MODEL).stat().st_size
    state = load(size / family.MODEL)
    matrices = matrices_of(family.load_size(size))
    rest = sum(tensor.nbytes for name, tensor in state.items() if name not in matrices)
    for dtype, each, share in (("fp32", 4, 0.25), ("int8", 1, 0.08)):
        path = tmp_path / f"{dtype}.omni"
        options = ["--to", "packed", "--dtype", dtype, "-o", str(path)]
        cli.main(["export", str(size), *options])
        weights = sum(int(state[name].count_nonzero()) for name in matrices)
        # a 16-bit column for each block of eight
        least = rest + each * weights + 2 * weights // 8
        found = path.stat().st_size
        assert least <= found <= 1.1 * least, (dtype, found, least)
        assert found <= share * whole, (dtype, found / whole)
