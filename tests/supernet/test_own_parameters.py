"""Norms and biases that each sparsity has for itself."""

import dataclasses

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from helpers.encoders import SPARSE, log_probs, randomize
from helpers.gradients import gradients, optimizer_of, utterance_losses
from helpers.masks import with_masks
from helpers.tiny import build as build_model
from helpers.tiny import changed, transducer_config
from helpers.trained import assert_same_tensors, load
from helpers.training import assert_goes_on, checksums, two_processes
from helpers.transducers import encode, features

from espnet_omnisparse.core.own_parameters import OwnParameters, nearest
from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.cut import cut_state
from espnet_omnisparse.nn.conformer import OmniSparseConformerEncoder
from espnet_omnisparse.search import dev_set as evaluation
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.sampling import SampledSubnet

# of a run of 100: warm start to 10, ramp to 30
CONF = {
    "method": "none",
    "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}},
    "sparsity": {
        "final": 0.8,
        "ramp": 20,
        "own": "norms_and_biases",
        "sandwich": ["dense", "sparsest"],
    },
    "warm_start": 10,
}
PREFIX = "supernet.own."


@pytest.fixture
def owning(tiny_config, build):
    """A supernet whose sizes have parameters of their own, all of them different."""

    def make(update=40, sparsity=None, begun=True, **options):
        conf = changed(CONF, {"sparsity": sparsity or {}})
        encoder = {"pattern": "8x1", **options.pop("encoder", {})}
        config = tiny_config(encoder=encoder, supernet=conf, **options)
        config["encoder"] = "omni_sparse_conformer"
        model = build(config, update=update)
        if begun:
            model.supernet.own.begin(model.encoder.vectors())
            with torch.no_grad():
                for parameter in model.supernet.own.parameters():
                    parameter += 0.3 * torch.randn_like(parameter)
        model.encoder.refresh_masks()
        return config, model

    return make


def spec_of(config, model, shares, mask=None, name="s80"):
    space = model.encoder.space
    mark = fingerprint(model.state_dict(), config["token_list"])
    shares = shares if isinstance(shares, tuple) else (shares,) * len(space.weights)
    mask = tuple(map(bool, mask or (1,) * len(space)))
    return SubnetSpec(name, mark, space, mask, shares)


def vectors(model):
    """Every norm's weight and bias and every layer's bias of the blocks."""
    kinds = {}
    for name, module in model.encoder.layers.named_modules():
        norm = "norm" in type(module).__name__.lower()
        for leaf, _ in module.named_parameters(recurse=False):
            if leaf == "bias" or norm:
                kinds[f"{name}.{leaf}"] = norm
    return kinds


# what they are


@pytest.mark.parametrize("conv_norm", ["batch_norm", "layer_norm"])
def test_each_sparsity_has_the_norms_and_biases_of_the_blocks(owning, conv_norm):
    _, model = owning(conv_norm=conv_norm)
    expected = {f"{key}.{n}" for key in ("0p4", "0p8") for n in vectors(model)}
    names = {n.removeprefix(PREFIX) for n in model.state_dict() if PREFIX in n}
    assert names == expected | {"begun"}
    # five norms and that of the Conv, ten layers with a bias, three blocks
    assert len(expected) == 2 * 3 * (2 * 6 + 11)


def test_nothing_of_them_is_in_the_encoder(owning, tiny_config, build):
    _, model = owning()
    config = tiny_config(encoder={"pattern": "8x1"})
    config["encoder"] = "omni_sparse_conformer"
    plain = build(config).encoder.state_dict()
    assert model.encoder.state_dict().keys() == plain.keys()
    ours = OmniSparseConformerEncoder(20, **model_options(config))
    ours.attach(None, OwnParameters(ours.vectors(), [0.5]))
    conf = {**model_options(config), "macaron_style": True, "use_cnn_module": True}
    stock = randomize(ConformerEncoder(20, **conf))
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(ours.state_dict(), strict=True)


def model_options(config):
    ours = ("conv_norm", "granularity", "pattern")
    return {n: v for n, v in config["encoder_conf"].items() if n not in ours}


