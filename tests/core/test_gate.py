import math

import pytest
import torch

from espnet_omnisparse.core.gate import (
    layer_dropout_gates,
    mask_gates,
    relaxed_top_k,
    straight_through,
)
from espnet_omnisparse.core.mask import top_k_mask


def slow_relaxed_top_k(scores, k):
    remaining = list(scores)
    drawn = [0.0] * len(scores)
    gates = [0.0] * len(scores)
    for _ in range(k):
        for unit, share in enumerate(drawn):
            remaining[unit] += math.log(max(1.0 - share, 2.2250738585072014e-308))
        highest = max(remaining)
        weights = [math.exp(value - highest) for value in remaining]
        drawn = [weight / sum(weights) for weight in weights]
        gates = [gate + share for gate, share in zip(gates, drawn, strict=True)]
    return gates


def random_scores(units, spread=1.0):
    generator = torch.Generator().manual_seed(units)
    scores = spread * torch.randn(units, generator=generator, dtype=torch.float64)
    return scores.requires_grad_()


@pytest.mark.parametrize("units, k", [(1, 1), (5, 0), (5, 2), (5, 5), (48, 16)])
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_relaxed_top_k_equals_the_slow_version(units, k, spread):
    scores = random_scores(units, spread)
    expected = slow_relaxed_top_k(scores.tolist(), k)
    assert relaxed_top_k(scores, k).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradient_of_relaxed_top_k_passes_gradcheck(k):
    assert torch.autograd.gradcheck(lambda s: relaxed_top_k(s, k), random_scores(6))


def test_gradient_of_relaxed_top_k_equals_differences_of_the_slow_version():
    scores = random_scores(7)
    weights = [1.0, -2.0, 0.5, 3.0, 0.0, -1.0, 0.25]

    def slow_value(values):
        gates = slow_relaxed_top_k(values, 3)
        return sum(w * gate for w, gate in zip(weights, gates, strict=True))

    gates = relaxed_top_k(scores, 3)
    (gradient,) = torch.autograd.grad(gates @ torch.tensor(weights).double(), scores)
    step = 1e-6
    for unit in range(7):
        up, down = scores.tolist(), scores.tolist()
        up[unit] += step
        down[unit] -= step
        difference = (slow_value(up) - slow_value(down)) / (2 * step)
        assert gradient[unit].item() == pytest.approx(difference, abs=1e-7)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("k", [0, 1, 16, 47, 48])
def test_relaxed_gates_sum_to_k(k):
    scores = random_scores(48).float()
    assert relaxed_top_k(scores, k).sum().item() == pytest.approx(k, rel=1e-5)


def test_equal_scores_get_equal_gates():
    gates = relaxed_top_k(torch.full((48,), 0.5), 16)
    assert torch.allclose(gates, torch.full((48,), 16 / 48))


def test_far_apart_scores_give_the_hard_top_k():
    scores = torch.tensor([0.0, 60.0, 20.0, 40.0])
    assert relaxed_top_k(scores, 2).tolist() == pytest.approx([0, 1, 0, 1], abs=1e-6)


def test_a_low_temperature_gives_the_hard_top_k():
    scores = torch.tensor([0.1, 0.9, 0.3, 0.6])
    gates = relaxed_top_k(scores, 2, temperature=0.001)
    assert gates.tolist() == pytest.approx([0, 1, 0, 1], abs=1e-3)


def test_straight_through_has_the_hard_value_and_the_soft_gradient():
    scores = random_scores(6)
    hard = top_k_mask(scores, 2)
    weights = torch.arange(6.0).double()
    gates = straight_through(relaxed_top_k(scores, 2), hard)
    assert torch.equal(gates.detach(), hard.double())
    (gradient,) = torch.autograd.grad(gates @ weights, scores)
    (soft,) = torch.autograd.grad(relaxed_top_k(scores, 2) @ weights, scores)
    assert torch.equal(gradient, soft)


def test_mask_gates_are_one_or_none():
    assert mask_gates([True, False]) == (1.0, None)
    assert mask_gates(torch.tensor([False, True])) == (None, 1.0)


def test_layer_dropout_drops_at_its_rate_and_scales_what_it_keeps():
    batch = 20_000
    rates = torch.tensor([0.0, 0.1, 0.6])
    untouched, seldom, often = layer_dropout_gates(rates, batch, range(3))
    assert untouched == 1.0 and isinstance(untouched, float)
    for gate, rate in ((seldom, 0.1), (often, 0.6)):
        assert gate.shape == (batch, 1, 1)
        dropped = (gate == 0.0).float().mean().item()
        assert dropped == pytest.approx(rate, abs=0.02)
        kept = gate[gate != 0.0]
        assert torch.allclose(kept, torch.full_like(kept, 1.0 / (1.0 - rate)))


def test_layer_dropout_draws_each_unit_and_sequence_on_its_own():
    one, other = layer_dropout_gates(torch.tensor([0.5, 0.5]), 1000, range(2))
    assert 400 < (one == other).sum() < 600
    assert 400 < (one[1:] == one[:-1]).sum() < 600


def test_layer_dropout_drops_the_parts_of_a_branch_together():
    first, second, other = layer_dropout_gates(torch.full((3,), 0.5), 8, (0, 0, 1))
    assert first is second
    assert other is not first


@pytest.mark.parametrize("k", range(7))
def test_top_k_mask_equals_a_sorted_list_with_ties_to_the_lower_index(k):
    scores = [0.5, 0.1, 0.5, 0.9, 0.5, -1.0]
    ranked = sorted(range(6), key=lambda unit: (-scores[unit], unit))
    expected = [unit in ranked[:k] for unit in range(6)]
    assert top_k_mask(torch.tensor(scores), k).tolist() == expected


@pytest.mark.parametrize("k", [-1, 4])
def test_top_k_mask_refuses_an_impossible_k(k):
    with pytest.raises(ValueError, match="between 0 and 3"):
        top_k_mask(torch.zeros(3), k)
