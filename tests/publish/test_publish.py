"""A family on a Hub: the real library against a small server of the tests."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet_model_zoo.downloader import ModelDownloader
from helpers.hub import TOKEN, serving
from helpers.tiny import FEATURES, FRONTEND, TOKENS, asr_config
from huggingface_hub import constants

from espnet_omnisparse import cli
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import write_spec
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.names import CHECKPOINT
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.report.timing import time_models

EXP = Path("exp/asr_x")
SMALL, WHOLE = Path("exp/asr_x_small"), Path("exp/asr_x_full")
STATS = Path("exp/stats/train/feats_stats.npz")
TABLE = (
    "| Sum/Avg | 4 50 | 90.0 6.0 4.0 2.0 12.0 50.0 |",
    "| Sum/Avg | 4 50 | 96.0 2.0 2.0 0.0 4.0 25.0 |",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A recipe's folder with a supernet, two scored sizes and an exported one."""
    home = tmp_path_factory.mktemp("recipe")
    before = Path.cwd()
    os.chdir(home)
    try:
        write_family()
    finally:
        os.chdir(before)
    return home


def write_family():
    STATS.parent.mkdir(parents=True)
    mean = np.full(FEATURES, -5.0)
    np.savez(STATS, count=100, sum=100 * mean, sum_square=100 * (mean**2 + 4.0))
    config = asr_config(
        {"causal": True, "conv_norm": "layer_norm", "chunk": {"size": 8, "left": 16}},
        token_type="char",
        input_size=None,
        frontend="default",
        frontend_conf={**FRONTEND, "n_mels": FEATURES},
        normalize="global_mvn",
        normalize_conf={"stats_file": str(STATS)},
    )
    write_yaml(EXP / "config.yaml", json.loads(json.dumps(config, default=str)))
    torch.manual_seed(0)
    state = family.build(config).state_dict()
    save_tensors(EXP / CHECKPOINT, state)
    space = SearchSpace(3)
    for name, kept in (("small", 4), (FULL, 12)):
        mask = tuple(unit < kept for unit in range(len(space)))
        mark = fingerprint(state, TOKENS)
        write_spec(SubnetSpec(name, mark, space, mask), EXP / f"subnets/{name}.yaml")
    cli.main(["extract", str(EXP)])
    for folder, row in zip((SMALL, WHOLE), TABLE, strict=True):
        scored = folder / "ctc/test/score_wer"
        scored.mkdir(parents=True)
        (scored / "result.txt").write_text(f"{row}\n")
    Path("exp/asr_x_small_packed_int8.omni").write_bytes(b"packed")
    Path("exp/asr_x_small_onnx").mkdir()
    Path("exp/asr_x_small_onnx/ctc.onnx").write_bytes(b"graph")


@pytest.fixture
def publish(home, monkeypatch, capsys):
    """Runs the command against a hub; gives what it printed, or its one sentence."""

    def run(url, *options, token=TOKEN):
        monkeypatch.chdir(home)
        # what the library has read from HF_ENDPOINT and the like when it was imported
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # the Hub's own storage, which the server has not
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no_token"))
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        capsys.readouterr()
        try:
            cli.main(["publish", str(EXP), *options])
        except SystemExit as end:
            assert end.code == 1
            error = capsys.readouterr().err.splitlines()[-1]
            assert error.startswith("error: ") and error.endswith(".")
            return error
        return capsys.readouterr().out

    return run


def test_without_yes_nothing_is_sent(publish):
    with serving() as hub:
        shown = publish(hub.url, "--repo", "me/x", token=None)
        assert (hub.repos, hub.sent, hub.commits) == ({}, [], [])
    heads = re.findall(r"^(me/\S+): \d+ files", shown, re.MULTILINE)
    assert heads == ["me/x-small", "me/x-full", "me/x"]
    assert "  exp/asr_x_small/model.pth  " in shown
    assert f"  {STATS}  " in shown and "model_int8.omni  6 bytes" in shown
    assert shown.splitlines()[-1].startswith("Nothing was sent")


def test_what_is_uploaded_loads_in_espnet_and_tells_what_it_is(
    publish, home, tmp_path, monkeypatch
):
    monkeypatch.chdir(home)
    timing = time_models([SMALL, WHOLE], EXP / "rtf.json", 1)
    options = ("--repo", "me/x", "--yes", "--private", "--licence", "cc-by-4.0")
    options += ("--language", "en", "--data", "Own speech")
    with serving() as hub:
        shown = publish(hub.url, *options)
        assert f"uploaded: {hub.url}/me/x-small" in shown
        assert hub.commits == ["me/x-small", "me/x-full", "me/x"]
        assert all(hub.private.values())
        sent, repo = list(hub.sent), dict(hub.repos["me/x-small"])
        publish(hub.url, *options)
        assert (hub.sent, hub.repos["me/x-small"]) == (sent, repo)
        assert len(hub.commits) == 3  # there was nothing to commit
    assert repo["model_int8.omni"] == b"packed" and repo["onnx/ctc.onnx"] == b"graph"
    supernet = {f"exp/asr_x/subnets/{name}.yaml" for name in ("small", "full")}
    assert supernet <= {*hub.repos["me/x"]}

    _, head, text = repo["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(head)
    assert (data["license"], data["language"]) == ("cc-by-4.0", "en")
    row = next(line for line in text.splitlines() if line.startswith("| **[x-small]"))
    cost = json.loads((SMALL / "cost.json").read_text())
    assert f"| {cost['parameters'] / 1e6:.3f} |" in row and row.endswith("| 12.0 |")
    assert f"| {timing.medians[str(SMALL)]:.4f} |" in row
    assert "(https://huggingface.co/me/x-full)" in text and "Own speech" in text
    assert timing.environment["CPU"] in text

    elsewhere = tmp_path / "downloaded"
    for name, content in repo.items():
        path = elsewhere / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    files = ModelDownloader._unpack_cache_dir_for_huggingface(str(elsewhere))
    recognise = Speech2Text(**files, ctc_weight=1.0, beam_size=1)
    ours = family.load_size(home / SMALL).state_dict()
    for name, tensor in recognise.asr_model.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


def test_a_broken_upload_resumes(publish):
    options = ("--repo", "me/x", "--yes")
    with serving() as hub:
        hub.breaks_after = 3
        assert "again" in publish(hub.url, *options)
        first = list(hub.sent)
        assert len(first) == 3
        hub.breaks_after = None
        publish(hub.url, *options)
        assert hub.sent[:3] == first and len({*hub.sent}) == len(hub.sent)
        assert {*hub.repos} == {"me/x", "me/x-small", "me/x-full"}
        assert hub.repos["me/x"][f"exp/asr_x/{CHECKPOINT}"]


def test_mistakes_are_told_in_a_sentence(publish):
    yes = ("--repo", "me/x", "--yes")
    with serving() as hub:
        assert "hf auth login" in publish(hub.url, *yes, token=None)
        assert "token" in publish(hub.url, *yes, token="hf_wrong")
        assert "you/x-small" in publish(hub.url, "--repo", "you/x", "--yes")
        for name in ("x", "me/x/y", "me/x y"):
            assert "USER/NAME" in publish(hub.url, "--repo", name)
        missing = publish(hub.url, "--repo", "me/x", "--checkpoint", "none.pth")
        assert "none.pth" in missing
    assert "cannot be reached" in publish("http://127.0.0.1:9", *yes)
