"""The weight axis: the ramp, what is drawn, and what an update makes of it."""

import logging
import os
import random
import re
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import REPOSITORY
from helpers.gradients import (
    assert_same_gradients,
    gradients,
    rows,
    seed_of_each_division,
    utterance_losses,
)

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.sampling import AdaptiveWeight
from espnet_omnisparse.supernet.sparsity import SUBNETS, SparsityConfig
from espnet_omnisparse.supernet.supernet import Supernet
from espnet_omnisparse.train import loss_guard
from espnet_omnisparse.train.journal import settled_specs

SPACE = SearchSpace(3, pattern=Pattern())
WEIGHTS = 33
# of a run of 100: warm start to 10, ramp to 30
ONE_AXIS = {
    "method": "none",
    "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}},
    "sparsity": {"final": 0.8, "ramp": 20},
    "warm_start": 10,
}
# step 1 to 30, ramp to 50
BOTH_AXES = {
    "method": "simple_topk",
    "sizes": {
        "small": {"units": 4, "sparsity": 0.8},
        "medium": {"units": 8, "sparsity": 0.4},
        "s60": {"sparsity": 0.6},
        "half": 6,
    },
    "sparsity": {"final": 0.8, "ramp": 20},
    "warm_start": 10,
    "step1": 20,
}


def supernet(updates=0, conf=ONE_AXIS, **sparsity):
    conf = {**conf, "sparsity": {**conf["sparsity"], **sparsity}}
    net = Supernet(SupernetConfig.read(conf), SPACE)
    net.set_run_length(100)
    net.update = updates
    return net


@pytest.fixture
def sparse_model(tiny_config, build):
    """A supernet with masks: no dropout, and every weight a group of its own."""

    def make(update=40, conf=ONE_AXIS, sparsity=None, encoder=None, **options):
        supernet = {**conf, **options.pop("supernet", {})}
        supernet["sparsity"] = {**conf["sparsity"], **(sparsity or {})}
        encoder = {"pattern": "unstructured", **(encoder or {})}
        config = tiny_config(encoder=encoder, supernet=supernet, **options)
        config["encoder"] = "omni_sparse_conformer"
        return build(config, update=update)

    return make


# the ramp


def test_the_reach_follows_the_formula_through_a_run():
    for update in range(100):
        net = supernet(update, initial=0.2)
        time = min(max(update - 10, 0), 20)
        ramp = 0.8 + (0.2 - 0.8) * (1 - time / 20) ** 3
        assert net.max_sparsity == pytest.approx(ramp if update >= 10 else 0.0), update
        phase = "warm" if update < 10 else "ramp" if update < 30 else "step2"
        assert net.phase == phase
        assert net.settled == (update >= 30)


def test_the_ramp_begins_after_step1():
    reaches = {
        u: supernet(u, BOTH_AXES).max_sparsity for u in (9, 10, 29, 30, 31, 50, 99)
    }
    rising = pytest.approx(0.8 * (1 - (19 / 20) ** 3))
    assert reaches == {9: 0, 10: 0, 29: 0, 30: 0, 31: rising, 50: 0.8, 99: 0.8}
    assert [supernet(u, BOTH_AXES).phase for u in (9, 10, 29, 30, 49, 50)] == [
        *("warm", "step1", "step1", "ramp", "ramp", "step2")
    ]


def test_validation_during_the_ramp_goes_as_far_as_it_reaches():
    for update in (10, 14, 20, 30, 60):
        net = supernet(update)
        full, *sizes = net.validation_subnets()
        assert full.size == "full" and full.sparsity == ()
        assert [draw.size for draw in sizes] == ["s40", "s80"]
        for draw, share in zip(sizes, (0.4, 0.8), strict=True):
            expected = min(share, net.max_sparsity)
            assert draw.sparsity == ((expected,) * WEIGHTS if expected else ())
            assert draw.gates == (1.0,) * 12
    assert [draw.size for draw in supernet(9).validation_subnets()] == ["full"]


# levels and draws


