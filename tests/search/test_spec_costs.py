import dataclasses

import pytest
import torch

from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.cost.budget import Budget, parse_budget
from espnet_omnisparse.cost.count import count_packed_bytes
from espnet_omnisparse.cost.size import CostTable
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.cut import cut_state
from espnet_omnisparse.search import run
from espnet_omnisparse.search.spec_costs import SpecCosts

PATTERNS = ("unstructured", "8x1", "5x3", "1x7", "n:4", "n:3")
# d 16, 2 heads, 32 units: 5x3, 1x7 and n:3 stick out at edges
GRID = (0.0, 0.1, 0.35, 0.5, 0.9)


@pytest.fixture
def sparse_model(tiny_model):
    def make(pattern="8x1", **options):
        encoder = {"pattern": pattern, **options.pop("encoder", {})}
        return tiny_model(encoder=encoder, **options)

    return make


def subnets(model, seed=0):
    """Masks, and per mask some sparsities: nothing, one, all alike, ragged."""
    space = model.encoder.space
    generator = torch.Generator().manual_seed(seed)

    def drawn(choices, count):
        picks = torch.randint(len(choices), (count,), generator=generator)
        return tuple(choices[pick] for pick in picks)

    masks = [(True,) * len(space), drawn((True, False), len(space))]
    weights = len(space.weights)
    rows = [(), (0.9,) + (0.0,) * (weights - 1), (0.4,) * weights, drawn(GRID, weights)]
    return masks, rows


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("granularity", ["branch", "component", "block"])
def test_costs_are_those_of_the_tensors_that_extraction_writes(
    sparse_model, pattern, granularity
):
    model = sparse_model(pattern, granularity=granularity, conv_norm="batch_norm")
    assert_costs_are_those_of_the_tensors(model)


def test_costs_count_the_masks_of_an_attention_decoder(sparse_model):
    options = {"attention": True, "mask_decoder": True}
    assert_costs_are_those_of_the_tensors(sparse_model("8x1", **options))


def assert_costs_are_those_of_the_tensors(model):
    space = model.encoder.space
    with torch.no_grad():  # a weight may be zero of itself
        model.encoder.encoders[0].feed_forward.w_1.weight[:3] = 0.0
    masks, rows = subnets(model)
    costs = SpecCosts(model, masks)
    maskable = {id(weight): name for name, weight in model.encoder.maskable().items()}
    full_names = {maskable.get(id(p)): n for n, p in model.named_parameters()}
    total = sum(w.numel() for w in model.encoder.maskable().values())
    for number, mask in enumerate(masks):
        for sparsity in rows:
            spec = SubnetSpec("x", "", space, mask, sparsity)
            cut = cut_state(dict(model.named_parameters()), spec)
            nonzero = sum(int((t != 0).sum()) for t in cut.values())
            assert costs.of("nonzero", number, sparsity) == nonzero
            assert costs.of("params", number, sparsity) == sum(
                tensor.numel() for tensor in cut.values()
            )
            assert costs.of("bytes", number, sparsity) == _packed(model, spec)
            if space.granularity == "block":
                continue  # the cut's blocks have other numbers
            left = sum(
                int((cut[full_names[name]] != 0).sum())
                for name in space.weights
                if full_names[name] in cut
            )
            assert costs.of("sparsity", number, sparsity) == left / total


def _packed(model, spec):
    """Bytes, counted on the deployed tensors under their names."""
    tensors = cut_state(dict(model.named_parameters()), spec)
    unmasked = dataclasses.replace(spec, sparsity=())
    buffers = cut_state(dict(model.named_buffers()), unmasked)

    class Deployed:
        def named_parameters(self):
            return tensors.items()

        def buffers(self):
            return buffers.values()

    return count_packed_bytes(Deployed(), spec.space.pattern)


def test_masking_saves_bytes_only_where_packing_is_smaller(sparse_model):
    model = sparse_model("unstructured")
    weights = len(model.encoder.space.weights)
    costs = SpecCosts(model, [(True,) * 12])
    dense = costs.of("bytes", 0, ())
    # a sixth per value is spent on columns at a third of zeros
    assert costs.of("bytes", 0, (0.1,) * weights) == dense
    assert costs.of("bytes", 0, (0.9,) * weights) < dense


