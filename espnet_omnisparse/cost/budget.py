"""Budgets: limits on a cost, in the one grammar of YAML and of command lines.

A budget is text such as `70%` (zeros among the weights that take masks), `12M` or
`900k` (non-zero parameters), `8MB` (packed bytes), `2GMAC` (for 10 s of audio) or
`40ms` (the same), or any metric by its name, such as `params=15M` or `macs_10s=2G`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from espnet_omnisparse.cost.metrics import (
    METRICS,
    OF_BUDGETS,
    OF_SIZES,
    SCALES,
    ZEROS,
)
from espnet_omnisparse.errors import UserError

FORMS = (
    "a share of zeros such as 70%, non-zero parameters such as 12M or 900k, packed "
    "bytes such as 8MB, MACs for 10 s such as 2GMAC or 300MMAC, a latency such as "
    "40ms, or a metric with its limit such as params=15M"
)
_TEXT = re.compile(r"(?:(\w+)=)?(\d+(?:\.\d+)?|\.\d+)(%|[A-Za-z]*)")
_SUFFIXES = {
    scale + METRICS[name].suffix: (name, scale)
    for name in OF_BUDGETS
    for scale in METRICS[name].scales
}


@dataclass(frozen=True)
class Budget:
    """A limit on a cost, as it was given.

    Attributes:
        kind: Its metric, a key of `cost.metrics.METRICS`.
        number: Of the unit.
        scale: The letter behind the number, a key of `SCALES`.
    """

    kind: str
    number: float
    scale: str = ""

    @property
    def text(self) -> str:
        """As it is written in YAML and on command lines.

        >>> parse_budget("bytes=8M").text, parse_budget("params=15M").text
        ('8MB', 'params=15M')
        """
        return self._written(self.number)

    @property
    def name(self) -> str:
        """A name for files and folders.

        >>> parse_budget("1.5M").name, parse_budget("70%").name
        ('1p5M', '70pct')
        """
        text = self.text.replace("=", "").replace(".", "p")
        return text.replace("%", "pct")

    @property
    def limit(self) -> float:
        """The largest cost allowed; of zeros, the largest share of weights kept."""
        if self.kind == ZEROS:
            # rounded: 1 - 0.7 is not 0.3
            return round(1.0 - self.number / 100.0, 9)
        return round(self.number * SCALES[self.scale], 9)

    def check(self, lowest: float, highest: float, where: str = "--budgets") -> None:
        """Refuses what no candidate of a search meets, and what the full net meets.

        Args:
            lowest: The least cost of all candidates.
            highest: The cost of the full net, nothing masked.
            where: What a message calls the place that the budget comes from.

        Raises:
            UserError: Naming the nearest that can be met.
        """
        if lowest <= self.limit < highest:
            return
        asked = f"{where}: {self.text}"
        if self.limit >= highest:
            full = self._shown(highest, math.floor)
            raise UserError(f"{asked} is no less than the full net's {full}.")
        why = ""
        if self.kind in ("latency_ms", "params") and lowest == highest:
            why = " (only dropped branches lower it, and no such size was trained)"
        nearest = self._shown(lowest, math.ceil)
        raise UserError(
            f"{asked} cannot be met; the nearest that can is {nearest}{why}."
        )

    def _shown(self, cost: float, rounded: Callable[[float], int]) -> str:
        """A cost in the budget's unit, rounded to what can be asked for."""
        if self.kind == ZEROS:  # the other way round: more zeros cost less
            return self._written(-rounded(-round((1.0 - cost) * 1e5, 6)) / 1e3)
        number = round(cost / SCALES[self.scale] * 1e3, 6)
        return self._written(rounded(number) / 1e3)

    def _written(self, number: float) -> str:
        metric = METRICS[self.kind]
        plain = f"{number:.9f}".rstrip("0").rstrip(".") + self.scale
        if self.scale in metric.scales:
            return plain + metric.suffix
        return f"{self.kind}={plain}"


def parse_budget(
    text: str, where: str = "--budgets", kinds: tuple[str, ...] = OF_BUDGETS
) -> Budget:
    """Reads a budget.

    Args:
        text: Such as `70%`, `12M`, `8MB`, `2GMAC`, `40ms` or `params=15M`.
        where: What a message calls the place that it comes from.
        kinds: The metrics that may be limited there.

    Raises:
        UserError: If it is none.

    >>> parse_budget("70%").kind, parse_budget("70%").limit
    ('sparsity', 0.3)
    >>> parse_budget("900k").kind, parse_budget("900k").limit
    ('nonzero', 900000.0)
    >>> parse_budget("params=15M")
    Budget(kind='params', number=15.0, scale='M')
    >>> parse_budget("macs_10s=2G") == parse_budget("2GMAC")
    True
    """
    found = _TEXT.fullmatch(text)
    budget = _read(*found.groups()) if found else None
    if budget is None:
        raise UserError(f"{where}: {text!r} must be {FORMS}.")
    if budget.kind not in kinds:
        raise UserError(
            f"{where}: {text!r} limits {budget.kind}; limit one of {', '.join(kinds)}."
        )
    return budget


def _read(kind: str | None, digits: str, suffix: str) -> Budget | None:
    """A budget of a metric's name, if it has one, a number and what is behind it."""
    if kind is None:
        if suffix not in _SUFFIXES:
            return None
        kind, scale = _SUFFIXES[suffix]
    elif kind in {*OF_SIZES, *OF_BUDGETS}:
        scale = suffix.removesuffix(METRICS[kind].suffix)
        if scale not in SCALES:
            return None
    else:
        return None
    number = float(digits)
    if kind == ZEROS and suffix != "%":
        number = round(100.0 * number, 9)  # sparsity=0.7
    if number <= 0 or (kind == ZEROS and (scale or number >= 100)):
        return None
    return Budget(kind, number, scale)


def limit_on(kind: str, value: Any) -> Budget | None:
    """The budget that a YAML mapping such as `{params: 15M}` gives.

    It means what the text `params=15M` means.

    Args:
        kind: The metric.
        value: A number, or text such as `15M`.

    Returns:
        The budget, or `None` if the value is no positive number.
    """
    found = _TEXT.fullmatch(value) if isinstance(value, str) else None
    budget = _read(kind, *found.groups()[1:]) if found and not found[1] else None
    number = parse_number(value)
    return budget or (None if number is None else Budget(kind, number))


def parse_number(value: Any) -> float | None:
    """A positive number, possibly with k, M or G behind it; `None` if it is not one.

    >>> parse_number("15M"), parse_number(40), parse_number("15 apples")
    (15000000.0, 40.0, None)
    """
    if isinstance(value, bool):
        return None
    scale = 1.0
    if isinstance(value, str) and value and value[-1] in SCALES:
        value, scale = value[:-1], SCALES[value[-1]]
    try:
        number = float(value) * scale
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None
