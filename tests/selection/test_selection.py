import argparse
import math
import random

import pytest
import torch

from espnet_omnisparse.core.mask import top_k_mask
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import fingerprint
from espnet_omnisparse.cost.size import CostTable, Size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.selection import Selection, build_selection
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.supernet import Supernet
from espnet_omnisparse.tasks import OmniASRTask
from espnet_omnisparse.train.journal import settled_specs
from espnet_omnisparse.train.trainer import TrainedNet

build_selection("none", SearchSpace(1), {}, {})  # fills the registry
METHODS = sorted(Selection.registry.keys() - {"none"})
TWELVE = SearchSpace(3)


def selection(method, sizes, space=TWELVE, table=None, **conf):
    """A method, its sizes in units, or in the steps of a cost."""
    table = table or CostTable.counting(space)
    sizes = {name: Size(name, table, wanted) for name, wanted in sizes.items()}
    return build_selection(method, space, sizes, conf)


def units(mask):
    return set(mask.nonzero().squeeze(1).tolist())


def differences(function, parameter, step=1e-5):
    """Finite differences of a number by every entry of a float64 parameter."""
    gradient = torch.zeros_like(parameter)
    entries, found = parameter.data.view(-1), gradient.view(-1)
    for number, value in enumerate(entries.tolist()):
        entries[number] = value + step
        up = function().item()
        entries[number] = value - step
        found[number] = (up - function().item()) / (2 * step)
        entries[number] = value
    return gradient


def assert_nested(masks):
    ordered = [units(mask) for mask in masks.values()]
    for larger, smaller in zip(ordered[:-1], ordered[1:], strict=True):
        assert smaller <= larger


# Iterative-Zero-Out


def sigmoid(score):
    return 1.0 / (1.0 + math.exp(-score))


def pull(unit, update):
    """What the toy loss wants of a gate: a gradient that changes with time."""
    return 2.0 * math.sin(1.7 * unit + 0.06 * update)


class SlowZeroOut:
    """Iterative-Zero-Out and Adam, on lists of numbers."""

    def __init__(self, ends, counts, medium, small, lr):
        self.scores, self.lr = [10.0] * 12, lr
        self.first, self.second = [0.0] * 12, [0.0] * 12
        self.ends, self.counts = ends, counts
        self.medium_size, self.small_size = medium, small
        self.medium, self.small = None, None
        self.shut = []

    def best(self, among, count):
        return sorted(among, key=lambda unit: (-self.scores[unit], unit))[:count]

    def update(self, time):
        """The update number `time`, from 1."""
        wanted = next(
            n for n, end in zip(self.counts, self.ends, strict=True) if time <= end
        )
        opened = [sigmoid(score) for score in self.scores]
        sign = 1.0 if (12 - sum(opened)) / 12 > wanted / 12 else -1.0
        for unit, gate in enumerate(opened):
            slope = pull(unit, time - 1) - 5.0 * sign / 12
            gradient = slope * gate * (1.0 - gate)
            self.first[unit] = 0.9 * self.first[unit] + 0.1 * gradient
            self.second[unit] = 0.999 * self.second[unit] + 0.001 * gradient**2
            mean = self.first[unit] / (1 - 0.9**time)
            spread = math.sqrt(self.second[unit] / (1 - 0.999**time))
            self.scores[unit] -= self.lr * mean / (spread + 1e-8)
        if time in self.ends:
            if self.medium is None and 12 - wanted < self.medium_size:
                self.medium = self.best(range(12), self.medium_size)
            if time == self.ends[-1]:
                self.small = self.best(self.medium, self.small_size)
            open_still = self.best(range(12), 12 - wanted)
            self.shut.append(set(range(12)) - set(open_still))
            for unit in self.shut[-1]:
                self.scores[unit] = -5.0


ZERO_OUT = {"zero_out": 2, "first_iteration": 40}


def train_beside(slow, length):
    """Trains the real method on the toy loss; compares after every update."""
    method = selection(
        "iterative_zero_out",
        {"medium": slow.medium_size, "small": slow.small_size},
        **ZERO_OUT,
    ).double()
    optimizer = torch.optim.Adam(method.parameters(), lr=slow.lr)
    for time in range(length):
        gates = method.gates(time, length)
        loss = sum(pull(unit, time) * gate for unit, gate in enumerate(gates))
        optimizer.zero_grad()
        (loss + method.penalty(time, length)).backward()
        optimizer.step()
        method.after_update(time + 1, length)
        slow.update(time + 1)
        assert method.scores_now().tolist() == pytest.approx(slow.scores, abs=1e-6)
    return method


