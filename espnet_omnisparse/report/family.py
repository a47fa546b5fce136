"""The report on a family: RESULTS.md and three plots, generated and never typed.

Everything comes from what lies on disk; only the real-time factors are measured here,
of all models in turn in one process, and kept in `rtf.json` until a model changes.
"""

import hashlib
import json
import platform
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from espnet_omnisparse.core.subnet import SubnetSpec
from espnet_omnisparse.cost.count import measure_rtf, paired_ratio
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import (
    FORMS,
    MODEL,
    SPEC,
    load_size,
    read_config,
)
from espnet_omnisparse.files import atomic_path, read_yaml, write_text
from espnet_omnisparse.recipe.environment import require_folders
from espnet_omnisparse.report.plots import selection_figure, wer_figure
from espnet_omnisparse.report.results import (
    BASELINES,
    INDIVIDUAL,
    Score,
    Series,
    SizeResult,
    read_baselines,
    read_family,
    read_size,
    with_rtf,
)
from espnet_omnisparse.train.journal import SUBNETS, read_log, read_specs

DEFINITIONS = """\
- **kept**: branches (FFN, MHSA, Conv, FFN of every block), or, of a supernet of
  components, FFN quarters, attention heads and Convs.
- **params**: elements of trainable tensors of the whole model, in millions; BatchNorm
  statistics are not counted. **encoder**: the encoder's alone, front end to final
  norm. **non-zero**: those of the whole model that are not zero.
- **MACs**: multiply-accumulates of matrix products and convolutions, attention
  included, from log-mel features to CTC log-probabilities, in units of 10^9, for one
  utterance of 10 s and of 30 s.
{sparse}- **file**: the model's file on disk, in millions of bytes.
- **RTF**: real-time factor, the time from waveform to CTC log-probabilities divided by
  the audio's duration (10 s, batch 1, 1 thread), median of {rounds} rounds in which
  all models of this report take turns.
- **speed-up**: the next larger size's time divided by this one's, median over the
  same rounds.
- **Err** is the word error rate in per cent (in the table of characters, the
  character error rate), **S.Err** the share of utterances with an error; **Snt**,
  **Wrd**, **Corr**, **Sub**, **Del** and **Ins** are sclite's.
"""
SPARSE_DEFINITIONS = """\
- **zeros**: share of the model's parameters that is zero. They are stored and
  multiplied like any other number: a file, MACs and RTF do not shrink with them.
- **packed**: the model's tensors in millions of bytes, if the blocks' weights are
  stored by their non-zero groups of the masks' pattern: the values (4 bytes each), a
  16-bit column per group, and where each row of groups begins (32 bits); where that is
  no gain, and for all else, 4 bytes per value.
"""
SIZE_COLUMNS = (
    "size",
    "kept",
    "params (M)",
    "encoder (M)",
    "non-zero (M)",
    "MACs 10 s (G)",
    "MACs 30 s (G)",
    "file (MB)",
    "RTF",
    "speed-up",
)
SCORE_COLUMNS = "dataset Snt Wrd Corr Sub Del Ins Err S.Err".split()
# of reports in which a size has masked weights; each behind the column it refines
SPARSE_COLUMNS = {"non-zero (M)": "zeros", "file (MB)": "packed (MB)"}
SUMMARY_COLUMNS = (
    *("size", "kept", "params (M)", "zeros", "packed (MB)", "file (MB)", "RTF"),
    *("speed-up", "dataset", "Err", "loads in stock ESPnet"),
)
NONE = "–"
PLOTS = ("wer_vs_parameters.png", "wer_vs_rtf.png", "selection.png")
SPARSE_PLOT = "wer_vs_nonzero.png"


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


