"""What a comparison file says, and the results recorded for it so far."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from espnet_omnisparse.errors import UserError, check_keys
from espnet_omnisparse.files import read_yaml


@dataclass(frozen=True)
class Variant:
    """One training, or sizes cut out of another's.

    Attributes:
        asr_config: Its configuration file.
        sizes: The sizes it gives, as the recipe names them.
        asr_args: Further arguments of the training.
        run_args: Further arguments of the recipe; `{seed}` stands for the seed.
        of: The variant whose training the sizes are cut out of; empty: it is trained.
        command: What trains it instead of the recipe's stage 11, and goes on where it
            was interrupted. `{exp}` stands for the folder of the training, `{of}` for
            that of the variant `of`, which it begins from, `{seed}` for the seed.
        after: Other variants whose results it reads, such as their subnets.
        decoding: ESPnet's inference tag, the folder of the scores, where sizes are
            decoded in several ways.
        title: What the table calls it; empty: its name. In a figure variants of one
            title are one line.
    """

    asr_config: str
    sizes: tuple[str, ...]
    asr_args: str = ""
    run_args: str = ""
    of: str = ""
    command: str = ""
    after: tuple[str, ...] = ()
    decoding: str = ""
    title: str = ""


@dataclass(frozen=True)
class Comparison:
    """What a comparison file says.

    Attributes:
        title: Heading of the table: corpus, split, hours, hardware.
        recipe: The run script; its stages 1-10 must have run.
        expdir: Its experiment folder.
        test_set: The set that is compared.
        results: JSON lines, appended to.
        table: Markdown file with markers, between which the table is rewritten.
        variants: Name -> training.
        reference: Size -> the variant trained for that size alone.
        figure: Plot of WER against non-zero parameters; empty: none.
        columns: Of a table with a row per title: heading -> the sizes, the variants
            of one size, or `variant/size`, that stand under it; empty: no such table.
        against: The title whose WER the others' are relative to in that table.
    """

    title: str
    recipe: str
    expdir: str
    test_set: str
    results: str
    table: str
    variants: Mapping[str, Variant]
    reference: Mapping[str, str] = field(default_factory=dict)
    figure: str = ""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    against: str = ""

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
            UserError: If a key is missing or unknown.
        """
        values = _checked(f"{path}", read_yaml(path), cls)
        variants = values["variants"]
        if not isinstance(variants, Mapping):
            raise UserError(
                f"{path}: variants must be trainings by their names, not {variants!r}."
            )
        values["variants"] = {}
        for name, one in variants.items():
            given = _checked(f"{path}: variants.{name}", one, Variant)
            tuples = {key: tuple(given.get(key) or ()) for key in ("sizes", "after")}
            values["variants"][name] = Variant(**given | tuples)
        comparison = cls(**values)
        comparison._check_order(path)
        return comparison

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


def _checked(where: str, given: Any, kind: type) -> dict[str, Any]:
    """The options of a section, none of which is unknown or lacking.

    Args:
        where: What messages call the section.
        given: It.
        kind: The dataclass that it becomes.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{where} must be options with their values, not {given!r}.")
    check_keys(where, given, [one.name for one in fields(kind)])
    for one in fields(kind):
        needed = one.default is MISSING and one.default_factory is MISSING
        if needed and one.name not in given:
            raise UserError(f"{where} has no {one.name}: add it.")
    return dict(given)


def read_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """All results so far."""
    path = Path(comparison.results)
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


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
