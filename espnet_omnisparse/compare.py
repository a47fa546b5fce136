"""A resumable comparison of trainings through the recipe, one JSON line per result.

    omnisparse compare conf/compare/digits.yaml --seeds "1 2" --jobs 2

runs stages 11-13 of the named recipe for every variant and seed that has no line yet,
and rewrites the table from all lines. Interrupt it at any point and run it again.
"""

import json
import shlex
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_yaml, write_text
from espnet_omnisparse.journal import read_log
from espnet_omnisparse.results import Score, SizeResult, read_size


@dataclass(frozen=True)
class Variant:
    """One training.

    Attributes:
        asr_config: Its configuration file.
        sizes: The sizes it gives, as the recipe names them.
        asr_args: Further arguments of the training.
        title: What the table calls it; empty: its name.
    """

    asr_config: str
    sizes: tuple[str, ...]
    asr_args: str = ""
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
    """

    title: str
    recipe: str
    expdir: str
    test_set: str
    results: str
    table: str
    variants: Mapping[str, Variant]
    reference: Mapping[str, str] = field(default_factory=dict)

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


def command_of(comparison: Comparison, name: str, seed: int) -> list[str]:
    """The command that trains, extracts, decodes and scores one variant."""
    variant = comparison.variants[name]
    return [
        *(comparison.recipe, "--stage", "11", "--stop_stage", "13"),
        *("--asr_config", variant.asr_config),
        *("--asr_tag", f"{name}_seed{seed}"),
        *("--asr_args", f"--seed {seed} {variant.asr_args}".strip()),
    ]


def run_variant(comparison: Comparison, name: str, seed: int) -> list[dict[str, Any]]:
    """Trains one variant with one seed and collects a line per size.

    Raises:
        UserError: If the recipe fails.
    """
    experiment = Path(comparison.expdir) / f"asr_{name}_seed{seed}"
    log = Path(f"{experiment}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = command_of(comparison, name, seed)
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=output).returncode
    if status != 0:
        raise UserError(f"{name} with seed {seed} failed: see {log}, then run again.")
    epochs = read_log(experiment)
    lines = []
    for size in comparison.variants[name].sizes:
        result = read_size(Path(f"{experiment}_{size}"))
        score = _score(result, comparison.test_set)
        lines.append(
            {
                "variant": name,
                "seed": seed,
                "size": size,
                "err": score.err,
                "sub": score.sub,
                "del": score.del_,
                "ins": score.ins,
                **result.cost,
                "updates": epochs[-1]["update"],
                "train_seconds": round(sum(one["train_seconds"] for one in epochs)),
                "command": shlex.join(command),
            }
        )
    return lines


def _score(result: SizeResult, test_set: str) -> Score:
    """A size's word errors on one test set; ESPnet names it after the decoding too."""
    for name, score in result.wer.items():
        if name.split("/")[-1] == test_set:
            return score
    raise UserError(f"{result.folder} has no score on {test_set}: run stages 12-13.")


