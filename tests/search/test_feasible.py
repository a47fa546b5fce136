"""Budgets that a search will not meet are told before the training, as after it."""

import json

import pytest
import torch
import yaml
from helpers import tiny
from helpers.training import CONFIG, files_below, train

from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import write_spec
from espnet_omnisparse.cost.budget import parse_budget
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.search.feasible import check_shares, check_untrained
from espnet_omnisparse.search.run import read_problem

SPARSITIES = {
    "method": "none",
    "sizes": {"s50": {"sparsity": 0.5}},
    "sparsity": {"final": 0.8, "settle": 0.2},
}
TASKS = {
    "asr": lambda supernet=SPARSITIES: {
        **tiny.asr_config({"conv_norm": "batch_norm"}),
        "encoder": "omni_sparse_conformer",
        "model_conf": {"ctc_weight": 1.0, "supernet": supernet},
    },
    "asr_transducer": lambda supernet=SPARSITIES: tiny.transducer_config(supernet),
}

BUDGETS = "70% 80% 85% 99% 1kB 20kB 1MB 0.5k 6k 12M 1kMAC 9GMAC params=1k"


def told(check, *arguments):
    """The sentence of a refusal; `None`: there is none."""
    try:
        check(*arguments)
    except UserError as error:
        return str(error)


def trained(config, folder):
    """An experiment folder as a training leaves it, of sizes that drop nothing."""
    plain = json.loads(json.dumps(config))
    write_yaml(folder / "config.yaml", plain)
    model = tiny.build(plain)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0.0  # no training moves it
    state = model.state_dict()
    save_tensors(folder / "model.pth", state)
    space = family.build(plain, state).encoder.space
    full = SubnetSpec.full(fingerprint(state, plain["token_list"]), space)
    write_spec(full, folder / "subnets" / "full.yaml")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_a_budget_is_judged_before_the_training_as_after_it(task, tmp_path):
    exp = trained(TASKS[task](), tmp_path / "exp")
    sentences = {}
    for text in BUDGETS.split():
        budgets = [parse_budget(text)]
        after = told(read_problem, exp, "model.pth", budgets)
        model = family.build(TASKS[task]())
        assert told(check_untrained, model, exp, budgets) == after, text
        sentences[text] = after
    for text in ("99%", "1kB", "0.5k", "1kMAC", "params=1k"):
        assert "cannot be met; the nearest that can is" in sentences[text], text
    assert "only dropped branches lower it" in sentences["params=1k"]
    for text in ("1MB", "12M", "9GMAC"):
        assert "is no less than the full net's" in sentences[text], text
    assert sentences["70%"] is None


def test_what_branches_may_lower_is_left_to_the_search(tmp_path):
    layered = {**SPARSITIES, "method": "uniform", "sizes": {"small": 0.3}}

    def sentence(text):
        model = family.build(TASKS["asr"](layered))
        return told(check_untrained, model, tmp_path, [parse_budget(text)])

    assert sentence("99%") is None and sentence("1kB") is None
    assert "is no less than the full net's" in sentence("12M")
    # never measured: it would only be compared with another measurement
    assert sentence("1ms") is None


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"sparsity": None, "sizes": {}}, "was not trained with masks"),
        (
            {"sparsity": {"snapshots": 0.5, "sandwich": ["sparsest"]}},
            "keeps a net of its own for each size",
        ),
    ],
)
def test_a_net_that_cannot_be_searched_is_told_before_its_training(
    changes, sentence, tmp_path
):
    model = family.build(TASKS["asr"]({**SPARSITIES, **changes}))
    assert sentence in told(check_untrained, model, tmp_path, [parse_budget("70%")])


def test_a_training_is_told_of_budgets_before_it_writes_anything(corpus, tmp_path):
    supernet = {**SPARSITIES, "sparsity": {"final": 0.8}}
    base = {**CONFIG, "max_epoch": 1, "encoder": "omni_sparse_conformer"}
    base["model_conf"] = {"ctc_weight": 1.0, "supernet": supernet}
    exp = tmp_path / "exp" / "asr"
    command = corpus.command(exp, base)
    refused = train([*command, "--budgets", "60%,99%"], tmp_path / "log")
    assert "--budgets: 99% cannot be met; the nearest that can is" in refused.sentence
    assert not exp.exists()
    taken = train([*command, "--budgets", "60%"], tmp_path / "log")
    assert taken.code == 0, taken.output
    assert "checkpoint.pth" in files_below(exp)
    assert "budgets" not in yaml.safe_load((exp / "config.yaml").read_text())


def test_more_zeros_than_masks_can_make_are_told_with_the_nearest(tmp_path):
    def sentence(share):
        config = TASKS["asr"](
            {
                "sizes": {"some": {"sparsity": share}},
                "sparsity": {"final": share},
            }
        )
        return told(check_shares, family.build(config), "--sparsity")

    asked = sentence(0.9999)
    assert asked.startswith("--sparsity: 99.99% cannot be met; the nearest that can is")
    nearest = float(asked.rpartition(" ")[2].removesuffix("%."))
    assert 90.0 < nearest < 99.0
    assert sentence(nearest / 100) is None
    assert sentence(nearest / 100 + 1e-4) is not None
    # a net without masks asks for none
    assert told(check_shares, family.build(tiny.asr_config()), "--sparsity") is None
