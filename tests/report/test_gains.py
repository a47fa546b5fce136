"""Differences of word error rates on the same utterances."""

import numpy as np
import pytest
from helpers.recipes import run_sclite

from espnet_omnisparse.report.gains import gain_table, paired_gain, read_errors
from espnet_omnisparse.report.results import COSTS, Series, SizeResult
from espnet_omnisparse.report.scores import read_score


def test_errors_are_those_that_sclite_counts(tmp_path, capsys):
    reference = "a b c (s-1)\nd e (s-2)\nf (s-3)\n"
    run_sclite(tmp_path, reference, "a x c (s-1)\n (s-2)\nf g (s-3)\n")
    (tmp_path / "result.txt").write_text(capsys.readouterr().out)
    errors = read_errors(tmp_path)
    assert errors == {"s-1": (1, 3), "s-2": (2, 2), "s-3": (1, 1)}
    score = read_score(tmp_path / "result.txt")
    wrong, words = map(sum, zip(*errors.values(), strict=True))
    assert score.words == words == 6
    assert score.err == pytest.approx(100 * wrong / words, abs=0.05)


def test_an_interval_is_that_of_the_normal_distribution_where_utterances_are_many():
    random = np.random.default_rng(1)
    words = np.full(3000, 10)
    ours, theirs = random.binomial(10, 0.10, 3000), random.binomial(10, 0.13, 3000)
    gain = paired_gain(ours, theirs, words)
    assert gain.difference == pytest.approx(10 * (ours - theirs).mean())
    half = 1.96 * 10 * (ours - theirs).std() / np.sqrt(3000)
    assert gain.low == pytest.approx(gain.difference - half, abs=0.1 * half)
    assert gain.high == pytest.approx(gain.difference + half, abs=0.1 * half)
    assert gain.high < 0  # better, and not by chance
    # in pairs: what both find hard does not widen it
    hard = random.integers(0, 9, 3000)
    assert paired_gain(ours + hard, theirs + hard, words) == gain


def scored(tmp_path, capsys, name, hypothesis):
    folder = tmp_path / name / "ctc/test/score_wer"
    folder.mkdir(parents=True)
    run_sclite(folder, "a b c d (s-1)\ne f (s-2)\n", hypothesis)
    (folder / "result.txt").write_text(capsys.readouterr().out)
    cost = dict.fromkeys(COSTS, 1)
    wer = {"ctc/test": read_score(folder / "result.txt")}
    return SizeResult(name, tmp_path / name, name, 1, 1, "slim", cost, wer, {})


def test_searched_and_repaired_sizes_are_held_against_their_like(tmp_path, capsys):
    good, bad = "a b c d (s-1)\ne f (s-2)\n", "a b c x (s-1)\ne x (s-2)\n"
    sizes = {
        name: scored(tmp_path, capsys, name, text)
        for name, text in {
            "70pct": good,
            "70pct_uniform": bad,
            "s90": bad,
            "s90-repaired": good,
        }.items()
    }
    plain = [one for name, one in sizes.items() if not name.endswith("repaired")]
    family = [Series("supernet", plain), Series("other", [sizes["s90-repaired"]])]
    rows = gain_table(family).rows
    assert [row[:5] for row in rows] == [
        ["70pct", "70pct_uniform", "ctc/test", "0.0", "-33.33"],
        ["s90-repaired", "s90", "ctc/test", "0.0", "-33.33"],
    ]
    low, high = map(float, rows[0][5].split(" to "))
    assert (low, high) == (-50.0, -25.0)  # of either utterance alone
    assert gain_table([Series("supernet", [sizes["s90"]])]) is None
