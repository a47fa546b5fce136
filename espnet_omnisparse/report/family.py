"""The report on a family: RESULTS.md and three plots, generated and never typed.

Everything comes from what lies on disk; only the real-time factors are measured here,
of all models in turn in one process, and kept in `rtf.json` until a model changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_omnisparse.core.spec_yaml import read_spec
from espnet_omnisparse.cost.count import paired_ratio
from espnet_omnisparse.cost.metrics import METRICS
from espnet_omnisparse.environment import require_folders
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import SPEC, read_config
from espnet_omnisparse.extract.forms import FORMS
from espnet_omnisparse.files import write_text
from espnet_omnisparse.report.diagnosis import diagnosis_figure
from espnet_omnisparse.report.gains import gain_table
from espnet_omnisparse.report.plots import save_figure, selection_figure, wer_figure
from espnet_omnisparse.report.provenance import commands
from espnet_omnisparse.report.results import (
    BASELINES,
    INDIVIDUAL,
    REPAIRED_SIZES,
    Series,
    SizeResult,
    read_baselines,
    read_family,
    read_size,
    with_rtf,
)
from espnet_omnisparse.report.scores import Score
from espnet_omnisparse.report.tables import Table
from espnet_omnisparse.report.timing import Timing, time_models
from espnet_omnisparse.train.journal import read_log

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
- **packed**: the model's tensors in millions of bytes, if the weights of the blocks and
  of an attention decoder's layers are stored by their non-zero groups of the masks'
  pattern: the values (4 bytes each), a 16-bit column per group, and where each row of
  groups begins (32 bits); where that is no gain, and for all else, 4 bytes per value.
"""
_METRICS = "params encoder nonzero macs_10s macs_30s file bytes rtf".split()
_HEADINGS = {name: METRICS[name].heading for name in _METRICS}
SIZE_COLUMNS = (
    *("size", "kept"),
    *(heading for name, heading in _HEADINGS.items() if name != "bytes"),
    "speed-up",
)
SCORE_COLUMNS = "dataset Snt Wrd Corr Sub Del Ins Err S.Err".split()
# of reports in which a size has masked weights; each behind the column it refines
SPARSE_COLUMNS = {
    _HEADINGS["nonzero"]: "zeros",
    _HEADINGS["file"]: _HEADINGS["bytes"],
}
SUMMARY_COLUMNS = (
    *("size", "kept", _HEADINGS["params"], "zeros"),
    *(_HEADINGS[name] for name in ("bytes", "file", "rtf")),
    *("speed-up", "dataset", "Err", "loads in stock ESPnet"),
)
NONE = "–"
PLOTS = ("wer_vs_parameters.png", "wer_vs_rtf.png", "selection.png")
SPARSE_PLOT = "wer_vs_nonzero.png"
DIAGNOSIS_PLOT = "masks_and_gradients.png"


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        path: Its RESULTS.md.
        tables: Heading -> the table under it, of the tables of sizes.
        plots: Their files.
    """

    path: Path
    tables: Mapping[str, Table]
    plots: Sequence[Path]

    def summary(self) -> str:
        """The tables, narrow enough for a terminal, and where everything is."""
        found = [
            f"{heading}\n{table.text(SUMMARY_COLUMNS)}"
            for heading, table in self.tables.items()
        ]
        places = ["Report and plots:", str(self.path), *map(str, self.plots)]
        return "\n\n".join([*found, "\n".join(places)])


def write_family(
    asr_exp: Path,
    command: str,
    baselines: Sequence[tuple[str, Path]] = (),
    rtf_rounds: int = 15,
) -> Report:
    """Writes the report on a supernet and its extracted, scored sizes.

    Args:
        asr_exp: The supernet's experiment folder.
        command: The command to name as the one that made the report.
        baselines: Label and folder of sizes to compare with, the label as `size` or
            as `series, size`; empty: those that `asr_exp/baselines.yaml` names, if it
            is there.
        rtf_rounds: Rounds of the timing.

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
    timing = time_models(folders, asr_exp / "rtf.json", rtf_rounds)
    medians = timing.medians
    family = tuple(with_rtf(series, medians) for series in family)
    others = tuple(with_rtf(series, medians) for series in others)

    # in stock form a size recognises the same words: one curve tells of both
    repaired = [series for series in family if series.name == REPAIRED_SIZES]
    curves = (family[0], *repaired, *others)
    specs = [read_spec(size.folder / SPEC) for size in family[0].sizes]
    log = read_log(asr_exp)
    names = _Names([*family, *others])
    figures = {
        PLOTS[0]: wer_figure(curves, names, METRICS["params"]),
        PLOTS[1]: wer_figure(curves, names, METRICS["rtf"]),
        PLOTS[2]: selection_figure(specs, log),
    }
    if any(series.sparse for series in curves):
        figures[SPARSE_PLOT] = wer_figure(curves, names, METRICS["nonzero"])
    if diagnosis := diagnosis_figure(log):
        figures[DIAGNOSIS_PLOT] = diagnosis
    for name, figure in figures.items():
        save_figure(figure, asr_exp / "images" / name)
    tables = _size_tables(family, others, names, timing)
    lines = _markdown(asr_exp, command, family, others, timing, tables, [*figures])
    path = asr_exp / "RESULTS.md"
    write_text(path, "\n".join(lines))
    return Report(path, tables, [asr_exp / "images" / name for name in figures])


def _given(baselines: Sequence[tuple[str, Path]]) -> tuple[Series, ...]:
    """The series of `series, size` labels."""
    series: dict[str, list[SizeResult]] = {}
    for label, folder in baselines:
        name, _, size = label.rpartition(", ")
        series.setdefault(name or INDIVIDUAL, []).append(read_size(folder, size))
    return tuple(Series.of(name, sizes) for name, sizes in series.items())


