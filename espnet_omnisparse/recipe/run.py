"""Drives ESPnet's unmodified `asr.sh` for a supernet and for every size of it.

Stages 1-11 run once. Then each size is extracted into an experiment folder of its
own, on which stages 12-15 run as they would on any ESPnet model. Options are
`asr.sh`'s own; these are added:

    --sizes "small full"  sizes to decode, score, pack and upload (default: all); with
                          masks on weights also budgets to search for, as in
                          "70% 12M 8MB": zeros, non-zero parameters, packed bytes
    --search "..."        further arguments of `omnisparse search`
    --stock true          also extract, decode ... the form that stock ESPnet loads
    --repair 0.05         also train each size but the full one by itself for so many
                          updates, or that fraction of the supernet's, its zeros kept,
                          as the size NAME-repaired; 0: never (default: what
                          supernet.repair says)
    --repair_args "..."   further arguments of that training
    --subnets DIR         use the specs in DIR instead of the experiment's own
    --calibration 400     training utterances for re-estimating BatchNorm statistics
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_omnisparse.arguments import split_words
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.extract.names import size_folder
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.options import supernet_section
from espnet_omnisparse.recipe import template
from espnet_omnisparse.recipe.checks import check, check_machine
from espnet_omnisparse.recipe.options import (
    FIRST_PER_SIZE,
    Run,
    budgets_of,
    decoding_of,
    length_of,
    parse,
)


def asr_sh(run: Run, **changes: str) -> None:
    """Runs the stock asr.sh of the present recipe folder.

    Raises:
        UserError: If it fails; what it printed stays above the sentence.
    """
    options = {
        **_training_text(run),
        "inference_config": decoding_of(run),
        **run.options,
        **_streaming_transducer(run),
        **_searched_later(run),
        "asr_exp": run.asr_exp,
        "inference_asr_model": run["inference_asr_model"],
        "python": "python3 -m espnet_omnisparse.launch",
        **changes,
    }
    command = ["./asr.sh"]
    for name, value in options.items():
        command += [f"--{name}", value]
    status = subprocess.run(command).returncode
    if status != 0:
        raise UserError(
            f"asr.sh failed with status {status} in stages {options['stage']} to "
            f"{options['stop_stage']}: the reason is printed above, or in the log that "
            "it names."
        )


def _streaming_transducer(run: Run) -> dict[str, str]:
    """How this task streams; asr.sh passes --use_streaming on for `asr` alone."""
    streaming = run.options.get("use_streaming") == "true"
    if not streaming or run["asr_task"] == "asr":
        return {}
    given = run.options.get("inference_args", "")
    return {"inference_args": f"{given} --streaming true".strip()}


def _searched_later(run: Run) -> dict[str, str]:
    """Tells the training what a search comes after it for: it judges that first."""
    if not run["asr_config"] or run.own["subnets"]:
        return {}
    trained = supernet_section(read_yaml(run["asr_config"])).get("sizes") or {}
    budgets = ",".join(budgets_of(run.own["sizes"].split(), trained))
    return {"asr_args": f"{run['asr_args']} --budgets {budgets}"} if budgets else {}


def _training_text(run: Run) -> dict[str, str]:
    """Where stage 5 finds the text to make tokens from.

    With speed perturbation asr.sh looks for it under a name that it changes on the way.
    """
    if not run["speed_perturb_factors"]:
        return {}
    text = f"data/{run.options.get('train_set', '')}/text"
    return {"bpe_train_text": text, "lm_train_text": text}


def run_sizes(run: Run, first: int, last: int) -> None:
    """Extracts the wanted sizes and runs the stages from 12 on for each of them.

    Args:
        run: What is wanted.
        first: The first stage.
        last: The last stage.
    """
    # slow to import, and stages 1-11 do not need it
    from espnet_omnisparse.core.spec import REPAIRED
    from espnet_omnisparse.extract.experiment import (
        checkpoint_of,
        extract_size,
        wanted_specs,
    )
    from espnet_omnisparse.report import family as report

    subnets = Path(run.own["subnets"]) if run.own["subnets"] else None
    sizes = run.own["sizes"].split()
    if not subnets:
        sizes = _searched(run, sizes, search=first <= FIRST_PER_SIZE)
    specs = wanted_specs(Path(run.asr_exp), subnets, sizes)
    forms = [False, True] if run.own["stock"] == "true" else [False]
    jobs = [(size, stock) for size in specs for stock in forms]
    for size, stock in jobs:
        folder = size_folder(run.asr_exp, size, stock)
        print(f"== {size}{' (stock form)' if stock else ''}: {folder}", flush=True)
        if first <= FIRST_PER_SIZE:
            written = extract_size(
                Path(run.asr_exp),
                checkpoint_of(Path(run.asr_exp), size, run["inference_asr_model"]),
                specs[size],
                Path(folder),
                stock,
                int(run.own["calibration"]),
            )
            print("extracted" if written else "already extracted", flush=True)
        _decode(run, first, last, folder, f"{size}-stock" if stock else size)
        length = _repair_length(run)
        spec = specs[size]
        pruned = not spec.is_full or any(spec.sparsity) or spec.decoder is not None
        if length and not stock and pruned:
            if first <= FIRST_PER_SIZE:
                _repair(run, Path(folder), length)
            name = f"{size}{REPAIRED}"
            _decode(run, first, last, size_folder(run.asr_exp, name), name)
    # sizes of another supernet belong to that one's report, as a baseline
    if last > FIRST_PER_SIZE and not run.own["subnets"]:
        report.write_family(Path(run.asr_exp), command_line())


def _decode(run: Run, first: int, last: int, folder: str, name: str) -> None:
    """Runs the stages from 12 on for one size.

    Args:
        run: What is wanted.
        first: The first stage.
        last: The last stage.
        folder: The size's.
        name: The size's.
    """
    changes = {}
    if run["hf_repo"]:
        changes["hf_repo"] = f"{run['hf_repo']}-{name}"
    asr_sh(
        run,
        stage=str(max(first, FIRST_PER_SIZE)),
        stop_stage=str(last),
        asr_exp=folder,
        inference_asr_model="model.pth",
        **changes,
    )


def _repair_length(run: Run) -> int | float:
    """How long sizes are repaired: as the command says, else the configuration."""
    from espnet_omnisparse.extract.experiment import read_config

    if run.own["repair"]:
        return length_of(run.own["repair"])
    return supernet_section(read_config(Path(run.asr_exp))).get("repair") or 0


def _repair(run: Run, size: Path, length: int | float) -> None:
    """Trains a size by itself, its zeros kept, unless that is done.

    Args:
        run: What is wanted.
        size: Its folder.
        length: Updates, or a fraction of the supernet's.
    """
    from espnet_omnisparse.extract.experiment import MODEL
    from espnet_omnisparse.extract.repair import repair_of

    repair = repair_of(Path(run.asr_exp), size, length, run.own["repair_args"])
    config = repair.begin()
    print(f"== repair: {repair.out}", flush=True)
    if config is None:
        print("already repaired", flush=True)
        return
    asr_sh(
        run,
        stage="11",
        stop_stage="11",
        asr_exp=str(repair.training),
        asr_config=str(config),
        asr_args=repair.arguments,
        pretrained_model=str(size / MODEL),
    )
    repair.finish()


def _searched(run: Run, sizes: Sequence[str], search: bool) -> list[str]:
    """The names of sizes some of which may be budgets, after a search for these.

    Raises:
        UserError: If the search fails.
    """
    from espnet_omnisparse.extract.experiment import read_config

    trained = supernet_section(read_config(Path(run.asr_exp))).get("sizes") or {}
    names = budgets_of(sizes, trained)
    if names and search:
        command = [sys.executable, "-m", "espnet_omnisparse.cli", "search"]
        command += [run.asr_exp, "--budgets", " ".join(names)]
        command += ["--checkpoint", run["inference_asr_model"]]
        command += split_words("--search", run.own["search"])
        if subprocess.run(command).returncode != 0:
            raise UserError("The search failed: the reason is printed above.")
    return [names.get(size, size) for size in sizes]


def command_line() -> str:
    """The command that was given, for the report: as typed, then with all options."""
    resolved = "./run.sh " + shlex.join(sys.argv[1:])
    # the recipe's scripts tell it: the outermost counts
    typed = os.environ.get("OMNISPARSE_TYPED", "").strip()
    return f"{typed}\n# that is\n{resolved}" if typed else resolved


def prepare(run: Run) -> None:
    """Checks the machine, and links ESPnet's template into the present folder.

    Raises:
        UserError: If something is missing that the stages to run need.
    """
    template.require_versions()
    root = template.locate()
    check_machine(run, root)
    template.link(Path.cwd(), root)
    # behind all others: stand-ins for sclite and sph2pipe
    os.environ["PATH"] += f"{os.pathsep}{Path(__file__).parent / 'bin'}"


def tell_stage_1(run: Run) -> None:
    """Sets what local/data.sh has to know, of which asr.sh tells it nothing.

    In the environment: another recipe's local/data.sh may not take such options.
    """
    os.environ["OMNISPARSE_FS"] = run["fs"]
    perturbed = bool(run["speed_perturb_factors"])
    os.environ["OMNISPARSE_PERTURB"] = str(perturbed).lower()
    if run.options.get("use_streaming") == "true":
        os.environ["OMNISPARSE_SHORTEST"] = "0"  # a stream may be of any length


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of every recipe's run.sh."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with one_sentence():
        if "--help" in argv:
            print(__doc__)
            return
        run = parse(argv)
        check(run)
        prepare(run)
        tell_stage_1(run)
        first, last = run.stages
        if run["download_model"]:  # as it is: nothing to train, nor to extract
            asr_sh(run, stage=str(first), stop_stage=str(last), skip_train="true")
            return
        if first < FIRST_PER_SIZE:
            stop = min(last, FIRST_PER_SIZE - 1)
            asr_sh(run, stage=str(first), stop_stage=str(stop))
        if last >= FIRST_PER_SIZE:
            run_sizes(run, first, last)


if __name__ == "__main__":
    main()