@pytest.mark.parametrize("rel_pos_type", ["latest", "legacy"])
def test_macs_skipped_are_those_that_a_layer_makes(sparse_model, rel_pos_type):
    from espnet_omnisparse.cost.count import count_macs

    # legacy positions have an attention of their own
    options = {"rel_pos_type": rel_pos_type}
    model = sparse_model("8x1", encoder=options).eval()
    masks = [(True,) * 12, (True, False, True, True) * 3]
    table = cost_table(model, "macs_10s")
    costs = SpecCosts(model, masks, {"macs_10s": table})
    assert costs.of("macs_10s", 0, ()) == count_macs(model, 20, 10)
    names = model.encoder.space.weights
    half = _half_of_the_macs(model)
    for index, name in enumerate(names):
        # a layer with half of its outputs makes half of its multiplications
        sparsity = tuple(0.5 * (i == index) for i in range(len(names)))
        saved = costs.of("macs_10s", 0, ()) - costs.of("macs_10s", 0, sparsity)
        assert saved == half[name], name
    without = costs.of("macs_10s", 1, ())
    all_half = costs.of("macs_10s", 1, (0.5,) * len(names))
    dropped = sum(half[n] for n in names if ".mhsa." not in n)
    assert without - all_half == dropped


def _half_of_the_macs(model):
    """Per weight, half of the multiplications that PyTorch counts in its layer."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            model.encoder(torch.zeros(1, 1000, 20), torch.tensor([1000]))
    counts = counter.get_flop_counts()
    modules = {id(getattr(m, "weight", None)): n for n, m in model.named_modules()}
    halves = {}
    for name, weight in model.encoder.maskable().items():
        layer = modules[id(weight)].removeprefix("encoder.")
        (key,) = (key for key in counts if key.endswith(layer))
        halves[name] = sum(counts[key].values()) // 4
    return halves


def test_latency_counts_branches_alone(sparse_model):
    model = sparse_model()
    table = CostTable("latency_ms", model.encoder.space, 2.0, [0.5] * 12, [0.0] * 12)
    mask = (True, True) + (False,) * 10
    costs = SpecCosts(model, [mask], {"latency_ms": table})
    weights = len(model.encoder.space.weights)
    assert costs.of("latency_ms", 0, (0.9,) * weights) == 3.0


def test_latencies_are_kept_for_the_net_they_were_measured_of(
    sparse_model, tmp_path, monkeypatch
):
    model = sparse_model()
    measured = []

    def measure(of, kind):
        rest = 2.0 + len(measured)  # no two measurements agree
        measured.append(kind)
        return CostTable(kind, of.encoder.space, rest, [0.5] * 12, [0.25] * 12)

    monkeypatch.setattr(run, "cost_table", measure)
    path = tmp_path / "latency.json"

    measure_once = CostTable("latency_ms", model.encoder.space, 0, [0.5] * 12, [0] * 12)

    def rest(mark):
        table = run._latencies(model, mark, path)
        assert table.units.tolist() == measure_once.units.tolist()
        return table.total

    first = rest("this")
    assert rest("this") == first and len(measured) == 1
    second = rest("another")
    assert second > first and len(measured) == 2
    for garbled in ("", "{}", '{"supernet": "another", "rest": 1}'):
        path.write_text(garbled)
        assert rest("another") > second
        assert rest("another") == rest("another")


def test_budgets_are_read():
    read = {
        "70%": ("sparsity", 0.3, "70pct"),
        "72.5%": ("sparsity", 0.275, "72p5pct"),
        "12M": ("nonzero", 12e6, "12M"),
        "1.5M": ("nonzero", 1.5e6, "1p5M"),
        "900k": ("nonzero", 9e5, "900k"),
        "8MB": ("bytes", 8e6, "8MB"),
        "700kB": ("bytes", 7e5, "700kB"),
        "2GMAC": ("macs_10s", 2e9, "2GMAC"),
        "300MMAC": ("macs_10s", 3e8, "300MMAC"),
        "40ms": ("latency_ms", 40.0, "40ms"),
    }
    for text, expected in read.items():
        budget = parse_budget(text)
        assert (budget.kind, budget.limit, budget.name) == expected


@pytest.mark.parametrize("text", ["", "70", "%", "100%", "0M", "-3M", "3 M", "3 MB!"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="--budgets: .* 70%, .* 12M .* 8MB"):
        parse_budget(text)


def test_impossible_budgets_name_the_nearest():
    with pytest.raises(UserError, match="95% cannot be met; the nearest .* is 89.98%"):
        parse_budget("95%").check(0.10019999, 1.0)
    with pytest.raises(UserError, match="1M cannot .* is 1.235M"):
        parse_budget("1M").check(1_234_567, 9e6)
    with pytest.raises(UserError, match="9.1MB is no less than the full net's 9MB"):
        parse_budget("9.1MB").check(1e6, 9.0004e6)
    with pytest.raises(UserError, match="only dropped branches"):
        parse_budget("4ms").check(5.0, 5.0)
    for budget in ("89.98%", "1.235M"):  # what a message names is accepted
        assert isinstance(parse_budget(budget), Budget)
    parse_budget("89.98%").check(0.10019999, 1.0)
    parse_budget("1.235M").check(1_234_567, 9e6)
