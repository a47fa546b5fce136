"""One update of a supernet: features once, each subnet, one loss.

What is particular to a task (features, heads, losses) is its model's; which subnets see
which utterances, with what weight, and how their losses become one is here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_omnisparse.core.gate import Gate, layer_dropout_gates, mask_gates
from espnet_omnisparse.core.schedule import PHASES, STEP1
from espnet_omnisparse.core.subnet import FULL
from espnet_omnisparse.cost.count import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import Teacher
from espnet_omnisparse.nn.block import Frames
from espnet_omnisparse.supernet.supernet import ADAPTIVE, Draw, Supernet, SupernetConfig
from espnet_omnisparse.train.batch import Batch
from espnet_omnisparse.train.gradients import Ledger
from espnet_omnisparse.train.loss_guard import LossGuard

NORMALIZATIONS = ("frames", "batch")
# ESPnet's log discards infinite values, so "worse than anything" is finite
NOT_SELECTED = 1.0e4


class SupernetModel:
    """Mixin of an ESPnet model whose encoder is a `PrunableEncoder`.

    Attributes:
        supernet: The plan.
        loss_normalization: See `plan_supernet`.
    """

    supernet: Supernet
    loss_normalization: str

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
        config = SupernetConfig.from_mapping(options or {})
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
        measure = partial(cost_table, self)
        self.supernet = Supernet(
            config, self.encoder.space, measure, self.encoder.chunk
        )
        sizes = self.supernet.sizes.values()
        chunks = [*self.supernet.chunks, *(size.chunk for size in sizes)]
        if any(chunks) and not self.encoder.causal:
            raise UserError(
                "model_conf.supernet has chunks, for which the Conv modules must be "
                "causal, or they would see the future: set encoder_conf.causal: true "
                "(main_conf.dynamic_chunk_training: true of the task asr_transducer)."
            )
        self._refreshed_at: int | None = None
        self._guard = LossGuard()
        self.accumulate(1)

    def make_batch(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
    ) -> Batch:
        """Features and labels, made once for all subnets."""
        raise NotImplementedError

    def _head_loss(
        self,
        size: str,
        encoded: torch.Tensor,
        lengths: torch.Tensor,
        part: Batch,
        scored: bool,
        teacher: Teacher | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Mean loss of the part's utterances on one subnet's output, and statistics.

        With `scored` also its error rates; with a teacher also `taught`, how far it is
        from that.
        """
        raise NotImplementedError

    def _make_teacher(
        self, encoded: torch.Tensor, lengths: torch.Tensor, part: Batch
    ) -> Teacher:
        """What the largest net's output says."""
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
        self._refresh_masks()
        if self.training:
            draws = self.supernet.training_draws()
            groups = self._divide(batch, draws)
        else:
            draws = self.supernet.validation_draws()
            groups = [(batch, draws)]

        ledger = Ledger(self.parameters(), keep_graphs=_in_float16(groups[0][0].feats))
        groups = [(part, [_cut(draw, ledger) for draw in d]) for part, d in groups]
        frames = 0
        stats: dict[str, Any] = {}
        now = int(self.supernet.updates)
        for part, part_draws in groups:
            hidden = self.encoder.front_end(part.feats, part.feats_lengths)
            part_frames = hidden.mask.sum()
            frames = frames + part_frames
            scale = self._scale(len(part), part_frames)
            cut = replace(hidden, x=ledger.cut(hidden.x))
            # a mean over the part's utterances, an unbiased estimate of the whole
            # batch's: split_batch has the expectation of per_batch
            for draw, losses in self._losses(part_draws, cut, part):
                admitted = []
                for size, weight, mean, extra in losses:
                    scaled = mean.detach() * scale
                    if weight is None:  # adaptive: what is learned already weighs less
                        weight = 1.0 - torch.exp(-scaled)
                    stats[self._stat("loss", size)] = scaled
                    stats.update(extra)
                    if self.training and self._guard.admits(draw, size, scaled, now):
                        admitted.append(weight * mean)
                if admitted:
                    ledger.add(sum(admitted))
                # what is left of its graph goes before the next subnet's comes
                del losses, admitted, mean
        if self.training:
            loss = ledger.total() * self._scale(len(batch), frames)
            if not ledger.has_gradients:  # no subnet has a usable loss
                loss = float("nan") * next(self.encoder.parameters()).sum()
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
        hidden = hidden.within(self.supernet.chunks[-1])  # what sizes see
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
    ) -> Iterator[
        tuple[Draw, list[tuple[str, float | None, torch.Tensor, dict[str, Any]]]]
    ]:
        """Each subnet, one after the other: size, weight, loss, statistics of each end.

        The next one is computed when it is asked for.
        """
        share = self.supernet.config.distillation_weight
        teaching = self.training and self.supernet.config.distillation != "none"
        teacher = main = None
        for draw in draws:
            losses = []
            for size, weight, encoded in self._outputs(draw, hidden):
                if draw.main:
                    main = encoded.detach()
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
                losses.append((size, weight, mean, extra))
            yield draw, losses
            del losses, mean, encoded

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
        return self._make_teacher(encoded, hidden.lengths, part)

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


def _cut(draw: Draw, ledger: Ledger) -> Draw:
    """A draw whose gates, which may be made of a selection's scores, are shared."""
    gates = (ledger.cut(g) if isinstance(g, torch.Tensor) else g for g in draw.gates)
    return replace(draw, gates=tuple(gates))


def _in_float16(computed: torch.Tensor) -> bool:
    """Whether gradients need the trainer's scale not to vanish."""
    device = computed.device.type
    half = torch.get_autocast_dtype(device) == torch.float16
    return torch.is_autocast_enabled(device) and half
