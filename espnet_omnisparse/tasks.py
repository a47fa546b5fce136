"""ESPnet's ASR tasks with supernets; importing this module registers them."""

import argparse
import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.tasks import asr_transducer
from espnet2.tasks.abs_task import scheduler_classes
from espnet2.tasks.asr import (
    ASRTask,
    encoder_choices,
    frontend_choices,
    model_choices,
)
from espnet2.tasks.asr_transducer import ASRTransducerTask
from espnet2.utils.types import str2bool

from espnet_omnisparse.core.layout import LAYER_PRUNABLE, OMNI_SPARSE, is_standalone
from espnet_omnisparse.errors import UserError, check_keys
from espnet_omnisparse.files import load_tensors
from espnet_omnisparse.nn.conformer import (
    LayerPrunableConformerEncoder,
    OmniSparseConformerEncoder,
)
from espnet_omnisparse.nn.e_branchformer import (
    LayerPrunableEBranchformerEncoder,
    OmniSparseEBranchformerEncoder,
)
from espnet_omnisparse.nn.kaldi_fbank import KaldiFbank
from espnet_omnisparse.nn.transducer_encoder import (
    OmniTransducerEncoder,
    check_block_types,
)
from espnet_omnisparse.nn.transformer import (
    LayerPrunableTransformerEncoder,
    OmniSparseTransformerEncoder,
)
from espnet_omnisparse.options import CRITERION
from espnet_omnisparse.train.asr_model import OmniASRModel
from espnet_omnisparse.train.kept_zeros import keep_zeros, zeros_of
from espnet_omnisparse.train.learning_rate import PiecewiseLinearLR
from espnet_omnisparse.train.resume import check_checkpoint, check_initial_parameters
from espnet_omnisparse.train.trainer import OmniTrainer
from espnet_omnisparse.train.transducer_asr_model import TransducerASRModel
from espnet_omnisparse.train.transducer_model import (
    OmniTransducerModel,
    TransducerModel,
)
from espnet_omnisparse.train.update import SupernetModel

scheduler_classes["piecewiselinearwarmuplr"] = PiecewiseLinearLR
_ENCODERS = {
    "conformer": (LayerPrunableConformerEncoder, OmniSparseConformerEncoder),
    "e_branchformer": (
        LayerPrunableEBranchformerEncoder,
        OmniSparseEBranchformerEncoder,
    ),
    "transformer": (LayerPrunableTransformerEncoder, OmniSparseTransformerEncoder),
}
for stock_name, (layer_prunable, omni_sparse) in _ENCODERS.items():
    encoder_choices.classes[LAYER_PRUNABLE + stock_name] = layer_prunable
    encoder_choices.classes[OMNI_SPARSE + stock_name] = omni_sparse
for choices in (frontend_choices, asr_transducer.frontend_choices):  # one per task
    choices.classes["kaldi_fbank"] = KaldiFbank
model_choices.classes["omni"] = OmniASRModel
model_choices.classes["omni_transducer"] = TransducerASRModel

_RUNNING_MEAN = re.compile(r"\.(conv_module|conv_mod)\.norm\.running_mean$")
# these set every parameter group to a rate of their own
_ABSOLUTE_SCHEDULERS = ("piecewiselinearwarmuplr", "onecyclelr", "cycliclr")


