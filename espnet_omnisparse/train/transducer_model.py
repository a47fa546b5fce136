"""The standalone transducer, alone and trained as a supernet.

Its predictor and joint network are shared by all sizes. What a joint network puts out
has a value per frame, label and token; never are those of two subnets alive together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr_transducer.error_calculator import ErrorCalculator
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.asr_transducer.utils import get_transducer_task_io

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import Teacher, collapse, lattice_loss
from espnet_omnisparse.losses.head import HeadLoss
from espnet_omnisparse.losses.rnnt import Lattice, make_criterion
from espnet_omnisparse.nn.decoder import check_decoders
from espnet_omnisparse.train.batch import Batch
from espnet_omnisparse.train.update import SupernetModel

BLANK = 0


class TransducerModel(ESPnetASRTransducerModel):
    """ESPnet's model of the `asr_transducer` task, without `warprnnt_pytorch`.

    Args:
        fastemit_lambda: As in ESPnet.
        use_k2_pruned_loss: As in ESPnet.
        **parts: Everything else that ESPnet's model takes.

    Raises:
        UserError: If FastEmit is asked for and warprnnt_pytorch is not installed.
    """

    def __init__(
        self,
        *,
        fastemit_lambda: float = 0.0,
        use_k2_pruned_loss: bool = False,
        **parts,
    ):
        super().__init__(
            fastemit_lambda=fastemit_lambda,
            use_k2_pruned_loss=use_k2_pruned_loss,
            **parts,
        )
        if not use_k2_pruned_loss:
            self.criterion_transducer = make_criterion(BLANK, fastemit_lambda)


class OmniTransducerModel(SupernetModel, TransducerModel):
    """The same, whose encoder is a supernet.

    Args:
        supernet: The options of `SupernetConfig`.
        loss_normalization: See `SupernetModel.plan_supernet`.
        **parts: Everything else that `TransducerModel` takes.

    Raises:
        UserError: If an option excludes supernet training.
    """

    def __init__(
        self,
        *,
        supernet: Mapping[str, Any] | None = None,
        loss_normalization: str = "frames",
        **parts,
    ):
        super().__init__(**parts)
        if self.use_k2_pruned_loss:
            raise UserError(
                "model_conf.use_k2_pruned_loss cannot be combined with a supernet: set "
                "it to false."
            )
        self.plan_supernet(supernet, loss_normalization)
        check_decoders(self.supernet.sizes.values(), self.decoder)
        if self.supernet.config.heads != "shared":
            raise UserError(
                "supernet.heads: per_size is made for CTC's output; a transducer's "
                "predictor and joint network are shared: use shared."
            )

    def make_batch(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
    ) -> Batch:
        """See `SupernetModel.make_batch`."""
        feats, feats_lengths = self.features(speech, speech_lengths)
        text = text[:, : text_lengths.max()]
        return Batch(feats, feats_lengths, text, text_lengths)

    def features(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features, augmentation, normalisation: once for all subnets.

        Args:
            speech: Waveforms `[B, samples]`, or features `[B, T, F]`.
            lengths: Real frames, or samples, of each utterance `[B]`.
        """
        with torch.autocast("cuda", enabled=False):
            feats, lengths = self._extract_feats(speech, lengths)
            if self.specaug is not None and self.training:
                feats, lengths = self.specaug(feats, lengths)
            if self.normalize is not None:
                feats, lengths = self.normalize(feats, lengths)
        return feats, lengths

    def lattice(
        self, encoded: torch.Tensor, lengths: torch.Tensor, text: torch.Tensor
    ) -> tuple[Lattice, torch.Tensor]:
        """The joint network's output, and the predictor's `[B, U + 1, D]`.

        Args:
            encoded: Encoder output `[B, T, D]`.
            lengths: Real frames, or samples, of each utterance `[B]`.
            text: Labels `[B, U]`.
        """
        decoder_in, target, t_len, u_len = get_transducer_task_io(
            text, lengths, ignore_id=self.ignore_id
        )
        self.decoder.set_device(encoded.device)
        predicted = self.decoder(decoder_in)
        joint = self.joint_network(
            encoded[:, : int(t_len.max())].unsqueeze(2), predicted.unsqueeze(1)
        )
        return Lattice(joint, target, t_len, u_len), predicted

    def _make_teacher(
        self, encoded: torch.Tensor, lengths: torch.Tensor, part: Batch
    ) -> Teacher:
        """What the main subnet's output says."""
        lattice, _ = self.lattice(encoded, lengths, part.text)
        return Teacher(None, collapse(lattice.joint, lattice.labels, BLANK))

    def _head_loss(
        self,
        size: str,
        encoded: torch.Tensor,
        lengths: torch.Tensor,
        part: Batch,
        teacher: Teacher | None = None,
        sparsity: Sequence[float] = (),
    ) -> HeadLoss:
        """ESPnet's losses of the part's utterances on one subnet's output."""
        lattice, predicted = self.lattice(encoded, lengths, part.text)
        joint, target, t_len, u_len = lattice
        stats: dict[str, Any] = {}

        def weighted(name: str, weight: float, part_loss: torch.Tensor) -> torch.Tensor:
            stats[self._stat(name, size)] = part_loss.detach()
            return weight * part_loss

        loss = weighted(
            "loss_transducer",
            self.transducer_weight,
            self._calc_transducer_loss(encoded, joint, target, t_len, u_len),
        )
        if self.use_auxiliary_ctc:
            ctc = self._calc_ctc_loss(encoded, target, t_len, u_len)
            loss = loss + weighted("loss_aux_ctc", self.auxiliary_ctc_weight, ctc)
        if self.use_auxiliary_lm_loss:
            lm = self._calc_lm_loss(predicted, target)
            loss = loss + weighted("loss_aux_lm", self.auxiliary_lm_loss_weight, lm)
        distillation = None
        if teacher is not None:
            distillation = lattice_loss(
                joint,
                teacher.lattice,
                *(target, t_len, u_len, BLANK),
                self.supernet.config.distillation,
            )
        if not self.training and (self.report_cer or self.report_wer):
            cer, wer = self._errors(encoded, target, t_len)
            stats[self._stat("cer_transducer", size)] = cer
            stats[self._stat("wer_transducer", size)] = wer
        return HeadLoss(loss, distillation, stats)

    def _errors(
        self, encoded: torch.Tensor, target: torch.Tensor, t_len: torch.Tensor
    ) -> tuple[float | None, float | None]:
        """ESPnet's error rates, by beam search."""
        if self.error_calculator is None:
            self.error_calculator = ErrorCalculator(
                self.decoder,
                self.joint_network,
                self.token_list,
                self.sym_space,
                self.sym_blank,
                nstep=self.validation_nstep,
                report_cer=self.report_cer,
                report_wer=self.report_wer,
            )
        return self.error_calculator(encoded, target, t_len)
