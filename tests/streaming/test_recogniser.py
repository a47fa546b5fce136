"""From waveform to text: as offline, in any division, with the latency it tells."""

import io
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import soundfile
import soxr
import torch
from helpers import REPOSITORY
from helpers.tiny import DECODER, FEATURES, FRONTEND, asr_config, transducer_config

from espnet_omnisparse import cli
from espnet_omnisparse.bench import streaming as bench_streaming
from espnet_omnisparse.bin import asr_inference_streaming
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.streaming.audio import pcm_blocks
from espnet_omnisparse.streaming.encoder import EncoderStream
from espnet_omnisparse.streaming.features import FeatureStream
from espnet_omnisparse.streaming.live import recognise
from espnet_omnisparse.streaming.recogniser import Recogniser, Stream
from espnet_omnisparse.streaming.search import GreedyTransducer, PrefixBeamCTC

RATE = 16000
TOKENS = ["<blank>", "<unk>", "A", "B", "C", "<space>", "<sos/eos>"]
AUDIO = {
    "token_list": TOKENS,
    "token_type": "char",
    "input_size": None,
    "frontend": "default",
    "frontend_conf": {**FRONTEND, "n_mels": FEATURES},
}
CHUNK = {"size": 8, "left": 16}
# 10 ms, around the first window, around the first frame, chunk and its look-ahead
LENGTHS = [160, 256, 257, 960, 1200, 5120, 6336, 6337, 16001, 40000]


def size_config(encoder=None, **changes):
    """The configuration of a size that streams."""
    live = {"num_blocks": 2, "causal": True, "chunk": CHUNK, **(encoder or {})}
    plain = {"model": "espnet", "model_conf": {"ctc_weight": 1.0}}
    return asr_config(live, **{**AUDIO, **plain, **changes})


def talkative(model):
    """Gives the CTC head much to say: letters and spaces, by what it hears."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        noise = 0.1 * torch.randn(1, 5 * RATE, generator=generator)
        encoded, _ = model.encode(noise, torch.tensor([5 * RATE]))
        weight, bias = model.ctc.ctc_lo.weight, model.ctc.ctc_lo.bias
        weight.copy_(5.0 * torch.randn(weight.shape, generator=generator))
        centred = encoded[0] - encoded[0].mean(0)
        weight /= (centred @ weight.T).std(0)[:, None] + 1e-6
        bias.copy_(-(weight @ encoded[0].mean(0)))
        bias[[1, 6]] -= 1e3
    return model


def write_size(folder, config, model):
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / family.MODEL, model.state_dict())
    plain = json.loads(json.dumps(config, default=str))
    write_yaml(folder / family.CONFIG, plain)
    return folder


def speech(samples, seed=0):
    """Noise that comes and goes."""
    source = np.random.default_rng(seed)
    wave = source.normal(0.0, 0.1, samples)
    wave *= np.repeat(source.uniform(0.05, 1.0, samples // 800 + 1), 800)[:samples]
    return torch.from_numpy((wave * 32768).clip(-32768, 32767).astype("<i2") / 32768.0)


def collapsed(ids):
    """Greedy CTC, slowly."""
    found = []
    for number, one in enumerate(ids):
        if one != 0 and (number == 0 or ids[number - 1] != one):
            found.append(one)
    return found


def spelled(ids):
    letters = "".join(TOKENS[one] for one in ids)
    return letters.replace("<space>", " ").replace("<unk>", "?")


@torch.no_grad()
def offline(model, wave):
    """The encoder's output on the whole recording `[frames, size]`."""
    missing = 257 - len(wave)  # ESPnet cannot reflect what is shorter
    if missing > 0:
        wave = torch.cat([wave, wave.new_zeros(missing)])
    if len(wave) < 6 * 160:  # of 7 frames comes the first
        return torch.empty(0, 16)
    return model.encode(wave[None].float(), torch.tensor([len(wave)]))[0][0]


@pytest.fixture(scope="module")
def size(tmp_path_factory):
    """A size's folder."""
    torch.manual_seed(0)
    config = size_config()
    model = talkative(family.build(config))
    return write_size(tmp_path_factory.mktemp("exp") / "asr_x_small", config, model)


