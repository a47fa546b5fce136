"""Drives ESPnet's unmodified `asr.sh` for a supernet and for every size of it.

Stages 1-11 run once. Then each size is extracted into an experiment folder of its
own, on which stages 12-15 run as they would on any ESPnet model. Options are
`asr.sh`'s own; these are added:

    --sizes "small full"  sizes to decode, score, pack and upload (default: all); with
                          masks on weights also budgets to search for, as in
                          "70% 12M 8MB": zeros, non-zero parameters, packed bytes
    --search "..."        further arguments of `omnisparse search`
    --stock true          also extract, decode ... the form that stock ESPnet loads
    --subnets DIR         use the specs in DIR instead of the experiment's own
    --calibration 400     training utterances for re-estimating BatchNorm statistics
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_omnisparse import environment
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.options import supernet_section
from espnet_omnisparse.recipe import template

OWN_OPTIONS = {
    "sizes": "",
    "search": "",
    "stock": "false",
    "subnets": "",
    "calibration": "400",
}
# asr.sh's defaults that this module has to know
STOCK_DEFAULTS = {
    "stage": "1",
    "stop_stage": "10000",
    "expdir": "exp",
    "feats_type": "raw",
    "token_type": "bpe",
    "nbpe": "30",
    "lang": "noinfo",
    "asr_config": "",
    "asr_args": "",
    "asr_tag": "",
    "asr_exp": "",
    "speed_perturb_factors": "",
    "fs": "16k",
    "inference_asr_model": "valid.loss_sizes.ave.pth",
    "skip_packing": "true",
    "skip_upload_hf": "true",
    "hf_repo": "",
    "asr_task": "asr",
    "download_model": "",
    "dumpdir": "dump",
    "ngpu": "1",
    "gpu_inference": "false",
    "num_nodes": "1",
    "skip_train": "false",
    "skip_stages": "",
    "use_lm": "true",
}
FIRST_PER_SIZE, LAST_STAGE = 12, 15
#: Options that name files -> the stage that reads them; no stage writes them.
READ_LATER = {"lm_config": 6, "pretrained_model": 11, "inference_config": 12}
DECODING = {
    "asr": "conf/decode_ctc.yaml",
    "asr_transducer": "conf/decode_transducer.yaml",
}


@dataclass(frozen=True)
class Run:
    """What a command line asks for.

    Attributes:
        options: Every option given, names with underscores; the last one counts.
        own: The options of this module.
    """

    options: Mapping[str, str]
    own: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.options.get(name, STOCK_DEFAULTS[name])

    @property
    def stages(self) -> tuple[int, int]:
        """First and last stage."""
        try:
            return int(self["stage"]), min(int(self["stop_stage"]), LAST_STAGE)
        except ValueError as error:
            raise UserError("--stage and --stop_stage take a number.") from error

    @property
    def asr_exp(self) -> str:
        """The supernet's experiment folder, named as asr.sh would name it."""
        if self["asr_exp"]:
            return self["asr_exp"]
        return f"{self['expdir']}/asr_{self['asr_tag'] or self._tag()}"

    def _tag(self) -> str:
        config = self["asr_config"]
        stem = Path(config).name.removesuffix(".yaml") if config else "train"
        tag = f"{stem}_{self['feats_type']}"
        if self["lang"] != "noinfo":
            tag += f"_{self['lang']}"
        tag += f"_{self['token_type']}"
        if self["token_type"] == "bpe":
            tag += self["nbpe"]
        arguments = self["asr_args"].replace("--", "_")
        tag += "".join(char for char in arguments if char not in " |=/")
        return tag + ("_sp" if self["speed_perturb_factors"] else "")


def parse(argv: Sequence[str]) -> Run:
    """Reads Kaldi-style options.

    Raises:
        UserError: If an argument is not an option with a value.
    """
    options: dict[str, str] = {}
    rest = list(argv)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or not rest:
            raise UserError(f"{name}: options are given as --name value.")
        options[name[2:].replace("-", "_")] = rest.pop(0)
    own = {name: options.pop(name, default) for name, default in OWN_OPTIONS.items()}
    return Run(options, own)


