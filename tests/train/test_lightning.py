"""Supernets under ESPnet3's own trainer."""

import copy
from pathlib import Path

import pytest
import torch
from espnet2.train.collate_fn import CommonCollateFn
from espnet3.components.data import data_organizer
from espnet3.systems.base.training import train
from helpers import tiny
from omegaconf import OmegaConf

from espnet_omnisparse import cli
from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.schedule import STEP1, STEP2, WARM
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment
from espnet_omnisparse.extract.names import CHECKPOINT
from espnet_omnisparse.files import load_tensors, read_yaml
from espnet_omnisparse.train.asr_model import OmniASRModel
from espnet_omnisparse.train.journal import SUBNETS, read_log, read_specs
from espnet_omnisparse.train.lightning import AVERAGE

TRAIN, VALID, BATCH = 12, 4, 2
EPOCHS = 4
UPDATES = EPOCHS * TRAIN // BATCH
NAMES = ("encoder", "encoder_conf", "model", "model_conf", "input_size", "token_list")
CALLBACK = "espnet_omnisparse.train.lightning.SupernetCallback"
EARLY = "lightning.pytorch.callbacks.EarlyStopping"


class Utterances(torch.utils.data.Dataset):
    """Features of as many frames as the utterance's number says, and labels."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(int(index))
        feats = torch.randn(40 + int(index), tiny.FEATURES, generator=generator)
        text = torch.randint(2, 5, (3,), generator=generator)
        return {"speech": feats.numpy(), "text": text.numpy()}


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """The configuration of a training in egs3's style."""
    monkeypatch.setattr(
        data_organizer,
        "instantiate_dataset_reference",
        lambda config, recipe_dir=None: Utterances(
            VALID if config["data_src"] == "valid" else TRAIN
        ),
    )

    def make(supernet=None, **changes):
        given = tiny.asr_config(
            {"conv_norm": "layer_norm"},
            {"warm_start": 4, "step1": 8, **(supernet or {})},
        )
        model = {name: given[name] for name in NAMES}
        off = dict.fromkeys(("frontend", "specaug", "normalize", "decoder"))
        loader = {"batch_size": BATCH, "num_workers": 0, "iter_factory": None}
        config = {
            "task": "espnet_omnisparse.tasks.OmniASRTask",
            "seed": 1,
            "num_device": 1,
            "num_nodes": 1,
            "exp_dir": str(tmp_path / "exp"),
            "model": {**model, **off},
            "dataset": {
                "_target_": "espnet3.components.data.data_organizer.DataOrganizer",
                "train": [{"name": "train", "data_src": "train"}],
                "valid": [{"name": "valid", "data_src": "valid"}],
            },
            "dataloader": {"train": loader, "valid": loader},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.002},
            "scheduler": {
                "_target_": "torch.optim.lr_scheduler.ConstantLR",
                "factor": 1.0,
            },
            "scheduler_interval": "step",
            "best_model_criterion": [["valid/loss_sizes", 2, "min"]],
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": EPOCHS,
                "log_every_n_steps": 1,
                "logger": [
                    {
                        "_target_": "lightning.pytorch.loggers.CSVLogger",
                        "save_dir": str(tmp_path),
                    }
                ],
                "callbacks": [{"_target_": CALLBACK, "exp_dir": "${exp_dir}"}],
            },
        }
        return OmegaConf.create(tiny.changed(config, changes))

    return make


@pytest.fixture
def watched(monkeypatch):
    """What each training pass saw: the update, its phase, the net before the first."""
    seen = []
    plain = OmniASRModel.forward

    def forward(self, **batch):
        if self.training:
            state = {} if seen else copy.deepcopy(self.state_dict())
            seen.append((self.supernet.update, self.supernet.phase, state))
        return plain(self, **batch)

    monkeypatch.setattr(OmniASRModel, "forward", forward)
    return seen


def trained_plainly(config, state):
    """The same training in a loop that anybody can read."""
    torch.manual_seed(0)
    model = experiment.build(read_yaml(Path(config.exp_dir) / "config.yaml"), state)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    model.supernet.begin(UPDATES, optimizer)
    dataset, collate = Utterances(TRAIN), CommonCollateFn(int_pad_value=-1)
    for _ in range(EPOCHS):
        model.train()
        for start in range(0, TRAIN, BATCH):
            items = [(str(n), dataset[n]) for n in range(start, start + BATCH)]
            optimizer.zero_grad()
            model(**collate(items)[1])[0].backward()
            optimizer.step()
    return model.state_dict()


def test_the_schedule_advances_as_in_a_plain_loop(configured, watched):
    config = configured()
    train(config)
    assert [update for update, _, _ in watched] == list(range(UPDATES))
    phases = [phase for _, phase, _ in watched]
    assert phases == [WARM] * 4 + [STEP1] * 8 + [STEP2] * (UPDATES - 12)
    state = watched[0][2]
    last = load_tensors(Path(config.exp_dir) / f"step{UPDATES}.ckpt")["state_dict"]
    for name, tensor in trained_plainly(config, state).items():
        torch.testing.assert_close(last[name], tensor, atol=1e-5, rtol=1e-4)


