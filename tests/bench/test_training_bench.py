"""What `make bench` prints of trainings, on a net that takes no time."""

import re
from argparse import Namespace

import pytest

from espnet_omnisparse.bench import memory, training

TINY = ["--blocks", "4", "--size", "32", "--batch", "8", "--seconds", "1"]


def rows(printed: str) -> dict[str, list[str]]:
    """First cell -> the others, of all tables, without their heads."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize(
    "only, expected",
    [
        ("training", ["stock conformer", "ours, no supernet", "step 2, split_batch"]),
        ("selection", ["simple_topk", "iterative_zero_out", "ortho_softmax"]),
        (
            "sparsity",
            ["dense", "per_batch", "split_batch", "per_accum", "in_turn"]
            + ["in_turn, with a teacher"],
        ),
        ("sizes", ["full (16 of 16 branches)", "small (5 of 16 branches)"]),
    ],
)
def test_a_table_has_a_time_in_every_row(capsys, only, expected):
    training.main([*TINY, "--rounds", "2", "--only", only])
    found = rows(capsys.readouterr().out)
    for name in expected:
        row = found[name]
        assert re.match(r"\d+(\.\d+)?$", row[0]) and float(row[0]) >= 0.0, name


def test_the_cost_of_gating_is_a_share_of_the_stock_encoder(capsys):
    training.main([*TINY, "--rounds", "2", "--only", "gating"])
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "Gating" in one]
    (share,) = re.findall(r": ([+-]\d+\.\d) %$", line)
    assert float(share) > -100.0


@pytest.mark.parametrize("counts", [True, False])
def test_the_next_update_follows_where_it_is_another_net_s_turn(counts):
    args = Namespace(blocks=1, size=16, batch=4, seconds=1.0)
    first = training.STEP2_AT
    model = training.supernet_at(args, "in_turn", first, training.SPARSE)
    run = training.step(model, training.make_batch(args), counts)
    run(), run()
    assert model.supernet.update == first + 2 * counts


@pytest.mark.slow
def test_memory_of_each_step_is_measured(capsys):
    memory.main([*TINY, "--tokens", "20"])
    found = rows(capsys.readouterr().out)
    assert set(memory.STEPS) <= set(found)
    assert all(float(found[step][0]) > 0.0 for step in memory.STEPS)
