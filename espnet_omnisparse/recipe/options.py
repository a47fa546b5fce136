"""The options of a recipe's `run.sh`: ours, and those of `asr.sh` that we read."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_omnisparse.cost.budget import parse_budget
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.names import CALIBRATION, CHECKPOINT

OWN_OPTIONS = {
    "sizes": "",
    "search": "",
    "stock": "false",
    "repair": "",
    "repair_args": "",
    "subnets": "",
    "calibration": str(CALIBRATION),
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
    "inference_asr_model": CHECKPOINT,
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


def budgets_of(sizes: Sequence[str], trained: Container[str]) -> dict[str, str]:
    """The budgets among `--sizes`, and the name of the size that is searched for each.

    Args:
        sizes: As given.
        trained: Names of sizes that the configuration has.

    >>> budgets_of(["small", "70%", "full"], ["small"])
    {'70%': '70pct'}
    """
    names = {}
    for size in sizes:
        if size in trained:
            continue
        try:
            names[size] = parse_budget(size).name
        except UserError:  # the name of a size after all, if there is one
            continue
    return names


def length_of(text: str) -> int | float:
    """What `--repair` says: a number of updates, or a fraction of the training.

    Raises:
        UserError: If it is neither.
    """
    if text.isdecimal():
        return int(text)
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UserError(
            "--repair is a number of updates, or a fraction of the training between "
            f"0.0 and 1.0, not {text}."
        )
    return share


def decoding_of(run: Run) -> str:
    """The recipe's decoding configuration, unless another is given."""
    streaming = run.options.get("use_streaming") == "true"
    if streaming and run["asr_task"] == "asr":
        return "conf/decode_streaming.yaml"
    return DECODING[run["asr_task"]]
