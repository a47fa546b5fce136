"""The sizes that a command line asks for, as the supernet's options have them."""

import math
from collections.abc import Mapping
from typing import Any

from espnet_omnisparse.core.decoder import parse_decoder
from espnet_omnisparse.cost.budget import parse_budget
from espnet_omnisparse.cost.metrics import OF_SIZES, UNITS
from espnet_omnisparse.errors import UserError


def layer_sizes(text: str) -> dict[str, Any]:
    """The sizes of the layer axis.

    Args:
        text: Words `NAME:SIZE`, or a budget that is its own name; a size is a
            fraction of the branches, their number, or a budget.

    Raises:
        UserError: If one is none of these.

    >>> layer_sizes("small:0.33 medium:32 8MB")
    {'small': 0.33, 'medium': 32, '8MB': '8MB'}
    """
    sizes: dict[str, Any] = {}
    for word in text.split():
        name, _, wanted = word.rpartition(":")
        number = _number(wanted)
        if number is None:
            budget = parse_budget(wanted, "--sizes", OF_SIZES)
            name, number = name or budget.name, budget.text
        elif not name:
            raise UserError(f"--sizes: name {word} as well, as in small:{word}.")
        if name in sizes:
            raise UserError(f"--sizes has {name} twice: give each size its own name.")
        sizes[name] = number
    if not sizes:
        raise UserError('--sizes names none: give some, as in "small:0.33 8MB".')
    return sizes


def sparse_sizes(text: str) -> dict[str, Any]:
    """The sizes of the weight axis.

    Args:
        text: Shares of zeros, as percents or as fractions.

    Raises:
        UserError: If one is none.

    >>> sparse_sizes("50% 0.9")
    {'s50': {'sparsity': 0.5}, 's90': {'sparsity': 0.9}}
    """
    sizes = {}
    for word in text.split():
        number = _number(word.removesuffix("%"))
        share = None if number is None else number / (100 if word[-1] == "%" else 1)
        if share is None or not 0.0 < share < 1.0:
            raise UserError(
                f"--sparsity: {word} must be a share of zeros such as 70% or 0.7."
            )
        name = f"s{100 * share:.4g}".replace(".", "p")
        if name in sizes:
            raise UserError(f"--sparsity has {name} twice: leave one of them out.")
        sizes[name] = {"sparsity": round(share, 6)}
    if not sizes:
        raise UserError('--sparsity names none: give some, as in "50% 80%".')
    return sizes


def with_decoder(sizes: Mapping[str, Any], text: str | None) -> dict[str, Any]:
    """The sizes, each of which keeps so much of the attention decoder.

    Args:
        sizes: What the functions above return.
        text: `none`, or a number of layers; `None`: all.

    Raises:
        UserError: If it is none of these.

    >>> with_decoder({"small": 0.33, "8MB": "8MB", "s50": {"sparsity": 0.5}}, "none")
    {'small': {'units': 0.33, 'decoder': 'none'}, \
'8MB': {'bytes': '8MB', 'decoder': 'none'}, 's50': {'sparsity': 0.5, 'decoder': 'none'}}
    """
    if text is None:
        return dict(sizes)
    kept = int(text) if text.isdecimal() else text
    parse_decoder(kept, "--decoder")
    return {
        name: {**_options(wanted), "decoder": kept} for name, wanted in sizes.items()
    }


def _options(wanted: Any) -> dict[str, Any]:
    """A size as a mapping of options."""
    if isinstance(wanted, Mapping):
        return dict(wanted)
    if not isinstance(wanted, str):
        return {UNITS: wanted}
    budget = parse_budget(wanted, "--sizes", OF_SIZES)
    return {budget.kind: budget.text.rpartition("=")[2]}


def _number(text: str) -> int | float | None:
    if text.isdecimal():
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
