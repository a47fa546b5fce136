import argparse
import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
from helpers.gradients import (
    assert_same_gradients,
    gradients,
    optimizer_of,
    rows,
    seed_of_each_division,
    utterance_losses,
)

from espnet_omnisparse.core.layout import head_name
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import frame_loss, lattice_loss
from espnet_omnisparse.losses.rnnt import TorchaudioRNNTLoss
from espnet_omnisparse.tasks import OmniASRTask

STEP1, STEP2 = 30, 60
NONE = {"method": "none", "sizes": {}}


@pytest.fixture
def train(tiny_config, build, batch):
    """Builds a model and makes some real updates."""

    def make(updates, start, **options):
        config = tiny_config(**options)
        model = build(config, update=start).train()
        optimizer = optimizer_of(model, config)
        for _ in range(updates):
            optimizer.zero_grad()
            model(**batch)[0].backward()
            optimizer.step()
        return model, optimizer

    return make


# losses


@pytest.mark.parametrize("update", [STEP1, STEP2])
@pytest.mark.parametrize("heads", ["shared", "per_size"])
def test_the_loss_is_the_weighted_mean_per_frame(tiny_model, batch, heads, update):
    model = tiny_model(update=update, heads=heads).train()
    loss, stats, weight = model(**batch)
    expected = 0.0
    for draw in model.supernet.sample_subnets():
        losses, frames = utterance_losses(model, draw, batch)
        mean = sum(losses) / sum(frames)
        assert stats[f"loss_{draw.size}"].item() == pytest.approx(mean.item(), 1e-5)
        expected = expected + (1.0 if draw.size == FULL else 0.3) * mean
        assert weight.item() == sum(frames)
    expected = expected / (1.3 if update == STEP1 else 1.6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_subnet_weight_is_the_weight_of_every_subnet(tiny_model, batch):
    model = tiny_model(update=STEP2, supernet={"subnet_weight": 0.5}).train()
    loss, stats, _ = model(**batch)
    expected = (
        stats["loss_full"] + 0.5 * stats["loss_small"] + 0.5 * stats["loss_medium"]
    ) / 2.0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def with_transducer(config, ctc_weight=0.3):
    """The configuration with a transducer beside CTC."""
    config["decoder"], config["decoder_conf"] = "transducer", {"hidden_size": 8}
    config["joint_net_conf"] = {"joint_space_size": 16}
    config["model_conf"]["ctc_weight"] = ctc_weight
    return config


@pytest.mark.parametrize("decoder", ["none", "attention", "transducer"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_without_sizes_losses_and_error_rates_are_espnets(
    tiny_config, build, batch, monkeypatch, decoder, train
):
    # ESPnet's own model needs a package that PyPI has not: the loss alone is ours
    warprnnt = SimpleNamespace(RNNTLoss=lambda blank, **_: TorchaudioRNNTLoss(blank))
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", warprnnt)
    config = tiny_config(
        conv_norm="batch_norm",
        attention=decoder == "attention",
        supernet=NONE,
        loss_normalization="batch",
        lsm_weight=0.1,
    )
    if decoder == "transducer":
        config = with_transducer(config)
    ours = build(config).train(train)
    stock_config = copy.deepcopy(config)
    stock_config |= {"model": "espnet", "encoder": "conformer"}
    stock_config["model_conf"] = {
        "ctc_weight": config["model_conf"]["ctc_weight"],
        "lsm_weight": 0.1,
    }
    del stock_config["encoder_conf"]["conv_norm"]
    del stock_config["encoder_conf"]["granularity"]
    stock_config["encoder_conf"]["macaron_style"] = True
    stock = build(stock_config).train(train)
    stock.load_state_dict(
        {n: t for n, t in ours.state_dict().items() if not n.startswith("supernet.")}
    )
    expected, expected_stats, expected_weight = stock(**batch)
    loss, stats, weight = ours(**batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert weight.item() == expected_weight.item() == 4
    logged = {n: v for n, v in expected_stats.items() if v is not None and n != "loss"}
    assert {"loss_ctc"} | (
        {"loss_att", "acc"} if decoder == "attention" else set()
    ) <= (logged.keys())
    if decoder == "transducer":
        assert "loss_transducer" in logged
        assert train or {"cer_transducer", "wer_transducer"} <= logged.keys()
    for name, value in logged.items():
        found = stats["acc" if name == "acc" else f"{name}_full"]
        assert found.item() == pytest.approx(value.item(), rel=1e-6), name
    if train:
        assert_same_gradients(gradients(ours, loss), gradients(stock, expected))


@pytest.mark.parametrize("normalization", ["frames", "batch"])
@pytest.mark.parametrize("attention", [False, True], ids=["ctc", "hybrid"])
@pytest.mark.parametrize("update", [STEP1, STEP2])
def test_two_half_batches_average_to_the_whole(
    tiny_model, batch, normalization, attention, update
):
    model = tiny_model(
        update=update, attention=attention, loss_normalization=normalization
    ).train()
    whole, whole_stats, whole_weight = model(**batch)
    halves = [model(**rows(batch, index)) for index in ([1], [0, 2, 3])]
    total = sum(weight for _, _, weight in halves)
    assert total == whole_weight
    mean = sum(loss * weight for loss, _, weight in halves) / total
    assert mean.item() == pytest.approx(whole.item(), rel=1e-5)
    assert_same_gradients(gradients(model, mean), gradients(model, whole))
    for name in whole_stats:
        if name.startswith("loss"):
            mean = sum(stats[name] * weight for _, stats, weight in halves) / total
            assert mean.item() == pytest.approx(whole_stats[name].item(), rel=1e-5)


@pytest.mark.parametrize("normalization", ["frames", "batch"])
@pytest.mark.parametrize("update, subnets", [(STEP1, 2), (STEP2, 3)])
def test_split_batch_has_the_expectation_of_per_batch(
    tiny_config, build, batch, update, subnets, normalization
):
    config = tiny_config(loss_normalization=normalization)
    whole = build(config, update=update).train()
    config["model_conf"]["supernet"]["update"] = "split_batch"
    split = build(config, update=update).train()
    expected, expected_stats, weight = whole(**batch)
    losses, stats = [], []
    for seed in seed_of_each_division(4, subnets):
        torch.manual_seed(seed)
        loss, one, split_weight = split(**batch)
        assert split_weight == weight
        losses.append(loss)
        stats.append(one)
    mean = sum(losses) / len(losses)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(split, mean), gradients(whole, expected))
    assert max(losses) > 1.01 * min(losses)
    assert stats[0].keys() == expected_stats.keys()
    if normalization == "batch":
        for name, value in expected_stats.items():
            mean = sum(one[name] for one in stats) / len(stats)
            assert mean.item() == pytest.approx(value.item(), rel=1e-5), name


def test_split_batch_shows_each_utterance_to_one_subnet(tiny_model, batch):
    model = tiny_model(update=STEP2, supernet={"update": "split_batch"}).train()
    seen = []
    norm = model.encoder.after_norm
    norm.register_forward_hook(lambda _, __, output: seen.append(len(output)))
    model(**batch)
    assert sorted(seen) == [1, 1, 2]


def test_split_batch_with_fewer_utterances_than_subnets_trains_all_of_them(
    tiny_model, batch
):
    part = rows(batch, [0, 1])
    split = tiny_model(update=STEP2, supernet={"update": "split_batch"}).train()
    loss, stats, _ = split(**part)
    assert loss.item() == tiny_model(update=STEP2).train()(**part)[0].item()
    assert {"loss_full", "loss_small", "loss_medium"} <= stats.keys()


def test_the_callers_batch_is_left_alone(tiny_model, batch):
    before = {name: tensor.clone() for name, tensor in batch.items()}
    tiny_model(update=STEP2, attention=True).train()(**batch)
    for name, tensor in before.items():
        assert torch.equal(batch[name], tensor), name


def test_a_language_token_leaves_the_lengths_of_the_next_subnet_alone(
    tiny_model, batch
):
    # ESPnet's attention loss lengthens the labels it is given in place
    before = batch["text_lengths"].clone()
    model = tiny_model(update=STEP2, attention=True, lang_token_id=1).train()
    model(**batch)
    assert torch.equal(batch["text_lengths"], before)


def test_layer_dropout_touches_the_full_net_only(tiny_model, batch):
    rates = {"layer_dropout_step1": 0.5, "layer_dropout_step2": 0.5}
    for update, others in ((STEP1, ["current"]), (STEP2, ["small", "medium"])):
        model = tiny_model(update=update, supernet=rates).train()
        one, other = (model(**batch)[1] for _ in range(2))
        assert one["loss_full"] != other["loss_full"]
        for name in others:
            assert one[f"loss_{name}"] == other[f"loss_{name}"]
        model.eval()
        assert model(**batch)[0] == model(**batch)[0]


@pytest.mark.parametrize("update", [STEP1, STEP2])
def test_only_the_full_net_records_batch_norm_statistics(tiny_model, batch, update):
    def statistics(model):
        return {n: t for n, t in model.state_dict().items() if "conv_module.norm" in n}

    supernet = tiny_model(update=update, conv_norm="batch_norm").train()
    alone = tiny_model(conv_norm="batch_norm", supernet={"warm_start": 98, "step1": 1})
    alone.load_state_dict(supernet.state_dict())
    alone.supernet.update = 0
    supernet(**batch)
    alone.train()(**batch)
    assert statistics(supernet).keys() == statistics(alone).keys()
    for name, tensor in statistics(supernet).items():
        assert torch.equal(tensor, statistics(alone)[name]), name
        if name.endswith("num_batches_tracked"):
            assert tensor == 1001


# selection


@pytest.mark.parametrize("straight_through", [True, False])
def test_scores_learn_in_step1(train, straight_through):
    conf = {"method_conf": {"straight_through": straight_through}}
    model, _ = train(1, start=STEP1, supernet=conf)
    gradient = model.supernet.selection.scores.grad
    assert (gradient != 0).all()


def test_scores_do_not_move_in_step2(train, batch):
    model, optimizer = train(3, start=STEP2 - 3)
    scores = model.supernet.selection.scores
    settled = scores.detach().clone()
    weight = model.encoder.encoders[0].feed_forward.w_1.weight.detach().clone()
    assert model.supernet.phase == "step2"
    assert optimizer.state[scores]["exp_avg"].abs().max() > 0  # would carry on
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch)[0].backward()
        assert scores.grad is None
        optimizer.step()
    assert torch.equal(scores.detach(), settled)
    assert not torch.equal(model.encoder.encoders[0].feed_forward.w_1.weight, weight)


def test_scores_do_not_move_in_the_warm_start(train):
    model, _ = train(3, start=0, supernet={"warm_start": 5, "step1": 5})
    fresh, _ = train(0, start=0, supernet={"warm_start": 5, "step1": 5})
    scores = model.supernet.selection.scores
    assert torch.equal(scores, fresh.supernet.selection.scores)


def test_weight_decay_leaves_the_scores_alone(tiny_config, build, batch):
    config = tiny_config()
    moved = []
    for decay in (0.0, 0.9):
        model = build(config, update=STEP1).train()
        optim_conf = {"lr": 0.01, "weight_decay": decay}
        optimizer = optimizer_of(model, config, optim_conf=optim_conf)
        model(**batch)[0].backward()
        optimizer.step()
        moved.append(model.supernet.selection.scores.detach())
    assert torch.equal(*moved)


def test_the_update_counter_counts_optimiser_steps(tiny_config, build, batch):
    config = tiny_config()
    model = build(config).train()
    optimizer = optimizer_of(model, config)
    model(**batch)[0].backward()
    model(**batch)[0].backward()
    model.eval()(**batch)
    assert model.supernet.update == 0
    for updates in (1, 2, 3):
        optimizer.step()
        assert model.supernet.update == updates


def test_every_parameter_is_in_one_group_and_the_scores_in_their_own(
    tiny_config, build
):
    config = tiny_config(supernet={"score_lr": 0.5})
    model = build(config)
    groups = optimizer_of(model, config).param_groups
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    own = groups[-1]
    assert own["params"] == [model.supernet.selection.scores]
    assert (own["lr"], own["weight_decay"]) == (0.5, 0.0)
    assert all(group["lr"] == 0.01 for group in groups[:-1])


def test_without_score_lr_the_scores_have_the_optimisers(tiny_config, build):
    config = tiny_config()
    own = optimizer_of(build(config), config).param_groups[-1]
    assert (own["lr"], own["weight_decay"]) == (0.01, 0.0)


def test_score_lr_is_refused_beside_a_scheduler_that_overrides_it(tiny_config, build):
    config = tiny_config(supernet={"score_lr": 0.5})
    with pytest.raises(UserError, match="score_lr cannot be combined with scheduler"):
        optimizer_of(build(config), config, scheduler="piecewiselinearwarmuplr")


# heads


@pytest.mark.parametrize("size", ["full", "medium", "small"])
def test_each_size_has_a_head_of_its_own(tiny_model, batch, size):
    model = tiny_model(update=STEP2, heads="per_size").eval()
    before = model(**batch)[1]
    head = model.ctc if size == "full" else model.size_ctc[head_name(size)]
    with torch.no_grad():
        head.ctc_lo.bias[0] += 1.0
    after = model(**batch)[1]
    for other in ("full", "medium", "small"):
        name = f"loss_{other}"
        assert (before[name] != after[name]) == (other == size)


def test_step1_trains_the_head_of_the_smallest_size(tiny_model, batch):
    model = tiny_model(update=STEP1, heads="per_size").train()
    model(**batch)[0].backward()
    assert model.size_ctc["ctc_small"].ctc_lo.weight.grad.abs().max() > 0
    assert model.size_ctc["ctc_medium"].ctc_lo.weight.grad is None


def test_a_shared_head_is_everybodys(tiny_model):
    model = tiny_model()
    assert not list(model.size_ctc.parameters())
    heads = {id(model.head(size)) for size in ("full", "current", "small", "medium")}
    assert heads == {id(model.ctc)}


def test_heads_take_the_options_of_the_full_nets(tiny_config, build):
    config = tiny_config(heads="per_size")
    config["ctc_conf"] = {"zero_infinity": False, "dropout_rate": 0.25}
    model = build(config)
    for head in model.size_ctc.values():
        assert head.dropout_rate == 0.25
        assert head.ctc_loss.zero_infinity == model.ctc.ctc_loss.zero_infinity


# distillation


def test_a_subnet_that_says_what_its_teacher_says_has_no_adaptive_weight(
    tiny_model, batch
):
    """AlphaNet's code would return the surrogate, which is not 0 at equality."""
    options = {
        "distillation": "alpha",
        "distillation_weight": 1.0,
        "subnet_weight": "adaptive",
    }
    model = tiny_model(update=STEP2, supernet=options).train()
    draws = model.supernet.sample_subnets()
    full = (1.0,) * len(model.encoder.space)
    model.supernet.sample_subnets = lambda: [
        replace(draw, gates=full) for draw in draws
    ]
    loss, stats, _ = model(**batch)
    for draw in draws[1:]:
        assert stats[f"loss_{draw.size}"].item() == pytest.approx(0.0, abs=1e-6)
    assert loss.item() == pytest.approx(stats["loss_full"].item(), rel=1e-6)


# hybrid CTC/attention and CTC/transducer


@pytest.mark.parametrize("decoder", ["attention", "transducer"])
def test_what_is_taught_is_mixed_as_the_losses_are(tiny_config, build, batch, decoder):
    config = tiny_config(
        attention=decoder == "attention", supernet={"distillation": "kl"}
    )
    if decoder == "transducer":
        config = with_transducer(config)
    model = build(config, update=STEP2)
    part = model.make_batch(**batch)
    hidden = model.encoder.front_end(part.feats, part.feats_lengths)
    teacher = model._make_teacher(model.encoder.blocks(hidden)[0], hidden.lengths, part)
    encoded, lengths = model.encoder.blocks(hidden, (1.0, None) * 6)
    found = model._head_loss(FULL, encoded, lengths, part, teacher).distillation
    expected = frame_loss(model.ctc.ctc_lo(encoded), teacher.ctc, lengths, "kl")
    if decoder == "transducer":
        joint, *labels = model.lattice(encoded, lengths, part.text)
        nodes = lattice_loss(joint, teacher.lattice, *labels, model.blank_id, "kl")
        expected = nodes + 0.3 * expected
    assert found.item() == pytest.approx(expected.item(), rel=1e-6) != 0.0


def test_hybrid_losses_add_up_and_train_the_decoder(tiny_model, batch):
    model = tiny_model(update=STEP2, attention=True).train()
    loss, stats, weight = model(**batch)
    losses = [stats[f"loss_{size}"].item() for size in ("full", "small", "medium")]
    expected = (losses[0] + 0.3 * losses[1] + 0.3 * losses[2]) / 1.6
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert {"acc", "acc_small", "acc_medium"} <= stats.keys()
    ctc_losses, frames = utterance_losses(model, model.supernet.full(), batch)
    feats, lengths, text = batch["speech"], batch["speech_lengths"], batch["text"]
    encoded, encoded_lengths, _ = model.encoder(feats, lengths)
    attention = model._calc_att_loss(
        encoded, encoded_lengths, text, batch["text_lengths"]
    )[0]
    full = (0.3 * sum(ctc_losses) + 0.7 * 4 * attention) / sum(frames)
    assert losses[0] == pytest.approx(full.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.decoder.parameters())


# validation


def test_training_statistics_tell_the_phase_and_k(tiny_model, batch):
    names = {"loss", "phase", "loss_full", "loss_ctc_full"}
    for update, phase, more in (
        (0, 0, {}),
        (STEP1, 1, {"loss_current", "loss_ctc_current", "k"}),
        (
            STEP2,
            3,
            {f"{n}_{s}" for n in ("loss", "loss_ctc") for s in ("small", "medium")},
        ),
    ):
        conf = {"warm_start": 10, "step1": 50}
        stats = tiny_model(update=update, supernet=conf).train()(**batch)[1]
        assert stats.keys() == names | set(more)
        assert stats["phase"].item() == phase
        if "k" in more:
            # 8 units in 50 updates from 10 on; the first update has lost one
            assert stats["k"].item() == 12 - 1 - 20 * 8 // 50


def test_validation_statistics_with_layer_norm_are_of_every_size(tiny_model, batch):
    loss, stats, weight = tiny_model(update=STEP2 + 1)(**batch)
    sizes = ["full", "medium", "small"]
    assert stats.keys() == {
        *("loss", "loss_sizes"),
        *(f"loss_{size}" for size in sizes),
        *(f"{name}_{size}" for size in sizes for name in ("loss_ctc", "cer_ctc")),
    }
    assert loss == stats["loss"] == stats["loss_full"]
    mean = sum(stats[f"loss_{size}"] for size in sizes) / 3
    assert stats["loss_sizes"].item() == pytest.approx(mean.item(), rel=1e-6)


def test_validation_statistics_with_batch_norm_are_labelled(tiny_model, batch):
    stats = tiny_model(update=STEP2 + 1, conv_norm="batch_norm")(**batch)[1]
    assert stats.keys() == {
        *("loss", "loss_sizes", "loss_full", "loss_ctc_full", "cer_ctc_full"),
        *(
            f"{name}_{size}_uncalibrated"
            for size in ("medium", "small")
            for name in ("loss", "loss_ctc", "cer_ctc")
        ),
    }
    assert stats["loss_sizes"] == stats["loss_full"]


@pytest.mark.parametrize("update", [0, STEP1, STEP2 - 1, STEP2])
@pytest.mark.parametrize("conv_norm", ["layer_norm", "batch_norm"])
def test_no_checkpoint_is_chosen_before_the_selection(
    tiny_model, batch, update, conv_norm
):
    conf = {"warm_start": 10, "step1": 50}
    model = tiny_model(update=update, supernet=conf, conv_norm=conv_norm)
    stats = model(**batch)[1]
    # finite, because ESPnet's log discards what is not
    assert 1000 < stats["loss_sizes"].item() < float("inf")


def test_validation_losses_are_those_of_the_masked_net(tiny_model, batch):
    model = tiny_model(update=STEP2)
    stats = model(**batch)[1]
    for draw in model.supernet.validation_subnets():
        losses, frames = utterance_losses(model, draw, batch)
        expected = sum(losses).item() / sum(frames)
        assert stats[f"loss_{draw.size}"].item() == pytest.approx(expected, rel=1e-5)


# configurations


BAD_MODELS = [
    ({"ctc_weight": 0.0}, "ctc_weight must be above 0"),
    ({"loss_normalization": "tokens"}, "must be one of frames, batch"),
    ({"length_normalized_loss": True}, "length_normalized_loss cannot be combined"),
    ({"interctc_weight": 0.3}, "interctc_weight cannot be combined"),
    ({"aux_ctc": {"a": "b"}}, "aux_ctc cannot be combined"),
    ({"supernet": {"szies": {}}}, "unknown key 'szies'; did you mean 'sizes'"),
    ({"supernett": {}}, "model_conf has an unknown key 'supernett'; did you mean"),
]


@pytest.mark.parametrize("conf, sentence", BAD_MODELS)
def test_a_bad_model_option_gets_its_sentence(tiny_config, build, conf, sentence):
    config = tiny_config(attention=True)
    config["model_conf"] |= conf
    with pytest.raises(UserError, match=sentence):
        build(config)


def test_a_bad_encoder_option_gets_its_sentence(tiny_config, build):
    with pytest.raises(UserError, match="unknown key 'num_block'; did you mean 'num_b"):
        build(tiny_config(encoder={"num_block": 4}))


def test_another_encoder_is_refused(tiny_config, build):
    config = tiny_config()
    config["encoder"] = "conformer"
    config["encoder_conf"] = {"output_size": 16, "num_blocks": 1}
    with pytest.raises(UserError, match="needs encoder: layer_prunable_conformer"):
        build(config)


# stock checkpoints


def test_a_stock_checkpoint_starts_a_batch_norm_supernet(
    tiny_config, build, batch, tmp_path
):
    config = tiny_config(conv_norm="batch_norm")
    stock_config = tiny_config()
    stock_config |= {"model": "espnet", "encoder": "conformer"}
    stock_config["model_conf"] = {"ctc_weight": 1.0}
    stock_config["encoder_conf"]["macaron_style"] = True
    for name in ("conv_norm", "granularity"):
        del stock_config["encoder_conf"][name]
    stock = build(stock_config)
    torch.save(stock.state_dict(), tmp_path / "stock.pth")
    ours = build(config)
    load_pretrained_model(f"{tmp_path}/stock.pth", ours, ignore_init_mismatch=False)
    speech = batch["speech"], batch["speech_lengths"]
    expected, encoded = (model.eval().encode(*speech)[0] for model in (stock, ours))
    assert torch.allclose(encoded, expected, atol=1e-6, rtol=0)
    assert torch.equal(ours.ctc.argmax(encoded), stock.ctc.argmax(expected))


def test_a_batch_norm_checkpoint_is_refused_for_layer_norm(
    tiny_config, tiny_model, tmp_path
):
    path = tmp_path / "stock.pth"
    torch.save(tiny_model(conv_norm="batch_norm").state_dict(), path)
    config = {**tiny_config(), "init_param": [f"{path}:encoder:encoder"]}
    with pytest.raises(UserError, match="has BatchNorm .* use batch_norm"):
        OmniASRTask.main_worker(argparse.Namespace(**config))


def test_a_size_may_be_called_like_a_method_of_modules(tiny_model):
    model = tiny_model(heads="per_size", supernet={"sizes": {"half": 6}})
    assert model.head("half") is not model.ctc
