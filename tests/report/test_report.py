"""The report and the command line, on a family of tiny models extracted for real."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.recipes import run_sclite
from matplotlib import image

from espnet_omnisparse import cli
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import write_spec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.names import CHECKPOINT
from espnet_omnisparse.files import load_tensors, save_tensors, write_yaml
from espnet_omnisparse.report import family as report
from espnet_omnisparse.report import plots, results, scores
from espnet_omnisparse.report.timing import time_models

EXP = Path("exp/asr_tiny")
KEPT = {"small": 4, "medium": 8, FULL: 12}
REFERENCE = "a b c d (s1-u1)\na b (s2-u2)\n"
HYPOTHESES = {
    "small": "x y c d (s1-u1)\na b (s2-u2)\n",
    "medium": "x b c d (s1-u1)\na b (s2-u2)\n",
    FULL: "a b c d (s1-u1)\na b (s2-u2)\n",
}
SCORES = {
    "small": "2|6|66.7|33.3|0.0|0.0|33.3|50.0",
    "medium": "2|6|83.3|16.7|0.0|0.0|16.7|50.0",
    FULL: "2|6|100.0|0.0|0.0|0.0|0.0|0.0",
}
COMMAND = "./run.sh --asr_config conf/tiny.yaml"
TABLE_START = "| size | kept |"


@pytest.fixture
def make_exp(tmp_path, monkeypatch, tiny_config):
    """Writes a supernet's experiment folder in a recipe folder of its own."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write("noise.wav", noise, 16_000)
    Path("wav.scp").write_text("u1 noise.wav\nu2 noise.wav\n")

    def make(folder=EXP, conv_norm="layer_norm", checkpoint=CHECKPOINT, sparsity=None):
        config = {
            **tiny_config(conv_norm=conv_norm),
            "frontend": "default",
            "input_size": None,
            "train_data_path_and_name_and_type": [["wav.scp", "speech", "sound"]],
        }
        folder.mkdir(parents=True)
        write_yaml(folder / "config.yaml", config)
        state = family.build(config).state_dict()
        save_tensors(folder / checkpoint, state)
        space = SearchSpace(3, pattern=Pattern(rows=8) if sparsity else None)
        mark = fingerprint(state, config["token_list"])
        for name, kept in KEPT.items():
            mask = tuple(unit < kept for unit in range(len(space)))
            spec = SubnetSpec(name, mark, space, mask)
            if sparsity:  # of all branches, instead of some
                shares = (sparsity[name],) * len(space.weights)
                mask = (True,) * len(space)
                spec = SubnetSpec(name, mark, space, mask, shares)
            write_spec(spec, folder / f"subnets/{name}.yaml")
        write_log(folder, len(space))
        (folder / "run.sh").write_text('./asr.sh --stage 11 "$@"; exit $?\n')
        return folder

    return make


def write_log(folder: Path, units: int, scored: bool = True) -> None:
    lines = []
    for epoch in range(1, 7):
        scores = [0.5 + 0.02 * epoch * (units / 2 - unit) for unit in range(units)]
        phase = "warm" if epoch < 2 else "step1" if epoch < 5 else "step2"
        line = {"epoch": epoch, "update": 10 * epoch, "phase": phase, "kept": {}}
        lines.append({**line, "scores": scores if scored else None})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "selection_log.jsonl").write_text(text)


def write_scores(folder: Path, capsys, size: str, sets=("test",), tag="ctc") -> None:
    """What stages 12 and 13 leave, with words for characters to keep it short."""
    for name in sets:
        for kind in ("wer", "cer"):
            scored = folder / tag / name / f"score_{kind}"
            scored.mkdir(parents=True)
            capsys.readouterr()
            run_sclite(scored, REFERENCE, HYPOTHESES[size])
            (scored / "result.txt").write_text(capsys.readouterr().out)
    (folder / tag / "run.sh").write_text('./asr.sh --stage 12 "$@"; exit $?\n')


