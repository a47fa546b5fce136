"""Evaluations that are kept in a file, and shared out among processes.

Every process of a search goes the same way; only the evaluations are divided. The
results do not depend on how many processes there are.
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from espnet_omnisparse.files import write_text
from espnet_omnisparse.search.evolution import Candidate

# units kept and sparsities: what a candidate is without its search
Key = tuple[tuple[bool, ...], tuple[float, ...]]


class Workers:
    """The processes of a search, as this one sees them; a search has at least one."""

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")  # a few numbers, of any device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """A GPU of its own as long as there are any."""
        gpus = torch.cuda.device_count()
        if not gpus:
            return "cpu"
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % gpus}"

    def broadcast(self, value: Any) -> Any:
        """What the first process gave."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process gave."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


class Evaluations:
    """Fitness of candidates, each evaluated once, even by a search run again.

    The file has a line per evaluation after a first line that says of what; it is
    appended to as they come. A last line that was cut off is forgotten.

    Args:
        path: The file.
        header: What the numbers depend on beside the candidates.
        evaluate: Fitness of one candidate.
        masks: Sets of branches, by the number that candidates have of them.
        workers: The processes.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        evaluate: Callable[[Key], float],
        masks: Sequence[tuple[bool, ...]],
        workers: Workers,
    ):
        self._path = Path(path)
        self._evaluate = evaluate
        self._masks = masks
        self._workers = workers
        known = _read(self._path, header) if workers.first else None
        self._known: dict[Key, float] = workers.broadcast(known)

    def of(
        self,
        candidates: Sequence[Candidate],
        on_progress: Callable[[int], Any] = lambda count: None,
    ) -> list[float]:
        """The fitness of each; those not yet known are evaluated.

        Args:
            candidates: What is to be evaluated.
            on_progress: Called with how many are done.
        """
        keys = [(self._masks[one.branches], one.sparsity) for one in candidates]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        on_progress(len(keys) - len(missing))
        step = self._workers.world_size
        for start in range(0, len(missing), step):
            together = missing[start : start + step]
            mine = together[self._workers.rank :][:1]
            values = self._workers.gather([self._evaluate(key) for key in mine])
            new = dict(zip(together, (v for part in values for v in part), strict=True))
            self._known.update(new)
            if self._workers.first:
                with self._path.open("a") as file:
                    file.writelines(_line(*one) for one in new.items())
            on_progress(len(new))
        return [self._known[key] for key in keys]


def _line(key: Key, fitness: float) -> str:
    mask, sparsity = key
    units = "".join(str(int(keep)) for keep in mask)
    line = {"units": units, "sparsity": list(sparsity), "fitness": fitness}
    return json.dumps(line) + "\n"


def _read(path: Path, header: dict[str, Any]) -> dict[Key, float]:
    """The evaluations of a file, which is begun or mended where that is needed."""
    text = path.read_text() if path.exists() else ""
    # what lies behind the last line's end was cut off while it was written
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    found, good = {}, [json.dumps(header) + "\n"]
    if lines[:1] == good:
        for line in lines[1:]:
            with suppress(ValueError, TypeError, KeyError):  # garbled: evaluated anew
                one = json.loads(line)
                mask = tuple(unit == "1" for unit in one["units"])
                found[mask, tuple(one["sparsity"])] = float(one["fitness"])
                good.append(line)
    if "".join(good) != text:
        write_text(path, "".join(good))
    return found
