"""What lies on disk of each size: its costs, and its scores once it is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from espnet_omnisparse.core.spec import REPAIRED
from espnet_omnisparse.cost.metrics import METRICS, Metric
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.report.scores import Score, read_scores

BASELINES = "baselines.yaml"
INDIVIDUAL = "trained individually"
REPAIRED_SIZES = "supernet, repaired"
COSTS = tuple(
    METRICS[name].field
    for name in ("params", "encoder", "nonzero", "macs_10s", "macs_30s", "file")
)
# that files of earlier versions have not
LATER_COSTS = (METRICS["bytes"].field,)
REPAIR = "repair.yaml"
_FILES = ("subnet.yaml", "origin.yaml", "cost.json")


@dataclass(frozen=True)
class SizeResult:
    """One extracted size.

    Attributes:
        label: What a table calls it.
        folder: Its experiment folder.
        size: Its spec's name.
        kept: Branches kept, or components where the supernet's units are these.
        of: Those of the net it was cut from.
        form: Kind of its file, a key of `family.FORMS`.
        cost: The numbers named in `COSTS`, and those in `LATER_COSTS` or `None`.
        wer: Word scores by data set, named `inference_tag/test_set` as in ESPnet.
        cer: Character scores by data set.
        rtf: Median real-time factor; `None` until it is measured.
        sparse: Whether its weights were masked.
        decoder: How many layers of the attention decoder it keeps, or `none`; `None`:
            all that there are.
        repair_updates: Those of its own, after the supernet's; 0: it was not repaired.
        repair_seconds: What they took.
    """

    label: str
    folder: Path
    size: str
    kept: int
    of: int
    form: str
    cost: dict[str, int | None]
    wer: dict[str, Score]
    cer: dict[str, Score]
    rtf: float | None = None
    sparse: bool = False
    decoder: int | str | None = None
    repair_updates: int = 0
    repair_seconds: float = 0.0

    def value(self, metric: Metric) -> float | None:
        """What it costs by a metric; `None` where that is not known."""
        return {**self.cost, METRICS["rtf"].field: self.rtf}[metric.field]

    @property
    def zeros(self) -> float:
        """Share of the parameters that is zero."""
        return 1.0 - self.cost["nonzero_parameters"] / self.cost["parameters"]


@dataclass(frozen=True)
class Series:
    """Sizes that belong together: a line in a plot, a table in the report.

    Attributes:
        name: What the legend calls it.
        sizes: Smallest first.
    """

    name: str
    sizes: tuple[SizeResult, ...]

    @classmethod
    def of(cls, name: str, sizes: Sequence[SizeResult]) -> "Series":
        """A series in its order: what keeps less, then what costs less, comes first.

        Of sizes whose weights are masked, all by non-zero parameters: one that keeps
        more branches may have less in them.

        Args:
            name: The series' name.
            sizes: Its sizes.
        """

        def size(one: SizeResult) -> tuple[int, ...]:
            nonzero = one.cost["nonzero_parameters"]
            if any(other.sparse for other in sizes):
                return (nonzero, one.kept)
            return (one.kept, one.cost["parameters"])

        return cls(name, tuple(sorted(sizes, key=size)))

    @property
    def sparse(self) -> bool:
        """Whether weights of any of its sizes were masked."""
        return any(size.sparse for size in self.sizes)


def read_size(folder: Path, label: str | None = None) -> SizeResult:
    """Reads an extracted size.

    Args:
        folder: Its experiment folder.
        label: What a table shall call it; `None`: its spec's name.

    Raises:
        UserError: If a file of it is missing or garbled.
    """
    folder = Path(folder)
    # YAML's reader takes JSON as well
    spec, origin, cost = (_read_yaml(folder / name) for name in _FILES)
    path = folder / REPAIR
    repair = _read_yaml(path) if path.exists() else {"updates": 0, "seconds": 0.0}
    try:
        counts = spec["components" if "components" in spec else "branches"]
        return SizeResult(
            label=label or str(spec["name"]),
            folder=folder,
            size=str(spec["name"]),
            kept=int(counts["kept"]),
            of=int(counts["of"]),
            form=str(origin["form"]),
            cost={
                **{name: int(cost[name]) for name in COSTS},
                **{name: cost.get(name) for name in LATER_COSTS},
            },
            wer=read_scores(folder, "wer"),
            cer=read_scores(folder, "cer"),
            repair_updates=int(repair["updates"]),
            repair_seconds=float(repair["seconds"]),
            sparse=bool(spec.get("weights", {}).get("sparsity")),
            decoder=spec.get("decoder"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} lacks a value in {', '.join(_FILES)}, or has one that is no "
            "number: delete it and extract again (stage 12)."
        ) from error


def read_family(asr_exp: Path) -> tuple[Series, ...]:
    """The extracted sizes of a supernet, then those in stock form and those repaired.

    Raises:
        UserError: If there is no size at all, or a file is garbled.
    """
    asr_exp = Path(asr_exp)
    names = [path.stem for path in sorted((asr_exp / "subnets").glob("*.yaml"))]
    series = []
    for title, suffix in (
        ("supernet", ""),
        ("supernet, stock form", "_stock"),
        (REPAIRED_SIZES, REPAIRED),
    ):
        folders = [
            asr_exp.with_name(f"{asr_exp.name}_{name}{suffix}") for name in names
        ]
        sizes = [read_size(folder) for folder in folders if folder.is_dir()]
        if sizes:
            series.append(Series.of(title, sizes))
    if not series:
        raise UserError(
            f"{asr_exp} has no extracted sizes: train it and extract them first "
            "(stages 11 and 12)."
        )
    return tuple(series)


def read_baselines(path: Path) -> tuple[Series, ...]:
    """The series named in a `baselines.yaml`; none where there is no such file.

    The file maps a label to a size's folder, or a series' name to such a mapping.

    Raises:
        UserError: If it is neither, or a folder is no extracted size.
    """
    if not Path(path).exists():
        return ()
    given = _read_yaml(path)
    values = list(given.values()) if isinstance(given, dict) else []
    if values and all(isinstance(value, str) for value in values):
        given = {INDIVIDUAL: given}
    elif not values or not all(isinstance(value, dict) for value in values):
        raise UserError(
            f"{path} must map labels to folders of sizes, or names of series to such "
            "mappings."
        )
    return tuple(
        Series.of(
            str(name),
            [read_size(Path(str(one)), str(label)) for label, one in folders.items()],
        )
        for name, folders in given.items()
    )


def with_rtf(series: Series, medians: dict[str, float]) -> Series:
    """The series with the real-time factor of each size's folder filled in.

    Args:
        series: The series.
        medians: Folder -> real-time factor.
    """
    sizes = (replace(one, rtf=medians[str(one.folder)]) for one in series.sizes)
    return Series(series.name, tuple(sizes))


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, so {path.parent} is not an extracted size: "
            "extract it first (stage 12)."
        )
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is garbled: delete it and write it again.") from error
