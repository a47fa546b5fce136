"""Masks of a supernet in training, and a slow version of them."""

import numpy as np
import torch

from espnet_omnisparse.core.layout import ASR_LAYOUT
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.extract.cut import cut_state


def go_on(model, batch, until):
    """Trains with a rate that moves every weight."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    while model.supernet.update < until:
        optimizer.zero_grad()
        model(**batch)[0].backward()
        optimizer.step()
        model.supernet.count_update()


def spec_of(model, share, name="s"):
    space = model.encoder.space
    shares = (share,) * len(space.weights)
    return SubnetSpec(name, "0f", space, (True,) * len(space), shares)


def zeros(model, share):
    """Which weights extraction sets to zero, by the name of the maskable weight."""
    state = cut_state(model.state_dict(), spec_of(model, share))
    found = {}
    for name in model.encoder.space.weights:
        block, branch, layer = name.split(".")
        module = ASR_LAYOUT.parts[branch][1]
        weight = state[f"{ASR_LAYOUT.prefix}{block}.{module}.{layer}.weight"]
        found[name] = weight == 0
    return found


def smallest_blocks(weight, share):
    """The same by magnitude, slowly: blocks of eight outputs of one input."""
    matrix = weight.detach().flatten(1).numpy()
    blocks = np.abs(matrix).reshape(-1, 8, matrix.shape[1]).sum(1)
    order = np.argsort(blocks, axis=None, kind="stable")
    dropped = np.zeros(blocks.size, dtype=bool)
    dropped[order[: round(share * blocks.size)]] = True
    whole = dropped.reshape(blocks.shape).repeat(8, 0)
    return torch.from_numpy(whole).view_as(weight)