@pytest.fixture
def extract(capsys):
    """Extracts and scores sizes; returns their folders."""

    def make(exp=EXP, sizes=tuple(KEPT), sets=("test",), stock=False, option=()):
        option = ["--stock"] if stock else option
        cli.main(["extract", str(exp), "--sizes", *sizes, *option])
        suffix = "_stock" if stock else ""
        folders = [Path(f"{exp}_{size}{suffix}") for size in sizes]
        for folder, size in zip(folders, sizes, strict=True):
            write_scores(folder, capsys, size, sets)
        return folders

    return make


def rows(path: Path) -> list[list[str]]:
    """The rows of all tables that list sizes."""
    tables = path.read_text().split("\n\n")
    wanted = [table for table in tables if table.startswith(TABLE_START)]
    lines = [line for table in wanted for line in table.splitlines()[2:]]
    return [line.strip("| ").split(" | ") for line in lines]


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_report_has_a_row_per_size_and_stays_the_same(make_exp, extract):
    folders = extract(make_exp())
    EXP.joinpath("images").mkdir()
    EXP.joinpath("images", "loss.png").write_bytes(b"ESPnet's own")
    written = report.write_family(EXP, COMMAND, rtf_rounds=1)
    path = written.path

    assert path == EXP / "RESULTS.md"
    table = rows(path)
    assert [row[0] for row in table] == list(KEPT)
    for row, folder, (size, kept) in zip(table, folders, KEPT.items(), strict=True):
        cost = json.loads((folder / "cost.json").read_text())
        assert row[1] == f"{kept} of 12"
        assert row[2] == f"{cost['parameters'] / 1e6:.3f}"
        assert float(row[8]) > 0
        assert "|".join(row[11:19]) == SCORES[size]
        assert row[10] == "test"
    parameters = [float(row[2]) for row in table]
    assert parameters == sorted(set(parameters))
    assert [row[-1] for row in table] == ["with espnet_omnisparse"] * 3
    assert [bool(re.fullmatch(r"\d+\.\d\dx", row[9])) for row in table] == [1, 1, 0]

    text = path.read_text()
    assert "LayerNorm" in text
    assert f"```sh\n# this report\n{COMMAND}\n" in text
    assert f"# training {EXP}\n./asr.sh --stage 11\n" in text
    assert f"omnisparse extract {EXP} --checkpoint" in text
    for name in report.PLOTS:
        assert f"](images/{name})" in text
        pixels = image.imread(EXP / "images" / name)
        assert pixels.shape[0] > 200 and pixels.shape[1] > 400
        assert 0.01 < (pixels[..., :3] < 0.9).any(axis=-1).mean() < 0.9

    before = path.read_bytes(), pngs(EXP / "images")
    assert sorted(before[1]) == sorted([*report.PLOTS, "loss.png"])
    report.write_family(EXP, COMMAND, rtf_rounds=1)
    assert (path.read_bytes(), pngs(EXP / "images")) == before
    assert before[1]["loss.png"] == b"ESPnet's own"


SPARSITY = {"small": 0.9, "medium": 0.6, FULL: 0.0}


