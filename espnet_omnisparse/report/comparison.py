"""What a comparison file says, and the results recorded for it so far."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_json_lines, read_yaml
from espnet_omnisparse.options import Section, option

_NAMES = "a list of names"


class Variant(Section):
    """One training, or sizes cut out of another's."""

    name: ClassVar[str] = "variants"

    asr_config: str = option(..., "its configuration file")
    sizes: tuple[str, ...] = option(
        ..., "the sizes it gives, as the recipe names them", _NAMES
    )
    asr_args: str = option("", "further arguments of the training")
    run_args: str = option(
        "", "further arguments of the recipe; `{seed}` stands for the seed"
    )
    of: str = option(
        "",
        "the variant whose training the sizes are cut out of; empty: it is trained",
    )
    command: str = option(
        "",
        "what trains it instead of the recipe's stage 11, and goes on where it was "
        "interrupted. `{exp}` stands for the folder of the training, `{of}` for that "
        "of the variant `of`, which it begins from, `{seed}` for the seed",
    )
    after: tuple[str, ...] = option(
        (), "other variants whose results it reads, such as their subnets", _NAMES
    )
    decoding: str = option(
        "",
        "ESPnet's inference tag, the folder of the scores, where sizes are decoded in "
        "several ways",
    )
    title: str = option(
        "",
        "what the table calls it; by default its name. In a figure variants of one "
        "title are one line",
    )


class Comparison(Section):
    """What a comparison file says."""

    name: ClassVar[str] = "comparison"

    title: str = option(..., "heading of the table: corpus, split, hours, hardware")
    recipe: str = option(..., "the run script; its stages 1-10 must have run")
    expdir: str = option(..., "its experiment folder")
    test_set: str = option(..., "the set that is compared")
    results: str = option(..., "JSON lines, appended to")
    table: str = option(
        ..., "Markdown file with markers, between which the table is rewritten"
    )
    variants: dict[str, Variant] = option(
        ..., "name -> training, below", "trainings by their names"
    )
    reference: dict[str, str] = option(
        {},
        "size -> the variant that was trained for that size alone",
        "sizes, each with the name of a variant",
    )
    figure: str = option("", "plot of WER against non-zero parameters; empty: none")
    columns: dict[str, tuple[str, ...]] = option(
        {},
        "of a table with a row per title: heading -> the sizes, the variants of one "
        "size, or `variant/size`, that stand under it; empty: no such table",
        "headings, each with a list of names",
    )
    against: str = option(
        "", "the title whose WER the others' are relative to in that table"
    )

    pairs: tuple[tuple[str, str], ...] = option(
        (),
        "pairs of titles whose difference under each heading stands below that table, "
        "in points, with its interval: `[[one, other]]`",
        "a list of pairs of titles",
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _read_columns(cls, value: Any) -> Any:
        # YAML reads a heading of digits as a number
        if not isinstance(value, Mapping):
            return value
        return {str(heading): sizes for heading, sizes in value.items()}

    def titles(self) -> dict[str, list[str]]:
        """Title -> the variants that have it."""
        found: dict[str, list[str]] = {}
        for name, variant in self.variants.items():
            found.setdefault(variant.title or name, []).append(name)
        return found

    def under(self, title: str, heading: str) -> list[tuple[str, str]]:
        """The sizes of a title's variants that stand under a heading.

        Args:
            title: The title.
            heading: One of `columns`.

        Returns:
            Variants, each with the size.
        """
        wanted = {*self.columns[heading]}
        return [
            (name, size)
            for name in self.titles().get(title, ())
            for size in self.variants[name].sizes
            if wanted & {name, size, f"{name}/{size}"}
        ]

    def experiment(self, name: str, seed: int) -> Path:
        """The folder of a variant's training.

        Args:
            name: The variant's name.
            seed: Of the training.
        """
        return Path(self.expdir) / f"asr_{self.training(name)}_seed{seed}"

    def training(self, name: str) -> str:
        """The variant whose training gives the sizes of this one.

        Args:
            name: The variant's name.
        """
        variant = self.variants[name]
        return name if variant.command or not variant.of else variant.of

    @classmethod
    def load(cls, path: Path) -> "Comparison":
        """Reads a comparison file.

        Raises:
            UserError: If a key is missing or unknown, or a name is that of nothing.
        """
        values = read_yaml(path)
        variants = values.get("variants") if isinstance(values, Mapping) else None
        if isinstance(variants, Mapping):
            read = {
                name: Variant.read(one, f"{path}: variants.{name}")
                for name, one in variants.items()
            }
            values = {**values, "variants": read}
        comparison = cls.read(values, f"{path}")
        comparison._check_names(path)
        comparison._check_order(path)
        return comparison

    def _check_names(self, path: Path) -> None:
        sizes = {size for one in self.variants.values() for size in one.sizes}
        cells = {
            f"{name}/{size}"
            for name, one in self.variants.items()
            for size in one.sizes
        }
        under = [name for names in self.columns.values() for name in names]
        titles = [
            *filter(None, [self.against]),
            *(x for pair in self.pairs for x in pair),
        ]
        for key, given, known, kind in (
            ("columns", under, {*self.variants, *sizes, *cells}, "variant or size"),
            ("against and pairs", titles, self.titles(), "title"),
            ("reference", self.reference.values(), self.variants, "variant"),
        ):
            for name in given:
                if name not in known:
                    raise UserError(f"{path}: {key}: there is no {kind} called {name}.")
        for title, heading in product(self.titles(), self.columns):
            found = [f"{name}/{size}" for name, size in self.under(title, heading)]
            if len(found) > 1:
                raise UserError(
                    f"{path}: columns: {' and '.join(found)} of {title} stand under "
                    f"{heading}: give each a title or a heading of its own."
                )

    def _check_order(self, path: Path) -> None:
        for name, variant in self.variants.items():
            for other in (variant.of, *variant.after):
                if other and other not in self.variants:
                    raise UserError(
                        f"{path}: {name} needs {other}, which is not one of "
                        f"{', '.join(self.variants)}."
                    )
        try:
            in_order(self, [(name, 0) for name in self.variants])
        except CycleError as error:
            names = ", ".join(name for name, _ in error.args[1])
            raise UserError(
                f"{path}: some variants wait for each other ({names}): correct their "
                "of and after."
            ) from error


def read_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """All results so far.

    Raises:
        UserError: If a line of the file is garbled.
    """
    return read_json_lines(comparison.results)


def in_order(
    comparison: Comparison, runs: Sequence[tuple[str, int]]
) -> TopologicalSorter[tuple[str, int]]:
    """Runs, variants with seeds, by what each must wait for.

    It waits for those whose results it reads, and those of one training for each
    other: they write into its folder.

    Args:
        comparison: What is compared.
        runs: Variants with seeds.

    Raises:
        CycleError: If some wait for each other.
    """
    needed = {}
    for name, seed in runs:
        variant = comparison.variants[name]
        others = [(other, seed) for other in (variant.of, *variant.after)]
        needed[name, seed] = [one for one in others if one in runs]
    order = TopologicalSorter(needed)
    last: dict[Path, tuple[str, int]] = {}
    # along an order that fulfils the needs, so that no circle is added to them
    for run in TopologicalSorter(needed).static_order():
        training = comparison.experiment(*run)
        if training in last:
            order.add(run, last[training])
        last[training] = run
    order.prepare()
    return order
