import math

import pytest
import torch

from espnet_omnisparse.losses.distillation import (
    KINDS,
    MAX_RATIO,
    NO_MASS,
    block_loss,
    collapse,
    divergence,
    frame_loss,
    lattice_loss,
)

BLANK = 0


def plain_divergence(student, teacher, alpha):
    """Value, surrogate and clamped ratios by METHODS' formulas, in float64."""
    p = teacher.detach().double().softmax(-1)
    log_q = student.double().log_softmax(-1)
    q = log_q.detach().exp()
    if alpha == 1:
        value = (p * (p / q).log()).sum(-1)
        return value, -(p * log_q).sum(-1), p / q
    ratio = (p / q) ** alpha
    w = ratio.clamp(0, MAX_RATIO)
    c = alpha * (alpha - 1)
    value = (q * (w - 1) / c).sum(-1)
    return value, -(q * (w / alpha + 1 / c) * log_q).sum(-1), ratio


def plain_adaptive(student, teacher):
    """Value, surrogate, and where alpha = -1 is the larger."""
    low, low_surrogate, _ = plain_divergence(student, teacher, -1)
    high, high_surrogate, _ = plain_divergence(student, teacher, 1)
    larger = low > high
    surrogate = torch.where(larger, low_surrogate, high_surrogate)
    return torch.maximum(low, high), surrogate, larger


def plain(student, teacher, kind):
    if kind == "kl":
        return plain_divergence(student, teacher, 1)[:2]
    return plain_adaptive(student, teacher)[:2]


def random_logits(*shape, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator)).requires_grad_()


