"""What an E-Branchformer has beside a Conformer: a cgMLP of parts, and a merge."""

import copy
import itertools

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from helpers.encoders import FFNS, SIDES, randomize
from helpers.tiny import FEATURES, asr_config, build

from espnet_omnisparse.core.branches import MERGE
from espnet_omnisparse.core.components import (
    Masked,
    narrowed,
    run_narrowed,
    run_scaled,
    scatter,
    select,
)
from espnet_omnisparse.core.layout import E_BRANCHFORMER_LAYOUT, space_of
from espnet_omnisparse.core.mask import Pattern, group_ranks, weight_mask
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.cost.count import count_macs, count_packed_bytes
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment
from espnet_omnisparse.extract.config import cut_config
from espnet_omnisparse.extract.cut import cut_state
from espnet_omnisparse.extract.forms import STOCK_ZEROED, form_of
from espnet_omnisparse.search.run import _genes
from espnet_omnisparse.search.spec_costs import SpecCosts
from espnet_omnisparse.selection.magnitude import unit_magnitudes

WIDTH, GATED, FRAMES = 10, 12, 9
KEPT = [(0,), (3,), (0, 2), (1, 3), (1, 2, 3), (0, 1, 2, 3)]
NARROW = [kept for kept in KEPT if len(kept) < 4]
LINEAR = pytest.mark.parametrize("linear", [False, True], ids=["plain", "linear"])
OPTIONS = {**SIDES, **FFNS}
COMPONENTS = {**OPTIONS, "granularity": "component"}


def cgmlp(linear=False, units=2 * GATED, dropout=0.0):
    torch.manual_seed(0)
    module = ConvolutionalGatingMLP(WIDTH, units, 5, dropout, linear, "identity")
    return randomize(module).eval()


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, FRAMES, WIDTH, generator=generator).to(dtype)
    mask = torch.ones(2, 1, FRAMES, dtype=torch.bool)
    mask[1, :, 6:] = False
    return x, mask


def channels(kept):
    """The gated channels of parts of three."""
    return [3 * part + channel for part in kept for channel in range(3)]


def by_hand(module, kept):
    """ESPnet's module of the kept channels alone, filled one tensor after another."""
    ours, both = channels(kept), channels(kept) + [GATED + c for c in channels(kept)]
    small = cgmlp(module.csgu.linear is not None, 2 * len(ours))
    rows = {
        "channel_proj1.0.weight": module.channel_proj1[0].weight[both],
        "channel_proj1.0.bias": module.channel_proj1[0].bias[both],
        "csgu.norm.weight": module.csgu.norm.weight[ours],
        "csgu.norm.bias": module.csgu.norm.bias[ours],
        "csgu.conv.weight": module.csgu.conv.weight[ours],
        "csgu.conv.bias": module.csgu.conv.bias[ours],
        "channel_proj2.weight": module.channel_proj2.weight[:, ours],
        "channel_proj2.bias": module.channel_proj2.bias,
    }
    if module.csgu.linear is not None:
        rows["csgu.linear.weight"] = module.csgu.linear.weight[ours][:, ours]
        rows["csgu.linear.bias"] = module.csgu.linear.bias[ours]
    small.load_state_dict(rows, strict=True)
    return small


# a cgMLP in parts


@LINEAR
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_parts_of_a_cgmlp_are_espnets_own_of_fewer_units(kept, linear):
    module = cgmlp(linear)
    expected = by_hand(module, kept)(*inputs())
    assert torch.allclose(
        run_narrowed("cgmlp", module, kept, 4, inputs()), expected, atol=1e-6
    )
    gates = torch.tensor([float(part in kept) for part in range(4)])
    found = run_scaled("cgmlp", module, gates, inputs())
    assert torch.allclose(found, expected, atol=1e-5)


@LINEAR
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_scatter_puts_back_what_select_takes(kept, linear):
    module = cgmlp(linear)
    small = by_hand(module, kept).state_dict()
    for name, tensor in module.state_dict().items():
        assert torch.equal(select("cgmlp", name, tensor, kept, of=4), small[name])
        whole = scatter("cgmlp", name, small[name], kept, of=4)
        assert whole.shape == tensor.shape
        assert ((whole == tensor) | (whole == 0)).all()
        assert int(whole.count_nonzero()) == small[name].numel()


@LINEAR
@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_narrowed_cgmlp_is_its_own(count, linear):
    module = cgmlp(linear)
    before = copy.deepcopy(module.state_dict())
    small = narrowed("cgmlp", module, count, 4)
    expected = by_hand(module, range(count))
    assert str(small) == str(expected)
    assert torch.allclose(small(*inputs()), expected(*inputs()), atol=1e-6)
    for parameter in small.parameters():
        assert isinstance(parameter, torch.nn.Parameter) and parameter.is_leaf
        parameter.data.zero_()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@LINEAR
