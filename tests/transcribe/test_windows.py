"""Windows of a long recording, joined, tell what the whole recording does."""

import tracemalloc

import numpy as np
import pytest
from helpers.engine_models import RATE, sound, write

from espnet_omnisparse.runtime import Token
from espnet_omnisparse.runtime.library import VARIABLE
from espnet_omnisparse.transcribe import windows
from espnet_omnisparse.transcribe.engine import PackedModel

FRAME = 640


def told(tokens):
    return [(token.id, round(token.seconds, 3)) for token in tokens]


@pytest.fixture
def engine(engine_library, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(engine_library))


@pytest.mark.parametrize("kind", ["local", "local-transducer"])
@pytest.mark.parametrize("beam", [1, 3])
def test_what_sees_little_hears_the_same_in_windows(
    tmp_path, monkeypatch, engine, kind, beam
):
    """Of a net whose frames see less than half an overlap, token by token."""
    wave = sound(25 * RATE + 123)
    model = PackedModel(write(tmp_path, kind), beam=beam)
    whole = told(model.tokens([wave]))
    monkeypatch.setattr(windows, "LENGTH", 9.0)
    parts = told(model.tokens(np.array_split(wave, 7)))
    assert parts == whole and len(whole) > 200
    assert parts[-1][1] > 24


def test_what_sees_all_hears_each_window_and_nothing_twice(
    tmp_path, monkeypatch, engine
):
    monkeypatch.setattr(windows, "LENGTH", 9.0)
    wave = sound(25 * RATE)
    model = PackedModel(write(tmp_path, "ctc"))
    short = wave[: 9 * RATE]
    assert told(model.tokens([short])) == told(model._tokens_of(short))
    found = told(model.tokens([wave]))
    step = 225 * FRAME - 150 * FRAME
    for number, samples in windows.windows([wave], 225 * FRAME, step):
        begin, end = number / RATE, (number + len(samples)) / RATE
        # what no other window is asked for
        first = begin + 4.5 if number else 0
        last = end - 4.5 if end < 25 else end
        own = [(id, round(begin + t, 3)) for id, t in told(model._tokens_of(samples))]
        assert [one for one in own if first < one[1] < last] == [
            one for one in found if first < one[1] < last
        ]
    times = [time for _, time in found]
    assert times == sorted(set(times)) and times[-1] > 24


@pytest.mark.parametrize("late", [-0.08, 0.0, 0.04, 0.08])
def test_windows_may_differ_by_some_frames(late):
    """Words with pauses between them are there once each, wherever the joins fall."""
    spoken = np.arange(0.0, 200.0, 0.37) + np.resize([0.0, 0.05, 0.11], 541)
    calls = []

    def tokens_of(samples):
        # a sample is the time at which it was recorded
        begin, off = samples[0], late * (len(calls) % 2)
        calls.append(begin)
        return [
            Token(str(n), n, float(time - begin + off))
            for n, time in enumerate(spoken)
            if samples[0] <= time + off <= samples[-1]
        ]

    clock = np.arange(200 * 100, dtype=np.float32) / 100
    found = list(windows.joined(np.array_split(clock, 31), 100, 4, tokens_of))
    assert [token.id for token in found] == [*range(len(spoken))]
    assert len(calls) == 9
    for token in found:
        assert abs(token.seconds - spoken[token.id]) <= abs(late) + 0.001


def test_memory_does_not_grow_with_the_recording():
    rate, held = 1000, []

    def blocks(seconds):
        for _ in range(seconds // 10):
            yield np.zeros(10 * rate, np.float32)

    def tokens_of(samples):
        held.append(len(samples))
        return [Token("a", 1, 1.0)]

    peaks = []
    for seconds in (100, 7200):
        tracemalloc.start()
        for _ in windows.joined(blocks(seconds), rate, 40, tokens_of):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(held) <= windows.LENGTH * rate
    assert peaks[1] < 1.1 * peaks[0]
