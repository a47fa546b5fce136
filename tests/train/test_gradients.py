import copy
import weakref

import pytest
import torch
from helpers.gradients import assert_same_gradients, gradients
from helpers.tiny import build, transducer_config

from espnet_omnisparse.train import update
from espnet_omnisparse.train.gradients import GradientAccumulator


class Toy(torch.nn.Module):
    """A front end, and losses that use different parameters of what follows it."""

    def __init__(self):
        super().__init__()
        self.front = torch.nn.Linear(4, 4)
        self.shared = torch.nn.Linear(4, 4)
        self.third = torch.nn.Linear(4, 4)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
        self.unused = torch.nn.Linear(4, 4)

    def losses(self, hidden):
        """Computed one after the other, when they are asked for."""
        yield self.shared(hidden).square().sum()
        yield self.frozen(hidden).exp().mean()
        yield (self.third(hidden) * self.shared(hidden)).sum()


def trained(toy, x, factor, **options):
    """The toy's gradients by a gradients."""
    toy = copy.deepcopy(toy)
    gradients = GradientAccumulator(toy.parameters(), **options)
    hidden = toy.front(x)
    cut = gradients.detach_shared(hidden)
    for loss in toy.losses(cut):
        gradients.add(loss)
    total = gradients.total()
    assert gradients.has_gradients
    (factor * total).backward()
    return total, {name: p.grad for name, p in toy.named_parameters()}


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_gradients_are_those_of_one_backward_of_the_sum(keep_graphs):
    toy, x = Toy(), torch.randn(3, 4)
    expected = sum(toy.losses(toy.front(x)))
    (0.37 * expected).backward()
    total, found = trained(toy, x, 0.37, keep_graphs=keep_graphs)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in toy.named_parameters():
        if parameter.grad is None:  # a zero would be decayed by an optimiser
            assert name.startswith(("frozen", "unused")) and found[name] is None
        else:
            assert torch.allclose(found[name], parameter.grad, atol=1e-6), name
            assert found[name].abs().max() > 1e-3


def test_a_front_end_without_gradients_needs_none():
    toy, x = Toy(), torch.randn(3, 4)
    toy.front.requires_grad_(False)
    expected = gradients(toy.shared, sum(toy.losses(toy.front(x))))
    _, found = trained(toy, x, 1.0)
    assert found["front.weight"] is None
    for name, gradient in expected.items():
        assert torch.allclose(found[f"shared.{name}"], gradient, atol=1e-6)


def test_a_tensor_that_autograd_hands_out_twice_is_not_added_to_itself():
    one, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    gradients = GradientAccumulator([one, other])
    for factor in (2.0, 3.0):
        gradients.add((factor * (one + other)).sum())
    total = gradients.total()
    (7.0 * total).backward(retain_graph=True)
    assert one.grad.tolist() == other.grad.tolist() == [35.0, 35.0]
    total.backward()
    assert one.grad.tolist() == other.grad.tolist() == [40.0, 40.0]


def test_a_gradient_that_is_one_number_expanded_can_be_added_to():
    weight = torch.ones(3, requires_grad=True)
    gradients = GradientAccumulator([weight])
    for _ in range(2):
        gradients.add(weight.sum())
    gradients.total().backward()
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_a_loss_without_gradient_is_counted_and_leads_nowhere(keep_graphs):
    weight = torch.ones(3, requires_grad=True)
    gradients = GradientAccumulator([weight], keep_graphs)
    assert not gradients.has_gradients and gradients.total() == 0.0
    gradients.add(torch.tensor(2.0))
    assert not gradients.has_gradients and gradients.total().item() == 2.0
    gradients.add((3.0 * weight).sum())
    gradients.add(torch.tensor(0.5))
    assert gradients.has_gradients and gradients.total().item() == 11.5
    gradients.total().backward()
    assert weight.grad.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_a_graph_is_freed_before_the_next_loss(keep_graphs):
    weight = torch.randn(4, 4, requires_grad=True)
    gradients = GradientAccumulator([weight], keep_graphs)
    shared = torch.randn(3, 4) @ weight
    cut = gradients.detach_shared(shared)
    activations, alive, losses = [], [], []
    for _ in range(3):
        activation = cut @ weight  # which its square keeps for the gradient
        activations.append(weakref.ref(activation))
        losses.append(activation.square().sum())
        del activation
        gradients.add(losses[-1])
        alive.append(sum(one() is not None for one in activations))
    assert alive == ([1, 2, 3] if keep_graphs else [0, 0, 0])