def write_family(
    asr_exp: Path,
    command: str,
    baselines: Sequence[tuple[str, Path]] = (),
    rtf_rounds: int = 15,
) -> Path:
    """Writes the report on a supernet and its extracted, scored sizes.

    Args:
        asr_exp: The supernet's experiment folder.
        command: The command to name as the one that made the report.
        baselines: Label and folder of sizes to compare with, the label as `size` or
            as `series, size`; empty: those that `asr_exp/baselines.yaml` names, if it
            is there.
        rtf_rounds: Rounds of the timing.

    Returns:
        The written RESULTS.md.

    Raises:
        UserError: If there is no scored size, or a file is missing or garbled.
    """
    asr_exp = Path(asr_exp)
    family = read_family(asr_exp)
    others = _given(baselines) or read_baselines(asr_exp / BASELINES)
    if not any(size.wer for size in family[0].sizes):
        raise UserError(
            f"No size of {asr_exp} is scored yet: decode and score them first "
            "(stages 12 and 13)."
        )
    require_folders([asr_exp, asr_exp / "images"])  # before minutes of measuring
    folders = [size.folder for series in family + others for size in series.sizes]
    timing = _time_models(folders, asr_exp / "rtf.json", rtf_rounds)
    medians = {name: statistics.median(row) for name, row in timing.rtf.items()}
    family = tuple(with_rtf(series, medians) for series in family)
    others = tuple(with_rtf(series, medians) for series in others)

    # in stock form a size recognises the same words: one curve tells of both
    curves = (family[0], *others)
    specs = [SubnetSpec.load(size.folder / SPEC) for size in family[0].sizes]
    names = _Names(curves)
    figures = {
        PLOTS[0]: wer_figure(curves, names, "parameters (M)", _millions),
        PLOTS[1]: wer_figure(curves, names, "real-time factor", _rtf),
        PLOTS[2]: selection_figure(specs, read_log(asr_exp)),
    }
    if any(series.sparse for series in curves):
        label = "non-zero parameters (M)"
        figures[SPARSE_PLOT] = wer_figure(curves, names, label, _nonzero_millions)
    for name, figure in figures.items():
        _save(figure, asr_exp / "images" / name)
    path = asr_exp / "RESULTS.md"
    write_text(path, "\n".join(_markdown(asr_exp, command, family, others, timing)))
    return path


def summary(path: Path) -> str:
    """The tables of sizes of a written report, narrow enough for a terminal.

    Args:
        path: The RESULTS.md that `write_family` wrote.
    """
    lines, columns, text = [], [], path.read_text()
    for line in text.splitlines():
        cells = line.strip("|").split("|")
        if line.startswith("## "):
            lines.append(f"\n{line.removeprefix('## ')}")
        elif tuple(cells[:2]) == SIZE_COLUMNS[:2]:
            columns = cells
        if columns and len(cells) == len(columns) and "---" not in cells:
            row = dict(zip(columns, cells, strict=True))
            chosen = (row[name] for name in SUMMARY_COLUMNS if name in row)
            lines.append("  ".join(f"{cell:>12}" for cell in chosen))
    sections = "\n".join(lines).split("\n\n")
    tables = [section.strip() for section in sections if "  " in section]
    names = re.findall(r"\]\(images/(.+)\)", text)
    plots = [str(path.parent / "images" / name) for name in names]
    return "\n\n".join([*tables, "\n".join(["Report and plots:", str(path), *plots])])


def _given(baselines: Sequence[tuple[str, Path]]) -> tuple[Series, ...]:
    """The series of `series, size` labels."""
    series: dict[str, list[SizeResult]] = {}
    for label, folder in baselines:
        name, _, size = label.rpartition(", ")
        series.setdefault(name or INDIVIDUAL, []).append(read_size(folder, size))
    return tuple(Series.of(name, sizes) for name, sizes in series.items())


def _time_models(folders: Sequence[Path], cache: Path, rounds: int) -> Timing:
    """The timing of exactly these models: the one kept, or a new one."""
    models = {str(folder): _checksum(folder / MODEL) for folder in folders}
    kept = _read_timing(cache)
    if kept and (kept.models, kept.rounds) == (models, rounds):
        return kept
    rtf = measure_rtf({name: load_size(Path(name)) for name in models}, rounds=rounds)
    timing = Timing(models, rounds, _environment(), rtf)
    write_text(cache, json.dumps(vars(timing), indent=1) + "\n")
    return timing


