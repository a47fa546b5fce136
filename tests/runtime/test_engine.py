"""The engine says what ESPnet says: whole recordings, streams, and their searches."""

import ctypes

import numpy as np
import pytest
import torch
from helpers.engine_models import (
    MAKERS,
    RATE,
    STREAMING,
    TRANSDUCERS,
    encoded,
    exact_log_probs,
    log_probs,
    made,
    sound,
    write,
)

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.runtime.library import VARIABLE
from espnet_omnisparse.runtime.model import Model, Options, Stream
from espnet_omnisparse.streaming.recogniser import Recogniser

FEATURES, ENCODER, LOG_PROBS = range(3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def engine(engine_library, monkeypatch, files):
    """Loads the model of a kind."""
    monkeypatch.setenv(VARIABLE, str(engine_library))
    return lambda kind, dtype="fp32", threads=1: Model(
        write(files, kind, dtype), threads
    )


def stream(model, whole=0, beam=1, keep=1, chunk=0, left=-1):
    options = Options(whole=whole, chunk=chunk, left=left, beam=beam, keep=keep)
    return Stream(model, model._library, options)


def divided(wave, seed):
    """A recording in pieces of any length, some of them empty."""
    source = np.random.default_rng(seed)
    while len(wave):
        size = int(source.choice([0, 1, 159, 160, 161, 800, 5000, 20000]))
        yield wave[:size]
        wave = wave[size:]


def outputs(one, pieces, kind):
    """All rows of an output."""
    rows = []
    for piece in pieces:
        one.push(piece)
        rows.append(one.output(kind))
    one.finish()
    rows.append(one.output(kind))
    return np.concatenate([r for r in rows if len(r)])


@pytest.mark.parametrize("kind", MAKERS)
def test_whole_recordings_equal_espnet(engine, kind):
    model, loaded = made(kind)[0], engine(kind)
    wave = sound(2 * RATE + 77)
    found = outputs(stream(loaded, whole=1), [wave], LOG_PROBS)
    expected = exact_log_probs(model, wave)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4
    assert expected.std() > 0.5


def test_older_positions_are_those_of_a_recordings_length(engine):
    """ESPnet's table is as long as `max_pos_emb_len`, or as the recording."""
    model, _ = made("legacy-sides")
    loaded = engine("legacy-sides")
    encoding = model.encoder.embed.pos_enc
    count = loaded.info["encoder"]["position_count"]
    for samples in (RATE, 10 * RATE, 3 * RATE):
        wave = sound(samples)
        encoding.pe = encoding.pe[:, -count:]  # it stays as long as it once was
        expected = log_probs(model, wave)
        assert np.abs(loaded.log_probs(wave, RATE) - expected).max() < 1e-4


@pytest.mark.parametrize("kind", STREAMING)
def test_streams_equal_whole_recordings(engine, kind):
    model, loaded = made(kind)[0], engine(kind)
    for samples, seed in ((2 * RATE + 77, 0), (5000, 1), (30000, 2)):
        wave = sound(samples, seed)
        expected = encoded(model, wave).numpy()
        found = outputs(stream(loaded), divided(wave, seed), ENCODER)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    "kind, whole", [("live", 0), ("live", 1), ("e-branchformer", 1), ("legacy", 1)]
)
def test_threads_change_nothing(engine, kind, whole, threads):
    wave = sound(RATE)
    one, many = (
        outputs(stream(engine(kind, threads=n), whole), [wave], LOG_PROBS)
        for n in (1, threads)
    )
    assert np.abs(one - many).max() < 1e-6


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize(
    "kind", ["e-branchformer-masked", "e-branchformer-absolute", "legacy"]
)
def test_all_instruction_sets_say_the_same(engine, kernels, kind, dtype):
    """`kernels` has one in use. In int8 the best one's output is what is expected; in
    fp32 PyTorch's, of which each has its own rounding."""
    samples = (3000, 2 * RATE + 77)  # a narrow tile, and wide ones
    found = [
        outputs(stream(engine(kind, dtype)), [sound(n)], LOG_PROBS) for n in samples
    ]
    kernels.force("")
    for one, count in zip(found, samples, strict=True):
        wave = sound(count)
        if dtype == "fp32":
            expected = log_probs(made(kind)[0], wave)
        else:
            expected = outputs(stream(engine(kind, dtype)), [wave], LOG_PROBS)
        assert len(one) > 1 and np.abs(one - expected).max() < 1e-4


