"""Packaging of espnet-omnisparse; every dependency is named here and only here."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

here = Path(__file__).parent
init = (here / "espnet_omnisparse" / "__init__.py").read_text(encoding="utf-8")
# read, not imported: importing the package may need what is about to be installed
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE).group(1)

demo = ["espeakng-loader"]
# the engine of packed files; without a compiler the rest is installed without it
csrc = Path("espnet_omnisparse") / "runtime" / "csrc"
engine = Extension(
    "espnet_omnisparse.runtime.omnisparse_engine",
    sources=sorted(str(path) for path in (csrc / "src").rglob("*.cpp")),
    depends=sorted(str(path) for path in csrc.rglob("*.h")),
    include_dirs=[str(csrc / "include")],
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread", "-s"],
    language="c++",
    optional=True,
)
onnx = ["onnx", "onnxruntime"]

setup(
    name="espnet-omnisparse",
    version=version,
    description="Train one ESPnet supernet, get an ordinary model at every size",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords="speech recognition, ESPnet, supernet, pruning, sparsity, Conformer, ASR",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    project_urls={
        "ESPnet": "https://espnet.github.io/espnet/",
        "Layer-wise pruning": "https://arxiv.org/abs/2407.18930",
        "Orthogonal softmax": "https://arxiv.org/abs/2501.18895",
        "Omni-sparsity": "https://arxiv.org/abs/2110.08352",
    },
    python_requires=">=3.12,<3.14",
    packages=find_packages(include=["espnet_omnisparse", "espnet_omnisparse.*"]),
    package_data={
        "espnet_omnisparse.recipe": ["bin/*", "conf/*"],
        "espnet_omnisparse.runtime": ["csrc/**/*"],
    },
    ext_modules=[engine],
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
        # the container of packed files
        "safetensors",
        # options of a configuration as checked values
        "pydantic>=2,<3",
        # audio block by block, and resampled so; ESPnet brings both
        "soundfile",
        "soxr",
        # models on the Hub; ESPnet brings it
        "huggingface_hub",
    ],
    extras_require={
        "demo": demo,
        "onnx": onnx,
        "dev": [
            *("pytest", "ruff", "black"),
            # other run times, to hold exports and features against
            *("sherpa-onnx>=2.0.1", "kaldi-native-fbank"),
            *demo,
            *onnx,
        ],
    },
    entry_points={"console_scripts": ["omnisparse = espnet_omnisparse.cli:main"]},
)
