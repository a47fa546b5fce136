import hashlib
import json
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from espnet2.bin import split_scps
from helpers import REPOSITORY
from helpers.tiny import changed
from helpers.trained import (
    assert_same_tensors,
    assert_same_training,
    history,
    load,
    subnets,
)
from helpers.training import (
    Corpus,
    draws,
    files_below,
    launch,
    train,
    two_processes,
    write_corpus,
)

from espnet_omnisparse import cli
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.recipe import checks
from espnet_omnisparse.recipe.options import parse

SPARSITIES = {"small": {"sparsity": 0.8}, "medium": {"sparsity": 0.4}}
# 4 epochs of 5 batches; step 1 ends half way, at the end of epoch 2
SETTINGS = {
    # 20 updates
    "batch norm": {},
    # 8 updates, and a batch left over in each epoch
    "accum_grad 2": {
        "accum_grad": 2,
        "encoder_conf": {"conv_norm": "layer_norm"},
        "model_conf": {
            "supernet": {
                "update": "split_batch",
                "heads": "per_size",
                "layer_dropout_step1": 0.2,
                "layer_dropout_step2": 0.2,
            }
        },
    },
    # iterations end at updates 3, 7 and 10; the mask of medium is taken at 7
    "zero-out": {
        "model_conf": {
            "supernet": {
                "method": "iterative_zero_out",
                "method_conf": {"zero_out": 2},
                "score_lr": 3.0,
            }
        },
    },
    "components": {
        "encoder_conf": {"conv_norm": "layer_norm", "granularity": "component"},
        "model_conf": {
            "supernet": {
                "method": "ortho_softmax",
                "fraction_of": "params",
                "sizes": {"small": 0.6, "medium": 0.8},
                "subnet_weight": "adaptive",
                "layer_dropout_step2": 0.1,
            }
        },
    },
    "taylor": {"model_conf": {"supernet": {"method": "taylor"}}},
    "greedy": {"model_conf": {"supernet": {"method": "greedy"}}},
    # the weight axis; no epoch is a multiple of refresh
    # 8 updates, of which 4 are in the ramp
    "distilled": {
        "accum_grad": 2,
        "encoder": "omni_sparse_conformer",
        "encoder_conf": {"conv_norm": "layer_norm"},
        "model_conf": {
            "supernet": {
                "method": "none",
                "sizes": SPARSITIES,
                "sparsity": {
                    "final": 0.8,
                    "ramp": 4,
                    "sandwich": ["dense", "random"],
                    "refresh": 3,
                },
                "warm_start": 1,
                "update": "per_accum",
                "distillation": "alpha",
            }
        },
    },
    # 20 updates, the ramp from 2 to 10
    "pruned": {
        "encoder": "omni_sparse_conformer",
        "model_conf": {
            "supernet": {
                "method": "none",
                "sizes": SPARSITIES,
                "sparsity": {
                    "final": 0.8,
                    "ramp": 0.4,
                    "sandwich": ["sparsest"],
                    "refresh": 3,
                },
                "warm_start": 2,
            }
        },
    },
    # an epoch of five batches does not end with a turn of three nets
    "in turn": {
        "encoder": "omni_sparse_conformer",
        "encoder_conf": {"conv_norm": "layer_norm"},
        "model_conf": {
            "supernet": {
                "method": "none",
                "sizes": SPARSITIES,
                "sparsity": {
                    **{"final": 0.8, "ramp": 4, "settle": 0.4, "refresh": 3},
                    "own": "norms_and_biases",
                    "sandwich": ["dense", "sparsest", "size"],
                },
                "warm_start": 2,
                "update": "in_turn",
            }
        },
    },
    # step 1 from 2 to 7, the ramp to 12
    "both axes": {
        "encoder": "omni_sparse_conformer",
        "encoder_conf": {"pattern": "unstructured"},
        "model_conf": {
            "supernet": {
                "sizes": {
                    "small": {"units": 3, "sparsity": 0.8},
                    "medium": {"sparsity": 0.4},
                },
                "sparsity": {
                    "final": 0.8,
                    "ramp": 5,
                    "sandwich": ["dense", "sparsest", "nearby"],
                    "refresh": 3,
                },
                "warm_start": 2,
                "step1": 5,
                "update": "split_batch",
            }
        },
    },
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """Runs each of SETTINGS from beginning to end, once."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    def finished(name: str) -> Path:
        exp = folder / name.replace(" ", "_")
        if not exp.exists():
            outcome = train(corpus.command(exp, **SETTINGS[name]), folder / "log")
            assert outcome.code == 0, outcome.output
        return exp

    return finished


@pytest.fixture(scope="module")
def launched(corpus, tmp_path_factory):
    """A training through the launcher, as asr.sh starts it, and its output."""
    exp = tmp_path_factory.mktemp("launched") / "exp"
    command = corpus.command(exp, use_tensorboard=True)
    done = launch("-m", "espnet2.bin.asr_train", *command, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return exp, done.stderr


@pytest.fixture(scope="module")
def stock_checkpoint(corpus, tmp_path_factory):
    """A model of ESPnet's own classes, as trained: BatchNorm in the Conv modules."""
    exp = tmp_path_factory.mktemp("stock") / "exp"
    config = {"model": "espnet", "encoder": "conformer", "max_epoch": 1}
    command = corpus.command(
        exp,
        **config,
        encoder_conf={"macaron_style": True, "use_cnn_module": True},
        best_model_criterion=[["valid", "loss", "min"]],
    )
    file = exp.with_suffix(".yaml")
    settings = yaml.safe_load(file.read_text())
    settings["model_conf"] = {"ctc_weight": 1.0}
    file.write_text(yaml.safe_dump(settings))
    outcome = train(command, exp.parent / "log")
    assert outcome.code == 0, outcome.output
    return exp / "1epoch.pth"


@pytest.mark.parametrize("limit", [None, 5])
def test_a_run_on_lists_in_splits_knows_its_length(corpus, tmp_path, limit):
    splits = tmp_path / "splits2"
    lists = [str(corpus.folder / "train" / n) for n in ("wav.scp", "text")]
    lists.append(str(corpus.folder / "train" / "speech_shape"))
    split_scps.split_scps(lists, 2, None, str(splits), "INFO")  # as stage 11 does
    command = corpus.command(
        tmp_path / "exp", max_epoch=2, multiple_iterator=True, num_iters_per_epoch=limit
    )
    train_folder = f"{corpus.folder / 'train'}/"
    command = [one.replace(train_folder, f"{splits}/") for one in command]
    outcome = train(command, tmp_path / "log")
    assert outcome.code == 0, outcome.output
    updates = limit or 2 * 2  # of 10 utterances a split, in batches of 4 and 6
    lines = (tmp_path / "exp" / "selection_log.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines]
    assert [line["update"] for line in last] == [updates, 2 * updates]
    # step 1 is half of the run: the selection is settled when it ends
    assert [line["phase"] for line in last] == ["step2", "step2"]
    state = load(tmp_path / "exp" / "2epoch.pth")
    assert int(state["supernet.updates"]) == 2 * updates


def test_a_null_section_trains_and_is_extracted_as_an_absent_one(
    corpus, tmp_path, capsys
):
    states, costs = {}, {}
    for name in ("absent", "null"):
        exp = tmp_path / name
        command = corpus.command(exp, max_epoch=1)
        file = exp.with_suffix(".yaml")
        settings = yaml.safe_load(file.read_text())
        del settings["model_conf"]["supernet"]
        if name == "null":
            settings["model_conf"]["supernet"] = None
        file.write_text(yaml.safe_dump(settings))
        outcome = train(command, tmp_path / f"{name}.log")
        assert outcome.code == 0, outcome.output
        states[name] = load(exp / "1epoch.pth")
        given = [str(exp), "--checkpoint", "1epoch.pth"]
        cli.main(["extract", *given, "--calibration", "2"])
        cli.main(["profile", f"{exp}_full", "--json", "--rounds", "1"])
        (costs[name],) = json.loads(capsys.readouterr().out.partition("\n")[2]).values()
        costs[name].pop("rtf")
        with pytest.raises(SystemExit):
            cli.main(["search", *given, "--budgets", "50%"])
        assert "was not trained with masks" in capsys.readouterr().err
        given = ["--asr_config", str(file), "--sizes", "small"]
        with pytest.raises(UserError, match="small is not one of full"):
            checks._check_sizes(parse(given))
    assert states["null"].keys() == states["absent"].keys()
    for name, tensor in states["null"].items():
        assert torch.equal(tensor, states["absent"][name]), name
    assert costs["null"] == costs["absent"]


# --- interrupted trainings ---------------------------------------------------------


@pytest.mark.parametrize(
    "setting, update, epoch, settled",
    [
        ("batch norm", 7, 1, False),
        ("batch norm", 17, 3, True),
        ("accum_grad 2", 3, 1, False),
        ("accum_grad 2", 7, 3, True),
        ("zero-out", 8, 1, False),
        ("components", 7, 1, False),
        ("taylor", 7, 1, False),
        ("greedy", 12, 2, True),
        ("distilled", 3, 1, False),
        ("pruned", 7, 1, False),
        ("in turn", 9, 1, False),
        ("both axes", 13, 2, False),
    ],
)
def test_a_training_killed_in_mid_epoch_and_resumed_equals_an_uninterrupted_one(
    corpus, uninterrupted, tmp_path, setting, update, epoch, settled
):
    exp = tmp_path / "exp"
    command = corpus.command(exp, **SETTINGS[setting])
    killed = train(command, tmp_path / "log", kill_at_update=update)
    assert killed.code == -9, killed.output
    assert load(exp / "checkpoint.pth")["reporter"]["epoch"] == epoch
    assert (exp / "subnets").exists() == settled
    resumed = train(command, tmp_path / "log")
    assert resumed.code == 0, resumed.output
    assert "The training was resumed" in resumed.output
    assert_same_training(exp, uninterrupted(setting), dense=setting != "pruned")


def test_gradients_left_over_at_the_end_of_an_epoch_are_not_missed_by_a_resumed_run(
    corpus, uninterrupted, tmp_path
):
    exp = tmp_path / "exp"
    command = corpus.command(exp, **SETTINGS["accum_grad 2"])
    # the resumed run begins where the other one has gradients of epoch 2 left over
    killed = train(command, tmp_path / "log", kill_at_update=5)
    assert killed.code == -9, killed.output
    assert len(history(exp)) == 2
    assert train(command, tmp_path / "log").code == 0
    assert_same_training(exp, uninterrupted("accum_grad 2"))


def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_one(
    corpus, uninterrupted, tmp_path
):
    exp = tmp_path / "exp"
    command = corpus.command(exp)
    killed = train(command, tmp_path / "log", kill_in_save=("checkpoint.pth", 3))
    assert killed.code == -9, killed.output
    assert load(exp / "checkpoint.pth")["reporter"]["epoch"] == 2
    assert list(exp.glob(".checkpoint.pth*"))
    assert train(command, tmp_path / "log").code == 0
    assert not list(exp.glob(".*"))
    assert_same_training(exp, uninterrupted("batch norm"))


def test_a_kill_between_the_two_files_of_an_epoch_loses_neither(
    corpus, uninterrupted, tmp_path
):
    exp = tmp_path / "exp"
    command = corpus.command(exp)
    killed = train(command, tmp_path / "log", kill_in_save=("3epoch.pth", 1))
    assert killed.code == -9, killed.output
    assert not (exp / "3epoch.pth").exists()
    assert load(exp / "checkpoint.pth")["reporter"]["epoch"] == 3
    assert train(command, tmp_path / "log").code == 0
    assert_same_training(exp, uninterrupted("batch norm"))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_corrupt_checkpoint_gets_one_sentence_and_stays(
    corpus, uninterrupted, tmp_path, damage
):
    exp = tmp_path / "exp"
    exp.mkdir()
    whole = (uninterrupted("batch norm") / "checkpoint.pth").read_bytes()
    content = {"truncated": whole[:-1000], "garbage": b"garbage", "empty": b""}[damage]
    (exp / "checkpoint.pth").write_bytes(content)
    outcome = train(corpus.command(exp), tmp_path / "log")
    assert "checkpoint.pth is corrupt" in outcome.sentence
    assert (exp / "checkpoint.pth").read_bytes() == content
    assert not (exp / "1epoch.pth").exists()


def test_a_finished_training_started_again_changes_nothing(corpus, tmp_path):
    exp = tmp_path / "exp"
    command = corpus.command(exp, max_epoch=2)
    assert train(command, tmp_path / "log").code == 0
    before = {
        name: hashlib.sha256((exp / name).read_bytes()).hexdigest()
        for name in ("2epoch.pth", "checkpoint.pth", "selection_log.jsonl")
    }
    assert train(command, tmp_path / "log").code == 0
    for name, checksum in before.items():
        assert hashlib.sha256((exp / name).read_bytes()).hexdigest() == checksum


# --- what a training leaves --------------------------------------------------------


def test_every_file_of_a_training_loads_without_unpickling_code(launched):
    exp, _ = launched
    files = sorted(exp.glob("*.pth"))
    assert {"checkpoint.pth", "4epoch.pth", "valid.loss_sizes.ave.pth"} <= {
        path.name for path in files
    }
    for path in files:
        load(path)


def test_averages_contain_no_epoch_of_step_1(launched):
    exp, output = launched
    # step 1 takes the whole of epochs 1 and 2; keep_nbest_models asks for 10
    assert "keep_nbest_models [10] -> [2]" in output
    average = load(exp / "valid.loss_sizes.ave.pth")
    assert (exp / "valid.loss_sizes.ave_2best.pth").exists()
    parts = [load(exp / f"{epoch}epoch.pth") for epoch in (3, 4)]
    for name, tensor in average.items():
        if tensor.is_floating_point():
            mean = (parts[0][name] + parts[1][name]) / 2
            torch.testing.assert_close(tensor, mean, rtol=1e-6, atol=1e-7)
    scores = "supernet.selection.scores"
    assert torch.equal(average[scores], parts[1][scores])


def test_skipped_updates_let_no_epoch_of_step_1_into_the_average(corpus, tmp_path):
    # 4 updates an epoch where 5 were planned: step 1 ends with epoch 3
    broken = write_corpus(tmp_path / "corpus")
    wave = broken.folder / "train" / "train-00.wav"
    samples, rate = soundfile.read(wave)
    soundfile.write(wave, samples * float("nan"), rate, subtype="FLOAT")
    exp = tmp_path / "exp"
    command = broken.command(
        exp,
        encoder_conf={"conv_norm": "layer_norm"},
        model_conf={"supernet": {"step1": 12}},
    )
    outcome = train(command, tmp_path / "log")
    assert outcome.code == 0, outcome.output
    assert [line["update"] for line in history(exp)] == [4, 8, 12, 16]
    average = (exp / "valid.loss_sizes.ave.pth").resolve()
    assert_same_tensors(load(average), load(exp / "4epoch.pth"))


def test_the_log_has_k_in_step_1_and_the_loss_of_each_subnet(launched):
    _, output = launched
    results = [x for x in output.splitlines() if "epoch results:" in x]
    assert len(results) == 4
    first, second = results[0].split("[valid]"), results[2].split("[valid]")
    for wanted in (" k=", "loss_full=", "loss_current="):
        assert wanted in first[0]
    for wanted in ("loss_full=", "loss_small=", "loss_medium="):
        assert wanted in second[0]
        assert wanted.removesuffix("=") in second[1]
    assert " k=" not in second[0] and "loss_current" not in second[0]
    assert "3epoch selection scores: " in output


def test_tensorboard_has_losses_k_and_scores(launched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exp, _ = launched
    events = EventAccumulator(str(exp / "tensorboard" / "train"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for name in ("loss_full", "loss_current", "loss_small", "loss_medium", "k"):
        assert any(tag.rsplit("/")[-1].startswith(name) for tag in tags), name
    units = [
        f"{i}.{branch}" for i in (0, 1) for branch in "ffn1 mhsa conv ffn2".split()
    ]
    log = history(exp)
    for index, unit in enumerate(units):
        points = events.Scalars(f"selection_score/{unit}")
        assert [point.step for point in points] == [1, 2, 3, 4]
        expected = [line["scores"][index] for line in log]
        assert [point.value for point in points] == pytest.approx(expected)


def test_the_journal_tells_how_step_1_ends_and_freezes(launched):
    exp, _ = launched
    log = history(exp)
    assert [line["update"] for line in log] == [5, 10, 15, 20]
    assert log[0]["phase"] == "step1" and log[2]["phase"] == "step2"
    assert log[0]["scores"] != log[1]["scores"]
    assert log[1]["scores"] == log[2]["scores"] == log[3]["scores"]
    assert log[3]["kept"] == {"full": 8, "medium": 5, "small": 3}


# --- several processes -------------------------------------------------------------

SAME_ON_BOTH = {
    "encoder_conf": {
        "conv_norm": "layer_norm",
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    },
    "model_conf": {
        "supernet": {"sizes": {"small": 2, "medium": 4, "large": 6}, "score_lr": 30.0}
    },
    # Adam would blow rounding up wherever a gradient is zero
    "optim": "sgd",
    "optim_conf": {"lr": 0.3},
}


def test_two_processes_train_as_one_does_and_draw_the_same_subnets(corpus, tmp_path):
    options = {"multiprocessing_distributed": False, "dist_backend": "gloo"}
    config = SAME_ON_BOTH
    alone, together = tmp_path / "alone", tmp_path / "together"
    single = train(
        corpus.command(alone, **config), tmp_path / "single", print_draws=True
    )
    assert single.code == 0, single.output

    outcomes = two_processes(corpus.command(together, **config, **options), tmp_path)

    drawn = draws(single.output)
    assert len(drawn) == 20
    # step 2 draws both intermediate sizes
    assert any("'medium'" in x for x in drawn) and any("'large'" in x for x in drawn)
    assert [draws(outcome.output) for outcome in outcomes] == [drawn, drawn]
    # step 1 moves the scores, step 2 the weights, by far more than the tolerance
    scores = [line["scores"] for line in history(alone)]
    assert max(abs(a - b) for a, b in zip(*scores[:2], strict=True)) > 1e-2
    third, fourth = (load(alone / f"{epoch}epoch.pth") for epoch in (3, 4))
    weights = [name for name in third if name.startswith(("encoder.", "ctc."))]
    moved = max((third[name] - fourth[name]).abs().max() for name in weights)
    assert moved > 1e-2
    for epoch in (3, 4):
        one, two = (load(exp / f"{epoch}epoch.pth") for exp in (alone, together))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    for one, two in zip(history(alone), history(together), strict=True):
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-4, abs=1e-5)
    assert subnets(alone) == subnets(together)


@pytest.mark.parametrize("method", ["taylor", "greedy"])
def test_two_processes_select_what_one_does(corpus, tmp_path, method):
    options = {"multiprocessing_distributed": False, "dist_backend": "gloo"}
    # greedy takes one batch of two: the second is not asked
    conf = {"greedy": {"utterances": 2}, "taylor": {"momentum": 0.5}}[method]
    supernet = {"method": method, "method_conf": conf, "score_lr": None}
    config = changed(SAME_ON_BOTH, {"model_conf": {"supernet": supernet}})
    config |= {"max_epoch": 3, "valid_batch_size": 2}
    alone, together = tmp_path / "alone", tmp_path / "together"
    single = train(corpus.command(alone, **config), tmp_path / "single")
    assert single.code == 0, single.output
    two_processes(corpus.command(together, **config, **options), tmp_path)
    for one, two in zip(history(alone), history(together), strict=True):
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-3, abs=1e-6)
    assert len(set(history(alone)[-1]["scores"])) > 4
    assert subnets(alone) == subnets(together)


def test_two_processes_draw_the_same_sparsities(corpus, tmp_path):
    options = {"multiprocessing_distributed": False, "dist_backend": "gloo"}
    options |= {**SETTINGS["both axes"], "max_epoch": 3}
    command = corpus.command(tmp_path / "exp", **options)
    one, other = (draws(x.output) for x in two_processes(command, tmp_path))
    assert len(one) == 15 and one == other
    # from 7 on it draws sparsities, no two updates the same
    sparsities = [line.rpartition("]] ")[2] for line in one[8:]]
    assert len(set(sparsities)) == len(sparsities)


def test_a_spawned_worker_knows_the_registered_classes(corpus, tmp_path):
    exp = tmp_path / "exp"
    command = corpus.command(exp, max_epoch=2)
    outcome = train(command, tmp_path / "log", spawn=True)
    assert outcome.code == 0, outcome.output
    assert "supernet.selection.scores" in load(exp / "2epoch.pth")


# --- configurations ----------------------------------------------------------------


def test_print_config_prints_the_prunable_encoder_and_the_supernet_model(tmp_path):
    log = tmp_path / "log"
    arguments = ["--print_config", "--encoder", "layer_prunable_conformer"]
    outcome = train([*arguments, "--model", "omni"], log)
    assert outcome.code == 0, outcome.output
    config = yaml.safe_load(outcome.output.split("\n", 1)[1])
    assert config["encoder"] == "layer_prunable_conformer"
    assert config["encoder_conf"]["conv_norm"] == "batch_norm"
    assert config["encoder_conf"]["granularity"] == "branch"
    assert config["encoder_conf"]["causal"] is False
    assert config["model"] == "omni"
    assert config["model_conf"]["loss_normalization"] == "frames"


@pytest.mark.parametrize("encoder", ["e_branchformer", "transformer"])
def test_print_config_shows_no_option_that_the_encoder_refuses(encoder, tmp_path):
    arguments = ["--print_config", "--encoder", f"omni_sparse_{encoder}"]
    outcome = train(arguments, tmp_path / "log")
    assert outcome.code == 0, outcome.output
    shown = yaml.safe_load(outcome.output.split("\n", 1)[1])["encoder_conf"]
    assert shown["pattern"] == "8x1"
    assert "causal" not in shown and "chunk" not in shown


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"encoder_conf": {"output_sise": 16}}, ["'output_sise'", "'output_size'"]),
        ({"model_conf": {"ctc_wieght": 1.0}}, ["'ctc_wieght'", "'ctc_weight'"]),
        ({"model_conf": {"supernet": {"methd": 1}}}, ["'methd'", "'method'"]),
        ({"model_conf": {"supernet": {"method_conf": {"shrnk": 1}}}}, ["'shrnk'"]),
        ({"max_epocs": 4}, ["unrecognized", "max_epocs"]),
        ({"model_conf": {"supernet": {"method": "topk"}}}, ["'topk'", "simple_topk"]),
        ({"model_conf": {"supernet": {"sizes": {"small": 9}}}}, ["9 units", "7 units"]),
        ({"model_conf": {"supernet": {"sizes": {"small": 8}}}}, ["8 units", "7 units"]),
        ({"model_conf": {"supernet": {"sizes": {"full": 4}}}}, ["full"]),
        ({"model_conf": {"interctc_weight": 0.3}}, ["interctc_weight"]),
        ({"encoder_conf": {"conv_norm": "group_norm"}}, ["conv_norm", "layer_norm"]),
        ({"encoder_conf": {"use_cnn_module": False}}, ["use_cnn_module"]),
        ({"encoder": "conformer"}, ["layer_prunable_conformer"]),
        ({"patience": 3}, ["patience"]),
        ({"scheduler": "onecyclelr"}, ["score_lr", "onecyclelr"]),
        ({"init_param": ["missing.pth"]}, ["missing.pth"]),
    ],
    ids=str,
)
def test_a_mistaken_configuration_gets_one_sentence_and_no_folder(
    corpus, tmp_path, changes, words
):
    exp = tmp_path / "exp" / "asr"
    outcome = train(corpus.command(exp, **changes), tmp_path / "log")
    for word in words:
        assert word in outcome.sentence
    assert not exp.exists()


