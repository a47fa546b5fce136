"""Real-time factors of models, measured in turn and kept until one of them changes."""

import hashlib
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from espnet_omnisparse.cost.count import measure_rtf
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import MODEL, load_size
from espnet_omnisparse.files import write_text


@dataclass(frozen=True)
class Timing:
    """One run that measured all models in turn.

    Attributes:
        models: Folder -> checksum of its model file.
        rounds: Timed rounds.
        environment: What it ran on.
        rtf: Folder -> real-time factor of each round.
    """

    models: Mapping[str, str]
    rounds: int
    environment: Mapping[str, str]
    rtf: Mapping[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        """Folder -> median real-time factor."""
        return {name: statistics.median(row) for name, row in self.rtf.items()}


def time_models(folders: Sequence[Path], cache: Path, rounds: int) -> Timing:
    """The timing of exactly these models: the one kept, or a new one.

    Args:
        folders: Of the sizes.
        cache: File that keeps the measurement.
        rounds: Timed rounds.
    """
    models = {str(folder): _checksum(folder / MODEL) for folder in folders}
    kept = read_timing(cache)
    if kept and (kept.models, kept.rounds) == (models, rounds):
        return kept
    rtf = measure_rtf({name: load_size(Path(name)) for name in models}, rounds=rounds)
    timing = Timing(models, rounds, _environment(), rtf)
    write_text(cache, json.dumps(vars(timing), indent=1) + "\n")
    return timing


def same_models(timing: Timing, folders: Sequence[Path]) -> bool:
    """Whether a timing is of these models as they are now.

    Args:
        timing: It may be of others too.
        folders: Of the sizes.
    """
    return all(
        timing.models.get(str(folder)) == _checksum(folder / MODEL)
        for folder in folders
    )


def read_timing(cache: Path) -> Timing | None:
    """The timing that a file keeps; `None`: it keeps none."""
    try:
        return Timing(**json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # absent or useless: measured anew


def _checksum(model: Path) -> str:
    if not model.is_file():
        raise UserError(f"{model} does not exist: extract this size again (stage 12).")
    with model.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _environment() -> dict[str, str]:
    versions = {name: version(name) for name in ("torch", "espnet")}
    return {"python": platform.python_version(), **versions, "CPU": _cpu_name()}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