@pytest.mark.parametrize("kind", ["kl", "alpha"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_values_and_gradients_equal_the_plain_formulas(kind, spread):
    student = random_logits(6, 7, 5, seed=1, spread=spread)
    teacher = random_logits(6, 7, 5, seed=2, spread=spread)
    weights = torch.rand(6, 7)  # so that no sample hides behind another's gradient
    found = divergence(student, teacher, kind)
    value, surrogate = plain(student, teacher, kind)
    assert found.shape == (6, 7)
    assert torch.allclose(found.double(), value, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad((weights * found).sum(), student)
    (expected,) = torch.autograd.grad((weights * surrogate).sum(), student)
    assert torch.allclose(gradient, expected.float(), rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-3


def test_both_choices_and_the_clamp_occur_in_the_plain_formulas():
    student = random_logits(6, 7, 5, seed=1, spread=1.0)
    teacher = random_logits(6, 7, 5, seed=2, spread=1.0)
    _, _, larger = plain_adaptive(student, teacher)
    _, _, ratio = plain_divergence(student, teacher, -1)
    assert 5 < larger.sum() < 37
    assert (larger[:, :, None] & (ratio > MAX_RATIO)).any()


def test_without_clamped_ratios_the_surrogate_has_the_gradient_of_the_value():
    student = random_logits(20, 5, seed=3, spread=0.4)
    teacher = random_logits(20, 5, seed=4, spread=0.4)
    p, q = teacher.detach().double().softmax(-1), student.double().softmax(-1)
    assert (q / p).max() < MAX_RATIO
    low = ((q * q / p).sum(-1) - 1) / 2
    high = (p * (p.log() - q.log())).sum(-1)
    (expected,) = torch.autograd.grad(torch.maximum(low, high).sum(), student)
    found = divergence(student, teacher, "alpha").sum()
    (gradient,) = torch.autograd.grad(found, student)
    assert torch.allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_the_teacher_gets_no_gradient(kind):
    student, teacher = random_logits(4, 5, seed=1), random_logits(4, 5, seed=2)
    loss = divergence(student, teacher, kind).sum()
    loss = loss + frame_loss(student[None], teacher[None], torch.tensor([4]), kind)
    loss.backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_equal_distributions_are_at_zero(kind):
    logits = random_logits(50, 8, seed=5, spread=10.0)
    shifted = (logits + 3.0).detach()
    assert divergence(logits, logits, kind).tolist() == [0.0] * 50
    found = divergence(logits, shifted, kind)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert found.abs().max() < 1e-5 and gradient.abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_logits_and_log_probabilities_are_the_same(kind):
    student, teacher = random_logits(9, 5, seed=1), random_logits(9, 5, seed=2)
    one = divergence(student, teacher, kind)
    other = divergence(student.log_softmax(-1), teacher.log_softmax(-1), kind)
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", ["kl", "alpha"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("peak", [80.0, 3.0e4])
def test_peaky_distributions_in_low_precision_are_finite(kind, dtype, peak):
    signs = torch.tensor(
        [[1, -1, -1, -1], [-1, 1, -1, -1], [1, 1, -1, -1], [1, 1, 1, 1]]
    )
    logits = (peak * signs).to(dtype)
    student = logits.repeat(4, 1).requires_grad_()  # every pair of peaks
    found = divergence(student, logits.repeat_interleave(4, 0), kind)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert found.isfinite().all() and student.grad.isfinite().all()
    # sure of the wrong symbol: KL is the difference of the logits
    assert found[1].item() == pytest.approx(2 * peak, rel=0.01)
    assert student.grad[1].abs().max() > 0.9


@pytest.mark.parametrize("kind", ["kl", "alpha"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_ends_at_the_input(kind, dtype):
    student = random_logits(2, 3, 3, 6, seed=1).to(dtype)
    teacher = random_logits(2, 3, 3, 6, seed=2).to(dtype)
    expected = divergence(student.float(), teacher.float(), kind)
    assert torch.equal(divergence(student, teacher, kind), expected)
    labels = torch.tensor([[1, 2], [3, 0]])
    expected = collapse(student.float(), labels, BLANK)
    assert torch.equal(collapse(student, labels, BLANK), expected)


@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_autocast_changes_nothing(kind):
    student, teacher = random_logits(9, 5, seed=1), random_logits(9, 5, seed=2)
    joint, labels = random_logits(2, 3, 3, 6), torch.tensor([[1, 2], [3, 0]])
    lengths = torch.tensor([3, 2]), torch.tensor([2, 1])
    expected = divergence(student, teacher, kind)
    collapsed = collapse(joint, labels, BLANK)
    of_lattice = lattice_loss(joint * 2, collapsed, labels, *lengths, BLANK, kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(divergence(student, teacher, kind), expected)
        again = collapse(joint, labels, BLANK)
        assert torch.equal(again, collapsed) and again.dtype == torch.float32
        assert torch.equal(
            lattice_loss(joint * 2, again, labels, *lengths, BLANK, kind), of_lattice
        )


@pytest.mark.parametrize("kind", [KINDS[0], "kld"])
def test_other_kinds_are_refused(kind):
    with pytest.raises(ValueError, match=kind):
        divergence(torch.zeros(2, 3), torch.zeros(2, 3), kind)


@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_frame_loss_is_the_sum_over_real_frames_per_utterance(kind):
    student, teacher = random_logits(3, 6, 5, seed=1), random_logits(3, 6, 5, seed=2)
    lengths = torch.tensor([6, 2, 4])
    expected, surrogates = 0.0, 0.0
    for one, length in enumerate(lengths):
        for t in range(length):
            value, surrogate = plain(student[one, t], teacher[one, t], kind)
            expected, surrogates = expected + value, surrogates + surrogate
    loss = frame_loss(student, teacher, lengths, kind)
    assert loss.item() == pytest.approx(expected.item() / 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    (expected_gradient,) = torch.autograd.grad(surrogates / 3, student)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)


def test_padded_frames_do_not_matter_whatever_they_hold():
    student, teacher = random_logits(3, 6, 5, seed=1), random_logits(3, 6, 5, seed=2)
    lengths = torch.tensor([6, 2, 4])
    expected = frame_loss(student, teacher, lengths, "alpha")
    padding = torch.arange(6) >= lengths[:, None]
    dirty = student.detach().clone()
    dirty[padding] = math.nan
    dirty.requires_grad_()
    other = teacher.detach().masked_fill(padding[..., None], math.inf)
    loss = frame_loss(dirty, other, lengths, "alpha")
    loss.backward()
    assert torch.equal(loss, expected)
    assert dirty.grad[padding].eq(0).all() and dirty.grad.isfinite().all()


def plain_collapse(joint, labels, u_lens, blank):
    """By the full softmax, in float64, one node after the other."""
    p = joint.double().softmax(-1)
    utterances, frames, states, vocabulary = joint.shape
    rows = []
    for b in range(utterances):
        for t in range(frames):
            for u in range(states):
                label = int(labels[b, u]) if u < u_lens[b] else None
                rest = [v for v in range(vocabulary) if v not in (label, blank)]
                mass = p.new_zeros(()) if label is None else p[b, t, u, label]
                row = [mass, p[b, t, u, blank], p[b, t, u, rest].sum()]
                rows.append(torch.stack(row))
    return torch.stack(rows).view(utterances, frames, states, 3)


LABELS = torch.tensor([[3, 1, 5], [2, 2, -1], [-1, -1, -1]])
U_LENS = torch.tensor([3, 2, 0])


def padded(blank):
    return LABELS.masked_fill(LABELS < 0, blank)


@pytest.mark.parametrize("blank", [0, 4])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_collapse_equals_the_full_softmax(blank, spread):
    joint = random_logits(3, 4, 4, 6, spread=spread)
    expected = plain_collapse(joint, LABELS, U_LENS, blank)
    log_probs = collapse(joint, padded(blank), blank)
    assert log_probs.shape == (3, 4, 4, 3) and log_probs.isfinite().all()
    real = expected > 0
    assert torch.allclose(
        log_probs[real].double(), expected[real].log(), rtol=1e-6, atol=1e-5
    )
    assert log_probs[~real].eq(NO_MASS).all() and (~real).sum() == 4 * (1 + 2 + 4)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3, 4, 4), atol=1e-6)
    weights = torch.rand(3, 4, 4, 3)
    (gradient,) = torch.autograd.grad((weights * log_probs).sum(), joint)
    logs = weights[real] * expected[real].log()
    (expected_gradient,) = torch.autograd.grad(logs.sum(), joint)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("blank", [0, 4])
def test_labels_can_be_padded_with_blank_or_a_negative_id(blank):
    joint = random_logits(3, 4, 4, 6)
    one, other = collapse(joint, padded(blank), blank), collapse(joint, LABELS, blank)
    assert torch.equal(one, other)


def test_the_rest_keeps_its_digits_where_label_and_blank_are_certain():
    logits = torch.tensor([20.0, 20.0, -20.0, -21.0])  # 1 - p - p is 0 in float32
    joint = logits.expand(1, 1, 2, 4).clone().requires_grad_()
    log_probs = collapse(joint, torch.tensor([[1]]), BLANK)
    expected = math.log(math.exp(-20) + math.exp(-21)) - 20 - math.log(2)
    assert log_probs[0, 0, 0, 2].item() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(log_probs[0, 0, 0, 2], joint)
    share = 1 / (1 + math.exp(-1))
    assert gradient[0, 0, 0].tolist() == pytest.approx([-0.5, -0.5, share, 1 - share])


def test_two_symbols_leave_no_rest_and_no_nan():
    joint = random_logits(2, 3, 3, 2)
    labels = torch.tensor([[1, 1], [1, BLANK]])
    log_probs = collapse(joint, labels, BLANK)
    assert log_probs[0, :, :2, 2].eq(NO_MASS).all()
    lengths = torch.tensor([3, 2]), torch.tensor([2, 1])
    for kind in ("kl", "alpha"):
        loss = lattice_loss(
            joint, log_probs.flip(1).detach(), labels, *lengths, BLANK, kind
        )
        (gradient,) = torch.autograd.grad(loss, joint)
        assert loss > 0 and gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["kl", "alpha"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_peaky_lattices_are_finite(kind, dtype):
    peaks = torch.randint(6, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    joint = torch.full((3, 4, 4, 6), -80.0).scatter(-1, peaks[..., None], 80.0)
    student = joint.to(dtype).requires_grad_()
    teacher = collapse(joint.roll(1, 1).to(dtype), LABELS, BLANK)
    t_lens = torch.tensor([4, 3, 2])
    loss = lattice_loss(student, teacher, LABELS, t_lens, U_LENS, BLANK, kind)
    loss.backward()
    assert loss.isfinite() and loss > 30
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0.1
    assert student.grad.dtype == dtype


@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_lattice_loss_sums_over_frames_what_it_averages_over_their_nodes(kind):
    student = random_logits(3, 4, 4, 6, seed=1)
    teacher = random_logits(3, 4, 4, 6, seed=2)
    t_lens = torch.tensor([4, 1, 3])
    p = plain_collapse(teacher.detach(), LABELS, U_LENS, BLANK)
    q = plain_collapse(student, LABELS, U_LENS, BLANK)
    expected, surrogates = 0.0, 0.0
    for b in range(3):
        for t in range(t_lens[b]):
            for u in range(U_LENS[b] + 1):
                real = slice(0, 3) if u < U_LENS[b] else slice(1, 3)
                value, surrogate = plain(
                    q[b, t, u, real].log(), p[b, t, u, real].log(), kind
                )
                expected += value / (U_LENS[b] + 1)
                surrogates += surrogate / (U_LENS[b] + 1)
    collapsed = collapse(teacher, LABELS, BLANK)
    loss = lattice_loss(student, collapsed, LABELS, t_lens, U_LENS, BLANK, kind)
    assert loss.item() == pytest.approx(expected.item() / 3, rel=1e-5)
    gradient, of_teacher = torch.autograd.grad(
        loss, (student, teacher), allow_unused=True
    )
    assert of_teacher is None
    (expected_gradient,) = torch.autograd.grad(surrogates / 3, student)
    assert torch.allclose(gradient, expected_gradient, atol=1e-5)


def test_padded_nodes_do_not_matter():
    student, teacher = random_logits(3, 4, 4, 6, seed=1), random_logits(3, 4, 4, 6)
    t_lens = torch.tensor([4, 1, 3])

    def loss(student, teacher):
        collapsed = collapse(teacher, LABELS, BLANK)
        return lattice_loss(student, collapsed, LABELS, t_lens, U_LENS, BLANK, "alpha")

    real = (torch.arange(4) < t_lens[:, None])[:, :, None] & (
        torch.arange(4) <= U_LENS[:, None]
    )[:, None]
    expected = loss(student, teacher)
    (gradient,) = torch.autograd.grad(expected, student)
    assert gradient[~real].eq(0).all() and gradient[real].abs().amax(-1).gt(0).all()
    noise = 9 * torch.randn_like(student) * ~real[..., None]
    assert torch.equal(loss(student + noise, teacher - noise), expected)
    assert not torch.equal(loss(student + 1e-1 * torch.randn(6), teacher), expected)


def test_collapse_makes_no_second_tensor_of_the_size_of_the_logits():
    joint = random_logits(8, 10, 5, 50).bfloat16().detach().requires_grad_()
    large = joint.numel()
    saved = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() != joint.untyped_storage().data_ptr():
            saved.append(tensor.numel())
        return tensor

    labels = torch.randint(1, 50, (8, 4))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        collapse(joint, labels, BLANK).sum().backward()
    assert saved and max(saved) < large / 4


def test_the_distance_after_blocks_is_relative_and_of_real_frames_alone():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 5, 4, generator=generator).double()
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    lengths = torch.tensor([5, 3])
    expected = 0.0
    for own, wanted in zip(student, teacher.detach(), strict=True):
        distance = size = 0.0
        for utterance, frames in enumerate(lengths.tolist()):
            for t in range(frames):
                distance += ((own[utterance, t] - wanted[utterance, t]) ** 2).sum()
                size += (wanted[utterance, t] ** 2).sum()
        expected = expected + distance / size / 3
    expected = expected * 4  # frames of an utterance, in the mean
    found = block_loss(tuple(student), tuple(teacher), lengths)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(expected, student)
    found.backward()
    assert teacher.grad is None
    assert torch.allclose(student.grad, gradient, rtol=1e-12)
    assert not student.grad[:, 1, 3:].any() and student.grad[:, 1, :3].all()
    larger = [10.0 * block for block in teacher]
    assert block_loss(larger, larger, lengths) == 0.0
    shrunk = [9.0 * block for block in teacher]  # a tenth away, whatever its scale
    assert block_loss(shrunk, larger, lengths).item() == pytest.approx(0.04)