def _read_timing(cache: Path) -> Timing | None:
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


def _markdown(
    asr_exp: Path,
    command: str,
    family: Sequence[Series],
    baselines: Sequence[Series],
    timing: Timing,
) -> Iterator[str]:
    names = _Names([*family, *baselines])
    sparse = any(series.sparse for series in [*family, *baselines])
    yield f"<!-- Generated by `omnisparse report {asr_exp}`: changes get lost. -->"
    yield f"# {asr_exp.name}: one supernet, every size\n"
    yield (
        "Each row is a model of its own, cut out of one supernet, then decoded, scored "
        "and measured by itself.\n"
    )
    stated = ", ".join(f"{name} {value}" for name, value in timing.environment.items())
    yield f"Measured with {stated}, 1 thread.\n"
    for series in family:
        yield f"## Sizes: {series.name}\n"
        yield from _size_table(series, names, timing, sparse)
    yield from _loading_notes(asr_exp, family)
    for series in baselines:
        yield f"## Baseline: {series.name}\n"
        yield from _size_table(series, names, timing, sparse)
    yield "## Characters\n"
    yield from _character_table([*family, *baselines], names)
    yield "## Plots\n"
    for name in (*PLOTS, SPARSE_PLOT) if sparse else PLOTS:
        yield f"![{name.removesuffix('.png').replace('_', ' ')}](images/{name})"
    yield "\n## What the columns mean\n"
    more = SPARSE_DEFINITIONS if sparse else ""
    yield DEFINITIONS.format(rounds=timing.rounds, sparse=more)
    yield "## Commands\n"
    yield "```sh"
    yield from _commands(asr_exp, command, [*family, *baselines])
    yield "```\n"


class _Names:
    """Data sets without the inference tag, where all results share one."""

    def __init__(self, series: Sequence[Series]):
        sizes = [size for one in series for size in one.sizes]
        self.tags = {name.split("/")[0] for s in sizes for name in (*s.wer, *s.cer)}

    def __call__(self, dataset: str) -> str:
        return dataset.split("/", 1)[1] if len(self.tags) == 1 else dataset


def _size_table(
    series: Series, names: _Names, timing: Timing, sparse: bool
) -> Iterator[str]:
    columns = []
    for name in SIZE_COLUMNS:
        more = SPARSE_COLUMNS.get(name) if sparse else None
        columns += [name, more] if more else [name]
    table = [*columns, *SCORE_COLUMNS, "loads in stock ESPnet"]
    yield _row(table)
    yield _row(["---"] * len(table))
    larger = [*series.sizes[1:], None]
    for size, next_larger in zip(series.sizes, larger, strict=True):
        cells = _cost_cells(size, next_larger, timing)
        costs = [cells[name] for name in columns]
        for score in _score_rows(size.wer, names):
            yield _row([*costs, *score, FORMS.get(size.form, size.form)])
    yield ""


def _cost_cells(
    size: SizeResult, larger: SizeResult | None, timing: Timing
) -> dict[str, str]:
    """Column -> what is in it, of all columns that there may be."""
    speed_up = NONE
    if larger:
        ratio = paired_ratio(timing.rtf, str(larger.folder), str(size.folder))
        speed_up = f"{ratio:.2f}x"
    cost, packed = size.cost, size.cost["packed_bytes"]
    return {
        "size": size.label,
        "kept": f"{size.kept} of {size.of}",
        "params (M)": f"{cost['parameters'] / 1e6:.3f}",
        "encoder (M)": f"{cost['encoder_parameters'] / 1e6:.3f}",
        "non-zero (M)": f"{cost['nonzero_parameters'] / 1e6:.3f}",
        "zeros": f"{100 * size.zeros:.1f} %",
        "MACs 10 s (G)": f"{cost['macs_10s'] / 1e9:.3f}",
        "MACs 30 s (G)": f"{cost['macs_30s'] / 1e9:.3f}",
        "file (MB)": f"{cost['file_bytes'] / 1e6:.2f}",
        "packed (MB)": NONE if packed is None else f"{packed / 1e6:.2f}",
        "RTF": f"{size.rtf:.4f}",
        "speed-up": speed_up,
    }


