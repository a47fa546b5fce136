import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
RECOGNISE = """
import numpy
speech = numpy.random.RandomState(0).randn(16000).astype("float32")
print("text:", repr(speech2text(speech)[0][0]))
"""


def code_block(language, containing):
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return block


@pytest.fixture
def small_size(tmp_path, tiny_config, build, monkeypatch):
    """`exp/asr_x_small`, recognising waveforms, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    config.update(input_size=None, frontend="default", frontend_conf={"n_mels": 20})
    config.update(token_type="char", bpemodel=None)
    state = build(config).state_dict()
    write_yaml("exp/asr_x/config.yaml", config)
    save_tensors("exp/asr_x/model.pth", state)
    mask = torch.arange(12) % 3 == 0
    spec = SubnetSpec(
        "small",
        fingerprint(state, config["token_list"]),
        SearchSpace(3),
        tuple(mask.tolist()),
    )
    out = Path("exp/asr_x_small")
    family.extract_size(Path("exp/asr_x"), Path("exp/asr_x/model.pth"), spec, out)
    return tmp_path


def test_the_lines_of_the_readme_load_and_run_a_size(small_size):
    block = code_block("python", "Speech2Text")
    assert len(block.strip().splitlines()) == 3
    done = subprocess.run(
        [sys.executable, "-c", block + RECOGNISE],
        cwd=small_size,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("text: '")


def test_every_package_is_on_the_readmes_map():
    packages = (REPOSITORY / "espnet_omnisparse").glob("*/__init__.py")
    names = {path.parent.name for path in packages}
    table = README.split("## Map of the code")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)/`", "".join(r.split("|")[1] for r in rows))) == names
    assert len(rows) <= 12


def test_every_option_is_on_the_options_page():
    from espnet_omnisparse.recipe.options import OWN_OPTIONS
    from espnet_omnisparse.supernet.config import SupernetConfig

    page = (REPOSITORY / "docs" / "options.md").read_text()
    options = list(SupernetConfig.model_fields)
    options += [f"--{name}" for name in OWN_OPTIONS]
    assert [name for name in options if f"`{name}" not in page] == []
