import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import REPOSITORY

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import write_yaml
from espnet_omnisparse.report.compare import (
    Comparison,
    commands_of,
    compare,
    read_lines,
    result_lines,
)

# leaves what a recipe leaves, for a net as good as its seed; fails when told to
RECIPE = f"""#!{sys.executable}
import json, os, subprocess, sys
from pathlib import Path
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tag, seed = options["--asr_tag"], int(options["--asr_args"].split()[1])
if tag in os.environ.get("FAILING", "").split():
    sys.exit(3)
with open("runs.txt", "a") as runs:
    runs.write(tag + "\\n")
exp = Path("exp/asr_" + tag)
exp.mkdir(parents=True, exist_ok=True)
epoch = {{"epoch": 1, "update": 100, "train_seconds": 60.0 * seed}}
(exp / "selection_log.jsonl").write_text(json.dumps(epoch) + "\\n")
for size in ("small", "full") if tag.startswith("supernet") else ("full",):
    scored = Path(f"{{exp}}_{{size}}/decode/test/score_wer")
    scored.mkdir(parents=True)
    wrong = seed if tag.startswith("supernet") else seed - 1
    words = ["a"] * 100
    (scored / "ref.trn").write_text(" ".join(words) + " (s-u)\\n")
    words[:wrong] = ["b"] * wrong
    (scored / "hyp.trn").write_text(" ".join(words) + " (s-u)\\n")
    command = [sys.executable, "-m", "espnet_omnisparse.recipe.sclite"]
    command += ["-r", scored / "ref.trn", "trn", "-h", scored / "hyp.trn", "trn"]
    command += ["-i", "rm", "-o", "all", "stdout"]
    table = subprocess.run(command, capture_output=True, check=True).stdout
    (scored / "result.txt").write_bytes(table)
    names = "parameters encoder_parameters nonzero_parameters".split()
    cost = dict.fromkeys(names + ["macs_10s", "macs_30s", "file_bytes"], 10**6)
    folder = Path(f"{{exp}}_{{size}}")
    (folder / "cost.json").write_text(json.dumps(cost))
    (folder / "origin.yaml").write_text("form: slim\\n")
    spec = {{"name": size, "branches": {{"kept": 4, "of": 8}}}}
    (folder / "subnet.yaml").write_text(json.dumps(spec))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A comparison of a supernet with the individual model of its small size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    Path("recipe.py").write_text(RECIPE)
    Path("recipe.py").chmod(0o755)
    Path("README.md").write_text(
        "before\n<!-- begin tiny.yaml -->\nold\n<!-- end tiny.yaml -->\nafter\n"
    )
    write_yaml(
        "tiny.yaml",
        {
            "title": "Tiny",
            "recipe": "./recipe.py",
            "expdir": "exp",
            "test_set": "test",
            "results": "results/tiny.jsonl",
            "table": "README.md",
            "variants": {
                "supernet": {"asr_config": "a.yaml", "sizes": ["small", "full"]},
                "alone": {"asr_config": "b.yaml", "sizes": ["full"]},
            },
            "reference": {"small": "alone"},
        },
    )
    return Path("tiny.yaml")


def test_every_training_gives_a_line_per_size_and_the_table_is_rewritten(file):
    compare(file, [3], 2)
    lines = read_lines(Comparison.load(file))
    found = {(one["variant"], one["size"]): one["err"] for one in lines}
    assert found == {
        ("supernet", "small"): 3.0,
        ("supernet", "full"): 3.0,
        ("alone", "full"): 2.0,
    }
    assert "--asr_args '--seed 3'" in lines[0]["command"]
    page = Path("README.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n")
    assert "old" not in page
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| super")]
    assert rows[0][-1] == "+1.0 |"  # small: against the model trained alone
    assert rows[0][7] == "3.0"  # minutes


def test_sizes_that_are_decoded_in_several_ways_have_the_scores_of_each(file):
    compare(file, [1], 1, only=["supernet"])
    # another decoding of the same sizes, with more errors
    for size in ("small", "full"):
        exp = Path(f"exp/asr_supernet_seed1_{size}")
        shutil.copytree(exp / "decode", exp / "a_decoding")
        result = exp / "a_decoding/test/score_wer/result.txt"
        result.write_text(result.read_text().replace("1.0", "7.0"))
    values = yaml.safe_load(file.read_text())
    supernet = values["variants"]["supernet"]
    for name in ("decode", "a_decoding"):
        values["variants"][name] = {**supernet, "of": "supernet", "decoding": name}
    write_yaml(file, values)
    comparison = Comparison.load(file)
    ways = ("decode", "a_decoding")
    lines = {name: result_lines(comparison, name, 1) for name in ways}
    assert [line["err"] for line in lines["decode"]] == [1.0, 1.0]
    assert [line["err"] for line in lines["a_decoding"]] == [7.0, 7.0]


def test_a_heading_may_name_a_size_of_one_variant(file):
    values = yaml.safe_load(file.read_text())
    values["columns"] = {"whole": ["supernet/full"], 90: ["full"]}
    write_yaml(file, values)
    compare(file, [3], 2)
    rows = [r.split(" | ") for r in Path("README.md").read_text().splitlines()]
    by_title = {row[0]: row for row in reversed(rows) if len(row) == 6}
    assert by_title["| supernet"][1:3] == ["3.0", "3.0"]
    assert by_title["| alone"][1:3] == ["", "2.0"]


def test_a_failed_comparison_goes_on_where_it_stopped(file, monkeypatch):
    monkeypatch.setenv("FAILING", "alone_seed1")
    with pytest.raises(UserError, match="alone with seed 1 failed: see exp/"):
        compare(file, [1], 1)
    monkeypatch.delenv("FAILING")
    compare(file, [1, 2], 1)
    compare(file, [1, 2], 1)
    runs = Path("runs.txt").read_text().split()
    assert sorted(runs) == sorted(
        ["supernet_seed1", "alone_seed1", "supernet_seed2", "alone_seed2"]
    )
    assert "| 1.0 / 2.0 | 1.5 |" in Path("README.md").read_text()


def test_a_time_that_means_nothing_is_left_out(file):
    compare(file, [1], 2)
    path = Path("results/tiny.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    text = "".join(json.dumps({**x, "train_seconds": None}) + "\n" for x in lines)
    path.write_text(text)
    compare(file, [1], 2)
    rows = [r.split(" | ") for r in Path("README.md").read_text().splitlines()]
    assert {row[7] for row in rows if row[0] == "| supernet"} == {""}


def test_a_page_without_markers_is_refused_before_anything_is_trained(file):
    Path("README.md").write_text("no markers\n")
    with pytest.raises(UserError, match="README.md needs the line <!-- begin"):
        compare(file, [1], 1)
    assert not Path("runs.txt").exists()


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (lambda all: {**all, "tittle": "x"}, "unknown key 'tittle'; did you mean 'tit"),
        (lambda all: {k: v for k, v in all.items() if k != "table"}, "has no table"),
        (lambda all: {**all, "variants": ["a"]}, r"must be trainings .* not \['a'\]"),
        (lambda all: {**all, "variants": {"a": None}}, "variants.a has no asr_c"),
        (lambda all: {**all, "variants": {"a": "x"}}, "variants.a must be a section"),
        (lambda all: {**all, "title": 5}, "tiny.yaml.title must be a text, not 5"),
        (lambda all: {**all, "columns": {"any": "full"}}, "each with a list of names"),
        (lambda all: {**all, "variants": {"a": {"sizes": []}}}, "a has no asr_config"),
        (lambda all: ["a"], r"must be a section of options: \['a'\]"),
        (lambda all: None, "tiny.yaml has no title: add it"),
    ],
)
def test_a_file_that_is_no_comparison_is_refused(file, wrong, sentence):
    file.write_text(yaml.safe_dump(wrong(yaml.safe_load(file.read_text()))))
    before = Path("README.md").read_text()
    with pytest.raises(UserError, match=sentence):
        compare(file, [1], 1)
    assert Path("README.md").read_text() == before


def test_a_figure_of_another_kind_is_refused_before_anything_is_trained(file):
    write_yaml(file, {**yaml.safe_load(file.read_text()), "figure": "exp/wer.xyz"})
    with pytest.raises(UserError, match="must be a .png file, not exp/wer.xyz"):
        compare(file, [1], 1)
    assert not Path("runs.txt").exists()


def test_a_result_that_was_cut_off_is_made_again_and_a_garbled_one_told(file):
    compare(file, [1], 1)
    results = Path("results/tiny.jsonl")
    whole = results.read_text().splitlines(keepends=True)
    results.write_text("".join(whole[:-1]) + whole[-1][:20])
    shutil.rmtree("exp")
    compare(file, [1], 1)
    again = results.read_text().splitlines(keepends=True)
    assert sorted(again) == sorted(whole)
    results.write_text("{garbled\n" + "".join(again))
    with pytest.raises(UserError, match=r"tiny.jsonl: line 1 is not JSON"):
        compare(file, [1], 1)


def test_only_the_named_variants_are_run(file):
    compare(file, [1], 1, only=["alone"])
    assert Path("runs.txt").read_text().split() == ["alone_seed1"]
    Path("README.md").write_text("<!-- begin tiny.yaml -->\n<!-- end tiny.yaml -->\n")
    before = Path("README.md").read_text()
    with pytest.raises(UserError, match="--only: both is not one of supernet, alone"):
        compare(file, [1], 1, only=["both"])
    assert Path("README.md").read_text() == before


def test_the_table_shows_titles_the_spread_of_the_seeds_and_the_commands(file):
    text = file.read_text().replace("  alone:", "  alone:\n    title: by itself")
    file.write_text(text)
    compare(file, [1, 4], 2)
    page = Path("README.md").read_text()
    (row,) = [row for row in page.splitlines() if row.startswith("| by itself")]
    assert "| 0.0 / 3.0 | 1.5 | 3.0 |" in row
    lines = read_lines(Comparison.load(file))
    for command, seed in {(one["command"], one["seed"]) for one in lines}:
        assert f"{command}  # seed {seed}" in page


def test_titles_are_rows_and_lines_of_a_figure(file):
    values = yaml.safe_load(Path(file).read_text())
    values["columns"] = {"whole": ["full"], "small": ["small"]}
    values |= {"figure": "results/tiny.png", "against": "alone"}
    write_yaml(file, values)
    compare(file, [1, 2], 1)
    page = Path("README.md").read_text().splitlines()
    # of 100 words 1 and 2 are wrong, and 0 and 1 of the model alone: twice as many
    # more, in each sample of the one utterance
    (row,) = [row for row in page if row.startswith("| supernet | **")]
    cells = ["**1.50** (1.0 / 2.0) +200 % [+1.00, +1.00]", "**1.50** (1.0 / 2.0)"]
    assert row.split(" | ")[1:3] == cells
    (row,) = [row for row in page if row.startswith("| alone | **")]
    assert row.split(" | ")[1:3] == ["**0.50** (0.0 / 1.0)", ""]
    # of 100 updates: a training, of one and of two minutes
    assert row.endswith("| 100 | 1 | 1.5 |")
    assert "![WER against non-zero parameters](results/tiny.png)" in page
    assert Path("results/tiny.png").read_bytes().startswith(b"\x89PNG")


def test_an_interval_is_over_utterances_with_the_errors_of_all_seeds(file):
    values = yaml.safe_load(Path(file).read_text())
    values |= {"columns": {"whole": ["full"]}, "against": "alone"}
    write_yaml(file, values)
    compare(file, [1, 2], 1)
    path = Path("results/tiny.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    errors = {  # of three utterances, one of which is the better for the supernet
        ("supernet", 1): [3, 0, 1],
        ("supernet", 2): [1, 0, 1],
        ("alone", 1): [0, 1, 0],
        ("alone", 2): [0, 2, 1],
    }
    for line in lines:
        line["errors"] = errors[line["variant"], line["seed"]]
        line["words"] = [4, 2, 4]

    def interval():
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        compare(file, [1, 2], 1)
        rows = Path("README.md").read_text().splitlines()
        (row,) = [row for row in rows if "+200 %" in row]
        return [float(x) for x in re.search(r"\[(.*), (.*)\]", row).groups()]

    def of_every_sample(more, words):  # of three utterances
        drawn = [
            100 * sum(more[i] for i in sample) / sum(words[i] for i in sample)
            for sample in itertools.product(range(3), repeat=3)
        ]
        return list(np.percentile(drawn, (2.5, 97.5), method="inverted_cdf"))

    assert interval() == of_every_sample([4, -3, 1], [8, 4, 8])
    # results of an earlier version have no errors per utterance
    del lines[0]["errors"], lines[1]["errors"]
    assert interval() == of_every_sample([1, -2, 0], [4, 2, 4])


def test_pairs_of_titles_have_their_differences_below(file):
    values = yaml.safe_load(Path(file).read_text())
    values["columns"] = {"whole": ["full"], "small": ["small"]}
    values["pairs"] = [["alone", "supernet"]]
    write_yaml(file, values)
    compare(file, [1, 2], 1)
    page = Path("README.md").read_text().splitlines()
    # of 100 words 0 and 1 are wrong, and 1 and 2 of the supernet; alone has no small
    assert "| alone | supernet | -1.00 [-1.00, -1.00] |  |" in page


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("columns", {"whole": ["ful"]}, "no variant or size called ful."),
        ("columns", {"whole": ["alone/small"]}, "called alone/small."),
        ("against", "allone", "no title called allone."),
        ("pairs", [["alone", "sup"]], "no title called sup."),
        ("pairs", [["alone"]], "pairs must be a list of pairs of titles"),
        ("reference", {"small": "aloe"}, "reference: there is no variant called aloe."),
        (
            "columns",
            {"whole": ["full", "small"]},
            "supernet/small and supernet/full of supernet stand under whole: give "
            "each a title or a heading of its own.",
        ),
    ],
)
def test_names_that_a_comparison_does_not_have_are_told(file, key, value, said):
    values = yaml.safe_load(Path(file).read_text()) | {key: value}
    write_yaml(file, values)
    with pytest.raises(UserError, match=re.escape(said)):
        Comparison.load(file)


def test_sizes_of_another_training_are_cut_without_training(file):
    values = yaml.safe_load(Path(file).read_text())
    values["variants"]["cut"] = {
        "asr_config": "a.yaml",
        "sizes": ["50pct"],
        "of": "supernet",
        "run_args": '--sizes "50%" --subnets exp/seed{seed}',
    }
    write_yaml(file, values)
    (command,) = commands_of(Comparison.load(file), "cut", 3)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--stage"] == "12" and options["--asr_tag"] == "supernet_seed3"
    assert options["--sizes"] == "50%" and options["--subnets"] == "exp/seed3"


def test_a_variant_may_be_trained_by_another_command(file):
    """As those that `omnisparse shrink` makes of another training's model."""
    values = yaml.safe_load(Path(file).read_text())
    values["columns"] = {"whole": ["full"]}
    values["variants"] |= {
        "stock": {"asr_config": "b.yaml", "sizes": [], "command": "touch {exp}.here"},
        "shrunk": {
            "asr_config": "a.yaml",
            "sizes": ["full"],
            "of": "stock",
            "command": "cp {of}.here {exp}.here",
        },
    }
    write_yaml(file, values)
    compare(file, [2], 2, only=["shrunk", "stock"])
    assert Path("exp/asr_shrunk_seed2.here").exists()
    # the recipe decodes what the command has trained, and has nothing to train
    assert Path("runs.txt").read_text().split() == ["shrunk_seed2"]
    (line,) = read_lines(Comparison.load(file))
    assert line["variant"] == "shrunk" and "--stage 12" in line["command"]
    assert line["command"].startswith(
        "cp exp/asr_stock_seed2.here exp/asr_shrunk_seed2"
    )
    # a training of its own: its cost is not that of the one it begins from
    assert "| shrunk | 1.0 | 100 | 1 | 2.0 |" in Path("README.md").read_text()


