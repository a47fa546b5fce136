"""What version 0.1 has written still loads, and computes what it did."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_helpers import train, write_corpus

from espnet_omnisparse.core.spec import fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.extract import experiment
from espnet_omnisparse.files import load_tensors, read_yaml
from espnet_omnisparse.train.journal import read_log, read_specs

MADE = Path(__file__).parent / "made_by_0.1"
CHECKPOINT = "valid.loss_sizes.ave.pth"
SIZES = {"layer": "small", "weight": "s50"}


def log_probabilities(model):
    noise = torch.Generator().manual_seed(7)
    speech = torch.randn(2, 9600, generator=noise)
    with torch.no_grad():
        encoded, _ = model.encode(speech, torch.tensor([9600, 8000]))
        return model.ctc.log_softmax(encoded)


def expected(name):
    return torch.load(MADE / "expected.pt", weights_only=True)[name]


@pytest.mark.parametrize("name", SIZES)
def test_a_supernet_loads_and_computes_the_same(name):
    config = experiment.read_config(MADE / name)
    model = experiment.build(config, load_tensors(MADE / name / CHECKPOINT))
    assert torch.allclose(log_probabilities(model), expected(name), atol=1e-5)


@pytest.mark.parametrize("name, size", SIZES.items())
def test_a_size_loads_and_computes_the_same(name, size):
    folder = MADE / f"{name}_{size}"
    model = experiment.load_size(folder)
    found = log_probabilities(model)
    assert torch.allclose(found, expected(folder.name), atol=1e-5)


@pytest.mark.parametrize("name, size", SIZES.items())
def test_a_size_is_cut_out_as_it_was(name, size):
    config = experiment.read_config(MADE / name)
    state = load_tensors(MADE / name / CHECKPOINT)
    spec = read_specs(MADE / name / "subnets")[size]
    small_config, small = experiment.cut(config, state, spec)
    stored = load_tensors(MADE / f"{name}_{size}" / "model.pth")
    model = experiment.build(small_config, small)
    assert model.state_dict().keys() == stored.keys()
    for key, tensor in stored.items():
        # all but the statistics of BatchNorm, which extraction re-estimates
        if ".norm.running_" not in key and "num_batches" not in key:
            assert torch.equal(small[key], tensor), key
    assert spec.supernet == fingerprint(state, config["token_list"])
    shown = read_spec(MADE / f"{name}_{size}" / "subnet.yaml")
    assert shown == spec


@pytest.mark.parametrize("path", sorted(MADE.glob("*/subnets/*.yaml")), ids=str)
def test_a_spec_is_written_as_it_was(path, tmp_path):
    write_spec(read_spec(path), tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == path.read_text()


@pytest.mark.parametrize("name", SIZES)
def test_the_log_of_the_selection_is_read(name):
    lines = (MADE / name / "selection_log.jsonl").read_text().splitlines()
    assert read_log(MADE / name) == [json.loads(line) for line in lines]


def test_a_training_goes_on(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    output = tmp_path / "exp"
    shutil.copytree(MADE / "layer", output)
    config = read_yaml(MADE / "layer/config.yaml")
    kept = ("frontend_conf", "encoder_conf", "model_conf")
    changes = {name: config[name] for name in kept}
    changes |= {"max_epoch": 5, "keep_nbest_models": 1}
    command = corpus.command(output, **changes)
    outcome = train(command, tmp_path / "log")
    assert outcome.code == 0, outcome.output
    assert [line["update"] for line in read_log(output)] == [5, 10, 15, 20, 25]
    before = read_specs(MADE / "layer/subnets")
    assert read_specs(output / "subnets") == before  # step 2 grows, nothing reopens
