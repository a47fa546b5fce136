"""The transducer's loss on a plain installation: no `warprnnt_pytorch`, same numbers.

ESPnet imports that package, which PyPI has not. torchaudio's loss does the same.
"""

from typing import NamedTuple

import torch
import torchaudio

from espnet_omnisparse.errors import UserError


class Lattice(NamedTuple):
    """The joint network's output over an utterance's frames and labels.

    Attributes:
        joint: Logits `[B, T, U + 1, V]`.
        labels: `[B, U]` int32, padded with blank.
        t_len: Frames `[B]` int32.
        u_len: Labels `[B]` int32.
    """

    joint: torch.Tensor
    labels: torch.Tensor
    t_len: torch.Tensor
    u_len: torch.Tensor


def rnnt_loss(
    joint_logits: torch.Tensor,
    labels: torch.Tensor,
    t_len: torch.Tensor,
    u_len: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    """The transducer's negative log-likelihood, the mean over utterances, in float32.

    Args:
        joint_logits: `[B, T, U + 1, V]`, not normalised.
        labels: `[B, U]`; what lies behind `u_len` is not read.
        t_len: Frames of each utterance `[B]`.
        u_len: Labels of each utterance `[B]`, 0 allowed.
        blank: The id of blank.

    Returns:
        A scalar: warprnnt's `mean`, which divides by the number of utterances and not,
        as it documents, by the labels. Utterances without a frame, for which there is
        no loss, count as 0.

    >>> even = torch.zeros(1, 2, 1, 4)  # two frames, no label: blank twice
    >>> none, one = torch.zeros(1, 0), torch.ones(1)
    >>> round(rnnt_loss(even, none, 2 * one, 0 * one, blank=0).item(), 4)  # 2 log 4
    2.7726
    """
    nonempty = t_len > 0  # of others torchaudio reads what is not theirs
    utterances = len(nonempty)
    if not nonempty.all():
        joint_logits, labels = joint_logits[nonempty], labels[nonempty]
        t_len, u_len = t_len[nonempty], u_len[nonempty]
    if not len(t_len):
        return 0.0 * joint_logits.float().sum()
    with torch.autocast(joint_logits.device.type, enabled=False):
        # torchaudio refuses padding that no utterance of the batch needs
        frames, states = int(t_len.max()), int(u_len.max()) + 1
        total = torchaudio.functional.rnnt_loss(
            joint_logits[:, :frames, :states].float().contiguous(),
            labels[:, : states - 1].int().contiguous(),
            t_len.int().contiguous(),
            u_len.int().contiguous(),
            blank=blank,
            reduction="sum",
        )
    return total / utterances


class TorchaudioRNNTLoss(torch.nn.Module):
    """`rnnt_loss` as the module that `warprnnt_pytorch.RNNTLoss` is.

    Args:
        blank: The id of blank.
    """

    def __init__(self, blank: int = 0):
        super().__init__()
        self.blank = blank

    def forward(
        self,
        acts: torch.Tensor,
        labels: torch.Tensor,
        act_lens: torch.Tensor,
        label_lens: torch.Tensor,
    ) -> torch.Tensor:
        """`rnnt_loss` under warprnnt's names.

        Args:
            acts: The joint network's logits `[B, T, U + 1, V]`.
            labels: `[B, U]`.
            act_lens: `[B]`.
            label_lens: `[B]`.

        Returns:
            A scalar, the mean over utterances.
        """
        return rnnt_loss(acts, labels, act_lens, label_lens, self.blank)


def make_criterion(blank: int, fastemit_lambda: float = 0.0) -> torch.nn.Module:
    """ESPnet's own transducer loss where it is installed, torchaudio's elsewhere.

    Args:
        blank: The id of blank.
        fastemit_lambda: FastEmit's weight (arXiv 2010.11148).

    Raises:
        UserError: If FastEmit is asked for and torchaudio's has to do.
    """
    try:
        from warprnnt_pytorch import RNNTLoss
    except ImportError as error:
        if fastemit_lambda:
            raise UserError(
                "model_conf.fastemit_lambda needs warprnnt_pytorch, which is not "
                "installed (torchaudio's loss has no FastEmit): set it to 0."
            ) from error
        return TorchaudioRNNTLoss(blank)
    return RNNTLoss(blank=blank, fastemit_lambda=fastemit_lambda)