@pytest.mark.parametrize(
    "key, text, words",
    [
        ("command", "train {sed}", "variants.alone.command is no command"),
        ("command", "train 'x", "variants.alone.command is no command"),
        ("run_args", "--search '{exp}'", "variants.alone.run_args is no command"),
    ],
)
def test_what_is_no_command_is_refused_before_anything_is_trained(
    file, key, text, words
):
    values = yaml.safe_load(Path(file).read_text())
    values["variants"]["alone"][key] = text
    write_yaml(file, values)
    with pytest.raises(UserError, match=words):
        compare(file, [1], 1, only=["supernet"])
    assert not Path("runs.txt").exists()


def test_a_command_that_is_not_there_is_told_by_its_name(file):
    values = yaml.safe_load(Path(file).read_text())
    values["variants"]["alone"]["command"] = "no-such-program {exp}"
    write_yaml(file, values)
    with pytest.raises(UserError, match="alone: no-such-program cannot be run"):
        compare(file, [1], 1, only=["alone"])


def test_repairs_are_told_apart_and_counted(file):
    """Sizes of one supernet with and without: one table row and line each."""
    compare(file, [1, 2], 1, only=["supernet"])
    for seed in (1, 2):
        exp = Path(f"exp/asr_supernet_seed{seed}")
        shutil.copytree(f"{exp}_small", f"{exp}_small-repaired")
        repair = {"updates": 10, "seconds": 30.0 * seed}
        write_yaml(f"{exp}_small-repaired/repair.yaml", repair)
    values = yaml.safe_load(file.read_text())
    values["columns"] = {"small": ["small", "small-repaired"]}
    values["variants"]["repaired"] = {
        "asr_config": "a.yaml",
        "sizes": ["small-repaired"],
        "of": "supernet",
        "run_args": "--repair 10",
    }
    write_yaml(file, values)
    Path("recipe.py").write_text("#!/bin/sh\n")  # what it would leave is there
    compare(file, [1, 2], 1, only=["repaired"])
    rows = [r.split(" | ") for r in Path("README.md").read_text().splitlines()]
    totals = {row[0]: row[2:] for row in rows if len(row) == 5}
    assert totals["| supernet"] == ["100", "1", "1.5 |"]
    assert totals["| repaired"] == ["110", "1 + 1 repairs", "2.2 |"]
    sizes = {tuple(row[:2]): row[6:8] for row in rows if len(row) > 6}
    assert sizes["| supernet", "small"] == ["100", "1.5"]
    assert sizes["| repaired", "small-repaired"] == ["110", "2.2"]


