"""Repair: a short training of one extracted size, whose zeros stay zero.

It is an ordinary ESPnet training that begins from the size's folder, in a folder of its
own; what it gives is written as a size beside the one that it began from. The rate
rises for a tenth of it to half of the training's own and falls to zero.
"""

import dataclasses
import hashlib
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2.tasks.abs_task import AbsTask

from espnet_omnisparse.core.schedule import resolve_updates
from espnet_omnisparse.core.spec import REPAIRED
from espnet_omnisparse.core.spec_yaml import read_spec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import (
    MODEL,
    ORIGIN,
    SPEC,
    build,
    is_current,
    read_config,
    write_size,
)
from espnet_omnisparse.files import load_tensors, read_yaml, write_yaml
from espnet_omnisparse.tasks import task_of
from espnet_omnisparse.train.journal import read_log

#: the training's configuration; in the repaired size's folder, what it has cost
TRAINING = "repair.yaml"
#: what asr.sh gives as arguments, or is of the training before
_NOT_OURS = (
    *("config", "output_dir", "version", "resume", "init_param", "pretrain_path"),
    *("ignore_init_mismatch", "token_list", "token_type", "bpemodel", "cleaner"),
    *("g2p", "non_linguistic_symbols", "fold_length", "ngpu", "unused_parameters"),
    *("multiprocessing_distributed", "distributed", "local_rank", "max_epoch"),
    *("num_iters_per_epoch", "scheduler", "scheduler_conf", "best_model_criterion"),
    "multiple_iterator",
)
_OF_DATA = ("train_data_", "valid_data_", "train_shape_", "valid_shape_", "dist_")
_PEAK, _WARM_UP = 0.5, 0.1


@dataclasses.dataclass(frozen=True)
class Repair:
    """The repair of one size.

    Attributes:
        size: Folder of the size that it begins from.
        training: Folder of the training.
        out: Folder of the size that it gives.
        updates: How many are wanted; a training makes a few more where they do not
            divide into its epochs.
        per_epoch: Updates of an epoch of the supernet's training.
        arguments: Further ones of the training.
    """

    size: Path
    training: Path
    out: Path
    updates: int
    per_epoch: int
    arguments: str = ""

    @property
    def checkpoint(self) -> Path:
        """What the training leaves: the average that ESPnet makes."""
        return self.training / "valid.loss.ave.pth"

    def begin(self) -> Path | None:
        """Writes the configuration of the training.

        A training of another size, or with another configuration, is removed.

        Returns:
            Its path; `None` if the repaired size is there.
        """
        if is_current(self.out, self._origin()):
            return None
        config = training_config(read_config(self.size), self.updates, self.per_epoch)
        path, mark = self.training / TRAINING, self.training / "of.yaml"
        of = {"config": config, "origin": self._origin()}
        if not mark.exists() or read_yaml(mark) != of:
            shutil.rmtree(self.training, ignore_errors=True)
            self.training.mkdir(parents=True)
            write_yaml(path, config)
            write_yaml(mark, of)
        return path

    def finish(self) -> None:
        """Writes the repaired size.

        Raises:
            UserError: If the training has not come to its end.
        """
        epochs = read_log(self.training)
        if not self.checkpoint.exists() or not epochs:
            raise UserError(
                f"{self.training} has no {self.checkpoint.name}: the repair has not "
                "come to its end: run the same command again (stage 12)."
            )
        config, spec = read_config(self.size), read_spec(self.size / SPEC)
        seconds = sum(epoch["train_seconds"] for epoch in epochs)
        model = build(config, load_tensors(self.checkpoint))
        write_size(
            self.out,
            model,
            config,
            dataclasses.replace(spec, name=f"{spec.name}{REPAIRED}"),
            self._origin(),
            self.training / "images",
            {TRAINING: {"updates": epochs[-1]["update"], "seconds": round(seconds, 2)}},
        )

    def _origin(self) -> dict[str, Any]:
        of = hashlib.sha256((self.size / MODEL).read_bytes()).hexdigest()
        repair = {"of": of, "updates": self.updates, "arguments": self.arguments}
        return {**read_yaml(self.size / ORIGIN), "repair": repair}


def repair_of(folder: Path, size: Path, length: int | float, arguments: str) -> Repair:
    """The repair of a size.

    Args:
        folder: Experiment folder of the supernet.
        size: The size's.
        length: Updates, or a fraction of the supernet's.
        arguments: Further ones of the training.

    Raises:
        UserError: If nothing tells how long the supernet was trained.
    """
    log = read_log(folder)
    if not log:
        raise UserError(
            f"{folder} has no log of its training, whose length a repair goes by: "
            "train it with this package (stage 11)."
        )
    return Repair(
        size,
        size.with_name(f"{size.name}_repair"),
        size.with_name(f"{size.name}{REPAIRED}"),
        resolve_updates("repair", length, log[-1]["update"]),
        max(round(log[-1]["update"] / log[-1]["epoch"]), 1),
        arguments,
    )


def own_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a further training takes over from one before.

    Without what is ESPnet's default, the data, the text and the schedule.

    Args:
        config: That of the training before.
    """
    defaults = _defaults(task_of(config))
    return {
        name: value
        for name, value in config.items()
        if name in defaults
        and value != defaults[name]
        and name not in _NOT_OURS
        and not name.startswith(_OF_DATA)
    }


def _defaults(task: type[AbsTask]) -> dict[str, Any]:
    """A task's options without arguments: ESPnet would read this process' own."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        return task.get_default_config()
    finally:
        sys.argv = arguments


def training_config(
    size: Mapping[str, Any], updates: int, per_epoch: int
) -> dict[str, Any]:
    """The configuration of a repair: what differs from ESPnet's defaults.

    Args:
        size: The configuration in the size's folder.
        updates: How many are wanted.
        per_epoch: Updates of an epoch; at least that many are in one of the repair, so
            that an interruption costs no more than it did before.

    Raises:
        UserError: If the training has no learning rate to go by.
    """
    config = own_options(size)
    epochs = max(updates // per_epoch, 1)
    rate = size["optim_conf"].get("lr")
    if rate is None:
        raise UserError(
            "The rate of a repair is half of the training's own, which its "
            "configuration does not have: add optim_conf.lr to config.yaml."
        )
    peak = _PEAK * rate
    return {
        **config,
        "max_epoch": epochs,
        "num_iters_per_epoch": math.ceil(updates / epochs) * size["accum_grad"],
        "best_model_criterion": [["valid", "loss", "min"]],
        "scheduler": "piecewiselinearwarmuplr",
        "scheduler_conf": {
            "warmup_steps_list": [0.0, _WARM_UP, 1.0],
            "warmup_lr_list": [0.0, peak, 0.0],
        },
        "keep_zeros": True,
    }
