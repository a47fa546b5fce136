"""The masked encoder: it computes what a net with these zeros in it computes."""

import copy
import random

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from helpers.encoders import ABSOLUTE, CONF, VARIANTS, randomize
from helpers.tiny import FEATURES

from espnet_omnisparse.core import weight_masks as weights
from espnet_omnisparse.core.components import Masked, run_narrowed
from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.layout import ASR_LAYOUT
from espnet_omnisparse.core.mask import Pattern, group_ranks, weight_mask
from espnet_omnisparse.core.weight_masks import MaskOrder, WeightMasks
from espnet_omnisparse.nn.conformer import OmniSparseConformerEncoder

PATTERNS = ["unstructured", "8x1", "1x8", "4x4", "3x5", "n:4", "n:3"]
FFN, FRAMES = 32, 14


def sparse(**conf):
    torch.manual_seed(0)
    encoder = OmniSparseConformerEncoder(FEATURES, **{**CONF, **conf})
    randomize(encoder).refresh_masks()
    return encoder


@pytest.fixture
def feats():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 60, FEATURES, generator=generator), torch.tensor([60, 51, 40])


def drawn(encoder, seed):
    """Random gates and a random sparsity per weight."""
    source = random.Random(seed)
    mask = [source.random() < 0.7 for _ in range(len(encoder.space))]
    grid = (0.0, 0.3, 0.5, 0.9)
    return mask_gates(mask), [source.choice(grid) for _ in encoder.space.weights]


def keeps(encoder, sparsity):
    """The mask of each weight, anew."""
    pattern, pairs = encoder.space.pattern, encoder.maskable().items()
    return {
        name: weight_mask(group_ranks(weight, pattern), weight.shape, share, pattern)
        for (name, weight), share in zip(pairs, sparsity, strict=True)
    }


def zeroed(encoder, sparsity):
    """A copy with the zeros written into its weights."""
    for block in encoder.encoders:
        block.self_attn.attn = None  # ESPnet's, of the last pass; cannot be copied
    other, masks = copy.deepcopy(encoder), keeps(encoder, sparsity)
    with torch.no_grad():
        for name, weight in other.maskable().items():
            weight *= masks[name]
    return other


def gradients(encoder, loss):
    encoder.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in encoder.named_parameters()
        if parameter.grad is not None
    }


# which weights there are


def test_every_linear_layer_and_pointwise_convolution_of_a_block_is_maskable():
    encoder = sparse()
    expected = {
        id(module.weight)
        for module in encoder.encoders.modules()
        if isinstance(module, torch.nn.Linear)
        or (isinstance(module, torch.nn.Conv1d) and module.groups == 1)
    }
    assert {id(weight) for weight in encoder.maskable().values()} == expected
    assert tuple(encoder.maskable()) == encoder.space.weights
    assert len(expected) == 3 * 11
    assert len(sparse(**ABSOLUTE).maskable()) == 3 * 10


def test_a_sparsity_for_each_weight_or_none(feats):
    with pytest.raises(ValueError):
        sparse()(*feats, sparsity=(0.5,) * 32)
    with pytest.raises(ValueError):
        sparse(pattern=None)(*feats, sparsity=(0.5,) * 33)


# the masks follow the weights


@pytest.fixture
def sorts(monkeypatch):
    """Counts how often groups are put in order."""
    counted = []

    def count(weight, *args):
        counted.append(weight)
        return group_ranks(weight, *args)

    monkeypatch.setattr(weights, "group_ranks", count)
    return counted


def test_masks_follow_the_weights_only_when_refreshed():
    weight = torch.nn.Parameter(torch.tensor([[4.0, 1.0, 3.0, 2.0]]))
    masks = WeightMasks(Pattern())
    masks.refresh({"w": weight})
    assert masks.masked("w", weight, 0.5).tolist() == [[4.0, 0.0, 3.0, 0.0]]
    with torch.no_grad():
        weight[0, 1] = 5.0
    assert masks.masked("w", weight, 0.5).tolist() == [[4.0, 0.0, 3.0, 0.0]]
    masks.refresh({"w": weight})
    assert masks.masked("w", weight, 0.5).tolist() == [[4.0, 5.0, 0.0, 0.0]]
    assert masks.masked("w", weight, 0.0) is weight


