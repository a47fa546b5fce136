import copy
import itertools

import pytest
import torch
import yaml
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from helpers.encoders import ABSOLUTE, prunable
from helpers.tiny import FEATURES, WIDE

from espnet_omnisparse.core.branches import BRANCHES
from espnet_omnisparse.core.components import (
    narrowed,
    run_narrowed,
    run_scaled,
    scatter,
    select,
)
from espnet_omnisparse.core.layout import ASR_LAYOUT, space_of
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.supernet import Supernet

KEPT = [(0,), (3,), (0, 2), (1, 3), (1, 2, 3), (0, 1, 2, 3)]
NARROW = [kept for kept in KEPT if len(kept) < 4]
ATTENTIONS = {
    "latest": {},
    "legacy": {"rel_pos_type": "legacy"},
    "absolute": ABSOLUTE,
    "sdpa": {**ABSOLUTE, "use_sdpa": True},
    "relative-sdpa": {"use_sdpa": True},
}


def module_of(branch, number=0, **conf):
    encoder = prunable(**{**WIDE, "attention_dropout_rate": 0.0, **conf}).eval()
    return getattr(encoder.encoders[number], ASR_LAYOUT.parts[branch][1])


def inputs_of(branch, positions=17, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 24, generator=generator).to(dtype)
    if branch != "mhsa":
        return (x,)
    mask = torch.ones(2, 1, 9, dtype=torch.bool)
    mask[1, :, 7:] = False
    embedding = torch.randn(1, positions, 24, generator=generator).to(dtype)
    return (x, x, x, *((embedding,) if positions else ()), mask)


def channels(kept, width):
    return [width * part + channel for part in kept for channel in range(width)]


def masked_output(branch, module, kept, inputs):
    """The module's output with its dropped hidden units set to zero, nothing cut."""
    if branch == "mhsa":
        # a head whose values are zero adds nothing
        keep = torch.zeros(24, dtype=inputs[0].dtype)
        keep[channels(kept, 6)] = 1.0
        handle = module.linear_v.register_forward_hook(lambda _, __, out: out * keep)
    else:
        keep = torch.zeros(40, dtype=inputs[0].dtype)
        keep[channels(kept, 10)] = 1.0
        handle = module.w_2.register_forward_pre_hook(lambda _, args: args[0] * keep)
    try:
        return module(*inputs)
    finally:
        handle.remove()


# tensors


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("branch", ["ffn1", "mhsa", "ffn2"])
def test_scatter_puts_back_what_select_takes(branch, kept):
    divided = []
    for name, tensor in module_of(branch).state_dict().items():
        small = select(branch, name, tensor, kept, of=4)
        whole = scatter(branch, name, small, kept, of=4)
        assert whole.shape == tensor.shape
        assert torch.equal(select(branch, name, whole, kept, of=4), small)
        assert ((whole == tensor) | (whole == 0)).all()
        assert int(whole.count_nonzero()) == small.numel()
        if small.shape != tensor.shape:
            divided.append(name)
            assert small.numel() * 4 == tensor.numel() * len(kept)
    names = {
        "mhsa": [f"linear_{x}.{y}" for x in "qkv" for y in ("bias", "weight")]
        + ["linear_out.weight", "linear_pos.weight", "pos_bias_u", "pos_bias_v"],
    }.get(branch, ["w_1.bias", "w_1.weight", "w_2.weight"])
    assert sorted(divided) == (sorted(names) if len(kept) < 4 else [])


def test_a_conv_is_one_part():
    for name, tensor in module_of("conv").state_dict().items():
        assert select("conv", name, tensor, (0,), of=1) is tensor
        assert scatter("conv", name, tensor, (0,), of=1) is tensor


# narrowed computation


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_a_chunk_is_the_same_hidden_units_in_both_weights(kept):
    module, (x,) = module_of("ffn1"), inputs_of("ffn1")
    expected = module.w_2.bias.expand(2, 9, 24).clone()
    for unit in channels(kept, 10):
        hidden = x @ module.w_1.weight[unit] + module.w_1.bias[unit]
        column = module.w_2.weight[:, unit]
        expected = expected + module.activation(hidden)[..., None] * column
    found = run_narrowed("ffn1", module, kept, 4, (x,))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_a_head_is_the_same_channels_in_all_projections(kept):
    module = module_of("mhsa", **ABSOLUTE)
    inputs = inputs_of("mhsa", positions=0)
    x, mask = inputs[0], inputs[-1]
    expected = module.linear_out.bias.expand(2, 9, 24).clone()
    for head in kept:
        rows = channels([head], 6)
        query, key, value = (
            x @ getattr(module, name).weight[rows].T + getattr(module, name).bias[rows]
            for name in ("linear_q", "linear_k", "linear_v")
        )
        scores = (query @ key.mT / 6**0.5).masked_fill(~mask, -torch.inf)
        expected = expected + (
            scores.softmax(-1) @ value @ module.linear_out.weight[:, rows].T
        )
    found = run_narrowed("mhsa", module, kept, 4, inputs)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("conf", ATTENTIONS.values(), ids=ATTENTIONS.keys())