def test_masked_weights_of_a_narrowed_cgmlp(linear):
    module, kept = cgmlp(linear), (1, 2)
    masked, weights = copy.deepcopy(module), {}
    for name, weight in masked.named_parameters():
        if weight.dim() == 2:
            ranks = group_ranks(weight, Pattern(rows=4))
            mask = weight_mask(ranks, weight.shape, 0.5, Pattern(rows=4))
            weight.data *= mask
            weights[name] = weight
    assert len(weights) == 2 + linear
    expected = by_hand(masked, kept)(*inputs())
    found = run_narrowed("cgmlp", module, kept, 4, inputs(), Masked(weights))
    assert torch.allclose(found, expected, atol=1e-6)
    gates = torch.tensor([0.0, 1.0, 1.0, 0.0])
    found = run_scaled("cgmlp", module, gates, inputs(), Masked(weights))
    assert torch.allclose(found, expected, atol=1e-5)


@LINEAR
@pytest.mark.parametrize("kept", NARROW, ids=str)
def test_gradients_are_those_of_the_narrower_cgmlp(kept, linear):
    module = cgmlp(linear).double()
    small = by_hand(module, kept).double()
    small(*inputs(torch.float64)).square().sum().backward()
    run_narrowed(
        "cgmlp", module, kept, 4, inputs(torch.float64)
    ).square().sum().backward()
    expected = {name: p.grad for name, p in small.named_parameters()}
    for name, parameter in module.named_parameters():
        whole = scatter("cgmlp", name, expected[name], kept, of=4)
        assert torch.allclose(parameter.grad, whole)


@LINEAR
def test_gradients_of_soft_gates_equal_finite_differences(linear):
    module = cgmlp(linear).double()
    gates = torch.tensor([0.2, 0.9, 0.5, 1.3], dtype=torch.float64, requires_grad=True)

    def value(gates):
        return run_scaled("cgmlp", module, gates, inputs(torch.float64)).square().sum()

    assert torch.autograd.gradcheck(value, gates)
    value(gates).backward()
    assert gates.grad.abs().min() > 1e-3
    assert all(p.grad.abs().max() > 0 for p in module.parameters())


@LINEAR
def test_a_closed_cgmlp_still_has_a_gradient_for_its_gates(linear):
    module, gates = cgmlp(linear), torch.zeros(4, requires_grad=True)
    out = run_scaled("cgmlp", module, gates, inputs())
    assert (out == 0).all()
    out.sum().backward()
    assert gates.grad.isfinite().all() and (gates.grad != 0).all()
    assert gates.grad.abs().max() < 1e3


@LINEAR
def test_a_call_leaves_the_cgmlp_as_it_was(linear):
    module = cgmlp(linear)

    def seen():
        return (
            {name: (id(p), p._version) for name, p in module.named_parameters()},
            {name: id(child) for name, child in module.named_modules()},
            str(module),
        )

    before, whole = seen(), module(*inputs())
    run_narrowed("cgmlp", module, (0, 2), 4, inputs())
    run_scaled("cgmlp", module, torch.rand(4), inputs())
    wrong = inputs()[0][..., :5], inputs()[1]
    for run, how in ((run_narrowed, ((0, 2), 4)), (run_scaled, (torch.rand(4),))):
        with pytest.raises(RuntimeError):
            run("cgmlp", module, *how, wrong)
    assert seen() == before
    assert torch.equal(module(*inputs()), whole)


# the merge, and the whole encoder


@pytest.fixture
def feats():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 60, FEATURES, generator=generator), torch.tensor([60, 51, 40])


def config_of(encoder=None, supernet=None, axis="omni_sparse"):
    config = asr_config({}, supernet or {}, encoder=f"{axis}_e_branchformer")
    config["encoder_conf"] = {**OPTIONS, **(encoder or {})}
    return config


def drawn(space, seed):
    """Units to keep, and a sparsity of each weight."""
    generator = torch.Generator().manual_seed(seed)
    units = torch.rand(len(space), generator=generator) < 0.5
    levels = torch.randint(0, 4, (len(space.weights),), generator=generator)
    return tuple(units.tolist()), tuple(
        (0.0, 0.3, 0.5, 0.9)[n] for n in levels.tolist()
    )


