"""The tables of `docs/options.md`, generated from the options' own declarations.

    python3 -m espnet_omnisparse.report.options_page docs/options.md

rewrites what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.files import write_text
from espnet_omnisparse.options import Section
from espnet_omnisparse.report.comparison import Comparison, Variant
from espnet_omnisparse.selection import Selection, build_selection
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.sparsity import SparsityConfig


def sections() -> dict[str, type[Section]]:
    """Name of a table on the page -> the section that it is of."""
    build_selection("none", SearchSpace(1), {}, None)  # registers all methods
    methods = {
        f"method_conf of {name}": method.options()
        for name, method in sorted(Selection.registry.items())
        if method.__module__.startswith("espnet_omnisparse.")
    }
    return {
        "supernet": SupernetConfig,
        "supernet.sparsity": SparsityConfig,
        **{name: one for name, one in methods.items() if one.model_fields},
        "comparison": Comparison,
        "variants": Variant,
    }


def with_tables(page: str) -> str:
    """The page with its tables made anew.

    Args:
        page: Its Markdown text.

    Raises:
        UserError: If it lacks the markers of a table.
    """
    for name, section in sections().items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise UserError(f"The page needs {begin.strip()} and {end.strip()} once.")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        table = "".join(f"{line}\n" for line in section.as_table())
        page = before + begin + table + end + after
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with one_sentence():
        if len(argv) != 1:
            raise UserError("Give the page to rewrite: docs/options.md.")
        page = Path(argv[0])
        write_text(page, with_tables(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