# a recipe that says when each run begins and ends; trainings take their time
SLOW = f"""#!{sys.executable}
import sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name = options["--asr_config"] + " " + options["--asr_args"].split()[1]
def say(what):
    with open("runs.txt", "a") as runs:
        runs.write(what + " " + name + "\\n")
say("begin")
if name.split()[0] in options.get("--failing", ""):
    sys.exit(3)
time.sleep(0.2 if options["--stage"] == "12" else 0.6)
say("end")
"""


@pytest.fixture
def dependent(file, monkeypatch):
    """Variants that read others' results, before those in the file and beside them."""
    Path("recipe.py").write_text(SLOW)
    monkeypatch.setattr("espnet_omnisparse.report.compare.result_lines", lambda *_: [])
    monkeypatch.setattr(
        "espnet_omnisparse.report.compare_tables.write_table", lambda *_: ""
    )
    values = yaml.safe_load(file.read_text())
    needs = {
        "early": {"of": "omni"},
        "omni": {},
        "searched": {"of": "omni"},
        "dense": {},
        "one-shot": {"of": "dense", "after": ["omni"]},
    }
    values["variants"] = {
        name: {"asr_config": name, "sizes": ["full"], **more}
        for name, more in needs.items()
    }
    values["reference"] = {}
    write_yaml(file, values)
    return file