@pytest.mark.parametrize("kept", NARROW, ids=str)
def test_every_attention_runs_with_some_of_its_heads(conf, kept):
    module = module_of("mhsa", **conf)
    positions = 0 if "selfattention_layer_type" in conf else 17
    inputs = inputs_of("mhsa", 9 if "rel_pos_type" in conf else positions)
    expected = masked_output("mhsa", module, kept, inputs)
    found = run_narrowed("mhsa", module, kept, 4, inputs)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, module(*inputs), atol=1e-2)


@pytest.mark.parametrize("kept", NARROW, ids=str)
@pytest.mark.parametrize("branch", ["ffn1", "mhsa"])
def test_gradients_reach_exactly_the_kept_parts(branch, kept):
    def gradients(run):
        module = module_of(branch).double().train()
        inputs = inputs_of(branch, dtype=torch.float64)
        inputs[0].requires_grad_()
        run(module, inputs).square().sum().backward()
        return {n: p.grad for n, p in module.named_parameters()}, inputs[0].grad

    found, found_input = gradients(lambda m, i: run_narrowed(branch, m, kept, 4, i))
    expected, expected_input = gradients(lambda m, i: masked_output(branch, m, kept, i))
    assert torch.allclose(found_input, expected_input)
    for name, gradient in found.items():
        small = select(branch, name, gradient, kept, of=4)
        if name == "linear_k.bias":  # moves all scores of a frame alike
            assert small.abs().max() < 1e-9
            continue
        assert torch.allclose(small, select(branch, name, expected[name], kept, of=4))
        assert (small != 0).any()
        # what is dropped gets none, however much the masked net computed in vain
        assert torch.equal(scatter(branch, name, small, kept, of=4), gradient)


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("branch", ["ffn1", "mhsa"])
def test_soft_gates_of_zeros_and_ones_are_a_hard_choice(branch, kept):
    module, inputs = module_of(branch), inputs_of(branch)
    gates = torch.tensor([float(part in kept) for part in range(4)])
    expected = run_narrowed(branch, module, kept, 4, inputs)
    assert torch.allclose(
        run_scaled(branch, module, gates, inputs), expected, atol=1e-5
    )


@pytest.mark.parametrize("branch", ["ffn2", "mhsa"])
def test_a_soft_gate_scales_its_part_and_the_most_open_one_the_bias(branch):
    module, inputs = module_of(branch), inputs_of(branch)
    bias = (module.linear_out if branch == "mhsa" else module.w_2).bias
    gates = [0.2, 0.9, 0.0, 1.3]
    expected = 1.3 * bias
    for part, gate in enumerate(gates):
        alone = masked_output(branch, module, (part,), inputs) - bias
        expected = expected + gate * alone
    found = run_scaled(branch, module, torch.tensor(gates), inputs)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("branch", ["ffn2", "mhsa"])
def test_gradients_of_soft_gates_equal_finite_differences(branch):
    module = module_of(branch).double()
    inputs = inputs_of(branch, dtype=torch.float64)
    gates = torch.tensor([0.2, 0.9, 0.5, 1.3], dtype=torch.float64, requires_grad=True)

    def value(gates):
        return run_scaled(branch, module, gates, inputs).square().sum()

    assert torch.autograd.gradcheck(value, gates)
    value(gates).backward()
    assert gates.grad.abs().min() > 1e-3
    weights = dict(module.named_parameters())
    assert all(weight.grad is not None for weight in weights.values())


