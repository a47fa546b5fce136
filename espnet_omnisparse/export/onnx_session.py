"""Files in onnxruntime, and whether a run time is installed; without PyTorch."""

import importlib
from pathlib import Path
from typing import Any

from espnet_omnisparse.errors import UserError


def require(*packages: str, what: str = "This export") -> None:
    """Finds what is needed beside this package.

    Args:
        packages: As they are imported.
        what: Needs them.

    Raises:
        UserError: If one is not installed.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            name = wanted = package.replace("_", "-")
            if package.startswith("onnx"):
                wanted = "'espnet-omnisparse[onnx]'"
            raise UserError(
                f"{what} needs {name}, which is not installed: pip install "
                f"{wanted}."
            ) from error


def session(path: Path, threads: int = 1) -> Any:
    """A file in onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: Of an operation.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
