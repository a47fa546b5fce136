"""What a comparison file says, and the results recorded for it so far."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_omnisparse.errors import UserError
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
        """The folder of a variant's training."""
        return Path(self.expdir) / f"asr_{self.variants[name].of or name}_seed{seed}"

    @classmethod
    def load(cls, path: Path) -> "Comparison":
        """Reads a comparison file.

        Raises:
            UserError: If a key is missing or unknown.
        """
        values = dict(read_yaml(path))
        try:
            values["variants"] = {
                name: Variant(**{**one, "sizes": tuple(one["sizes"])})
                for name, one in values["variants"].items()
            }
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise UserError(f"{path} is not a comparison: {error}.") from error


def read_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """All results so far."""
    path = Path(comparison.results)
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
