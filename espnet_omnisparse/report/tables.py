"""One table, as Markdown for a page and as text for a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Table:
    """Rows of cells under a heading.

    Attributes:
        columns: The heading.
        rows: Of as many cells each.

    >>> for line in Table(["size", "WER"], [["small", "2.5"]]).markdown():
    ...     print(line)
    | size | WER |
    |---|---|
    | small | 2.5 |
    """

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> Iterator[str]:
        """The lines of a Markdown table."""
        yield _row(self.columns)
        yield "|---" * len(self.columns) + "|"
        yield from map(_row, self.rows)

    def text(self, only: Sequence[str] = ()) -> str:
        """Aligned columns, the first to the left and the others to the right.

        Args:
            only: The columns to show, where the table has them; empty: all.
        """
        chosen = [n for n in only or self.columns if n in self.columns]
        places = [list(self.columns).index(name) for name in chosen]
        lines = [[row[place] for place in places] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
            ).rstrip()
            for row in lines
        )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
