"""A packed size is a size, wherever it is unpacked."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.main_funcs.pack_funcs import unpack
from helpers.recipes import copy_recipe, run
from helpers.tiny import asr_defaults

from espnet_omnisparse import cli
from espnet_omnisparse.bench import streaming as bench_streaming
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import write_spec
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.names import CHECKPOINT
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.report import results
from espnet_omnisparse.streaming.recogniser import Recogniser

CHUNK = {"size": 8, "left": 16}
TEXT = "turn the lamp on\nturn the light off\nstop the music\nplay the song\n" * 20
EXP, STATS, BPE = (
    Path("exp/asr_x"),
    Path("exp/asr_stats/train/feats_stats.npz"),
    Path("data/token_list/bpe_unigram25/bpe.model"),
)
SIZE = Path("exp/asr_x_small")
# what tells of a size; packed since the launcher sees to it
TELLING = ("subnet.yaml", "origin.yaml", "cost.json")


def write_experiment() -> None:
    """A supernet that streams, its statistics and BPE model, in the present folder."""
    for path in (EXP / "images", STATS.parent, BPE.parent):
        path.mkdir(parents=True)
    Path("lines.txt").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input="lines.txt", model_prefix=str(BPE.with_suffix("")), vocab_size=25
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(BPE))
    tokens = [pieces.id_to_piece(number) for number in range(3, len(pieces))]
    mean = np.full(20, -5.0)
    np.savez(STATS, count=100, sum=100 * mean, sum_square=100 * (mean**2 + 4.0))
    config = {
        **asr_defaults(),
        "token_list": ["<blank>", "<unk>", *tokens, "<sos/eos>"],
        "token_type": "bpe",
        "bpemodel": str(BPE),
        "frontend_conf": {"n_fft": 512, "hop_length": 160, "n_mels": 20},
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(STATS)},
        "specaug": None,
        "model": "omni",
        "encoder": "layer_prunable_conformer",
        "encoder_conf": {
            "output_size": 16,
            "attention_heads": 2,
            "linear_units": 32,
            "num_blocks": 2,
            "cnn_module_kernel": 7,
            "rel_pos_type": "latest",
            "causal": True,
            "conv_norm": "layer_norm",
        },
        "decoder": None,
        "model_conf": {
            "ctc_weight": 1.0,
            "supernet": {
                "method": "simple_topk",
                "chunks": ["full", CHUNK],
                "sizes": {"small": 5},
            },
        },
    }
    torch.manual_seed(0)
    model = family.build(config)
    with torch.no_grad():  # by what it hears
        model.ctc.ctc_lo.weight.mul_(20.0)
    write_yaml(EXP / "config.yaml", json.loads(json.dumps(config, default=str)))
    save_tensors(EXP / CHECKPOINT, model.state_dict())
    (EXP / "images" / "loss.png").touch()
    mark = fingerprint(model.state_dict(), config["token_list"])
    space = model.encoder.space
    mask = tuple(unit < 5 for unit in range(len(space)))
    spec = SubnetSpec("small", mark, space, mask, chunk=model.supernet.chunks[-1])
    write_spec(spec, EXP / "subnets" / "small.yaml")


def pack(*launcher: str) -> Path:
    """The zip that stage 14 of asr.sh makes, by its own command."""
    (SIZE / "RESULTS.md").touch()
    packed = SIZE / "asr_x_small_model.zip"
    subprocess.run(
        [
            *(sys.executable, *launcher, "-m", "espnet2.bin.pack", "asr"),
            *("--asr_train_config", str(SIZE / "config.yaml")),
            *("--asr_model_file", str(SIZE / "model.pth")),
            *("--option", str(STATS), "--option", str(BPE)),
            *("--option", str(SIZE / "RESULTS.md"), "--option", str(SIZE / "images")),
            *("--outpath", str(packed)),
        ],
        check=True,
    )
    return packed.resolve()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe folder with an extracted size, and its zips by our pack and ESPnet's."""
    folder = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_experiment()
        cli.main(["extract", str(EXP)])
        wave = np.random.default_rng(0).normal(0.0, 0.1, 40_000)
        wave *= np.repeat(np.random.default_rng(1).uniform(0, 1, 50), 800)
        soundfile.write("a.wav", wave, 16_000)
        packed = pack("-m", "espnet_omnisparse.launch")
        shutil.move(packed, "ours.zip")
        shutil.move(pack(), "espnets.zip")
    return folder


def unzipped(archive: Path, folder: Path) -> Path:
    """As stage 15 and users do: nothing is rewritten."""
    zipfile.ZipFile(archive).extractall(folder)
    return folder


