"""Sizes that keep less of the attention decoder than there is."""

import pytest
from helpers.gradients import gradients
from helpers.tiny import DECODER

from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import build, cut
from espnet_omnisparse.train.journal import read_specs, settled_specs, write_specs

LAYERS = 3
SIZES = {
    "shorter": {"decoder": 2},
    "ctc": {"decoder": "none"},
    "small": {"units": 0.4, "decoder": 1},
}
STEP2 = 60


@pytest.fixture
def hybrid_config(tiny_config):
    """The configuration of a hybrid supernet of three decoder layers."""

    def make(sizes=SIZES, **options):
        supernet = {"sizes": sizes, **options.pop("supernet", {})}
        if not sizes:
            supernet["method"] = "none"
        config = tiny_config(attention=True, supernet=supernet, **options)
        config["decoder_conf"] = {**DECODER, "num_blocks": LAYERS}
        return config

    return make


def alone(config, model, size, stock=False):
    """A size as the model of its own that extraction writes, and its configuration."""
    specs = settled_specs(model.supernet, fingerprint_of(config, model))
    small, state = cut(config, model.state_dict(), specs[size], stock)
    assert build(small, state).state_dict().keys() == state.keys()
    return build(small, state), small


def fingerprint_of(config, model):
    from espnet_omnisparse.core.spec import fingerprint

    return fingerprint(model.state_dict(), config["token_list"])


def subnet(model, size):
    """The subnet of the validation that has a name."""
    return next(s for s in model.supernet.validation_subnets() if s.size == size)


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_loss_of_the_model_extracted(hybrid_config, build, batch, size):
    config = hybrid_config(loss_normalization="batch")
    model = build(config, update=STEP2)
    _, stats, _ = model(**batch)
    small, _ = alone(config, model, size)
    loss, expected, _ = small(**batch)
    assert stats[f"loss_{size}"].item() == pytest.approx(loss.item(), abs=1e-5)
    assert (f"loss_att_{size}" in stats) == (size != "ctc")
    if size != "ctc":
        assert stats[f"acc_{size}"] == pytest.approx(expected["acc"].item())


def test_an_update_trains_what_a_size_keeps_and_nothing_else(
    hybrid_config, build, batch
):
    model = build(hybrid_config(), update=STEP2).train()
    made = model.make_batch(**batch)
    for size, layers in (("shorter", 2), ("ctc", 0), ("small", 1)):
        hidden = model.encoder.front_end(made.feats, made.feats_lengths)
        loss = model.subnet_loss(hidden, made, subnet(model, size))
        trained = {n for n, g in gradients(model, loss).items() if g.any()}
        found = {int(n.split(".")[2]) for n in trained if ".decoders." in n}
        assert found == set(range(layers))
        assert ("decoder.output_layer.weight" in trained) == (layers > 0)


def test_an_extracted_size_is_a_stock_model(hybrid_config, build, batch):
    config = hybrid_config(conv_norm="batch_norm")
    model = build(config, update=STEP2)
    for size, layers in (("shorter", 2), ("ctc", 0), ("small", 1)):
        small, written = alone(config, model, size, stock=True)
        assert written["model"] == "espnet" and written["encoder"] == "conformer"
        if layers:
            assert written["decoder_conf"]["num_blocks"] == layers
            assert len(small.decoder.decoders) == layers
        else:
            assert written["decoder"] is None and small.decoder is None
            assert written["model_conf"]["ctc_weight"] == 1.0
    assert config["decoder_conf"]["num_blocks"] == LAYERS  # left as it is


@pytest.mark.parametrize("kind", ["params", "nonzero", "bytes"])
@pytest.mark.parametrize("decoder", ["none", 1, 2])
def test_a_budget_counts_the_decoder_that_a_size_has(
    hybrid_config, build, kind, decoder
):
    wanted = {kind: 16_000 * (4 if kind == "bytes" else 1), "decoder": decoder}
    whole = {kind: wanted[kind]}
    config = hybrid_config({"small": wanted, "whole": whole})
    model = build(config, update=STEP2)
    table = model.supernet.tables[kind]
    cost = {}
    for size in ("small", "whole"):
        small, _ = alone(config, model, size)
        cost[size] = sum(p.numel() for p in small.parameters())
        cost[size] *= 4 if kind == "bytes" else 1
        mask = model.supernet.size_masks()[size].clone()
        spared = table.spared(model.supernet.sizes[size].decoder)
        assert cost[size] == table.of(mask) - spared <= wanted[kind]
        mask[model.supernet.selection.ranking()[mask.sum()]] = True
        assert table.of(mask) - spared > wanted[kind]  # the next unit does not fit
    masks = model.supernet.size_masks()
    assert masks["small"].sum() > masks["whole"].sum()


