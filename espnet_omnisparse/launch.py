"""Runs a Python command with our classes registered in ESPnet.

ESPnet's `asr.sh` takes the interpreter as an option; given this module,

    ./asr.sh --python "python3 -m espnet_omnisparse.launch" ...

the stock pipeline trains and decodes our models: training goes through our task,
everything else runs unchanged.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_omnisparse.errors import UserError, one_sentence

#: ESPnet's module -> ours
REMAPPED = {
    f"espnet2.bin.{name}": f"espnet_omnisparse.bin.{name}"
    for name in (
        "asr_train",
        "asr_inference",
        "asr_inference_streaming",
        "asr_transducer_train",
        "asr_transducer_inference",
        "pack",
    )
}
REFUSED = {
    "espnet2.bin.lightning_train": "use_lightning: use ESPnet's own trainer",
    "espnet2.bin.asr_inference_k2": "use_k2: use ESPnet's own decoder",
}
USAGE = "usage: python3 -m espnet_omnisparse.launch (-m MODULE | SCRIPT) [ARGS ...]"


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Runs a module as `python3 -m` would, after remapping.

    Args:
        module: Its dotted name.
        arguments: Its command line.

    Raises:
        UserError: If the module cannot work with supernets.
    """
    if module in REFUSED:
        raise UserError(f"Supernets cannot be combined with {REFUSED[module]}.")
    module = REMAPPED.get(module, module)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with one_sentence():
        if not argv or (argv[0] == "-m" and len(argv) < 2):
            raise UserError(USAGE)
        if argv[0] == "-m":
            run_module(argv[1], argv[2:])
        else:
            if not Path(argv[0]).is_file():
                raise UserError(f"{argv[0]} does not exist: name a script. {USAGE}")
            sys.argv = argv
            sys.path[0] = str(Path(argv[0]).resolve().parent)  # as Python does
            runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
