"""What is wrong with options or machine, found before anything is written."""

import argparse
import shutil
import subprocess
from pathlib import Path

from espnet_omnisparse import environment
from espnet_omnisparse.arguments import refuse_in_one_sentence, split_words
from espnet_omnisparse.cost.budget import parse_budget
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.options import supernet_section
from espnet_omnisparse.recipe.options import (
    DECODING,
    FIRST_PER_SIZE,
    LAST_STAGE,
    Run,
    budgets_of,
    decoding_of,
    length_of,
)
from espnet_omnisparse.search import command as search

#: Options that name files -> the stage that reads them; no stage writes them.
READ_LATER = {
    "lm_config": 6,
    "pretrained_model": 11,
    "inference_config": FIRST_PER_SIZE,
}


def check(run: Run) -> None:
    """Finds mistakes before anything is written.

    Raises:
        UserError: For the first mistake found.
    """
    first, last = run.stages
    if run.own["stock"] not in ("true", "false"):
        raise UserError(f"--stock is true or false, not {run.own['stock']}.")
    if first > last:
        raise UserError(f"--stage {first} is after --stop_stage {last}.")
    if not run.own["calibration"].isdecimal() or int(run.own["calibration"]) < 1:
        raise UserError(
            "--calibration is a number of utterances, at least 1, not "
            f"{run.own['calibration']}."
        )
    if run.own["repair"]:
        length_of(run.own["repair"])
    elif run.own["repair_args"] and run["asr_config"] and not _repairs(run):
        raise UserError(
            "--repair_args is for a repair, and there is none: give its length with "
            "--repair, or leave it out."
        )
    _search_arguments(run)
    if run["asr_task"] not in DECODING:
        raise UserError(
            f"--asr_task {run['asr_task']} is not supported: use one of "
            f"{', '.join(DECODING)}."
        )
    if run["download_model"] and (run.own["sizes"] or run.own["subnets"]):
        raise UserError(
            "--download_model decodes a model as it is: leave --sizes and --subnets "
            "out."
        )
    config = run["asr_config"]
    if config and not Path(config).is_file():
        raise UserError(f"--asr_config {config} does not exist.")
    if config and not run.own["subnets"]:
        _check_sizes(run)
    _check_files(run)
    if run.own["subnets"] and run.own["sizes"] and _runs(run, FIRST_PER_SIZE):
        from espnet_omnisparse.extract.experiment import wanted_specs  # slow

        wanted_specs(Path(), Path(run.own["subnets"]), run.own["sizes"].split())
    if last >= LAST_STAGE and run["skip_upload_hf"] == "false":
        _check_upload(run)
    if run["speed_perturb_factors"] and first <= 2 <= last and not shutil.which("sox"):
        raise UserError(
            "Speed perturbation (stage 2) needs sox: install it, or leave it out with "
            '--speed_perturb_factors "".'
        )


def _search_arguments(run: Run) -> argparse.Namespace:
    """Reads the arguments of the search as it will, hours from now."""
    if run.own["search"] and not run.own["sizes"]:
        raise UserError(
            "--search is for budgets among --sizes, and there are none: give some, "
            'such as --sizes "70%", or leave it out.'
        )
    commands = argparse.ArgumentParser(add_help=False).add_subparsers()
    search.add_commands(commands)
    (parser,) = commands.choices.values()
    refuse_in_one_sentence(parser, "--search")
    return parser.parse_args(
        ["exp", "--budgets", "", *split_words("--search", run.own["search"])]
    )