def test_zero_out_equals_an_obvious_simulation_of_its_whole_schedule():
    # 3 of 12 stay: 2, 4, 6, 8 and 9 are shut; 40 updates, then 4 times 30
    slow = SlowZeroOut([40, 70, 100, 130, 160], [2, 4, 6, 8, 9], 7, 3, lr=2.0)
    method = train_beside(slow, 160)
    masks = method.masks()
    assert units(masks["medium"]) == set(slow.medium)
    assert units(masks["small"]) == set(slow.small)
    # what came later has flattened the ranking that the medium size needed
    assert set(slow.medium) != set(slow.best(range(12), 7))
    # not frozen: something that was shut opened again, and stayed at the next end
    assert any(old - new for old, new in zip(slow.shut, slow.shut[1:], strict=False))


SCHEDULES = {
    # sizes, n's step and first iteration, lengths of the iterations, n, step 1
    "tedlium2-24": (
        (24,),
        {"zero_out": 3, "first_iteration": 63_000},
        [63_000] + [21_000] * 7,
        list(range(3, 25, 3)),
        210_000,
    ),
    "tedlium2-16-32": (
        (32, 16),
        {"zero_out": 4, "first_iteration": 42_000},
        [42_000] + [25_200] * 7,
        list(range(4, 33, 4)),
        218_400,
    ),
    "tedlium2-12-24-36": (
        (36, 24, 12),
        {"zero_out": 1, "first_iteration": 14_000},
        [14_000] + [5_600] * 35,
        list(range(1, 37)),
        210_000,
    ),
    "librispeech-16-32": (
        (32, 16),
        {"zero_out": 2},
        [27_450] * 16,
        list(range(2, 33, 2)),
        439_200,
    ),
}


@pytest.mark.parametrize(
    "sizes, conf, lengths, counts, length", SCHEDULES.values(), ids=SCHEDULES.keys()
)
def test_the_published_schedules_are_exact_to_the_update(
    sizes, conf, lengths, counts, length
):
    sizes = {str(size): size for size in sizes}
    method = selection("iterative_zero_out", sizes, SearchSpace(12), **conf)
    method.check_length(length)
    torch.nn.init.uniform_(method.scores, 0.0, 10.0)
    end = 0
    for iteration, shut in zip(lengths, counts, strict=True):
        start, end = end, end + iteration
        for time in (start, end - 1):
            assert method.wanted_shut(time, length) == shut
            assert method.mask_now(time, length).sum() == 48 - shut
        for time in (start + 1, end - 1, end):
            before = method.scores_now().clone()
            method.after_update(time, length)
            if time < end:
                assert torch.equal(method.scores_now(), before)
        assert int((method.scores_now() == -5.0).sum()) == shut
        assert (
            before.topk(48 - shut).values.min()
            == method.scores[method.scores > -5].min()
        )
    assert end == length
    assert method.mask_now(length, length).sum() == 48 - counts[-1]


def test_the_first_iteration_may_be_a_fraction_of_step_1():
    conf = {"zero_out": 3, "first_iteration": 0.3}
    method = selection("iterative_zero_out", {"small": 24}, SearchSpace(12), **conf)
    shut = [method.wanted_shut(time, 210_000) for time in (62_999, 63_000, 84_000)]
    assert shut == [3, 6, 9]


def test_zero_out_gates_and_penalty_have_the_closed_form_and_its_gradient():
    method = selection("iterative_zero_out", {"small": 4}, zero_out=4).double()
    with torch.no_grad():
        method.scores.copy_(torch.linspace(-4.0, 6.0, 12))
    opened = [sigmoid(score) for score in method.scores.tolist()]
    gates = method.gates(0, 100)
    assert torch.stack(gates).tolist() == pytest.approx(opened)
    for time, target in ((0, 4), (99, 8)):  # more, then less is shut than wanted
        method.scores.grad = None
        penalty = method.penalty(time, 100)
        apart = (12 - sum(opened)) / 12 - target / 12
        assert penalty.item() == pytest.approx(5 * abs(apart))
        penalty.backward()
        expected = [-5 * math.copysign(1, apart) / 12 * g * (1 - g) for g in opened]
        assert method.scores.grad.tolist() == pytest.approx(expected)
    weights = torch.arange(12.0).double()
    (found,) = torch.autograd.grad(torch.stack(gates) @ weights, method.scores)
    expected = [w * g * (1 - g) for w, g in enumerate(opened)]
    assert found.tolist() == pytest.approx(expected)


