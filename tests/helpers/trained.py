"""What a training has left in its folder, and whether two have left the same."""

import json
from pathlib import Path

import torch


def load(path: Path) -> dict:
    """The tensors of a file, and whatever else it holds."""
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_same_tensors(found: dict, expected: dict) -> None:
    """Two state dicts are the same, bit by bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def history(exp: Path) -> list[dict]:
    """The lines of the selection log, without their times."""
    lines = [json.loads(x) for x in (exp / "selection_log.jsonl").open()]
    for line in lines:
        del line["train_seconds"]
    return lines


def subnets(exp: Path) -> dict[str, str]:
    """The text of each size's file."""
    return {p.name: p.read_text() for p in sorted((exp / "subnets").iterdir())}


def assert_same_training(found: Path, expected: Path, dense: bool = True) -> None:
    """Weights, scores, selection, optimiser and averages are the same, bit by bit."""
    assert_same_tensors(load(found / "4epoch.pth"), load(expected / "4epoch.pth"))
    average = "valid.loss_sizes.ave.pth"
    assert_same_tensors(load(found / average), load(expected / average))
    assert history(found) == history(expected)
    assert subnets(found) == subnets(expected)
    sizes = {"small.yaml", "medium.yaml"} | ({"full.yaml"} if dense else set())
    assert set(subnets(found)) == sizes
    ours = load(found / "checkpoint.pth")
    theirs = load(expected / "checkpoint.pth")
    assert_same_tensors(ours["model"], theirs["model"])
    assert ours["schedulers"] == theirs["schedulers"]
    for one, other in zip(ours["optimizers"], theirs["optimizers"], strict=True):
        assert one["param_groups"] == other["param_groups"]
        for index, state in other["state"].items():
            assert_same_tensors(one["state"][index], state)
