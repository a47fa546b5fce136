"""ESPnet's ASR model, trained as a supernet."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import autocast_type

from espnet_omnisparse.core.layout import head_name
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import (
    Teacher,
    collapse,
    frame_loss,
    lattice_loss,
)
from espnet_omnisparse.losses.head import HeadLoss
from espnet_omnisparse.nn.asr_encoder import PrunableAsrEncoder
from espnet_omnisparse.nn.decoder import (
    check_decoders,
    check_maskable,
    subnet_decoder,
)
from espnet_omnisparse.supernet.config import CURRENT
from espnet_omnisparse.train.batch import Batch
from espnet_omnisparse.train.transducer_asr_model import TransducerASRModel
from espnet_omnisparse.train.update import SupernetModel


class OmniASRModel(SupernetModel, TransducerASRModel):
    """CTC, hybrid CTC/attention or CTC/transducer ASR whose encoder is a supernet.

    Everything but `forward` is ESPnet's: losses, decoder, inference.

    Args:
        encoder: The prunable encoder.
        ctc: The full net's CTC head; with `heads: shared` everybody's.
        ctc_weight: As in ESPnet, above 0.
        supernet: The options of `SupernetConfig`.
        loss_normalization: See `SupernetModel.plan_supernet`.
        mask_decoder: Whether the attention decoder's layers take masks too, where those
            of the encoder do.
        **model_conf: Everything else that ESPnet's model takes.

    Raises:
        UserError: If an option excludes supernet training.
    """

    def __init__(
        self,
        *,
        encoder: PrunableAsrEncoder,
        ctc: CTC,
        ctc_weight: float = 0.5,
        supernet: Mapping[str, Any] | None = None,
        loss_normalization: str = "frames",
        mask_decoder: bool = False,
        **model_conf,
    ):
        _refuse_unsupported(encoder, ctc_weight, loss_normalization, model_conf)
        super().__init__(encoder=encoder, ctc=ctc, ctc_weight=ctc_weight, **model_conf)
        if mask_decoder:
            check_maskable(self.decoder, encoder.space)
            encoder.mask_decoder(self.decoder)
        self.plan_supernet(supernet, loss_normalization)
        check_decoders(self.supernet.sizes.values(), self.decoder)
        self.size_ctc = torch.nn.ModuleDict()
        if self.supernet.config.heads == "per_size":
            for size in self.supernet.sizes:
                self.size_ctc[head_name(size)] = copy.deepcopy(ctc)

    def make_batch(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
    ) -> Batch:
        """See `SupernetModel.make_batch`."""
        text = text[:, : text_lengths.max()].clone()
        text[text == -1] = self.ignore_id
        feats, feats_lengths = self.features(speech, speech_lengths)
        return Batch(feats, feats_lengths, text, text_lengths)

    def features(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features, augmentation, normalisation: once for all subnets.

        Args:
            speech: Waveforms `[B, samples]`, or features `[B, T, F]`.
            lengths: Real frames, or samples, of each utterance `[B]`.
        """
        with torch.autocast("cuda", autocast_type, enabled=self.autocast_frontend):
            feats, lengths = self._extract_feats(speech, lengths)
            if self.specaug is not None and self.training:
                feats, lengths = self.specaug(feats, lengths)
            if self.normalize is not None:
                feats, lengths = self.normalize(feats, lengths)
        if self.preencoder is not None:
            feats, lengths = self.preencoder(feats, lengths)
        return feats, lengths

    def _make_teacher(
        self, encoded: torch.Tensor, lengths: torch.Tensor, part: Batch
    ) -> Teacher:
        """What the main subnet's output says."""
        lattice = None
        if self.use_transducer_decoder:
            joint, target, *_ = self.lattice(encoded, lengths, part.text)
            lattice = collapse(joint, target, self.blank_id)
        return Teacher(self.ctc.ctc_lo(encoded), lattice)

    def _head_loss(
        self,
        size: str,
        encoded: torch.Tensor,
        lengths: torch.Tensor,
        part: Batch,
        teacher: Teacher | None = None,
        sparsity: Sequence[float] = (),
    ) -> HeadLoss:
        """ESPnet's objective of the part's utterances on one subnet's output.

        A transducer's is `rnnt + ctc_weight * ctc`, that beside attention
        `ctc_weight * ctc + (1 - ctc_weight) * attention`, that of a size without a
        decoder `ctc`; the teacher's is mixed alike.
        """
        head, kind = self.head(size), self.supernet.config.distillation
        layers = self._decoder_layers(size)
        stats: dict[str, Any] = {}

        def log(name: str, value: Any) -> None:  # under ESPnet's names
            stats[self._stat(name, size)] = value

        ctc = head(encoded, lengths, part.text, part.text_lengths)
        log("loss_ctc", ctc.detach())
        if not self.training and self.error_calculator is not None:
            guess = head.argmax(encoded).cpu()
            log("cer_ctc", self.error_calculator(guess, part.text.cpu(), is_ctc=True))
        taught = None
        if teacher is not None:
            taught = frame_loss(head.ctc_lo(encoded), teacher.ctc, lengths, kind)
        if self.use_transducer_decoder:
            joint, *labels = self.lattice(encoded, lengths, part.text)
            rnnt = self.criterion_transducer(joint, *labels)
            log("loss_transducer", rnnt.detach())
            if not self.training and self.error_calculator_trans is not None:
                cer, wer = self.error_calculator_trans(encoded, labels[0])
                log("cer_transducer", cer)
                log("wer_transducer", wer)
            loss = rnnt + self.ctc_weight * ctc
            if teacher is not None:
                nodes = lattice_loss(
                    joint, teacher.lattice, *labels, self.blank_id, kind
                )
                taught = nodes + self.ctc_weight * taught
        elif self.ctc_weight < 1.0 and layers != 0:
            subnet = self._with_decoder(layers, sparsity)
            attention, accuracy, cer, wer = subnet._calc_att_loss(
                # a copy: with a language token ESPnet lengthens it in place
                encoded,
                lengths,
                part.text,
                part.text_lengths.clone(),
            )
            log("loss_att", attention.detach())
            log("acc", accuracy)
            if not self.training:
                log("cer", cer)
                log("wer", wer)
            loss = self.ctc_weight * ctc + (1.0 - self.ctc_weight) * attention
        else:
            loss = ctc
        return HeadLoss(loss, taught, stats)

    def _decoder_layers(self, size: str) -> int | None:
        """How many layers of the attention decoder a size keeps; `None`: all."""
        sizes = self.supernet.sizes
        return sizes[size].decoder if size in sizes else None

    def _with_decoder(
        self, layers: int | None, sparsity: Sequence[float]
    ) -> "OmniASRModel":
        """A view of the model with the decoder that a subnet has; the rest is shared.

        Args:
            layers: How many of the decoder's layers are kept, at least 1; `None`: all.
            sparsity: A sparsity per weight; empty: nothing is masked.
        """
        tensors = self.encoder.decoder_tensors(sparsity)
        if layers is None and not tensors:
            return self
        view = copy.copy(self)
        decoder = subnet_decoder(self.decoder, layers, tensors)
        view._modules = {**self._modules, "decoder": decoder}
        return view

    def head(self, size: str) -> CTC:
        """The CTC head of a size."""
        if size == FULL or not self.size_ctc:
            return self.ctc
        if size == CURRENT:
            size = list(self.supernet.selection.masks())[-1]  # the smallest
        return self.size_ctc[head_name(size)]


def _refuse_unsupported(
    encoder: Any, ctc_weight: float, normalization: str, conf: Mapping[str, Any]
) -> None:
    if not isinstance(encoder, PrunableAsrEncoder):
        raise UserError(
            "model: omni needs encoder: layer_prunable_conformer or "
            "omni_sparse_conformer, or the same of e_branchformer or transformer; use "
            "model: espnet for other encoders."
        )
    if ctc_weight == 0.0:
        raise UserError(
            "model_conf.ctc_weight must be above 0: supernets train with CTC, alone or "
            "beside attention or a transducer."
        )
    if normalization == "frames" and conf.get("length_normalized_loss"):
        raise UserError(
            "model_conf.length_normalized_loss cannot be combined with "
            "loss_normalization: frames: remove one of them."
        )
    for name in ("interctc_weight", "aux_ctc"):
        if conf.get(name):
            raise UserError(
                f"model_conf.{name} cannot be combined with a supernet: remove it."
            )
    if conf.get("postencoder") is not None:
        raise UserError("A postencoder cannot be combined with model: omni: remove it.")
