"""Streamed features are those that the frontend makes of the whole recording."""

import numpy as np
import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.frontend.fused import FusedFrontends
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.streaming.features import FeatureStream

WINDOWS = [
    (512, 160, 400),
    (512, 128, None),
    (400, 160, None),
    (512, 256, None),
    (64, 100, None),
    (65, 20, 50),
]


def build_frontend(n_fft=512, hop=160, win_length=400, **options):
    return DefaultFrontend(
        n_fft=n_fft, hop_length=hop, win_length=win_length, n_mels=20, **options
    ).eval()


@pytest.fixture
def normalize(tmp_path):
    count, mean, std = 100, np.linspace(-9, -3, 20), np.linspace(1, 4, 20)
    stats = {"count": count, "sum": count * mean}
    stats["sum_square"] = count * (std**2 + mean**2)
    np.savez(tmp_path / "stats.npz", **stats)
    return GlobalMVN(tmp_path / "stats.npz")


def offline(frontend, normalize, audio):
    with torch.no_grad():
        length = torch.tensor([len(audio)])
        return normalize(*frontend(audio[None], length))[0][0]


def streamed(frontend, normalize, blocks):
    stream = FeatureStream(frontend, normalize)
    return torch.cat([*map(stream.push, blocks), stream.finish()])


def assert_same(features, expected):
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("n_fft", "hop", "win_length"), WINDOWS)
def test_any_division_gives_the_features_of_the_whole(
    n_fft, hop, win_length, center, normalize
):
    frontend = build_frontend(n_fft, hop, win_length, center=center)
    audio = torch.rand(1601) - 0.5
    expected = offline(frontend, normalize, audio)
    irregular = [1, 300, 0, 3, n_fft // 2, hop - 1, 500]
    divisions = [1, hop, n_fft, 777, 1601, [*irregular, 1601 - sum(irregular)]]
    for division in divisions:
        blocks = audio.split(division)
        assert_same(streamed(frontend, normalize, blocks), expected)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("n_fft", "hop", "win_length"), WINDOWS)
def test_every_length_has_as_many_frames_as_offline(
    n_fft, hop, win_length, center, normalize
):
    frontend = build_frontend(n_fft, hop, win_length, center=center)
    shortest = n_fft // 2 + 1 if center else n_fft
    for length in [*range(shortest, shortest + 4), *range(1500, 1500 + hop, 37)]:
        audio = torch.rand(length) - 0.5
        expected = offline(frontend, normalize, audio)
        assert_same(streamed(frontend, normalize, audio.split(200)), expected)


@pytest.mark.parametrize("length", [1, 100, 256])
@pytest.mark.parametrize("center", [True, False])
def test_what_espnet_refuses_as_too_short_is_lengthened_with_zeros(
    length, center, normalize
):
    frontend = build_frontend(center=center)
    audio = torch.rand(length) - 0.5
    with pytest.raises(RuntimeError):
        offline(frontend, normalize, audio)
    shortest = 257 if center else 512
    padded = torch.nn.functional.pad(audio, (0, shortest - length))
    expected = offline(frontend, normalize, padded)
    assert_same(streamed(frontend, normalize, audio.split(60)), expected)


def test_no_audio_has_no_frame(normalize):
    assert streamed(build_frontend(), normalize, []).shape == (0, 20)


def test_silence_and_a_tone_are_those_of_the_whole(normalize):
    frontend = build_frontend()
    tone = 0.5 * torch.sin(torch.arange(4000) * 0.3)
    audio = torch.cat([torch.zeros(2000), tone, torch.zeros(3000)])
    expected = offline(frontend, normalize, audio)
    assert_same(streamed(frontend, normalize, audio.split(333)), expected)


@pytest.mark.parametrize("center", [True, False])
def test_a_frame_comes_when_its_lookahead_has(center):
    stream = FeatureStream(build_frontend(center=center), None)
    assert (stream.hop, stream.lookahead) == (160, 256 if center else 512)
    frames = [len(stream.push(torch.rand(1))) for _ in range(1200)]
    arrived = np.flatnonzero(frames) + 1
    # one sample more than the first half window is needed to reflect it
    first = 257 if center else 512
    last = stream.lookahead + 160 * (len(arrived) - 1)
    assert arrived.tolist() == [first, *range(stream.lookahead + 160, last + 1, 160)]
    assert last + 160 > 1200


def test_sampling_rate_is_the_frontends():
    assert FeatureStream(build_frontend(fs="8k"), None).sample_rate == 8000
    assert FeatureStream(build_frontend(fs=16000), None).sample_rate == 16000


def test_streams_over_one_frontend_do_not_touch_each_other_or_it(normalize):
    frontend = build_frontend()
    audios = torch.rand(3, 4000) - 0.5
    expected = [offline(frontend, normalize, audio) for audio in audios]
    streams = [FeatureStream(frontend, normalize) for _ in audios]
    features = [[], [], []]
    for start in range(0, 4000, 250):
        for audio, stream, frames in zip(audios, streams, features, strict=True):
            frames.append(stream.push(audio[start : start + 250]))
        # between the blocks of the streams, an utterance as usual
        assert_same(offline(frontend, normalize, audios[0]), expected[0])
    for stream, frames, whole in zip(streams, features, expected, strict=True):
        assert_same(torch.cat([*frames, stream.finish()]), whole)


def test_a_finished_stream_begins_another_recording(normalize):
    frontend = build_frontend()
    stream = FeatureStream(frontend, normalize)
    for length in (2000, 100, 3000):
        audio = torch.rand(length) - 0.5
        features = torch.cat([stream.push(audio), stream.finish()])
        assert_same(features, streamed(frontend, normalize, [audio]))


@pytest.mark.parametrize("block", [1600, 20 * 16000])
def test_three_minutes_take_less_than_a_window_and_a_hop(block):
    stream = FeatureStream(build_frontend(), None)
    frames = 0
    for _ in range(3 * 60 * 16000 // block):
        frames += len(stream.push(torch.rand(block)))
        storage = stream._buffer.untyped_storage()
        assert storage.nbytes() // 4 < 512 + 160
    assert frames + len(stream.finish()) == 1 + 3 * 60 * 100


@pytest.mark.parametrize(
    ("frontend", "sentence"),
    [
        (None, "has none: train with --frontend default"),
        (FusedFrontends, "has FusedFrontends: train with --frontend default"),
        ({"apply_stft": False}, "with its STFT"),
        ({"frontend_conf": {"use_wpe": True, "wunits": 4, "wprojs": 4}}, "one channel"),
    ],
)
def test_other_frontends_are_refused(frontend, sentence):
    if isinstance(frontend, dict):
        frontend = build_frontend(**frontend)
    elif frontend:
        frontend = frontend([{"frontend_type": "default"}])
    with pytest.raises(UserError, match=sentence):
        FeatureStream(frontend, None)


def test_normalisation_that_needs_the_whole_recording_is_refused():
    with pytest.raises(UserError, match="train with --feats_normalize global_mvn"):
        FeatureStream(build_frontend(), UtteranceMVN())


def test_several_channels_are_refused():
    with pytest.raises(UserError, match="one channel"):
        FeatureStream(build_frontend(), None).push(torch.rand(1000, 2))
