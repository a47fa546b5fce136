import copy

import pytest
import torch
from helpers.trained import assert_same_tensors

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import frame_loss


def taught(tiny_model, path, **options):
    """A supernet that a checkpoint teaches, past its selection."""
    options = {"distillation": "kl", "teacher": str(path), **options}
    return tiny_model(update=60, supernet=options)


@pytest.mark.parametrize("attention", [False, True])
def test_a_frozen_net_teaches_every_subnet(tiny_model, batch, tmp_path, attention):
    original = tiny_model(attention=attention)
    state = copy.deepcopy(original.state_dict())
    stock = {n: t for n, t in state.items() if not n.startswith("supernet.")}
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


def test_a_teacher_of_another_shape_is_refused(tiny_model, batch, tmp_path):
    torch.save({"encoder.w": torch.zeros(2)}, tmp_path / "other.pth")
    net = taught(tiny_model, tmp_path / "other.pth").train()
    with pytest.raises(UserError, match="does not fit this configuration"):
        net(**batch)


def test_a_teacher_without_distillation_is_refused(tiny_model):
    with pytest.raises(UserError, match="teaches nothing without distillation"):
        tiny_model(supernet={"teacher": "stock.pth"})
