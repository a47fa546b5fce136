import copy

import pytest
import torch
from helpers.gradients import assert_same_gradients, gradients
from helpers.trained import assert_same_tensors

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import frame_loss


def taught(tiny_model, path, **options):
    """A supernet that a checkpoint teaches, past its selection."""
    options = {"distillation": "kl", "teacher": str(path), **options}
    return tiny_model(update=60, supernet=options)


def without_supernet(state):
    """The tensors of a stock checkpoint."""
    return {n: t for n, t in state.items() if not n.startswith("supernet.")}


@pytest.mark.parametrize("attention", [False, True])
def test_a_frozen_net_teaches_every_subnet(tiny_model, batch, tmp_path, attention):
    original = tiny_model(attention=attention)
    state = copy.deepcopy(original.state_dict())
    stock = without_supernet(state)
    torch.save(stock, tmp_path / "stock.pth")
    options = {"distillation": "kl", "teacher": str(tmp_path / "stock.pth")}
    net = tiny_model(update=60, attention=attention, supernet=options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05
    assert net.state_dict().keys() == state.keys()  # the teacher is in no checkpoint
    net.train()
    _, stats, _ = net(**batch)

    # what the full net's loss must be, the slow way
    original.eval(), net.eval()
    with torch.no_grad():
        made = net.make_batch(**batch)
        said, lengths = original.encoder(made.feats, made.feats_lengths)[:2]
        heard, _ = net.encoder(made.feats, made.feats_lengths)[:2]
        logits = net.ctc.ctc_lo(heard), original.ctc.ctc_lo(said)
        kl = frame_loss(*logits, lengths, "kl")
        own = net._head_loss("full", heard, lengths, made).loss
    expected = (0.5 * own + 0.5 * kl) * len(made) / lengths.sum()
    torch.testing.assert_close(stats["loss_full"].squeeze(), expected.squeeze())
    assert_same_tensors(net._frozen._net.state_dict(), stock)


def apart_after_blocks(student, teacher, lengths):
    """The relative squared distance, block by block and utterance by utterance."""
    total = 0.0
    for own, wanted in zip(student, teacher, strict=True):
        real = [slice(length) for length in lengths.tolist()]
        pairs = [(own[n, r], wanted[n, r]) for n, r in enumerate(real)]
        distance = sum(((a - b) ** 2).sum() for a, b in pairs)
        total = total + distance / sum((b**2).sum() for _, b in pairs)
    return total / len(student) * lengths.sum() / len(lengths)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_teacher_is_compared_after_each_block(tiny_model, batch, tmp_path, frozen):
    torch.save(without_supernet(tiny_model().state_dict()), tmp_path / "stock.pth")
    options = {"distillation": "kl", "distillation_weight": 0.0}
    if frozen:
        options["teacher"] = str(tmp_path / "stock.pth")
    plain, net = (
        tiny_model(update=60, supernet={**options, **more}).train()
        for more in ({}, {"distillation_blocks": 0.5})
    )
    for model in (plain, net):
        with torch.no_grad():
            for parameter in model.encoder.layers.parameters():
                parameter += 0.05
    with_blocks, _, _ = net(**batch)
    without, _, _ = plain(**batch)

    made = net.make_batch(**batch)
    hidden = net.encoder.front_end(made.feats, made.feats_lengths)
    after = range(1, len(net.encoder.layers) + 1)
    teacher, taught_by = net, hidden
    if frozen:
        teacher = net._frozen._net
        taught_by = teacher.encoder.front_end(made.feats, made.feats_lengths)
    with torch.no_grad():
        wanted = teacher.encoder.intermediate_outputs(taught_by, after)
    expected = 0.0
    for subnet in net.supernet.sample_subnets()[0 if frozen else 1 :]:
        own = net.encoder.intermediate_outputs(hidden, after, subnet.gates)
        apart = apart_after_blocks(own, wanted, hidden.lengths)
        expected = expected + 0.5 * subnet.weight * apart
    weights = sum(subnet.weight for subnet in net.supernet.sample_subnets())
    expected = expected * len(made) / hidden.lengths.sum() / weights
    assert (with_blocks - without).item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected.item() > 1e-3
    found = gradients(net, with_blocks)
    base = gradients(plain, without)
    of_blocks = {name: found[name] - base[name] for name in found}
    assert_same_gradients(of_blocks, gradients(net, expected))


def test_a_teacher_of_another_shape_is_refused(tiny_model, batch, tmp_path):
    torch.save({"encoder.w": torch.zeros(2)}, tmp_path / "other.pth")
    net = taught(tiny_model, tmp_path / "other.pth").train()
    with pytest.raises(UserError, match="does not fit this configuration"):
        net(**batch)


def test_a_teacher_without_distillation_is_refused(tiny_model):
    with pytest.raises(UserError, match="teaches nothing without distillation"):
        tiny_model(supernet={"teacher": "stock.pth"})
