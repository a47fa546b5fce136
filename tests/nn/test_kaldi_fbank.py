"""Kaldi's features: those of kaldi-native-fbank, whole and in a stream."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.layers.global_mvn import GlobalMVN
from helpers import REPOSITORY
from helpers.tiny import asr_config, transducer_config

from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.nn.kaldi_fbank import KaldiFbank
from espnet_omnisparse.streaming.features import FeatureStream

knf = pytest.importorskip("kaldi_native_fbank")


def golden(samples: np.ndarray, rate: int = 16000) -> torch.Tensor:
    """The features that sherpa-onnx computes, by its own library."""
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400.0
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(rate, samples.tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return torch.tensor(np.array(frames, dtype=np.float32).reshape(-1, 80))


def recording(samples: int, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """A chirp with noise and an offset."""
    time = np.arange(samples) / rate
    noise = np.random.default_rng(seed).standard_normal(samples)
    wave = 0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + 0.02 * noise + 0.05
    return wave.astype(np.float32)


def features(*recordings: np.ndarray, **options) -> list[torch.Tensor]:
    """Of a batch of recordings, padded with what must not be heard."""
    lengths = torch.tensor([len(one) for one in recordings])
    batch = torch.full((len(lengths), int(lengths.max())), 0.7)
    for row, one in zip(batch, recordings, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    feats, frames = KaldiFbank(**options)(batch, lengths)
    for one, count in zip(feats, frames, strict=True):
        assert not one[count:].any()
    return [one[:count] for one, count in zip(feats, frames, strict=True)]


def assert_same(found: torch.Tensor, expected: torch.Tensor, atol: float = 2e-3):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("samples", [80, 100, 119, 240, 399, 1599, 1680, 16000, 16079])
def test_features_are_those_of_kaldi_native_fbank(samples):
    audio = recording(samples)
    assert_same(features(audio)[0], golden(audio))


def test_a_batch_has_the_features_of_each_recording():
    audios = [recording(samples, seed=samples) for samples in (4000, 16123, 90, 9999)]
    for found, audio in zip(features(*audios), audios, strict=True):
        assert_same(found, golden(audio))


@pytest.mark.parametrize("fs", ["16k", "8k", 8000])
def test_the_rate_is_given_as_espnet_gives_it(fs):
    rate = 16000 if fs == "16k" else 8000
    audio = recording(rate, rate)
    assert_same(features(audio, fs=fs)[0], golden(audio, rate))


def test_silence_is_at_kaldis_floor():
    found = features(np.zeros(1600, np.float32))[0]
    assert_same(found, golden(np.zeros(1600, np.float32)))
    assert found.unique().tolist() == pytest.approx([-15.9424], abs=1e-4)


@pytest.mark.skipif("OMNISPARSE_TEST_DATA" not in os.environ, reason="no real audio")
def test_real_speech_has_the_features_of_kaldi_native_fbank():
    data = Path(os.environ["OMNISPARSE_TEST_DATA"]) / "LibriSpeech/digits-test"
    for path in sorted(data.rglob("*.opus"))[:3]:
        audio, rate = soundfile.read(path, dtype="float32")
        assert_same(features(audio)[0], golden(audio, rate))


@pytest.fixture
def normalize(tmp_path):
    count, mean, std = 100, np.linspace(-9, -3, 80), np.linspace(1, 4, 80)
    stats = {"count": count, "sum": count * mean}
    stats["sum_square"] = count * (std**2 + mean**2)
    np.savez(tmp_path / "stats.npz", **stats)
    return GlobalMVN(tmp_path / "stats.npz")


@pytest.mark.parametrize("samples", [1, 79, 80, 119, 120, 150, 240, 400, 1601, 16079])
def test_any_division_of_a_stream_gives_the_features_of_the_whole(samples, normalize):
    frontend, audio = KaldiFbank(), torch.from_numpy(recording(samples))
    whole = frontend(audio[None], torch.tensor([samples]))
    expected = normalize(*whole)[0][0] if whole[1] else whole[0][0]
    for division in (1, 160, 400, 777, samples):
        if samples > 2000 and division == 1:
            continue
        stream = FeatureStream(frontend, normalize)
        parts = [stream.push(block) for block in audio.split(division)]
        assert_same(torch.cat([*parts, stream.finish()]), expected, 1e-5)


def test_a_frame_comes_when_its_lookahead_has():
    stream = FeatureStream(KaldiFbank(), None)
    assert (stream.hop, stream.lookahead, stream.sample_rate) == (160, 280, 16000)
    frames = [len(stream.push(torch.rand(1))) for _ in range(1200)]
    assert (np.flatnonzero(frames) + 1).tolist() == [*range(280, 1201, 160)]


@pytest.mark.parametrize("make", [asr_config, transducer_config])
def test_both_tasks_build_it_by_its_name(make):
    config = make(input_size=None) if make is asr_config else make()
    config |= {"input_size": None, "frontend": "kaldi_fbank"}
    config["frontend_conf"] = {"fs": "16k"}  # as ESPnet's scripts give it
    model = family.build(config)
    assert isinstance(model.frontend, KaldiFbank)
    assert family.feature_size(config) == 80
    encoded, lengths = model.encode(torch.rand(1, 16000), torch.tensor([16000]))
    assert encoded.isfinite().all() and lengths.tolist() == [24]
    # a checkpoint has nothing of it: a size without it loads as well
    assert not any(name.startswith("frontend") for name in model.state_dict())


@pytest.mark.parametrize("recipe", ["librispeech", "tedlium2"])
def test_both_recipes_have_a_deployment_configuration(recipe, monkeypatch, tmp_path):
    from espnet_omnisparse.recipe.checks import check
    from espnet_omnisparse.recipe.options import parse
    from espnet_omnisparse.tasks import task_of

    monkeypatch.chdir(REPOSITORY / "egs2" / recipe / "asr1")
    path = "conf/deployment.yaml"
    given = ["--stage", "10", "--asr_config", path, "--feats_normalize", "global_mvn"]
    check(parse([*given, "--asr_task", "asr_transducer", "--ngpu", "0"]))
    task = task_of(yaml.safe_load(Path(path).read_text()))
    given = ["--config", path, "--output_dir", str(tmp_path), "--frontend_conf"]
    args = task.get_parser().parse_args([*given, "fs=16k"])
    args.token_list = ["<blank>", "<unk>", "a", "<sos/eos>"]
    args.normalize = None
    assert isinstance(task.build_model(args).frontend, KaldiFbank)
