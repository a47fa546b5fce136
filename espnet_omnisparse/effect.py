"""Options of a supernet that say nothing under its other options.

They are told, not refused: one configuration may serve several methods.
"""

import dataclasses
import logging
from typing import Any

from espnet_omnisparse.selection import Selection


def tell_without_effect(config: Any, selection: Selection, nets: int) -> list[str]:
    """Warns of options that differ from their defaults, but change nothing.

    Args:
        config: The supernet's options, a `SupernetConfig`.
        selection: Of its method.
        nets: The most subnets that an update trains.

    Returns:
        Their names.
    """
    masked, several = config.sparsity is not None, nets > 1
    subnet_in_step1 = type(selection).gates is not Selection.gates
    fractions = any(isinstance(wanted, float) for wanted in config.sizes.values())
    has_effect = {
        "fraction_of": fractions,
        "heads": bool(selection.sizes),
        "update": several,
        "subnet_weight": several or bool(selection.sizes and selection.exits()),
        "subnet_dropout": several,
        "distillation": several,
        "distillation_weight": several and config.distillation != "none",
        "warm_start": selection.learns or several or masked,
        "step1": selection.learns,
        "layer_dropout_step1": selection.learns and subnet_in_step1,
        "layer_dropout_step2": selection.joint and bool(selection.sizes),
        "score_lr": any(True for _ in selection.parameters()),
    }
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    found = [
        name
        for name, effect in has_effect.items()
        if not effect and getattr(config, name) != defaults[name]
    ]
    for name in found:
        why = f"with method {config.method}"
        if name == "fraction_of":
            why = "without a fraction in sizes"
        elif name == "distillation_weight" and several:
            why = "without distillation"
        logging.warning(
            f"model_conf.supernet.{name}: {getattr(config, name)} has no effect {why}: "
            "remove it, or choose other options beside it."
        )
    return found