def test_only_what_has_changed_is_put_in_order(sorts):
    encoder = sparse()
    total = len(encoder.space.weights)
    assert len(sorts) == total
    encoder.refresh_masks()
    assert len(sorts) == total
    with torch.no_grad():
        encoder.encoders[1].feed_forward.w_2.weight[0, 0] += 1.0
    encoder.refresh_masks()
    assert len(sorts) == total + 1
    encoder.load_state_dict(encoder.state_dict())
    encoder.refresh_masks()
    assert len(sorts) == 2 * total + 1
    encoder.double()
    encoder.refresh_masks()
    assert len(sorts) == 3 * total + 1


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str
)
def test_an_optimisers_step_is_noticed(sorts, feats, options):
    encoder = sparse()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, **options)
    for step in range(1, 3):
        encoder(*feats)[0].square().mean().backward()
        optimizer.step()
        encoder.refresh_masks()
        assert len(sorts) == (step + 1) * len(encoder.space.weights)
    _, sparsity = drawn(encoder, 0)
    expected = zeroed(encoder, sparsity).eval()(*feats)[0]
    found = encoder.eval()(*feats, sparsity=sparsity)[0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_copy_has_masks_of_its_own(feats):
    encoder = sparse().eval()
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for weight in other.maskable().values():
            weight.copy_(weight.flipud())
    other.refresh_masks()
    _, sparsity = drawn(encoder, 1)
    for one in (encoder, other):
        expected = zeroed(one, sparsity)(*feats)[0]
        assert torch.allclose(one(*feats, sparsity=sparsity)[0], expected, atol=1e-6)


# the masked forward


@pytest.mark.parametrize("granularity", ["branch", "block", "component"])
@pytest.mark.parametrize("text", PATTERNS)
def test_masked_weights_are_zeros_in_the_weights(text, granularity, feats):
    norm = "l2" if granularity == "block" else "l1"
    encoder = sparse(pattern=text, pattern_norm=norm, granularity=granularity).eval()
    dense = encoder(*feats)[0]
    for seed in range(3):
        gates, sparsity = drawn(encoder, seed)
        net = zeroed(encoder, sparsity)
        for kept in (gates, None):
            expected = net(*feats, gates=kept)[0]
            found = encoder(*feats, gates=kept, sparsity=sparsity)[0]
            assert torch.allclose(found, expected, atol=1e-6)
            assert not torch.allclose(found, dense, atol=1e-2)
    assert torch.equal(encoder(*feats)[0], dense)  # and nothing was left behind


@pytest.mark.parametrize("conf", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_kind_of_attention_and_ffn_can_be_masked(conf, feats):
    encoder = sparse(granularity="component", **conf).eval()
    gates, sparsity = drawn(encoder, 3)
    expected = zeroed(encoder, sparsity)(*feats, gates=gates)[0]
    found = encoder(*feats, gates=gates, sparsity=sparsity)[0]
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("granularity", ["branch", "block", "component"])
def test_soft_gates_and_masks_go_together(granularity, feats):
    encoder = sparse(granularity=granularity).eval()
    _, sparsity = drawn(encoder, 4)
    gates = torch.rand(len(encoder.space), generator=torch.Generator().manual_seed(0))
    expected = zeroed(encoder, sparsity)(*feats, gates=tuple(gates.unbind()))[0]
    found = encoder(*feats, gates=tuple(gates.unbind()), sparsity=sparsity)[0]
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, encoder(*feats, gates=tuple(gates.unbind()))[0])


def test_the_exits_of_a_masked_pass_are_those_of_the_net_with_zeros(feats):
    encoder = sparse().eval()
    gates, sparsity = drawn(encoder, 5)
    net = zeroed(encoder, sparsity)
    frames = encoder.front_end(*feats)
    found = encoder.intermediate_outputs(frames, (1, 3), gates, sparsity)
    for one, other in zip(
        found, net.intermediate_outputs(frames, (1, 3), gates), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)
    assert len(found) == 2


# gradients


@pytest.mark.parametrize("granularity", ["branch", "component"])
@pytest.mark.parametrize("text", ["8x1", "n:4", "unstructured"])
def test_gradients_reach_what_is_kept_and_nothing_else(text, granularity, feats):
    encoder = sparse(pattern=text, granularity=granularity, conv_norm="layer_norm")
    gates, sparsity = drawn(encoder, 6)
    masks, net = keeps(encoder, sparsity), zeroed(encoder, sparsity)
    ids = {id(weight): name for name, weight in encoder.maskable().items()}
    names = {n: ids[id(p)] for n, p in encoder.named_parameters() if id(p) in ids}
    masked = encoder(*feats, gates=gates, sparsity=sparsity)[0].square().mean()
    found = gradients(encoder, masked)
    expected = gradients(net, net(*feats, gates=gates)[0].square().mean())
    assert found.keys() == expected.keys()
    partly = 0
    for name, gradient in found.items():
        keep = masks.get(names.get(name), torch.ones((), dtype=torch.bool))
        assert (gradient.masked_select(~keep) == 0.0).all()
        assert torch.allclose(gradient, expected[name] * keep, atol=1e-6), name
        partly += int((expected[name] * ~keep).count_nonzero() > 0)
    assert partly > 5  # the net with zeros would train them


def test_the_gradients_of_two_subnets_add_up(feats):
    encoder = sparse(conv_norm="layer_norm")
    draws = [drawn(encoder, seed) for seed in (7, 8)]

    def loss(gates, sparsity):
        return encoder(*feats, gates=gates, sparsity=sparsity)[0].square().mean()

    both = gradients(encoder, sum(loss(*draw) for draw in draws))
    each = [gradients(encoder, loss(*draw)) for draw in draws]
    assert both.keys() == each[0].keys() | each[1].keys()
    for name, gradient in both.items():
        parts = [one[name] for one in each if name in one]
        assert torch.allclose(gradient, sum(parts), atol=1e-6), name


# dropout


@pytest.fixture
def rates(monkeypatch):
    """What is dropped: the last dimension of each input, and the rate."""
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def dropout(x, p=0.5, training=True, inplace=False):
        seen.append((x.size(-1), p if training else 0.0))
        return x

    def fused(q, k, v, mask=None, dropout_p=0.0, **options):
        seen.append((k.size(-2), dropout_p))
        return attend(q, k, v, mask, dropout_p=0.0, **options)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    return seen


DROPPING = {"dropout_rate": 0.4, "attention_dropout_rate": 0.2}


@pytest.mark.parametrize("conf", [{}, {**ABSOLUTE, "use_sdpa": True}], ids=str)
@pytest.mark.parametrize(
    "dropout, ffn, rest", [("adaptive", 0.1, 1), ("full", 0.4, 1), ("none", 0.0, 0)]
)
def test_dropout_as_a_subnet(dropout, ffn, rest, conf, feats, rates):
    encoder = sparse(**DROPPING, **conf).train()
    frames = encoder.front_end(*feats)
    sparsity = [0.75] * len(encoder.space.weights)
    rates.clear()
    with encoder.as_subnet(dropout):
        encoder.blocks(frames, sparsity=sparsity)
    by_width = {width: {p for w, p in rates if w == width} for width, _ in rates}
    assert by_width.keys() == {FFN, FRAMES, 16}
    (rate,) = by_width[FFN]
    assert rate == pytest.approx(ffn)
    assert by_width[FRAMES] == {0.2 * rest}
    assert by_width[16] == {0.4 * rest}
    rates.clear()
    encoder.blocks(frames)
    assert {p for width, p in rates if width != FRAMES} == {0.4}
    assert {p for width, p in rates if width == FRAMES} == {0.2}


def test_each_ffn_has_the_rate_of_its_own_density(feats, rates):
    encoder = sparse(**DROPPING, granularity="component").train()
    share = {"0.ffn1.w_1": 0.5, "2.ffn2.w_1": 0.5, "2.ffn2.w_2": 0.25}
    sparsity = [share.get(name, 0.0) for name in encoder.space.weights]
    gates = [1.0] * len(encoder.space)
    gates[0] = None  # a quarter of the first FFN
    frames = encoder.front_end(*feats)
    rates.clear()
    encoder.blocks(frames, gates, sparsity)
    expected = [(24, 0.4 * 0.75 * 0.75), *[(FFN, 0.4)] * 4, (FFN, 0.4 * 0.625)]
    found = [(width, p) for width, p in rates if width in (24, FFN)]
    assert [width for width, _ in found] == [width for width, _ in expected]
    assert [p for _, p in found] == pytest.approx([p for _, p in expected])


def test_the_rate_is_what_is_really_dropped():
    module = sparse(dropout_rate=0.4).encoders[0].feed_forward.train()
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    # every hidden unit is one, and an output is a hidden unit
    torch.nn.init.ones_(module.w_1.bias)
    module.activation = torch.nn.Identity()
    masked = Masked({"w_2.weight": torch.eye(16, FFN)}, density=0.5)
    x = torch.zeros(20, 500, 16)
    out = run_narrowed("ffn2", module, (0,), 1, (x,), masked)
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    kept = out[out != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / 0.8))
    assert (module(x) == 0).all()  # its own weights are as they were