@LINEAR
def test_every_linear_layer_of_a_block_is_maskable(linear):
    encoder = build(config_of({"use_linear_after_conv": linear})).encoder
    linears = [m for m in encoder.encoders.modules() if isinstance(m, torch.nn.Linear)]
    assert {id(one.weight) for one in linears} == {
        id(weight) for weight in encoder.maskable().values()
    }
    assert tuple(encoder.maskable()) == encoder.space.weights
    # two FFNs, five of an attention, a cgMLP, the merge
    assert len(linears) == 3 * (4 + 5 + 2 + linear + 1)


@LINEAR
def test_masks_on_all_of_a_block_are_zeros_in_espnets_own(linear, feats):
    options = {**OPTIONS, "use_linear_after_conv": linear}
    encoder = build(config_of(options)).encoder
    encoder.refresh_masks()
    _, sparsity = drawn(encoder.space, 3)
    assert len({*sparsity}) == 4
    stock = EBranchformerEncoder(FEATURES, **options).eval()
    stock.load_state_dict(encoder.state_dict(), strict=True)
    tensors = {id(p): name for name, p in encoder.named_parameters()}
    with torch.no_grad():
        pairs = zip(encoder.maskable().values(), sparsity, strict=True)
        for weight, share in pairs:
            ranks = group_ranks(weight, Pattern(rows=8))
            mask = weight_mask(ranks, weight.shape, share, Pattern(rows=8))
            stock.get_parameter(tensors[id(weight)]).mul_(mask)
    found, expected = encoder(*feats, sparsity=sparsity)[0], stock(*feats)[0]
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found, encoder(*feats)[0], atol=1e-2)
    # gradients too: those of the weights that are there, and none of the others
    found.square().sum().backward()
    expected.square().sum().backward()
    kept = encoder.kept_weights(sparsity)
    for name, weight in encoder.maskable().items():
        theirs = stock.get_parameter(tensors[id(weight)]).grad * kept[name]
        assert torch.allclose(weight.grad, theirs, atol=1e-4, rtol=1e-3), name
        assert weight.grad.abs().max() > 0


def test_a_side_that_is_dropped_takes_its_masked_columns_with_it(feats):
    config = config_of()
    model = build(config)
    space = model.encoder.space
    units = tuple(unit != "1.mhsa" for unit in space.units)
    shares = tuple(0.5 * (name == "1.merge.merge_proj") for name in space.weights)
    spec = SubnetSpec("s", "x", space, units, shares)
    assert spec.weights["1.merge.merge_proj"] == (1,)
    assert "1.mhsa.linear_q" not in spec.weights
    whole = model.encoder.encoders[1].merge_proj.weight
    ranks = group_ranks(whole, space.pattern)
    expected = whole * weight_mask(ranks, whole.shape, 0.5, space.pattern)
    cut = cut_state(model.state_dict(), spec)
    found = cut["encoder.encoders.1.merge_proj.weight"]
    assert torch.equal(found, expected[:, 16:])
    assert 0 < int(found.count_nonzero()) < found.numel()


@LINEAR
@pytest.mark.parametrize("granularity", ["branch", "component", "block"])
@pytest.mark.parametrize("pattern", ["8x1", "5x3", "n:4"])
def test_costs_are_those_of_the_tensors_that_extraction_writes(
    granularity, pattern, linear
):
    options = {
        "granularity": granularity,
        "pattern": pattern,
        "use_linear_after_conv": linear,
    }
    config = config_of(options, {"sizes": {"small": 1}})
    model = build(config)
    space = model.encoder.space
    draws = [drawn(space, seed) for seed in range(3)]
    draws = [one for one in draws if any(one[0])]
    table = cost_table(model, "macs_10s")
    costs = SpecCosts(model, [units for units, _ in draws], {"macs_10s": table})
    for number, (units, sparsity) in enumerate(draws):
        spec = SubnetSpec("s", "x", space, units, sparsity)
        small = experiment.build(cut_config(config, spec))
        small.load_state_dict(cut_state(model.state_dict(), spec), strict=True)
        parameters = list(small.parameters())
        assert costs.of("params", number, sparsity) == sum(
            p.numel() for p in parameters
        )
        assert costs.of("nonzero", number, sparsity) == sum(
            int(p.count_nonzero()) for p in parameters
        )
        assert costs.of("bytes", number, sparsity) == count_packed_bytes(
            small, space.pattern
        )
        assert costs.of("macs_10s", number, ()) == count_macs(small, FEATURES, 10)