class SupernetTask:
    """Mixin of a task whose trainer understands supernets.

    A task of our own, and not only an entry in ESPnet's tables, because the workers
    that multi-GPU training spawns import it, and with it the registration.
    """

    trainer = OmniTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """ESPnet's arguments of the task, and ours."""
        super().add_task_arguments(parser)
        parser.add_argument(
            "--keep_zeros",
            type=str2bool,
            default=False,
            help="what is zero in the weights of --init_param stays zero",
        )

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Runs one training process.

        Raises:
            UserError: If the configuration contradicts itself.
        """
        _check_initial_parameters(args)
        if is_supernet(vars(args)):
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
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """ESPnet's optimiser; the scores get a group of their own, without decay.

        Args:
            args: The task's arguments.
            model: The model.

        Raises:
            UserError: If the scheduler cannot keep `score_lr`, or the training would
                begin with, or go on from, what does not belong to it.
        """
        # here, because ESPnet overwrites config.yaml next
        check_initial_parameters(args, model)
        check_checkpoint(args, model)
        optimizers = super().build_optimizers(args, model)
        if args.keep_zeros:
            keep_zeros(model, zeros_of(args.init_param), optimizers)
        if not isinstance(model, SupernetModel):
            return optimizers
        if args.sharded_ddp:
            raise UserError("sharded_ddp cannot be combined with a supernet: unset it.")
        (optimizer,) = optimizers
        _separate_scores(optimizer, model, args)
        model.supernet.follow(optimizer)
        return optimizers


class OmniASRTask(SupernetTask, ASRTask):
    """`asr` task with supernets."""

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetASRModel:
        """Builds the model of a configuration.

        Raises:
            UserError: If a key of `encoder_conf` or `model_conf` is unknown.
        """
        _check_conf("encoder", encoder_choices.get_class(args.encoder), args)
        _check_conf("model", model_choices.get_class(args.model), args)
        return super().build_model(args)


class OmniASRTransducerTask(SupernetTask, ASRTransducerTask):
    """`asr_transducer` task with supernets: those that have `model_conf.supernet`."""

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> TransducerModel:
        """Builds the model of a configuration.

        Raises:
            UserError: If a key of `encoder_conf` or `model_conf` is unknown.
        """
        built = OmniTransducerModel if is_supernet(vars(args)) else TransducerModel
        if built is TransducerModel:  # a section that is null is none
            conf = args.model_conf.items()
            args.model_conf = {k: v for k, v in conf if k != "supernet"}
        _check_conf("encoder", OmniTransducerEncoder, args)
        _check_conf("model", built, args)
        check_block_types(args.encoder_conf.get("body_conf", ()))
        # ESPnet hard-wires its encoder: everything else is taken from its model
        stock = super().build_model(_stock_options(args))
        args.token_list = list(stock.token_list)  # as ESPnet's tasks leave it
        front = stock.frontend
        input_size = args.input_size if front is None else front.output_size()
        return built(
            vocab_size=stock.vocab_size,
            token_list=stock.token_list,
            frontend=front,
            specaug=stock.specaug,
            normalize=stock.normalize,
            encoder=OmniTransducerEncoder(input_size, **args.encoder_conf),
            decoder=stock.decoder,
            joint_network=stock.joint_network,
            **args.model_conf,
        )


def is_supernet(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, of either task, trains a supernet."""
    if is_standalone(config):
        return config["model_conf"].get("supernet") is not None
    return config["model"] == "omni"


def task_of(config: Mapping[str, Any]) -> type[SupernetTask]:
    """The task that a configuration is of."""
    return OmniASRTransducerTask if is_standalone(config) else OmniASRTask


def _stock_options(args: argparse.Namespace) -> argparse.Namespace:
    """What ESPnet's own task understands; it writes its defaults into copies."""
    stock = argparse.Namespace(**vars(args))
    known = inspect.signature(Encoder.__init__).parameters
    conf = {name: v for name, v in args.encoder_conf.items() if name in known}
    stock.encoder_conf = copy.deepcopy(conf)
    known = inspect.signature(ESPnetASRTransducerModel.__init__).parameters
    stock.model_conf = {n: v for n, v in args.model_conf.items() if n in known}
    return stock


def _separate_scores(
    optimizer: torch.optim.Optimizer, model: SupernetModel, args: argparse.Namespace
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
        _, *parameters = inspect.signature(ancestor.__init__).parameters.values()
        known += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    conf: Mapping[str, Any] = getattr(args, f"{section}_conf")
    check_keys(f"{section}_conf", conf, list(dict.fromkeys(known)))


def _check_initial_parameters(args: argparse.Namespace) -> None:
    """Refuses checkpoints that would silently start something else."""
    layer_norm = args.encoder_conf.get("conv_norm") == "layer_norm"
    for init_param in args.init_param:
        path, *parts = init_param.split(":")
        keys = load_tensors(path).keys()
        if layer_norm and any(_RUNNING_MEAN.search(key) for key in keys):
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
