"""ESPnet's ASR model, trained as a supernet: features once, each subnet, one loss."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import ESPnetASRModel, autocast_type
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_omnisparse.conformer import Frames, LayerPrunableConformerEncoder
from espnet_omnisparse.cost import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import head_name
from espnet_omnisparse.gate import layer_dropout_gates, mask_gates
from espnet_omnisparse.schedule import PHASES, STEP1
from espnet_omnisparse.subnet import FULL
from espnet_omnisparse.supernet import (
    ADAPTIVE,
    CURRENT,
    Draw,
    Supernet,
    SupernetConfig,
)

NORMALIZATIONS = ("frames", "batch")
# ESPnet's log discards infinite values, so "worse than anything" is finite
NOT_SELECTED = 1.0e4


@dataclass(frozen=True)
class Batch:
    """Features and labels of the utterances that a subnet sees.

    Attributes:
        feats: `[batch, frames, features]`.
        feats_lengths: `[batch]`.
        text: Labels `[batch, labels]`, padded with the ignore id.
        text_lengths: `[batch]`.
    """

    feats: torch.Tensor
    feats_lengths: torch.Tensor
    text: torch.Tensor
    text_lengths: torch.Tensor

    def __len__(self) -> int:
        return self.feats.size(0)

    def rows(self, index: torch.Tensor) -> "Batch":
        """The utterances at `index`, without padding that none of them needs."""
        feats_lengths, text_lengths = (
            self.feats_lengths[index],
            self.text_lengths[index],
        )
        return Batch(
            self.feats[index, : int(feats_lengths.max())],
            feats_lengths,
            self.text[index, : int(text_lengths.max())],
            text_lengths,
        )


class OmniASRModel(ESPnetASRModel):
    """CTC, or hybrid CTC/attention, ASR whose encoder is a supernet.

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
        self.supernet = Supernet(config, encoder.space, partial(cost_table, self))
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
        batch = self._batch(speech, speech_lengths, text, text_lengths)
        if self.training:
            draws = self.supernet.training_draws()
            groups = self._divide(batch, draws)
        else:
            draws = self.supernet.validation_draws()
            groups = [(batch, draws)]

        loss = batch.feats.new_zeros(())
        frames = 0
        stats: dict[str, Any] = {}
        for part, part_draws in groups:
            hidden = self.encoder.front_end(part.feats, part.feats_lengths)
            part_frames = hidden.mask.sum()
            frames = frames + part_frames
            scale = self._scale(len(part), part_frames)
            for size, weight, encoded in self._outputs(part_draws, hidden):
                # a mean over the part's utterances, an unbiased estimate of the
                # whole batch's: split_batch has the expectation of per_batch
                mean, extra = self._subnet_loss(
                    size, encoded, hidden.lengths, part, scored=not self.training
                )
                scaled = mean.detach() * scale
                if weight is None:  # adaptive: what is learned already weighs less
                    weight = 1.0 - torch.exp(-scaled)
                loss = loss + weight * mean
                stats[self._stat("loss", size)] = scaled
                stats.update(extra)
        loss = loss * self._scale(len(batch), frames)
        if self.training:
            loss = loss + self.supernet.penalty()
            stats.update(self._training_stats())
        else:
            loss = stats[f"loss_{FULL}"]
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
        batch = self._batch(speech, speech_lengths, text, text_lengths)
        hidden = self.encoder.front_end(batch.feats, batch.feats_lengths)
        draw = Draw(CURRENT, mask_gates(mask))
        ((_, _, encoded),) = self._outputs([draw], hidden)
        loss, _ = self._subnet_loss(FULL, encoded, hidden.lengths, batch, scored=False)
        return loss, len(batch)

    def _batch(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
    ) -> Batch:
        """Features and labels, made once for all subnets."""
        text = text[:, : text_lengths.max()].clone()
        text[text == -1] = self.ignore_id
        feats, feats_lengths = self._features(speech, speech_lengths)
        return Batch(feats, feats_lengths, text, text_lengths)

    def _features(
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
        if self.supernet.config.update == "per_batch" or len(batch) < len(draws):
            return [(batch, draws)]
        order = torch.randperm(len(batch), device=batch.feats.device)
        parts = order.tensor_split(len(draws))
        return [
            (batch.rows(part.sort().values), [draw])
            for part, draw in zip(parts, draws, strict=True)
        ]

    def _outputs(
        self, draws: list[Draw], hidden: Frames
    ) -> Iterator[tuple[str, float | None, torch.Tensor]]:
        """Size, loss weight and encoder output of each subnet, one after the other."""
        for draw in draws:
            gates = draw.gates
            if draw.layer_dropout is not None:
                groups = self.encoder.space.groups
                gates = layer_dropout_gates(draw.layer_dropout, len(hidden.x), groups)
            last = len(self.encoder.encoders)
            # largest first, as in every list of sizes, and as the draws are
            ends = {draw.size: last, **draw.exits}
            is_full = draw.size == FULL
            with nullcontext() if is_full else self.encoder.as_subnet():
                outputs = self.encoder.exits(hidden, set(ends.values()), gates)
            by_end = dict(zip(sorted(set(ends.values())), outputs, strict=True))
            for size, end in ends.items():
                weight = draw.weight if size == draw.size else draw.exit_weight
                yield size, weight, by_end[end]

    def _subnet_loss(
        self,
        size: str,
        encoded: torch.Tensor,
        lengths: torch.Tensor,
        part: Batch,
        scored: bool,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Mean loss of the part's utterances through one subnet, and its accuracy.

        With `scored` also its character error rate, by greedy search.
        """
        head = self.head(size)
        stats: dict[str, Any] = {}
        loss = head(encoded, lengths, part.text, part.text_lengths)
        if scored and self.error_calculator is not None:
            stats[self._stat("cer_ctc", size)] = self.error_calculator(
                head.argmax(encoded).cpu(), part.text.cpu(), is_ctc=True
            )
        if self.ctc_weight < 1.0:
            loss_att, accuracy, _, _ = self._calc_att_loss(
                # a copy: with a language token ESPnet lengthens it in place
                encoded,
                lengths,
                part.text,
                part.text_lengths.clone(),
            )
            loss = self.ctc_weight * loss + (1.0 - self.ctc_weight) * loss_att
            stats[self._stat("acc", size)] = accuracy
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
        shifted = self.encoder.conv_norm == "batch_norm" and size != FULL
        note = "_uncalibrated" if shifted and not self.training else ""
        return f"{name}_{size}{note}"

    def _training_stats(self) -> dict[str, float]:
        phase = self.supernet.phase
        stats = {"phase": float(PHASES.index(phase))}
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
        if int(supernet.updates) <= supernet.timeline.selected_at:
            return NOT_SELECTED
        if self.encoder.conv_norm == "batch_norm":
            return stats[f"loss_{FULL}"]
        return sum(stats[f"loss_{draw.size}"] for draw in draws) / len(draws)


def _refuse_unsupported(
    encoder: Any, ctc_weight: float, normalization: str, conf: Mapping[str, Any]
) -> None:
    if not isinstance(encoder, LayerPrunableConformerEncoder):
        raise UserError(
            "model: omni needs encoder: layer_prunable_conformer; use model: espnet "
            "for other encoders."
        )
    if ctc_weight == 0.0:
        raise UserError(
            "model_conf.ctc_weight must be above 0: supernets train with CTC or "
            "hybrid CTC/attention."
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
    for name in ("joint_network", "postencoder"):
        if conf.get(name) is not None:
            raise UserError(
                f"A {name.replace('_', ' ')} cannot be combined with model: omni: use "
                "a CTC or hybrid CTC/attention configuration."
            )