@pytest.mark.parametrize("dropout", ["adaptive", "full", "none"])
def test_dropout_comes_back_after_an_exception(dropout, feats, rates):
    encoder = sparse(**DROPPING, use_sdpa=True).train()
    before = encoder.subnet_dropout
    with pytest.raises(KeyError), encoder.as_subnet(dropout):
        raise KeyError
    assert encoder.subnet_dropout == before
    frames = encoder.front_end(*feats)
    rates.clear()
    encoder.blocks(frames)
    assert {p for width, p in rates if width != FRAMES} == {0.4}
    assert {p for width, p in rates if width == FRAMES} == {0.2}


# checkpoints


@pytest.mark.parametrize("conf", VARIANTS.values(), ids=VARIANTS.keys())
def test_stock_checkpoints_load_and_ours_load_in_stock(conf, feats):
    stock = randomize(ConformerEncoder(FEATURES, **{**CONF, **conf})).eval()
    ours = OmniSparseConformerEncoder(FEATURES, **{**CONF, **conf}).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    assert torch.allclose(ours(*feats)[0], stock(*feats)[0], atol=1e-6)
    _, sparsity = drawn(ours, 9)
    ours.refresh_masks()
    stock.load_state_dict(zeroed(ours, sparsity).state_dict(), strict=True)
    found = ours(*feats, sparsity=sparsity)[0]
    assert torch.allclose(found, stock(*feats)[0], atol=1e-6)