def events():
    return Path("runs.txt").read_text().splitlines()


def test_a_variant_waits_for_those_whose_results_it_reads(dependent):
    compare(dependent, [1, 2], 4)
    said = events()
    assert len(said) == len(set(said)) == 20
    for seed in (1, 2):
        place = {line.replace(f" {seed}", ""): i for i, line in enumerate(said)}
        assert place["begin early"] > place["end omni"]
        assert place["begin searched"] > place["end omni"]
        assert place["begin one-shot"] > max(place["end omni"], place["end dense"])
        # both write into the training's folder
        first, second = sorted(("early", "searched"), key=lambda x: place[f"end {x}"])
        assert place[f"begin {second}"] > place[f"end {first}"]
    # what needs nothing waits for nothing
    assert [line.split()[0] for line in said[:4]] == ["begin"] * 4
    assert {line.split()[1] for line in said[:4]} == {"omni", "dense"}


def test_sizes_of_one_training_may_need_each_other_in_any_order(dependent):
    values = yaml.safe_load(dependent.read_text())
    values["variants"]["early"]["after"] = ["searched"]
    write_yaml(dependent, values)
    compare(dependent, [1], 3)
    said = events()
    assert said.index("begin early 1") > said.index("end searched 1")


def test_what_is_not_run_is_not_waited_for(dependent):
    compare(dependent, [1], 2, only=["one-shot", "searched"])
    assert len(events()) == 4


