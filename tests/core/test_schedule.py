from fractions import Fraction

import pytest

from espnet_omnisparse.core.schedule import (
    Timeline,
    cubic_ramp,
    resolve_updates,
    shrinking_k,
)
from espnet_omnisparse.errors import UserError

# units, smallest size, updates per shrinking, units lost at a time, step 1
PUBLISHED = [
    pytest.param(48, 24, 35_000, 4, 210_000, id="tedlium-2-sizes"),
    pytest.param(48, 16, 26_600, 4, 212_800, id="tedlium-3-sizes"),
    pytest.param(48, 12, 5_734, 1, 206_424, id="tedlium-4-sizes"),
    pytest.param(48, 16, 14_640, 1, 468_480, id="librispeech"),
]


def published_k(update, units, smallest, interval, shrink):
    return max(units - shrink - shrink * int(update // interval), smallest)


@pytest.mark.parametrize("units, smallest, interval, shrink, length", PUBLISHED)
def test_k_follows_the_published_runs(units, smallest, interval, shrink, length):
    assert interval * (units - smallest) == length * shrink
    boundaries = range(0, length + interval, interval)
    for update in [b + d for b in boundaries for d in (-1, 0, 1) if b + d >= 0]:
        expected = published_k(update, units, smallest, interval, shrink)
        assert shrinking_k(update, units, smallest, shrink, length) == expected, update
    # the first update has lost r already, and the last interval has come to the end
    assert shrinking_k(0, units, smallest, shrink, length) == units - shrink
    last_interval = length - interval
    assert shrinking_k(last_interval, units, smallest, shrink, length) == smallest
    before = shrinking_k(last_interval - 1, units, smallest, shrink, length)
    assert before == smallest + shrink


@pytest.mark.parametrize("shrink", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [7, 10, 101])
def test_k_is_exact_where_the_interval_is_no_integer(shrink, length):
    interval = Fraction(length * shrink, 12 - 5)
    for update in range(length + 3):
        expected = published_k(update, 12, 5, interval, shrink)
        assert shrinking_k(update, 12, 5, shrink, length) == expected


def test_k_is_the_smallest_size_where_there_is_nothing_to_shrink():
    assert shrinking_k(0, 12, 12, 1, 100) == 12
    assert shrinking_k(0, 12, 4, 1, 0) == 4


def test_phases_change_at_their_first_update():
    timeline = Timeline(warm=10, step1=20)
    phases = [timeline.phase(update) for update in (0, 9, 10, 29, 30, 1000)]
    assert phases == ["warm", "warm", "step1", "step1", "step2", "step2"]
    assert timeline.selected_at == 30


def test_without_warm_start_and_step1_everything_is_step2():
    assert Timeline(0, 0).phase(0) == "step2"


def test_the_ramp_lies_between_step1_and_step2():
    timeline = Timeline(warm=10, step1=20, ramp=5)
    phases = [timeline.phase(update) for update in (9, 10, 29, 30, 34, 35, 1000)]
    assert phases == ["warm", "step1", "step1", "ramp", "ramp", "step2", "step2"]
    assert (timeline.selected_at, timeline.settled_at) == (30, 35)
    assert Timeline(10, 20).settled_at == 30
    assert [Timeline(2, 0, 3).phase(u) for u in (1, 2, 4, 5)] == [
        *("warm", "ramp", "ramp", "step2")
    ]


@pytest.mark.parametrize("initial, final", [(0.0, 0.9), (0.5, 0.7), (0.6, 0.6)])
def test_the_ramp_is_cubic(initial, final):
    for time in range(12):
        left = Fraction(max(10 - time, 0), 10)
        expected = final + (initial - final) * float(left**3)
        assert cubic_ramp(time, 10, initial, final) == pytest.approx(expected)
    assert cubic_ramp(0, 10, initial, final) == pytest.approx(initial)
    assert cubic_ramp(10, 10, initial, final) == final
    assert cubic_ramp(0, 0, initial, final) == final


def test_a_fraction_is_of_the_run_and_an_int_is_updates():
    assert resolve_updates("step1", 0.6, 1000) == 600
    assert resolve_updates("step1", 600, 1000) == 600
    assert resolve_updates("step1", 1, 1000) == 1
    assert resolve_updates("step1", 1.0, 1000) == 1000


def test_the_length_of_the_run_matters_to_fractions_only():
    assert resolve_updates("step1", 600, None) == 600
    assert resolve_updates("warm_start", 0.0, None) == 0
    with pytest.raises(UserError, match="step1: 0.6 is a fraction .* unknown"):
        resolve_updates("step1", 0.6, None)