@pytest.mark.parametrize(
    "shares, key",
    [
        ((), None),
        ((0.0, 0.0), None),
        ((0.1, 0.1), "0p4"),
        ((0.59, 0.59), "0p4"),
        ((0.61, 0.61), "0p8"),
        ((0.9, 0.9), "0p8"),
        ((0.3, 0.8), "0p4"),
        ((0.5, 0.8), "0p8"),
        ((0.8, 0.0), "0p8"),  # of a dropped branch a weight has no sparsity
    ],
)
def test_a_subnet_has_those_of_the_nearest_sparsity(shares, key):
    assert nearest(shares, ["0p4", "0p8"]) == key


def test_a_size_to_own_them_is_needed():
    for sizes in ({}, {"small": 4}, {"s0": {"sparsity": 0.0}}):
        conf = {**CONF, "method": "simple_topk" if sizes else "none", "sizes": sizes}
        with pytest.raises(UserError, match="own: norms_and_biases is for sizes with"):
            SupernetConfig.read(conf)
    with pytest.raises(UserError, match="own must be one of none, norms_and_biases"):
        SupernetConfig.read(changed(CONF, {"sparsity": {"own": "heads"}}))


# the golden property: the extracted size computes what the supernet does


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("conv_norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_an_exported_size_carries_its_own(owning, batch, name, conv_norm, share):
    granularity, mask = SPARSE[name]
    options = {"conv_norm": conv_norm, "granularity": granularity}
    config, model = owning(**options)
    spec = spec_of(config, model, share, mask)
    expected, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    small_config, small = family.cut(config, model.state_dict(), spec)
    found, _ = log_probs(family.build(small_config, small), batch)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    model.encoder.attach(None, None)
    shared, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    assert not torch.allclose(shared, expected, atol=1e-2)
    assert not any("supernet" in name for name in small)


def test_the_values_are_those_of_the_size(owning):
    config, model = owning()
    state = model.state_dict()
    for share, key in ((0.4, "0p4"), (0.8, "0p8")):
        small = cut_state(state, spec_of(config, model, share))
        for name in vectors(model):
            own = state[f"{PREFIX}{key}.{name}"]
            assert torch.equal(small[f"encoder.encoders.{name}"], own)
            assert not torch.equal(own, state[f"encoder.encoders.{name}"])
    dense = cut_state(state, spec_of(config, model, ()))
    for name in vectors(model):
        shared = state[f"encoder.encoders.{name}"]
        assert torch.equal(dense[f"encoder.encoders.{name}"], shared)


def test_a_searched_size_is_what_the_search_has_evaluated(owning, batch):
    config, model = owning()
    source = torch.Generator().manual_seed(0)
    count = len(model.encoder.space.weights)
    for _ in range(3):
        shares = tuple(torch.randint(0, 9, (count,), generator=source).div(10).tolist())
        spec = spec_of(config, model, shares, name="70pct")
        made = model.make_batch(**batch)
        hidden = model.encoder.front_end(made.feats, made.feats_lengths)
        subnet = SampledSubnet(FULL, spec.gates(), sparsity=spec.sparsity)
        loss = model.subnet_loss(hidden, made, subnet)
        small = family.build(*family.cut(config, model.state_dict(), spec))
        expected = small(**batch)[1]["loss_ctc"]
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_stock_form_has_them_too(owning, batch):
    config, model = owning(conv_norm="batch_norm")
    spec = spec_of(config, model, 0.8)
    expected, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    stock_config, state = family.cut(config, model.state_dict(), spec, stock=True)
    assert stock_config["model"] == "espnet"
    found, _ = log_probs(family.build(stock_config, state), batch)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


def test_the_search_evaluates_a_trained_supernet_by_both_rules(uninterrupted):
    config = family.read_config(uninterrupted)
    state = load(uninterrupted / "valid.loss_sizes.ave.pth")
    model = family.build(config, state)
    spec = family.selected_specs(uninterrupted)["small"]
    shares = tuple(0.6 + 0.2 * (n % 2) for n in range(len(spec.sparsity)))
    for one in (spec, dataclasses.replace(spec, sparsity=shares)):
        small = family.build(*family.cut(config, state, one))
        (part,) = evaluation._valid_batches(config, 4)
        expected = small(**part)[1]["loss_ctc"].item()
        dev = evaluation.DevSet(model, config, "loss", utterances=4, calibration=8)
        assert dev.score(one.mask, one.sparsity) == pytest.approx(expected, rel=1e-5)
        settled, model.encoder._masks.order = model.supernet.order, None
        by_magnitude = evaluation.DevSet(model, config, "loss", utterances=4)
        assert by_magnitude.score(one.mask, one.sparsity) != pytest.approx(expected)
        model.encoder.attach(settled, None)
        shared = evaluation.DevSet(model, config, "loss", utterances=4)
        assert shared.score(one.mask, one.sparsity) != pytest.approx(expected)
        model.encoder.attach(settled, model.supernet.own)


@pytest.mark.parametrize("granularity", ["branch", "component"])
def test_the_standalone_transducer_has_them_too(granularity):
    config = transducer_config(CONF, encoder={"granularity": granularity})
    model = build_model(config, update=60)
    model.supernet.own.begin(model.encoder.vectors())
    with torch.no_grad():
        for parameter in model.supernet.own.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.encoder.refresh_masks()
    spec = spec_of(config, model, 0.8)
    feats, lengths = features()
    expected = encode(model, feats, lengths, spec)
    small = family.build(*family.cut(config, model.state_dict(), spec))
    assert torch.allclose(encode(small, feats, lengths), expected, atol=1e-6, rtol=0)
    model.encoder.attach(None, None)
    shared = encode(model, feats, lengths, spec)
    assert not torch.allclose(shared, expected, atol=1e-2)


@pytest.mark.parametrize("granularity", ["branch", "block", "component"])
def test_soft_gates_run_with_them(owning, batch, granularity):
    config, model = owning(granularity=granularity)
    spec = spec_of(config, model, 0.8)
    gates = tuple(torch.rand(len(spec.mask)).unbind())
    expected, _ = log_probs(model, batch, gates, sparsity=spec.sparsity)
    state = model.state_dict()
    model.encoder.attach(None, None)
    model.load_state_dict({**state, **cut_state(state, spec)})
    found, _ = log_probs(model, batch, gates)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


# training


def test_gradients_are_those_of_the_extracted_size(owning, batch):
    config, model = owning(sparsity={"sandwich": ["dense", "sparsest"]})
    model.train()
    loss, _, _ = model(**batch)
    found = gradients(model, loss)
    spec = spec_of(config, model, 0.8)
    small = family.build(*family.cut(config, model.state_dict(), spec)).train()
    draw = dataclasses.replace(model.supernet.full(), size="full")
    losses, frames = utterance_losses(model, draw, batch)
    # weights 1 and 0.3, of which the loss is the mean
    dense = gradients(model, sum(losses) / sum(frames) / 1.3)
    encoded, lengths = small.encode(batch["speech"], batch["speech_lengths"])
    loss = 0.3 * small.ctc(encoded, lengths, batch["text"], batch["text_lengths"])
    # ESPnet's mean is over utterances, ours over frames
    own = gradients(small, loss * len(batch["speech"]) / sum(frames) / 1.3)
    for name in vectors(model):
        key = f"encoder.encoders.{name}"
        sparse = found[f"{PREFIX}0p8.{name}"]
        assert torch.allclose(sparse, own[key], atol=1e-5), name
        assert torch.allclose(found[key], dense[key], atol=1e-5), name
        assert (found[f"{PREFIX}0p4.{name}"] == 0.0).all()
    assert any(found[f"{PREFIX}0p8.{name}"].any() for name in vectors(model))


def test_they_begin_as_the_dense_nets_when_masks_do(owning, batch):
    config, model = owning(update=5, begun=False)
    optimizer = optimizer_of(model, config)
    before = {n: t.clone() for n, t in model.state_dict().items() if PREFIX in n}

    def go_on(until):
        model.train()
        while model.supernet.update < until:
            optimizer.zero_grad()
            model(**batch)[0].backward()
            optimizer.step()

    go_on(11)  # in the tenth the ramp is at zero
    state = model.state_dict()
    assert not model.supernet.own.is_begun
    assert_same_tensors({n: t for n, t in state.items() if PREFIX in n}, before)
    shared = {n: state[f"encoder.encoders.{n}"].clone() for n in vectors(model)}
    model.eval()(**batch)
    for name, tensor in shared.items():
        for key in ("0p4", "0p8"):
            own = model.state_dict()[f"{PREFIX}{key}.{name}"]
            assert torch.equal(own, tensor), name
    go_on(20)
    state = model.state_dict()
    # the ramp goes through both: each has moved, and apart
    for name in shared:
        four, eight = (state[f"{PREFIX}{key}.{name}"] for key in ("0p4", "0p8"))
        for one, other in ((four, eight), (four, shared[name]), (eight, shared[name])):
            assert not torch.equal(one, other), name


def test_those_that_the_ramp_comes_to_are_as_trained_as_those_before(owning, batch):
    config, model = owning(update=11, begun=False)
    optimizer = optimizer_of(model, config)

    def own(key):
        state = model.supernet.own.get_submodule(key).state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}

    model.train()
    while model.supernet.max_sparsity < 0.6:  # nearer to 0.4 than to 0.8
        optimizer.zero_grad()
        model(**batch)[0].backward()
        before = own("0p4")
        assert_same_tensors(own("0p8"), before)
        optimizer.step()
    used = own("0p4")
    begun = model.state_dict()["encoder.encoders.0.norm_mha.weight"]
    assert not torch.equal(used["0.norm_mha.weight"], begun)
    # of the last pass that had no use for it
    assert_same_tensors(own("0p8"), before)
    model(**batch)
    model.eval()(**batch)
    assert_same_tensors(own("0p4"), used)  # nothing follows downwards


