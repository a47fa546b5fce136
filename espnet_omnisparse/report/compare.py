"""A resumable comparison of trainings through the recipe, one JSON line per result.

    omnisparse compare conf/compare/digits.yaml --seeds "1 2" --jobs 2

runs stages 11-13 of the named recipe for every variant and seed that has no line yet,
and rewrites the table from all lines. Interrupt it at any point and run it again.
"""

import json
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from espnet_omnisparse.environment import require_folders, require_png, require_writable
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import append_lines
from espnet_omnisparse.report.compare_tables import write_figure, write_table
from espnet_omnisparse.report.comparison import Comparison, in_order, read_lines
from espnet_omnisparse.report.gains import read_errors
from espnet_omnisparse.report.results import SizeResult, read_size
from espnet_omnisparse.train.journal import read_log


def commands_of(comparison: Comparison, name: str, seed: int) -> list[list[str]]:
    """The commands that train, extract, decode and score one variant.

    Args:
        comparison: What is compared.
        name: The variant's name.
        seed: Of the training.

    Raises:
        UserError: If the comparison says what no command can be made of.
    """
    variant = comparison.variants[name]
    training = comparison.experiment(name, seed)
    commands = []
    if variant.command:
        of = variant.of and comparison.experiment(variant.of, seed)
        where = f"variants.{name}.command"
        commands.append(_words(where, variant.command, exp=training, of=of, seed=seed))
    if variant.sizes:
        stage = "12" if variant.of or variant.command else "11"
        recipe = [
            *(comparison.recipe, "--stage", stage, "--stop_stage", "13"),
            *("--asr_config", variant.asr_config),
            *("--asr_tag", training.name.removeprefix("asr_")),
            *("--asr_args", f"--seed {seed} {variant.asr_args}".strip()),
            *_words(f"variants.{name}.run_args", variant.run_args, seed=seed),
        ]
        commands.append(recipe)
    return commands


def _words(where: str, text: str, **known: Any) -> list[str]:
    """The words of a command, what stands in braces filled in."""
    try:
        return shlex.split(text.format(**known))
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in known)
        raise UserError(
            f"{where} is no command ({error}): close its quotes, and use no braces but "
            f"{names}."
        ) from error


def run_variant(comparison: Comparison, name: str, seed: int) -> list[dict[str, Any]]:
    """Trains one variant with one seed and collects a line per size.

    Args:
        comparison: What is compared.
        name: The variant's name.
        seed: Of the training.

    Raises:
        UserError: If a command fails.
    """
    log = Path(comparison.expdir) / f"asr_{name}_seed{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        for command in commands_of(comparison, name, seed):
            try:
                ended = subprocess.run(command, stdout=output, stderr=output)
            except OSError as error:
                raise UserError(
                    f"{name}: {command[0]} cannot be run ({error.strerror}): correct "
                    "the comparison, or install it."
                ) from error
            if ended.returncode != 0:
                raise UserError(
                    f"{name} with seed {seed} failed: see {log}, then run again."
                )
    return result_lines(comparison, name, seed)


def result_lines(comparison: Comparison, name: str, seed: int) -> list[dict[str, Any]]:
    """What a variant's run has left on disk, a line per size.

    Args:
        comparison: What is compared.
        name: The variant's name.
        seed: Of the training.

    Raises:
        UserError: If a size is not there or has not been scored.
    """
    experiment = comparison.experiment(name, seed)
    commands = commands_of(comparison, name, seed)
    epochs = read_log(experiment)
    # a training by ESPnet alone leaves no such log
    updates = epochs[-1]["update"] if epochs else 0
    lines = []
    for size in comparison.variants[name].sizes:
        result = read_size(Path(f"{experiment}_{size}"))
        scored = _scored(result, comparison, name)
        if scored is None:
            raise UserError(
                f"{result.folder} has no score on {comparison.test_set}: run stages "
                "12-13."
            )
        score, characters = result.wer[scored], result.cer.get(scored)
        utterances = read_errors(result.folder / scored / "score_wer")
        pairs = [utterances[key] for key in sorted(utterances)]
        lines.append(
            {
                "variant": name,
                "seed": seed,
                "size": size,
                "err": score.err,
                "sub": score.sub,
                "del": score.del_,
                "ins": score.ins,
                "cer": None if characters is None else characters.err,
                **result.cost,
                # of all that has made this size
                "updates": updates + result.repair_updates,
                "repair_updates": result.repair_updates,
                "repair_seconds": result.repair_seconds,
                "train_seconds": round(sum(one["train_seconds"] for one in epochs)),
                "command": " && ".join(map(shlex.join, commands)),
                # per utterance, in the order of their names
                "errors": [errors for errors, _ in pairs],
                "words": [words for _, words in pairs],
            }
        )
    return lines


def _scored(size: SizeResult, comparison: Comparison, variant: str) -> str | None:
    """Where a size's errors on the test set are; ESPnet names it after the decoding."""
    decoding = comparison.variants[variant].decoding
    for name in size.wer:
        *_, tag, found = name.split("/")
        if found == comparison.test_set and decoding in ("", tag):
            return name
    return None


def run_all(
    comparison: Comparison,
    seeds: Sequence[int],
    jobs: int,
    only: Sequence[str] = (),
) -> None:
    """Runs what is missing, several at a time, appending results as they come.

    After a failure nothing else is started.

    Args:
        comparison: What is compared.
        seeds: Of the trainings.
        jobs: How many at a time.
        only: Names of the variants to run; empty: all.

    Raises:
        UserError: If a training fails.
    """
    done = {(line["variant"], line["seed"]) for line in read_lines(comparison)}
    missing = [
        (name, seed)
        for seed in dict.fromkeys(seeds)
        for name in dict.fromkeys(only or comparison.variants)
        if (name, seed) not in done
    ]
    path = Path(comparison.results)
    path.parent.mkdir(parents=True, exist_ok=True)

    def work(item: tuple[str, int]) -> None:
        print(f"{item[0]}, seed {item[1]}: started", flush=True)
        lines = run_variant(comparison, *item)
        # one write: an interruption leaves all sizes of a training or none
        append_lines(path, "".join(json.dumps(line) + "\n" for line in lines))
        errors = ", ".join(f"{line['size']} {line['err']} %" for line in lines)
        print(f"{item[0]}, seed {item[1]}: {errors}", flush=True)

    order = in_order(comparison, missing)
    running: dict[Future[None], tuple[str, int]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while order.is_active():
                running |= {pool.submit(work, one): one for one in order.get_ready()}
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    ended.result()
                    order.done(running.pop(ended))
        finally:
            pool.shutdown(cancel_futures=True)


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
        UserError: If the file is wrong, a name in `only` is no variant, or a training
            fails.
    """
    comparison = Comparison.load(path)
    for name in only:
        if name not in comparison.variants:
            raise UserError(
                f"--only: {name} is not one of {', '.join(comparison.variants)}."
            )
    for name in comparison.variants:  # before hours of training
        commands_of(comparison, name, 0)
    require_folders([comparison.expdir])
    require_writable(comparison.results)
    if comparison.figure:
        require_writable(comparison.figure)
        require_png(f"{path}.figure", comparison.figure)
    write_table(comparison, path)  # a missing marker is told before, not after
    try:
        run_all(comparison, seeds, jobs, only)
    finally:
        page = write_table(comparison, path)
        write_figure(comparison)
        print(f"The table is in {page}.")