def after_a_recovery():
    """Masks taken on the way, and a unit outside them that is the best in the end."""
    sizes = {"large": 9, "medium": 6, "small": 3}
    method = selection("iterative_zero_out", sizes, zero_out=3)
    with torch.no_grad():
        method.scores.copy_(torch.arange(12.0))
        method.after_update(33, 100)
        method.scores[0] = 20.0  # shut at 33, and now the best of all
        method.after_update(67, 100)
        method.scores[1] = 30.0  # and this one after it, too late for the large one
        method.after_update(100, 100)
    return method


def test_sizes_are_nested_even_where_shut_units_recover():
    method = after_a_recovery()
    masks = method.masks()
    assert [len(units(mask)) for mask in masks.values()] == [9, 6, 3]
    assert_nested(masks)
    assert units(masks["large"]) == {0, *range(4, 12)}
    # by the scores before the last zero-out, which leaves unit 1 a place in vain
    assert units(masks["small"]) == {0, 10, 11}
    assert 1 in units(top_k_mask(method.scores, 3))


def test_masks_taken_on_the_way_travel_with_the_checkpoint():
    method = after_a_recovery()
    fresh = selection(
        "iterative_zero_out", {"large": 9, "medium": 6, "small": 3}, zero_out=3
    )
    assert not torch.equal(fresh.masks()["large"], method.masks()["large"])
    fresh.load_state_dict(method.state_dict())
    for name, mask in method.masks().items():
        assert torch.equal(fresh.masks()[name], mask)


@pytest.mark.parametrize(
    "step1, iterations, conf",
    [
        (7, 8, {"zero_out": 1}),
        (50, 4, {"first_iteration": 48}),
        (50, 4, {"first_iteration": 0}),
        (50, 4, {"first_iteration": 60}),
    ],
)
def test_a_step_1_too_short_for_zero_out_is_refused(step1, iterations, conf):
    sentence = f"{step1} updates, too few for the {iterations} iterations"
    with pytest.raises(UserError, match=sentence):
        planned("iterative_zero_out", conf, step1=step1)
    assert planned("iterative_zero_out", step1=step1)


def planned(method, conf=None, space=TWELVE, update=0, **options):
    """A supernet with a run of 100 updates."""
    options = {"sizes": {"medium": 8, "small": 4}, "warm_start": 10, **options}
    options |= {"method": method, "method_conf": conf or {}}
    net = Supernet(SupernetConfig.read(options), space)
    net.set_run_length(100)
    net.update = update
    return net


def test_zero_out_needs_something_to_shut():
    with pytest.raises(
        UserError, match="zero_out must be a whole number of at least 1"
    ):
        selection("iterative_zero_out", {"small": 4}, zero_out=0)


# OrthoSoftmax

COMPONENTS = SearchSpace(1, "component", heads=4)


def costly(space=COMPONENTS):
    """A table with costs of all three sorts."""
    generator = torch.Generator().manual_seed(3)
    each = torch.randint(20, 100, (len(space),), generator=generator)
    shared = torch.randint(0, 30, (len(set(space.groups)),), generator=generator)
    return CostTable("params", space, 150, each, shared)