def test_a_report_on_masked_weights_tells_of_zeros(make_exp, extract):
    folders = extract(make_exp(sparsity=SPARSITY))
    written = report.write_family(EXP, COMMAND, rtf_rounds=1)
    path = written.path
    text = path.read_text()
    (header,) = re.findall(r"^\| size \| kept \|.*$", text, re.MULTILINE)
    columns = header.strip("| ").split(" | ")
    assert columns[4:6] == ["non-zero (M)", "zeros"]
    assert columns[8:10] == ["file (MB)", "packed (MB)"]
    table = [dict(zip(columns, row, strict=True)) for row in rows(path)]
    # every size has the parameters of the full net: the zeros put them in order
    assert [row["size"] for row in table] == list(KEPT)
    assert {row["params (M)"] for row in table} == {table[0]["params (M)"]}
    shares = []
    for row, folder in zip(table, folders, strict=True):
        cost = json.loads((folder / "cost.json").read_text())
        share = 1 - cost["nonzero_parameters"] / cost["parameters"]
        assert row["zeros"] == f"{100 * share:.1f} %"
        assert row["packed (MB)"] == f"{cost['packed_bytes'] / 1e6:.2f}"
        shares.append((share, cost["packed_bytes"]))
        # what is shown is what is in the model
        state = load_tensors(folder / "model.pth")
        zeros = sum(int((t == 0).sum()) for n, t in state.items() if "w_1.wei" in n)
        assert zeros == round(SPARSITY[row["size"]] * 4 * 16) * 8 * 6
    assert shares[0][0] > shares[1][0] + 0.1 > shares[2][0] + 0.2
    assert shares[0][1] < shares[1][1] < shares[2][1]
    assert "- **zeros**: share" in text and "- **packed**:" in text
    assert f"](images/{report.SPARSE_PLOT})" in text
    images = pngs(EXP / "images")
    assert sorted(images) == sorted([*report.PLOTS, report.SPARSE_PLOT])
    assert images[report.SPARSE_PLOT] != images["wer_vs_parameters.png"]

    short = written.summary()
    heading, *lines = short.split("\n\n")[0].splitlines()[1:]
    assert "zeros" in heading and "packed (MB)" in heading
    assert len(lines) == 3 and table[0]["zeros"] in lines[0]
    assert str(EXP / "images" / report.SPARSE_PLOT) in short

    # a size that an earlier version extracted
    cost = json.loads((folders[2] / "cost.json").read_text())
    del cost["packed_bytes"]
    (folders[2] / "cost.json").write_text(json.dumps(cost))
    report.write_family(EXP, COMMAND, rtf_rounds=1)
    assert [row[9] for row in rows(path)][1:] == [table[1]["packed (MB)"], report.NONE]


def test_a_report_on_dense_sizes_says_nothing_of_zeros(make_exp, extract):
    folders = extract(make_exp())
    for folder in folders:
        cost = json.loads((folder / "cost.json").read_text())
        # the filter bank is in the model as well
        assert cost.pop("packed_bytes") > 4 * cost["parameters"]
        (folder / "cost.json").write_text(json.dumps(cost))
    written = report.write_family(EXP, COMMAND, rtf_rounds=1)
    path = written.path
    text = path.read_text()
    assert "zeros" not in text and "packed" not in text and "{sparse}" not in text
    assert not (EXP / "images" / report.SPARSE_PLOT).exists()
    heading, first, *_ = written.summary().splitlines()[1:]
    assert heading.split()[:2] == ["size", "kept"] and first.split()[0] == "small"
    assert "zeros" not in heading
    assert all(str(EXP / "images" / name) in written.summary() for name in report.PLOTS)


def test_masked_sizes_are_in_the_order_of_what_is_not_zero(tmp_path):
    def size(label, kept, parameters, nonzero, sparse=True):
        cost = {"parameters": parameters, "nonzero_parameters": nonzero}
        one = results.SizeResult(label, tmp_path, label, kept, 12, "slim", cost, {}, {})
        return dataclasses.replace(one, sparse=sparse)

    a, b = size("a", 12, 900, 100), size("b", 8, 600, 500)
    c = size("c", 12, 900, 890, sparse=False)
    series = results.Series.of("x", [c, b, a])
    assert series.sizes == (a, b, c) and series.sparse
    assert a.zeros == pytest.approx(8 / 9)
    dense = [dataclasses.replace(one, sparse=False) for one in (a, b)]
    series = results.Series.of("x", dense)
    assert [one.label for one in series.sizes] == ["b", "a"] and not series.sparse


