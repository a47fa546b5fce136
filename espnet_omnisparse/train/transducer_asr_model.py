"""The RNN transducer on a plain installation: no `warprnnt_pytorch`, same numbers.

ESPnet's `asr` model imports that package, which PyPI has not, as soon as there is a
joint network, even if only to decode. torchaudio's loss does the same.
"""

from typing import NamedTuple

import torch
import torchaudio
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.transducer.error_calculator import ErrorCalculatorTransducer
from espnet2.asr_transducer.utils import get_transducer_task_io
from espnet2.legacy.nets.e2e_asr_common import ErrorCalculator

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
    heard = t_len > 0  # of others torchaudio reads what is not theirs
    utterances = len(heard)
    if not heard.all():
        joint_logits, labels = joint_logits[heard], labels[heard]
        t_len, u_len = t_len[heard], u_len[heard]
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


class TransducerASRModel(ESPnetASRModel):
    """ESPnet's ASR model, whose transducer needs nothing that PyPI has not.

    Without a joint network it is ESPnet's model, with CTC or attention.

    Args:
        token_list: The vocabulary.
        decoder: ESPnet's transducer decoder, or any other if no joint network is given.
        joint_network: ESPnet's joint network, or `None`.
        ctc_weight: As in ESPnet.
        report_cer: As in ESPnet, like all that follow.
        report_wer: See there.
        sym_space: See there.
        sym_blank: See there.
        **model_conf: Everything else that ESPnet's model takes.

    Raises:
        UserError: If a transducer with several blanks is asked for.
    """

    def __init__(
        self,
        *,
        token_list: list[str],
        decoder: AbsDecoder | None,
        joint_network: torch.nn.Module | None,
        ctc_weight: float = 0.5,
        report_cer: bool = True,
        report_wer: bool = True,
        sym_space: str = "<space>",
        sym_blank: str = "<blank>",
        **model_conf,
    ):
        if joint_network is not None:
            _refuse_multi_blank(model_conf)
        is_transducer = joint_network is not None
        super().__init__(
            token_list=token_list,
            decoder=decoder,
            joint_network=None,
            ctc_weight=ctc_weight,
            report_cer=report_cer and not is_transducer,
            report_wer=report_wer and not is_transducer,
            sym_space=sym_space,
            sym_blank=sym_blank,
            **model_conf,
        )
        if not is_transducer:
            return
        # from here on what ESPnet's constructor does with a joint network
        del self.criterion_att
        self.use_transducer_decoder = True
        self.decoder = decoder
        self.joint_network = joint_network
        self.criterion_transducer = make_criterion(self.blank_id)
        self.error_calculator_trans = None
        if report_cer or report_wer:
            self.error_calculator_trans = ErrorCalculatorTransducer(
                decoder,
                joint_network,
                token_list,
                sym_space,
                sym_blank,
                report_cer=report_cer,
                report_wer=report_wer,
            )
        elif ctc_weight != 0.0:  # ESPnet has CTC's error rate in this case alone
            self.error_calculator = ErrorCalculator(
                token_list, sym_space, sym_blank, report_cer, report_wer
            )

    def lattice(
        self,
        encoder_out: torch.Tensor,
        encoder_lens: torch.Tensor,
        labels: torch.Tensor,
    ) -> Lattice:
        """Decoder and joint network, once for all losses that need them.

        Args:
            encoder_out: `[B, T, D]`.
            encoder_lens: `[B]`.
            labels: `[B, U]`, padded with the ignore id.

        Returns:
            What `criterion_transducer` and `distillation.lattice_loss` take.
        """
        decoder_in, target, t_len, u_len = get_transducer_task_io(
            labels, encoder_lens, ignore_id=self.ignore_id, blank_id=self.blank_id
        )
        self.decoder.set_device(encoder_out.device)
        joint = self.joint_network(
            encoder_out[:, : int(t_len.max())].unsqueeze(2),
            self.decoder(decoder_in).unsqueeze(1),
        )
        return Lattice(joint, target, t_len, u_len)


def _refuse_multi_blank(model_conf: dict) -> None:
    if model_conf.get("transducer_multi_blank_durations"):
        raise UserError(
            "model_conf.transducer_multi_blank_durations is not supported here: remove "
            "it, or use model: espnet, which needs numba and a GPU."
        )