def test_the_defaults_of_the_pattern():
    assert sparse().space.pattern == Pattern(rows=8)
    assert sparse(pattern_norm="l2").space.pattern == Pattern(rows=8, norm="l2")
    assert ASR_LAYOUT.parts.keys() == {w.split(".")[1] for w in sparse().space.weights}


def test_remembered_masks_are_those_of_the_present_order():
    pattern, weight = Pattern(rows=2), torch.randn(8, 6)
    masks = WeightMasks(pattern)
    masks.refresh({"w": weight})
    shares = [0.05 * step for step in range(1, 19)]  # more than are remembered
    for _ in range(2):
        for share in shares:
            expected = weight_mask(
                group_ranks(weight, pattern), weight.shape, share, pattern
            )
            assert torch.equal(masks.kept("w", weight.shape, share), expected)
    assert masks.kept("w", weight.shape, 0.9) is masks.kept("w", weight.shape, 0.9)
    old = masks.kept("w", weight.shape, 0.5)
    weight.copy_(weight.flipud().clone())
    masks.refresh({"w": weight})
    assert not torch.equal(masks.kept("w", weight.shape, 0.5), old)
    # an order that is settled, and overwritten by a checkpoint's
    masks.order = MaskOrder({"w": weight}, pattern)
    masks.order.settle(masks.ranks())
    masks.refresh({"w": weight})
    first = masks.kept("w", weight.shape, 0.5)
    other = group_ranks(torch.randn(8, 6), pattern)
    masks.order.load_state_dict({"w": other.int()})
    masks.refresh({"w": weight})
    found = masks.kept("w", weight.shape, 0.5)
    assert torch.equal(found, weight_mask(other, weight.shape, 0.5, pattern))
    assert not torch.equal(found, first)