@pytest.fixture
def recogniser(size):
    return Recogniser.load(size)


def said(recogniser, parts):
    stream = recogniser.stream()
    for part in parts:
        stream.push(part)
    return stream.finish()


@pytest.mark.parametrize("samples", LENGTHS)
def test_text_is_that_of_offline_greedy_search(recogniser, samples):
    wave = speech(samples)
    encoded = offline(recogniser.model, wave)
    ids = collapsed(recogniser.model.ctc.argmax(encoded[None])[0].tolist())
    stream = recogniser.stream()
    for part in wave.split(1000):
        stream.push(part)
    assert stream.finish() == spelled(ids)
    assert stream.ids == ids
    if samples >= 5 * RATE // 2:
        assert len(set(ids)) > 3 and len(spelled(ids).split()) > 2


@pytest.mark.parametrize("beam", [1, 3])
def test_any_division_of_the_samples_gives_the_same(size, beam):
    recogniser, wave = Recogniser.load(size, beam=beam), speech(20011)
    whole = said(recogniser, [wave])
    assert len(whole) > 8
    source = random.Random(0)
    for largest in (37, 700, 9000):
        rest, parts = wave, []
        while len(rest):
            count = source.randint(0, largest)
            parts.append(rest[:count])
            rest = rest[count:]
        assert said(recogniser, parts) == whole


def test_a_beam_finds_what_it_finds_offline(size):
    recogniser, wave = Recogniser.load(size, beam=4), speech(30000)
    search = PrefixBeamCTC(recogniser.model.ctc, 4)
    search.push(offline(recogniser.model, wave))
    found = said(recogniser, wave.split(1234))
    assert found == spelled(search.best())
    assert found != said(Recogniser.load(size), [wave])


@pytest.mark.parametrize("given", [Chunk(3, 2), Chunk(30, 0)])
def test_another_chunk_is_another_mask(size, given):
    recogniser, wave = Recogniser.load(size, given), speech(40000)
    assert recogniser.chunk == given
    feats, lengths = recogniser.model._extract_feats(
        wave[None].float(), torch.tensor([len(wave)])
    )
    encoder = recogniser.model.encoder
    frames = encoder.front_end(feats, lengths).with_chunk_mask(given)
    encoded, _ = encoder.blocks(frames)
    ids = collapsed(recogniser.model.ctc.argmax(encoded)[0].tolist())
    assert said(recogniser, wave.split(999)) == spelled(ids)
    assert said(recogniser, [wave]) != said(Recogniser.load(size), [wave])


class Heard:
    """A search that keeps what it is given."""

    revises = False

    def __init__(self):
        self.frames, self.finished = [], False

    def push(self, encoded):
        assert not self.finished
        self.frames.append(encoded)

    def best(self):
        return []

    def finish(self):
        self.finished = True


def listening(recogniser):
    model, heard = recogniser.model, Heard()
    features = FeatureStream(model.frontend, model.normalize)
    return Stream(recogniser, features, EncoderStream(model.encoder), heard), heard


