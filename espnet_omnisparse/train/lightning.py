"""A supernet under ESPnet3, whose trainer is Lightning's.

What `OmniTrainer` and the task do for ESPnet2 is a callback here, one entry of a
configuration's `trainer.callbacks`:

    callbacks:
      - _target_: espnet_omnisparse.train.lightning.SupernetCallback
        exp_dir: ${exp_dir}
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from espnet_omnisparse.core.spec import fingerprint
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import load_tensors, save_tensors
from espnet_omnisparse.supernet.plan import Plan
from espnet_omnisparse.train.journal import (
    SUBNETS,
    log_epoch,
    settled_specs,
    write_specs,
)
from espnet_omnisparse.train.resume import differing_options, plan_of
from espnet_omnisparse.train.snapshots import keep_snapshots
from espnet_omnisparse.train.trainer import TrainedNet, check_accumulation
from espnet_omnisparse.train.update import NOT_SELECTED, SupernetModel

MONITOR = "valid/loss_sizes"
#: what `omnisparse extract` cuts sizes out of unless told otherwise
AVERAGE = "valid.loss_sizes.ave.pth"


class SupernetCallback(lightning.Callback):
    """Gives a supernet its run's length, counts its updates, keeps its results.

    Updates are the optimiser's steps, as under ESPnet2. When training ends, the best
    checkpoints by the loss of the sizes are averaged into `exp_dir`, and the specs of
    the sizes lie in its `subnets`: `omnisparse extract EXP` works as on any training.

    Args:
        exp_dir: The experiment's folder.
    """

    def __init__(self, exp_dir: str):
        self._folder = Path(exp_dir)
        self._began: Plan | None = None
        self._model: SupernetModel | None = None
        self._ranks: dict[str, torch.Tensor] = {}
        self._epoch_began = self._last_update = 0.0

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Fixes the phases and follows the optimiser.

        Args:
            trainer: Whose optimisers are set up.
            pl_module: ESPnet3's, around a supernet.

        Raises:
            UserError: If the run does not suit a supernet.
        """
        model = pl_module.model
        if not isinstance(model, SupernetModel):
            raise UserError(
                "SupernetCallback is for supernets: set task: "
                "espnet_omnisparse.tasks.OmniASRTask and model.model: omni."
            )
        if len(trainer.optimizers) != 1:
            raise UserError("A supernet needs one optimizer, not named optimizers.")
        supernet = model.supernet
        if supernet.config.score_lr is not None:
            raise UserError(
                "supernet.score_lr has no meaning under ESPnet3, whose optimizer has "
                "one rate for all: remove it."
            )
        check_accumulation(
            supernet, trainer.accumulate_grad_batches, "accumulate_grad_batches"
        )
        if not any(one.monitor == MONITOR for one in _checkpoints(trainer)):
            raise UserError(
                f"best_model_criterion must have [{MONITOR}, 10, min], by which sizes "
                "are chosen: add it."
            )
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise UserError(
                "A supernet needs the run's length: set trainer.max_epochs or "
                "max_steps."
            )
        self._model = model
        if self._began is not None:
            _check(self._began, model)
            supernet.began = self._began
        (optimizer,) = trainer.optimizers
        supernet.begin(int(steps), optimizer)
        if trainer.is_global_zero:
            keep_snapshots(model, optimizer, self._folder)
        supernet.attach(TrainedNet(model, _Validation(pl_module), _gpus(trainer)))

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Says how many micro-batches an update has, and that an epoch begins.

        Args:
            trainer: The trainer.
            pl_module: ESPnet3's.
        """
        model = pl_module.model
        model.accumulate(trainer.accumulate_grad_batches)
        model.diagnosis.begin_epoch()
        if trainer.is_global_zero:
            self._ranks = model.mask_upkeep.ranks()
        self._epoch_began = self._last_update = time.perf_counter()

    def on_train_batch_end(self, *_) -> None:
        """Notes when an epoch's last update was made: what follows is validation."""
        self._last_update = time.perf_counter()

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Writes down what the selection and the sizes have come to.

        Args:
            trainer: The trainer.
            pl_module: ESPnet3's.
        """
        if not trainer.is_global_zero:
            return
        model = pl_module.model
        upkeep, ranks = model.mask_upkeep, self._ranks
        log_epoch(
            self._folder,
            trainer.current_epoch + 1,
            model.supernet,
            self._last_update - self._epoch_began,
            upkeep.flip_rates(ranks) if ranks else None,
            model.diagnosis.means(),
        )
        if model.supernet.settled:
            name = fingerprint(model.state_dict(), model.token_list)
            specs = settled_specs(model.supernet, name)
            write_specs(self._folder / SUBNETS, specs)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Averages the best checkpoints of the settled phases.

        Args:
            trainer: The trainer.
            pl_module: ESPnet3's.
        """
        if not trainer.is_global_zero:
            return
        found: dict[str, Any] = {}
        for one in _checkpoints(trainer):
            if one.monitor == MONITOR:
                found |= one.best_k_models
        paths = [Path(p) for p, loss in found.items() if float(loss) < NOT_SELECTED]
        if paths:
            latest = max(paths, key=lambda path: path.stat().st_mtime_ns)
            save_tensors(self._folder / AVERAGE, _average(paths, latest))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs of the run: its plan."""
        return plan_of(self._model).as_dict() if self._model is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the plan of a checkpoint.

        Args:
            state_dict: What the method above returned.
        """
        self._began = Plan.from_dict(state_dict) if state_dict else None


class _Validation:
    """ESPnet3's validation batches, as ESPnet2's factory gives them."""

    def __init__(self, pl_module: lightning.LightningModule):
        self._module = pl_module

    def build_iter(self, epoch: int, shuffle: bool = False) -> Iterator[Any]:
        return iter(self._module.val_dataloader())


def _checkpoints(trainer: lightning.Trainer) -> list[ModelCheckpoint]:
    return [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]


def _gpus(trainer: lightning.Trainer) -> int:
    return int(trainer.strategy.root_device.type == "cuda")


def _average(paths: list[Path], latest: Path) -> dict[str, torch.Tensor]:
    """The mean of some checkpoints; what is no weight is the latest's.

    Args:
        paths: Lightning's checkpoints.
        latest: One of them.
    """
    average = load_tensors(latest)["state_dict"]
    for path in paths:
        if path == latest:
            continue
        state = load_tensors(path)["state_dict"]
        for name, tensor in average.items():
            if tensor.is_floating_point():
                tensor += state[name]
    for tensor in average.values():
        if tensor.is_floating_point():
            tensor /= len(paths)
    return average


def _check(began: Plan, model: SupernetModel) -> None:
    differing = differing_options(began, model)
    if differing:
        raise UserError(
            f"The checkpoint was trained with {differing[0]}: go on with the "
            "configuration that it began with, or train in another exp_dir."
        )
