"""Every encoder of the task `asr` that can be pruned, against ESPnet's own."""

import copy

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from helpers.encoders import FFNS, PLAIN, SIDES, randomize
from helpers.tiny import FEATURES, asr_config, build

from espnet_omnisparse.core.layout import layout_in, layout_of, space_of
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.cost.count import count_macs
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment
from espnet_omnisparse.extract.config import cut_config
from espnet_omnisparse.extract.cut import cut_state
from espnet_omnisparse.extract.forms import STOCK, STOCK_ZEROED, form_of
from espnet_omnisparse.streaming.encoder import EncoderStream
from espnet_omnisparse.tasks import encoder_choices

ABSOLUTE = {"pos_enc_layer_type": "abs_pos", "attention_layer_type": "selfattn"}
CONVOLUTIONS = {
    "positionwise_layer_type": "conv1d",
    "positionwise_conv_kernel_size": 3,
}
#: name -> ESPnet's name of the encoder, its class, its options, branches of a block
KINDS = {
    "e_branchformer": (
        *("e_branchformer", EBranchformerEncoder, {**SIDES, **FFNS}),
        ("ffn1", "mhsa", "cgmlp", "ffn2"),
    ),
    "e_branchformer-one-ffn": (
        *("e_branchformer", EBranchformerEncoder, {**SIDES, "use_ffn": True}),
        ("mhsa", "cgmlp", "ffn2"),
    ),
    "e_branchformer-no-ffn": (
        *("e_branchformer", EBranchformerEncoder, SIDES),
        ("mhsa", "cgmlp"),
    ),
    "e_branchformer-absolute": (
        "e_branchformer",
        EBranchformerEncoder,
        {**SIDES, **FFNS, **ABSOLUTE, "use_linear_after_conv": True},
        ("ffn1", "mhsa", "cgmlp", "ffn2"),
    ),
    "transformer": ("transformer", TransformerEncoder, PLAIN, ("mhsa", "ffn2")),
    "transformer-conv1d": (
        "transformer",
        TransformerEncoder,
        {**PLAIN, **CONVOLUTIONS, "qk_norm": True},
        ("mhsa", "ffn2"),
    ),
    "conformer-one-ffn": (
        "conformer",
        ConformerEncoder,
        {
            **PLAIN,
            "macaron_style": False,
            "cnn_module_kernel": 7,
            "rel_pos_type": "latest",
        },
        ("mhsa", "conv", "ffn2"),
    ),
}
ALL = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def feats():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 60, FEATURES, generator=generator), torch.tensor([60, 51, 40])


