import platform

import numpy as np
import pytest
from helpers.kernels import Kernels

ARM = platform.machine() in ("aarch64", "arm64")


@pytest.fixture(scope="session")
def library(engine_library):
    """The C functions of the engine's layers."""
    return Kernels(engine_library)


@pytest.fixture(
    params=("plain", "neon") if ARM else ("plain", "avx2", "avx512", "avx512vnni")
)
def kernels(library, request):
    """The same, with each instruction set in turn."""
    if not library.force(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield library
    library.force("")


@pytest.fixture
def rng():
    return np.random.default_rng(3)
