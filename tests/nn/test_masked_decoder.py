"""Masks on the weights of an attention decoder."""

import pytest
import torch
from helpers.gradients import gradients, optimizer_of
from helpers.tiny import DECODER

from espnet_omnisparse.core.decoder import MASKABLE
from espnet_omnisparse.core.search_space import place
from espnet_omnisparse.core.spec import fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.cost.count import count_cost
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import build as load
from espnet_omnisparse.extract.experiment import cut
from espnet_omnisparse.train.journal import settled_specs

SPARSITY = {"final": 0.8, "ramp": 0.2, "sandwich": ["dense", "sparsest", "size"]}
SUPERNET = {
    "method": "none",
    "sizes": {
        "s50": {"sparsity": 0.5},
        "s80": {"sparsity": 0.8},
        "shorter": {"sparsity": 0.8, "decoder": 1},
        "ctc": {"sparsity": 0.8, "decoder": "none"},
    },
}
END = 90  # of 100 updates: the ramp has ended


@pytest.fixture
def masked_config(tiny_config):
    """A hybrid supernet of sparsities, its decoder of two layers masked too."""

    def make(sparsity=None, supernet=None, encoder=None, **model_conf):
        plan = {**SPARSITY, **(sparsity or {})}
        config = tiny_config(
            attention=True,
            supernet={**SUPERNET, "sparsity": plan, **(supernet or {})},
            encoder={"pattern": "8x1", **(encoder or {})},
            **{"mask_decoder": True, "loss_normalization": "batch", **model_conf},
        )
        config["encoder"] = "omni_sparse_conformer"
        config["decoder_conf"] = {**DECODER, "num_blocks": 2}
        return config

    return make


def specs_of(config, model):
    state = model.state_dict()
    return settled_specs(model.supernet, fingerprint(state, config["token_list"]))


def extracted(config, model, size):
    return load(*cut(config, model.state_dict(), specs_of(config, model)[size]))


OPTIONS = {
    "plain": {},
    "own norms": {"sparsity": {"own": "norms_and_biases"}},
    "unstructured": {"encoder": {"pattern": "unstructured"}},
    "settled": {"sparsity": {"settle": 0.3}},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SUPERNET["sizes"])
def test_a_masked_size_is_the_model_extracted(
    masked_config, build, batch, options, size
):
    config = masked_config(**OPTIONS[options])
    model = build(config, update=END)
    if model.supernet.own is not None:  # what sizes own differs from the dense net's
        model.supernet.own.begin(model.encoder.vectors())
        with torch.no_grad():
            for parameter in model.supernet.own.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        _, stats, _ = model(**batch)
        loss, theirs, _ = extracted(config, model, size)(**batch)
    assert stats[f"loss_{size}"].item() == pytest.approx(loss.item(), rel=1e-6)
    if size != "ctc":
        attention = theirs["loss_att"].item()
        assert stats[f"loss_att_{size}"].item() == pytest.approx(attention, rel=1e-6)
        assert attention != pytest.approx(stats["loss_att_full"].item(), rel=1e-3)