def config_of(kind, axis="layer_prunable", encoder=None, supernet=None):
    name, _, options, branches = KINDS[kind]
    units = 3 * len(branches)
    sizes = {"sizes": {"small": units // 3, "medium": 2 * units // 3}}
    config = asr_config({}, {**sizes, **(supernet or {})}, encoder=f"{axis}_{name}")
    config["encoder_conf"] = copy.deepcopy({**options, **(encoder or {})})
    return config


def masks(space):
    """Subnets: scattered, without any side or branch in a block, full."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        mask = torch.rand(len(space), generator=generator) < 0.5
        mask[: len(space) // 3] = False
        yield tuple(mask.tolist())
    alternating = tuple(bool(number % 2) for number in range(len(space)))
    yield alternating
    yield tuple(not one for one in alternating)


@ALL
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_at_full_size_it_is_espnets_own(kind, train, feats):
    name, stock_class, options, branches = KINDS[kind]
    stock = randomize(stock_class(FEATURES, **options)).train(train)
    ours = encoder_choices.classes[f"layer_prunable_{name}"](FEATURES, **options)
    ours.train(train).load_state_dict(stock.state_dict(), strict=True)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert ours.space.branches == branches
    expected, lengths, _ = stock(*feats)
    for gates in (None, (1.0,) * len(ours.space)):
        encoded, own_lengths, _ = ours(*feats, gates=gates)
        assert torch.equal(own_lengths, lengths)
        assert torch.allclose(encoded, expected, atol=1e-6, rtol=0)


@ALL
@pytest.mark.parametrize("granularity", ["branch", "component", "block"])
def test_a_masked_net_is_the_extracted_net(kind, granularity, feats, tmp_path):
    conf = {"granularity": granularity, "pattern": "8x1"}
    size = {"block": {"sizes": {"small": 1}}}.get(granularity, {"sizes": {"small": 4}})
    config = config_of(kind, "omni_sparse", conf, size)
    model = build(config)
    state, space = model.state_dict(), model.encoder.space
    assert space_of(config, state) == space
    assert layout_of(config) == layout_in(state) == model.encoder.layout
    model.encoder.refresh_masks()
    for number, mask in enumerate(masks(space)):
        shares = tuple(0.1 * (n % 8) for n in range(len(space.weights)))
        spec = SubnetSpec(f"s{number}", "x", space, mask, shares)
        write_spec(spec, tmp_path / "spec.yaml")
        read = read_spec(tmp_path / "spec.yaml")
        assert read.kept == spec.kept and read.sparsities == spec.sparsities
        small = experiment.build(cut_config(config, spec))
        small.load_state_dict(cut_state(state, spec), strict=True)
        with torch.no_grad():
            expected, _, _ = model.encoder(
                *feats, gates=spec.gates(), sparsity=spec.sparsity
            )
            encoded, _, _ = small.eval().encoder(*feats)
        assert torch.allclose(encoded, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("axis", ["layer_prunable", "omni_sparse"])
@pytest.mark.parametrize("kind", ["e_branchformer", "transformer"])
def test_without_batch_norm_checkpoints_are_chosen_by_all_sizes(kind, axis, batch):
    conf = {"sizes": {"small": 4}}
    if axis == "omni_sparse":
        sparsity = {"final": 0.8, "ramp": 1}
        conf = {"method": "none", "sizes": {"small": {"sparsity": 0.8}}}
        conf["sparsity"] = sparsity
    pattern = {"pattern": "8x1"} if axis == "omni_sparse" else {}
    config = config_of(kind, axis, pattern, conf)
    _, stats, _ = build(config, update=90)(**batch)
    losses = [stats[f"loss_{size}"].item() for size in ("full", "small")]
    assert losses[0] != losses[1]
    assert stats["loss_sizes"].item() == pytest.approx(sum(losses) / 2, rel=1e-6)


@ALL
def test_gates_of_zero_and_one_are_those_of_a_mask(kind, feats):
    for granularity in ("branch", "component"):
        sizes = {"sizes": {"small": 4}}
        config = config_of(kind, encoder={"granularity": granularity}, supernet=sizes)
        model = build(config)
        for mask in masks(model.encoder.space):
            spec = SubnetSpec("one", "x", model.encoder.space, mask)
            soft = tuple(torch.tensor(float(kept)) for kept in mask)
            with torch.no_grad():
                expected = model.encoder(*feats, gates=spec.gates())[0]
                encoded = model.encoder(*feats, gates=soft)[0]
            assert torch.allclose(encoded, expected, atol=1e-5, rtol=0)


@ALL
def test_stock_espnet_loads_every_size(kind, feats):
    name, stock_class, _, _ = KINDS[kind]
    config = config_of(kind)
    model = build(config)
    cases = [(model, config, mask, STOCK_ZEROED) for mask in masks(model.encoder.space)]
    one_block = {"sizes": {"small": 1}}
    block_config = config_of(kind, encoder={"granularity": "block"}, supernet=one_block)
    whole = build(block_config)
    cases.append((whole, block_config, (True, False, True), STOCK))
    for net, conf, mask, expected_form in cases:
        spec = SubnetSpec("one", "x", net.encoder.space, mask)
        form = form_of(conf, spec, stock=True)
        assert (form.name, form.config["encoder"]) == (expected_form, name)
        tensors = form.state(cut_state(net.state_dict(), spec), net.state_dict(), spec)
        stock = experiment.build(form.config)
        assert type(stock.encoder) is stock_class
        stock.load_state_dict(tensors, strict=True)
        with torch.no_grad():
            encoded = stock.eval().encoder(*feats)[0]
            expected = net.encoder(*feats, gates=spec.gates())[0]
        assert torch.allclose(encoded, expected, atol=2e-6, rtol=0)


@ALL
@pytest.mark.parametrize("granularity", ["branch", "component", "block"])
def test_costs_of_units_add_up_to_those_of_the_extracted_net(kind, granularity):
    size = {"sizes": {"small": 1}}
    config = config_of(kind, encoder={"granularity": granularity}, supernet=size)
    model = build(config)
    space = model.encoder.space
    tables = {metric: cost_table(model, metric) for metric in ("params", "macs_10s")}
    for mask in masks(space):
        if granularity == "block" and not any(mask):
            continue
        spec = SubnetSpec("one", "x", space, mask)
        small = experiment.build(cut_config(config, spec))
        units = torch.tensor(mask)
        counted = sum(p.numel() for p in small.parameters())
        assert tables["params"].of(units) == counted
        assert tables["macs_10s"].of(units) == count_macs(small, FEATURES, 10)


@ALL
@pytest.mark.parametrize("axis", ["layer_prunable", "omni_sparse"])
def test_a_supernet_trains(kind, axis, feats):
    model = build(config_of(kind, axis)).train()
    text = torch.tensor([[2, 3, 4], [3, 2, -1], [4, -1, -1]])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(8):
        loss, _, _ = model(*feats, text, torch.tensor([3, 2, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-2:]) < sum(losses[:2])


@ALL
def test_a_net_is_quantised_as_espnet_does_it(kind, feats):
    model = build(config_of(kind)).eval()
    with torch.no_grad():
        expected, _, _ = model.encoder(*feats)
        small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
        found, _, _ = small.encoder(*feats)
    assert 0 < (found - expected).abs().max() < 0.3


@ALL
def test_what_cannot_stream_says_so(kind):
    model = build(config_of(kind))
    if kind.startswith("conformer"):
        return
    name = KINDS[kind][0]
    with pytest.raises(UserError, match=f"{name}, needs the whole recording"):
        EncoderStream(model.encoder)
    with pytest.raises(UserError, match=f"{name} cannot stream"):
        build(config_of(kind, encoder={"chunk": {"size": 4, "left": 8}}))