def test_the_heat_map_shades_what_is_masked():
    space = SearchSpace(2, pattern=Pattern(rows=8))
    share = {"0.ffn1.w_1": 0.5, "0.ffn1.w_2": 0.7, "1.conv.pointwise_conv1": 0.5}
    sparsity = tuple(share.get(name, 0.0) for name in space.weights)
    kept = tuple(unit != "1.conv" for unit in space.units)
    spec = SubnetSpec("small", "0f", space, kept, sparsity)
    (axes,) = plots.selection_figure([spec], []).subfigs[0].axes
    # of a dropped branch nothing is told
    assert [text.get_text() for text in axes.texts] == ["40%"]
    (mesh,) = axes.collections
    shades = mesh.get_array().ravel().tolist()
    assert shades == pytest.approx([0.4, 1, 1, 1, 1, 1, 0, 1])


def test_the_heat_map_has_a_masked_merge_and_parts_of_a_cgmlp():
    branches = ("mhsa", "cgmlp", "ffn2")
    space = SearchSpace(
        2, "component", 2, pattern=Pattern(rows=8), branches=branches, gate_linear=True
    )
    dropped = {"0.mhsa.0", "0.mhsa.1", "0.cgmlp.2"}
    kept = tuple(unit not in dropped for unit in space.units)

    def drawn(share):
        sparsity = tuple(share.get(name, 0.0) for name in space.weights)
        spec = SubnetSpec("small", "0f", space, kept, sparsity)
        (axes,) = plots.selection_figure([spec], []).subfigs[0].axes
        titles = [label.get_text() for label in axes.get_xticklabels()]
        shades = axes.collections[0].get_array().ravel().tolist()
        return titles, {text.get_text() for text in axes.texts}, shades

    titles, texts, shades = drawn(
        {"0.merge.merge_proj": 0.5, "1.cgmlp.csgu.linear": 0.9}
    )
    assert titles == ["MHSA", "cgMLP", "Merge", "FFN2"]
    # one side of two, half of whose weights are zero; one layer of three
    assert texts == {"3/4", "1/2\n50%", "70%"}
    assert shades == pytest.approx([0, 0.75, 0.25, 1, 1, 0.7, 1, 1])
    assert drawn({}) == (["MHSA", "cgMLP", "FFN2"], {"3/4"}, [0, 0.75, 1, 1, 1, 1])


@pytest.mark.parametrize("granularity", ["branch", "block"])
def test_selection_without_scores_has_no_history(granularity):
    space = SearchSpace(3, granularity)
    specs = [SubnetSpec.full("0f", space)]
    log = [
        {"update": 1, "phase": "step1", "scores": [0.5] * len(space)},
        {"update": 2, "phase": "step2", "scores": [0.1] * len(space)},
    ]
    with_history = plots.selection_figure(specs, log)
    without = plots.selection_figure(specs, [{**log[0], "scores": None}])
    assert len(with_history.subfigs) == 2
    assert len(without.subfigs) == 1


def component_spec() -> SubnetSpec:
    """Half an FFN, one head of two and the Conv of a block."""
    space = SearchSpace(1, "component", heads=2)
    kept = {"0.ffn1.0", "0.ffn1.3", "0.mhsa.1", "0.conv.0"}
    return SubnetSpec("small", "0f", space, tuple(u in kept for u in space.units))


def test_the_heat_map_shades_what_is_kept_in_part():
    figure = plots.selection_figure([component_spec()], [])
    (axes,) = figure.subfigs[0].axes
    assert {text.get_text() for text in axes.texts} == {"2/4", "1/2"}
    assert axes.get_title() == "small\n4 of 11"
    (mesh,) = axes.collections
    assert mesh.get_array().ravel().tolist() == [0.5, 0.5, 1.0, 0.0]


def test_a_size_of_components_is_counted_in_components(tmp_path):
    write_spec(component_spec(), tmp_path / "subnet.yaml")
    (tmp_path / "origin.yaml").write_text("form: slim\n")
    (tmp_path / "cost.json").write_text(json.dumps(dict.fromkeys(results.COSTS, 1)))
    size = results.read_size(tmp_path)
    assert (size.kept, size.of) == (4, 11)