def test_what_several_losses_share_is_cut_once_and_gets_the_gradient_of_all():
    scores = torch.tensor([1.0, 2.0], requires_grad=True)  # no parameter of the net
    gates = (2.0 * scores).unbind()
    weight = torch.tensor([3.0, 5.0], requires_grad=True)
    gradients = GradientAccumulator([weight, scores])
    for _ in range(2):
        cuts = [gradients.detach_shared(gate) for gate in gates]
        gradients.add((torch.stack(cuts) * weight).sum())
    assert cuts[0] is gradients.detach_shared(gates[0])
    gradients.total().backward()
    assert scores.grad.tolist() == [12.0, 20.0]
    assert weight.grad.tolist() == [4.0, 8.0]


def backward_of_each(model, batch):
    """Gradients of an update's subnets, each by a pass and a backward of its own."""
    made = model.make_batch(**batch)
    draws = model.supernet.sample_subnets()
    assert len(draws) == 3
    total = dict.fromkeys(dict(model.named_parameters()), 0.0)
    for draw in draws:
        hidden = model.encoder.front_end(made.feats, made.feats_lengths)
        encoded, lengths = model.encoder.blocks(
            hidden.with_chunk_mask(draw.chunk), draw.gates, draw.sparsity
        )
        loss = model._head_loss(draw.size, encoded, lengths, made).loss
        per_frame = draw.weight * loss * len(made) / hidden.mask.sum()
        for name, gradient in gradients(model, per_frame).items():
            total[name] = total[name] + gradient
    weights = sum(draw.weight for draw in draws)
    return {name: one / weights for name, one in total.items()}


def asr_model(tiny_model):
    return tiny_model(update=60, heads="per_size", attention=True)


def transducer_model(_):
    supernet = {
        "method": "none",
        "sizes": {"s50": {"sparsity": 0.5}},
        "sparsity": {
            "final": 0.8,
            "ramp": 2,
            "sandwich": ["dense", "sparsest", "random"],
        },
        "chunks": ["full", {"size": 3, "left": 3}],
    }
    return build(transducer_config(supernet, auxiliary_ctc_weight=0.5), update=60)


@pytest.mark.parametrize(
    "make, dtype",
    [
        (asr_model, torch.bfloat16),
        (asr_model, torch.float16),
        (transducer_model, torch.bfloat16),  # PyTorch's LSTM has no float16 on a CPU
    ],
)
def test_mixed_precision_has_the_gradients_of_its_subnets(
    tiny_model, batch, monkeypatch, make, dtype
):
    model = make(tiny_model).train()
    kept = []

    class Seen(GradientAccumulator):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            kept.append(options["keep_graphs"])

    monkeypatch.setattr(update, "GradientAccumulator", Seen)
    plain = gradients(model, model(**batch)[0])
    with torch.autocast("cpu", dtype):
        loss = model(**batch)[0]
    found = gradients(model, loss)
    with torch.autocast("cpu", dtype):
        expected = backward_of_each(model, batch)
    # in float16 the trainer's scale has to come first: its backward does everything
    assert kept == [False, dtype == torch.float16]
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all(), name
    # the same rounding, but for the order of sums; near the gradients in full precision
    assert distance(found, expected) < 0.02
    assert 0 < distance(found, plain) < 0.1


def distance(found, expected):
    """Relative distance of two sets of gradients, all parameters as one vector."""
    pairs = [(found[name], torch.as_tensor(expected[name])) for name in found]
    apart = sum((one - other).square().sum() for one, other in pairs)
    return (apart / sum(other.square().sum() for _, other in pairs)).sqrt().item()


@pytest.mark.parametrize("make", [asr_model, transducer_model])
def test_an_update_has_the_gradients_of_its_subnets(tiny_model, batch, make):
    model = make(tiny_model).train()
    found = gradients(model, model(**batch)[0])
    assert_same_gradients(found, backward_of_each(model, batch))
    still = [name for name, one in found.items() if one.abs().max() < 1e-5]
    # biases to which a softmax or a norm is blind, and sizes not drawn
    blind = ("bias", "supernet.", "size_ctc.")
    assert all(any(part in name for part in blind) for name in still), still
