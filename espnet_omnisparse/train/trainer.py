"""ESPnet's trainer, for supernets: run length, safe checkpoints, selection journal."""

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from espnet2.iterators.multiple_iter_factory import MultipleIterFactory
from espnet2.torch_utils.device_funcs import to_device
from espnet2.train import trainer as stock_trainer
from espnet2.train.trainer import Trainer

from espnet_omnisparse.core.processes import sum_over_processes
from espnet_omnisparse.core.spec import fingerprint
from espnet_omnisparse.core.updates import after_each_update
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import load_tensors, save_tensors
from espnet_omnisparse.selection.magnitude import unit_magnitudes
from espnet_omnisparse.supernet.supernet import Supernet
from espnet_omnisparse.train.journal import (
    SUBNETS,
    log_epoch,
    log_plain_epoch,
    settled_specs,
    write_specs,
)
from espnet_omnisparse.train.learning_rate import PiecewiseLinearLR
from espnet_omnisparse.train.resume import CHECKPOINT, PLAN, plan_of
from espnet_omnisparse.train.snapshots import keep_snapshots
from espnet_omnisparse.train.update import NOT_SELECTED, SupernetModel


class OmniTrainer(Trainer):
    """Wraps the stock training loop; a step itself is ESPnet's."""

    @classmethod
    def run(cls, *, model, train_iter_factory, trainer_options, **kwargs) -> None:
        """Trains as ESPnet's `Trainer.run` does, whose arguments these are.

        Args:
            model: The model.
            train_iter_factory: Makes the batches of an epoch.
            trainer_options: ESPnet's.
            **kwargs: The rest of them.

        Raises:
            UserError: If phases or the scheduler's steps do not fit the run.
        """
        per_epoch = _updates_per_epoch(train_iter_factory, trainer_options)
        for scheduler in kwargs["schedulers"]:
            if isinstance(scheduler, PiecewiseLinearLR):
                epochs = trainer_options.max_epoch
                scheduler.set_run_length(per_epoch and per_epoch * epochs)
        if isinstance(model, SupernetModel):
            _plan(model, per_epoch, trainer_options)
            if _is_first():
                (optimizer,) = kwargs["optimizers"]
                keep_snapshots(model, optimizer, Path(trainer_options.output_dir))
            model.supernet.attach(
                TrainedNet(model, kwargs["valid_iter_factory"], trainer_options.ngpu)
            )
        with _atomic_saves(model), _settled_averages():
            super().run(
                model=model,
                train_iter_factory=train_iter_factory,
                trainer_options=trainer_options,
                **kwargs,
            )

    @staticmethod
    def resume(checkpoint: str | Path, **kwargs) -> None:
        """Resumes from a checkpoint, as ESPnet does.

        Raises:
            UserError: If the checkpoint is corrupt.
        """
        checkpoint = Path(checkpoint)
        states = load_tensors(checkpoint)
        Trainer.resume(checkpoint, **kwargs)
        # an interruption between the two saves of an epoch leaves out the second,
        # which averaging needs
        epoch_file = checkpoint.parent / f"{kwargs['reporter'].get_epoch()}epoch.pth"
        if not epoch_file.exists():
            save_tensors(epoch_file, states["model"])

    @classmethod
    def train_one_epoch(
        cls, *, model, iterator, optimizers, reporter, summary_writer, options, **kwargs
    ) -> bool:
        """Trains one epoch, then writes down what the selection has come to.

        Args:
            model: The model.
            iterator: The epoch's batches.
            optimizers: One.
            reporter: ESPnet's sub-reporter.
            summary_writer: Of tensorboard, or `None`.
            options: ESPnet's options of the trainer.
            **kwargs: The rest of its arguments.
        """
        for optimizer in optimizers:
            # accum_grad leaves gradients behind at the end of an epoch, which a
            # resumed run would not have
            optimizer.zero_grad()
        inner = getattr(model, "module", model)
        if isinstance(inner, SupernetModel):
            inner.accumulate(options.accum_grad)
            inner.diagnosis.begin_epoch()
        supernet = inner.supernet if isinstance(inner, SupernetModel) else None
        before = supernet.update if supernet else 0
        distributed = kwargs["distributed_option"]
        first = not distributed.distributed or distributed.dist_rank == 0
        ranks = inner.mask_upkeep.ranks() if supernet and first else {}
        updates = _counted(optimizers[0])
        start = time.perf_counter()
        invalid = super().train_one_epoch(
            model=model,
            iterator=iterator,
            optimizers=optimizers,
            reporter=reporter,
            summary_writer=summary_writer,
            options=options,
            **kwargs,
        )
        seconds = time.perf_counter() - start
        if supernet is None:
            if first:
                folder, epoch = Path(options.output_dir), reporter.get_epoch()
                log_plain_epoch(folder, epoch, next(updates), seconds)
            return invalid
        made = supernet.update - before
        if hasattr(iterator, "__len__"):
            _warn_of_skipped(made, len(iterator) // options.accum_grad)
        if first:
            folder, epoch = Path(options.output_dir), reporter.get_epoch()
            flips = inner.mask_upkeep.flip_rates(ranks) if ranks else None
            gradients = inner.diagnosis.means()
            log_epoch(folder, epoch, supernet, seconds, flips, gradients)
            _show_scores(supernet, epoch, summary_writer)
            if supernet.settled:
                name = fingerprint(inner.state_dict(), inner.token_list)
                write_specs(folder / SUBNETS, settled_specs(supernet, name))
        return invalid


class TrainedNet:
    """What a selection may ask when step 1 ends; see `selection.Net`.

    Args:
        model: The model in training.
        valid_iter_factory: ESPnet's factory of validation batches.
        ngpu: As in the trainer's options.
    """

    def __init__(self, model: SupernetModel, valid_iter_factory: Any, ngpu: int):
        self._model = model
        self._factory = valid_iter_factory
        self._device = "cuda" if ngpu > 0 else "cpu"
        self._batches: list[dict[str, torch.Tensor]] = []

    @torch.no_grad()
    def dev_loss(self, mask: torch.Tensor, utterances: int) -> float:
        """Mean loss of a subnet on the first validation utterances.

        Args:
            mask: Units to keep `[units]`.
            utterances: Validation utterances that it is taken over.
        """
        if not self._batches:
            self._batches = list(self._take(utterances))
        model, was_training = self._model, self._model.training
        model.eval()
        losses = [model.mask_loss(mask, **batch) for batch in self._batches]
        model.train(was_training)
        summed = sum(float(loss) * weight for loss, weight in losses)
        total = sum(weight for _, weight in losses)
        summed, total = self._over_processes(summed, total)
        return summed / total

    def _take(self, utterances: int) -> Iterator[dict[str, torch.Tensor]]:
        for _, batch in self._factory.build_iter(1, shuffle=False):
            yield to_device(batch, self._device)
            # each process has a part of the batch
            (taken,) = self._over_processes(len(batch["speech"]))
            utterances -= int(taken)
            if utterances <= 0:
                return

    def _over_processes(self, *values: float) -> list[float]:
        here = torch.tensor(values, dtype=torch.float64, device=self._device)
        return sum_over_processes(here).tolist()

    @torch.no_grad()
    def magnitudes(self) -> torch.Tensor:
        """Root mean square of the weight matrices of each unit `[units]`."""
        encoder = self._model.encoder
        return unit_magnitudes(encoder.state_dict(), encoder.space)


def check_accumulation(supernet: Supernet, batches: int, option: str) -> None:
    """Refuses updates of fewer micro-batches than they have subnets to train.

    Args:
        supernet: The supernet.
        batches: Micro-batches in an update.
        option: What sets their number.

    Raises:
        UserError: If they are too few.
    """
    most = supernet.subnets_per_update
    if supernet.config.update == "per_accum" and batches < most:
        raise UserError(
            f"supernet.update: per_accum trains {most} subnets in an update, one in "
            f"each micro-batch: set {option} to {most} or a multiple, not {batches}."
        )


def _is_first() -> bool:
    """Whether this process writes the files."""
    together = torch.distributed.is_initialized()
    return not together or torch.distributed.get_rank() == 0


def _counted(optimizer: torch.optim.Optimizer) -> Iterator[int]:
    """Counts an optimiser's updates from now on until it is asked how many."""
    count = itertools.count()
    hook = after_each_update(optimizer, lambda: next(count))

    def ask() -> Iterator[int]:
        hook.remove()
        yield next(count)

    return ask()


def _updates_per_epoch(train_iter_factory: Any, options: Any) -> int | None:
    """Optimiser steps in an epoch, if the iterator can tell."""
    batches = _batches_per_epoch(train_iter_factory)
    return None if batches is None else batches // options.accum_grad


def _batches_per_epoch(train_iter_factory: Any) -> int | None:
    if isinstance(train_iter_factory, MultipleIterFactory):
        # of --num_splits_asr: each part is made for as long as it is counted
        parts = [_batches_per_epoch(made()) for made in train_iter_factory.build_funcs]
        return None if None in parts else sum(parts)
    batches = getattr(train_iter_factory, "num_iters_per_epoch", None)
    if batches is None and hasattr(train_iter_factory, "sampler"):
        batches = len(train_iter_factory.sampler)
    return batches


def _plan(model: SupernetModel, per_epoch: int | None, options: Any) -> None:
    """Fixes the phases of the run, or goes on with those that it began with."""
    supernet, epochs = model.supernet, options.max_epoch
    supernet.set_run_length(None if per_epoch is None else per_epoch * epochs)
    before, total = supernet.began, supernet.total
    if before and None not in (before.total, total) and before.total != total:
        settled = supernet.timeline.settled_at
        logging.warning(
            f"The run has {total} updates now, not {before.total}: its phases stay as "
            f"it began with them, and the last has {total - settled} updates, not "
            f"{before.total - settled}"
        )
    check_accumulation(supernet, options.accum_grad, "accum_grad")
    if supernet.selection.learns:
        logging.info(
            f"Supernet: {supernet.timeline}, sizes {supernet.sizes} of "
            f"{len(supernet.space)} units"
        )


@contextmanager
def _atomic_saves(model: torch.nn.Module) -> Iterator[None]:
    """Inside, `torch.save` to a path is atomic: the trainer overwrites in place.

    The checkpoint of a supernet gets its plan.
    """
    plain = torch.save

    def save(value: Any, target: Any, *args, **kwargs) -> None:
        if isinstance(target, str | Path):
            if isinstance(model, SupernetModel) and Path(target).name == CHECKPOINT:
                value = {**value, PLAN: plan_of(model).as_dict()}
            save_tensors(target, value, partial(plain, *args, **kwargs))
        else:
            plain(value, target, *args, **kwargs)

    torch.save = save
    try:
        yield
    finally:
        torch.save = plain


@contextmanager
def _settled_averages() -> Iterator[None]:
    """Inside, no more epochs are averaged than came after the selection.

    Nobody knows their number beforehand: skipped updates make step 1 end later. What
    is no weight is the latest of these epochs', not their sum.
    """
    plain = stock_trainer.average_nbest_models

    def average(*, reporter, nbest, **kwargs) -> None:
        settled = sum(
            reporter.has("valid", "loss_sizes", epoch)
            and reporter.get_value("valid", "loss_sizes", epoch) < NOT_SELECTED
            for epoch in reporter.stats
        )
        wanted = [nbest] if isinstance(nbest, int) else list(nbest)
        allowed = sorted({min(n, settled or n) for n in wanted})
        if allowed != sorted(wanted):
            logging.warning(
                f"keep_nbest_models {wanted} -> {allowed}: only {settled} epochs came "
                "after the selection"
            )
        plain(reporter=reporter, nbest=allowed, **kwargs)
        _keep_plain_tensors(reporter, allowed, **kwargs)

    stock_trainer.average_nbest_models = average
    try:
        yield
    finally:
        stock_trainer.average_nbest_models = plain


def _keep_plain_tensors(
    reporter: Any,
    nbest: list[int],
    output_dir: Path,
    best_model_criterion: Any,
    suffix: str | None = None,
    **kwargs,
) -> None:
    """Puts into ESPnet's averages what it should not have added up.

    It sums integers and turns booleans into numbers: counters, masks, cost tables.

    Args:
        reporter: ESPnet's.
        nbest: How many epochs were averaged.
        output_dir: Folder of the averages.
        best_model_criterion: As in ESPnet.
        suffix: Of the averages' names, as in ESPnet.
        **kwargs: Unused.
    """
    for phase, key, mode in best_model_criterion:
        if not reporter.has(phase, key):
            continue
        ranked = reporter.sort_epochs_and_values(phase, key, mode)
        for count in nbest:
            if not 1 < count <= len(ranked):
                continue  # ESPnet links to the one file there is
            name = ".".join(filter(None, (f"{phase}.{key}.ave_{count}best", suffix)))
            latest = max(epoch for epoch, _ in ranked[:count])
            state = load_tensors(output_dir / f"{latest}epoch.pth")
            whole = {n: t for n, t in state.items() if not t.is_floating_point()}
            path = output_dir / f"{name}.pth"
            save_tensors(path, {**load_tensors(path), **whole})


def _warn_of_skipped(made: int, expected: int) -> None:
    """Tells how many updates the trainer skipped, which it does one by one."""
    if made < expected:
        logging.warning(
            f"{expected - made} of {expected} updates "
            f"({100 * (expected - made) / expected:.1f} %) of this epoch were skipped "
            "for a non-finite gradient"
        )


def _show_scores(supernet: Supernet, epoch: int, summary_writer: Any) -> None:
    """Writes the selection's scores to the log and to tensorboard."""
    scores = supernet.selection.scores_now()
    if scores is None:
        return
    named = dict(zip(supernet.space.units, scores.tolist(), strict=True))
    ranked = sorted(named.items(), key=lambda item: -item[1])
    logging.info(
        f"{epoch}epoch selection scores: "
        + ", ".join(f"{unit}={score:.3f}" for unit, score in ranked)
    )
    if summary_writer is not None:
        for unit, score in named.items():
            summary_writer.add_scalar(f"selection_score/{unit}", score, epoch)