@pytest.mark.parametrize("kind", ["ctc", "kaldi", "long-windows"])
def test_features_equal_espnet(engine, kind):
    model, loaded = made(kind)[0], engine(kind)
    shortest = {"ctc": 257, "kaldi": 80, "long-windows": 513}[kind]
    for samples in (shortest, shortest + 1, 121, 199, 401, 600, 1600, 16001):
        if samples < shortest:
            continue
        wave = sound(samples, samples)
        with torch.no_grad():
            length = torch.tensor([len(wave)])
            expected = model.frontend(torch.from_numpy(wave)[None], length)[0][0]
        found = outputs(stream(loaded, whole=1), divided(wave, 3), FEATURES)
        assert found.shape == tuple(expected.shape)
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_features_equal_kaldi_native_fbank(engine):
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0.0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 20, -400.0
    wave = sound(16001)
    fbank = kaldi.OnlineFbank(options)
    fbank.accept_waveform(RATE, wave.tolist())
    fbank.input_finished()
    expected = np.stack([fbank.get_frame(n) for n in range(fbank.num_frames_ready)])
    found = outputs(stream(engine("kaldi")), divided(wave, 1), FEATURES)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("beam", [1, 2, 6])
@pytest.mark.parametrize("kind", ["live", "kaldi", *TRANSDUCERS])
def test_texts_are_those_of_the_package(engine, kind, beam):
    model, config = made(kind)
    recogniser = Recogniser(model, config, beam=beam)
    loaded = engine(kind)
    said = set()
    for seed in range(3):
        wave = sound(3 * RATE, seed)
        expected, found = recogniser.stream(), stream(loaded, beam=beam)
        expected.push(torch.from_numpy(wave))
        for piece in divided(wave, seed):
            found.push(piece)
        assert found.finish() == expected.finish()
        assert [token.id for token in found.tokens] == expected.ids
        times = [token.seconds for token in found.tokens]
        assert times == sorted(times) and 0 <= times[0] and times[-1] < 3
        said.add(found.text)
    assert len(said) == 3 and len(set("".join(said))) > 3


@pytest.mark.parametrize("kind", ["live", "transducer"])
def test_a_beam_that_stays_undecided_settles(engine, kind):
    """What it holds does not grow, and it goes on."""
    loaded = engine(kind)
    wave = np.concatenate([sound(8 * RATE, seed) for seed in range(4)])
    model, config = made(kind)
    expected = Recogniser(model, config, beam=3).stream()
    found = stream(loaded, beam=3)
    for piece in wave.reshape(-1, 640):
        expected.push(torch.from_numpy(piece))
        found.push(piece)
    assert found.finish() == expected.finish()


@pytest.mark.parametrize(
    "kind, beam", [("live", 1), ("live", 3), ("gru", 1), ("gru", 3)]
)
def test_streams_do_not_disturb_each_other(engine, kind, beam):
    loaded = engine(kind)
    waves = [sound(2 * RATE, seed) for seed in range(3)]
    alone = []
    for wave in waves:
        one = stream(loaded, beam=beam)
        one.push(wave)
        alone.append(one.finish())
    together = [stream(loaded, beam=beam) for _ in waves]
    for begin in range(0, 2 * RATE, 700):
        for one, wave in zip(together, waves, strict=True):
            one.push(wave[begin : begin + 700])
    assert [one.finish() for one in together] == alone
    again = together[0]
    again.reset()
    again.push(waves[1])
    assert again.finish() == alone[1]
    again.reset()
    again.push(waves[2][:9999])
    again.reset()
    again.push(waves[0])
    assert again.finish() == alone[0]


@pytest.mark.parametrize("dtype, least", [("fp16", 1e-2), ("int8", 1.0)])
@pytest.mark.parametrize(
    "kind",
    [
        *("live-masked", "transducer-masked", "ctc"),
        *("e-branchformer", "e-branchformer-masked", "transformer-masked"),
    ],
)
def test_smaller_types_are_close(engine, kind, dtype, least):
    wave = sound(RATE)
    found, expected = (
        outputs(stream(engine(kind, one), whole=1), [wave], ENCODER)
        for one in (dtype, "fp32")
    )
    assert np.abs(found - expected).max() < least
    if kind in STREAMING:
        live = outputs(stream(engine(kind, dtype)), divided(wave, 1), ENCODER)
        assert np.abs(live - found).max() < (1e-4 if dtype == "fp16" else 0.1)


def test_short_recordings_have_no_text(engine):
    for kind in ("live", "ctc", "kaldi", "transducer", "e-branchformer", "transformer"):
        for samples in (0, 1, 100, 257, 900):
            one = stream(engine(kind))
            one.push(sound(samples))
            assert one.finish() == ""


def test_what_is_wrong_is_told(engine):
    live = engine("live")
    for kind in ("ctc", "e-branchformer", "transformer"):
        whole = engine(kind)
        assert not whole.can_stream
        with pytest.raises(UserError, match="cannot stream"):
            stream(whole, chunk=8, left=8)
        with pytest.raises(UserError, match="cannot stream"):
            whole.stream(chunk=8)
    for beam in (0, -1, 100000):
        with pytest.raises(UserError, match="beam"):
            stream(live, beam=beam)
    one = stream(live)
    samples = np.full(10, np.nan, np.float32)
    pointer = samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert live._library.stream_push(one._handle, pointer, 10) == 1
    one.finish()
    assert live._library.stream_push(one._handle, pointer, 0) == 1
