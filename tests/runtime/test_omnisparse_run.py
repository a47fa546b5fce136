"""omnisparse-run: the text of WAV files and pipes, and a sentence for what is wrong."""

import json
import os
import subprocess

import numpy as np
import pytest
import soundfile
import torch
from helpers.engine import CSRC, compiler
from helpers.engine_models import RATE, log_probs, made, sound, write

from espnet_omnisparse.streaming.recogniser import Recogniser


@pytest.fixture(scope="module")
def program(engine_library, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "omnisparse-run"
    sources = map(str, sorted((CSRC / "tools").glob("*.cpp")))
    command = [compiler(), "-std=c++17", f"-I{CSRC / 'include'}", *sources]
    command += [str(engine_library), f"-Wl,-rpath,{engine_library.parent}"]
    subprocess.run([*command, "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audio")


def run(program, *words, **options):
    options = {"capture_output": True, **options}
    return subprocess.run([program, *map(str, words)], **options)


def text_of(program, *words, **options):
    done = run(program, *words, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().rstrip("\n")


def expected(kind, wave, beam=1):
    model, config = made(kind)
    stream = Recogniser(model, config, beam=beam).stream()
    stream.push(torch.from_numpy(wave))
    return stream.finish()


@pytest.mark.parametrize("kind", ["live", "gru"])
def test_its_text_is_that_of_the_package(program, folder, kind):
    model, wave = write(folder, kind), sound(2 * RATE)
    path = folder / "audio.wav"
    for subtype in ("PCM_16", "PCM_24", "PCM_32", "FLOAT"):
        soundfile.write(path, wave, RATE, subtype)
        assert text_of(program, model, path) == expected(kind, wave)
    assert text_of(program, model, path, "--stream") == expected(kind, wave)
    beam = text_of(program, model, path, "--beam", 3)
    assert beam == expected(kind, wave, 3)
    live = text_of(program, model, path, "--beam", 3, "--stream").split("\n")
    assert live[-1] == beam
    pcm = (wave * 32768).astype("<i2").tobytes()
    assert text_of(program, model, "-", input=pcm) == expected(kind, wave)
    assert text_of(program, model, "-", input=path.read_bytes()) == expected(kind, wave)


@pytest.mark.parametrize("kind", ["e-branchformer-sides", "transformer"])
def test_it_hears_whole_recordings_where_no_stream_is(program, folder, kind):
    path, wave = folder / "whole.wav", sound(2 * RATE)
    soundfile.write(path, wave, RATE)
    model, tokens = made(kind)[0], made(kind)[1]["token_list"]
    best = log_probs(model, wave).argmax(-1)
    ids = [int(b) for a, b in zip([0, *best], best, strict=False) if b not in (0, a)]
    text = "".join(tokens[id] for id in ids).replace("<space>", " ")
    assert text_of(program, write(folder, kind), path) == text and len(text) > 5


def test_json_tells_tokens_and_times(program, folder):
    path, wave = folder / "json.wav", sound(2 * RATE)
    soundfile.write(path, wave, RATE)
    found = json.loads(text_of(program, write(folder, "live"), path, "--json"))
    assert found["text"] == expected("live", wave)
    assert found["audio_s"] == 2.0 and found["rtf"] > 0
    seconds = [token["seconds"] for token in found["tokens"]]
    assert seconds == sorted(seconds) and seconds[-1] < 2
    spelled = "".join(token["token"] for token in found["tokens"])
    assert spelled.replace("<space>", " ") == found["text"]


def test_what_is_wrong_is_told_in_a_sentence(program, folder):
    live = write(folder, "live")
    good, wrong = folder / "good.wav", folder / "wrong.wav"
    soundfile.write(good, sound(RATE), RATE)

    def told(part, *words, code=1, **options):
        done = run(program, *words, **options)
        assert done.returncode == code
        assert part in done.stderr.decode(), done.stderr
        assert done.stdout == b""

    told("cannot be opened", live, folder / "none.wav")
    told("cannot be opened", folder / "none.omni", good)
    told("cannot be read (Is a directory)", live, folder)
    told("is not a packed model", good, good)
    soundfile.write(wrong, np.zeros((100, 2)), RATE)
    told("2 channels", live, wrong)
    soundfile.write(wrong, np.zeros(100), 8000)
    told("8000 samples per second", live, wrong)
    soundfile.write(wrong, np.zeros(100), RATE, "ULAW")
    told("can be read", live, wrong)
    soundfile.write(folder / "a.flac", np.zeros(100), RATE)
    told("FLAC", live, folder / "a.flac")
    for size in (0, 11, 30, 44):
        wrong.write_bytes(good.read_bytes()[:size])
        told(".", live, wrong)
    told("no audio", live, "-", input=b"")
    empty = good.read_bytes()[:40] + bytes(4) + b"LIST\4\0\0\0abcd"
    whole = (len(empty) - 8).to_bytes(4, "little")
    wrong.write_bytes(empty[:4] + whole + empty[8:])
    told("no audio", live, wrong)
    told("the kind MP4", live, "-", input=b"\0\0\0\x20ftypisom" + bytes(400))
    told("the kind Matroska", live, "-", input=b"\x1aE\xdf\xa3" + bytes(400))
    loops = {**os.environ, "OMNISPARSE_ISA": "none-such"}
    told("OMNISPARSE_ISA is none-such, and this CPU has", live, good, env=loops)
    for kind in ("ctc", "e-branchformer", "transformer"):
        told("cannot stream", write(folder, kind), good, "--stream")
    told("--left needs --chunk", live, good, "--left", 3, code=2)
    told("no option", live, good, "--wat", code=2)
    told("whole number", live, good, "--beam", "x", code=2)
    told("from 1 to 1048576", live, good, "--beam", 2**21, code=2)
    told("Name a model", live, code=2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_text_that_cannot_be_written_is_told(program, folder, options):
    path = folder / "full.wav"
    soundfile.write(path, sound(RATE), RATE)
    with open("/dev/full", "w") as full:
        words = [program, write(folder, "live"), path, *options]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"cannot be written (No space left" in done.stderr


def test_threads_that_cannot_be_started_are_told(program, folder):
    path = folder / "threads.wav"
    soundfile.write(path, sound(RATE), RATE)
    # a thread takes 8 MB of addresses: not all of them fit
    limit = f"ulimit -s 8192; ulimit -v 400000; exec {program}"
    command = f"{limit} {write(folder, 'live')} {path} --threads 256"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"threads can be started here: ask for fewer" in done.stderr


def test_what_is_there_of_a_cut_file_is_recognised(program, folder):
    path, wave = folder / "cut.wav", sound(2 * RATE)
    soundfile.write(path, wave, RATE)
    path.write_bytes(path.read_bytes()[: 44 + 2 * RATE + 1])
    done = run(program, write(folder, "live"), path)
    assert done.stdout.decode().rstrip("\n") == expected("live", wave[:RATE])
    assert b"ends before its header says" in done.stderr