def test_timing_is_reused_until_a_model_changes(make_exp, extract):
    make_exp()
    (small,) = extract(sizes=("small",))
    cache = EXP / "rtf.json"
    first = time_models([small], cache, 1)
    assert time_models([small], cache, 1) == first
    (full,) = extract(sizes=("full",))
    second = time_models([small, full], cache, 1)
    assert list(second.rtf) == [str(small), str(full)]
    assert second.rtf[str(small)] != first.rtf[str(small)]
    cache.write_text("{")
    assert time_models([small, full], cache, 1).rtf != second.rtf


def test_repaired_sizes_have_a_table_of_their_own(make_exp, extract):
    small, *_ = extract(make_exp(sparsity=SPARSITY))
    repaired = small.with_name(f"{small.name}-repaired")
    shutil.copytree(small, repaired)
    write_yaml(repaired / "repair.yaml", {"updates": 30, "seconds": 12.2})
    spec = (small / "subnet.yaml").read_text()
    text = spec.replace("name: small", "name: small-repaired")
    (repaired / "subnet.yaml").write_text(text)
    report.write_family(EXP, COMMAND, rtf_rounds=1)
    text = (EXP / "RESULTS.md").read_text()
    assert "## Sizes: supernet, repaired\n\n| size |" in text
    names = [row[0] for row in rows(EXP / "RESULTS.md")]
    assert names == [*KEPT, "small-repaired"]
    assert "small-repaired 30 updates (12 s); in total 30 updates, 12 s" in text


def test_stock_forms_and_unscored_sizes(make_exp, extract):
    make_exp(conv_norm="batch_norm")
    extract(sizes=("small", "full"), sets=("clean", "other"))
    extract(sizes=("small",), stock=True)
    cli.main(["extract", str(EXP), "--sizes", "medium"])
    written = report.write_family(EXP, COMMAND, rtf_rounds=1)
    path = written.path
    assert [(row[0], row[10], row[-1]) for row in rows(path)] == [
        ("small", "clean", "with espnet_omnisparse"),
        ("small", "other", "with espnet_omnisparse"),
        ("medium", "not scored", "with espnet_omnisparse"),
        ("full", "clean", "yes"),
        ("full", "other", "yes"),
        ("small", "test", "yes, zeros"),
    ]
    slim, *_, full, zeroed = rows(path)
    assert slim[4] == zeroed[4]
    assert slim[2] < zeroed[2] == full[2]
    text = path.read_text()
    assert "`--stock true` writes it" in text and "has the full net's shape" in text
    assert "--sizes small --calibration 400 --stock" in text


def test_baselines_are_series_of_their_own(make_exp, extract):
    make_exp()
    extract()
    other = make_exp(Path("exp/asr_alone"))
    (other / "subnets" / "small.yaml").unlink()
    (cut,) = extract(other, ("small",), option=["--subnets", f"{EXP}/subnets"])
    (alone,) = extract(other, sizes=("full",))
    write_yaml(EXP / "baselines.yaml", {"cut out": {"small": str(cut)}})
    written = report.write_family(EXP, COMMAND, rtf_rounds=1)
    path = written.path
    text = path.read_text()
    assert "## Baseline: cut out" in text and f"# training {other}\n" in text
    assert f"--sizes small --calibration 400 --subnets {EXP}/subnets\n" in text
    plain = pngs(EXP / "images")

    cli.main(
        ["report", str(EXP), "--rounds", "1", "--baseline", f"big={alone}"]
        + ["--baseline", f"of another kind, full={alone}"]
    )
    text = path.read_text()
    assert "## Baseline: trained individually" in text
    assert "## Baseline: of another kind" in text
    assert "cut out" not in text.replace(", cut out of one", "")
    assert f"\nomnisparse report {EXP} --rounds 1 --baseline big={alone}" in text
    assert [row[0] for row in rows(path)] == [*KEPT, "big", "full"]
    assert pngs(EXP / "images")["wer_vs_rtf.png"] != plain["wer_vs_rtf.png"]

    write_yaml(EXP / "baselines.yaml", {"small": str(alone), "more": {"a": "b"}})
    with pytest.raises(UserError, match="must map labels to folders"):
        report.write_family(EXP, COMMAND)


