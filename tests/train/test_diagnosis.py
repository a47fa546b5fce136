"""What the log says of gradients, against backward passes made one by one."""

import math

import pytest
import torch
from helpers.gradients import gradients, rows
from helpers.masks import with_masks
from helpers.tiny import changed
from helpers.trained import assert_same_tensors, assert_same_training, load
from helpers.training import train

from espnet_omnisparse.report.diagnosis import diagnosis_figure
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.train.journal import read_log

CONF = {
    "method": "none",
    "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}},
    "sparsity": {"final": 0.8, "ramp": 20, "refresh": 1, "diagnose": 5},
    "warm_start": 10,
    "update": "split_batch",
}


@pytest.fixture
def masked(tiny_config, build):
    """A supernet of sparsities at an update of a run of 100."""

    def make(update=50, supernet=None, **encoder):
        encoder = {"pattern": "8x1", **encoder}
        conf = changed(CONF, supernet or {})
        config = tiny_config(encoder=encoder, supernet=conf)
        config["encoder"] = "omni_sparse_conformer"
        return build(config, update=update).train()

    return make


def slowly(model, share, batch):
    """Cosine and norms by a pass of its own for each net, with masks put in by hand."""
    found, kept = [], {}
    weights = model.encoder.maskable()
    for sparsity in (0.0, share):
        originals = {name: w.detach().clone() for name, w in weights.items()}
        names = {id(p): n for n, p in model.named_parameters()}
        with torch.no_grad():
            for name, weight in weights.items():
                blocks = weight.abs().flatten(1).unflatten(0, (-1, 8)).sum(1)
                order = blocks.flatten().argsort()
                keep = torch.ones(blocks.numel(), dtype=torch.bool)
                keep[order[: round(sparsity * blocks.numel())]] = False
                mask = keep.view_as(blocks).repeat_interleave(8, 0).view_as(weight)
                weight.mul_(mask)
                kept[name] = mask
        encoded, lengths, _ = model.encoder(batch["speech"], batch["speech_lengths"])
        loss = model.ctc(encoded, lengths, batch["text"], batch["text_lengths"])
        every = gradients(model, loss)
        found.append({name: every[names[id(w)]] for name, w in weights.items()})
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(originals[name])
    product = squares = dense_kept = dense_masked = 0.0
    for name, mask in kept.items():
        dense, sparse = (one[name].double() for one in found)
        product += float((dense * sparse * mask).sum())
        squares += float((sparse**2 * mask).sum())
        dense_kept += float((dense**2 * mask).sum())
        dense_masked += float((dense**2 * ~mask).sum())
    return {
        "cosine": product / math.sqrt(squares * dense_kept),
        "norm_kept": math.sqrt(squares),
        "dense_norm_kept": math.sqrt(dense_kept),
        "dense_norm_masked": math.sqrt(dense_masked),
    }


@pytest.mark.parametrize("front", (False, True))
def test_it_is_what_separate_backward_passes_give(masked, batch, front):
    model = masked(mask_front_end=front)
    model(**batch)
    found = model.diagnosis.means()
    assert found.keys() == {"s40", "s80"}
    for name, share in (("s40", 0.4), ("s80", 0.8)):
        assert found[name] == pytest.approx(slowly(model, share, batch), rel=1e-4)
    assert -1.0 < found["s80"]["cosine"] < found["s40"]["cosine"] < 1.0


@pytest.mark.parametrize("front", (False, True))
def test_it_is_the_same_in_mixed_precision(masked, batch, front):
    model = masked(mask_front_end=front)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    expected = slowly(model, 0.8, batch)
    assert model.diagnosis.means()["s80"] == pytest.approx(expected, rel=1e-4)


def test_it_takes_a_few_utterances_and_an_epochs_mean(masked, batch, monkeypatch):
    monkeypatch.setattr("espnet_omnisparse.train.diagnosis.UTTERANCES", 3)
    model = masked()
    model(**batch)
    model(**batch)  # a second micro-batch of the same update
    first = slowly(model, 0.8, rows(batch, [0, 1, 2]))
    assert model.diagnosis.means()["s80"] == pytest.approx(first, rel=1e-4)
    model.supernet.update = 55
    with torch.no_grad():
        for weight in model.encoder.maskable().values():
            weight += 0.1 * torch.randn_like(weight)
    model(**batch)
    second = slowly(model, 0.8, rows(batch, [0, 1, 2]))
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    assert model.diagnosis.means()["s80"] == pytest.approx(mean, rel=1e-4)
    model.diagnosis.begin_epoch()
    assert model.diagnosis.means() == {}


