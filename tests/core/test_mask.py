"""Masks on weights, against a slow and obvious version of them."""

import itertools

import pytest
import torch

from espnet_omnisparse.core.mask import (
    Pattern,
    group_ranks,
    kept_groups,
    nonzero_groups,
    weight_mask,
)
from espnet_omnisparse.errors import UserError

PATTERNS = ["unstructured", "8x1", "1x8", "4x4", "3x5", "n:4", "n:2", "n:3"]
SHAPES = [(7, 5), (8, 1), (1, 9), (64, 40), (13, 16), (12, 10, 1), (9, 7, 1)]
SPARSITIES = [0.0, 0.1, 0.25, 0.34, 0.5, 0.6, 0.75, 0.9, 0.95]


def weights(shape, steps=127, dtype=torch.float32):
    """Multiples of 1/64, none of them zero: exact in any order and type, many equal."""
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = torch.randint(1, steps + 1, shape, generator=generator)
    signs = 2 * torch.randint(0, 2, shape, generator=generator) - 1
    return (sizes * signs / 64).to(dtype)


def slow_groups(shape, text):
    """The groups that compete with each other: lists of groups, of places each."""
    out, inputs = shape[:2]
    if text.startswith("n:"):
        of = int(text[2:])
        return [
            [[(row, col)] for col in range(start, min(start + of, inputs))]
            for row in range(out)
            for start in range(0, inputs, of)
        ]
    sides = ("1", "1") if text == "unstructured" else text.split("x")
    rows, cols = map(int, sides)
    groups = []
    for top in range(0, out, rows):
        for left in range(0, inputs, cols):
            places = itertools.product(range(top, top + rows), range(left, left + cols))
            groups.append([(r, c) for r, c in places if r < out and c < inputs])
    return [groups]


def slow_orders(weight, text, norm):
    """The groups that compete with each other, the largest first."""
    power = {"l1": 1, "l2": 2}[norm]
    matrix = weight.flatten(1).tolist()
    orders = []
    for rivals in slow_groups(weight.shape, text):
        sizes = [sum(abs(matrix[r][c]) ** power for r, c in one) for one in rivals]
        # of equals the one that comes first
        order = sorted(range(len(rivals)), key=lambda index: (-sizes[index], index))
        orders.append([rivals[index] for index in order])
    return orders


def slow_mask(orders, shape, sparsity):
    keep = [[False] * shape[1] for _ in range(shape[0])]
    for rivals in orders:
        for group in rivals[: max(1, len(rivals) - round(sparsity * len(rivals)))]:
            for row, col in group:
                keep[row][col] = True
    return torch.tensor(keep).view(shape)


def fast_mask(weight, sparsity, text, norm="l1"):
    pattern = Pattern.parse(text, norm)
    return weight_mask(group_ranks(weight, pattern), weight.shape, sparsity, pattern)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("text", PATTERNS)
def test_masks_equal_those_of_the_slow_version(text, norm, dtype):
    for shape, steps in itertools.product(SHAPES, (127, 3, 1)):
        # of few steps most groups are equal, of one all whole ones are
        weight = weights(shape, steps, dtype)
        ranks = group_ranks(weight, Pattern.parse(text, norm))
        orders = slow_orders(weight, text, norm)
        for sparsity in SPARSITIES[:: 1 if steps > 3 else 4]:
            found = weight_mask(ranks, shape, sparsity, Pattern.parse(text, norm))
            expected = slow_mask(orders, shape, sparsity)
            assert found.dtype == torch.bool and found.shape == shape
            assert torch.equal(found, expected), (shape, steps, sparsity)