@pytest.mark.parametrize("samples", LENGTHS)
def test_no_frame_is_lost_at_the_end(recogniser, samples):
    wave = speech(samples)
    expected = offline(recogniser.model, wave)
    stream, heard = listening(recogniser)
    stream.push(wave[: samples // 2])
    stream.push(wave[samples // 2 :])
    before = sum(map(len, heard.frames))
    stream.finish()
    found = torch.cat(heard.frames)
    assert heard.finished and len(found) == len(expected)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert before % CHUNK["size"] == 0
    if samples == 40000:  # 62 frames, of which only the end brings the last 6
        assert before < len(expected)


def test_a_last_token_is_in_the_text_only_at_the_end(recogniser):
    for samples in range(16000, 24000, 640):
        stream, wave = recogniser.stream(), speech(samples)
        stream.push(wave)
        before = stream.ids
        stream.finish()
        assert stream.ids[: len(before)] == before
        if len(stream.ids) > len(before):
            return
    pytest.fail("no recording ends with a token: the test tells nothing")


@pytest.mark.parametrize("chunk", [Chunk(8, 16), Chunk(1, 0), Chunk(5, 3)])
@pytest.mark.parametrize("layer", ["conv2d", "conv2d2", "conv2d6"])
def test_a_chunk_is_out_after_its_latency_and_not_a_sample_earlier(layer, chunk):
    config = size_config({"input_layer": layer})
    recogniser = Recogniser(family.build(config), config, chunk)
    stride = {"conv2d": 4, "conv2d2": 2, "conv2d6": 6}[layer]
    assert recogniser.chunk_seconds == pytest.approx(chunk.size * stride * 0.01)
    wave = speech(3 * RATE)
    for chunks in (1, 2, 3):
        seconds = chunks * recogniser.chunk_seconds + recogniser.lookahead_seconds
        due = round(seconds * RATE)
        assert due == pytest.approx(seconds * RATE, abs=1e-6)
        for samples in (due - 1, due):
            stream = recogniser.stream()
            feats = stream.features.push(wave[:samples])
            out = stream.encoder.push(feats)
            missing = samples < due
            assert len(out) == chunk.size * (chunks - missing)


def test_numbers_of_latency_add_up(recogniser):
    wave = speech(RATE)
    text, latency = recognise(recogniser, wave.split(5120))
    assert text == said(recogniser, [wave])
    found = latency.as_dict()
    assert found["chunk_ms"] == 320.0
    # a frame waits for half of the 512 samples, and the front end for 2 more frames
    assert found["lookahead_ms"] == 36.0
    assert found["latency_ms"] == 356.0
    assert found["audio_s"] == 1.0
    assert len(latency.chunks) == 4  # the end is part of the last

    # as the command reads: every block but the last gives a chunk, and not one later
    first = round(RATE * (recogniser.chunk_seconds + recogniser.lookahead_seconds))
    pcm = (wave * 32768).numpy().astype("<i2").tobytes()
    seconds = first / RATE
    blocks = list(pcm_blocks(io.BytesIO(pcm), RATE, 0.32, first=seconds))
    assert [len(block) for block in blocks] == [5696, 5120, 5120, 64]
    stream, heard = listening(recogniser)
    counts = []
    for block in blocks:
        stream.push(block)
        counts.append(sum(map(len, heard.frames)))
    assert counts == [8, 16, 24, 24]
    assert found["rtf"] == pytest.approx(sum(latency.chunks), abs=1e-3)
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert "algorithmic latency 356 ms = chunk 320 + look-ahead 36" in str(latency)


def test_silence_and_nothing_are_recognised(recogniser):
    silence = torch.zeros(RATE)
    ids = recogniser.model.ctc.argmax(offline(recogniser.model, silence)[None])[0]
    assert said(recogniser, silence.split(777)) == spelled(collapsed(ids.tolist()))
    assert said(recogniser, []) == ""
    assert said(recogniser, [torch.empty(0)] * 3) == ""
    assert said(recogniser, [torch.zeros(1)]) == ""


def test_streams_of_one_recogniser_do_not_meet(recogniser):
    waves = [speech(20000, seed) for seed in (1, 2)]
    alone = [said(recogniser, [wave]) for wave in waves]
    streams = [recogniser.stream() for _ in waves]
    for parts in zip(*(wave.split(600) for wave in waves), strict=True):
        for stream, part in zip(streams, parts, strict=True):
            stream.push(part)
    assert [stream.finish() for stream in streams] == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_samples_that_are_no_numbers_are_refused(recogniser, wrong):
    wave = speech(2000)
    wave[700] = wrong
    stream = recogniser.stream()
    stream.push(wave[:600])
    with pytest.raises(UserError, match="not a finite number"):
        stream.push(wave[600:])
    stream.push(wave[701:])  # of what was refused nothing has remained
    assert stream.finish() == said(recogniser, [wave[:600], wave[701:]])


def test_two_channels_are_refused(recogniser):
    with pytest.raises(UserError, match="one channel"):
        recogniser.stream().push(torch.zeros(2, 100))


WHOLE = {"causal": False, "chunk": None}
STOCK = {"output_size": 16, "linear_units": 32, "num_blocks": 1}
UNFIT = {
    "whole-recordings": ({"encoder": WHOLE}, "Conv modules see the future"),
    "no-chunk": ({"encoder": {"chunk": None}}, "give a chunk to stream with"),
    "stock": (
        {"encoder_conf": STOCK, "changes": {"encoder": "conformer"}},
        "cannot stream",
    ),
    "utterance-mvn": ({"changes": {"normalize": "utterance_mvn"}}, "global_mvn"),
    "attention": (
        {
            "changes": {
                "decoder": "transformer",
                "decoder_conf": DECODER,
                "model_conf": {"ctc_weight": 0.0},
            }
        },
        "neither CTC nor a transducer",
    ),
}


def unfit(encoder=None, encoder_conf=None, changes=None):
    config = {**size_config(encoder), **(changes or {})}
    if encoder_conf is not None:
        config["encoder_conf"] = encoder_conf
    return config, family.build(config)


@pytest.mark.parametrize("options, sentence", UNFIT.values(), ids=UNFIT)
def test_a_model_that_cannot_stream_gets_one_sentence(
    options, sentence, tmp_path, capsys
):
    config, model = unfit(**options)
    with pytest.raises(UserError, match=sentence):
        Recogniser(model, config)
    folder = write_size(tmp_path / "asr_x_full", config, model)
    soundfile.write(tmp_path / "a.wav", speech(2000).numpy(), RATE)
    with pytest.raises(SystemExit) as end:
        cli.main(["stream", "--model", str(folder), str(tmp_path / "a.wav")])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err


def test_parts_that_a_stream_has_not_are_refused(recogniser, size):
    config = family.read_config(size)
    loud = {**config, "speech_volume_normalize": 0.5}
    with pytest.raises(UserError, match="speech_volume_normalize, which needs whole"):
        Recogniser(recogniser.model, loud)
    linear = {"input_size": 20, "output_size": 20}
    changes = {"preencoder": "linear", "preencoder_conf": linear}
    config, model = unfit(changes=changes)
    with pytest.raises(UserError, match="has a preencoder, which has no equal"):
        Recogniser(model, config)
    with pytest.raises(UserError, match="at least 1 hypothesis, not 0"):
        Recogniser.load(size, beam=0)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_sample_far_beyond_full_scale_ends_the_stream(size, beam):
    stream = Recogniser.load(size, beam=beam).stream()
    wave = speech(RATE)
    wave[5000] = 1e30
    with pytest.raises(UserError, match=r"1e\+30, far beyond full scale"):
        stream.push(wave)


def test_damaged_weights_are_told(size):
    recogniser = Recogniser.load(size)
    with torch.no_grad():
        recogniser.model.encoder.embed.conv[0].bias[0] = torch.nan
    with pytest.raises(UserError, match="not finite: the model's weights are damaged"):
        recogniser.stream().push(speech(RATE))


def test_samples_may_be_an_array_but_no_integers(recogniser):
    wave = speech(RATE)
    assert said(recogniser, [wave.float().numpy()]) == said(recogniser, [wave.float()])
    with pytest.raises(UserError, match="1.0, not torch.int16: divide 16-bit ones by"):
        recogniser.stream().push((wave * 32768).short())


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        (family.CONFIG, "", "it has no token_list"),
        (family.CONFIG, "[1, 2]", "it has no token_list"),
        (family.CONFIG, "token_list: [a]", "it has no encoder_conf"),
        (family.MODEL, [1, 2], "does not fit its config.yaml"),
        (family.MODEL, {"other": torch.ones(1)}, "does not fit its config.yaml"),
    ],
)
def test_a_broken_size_gets_a_sentence(size, tmp_path, name, value, sentence):
    for part in (family.CONFIG, family.MODEL):
        (tmp_path / part).write_bytes((size / part).read_bytes())
    if isinstance(value, str):
        (tmp_path / name).write_text(value)
    else:
        save_tensors(tmp_path / name, value)
    with pytest.raises(UserError, match=sentence) as told:
        Recogniser.load(tmp_path)
    assert len(str(told.value)) < 400


def test_absent_statistics_are_told(size, tmp_path):
    config = family.read_config(size)
    config |= {"normalize": "global_mvn", "normalize_conf": {"stats_file": "no.npz"}}
    with pytest.raises(UserError, match="statistics no.npz are not there: run in the"):
        family.build(config)


def test_a_folder_without_a_model_is_refused(size, tmp_path):
    with pytest.raises(UserError, match="not an experiment folder"):
        Recogniser.load(tmp_path / "absent")
    (tmp_path / family.CONFIG).write_text((size / family.CONFIG).read_text())
    with pytest.raises(UserError, match="has no model.pth: name the folder of a size"):
        Recogniser.load(tmp_path)


@pytest.fixture
def audio(tmp_path):
    """Writes samples as a WAV file."""

    def write(samples, rate=RATE, name="a.wav", **options):
        soundfile.write(tmp_path / name, np.asarray(samples), rate, **options)
        return str(tmp_path / name)

    return write


def run(capsys, *arguments):
    cli.main(["stream", *map(str, arguments)])
    return capsys.readouterr()


def test_the_command_reads_a_file_and_a_pipe(
    size, recogniser, audio, capsys, monkeypatch
):
    wave = speech(3 * RATE + 77)
    expected = said(recogniser, [wave])
    out, err = run(capsys, "--model", size, audio(wave, subtype="PCM_16"))
    assert out.split() == expected.split() and len(out.split()) > 3
    assert "3.00 s of audio" in err and "algorithmic latency 356 ms" in err

    pcm = (wave * 32768).numpy().astype("<i2").tobytes()
    for extra in (b"", b"\x01"):  # the second ends in the middle of a sample
        stdin = types.SimpleNamespace(buffer=io.BytesIO(pcm + extra))
        monkeypatch.setattr(sys, "stdin", stdin)
        out, err = run(capsys, "--model", size, "-")
        assert out.split() == expected.split()
        assert ("last byte is dropped" in err) == bool(extra)


def test_json_has_the_text_and_the_times(size, recogniser, audio, capsys):
    wave = speech(RATE)
    out, err = run(capsys, "--model", size, "--json", audio(wave))
    found = json.loads(out)
    assert found.pop("text") == said(recogniser, [wave])
    assert set(found) == {
        *("audio_s", "rtf", "latency_ms", "chunk_ms", "lookahead_ms"),
        *("p50_ms", "p95_ms", "p99_ms"),
    }
    assert found["audio_s"] == 1.0 and found["chunk_ms"] == 320.0


@pytest.mark.parametrize(
    "options, chunk",
    [
        (["--chunk", "4"], Chunk(4, 16)),
        (["--chunk", "4", "--left", "0"], Chunk(4, 0)),
        (["--chunk", "4", "--beam", "3"], Chunk(4, 16)),
    ],
)
def test_options_override_the_chunk(size, audio, options, chunk, capsys):
    wave = speech(2 * RATE)
    out, _ = run(capsys, "--model", size, "--json", *options, audio(wave))
    beam = 3 if "--beam" in options else 1
    expected = said(Recogniser.load(size, chunk, beam), [wave])
    found = json.loads(out)
    assert found["text"] == expected
    assert found["chunk_ms"] == 160.0


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--left", "4"], "--left needs --chunk beside it"),
        (["--chunk", "4", "--left", "-1"], "left must be a number .* at least 0"),
        ([], "There is no audio file"),
    ],
)
def test_a_wrong_option_gets_its_sentence(size, options, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(capsys, "--model", size, *options, tmp_path / "absent.wav")
    out, err = capsys.readouterr()
    assert end.value.code == 1 and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, line)


