"""What counts as an update of an optimiser."""

import pytest
import torch

from espnet_omnisparse.core.updates import after_each_update


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_with_a_bad_gradient_is_none(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    made = []
    handle = after_each_update(optimizer, lambda: made.append(weight.detach().clone()))
    for bad in (False, True, False):
        before = weight.detach().clone()
        optimizer.zero_grad()
        factor = float("inf") if bad else 1.0
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, before) == bad
    assert len(made) == 2
    assert torch.equal(made[-1], weight)  # called when it has been made
    handle.remove()
    weight.grad = torch.ones(3)
    optimizer.step()
    assert len(made) == 2


def test_without_a_scaler_every_step_is_one():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    made = []
    after_each_update(optimizer, lambda: made.append(1))
    weight.grad = torch.ones(3)
    optimizer.step()
    assert made == [1]