def test_after_a_failure_what_reads_its_results_is_not_started(dependent):
    values = yaml.safe_load(dependent.read_text())
    values["variants"]["omni"]["run_args"] = "--failing omni"
    write_yaml(dependent, values)
    with pytest.raises(UserError, match="omni with seed 1 failed"):
        compare(dependent, [1], 2)
    assert {line for line in events() if line.startswith("begin")} == {
        "begin omni 1",
        "begin dense 1",
    }


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"omni": {"of": "omnii"}}, "omni needs omnii, which is not one of early"),
        ({"omni": {"after": ["one-shot"]}}, "wait for each other"),
    ],
)
def test_an_order_that_cannot_be_is_refused(dependent, changes, words):
    values = yaml.safe_load(dependent.read_text())
    for name, more in changes.items():
        values["variants"][name] |= more
    write_yaml(dependent, values)
    with pytest.raises(UserError, match=words):
        compare(dependent, [1], 2)
    assert not Path("runs.txt").exists()


def test_the_comparisons_of_the_recipes_say_whose_results_they_read():
    read = {}
    recipe = REPOSITORY / "egs2/librispeech/asr1"
    for path in sorted((recipe / "conf/compare").glob("*.yaml")):
        comparison = Comparison.load(path)
        for name, variant in comparison.variants.items():
            commands = commands_of(comparison, name, 7)
            command = " ".join(word for one in commands for word in one)
            for other in comparison.variants:
                if (
                    comparison.training(other) == other
                    and f"{comparison.experiment(other, 7)}/" in command
                ):
                    assert other in (variant.of, *variant.after), (path, name)
                    read[path.name, name] = other
    assert read["digits_sparse.yaml", "one-shot"] == "omni"
