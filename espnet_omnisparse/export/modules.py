"""What single modules of a model are told by: a name, an activation, a norm."""

from typing import Any

import torch

from espnet_omnisparse.errors import UserError

# activation's class -> its name in a description
ACTIVATIONS = {
    "Swish": "swish",
    "SiLU": "swish",
    "ReLU": "relu",
    "Tanh": "tanh",
    "GELU": "gelu",
    "Hardtanh": "hardtanh",
    "SELU": "selu",
    "Identity": "none",
}


def name_of(model: torch.nn.Module, module: torch.nn.Module) -> str:
    """Under which name a model has a module.

    Args:
        model: Any.
        module: A part of it.
    """
    return next(name for name, found in model.named_modules() if found is module)


def weight_of(model: torch.nn.Module, module: torch.nn.Module) -> dict[str, str | None]:
    """The names of a layer's weight and bias; `None`: it has none.

    Args:
        model: Any.
        module: A part of it.
    """
    name = name_of(model, module)
    return {
        part: f"{name}.{part}" if getattr(module, part, None) is not None else None
        for part in ("weight", "bias")
    }


def activation_of(activation: Any) -> str:
    """The name of an activation.

    Raises:
        UserError: If a packed file has none of the kind.
    """
    name = type(activation).__name__
    if name not in ACTIVATIONS:
        raise UserError(
            f"The activation {name} cannot be exported: train with one of "
            f"{', '.join(sorted(set(ACTIVATIONS.values()) - {'none'}))}."
        )
    if isinstance(beta := getattr(activation, "beta", 1.0), float) and beta > 1.0:
        raise UserError(
            f"A swish with a beta of {beta:g} cannot be exported: train with 1."
        )
    return ACTIVATIONS[name]


def epsilon_of(norm: Any) -> float:
    """What a LayerNorm adds to the variance.

    Raises:
        UserError: If it is a norm of another kind.
    """
    if isinstance(norm, torch.nn.LayerNorm):
        return norm.eps
    raise UserError(
        f"The norm {type(norm).__name__} cannot be exported: train with layer_norm."
    )