def test_a_search_knows_which_weights_a_subnet_has():
    space = build(config_of(COMPONENTS)).encoder.space
    units, _ = drawn(space, 0)
    units = tuple(
        keep and not unit.startswith(("1.mhsa", "2.mhsa", "2.cgmlp"))
        for unit, keep in zip(space.units, units, strict=True)
    )
    (alive,) = _genes(space, [units], (0.0, 0.5)).alive
    found = dict(zip(space.weights, alive, strict=True))
    assert found["1.cgmlp.channel_proj2"] and found["1.merge.merge_proj"]
    assert not found["1.mhsa.linear_q"]
    assert not found["2.cgmlp.channel_proj2"] and not found["2.merge.merge_proj"]


@LINEAR
def test_magnitudes_of_a_cgmlps_parts(linear):
    encoder = build(config_of({**COMPONENTS, "use_linear_after_conv": linear})).encoder
    found = unit_magnitudes(encoder.state_dict(), encoder.space)
    for number, part in itertools.product(range(3), range(4)):
        module = encoder.encoders[number].cgmlp
        small = by_hand_of_block(module, part)
        values = torch.cat([weight.flatten() for weight in small])
        unit = encoder.space.units.index(f"{number}.cgmlp.{part}")
        assert found[unit] == pytest.approx(
            float(values.detach().square().mean().sqrt())
        )


def by_hand_of_block(module, part):
    """The weights of one part of three gated channels."""
    ours = channels([part])
    yield module.channel_proj1[0].weight[ours + [GATED + c for c in ours]]
    yield module.csgu.conv.weight[ours]
    if module.csgu.linear is not None:
        yield module.csgu.linear.weight[ours][:, ours]
    yield module.channel_proj2.weight[:, ours]


@LINEAR
def test_a_spec_survives_yaml(linear, tmp_path):
    config = config_of({**COMPONENTS, "use_linear_after_conv": linear})
    model = build(config)
    space = model.encoder.space
    assert space.gate_linear == linear
    assert space_of(config, model.state_dict()) == space
    spec = SubnetSpec("small", "x", space, *drawn(space, 1))
    write_spec(spec, tmp_path / "spec.yaml")
    assert read_spec(tmp_path / "spec.yaml") == spec


def test_a_wrong_gate_linear_in_a_spec_gets_its_sentence(tmp_path):
    spec = SubnetSpec("small", "x", SearchSpace(1, gate_linear=True), (True,) * 4)
    path = tmp_path / "spec.yaml"
    write_spec(spec, path)
    path.write_text(path.read_text().replace("gate_linear: true", "gate_linear: 3"))
    with pytest.raises(UserError, match="gate_linear must be true or false"):
        read_spec(path)


def test_a_merge_is_of_blocks_that_have_both_sides():
    branches = tuple(E_BRANCHFORMER_LAYOUT.parts)
    space = SearchSpace(1, pattern=Pattern(), branches=branches)
    assert list(space.slices) == ["ffn1", "mhsa", "cgmlp", MERGE, "ffn2"]
    assert "0.merge.merge_proj" in space.weights
    assert MERGE not in SearchSpace(1).slices


# refusals


@pytest.mark.parametrize("units", [12, 20])
def test_a_cgmlp_that_has_no_quarters_is_refused(units):
    with pytest.raises(UserError, match="cgmlp_linear_units divisible by 8"):
        build(config_of({**COMPONENTS, "cgmlp_linear_units": units}))
    assert build(config_of({"cgmlp_linear_units": units}))


def test_stock_espnet_has_no_cgmlp_of_some_channels(feats):
    config = config_of(COMPONENTS)
    model = build(config)
    model.encoder.refresh_masks()
    space = model.encoder.space
    lost = {"0.cgmlp.1"}
    units = tuple(unit not in lost for unit in space.units)
    spec = SubnetSpec("small", "x", space, units)
    with pytest.raises(UserError, match="some of a cgMLP's channels has no form"):
        form_of(config, spec, stock=True)
    # whole ones, with parts of others, and masks on all
    lost = {f"0.cgmlp.{part}" for part in range(4)} | {"1.mhsa.0", "2.ffn1.3"}
    units = tuple(unit not in lost for unit in space.units)
    spec = SubnetSpec("small", "x", space, units, drawn(space, 2)[1])
    form = form_of(config, spec, stock=True)
    assert form.name == STOCK_ZEROED
    state = model.state_dict()
    stock = experiment.build(form.config).eval()
    assert type(stock.encoder) is EBranchformerEncoder
    stock.load_state_dict(form.state(cut_state(state, spec), state, spec), strict=True)
    with torch.no_grad():
        expected = model.encoder(*feats, None, spec.gates(), spec.sparsity)[0]
        assert torch.allclose(stock.encoder(*feats)[0], expected, atol=2e-6, rtol=0)
