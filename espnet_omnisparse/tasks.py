"""ESPnet's ASR task with supernets; importing this module registers them."""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.tasks.asr import ASRTask, encoder_choices, model_choices

from espnet_omnisparse.conformer import (
    LayerPrunableConformerEncoder,
    OmniSparseConformerEncoder,
)
from espnet_omnisparse.errors import UserError, check_keys
from espnet_omnisparse.files import load_tensors
from espnet_omnisparse.model import OmniASRModel
from espnet_omnisparse.trainer import OmniTrainer
from espnet_omnisparse.transducer import TransducerASRModel

encoder_choices.classes["layer_prunable_conformer"] = LayerPrunableConformerEncoder
encoder_choices.classes["omni_sparse_conformer"] = OmniSparseConformerEncoder
model_choices.classes["omni"] = OmniASRModel
model_choices.classes["omni_transducer"] = TransducerASRModel

CRITERION = ["valid", "loss_sizes", "min"]
# these set every parameter group to a rate of their own
_ABSOLUTE_SCHEDULERS = ("piecewiselinearwarmuplr", "onecyclelr", "cycliclr")


class OmniASRTask(ASRTask):
    """`asr` task whose trainer understands supernets.

    A class of our own, and not only an entry in ESPnet's tables, because the workers
    that multi-GPU training spawns import it, and with it the registration.
    """

    trainer = OmniTrainer

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Runs one training process.

        Raises:
            UserError: If the configuration contradicts itself.
        """
        _check_initial_parameters(args)
        if args.model == "omni":
            if args.patience is not None:
                raise UserError(
                    "patience cannot be combined with a supernet, whose phases need "
                    "the run's length: remove patience and set max_epoch."
                )
            # what the sizes are cut out of, whatever else is asked for
            if CRITERION not in map(list, args.best_model_criterion):
                args.best_model_criterion = [*args.best_model_criterion, CRITERION]
            # a size that an update does not draw leaves its own head without gradient
            args.unused_parameters = True
        super().main_worker(args)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetASRModel:
        """Builds the model of a configuration.

        Raises:
            UserError: If a key of `encoder_conf` or `model_conf` is unknown.
        """
        _check_conf("encoder", encoder_choices.get_class(args.encoder), args)
        _check_conf("model", model_choices.get_class(args.model), args)
        return super().build_model(args)

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """ESPnet's optimiser; the scores get a group of their own, without decay.

        Raises:
            UserError: If the scheduler cannot keep `score_lr`.
        """
        optimizers = super().build_optimizers(args, model)
        if not isinstance(model, OmniASRModel):
            return optimizers
        if args.sharded_ddp:
            raise UserError("sharded_ddp cannot be combined with a supernet: unset it.")
        (optimizer,) = optimizers
        _separate_scores(optimizer, model, args)
        # counts real updates only: a step skipped for a non-finite gradient is none
        optimizer.register_step_post_hook(lambda *_: model.supernet.count_update())
        return optimizers


def _separate_scores(
    optimizer: torch.optim.Optimizer, model: OmniASRModel, args: argparse.Namespace
) -> None:
    scores = list(model.supernet.selection.parameters())
    if not scores:
        return
    group = {"params": scores, "weight_decay": 0.0}
    score_lr = model.supernet.config.score_lr
    if score_lr is not None:
        if args.scheduler in _ABSOLUTE_SCHEDULERS:
            raise UserError(
                f"supernet.score_lr cannot be combined with scheduler "
                f"{args.scheduler}, which sets one rate for everything: remove "
                "score_lr or choose another scheduler, such as warmuplr or tristagelr."
            )
        group["lr"] = score_lr
    ids = {id(score) for score in scores}
    for old in optimizer.param_groups:
        old["params"] = [p for p in old["params"] if id(p) not in ids]
    optimizer.add_param_group(group)


def _check_conf(section: str, built: type, args: argparse.Namespace) -> None:
    """Refuses keys that no constructor of the class's ancestry takes."""
    known: list[str] = []
    for ancestor in built.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(ancestor.__init__).parameters
        known += [name for name in parameters if name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    conf: Mapping[str, Any] = getattr(args, f"{section}_conf")
    check_keys(f"{section}_conf", conf, known)


def _check_initial_parameters(args: argparse.Namespace) -> None:
    """Refuses checkpoints that would silently start something else."""
    layer_norm = args.encoder_conf.get("conv_norm") == "layer_norm"
    for init_param in args.init_param:
        path, *parts = init_param.split(":")
        keys = load_tensors(path).keys()
        if layer_norm and any("conv_module.norm.running_mean" in key for key in keys):
            raise UserError(
                f"{path} has BatchNorm in its Conv modules and cannot start a "
                "supernet with encoder_conf.conv_norm: layer_norm: use batch_norm."
            )
        excluded = parts[2] if len(parts) > 2 else ""
        if "supernet.updates" in keys and "supernet" not in excluded:
            raise UserError(
                f"{path} is a supernet's and would bring its update count and scores: "
                f"start from its weights alone with --init_param {path}:::supernet."
            )
