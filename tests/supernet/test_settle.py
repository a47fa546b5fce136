"""The last part of a run, in which masks on weights stand still."""

import shutil

import pytest
import torch
from helpers.masks import go_on, smallest_blocks, spec_of, with_masks, zeros
from helpers.tiny import changed
from helpers.trained import assert_same_tensors, load
from helpers.training import assert_goes_on, train

from espnet_omnisparse.core.layout import ASR_LAYOUT
from espnet_omnisparse.core.schedule import Timeline
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.cut import cut_state
from espnet_omnisparse.search.spec_costs import SpecCosts
from espnet_omnisparse.train.journal import read_log, settled_specs

# of a run of 100: warm start to 10, ramp to 30, settled from 70
CONF = {
    "method": "none",
    "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}},
    "sparsity": {"final": 0.8, "ramp": 20, "settle": 0.3, "refresh": 7},
    "warm_start": 10,
}


@pytest.fixture
def settling(tiny_config, build):
    """A supernet whose masks settle, of a run of 100 updates."""

    def make(update=0, sparsity=None, **encoder):
        conf = changed(CONF, {"sparsity": sparsity or {}})
        encoder = {"pattern": "8x1", **encoder}
        config = tiny_config(encoder=encoder, supernet=conf)
        config["encoder"] = "omni_sparse_conformer"
        return config, build(config, update=update)

    return make


def test_the_masks_of_the_first_settled_update_stay_and_are_nested(settling, batch):
    _, model = settling(update=66)
    go_on(model, batch, 70)
    assert not model.supernet.order.settled
    weights = {n: w.detach().clone() for n, w in model.encoder.maskable().items()}
    go_on(model, batch, 71)
    first = {share: zeros(model, share) for share in (0.4, 0.8)}
    for share, masks in first.items():
        for name, mask in masks.items():
            assert torch.equal(mask, smallest_blocks(weights[name], share)), name
    go_on(model, batch, 85)
    model.eval()(**batch)
    moved = model.encoder.maskable()
    assert any(
        not torch.equal(smallest_blocks(moved[n], 0.4), first[0.4][n]) for n in moved
    )
    for share, masks in first.items():
        assert_same_tensors(zeros(model, share), masks)
    for name, mask in first[0.4].items():
        assert (mask <= first[0.8][name]).all()


def test_until_then_they_follow_the_weights(settling, batch):
    _, model = settling(update=50)
    go_on(model, batch, 60)
    now = zeros(model, 0.4)
    for name, weight in model.encoder.maskable().items():
        assert torch.equal(now[name], smallest_blocks(weight, 0.4))


@pytest.mark.parametrize("pattern", ["8x1", "unstructured", "n:4", "3x5"])
def test_a_settled_size_is_extracted_with_the_masks_it_was_trained_with(
    settling, batch, pattern
):
    config, model = settling(update=69, pattern=pattern)
    go_on(model, batch, 90)
    model.eval()
    spec = spec_of(model, 0.8)
    speech = batch["speech"], batch["speech_lengths"]
    expected = model.encoder(*speech, sparsity=spec.sparsity)[0]
    state = model.state_dict()
    small = family.build(config, {**state, **cut_state(state, spec)}).encoder
    assert torch.allclose(small(*speech)[0], expected, atol=1e-6, rtol=0)
    # the supernet from its file has the same, and no rank in a size's
    again = family.build(config, state)
    again.encoder.refresh_masks()
    found = again.encoder(*speech, sparsity=spec.sparsity)[0]
    assert torch.equal(found, expected)
    assert not any("order" in name for name in cut_state(state, spec))


def test_the_search_counts_what_is_extracted(settling, batch):
    _, model = settling(update=69)
    go_on(model, batch, 90)
    costs = SpecCosts(model, [(True,) * len(model.encoder.space)])
    spec = spec_of(model, 0.4)
    small = cut_state(dict(model.state_dict()), spec)
    parameters = dict(model.named_parameters()).keys()
    nonzero = sum(int(t.count_nonzero()) for n, t in small.items() if n in parameters)
    assert costs.of("nonzero", 0, spec.sparsity) == nonzero


@pytest.mark.parametrize("update, chosen", [(31, False), (70, False), (71, True)])
def test_no_checkpoint_from_before_is_chosen(settling, batch, update, chosen):
    _, model = settling(update)
    assert (model(**batch)[1]["loss_sizes"] < 1e4) == chosen
    assert model.supernet.settled  # the sizes are known


def test_the_phase_has_a_name_of_its_own():
    timeline = Timeline(10, 0, 20, 70)
    phases = [timeline.phase(update) for update in (9, 10, 30, 69, 70, 99)]
    assert phases == ["warm", "ramp", "step2", "step2", "settle", "settle"]
    assert timeline.settled_at == 70 and Timeline(10, 0, 20).settled_at == 30


@pytest.mark.parametrize(
    "settle, sentence",
    [
        (0.8, "settle: 0.8 of a run of 100 updates begins at update 20, but .* at 30"),
        (75, "begins at update 25, but warm start, step 1 and ramp end at 30"),
        (0.001, "begins at update 100"),
        (-1, "settle must be a number of updates, or a fraction of the run"),
        ("3e-1", "settle must be .*, not the text '3e-1'"),
    ],
)
def test_what_cannot_settle_is_refused(settling, settle, sentence):
    with pytest.raises(UserError, match=sentence):
        settling(sparsity={"settle": settle})


