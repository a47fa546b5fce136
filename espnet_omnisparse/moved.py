"""Modules by the names that they had before 0.2, for one release.

`import espnet_omnisparse.librispeech` and `python3 -m espnet_omnisparse.librispeech`
still work, each with a warning that tells the new name.
"""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

_PACKAGE = __name__.rpartition(".")[0]
#: old name -> new name, in this package; those that users type
MOVED = {
    "asr_inference_streaming": "bin.asr_inference_streaming",
    "asr_train": "bin.asr_train",
    "asr_transducer_inference": "bin.asr_transducer_inference",
    "asr_transducer_train": "bin.asr_transducer_train",
    "bench_memory": "bench.memory",
    "bench_streaming": "bench.streaming",
    "librispeech": "data.librispeech",
    "progress": "recipe.progress",
    "sclite": "recipe.sclite",
    "synthesis": "data.demo_corpus",
    "tedlium": "data.tedlium",
    "template": "recipe.template",
}


class _Loader(importlib.abc.InspectLoader):
    """Hands out the module, or for `python3 -m` the code, of the new name."""

    def __init__(self, name: str):
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # importing by the old name has replaced it

    def get_code(self, fullname: str) -> CodeType | None:
        return importlib.util.find_spec(self._name).loader.get_code(self._name)

    def get_source(self, fullname: str) -> str | None:
        return importlib.util.find_spec(self._name).loader.get_source(self._name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != _PACKAGE or name not in MOVED:
            return None
        new = f"{_PACKAGE}.{MOVED[name]}"
        warnings.warn(
            f"{fullname} is now {new}; the old name goes with the next release.",
            FutureWarning,
            stacklevel=2,
        )
        return importlib.util.spec_from_loader(fullname, _Loader(new))


def keep_old_names() -> None:
    """Makes the old names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
