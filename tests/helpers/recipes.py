"""Copies of the recipes, their runs, and a small configuration to run them with."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from espnet_omnisparse.recipe import sclite, template
from helpers import REPOSITORY
from helpers.tiny import TRAINING, changed

SIZES = ("small", "medium", "full")
#: Of a small hybrid model, as a recipe's configuration names it.
CONFORMER = {
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "num_blocks": 3,
        "rel_pos_type": "latest",
        "macaron_style": True,
        "use_cnn_module": True,
        "cnn_module_kernel": 7,
        "stochastic_depth_rate": 0.1,
    },
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 16, "num_blocks": 1},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
}


def copy_recipe(folder: Path) -> Path:
    """The LibriSpeech recipe, without what runs have left in a checkout."""
    asr1 = folder / "egs2" / "librispeech" / "asr1"
    source = REPOSITORY / "egs2" / "librispeech" / "asr1"
    asr1.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "conf", folder / "conf")
    shutil.copytree(source / "conf", asr1 / "conf", symlinks=True)
    (asr1 / "local").mkdir()
    shutil.copy(source / "local" / "data.sh", asr1 / "local")
    shutil.copy(source / "run.sh", asr1)
    return asr1


def recipe_environment(folder: Path, **variables: str) -> dict[str, str]:
    """This Python and package, no network, nobody's git settings."""
    home = folder.with_name("home")
    home.mkdir(exist_ok=True)
    dead = "http://127.0.0.1:9"
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        **dict.fromkeys(proxies, dead),
        "no_proxy": "",
        "HF_HUB_OFFLINE": "1",
        "ESPNET_ROOT": str(template.locate()),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VENV": str(folder / "none"),
        **variables,
    }


def run(asr1: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs the recipe's run.sh."""
    return subprocess.run(
        ["./run.sh", *options],
        cwd=asr1,
        env=recipe_environment(asr1.parents[2], **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def refusal(asr1: Path, *options: str, **variables: str) -> str:
    """The one sentence with which run.sh refuses, having written nothing."""
    work = asr1.parents[2]
    before = sorted(work.rglob("*"))
    done = run(asr1, *options, **variables)
    assert done.returncode == 1, done.stdout
    lines = [line for line in done.stdout.splitlines() if "Flash Attention" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stdout
    assert sorted(work.rglob("*")) == before
    return lines[0]


#: of the small corpus; 2 epochs suffice for every stage
TINY = changed(
    TRAINING,
    {
        "batch_type": "numel",
        "batch_bins": 800000,
        "max_epoch": 2,
        "seed": 1,
        "keep_nbest_models": 1,
        "encoder_conf": {"conv_norm": "batch_norm"},
        "model_conf": {"supernet": {"step1": 0.4}},
    },
)
#: stands in for ESPnet's utils/parse_options.sh
PARSE = """
    while [ $# -gt 1 ] && [[ "$1" == --* ]]; do
        name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2
    done
    """


def run_sclite(folder: Path, reference: str, hypothesis: str, *options: str) -> None:
    """Writes the two files and scores them as a recipe does."""
    paths = folder / "ref.trn", folder / "hyp.trn"
    for path, text in zip(paths, (reference, hypothesis), strict=True):
        path.write_text(text, encoding="utf-8")
    files = ["-r", str(paths[0]), "trn", "-h", str(paths[1]), "trn"]
    sclite.main([*options, *files, "-i", "rm", "-o", "all", "stdout"])
