"""One grammar of budgets, in YAML and on command lines, and one table of metrics."""

import dataclasses

import pytest
import torch
from helpers.tiny import FEATURES, WIDE

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.cost.budget import Budget, parse_budget
from espnet_omnisparse.cost.count import Cost, count_cost
from espnet_omnisparse.cost.metrics import METRICS, OF_BUDGETS, OF_SIZES
from espnet_omnisparse.cost.size import CostTable, kinds_needed, parse_size
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.supernet import Supernet
from espnet_omnisparse.train.journal import settled_specs

# text -> metric, limit, the text that means the same, the folder's name
READ = {
    "params=15M": ("params", 15e6, "params=15M", "params15M"),
    "params=1500000": ("params", 1.5e6, "params=1500000", "params1500000"),
    "macs_10s=2G": ("macs_10s", 2e9, "2GMAC", "2GMAC"),
    "macs_10s=2GMAC": ("macs_10s", 2e9, "2GMAC", "2GMAC"),
    "nonzero=12M": ("nonzero", 12e6, "12M", "12M"),
    "bytes=8M": ("bytes", 8e6, "8MB", "8MB"),
    "latency_ms=40": ("latency_ms", 40.0, "40ms", "40ms"),
    "sparsity=0.57": ("sparsity", 0.43, "57%", "57pct"),
    "sparsity=57%": ("sparsity", 0.43, "57%", "57pct"),
    "1.5GB": ("bytes", 1.5e9, "1.5GB", "1p5GB"),
    "0.0001M": ("nonzero", 100.0, "0.0001M", "0p0001M"),
}


@pytest.mark.parametrize("text", READ)
def test_a_metric_may_be_named(text):
    budget = parse_budget(text)
    assert (budget.kind, budget.limit, budget.text, budget.name) == READ[text]
    assert parse_budget(budget.text) == budget


@pytest.mark.parametrize(
    "text",
    [
        *("params=", "params", "=15M", "params=15MB", "parms=15M", "rtf=1", "file=8M"),
        *("params=-3", "params=0", "sparsity=70", "sparsity=1", "70%%", "2M%", "3kms"),
        *("params=1e6", "params==1", "params=15 M", "macs_10s=2GB", "8mb", "1_0M"),
    ],
)
def test_what_is_no_budget_is_told_in_one_sentence(text):
    with pytest.raises(UserError, match=r"^--sizes: .* such as params=15M\.$"):
        parse_budget(text, "--sizes")
    config = {"method": "uniform", "sizes": {"small": text}}
    with pytest.raises(UserError, match=r"supernet.sizes.small: .* params=15M\.$"):
        SupernetConfig.read(config)


def test_a_search_has_no_budget_of_units():
    with pytest.raises(UserError, match="'units=3' limits units; limit one of spars"):
        parse_budget("units=3")


def random_table(kind, seed=0):
    space = SearchSpace(3)
    generator = torch.Generator().manual_seed(seed)
    units, shared = torch.randint(1, 50, (2, 12), generator=generator)
    return CostTable(kind, space, 30, units, shared)


@pytest.mark.parametrize(
    "text, mapping",
    [
        ("params=0.2k", {"params": "0.2k"}),
        ("params=200", {"params": 200}),
        ("0.2k", {"nonzero": "0.2k"}),
        ("0.2kB", {"bytes": 200}),
        ("0.2kB", {"bytes": "0.2kB"}),
        ("0.2kMAC", {"macs_10s": "0.2k"}),
        ("macs_10s=200", {"macs_10s": 200.0}),
        ("3.5ms", {"latency_ms": 3.5}),
        ("units=4", {"units": 4}),
    ],
)
def test_a_size_as_text_means_what_the_mapping_means(text, mapping):
    tables = {kind: random_table(kind) for kind in OF_SIZES}
    size = parse_size("small", text, "units", tables)
    assert size == parse_size("small", mapping, "units", tables)
    kind, value = next(iter(mapping.items()))
    assert list(kinds_needed({"small": text}, "units")) == [kind]
    asked = {"0.2k": 200, "0.2kB": 200}.get(value, value)
    assert size.limit == asked * METRICS[kind].steps


def test_fifteen_million_of_one_metric_are_the_same_everywhere():
    yaml = SupernetConfig.read({"method": "uniform", "sizes": {"a": "12M"}})
    assert list(kinds_needed(yaml.sizes, "units")) == ["nonzero"]
    assert parse_budget("12M") == Budget("nonzero", 12.0, "M")
    assert list(kinds_needed({"a": {"params": "12M"}}, "units")) == ["params"]
    assert parse_budget("params=12M") == Budget("params", 12.0, "M")


# exact on real models


def random_mask(space, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(space), generator=generator) < 0.4
    mask[seed % len(space)] = True
    return mask


