import itertools
import math
import re

import pytest
import torch
from helpers.tiny import FEATURES, WIDE

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.cost import unit_costs as cost
from espnet_omnisparse.cost.budget import parse_number
from espnet_omnisparse.cost.count import count_cost
from espnet_omnisparse.cost.metrics import METRICS, OF_SIZES
from espnet_omnisparse.cost.size import CostTable, Size, kinds_needed, parse_size
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.selection import build_selection
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.supernet import Supernet
from espnet_omnisparse.train.journal import settled_specs

SPACES = {
    "branch": SearchSpace(3),
    "block": SearchSpace(3, "block"),
    "component": SearchSpace(3, "component", heads=4),
}
# whose cgMLPs have a weight between any two of their parts
JOINED = SearchSpace(
    3, "component", 4, branches=("mhsa", "cgmlp", "ffn2"), gate_linear=True
)
TABLES = pytest.mark.parametrize(
    "space", [*SPACES.values(), JOINED], ids=[*SPACES, "joined"]
)


def random_table(space, seed=0, kind="params"):
    generator = torch.Generator().manual_seed(seed)

    def costs(count, lowest):
        return torch.randint(lowest, 50, (count,), generator=generator)

    groups = len(set(space.groups))
    units, shared = costs(len(space), 1), costs(groups, 0)
    pairs = costs(groups, 0) if space.gate_linear else None
    return CostTable(kind, space, 30, units, shared, pairs)


def slow_cost(table, space, kept):
    """Cost of a set of units: the rest, each unit, each branch once, and each pair."""
    cost_of = int(table.rest) + sum(int(table.units[unit]) for unit in kept)
    branches = {space.groups[unit] for unit in kept}
    cost_of += sum(int(table.shared[branch]) for branch in branches)
    for one, other in itertools.combinations(kept, 2):
        if space.groups[one] == space.groups[other]:
            cost_of += int(table.pairs[space.groups[one]])
    return cost_of


def random_order(space, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(space), generator=generator)


def random_mask(space, seed, share=0.4):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(space), generator=generator) < share
    mask[seed % len(space)] = True
    return mask


# numbers


@pytest.mark.parametrize(
    "value, number",
    [
        (40, 40.0),
        (1.5, 1.5),
        ("15M", 15e6),
        ("1.5k", 1500.0),
        ("2G", 2e9),
        ("40", 40.0),
        ("1e3M", 1e9),
        *((bad, None) for bad in (0, -3, "-3M", "M", "", "15m", "15 apples", "15MM")),
        *((bad, None) for bad in (None, [1], {}, float("inf"), float("nan"), "nan")),
        *((bad, None) for bad in (True, False)),
    ],
)
def test_a_number_may_have_a_suffix(value, number):
    assert parse_number(value) == number


def test_the_kinds_of_cost_that_sizes_need():
    sizes = {"a": 3, "b": 0.5, "c": {"params": "1M"}, "d": {"latency_ms": 3}}
    assert list(kinds_needed(sizes, "macs_10s")) == [
        *("units", "macs_10s", "params", "latency_ms")
    ]
    assert list(kinds_needed({"b": 0.5}, "units")) == ["units"]


BAD_SIZES = [
    (
        {"parms": 3},
        "a budget such as 8MB, or one of units, params, nonzero, bytes, macs_10s, lat",
    ),
    ({"untis": 3}, "small must be units, .* not {'untis': 3}"),
    ({"units": 0}, "small needs a positive number for units, .* not 0"),
    *(
        ({"units": 3, "sparsity": bad}, "small needs a sparsity between 0 and 1")
        for bad in (0, 0.0, 1.0, -0.1, "0.7", True, None, float("nan"))
    ),
    ({"sparsity": 1.5}, "small needs a sparsity between 0 and 1, .* not 1.5"),
    ({"sparsity": 0.5, "parms": 3}, "small must be units, .* with or without a spars"),
    ({"sparsity": 0.5, "units": 3, "params": 4}, "small must be units"),
    ({}, "small must be units"),
    ({"params": 3, "macs_10s": 4}, "small must be units"),
    ({"params": "many"}, "small needs a positive number for params, .* not 'many'"),
    ({"macs_10s": 0}, "small needs a positive number for macs_10s"),
    ({"latency_ms": None}, "small needs a positive number for latency_ms"),
    ({"params": True}, "small needs a positive number for params"),
    (None, "small must be units, .* not None"),
    ([3], r"small must be units, .* not \[3\]"),
    (True, "small must be units, .* not True"),
]