def _score_rows(scores: Mapping[str, Score], names: _Names) -> list[list[str]]:
    rows = [
        [names(name), *(str(value) for value in vars(score).values())]
        for name, score in scores.items()
    ]
    return rows or [["not scored", *[NONE] * (len(SCORE_COLUMNS) - 1)]]


def _character_table(series: Sequence[Series], names: _Names) -> Iterator[str]:
    yield _row(["series", "size", *SCORE_COLUMNS])
    yield _row(["---"] * (len(SCORE_COLUMNS) + 2))
    for one in series:
        for size in one.sizes:
            for score in _score_rows(size.cer, names):
                yield _row([one.name, size.label, *score])
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "|" + "|".join(cells) + "|"


def _loading_notes(asr_exp: Path, family: Sequence[Series]) -> Iterator[str]:
    forms = {size.form for series in family for size in series.sizes}
    if "slim" in forms:
        yield (
            f"A size marked *{FORMS['slim']}* is physically small and loads after "
            "`import espnet_omnisparse.tasks`."
        )
        config = read_config(asr_exp)
        norm = config["encoder_conf"].get("conv_norm", "batch_norm")
        if config.get("decoder") == "transducer":
            yield (
                "No size of this family loads without it: ESPnet's own transducer "
                "needs warprnnt_pytorch."
            )
        elif norm == "layer_norm":
            yield (
                "No size of this family loads without it: the Conv modules have "
                "LayerNorm, which ESPnet's Conformer has not."
            )
        else:
            yield "`--stock true` writes it in a form that ESPnet alone loads, too."
    if "stock-zeroed" in forms:
        yield (
            f"A size marked *{FORMS['stock-zeroed']}* has the full net's shape, with "
            "the dropped branches zero: it costs as much as the full net."
        )
    yield ""


def _commands(asr_exp: Path, command: str, series: Sequence[Series]) -> Iterator[str]:
    yield f"# this report\n{command}"
    trained = set()
    for one in series:
        for size in one.sizes:
            origin = read_yaml(size.folder / "origin.yaml")
            source = Path(origin["supernet"])
            if source not in trained:
                yield from _asr_sh_command(f"training {source}", source / "run.sh")
                trained.add(source)
            yield f"# {one.name}, {size.label}: extraction"
            yield _extraction_command(size, origin, asr_exp)
            for tag in sorted({name.split("/")[0] for name in size.wer}):
                script = size.folder / tag / "run.sh"
                yield from _asr_sh_command("decoding and scoring", script)


def _extraction_command(
    size: SizeResult, origin: Mapping[str, Any], asr_exp: Path
) -> str:
    source = Path(origin["supernet"])
    command = (
        f"omnisparse extract {source} --checkpoint {origin['checkpoint']} "
        f"--sizes {size.size} --calibration {origin['calibration']}"
    )
    if size.folder.name.endswith("_stock"):
        command += " --stock"
    spec = SubnetSpec.load(size.folder / SPEC)
    if read_specs(source / SUBNETS).get(size.size) == spec:
        return command
    if read_specs(asr_exp / SUBNETS).get(size.size) == spec:
        return f"{command} --subnets {asr_exp / SUBNETS}"
    return f"{command}  # with the spec in {size.folder / SPEC}"


def _asr_sh_command(title: str, script: Path) -> Iterator[str]:
    if script.is_file():  # asr.sh leaves its command line there
        command = script.read_text(encoding="utf-8").strip()
        yield f"# {title}\n{command.removesuffix('"$@"; exit $?').strip()}"


def _millions(size: SizeResult) -> float:
    return size.cost["parameters"] / 1e6


def _nonzero_millions(size: SizeResult) -> float:
    return size.cost["nonzero_parameters"] / 1e6


def _rtf(size: SizeResult) -> float:
    return size.rtf


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        # no version in the file: the same figure is the same bytes
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
