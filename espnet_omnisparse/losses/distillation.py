"""In-place distillation: the full net's detached output teaches the subnets.

A sample is a CTC frame, or a node of the transducer's lattice. Its divergence says how
far the student's distribution q is from the teacher's p; only q gets a gradient.

`kl` is KL(p || q). `alpha` is the adaptive alpha-divergence of AlphaNet (arXiv
2102.07954): per sample the larger of the divergences at alpha = -1, which punishes a
student for what the teacher rules out, and at alpha = 1, which is `kl` again and
punishes it for what it misses. The transducer's teacher is reduced to three
probabilities per node: the correct label, blank, and the rest (arXiv 2011.06110).

Everything is computed in float32 at least, whatever the input and autocast: ratios of
probabilities overflow in less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

KINDS = ("none", "kl", "alpha")
MAX_RATIO = 5.0  # AlphaNet's clamp of the importance ratio
# the log of no probability at all: exactly 0 after exp, yet finite, where -inf would
# make NaN of 0 * log 0 and of its gradient
NO_MASS = -1.0e4


@dataclass(frozen=True)
class Teacher:
    """What the largest net says about some utterances, without gradients.

    Attributes:
        ctc: CTC logits `[batch, time, labels]`, where there is CTC.
        lattice: Of a transducer, the log-probabilities of the correct label, of blank
            and of the rest at each node `[batch, time, labels + 1, 3]`.
        blocks: The encoder's output after each block `[batch, time, size]`, if that
            is taught.
    """

    ctc: torch.Tensor | None
    lattice: torch.Tensor | None
    blocks: tuple[torch.Tensor, ...] = ()


def divergence(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """How far each of the student's distributions is from the teacher's.

    The value is that of the divergence; the gradient, to the student alone, is that of
    its surrogate, in which only log q varies. AlphaNet's code returns the surrogate's
    value, which is a cross-entropy at alpha = 1 and has no meaning at alpha = -1; here
    a loss's value weighs the subnet (`subnet_weight: adaptive`), and one that says what
    its teacher says must weigh nothing.

    Args:
        student: Logits or log-probabilities `[..., V]`.
        teacher: The same of the teacher `[..., V]`.
        kind: `kl` or `alpha`.

    Returns:
        `[...]`, float32.

    >>> equal = torch.zeros(2, 4)
    >>> divergence(equal, equal, "alpha").tolist()
    [0.0, 0.0]
    >>> one_of_two = torch.tensor([0.0, NO_MASS])
    >>> round(divergence(torch.zeros(2), one_of_two, "kl").item(), 4)  # log 2
    0.6931
    """
    if kind not in ("kl", "alpha"):
        raise ValueError(f"no divergence is called {kind!r}")
    with torch.autocast(student.device.type, enabled=False):
        log_q = _precise(student).log_softmax(-1)
        log_p = _precise(teacher.detach()).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        if kind == "kl":
            return kl
        value, surrogate = _alpha_minus_one(log_q, log_p)
        reverse = value + (surrogate - surrogate.detach())
        return torch.where(value > kl, reverse, kl)


def frame_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    lengths: torch.Tensor,
    kind: str,
) -> torch.Tensor:
    """The divergence summed over real frames, per utterance: the scale of CTC's loss.

    Args:
        student_logits: `[B, T, V]`.
        teacher_logits: `[B, T, V]`.
        lengths: Frames of each utterance `[B]`.
        kind: `kl` or `alpha`.

    Returns:
        A scalar, as ESPnet's CTC loss the mean over utterances of sums over frames.
    """
    real = _below(lengths, student_logits.size(1))
    per_frame = divergence(student_logits[real], teacher_logits[real], kind)
    return per_frame.sum() / len(lengths)


def lattice_loss(
    student_joint: torch.Tensor,
    teacher_collapsed: torch.Tensor,
    labels: torch.Tensor,
    t_len: torch.Tensor,
    u_len: torch.Tensor,
    blank: int,
    kind: str,
) -> torch.Tensor:
    """The divergence at the lattice's real nodes, per utterance.

    Summed over frames and averaged over the `u_len + 1` nodes of a frame, which is the
    scale of `frame_loss`; the plain sum would grow with the square of the length.

    Args:
        student_joint: The joint network's logits `[B, T, U + 1, V]`.
        teacher_collapsed: `collapse` of the teacher's logits `[B, T, U + 1, 3]`.
        labels: As in `collapse` `[B, U]`.
        t_len: Frames of each utterance `[B]`.
        u_len: Labels of each utterance `[B]`.
        blank: The id of blank.
        kind: `kl` or `alpha`.

    Returns:
        A scalar, the mean over utterances of sums over frames.
    """
    student = collapse(student_joint, labels, blank)
    _, frames, states, _ = student.shape
    # the state after the last label is real: there only blank is right
    real = _below(t_len, frames)[:, :, None] & _below(u_len + 1, states)[:, None, :]
    nodes = divergence(student[real], teacher_collapsed[real], kind)
    share = (1.0 / (u_len + 1))[:, None, None].expand_as(real)[real]
    return (nodes * share).sum() / len(labels)


def block_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    lengths: torch.Tensor,
) -> torch.Tensor:
    """How far a student is from its teacher after each block, per utterance.

    The squared distance relative to the teacher's square, so that every block counts
    alike (SquareHead of arXiv 2310.06927), in the mean over blocks; times frames, the
    scale of `frame_loss`.

    Args:
        student: Output after each block `[B, T, D]`.
        teacher: The same of the teacher.
        lengths: Frames of each utterance `[B]`.

    Returns:
        A scalar, the mean over utterances; what teaches gets no gradient.

    >>> ones = torch.ones(1, 4, 2)
    >>> block_loss([0.5 * ones, ones], [ones, ones], torch.tensor([4])).item()
    0.5
    """
    real = _below(lengths, student[0].size(1))
    ratios = []
    for own, wanted in zip(student, teacher, strict=True):
        own, wanted = _precise(own[real]), _precise(wanted.detach()[real])
        ratios.append((own - wanted).square().sum() / wanted.square().sum())
    return torch.stack(ratios).mean() * real.sum() / len(lengths)


def collapse(
    joint_logits: torch.Tensor, labels: torch.Tensor, blank: int
) -> torch.Tensor:
    """Log-probabilities of the correct label, of blank, and of all the rest.

    Where no label is left (state U, and the states of shorter utterances from their
    last on) the label has no mass (`NO_MASS`) and the rest is everything but blank,
    so that the three always sum to one.

    Beside the logits' gradient no other tensor of their size is ever made: not their
    softmax, nor a float32 copy of logits in half precision.

    Args:
        joint_logits: `[B, T, U + 1, V]`.
        labels: `[B, U]`, padded with blank, as ESPnet does, or a negative id.
        blank: The id of blank.

    Returns:
        `[B, T, U + 1, 3]`, float32, differentiable in the logits.

    >>> joint = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().expand(1, 1, 2, 4)
    >>> label, no_label = collapse(joint, torch.tensor([[2]]), blank=0).exp()[0, 0]
    >>> [round(p, 4) for p in label.tolist()], [round(p, 4) for p in no_label.tolist()]
    ([0.2, 0.5, 0.3], [0.0, 0.5, 0.5])
    """
    slots = torch.nn.functional.pad(labels.long(), (0, 1), value=blank)
    slots = slots.masked_fill(slots < 0, blank)
    with torch.autocast(joint_logits.device.type, enabled=False):
        return _Collapse.apply(joint_logits, slots, blank)


def _alpha_minus_one(
    log_q: torch.Tensor, log_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and surrogate of the divergence at alpha = -1 `[...]`.

    alpha (alpha - 1) is 2, and the importance ratio (p / q) ** alpha is q / p, clamped
    while it is a logarithm: beside a peaky teacher it overflows.
    """
    fixed = log_q.detach()
    q = fixed.exp()
    ratio = (fixed - log_p).clamp(max=math.log(MAX_RATIO)).exp()
    value = (q * (ratio - 1.0)).sum(-1) / 2.0
    surrogate = (q * (ratio - 0.5) * log_q).sum(-1)
    return value, surrogate


