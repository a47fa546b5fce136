"""A learning rate in fractions of the run."""

import pytest
import torch
from espnet2.schedulers.piecewise_linear_warmup_lr import PiecewiseLinearWarmupLR
from helpers.trained import assert_same_training, load
from helpers.training import files_below, train, write_corpus

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.train.learning_rate import PiecewiseLinearLR

RATES = [0.0, 0.01, 0.0]


def scheduler_of(kind, steps, rates=RATES, total=None):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scheduler = kind(optimizer, steps, rates)
    if total is not None:
        scheduler.set_run_length(total)
    return scheduler


def rates_of(scheduler, updates):
    """The rate of each update."""
    found = []
    for _ in range(updates):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("total", [10, 40, 1000])
def test_the_rate_rises_and_falls_to_zero_at_any_length(total):
    scheduler = scheduler_of(PiecewiseLinearLR, [0, 0.1, 1.0], total=total)
    peak = total // 10
    expected = [
        0.01 * (n / peak if n <= peak else (total - n) / (total - peak))
        for n in range(1, total + 1)
    ]
    assert rates_of(scheduler, total) == pytest.approx(expected)


def test_updates_are_what_they_are_in_espnet():
    steps, rates = [0, 5, 20.0], [0.0, 0.3, 0.1]
    ours = scheduler_of(PiecewiseLinearLR, steps, rates, total=1000)
    stock = scheduler_of(PiecewiseLinearWarmupLR, steps, rates)
    assert rates_of(ours, 40) == rates_of(stock, 40)
    assert ours.state_dict() == stock.state_dict()


def test_fractions_and_updates_go_together():
    scheduler = scheduler_of(PiecewiseLinearLR, [0, 5, 0.5, 1.0], [0.0, 1, 1, 0], 40)
    rates = rates_of(scheduler, 40)
    assert rates[4:20] == [1.0] * 16 and rates[29] == 0.5 and rates[39] == 0.0


def test_a_run_that_goes_on_has_the_fractions_of_its_own_length():
    scheduler = scheduler_of(PiecewiseLinearLR, [0, 0.5, 1.0], total=20)
    first = rates_of(scheduler, 15)
    state = scheduler.state_dict()
    same = scheduler_of(PiecewiseLinearLR, [0, 0.5, 1.0], total=20)
    same.load_state_dict(state)
    whole = scheduler_of(PiecewiseLinearLR, [0, 0.5, 1.0], total=20)
    assert first + rates_of(same, 5) == rates_of(whole, 20)
    longer = scheduler_of(PiecewiseLinearLR, [0, 0.5, 1.0], total=40)
    longer.load_state_dict(state)
    whole = scheduler_of(PiecewiseLinearLR, [0, 0.5, 1.0], total=40)
    assert rates_of(longer, 25) == rates_of(whole, 40)[15:]


def test_what_cannot_be_a_schedule_is_refused():
    scheduler = scheduler_of(PiecewiseLinearLR, [0, 0.1, 1.0])
    with pytest.raises(UserError, match="0.1 is a fraction of a run whose length is"):
        scheduler.set_run_length(None)
    scheduler = scheduler_of(PiecewiseLinearLR, [0, 500, 1.0])
    with pytest.raises(UserError, match=r"is \[0, 500, 100\] in a run of 100 updates"):
        scheduler.set_run_length(100)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


OPTIONS = {
    "scheduler": "piecewiselinearwarmuplr",
    "model_conf": {"supernet": {"score_lr": None}},
}
CONF = {"warmup_steps_list": [0, 0.2, 1.0], "warmup_lr_list": [0.0, 0.002, 0.0]}


def command_of(corpus, exp, **options):
    import yaml

    command = corpus.command(exp, **{**OPTIONS, **options})
    file = exp.with_suffix(".yaml")
    settings = yaml.safe_load(file.read_text())
    settings["scheduler_conf"] = CONF
    file.write_text(yaml.safe_dump(settings))
    return command


def test_a_training_ends_at_zero_and_goes_on_as_if_nothing_had_been(corpus, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    outcome = train(command_of(corpus, whole), tmp_path / "log")
    assert outcome.code == 0, outcome.output
    state = load(whole / "checkpoint.pth")
    (scheduler,) = state["schedulers"]
    assert scheduler["warmup_steps_list"] == [0, 4, 20]
    command = command_of(corpus, killed)
    assert train(command, tmp_path / "log", kill_at_update=12).code == -9
    # the rate of the eleventh update, which it goes on with
    (group,) = load(killed / "checkpoint.pth")["optimizers"][0]["param_groups"][:1]
    assert group["lr"] == pytest.approx(0.002 * (20 - 11) / 16)
    assert train(command, tmp_path / "log").code == 0
    assert_same_training(killed, whole)


def test_a_baseline_of_espnets_own_model_has_it_too(corpus, tmp_path):
    import yaml

    exp = tmp_path / "exp"
    command = command_of(
        corpus, exp, best_model_criterion=[["valid", "loss", "min"]], max_epoch=1
    )
    file = exp.with_suffix(".yaml")
    settings = yaml.safe_load(file.read_text())
    settings |= {"model": "espnet", "encoder": "conformer"}
    settings["model_conf"] = {"ctc_weight": 1.0}
    file.write_text(yaml.safe_dump(settings))
    assert train(command, tmp_path / "log").code == 0
    (scheduler,) = load(exp / "checkpoint.pth")["schedulers"]
    assert scheduler["warmup_steps_list"] == [0, 1, 5]


def test_steps_that_fall_are_refused_before_the_training(corpus, tmp_path):
    exp = tmp_path / "exp"
    command = command_of(corpus, exp)
    file = exp.with_suffix(".yaml")
    file.write_text(file.read_text().replace("- 0.2\n", "- 500\n"))
    outcome = train(command, tmp_path / "log")
    assert "must rise: give fractions alone" in outcome.sentence
    assert not any(name.endswith(".pth") for name in files_below(exp))