@pytest.mark.parametrize("wanted, sentence", BAD_SIZES)
def test_what_is_no_size_gets_its_sentence(wanted, sentence):
    with pytest.raises(UserError, match=sentence):
        list(kinds_needed({"small": wanted}, "units"))
    config = {"method": "uniform", "sizes": {"small": wanted}}
    if isinstance(wanted, dict) and "sparsity" in wanted:
        config["sparsity"] = {"final": 0.9}
        share = wanted["sparsity"]
        if isinstance(share, int | float) and share > 0.9:
            sentence = "small has a sparsity of .*, but training goes up to .* 0.9"
    with pytest.raises(UserError, match=sentence):
        Supernet(SupernetConfig.read(config), SearchSpace(3))


def test_a_size_is_a_limit_on_its_cost():
    space = SearchSpace(3)
    tables = {kind: random_table(space, kind=kind) for kind in OF_SIZES}

    def limit(wanted, fraction_of="units"):
        size = parse_size("small", wanted, fraction_of, tables)
        return size.table.kind, size.limit

    total = tables["params"].total
    assert limit(4) == limit(4, "params") == ("units", 4)
    assert limit(0.5, "params") == ("params", round(0.5 * total))
    assert limit({"params": "0.2k"}) == ("params", 200)
    assert limit({"latency_ms": 3.5}) == ("latency_ms", 3_500_000)
    assert limit({"macs_10s": "1.5M"}, "params") == ("macs_10s", 1_500_000)


def test_a_size_with_a_sparsity_is_a_limit_and_a_share():
    space = SearchSpace(3)
    tables = {kind: random_table(space, kind=kind) for kind in OF_SIZES}
    tables["units"] = CostTable.counting(space)
    whole = parse_size("small", {"sparsity": 0.7}, "units", tables)
    assert (whole.limit, whole.sparsity, whole.keeps_all_units) == (12, 0.7, True)
    whole.check()
    both = parse_size("small", {"units": 4, "sparsity": 0.9}, "units", tables)
    assert (both.limit, both.sparsity, both.keeps_all_units) == (4, 0.9, False)
    budget = parse_size("small", {"params": 200, "sparsity": 0.5}, "units", tables)
    assert (budget.table.kind, budget.limit, budget.sparsity) == ("params", 200, 0.5)
    dense = parse_size("small", {"units": 4}, "params", tables)
    assert dense == parse_size("small", 4, "params", tables)
    # every unit is a size only if it is sparse
    parse_size("small", {"units": 12, "sparsity": 0.5}, "units", tables).check()
    with pytest.raises(UserError, match="full net, which is always a size"):
        parse_size("small", {"units": 12}, "units", tables).check()
    sizes = {"a": {"sparsity": 0.5}, "b": {"units": 3}, "c": {"params": 3}}
    sizes["d"] = {"macs_10s": 3, "sparsity": 0.2}
    assert list(kinds_needed(sizes, "units")) == [
        *("units", "units", "params", "macs_10s")
    ]


# tables