def unpacked(archive: Path, folder: Path) -> Path:
    """As ESPnet does, which writes the present place into config.yaml."""
    unpack(archive, folder)
    return folder


def moved(archive: Path, folder: Path) -> Path:
    """The same, taken elsewhere afterwards."""
    unpacked(archive, folder.with_name("before"))
    return folder.with_name("before").rename(folder)


PLACES = pytest.mark.parametrize("way", [unzipped, unpacked, moved])


@PLACES
@pytest.mark.parametrize("archive", ["ours.zip", "espnets.zip"])
def test_an_unpacked_size_streams_and_is_profiled_from_anywhere(
    recipe, archive, way, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(recipe)
    audio = str(recipe / "a.wav")

    def streamed(folder):
        capsys.readouterr()
        cli.main(["stream", "--model", str(folder), audio, "--json"])
        return json.loads(capsys.readouterr().out)

    def profiled(folder):
        cli.main(["profile", str(folder), "--json", "--rounds", "1"])
        (found,) = json.loads(capsys.readouterr().out).values()
        return found

    expected, costs = streamed(SIZE), profiled(SIZE)
    size = way(recipe / archive, tmp_path / "far") / SIZE
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe.rename(recipe.with_name("away"))  # nothing is found in there
    audio = str(recipe.with_name("away") / "a.wav")
    try:
        found = streamed(size)
        assert found["text"] == expected["text"] != ""
        assert found["latency_ms"] == expected["latency_ms"]
        found = profiled(size)
        for kind in ("parameters", "nonzero_parameters", "macs_10s", "file_bytes"):
            assert found[kind] == costs[kind]
        chunk = Recogniser.load(size).chunk
        assert chunk.as_dict() == CHUNK
        bench_streaming.main([str(size), "--audio", audio, "--rounds", "1"])
        assert "| asr_x_small |" in capsys.readouterr().out
    finally:
        recipe.with_name("away").rename(recipe)


@PLACES
def test_a_packed_size_keeps_what_tells_of_it(recipe, way, tmp_path, monkeypatch):
    size = way(recipe / "ours.zip", tmp_path / "far") / SIZE
    for name in TELLING:
        assert (size / name).read_bytes() == (recipe / SIZE / name).read_bytes()
    monkeypatch.chdir(tmp_path)
    found = results.read_size(size)
    assert (found.size, found.kept, found.of, found.form) == ("small", 5, 8, "slim")


def test_any_other_model_is_packed_as_espnet_packs_it(recipe, monkeypatch):
    names = {}
    for archive in ("ours.zip", "espnets.zip"):
        names[archive] = set(zipfile.ZipFile(recipe / archive).namelist())
    added = {str(SIZE / name) for name in TELLING}
    assert names["ours.zip"] - names["espnets.zip"] == added
    monkeypatch.chdir(recipe)
    for name in TELLING:
        (SIZE / name).rename(SIZE / f"{name}.hidden")
    try:
        packed = pack("-m", "espnet_omnisparse.launch")
        assert set(zipfile.ZipFile(packed).namelist()) == names["espnets.zip"]
    finally:
        for name in TELLING:
            (SIZE / f"{name}.hidden").rename(SIZE / name)


def test_a_packed_size_is_downloaded_and_decoded_by_the_unmodified_asr_sh(
    recipe, tmp_path, monkeypatch
):
    asr1 = copy_recipe(tmp_path / "work")
    shutil.copy(recipe / "ours.zip", asr1 / "size.zip")  # found without a network
    data = asr1 / "dump" / "raw" / "test"
    data.mkdir(parents=True)
    for name, text in {
        "wav.scp": f"u1 {recipe / 'a.wav'}\n",
        "text": "u1 turn the lamp on\n",
        "utt2spk": "u1 s1\n",
        "feats_type": "raw\n",
        "audio_format": "wav\n",
    }.items():
        (data / name).write_text(text)
    options = ["--download_model", "size.zip", "--test_sets", "test"]
    # as a user without a GPU types it, of the training's stages too
    done = run(asr1, *options, "--stage", "4", "--stop_stage", "13")
    assert done.returncode == 0, done.stdout[-4000:]
    (text,) = asr1.glob("exp/size.zip/*/test/text")
    heard = text.read_text().removeprefix("u1").strip()
    monkeypatch.chdir(recipe)
    conf = yaml.safe_load((asr1 / "conf" / "decode_ctc.yaml").read_text())
    files = (str(SIZE / "config.yaml"), str(SIZE / "model.pth"))
    wave, _ = soundfile.read("a.wav")
    assert heard == Speech2Text(*files, **conf)(wave)[0][0] != ""
    assert "/test|" in (asr1 / "exp" / "size.zip" / "RESULTS.md").read_text()
