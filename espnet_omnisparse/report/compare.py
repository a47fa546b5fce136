"""A resumable comparison of trainings through the recipe, one JSON line per result.

    omnisparse compare conf/compare/digits.yaml --seeds "1 2" --jobs 2

runs stages 11-13 of the named recipe for every variant and seed that has no line yet,
and rewrites the table from all lines. Interrupt it at any point and run it again.
"""

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Any

from espnet_omnisparse.environment import require_folders, require_writable
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.report.compare_tables import write_figure, write_table
from espnet_omnisparse.report.comparison import Comparison, in_order, read_lines
from espnet_omnisparse.report.results import Score, read_size
from espnet_omnisparse.train.journal import read_log


def command_of(comparison: Comparison, name: str, seed: int) -> list[str]:
    """The command that trains, extracts, decodes and scores one variant.

    Args:
        comparison: What is compared.
        name: The variant's name.
        seed: Of the training.
    """
    variant = comparison.variants[name]
    stage = "12" if variant.of else "11"
    return [
        *(comparison.recipe, "--stage", stage, "--stop_stage", "13"),
        *("--asr_config", variant.asr_config),
        *("--asr_tag", f"{variant.of or name}_seed{seed}"),
        *("--asr_args", f"--seed {seed} {variant.asr_args}".strip()),
        *shlex.split(variant.run_args.format(seed=seed)),
    ]


def run_variant(comparison: Comparison, name: str, seed: int) -> list[dict[str, Any]]:
    """Trains one variant with one seed and collects a line per size.

    Args:
        comparison: What is compared.
        name: The variant's name.
        seed: Of the training.

    Raises:
        UserError: If the recipe fails.
    """
    log = Path(comparison.expdir) / f"asr_{name}_seed{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = command_of(comparison, name, seed)
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=output).returncode
    if status != 0:
        raise UserError(f"{name} with seed {seed} failed: see {log}, then run again.")
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
    command = command_of(comparison, name, seed)
    epochs = read_log(experiment)
    lines = []
    for size in comparison.variants[name].sizes:
        result = read_size(Path(f"{experiment}_{size}"))
        score = _score(result.wer, comparison, name)
        if score is None:
            raise UserError(
                f"{result.folder} has no score on {comparison.test_set}: run stages "
                "12-13."
            )
        characters = _score(result.cer, comparison, name)
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
                "updates": epochs[-1]["update"] + result.repair_updates,
                "repair_updates": result.repair_updates,
                "repair_seconds": result.repair_seconds,
                "train_seconds": round(sum(one["train_seconds"] for one in epochs)),
                "command": shlex.join(command),
            }
        )
    return lines


def _score(
    scores: Mapping[str, Score], comparison: Comparison, variant: str
) -> Score | None:
    """A size's errors on the test set; ESPnet names it after the decoding too."""
    decoding = comparison.variants[variant].decoding
    for name, score in scores.items():
        *_, tag, found = name.split("/")
        if found == comparison.test_set and decoding in ("", tag):
            return score
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
        for seed in dict.fromkeys(seeds)
        for name in dict.fromkeys(only or comparison.variants)
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
        UserError: If the file is wrong or a training fails.
    """
    comparison = Comparison.load(path)
    require_folders([comparison.expdir])  # before hours of training
    require_writable(comparison.results)
    if comparison.figure:
        require_writable(comparison.figure)
    write_table(comparison, path)  # a missing marker is told before, not after
    try:
        run_all(comparison, seeds, jobs, only)
    finally:
        page = write_table(comparison, path)
        write_figure(comparison)
        print(f"The table is in {page}.")
