"""ESPnet's ASR model, trained as a supernet: features once, each subnet, one loss."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import autocast_type
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_omnisparse.batch import Batch
from espnet_omnisparse.block import Frames
from espnet_omnisparse.conformer import LayerPrunableConformerEncoder
from espnet_omnisparse.cost import cost_table
from espnet_omnisparse.distillation import Teacher, collapse, frame_loss, lattice_loss
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import head_name
from espnet_omnisparse.gate import Gate, layer_dropout_gates, mask_gates
from espnet_omnisparse.loss_guard import LossGuard
from espnet_omnisparse.schedule import PHASES, STEP1
from espnet_omnisparse.subnet import FULL
from espnet_omnisparse.supernet import (
    ADAPTIVE,
    CURRENT,
    Draw,
    Supernet,
    SupernetConfig,
)
from espnet_omnisparse.transducer import TransducerASRModel

NORMALIZATIONS = ("frames", "batch")
# ESPnet's log discards infinite values, so "worse than anything" is finite
NOT_SELECTED = 1.0e4


class OmniASRModel(TransducerASRModel):
    """CTC, hybrid CTC/attention or CTC/transducer ASR whose encoder is a supernet.

    Everything but `forward` is ESPnet's: losses, decoder, inference.

    Args:
        encoder: The prunable encoder.
        ctc: The full net's CTC head; with `heads: shared` everybody's.
        ctc_weight: As in ESPnet, above 0.
        supernet: The options of `SupernetConfig`.
        loss_normalization: `frames`: losses are summed and divided by the number of
            encoder frames in the batch, the scale for which the published loss
            weights were made; `batch`: by the number of utterances, as ESPnet does.
        **model_conf: Everything else that ESPnet's model takes.

    Raises:
        UserError: If an option excludes supernet training.
    """

    def __init__(
        self,
        *,
        encoder: LayerPrunableConformerEncoder,
        ctc: CTC,
        ctc_weight: float = 0.5,
        supernet: Mapping[str, Any] | None = None,
        loss_normalization: str = "frames",
        **model_conf,
    ):
        _refuse_unsupported(encoder, ctc_weight, loss_normalization, model_conf)
        super().__init__(encoder=encoder, ctc=ctc, ctc_weight=ctc_weight, **model_conf)
        config = SupernetConfig.from_mapping(supernet or {})
        self.loss_normalization = loss_normalization
        if config.subnet_weight == ADAPTIVE and loss_normalization != "frames":
            raise UserError(
                "supernet.subnet_weight: adaptive is made for losses per frame: it "
                "needs loss_normalization: frames."
            )
        self.supernet = Supernet(
            config, encoder.space, partial(cost_table, self), encoder.chunk
        )
        self._refreshed_at: int | None = None
        self._guard = LossGuard()
        self.accumulate(1)
        self.size_ctc = torch.nn.ModuleDict()
        if config.heads == "per_size":
            for size in self.supernet.sizes:
                self.size_ctc[head_name(size)] = copy.deepcopy(ctc)

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        **kwargs,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """The weighted loss of the subnets of this update, or of the validation.

        Args:
            speech: Waveforms, or features without a front end `[batch, length, ...]`.
            speech_lengths: `[batch]`.
            text: Label ids `[batch, labels]`, padded with -1.
            text_lengths: `[batch]`.
            **kwargs: `utt_id`, unused.

        Returns:
            Loss, statistics for the log, and the weight of this batch in an average
            over batches and processes (its frames, or its utterances).
        """
        batch = self.make_batch(speech, speech_lengths, text, text_lengths)
        self._refresh_masks()
        if self.training:
            draws = self.supernet.training_draws()
            groups = self._divide(batch, draws)
        else:
            draws = self.supernet.validation_draws()
            groups = [(batch, draws)]

        loss = batch.feats.new_zeros(())
        frames = 0
        stats: dict[str, Any] = {}
        now = int(self.supernet.updates)
        for part, part_draws in groups:
            hidden = self.encoder.front_end(part.feats, part.feats_lengths)
            part_frames = hidden.mask.sum()
            frames = frames + part_frames
            scale = self._scale(len(part), part_frames)
            # a mean over the part's utterances, an unbiased estimate of the whole
            # batch's: split_batch has the expectation of per_batch
            for draw, size, weight, mean, extra in self._losses(
                part_draws, hidden, part
            ):
                scaled = mean.detach() * scale
                if weight is None:  # adaptive: what is learned already weighs less
                    weight = 1.0 - torch.exp(-scaled)
                stats[self._stat("loss", size)] = scaled
                stats.update(extra)
                if not self.training or self._guard.admits(draw, size, scaled, now):
                    loss = loss + weight * mean
        loss = loss * self._scale(len(batch), frames)
        if self.training:
            if not loss.requires_grad:  # no subnet has a usable loss
                loss = loss + float("nan") * next(self.ctc.parameters()).sum()
            # the update has the expectation of one in which each sees everything
            loss = loss * self._micro_batches(draws) + self.supernet.penalty()
            stats.update(self._training_stats())
        else:
            loss = stats[self._stat("loss", draws[0].size)]
            stats["loss_sizes"] = self._loss_of_sizes(stats, draws)
        stats["loss"] = loss.detach()
        weight = frames if self.loss_normalization == "frames" else len(batch)
        return force_gatherable((loss, stats, weight), loss.device)

    def mask_loss(
        self,
        mask: torch.Tensor,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        **kwargs,
    ) -> tuple[torch.Tensor, int]:
        """Mean loss of a batch through one hard subnet and the full net's head.

        Args:
            mask: Units to keep `[units]`.
            speech: As in `forward`, like the following.
            speech_lengths: `[batch]`.
            text: `[batch, labels]`.
            text_lengths: `[batch]`.
            **kwargs: Unused.

        Returns:
            The loss, and the number of utterances.
        """
        batch = self.make_batch(speech, speech_lengths, text, text_lengths)
        hidden = self.encoder.front_end(batch.feats, batch.feats_lengths)
        return self.subnet_loss(hidden, batch, mask_gates(mask)), len(batch)

    def subnet_loss(
        self,
        hidden: Frames,
        batch: Batch,
        gates: Sequence[Gate],
        sparsity: Sequence[float] = (),
    ) -> torch.Tensor:
        """Mean loss over utterances of one subnet, through the full net's head.

        Args:
            hidden: The front end's output for the batch.
            batch: The utterances.
            gates: A gate per unit.
            sparsity: A sparsity per weight; the masks are those of the last refresh.
        """
        encoded, lengths = self.encoder.blocks(hidden, gates, sparsity)
        return self._head_loss(FULL, encoded, lengths, batch, scored=False)[0]

    def make_batch(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
    ) -> Batch:
        """Features and labels, made once for all subnets."""
        text = text[:, : text_lengths.max()].clone()
        text[text == -1] = self.ignore_id
        feats, feats_lengths = self.features(speech, speech_lengths)
        return Batch(feats, feats_lengths, text, text_lengths)

    def features(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features, augmentation, normalisation: once for all subnets."""
        with torch.autocast("cuda", autocast_type, enabled=self.autocast_frontend):
            feats, lengths = self._extract_feats(speech, lengths)
            if self.specaug is not None and self.training:
                feats, lengths = self.specaug(feats, lengths)
            if self.normalize is not None:
                feats, lengths = self.normalize(feats, lengths)
        if self.preencoder is not None:
            feats, lengths = self.preencoder(feats, lengths)
        return feats, lengths

    def _divide(
        self, batch: Batch, draws: list[Draw]
    ) -> list[tuple[Batch, list[Draw]]]:
        """Which subnets see which utterances."""
        update = self.supernet.config.update
        if update == "per_accum":
            turn = self._micro_batch % self._accumulation
            self._micro_batch += 1
            return [(batch, [draws[turn % len(draws)]])]
        if update == "per_batch" or len(batch) < len(draws):
            return [(batch, draws)]
        order = torch.randperm(len(batch), device=batch.feats.device)
        parts = order.tensor_split(len(draws))
        return [
            (batch.rows(part.sort().values), [draw])
            for part, draw in zip(parts, draws, strict=True)
        ]

    def accumulate(self, batches: int) -> None:
        """Says that an update has so many micro-batches, and that one begins."""
        self._accumulation, self._micro_batch = batches, 0

    def _micro_batches(self, draws: list[Draw]) -> float:
        """For how many micro-batches the present one stands, of those of an update."""
        if self.supernet.config.update != "per_accum":
            return 1.0
        turn = (self._micro_batch - 1) % self._accumulation % len(draws)
        # fewer turns for some, where the nets do not divide the micro-batches
        return self._accumulation / len(range(turn, self._accumulation, len(draws)))

    def _refresh_masks(self) -> None:
        """Makes the masks of weights follow the weights, as often as wanted."""
        plan = self.supernet.config.sparsity
        if plan is None:
            return
        now = int(self.supernet.updates)
        if not self.training:
            # afterwards training begins anew: a resumed run has no older masks
            self._refreshed_at = None
        elif self._refreshed_at is not None and now - self._refreshed_at < plan.refresh:
            return
        else:
            self._refreshed_at = now
        self.encoder.refresh_masks()

    def _losses(
        self, draws: list[Draw], hidden: Frames, part: Batch
    ) -> Iterator[tuple[Draw, str, float | None, torch.Tensor, dict[str, Any]]]:
        """Of each subnet, one after the other: draw, size, weight, loss, statistics."""
        share = self.supernet.config.distillation_weight
        teaching = self.training and self.supernet.config.distillation != "none"
        teacher = main = None
        for draw in draws:
            for size, weight, encoded in self._outputs(draw, hidden):
                if draw.main:
                    main = encoded
                elif teaching and teacher is None:
                    teacher = self._teacher(main, hidden, part)
                mean, extra = self._head_loss(
                    size,
                    encoded,
                    hidden.lengths,
                    part,
                    scored=not self.training,
                    teacher=teacher,
                )
                taught = extra.pop("taught", None)
                if taught is not None:
                    mean = (1.0 - share) * mean + share * taught
                yield draw, size, weight, mean, extra

    def _outputs(
        self, draw: Draw, hidden: Frames
    ) -> Iterator[tuple[str, float | None, torch.Tensor]]:
        """Size, loss weight and encoder output of a subnet and of its exits."""
        gates = draw.gates
        if draw.layer_dropout is not None:
            groups = self.encoder.space.groups
            gates = layer_dropout_gates(draw.layer_dropout, len(hidden.x), groups)
        hidden = hidden.within(draw.chunk)
        last = len(self.encoder.layers)
        # largest first, as in every list of sizes, and as the draws are
        ends = {draw.size: last, **draw.exits}
        dropout = self.supernet.config.subnet_dropout
        with nullcontext() if draw.main else self.encoder.as_subnet(dropout):
            outputs = self.encoder.exits(
                hidden, set(ends.values()), gates, draw.sparsity
            )
        by_end = dict(zip(sorted(set(ends.values())), outputs, strict=True))
        for size, end in ends.items():
            weight = draw.weight if size == draw.size else draw.exit_weight
            yield size, weight, by_end[end]

    @torch.no_grad()
    def _teacher(
        self, encoded: torch.Tensor | None, hidden: Frames, part: Batch
    ) -> Teacher:
        """The largest net's word on the part.

        Args:
            encoded: Its output; `None`: it is not trained on this part.
            hidden: The part, from the front end.
            part: The part.
        """
        if encoded is None:
            with self.encoder.as_subnet("full"):
                full = self.supernet.full()
                encoded, _ = self.encoder.blocks(hidden.within(full.chunk), full.gates)
        lattice = None
        if self.use_transducer_decoder:
            joint, target, *_ = self.lattice(encoded, hidden.lengths, part.text)
            lattice = collapse(joint, target, self.blank_id)
        return Teacher(self.ctc.ctc_lo(encoded), lattice)

    def _head_loss(
        self,
        size: str,
        encoded: torch.Tensor,
        lengths: torch.Tensor,
        part: Batch,
        scored: bool,
        teacher: Teacher | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Mean loss of the part's utterances on one subnet's output, and its accuracy.

        With `scored` also its character error rate, by greedy search; with a teacher
        also `taught`, how far it is from that.
        """
        head = self.head(size)
        kind = self.supernet.config.distillation
        stats: dict[str, Any] = {}
        loss = head(encoded, lengths, part.text, part.text_lengths)
        taught = None
        if teacher is not None:
            taught = frame_loss(head.ctc_lo(encoded), teacher.ctc, lengths, kind)
        if scored and self.error_calculator is not None:
            stats[self._stat("cer_ctc", size)] = self.error_calculator(
                head.argmax(encoded).cpu(), part.text.cpu(), is_ctc=True
            )
        other = None
        if self.use_transducer_decoder:
            joint, *labels = self.lattice(encoded, lengths, part.text)
            other = self.criterion_transducer(joint, *labels)
            if teacher is not None:
                nodes = lattice_loss(
                    joint, teacher.lattice, *labels, self.blank_id, kind
                )
                taught = self.ctc_weight * taught + (1.0 - self.ctc_weight) * nodes
        elif self.ctc_weight < 1.0:
            other, accuracy, _, _ = self._calc_att_loss(
                # a copy: with a language token ESPnet lengthens it in place
                encoded,
                lengths,
                part.text,
                part.text_lengths.clone(),
            )
            stats[self._stat("acc", size)] = accuracy
        if other is not None:
            loss = self.ctc_weight * loss + (1.0 - self.ctc_weight) * other
        if taught is not None:
            stats["taught"] = taught
        return loss, stats

    def head(self, size: str) -> CTC:
        """The CTC head of a size."""
        if size == FULL or not self.size_ctc:
            return self.ctc
        if size == CURRENT:
            size = list(self.supernet.selection.masks())[-1]  # the smallest
        return self.size_ctc[head_name(size)]

    def _scale(self, utterances: int, frames: torch.Tensor) -> torch.Tensor | float:
        """Turns a mean over utterances into the chosen normalisation."""
        return utterances / frames if self.loss_normalization == "frames" else 1.0

    def _stat(self, name: str, size: str) -> str:
        """The name of a statistic in the log."""
        if name == "acc" and size == FULL:
            return name  # ESPnet's own name, for best_model_criterion
        plan = self.supernet.config.sparsity
        # where no dense net is trained, the statistics are the sparse one's
        own = size == FULL or (plan is not None and not plan.trains_dense)
        shifted = self.encoder.conv_norm == "batch_norm" and not own
        note = "_uncalibrated" if shifted and not self.training else ""
        return f"{name}_{size}{note}"

    def _training_stats(self) -> dict[str, float]:
        phase = self.supernet.phase
        stats = {"phase": float(PHASES.index(phase))}
        if self.supernet.config.sparsity is not None:
            stats["sparsity"] = self.supernet.reach
        if phase == STEP1:
            mask = self.supernet.selection.mask_now(*self.supernet.step1_time)
            if mask is not None:
                stats["k"] = float(mask.sum())
        return stats

    def _loss_of_sizes(self, stats: dict[str, Any], draws: list[Draw]) -> Any:
        """The criterion for choosing and averaging checkpoints.

        The mean loss over all sizes once they are selected. Before, a huge value, so
        that no checkpoint of step 1 is chosen or averaged with one of step 2. With
        BatchNorm the smaller sizes are uncalibrated until extraction: the full net's.
        """
        supernet = self.supernet
        # an epoch that ends with step 1 trained nothing of step 2
        if int(supernet.updates) <= supernet.timeline.settled_at:
            return NOT_SELECTED
        if self.encoder.conv_norm == "batch_norm":
            return stats[self._stat("loss", draws[0].size)]
        return sum(stats[f"loss_{draw.size}"] for draw in draws) / len(draws)


def _refuse_unsupported(
    encoder: Any, ctc_weight: float, normalization: str, conf: Mapping[str, Any]
) -> None:
    if not isinstance(encoder, LayerPrunableConformerEncoder):
        raise UserError(
            "model: omni needs encoder: layer_prunable_conformer or "
            "omni_sparse_conformer; use model: espnet for other encoders."
        )
    if ctc_weight == 0.0:
        raise UserError(
            "model_conf.ctc_weight must be above 0: supernets train with CTC, alone or "
            "beside attention or a transducer."
        )
    if normalization not in NORMALIZATIONS:
        raise UserError(
            "model_conf.loss_normalization must be one of "
            f"{', '.join(NORMALIZATIONS)}, not {normalization!r}."
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