def asr_sh(run: Run, **changes: str) -> None:
    """Runs the stock asr.sh of the present recipe folder.

    Raises:
        UserError: If it fails; what it printed stays above the sentence.
    """
    options = {
        **_training_text(run),
        "inference_config": _decoding(run),
        **run.options,
        **_streaming_transducer(run),
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


def _decoding(run: Run) -> str:
    """The recipe's decoding configuration, unless another is given."""
    streaming = run.options.get("use_streaming") == "true"
    if streaming and run["asr_task"] == "asr":
        return "conf/decode_streaming.yaml"
    return DECODING[run["asr_task"]]


def _streaming_transducer(run: Run) -> dict[str, str]:
    """How this task streams; asr.sh passes --use_streaming on for `asr` alone."""
    streaming = run.options.get("use_streaming") == "true"
    if not streaming or run["asr_task"] == "asr":
        return {}
    given = run.options.get("inference_args", "")
    return {"inference_args": f"{given} --streaming true".strip()}


def _training_text(run: Run) -> dict[str, str]:
    """Where stage 5 finds the text to make tokens from.

    With speed perturbation asr.sh looks for it under a name that it changes on the way.
    """
    if not run["speed_perturb_factors"]:
        return {}
    text = f"data/{run.options.get('train_set', '')}/text"
    return {"bpe_train_text": text, "lm_train_text": text}


def check(run: Run) -> None:
    """Finds mistakes before anything is written.

    Raises:
        UserError: For the first mistake found.
    """
    first, last = run.stages
    if run.own["stock"] not in ("true", "false"):
        raise UserError(f"--stock is true or false, not {run.own['stock']}.")
    if not run.own["calibration"].isdecimal():
        raise UserError(
            f"--calibration is a number of utterances, not {run.own['calibration']}."
        )
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
    if last >= LAST_STAGE and run["skip_upload_hf"] == "false":
        _check_upload(run)
    if run["speed_perturb_factors"] and first <= 2 <= last and not shutil.which("sox"):
        raise UserError(
            "Speed perturbation (stage 2) needs sox: install it, or leave it out with "
            '--speed_perturb_factors "".'
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
    given["inference_config"] = run.options.get("inference_config", _decoding(run))
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
    if subnets and _runs(run, 12) and not any(Path(subnets).glob("*.yaml")):
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


def _check_sizes(run: Run) -> None:
    """Compares --sizes with the configuration, before hours of training."""
    if not run.own["sizes"]:
        return
    # slow: they import torch
    from espnet_omnisparse.core.spec import FULL
    from espnet_omnisparse.search.spec_costs import parse_budget

    supernet = supernet_section(read_yaml(run["asr_config"]))
    sizes = [*(supernet.get("sizes") or {}), FULL]
    for size in run.own["sizes"].split():
        if size in sizes:
            continue
        if not supernet.get("sparsity"):
            raise UserError(f"--sizes: {size} is not one of {', '.join(sizes)}.")
        parse_budget(size)


def size_folder(asr_exp: str, size: str, stock: bool = False) -> str:
    """The experiment folder of one size."""
    return f"{asr_exp}_{size}" + ("_stock" if stock else "")


def run_sizes(run: Run, first: int, last: int) -> None:
    """Extracts the wanted sizes and runs the stages from 12 on for each of them."""
    # slow to import, and stages 1-11 do not need it
    from espnet_omnisparse.extract.experiment import extract_size, wanted_specs
    from espnet_omnisparse.report import family as report

    subnets = Path(run.own["subnets"]) if run.own["subnets"] else None
    sizes = run.own["sizes"].split()
    if not subnets:
        sizes = _searched(run, sizes, search=first <= FIRST_PER_SIZE)
    specs = wanted_specs(Path(run.asr_exp), subnets, sizes)
    forms = [False, True] if run.own["stock"] == "true" else [False]
    checkpoint = Path(run.asr_exp) / run["inference_asr_model"]
    jobs = [(size, stock) for size in specs for stock in forms]
    for size, stock in jobs:
        folder = size_folder(run.asr_exp, size, stock)
        print(f"== {size}{' (stock form)' if stock else ''}: {folder}", flush=True)
        if first <= FIRST_PER_SIZE:
            written = extract_size(
                Path(run.asr_exp),
                checkpoint,
                specs[size],
                Path(folder),
                stock,
                int(run.own["calibration"]),
            )
            print("extracted" if written else "already extracted", flush=True)
        changes = {}
        if run["hf_repo"]:
            suffix = f"-{size}" + ("-stock" if stock else "")
            changes["hf_repo"] = run["hf_repo"] + suffix
        asr_sh(
            run,
            stage=str(max(first, FIRST_PER_SIZE)),
            stop_stage=str(last),
            asr_exp=folder,
            inference_asr_model="model.pth",
            **changes,
        )
    # sizes of another supernet belong to that one's report, as a baseline
    if last > FIRST_PER_SIZE and not run.own["subnets"]:
        report.write_family(Path(run.asr_exp), command_line())


def _searched(run: Run, sizes: Sequence[str], search: bool) -> list[str]:
    """The names of sizes some of which may be budgets, after a search for these.

    Raises:
        UserError: If the search fails.
    """
    from espnet_omnisparse.extract.experiment import read_config
    from espnet_omnisparse.search.spec_costs import parse_budget

    trained = supernet_section(read_config(Path(run.asr_exp))).get("sizes") or {}
    names = {}
    for size in sizes:
        if size in trained:
            continue
        try:
            names[size] = parse_budget(size).name
        except UserError:  # the name of a size after all, if there is one
            continue
    if names and search:
        command = [sys.executable, "-m", "espnet_omnisparse.cli", "search"]
        command += [run.asr_exp, "--budgets", " ".join(names)]
        command += ["--checkpoint", run["inference_asr_model"]]
        command += shlex.split(run.own["search"])
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
    # scores without sclite too
    if shutil.which("sclite") is None:
        stand_in = Path(__file__).parent / "bin"
        os.environ["PATH"] += f"{os.pathsep}{stand_in}"


def tell_stage_1(run: Run) -> None:
    """Sets what local/data.sh has to know, of which asr.sh tells it nothing.

    In the environment: another recipe's local/data.sh may not take such options.
    """
    os.environ["OMNISPARSE_FS"] = run["fs"]
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
