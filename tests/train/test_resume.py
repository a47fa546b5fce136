"""A training goes on with what it began with, or says at once why not."""

import dataclasses
import shutil
import socket

import pytest
import torch
from helpers.training import draws, files_below, start, train, write_corpus

from espnet_omnisparse.core.schedule import Timeline
from espnet_omnisparse.files import load_tensors, read_yaml, save_tensors
from espnet_omnisparse.train.journal import read_log
from espnet_omnisparse.train.resume import differing_options, plan_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Two epochs of five updates: step 1 has the first five."""
    exp = tmp_path_factory.mktemp("trained") / "exp"
    outcome = train(corpus.command(exp, max_epoch=2), exp.with_name("log"))
    assert outcome.code == 0, outcome.output
    return exp


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the trained folder."""
    exp = tmp_path / "exp"
    shutil.copytree(trained, exp, symlinks=True)
    return exp


def test_a_longer_run_keeps_its_phases_and_says_so(corpus, copy, tmp_path):
    specs = {p.name: read_yaml(p) for p in (copy / "subnets").iterdir()}
    # half of 20 updates would be step 1 until update 10
    outcome = train(corpus.command(copy, max_epoch=4), tmp_path / "log")
    assert outcome.code == 0, outcome.output
    assert "The run has 20 updates now, not 10" in outcome.output
    assert "the last has 15 updates, not 5" in outcome.output
    phases = [(line["update"], line["phase"]) for line in read_log(copy)]
    assert phases == [(n, "step2") for n in (5, 10, 15, 20)]
    assert specs == {p.name: read_yaml(p) for p in (copy / "subnets").iterdir()}
    saved = load_tensors(copy / "checkpoint.pth")["plan"]
    assert Timeline(**saved["timeline"]) == Timeline(0, 5)
    assert saved["total"] == 20


def test_a_shorter_run_than_is_trained_ends_at_once(corpus, copy, tmp_path):
    outcome = train(corpus.command(copy, max_epoch=1), tmp_path / "log")
    assert outcome.code == 0, outcome.output
    assert [line["update"] for line in read_log(copy)] == [5, 10]


def test_what_does_not_decide_the_sizes_may_change(corpus, copy, tmp_path):
    supernet = {"subnet_weight": 0.5, "layer_dropout_step2": 0.1, "update": "per_batch"}
    command = corpus.command(
        copy,
        max_epoch=3,
        model_conf={"supernet": supernet},
        encoder_conf={"dropout_rate": 0.3},
        optim_conf={"lr": 0.001},
    )
    assert train(command, tmp_path / "log").code == 0