def test_read_score_tells_what_is_wrong(tmp_path):
    path = tmp_path / "result.txt"
    with pytest.raises(UserError, match=r"does not exist.*stage 13"):
        scores.read_score(path)
    for text in ("", "| Sum/Avg | 1 |\n", "| Sum/Avg | 1 2 | 3.0 4.0 x 0 0 0 |\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="not sclite's table"):
            scores.read_score(path)
    path.write_text("| Sum/Avg|   26   525 | 97.5  2.2  0.3  0.3  2.8 31.6 |-0.4 |\n")
    assert scores.read_score(path) == scores.Score(
        26, 525, 97.5, 2.2, 0.3, 0.3, 2.8, 31.6
    )


def test_read_size_tells_what_is_wrong(make_exp, extract):
    make_exp()
    (folder,) = extract(sizes=("small",))
    size = results.read_size(folder)
    assert (size.label, size.size, size.kept, size.of) == ("small", "small", 4, 12)
    assert (size.form, size.rtf) == ("slim", None)
    assert size.wer["ctc/test"].err == 33.3

    (folder / "cost.json").write_text('{"parameters": 1}')
    with pytest.raises(UserError, match="lacks a value in"):
        results.read_size(folder)
    (folder / "cost.json").write_text('{"parameters": ')
    with pytest.raises(UserError, match="cost.json is garbled"):
        results.read_size(folder)
    (folder / "origin.yaml").unlink()
    with pytest.raises(UserError, match="is not an extracted size"):
        results.read_size(folder)


def refused(capsys, *argv: str) -> str:
    """The one sentence of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_commands_refuse_in_one_sentence(make_exp, capsys):
    make_exp()
    exp = str(EXP)
    assert "not an experiment folder" in refused(capsys, "extract", "nowhere")
    assert "tiny is not one of" in refused(capsys, "extract", exp, "--sizes", "tiny")
    assert "no specs" in refused(capsys, "extract", exp, "--subnets", "exp")
    assert "no extracted sizes" in refused(capsys, "report", exp)
    wrong = refused(capsys, "report", exp, "--baseline", "small")
    assert "LABEL=FOLDER" in wrong
    cli.main(["extract", exp, "--sizes", "small"])
    assert "is scored yet" in refused(capsys, "report", exp)
    assert not (EXP / "RESULTS.md").exists()
    (EXP / CHECKPOINT).write_bytes(b"no checkpoint")
    assert "corrupt" in refused(capsys, "extract", exp, "--out", "exp/again")
    assert not list(Path("exp").glob("again*"))
    small = f"{EXP}_small"
    assert "is an extracted size" in refused(
        capsys, "profile", small, "--checkpoint", "other.pth"
    )
    (Path(small) / "cost.json").write_text("{")
    assert "cost.json is garbled" in refused(capsys, "profile", small)
    for command in (
        ["profile", exp, "--rounds", "0"],
        ["compare", "x", "--seeds", "a"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        assert stopped.value.code == 2


def test_a_folder_that_is_no_size_is_never_replaced(make_exp, capsys):
    make_exp()
    mine = Path(f"{EXP}_small")
    mine.mkdir()
    cli.main(["extract", str(EXP), "--sizes", "small"])  # nothing was in it
    assert (mine / "origin.yaml").exists()
    cli.main(["extract", str(EXP), "--sizes", "small", "--calibration", "7"])
    shutil.rmtree(mine)
    shutil.copytree(EXP, mine)
    before = sorted(path.name for path in mine.iterdir())
    assert "is not a size" in refused(capsys, "extract", str(EXP), "--sizes", "small")
    assert sorted(path.name for path in mine.iterdir()) == before


def test_the_present_folder_has_its_name(make_exp, capsys, monkeypatch):
    make_exp()
    monkeypatch.chdir(EXP)
    cli.main(["extract", ".", "--sizes", "small"])
    size = Path.cwd().with_name(f"{EXP.name}_small")
    assert (size / "model.pth").exists()
    assert "is scored yet" in refused(capsys, "report", ".")
    monkeypatch.chdir(size)
    cli.main(["export", ".", "--to", "packed"])
    assert size.with_name(f"{size.name}.omni").exists()
    assert "is a folder" in refused(capsys, "export", ".", "--to", "packed", "-o", "..")


def test_freshly_drawn_weights_of_a_size_are_not_its_own(make_exp, capsys):
    make_exp()
    cli.main(["extract", str(EXP), "--sizes", "small"])
    costs = Path(f"{EXP}_small") / "cost.json"
    kept = json.loads(costs.read_text())
    costs.write_text(json.dumps({**kept, "parameters": 5}))
    capsys.readouterr()
    cli.main(["profile", f"{EXP}_small", "--random", "--json", "--rounds", "1"])
    (found,) = json.loads(capsys.readouterr().out).values()
    assert found["parameters"] == kept["parameters"]


def test_profile_agrees_with_extraction(make_exp, capsys):
    make_exp()
    specs = EXP / "subnets"
    shutil.copytree(specs, "mine")
    cli.main(["extract", str(EXP), "--subnets", "mine", "--sizes", "small"])
    folder = f"{EXP}_small"
    capsys.readouterr()
    cli.main(["profile", str(EXP), folder, "--json", "--rounds", "1"])
    costs = json.loads(capsys.readouterr().out)
    assert list(costs) == [*(f"{EXP} {size}" for size in KEPT), folder]
    cut, extracted = costs[f"{EXP} small"], costs[folder]
    assert cut.pop("rtf") > 0 and extracted.pop("rtf") > 0
    assert cut == extracted

    (EXP / CHECKPOINT).unlink()
    shutil.move(specs, "moved")
    spec = "moved/medium.yaml"
    assert "--random" in refused(capsys, "profile", str(EXP), "--spec", spec)
    cli.main(["profile", str(EXP), "--random", "--spec", spec, "--rounds", "1"])
    out, _ = capsys.readouterr()
    heading, line = out.splitlines()
    assert line.startswith(f"{EXP} medium ")
    assert heading.split()[:2] == ["params", "(M)"]
    medium = costs[f"{EXP} medium"]["parameters"]
    assert float(line.split()[2]) == pytest.approx(medium / 1e6, abs=1e-4)

    cli.main(["profile", str(EXP), "--random", "--json", "--rounds", "1"])
    unselected = json.loads(capsys.readouterr().out)[f"{EXP} full"]
    assert unselected["parameters"] == costs[f"{EXP} full"]["parameters"]


def test_an_unpacked_size_profiles_its_own_weights_wherever_it_lies(
    make_exp, capsys, monkeypatch
):
    make_exp()
    cli.main(["extract", str(EXP), "--sizes", "small"])
    size = Path(f"{EXP}_small")
    capsys.readouterr()
    cli.main(["profile", str(size), "--json", "--rounds", "1"])
    known = json.loads(capsys.readouterr().out)[str(size)]
    for lacking in ("subnet.yaml", "origin.yaml", "cost.json"):
        (size / lacking).unlink()
    home = Path.cwd()
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    cli.main(["profile", str(home / size), "--json", "--rounds", "1"])
    unpacked = json.loads(capsys.readouterr().out)[str(home / size)]
    for key in ("parameters", "nonzero_parameters", "file_bytes"):
        assert unpacked[key] == known[key]


def test_info_names_the_versions(capsys):
    cli.main(["info"])
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__.split('+')[0]}" in out
    assert "sclite: " in out
