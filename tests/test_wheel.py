"""What the built package says of itself."""

import re
import shutil
import subprocess
import sys
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import espnet_omnisparse

REPOSITORY = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as build; "
BUILD += "build.prepare_metadata_for_build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Message:
    """The metadata that a wheel of this tree would have."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    skipped = shutil.ignore_patterns("__pycache__")
    package = "espnet_omnisparse"
    shutil.copytree(REPOSITORY / package, source / package, ignore=skipped)
    out = tmp_path_factory.mktemp("metadata")
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True)
    (path,) = out.glob("*.dist-info/METADATA")
    return message_from_string(path.read_text(encoding="utf-8"))


def test_the_metadata_tells_what_the_package_is(told):
    assert told["Version"] == espnet_omnisparse.__version__
    assert told["License-Expression"] == "Apache-2.0"
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert told.get_payload().strip() == readme.strip()
    assert told["Description-Content-Type"] == "text/markdown"
    classifiers = told.get_all("Classifier")
    for version in ("3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert "speech recognition" in told["Keywords"]
    assert len(told.get_all("Project-URL")) >= 2


def test_what_is_imported_is_declared(told):
    needed = {re.match(r"[\w-]+", one)[0] for one in told.get_all("Requires-Dist")}
    assert {"espnet", "torch", "torchaudio", "pydantic", "pyyaml"} <= needed
    assert {"sentencepiece", "kaldiio", "soundfile", "soxr", "editdistance"} <= needed
