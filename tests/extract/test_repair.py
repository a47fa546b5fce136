import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.tiny import changed, transducer_config
from helpers.trained import assert_same_tensors, load
from helpers.training import CONFIG, Corpus, train, write_corpus

from espnet_omnisparse.core.mask import Pattern, nonzero_groups
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import (
    extract_size,
    load_size,
    read_config,
    selected_specs,
)
from espnet_omnisparse.extract.repair import (
    Repair,
    own_options,
    repair_of,
    training_config,
)
from espnet_omnisparse.recipe.options import length_of
from espnet_omnisparse.report.results import read_size
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.tasks import OmniASRTask, OmniASRTransducerTask
from espnet_omnisparse.train.journal import read_log
from espnet_omnisparse.train.kept_zeros import keep_zeros, zeros_of

# 20 updates, of which 11 are a ramp to 75 % zeros
SPARSE = changed(
    CONFIG,
    {
        "encoder": "omni_sparse_conformer",
        "encoder_conf": {"pattern": "8x1", "conv_norm": "layer_norm"},
        "model_conf": {"supernet": None},
    },
)
SUPERNET = {
    "sizes": {"s75": {"sparsity": 0.75}},
    "sparsity": {"final": 0.75, "ramp": 11, "sandwich": ["dense", "sparsest"]},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def supernet(corpus, tmp_path_factory) -> Path:
    """A trained supernet of sparsities."""
    exp = tmp_path_factory.mktemp("exp") / "asr_net"
    conf = {"model_conf": {"ctc_weight": 1.0, "supernet": SUPERNET}}
    base = {**SPARSE, "model_conf": conf["model_conf"]}
    assert train(corpus.command(exp, base), exp.with_suffix(".log")).code == 0
    return exp


def begun(supernet: Path, folder: Path, length: int | float) -> tuple[Repair, Path]:
    """The repair of a freshly extracted size, in a folder of its own."""
    size = folder / "asr_net_s75"
    checkpoint = supernet / "valid.loss_sizes.ave.pth"
    extract_size(supernet, checkpoint, selected_specs(supernet)["s75"], size)
    repair = repair_of(supernet, size, length, "")
    config = repair.begin()
    assert config is not None
    return repair, config


def command(corpus: Corpus, repair: Repair, config: Path) -> list[str]:
    """What the recipe's stage 11 runs: the configuration, and asr.sh's arguments."""
    given = {name: CONFIG[name] for name in ("ngpu", "token_list", "token_type")}
    init = ["--init_param", str(repair.size / "model.pth")]
    base = {**yaml.safe_load(config.read_text()), **given}
    return [*corpus.command(repair.training, base), *init]


@pytest.fixture(scope="module")
def repaired(corpus, supernet, tmp_path_factory) -> Repair:
    """An uninterrupted repair of half of the training: 2 epochs of 5 updates."""
    repair, config = begun(supernet, tmp_path_factory.mktemp("repair"), 0.5)
    done = train(command(corpus, repair, config), repair.training / "log")
    assert done.code == 0, done.output
    repair.finish()
    return repair


def test_zeros_stay_and_all_else_is_trained(repaired):
    before = dict(load_size(repaired.size).named_parameters())
    after = dict(load_size(repaired.out).named_parameters())
    assert before.keys() == after.keys()
    masked = 0
    for name, weight in before.items():
        zero = weight == 0
        if weight.dim() > 1:
            assert torch.equal(zero, after[name] == 0), name
            assert not torch.signbit(after[name][zero]).any(), name  # bit for bit
            masked += int(zero.sum())
        assert not torch.equal(weight, after[name]), name
    assert masked > 0.7 * sum(one.numel() for one in maskable(before))


def maskable(weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Those of the blocks' linear layers and pointwise convolutions."""
    linear = (
        *("w_1", "w_2", "linear_q", "linear_k", "linear_v", "linear_out"),
        *("pointwise_conv1", "pointwise_conv2", "linear_pos"),
    )
    return [
        w
        for n, w in weights.items()
        if n.endswith("weight") and n.split(".")[-2] in linear
    ]


def test_a_repaired_size_is_the_size_under_another_name(repaired):
    size, other = read_size(repaired.size), read_size(repaired.out)
    assert (size.label, other.label) == ("s75", "s75-repaired")
    assert other.cost["nonzero_parameters"] == size.cost["nonzero_parameters"]
    assert (size.kept, size.of, size.sparse) == (other.kept, other.of, other.sparse)
    assert (size.repair_updates, other.repair_updates) == (0, 10)
    ours, theirs = read_config(repaired.out), read_config(repaired.size)
    assert {**ours, "output_dir": ""} == {**theirs, "output_dir": ""}
    assert repaired.begin() is None  # it is there


def test_its_cost_is_that_of_its_training(repaired):
    log = read_log(repaired.training)
    assert [(line["epoch"], line["update"]) for line in log] == [(1, 5), (2, 10)]
    result = read_size(repaired.out)
    seconds = sum(line["train_seconds"] for line in log)
    assert result.repair_seconds == pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize("time", [1, 2])
def test_an_interrupted_repair_ends_as_an_uninterrupted_one(
    time, repaired, corpus, supernet, tmp_path
):
    repair, config = begun(supernet, tmp_path, 0.5)
    arguments, log = command(corpus, repair, config), tmp_path / "log"
    killed = train(arguments, log, kill_in_save=("checkpoint.pth", time))
    assert killed.code == -9
    with pytest.raises(UserError, match="has not come to its end"):
        repair.finish()
    assert repair.begin() is not None  # and what is trained stays
    done = train(arguments, log)
    assert done.code == 0, done.output
    repair.finish()
    ours, theirs = load(repair.out / "model.pth"), load(repaired.out / "model.pth")
    assert_same_tensors(ours, theirs)
    assert read_size(repair.out).repair_updates == 10


def test_another_length_is_another_training(supernet, tmp_path):
    repair, config = begun(supernet, tmp_path, 0.5)
    (repair.training / "checkpoint.pth").touch()
    longer = repair_of(supernet, repair.size, 20, "")
    assert longer.begin() == config
    assert not (repair.training / "checkpoint.pth").exists()
    written = yaml.safe_load(config.read_text())
    assert (written["max_epoch"], written["num_iters_per_epoch"]) == (4, 5)
    assert written["scheduler_conf"]["warmup_lr_list"] == [0.0, 0.001, 0.0]


def test_either_task_reads_its_configuration(tmp_path):
    config = json.loads(json.dumps(transducer_config()))
    with pytest.raises(UserError, match="optim_conf.lr"):
        training_config(config, 50, 20)
    made = training_config({**config, "optim_conf": {"lr": 0.002}}, 50, 20)
    path = tmp_path / "repair.yaml"
    path.write_text(yaml.safe_dump(made))
    parser = OmniASRTransducerTask.get_parser()
    read = parser.parse_args(["--config", str(path), "--output_dir", "unused"])
    assert read.keep_zeros and read.encoder_conf == config["encoder_conf"]
    assert (read.max_epoch, read.num_iters_per_epoch) == (2, 25)


def test_arguments_of_the_process_are_no_defaults(monkeypatch):
    """ESPnet reads them into its defaults; some of a command are ambiguous there."""
    parser = OmniASRTask.get_parser()
    given = ["--output_dir", "unused", "--batch_bins", "777", "--grad_clip", "3.0"]
    config = vars(parser.parse_args(given))
    monkeypatch.setattr("sys.argv", ["omnisparse"])
    expected = own_options(config)
    assert expected["batch_bins"] == 777 and expected["grad_clip"] == 3.0
    argv = ["omnisparse", "shrink", "--data", "train", "--batch_bins", "777"]
    monkeypatch.setattr("sys.argv", argv)
    assert own_options(config) == expected
    assert sys.argv == argv


def test_zeros_hold_whatever_moves_the_weights(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[:, ::2] = 0.0
        layer.bias[:] = 0.0
    path = tmp_path / "model.pth"
    torch.save(layer.state_dict(), path)
    zeros = zeros_of([str(path)])
    assert list(zeros) == ["weight"]  # a bias of zero is a beginning
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    keep_zeros(layer, zeros, [optimizer])
    for _ in range(3):
        layer(torch.randn(4, 8)).square().sum().backward()
        assert layer.weight.grad[:, ::2].eq(0).all()
        layer.weight.grad += torch.randn(8, 8)  # as ESPnet's grad_noise does
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(layer.weight == 0, zeros["weight"])
    assert layer.bias.ne(0).all()
    assert nonzero_groups(layer.weight.detach(), Pattern(8, 1)) == 4


def test_keep_zeros_needs_a_file():
    for wrong in ([], ["a.pth", "b.pth"], ["a.pth:encoder"]):
        with pytest.raises(UserError, match="--init_param with one whole model file"):
            zeros_of(wrong)


def test_lengths_of_the_command_line():
    assert [length_of(one) for one in ("0", "300", "0.05", "1.0")] == [0, 300, 0.05, 1]
    for wrong in ("1.5", "-1", "some"):
        with pytest.raises(UserError, match="--repair is a number of updates"):
            length_of(wrong)


def test_names_of_repaired_sizes_are_taken():
    with pytest.raises(UserError, match="ends in -repaired"):
        SupernetConfig.read({"sizes": {"s90-repaired": 4}})
