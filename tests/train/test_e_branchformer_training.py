"""Whole trainings of an E-Branchformer, with masks and parts in all of its block."""

import shutil

import pytest
import torch
from espnet2.bin.asr_inference import Speech2Text
from helpers.trained import assert_same_tensors, load
from helpers.training import CONFIG, assert_goes_on, train

from espnet_omnisparse import cli
from espnet_omnisparse.core.spec_yaml import read_spec
from espnet_omnisparse.cost.count import count_packed_bytes
from espnet_omnisparse.extract import experiment
from espnet_omnisparse.files import read_yaml

# warm start to 2, step 1 to 7, ramp to 12, settled from 16 of 20 updates
TRAINING = {
    **CONFIG,
    "encoder": "omni_sparse_e_branchformer",
    "encoder_conf": {
        **{"output_size": 16, "attention_heads": 2, "linear_units": 32},
        **{"cgmlp_linear_units": 32, "cgmlp_conv_kernel": 7, "num_blocks": 2},
        **{"use_ffn": True, "macaron_ffn": True, "use_linear_after_conv": True},
        **{"rel_pos_type": "latest", "granularity": "component", "pattern": "4x1"},
    },
    "model_conf": {
        "ctc_weight": 1.0,
        "supernet": {
            "method": "ortho_softmax",
            "step1": 5,
            "score_lr": 0.1,
            "sizes": {
                "small": {"units": 10, "sparsity": 0.8},
                "medium": {"params": "16k", "sparsity": 0.4},
            },
            "sparsity": {
                **{"final": 0.8, "ramp": 5, "refresh": 3, "settle": 0.2},
                "own": "norms_and_biases",
            },
            "warm_start": 2,
        },
    },
}


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    exp = tmp_path_factory.mktemp("uninterrupted") / "exp"
    outcome = train(corpus.command(exp, TRAINING), exp.with_name("log"))
    assert outcome.code == 0, outcome.output
    return exp


@pytest.mark.parametrize("update", [6, 11, 18])
def test_a_training_killed_in_each_phase_goes_on_as_if_nothing_had_been(
    corpus, uninterrupted, tmp_path, update
):
    exp = tmp_path / "exp"
    assert_goes_on(corpus.command(exp, TRAINING), exp, update, uninterrupted)


def test_its_sizes_are_extracted_and_searched(uninterrupted, tmp_path, capsys):
    exp, out = tmp_path / "exp", str(tmp_path / "size")
    shutil.copytree(uninterrupted, exp, symlinks=True)
    budgets = ["--budgets", "60% 125kB", "--population", "3", "--generations", "1"]
    cli.main(["search", str(exp), *budgets, "--profile", "1"])
    assert "merge.merge_proj" in capsys.readouterr().out
    cli.main(["extract", str(exp), "--out", out])
    net = experiment.build(read_yaml(exp / "config.yaml")).eval()
    net.load_state_dict(load(exp / "valid.loss_sizes.ave.pth"), strict=True)
    net.encoder.refresh_masks()
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(2, 60, 80, generator=generator), torch.tensor([60, 51])
    zeros = {}
    for name in ("small", "medium", "full", "60pct", "125kB"):
        folder = tmp_path / f"size_{name}"
        spec, state = read_spec(folder / "subnet.yaml"), load(folder / "model.pth")
        model = Speech2Text(folder / "config.yaml", folder / "model.pth").asr_model
        assert_same_tensors(dict(model.state_dict()), state)
        with torch.no_grad():
            expected = net.encoder(*feats, None, spec.gates(), spec.sparsity)[0]
            found = model.encoder(*feats)[0]
        assert torch.allclose(found, expected, atol=1e-5, rtol=0)
        zeros[name] = [
            float((state[tensor] == 0).float().mean())
            for tensor in state
            if tensor.endswith(("merge_proj.weight", "csgu.linear.weight"))
        ]
        if name == "125kB":
            assert count_packed_bytes(model, spec.space.pattern) <= 125e3
    assert zeros["full"] == [0.0] * 4
    assert all(0.2 < share < 1.0 for share in zeros["medium"])
    assert all(0.5 < share < 1.0 for share in zeros["small"])
