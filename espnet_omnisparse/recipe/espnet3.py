"""A supernet for any ASR recipe of ESPnet3: configurations and a wrapper by `run.py`.

Nothing of the recipe is changed. The wrapper runs ESPnet's own stages, and between
`train` and `infer` the extraction of the sizes, each an experiment of its own.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_omnisparse.core.layout import has_ctc_alone
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.options import CRITERION
from espnet_omnisparse.recipe.adoption import (
    DECODE_CTC,
    NAME,
    OWN,
    STARTER,
    Adoption,
    below,
    commented,
    find_config,
)
from espnet_omnisparse.recipe.derive import changed_keys, derive_model

TASK = "espnet_omnisparse.tasks.OmniASRTask"
_DEFAULT = Path("conf/training.yaml")
#: ESPnet's own tasks in whose place it comes
_TASKS = ("espnet3.systems.esp2_asr.task.ASRTask", "espnet2.tasks.asr.ASRTask")
_CALLBACK = "espnet_omnisparse.train.lightning.SupernetCallback"
_SPEECH2TEXT = "espnet_omnisparse.bin.asr_inference.Speech2Text"
# a name would be the recipe's own experiment: ESPnet's default has the file's
_OF_EXPERIMENT = ("exp_tag", "exp_dir", "inference_dir")
# of a model: what goes with the recipe's tokens and audio
_OF_DATA = (
    *("vocab_size", "token_list"),
    *("frontend", "frontend_conf", "normalize", "normalize_conf"),
)
_OF_STARTER = ("encoder", "encoder_conf", "model_conf", "specaug", "specaug_conf")


def is_recipe(folder: Path) -> bool:
    """Whether a folder is a recipe of ESPnet3, and not of ESPnet2."""
    return (folder / "run.py").is_file() and not (folder / "run.sh").is_file()


def plan(
    recipe: Path, config: Path | None = None, axis: str = "layer", name: str = NAME
) -> Adoption:
    """Says what a recipe gets; nothing is written.

    Args:
        recipe: Its folder.
        config: A configuration to derive the supernet's from, in the recipe or from
            where we are. `None`: `conf/training.yaml`, or, where its model cannot be
            pruned, that with a Conformer with CTC of this package.
        axis: `layer` or `weight`.
        name: What the new files are called.

    Raises:
        UserError: If there is no such configuration, or no supernet of it.
    """
    if config is None and not (recipe / _DEFAULT).is_file():
        raise UserError(
            f"{recipe} has no {_DEFAULT}: name the configuration to derive the "
            "supernet's from with --config."
        )
    source = find_config(recipe, config or _DEFAULT)
    given, heading = read_config(source), f"{below(source, recipe)} as a supernet"
    try:
        derived = derive(given, axis)
        changed = changed_keys(given, derived)
    except UserError as error:
        if config is not None:
            raise UserError(f"{source}: {error}") from None
        print(f"{source} gets another model. {error}")
        derived = derive(starter(given), axis)
        heading += ", a Conformer with CTC"
        changed = [key.split(".")[0] for key in changed_keys(given, derived)]
    changed = tuple(dict.fromkeys(changed))
    training, inference = f"training_{name}", f"inference_{name}"
    files = {
        f"conf/{training}.yaml": commented(derived, heading, changed),
        f"conf/{inference}.yaml": _inference(recipe, training, derived),
    }
    wrapper = f"run_{name}.sh"
    text = (OWN / "wrapper_espnet3.sh").read_text(encoding="utf-8")
    files[wrapper] = text.replace("@WRAPPER@", wrapper).replace("@NAME@", name)
    return Adoption(wrapper, files, source, changed, f"conf/{inference}.yaml")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration of ESPnet3 with its `defaults`, interpolations left as they are.

    Raises:
        UserError: If it is none.
    """
    from espnet3.utils.config_utils import load_config_with_defaults  # slow
    from omegaconf import OmegaConf

    if not isinstance(read_yaml(path), Mapping):
        raise UserError(f"{path}: It is no configuration.")
    composed = load_config_with_defaults(str(path), resolve=False)
    return OmegaConf.to_container(composed, resolve=False)