def ortho(sizes=None, table=None, spread=1.0, **conf):
    table = table or costly()
    sizes = sizes or {"medium": 3 * table.total // 4, "small": table.total // 2}
    method = selection("ortho_softmax", sizes, COMPONENTS, table, **conf).double()
    torch.nn.init.normal_(method.scores, std=spread)
    return method


def slow_rows(method, size, tau):
    """The softmax rows whose cumulative cost is nearest to the wanted one."""
    table, total = size.table, len(COMPONENTS)
    costs = []
    for unit, group in enumerate(COMPONENTS.groups):
        parts = COMPONENTS.groups.count(group)
        costs.append(int(table.units[unit]) + int(table.shared[group]) / parts)
    rows, cost, best = [], float(table.rest), None
    for scores in method.scores.tolist():
        powers = [math.exp(score / tau) for score in scores]
        rows.append([power / sum(powers) for power in powers])
        cost += sum(w * c for w, c in zip(rows[-1], costs, strict=True))
        apart = abs(cost - size.limit)
        if best is None or apart < best[0]:
            best = apart, len(rows)
    assert len(rows) == total
    return rows[: best[1]]


def slow_penalty(rows):
    value = 0.0
    for i, one in enumerate(rows):
        for j, other in enumerate(rows[i:], start=i):
            gram = sum(a * b for a, b in zip(one, other, strict=True))
            value += (gram - 1.0) ** 2 if i == j else gram**2
    return math.sqrt(value)


def test_ortho_gates_cost_choice_and_penalty_equal_the_slow_versions():
    method = ortho(tau=1.5, tau_end=0.3)
    drawn = set()
    for time in range(0, 100, 7):
        tau = 1.5 * (0.3 / 1.5) ** (time / 100)
        gates = torch.stack(method.gates(time, 100)).tolist()
        penalty = method.penalty(time, 100).item()
        for name, size in method.sizes.items():
            rows = slow_rows(method, size, tau)
            expected = [sum(column) for column in zip(*rows, strict=True)]
            if gates == pytest.approx(expected):
                drawn.add((name, len(rows)))
                assert penalty == pytest.approx(time / 100 * slow_penalty(rows))
                break
        else:
            raise AssertionError(f"the gates at {time} are those of no size")
    assert {name for name, _ in drawn} == {"medium", "small"}
    assert all(1 < count < len(COMPONENTS) for _, count in drawn)


def test_the_chosen_rows_cost_what_a_size_wants():
    # rows that are exactly one-hot: their costs are those of whole units
    method = ortho(table=costly())
    order = torch.randperm(len(COMPONENTS))
    method.scores.data = 1e4 * torch.eye(len(COMPONENTS)).double()[order]
    for size in method.sizes.values():
        kept = method.rows(size, 0, 100).argmax(1)
        costs = size.table.rest + size.table.per_unit[order].cumsum(0)
        assert kept.tolist() == order[: len(kept)].tolist()
        nearest = (costs - size.limit).abs()
        assert nearest[len(kept) - 1] == nearest.min()


def test_the_drawn_size_is_the_same_on_every_process():
    method = ortho()
    torch.manual_seed(1), random.seed(1)
    once = [torch.stack(method.gates(time, 100)).sum() for time in range(20)]
    torch.manual_seed(2), random.seed(2)
    assert once == [torch.stack(method.gates(time, 100)).sum() for time in range(20)]


@pytest.mark.parametrize(
    "conf, time, tau",
    [
        ({"tau_decay": 0.999992}, 0, 1.0),
        ({"tau_decay": 0.999992}, 100_000, 0.999992**100_000),
        ({"tau_decay": 0.999992, "tau": 2.0}, 200_000, 2.0 * 0.999992**200_000),
        ({"tau_decay": 0.999992, "tau": 2.0}, 900_000, 0.01),
        ({"tau": 2.0, "tau_end": 0.5}, 0, 2.0),
        ({"tau": 2.0, "tau_end": 0.5}, 500_000, 1.0),
        ({"tau": 2.0, "tau_end": 0.5}, 1_000_000, 0.5),
    ],
)
def test_the_temperature_falls_as_published_or_to_its_end(conf, time, tau):
    assert ortho(**conf).temperature(time, 1_000_000) == pytest.approx(tau)


@pytest.mark.parametrize(
    "conf",
    [{"tau": 0.1}, {"tau_end": 0.0}, {"tau_decay": 1.5}, {"tau_decay": -0.5}],
    ids=str,
)
def test_an_impossible_temperature_is_refused(conf):
    with pytest.raises(
        UserError,
        match="tau must be at least tau_end|must be a number ab",
    ):
        ortho(**conf)


@pytest.mark.parametrize("time", [3, 8, 50])
def test_ortho_gradients_equal_finite_differences(time):
    method = ortho(spread=0.5)
    weights = torch.randn(len(COMPONENTS)).double()

    def value():
        gates = torch.stack(method.gates(time, 100))
        return gates @ weights + gates.square().sum() + method.penalty(time, 100)

    (found,) = torch.autograd.grad(value(), method.scores)
    expected = differences(value, method.scores)
    assert torch.allclose(found, expected, atol=1e-7)
    assert found.abs().max() > 1e-2


def separate(method, updates=150):
    """Trains on the penalty at its full weight; returns the rows of the size."""
    optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
    for _ in range(updates):
        optimizer.zero_grad()
        method.penalty(updates, updates).backward()
        optimizer.step()
    return method.rows(next(iter(method.sizes.values())), updates, updates).detach()


def test_rows_that_begin_equal_never_separate_and_those_that_begin_apart_do():
    table = costly()
    sizes = {"only": table.total // 3}
    equal = selection("ortho_softmax", sizes, COMPONENTS, table)
    fresh = selection("ortho_softmax", sizes, COMPONENTS, table)
    torch.nn.init.zeros_(equal.scores)
    rows = separate(equal)
    assert len(rows) > 2
    assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-4)
    rows = separate(fresh)
    assert len(set(rows.argmax(1).tolist())) == len(rows) > 2
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=0.1)


def test_the_penalty_of_exactly_orthonormal_rows_has_a_finite_gradient():
    method = ortho(tau_end=0.1)
    method.scores.data = 1e4 * torch.eye(len(COMPONENTS)).double()
    penalty = method.penalty(100, 100)
    assert penalty.item() == pytest.approx(0.0, abs=1e-5)
    penalty.backward()
    assert method.scores.grad.isfinite().all()


