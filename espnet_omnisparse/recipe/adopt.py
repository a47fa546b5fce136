"""A supernet for any recipe of ESPnet: a wrapper beside its `run.sh`, configurations.

Nothing of the recipe is changed. The wrapper sources its `run.sh` with `./asr.sh`
standing for `python3 -m espnet_omnisparse.recipe`, which is a function there: stages 1
to 11 run as they are, and what `run.sh` says of data and tokens holds.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_omnisparse.core.layout import has_ctc_alone, is_standalone
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.recipe import template
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
from espnet_omnisparse.recipe.derive import (
    changed_keys,
    derive,
)

_CALLS_ASR = re.compile(r"^\s*\./asr\.sh\b", re.MULTILINE)
_ASR_CONFIG = re.compile(r"asr_config[= ]\s*[\"']?(conf/[\w./-]+\.yaml)")


def plan(
    recipe: Path, config: Path | None = None, axis: str = "layer", name: str = NAME
) -> Adoption:
    """Says what a recipe gets; nothing is written.

    Args:
        recipe: Its folder.
        config: A configuration to derive the supernet's from, in the recipe or from
            where we are. `None`: the one that `run.sh` names, or, where that cannot be
            pruned, a Conformer with CTC of this package.
        axis: `layer` or `weight`.
        name: What the new files are called.

    Raises:
        UserError: If it is no recipe, or there is no supernet of the configuration.
    """
    run_sh = _run_sh(recipe)
    if config is not None:
        source = find_config(recipe, config)
        derived = _derived(source, axis)
    else:
        source, derived = _default(recipe, run_sh, axis)
    changed = tuple(changed_keys(read_yaml(source), derived))
    wrapper, target = f"run_{name}.sh", f"conf/{name}.yaml"
    origin = "A Conformer with CTC" if source == STARTER else below(source, recipe)
    files = {target: commented(derived, f"{origin} as a supernet", changed)}
    options, inference = {"asr_config": target}, ""
    if is_standalone(derived):
        options["asr_task"] = "asr_transducer"
    elif has_ctc_alone(derived):
        inference = f"conf/{name}_decode_ctc.yaml"
        files[inference] = DECODE_CTC.read_text(encoding="utf-8")
        options |= {"inference_config": inference, "use_lm": "false"}
    lines = "\n    ".join(f"--{key} {value}" for key, value in options.items())
    text = (OWN / "wrapper.sh").read_text(encoding="utf-8")
    files[wrapper] = text.replace("@WRAPPER@", wrapper).replace("@OPTIONS@", lines)
    return Adoption(wrapper, files, source, changed, inference, root_of(recipe))


def root_of(recipe: Path) -> Path:
    """The tree with ESPnet's template: the checkout that the recipe is in, if any."""
    chosen = os.environ.get("ESPNET_ROOT")
    for root in recipe.resolve().parents[2:3]:
        has_template = (root / "egs2" / "TEMPLATE" / "asr1" / "asr.sh").is_file()
        if not chosen and has_template and (root / "tools").is_dir():
            return root
    return template.locate()


def python_of(recipe: Path) -> tuple[str, bool]:
    """The Python of the recipe's stages, and whether it has this package.

    Args:
        recipe: Its folder, with the template linked.
    """
    ask = (
        "set +u; . ./path.sh >/dev/null 2>&1; command -v python3;"
        'python3 -c "import espnet_omnisparse" 2>/dev/null && echo yes'
    )
    done = subprocess.run(
        ["bash", "-c", ask], cwd=recipe, stdout=subprocess.PIPE, text=True
    )
    lines = done.stdout.split("\n")
    return lines[0], "yes" in lines[1:]


def _run_sh(recipe: Path) -> str:
    path = recipe / "run.sh"
    text = path.read_text(errors="replace") if path.is_file() else ""
    if not _CALLS_ASR.search(text):
        raise UserError(
            f"{recipe} is no recipe of ESPnet's asr1 kind, whose run.sh calls "
            "./asr.sh: name its folder, such as egs2/mini_an4/asr1."
        )
    return text


def _default(recipe: Path, run_sh: str, axis: str) -> tuple[Path, dict[str, Any]]:
    """What is derived where the user names nothing, and from what."""
    for named in _ASR_CONFIG.findall(run_sh)[-1:]:
        path = recipe / named
        try:
            return path, _derived(path, axis)
        except UserError as error:
            print(f"run.sh's own configuration is not used. {error}")
    return STARTER, derive(read_yaml(STARTER), axis)


def _derived(path: Path, axis: str) -> dict[str, Any]:
    config = read_yaml(path)
    try:
        if not isinstance(config, Mapping):
            raise UserError("It is no training configuration.")
        return derive(config, axis)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