def test_macs_and_latency_end_at_ctc(hybrid_config, build):
    model = build(hybrid_config())
    assert cost_table(model, "macs_10s").spared(0) == 0


def test_a_budget_that_cannot_be_met_names_one_that_can(hybrid_config, build):
    sizes = {"small": {"params": 1000, "decoder": "none"}}
    with pytest.raises(UserError, match="small asks for 1,000 parameters") as told:
        build(hybrid_config(sizes))
    nearest = int(str(told.value).split("give is ")[1].split()[0].replace(",", ""))
    model = build(hybrid_config({"small": {"params": nearest, "decoder": "none"}}))
    assert model.supernet.size_masks()["small"].sum() == 1
    with pytest.raises(UserError, match="asks for"):
        build(hybrid_config({"small": {"params": nearest - 1, "decoder": "none"}}))


def test_a_spec_says_what_it_keeps_of_the_decoder(hybrid_config, build, tmp_path):
    config = hybrid_config()
    model = build(config, update=STEP2)
    specs = settled_specs(model.supernet, fingerprint_of(config, model))
    for name, text in (("ctc", "none"), ("shorter", "2"), ("full", None)):
        path = tmp_path / f"{name}.yaml"
        write_spec(specs[name], path)
        assert read_spec(path) == specs[name]
        assert (f"decoder: {text}\n" in path.read_text()) == (text is not None)
    (tmp_path / "ctc.yaml").write_text(
        (tmp_path / "ctc.yaml").read_text().replace("decoder: none", "decoder: 0")
    )
    with pytest.raises(UserError, match=r"ctc.yaml: decoder must be none .*, not 0"):
        read_spec(tmp_path / "ctc.yaml")


def test_a_spec_of_a_deeper_decoder_is_refused(hybrid_config, tiny_config, build):
    config = hybrid_config()
    model = build(config, update=STEP2)
    spec = settled_specs(model.supernet, fingerprint_of(config, model))["shorter"]
    shallow = hybrid_config({})
    shallow["decoder_conf"]["num_blocks"] = 2
    for other, found in ((shallow, 2), (tiny_config(), 0)):
        state = build(other).state_dict()
        with pytest.raises(UserError, match=f"keeps 2 .* supernet has {found}: select"):
            cut(other, state, spec)


REFUSED = {
    "not fewer": ({"a": {"decoder": 3}}, {}, "keeps 3 layers of the decoder, which"),
    "no number": ({"a": {"decoder": "half"}}, {}, r"a.decoder must be none \(CTC"),
    "nothing": ({"a": {"decoder": 0}}, {}, "a.decoder must be none"),
    "no joint training": (
        {"a": {"units": 4, "decoder": 1}},
        {"method": "layerdrop"},
        "trains all of them",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(hybrid_config, build, case):
    sizes, supernet, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence):
        build(hybrid_config(sizes, supernet=supernet))


def test_models_without_such_a_decoder_are_refused(tiny_config, hybrid_config, build):
    sizes = {"ctc": {"decoder": "none"}}
    rnn = hybrid_config(sizes)
    rnn["decoder"], rnn["decoder_conf"] = "rnn", {}
    ctc = tiny_config(supernet={"sizes": sizes})
    for config in (rnn, ctc):
        with pytest.raises(UserError, match="needs decoder: transformer"):
            build(config)


def test_specs_are_read_smallest_first(hybrid_config, build, tmp_path):
    config = hybrid_config({"ctc": {"decoder": "none"}, "x": {"decoder": 2}, "s": 4})
    model = build(config, update=STEP2)
    write_specs(tmp_path, settled_specs(model.supernet, fingerprint_of(config, model)))
    assert [*read_specs(tmp_path)] == ["s", "ctc", "x", "full"]