def _below(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Which of `size` positions are within each length `[B, size]`."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class _Collapse(torch.autograd.Function):
    """`collapse` with its gradient by hand.

    Autograd would keep a softmax and add up one tensor of the joint's size per slot.
    Utterances come one after the other, so what is temporary has the size of one.
    The rest is a log-sum of its own: 1 - label - blank has no digits left where the
    two are nearly certain.
    """

    @staticmethod
    def forward(
        ctx, joint: torch.Tensor, slots: torch.Tensor, blank: int
    ) -> torch.Tensor:
        dtype = torch.promote_types(joint.dtype, torch.float32)
        collapsed = joint.new_empty((*joint.shape[:-1], 3), dtype=dtype)
        sums = torch.empty_like(collapsed[..., :2])
        for out, norms, logits, slot in zip(collapsed, sums, joint, slots, strict=True):
            logits = _precise(logits)
            index = _slot_index(slot, logits)
            total = logits.logsumexp(-1)
            # two symbols leave no rest: finite, or its softmax were NaN
            rest = _others(logits, index, blank).logsumexp(-1)
            rest = rest.clamp(min=torch.finfo(rest.dtype).min)
            label = logits.gather(-1, index).squeeze(-1) - total
            out[..., 0] = label.masked_fill(slot == blank, NO_MASS)
            out[..., 1] = logits[..., blank] - total
            out[..., 2] = rest - total
            norms[..., 0], norms[..., 1] = total, rest
        collapsed.clamp_(min=NO_MASS)
        ctx.save_for_backward(joint, slots, sums, collapsed <= NO_MASS)
        ctx.blank = blank
        return collapsed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        joint, slots, sums, constant = ctx.saved_tensors
        gradient = gradient.masked_fill(constant, 0.0)
        result = torch.empty_like(joint)
        for out, grad, norms, logits, slot in zip(
            result, gradient, sums, joint, slots, strict=True
        ):
            logits = _precise(logits)
            index = _slot_index(slot, logits)
            label, of_blank, of_rest = grad.unsqueeze(-1).unbind(-2)
            total, rest = norms.unsqueeze(-1).unbind(-2)
            others = (_others(logits, index, ctx.blank) - rest).exp_()
            joined = others.mul_(of_rest)
            joined -= (logits - total).exp_().mul_(label + of_blank + of_rest)
            joined.scatter_add_(-1, index, label)
            joined[..., ctx.blank] += of_blank.squeeze(-1)
            out.copy_(joined)
        return result, None, None


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 where it is that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _slot_index(slot: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Each state's label as an index into logits `[T, U + 1, V]`: `[T, U + 1, 1]`."""
    return slot[:, None].expand(len(logits), -1, 1)


def _others(logits: torch.Tensor, index: torch.Tensor, blank: int) -> torch.Tensor:
    """The logits with neither the label nor blank among them."""
    others = logits.scatter(-1, index, -math.inf)
    others[..., blank] = -math.inf
    return others
