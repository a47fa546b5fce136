"""The sizes that a command line asks for, as the supernet's options have them."""

import math
from collections.abc import Mapping
from typing import Any

from espnet_omnisparse.core.decoder import parse_decoder
from espnet_omnisparse.cost.budget import parse_budget
from espnet_omnisparse.cost.metrics import OF_SIZES, UNITS
from espnet_omnisparse.errors import UserError

SPARSITY = "sparsity"


def layer_sizes(text: str) -> dict[str, Any]:
    """The sizes of the layer axis, or of both.

    Args:
        text: Words `NAME:SIZE`, or a budget that is its own name; a size is a
            fraction of the branches, their number, or a budget. Behind one of the
            first two, or in its place for all branches, `@ZEROS` is the share of zeros
            in what is kept.

    Raises:
        UserError: If one is none of these.

    >>> layer_sizes("small:0.33 medium:32 8MB")
    {'small': 0.33, 'medium': 32, '8MB': '8MB'}
    >>> layer_sizes("watch:0.5@70% phone:@0.8")
    {'watch': {'units': 0.5, 'sparsity': 0.7}, 'phone': {'sparsity': 0.8}}
    """
    sizes: dict[str, Any] = {}
    for word in text.split():
        name, size = _layer_size(word)
        if name in sizes:
            raise UserError(f"--sizes has {name} twice: give each size its own name.")
        sizes[name] = size
    if not sizes:
        raise UserError('--sizes names none: give some, as in "small:0.33 8MB".')
    if all(isinstance(one, Mapping) and UNITS not in one for one in sizes.values()):
        raise UserError(
            "--sizes: no size drops a branch: say how many zeros with --sparsity."
        )
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
        share = _share(word, "--sparsity")
        name = f"s{100 * share:.4g}".replace(".", "p")
        if name in sizes:
            raise UserError(f"--sparsity has {name} twice: leave one of them out.")
        sizes[name] = {SPARSITY: share}
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


def _layer_size(word: str) -> tuple[str, Any]:
    """Name and options of a size of `layer_sizes`."""
    size, marked, zeros = word.partition("@")
    name, _, wanted = size.rpartition(":")
    number = _number(wanted)
    if not name and (marked or number is not None):
        raise UserError(f"--sizes: name {word} as well, as in small:{word}.")
    if marked:
        if wanted and number is None:
            raise UserError(
                f"--sizes: {wanted} in {word} must be a fraction or a number of "
                "branches: a budget is met by branches alone, without zeros."
            )
        kept = {UNITS: number} if wanted else {}
        return name, {**kept, SPARSITY: _share(zeros, "--sizes")}
    if number is not None:
        return name, number
    budget = parse_budget(wanted, "--sizes", OF_SIZES)
    return name or budget.name, budget.text


def _options(wanted: Any) -> dict[str, Any]:
    """A size as a mapping of options."""
    if isinstance(wanted, Mapping):
        return dict(wanted)
    if not isinstance(wanted, str):
        return {UNITS: wanted}
    budget = parse_budget(wanted, "--sizes", OF_SIZES)
    return {budget.kind: budget.text.rpartition("=")[2]}


def _share(text: str, option: str) -> float:
    """A share of zeros, as a percent or as a fraction."""
    number = _number(text.removesuffix("%"))
    share = None if number is None else number / (100 if text[-1] == "%" else 1)
    if share is None or not 0.0 < share < 1.0:
        raise UserError(
            f"{option}: {text or 'nothing'} must be a share of zeros such as 70% or "
            "0.7."
        )
    return round(share, 6)


def _number(text: str) -> int | float | None:
    if text.isdecimal():
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