def cut_out(config, model, mask):
    state = model.state_dict()
    mark = fingerprint(state, config["token_list"])
    spec = SubnetSpec("small", mark, model.encoder.space, tuple(mask.tolist()))
    return family.build(*family.cut(config, state, spec))


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "branch", "conv_norm": "batch_norm", "attention": True},
        {"granularity": "block", "conv_norm": "batch_norm", "heads": "per_size"},
        {"granularity": "component", "conv_norm": "batch_norm"},
        {"granularity": "component", "heads": "per_size"},
    ],
    ids=["branch", "block", "component", "layer_norm"],
)
@torch.no_grad()
def test_bytes_and_nonzero_are_those_of_the_model_that_is_cut_out(
    tiny_config, build, options
):
    config = tiny_config(encoder=WIDE, **options)
    model = build(config)
    for parameter in model.parameters():  # as of a trained net: no weight is zero
        parameter.uniform_(0.1, 0.2)
    space = model.encoder.space
    packed, nonzero = (cost_table(model, kind) for kind in ("bytes", "nonzero"))
    masks = [random_mask(space, seed) for seed in range(3)]
    for mask in [*masks, torch.ones(len(space), dtype=torch.bool)]:
        counted = count_cost(cut_out(config, model, mask), FEATURES)
        assert packed.of(mask) == counted.packed_bytes
        assert nonzero.of(mask) == counted.nonzero_parameters
    assert packed.total == counted.packed_bytes > 4 * counted.parameters - 1


@torch.no_grad()
def test_sizes_by_text_keep_to_it_when_they_are_cut_out(tiny_config, build):
    config = tiny_config(granularity="component", encoder=WIDE, conv_norm="batch_norm")
    options = config["model_conf"]["supernet"]
    options["sizes"] = {"phone": "100kB", "small": "20k", "medium": "params=25k"}
    model = build(config)
    state = model.state_dict()
    specs = settled_specs(model.supernet, fingerprint(state, config["token_list"]))
    counted = {
        name: count_cost(family.build(*family.cut(config, state, spec)), FEATURES)
        for name, spec in specs.items()
    }
    assert 85_000 < counted["phone"].packed_bytes <= 100_000
    assert 17_000 < counted["small"].parameters <= 20_000
    assert 22_000 < counted["medium"].parameters <= 25_000


# what choosing units cannot meet

BOTH_WAYS = "give the size a sparsity, such as {sparsity: 0.7}, .* after training"


@pytest.mark.parametrize(
    "sizes, options",
    [
        ({"s70": "70%"}, {"method": "uniform"}),
        ({"s70": "70%"}, {"method": "none", "sparsity": {}}),
        ({"small": "12M"}, {"method": "none", "sparsity": {}}),
        ({"small": {"nonzero": "12M"}}, {"method": "none", "sparsity": {}}),
        ({"phone": "8MB"}, {"method": "none", "sparsity": {}}),
    ],
)
def test_a_budget_that_masks_alone_can_meet_is_refused_with_the_way_out(sizes, options):
    ((name, _),) = sizes.items()
    with pytest.raises(UserError, match=f"{name} asks for .*{BOTH_WAYS}"):
        SupernetConfig.read({"sizes": sizes, **options})


def test_a_budget_below_all_choices_of_units_names_masks_where_there_are_some():
    space = SearchSpace(3)
    masked = dataclasses.replace(space, pattern="8x1")
    config = {"method": "uniform", "sizes": {"small": "nonzero=31"}}

    def measure(kind):
        return random_table(kind)

    with pytest.raises(UserError, match="31 non-zero parameters; the nearest") as error:
        Supernet(SupernetConfig.read(config), space, measure)
    assert "sparsity" not in str(error.value)
    config = SupernetConfig.read({**config, "sparsity": {}})
    with pytest.raises(UserError, match=f"31 non-zero parameters.*{BOTH_WAYS}"):
        Supernet(config, masked, measure)


@pytest.mark.parametrize("kind", ["nonzero", "bytes"])
def test_a_sparsity_beside_what_it_lowers_itself_is_refused(kind):
    sizes = {"small": {kind: "12M", "sparsity": 0.5}}
    config = {"method": "uniform", "sizes": sizes, "sparsity": {}}
    with pytest.raises(UserError, match="small has a sparsity beside .* search for it"):
        Supernet(SupernetConfig.read(config), SearchSpace(3))


# the table


def test_the_table_names_every_field_of_a_cost():
    fields = [metric.field for metric in METRICS.values() if metric.field]
    assert len(fields) == len(set(fields))
    assert {field.name for field in dataclasses.fields(Cost)} < set(fields)
    assert {*OF_SIZES, *OF_BUDGETS} < METRICS.keys()
    for name, metric in METRICS.items():
        assert name == metric.name
        with pytest.raises(dataclasses.FrozenInstanceError):
            metric.scale = 2.0
    with pytest.raises(TypeError):
        METRICS["units"] = None