def test_the_last_part_of_a_run_needs_its_length(settling):
    _, model = settling(sparsity={"settle": 30})
    with pytest.raises(UserError, match="settle: 30 is the last part of a run whose"):
        model.supernet.set_run_length(None)


def test_gradual_pruning_can_settle_as_well(settling, batch):
    _, model = settling(update=69, sparsity={"sandwich": ["sparsest"]})
    go_on(model, batch, 71)
    first = zeros(model, 0.8)
    go_on(model, batch, 80)
    assert_same_tensors(zeros(model, 0.8), first)
    assert list(settled_specs(model.supernet, "0f")) == ["s80", "s40"]


# whole trainings

# warm start to 2, ramp to 7, settled from 12 of 20 updates, in the third of four epochs
TRAINING = with_masks(settle=0.4)


def orders(state):
    prefix = "supernet.order."
    return {name: t for name, t in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("update", [7, 11, 13, 17])
def test_a_training_killed_in_each_phase_goes_on_as_if_nothing_had_been(
    corpus, uninterrupted, tmp_path, update
):
    exp = tmp_path / "exp"
    assert_goes_on(corpus.command(exp, **TRAINING), exp, update, uninterrupted)


def test_averages_are_of_one_order_and_are_cut_by_it(uninterrupted):
    two, three, four = (load(uninterrupted / f"{n}epoch.pth") for n in (2, 3, 4))
    assert all((t == -1).all() for t in orders(two).values())
    assert_same_tensors(orders(three), orders(four))
    assert all((t >= 0).all() for t in orders(four).values())
    average = load(uninterrupted / "valid.loss_sizes.ave.pth")
    assert_same_tensors(orders(average), orders(four))
    # of the third and fourth alone, though ten were to be kept
    name = "encoder.after_norm.weight"
    torch.testing.assert_close(average[name], (three[name] + four[name]) / 2)
    phases = [line["phase"] for line in read_log(uninterrupted)]
    assert phases == ["ramp", "step2", "settle", "settle"]
    spec = family.selected_specs(uninterrupted)["small"]
    zero = {n for n, t in cut_state(average, spec).items() if (t == 0).any()}
    masks = {n: t == 0 for n, t in cut_state(four, spec).items() if n in zero}
    for name, tensor in cut_state(average, spec).items():
        if name in masks:
            assert torch.equal(tensor == 0, masks[name])


def test_a_longer_run_stays_settled(corpus, uninterrupted, tmp_path):
    exp = tmp_path / "exp"
    shutil.copytree(uninterrupted, exp, symlinks=True)
    command = corpus.command(exp, **{**TRAINING, "max_epoch": 5})
    outcome = train(command, tmp_path / "log")
    assert outcome.code == 0, outcome.output
    before = orders(load(uninterrupted / "4epoch.pth"))
    assert_same_tensors(orders(load(exp / "5epoch.pth")), before)


def test_a_run_made_so_short_that_it_never_settles_is_refused(corpus, tmp_path):
    exp = tmp_path / "exp"
    command = corpus.command(exp, **TRAINING)
    assert train(command, tmp_path / "log", kill_at_update=7).code == -9
    outcome = train(corpus.command(exp, **{**TRAINING, "max_epoch": 2}), tmp_path / "l")
    assert "settle at update 12, but it has 10 updates now" in outcome.sentence


# the log


def test_the_log_has_the_flip_rate_of_each_size(uninterrupted):
    lines = read_log(uninterrupted)
    assert [line["flip_rate"].keys() for line in lines] == 4 * [{"medium", "small"}]
    assert all(rate > 0.0 for rate in lines[0]["flip_rate"].values())
    specs = family.selected_specs(uninterrupted)
    states = [load(uninterrupted / f"{epoch}epoch.pth") for epoch in (1, 2, 3, 4)]
    for name in ("medium", "small"):
        masks = []
        for state in states:
            sized = cut_state(state, specs[name])
            masks.append({n: t == 0 for n, t in sized.items() if _masked(n, t)})
        for line, before, after in zip(lines[1:], masks, masks[1:], strict=False):
            flipped = sum(int((before[n] != after[n]).sum()) for n in before)
            share = flipped / sum(mask.numel() for mask in before.values())
            assert line["flip_rate"][name] == pytest.approx(share, abs=1e-6)
        assert lines[1]["flip_rate"][name] > 0.0
        assert lines[3]["flip_rate"][name] == 0.0


def _masked(name, tensor):
    """Whether it is the weight of a linear layer or pointwise convolution."""
    return (
        name.startswith(ASR_LAYOUT.prefix)
        and name.endswith("weight")
        and (tensor.dim() == 2 or tensor.dim() == 3 and tensor.size(1) > 1)
    )


def test_without_masks_nothing_flips(corpus, tmp_path):
    exp = tmp_path / "exp"
    assert train(corpus.command(exp, max_epoch=2), tmp_path / "log").code == 0
    assert not any("flip_rate" in line for line in read_log(exp))
