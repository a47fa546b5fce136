"""The metrics of cost: what each is called, shown in, and limited by, told once.

`cost.count` defines what they count. Tables, plots, messages, sizes and budgets all
read this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

#: What a letter behind a number multiplies it by.
SCALES: Mapping[str, float] = MappingProxyType({"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9})


@dataclass(frozen=True)
class Metric:
    """One metric of cost.

    Attributes:
        name: In budgets, such as `params=15M`.
        heading: Of a table's column, with the unit shown.
        scale: What that unit is.
        decimals: So many are shown of it.
        words: A cost in a sentence.
        label: Of a plot's axis; empty: the heading.
        field: In the `cost.json` of a size; empty: it is not in there.
        steps: Integer steps per unit of cost in a table of costs (`cost.size`).
        digit: Steps that the last digit of `words` stands for.
        suffix: A budget's unit behind its number, such as the `B` of `8MB`.
        scales: The letters that may stand before it; empty: a budget needs the name,
            as in `params=15M`.
    """

    name: str
    heading: str
    scale: float
    decimals: int = 3
    words: str = "{}"
    label: str = ""
    field: str = ""
    steps: int = 1
    digit: int = 1
    suffix: str = ""
    scales: tuple[str, ...] = ()

    @property
    def axis(self) -> str:
        """What a plot's axis is called."""
        return self.label or self.heading

    def shown(self, cost: float, decimals: int | None = None) -> str:
        """A cost in the unit of the heading.

        Args:
            cost: In the metric's own unit.
            decimals: How many are shown; `None`: the metric's.

        >>> METRICS["macs_10s"].shown(1_234_567_890)
        '1.235'
        """
        digits = self.decimals if decimals is None else decimals
        return f"{cost / self.scale:.{digits}f}"

    def text(self, cost: float) -> str:
        """A cost in words.

        >>> METRICS["params"].text(15e6)
        '15,000,000 parameters'
        """
        return self.words.format(cost)


_COUNTED = ("k", "M", "G")
#: In the order of the columns of tables.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("units", "units", 1.0, 0, "{:.0f} units"),
            Metric("sparsity", "kept weights (%)", 1e-2, suffix="%", scales=("",)),
            Metric(
                *("params", "params (M)", 1e6, 3, "{:,.0f} parameters"),
                label="parameters (M)",
                field="parameters",
            ),
            Metric("encoder", "encoder (M)", 1e6, field="encoder_parameters"),
            Metric(
                *("nonzero", "non-zero (M)", 1e6, 3, "{:,.0f} non-zero parameters"),
                label="non-zero parameters (M)",
                field="nonzero_parameters",
                scales=_COUNTED,
            ),
            Metric(
                *("macs_10s", "MACs 10 s (G)", 1e9, 3, "{:,.0f} MACs for 10 s"),
                field="macs_10s",
                suffix="MAC",
                scales=_COUNTED,
            ),
            Metric("macs_30s", "MACs 30 s (G)", 1e9, field="macs_30s"),
            Metric(
                *("bytes", "packed (MB)", 1e6, 2, "{:,.0f} packed bytes"),
                field="packed_bytes",
                suffix="B",
                scales=_COUNTED,
            ),
            Metric("file", "file (MB)", 1e6, 2, field="file_bytes"),
            Metric(
                *("latency_ms", "latency (ms)", 1.0, 3, "{:.2f} ms for 10 s of audio"),
                steps=1_000_000,
                digit=10_000,
                suffix="ms",
                scales=("",),
            ),
            Metric("rtf", "RTF", 1.0, 4, label="real-time factor", field="rtf"),
        )
    }
)
UNITS = "units"
ZEROS = "sparsity"  # the kept share of the maskable weights: zeros are what is not
NONZERO = "nonzero"
BYTES = "bytes"
MEASURED = "latency_ms"  # the metric that takes time, and is another one every time
#: The metrics that sizes of the layer axis are limited by.
OF_SIZES = (UNITS, "params", NONZERO, BYTES, "macs_10s", MEASURED)
#: The metrics that a search has budgets of.
OF_BUDGETS = (ZEROS, NONZERO, "params", BYTES, "macs_10s", MEASURED)