def test_dropout_of_a_narrowed_ffn_shrinks_with_its_kept_fraction():
    module = module_of("ffn1", dropout_rate=0.4).train()
    # every hidden unit is one, and an output is a hidden unit
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(module.w_1.bias)
    module.activation = torch.nn.Identity()
    units = channels((1, 3), 10)
    module.w_2.weight.data[torch.arange(20), torch.tensor(units)] = 1.0
    x = torch.zeros(20, 500, 24)
    out = run_narrowed("ffn1", module, (1, 3), 4, (x,))[..., :20]
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    kept = out[out != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / 0.8))
    module.eval()
    assert (run_narrowed("ffn1", module, (1, 3), 4, (x,))[..., :20] == 1).all()


def snapshot(module):
    """Everything that a call must leave as it was, tensors by identity."""
    tensors = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    return (
        {name: (id(tensor), tensor._version) for name, tensor in tensors.items()},
        {name: id(child) for name, child in module.named_modules()},
        [child.training for child in module.modules()],
        getattr(module, "h", None),
        [child.p for child in module.modules() if isinstance(child, torch.nn.Dropout)],
        {name for name in vars(module) if name != "attn"},
    )


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("branch", ["ffn1", "mhsa"])
def test_a_call_leaves_the_module_as_it_was_even_if_it_fails(branch, train):
    module = module_of(branch, dropout_rate=0.4).train(train)
    inputs = inputs_of(branch)
    before, whole = snapshot(module), module.eval()(*inputs)
    module.train(train)
    gates = torch.rand(4)
    run_narrowed(branch, module, (0, 2), 4, inputs)
    run_scaled(branch, module, gates, inputs)
    assert snapshot(module) == before
    wrong = (inputs[0][..., :5], *inputs[1:])
    with pytest.raises(RuntimeError):
        run_narrowed(branch, module, (0, 2), 4, wrong)
    with pytest.raises(RuntimeError):
        run_scaled(branch, module, gates, wrong)
    assert snapshot(module) == before
    assert torch.equal(module.eval()(*inputs), whole)


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("branch", ["ffn1", "mhsa"])
def test_a_narrowed_module_is_its_own(branch, count):
    module, inputs = module_of(branch, dropout_rate=0.4), inputs_of(branch)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    expected = run_narrowed(branch, module, range(count), 4, inputs)
    small = narrowed(branch, module, count, 4)
    assert torch.allclose(small(*inputs), expected, atol=1e-6)
    for name, parameter in small.named_parameters():
        assert isinstance(parameter, torch.nn.Parameter) and parameter.is_leaf
        cut = select(branch, name, before[name], range(count), of=4)
        assert torch.equal(parameter, cut)
        # and no larger one behind it
        assert parameter.untyped_storage().nbytes() == 4 * parameter.numel()
        parameter.data.zero_()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    linears = [m for m in small.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == (5 if branch == "mhsa" else 2)
    for linear in linears:
        assert linear.weight.shape == (linear.out_features, linear.in_features)
    if branch == "mhsa":
        assert (small.h, small.d_k, module.h) == (count, 6, 4)
    else:
        assert small.dropout.p == pytest.approx(0.1 * count)
        assert module.dropout.p == 0.4


# the whole encoder

COMPONENT_MASKS = {
    # ffn1 x4, heads x4, conv, ffn2 x4 of each of three blocks
    "scattered": "1010 0101 1 0001  0100 1110 0 1111  1111 1111 1 0110",
    "empty-block": "0110 1000 0 1001  0000 0000 0 0000  0000 0011 1 0000",
    "one-part": "0000 0000 0 0000  0000 0010 0 0000  0000 0000 0 0000",
    "whole-branches": "1111 0000 1 1111  0000 1111 0 1111  1111 1111 0 0000",
    "full": "1111 1111 1 1111" * 3,
}
MASKS = {
    name: tuple(digit == "1" for digit in digits.replace(" ", ""))
    for name, digits in COMPONENT_MASKS.items()
}


@pytest.fixture
def supernet(tiny_config, build):
    """A component supernet's configuration, its model, and a spec of it."""

    def make(mask, encoder=None, **options):
        encoder = {**WIDE, **(encoder or {})}
        config = tiny_config(granularity="component", encoder=encoder, **options)
        model = build(config, update=60)
        mark = fingerprint(model.state_dict(), config["token_list"])
        space = SearchSpace(3, "component", heads=4)
        assert model.encoder.space == space
        return config, model, SubnetSpec("small", mark, space, MASKS[mask])

    return make


def soft(mask):
    return tuple(torch.tensor(float(keep)) for keep in mask)


OPTIONS = {
    **ATTENTIONS,
    "conv1d": {"positionwise_layer_type": "conv1d"},
    "conv1d-linear": {"positionwise_layer_type": "conv1d-linear"},
}
VARIANTS = [("latest", name) for name in MASKS]
VARIANTS += [(options, "scattered") for options in OPTIONS]


@pytest.mark.parametrize("conv_norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("options, mask", VARIANTS)
@torch.no_grad()
def test_masked_soft_and_extracted_components_agree(
    supernet, batch, options, mask, conv_norm
):
    config, model, spec = supernet(mask, OPTIONS[options], conv_norm=conv_norm)
    feats = batch["speech"], batch["speech_lengths"]
    expected = model.encoder(*feats, gates=soft(spec.mask))[0]
    masked = model.encoder(*feats, gates=spec.gates())[0]
    assert torch.allclose(masked, expected, atol=1e-5, rtol=0)
    if not spec.is_full:
        assert not torch.allclose(masked, model.encoder(*feats)[0], atol=1e-2)
    small = family.build(*family.cut(config, model.state_dict(), spec))
    assert torch.allclose(small.encoder(*feats)[0], expected, atol=1e-5, rtol=0)
    if conv_norm == "batch_norm":
        stock_config, state = family.cut(config, model.state_dict(), spec, stock=True)
        assert stock_config["encoder"] == "conformer"
        # ESPnet's own class, without ours
        stock = ConformerEncoder(FEATURES, **stock_config["encoder_conf"]).eval()
        names = [name for name in state if name.startswith("encoder.")]
        stock.load_state_dict({n.removeprefix("encoder."): state[n] for n in names})
        assert torch.allclose(stock(*feats)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", MASKS)
def test_exactly_the_dropped_components_are_gone(supernet, mask):
    config, model, spec = supernet(mask, conv_norm="batch_norm")
    small = family.build(*family.cut(config, model.state_dict(), spec))
    zeroed = family.build(*family.cut(config, model.state_dict(), spec, stock=True))
    # a chunk: 10 rows and biases, 10 columns; a head: 6 of 4 projections and of the
    # output, 3 biases, and two positional ones
    part = {"ffn1": 490, "ffn2": 490, "mhsa": 750, "conv": 0}
    once = {"ffn1": 24 + 48, "ffn2": 24 + 48, "mhsa": 24 + 48}
    conv = 48 + (24 * 48 + 48) + (24 * 7 + 24) + 48 + (24 * 24 + 24)
    blocks = sum(
        conv if branch == "conv" else once[branch] + len(parts) * part[branch]
        for row in spec.kept
        for branch, parts in row.items()
    )
    outside = sum(
        p.numel()
        for name, p in [
            *model.encoder.named_parameters(),
            *model.ctc.named_parameters(),
        ]
        if "encoders." not in name or "norm_final" in name
    )
    assert sum(p.numel() for p in small.parameters()) == blocks + outside
    counts = [
        sum(int(p.count_nonzero()) for p in m.parameters()) for m in (small, zeroed)
    ]
    assert counts[0] == counts[1]


def test_a_size_of_components_is_built_from_its_counts(supernet):
    config, model, spec = supernet("scattered")
    small_config, state = family.cut(config, model.state_dict(), spec)
    assert small_config["encoder_conf"]["kept"] == [
        {"ffn1": 2, "mhsa": 2, "conv": 1, "ffn2": 1},
        {"ffn1": 1, "mhsa": 3, "ffn2": 4},
        {"ffn1": 4, "mhsa": 4, "conv": 1, "ffn2": 2},
    ]
    assert "granularity" not in small_config["encoder_conf"]
    block = family.build(small_config, state).encoder.encoders[0]
    assert block.feed_forward_macaron.w_1.weight.shape == (20, 24)
    assert block.feed_forward.w_2.weight.shape == (24, 10)
    assert block.self_attn.linear_out.weight.shape == (24, 12)


def test_a_dropped_part_costs_no_gradient_in_the_whole_encoder(supernet, batch):
    _, model, spec = supernet("scattered")
    feats = batch["speech"], batch["speech_lengths"]
    model.encoder(*feats, gates=spec.gates())[0].square().sum().backward()
    for number, row in enumerate(spec.kept):
        for branch in BRANCHES:
            module = getattr(
                model.encoder.encoders[number], ASR_LAYOUT.parts[branch][1]
            )
            for name, parameter in module.named_parameters():
                if branch not in row:
                    assert parameter.grad is None
                    continue
                parts = spec.space.parts[branch]
                kept = select(branch, name, parameter.grad, row[branch], parts)
                whole = scatter(branch, name, kept, row[branch], parts)
                assert torch.equal(whole, parameter.grad)


def test_gates_per_sequence_gate_a_branch_as_a_whole(supernet, batch):
    _, model, spec = supernet("full", conv_norm="layer_norm")
    feats = batch["speech"], batch["speech_lengths"]
    gate = torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None, None]
    gates = [1.0] * len(spec.space)
    gates[4:8] = [gate] * 4
    with torch.no_grad():
        found = model.encoder(*feats, gates=gates)[0]
        gates[4:8] = [None] * 4
        without = model.encoder(*feats, gates=gates)[0]
        expected = torch.where(gate > 0, model.encoder(*feats)[0], without)
    assert torch.allclose(found, expected, atol=1e-6)


REFUSED = [
    ({"linear_units": 42}, "linear_units divisible by 4"),
    (
        {"linear_units": 42, "positionwise_layer_type": "conv1d"},
        "linear_units divisible by 4",
    ),
]


@pytest.mark.parametrize("conf, sentence", REFUSED)
def test_what_cannot_be_divided_is_refused(conf, sentence):
    with pytest.raises(UserError, match=sentence):
        prunable(granularity="component", **conf)
    assert prunable(granularity="branch", **conf)


def test_layer_dropout_drops_whole_branches_of_which_the_smallest_size_has_nothing():
    space = SearchSpace(2, "component", heads=2)
    conf = {"method": "simple_topk", "sizes": {"small": 3}, "step1": 1}
    net = Supernet(SupernetConfig.read({**conf, "layer_dropout_step2": 0.4}), space)
    net.set_run_length(10)
    net.update = 1
    kept = [space.units.index(unit) for unit in ("0.ffn1.2", "1.mhsa.0", "1.mhsa.1")]
    net.selection.scores.data[kept] = 1.0
    rates = net.sample_subnets()[0].layer_dropout
    spared = {"0.ffn1", "1.mhsa"}
    for unit, rate in zip(space.units, rates.tolist(), strict=True):
        branch = unit.rpartition(".")[0]
        assert rate == pytest.approx(0.0 if branch in spared else 0.4), unit


def test_layer_dropout_of_components_drops_a_branch_in_one_piece(tiny_model, batch):
    supernet = {"sizes": {"small": 5, "medium": 9}, "layer_dropout_step2": 0.5}
    model = tiny_model(update=60, granularity="component", supernet=supernet).train()
    found = []
    for block in model.encoder.encoders:
        run = block.forward
        block.forward = lambda frames, gates, masked, run=run: (
            found.append(gates) or run(frames, gates, masked)
        )
    assert model(**batch)[0].isfinite()
    full = list(itertools.chain(*found[:3]))  # the full net comes first
    assert len(full) == 12 and not any(isinstance(gate, tuple) for gate in full)
    mask = model.supernet.selection.masks()["small"]
    touched = {model.encoder.space.groups[unit] for unit in mask.nonzero()}
    for group, gate in enumerate(full):
        assert isinstance(gate, torch.Tensor) == (group not in touched)


# specs

SPACE = SearchSpace(2, "component", heads=3)
SPEC_MASK = "1001 011 1 0000 0000 100 0 1111".replace(" ", "")


@pytest.fixture
def spec():
    mask = tuple(digit == "1" for digit in SPEC_MASK)
    return SubnetSpec("small", "0123abcd", SPACE, mask)


@pytest.fixture
def edit(spec, tmp_path):
    """Saves the spec, changes its YAML and loads it again."""

    def reload(change):
        path = tmp_path / "spec.yaml"
        write_spec(spec, path)
        value = yaml.safe_load(path.read_text())
        change(value)
        path.write_text(yaml.safe_dump(value))
        return read_spec(path)

    return reload


def test_a_component_spec_survives_yaml(spec, tmp_path):
    assert spec.kept == (
        {"ffn1": (0, 3), "mhsa": (1, 2), "conv": (0,)},
        {"mhsa": (0,), "ffn2": (0, 1, 2, 3)},
    )
    assert spec.counts == (10, 24, "components")
    write_spec(spec, tmp_path / "spec.yaml")
    again = read_spec(tmp_path / "spec.yaml")
    assert again == spec and hash(again) == hash(spec)
    assert again.space.heads == 3


def put(**changes):
    return lambda value: value.update(changes)


def row(number, **branches):
    return lambda value: value["kept"][number].update(branches)


BAD_EDITS = [
    (row(0, ffn1=[0, 4]), r"block 0 keeps parts \[0, 4\] of ffn1; name each of 0 to 3"),
    (row(0, ffn1=[-1, 0]), r"block 0 keeps parts \[-1, 0\] of ffn1"),
    (row(1, mhsa=[3]), r"block 1 keeps parts \[3\] of mhsa; name each of 0 to 2"),
    (row(0, conv=[1]), r"block 0 keeps parts \[1\] of conv; name each of 0 to 0"),
    (row(0, ffn1=[0, 0]), r"parts \[0, 0\] of ffn1; .* at most once"),
    (row(0, ffn1=[]), r"parts \[\] of ffn1; .* at least one"),
    (row(0, ffn1=None), "parts None of ffn1; .* at least one"),
    (row(0, ffn1=2), "parts 2 of ffn1"),
    (row(0, ffn1=[[0]]), r"parts \[\[0\]\] of ffn1"),
    (row(0, ffn1="01"), "parts 01 of ffn1"),
    (row(0, ffn1=["0"]), r"parts \['0'\] of ffn1"),
    (row(0, ffn3=[0]), "block 0 keeps an unknown branch 'ffn3'"),
    (row(0, ffn1=[0, 1, 3]), "lists 11 of 24 components but declares {'kept': 10"),
    (put(components={"kept": 11, "of": 24}), "lists 10 of 24 components but declares"),
    (put(components={"kept": 10, "of": 23}), "2 blocks cannot have 23 components"),
    (put(components={"kept": 10, "of": 18}), "2 blocks cannot have 18 components"),
    (put(components={"kept": 10}), "2 blocks cannot have None components"),
    (put(components=10), "2 blocks cannot have None components"),
    (put(components={"kept": 10, "of": 22}), r"parts \[1, 2\] of mhsa; .* 0 to 1"),
    (put(kept=[]), "0 blocks cannot have 24 components"),
    (put(kept=[["ffn1"], ["conv"]]), "kept must list"),
    (put(kept={"ffn1": [0]}), "kept must list"),
    (put(granularity="branch"), "needs exactly the keys branches"),
    (put(branches={"kept": 10, "of": 24}), "needs exactly the keys components"),
    (put(format=2), "spec format 2"),
]


@pytest.mark.parametrize("change, sentence", BAD_EDITS, ids=[s for _, s in BAD_EDITS])
def test_a_bad_edit_of_a_component_spec_gets_its_sentence(edit, change, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        edit(change)
    assert "\n" not in str(error.value)


def test_an_edit_that_agrees_with_itself_is_read(edit):
    def change(value):
        value["kept"][0] = {"conv": [0], "ffn1": [3, 1, 0]}
        value["components"]["kept"] = 9

    assert edit(change).kept[0] == {"ffn1": (0, 1, 3), "conv": (0,)}
    more_heads = edit(put(components={"kept": 10, "of": 26}))
    assert more_heads.space.heads == 4


def test_a_spec_of_other_heads_is_refused(spec):
    spec.check_space(SPACE)
    with pytest.raises(UserError, match=r"\(24 units\), but its supernet .* \(26\)"):
        spec.check_space(SearchSpace(2, "component", heads=4))
    branches = SubnetSpec("small", "0", SearchSpace(2, heads=3), (True,) * 8)
    branches.check_space(SearchSpace(2, heads=4))  # have no heads to differ in


def test_a_spec_of_other_heads_is_not_cut(supernet):
    config, model, spec = supernet("scattered")
    space = SearchSpace(3, "component", heads=2)
    other = SubnetSpec("small", spec.supernet, space, (True,) * len(space))
    with pytest.raises(UserError, match="select the sizes again"):
        family.cut(config, model.state_dict(), other)


def test_cutting_leaves_the_supernet_alone(supernet):
    config, model, spec = supernet("scattered", conv_norm="batch_norm")
    state = model.state_dict()
    before = copy.deepcopy(state), copy.deepcopy(config)
    for stock in (False, True):
        _, small = family.cut(config, state, spec, stock=stock)
        assert small.keys() <= state.keys()
    assert config == before[1]
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in state.items())
    assert space_of(config, state) == spec.space