def test_the_decoder_has_its_weights_in_the_search_space(masked_config, build):
    model = build(masked_config())
    names = [n for n in model.encoder.space.weights if n.startswith("decoder.")]
    assert names == [f"decoder.{layer}.{one}" for layer in range(2) for one in MASKABLE]
    assert model.encoder.space.weights[-len(names) :] == tuple(names)
    assert {place(name).kind for name in names} == {
        f"decoder.{one}" for one in MASKABLE
    }
    maskable = model.encoder.maskable()
    linear = {
        id(module.weight)
        for module in model.decoder.decoders.modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {id(maskable[name]) for name in names} == linear
    assert not [name for name in model.state_dict() if name.startswith("encoder._d")]


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_zeros_are_where_the_option_says_and_stay(masked_config, build, batch, share):
    config = masked_config()
    model = build(config, update=END)
    small = extracted(config, model, f"s{100 * share:.0f}").train()
    weights = [
        module.weight
        for module in small.decoder.decoders.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    zeros = [weight == 0 for weight in weights]
    for zero in zeros:
        assert zero.float().mean().item() == pytest.approx(share, abs=0.05)
        assert zero.view(-1, 8, zero.size(1)).float().mean(1).unique().numel() == 2
    assert not (small.decoder.output_layer.weight == 0).any()
    assert not (small.decoder.embed[0].weight == 0).any()


def test_gradients_reach_what_is_kept_alone(masked_config, build, batch):
    model = build(masked_config(), update=END).train()
    made = model.make_batch(**batch)
    model.encoder.refresh_masks()
    subnets = {one.size: one for one in model.supernet.validation_subnets()}
    subnet = subnets["s80"]
    hidden = model.encoder.front_end(made.feats, made.feats_lengths)
    found = gradients(model, model.subnet_loss(hidden, made, subnet))
    for name, keep in model.encoder.kept_weights(subnet.sparsity).items():
        if name.startswith("decoder."):
            tensor = name.replace("decoder.", "decoder.decoders.", 1) + ".weight"
            assert not found[tensor][~keep].any()
            assert found[tensor][keep].any()
    assert found["decoder.embed.0.weight"].any()


def test_the_log_takes_a_decoder_that_a_size_has_not_for_masked(
    masked_config, build, batch
):
    config = masked_config({"diagnose": 1})
    model = build(config, update=END).train()
    model(**batch)
    found = model.diagnosis.means()
    assert {*found} == {*SUPERNET["sizes"]}
    # of the dense net's gradient the whole decoder's share is on masked weights
    masked = {name: one["dense_norm_masked"] for name, one in found.items()}
    assert masked["s80"] < masked["shorter"] < masked["ctc"]


def test_recomputed_activations_see_the_same_masks(masked_config, build, batch):
    found = []
    for layers in ([], [1, 2]):
        config = masked_config()
        config["decoder_conf"]["gradient_checkpoint_layers"] = layers
        model = build(config, update=END).train()
        loss, *_ = model(**batch)
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    plain, recomputed = found
    for name, gradient in plain.items():
        assert (gradient is None) == (recomputed[name] is None)
        assert gradient is None or torch.allclose(gradient, recomputed[name], atol=1e-6)


def test_packed_bytes_count_the_zeros_of_the_decoder(masked_config, build):
    config = masked_config()
    model = build(config, update=END)
    pattern = model.encoder.space.pattern
    cost = {}
    for size in ("s80", "ctc"):
        small = extracted(config, model, size)
        cost[size] = count_cost(small, 20, pattern).packed_bytes
        if size == "s80":
            decoder = small.decoder
    # what the decoder takes, by hand: dense what is not masked, groups of 8 what is
    expected = 0
    for name, tensor in decoder.named_parameters():
        dense = 4 * tensor.numel()
        if any(name.endswith(f"{one}.weight") for one in MASKABLE):
            groups = tensor.view(-1, 8, tensor.size(1)).abs().sum(1).count_nonzero()
            packed = int(groups) * (4 * 8 + 2) + 4 * (tensor.size(0) // 8 + 1)
            dense = min(packed, dense)
        expected += dense
    assert cost["s80"] - cost["ctc"] == expected


def test_a_spec_says_that_the_decoder_takes_masks(masked_config, build, tmp_path):
    config = masked_config()
    spec = specs_of(config, build(config, update=END))["s80"]
    write_spec(spec, tmp_path / "s80.yaml")
    assert read_spec(tmp_path / "s80.yaml") == spec
    text = (tmp_path / "s80.yaml").read_text()
    assert "decoder: 2\n" in text
    (tmp_path / "s80.yaml").write_text(text.replace("decoder: 2\n", "decoder: -1\n"))
    with pytest.raises(UserError, match="weights.decoder must be a number of layers"):
        read_spec(tmp_path / "s80.yaml")
    bare = {**config, "model_conf": {**config["model_conf"], "mask_decoder": False}}
    with pytest.raises(UserError, match="on which its supernet was trained without"):
        cut(bare, build(bare).state_dict(), spec)


def test_without_the_option_a_decoder_takes_no_masks(masked_config, build):
    config = masked_config(mask_decoder=False)
    model = build(config, update=END)
    small = extracted(config, model, "s80")
    for name, parameter in small.decoder.named_parameters():
        assert torch.equal(parameter, model.decoder.get_parameter(name))


def test_what_has_no_such_decoder_cannot_mask_it(masked_config, tiny_config, build):
    rnn = masked_config(supernet={"sizes": {"s80": {"sparsity": 0.8}}})
    rnn["decoder"], rnn["decoder_conf"] = "rnn", {}
    with pytest.raises(UserError, match="mask_decoder needs decoder: transformer"):
        build(rnn)
    with pytest.raises(UserError, match="mask_decoder needs an encoder whose weights"):
        build(tiny_config(attention=True, mask_decoder=True))


def test_training_moves_the_weights_that_are_kept(masked_config, build, batch):
    config = masked_config()
    model = build(config, update=END).train()
    before = {n: w.detach().clone() for n, w in model.encoder.maskable().items()}
    optimizer = optimizer_of(model, config)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch)[0].backward()
        optimizer.step()
    for name, weight in model.encoder.maskable().items():
        assert not torch.equal(weight, before[name])