def check_machine(run: Run, root: Path) -> None:
    """Finds what the machine lacks for the stages that are to run.

    Args:
        run: What is wanted.
        root: The tree that holds ESPnet's template.

    Raises:
        UserError: For the first thing found.
    """
    folders = {"--dumpdir": run["dumpdir"], "--expdir": run["expdir"]}
    environment.require_plain_paths({**folders, "--asr_exp": run.asr_exp})
    environment.require_folders(["data", *folders.values(), run.asr_exp])
    if not run["ngpu"].isdecimal():
        raise UserError(f"--ngpu is a number of GPUs, not {run['ngpu']}.")
    own = Path("cmd.sh")
    cmd = own if own.exists() else root / "egs2" / "TEMPLATE" / "asr1" / "cmd.sh"
    if _runs_on_gpu(run) and run["num_nodes"] == "1":
        wanted = int(run["ngpu"])
        environment.require_gpus(f"--ngpu {wanted}", wanted, cmd)
    if _runs(run, 12) and run["gpu_inference"] == "true":
        environment.require_gpus("--gpu_inference true", 1, cmd)


def _runs(run: Run, stage: int) -> bool:
    first, last = run.stages
    return first <= stage <= last and str(stage) not in run["skip_stages"].split()


def _runs_on_gpu(run: Run) -> bool:
    """Whether a training is to run, of the supernet or a language model."""
    if run["skip_train"] == "true" or run["download_model"]:
        return False
    return _runs(run, 11) or (run["use_lm"] == "true" and _runs(run, 7))


def _check_files(run: Run) -> None:
    """What stages read that no stage before them writes."""
    given = {name: run.options.get(name, "") for name in READ_LATER}
    given["inference_config"] = run.options.get("inference_config", decoding_of(run))
    if run["use_lm"] != "true":
        given["lm_config"] = ""
    if run["skip_train"] == "true" or run["download_model"]:
        given["lm_config"] = given["pretrained_model"] = ""
    for name, stage in READ_LATER.items():
        # what --init_param takes may name parts behind the file
        path = given[name].split(":")[0]
        if path and _runs(run, stage) and not Path(path).is_file():
            raise UserError(
                f"Stage {stage} reads {path}, which does not exist: write it, or name "
                f"another with --{name}."
            )
    subnets = run.own["subnets"]
    if subnets and _runs(run, FIRST_PER_SIZE) and not any(Path(subnets).glob("*.yaml")):
        raise UserError(f"--subnets: {subnets} has no specs (*.yaml) in it.")


def _check_upload(run: Run) -> None:
    if not run["hf_repo"]:
        raise UserError("Stage 15 uploads: say where to with --hf_repo user/name.")
    if shutil.which("git") is None or shutil.which("git-lfs") is None:
        raise UserError("Stage 15 uploads with git: install git and git-lfs first.")
    for key in ("user.name", "user.email"):
        found = subprocess.run(["git", "config", key], capture_output=True)
        if found.returncode != 0:
            raise UserError(
                f"Stage 15 commits with git, which has no {key}: set it with "
                f"git config --global {key} ..."
            )

    commit = ["git", "rev-parse", "--quiet", "--verify", "HEAD"]
    if subprocess.run(commit, capture_output=True).returncode != 0:
        raise UserError(
            "Stage 15 names the commit of this recipe, and there is none: run it "
            "inside a git repository with a commit (git init, git commit)."
        )


def _repairs(run: Run) -> bool:
    """Whether the configuration asks for a repair of each size."""
    config = Path(run["asr_config"])
    return bool(config.is_file() and supernet_section(read_yaml(config)).get("repair"))


def _check_sizes(run: Run) -> None:
    """Compares --sizes with the configuration, before hours of training."""
    if not run.own["sizes"]:
        return
    # slow: they import torch
    from espnet_omnisparse.core.spec import FULL
    from espnet_omnisparse.search.feasible import check_objective

    config = read_yaml(run["asr_config"])
    supernet = supernet_section(config)
    sizes, wanted = [*(supernet.get("sizes") or {}), FULL], run.own["sizes"].split()
    for size in wanted:
        if size in sizes:
            continue
        if not supernet.get("sparsity"):
            raise UserError(f"--sizes: {size} is not one of {', '.join(sizes)}.")
        parse_budget(size, "--sizes")
    if budgets_of(wanted, sizes):
        masks_decoder = bool(config["model_conf"].get("mask_decoder"))
        check_objective(_search_arguments(run).objective, masks_decoder)