def test_other_audio_is_converted_with_a_notice(size, recogniser, audio, capsys):
    wave = speech(2 * RATE)
    stereo = audio(torch.stack([wave, wave], 1), name="stereo.wav", subtype="PCM_16")
    out, err = run(capsys, "--model", size, "--json", stereo)
    assert json.loads(out)["text"] == said(recogniser, [wave])
    assert "has 2 channels: their mean is taken." in err

    slow = speech(RATE, seed=3).float().numpy()
    path = audio(slow, rate=8000, name="slow.wav", subtype="PCM_16")
    out, err = run(capsys, "--model", size, "--json", path)
    wanted = torch.from_numpy(soxr.resample(slow, 8000, RATE))
    assert json.loads(out)["text"] == said(recogniser, [wanted]) != ""
    assert "is resampled from 8000 to 16000 Hz." in err


def started(*arguments, **options):
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        **options,
    )


def test_words_are_printed_while_the_audio_still_comes(size, recogniser):
    wave = speech(6 * RATE)
    pcm = (wave * 32768).numpy().astype("<i2").tobytes()
    half = len(pcm) // 2
    expected = said(recogniser, [wave])
    process = started(
        *("espnet_omnisparse.cli", "stream", "--model", size, "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        process.stdin.write(pcm[:half])
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 240)
        assert ready, "no word after 3 s of audio"
        first = os.read(process.stdout.fileno(), 4096)
        assert process.poll() is None
        rest, err = process.communicate(pcm[half:], timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err.decode()
    words = expected.split()
    assert 0 < len(first.split()) < len(words)
    assert (first + rest).decode() == " ".join(words) + "\n"


def test_ctrl_c_ends_a_recording_from_a_pipe_and_its_last_words_come(size, recogniser):
    wave = speech(3 * RATE)
    process = started(
        *("espnet_omnisparse.cli", "stream", "--model", size, "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        process.stdin.write((wave * 32768).numpy().astype("<i2").tobytes())
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 240)
        assert ready, "no word after 3 s of audio"
        time.sleep(1.0)  # it waits for more samples now
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0 and b"Traceback" not in err
    # 3 s are no whole number of chunks: what waits for the rest of its own is there
    assert out.decode() == said(recogniser, [wave]) + "\n"
    assert b"3.00 s of audio" in err


def test_a_reader_that_goes_away_ends_the_command_without_a_word(size, audio):
    process = started(
        *("espnet_omnisparse.cli", "stream", "--model", size, audio(speech(4 * RATE))),
        stdout=subprocess.PIPE,
    )
    process.stdout.close()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGPIPE
    assert b"Traceback" not in err and b"BrokenPipe" not in err


def test_without_standard_input_a_file_is_asked_for(size, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit):
        run(capsys, "--model", size, "-")
    assert (
        "no standard input to read audio from: name a file" in capsys.readouterr().err
    )


@pytest.mark.parametrize("beam", [1, 4])
def test_text_is_printed_as_it_grows(size, beam):
    recogniser, wave = Recogniser.load(size, beam=beam), speech(20 * RATE)
    out, printed, known = io.StringIO(), [], []
    stream = recogniser.stream()

    def blocks():
        for block in wave.split(5120):
            printed.append(out.getvalue())
            known.append(" ".join(stream.text.split()))
            yield block
            stream.push(block)

    text, _ = recognise(recogniser, blocks(), out)
    text = " ".join(text.split())
    first, *whole = out.getvalue().splitlines()
    # a beam may have thought better of it; then all of it follows
    assert whole in ([], [text]) and (first == text) == (whole == [])
    assert all(first.startswith(moment) for moment in printed)
    assert len(set(printed)) > 20
    if beam == 1:  # letter by letter, or text without spaces would come at the end
        assert printed == known and first == text
    else:  # but for the last word
        pairs = zip(known[1:], printed[1:], strict=True)
        assert max(len(k.split()) - len(p.split()) for k, p in pairs) <= 1


def test_a_beam_without_words_holds_two_characters_back(recogniser):
    stream = recogniser.stream()
    for search, expected in (
        (types.SimpleNamespace(revises=True, best=lambda: [2, 3, 4, 2]), "AB"),
        (types.SimpleNamespace(revises=False, best=lambda: [2, 3, 4, 2]), "ABCA"),
        (types.SimpleNamespace(revises=True, best=lambda: [2, 3, 5, 2]), "AB"),
    ):
        stream._search = search
        assert stream.likely_text == expected


def test_ctrl_c_elsewhere_is_told_in_a_word():
    with pytest.raises(SystemExit) as stopped, one_sentence():
        raise KeyboardInterrupt
    assert stopped.value.code == 130


def test_sizes_are_timed_as_streams(size, audio, capsys):
    path = audio(speech(2 * RATE))
    bench_streaming.main([str(size), "--audio", path, path, "--rounds", "2"])
    title, head, _, row = capsys.readouterr().out.splitlines()
    assert title == "4 s of audio, 2 rounds"
    values = dict(zip(head.split(" | ")[1:], row.split(" | ")[1:], strict=True))
    assert values["against the first"] == "1.00x"
    assert values["algorithmic latency (ms)"] == "356"
    p50, p95 = float(values["chunk p50 (ms)"]), float(values["p95"])
    # nearly all of the time goes by in whole chunks
    assert 0.0 < p50 <= p95 and float(values["RTF"]) < p95 / 320 * 1.5


def read(path):
    rows = (line.rstrip("\n").partition(" ") for line in path.open())
    return {key: value.strip() for key, _, value in rows}


def test_espnets_streaming_decoding_is_ours(size, tmp_path, audio):
    waves = {name: speech(n, n) for name, n in (("a", 31000), ("b", 160), ("c", 9001))}
    lines = [
        f"{name} {audio(wave, name=f'{name}.wav', subtype='PCM_16')}\n"
        for name, wave in waves.items()
    ]
    (tmp_path / "wav.scp").write_text("".join(lines))
    process = started(
        *("espnet_omnisparse.launch", "-m", "espnet2.bin.asr_inference_streaming"),
        *decoding(size, tmp_path),
        *("--beam_size", 3),
    )
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err.decode()
    recogniser, out = Recogniser.load(size, beam=3), tmp_path / "out/1best_recog"
    found = {name: read(out / name) for name in ("token", "token_int", "text")}
    for name, wave in waves.items():
        stream = recogniser.stream()
        stream.push(wave)
        assert found["text"][name] == stream.finish().strip()
        assert found["token_int"][name] == " ".join(map(str, stream.ids))
        assert found["token"][name] == " ".join(TOKENS[one] for one in stream.ids)
    assert len(found["text"]["a"]) > 8 and found["text"]["b"] == ""


def decoding(size, folder):
    return [
        *("--asr_train_config", size / family.CONFIG),
        *("--asr_model_file", size / family.MODEL),
        *("--data_path_and_name_and_type", f"{folder / 'wav.scp'},speech,sound"),
        *("--output_dir", folder / "out", "--ngpu", 0),
    ]


def test_streaming_decoding_refuses_what_it_has_not(size, tmp_path, capsys):
    for options in (["--nbest", "2"], ["--lm_train_config", "lm.yaml"]):
        with pytest.raises(SystemExit) as end:
            asr_inference_streaming.main(
                [*map(str, decoding(size, tmp_path)), *options]
            )
        assert end.value.code == 1
        assert "leave nbest at 1 and set use_lm to false" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def transducer():
    config = transducer_config(blocks=2, encoder={"pattern": None, "chunk": CHUNK})
    config |= AUDIO
    torch.manual_seed(0)
    model = family.build(config)
    joint = model.joint_network
    encoded = offline(model, speech(5 * RATE))
    with torch.no_grad():
        hidden = encoded @ joint.lin_enc.weight.T
        joint.lin_enc.weight *= 2.0 / hidden.std(0)[:, None]
        joint.lin_enc.bias.copy_(-(joint.lin_enc.weight @ encoded.mean(0)))
        joint.lin_out.weight.normal_()
        joint.lin_out.bias.zero_()
        joint.lin_out.bias[[1, 6]] -= 1e3
        joint.lin_out.bias[0] += 2.0  # or a frame would have no end
    return config, model


@pytest.mark.parametrize("samples", [160, 1200, 6336, 24000])
def test_a_transducer_says_what_it_says_offline(transducer, samples):
    config, model = transducer
    recogniser, wave = Recogniser(model, config), speech(samples)
    encoded = offline(model, wave)
    search = GreedyTransducer(model.decoder, model.joint_network)
    search.push(encoded)
    found = said(recogniser, wave.split(800))
    assert found == spelled(search.best())
    assert found == said(recogniser, [wave])
    if samples > RATE:
        assert len(set(found)) > 2 and len(found) < 4 * len(encoded)