@TABLES
def test_a_table_adds_up_units_and_what_a_branch_has_once(space):
    for seed in range(5):
        table = random_table(space, seed)
        order = random_order(space, seed)
        expected = [
            slow_cost(table, space, order[:count].tolist())
            for count in range(1, len(space) + 1)
        ]
        assert table.along(order).tolist() == expected
        assert table.total == expected[-1]
        mask = random_mask(space, seed)
        kept = mask.nonzero().squeeze(1).tolist()
        assert table.of(mask) == slow_cost(table, space, kept)
        nothing = torch.zeros_like(mask)
        assert table.of(nothing) == slow_cost(table, space, []) == 30
        shares = []
        for unit, group in enumerate(space.groups):
            count = space.groups.count(group)
            pairs = int(table.pairs[group]) * math.comb(count, 2)
            once = (int(table.shared[group]) + pairs) / count
            shares.append(int(table.units[unit]) + once)
        assert table.per_unit.tolist() == pytest.approx(shares)


@TABLES
def test_counting_units_is_a_cost_as_any_other(space):
    table = CostTable.counting(space)
    mask = random_mask(space, 1)
    assert table.of(mask) == int(mask.sum())
    assert table.total == len(space)


def test_the_largest_limit_is_the_full_net_without_its_cheapest_unit():
    table = random_table(JOINED)
    everything = list(range(len(JOINED)))
    without = [
        slow_cost(table, JOINED, [n for n in everything if n != unit])
        for unit in everything
    ]
    Size("small", table, max(without)).check()
    with pytest.raises(UserError, match=f"can give is {max(without):,} parameters"):
        Size("small", table, max(without) + 1).check()


def test_latencies_of_pairs_are_in_checkpoints_of_nets_that_have_them():
    measured = random_table(JOINED, kind="latency_ms")
    resumed = CostTable.unmeasured(JOINED)
    resumed.load_state_dict(measured.state_dict(), strict=True)
    assert resumed.total == measured.total
    assert (resumed.pairs == measured.pairs).all()
    others = random_table(SPACES["component"], kind="latency_ms")
    assert set(others.state_dict()) == {"rest", "units", "shared"}


@TABLES
def test_a_size_holds_as_much_of_a_ranking_as_its_limit_allows(space):
    for seed in range(5):
        table, order = random_table(space, seed), random_order(space, seed + 9)
        for share in (0.2, 0.35, 0.5, 0.9):
            size = Size("small", table, share)
            kept = []
            for unit in order.tolist():
                if slow_cost(table, space, [*kept, unit]) > size.limit:
                    break
                kept.append(unit)
            mask = size.mask(order)
            assert mask.nonzero().squeeze(1).tolist() == sorted(kept)
            assert not kept or table.of(mask) <= size.limit < table.total


def test_a_number_of_units_is_exact_and_that_of_a_budget_an_average():
    space = SPACES["component"]
    counting = CostTable.counting(space)
    for wanted in range(1, len(space)):
        assert Size("small", counting, wanted).units == wanted
    table = random_table(space)
    within = 0.4 * table.total - 30
    expected = within / (table.total - 30) * len(space)
    assert Size("small", table, 0.4).units == round(expected)
    assert Size("small", table, 31).units == 1
    assert Size("small", table, table.total).units == len(space) - 1


@pytest.mark.parametrize("method", ["random", "iterative_zero_out", "ortho_softmax"])
def test_sizes_of_different_costs_are_nested_and_sorted(method):
    space = SPACES["component"]
    turned = set()
    for seed in range(12):
        torch.manual_seed(seed)
        one, other = random_table(space, seed), random_table(space, seed + 50)
        sizes = {"one": Size("one", one, 0.5), "other": Size("other", other, 0.49)}
        conf = {"seed": seed} if method == "random" else {}
        selection = build_selection(method, space, sizes, conf)
        for scores in selection.parameters():
            torch.nn.init.normal_(scores)
        if method == "iterative_zero_out":
            for time in range(1, 101):
                selection.after_update(time, 100)
        masks = selection.masks()
        larger, smaller = masks.values()
        assert not (smaller & ~larger).any()
        turned.add(next(iter(masks)))
        for name, mask in masks.items():
            assert 0 < sizes[name].table.of(mask) <= sizes[name].limit
    assert turned == {"one", "other"}


# what cannot be met