def test_rows_that_collide_take_the_largest_that_is_left():
    method = ortho()
    scores = method.scores.data
    scores[1] = scores[0] + 1.0  # chooses what row 0 has chosen
    scores[5] = scores[3]
    left, expected = set(range(len(COMPONENTS))), []
    for row in scores.tolist():
        expected.append(max(sorted(left), key=lambda unit: row[unit]))
        left.remove(expected[-1])
    assert method.ranking().tolist() == expected
    assert expected[1] != int(scores[1].argmax())
    by_score = torch.argsort(method.scores_now(), descending=True)
    assert by_score.tolist() == expected


# baselines


@pytest.mark.parametrize("sizes", [(24,), (32, 16), (36, 24, 12), (40, 4)])
def test_uniform_blocks_lie_evenly_among_those_of_the_next_larger_size(sizes):
    space = SearchSpace(12)
    method = selection("uniform", {str(count): count for count in sizes}, space)
    larger = list(range(12))
    for size, mask in method.masks().items():
        assert mask.sum() == int(size)
        blocks = sorted({unit // 4 for unit in units(mask)})
        assert len(blocks) == int(size) // 4  # whole blocks
        places = [-1, *(larger.index(block) for block in blocks), len(larger)]
        gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
        inner = gaps[1:-1] or [1]
        assert max(inner) - min(inner) <= 1
        assert abs(gaps[0] - gaps[-1]) <= 1  # not all towards one end
        larger = blocks


def test_uniform_fills_what_a_block_does_not_from_the_front_of_the_next_one():
    method = selection("uniform", {"medium": 10, "small": 5})
    for mask, count in zip(method.masks().values(), (10, 5), strict=True):
        rows = mask.view(3, 4).tolist()
        whole = rows.count([True] * 4)
        assert whole == count // 4
        assert rows.count([True] * (count % 4) + [False] * (4 - count % 4)) == 1
    assert_nested(method.masks())


def test_a_random_order_depends_on_its_seed_alone():
    def order(seed, elsewhere):
        torch.manual_seed(elsewhere)
        space = SearchSpace(12)
        return selection("random", {"small": 9}, space, seed=seed).ranking().tolist()

    assert order(3, elsewhere=1) == order(3, elsewhere=2)
    assert order(3, elsewhere=1) != order(4, elsewhere=1)
    assert sorted(order(3, 0)) == list(range(48)) != order(3, 0)


def test_taylor_importance_is_the_running_mean_of_squared_gate_gradients():
    method = selection("taylor", {"small": 4}, momentum=0.8)
    assert list(method.parameters()) == []
    expected = [0.0] * 12
    for time in range(5):
        gates = method.full_gates(time, 5)
        assert [gate.item() for gate in gates] == [1.0] * 12
        slopes = [math.sin(unit + time) for unit in range(12)]
        loss = sum(a * gate**3 for a, gate in zip(slopes, gates, strict=True))
        loss.backward()
        method.after_update(time + 1, 5)
        squares = [(3 * slope) ** 2 for slope in slopes]
        for unit, square in enumerate(squares):
            share = square / sum(squares)
            expected[unit] = 0.8 * expected[unit] + 0.2 * share
    assert method.scores_now().tolist() == pytest.approx(expected)
    best = sorted(range(12), key=lambda unit: -expected[unit])
    assert method.ranking().tolist() == best
    assert units(method.masks()["small"]) == set(best[:4])
    assert torch.equal(method.mask_now(3, 5), method.masks()["small"])


class Additive:
    """A net whose loss grows by a fixed amount for every unit that it lacks."""

    def __init__(self, worth):
        self.worth = torch.as_tensor(worth)
        self.asked = []

    def dev_loss(self, mask, utterances):
        self.asked.append((int(mask.sum()), utterances))
        return float(self.worth[~mask].sum())


def test_greedy_removes_the_least_worth_first_and_stops_at_the_smallest_size():
    worth = torch.rand(12)
    net = Additive(worth)
    method = selection("greedy", {"medium": 8, "small": 4}, utterances=7)
    method.settle(net)
    order = worth.argsort(descending=True).tolist()
    assert method.ranking().tolist() == sorted(order[:4]) + order[4:]
    assert units(method.masks()["small"]) == set(order[:4])
    assert units(method.masks()["medium"]) == set(order[:8])
    # one evaluation for each unit that is left, without it
    assert len(net.asked) == sum(range(5, 13))
    assert net.asked[:12] == [(11, 7)] * 12
    assert net.asked[-5:] == [(4, 7)] * 5


def test_greedy_goes_on_until_every_budget_is_met():
    table = costly()
    method = selection("greedy", {"s": table.total // 2}, COMPONENTS, table)
    net = Additive(torch.rand(len(COMPONENTS)))
    method.settle(net)
    (mask,) = method.masks().values()
    removed = (method.scores_now() < len(COMPONENTS)).nonzero().squeeze(1)
    last = int(method.scores_now()[removed].argmax())
    assert units(mask).isdisjoint(removed.tolist())
    mask[removed[last]] = True  # what went last
    assert table.of(mask) > table.total // 2


def test_layerdrop_leaves_whole_blocks_out_at_its_rate():
    method = selection("layerdrop", {"small": 4}, rate=0.3)
    left_out = torch.zeros(3)
    for time in range(3000):
        gates = method.full_gates(time, 0)
        assert gates == method.full_gates(time, 0)
        rows = [gates[start : start + 4] for start in (0, 4, 8)]
        assert all(row in ((1.0,) * 4, (None,) * 4) for row in rows)
        left_out += torch.tensor([float(row[0] is None) for row in rows])
    assert (left_out / 3000).tolist() == pytest.approx([0.3] * 3, abs=0.03)
    uniform = selection("uniform", {"small": 4})
    assert torch.equal(method.ranking(), uniform.ranking())


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
def test_an_impossible_rate_of_layerdrop_is_refused(rate):
    with pytest.raises(UserError, match="rate must be a number above 0 and below 1"):
        selection("layerdrop", {"small": 4}, rate=rate)


@pytest.mark.parametrize("granularity", ["branch", "component"])
def test_early_exits_are_whole_blocks(granularity):
    with pytest.raises(UserError, match="early_exits needs .*granularity: block"):
        selection("early_exits", {"small": 4}, SearchSpace(3, granularity))


# the phases that a method has

CURRENT = ["full", "current"]
LEARN = {
    **dict.fromkeys(("simple_topk", "iterative_zero_out", "ortho_softmax"), CURRENT),
    **dict.fromkeys(("magnitude", "taylor", "greedy"), ["full"]),
}
ONE_PASS = {"layerdrop": {}, "early_exits": {"medium": 2, "small": 1}}


def sizes_drawn(net, update):
    net.update = update
    return [draw.size for draw in net.sample_subnets()]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_the_phases_that_it_needs(method):
    space = SearchSpace(3, "block")
    sizes = {"medium": 2, "small": 1}
    net = planned(method, space=space, step1=50, sizes=sizes)
    sandwich = ["full", "small", "medium"]
    if method in ONE_PASS:
        assert net.timeline.selected_at == 0
        for update in (0, 99):
            net.update = update
            (draw,) = net.sample_subnets()
            assert draw.size == "full" and draw.exits == ONE_PASS[method]
            assert draw.exit_weight == 0.3 and draw.layer_dropout is None
        return
    starts = 60 if method in LEARN else 10
    assert net.timeline.selected_at == starts
    assert sizes_drawn(net, 9) == ["full"]
    assert sizes_drawn(net, starts) == sizes_drawn(net, 99) == sandwich
    if method in LEARN:
        assert sizes_drawn(net, 10) == sizes_drawn(net, 59) == LEARN[method]
        net.update = 59
        validated = [draw.size for draw in net.validation_subnets()]
        assert validated == (["full"] if method in ("magnitude", "greedy") else CURRENT)
    net.update = 99
    assert sorted(draw.size for draw in net.validation_subnets()) == sorted(sandwich)


# every method on a real model


class Batches:
    """Validation batches, as ESPnet's iterator factory gives them."""

    def __init__(self, batch):
        self.batch = batch

    def build_iter(self, epoch, shuffle):
        assert not shuffle
        yield ["a", "b"], self.batch


@pytest.fixture
def short():
    """Two short utterances."""
    return {
        "speech": torch.randn(2, 36, 20),
        "speech_lengths": torch.tensor([36, 30]),
        "text": torch.tensor([[2, 3], [4, -1]]),
        "text_lengths": torch.tensor([2, 1]),
    }


CASES = [
    (method, granularity)
    for method in METHODS
    for granularity in ("branch", "block", "component")
    if method != "early_exits" or granularity == "block"
]


@pytest.fixture
def trained(tiny_config, build, short):
    """A supernet after a whole short run, with ESPnet's optimiser."""

    def make(method, granularity, **options):
        # a search over all components is long
        wanted = (0.9, 0.8) if method == "greedy" else (0.75, 0.5)
        wanted = (0.7, 0.5) if granularity == "block" else wanted
        conf = {"zero_out": 12} if method == "iterative_zero_out" else {}
        options = {
            **dict(method=method, method_conf=conf, fraction_of="params"),
            **dict(sizes=dict(zip(("medium", "small"), wanted, strict=True))),
            **dict(warm_start=1, step1=3, score_lr=0.5),
            **options,
        }
        config = tiny_config(granularity=granularity, supernet=options)
        model = build(config, run_length=5)
        model.supernet.attach(TrainedNet(model, Batches(short), ngpu=0))
        options = {"optim": "adamw", "optim_conf": {"lr": 1e-3}}
        arguments = argparse.Namespace(**{**config, **options})
        (optimizer,) = OmniASRTask.build_optimizers(arguments, model)
        model.train()
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(**short)[0]
            assert loss.isfinite()
            loss.backward()
            optimizer.step()
        assert model.supernet.settled
        return config, model.eval()

    return make


@pytest.mark.parametrize("method, granularity", CASES)
@torch.no_grad()
def test_every_size_of_every_method_is_the_model_that_is_cut_out(
    trained, short, method, granularity
):
    with torch.enable_grad():
        config, model = trained(method, granularity)
    masks = model.supernet.selection.masks()
    assert_nested(masks)
    for name, size in model.supernet.sizes.items():
        assert masks[name].any()
        assert size.table.of(masks[name]) <= size.limit
    state = model.state_dict()
    mark = fingerprint(state, config["token_list"])
    specs = settled_specs(model.supernet, mark)
    assert list(specs) == ["small", "medium", "full"]
    feats = short["speech"], short["speech_lengths"]
    for name, spec in specs.items():
        masked = model.encoder(*feats, gates=spec.gates())[0]
        # computed, then multiplied with 0 or 1: knows nothing of narrowed modules
        soft = tuple(torch.tensor(float(keep)) for keep in spec.mask)
        assert torch.allclose(
            model.encoder(*feats, gates=soft)[0], masked, atol=1e-5, rtol=0
        )
        small = family.build(*family.cut(config, state, spec))
        assert torch.allclose(small.encoder(*feats)[0], masked, atol=1e-5, rtol=0)
        parameters = sum(p.numel() for p in small.parameters())
        if name != "full":
            assert parameters <= model.supernet.sizes[name].limit


@pytest.mark.parametrize("granularity", ["branch", "block", "component"])
def test_magnitude_is_the_root_mean_square_of_a_units_weights(tiny_model, granularity):
    model = tiny_model(granularity=granularity, supernet={"method": "magnitude"})
    expected = {}
    for number, block in enumerate(model.encoder.encoders):
        ffn1, ffn2 = block.feed_forward_macaron, block.feed_forward
        mhsa, conv = block.self_attn, block.conv_module
        for name, ffn in (("ffn1", ffn1), ("ffn2", ffn2)):
            for part, (one, two) in enumerate(
                zip(ffn.w_1.weight.chunk(4), ffn.w_2.weight.chunk(4, 1), strict=True)
            ):
                expected[f"{number}.{name}.{part}"] = [one, two]
        for head in range(2):
            rows = slice(8 * head, 8 * head + 8)
            names = ("linear_q", "linear_k", "linear_v", "linear_pos")
            inputs = [getattr(mhsa, name).weight[rows] for name in names]
            outputs = mhsa.linear_out.weight[:, rows]
            expected[f"{number}.mhsa.{head}"] = [*inputs, outputs]
        convolutions = ("pointwise_conv1", "depthwise_conv", "pointwise_conv2")
        weights = [getattr(conv, name).weight for name in convolutions]
        expected[f"{number}.conv.0"] = weights
    depth = {"block": 1, "branch": 2, "component": 3}[granularity]
    gathered = {}
    for unit, tensors in expected.items():
        shorter = ".".join(unit.split(".")[:depth])
        gathered.setdefault(shorter, []).extend(t.flatten() for t in tensors)
    method = model.supernet.selection
    method.settle(TrainedNet(model, None, ngpu=0))
    for unit, found in zip(model.supernet.space.units, method.importance, strict=True):
        weights = torch.cat(gathered[unit])
        expected_here = weights.square().mean().sqrt().item()
        assert found.item() == pytest.approx(expected_here, rel=1e-5), unit
    order = sorted(range(len(method.importance)), key=lambda n: -method.importance[n])
    assert method.ranking().tolist() == order


def test_greedy_asks_for_the_loss_of_the_masked_net(tiny_model, short):
    model = tiny_model(supernet={"method": "greedy"}).train()
    net = TrainedNet(model, Batches(short), ngpu=0)
    mask = torch.ones(12, dtype=torch.bool)
    mask[[0, 5, 7]] = False
    found = net.dev_loss(mask, 2)
    assert model.training
    model.eval()
    feats = short["speech"], short["speech_lengths"]
    gates = tuple(torch.tensor(float(keep)) for keep in mask)
    encoded, lengths, _ = model.encoder(*feats, gates=gates)
    loss = model.ctc(encoded, lengths, short["text"], short["text_lengths"])
    assert found == pytest.approx(loss.item(), rel=1e-5)


def test_the_taylor_gate_feels_the_whole_output_of_its_branch(tiny_model, short):
    model = tiny_model(supernet={"method": "taylor", "warm_start": 0}).train()
    model(**short)[0].backward()
    model.supernet.count_update()
    slopes = []
    for unit in range(12):
        values = []
        for change in (0.01, -0.01):
            gates = [torch.tensor(1.0)] * 12
            gates[unit] = torch.tensor(1.0 + change)
            feats = short["speech"], short["speech_lengths"]
            encoded, lengths, _ = model.encoder(*feats, gates=gates)
            labels = short["text"], short["text_lengths"]
            values.append(model.ctc(encoded, lengths, *labels).item())
        slopes.append((values[0] - values[1]) / 0.02)
    squares = [slope**2 for slope in slopes]
    expected = [0.01 * square / sum(squares) for square in squares]
    found = model.supernet.selection.importance.tolist()
    assert found == pytest.approx(expected, rel=0.1, abs=1e-5)


@pytest.mark.parametrize("heads", ["shared", "per_size"])
def test_one_pass_of_early_exits_gives_the_losses_of_separate_shorter_nets(
    tiny_config, build, short, heads
):
    config = tiny_config(
        granularity="block", heads=heads, supernet={"method": "early_exits"}
    )
    model = build(config).train()
    runs = []
    for block in model.encoder.encoders:
        block.register_forward_hook(lambda *_: runs.append(1))
    loss, stats, frames = model(**short)
    assert len(runs) == 3
    state = model.state_dict()
    specs = settled_specs(model.supernet, fingerprint(state, config["token_list"]))
    assert [sum(spec.mask) for spec in specs.values()] == [1, 2, 3]
    expected = 0.0
    for name, spec in specs.items():
        small = family.build(*family.cut(config, state, spec))
        assert len(small.encoder.encoders) == sum(spec.mask)
        alone = small(**short)[0].item() * 2 / frames.item()
        assert stats[f"loss_{name}"].item() == pytest.approx(alone, rel=1e-5)
        expected += alone if name == "full" else 0.3 * alone
    assert loss.item() == pytest.approx(expected / 1.6, rel=1e-5)
    # and in validation, where each size runs on its own
    validated = model.eval()(**short)[1]
    for name in specs:
        assert validated[f"loss_{name}"].item() == pytest.approx(
            stats[f"loss_{name}"].item(), rel=1e-5
        )


# what a subnet's loss weighs


@pytest.mark.parametrize(
    "update, others", [(30, ["current"]), (60, ["small", "medium"])]
)
def test_an_adaptive_weight_is_one_minus_the_exponential_of_the_negative_loss(
    tiny_model, short, update, others
):
    def gradients(weight):
        torch.manual_seed(0)
        model = tiny_model(update=update, supernet={"subnet_weight": weight}).train()
        loss, stats, _ = model(**short)
        loss.backward()
        return loss.item(), stats, dict(model.named_parameters())

    loss, stats, adaptive = gradients("adaptive")
    weights = {name: 1 - math.exp(-stats[f"loss_{name}"].item()) for name in others}
    expected = sum(w * stats[f"loss_{name}"].item() for name, w in weights.items())
    expected += stats["loss_full"].item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert all(0.1 < weight < 0.999 for weight in weights.values())
    # no gradient through the weight: the loss is linear in those of the subnets
    (_, _, none), (_, _, one) = gradients(0.0), gradients(1.0)
    if update == 30:
        (weight,) = weights.values()
        for name, parameter in adaptive.items():
            a, b = none[name].grad, one[name].grad
            if b is None:
                continue
            a, b = torch.zeros_like(b) if a is None else a, 2 * b  # a mean of two
            assert torch.allclose(parameter.grad, a + weight * (b - a), atol=1e-6), name


def test_an_adaptive_weight_needs_losses_per_frame(tiny_model):
    with pytest.raises(UserError, match="adaptive .* loss_normalization: frames"):
        tiny_model(supernet={"subnet_weight": "adaptive"}, loss_normalization="batch")