def test_they_decay_where_the_blocks_norms_and_biases_do(owning):
    config, model = owning()
    for exclude in (False, True):
        conf = {"exclude_weight_decay": exclude, "exclude_weight_decay_conf": {}}
        optimizer = optimizer_of(model, config, **conf)
        decay = {
            id(parameter): group["weight_decay"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        parameters = dict(model.named_parameters())
        for name in vectors(model):
            shared = decay[id(parameters[f"encoder.encoders.{name}"])]
            assert shared == (0.0 if exclude else 0.1)
            assert decay[id(parameters[f"{PREFIX}0p8.{name}"])] == shared


def test_off_nothing_is_owned(owning):
    _, model = owning(sparsity={"own": "none"}, begun=False)
    assert model.supernet.own is None
    assert not any(PREFIX in name for name in model.state_dict())


# whole trainings

# warm start to 2, ramp to 7, settled from 12 of 20 updates
TRAINING = with_masks(
    settle=0.4,
    own="norms_and_biases",
    sandwich=["dense", "sparsest", "sparsest", "size"],
)


@pytest.mark.parametrize("update", [1, 7, 13, 17])
def test_a_training_killed_in_each_phase_goes_on_as_if_nothing_had_been(
    corpus, uninterrupted, tmp_path, update
):
    exp = tmp_path / "exp"
    assert_goes_on(corpus.command(exp, **TRAINING), exp, update, uninterrupted)


def test_an_average_has_its_own_and_is_cut_with_it(uninterrupted):
    average = load(uninterrupted / "valid.loss_sizes.ave.pth")
    three, four = (load(uninterrupted / f"{n}epoch.pth") for n in (3, 4))
    spec = family.selected_specs(uninterrupted)["small"]
    small = cut_state(average, spec)
    name = "0.norm_ff.weight"
    own = (three[f"{PREFIX}0p8.{name}"] + four[f"{PREFIX}0p8.{name}"]) / 2
    torch.testing.assert_close(small[f"encoder.encoders.{name}"], own)


def test_two_processes_settle_and_own_the_same(corpus, tmp_path):
    exp = tmp_path / "exp"
    options = {"multiprocessing_distributed": False, "dist_backend": "gloo"}
    command = corpus.command(exp, **TRAINING, **options)
    one, other = (checksums(x.output) for x in two_processes(command, tmp_path))
    assert len(one) == 4 and one == other
    state = load(exp / "4epoch.pth")
    assert state[f"{PREFIX}begun"]
    assert all((t >= 0).all() for n, t in state.items() if ".order." in n)
