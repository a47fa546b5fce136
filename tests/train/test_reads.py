"""How often a training forward reads a number from the model's device.

Each read waits for a GPU to come to it. Here the reads are counted, on the CPU.
"""

import traceback
from collections import Counter
from pathlib import Path

import espnet2
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import espnet_omnisparse

OURS, THEIRS = (Path(one.__file__).parent for one in (espnet_omnisparse, espnet2))
READING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}
ONE_AXIS = {
    "method": "none",
    "sizes": {"s50": {"sparsity": 0.5}},
    "sparsity": {"final": 0.8, "ramp": 2},
    "update": "split_batch",
}
BOTH_AXES = {
    "method": "simple_topk",
    "sizes": {"small": 4, "medium": {"units": 8, "sparsity": 0.5}},
    "sparsity": {"final": 0.8, "ramp": 2},
    "layer_dropout_step2": 0.2,
}


def _package(file: str) -> Path | None:
    """Which of both packages a file belongs to; the checkout's name says nothing."""
    found = (one for one in (OURS, THEIRS) if one in Path(file).parents)
    return next(found, None)


class Reads(TorchDispatchMode):
    """Counts reads by the line of this package, not of ESPnet, that asks for them."""

    def __init__(self):
        super().__init__()
        self.ours = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket._qualified_op_name in READING:
            frames = [f for f in traceback.extract_stack() if _package(f.filename)]
            if _package(frames[-1].filename) == OURS:
                self.ours[frames[-1].name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "update, supernet, encoder",
    [
        (10, {}, "layer_prunable_conformer"),
        (80, {}, "layer_prunable_conformer"),
        (80, {"heads": "per_size"}, "layer_prunable_conformer"),
        (80, {"update": "split_batch"}, "layer_prunable_conformer"),
        (60, ONE_AXIS, "omni_sparse_conformer"),
        (80, BOTH_AXES, "omni_sparse_conformer"),
    ],
    ids=["step1", "step2", "own heads", "split batch", "weights", "both axes"],
)
def test_a_training_forward_reads_losses_and_lengths_alone(
    tiny_config, build, batch, update, supernet, encoder
):
    options = {"pattern": "4x1"} if encoder.startswith("omni") else {}
    config = tiny_config(supernet=supernet, encoder=options)
    config["encoder"] = encoder
    model = build(config, update=update).train()
    model(**batch)  # what is settled is read once
    with Reads() as reads:
        model(**batch)
    subnets = len(model.supernet.sample_subnets())
    expected = {"admits": subnets, "make_batch": 1}  # ESPnet's models read the latter
    assert dict(reads.ours) == expected
