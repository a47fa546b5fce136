"""Files that are no whole packed models are told of, and never crash the engine."""

import subprocess
import sys

import pytest
from helpers.engine_models import made, write

from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import write_packed

FUZZER = """
import sys, zlib, ctypes
import numpy as np
from espnet_omnisparse.runtime.library import Floats, Library, Options

engine, path, altered, seed, count = Library(sys.argv[1]), *sys.argv[2:4], *map(
    int, sys.argv[4:6]
)
whole = open(path, "rb").read()
source = np.random.default_rng(seed)
header = 8 + int.from_bytes(whole[:8], "little")
audio = source.normal(0, 0.1, 9000).astype(np.float32)
digits = [i for i in range(8, header) if whole[i : i + 1].isdigit()]
told = set()
for _ in range(count):
    content = bytearray(whole)
    for _ in range(source.integers(1, 4)):
        where = source.integers(4)
        if where == 0:
            content[source.integers(len(content))] = source.integers(256)
        elif where == 1:
            content[source.integers(header)] ^= 1 << source.integers(8)
        elif where == 2:
            content[digits[source.integers(len(digits))]] = source.integers(48, 58)
        else:
            del content[source.integers(len(content)) :]
            break
    place = content.find(b'"crc32":"') + 9
    if source.random() < 0.8 and place > 9 and place + 8 <= len(content):
        content[place : place + 8] = b"0" * 8
        content[place : place + 8] = b"%08x" % zlib.crc32(content)
    open(altered, "wb").write(content)
    model = engine.load(altered.encode(), 1)
    if not model:
        sentence = engine.last_error().decode("utf-8", "replace")
        assert sentence.endswith(".") and "\\n" not in sentence, sentence
        told.add(sentence)
        continue
    for options in (Options(whole=1, beam=1), Options(left=-1, beam=2)):
        stream = engine.stream_new(model, ctypes.byref(options))
        if stream:
            engine.stream_push(stream, audio.ctypes.data_as(Floats), audio.size)
            engine.stream_finish(stream)
            engine.stream_text(stream)
            engine.stream_free(stream)
    engine.free(model)
print(len(told))
"""


def fuzz(engine_library, path, folder, seed, count):
    arguments = [engine_library, path, folder / "altered.omni", seed, count]
    done = subprocess.run(
        [sys.executable, "-c", FUZZER, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


KINDS = [
    *(("masked", "int8"), ("gru", "fp32"), ("live", "fp16"), ("kaldi", "fp32")),
    *(("e-branchformer-masked", "fp32"), ("e-branchformer-sides", "int8")),
    ("transformer-dropped", "fp32"),
]


@pytest.mark.parametrize("kind, dtype", KINDS)
def test_altered_files_are_told_of(engine_library, tmp_path, kind, dtype):
    assert fuzz(engine_library, write(tmp_path, kind, dtype), tmp_path, 0, 100) > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind, dtype", KINDS)
def test_ten_thousand_altered_files(engine_library, tmp_path, kind, dtype):
    fuzz(engine_library, write(tmp_path, kind, dtype), tmp_path, 1, 2500)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda whole: b"", "is not a packed model"),
        (lambda whole: b"some text that is no model", "is not a packed model"),
        (lambda whole: whole[:1000], "damaged"),
        (lambda whole: whole[:-1], "damaged"),
        (lambda whole: whole[:-9] + b"x" + whole[-8:], "damaged"),
        (lambda whole: whole.replace(b'"version":"1"', b'"version":"7"'), "version 7"),
    ],
)
def test_wrong_files_are_told_of(engine_library, tmp_path, change, told):
    from espnet_omnisparse.runtime.library import Library

    engine = Library(engine_library)
    path = tmp_path / "wrong.omni"
    path.write_bytes(change(write(tmp_path, "live").read_bytes()))
    assert not engine.load(bytes(path), 1)
    sentence = engine.last_error().decode()
    assert told in sentence and sentence.endswith(".") and "\n" not in sentence
    for missing in (tmp_path / "none", tmp_path):
        assert not engine.load(bytes(missing), 1)
        assert str(missing) in engine.last_error().decode()


def test_blocks_that_do_not_fit_are_told_of(engine_library, tmp_path):
    """What no export writes: streams of gates and merges, merges of merges."""
    from espnet_omnisparse.runtime.library import Library

    engine, path = Library(engine_library), tmp_path / "wrong.omni"
    model, config = made("e-branchformer")

    def told(change):
        description = describe(model, config)
        change(description["encoder"], description["encoder"]["blocks"][0]["branches"])
        write_packed(path, model, description)
        assert not engine.load(bytes(path), 1)
        return engine.last_error().decode()

    def with_gating_alone(encoder, branches):
        for block in encoder["blocks"]:
            block["branches"] = block["branches"][1]["sides"][1:]
        encoder["causal"] = True

    assert "needs whole" in told(lambda encoder, _: encoder.update(causal=True))
    assert "needs whole" in told(with_gating_alone)
    merged = "a merge in a merge"
    assert merged in told(lambda _, all: all[1].update(sides=[{**all[1]}]))
    for change in (
        lambda _, all: all[1]["sides"].pop(),
        lambda _, all: all[1].update(kernel=5),
        lambda _, all: all[1]["sides"][1].update(kernel=5),
        lambda _, all: all[1]["projection"].update(weight=None),
        lambda _, all: all[1]["sides"].clear() or all[1].update(projection={}),
        lambda _, all: all[1]["sides"][1].update(module=all[0]["module"]),
        lambda _, all: all[1]["sides"][1].update(gate_activation="mish"),
        lambda encoder, _: encoder.update(positions="absolute"),
    ):
        sentence = told(change)
        assert sentence.endswith(".") and "\n" not in sentence
