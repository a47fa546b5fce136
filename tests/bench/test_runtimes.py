"""Run times against each other: every one computes, and is timed as often."""

import json

import pytest

from espnet_omnisparse.bench.random_net import masked, write_size
from espnet_omnisparse.cli import main
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.runtime.library import VARIABLE


def test_all_run_times_are_timed_alike(tmp_path, capsys, engine_library, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv(VARIABLE, str(engine_library))
    out = tmp_path / "times.jsonl"
    arguments = "--random 1x64 --chunks 4 --rounds 2 --seconds 1 --sparsity 0.8"
    main(["bench", *arguments.split(), "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [row["name"] for row in rows]
    assert len(set(names)) == 8 and "ONNX Runtime int8" in names
    for row in rows:
        assert len(row["whole"]) == 2 and min(row["whole"]) > 0
        assert len(row["chunks"]["4"]) == 24 and row["cpu"]
    size = {row["name"]: row["bytes"] for row in rows}
    assert size["engine int8, 80% zeros"] < size["engine fp32, 80% zeros"]
    assert size["engine fp32, 80% zeros"] < size["engine fp32, 0% zeros"]
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in names)


def test_a_random_net_is_masked_as_asked(tmp_path):
    write_size(tmp_path / "net", 1, 64, Chunk(4, 8))
    model = masked(family.load_size(tmp_path / "net"), 0.75)
    weight = model.encoder.encoders[0].feed_forward.w_1.weight
    assert (weight == 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert (model.encoder.embed.conv[2].weight == 0).any()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("", "Name models, or give --random"),
        ("--random 12", "must be such as 12x256"),
        ("--random 1x64 --sparsity 2", "between 0 and 1"),
        ("--random 1x64 --chunks 4 8", "one size of --chunks"),
    ],
)
def test_mistakes_are_told_in_one_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit):
        main(["bench", *arguments.split()])
    assert sentence in capsys.readouterr().err
