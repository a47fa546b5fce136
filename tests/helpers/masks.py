"""Masks of a supernet in training, and a slow version of them."""

import numpy as np
import torch

from espnet_omnisparse.core.layout import ASR_LAYOUT
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.extract.cut import cut_state
from helpers.tiny import changed

#: of `helpers.training`: warm start to 2, ramp to 7 of 20 updates; with an optimiser
#: whose steps PyTorch does not count in a tensor
TRAINING = {
    "encoder": "omni_sparse_conformer",
    "encoder_conf": {"pattern": "8x1", "conv_norm": "layer_norm"},
    "optim_conf": {"lr": 0.05, "fused": True},
    "model_conf": {
        "supernet": {
            "method": "none",
            "score_lr": None,
            "step1": 0.6,
            "sizes": {"small": {"sparsity": 0.8}, "medium": {"sparsity": 0.4}},
            "sparsity": {"final": 0.8, "ramp": 5, "refresh": 3},
            "warm_start": 2,
            "update": "split_batch",
        }
    },
}


def with_masks(encoder=None, **sparsity):
    """`TRAINING` with other options of the encoder and of `supernet.sparsity`."""
    supernet = {"supernet": {"sparsity": sparsity}}
    return changed(TRAINING, {"encoder_conf": encoder or {}, "model_conf": supernet})


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
    """What a share of zeros drops by magnitude, slowly: blocks of eight outputs."""
    matrix = weight.detach().flatten(1).numpy()
    blocks = np.abs(matrix).reshape(-1, 8, matrix.shape[1]).sum(1)
    order = np.argsort(blocks, axis=None, kind="stable")
    dropped = np.zeros(blocks.size, dtype=bool)
    dropped[order[: round(share * blocks.size)]] = True
    whole = dropped.reshape(blocks.shape).repeat(8, 0)
    return torch.from_numpy(whole).view_as(weight)
