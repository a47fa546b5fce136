"""Weights that the sparsest size that keeps them has to itself, once masks settle."""

import pytest
import torch
from helpers.gradients import gradients
from helpers.masks import go_on, smallest_blocks, with_masks
from helpers.tiny import changed
from helpers.trained import load
from helpers.training import assert_goes_on

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.supernet.sampling import SampledSubnet

# of a run of 100: warm start to 10, ramp to 30, settled from 70
CONF = {
    "method": "none",
    "sizes": {
        "s40": {"sparsity": 0.4},
        "s60": {"sparsity": 0.6},
        "s80": {"sparsity": 0.8},
    },
    "sparsity": {
        "final": 0.8,
        "ramp": 20,
        "settle": 0.3,
        "shells": True,
        "own": "norms_and_biases",
        "sandwich": ["dense", "sparsest", "size"],
    },
    "warm_start": 10,
}


@pytest.fixture
def settled(tiny_config, build, batch):
    """A supernet whose masks stand still, of a run of 100 updates."""

    def make(update=71, encoder=None, **sparsity):
        conf = changed(CONF, {"sparsity": sparsity})
        encoder = {"pattern": "8x1", **(encoder or {})}
        config = tiny_config(encoder=encoder, supernet=conf)
        config["encoder"] = "omni_sparse_conformer"
        model = build(config, update=69)
        go_on(model, batch, update)
        return model

    return make


def loss_of(model, batch, share):
    """One net's loss, as an update has it but for dropout."""
    space, encoder = model.encoder.space, model.encoder
    sparsity = (share,) * len(space.weights) if share else ()
    made = model.make_batch(*(batch[n] for n in list(batch)[:4]))
    hidden = encoder.front_end(made.feats, made.feats_lengths, sparsity)
    return model.subnet_loss(
        hidden, made, SampledSubnet("full", None, sparsity=sparsity)
    )


def masks(weights):
    """Which elements each net keeps, slowly, of the weights when masks settle."""
    return {
        share: {n: ~smallest_blocks(w, share) for n, w in weights.items()}
        for share in (0.0, 0.4, 0.5, 0.6, 0.8)
    }


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize(
    "share, core", [(0.8, None), (0.6, 0.8), (0.5, 0.6), (0.4, 0.6), (0.0, 0.4)]
)
def test_a_net_trains_what_no_sparser_size_has_and_nothing_else(
    settled, batch, share, core, front
):
    encoder = {"mask_front_end": True} if front else {}
    model = settled(update=70, encoder=encoder)
    kept = masks(model.encoder.maskable())
    go_on(model, batch, 71)
    model.eval()
    with model.encoder.without_shells():
        loss = loss_of(model, batch, share)
        whole = gradients(model, loss)
    alone = loss_of(model, batch, share)
    assert torch.equal(alone, loss)  # what it computes is the same
    found = gradients(model, alone)
    names = {id(p): name for name, p in model.named_parameters()}
    weights = {names[id(w)]: n for n, w in model.encoder.maskable().items()}
    assert weights.keys() <= found.keys()
    for name, gradient in whole.items():
        if name in weights:
            keep = kept[share][weights[name]]
            assert not gradient[~keep].any()
            inner = kept[core][weights[name]] if core else torch.zeros_like(keep)
            assert (inner <= keep).all() and not found[name][inner].any()
            gradient = torch.where(inner, torch.zeros(()), gradient)
        # norms, biases, heads: all nets train them that have them
        assert torch.equal(found[name], gradient), name
    assert any(found[name].any() for name in weights)


def test_denser_nets_leave_the_core_as_it_is_bit_by_bit(settled, batch):
    model = settled(sandwich=["dense", "s40", "s60"])
    weights = model.encoder.maskable()
    core = model.encoder.kept_weights((0.8,) * len(weights))
    before = {n: w.detach().clone() for n, w in weights.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        model(**batch)[0].backward()
        optimizer.step()
        model.supernet.count_update()
    for name, weight in weights.items():
        keep = core[name]
        assert torch.equal(weight[keep], before[name][keep]), name
        assert not torch.equal(weight[~keep], before[name][~keep]), name


def test_conflicts_are_looked_for_on_the_weights_that_nets_share(settled, batch):
    model = settled(diagnose=1)
    model.diagnosis.begin_epoch()  # what was measured before masks settled
    go_on(model, batch, 72)
    means = model.diagnosis.means()
    assert means.keys() == {"s40", "s60", "s80"}
    for size, found in means.items():
        assert found["dense_norm_kept"] > 0.0, size


def test_until_masks_settle_all_nets_train_all_that_they_keep(settled, batch):
    model = settled(update=60)
    model.eval()
    with model.encoder.without_shells():
        whole = gradients(model, loss_of(model, batch, 0.0))
    found = gradients(model, loss_of(model, batch, 0.0))
    for name, gradient in whole.items():
        assert torch.equal(found[name], gradient), name


def test_without_masks_that_settle_there_are_none(settled):
    with pytest.raises(UserError, match="shells needs masks that stand still"):
        settled(settle=0)


# whole trainings: warm start to 2, ramp to 7, settled from 12 of 20 updates
TRAINING = with_masks(
    settle=0.4, shells=True, own="norms_and_biases", sandwich=["dense", "sparsest"]
)


@pytest.mark.parametrize("update", [11, 16])
def test_a_training_killed_before_and_after_goes_on_as_if_nothing_had_been(
    corpus, uninterrupted, tmp_path, update
):
    exp = tmp_path / "exp"
    assert_goes_on(corpus.command(exp, **TRAINING), exp, update, uninterrupted)
    state = load(uninterrupted / "4epoch.pth")
    assert any("supernet.order." in name for name in state)
