"""Sections of a configuration: one sentence a mistake, and the page that tells them."""

import logging
import re
from pathlib import Path
from typing import ClassVar

import pytest

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.options import (
    Count,
    Length,
    Number,
    Section,
    option,
    supernet_section,
)
from espnet_omnisparse.report.options_page import sections, with_tables
from espnet_omnisparse.supernet.config import SupernetConfig

REPOSITORY = Path(__file__).parents[1]
SIZES = {"method": "uniform", "sizes": {"small": 4}}

MALFORMED = [
    ({"subnet_weight": None}, "supernet.subnet_weight must be a number of at least 0"),
    ({"subnet_weight": -1.0}, "supernet.subnet_weight must be a number of at least 0"),
    ({"subnet_weight": "adaptve"}, "supernet.subnet_weight must be .* or adaptive"),
    ({"subnet_weight": float("nan")}, "supernet.subnet_weight must be .*, not nan"),
    ({"step1": True}, "supernet.step1 must be a number of updates, .*, not True"),
    ({"step1": None}, "supernet.step1 must be a number of updates, .*, not None"),
    ({"warm_start": [1]}, r"supernet.warm_start must be .*, not \[1\]"),
    ({"sizes": None}, "supernet.sizes must be names of sizes, .*, not None"),
    ({"sizes": ["small"]}, r"supernet.sizes must be names of sizes, .*, not \['small'"),
    ({"method_conf": 3}, "supernet.method_conf must be a section of options, not 3"),
    ({"method_conf": ["shrink"]}, "supernet.method_conf must be a section of options"),
    ({"method": None}, "supernet.method must be the name of a .*, not None"),
    ({"method": ["uniform"]}, "supernet.method must be the name of a selection method"),
    ({"heads": None}, "supernet.heads must be one of shared, per_size, not None"),
    ({"update": 3}, "supernet.update must be one of per_batch, split_batch, per_ac"),
    ({"seed": 1.5}, "supernet.seed must be a whole number, not 1.5"),
    ({"seed": "1"}, "supernet.seed must be a whole number, not the text '1'"),
    ({"score_lr": 0.0}, "supernet.score_lr must be a number above 0, not 0.0"),
    ({"score_lr": "1e-3"}, r"not the text '1e-3' \(write powers of ten as 1.0e-3\)"),
    ({"chunks": "full"}, "supernet.chunks must be a list, .*, not 'full'"),
    ({"sparsity": 0.9}, "supernet.sparsity must be a section of options: 0.9"),
    ({"sparsity": ["final"]}, "supernet.sparsity must be a section of options"),
    ({"layer_dropout_step1": None}, "layer_dropout_step1 must be a number of at least"),
    ({"distillation_weight": True}, "distillation_weight must be between 0 and 1"),
]


@pytest.mark.parametrize("changes, sentence", MALFORMED, ids=str)
def test_a_malformed_section_gets_one_sentence_that_names_the_key(changes, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        SupernetConfig.read({**SIZES, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("section", [3, "uniform", ["method"]])
def test_what_is_no_section_is_refused(section):
    with pytest.raises(UserError, match="supernet must be a section of options"):
        SupernetConfig.read(section)


def test_no_section_is_the_defaults():
    assert SupernetConfig.read(None) == SupernetConfig.read({}) == SupernetConfig()


def test_a_config_is_a_value():
    one = SupernetConfig.read(SIZES)
    assert one == SupernetConfig.read(SIZES)
    with pytest.raises(ValueError, match="frozen"):
        one.method = "random"


class Masks(Section):
    name: ClassVar[str] = "supernet.masks"
    renamed: ClassVar[dict[str, str]] = {"nets": "count"}

    count: Count = option(3, "how many")
    share: Number = option(0.5, "of all", ge=0, lt=1)
    ramp: Length = option(0.3, "its length")
    loud: bool = option(False, "whether", strict=True)


@pytest.mark.parametrize(
    "values, sentence",
    [
        (
            {"count": 0},
            "masks.count must be a whole number of at least 1, not 0",
        ),
        ({"count": 2.0}, "supernet.masks.count must be a whole number of at least 1"),
        ({"share": 1.0}, "share must be a number of at least 0 and below 1, not 1.0"),
        ({"share": float("nan")}, "share must be .*, not nan"),
        ({"ramp": 1.5}, "ramp must be a number of updates, or a fraction .*, not 1.5"),
        ({"ramp": -1}, "ramp must be a number of updates"),
        ({"loud": 1}, "loud must be true or false, not 1"),
        ({"cuont": 1}, "unknown key 'cuont'; did you mean 'count'"),
    ],
)
def test_bounds_are_told_in_words(values, sentence):
    with pytest.raises(UserError, match=sentence):
        Masks.read(values)
    assert Masks.read({"count": 1, "share": 0, "ramp": 7, "loud": True}).ramp == 7


def test_a_key_of_an_earlier_version_is_read_with_a_notice(caplog):
    with caplog.at_level(logging.WARNING):
        assert Masks.read({"nets": 5}).count == 5
    assert caplog.messages == ["supernet.masks.nets is called count now."]
    with pytest.raises(UserError, match="both nets and count"):
        Masks.read({"nets": 5, "count": 5})


def test_earlier_names_of_the_sandwich_are_read(caplog):
    old = {"sparsity": {"nets": ["dense", "sparsest", "around"]}}
    new = {"sparsity": {"sandwich": ["dense", "sparsest", "nearby"]}}
    assert SupernetConfig.read(old) == SupernetConfig.read(new)
    assert any("is called sandwich now" in message for message in caplog.messages)
    assert any("around is called nearby now" in text for text in caplog.messages)


def test_the_options_page_has_the_tables_of_the_sections():
    page = (REPOSITORY / "docs/options.md").read_text(encoding="utf-8")
    assert with_tables(page) == page
    for name, section in sections().items():
        table = page.split(f"<!-- begin {name} -->\n")[1].split("<!-- end")[0]
        rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert rows == list(section.model_fields)


def test_a_page_without_markers_is_refused():
    with pytest.raises(UserError, match="begin supernet --> and"):
        with_tables("# Options\n")


def test_a_supernet_section_written_as_null_is_empty():
    for config in ({}, {"model_conf": None}, {"model_conf": {"supernet": None}}):
        assert supernet_section(config) == {}
