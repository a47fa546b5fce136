"""Packaging of espnet-omnisparse; every dependency is named here and only here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
init = (here / "espnet_omnisparse" / "__init__.py").read_text(encoding="utf-8")
# read, not imported: importing the package may need what is about to be installed
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE).group(1)

demo = ["espeakng-loader"]

setup(
    name="espnet-omnisparse",
    version=version,
    description="Train one ESPnet supernet, get an ordinary model at every size",
    license="Apache-2.0",
    python_requires=">=3.12,<3.14",
    packages=find_packages(include=["espnet_omnisparse", "espnet_omnisparse.*"]),
    package_data={"espnet_omnisparse.recipe": ["bin/*"]},
    install_requires=[
        # one release: the template is pinned to it and others have other import paths
        "espnet[asr,train]>=202611,<202612",
        "espnet-model-zoo",
        # ESPnet's bounds, repeated: without them pip first downloads a newer PyTorch
        "torch>=2.11,<2.15",
        "torchaudio>=2.11,<2.12",
        "sentencepiece",
        "kaldiio",
        "editdistance",
        "pyyaml",
        # audio block by block, and resampled so; ESPnet brings both
        "soundfile",
        "soxr",
    ],
    extras_require={
        "demo": demo,
        "dev": ["pytest", "ruff", "black", *demo],
    },
    entry_points={"console_scripts": ["omnisparse = espnet_omnisparse.cli:main"]},
)
