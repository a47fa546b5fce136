"""Gradual pruning in stages, at whose ends the nets of the sizes are kept."""

import pytest
import torch
from helpers.tiny import changed
from helpers.trained import assert_same_tensors, load
from helpers.training import CONFIG, train, write_corpus

from espnet_omnisparse.core.layout import MASK_ORDER
from espnet_omnisparse.core.schedule import Stage, Timeline, stages_of
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import (
    checkpoint_of,
    extract_size,
    load_size,
    selected_specs,
)
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.phases import phases_of
from espnet_omnisparse.supernet.plan import Plan
from espnet_omnisparse.train.journal import read_log

SUPERNET = {
    "method": "none",
    "sizes": {"s75": {"sparsity": 0.75}, "s50": {"sparsity": 0.5}},
    "sparsity": {
        "final": 0.75,
        "snapshots": 0.5,
        "sandwich": ["sparsest"],
        "refresh": 1,
    },
    "warm_start": 4,
}


def read(**sparsity) -> SupernetConfig:
    return SupernetConfig.read(changed(SUPERNET, {"sparsity": sparsity}))


class NoSelection:
    learns = False


def test_stages_follow_each_other_to_the_end_of_the_run():
    timeline = phases_of(read(), NoSelection(), False, 20)
    assert timeline.stages == (
        Stage("s50", 0.0, 0.5, 4, 8, 12),
        Stage("s75", 0.5, 0.75, 12, 16, 20),
    )
    assert timeline.settled_at == 16  # checkpoints are averaged in the last part only
    shares = [timeline.stage(update) for update in range(21)]
    assert shares[:4] == [None] * 4
    now = [stage.sparsity(update) for update, stage in enumerate(shares) if stage]
    assert now == sorted(now)
    assert now[4:9] == [0.5] * 5 and now[12:] == [0.75] * 5  # updates 8-12, 16-20
    still = [timeline.masks_stand(update) for update in range(21)]
    assert [update for update in range(21) if still[update]] == [
        *(8, 9, 10, 11),
        *(16, 17, 18, 19, 20),
    ]


def test_a_plan_with_stages_survives_a_checkpoint():
    plan = Plan({}, Timeline(1, 0, 2, 3, stages_of({"a": 0.5}, 1, 9, 0.5)), 9)
    assert Plan.from_dict(plan.as_dict()) == plan
    old = plan.as_dict()
    del old["timeline"]["stages"]
    assert Plan.from_dict(old).timeline.stages == ()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sparsity": {"sandwich": ["dense", "sparsest"]}}, "needs sandwich: "),
        ({"sparsity": {"settle": 0.2}}, "without settle"),
        ({"sizes": {"small": 4}}, "needs sizes that have a sparsity"),
        ({"sparsity": {"snapshots": 1.0}}, "at least 0 and below 1"),
    ],
)
def test_what_does_not_go_with_snapshots_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        SupernetConfig.read(changed(SUPERNET, changes))


def test_a_run_too_short_for_its_stages_is_refused():
    with pytest.raises(UserError, match="too short for 2 stages"):
        phases_of(read(), NoSelection(), False, 6)
    with pytest.raises(UserError, match="length is unknown"):
        phases_of(read(), NoSelection(), False, None)


def command(corpus, folder):
    base = changed(
        CONFIG,
        {
            "encoder": "omni_sparse_conformer",
            "encoder_conf": {"pattern": "8x1", "conv_norm": "layer_norm"},
        },
    )
    conf = {"ctc_weight": 1.0, "supernet": SUPERNET}
    return corpus.command(folder, {**base, "model_conf": conf})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """4 epochs of 5 updates, uninterrupted: the ends are at 4, 12 and 20."""
    exp = tmp_path_factory.mktemp("exp") / "asr_net"
    done = train(command(corpus, exp), exp.with_suffix(".log"))
    assert done.code == 0, done.output
    return exp


SIZES = ("full", "s50", "s75")


def test_a_snapshot_is_the_state_at_its_update(trained):
    states = {size: load(trained / f"snapshots/{size}.pth") for size in SIZES}
    ends = [int(states[size]["supernet.updates"]) for size in SIZES]
    assert ends == [4, 12, 20]
    # the last one's is the last epoch's
    assert_same_tensors(states["s75"], load(trained / "4epoch.pth"))
    orders = {
        size: {n: t for n, t in state.items() if n.startswith(MASK_ORDER)}
        for size, state in states.items()
    }
    assert all((one == -1).all() for one in orders["full"].values())
    assert all((one >= 0).all() for one in orders["s50"].values())
    # each stage has a mask of its own: it is made anew
    assert any(
        not torch.equal(one, orders["s75"][name]) for name, one in orders["s50"].items()
    )
    assert [line["max_sparsity"] for line in read_log(trained)][-1] == 0.75


def test_each_size_is_cut_out_of_its_own_net(trained, tmp_path):
    specs = selected_specs(trained)
    assert set(specs) == set(SIZES)
    name = "encoder.encoders.0.feed_forward.w_1.weight"
    for size, share in zip(SIZES, (0.0, 0.5, 0.75), strict=True):
        checkpoint = checkpoint_of(trained, size, "valid.loss_sizes.ave.pth")
        assert checkpoint == trained / f"snapshots/{size}.pth"
        out = tmp_path / size
        assert extract_size(trained, checkpoint, specs[size], out)
        weight = dict(load_size(out).named_parameters())[name]
        assert (weight == 0).float().mean() == share
        kept = load(checkpoint)[name]
        assert torch.equal(weight[weight != 0], kept[weight != 0])
    assert checkpoint_of(trained, "other", "a.pth") == trained / "a.pth"


def test_an_interrupted_run_keeps_the_same_nets(trained, corpus, tmp_path):
    exp = tmp_path / "asr_net"
    arguments, log = command(corpus, exp), tmp_path / "log"
    killed = train(arguments, log, kill_in_save=("checkpoint.pth", 3))
    assert killed.code == -9, killed.output
    assert train(arguments, log).code == 0
    for size in SIZES:
        name = f"snapshots/{size}.pth"
        assert_same_tensors(load(exp / name), load(trained / name))