@pytest.mark.parametrize(
    "update, supernet",
    [
        (51, None),  # not now
        (5, None),  # no masks yet
        (50, {"sparsity": {"diagnose": 0}}),
        (50, {"sparsity": {"sandwich": ["sparsest"]}, "update": "per_batch"}),
    ],
)
def test_else_nothing_is_measured(masked, batch, update, supernet):
    model = masked(update, supernet)
    model(**batch)
    assert model.diagnosis.means() == {}


@pytest.mark.parametrize("conv_norm", ["layer_norm", "batch_norm"])
def test_training_does_not_notice(masked, batch, conv_norm):
    losses, states = [], []
    for diagnose in (0, 2):
        model = masked(
            40,
            {"sparsity": {"diagnose": diagnose, "refresh": 3}},
            conv_norm=conv_norm,
            dropout_rate=0.2,
            positional_dropout_rate=0.2,
        )
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        row = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(**batch)[0]
            loss.backward()
            optimizer.step()
            model.supernet.count_update()
            row.append(loss.item())
        assert bool(model.diagnosis.means()) == bool(diagnose)
        losses.append(row)
        states.append(dict(model.state_dict()))
    assert losses[0] == losses[1]
    assert_same_tensors(states[0], states[1])


# whole trainings, with dropout

TRAINING = with_masks(diagnose=2)
OFF = {"model_conf": {"supernet": {"sparsity": {"diagnose": 0}}}}


def test_the_log_of_a_resumed_training_says_the_same(corpus, uninterrupted, tmp_path):
    lines = read_log(uninterrupted)
    for line in lines:
        for found in line["gradients"].values():
            assert -1.0 < found["cosine"] < 1.0 and found["norm_kept"] > 0.0
    exp = tmp_path / "exp"
    command = corpus.command(exp, **TRAINING)
    assert train(command, tmp_path / "log", kill_at_update=13).code == -9
    assert train(command, tmp_path / "log").code == 0
    assert_same_training(exp, uninterrupted)


def test_a_training_may_stop_to_measure_and_learns_the_same(
    corpus, uninterrupted, tmp_path
):
    exp = tmp_path / "exp"
    assert (
        train(corpus.command(exp, **TRAINING), tmp_path / "log", kill_at_update=7).code
        == -9
    )
    outcome = train(corpus.command(exp, **changed(TRAINING, OFF)), tmp_path / "log")
    assert outcome.code == 0, outcome.output
    lines = read_log(exp)
    assert ["gradients" in line for line in lines] == [True, False, False, False]
    assert_same_tensors(load(exp / "4epoch.pth"), load(uninterrupted / "4epoch.pth"))


# the figure


def test_the_figure_shows_what_the_log_has(uninterrupted):
    log = read_log(uninterrupted)
    flips, cosines, norms = diagnosis_figure(log).axes
    for axes, value in (
        (flips, lambda line, size: 100 * line["flip_rate"][size]),
        (cosines, lambda line, size: line["gradients"][size]["cosine"]),
    ):
        drawn = {line.get_label(): line for line in axes.get_lines()}
        for size in ("small", "medium"):
            assert list(drawn[size].get_xdata()) == [line["update"] for line in log]
            assert list(drawn[size].get_ydata()) == [value(one, size) for one in log]
    assert len(norms.get_lines()) == 4


def test_without_masks_there_is_no_figure():
    assert diagnosis_figure([{"update": 5}]) is None
    assert diagnosis_figure([]) is None


def test_gradients_may_be_missing_in_the_log_of_an_earlier_version():
    log = [{"update": n, "flip_rate": {"s90": 0.1 * n}} for n in (1, 2)]
    assert len(diagnosis_figure(log).axes) == 1


def test_how_often_is_checked():
    with pytest.raises(Exception, match="diagnose must be a number of updates, or 0"):
        SupernetConfig.read({"sparsity": {"diagnose": -1}})