def test_too_few_micro_batches_for_the_nets_are_refused_before_training(
    corpus, tmp_path
):
    exp = tmp_path / "exp"
    supernet = {"update": "per_accum"}
    command = corpus.command(exp, accum_grad=2, model_conf={"supernet": supernet})
    sentence = train(command, tmp_path / "log").sentence
    assert "per_accum trains 3 subnets in an update" in sentence
    assert "set accum_grad to 3 or a multiple, not 2" in sentence
    assert {name for name in files_below(exp)} <= {"config.yaml"}


def test_a_run_too_short_for_step_2_is_refused_before_it_trains(corpus, tmp_path):
    exp = tmp_path / "exp"
    command = corpus.command(exp, model_conf={"supernet": {"step1": 20}})
    sentence = train(command, tmp_path / "log").sentence
    assert "20 of the run's 20 updates" in sentence
    assert {name for name in files_below(exp)} <= {"config.yaml"}


# --- warm starts -------------------------------------------------------------------


def test_a_stock_checkpoint_starts_a_batch_norm_supernet_by_name(
    corpus, stock_checkpoint, tmp_path
):
    exp = tmp_path / "exp"
    # nothing but the scores moves
    command = corpus.command(exp, max_epoch=2, optim_conf={"lr": 0.0})
    outcome = train([*command, "--init_param", str(stock_checkpoint)], tmp_path / "log")
    assert outcome.code == 0, outcome.output
    stock, ours = load(stock_checkpoint), load(exp / "2epoch.pth")
    assert set(ours) - set(stock) == {"supernet.updates", "supernet.selection.scores"}
    for name, tensor in stock.items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(ours[name], tensor), name


def test_a_batch_norm_checkpoint_cannot_start_a_layer_norm_supernet(
    corpus, stock_checkpoint, tmp_path
):
    exp = tmp_path / "exp"
    command = corpus.command(exp, encoder_conf={"conv_norm": "layer_norm"})
    outcome = train([*command, "--init_param", str(stock_checkpoint)], tmp_path / "log")
    assert "has BatchNorm in its Conv modules" in outcome.sentence
    assert not exp.exists()


def test_espnets_own_model_may_stop_early(corpus, tmp_path):
    exp = tmp_path / "exp"
    command = corpus.command(
        exp, model="espnet", encoder="conformer", patience=3, max_epoch=1
    )
    file = exp.with_suffix(".yaml")
    settings = yaml.safe_load(file.read_text())
    settings["model_conf"] = {"ctc_weight": 1.0}
    settings["best_model_criterion"] = [["valid", "loss", "min"]]
    file.write_text(yaml.safe_dump(settings))
    outcome = train(command, tmp_path / "log")
    assert outcome.code == 0, outcome.output
