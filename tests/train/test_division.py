"""Parts of a batch that one net sees are run in one pass."""

import pytest
import torch
from helpers.gradients import gradients, seed_of_each_division
from helpers.tiny import changed

CONF = {
    "method": "none",
    "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}},
    "sparsity": {
        **{"final": 0.8, "ramp": 20, "diagnose": 0},
        "sandwich": ["dense", "sparsest", "sparsest"],
    },
    "warm_start": 10,
    "subnet_weight": 0.5,
}


@pytest.fixture
def masked(tiny_config, build):
    def make(**changes):
        conf = changed(CONF, changes)
        config = tiny_config(encoder={"pattern": "8x1"}, supernet=conf)
        config["encoder"] = "omni_sparse_conformer"
        return build(config, update=50).train()

    return make


@pytest.fixture
def five(batch):
    """Five utterances, so that three parts are of two, two and one."""
    order = [0, 1, 2, 3, 1]
    return {name: tensor[order].clone() for name, tensor in batch.items()} | {
        "speech": torch.randn(5, 60, batch["speech"].size(2))
    }


def test_joined_parts_of_unequal_size_have_the_gradient_of_the_whole(masked, five):
    model = masked(update="per_batch")
    expected = gradients(model, model(**five)[0])
    model = masked(update="split_batch")
    seeds = seed_of_each_division(5, 3)
    total = dict.fromkeys(expected, 0.0)
    for seed in seeds:
        torch.manual_seed(seed)
        for name, one in gradients(model, model(**five)[0]).items():
            total[name] = total[name] + one / len(seeds)
    for name, gradient in expected.items():
        assert torch.allclose(total[name], gradient, atol=1e-5), name


@pytest.mark.parametrize(
    "changes, passes",
    [
        ({"update": "split_batch"}, [2, 3]),
        ({"update": "split_batch", "subnet_weight": "adaptive"}, [2, 3]),
        ({"update": "per_batch"}, [5, 5]),
        (
            {"update": "split_batch", "sparsity": {"sandwich": ["sparsest"] * 3}},
            [2, 3],  # the first, with its regularisation, is on its own
        ),
    ],
)
def test_each_net_has_one_pass(masked, five, monkeypatch, changes, passes):
    model, seen = masked(**changes), []
    plain = model.encoder.intermediate_outputs

    def outputs(hidden, *rest):
        seen.append(len(hidden.x))
        return plain(hidden, *rest)

    monkeypatch.setattr(model.encoder, "intermediate_outputs", outputs)
    model(**five)
    assert seen == passes