ASKED = [
    (kind, wanted)
    for kind in OF_SIZES
    for wanted in ("too little", "too much", "less than one")
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind, wanted", ASKED)
def test_the_limit_that_a_refusal_names_is_accepted(kind, wanted, seed):
    space = SPACES["component"]
    steps, digit = METRICS[kind].steps, METRICS[kind].digit
    table = CostTable.counting(space)
    if kind != "units":
        generator = torch.Generator().manual_seed(seed)
        costs = 1234567 / steps * torch.rand(len(space) + 12, generator=generator)
        units, shared = costs.split([len(space), 12])
        table = CostTable(kind, space, 987654.321 / steps, units, shared)
    lowest = int(table.rest + (table.units + table.shared[list(table.groups)]).max())
    highest = table.total - int(table.units.min())
    asked = {"too little": lowest - 1, "too much": highest + 1, "less than one": 0}
    with pytest.raises(UserError) as error:
        Size("small", table, asked[wanted]).check()
    sentence = str(error.value)
    end = "the full net, which" if wanted == "too much" else "the least that holds"
    assert f"small asks for {table.text(asked[wanted])}; the nearest" in sentence
    assert end in sentence
    named = re.search(r"can give is ([\d,.]+) ", sentence).group(1).replace(",", "")
    nearest = round(float(named) * steps)
    size = Size("small", table, nearest)
    size.check()
    # and it is the nearest such, to the last digit that is shown
    beyond = nearest + digit if wanted == "too much" else nearest - digit
    with pytest.raises(UserError):
        Size("small", table, beyond).check()
    assert 0 < size.mask(random_order(space, seed)).sum() < len(space)


def test_a_supernet_refuses_a_budget_that_it_cannot_meet():
    table = random_table(SearchSpace(3))
    config = {"method": "uniform", "sizes": {"small": {"params": "1M"}}}
    with pytest.raises(UserError, match="small asks for 1,000,000 parameters"):
        Supernet(SupernetConfig.read(config), SearchSpace(3), lambda kind: table)


# tables of real models


@pytest.fixture
def supernet(tiny_config, build):
    """A configuration with its model, whose sizes are given by nothing costly."""

    def make(granularity, **options):
        config = tiny_config(granularity=granularity, encoder=WIDE, **options)
        return config, build(config)

    return make


def cut_out(config, model, mask):
    state = model.state_dict()
    mark = fingerprint(state, config["token_list"])
    spec = SubnetSpec("small", mark, model.encoder.space, tuple(mask.tolist()))
    return family.build(*family.cut(config, state, spec))


OPTIONS = {
    "branch": {"conv_norm": "batch_norm", "attention": True},
    "block": {"heads": "per_size"},
    "component": {"heads": "per_size"},
}


@pytest.mark.parametrize("granularity", SPACES)
@torch.no_grad()
def test_parameters_and_macs_are_those_of_the_model_that_is_cut_out(
    supernet, granularity
):
    config, model = supernet(granularity, **OPTIONS[granularity])
    space = model.encoder.space
    assert space == SPACES[granularity]
    params, macs = (cost_table(model, kind) for kind in ("params", "macs_10s"))
    masks = [random_mask(space, seed) for seed in range(3)]
    for mask in [*masks, torch.ones(len(space), dtype=torch.bool)]:
        counted = count_cost(cut_out(config, model, mask), FEATURES)
        assert params.of(mask) == counted.parameters
        assert macs.of(mask) == counted.macs_10s
    assert (params.total, macs.total) == (counted.parameters, counted.macs_10s)


@pytest.mark.parametrize(
    "encoder",
    [
        {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
        {"rel_pos_type": "legacy"},
    ],
    ids=["absolute", "legacy"],
)
@torch.no_grad()
def test_other_attentions_are_counted_as_exactly(tiny_config, build, encoder):
    config = tiny_config(
        granularity="component", encoder={**WIDE, **encoder}, conv_norm="batch_norm"
    )
    model = build(config)
    mask = random_mask(model.encoder.space, 4)
    counted = count_cost(cut_out(config, model, mask), FEATURES)
    assert cost_table(model, "params").of(mask) == counted.parameters
    assert cost_table(model, "macs_10s").of(mask) == counted.macs_10s


def test_a_tables_making_leaves_the_model_as_it_was(supernet):
    _, model = supernet("component", heads="per_size", conv_norm="batch_norm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {name: id(module) for name, module in model.named_modules()}
    cost_table(model, "macs_10s")
    assert {name: id(module) for name, module in model.named_modules()} == modules
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@torch.no_grad()
def test_sizes_by_budget_keep_to_it_when_they_are_cut_out(tiny_config, build):
    config = tiny_config(granularity="component", encoder=WIDE)
    options = config["model_conf"]["supernet"]
    options["sizes"] = {"small": {"macs_10s": "9M"}, "medium": 0.7}
    options["fraction_of"] = "params"
    model = build(config)
    specs = settled_specs(
        model.supernet, fingerprint(model.state_dict(), config["token_list"])
    )
    state = model.state_dict()
    counted = {
        name: count_cost(family.build(*family.cut(config, state, spec)), FEATURES)
        for name, spec in specs.items()
    }
    limit = 0.7 * counted["full"].parameters
    assert 0.9 * limit < counted["medium"].parameters <= limit
    assert 8e6 < counted["small"].macs_10s <= 9e6


# latency


@pytest.fixture
def with_front_end(tiny_config, build):
    """A model that begins with the waveform."""

    def make(granularity):
        config = tiny_config(granularity=granularity, encoder={"num_blocks": 2})
        config |= {"input_size": None, "frontend": "default"}
        config["frontend_conf"] = {"n_mels": FEATURES, "hop_length": 160}
        config["model_conf"]["supernet"]["sizes"] = {"small": 1}
        return build(config)

    return make


@pytest.mark.parametrize("granularity", ["block", "component"])
def test_a_latency_table_adds_up_to_the_measured_latency(
    with_front_end, granularity, monkeypatch
):
    measure, seen = cost.measure_rtf, {}

    def spy(models, seconds):
        seen.update(measure(models, seconds, rounds=9))
        return seen

    monkeypatch.setattr(cost, "measure_rtf", spy)
    model = with_front_end(granularity)
    table = cost_table(model, "latency_ms")
    full = 10_000 * torch.tensor(seen["full"]).median().item()  # of 10 s, in ms
    assert table.total / 1e6 == pytest.approx(full, rel=1e-4)
    assert 0 < int(table.rest) < table.total
    assert (table.units >= 0).all() and (table.shared >= 0).all()
    assert int(table.units.sum()) > 0


def test_noise_in_measured_latencies_makes_no_cost_negative(
    with_front_end, monkeypatch
):
    # all four parts of a branch faster than one of them, and one slower than all
    # of it and the rest together
    seconds = {"full": 0.9, "rest": 0.2, "ffn1 1": 0.4, "ffn1 4": 0.3, "conv 1": 0.19}
    seconds |= {"mhsa 1": 0.25, "mhsa 2": 0.5, "ffn2 1": 0.22, "ffn2 4": 0.6}
    monkeypatch.setattr(
        cost,
        "measure_rtf",
        lambda models, _: {name: [seconds[name]] for name in models},
    )
    table = cost_table(with_front_end("component"), "latency_ms")
    assert (table.units >= 0).all() and (table.shared >= 0).all()
    assert table.total == pytest.approx(9e9, abs=100)
    assert int(table.rest) == 2e9
    for seed in range(5):
        costs = table.along(random_order(SearchSpace(2, "component", 2), seed))
        assert (costs.diff() >= 0).all()


def test_latency_without_a_front_end_is_refused(supernet):
    _, model = supernet("branch")
    with pytest.raises(UserError, match="latency_ms needs --feats_type raw"):
        cost_table(model, "latency_ms")


# what travels with the checkpoint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_table_survives_a_cast_of_the_model_exactly(dtype):
    space = SearchSpace(3)
    costs = torch.arange(12).double() * 1234.567891
    table = CostTable("latency_ms", space, 98765.4321, costs, torch.zeros(12))
    before = {name: tensor.clone() for name, tensor in table.state_dict().items()}
    assert int(before["rest"]) == 98_765_432_100
    table.to(dtype)
    for name, tensor in table.state_dict().items():
        assert tensor.dtype == torch.long
        assert torch.equal(tensor, before[name])


def test_a_resumed_training_goes_on_with_the_latencies_it_began_with():
    space = SearchSpace(3)
    config = SupernetConfig.read(
        {
            "method": "random",
            "sizes": {"small": 0.4, "medium": {"latency_ms": 350}},
            "fraction_of": "latency_ms",
        }
    )

    def started(seed):
        def measure(kind):
            assert seed != 5, "measured what the checkpoint has"
            return random_table(space, seed, kind)

        return Supernet(config, space, measure)

    first, other, resumed = started(3), started(4), started(5)
    first.measure(), other.measure()
    masks = first.selection.masks()
    limits = {name: size.limit for name, size in first.sizes.items()}
    assert limits != {name: size.limit for name, size in other.sizes.items()}
    resumed.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    assert limits == {name: size.limit for name, size in other.sizes.items()}
    assert limits == {name: size.limit for name, size in resumed.sizes.items()}
    assert masks.keys() == resumed.selection.masks().keys()
    for name, mask in resumed.selection.masks().items():
        assert torch.equal(mask, masks[name])
        assert first.sizes[name].table.of(mask) <= limits[name]


def test_only_a_training_that_begins_measures_latencies(tiny_config, monkeypatch):
    config = tiny_config(encoder={"num_blocks": 2})
    config |= {"input_size": None, "frontend": "default"}
    config["frontend_conf"] = {"n_mels": FEATURES, "hop_length": 160}
    sizes = {"small": {"latency_ms": 400}, "medium": {"latency_ms": 700}}
    config["model_conf"]["supernet"]["sizes"] = sizes
    asked = []

    def measure_rtf(models, seconds):
        asked.append(list(models))
        seconds_each = {"full": 1.0, "rest": 0.1}
        return {name: [seconds_each.get(name, 0.3) / seconds] for name in models}

    monkeypatch.setattr(cost, "measure_rtf", measure_rtf)
    begun = family.build(config)
    assert asked == []  # as of stage 10, extraction, profile
    begun.supernet.set_run_length(100)
    assert len(asked) == 1
    gone_on = family.build(config, begun.state_dict())
    gone_on.supernet.set_run_length(100)
    assert len(asked) == 1
    for name, mask in begun.supernet.size_masks().items():
        assert torch.equal(mask, gone_on.supernet.size_masks()[name])
        assert 0 < int(mask.sum()) < len(mask)
    assert list(gone_on.supernet.sizes) == ["medium", "small"]


def test_a_latency_that_cannot_be_met_is_told_where_it_is_measured():
    config = SupernetConfig.read(
        {"method": "random", "sizes": {"small": {"latency_ms": 0.001}}}
    )
    space = SearchSpace(3)
    net = Supernet(config, space, lambda kind: random_table(space, 3, kind))
    with pytest.raises(UserError, match="the nearest that this net can give is"):
        net.set_run_length(100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_latency_is_measured_in_the_usual_precision(with_front_end, monkeypatch, dtype):
    # a training measures when its model is already cast, and on its device
    measure, kinds = cost.measure_rtf, set()

    def spy(models, seconds):
        for model in models.values():
            kinds.update(p.dtype for p in model.parameters())
        return measure(models, 1, rounds=1)

    monkeypatch.setattr(cost, "measure_rtf", spy)
    model = with_front_end("block").to(dtype)
    assert cost_table(model, "latency_ms").known
    assert kinds == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {dtype}
