"""One update of a supernet: features once, each subnet, one loss.

What is particular to a task (features, heads, losses) is its model's; which subnets see
which utterances, with what weight, and how their losses become one is here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.schedule import PHASES, STEP1
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import Teacher, block_loss
from espnet_omnisparse.losses.head import HeadLoss
from espnet_omnisparse.nn.batch_norm import has_batch_norm
from espnet_omnisparse.nn.block import Frames
from espnet_omnisparse.supernet.config import ADAPTIVE, SupernetConfig
from espnet_omnisparse.supernet.sampling import (
    AdaptiveWeight,
    SampledSubnet,
    total_weight,
)
from espnet_omnisparse.supernet.supernet import Supernet
from espnet_omnisparse.train.batch import Batch
from espnet_omnisparse.train.diagnosis import GradientDiagnosis
from espnet_omnisparse.train.division import Division
from espnet_omnisparse.train.front_ends import FrontEnds
from espnet_omnisparse.train.frozen_teacher import FrozenTeacher
from espnet_omnisparse.train.gradients import (
    GradientAccumulator,
    in_float16,
    with_shared_gates,
)
from espnet_omnisparse.train.loss_guard import LossGuard
from espnet_omnisparse.train.mask_upkeep import MaskUpkeep
from espnet_omnisparse.train.outputs import Outputs, run_subnet

NORMALIZATIONS = ("frames", "batch")
# ESPnet's log discards infinite values, so "worse than anything" is finite
NOT_SELECTED = 1.0e4


class SupernetModel:
    """Mixin of an ESPnet model whose encoder is a `PrunableEncoder`.

    Attributes:
        supernet: The plan.
        loss_normalization: See `plan_supernet`.
        mask_upkeep: What keeps the masks on weights up to date.
        diagnosis: What the log says of gradients.
    """

    supernet: Supernet
    _frozen: FrozenTeacher | None
    loss_normalization: str
    mask_upkeep: MaskUpkeep
    diagnosis: GradientDiagnosis

    def plan_supernet(
        self, options: Mapping[str, Any] | None, loss_normalization: str
    ) -> None:
        """To be called at the end of the constructor.

        Args:
            options: Those of `SupernetConfig`.
            loss_normalization: `frames`: losses are summed and divided by the number
                of encoder frames in the batch, the scale for which the published loss
                weights were made; `batch`: by the number of utterances, as ESPnet does.

        Raises:
            UserError: If they contradict each other.
        """
        config = SupernetConfig.read(options)
        if loss_normalization not in NORMALIZATIONS:
            raise UserError(
                "model_conf.loss_normalization must be one of "
                f"{', '.join(NORMALIZATIONS)}, not {loss_normalization!r}."
            )
        if config.subnet_weight == ADAPTIVE and loss_normalization != "frames":
            raise UserError(
                "supernet.subnet_weight: adaptive is made for losses per frame: it "
                "needs loss_normalization: frames."
            )
        self.loss_normalization = loss_normalization
        self._frozen = FrozenTeacher.of(self, config.teacher)
        encoder = self.encoder
        measure = partial(cost_table, self)
        self.supernet = Supernet(config, encoder.space, measure, encoder.chunk)
        self.supernet.equip(encoder.maskable(), encoder.vectors())
        encoder.attach(self.supernet.order, self.supernet.own)
        self.mask_upkeep = MaskUpkeep(self.supernet, encoder)
        self.diagnosis = GradientDiagnosis(self.supernet, encoder, self.subnet_loss)
        sizes = self.supernet.sizes.values()
        chunks = [*self.supernet.chunks, *(size.chunk for size in sizes)]
        if any(chunks) and not encoder.causal:
            raise UserError(
                "model_conf.supernet has chunks, for which the Conv modules must be "
                "causal, or they would see the future: set encoder_conf.causal: true "
                "(main_conf.dynamic_chunk_training: true of the task asr_transducer)."
            )
        self._guard = LossGuard()
        self._division = Division(config.update)

    def make_batch(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
    ) -> Batch:
        """Features and labels, made once for all subnets.

        Args:
            speech: Waveforms `[B, samples]`, or features `[B, T, F]`.
            speech_lengths: `[B]`.
            text: Label ids `[B, U]`, padded with -1.
            text_lengths: `[B]`.
        """
        raise NotImplementedError

    def _head_loss(
        self,
        size: str,
        encoded: torch.Tensor,
        lengths: torch.Tensor,
        part: Batch,
        teacher: Teacher | None = None,
        sparsity: Sequence[float] = (),
    ) -> HeadLoss:
        """Loss and statistics of one subnet's output; error rates in validation.

        Args:
            size: The subnet's name.
            encoded: Its encoder output `[batch, time, size]`.
            lengths: Frames of each utterance `[batch]`.
            part: The utterances.
            teacher: What it is compared with, if it has a teacher.
            sparsity: A sparsity per weight; empty: nothing is masked.
        """
        raise NotImplementedError

    def _make_teacher(
        self, encoded: torch.Tensor, lengths: torch.Tensor, part: Batch
    ) -> Teacher:
        """What the main subnet's output says."""
        raise NotImplementedError

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
        self.mask_upkeep.before_pass(self.training)
        supernet, stats, frames = self.supernet, {}, 0
        gradients = GradientAccumulator(
            self.parameters(), keep_graphs=in_float16(batch.feats)
        )
        if self.training:
            self.diagnosis.before_update(batch)
            sampled = supernet.sample_subnets()
            sampled = [with_shared_gates(subnet, gradients) for subnet in sampled]
            parts, times = self._division.divide(batch, sampled, supernet.update)
        else:
            sampled = supernet.validation_subnets()
            parts = [(batch, sampled)]
        for part, subnets in parts:
            fronts = FrontEnds(self.encoder, part, gradients)
            main = None
            teacher = None
            if self._frozen is not None and self._distils:
                teacher = self._frozen(part, supernet.full().chunk, self._taught_blocks)
            for subnet in subnets:
                hidden = fronts.of(subnet.sparsity)
                outputs = self._outputs(subnet, hidden)
                if subnet.is_main:
                    main = outputs.detach()
                elif self._distils and teacher is None:
                    teacher = self._teacher(main, fronts, part)
                losses, said = self._losses(subnet, outputs, hidden, part, teacher)
                stats.update(said)
                if losses:
                    gradients.add(sum(losses))
                # what is left of its graph goes before the next subnet's comes
                del outputs, losses
            frames = frames + hidden.mask.sum()
        if self.training:
            scale = times * self._scale(len(batch), frames)
            loss = self._training_loss(gradients, scale, sampled)
            stats.update(self._training_stats())
        else:
            loss = stats[self._stat("loss", sampled[0].size)]
            stats["loss_sizes"] = self._loss_of_sizes(stats, sampled)
        stats["loss"] = loss.detach()
        weight = frames if self.loss_normalization == "frames" else len(batch)
        return force_gatherable((loss, stats, weight), loss.device)

    def _losses(
        self,
        subnet: SampledSubnet,
        outputs: Outputs,
        hidden: Frames,
        part: Batch,
        teacher: Teacher | None,
    ) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """The weighted losses of a subnet and its exits, those that train it.

        Args:
            subnet: The subnet.
            outputs: What `_outputs` returns for it.
            hidden: The front end's output for the part.
            part: The utterances it sees.
            teacher: What it learns from; the main subnet has none.

        Returns:
            Scalars; none in validation, and none where the loss is not finite. And
            statistics for the log.
        """
        share = self.supernet.config.distillation_weight
        scale = self._scale(len(part), hidden.mask.sum())
        losses: list[torch.Tensor] = []
        stats: dict[str, Any] = {}
        for size, encoded in outputs.sizes.items():
            head = self._head_loss(
                size, encoded, hidden.lengths, part, teacher, subnet.sparsity
            )
            # a mean over the part's utterances, an unbiased estimate of the whole
            # batch's: split_batch has the expectation of per_batch
            mean = head.mixed(share)
            if teacher is not None and outputs.blocks and size == subnet.size:
                lengths = hidden.lengths
                apart = block_loss(outputs.blocks, teacher.blocks, lengths)
                mean = mean + self.supernet.config.distillation_blocks * apart
            scaled = mean.detach() * scale
            stats[self._stat("loss", size)] = scaled
            for name, value in head.stats.items():
                # ESPnet's terms of the loss have the loss's scale, by which alone
                # they can be averaged over batches
                stats[name] = value * scale if name.startswith("loss_") else value
            weight = subnet.weight if size == subnet.size else subnet.exit_weight
            if isinstance(weight, AdaptiveWeight):
                weight = weight(scaled)
            now = self.supernet.update
            if self.training and self._guard.admits(subnet, size, scaled, now):
                losses.append(subnet.times * weight * mean)
        return losses, stats

    def _training_loss(
        self,
        gradients: GradientAccumulator,
        scale: torch.Tensor | float,
        sampled: Sequence[SampledSubnet],
    ) -> torch.Tensor:
        """The loss of an update, in the chosen normalisation.

        It has the expectation of one in which every subnet sees everything, and the
        scale of one net's loss in every phase: Adam, which remembers the scale of
        gradients for a thousand updates, would take too long steps where it grew.
        """
        if not gradients.has_gradients:  # no subnet has a finite loss
            loss = float("nan") * next(self.encoder.parameters()).sum()
        else:
            loss = gradients.total() * scale
        return (loss + self.supernet.penalty()) / total_weight(sampled)

    def mask_loss(self, mask: torch.Tensor, **batch) -> tuple[torch.Tensor, int]:
        """Mean loss of a batch through one hard subnet and the full net's head.

        Args:
            mask: Units to keep `[units]`.
            **batch: What `forward` takes.

        Returns:
            The loss, and the number of utterances.
        """
        names = ("speech", "speech_lengths", "text", "text_lengths")
        made = self.make_batch(*(batch[name] for name in names))
        hidden = self.encoder.front_end(made.feats, made.feats_lengths)
        hidden = hidden.with_chunk_mask(self.supernet.chunks[-1])  # what sizes see
        subnet = SampledSubnet(FULL, mask_gates(mask))
        return self.subnet_loss(hidden, made, subnet), len(made)

    def subnet_loss(
        self, hidden: Frames, batch: Batch, subnet: SampledSubnet
    ) -> torch.Tensor:
        """Mean loss over utterances of one subnet, by the masks of the last refresh.

        Args:
            hidden: The front end's output for the batch, as the subnet has it.
            batch: The utterances.
            subnet: The subnet, whose name says which head it has.
        """
        sparsity = subnet.sparsity
        encoded, lengths = self.encoder.blocks(hidden, subnet.gates, sparsity)
        head = self._head_loss(subnet.size, encoded, lengths, batch, sparsity=sparsity)
        return head.loss

    def accumulate(self, batches: int) -> None:
        """Says that an update has so many micro-batches, and that one begins."""
        self._division.begin(batches)

    def _outputs(self, subnet: SampledSubnet, hidden: Frames) -> Outputs:
        dropout, blocks = self.supernet.config.subnet_dropout, self._taught_blocks
        return run_subnet(self.encoder, subnet, hidden, dropout, blocks)

    @property
    def _taught_blocks(self) -> bool:
        """Whether subnets are compared with their teacher after each block."""
        return self._distils and self.supernet.config.distillation_blocks > 0.0

    @property
    def _distils(self) -> bool:
        """Whether the main subnet teaches the others."""
        return self.training and self.supernet.config.distillation != "none"

    @torch.no_grad()
    def _teacher(self, main: Outputs | None, fronts: FrontEnds, part: Batch) -> Teacher:
        """Teacher outputs: what the main subnet gives for the part.

        Args:
            main: Its outputs; `None`: it is not trained on this part.
            fronts: The front end's outputs for the part.
            part: The part.
        """
        hidden = fronts.of_full()
        if main is None:
            with self.encoder.as_subnet("full"):
                main = self._outputs(self.supernet.full(), hidden)
        encoded = next(iter(main.sizes.values()))  # its exits come after it
        teacher = self._make_teacher(encoded, hidden.lengths, part)
        return replace(teacher, blocks=main.blocks)

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
        # asked last, as it looks at every module, and in training at none
        shifted = not self.training and not own and has_batch_norm(self.encoder)
        note = "_uncalibrated" if shifted else ""
        return f"{name}_{size}{note}"

    def _training_stats(self) -> dict[str, float]:
        phase = self.supernet.phase
        stats = {"phase": float(PHASES.index(phase))}
        if self.supernet.config.sparsity is not None:
            stats["sparsity"] = self.supernet.max_sparsity
        if phase == STEP1:
            mask = self.supernet.selection.mask_now(*self.supernet.step1_time)
            if mask is not None:
                stats["k"] = mask.sum().float()
        return stats

    def _loss_of_sizes(
        self, stats: dict[str, Any], sampled: Sequence[SampledSubnet]
    ) -> Any:
        """The criterion for choosing and averaging checkpoints.

        The mean loss over all sizes once they are selected. Before, a huge value, so
        that no checkpoint of step 1 is chosen or averaged with one of step 2. With
        BatchNorm the smaller sizes are uncalibrated until extraction: the full net's.
        """
        supernet = self.supernet
        # an epoch that ends with step 1 trained nothing of step 2
        if supernet.update <= supernet.timeline.settled_at:
            return NOT_SELECTED
        if has_batch_norm(self.encoder):
            return stats[self._stat("loss", sampled[0].size)]
        losses = [stats[f"loss_{subnet.size}"] for subnet in sampled]
        return sum(losses) / len(losses)