def test_its_sizes_are_extracted_as_any_others(configured, capsys):
    config = configured()
    train(config)
    exp = Path(config.exp_dir)
    assert (exp / AVERAGE).exists() and AVERAGE == CHECKPOINT
    cli.main(["extract", str(exp)])
    full, small = (experiment.load_size(f"{exp}_{n}") for n in ("full", "small"))
    counts = [sum(p.numel() for p in model.parameters()) for model in (full, small)]
    assert counts[0] > 1.5 * counts[1]
    supernet = experiment.build(
        experiment.read_config(exp), load_tensors(exp / AVERAGE)
    )
    spec = read_specs(exp / SUBNETS)["small"]
    batch = torch.randn(1, 60, tiny.FEATURES), torch.tensor([60])
    masked, _, _ = supernet.encoder(*batch, gates=mask_gates(torch.tensor(spec.mask)))
    torch.testing.assert_close(small.encode(*batch)[0], masked)


def test_weights_are_averaged_and_nothing_else(configured):
    config = configured()
    train(config)
    exp = Path(config.exp_dir)
    average = load_tensors(exp / AVERAGE)
    states = [load_tensors(p)["state_dict"] for p in exp.glob("*loss_sizes.ckpt")]
    assert len(states) == 2
    name = "ctc.ctc_lo.weight"
    torch.testing.assert_close(average[name], sum(s[name] for s in states) / 2)
    assert average["supernet.updates"] == max(s["supernet.updates"] for s in states)


def test_a_resumed_run_keeps_its_phases_and_count(configured, watched):
    config = configured(trainer={"max_epochs": 3})
    train(config)
    made = 3 * TRAIN // BATCH
    last = Path(config.exp_dir) / f"step{made}.ckpt"
    train(configured(fit={"ckpt_path": str(last)}))
    assert [update for update, _, _ in watched] == list(range(UPDATES))
    assert [phase for _, phase, _ in watched][4:12] == [STEP1] * 8
    with pytest.raises(UserError, match="step1: 8, not 6"):
        train(configured({"step1": 6}, fit={"ckpt_path": str(last)}))


@pytest.mark.parametrize("accumulated", [2, 4])
def test_an_update_of_several_batches_counts_once(configured, watched, accumulated):
    config = configured(
        {"warm_start": 1, "step1": 6}, trainer={"accumulate_grad_batches": accumulated}
    )
    train(config)
    # Lightning makes an update of what remains at the end of an epoch
    batches = TRAIN // BATCH
    of_epoch = [batch // accumulated for batch in range(batches)]
    updates = of_epoch[-1] + 1
    expected = [updates * e + n for e in range(EPOCHS) for n in of_epoch]
    assert [update for update, _, _ in watched] == expected
    log = read_log(Path(config.exp_dir))
    assert [line["update"] for line in log] == [
        updates * (epoch + 1) for epoch in range(EPOCHS)
    ]


def test_the_log_tells_of_every_epoch_once(configured):
    config = configured(trainer={"max_epochs": 3})
    train(config)
    exp, made = Path(config.exp_dir), 3 * TRAIN // BATCH
    before = read_log(exp)
    assert [line["epoch"] for line in before] == [1, 2, 3]
    train(configured(fit={"ckpt_path": str(exp / f"step{made}.ckpt")}))
    log = read_log(exp)
    assert log[:3] == before
    assert [line["epoch"] for line in log] == [*range(1, EPOCHS + 1)]
    spec = read_specs(exp / SUBNETS)["small"]
    assert log[-1]["kept"]["small"] == sum(spec.mask)
    assert all(line["train_seconds"] > 0.0 for line in log)


@pytest.mark.parametrize(
    "supernet, changes, sentence",
    [
        ({"score_lr": 0.1}, {}, "score_lr has no meaning"),
        ({}, {"best_model_criterion": [["valid/loss", 1, "min"]]}, "loss_sizes"),
        ({}, {"trainer": {"max_epochs": -1}}, "the run's length"),
        (
            {},
            {
                "trainer": {
                    "callbacks": [
                        {"_target_": CALLBACK, "exp_dir": "${exp_dir}"},
                        {"_target_": EARLY, "monitor": "valid/loss"},
                    ]
                }
            },
            "EarlyStopping cannot",
        ),
        ({"update": "per_accum"}, {}, "set accumulate_grad_batches to 3 or a multiple"),
        ({}, {"model": {"model": "espnet", "model_conf": {}}}, "is for supernets"),
    ],
)
def test_what_does_not_suit_a_supernet_is_told(configured, supernet, changes, sentence):
    config = configured(supernet)
    if "model" in changes:
        config.model.model = "espnet"
        config.model.model_conf = {"ctc_weight": 1.0}
    else:
        config = configured(supernet, **changes)
    with pytest.raises(UserError, match=sentence):
        train(config)


def test_without_the_callback_the_way_is_told(configured):
    config = configured(trainer={"callbacks": []})
    with pytest.raises(UserError, match="SupernetCallback"):
        train(config)