REFUSED = {
    "sizes": (
        {"model_conf": {"supernet": {"sizes": {"small": 2}}}},
        "supernet.sizes: {medium: 5, small: 3}, not {medium: 5, small: 2}",
    ),
    "method": (
        {"model_conf": {"supernet": {"method": "random", "score_lr": None}}},
        "supernet.method: simple_topk, not random",
    ),
    "step 1": (
        {"model_conf": {"supernet": {"step1": 0.6}}},
        "supernet.step1: 0.5, not 0.6",
    ),
    "width": (
        {"encoder_conf": {"output_size": 32}},
        "encoder's width: 16, not 32",
    ),
    "FFN": (
        {"encoder_conf": {"linear_units": 64}},
        "of shape [32, 16], not [64, 16] (and ",
    ),
    "blocks": ({"encoder_conf": {"num_blocks": 3}}, "num_blocks: 2, not 3"),
    "granularity": (
        {"encoder_conf": {"granularity": "component"}},
        "granularity: branch, not component",
    ),
    "tokens": (
        {"token_list": ["<blank>", "<unk>", "B", "A", "C", "<sos/eos>"]},
        "token_list: 6 tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_plan_is_refused_by_what_differs(corpus, trained, tmp_path, name):
    changes, words = REFUSED[name]
    before = files_below(trained), (trained / "config.yaml").read_bytes()
    command = corpus.command(trained, **{"max_epoch": 3, **changes})
    outcome = train(command, tmp_path / "log")
    assert words in outcome.sentence
    assert "train under another name" in outcome.sentence
    assert before == (files_below(trained), (trained / "config.yaml").read_bytes())


SPARSITY = {
    "final": 0.8,
    "ramp": 20,
    "settle": 0.3,
    "sandwich": ["dense", "sparsest"],
}


@pytest.fixture
def masked(tiny_config, build):
    """A model with masks on weights."""

    def make(**sparsity):
        supernet = {
            "method": "none",
            "sizes": {"s80": {"sparsity": 0.8}},
            "sparsity": {**SPARSITY, **sparsity},
        }
        config = tiny_config(encoder={"pattern": "8x1"}, supernet=supernet)
        config["encoder"] = "omni_sparse_conformer"
        return build(config)

    return make


def plan_with(model, sparsity):
    plan = plan_of(model)
    options = {**plan.options, "supernet.sparsity": sparsity}
    return dataclasses.replace(plan, options=options)


def test_options_that_an_earlier_version_did_not_know_had_their_defaults(masked):
    model = masked()
    known = {
        "nets" if name == "sandwich" else name: SPARSITY[name] for name in SPARSITY
    }
    older = plan_with(model, known)
    assert differing_options(older, model) == []
    assert differing_options(older, masked(diagnose=0, refresh=3)) == []
    found = differing_options(older, masked(regrow=False))
    assert found == ["supernet.sparsity.regrow: true, not false"]


def test_what_differs_in_the_sparsities_is_named_alone(masked):
    plan = plan_of(masked())
    assert differing_options(plan, masked()) == []
    found = differing_options(plan, masked(settle=0.4, ramp=10))
    assert sorted(found) == [
        "supernet.sparsity.ramp: 20, not 10",
        "supernet.sparsity.settle: 0.3, not 0.4",
    ]
    assert differing_options(plan_with(masked(), None), masked()) == [
        "supernet.sparsity: none, not given"
    ]


def test_a_checkpoint_without_a_plan_goes_on(corpus, copy, tmp_path):
    path = copy / "checkpoint.pth"
    states = load_tensors(path)
    del states["plan"]
    save_tensors(path, states)
    outcome = train(corpus.command(copy, max_epoch=3), tmp_path / "log")
    assert outcome.code == 0, outcome.output
    assert load_tensors(path)["plan"]["total"] == 15


def test_a_missing_epoch_is_told_before_the_training(corpus, copy, tmp_path):
    command = corpus.command(copy, max_epoch=4)
    assert train(command, tmp_path / "log").code == 0
    (copy / "3epoch.pth").unlink()
    before = files_below(copy)
    outcome = train(corpus.command(copy, max_epoch=5), tmp_path / "log")
    assert "3epoch.pth is missing" in outcome.sentence
    assert before == files_below(copy)


# --- what a training begins with ---------------------------------------------------

INITIAL = {
    "width": (
        {"encoder_conf": {"output_size": 32}},
        "of shape [16",
    ),
    "vocabulary": (
        {"token_list": ["<blank>", "<unk>", "A", "B", "<sos/eos>"]},
        "ctc.ctc_lo.weight of shape [6, 16], not [5, 16]",
    ),
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_parameters_of_another_model_are_refused(
    corpus, trained, tmp_path, name
):
    changes, words = INITIAL[name]
    exp = tmp_path / "exp"
    source = f"{trained / '2epoch.pth'}:::supernet"
    command = corpus.command(exp, **{"max_epoch": 2, **changes})
    outcome = train([*command, "--init_param", source], tmp_path / "log")
    assert words in outcome.sentence
    assert "--ignore_init_mismatch true" in outcome.sentence
    assert not exp.exists() or files_below(exp) == []


def test_parts_of_another_model_can_be_taken(corpus, trained, tmp_path):
    command = corpus.command(
        tmp_path / "exp",
        max_epoch=2,
        token_list=["<blank>", "<unk>", "A", "B", "C", "D", "<sos/eos>"],
    )
    source = f"{trained / '2epoch.pth'}:::supernet,ctc"
    outcome = train([*command, "--init_param", source], tmp_path / "log")
    assert outcome.code == 0, outcome.output


# --- averages ----------------------------------------------------------------------


def test_averages_add_up_nothing_but_weights(corpus, copy, tmp_path):
    assert train(corpus.command(copy, max_epoch=4), tmp_path / "log").code == 0
    average = load_tensors(copy / "valid.loss_sizes.ave_3best.pth")
    last = load_tensors(copy / "4epoch.pth")
    whole = [name for name, tensor in last.items() if not tensor.is_floating_point()]
    assert "supernet.updates" in whole
    assert any(name.endswith("num_batches_tracked") for name in whole)
    for name in whole:
        assert average[name].dtype == last[name].dtype
        assert torch.equal(average[name], last[name]), name
    # the weights are the mean that ESPnet made
    name = "encoder.after_norm.weight"
    parts = [load_tensors(copy / f"{epoch}epoch.pth")[name] for epoch in (2, 3, 4)]
    torch.testing.assert_close(average[name], sum(parts) / 3)


# --- measured costs ----------------------------------------------------------------

# large enough for its blocks to take most of the time
LARGE = {"output_size": 64, "linear_units": 1024, "num_blocks": 6}
LATENCY = {"method": "random", "score_lr": None, "step1": 0}


def test_a_run_goes_on_with_the_latencies_of_another_machine(corpus, tmp_path):
    exp = tmp_path / "exp"
    sizes = {"sizes": {"small": 0.6, "medium": 0.8}, "fraction_of": "latency_ms"}
    options = {"max_epoch": 1, "model_conf": {"supernet": {**LATENCY, **sizes}}}
    options["encoder_conf"] = LARGE
    outcome = train(corpus.command(exp, **options), tmp_path / "log")
    assert outcome.code == 0, outcome.output
    # as if it had begun on a machine a thousand times slower, within budgets that
    # this one would refuse, because its full net is within them
    path, prefix = exp / "checkpoint.pth", "supernet.tables.latency_ms."
    states = load_tensors(path)
    tables = {n: 1000 * t for n, t in states["model"].items() if n.startswith(prefix)}
    assert len(tables) == 3
    states["model"].update(tables)
    full = sum(int(tables[f"{prefix}{n}"].sum()) for n in ("rest", "units", "shared"))
    wanted = {"small": {"latency_ms": int(0.6e-6 * full)}, "medium": 0.8}
    states["plan"]["options"]["supernet.sizes"] = wanted
    save_tensors(path, states)
    options["model_conf"]["supernet"]["sizes"] = wanted
    options["max_epoch"] = 2
    outcome = train(corpus.command(exp, **options), tmp_path / "log")
    assert outcome.code == 0, outcome.output
    after = load_tensors(path)["model"]
    for name, table in tables.items():
        assert torch.equal(after[name], table)


def test_two_processes_train_the_sizes_that_one_of_them_measured(corpus, tmp_path):
    sizes = {f"s{n}": round(0.75 + 0.05 * n, 2) for n in range(1, 5)}
    supernet = {**LATENCY, "sizes": sizes, "fraction_of": "latency_ms"}
    command = corpus.command(
        tmp_path / "exp",
        max_epoch=1,
        model_conf={"supernet": supernet},
        encoder_conf={**LARGE, "granularity": "component"},
        multiprocessing_distributed=False,
        dist_backend="gloo",
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    workers = [
        start(
            command,
            tmp_path / f"rank{rank}",
            print_draws=True,
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    outcomes = [worker.wait() for worker in workers]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    one, two = (draws(outcome.output) for outcome in outcomes)
    assert one == two and len(one) == 5