def derive(config: Mapping[str, Any], axis: str) -> dict[str, Any]:
    """Makes a supernet's configuration of an ordinary one of ESPnet3.

    Args:
        config: Of a training of ESPnet3's task for ASR.
        axis: `layer` or `weight`.

    Returns:
        The configuration; `config` is left as it is. A training that was interrupted
        goes on where it is run again.

    Raises:
        UserError: If the model has no supernet of this kind.
    """
    if config.get("task") not in _TASKS:
        raise UserError(
            f"Its task is {config.get('task')}, of which there is no supernet: name a "
            f"configuration of {_TASKS[0]}."
        )
    trainer = config.get("trainer") or {}
    # phases are fractions of the run, whose length must be known
    others = [
        one
        for one in trainer.get("callbacks") or ()
        if not str(one.get("_target_")).endswith("EarlyStopping")
    ]
    callback = {"_target_": _CALLBACK, "exp_dir": "${exp_dir}"}
    phase, key, mode = CRITERION
    averaged = [count for _, count, _ in config.get("best_model_criterion") or ()]
    kept = {name: v for name, v in config.items() if name not in _OF_EXPERIMENT}
    return kept | {
        "task": TASK,
        "model": derive_model(config.get("model") or {}, axis),
        "best_model_criterion": [[f"{phase}/{key}", max(averaged, default=10), mode]],
        "trainer": {**trainer, "callbacks": [*others, callback]},
        "fit": {"ckpt_path": "last", **(config.get("fit") or {})},
    }


def starter(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's configuration with a Conformer with CTC, trained as ESPnet trains one.

    Its optimiser and scheduler are ESPnet3's defaults, which are of that kind.

    Args:
        config: Of whatever model: its data and tokens stay.
    """
    stock = read_yaml(STARTER)
    model = config.get("model") or {}
    own = ("optimizer", "scheduler", "optimizers", "schedulers", "best_model_criterion")
    return {
        **{name: value for name, value in config.items() if name not in own},
        "task": _TASKS[0],
        "model": {
            **{name: model[name] for name in _OF_DATA if name in model},
            **{name: stock[name] for name in _OF_STARTER},
        },
        "trainer": {
            "max_epochs": stock["max_epoch"],
            "gradient_clip_val": float(stock["grad_clip"]),
        },
    }


def check_sizes(config: Path, exp: Path, names: Sequence[str]) -> None:
    """Compares the names that the wrapper is given with the sizes that there will be.

    Args:
        config: Of the training. Sizes that are interpolated are not known here.
        exp: Its experiment, which may have specs already, of a search for example.
        names: Of sizes; none: all.

    Raises:
        UserError: If one is none, which would be told hours later.
    """
    section: Any = read_config(config) if names else None
    for key in ("model", "model_conf", "supernet", "sizes"):
        section = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping):
        return
    sizes = [*section, FULL]
    found = [spec.stem for spec in sorted((exp / "subnets").glob("*.yaml"))]
    there = list(dict.fromkeys([*sizes, *found]))
    for name in names:
        if name not in there:
            raise UserError(f"{name} is no size: it is not one of {', '.join(there)}.")


def _inference(recipe: Path, training: str, derived: Mapping[str, Any]) -> str:
    """How a size is decoded: the recipe's way, in the size's own experiment."""
    path = recipe / "conf" / "inference.yaml"
    given = read_config(path) if path.is_file() else {}
    decoding = given.get("model") or {}
    if has_ctc_alone(derived["model"]):
        ctc = read_yaml(DECODE_CTC)
        decoding = {name: ctc[name] for name in ("beam_size", "ctc_weight")}
    model = {
        **decoding,
        "_target_": _SPEECH2TEXT,
        "asr_train_config": "${exp_dir}/config.yaml",
        "asr_model_file": "${exp_dir}/model.pth",
    }
    kept = {name: v for name, v in given.items() if name not in _OF_EXPERIMENT}
    config = {"exp_tag": training + "_${oc.env:SIZE}", **kept, "model": model}
    changed = changed_keys(given, config)
    return commented(config, "conf/inference.yaml for the size $SIZE", changed)


if __name__ == "__main__":  # by the wrapper
    with one_sentence():
        check_sizes(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