def _markdown(
    asr_exp: Path,
    command: str,
    family: Sequence[Series],
    baselines: Sequence[Series],
    timing: Timing,
    tables: Mapping[str, Table],
    plots: Sequence[str],
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
    for number, (heading, table) in enumerate(tables.items()):
        if number == len(family):
            yield from _loading_notes(asr_exp, family)
        yield f"## {heading}\n"
        yield from (*table.markdown(), "")
    yield from _decoder_note([*family, *baselines])
    yield from _repair_note(family)
    if not baselines:
        yield from _loading_notes(asr_exp, family)
    yield "## Characters\n"
    yield from (*_character_table([*family, *baselines], names).markdown(), "")
    gains = gain_table(family)
    if gains is not None:
        yield "## What search and repair gain\n"
        yield (
            "Difference of the word error rates in points, below 0: better, with its "
            "95 % interval by bootstrap over utterances, which are the same for both.\n"
        )
        yield from (*gains.markdown(), "")
    yield "## Plots\n"
    for name in plots:
        yield f"![{name.removesuffix('.png').replace('_', ' ')}](images/{name})"
    yield "\n## What the columns mean\n"
    more = SPARSE_DEFINITIONS if sparse else ""
    yield DEFINITIONS.format(rounds=timing.rounds, sparse=more)
    yield "## Commands\n"
    yield "```sh"
    yield from commands(asr_exp, command, [*family, *baselines])
    yield "```\n"


class _Names:
    """Data sets without the inference tag, where all results share one."""

    def __init__(self, series: Sequence[Series]):
        sizes = [size for one in series for size in one.sizes]
        self.tags = {name.split("/")[0] for s in sizes for name in (*s.wer, *s.cer)}

    def __call__(self, dataset: str) -> str:
        return dataset.split("/", 1)[1] if len(self.tags) == 1 else dataset


def _size_tables(
    family: Sequence[Series],
    baselines: Sequence[Series],
    names: _Names,
    timing: Timing,
) -> dict[str, Table]:
    """Heading -> table of sizes, the family's and then the baselines'."""
    everything = [*family, *baselines]
    sparse = any(series.sparse for series in everything)
    kinds = ["Sizes"] * len(family) + ["Baseline"] * len(baselines)
    return {
        f"{kind}: {series.name}": _size_table(series, names, timing, sparse)
        for kind, series in zip(kinds, everything, strict=True)
    }


def _size_table(series: Series, names: _Names, timing: Timing, sparse: bool) -> Table:
    columns = []
    for name in SIZE_COLUMNS:
        more = SPARSE_COLUMNS.get(name) if sparse else None
        columns += [name, more] if more else [name]
    table = Table([*columns, *SCORE_COLUMNS, "loads in stock ESPnet"])
    larger = [*series.sizes[1:], None]
    for size, next_larger in zip(series.sizes, larger, strict=True):
        cells = _cost_cells(size, next_larger, timing)
        costs = [cells[name] for name in columns]
        for score in _score_rows(size.wer, names):
            table.rows.append([*costs, *score, FORMS.get(size.form, size.form)])
    return table


def _cost_cells(
    size: SizeResult, larger: SizeResult | None, timing: Timing
) -> dict[str, str]:
    """Column -> what is in it, of all columns that there may be."""
    speed_up = NONE
    if larger:
        ratio = paired_ratio(timing.rtf, str(larger.folder), str(size.folder))
        speed_up = f"{ratio:.2f}x"
    shown = {}
    for metric in map(METRICS.get, _METRICS):
        cost = size.value(metric)
        shown[metric.heading] = NONE if cost is None else metric.shown(cost)
    return {
        **shown,
        "size": size.label,
        "kept": f"{size.kept} of {size.of}",
        "zeros": f"{100 * size.zeros:.1f} %",
        "speed-up": speed_up,
    }


def _score_rows(scores: Mapping[str, Score], names: _Names) -> list[list[str]]:
    rows = [
        [names(name), *(str(value) for value in vars(score).values())]
        for name, score in scores.items()
    ]
    return rows or [["not scored", *[NONE] * (len(SCORE_COLUMNS) - 1)]]


def _character_table(series: Sequence[Series], names: _Names) -> Table:
    table = Table(["series", "size", *SCORE_COLUMNS])
    for one in series:
        for size in one.sizes:
            for score in _score_rows(size.cer, names):
                table.rows.append([one.name, size.label, *score])
    return table


def _decoder_note(series: Sequence[Series]) -> Iterator[str]:
    """Which sizes have less of the attention decoder than the full net."""
    fewer = {s.label: s.decoder for one in series for s in one.sizes if s.decoder}
    if not fewer:
        return
    kept = ", ".join(f"{label} {decoder}" for label, decoder in fewer.items())
    yield (
        "Layers of the attention decoder, where not all are kept: "
        f"{kept}. A size with none is decoded by CTC alone; MACs and RTF, which end at "
        "CTC, are without the decoder for all sizes.\n"
    )


def _repair_note(family: Sequence[Series]) -> Iterator[str]:
    """What repairs have cost, beside the supernet's training."""
    repaired = [s for one in family for s in one.sizes if s.repair_updates]
    if not repaired:
        return
    costs = ", ".join(
        f"{size.label} {size.repair_updates} updates ({size.repair_seconds:.0f} s)"
        for size in repaired
    )
    updates = sum(size.repair_updates for size in repaired)
    seconds = sum(size.repair_seconds for size in repaired)
    yield (
        "Sizes repaired were trained on by themselves after the supernet, their zeros "
        f"kept: {costs}; in total {updates} updates, {seconds:.0f} s, which come on "
        "top of its training.\n"
    )


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