def run_all(
    comparison: Comparison,
    seeds: Sequence[int],
    jobs: int,
    only: Sequence[str] = (),
) -> None:
    """Runs what is missing, several at a time, appending results as they come.

    Raises:
        UserError: If a name in `only` is no variant, or a training fails.
    """
    for name in only:
        if name not in comparison.variants:
            raise UserError(
                f"--only: {name} is not one of {', '.join(comparison.variants)}."
            )
    done = {(line["variant"], line["seed"]) for line in read_lines(comparison)}
    missing = [
        (name, seed)
        for seed in seeds
        for name in only or comparison.variants
        if (name, seed) not in done
    ]
    path = Path(comparison.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock()

    def work(item: tuple[str, int]) -> None:
        print(f"{item[0]}, seed {item[1]}: started", flush=True)
        lines = run_variant(comparison, *item)
        with lock, path.open("a") as results:
            # one write: an interruption leaves all sizes of a training or none
            results.write("".join(json.dumps(line) + "\n" for line in lines))
        errors = ", ".join(f"{line['size']} {line['err']} %" for line in lines)
        print(f"{item[0]}, seed {item[1]}: {errors}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(work, missing):
            pass


def write_table(comparison: Comparison, source: Path) -> Path:
    """Writes the table of all results so far between its markers in a Markdown file.

    The markers are `<!-- begin NAME -->` and `<!-- end NAME -->`, each on a line of
    its own, with the comparison file's name.

    Raises:
        UserError: If the file has no such markers.
    """
    page = Path(comparison.table)
    begin, end = f"<!-- begin {source.name} -->\n", f"<!-- end {source.name} -->\n"
    text = page.read_text() if page.exists() else ""
    if begin not in text or end not in text:
        raise UserError(f"{page} needs the lines {begin.strip()} and {end.strip()}.")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    table = "".join(f"{line}\n" for line in _table(comparison, source))
    write_text(page, before + begin + table + end + after)
    return page


def _table(comparison: Comparison, source: Path) -> Iterator[str]:
    lines = read_lines(comparison)
    yield f"**{comparison.title}.** WER on `{comparison.test_set}` in per cent."
    yield ""
    yield (
        "| training | size | parameters (M) | MACs 10 s (G) | file (MB) | updates | "
        "training (min) | WER per seed | mean WER | spread | difference to individual |"
    )
    yield "|---" * 11 + "|"
    for name, variant in comparison.variants.items():
        for size in variant.sizes:
            group = [x for x in lines if (x["variant"], x["size"]) == (name, size)]
            group.sort(key=lambda line: line["seed"])
            if group:
                yield _row(comparison, lines, name, size, group)
    seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
    yield ""
    yield (
        f"Seeds: {seeds}. Training time is that of a whole training, which gives all "
        f"sizes of a supernet at once. Made by `omnisparse compare {source}`; every "
        f"result with its command: [{comparison.results}]({comparison.results})."
    )
    yield ""
    yield "<details><summary>Commands, with the seeds that ran</summary>"
    yield ""
    yield "```sh"
    for name in comparison.variants:
        seen = {x["command"]: x["seed"] for x in lines if x["variant"] == name}
        for command, seed in sorted(seen.items(), key=lambda item: item[1]):
            yield f"{command}  # seed {seed}"
    yield "```"
    yield ""
    yield "</details>"


def _row(
    comparison: Comparison,
    lines: Sequence[Mapping[str, Any]],
    name: str,
    size: str,
    group: Sequence[Mapping[str, Any]],
) -> str:
    errors = [line["err"] for line in group]
    mean = statistics.mean(errors)
    difference = ""
    reference = comparison.reference.get(size)
    if reference and name not in comparison.reference.values():
        theirs = {x["seed"]: x["err"] for x in lines if x["variant"] == reference}
        pairs = [x["err"] - theirs[x["seed"]] for x in group if x["seed"] in theirs]
        difference = f"{statistics.mean(pairs):+.1f}" if pairs else ""
    # null where a training was suspended, so that its time means nothing
    times = [line["train_seconds"] for line in group if line["train_seconds"]]
    cells = [
        comparison.variants[name].title or name,
        size,
        f"{group[0]['parameters'] / 1e6:.3f}",
        f"{group[0]['macs_10s'] / 1e9:.3f}",
        f"{group[0]['file_bytes'] / 1e6:.2f}",
        str(group[0]["updates"]),
        f"{statistics.mean(times) / 60:.1f}" if times else "",
        " / ".join(f"{error:.1f}" for error in errors),
        f"{mean:.1f}",
        f"{max(errors) - min(errors):.1f}" if len(errors) > 1 else "",
        difference,
    ]
    return "| " + " | ".join(cells) + " |"


def compare(
    path: Path, seeds: Sequence[int], jobs: int, only: Sequence[str] = ()
) -> None:
    """Runs a comparison file and prints where its table is.

    Args:
        path: The file.
        seeds: Of the trainings.
        jobs: Trainings at a time.
        only: Names of the variants to run; empty: all.

    Raises:
        UserError: If the file is wrong or a training fails.
    """
    comparison = Comparison.load(path)
    write_table(comparison, path)  # a missing marker is told before, not after
    try:
        run_all(comparison, seeds, jobs, only)
    finally:
        page = write_table(comparison, path)
        print(f"The table is in {page}.")
