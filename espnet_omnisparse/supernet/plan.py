"""What a run is tied to: a value saved in its checkpoint and compared at resume."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espnet_omnisparse.core.schedule import Stage, Timeline
from espnet_omnisparse.options import Section


@dataclass(frozen=True)
class Plan:
    """What a supernet's training cannot change on the way, and how long it is.

    Attributes:
        options: Name -> plain value, of all that decides which units and weights the
            sizes keep, and when.
        timeline: The phases, in updates: counted once, when the run begins.
        total: Updates of the run; `None` where nobody knows. It may change.
    """

    options: Mapping[str, Any]
    timeline: Timeline
    total: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """The inverse of `as_dict`."""
        phases = dict(values["timeline"])
        # earlier versions had none
        phases["stages"] = tuple(Stage(**one) for one in phases.get("stages", ()))
        timeline = Timeline(**phases)
        return cls(values["options"], timeline, values["total"])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the options of two plans, in words.

    An option that only one of them knows, because it is newer, is left out.

    Args:
        before: The options of the plan that was saved.
        now: Those of the present one.

    >>> differences({"method": "none", "step1": 0.5}, {"method": "none", "step1": 9})
    ['step1: 0.5, not 9']
    """
    return [
        f"{name}: {_shown(value)}, not {_shown(now[name])}"
        for name, value in before.items()
        if name in now and _text(value) != _text(now[name])
    ]


def plain(value: Any) -> Any:
    """A value in plain types: a tuple becomes a list, a section a mapping."""

    def as_mapping(one: Any) -> dict[str, Any]:
        return dict(one) if isinstance(one, Section) else dataclasses.asdict(one)

    return json.loads(json.dumps(value, default=as_mapping))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # the order in a file says nothing


def _shown(value: Any) -> str:
    text = _text(value).replace('"', "")
    return text if len(text) <= 100 else text[:97] + "..."
