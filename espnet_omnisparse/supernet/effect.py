"""Options of a supernet that change nothing under its other options.

What says how subnets are trained is refused where there are none. Lengths and rates of
a step that a method has not are told and left out: one configuration serves several
methods, which differ in their steps.
"""

import logging
from collections.abc import Mapping

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.selection import Selection
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.sparsity import SIZE

_OF_STEPS = (
    *("warm_start", "step1", "layer_dropout_step1", "layer_dropout_step2"),
    "score_lr",
)


def check_effect(config: SupernetConfig, selection: Selection, subnets: int) -> None:
    """Refuses, or tells of, options that differ from their defaults and change nothing.

    Args:
        config: The supernet's options.
        selection: Of its method.
        subnets: The most that an update trains.

    Raises:
        UserError: Naming the first that is refused.
    """
    _check_decoders(config, selection)
    masked, several = config.sparsity is not None, subnets > 1
    taught = several or config.teacher is not None
    subnet_in_step1 = type(selection).gates is not Selection.gates
    fractions = any(isinstance(wanted, float) for wanted in config.sizes.values())
    has_effect = {
        "fraction_of": fractions,
        "heads": bool(selection.sizes),
        "update": several,
        "subnet_weight": several or bool(selection.sizes and selection.exits()),
        "subnet_dropout": several,
        "distillation": taught,
        "distillation_weight": taught and config.distillation != "none",
        "distillation_blocks": taught and config.distillation != "none",
        "warm_start": selection.learns or several or masked,
        "step1": selection.learns,
        "layer_dropout_step1": selection.learns and subnet_in_step1,
        "layer_dropout_step2": selection.joint and bool(selection.sizes),
        "score_lr": any(True for _ in selection.parameters()),
    }
    for name, effect in has_effect.items():
        given = getattr(config, name)
        if effect or given == type(config).model_fields[name].default:
            continue
        why = f"with method {config.method}"
        if name == "fraction_of":
            why = "without a fraction in sizes"
        elif name.startswith("distillation_") and several:
            why = "without distillation"
        text = f"supernet.{name}: {given} has no effect {why}"
        if name not in _OF_STEPS:
            raise UserError(f"{text}: remove it, or choose other options beside it.")
        logging.warning(f"{text}, which has no such step.")


def _check_decoders(config: SupernetConfig, selection: Selection) -> None:
    """Refuses a decoder of fewer layers that no update trains; CTC each one does."""
    for name, wanted in config.sizes.items():
        if not isinstance(wanted, Mapping) or wanted.get("decoder", "none") == "none":
            continue
        if config.sparsity is not None:
            if not {SIZE, name} & {*config.sparsity.sandwich}:
                raise UserError(
                    f"supernet.sizes: {name} keeps some layers of the decoder, but no "
                    "update trains them alone: add size to supernet.sparsity.sandwich."
                )
        elif selection.sizes and not selection.joint and not selection.exits():
            raise UserError(
                f"supernet.sizes: {name} keeps some layers of the decoder, but "
                f"supernet.method: {config.method} trains all of them: choose a method "
                "with joint training."
            )