@pytest.mark.parametrize("text", PATTERNS)
def test_as_many_groups_are_kept_as_the_sparsity_says(text):
    for shape, sparsity in itertools.product(SHAPES, SPARSITIES):
        weight = weights(shape)
        keep = fast_mask(weight, sparsity, text)
        rows, kept = keep.flatten(1).tolist(), 0
        for rivals in slow_groups(shape, text):
            whole = [all(rows[r][c] for r, c in one) for one in rivals]
            touched = [any(rows[r][c] for r, c in one) for one in rivals]
            assert whole == touched  # never a part of a group
            assert sum(whole) == max(1, len(rivals) - round(sparsity * len(rivals)))
            kept += sum(whole)
        pattern = Pattern.parse(text)
        assert kept_groups(shape, sparsity, pattern) == kept
        assert nonzero_groups(weight * keep, pattern) == kept


def test_nothing_is_masked_at_zero_and_counts_are_exact():
    for text in PATTERNS:
        assert fast_mask(weights((64, 40)), 0.0, text).all()
    assert fast_mask(weights((64, 40)), 0.95, "unstructured").sum() == 128
    assert fast_mask(weights((64, 40)), 0.95, "8x1").sum() == 16 * 8
    assert fast_mask(weights((64, 40)), 0.5, "n:4").sum() == 1280


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("text", PATTERNS)
def test_masks_of_growing_sparsity_are_nested(text, norm):
    for shape in SHAPES:
        weight, pattern = weights(shape, 9), Pattern.parse(text, norm)
        ranks = group_ranks(weight, pattern)
        grid = torch.linspace(0, 0.99, 34).tolist()
        masks = [weight_mask(ranks, shape, sparsity, pattern) for sparsity in grid]
        for larger, smaller in itertools.pairwise(masks):
            assert not (smaller & ~larger).any()


@pytest.mark.parametrize("of, sparsity, most", [(4, 0.5, 2), (4, 0.75, 1), (2, 0.5, 1)])
def test_of_each_m_inputs_no_more_than_n_are_kept(of, sparsity, most):
    keep = fast_mask(weights((64, 40)), sparsity, f"n:{of}")
    assert (keep.unflatten(1, (-1, of)).sum(-1) == most).all()


@pytest.mark.parametrize("text", ["unstructured", "8x1", "n:4", "n:2"])
def test_something_is_always_kept(text):
    keep = fast_mask(weights((7, 5)), 0.99, text)
    assert keep.any(1).all() if text.startswith("n:") else keep.any()


def test_the_norms_tell_groups_apart():
    weight = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
    assert fast_mask(weight, 0.5, "1x2", "l1").tolist() == [[False, False, True, True]]
    assert fast_mask(weight, 0.5, "1x2", "l2").tolist() == [[True, True, False, False]]


def test_equal_groups_are_dropped_from_the_last():
    weight = torch.ones(2, 4)
    expected = [[True, True, True, True], [False, False, False, False]]
    assert fast_mask(weight, 0.5, "unstructured").tolist() == expected
    assert fast_mask(weight, 0.5, "n:4").tolist() == [[True, True, False, False]] * 2


def test_ranks_have_no_gradient_and_masks_no_memory_of_one():
    weight = torch.nn.Parameter(weights((8, 8)))
    ranks = group_ranks(weight, Pattern())
    assert not ranks.requires_grad
    assert not weight_mask(ranks, weight.shape, 0.5, Pattern()).requires_grad


@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_is_written_as_it_is_read(text):
    for norm in ("l1", "l2"):
        pattern = Pattern.parse(text, norm)
        assert str(pattern) == text and pattern.norm == norm
        assert Pattern.parse(str(pattern), norm) == pattern


@pytest.mark.parametrize("text", ["", "8", "0x1", "8x", "2:4", "n:0", "n:", 8, None])
def test_an_unknown_pattern_gets_a_sentence(text):
    with pytest.raises(UserError, match="encoder_conf.pattern must be unstructured, a"):
        Pattern.parse(text)


def test_an_unknown_norm_gets_a_sentence():
    with pytest.raises(UserError, match="pattern_norm must be one of l1, l2, not 'l3'"):
        Pattern.parse("8x1", "l3")