@pytest.mark.parametrize(
    "step, reach, levels",
    [
        (0.1, 0.9, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (0.1, 0.3, [0.0, 0.1, 0.2, 0.3]),
        (0.25, 0.6, [0.0, 0.25, 0.5, 0.6]),
        (0.25, 0.5001, [0.0, 0.25, 0.5001]),  # not a level and its double
        (0.5, 0.0, [0.0]),
    ],
)
def test_levels_go_from_nothing_to_the_reach(step, reach, levels):
    assert SparsityConfig(step=step).levels(reach) == pytest.approx(levels)
    assert SparsityConfig(step=step).levels(reach)[-1] == reach


def drawn(net, reach=0.8, count=400, weights=WEIGHTS):
    source = random.Random(1)
    config = SparsityConfig(final=0.8, step=0.1)
    return [config.draw(net, reach, weights, source) for _ in range(count)]


def test_dense_and_sparsest_are_the_ends():
    assert drawn("dense", count=2) == [()] * 2
    assert drawn("sparsest", reach=0.37, count=2) == [(0.37,) * WEIGHTS] * 2


@pytest.mark.parametrize("net", SUBNETS)
@pytest.mark.parametrize("reach", [0.0, 0.05, 0.34, 0.8])
def test_no_draw_is_above_the_reach(net, reach):
    shares = [share for shares in drawn(net, reach) for share in shares]
    assert all(0.0 <= share <= reach for share in shares)
    if net not in ("dense", "sparsest"):
        assert set(shares) == set(SparsityConfig(step=0.1).levels(reach))


def correlation(pairs):
    return statistics.correlation(*zip(*pairs, strict=True))


def test_random_is_independent_in_every_weight():
    shares = drawn("random", count=2000, weights=4)
    for weight in range(4):
        mean = statistics.mean(one[weight] for one in shares)
        assert mean == pytest.approx(0.4, abs=0.02)  # the grid's, of 9 levels
        for other in range(weight):
            pairs = [(one[weight], one[other]) for one in shares]
            assert abs(correlation(pairs)) < 0.08


def test_uniform_is_the_same_in_every_weight_and_all_levels():
    shares = drawn("uniform", count=2000)
    assert all(len(set(one)) == 1 for one in shares)
    firsts = [one[0] for one in shares]
    assert statistics.mean(firsts) == pytest.approx(0.4, abs=0.02)
    assert all(150 < firsts.count(level) < 300 for level in set(firsts))


def test_around_stays_within_two_levels_of_a_common_one():
    shares = drawn("nearby", count=2000, weights=12)
    widths = [round((max(one) - min(one)) / 0.1) for one in shares]
    assert max(widths) == 4 and statistics.mean(widths) > 3
    pairs = [(one[0], one[1]) for one in shares]
    assert 0.6 < correlation(pairs) < 0.9
    means = [statistics.mean(one) for one in shares]
    assert min(means) < 0.1 and max(means) > 0.7


def plan_of_a_run(conf, seed=0):
    net = supernet(conf={**conf, "seed": seed}, sandwich=["dense", "random", "nearby"])
    found = []
    for update in range(30, 60):
        net.update = update
        found.append([(d.size, d.gates, d.sparsity) for d in net.sample_subnets()])
    return found


@pytest.mark.parametrize("conf", [ONE_AXIS, BOTH_AXES], ids=["weights", "both"])
def test_draws_are_a_function_of_seed_and_update(conf):
    random.seed(1)
    torch.manual_seed(1)
    first = plan_of_a_run(conf)
    random.seed(2)
    torch.manual_seed(2)
    assert plan_of_a_run(conf) == first
    assert plan_of_a_run(conf, seed=1) != first
    # another for every update, but for the first, from which nothing can be drawn
    sparsities = [tuple(shares for _, _, shares in update) for update in first[1:]]
    assert len(set(sparsities)) == len(sparsities)
    # resumed: a fresh supernet that knows only the update
    resumed = supernet(45, {**conf, "seed": 0}, sandwich=["dense", "random", "nearby"])
    draws = [(d.size, d.gates, d.sparsity) for d in resumed.sample_subnets()]
    assert draws == first[15]


DRAW_ELSEWHERE = """
import sys
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.sampling import AdaptiveWeight
from espnet_omnisparse.supernet.supernet import Supernet
conf = SupernetConfig.read(eval(sys.argv[1]))
net = Supernet(conf, SearchSpace(3, pattern=Pattern()))
net.set_run_length(100)
net.update = 60
print([(d.size, d.gates, d.sparsity) for d in net.sample_subnets()])
"""


def test_another_process_draws_the_same():
    done = subprocess.run(
        [sys.executable, "-c", DRAW_ELSEWHERE, repr(BOTH_AXES)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    draws = supernet(60, BOTH_AXES).sample_subnets()
    assert done.stdout == f"{[(d.size, d.gates, d.sparsity) for d in draws]}\n"


# the plan


def test_the_warm_start_trains_the_dense_net_alone():
    (draw,) = supernet(9).sample_subnets()
    assert (draw.size, draw.sparsity, draw.is_main) == ("full", (), True)


def test_an_update_trains_the_nets_of_the_plan():
    conf = {**ONE_AXIS, "subnet_weight": 0.7}
    draws = supernet(40, conf).sample_subnets()
    assert [draw.size for draw in draws] == ["full", "sparsest", "random1", "random2"]
    assert [draw.weight for draw in draws] == [1.0, 0.7, 0.7, 0.7]
    assert [draw.is_main for draw in draws] == [True, False, False, False]
    assert all(draw.gates == (1.0,) * 12 for draw in draws)
    full, sparsest, *others = [draw.sparsity for draw in draws]
    assert full == () and sparsest == (0.8,) * WEIGHTS
    assert others[0] != others[1]
    adaptive = supernet(40, {**conf, "subnet_weight": "adaptive"}).sample_subnets()
    assert [draw.weight for draw in adaptive] == [1.0] + 3 * [AdaptiveWeight()]


def test_the_first_net_is_the_main_one_whatever_it_is():
    draws = supernet(40, sandwich=["sparsest", "dense", "uniform"]).sample_subnets()
    assert [draw.size for draw in draws] == ["sparsest", "full", "uniform"]
    assert [draw.is_main for draw in draws] == [True, False, False]


def test_wanted_sizes_are_drawn_alike_and_under_their_names():
    sizes = {name: {"sparsity": float(f"0.{name[1]}")} for name in ("s40", "s60")}
    conf = {**ONE_AXIS, "sizes": {**sizes, "s80": {"sparsity": 0.8}}}
    sandwich = ["dense", "sparsest", "sparsest", "size"]
    seen = []
    for update in range(30, 100):
        for seed in range(10):
            net = supernet(update, {**conf, "seed": seed}, sandwich=sandwich)
            full, sparsest, size = net.sample_subnets()
            assert (full.size, full.times) == ("full", 1)
            assert (sparsest.size, sparsest.times) == ("sparsest", 2)
            assert sparsest.sparsity == (0.8,) * WEIGHTS
            shares = {"s40": 0.4, "s60": 0.6}[size.size]  # s80 is the sparsest
            assert size.sparsity == (shares,) * WEIGHTS
            assert (size.weight, size.times, size.is_main) == (0.3, 1, False)
            seen.append(size.size)
    assert seen.count("s40") == pytest.approx(350, abs=45)
    # without a place of its own it is drawn as the others are
    assert {
        supernet(update, conf, sandwich=["dense", "size"]).sample_subnets()[1].size
        for update in range(30, 60)
    } == set(conf["sizes"])
    # no further than the ramp has come
    net = supernet(15, sandwich=["dense", "size"])
    assert set(net.sample_subnets()[1].sparsity) <= {0.4, net.max_sparsity}
    assert net.max_sparsity < 0.8
    assert supernet(10, sandwich=["dense", "size"]).sample_subnets()[1].sparsity == ()


def test_no_size_is_drawn_twice_before_each_has_been_once():
    for update in range(30, 60):
        net = supernet(update, sandwich=["dense", "size", "size", "size"])
        drawn = {draw.size: draw.times for draw in net.sample_subnets()[1:]}
        assert drawn in ({"s40": 2, "s80": 1}, {"s40": 1, "s80": 2})


def test_the_ramp_may_have_a_sandwich_of_its_own():
    conf = {"sandwich": ["dense", "sparsest", "size"], "ramp_sandwich": ["sparsest"]}
    for update in range(10, 30):
        net = supernet(update, **conf)
        (alone,) = net.sample_subnets()
        assert (alone.size, alone.is_main, alone.weight) == ("sparsest", True, 1.0)
        assert set(alone.sparsity) <= {net.max_sparsity}
    nets = [one.size for one in supernet(30, **conf).sample_subnets()]
    assert nets == ["full", "sparsest", "s40"]
    assert [one.size for one in supernet(9, **conf).sample_subnets()] == ["full"]
    # sizes are validated all the time, the dense net as well
    longer = {**conf, "ramp_sandwich": 4 * ["sparsest"]}
    assert supernet(20, **longer).subnets_per_update == 4
    validated = supernet(20, **conf).validation_subnets()
    assert [one.size for one in validated] == ["full", "s40", "s80"]


def test_a_wanted_size_of_both_axes_is_what_it_will_be():
    seen = set()
    for update in range(50, 100):
        net = supernet(update, BOTH_AXES, sandwich=["dense", "sparsest", "size"])
        size = net.sample_subnets()[2]
        (same,) = (one for one in net.validation_subnets() if one.size == size.size)
        assert (size.gates, size.sparsity) == (same.gates, same.sparsity)
        assert size.chunk == same.chunk
        seen.add(size.size)
    assert seen == set(BOTH_AXES["sizes"]) - {"small"}  # which is the sparsest


def test_a_size_that_is_named_has_a_place_in_every_update():
    live, offline = {"size": 4, "left": 8}, {"sparsity": 0.4, "chunk": "full"}
    conf = {
        **ONE_AXIS,
        "sizes": {
            "live": {"chunk": live},
            "offline": offline,
            "s80": {"sparsity": 0.8},  # streams, as the sparsest does
            "s80_offline": {"sparsity": 0.8, "chunk": "full"},
        },
        "chunks": ["full", live],
    }
    seen = set()
    for update in range(40, 80):
        net = supernet(update, conf, sandwich=["dense", "live", "sparsest", "size"])
        full, streaming, sparsest, size = net.sample_subnets()
        assert (full.size, full.sparsity, full.chunk) == ("full", (), None)
        # all of the dense net, as it is when it streams
        assert (streaming.size, streaming.sparsity) == ("live", ())
        assert streaming.gates == full.gates and streaming.chunk == Chunk(**live)
        assert not streaming.is_main
        assert sparsest.chunk == Chunk(**live)
        seen.add(size.size)
    assert seen == {"offline", "s80_offline"}  # which have no place of their own
    # first, the sparsest sees the largest chunk, as s80_offline does
    net = supernet(60, conf, sandwich=["sparsest", "size", "size", "size"])
    assert net.sample_subnets()[0].chunk is None
    drawn = {one.size for one in net.sample_subnets()[1:]}
    assert drawn == {"live", "offline", "s80"}
    # first, it is the largest; where all have a place, any is drawn
    names = list(conf["sizes"])
    net = supernet(60, conf, sandwich=[*names, "size"])
    largest, *_, size = net.sample_subnets()
    assert (largest.size, largest.is_main, largest.weight) == ("live", True, 1.0)
    assert size.size in names


def test_a_size_that_is_the_main_net_and_drawn_too_keeps_its_name():
    conf = {**ONE_AXIS, "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}}}
    seen = set()
    for update in range(40, 80):
        net = supernet(update, conf, sandwich=["s40", "s80", "size"])
        main, *others = net.sample_subnets()
        assert (main.size, main.is_main, main.times) == ("s40", True, 1)
        seen.add(tuple((one.size, one.times) for one in others))
    # of what is drawn, the main net's twin is a net of its own, without its dropout
    assert seen == {(("s80", 1), ("s40", 1)), (("s80", 2),)}


def test_named_twice_the_sparsest_has_half_of_a_split_batch(sparse_model, batch):
    sandwich = ["dense", "sparsest", "sparsest", "size"]
    conf = {"supernet": {"update": "split_batch", "subnet_weight": 0.5}}
    model = sparse_model(sparsity={"sandwich": sandwich}, **conf).train()
    torch.manual_seed(3)
    loss, stats, _ = model(**batch)
    assert "loss_sparsest" in stats  # in one pass
    torch.manual_seed(3)
    parts = torch.randperm(4).tensor_split(4)
    total = model.encoder(batch["speech"], batch["speech_lengths"])[1].sum()
    expected = 0.0
    full, sparsest, size = model.supernet.sample_subnets()
    for draw, part in zip([full, sparsest, sparsest, size], parts, strict=True):
        losses, _ = utterance_losses(model, draw, rows(batch, part))
        weight = 1.0 if draw.size == "full" else 0.5
        expected = expected + weight * sum(losses) / len(losses)
    expected = expected * 4 / total / 2.5
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


@pytest.mark.parametrize("update", [35, 50, 80])
def test_draws_of_both_axes_come_from_the_product_of_the_axes(update):
    sandwich = ["dense", "sparsest", "random", "nearby", "uniform"]
    net = supernet(update, BOTH_AXES, sandwich=sandwich)
    scores = torch.randn(12)
    net.selection.scores.data = scores
    masks = net.selection.masks()
    everything = (1.0,) * 12
    trained = {name: tuple(1.0 if k else None for k in m) for name, m in masks.items()}
    assert {n: g.count(1.0) for n, g in trained.items()} == {
        **{"medium": 8, "half": 6, "small": 4}
    }
    seen = {name: set() for name in sandwich[2:]}
    for seed in range(40):
        net = supernet(update, {**BOTH_AXES, "seed": seed}, sandwich=sandwich)
        net.selection.scores.data = scores
        full, sparsest, *others = net.sample_subnets()
        assert (full.gates, full.sparsity) == (everything, ())
        assert sparsest.gates == trained["small"]
        assert sparsest.sparsity == (net.max_sparsity,) * WEIGHTS
        for draw in others:
            seen[draw.size].add(draw.gates)
            assert len(draw.sparsity) == WEIGHTS
    choices = {everything, *trained.values()}
    assert all(found == choices for found in seen.values())


def test_layer_dropout_of_both_axes_is_on_the_dense_net_outside_the_smallest():
    conf = {**BOTH_AXES, "layer_dropout_step2": 0.4}
    net = supernet(60, conf)
    full, *others = net.sample_subnets()
    smallest = net.selection.masks()["small"]
    assert torch.equal(full.layer_dropout == 0.0, smallest)
    assert full.layer_dropout.max().item() == pytest.approx(0.4)
    assert all(draw.layer_dropout is None for draw in others)
    sparse_first = supernet(60, conf, sandwich=["sparsest", "dense"])
    assert all(d.layer_dropout is None for d in sparse_first.sample_subnets())


def test_settled_specs_have_both_axes():
    specs = settled_specs(supernet(99, BOTH_AXES), "0f")
    found = {
        name: (sum(spec.mask), spec.sparsity[:1], len(spec.sparsity))
        for name, spec in specs.items()
    }
    assert found == {
        "small": (4, (0.8,), WEIGHTS),
        "half": (6, (), 0),
        "medium": (8, (0.4,), WEIGHTS),
        "s60": (12, (0.6,), WEIGHTS),
        "full": (12, (), 0),
    }
    assert list(specs) == ["small", "half", "medium", "s60", "full"]
    one = settled_specs(supernet(99, sandwich=["sparsest"]), "0f")
    assert list(one) == ["s80", "s40"]  # no dense net has been trained


# what is refused

BAD = [
    ({"sparsity": 0.9}, "sparsity must be a section of options: 0.9"),
    ({"sparsity": [0.9]}, "sparsity must be a section"),
    ({"sparsity": {"finl": 0.9}}, "unknown key 'finl'; did you mean 'final'"),
    ({"sparsity": {"final": 1.0}}, "must rise from initial, .* not from 0.0 to 1.0"),
    ({"sparsity": {"final": 0.0}}, "must rise from initial"),
    ({"sparsity": {"initial": 0.9}}, "sparsity must .* not from 0.9 to 0.8"),
    ({"sparsity": {"initial": -0.1}}, "must rise from initial, at least 0"),
    (
        {"sparsity": {"final": "9e-1"}},
        "final must be a number, not the text '9e-1'",
    ),
    (
        {"sparsity": {"step": "1e-1"}},
        "step must be a number, not the text '1e-1'",
    ),
    ({"sparsity": {"step": 0.0}}, "step must be above 0 and at most final"),
    ({"sparsity": {"step": 0.81}}, "step must be above 0 and at most final"),
    ({"sparsity": {"ramp": 1.5}}, "ramp must be a number of updates, or a fraction"),
    ({"sparsity": {"ramp": -1}}, "ramp must be a number of updates, or a fraction"),
    ({"sparsity": {"ramp": float("nan")}}, "ramp must be a number of updates"),
    ({"sparsity": {"ramp": True}}, "ramp must be a number of updates, or .*, not True"),
    ({"sparsity": {"refresh": 0}}, "refresh must be a number of updates, at least 1"),
    ({"sparsity": {"refresh": 2.0}}, "refresh must be a number of updates"),
    (
        {"sparsity": {"sandwich": []}},
        "sandwich must be a list of at least one of dense, sparsest",
    ),
    (
        {"sparsity": {"sandwich": ["densest"]}},
        "sandwich must be a list .* not .'densest'.",
    ),
    (
        {"sparsity": {"ramp_sandwich": ["densest"]}},
        "ramp_sandwich must be a list .* not .'densest'.",
    ),
    (
        {"sparsity": {"ramp_sandwich": ["sparsest"], "ramp": 0}},
        "ramp_sandwich has no effect without a ramp: give ramp a length",
    ),
    (
        {"sizes": {}, "sparsity": {"ramp_sandwich": ["size"]}},
        "ramp_sandwich has size, but supernet.sizes is empty: name at least one",
    ),
    (
        {"distillation": "kl", "sparsity": {"ramp_sandwich": ["sparsest", "dense"]}},
        "supernet.distillation needs the dense net",
    ),
    ({"sparsity": {"sandwich": "dense"}}, "sandwich must be a list .* not 'dense'"),
    ({"sparsity": {"sandwich": 3}}, "sandwich must be a list .* not 3"),
    ({"sparsity": {"sandwich": [["dense"]]}}, "sandwich must be a list"),
    (
        {"sizes": {}, "sparsity": {"sandwich": ["dense", "size"]}},
        "sandwich has size, but supernet.sizes is empty: name at least one",
    ),
    ({"sparsity": {"ramp": 90}}, "sparsity.ramp take 100 of the run's 100 updates"),
    ({"sparsity": {"ramp": 0.9}}, "warm_start, supernet.step1 and sparsity.ramp take"),
    ({"sizes": {"s90": {"sparsity": 0.9}}}, "s90 has a sparsity of 0.9, but .* 0.8"),
    ({"heads": "per_size"}, "heads: per_size cannot be combined with supernet.sparsi"),
    ({"distillation": "l2"}, "distillation must be one of none, kl, alpha, not 'l2'"),
    ({"distillation_weight": 1.5}, "distillation_weight must be between 0 and 1"),
    ({"distillation_weight": "5e-1"}, "distillation_weight must be .*'5e-1'"),
    ({"distillation_weight": None}, "distillation_weight must be between"),
    ({"subnet_dropout": "half"}, "subnet_dropout must be one of adaptive, full, none"),
    (
        {"distillation": "kl", "sparsity": {"sandwich": ["sparsest", "dense"]}},
        "distillation needs the dense net, the teacher, as the first",
    ),
    (
        {"method": "layerdrop", "sizes": {"small": 4}},
        "method: layerdrop has no joint training .* choose another",
    ),
    *(
        ({"sizes": {name: {"sparsity": 0.5}}}, f"may not be called '{name}'")
        for name in ("random", "sparsest", "random2", "dense", "nearby1")
    ),
]


@pytest.mark.parametrize("changes, sentence", BAD)
def test_a_mistake_gets_its_sentence(changes, sentence):
    sparsity = changes.get("sparsity", {})
    if isinstance(sparsity, dict):
        changes = {**changes, "sparsity": {**ONE_AXIS["sparsity"], **sparsity}}
    with pytest.raises(UserError, match=sentence) as error:
        config = SupernetConfig.read({**ONE_AXIS, **changes})
        Supernet(config, SPACE).set_run_length(100)
    assert "\n" not in str(error.value)


def test_a_sparse_size_needs_the_section():
    conf = {"sizes": {"s50": {"sparsity": 0.5}}}
    with pytest.raises(UserError, match="s50 has a sparsity, .* add the section"):
        SupernetConfig.read(conf)


def test_masks_need_a_pattern(tiny_config, build):
    config = tiny_config(supernet=ONE_AXIS)
    with pytest.raises(UserError, match="the encoder has no pattern: use encoder: omn"):
        build(config)


# one update


def keeps(model, draw):
    """Each maskable weight's mask, by an obvious rule; none: all of it."""
    found = {}
    names = model.encoder.space.weights
    shares = draw.sparsity or (0.0,) * len(names)
    for name, share in zip(names, shares, strict=True):
        weight = model.encoder.maskable()[name]
        zeros = round(share * weight.numel())
        smallest = weight.detach().abs().flatten().argsort()[:zeros]
        mask = torch.ones(weight.numel())
        mask[smallest] = 0.0
        found[name] = mask.view_as(weight)
    return found


@pytest.fixture
def apart(sparse_model, batch):
    """Loss and gradients of a subnet alone, in a net with the zeros written in."""

    def make(model, draw, **options):
        other = sparse_model(**options).train()
        other.load_state_dict(model.state_dict())
        masks = keeps(model, draw)
        with torch.no_grad():
            for name, weight in other.encoder.maskable().items():
                weight *= masks[name]
        dense = type(draw)(draw.size, draw.gates)
        losses, frames = utterance_losses(other, dense, batch)
        loss = sum(losses) / sum(frames)
        found = gradients(other, loss)
        names = {id(p): name for name, p in other.named_parameters()}
        for name, weight in other.encoder.maskable().items():
            found[names[id(weight)]] *= masks[name]
        return loss, found

    return make


EVERY_KIND = ["dense", "sparsest", "random", "nearby", "uniform"]


@pytest.mark.parametrize("conf", [ONE_AXIS, BOTH_AXES], ids=["weights", "both"])
def test_the_gradient_is_the_weighted_mean_of_the_subnets(
    sparse_model, apart, batch, conf
):
    options = {
        "conf": conf,
        "sparsity": {"sandwich": EVERY_KIND},
        "update": 60,
    }
    model = sparse_model(**options).train()
    loss, stats, _ = model(**batch)
    found = gradients(model, loss)
    expected = {name: torch.zeros_like(tensor) for name, tensor in found.items()}
    draws = model.supernet.sample_subnets()
    assert len(draws) == 5
    for draw in draws:
        alone, theirs = apart(model, draw, **options)
        assert stats[f"loss_{draw.size}"].item() == pytest.approx(alone.item(), 1e-5)
        for name, tensor in theirs.items():
            expected[name] += (1.0 if draw.size == "full" else 0.3) / 2.2 * tensor
    assert_same_gradients(found, expected)
    assert max(tensor.abs().max() for tensor in expected.values()) > 1e-3


@pytest.mark.parametrize("way", ["per_batch", "split_batch", "in_turn"])
@pytest.mark.parametrize(
    "sandwich", [["dense", "sparsest", "sparsest", "size"], ["dense", "random"]]
)
def test_nothing_jumps_where_the_warm_start_ends(sparse_model, batch, sandwich, way):
    """Masks of nothing are no masks: the update is the dense net's, in its scale.

    A gradient of several times its size makes Adam's steps as much too long, until its
    second moment has come after.
    """
    same = {name: tensor[[0, 0, 0, 0]] for name, tensor in batch.items()}
    conf = {"update": way, "subnet_weight": 1.0}
    made = [
        sparse_model(update, sparsity={"sandwich": sandwich}, supernet=conf).train()
        for update in (9, 10)
    ]
    assert [model.supernet.phase for model in made] == ["warm", "ramp"]
    before, after = (model(**same)[0] for model in made)
    assert after.item() == pytest.approx(before.item(), rel=1e-5)
    assert_same_gradients(gradients(made[1], after), gradients(made[0], before))


def test_a_masked_weight_gets_no_gradient_from_a_masked_subnet(
    sparse_model, apart, batch
):
    options = {"sparsity": {"sandwich": ["sparsest"]}}
    model = sparse_model(**options).train()
    loss, _, _ = model(**batch)
    found = gradients(model, loss)
    (draw,) = model.supernet.sample_subnets()
    masks = keeps(model, draw)
    names = {id(p): name for name, p in model.named_parameters()}
    for name, weight in model.encoder.maskable().items():
        gradient = found[names[id(weight)]]
        assert (gradient[masks[name] == 0.0] == 0.0).all(), name
        assert (gradient[masks[name] == 1.0] != 0.0).any(), name
    assert_same_gradients(found, apart(model, draw, **options)[1])


@pytest.mark.parametrize("distillation", ["none", "alpha"])
def test_split_batch_has_the_expectation_of_per_batch(
    sparse_model, batch, distillation
):
    conf = {"distillation": distillation}
    # a sum of 24 updates in another order: in float64 rounding stays below the bound
    batch["speech"] = batch["speech"].double()
    whole = sparse_model(supernet=conf).double().train()
    split = sparse_model(supernet={**conf, "update": "split_batch"}).double().train()
    expected, _, weight = whole(**batch)
    total, losses = None, []
    for seed in seed_of_each_division(4, 4):
        torch.manual_seed(seed)
        loss, stats, split_weight = split(**batch)
        assert split_weight == weight
        losses.append(loss.item())
        one = gradients(split, loss / 24)
        total = one if total is None else {n: t + one[n] for n, t in total.items()}
    assert len(losses) == 24 and max(losses) > 1.01 * min(losses)
    assert sum(losses) / 24 == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(total, gradients(whole, expected))


@pytest.mark.parametrize("distillation", ["none", "kl"])
@pytest.mark.parametrize("update", [5, 20, 60], ids=["warm", "step1", "step2"])
@pytest.mark.parametrize("micro_batches", [4, 6, 8])
def test_the_micro_batches_of_an_update_add_up_to_per_batch(
    sparse_model, batch, micro_batches, update, distillation
):
    conf = {**BOTH_AXES, "distillation": distillation}
    whole = sparse_model(update, conf).train()
    parts = sparse_model(update, {**conf, "update": "per_accum"}).train()
    parts.accumulate(micro_batches)
    # as the trainer divides
    losses = [parts(**batch)[0] / micro_batches for _ in range(micro_batches)]
    expected = whole(**batch)[0]
    assert sum(losses).item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(parts, sum(losses)), gradients(whole, expected))


def test_which_micro_batch_trains_which_net(sparse_model, batch):
    model = sparse_model(supernet={"update": "per_accum"}).train()
    model.accumulate(5)

    def trained(count):
        stats = [model(**batch)[1] for _ in range(count)]
        return [
            "".join(name[5:] for name in one if re.match("loss_(?!ctc)", name))
            for one in stats
        ]

    turns = ["full", "sparsest", "random1", "random2", "full"]
    assert trained(5) == turns
    # no optimiser has made a step: the update was skipped; the next one begins anew
    assert trained(7) == [*turns, "full", "sparsest"]
    # three micro-batches were left over when the epoch ended
    model.eval()(**batch)
    model.train().accumulate(5)
    assert trained(5) == turns


@pytest.mark.parametrize("distillation", ["none", "kl"])
@pytest.mark.parametrize("update", [5, 20, 60], ids=["warm", "step1", "step2"])
def test_the_updates_of_a_turn_add_up_to_per_batch(
    sparse_model, batch, monkeypatch, update, distillation
):
    conf = {**BOTH_AXES, "distillation": distillation}
    sandwich = ["dense", "sparsest", "sparsest", "half"]
    whole = sparse_model(update, conf, sparsity={"sandwich": sandwich}).train()
    turns = sparse_model(
        update, {**conf, "update": "in_turn"}, sparsity={"sandwich": sandwich}
    ).train()
    expected = whole(**batch)[0]
    # what they are at one update, which alone says whose turn it is
    sampled = turns.supernet.sample_subnets()
    monkeypatch.setattr(turns.supernet, "sample_subnets", lambda: sampled)
    nets = sum(one.times for one in sampled)
    assert nets == {5: 1, 20: 2, 60: 4}[update]
    first, total, names = turns.supernet.update, None, []
    for turn in range(nets):
        turns.supernet.update = first + turn
        loss, stats, _ = turns(**batch)
        names += [name for name in stats if re.match("loss_(?!ctc)", name)]
        one = gradients(turns, loss / nets)
        total = one if total is None else {n: t + one[n] for n, t in total.items()}
    assert_same_gradients(total, gradients(whole, expected))
    step2 = ["loss_full", "loss_sparsest", "loss_sparsest", "loss_half"]
    assert (
        names
        == {5: ["loss_full"], 20: ["loss_full", "loss_current"], 60: step2}[update]
    )


def test_per_accum_trains_as_many_nets_as_step_1_has():
    conf = {**BOTH_AXES, "update": "per_accum"}
    assert supernet(conf=conf, sandwich=["sparsest"]).subnets_per_update == 2
    assert supernet(conf=conf).subnets_per_update == 4
    assert supernet(sandwich=["sparsest"]).subnets_per_update == 1


# masks follow the weights


def test_masks_are_refreshed_every_so_often_and_before_validation(
    sparse_model, batch, monkeypatch
):
    model = sparse_model(update=8, sparsity={"refresh": 3})
    refreshed = []
    plain = model.encoder.refresh_masks

    def refresh():
        refreshed.append(model.supernet.update)
        plain()

    monkeypatch.setattr(model.encoder, "refresh_masks", refresh)
    model.train()
    for _ in range(8, 16):
        for _ in range(2):  # of an update there may be several micro-batches
            model(**batch)
        model.supernet.count_update()
    assert refreshed == [8, 11, 14]
    model.eval()
    model(**batch), model(**batch)
    assert refreshed == [8, 11, 14, 16, 16]
    # a resumed run refreshes where it begins, so this one does after validating
    model.train()
    for _ in range(4):
        model(**batch)
        model.supernet.count_update()
    assert refreshed == [8, 11, 14, 16, 16, 16, 19]


def test_validation_and_training_see_the_present_weights(sparse_model, batch):
    model = sparse_model(sparsity={"refresh": 1000})
    model.train()(**batch)
    shape = model.encoder.encoders[0].feed_forward.w_1.weight.shape
    with torch.no_grad():
        model.encoder.encoders[0].feed_forward.w_1.weight.copy_(torch.randn(shape))
    fresh = sparse_model()
    fresh.load_state_dict(model.state_dict())
    stale = model(**batch)[1]["loss_sparsest"]
    assert stale != fresh.train()(**batch)[1]["loss_sparsest"]
    assert model.eval()(**batch)[1]["loss_s80"] == fresh.eval()(**batch)[1]["loss_s80"]


# distillation


def frames_of(model, draw, batch):
    """CTC logits of each utterance on its own `[frames, labels]`."""
    found = []
    for one in range(len(batch["speech"])):
        part = rows(batch, [one])
        speech = part["speech"], part["speech_lengths"]
        encoded, _, _ = model.encoder(*speech, None, draw.gates, draw.sparsity)
        found.append(model.ctc.ctc_lo(encoded[0]))
    return found


@pytest.mark.parametrize("update", ["per_batch", "split_batch", "per_accum"])
@pytest.mark.parametrize("conf", [ONE_AXIS, BOTH_AXES], ids=["weights", "both"])
def test_the_dense_net_teaches_and_is_not_taught(sparse_model, batch, update, conf):
    supernet = {"distillation": "kl", "distillation_weight": 0.25, "update": update}
    model = sparse_model(60, {**conf, **supernet}).train()
    model.accumulate(4)
    torch.manual_seed(3)
    calls = 4 if update == "per_accum" else 1
    results = [model(**batch) for _ in range(calls)]
    loss = sum(result[0] for result in results) / calls
    stats = {n: v for result in results for n, v in result[1].items()}
    draws = model.supernet.sample_subnets()
    parts = [torch.arange(4)] * 4
    if update == "split_batch":
        torch.manual_seed(3)
        parts = torch.randperm(4).tensor_split(4)
    total = model.encoder(batch["speech"], batch["speech_lengths"])[1].sum()
    expected = 0.0
    for draw, part in zip(draws, parts, strict=True):
        seen = rows(batch, part)
        losses, frames = utterance_losses(model, draw, seen)
        mean = sum(losses) / len(losses)
        if draw.size != "full":
            # a constant: nothing of it can be learned by the teacher
            teacher = [x.detach() for x in frames_of(model, draws[0], seen)]
            taught = sum(
                (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum()
                for p, q in zip(teacher, frames_of(model, draw, seen), strict=True)
            )
            mean = 0.75 * mean + 0.25 * taught / len(losses)
        shown = (mean * len(losses) / sum(frames)).item()
        assert stats[f"loss_{draw.size}"].item() == pytest.approx(shown, rel=1e-4)
        expected = expected + (1.0 if draw.size == "full" else 0.3) * mean
    expected = expected * 4 / total / 1.9
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_without_weight_or_in_the_warm_start_nothing_is_taught(sparse_model, batch):
    off = {"distillation": "alpha", "distillation_weight": 0.0}
    on = {"distillation": "alpha", "distillation_weight": 0.5}
    plain, without, taught = (
        [sparse_model(update, supernet=conf).train()(**batch) for update in (5, 40)]
        for conf in ({}, off, on)
    )
    for one, other in zip(plain, without, strict=True):
        assert one[0].item() == pytest.approx(other[0].item(), rel=1e-6)
    assert plain[0][0] == taught[0][0]
    assert plain[1][0].item() != pytest.approx(taught[1][0].item(), rel=1e-3)
    assert plain[1][1]["loss_full"] == taught[1][1]["loss_full"]


def test_validation_is_not_taught(sparse_model, batch):
    plain, taught = (
        sparse_model(supernet={"distillation": kind})(**batch)[1]
        for kind in ("none", "kl")
    )
    assert plain == taught


# losses that are no numbers


@pytest.fixture
def spoiled(sparse_model, monkeypatch):
    """A supernet some of whose subnets have a loss that is no number."""

    def make(bad, **options):
        model = sparse_model(**options).train()
        plain = model._head_loss

        def loss(size, *args, **kwargs):
            head = plain(size, *args, **kwargs)
            factor = float("nan") if size in bad else 1.0
            return replace(head, loss=factor * head.loss)

        monkeypatch.setattr(model, "_head_loss", loss)
        return model

    return make


@pytest.mark.parametrize("update", ["per_batch", "split_batch"])
def test_a_loss_that_is_no_number_is_left_out(
    sparse_model, spoiled, batch, caplog, update
):
    conf = {"update": update}
    model = spoiled(["sparsest"], supernet=conf)
    torch.manual_seed(1)
    loss, stats, _ = model(**batch)
    assert stats["loss_sparsest"].isnan() and stats["loss"].isfinite()
    other = sparse_model(supernet=conf).train()
    other._guard.admits = lambda draw, size, *_: size != "sparsest"
    torch.manual_seed(1)
    expected = other(**batch)[0]
    assert loss == expected
    theirs = gradients(other, expected)
    for name, gradient in gradients(model, loss).items():
        assert torch.equal(gradient, theirs[name]), name
    if update == "per_batch":
        sandwich = ["dense", "random", "random"]
        without = sparse_model(sparsity={"sandwich": sandwich}).train()(**batch)[0]
        # what is left out leaves the others their weights: 1.9 in all, here 1.6
        assert loss.item() * 1.9 == pytest.approx(without.item() * 1.6, rel=1e-6)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    (message,) = [m for m in (r.getMessage() for r in warnings) if "subnet" in m]
    assert "Update 40: the loss of subnet sparsest is nan" in message
    assert "units kept: 12 of 12" in message
    assert message.count("0.80") == WEIGHTS and "left out" in message


def test_too_many_in_a_row_end_the_training(spoiled, batch, monkeypatch):
    monkeypatch.setattr(loss_guard, "MAX_NON_FINITE", 2)
    bad = ["sparsest"]
    model = spoiled(bad)
    model(**batch), model(**batch)
    bad.clear()
    model(**batch)  # a good one: counting begins anew
    bad.append("sparsest")
    model(**batch), model(**batch)
    with pytest.raises(UserError, match="For 3 updates in a row the loss of subnet sp"):
        model(**batch)


def test_if_no_loss_is_a_number_the_trainer_can_see_it(spoiled, batch):
    model = spoiled(["full", "sparsest", "random1", "random2"])
    loss, _, _ = model(**batch)
    assert loss.isnan()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    assert not norm.isfinite()


# BatchNorm


def running(model):
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {n: t for n, t in model.state_dict().items() if n.endswith(names)}


@pytest.mark.parametrize("main", ["dense", "sparsest", "random"])
@pytest.mark.parametrize("update", ["per_batch", "split_batch", "per_accum"])
def test_only_the_first_net_moves_running_statistics(sparse_model, batch, update, main):
    sandwich = [main, *(net for net in ("dense", "sparsest") if net != main)]
    options = {"conv_norm": "batch_norm", "encoder": {"pattern": "unstructured"}}
    options["sparsity"] = {"sandwich": sandwich}
    model = sparse_model(supernet={"update": update}, **options).train()
    model.accumulate(len(sandwich))
    before = {name: tensor.clone() for name, tensor in running(model).items()}
    alone = sparse_model(**options).train()
    alone.load_state_dict(model.state_dict())
    calls = len(sandwich) if update == "per_accum" else 1
    torch.manual_seed(5)
    for _ in range(calls):
        model(**batch)
    torch.manual_seed(5)
    part = torch.arange(4)
    if update == "split_batch":
        part = torch.randperm(4).tensor_split(len(sandwich))[0].sort().values
    seen, draw = rows(batch, part), model.supernet.sample_subnets()[0]
    alone.encoder.refresh_masks()
    speech = seen["speech"], seen["speech_lengths"]
    alone.encoder(*speech, None, draw.gates, draw.sparsity)
    for name, tensor in running(model).items():
        assert torch.allclose(tensor, running(alone)[name], atol=1e-6), name
        assert not torch.equal(tensor, before[name]), name


def test_a_teacher_that_is_asked_alone_records_nothing(sparse_model, batch):
    conf = {"update": "per_accum", "distillation": "kl"}
    model = sparse_model(supernet=conf, conv_norm="batch_norm").train()
    model.accumulate(4)
    model(**batch)
    before = {name: tensor.clone() for name, tensor in running(model).items()}
    for _ in range(3):
        model(**batch)
    for name, tensor in running(model).items():
        assert torch.equal(tensor, before[name]), name


def test_statistics_of_a_net_pruned_alone_are_its_own(sparse_model, batch):
    alone = sparse_model(conv_norm="batch_norm", sparsity={"sandwich": ["sparsest"]})
    stats = alone(**batch)[1]
    assert stats.keys() == {
        *("loss", "loss_sizes", "loss_s40", "loss_s80"),
        *("loss_ctc_s40", "loss_ctc_s80"),
        *("cer_ctc_s40", "cer_ctc_s80"),
    }
    many = sparse_model(conv_norm="batch_norm")(**batch)[1]
    assert {"loss_full", "loss_s40_uncalibrated", "loss_s80_uncalibrated"} <= set(many)
    assert "loss_s80" not in many
    assert many["loss_sizes"] == many["loss_full"]


@pytest.mark.parametrize("update, chosen", [(5, False), (30, False), (31, True)])
def test_no_checkpoint_of_the_ramp_is_chosen(sparse_model, batch, update, chosen):
    stats = sparse_model(update)(**batch)[1]
    assert (stats["loss_sizes"] < 1000) == chosen
    if chosen:
        sizes = [stats[f"loss_{size}"] for size in ("full", "s40", "s80")]
        assert stats["loss_sizes"].item() == pytest.approx(sum(sizes).item() / 3)


def test_the_log_tells_how_far_the_ramp_is(sparse_model, batch):
    for update, phase in ((5, 0), (15, 2), (40, 3)):
        model = sparse_model(update).train()
        stats = model(**batch)[1]
        assert stats["phase"].item() == phase
        assert stats["sparsity"].item() == pytest.approx(model.supernet.max_sparsity)


# dropout


def test_only_the_first_net_has_its_dropout(sparse_model, batch):
    for kind, varies in (("none", False), ("full", True)):
        model = sparse_model(
            supernet={"subnet_dropout": kind}, encoder={"dropout_rate": 0.5}
        ).train()
        one, other = (model(**batch)[1] for _ in range(2))
        assert one["loss_full"] != other["loss_full"]
        assert (one["loss_sparsest"] != other["loss_sparsest"]) == varies


# transducer


@pytest.mark.parametrize("decoder", ["transducer", "attention"])
def test_other_decoders_train_beside_ctc(tiny_config, build, batch, decoder):
    supernet = {**ONE_AXIS, "distillation": "kl", "distillation_weight": 0.1}
    config = tiny_config(
        encoder={"pattern": "unstructured"},
        attention=decoder == "attention",
        supernet=supernet,
    )
    config["encoder"] = "omni_sparse_conformer"
    config["model_conf"]["ctc_weight"] = 0.3
    if decoder == "transducer":
        config["decoder"] = "transducer"
        config["decoder_conf"] = {"hidden_size": 8}
        config["joint_net_conf"] = {"joint_space_size": 16}
    model = build(config, update=40).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        assert all(
            p.grad is None or p.grad.isfinite().all() for p in model.parameters()
        )
        optimizer.step()
        losses.append(stats)
    assert all(p.grad is not None for p in model.decoder.parameters())
    for name in ("loss", "loss_full", "loss_sparsest"):
        assert losses[-1][name] < 0.7 * losses[0][name], name
    found = model.eval()(**batch)[1]
    assert all(found[f"loss_{size}"].isfinite() for size in ("full", "s40", "s80"))


def test_the_loss_with_a_transducer_is_the_sum(tiny_config, build, batch):
    config = tiny_config(encoder={"pattern": "unstructured"}, supernet=ONE_AXIS)
    config["encoder"] = "omni_sparse_conformer"
    config["model_conf"]["ctc_weight"] = 0.3
    config["decoder"], config["decoder_conf"] = "transducer", {"hidden_size": 8}
    config["joint_net_conf"] = {"joint_space_size": 16}
    model = build(config, update=40)
    stats = model(**batch)[1]
    for draw in model.supernet.validation_subnets():
        losses, frames = utterance_losses(model, draw, batch)
        other = 0.0
        for one in range(4):
            part = rows(batch, [one])
            speech = part["speech"], part["speech_lengths"]
            encoded, lengths, _ = model.encoder(
                *speech, None, draw.gates, draw.sparsity
            )
            joint, *labels = model.lattice(encoded, lengths, part["text"])
            other += model.criterion_transducer(joint, *labels)
        expected = (0.3 * sum(losses) + other).item() / sum(frames)
        assert stats[f"loss_{draw.size}"].item() == pytest.approx(expected, rel=1e-4)
