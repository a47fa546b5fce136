"""Trainings of the standalone transducer as a supernet, in processes of their own."""

from pathlib import Path

import pytest
import torch
from helpers.tiny import BLOCK, transducer_config
from helpers.trained import assert_same_training, history, load, subnets
from helpers.training import (
    Corpus,
    checksums,
    draws,
    train,
    two_processes,
    write_corpus,
)
from helpers.transducers import AUDIO, TRAINING

LIVE = {"size": 4, "left": 4}


def training_config(supernet, block=None, **changes):
    """The file of a small transducer's training, 5 updates an epoch."""
    body = [{**BLOCK, "num_blocks": 2, **(block or {})}]
    config = transducer_config(
        supernet, encoder={"body_conf": body}, auxiliary_ctc_weight=0.3
    )
    parts = ("encoder_conf", "decoder", "decoder_conf", "joint_network_conf")
    config = {name: config[name] for name in (*parts, "model_conf")}
    return {**config, **AUDIO, **TRAINING, "max_epoch": 4, **changes}


def command(corpus: Corpus, exp: Path, config: dict, **changes) -> list[str]:
    """As asr.sh starts the training."""
    arguments = corpus.command(exp, config, **changes)
    return ["-m", "espnet2.bin.asr_transducer_train", *arguments]


# --- interrupted trainings ---------------------------------------------------------

# BatchNorm, dropout and Adam have a state as well; the ramp is from 2 to 10
INTERRUPTED = training_config(
    {
        "method": "none",
        "sizes": {
            "small": {"sparsity": 0.8},
            "medium": {"sparsity": 0.4, "chunk": "full"},
        },
        "sparsity": {
            "final": 0.8,
            "ramp": 8,
            "sandwich": ["dense", "sparsest", "nearby"],
            "refresh": 3,
        },
        "chunks": ["full", LIVE],
        "warm_start": 2,
        "update": "split_batch",
        "distillation": "kl",
    },
    block={"pos_wise_dropout_rate": 0.1, "att_dropout_rate": 0.1},
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    outcome = train(command(corpus, folder / "exp", INTERRUPTED), folder / "log")
    assert outcome.code == 0, outcome.output
    return folder / "exp"


def logged(exp: Path) -> dict:
    """All that the trainer has reported but times, by epoch and part."""
    return {
        (epoch, part): {n: v for n, v in values.items() if not n.endswith("time")}
        for epoch, parts in load(exp / "checkpoint.pth")["reporter"]["stats"].items()
        for part, values in parts.items()
    }


@pytest.mark.parametrize("update, epoch", [(7, 1), (18, 3)])
def test_a_training_killed_in_mid_epoch_and_resumed_equals_an_uninterrupted_one(
    corpus, uninterrupted, tmp_path, update, epoch
):
    exp = tmp_path / "exp"
    arguments = command(corpus, exp, INTERRUPTED)
    killed = train(arguments, tmp_path / "log", kill_at_update=update)
    assert killed.code == -9, killed.output
    assert load(exp / "checkpoint.pth")["reporter"]["epoch"] == epoch
    resumed = train(arguments, tmp_path / "log")
    assert resumed.code == 0, resumed.output
    assert "The training was resumed" in resumed.output
    assert_same_training(exp, uninterrupted)
    expected = logged(uninterrupted)
    assert logged(exp) == expected
    assert {"loss_full", "loss_sparsest", "loss_nearby"} <= expected[4, "train"].keys()


# --- several processes -------------------------------------------------------------

# step 1 to 8, the ramp to 11
SAME_ON_BOTH = training_config(
    {
        "method": "simple_topk",
        "sizes": {"small": {"units": 5, "sparsity": 0.5}},
        "sparsity": {
            "final": 0.5,
            "ramp": 3,
            "sandwich": ["dense", "sparsest", "nearby"],
        },
        "chunks": ["full", LIVE],
        "step1": 8,
        "score_lr": 100.0,
    },
    block={"pos_wise_dropout_rate": 0.0, "att_dropout_rate": 0.0},
    max_epoch=3,
    batch_size=3,
    # Adam would blow rounding up wherever a gradient is zero
    optim="sgd",
    optim_conf={"lr": 1.0},
)
SAME_ON_BOTH["encoder_conf"]["conv_norm"] = "layer_norm"


@pytest.fixture(scope="module")
def batches_of_three(tmp_path_factory) -> Corpus:
    """Of which one process gets two utterances, the other one as long as the longest.

    Were they shared out evenly, a wrong scale would be the same for both.
    """
    corpus = write_corpus(tmp_path_factory.mktemp("threes"))
    for path in (corpus.folder / "train").iterdir():
        if path.suffix == ".wav":
            continue
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines) if number % 4 < 3]
        path.write_text("".join(kept))
    return corpus


def test_two_processes_train_as_one_does_by_one_backward_of_all_subnets(
    batches_of_three, tmp_path
):
    alone, together = tmp_path / "alone", tmp_path / "together"
    arguments = command(batches_of_three, alone, SAME_ON_BOTH)
    single = train(arguments, tmp_path / "single", print_draws=True, one_backward=True)
    assert single.code == 0, single.output
    options = {"multiprocessing_distributed": False, "dist_backend": "gloo"}
    outcomes = two_processes(
        command(batches_of_three, together, SAME_ON_BOTH, **options), tmp_path
    )

    drawn = draws(single.output)
    assert len(drawn) == 15 and any("'nearby'" in line for line in drawn)
    assert [draws(outcome.output) for outcome in outcomes] == [drawn, drawn]
    sums = [checksums(outcome.output) for outcome in outcomes]
    assert sums[0] == sums[1] and len(set(sums[0])) == 3
    # scores and weights move by far more than the tolerance
    scores = [line["scores"] for line in history(alone)]
    assert max(abs(a - b) for a, b in zip(*scores[:2], strict=True)) > 5e-3
    first, _, last = (load(alone / f"{epoch}epoch.pth") for epoch in (1, 2, 3))
    for part in ("encoder.", "decoder.", "joint_network.", "ctc_"):
        names = [name for name in first if name.startswith(part)]
        assert max((first[n] - last[n]).abs().max() for n in names) > 1e-3, part
    for epoch in (1, 2, 3):
        one, two = (load(exp / f"{epoch}epoch.pth") for exp in (alone, together))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    assert subnets(alone) == subnets(together)
