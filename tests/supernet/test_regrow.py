"""Masks that take nothing back: what the ramp has dropped stays out."""

import pytest
import torch
from helpers.masks import go_on, smallest_blocks, spec_of, with_masks, zeros
from helpers.tiny import changed
from helpers.trained import assert_same_tensors, load
from helpers.training import assert_goes_on

from espnet_omnisparse.core.mask import Pattern, group_ranks, group_shape, weight_mask
from espnet_omnisparse.core.weight_masks import MaskOrder
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.cut import cut_state

# of a run of 100: warm start to 10, ramp to 60
CONF = {
    "method": "none",
    "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}},
    "sparsity": {"final": 0.8, "ramp": 50, "refresh": 1, "regrow": False},
    "warm_start": 10,
}
PATTERNS = ["unstructured", "8x1", "3x5", "n:4", "n:3"]


@pytest.fixture
def pruned(tiny_config, build):
    """A supernet whose ramp is under way, of a run of 100 updates."""

    def make(update, sparsity=None, **encoder):
        conf = changed(CONF, {"sparsity": sparsity or {}})
        encoder = {"pattern": "8x1", **encoder}
        config = tiny_config(encoder=encoder, supernet=conf)
        config["encoder"] = "omni_sparse_conformer"
        return config, build(config, update=update)

    return make


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("shape", [(16, 10), (13, 7)])
def test_places_that_are_fixed_are_kept_and_the_others_compete(text, shape):
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern.parse(text)
    before, after = torch.randn(2, *shape, generator=generator)
    order = MaskOrder({"w": before}, pattern)
    first = group_ranks(before, pattern)
    order.leave_out({"w": first}, 0.5)
    fixed = order.ranks()["w"]
    kept = weight_mask(first, shape, 0.5, pattern)
    # for the slow version what was dropped is smaller than anything
    left = torch.where(kept, after, torch.zeros(()))
    found = group_ranks(after, pattern, fixed)
    assert found.shape == group_shape(torch.Size(shape), pattern)
    for share in (0.6, 0.75, 0.9):
        slow = weight_mask(group_ranks(left, pattern), shape, share, pattern)
        assert torch.equal(weight_mask(found, shape, share, pattern), slow)
    for share in (0.2, 0.4, 0.5):  # the masks of before, to the last group
        mask = weight_mask(first, shape, share, pattern)
        assert torch.equal(weight_mask(found, shape, share, pattern), mask)
    assert torch.equal(found.flatten().sort().values, first.flatten().sort().values)
    assert not order.settled  # what is kept still competes


def test_what_the_ramp_has_dropped_stays_out_to_the_end(pruned, batch):
    _, model = pruned(update=11)
    dropped, last = {}, 0.0
    for update in range(12, 80):
        go_on(model, batch, update)
        reached = model.supernet.max_sparsity
        now = zeros(model, last) if last else {}
        for name, mask in dropped.items():
            assert torch.equal(now[name], mask), (update, name)
        dropped, last = zeros(model, reached), reached
    assert last == 0.8
    weights = model.encoder.maskable()
    # weights that came back by their magnitude, had they been allowed to
    assert any(
        not torch.equal(smallest_blocks(weights[n], 0.8), dropped[n]) for n in weights
    )


def test_what_it_has_not_come_to_follows_the_weights(pruned, batch):
    _, model = pruned(update=11)
    go_on(model, batch, 30)
    _, before = pruned(update=29)
    out = zeros(model, before.supernet.max_sparsity)
    beyond = zeros(model, 0.79)
    for name, weight in model.encoder.maskable().items():
        left = weight.detach().masked_fill(out[name], 0.0)
        assert torch.equal(beyond[name], smallest_blocks(left, 0.79)), name


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("until", [35, 90])
def test_a_size_is_extracted_with_the_masks_it_was_trained_with(
    pruned, batch, pattern, until
):
    config, model = pruned(update=11, pattern=pattern)
    go_on(model, batch, until)
    model.eval()
    spec = spec_of(model, 0.8)
    speech = batch["speech"], batch["speech_lengths"]
    model.encoder.refresh_masks()
    expected = model.encoder(*speech, sparsity=spec.sparsity)[0]
    state = model.state_dict()
    small = family.build(config, {**state, **cut_state(state, spec)}).encoder
    assert torch.allclose(small(*speech)[0], expected, atol=1e-6, rtol=0)
    again = family.build(config, state)
    again.encoder.refresh_masks()
    assert torch.equal(again.encoder(*speech, sparsity=spec.sparsity)[0], expected)


def test_validation_drops_nothing_for_good(pruned, batch):
    _, model = pruned(update=30)
    model.eval()(**batch)
    assert all((ranks == -1).all() for ranks in model.supernet.order.ranks().values())


def test_it_settles_with_what_is_out_where_it_is(pruned, batch):
    _, model = pruned(update=11, sparsity={"settle": 0.3})
    go_on(model, batch, 70)
    before = {share: zeros(model, share) for share in (0.4, 0.8)}
    go_on(model, batch, 80)
    assert model.supernet.order.settled
    for share, masks in before.items():
        assert_same_tensors(zeros(model, share), masks)


@pytest.mark.parametrize("more", [{}, {"regrow": True, "ramp_sandwich": ["dense"]}])
def test_snapshots_let_weights_come_back_and_have_no_ramp(pruned, more):
    sentence = "without settle, own, ramp_sandwich and regrow: false"
    with pytest.raises(UserError, match=sentence):
        pruned(0, sparsity={"sandwich": ["sparsest"], "snapshots": 0.5, **more})


# whole trainings

# warm start to 2, ramp to 12 of 20 updates, in the third of four epochs
TRAINING = with_masks(ramp=10, refresh=2, regrow=False)


@pytest.mark.parametrize("update", [4, 7, 13])
def test_a_training_killed_in_the_ramp_goes_on_as_if_nothing_had_been(
    corpus, uninterrupted, tmp_path, update
):
    exp = tmp_path / "exp"
    assert_goes_on(corpus.command(exp, **TRAINING), exp, update, uninterrupted)


def test_checkpoints_hold_what_is_out(uninterrupted):
    out = []
    for epoch in (1, 2, 3, 4):
        state = load(uninterrupted / f"{epoch}epoch.pth")
        order = {n: t for n, t in state.items() if n.startswith("supernet.order.")}
        out.append(sum(int((t >= 0).sum()) for t in order.values()))
    assert 0 < out[0] < out[1] < out[2] == out[3]
