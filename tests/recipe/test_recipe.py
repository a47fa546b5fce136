import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.recipes import SIZES, TINY, copy_recipe, recipe_environment, refusal, run

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.core.spec_yaml import write_spec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.recipe import run as recipe
from espnet_omnisparse.recipe import template
from espnet_omnisparse.recipe.options import OWN_OPTIONS

STAGE_12 = ("--stage", "12", "--stop_stage", "12")
UPLOAD = ("--skip_packing", "false", "--skip_upload_hf", "false")


@pytest.fixture
def asr1(tmp_path):
    return copy_recipe(tmp_path / "work")


STREAMING = ("--use_streaming", "true")
TRANSDUCER = ("--asr_task", "asr_transducer")


@pytest.mark.parametrize(
    "given, config, arguments",
    [
        ((), "conf/decode_ctc.yaml", None),
        (STREAMING, "conf/decode_streaming.yaml", None),
        (TRANSDUCER, "conf/decode_transducer.yaml", None),
        (TRANSDUCER + STREAMING, "conf/decode_transducer.yaml", "--streaming true"),
        (
            (*TRANSDUCER, *STREAMING, "--inference_args", "--beam_size 2"),
            "conf/decode_transducer.yaml",
            "--beam_size 2 --streaming true",
        ),
    ],
)
def test_sizes_of_either_task_are_decoded_as_streams(
    monkeypatch, given, config, arguments
):
    commands = []

    def run(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(recipe.subprocess, "run", run)
    recipe.asr_sh(recipe.parse(given), stage="12", stop_stage="12")
    ((script, *options),) = commands
    options = dict(zip(options[::2], options[1::2], strict=True))
    assert script == "./asr.sh" and options["--inference_config"] == config
    assert options.get("--inference_args") == arguments


def test_budgets_are_told_to_the_training_that_comes_before_the_search(
    asr1, monkeypatch
):
    commands = []

    def run(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(recipe.subprocess, "run", run)
    monkeypatch.chdir(asr1)
    config = Path("conf/sparse.yaml")
    supernet = {"sizes": {"s50": {"sparsity": 0.5}, "9M": 4}, "sparsity": {}}
    config.write_text(yaml.safe_dump({"model_conf": {"supernet": supernet}}))
    given = ["--asr_config", str(config), "--asr_args", "--seed 2"]
    for sizes, arguments in (
        ("s50 70% 9M full 8MB", "--seed 2 --budgets 70%,8MB"),
        ("s50 9M full", "--seed 2"),
        ("", "--seed 2"),
    ):
        recipe.asr_sh(recipe.parse([*given, "--sizes", sizes]), stage="11")
        options = dict(zip(commands[-1][1::2], commands[-1][2::2], strict=True))
        assert options["--asr_args"] == arguments
    # as what sizes are called in a folder of specs
    recipe.asr_sh(recipe.parse([*given, "--sizes", "70%", "--subnets", "x"]))
    options = dict(zip(commands[-1][1::2], commands[-1][2::2], strict=True))
    assert options["--asr_args"] == "--seed 2"


# --- options -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--asr_config", "conf/layer_prune.yaml"),
        ("--asr_config", "conf/tuning/a.v2.yaml", "--token-type", "char"),
        ("--asr_config", "conf/a.yml", "--token_type", "char"),
        ("--asr_config", "conf/a.yaml", "--lang", "noinfo", "--expdir", "exp/b"),
        ("--asr_config", "conf/a.yaml", "--asr_tag", "mine", "--nbpe", "7"),
        ("--asr_config", "conf/a.yaml", "--asr_exp", "somewhere/else"),
        ("--speed_perturb_factors", "", "--feats_type", "fbank_pitch"),
        (
            *("--asr_config", "conf/a.yaml", "--asr_args"),
            "--max_epoch 10 --optim_conf lr=0.1 --seed=3",
        ),
    ],
    ids=" ".join,
)
def test_the_experiment_is_named_as_asr_sh_names_it(asr1, options):
    template.link(asr1, template.locate())
    defaults = ["--lang", "en", "--nbpe", "5000", "--speed_perturb_factors", "0.9 1.0"]
    given = [*defaults, *options]
    sets = ["--train_set", "a", "--valid_set", "b", "--test_sets", "c"]
    # stage 16 is none: it derives its names and ends
    traced = subprocess.run(
        ["bash", "-x", "./asr.sh", *given, *sets, "--stage", "16"],
        cwd=asr1,
        env=recipe_environment(asr1.parents[2]),
        capture_output=True,
        text=True,
    )
    assert traced.returncode == 0, traced.stderr
    name = re.findall(r"^\++ asr_exp='?([^'\n]+)'?$", traced.stderr, re.MULTILINE)[-1]
    assert recipe.parse(given).asr_exp == name


def test_own_options_are_split_off_and_the_last_one_counts():
    given = recipe.parse(
        ["--lang", "en", "--sizes", "small full", "--lang", "de", "--stock", "true"]
    )
    assert dict(given.options) == {"lang": "de"}
    assert given.own["sizes"] == "small full"
    assert given.own["stock"] == "true"
    assert given.own["calibration"] == "400"


def test_dashes_and_underscores_in_names_are_the_same():
    given = recipe.parse(["--stop-stage", "5", "--asr-tag", "a-b"])
    assert dict(given.options) == {"stop_stage": "5", "asr_tag": "a-b"}
    assert given.stages == (1, 5)


def test_stages_end_at_15_unless_told_otherwise():
    assert recipe.parse([]).stages == (1, 15)
    assert recipe.parse(["--stage", "12", "--stop_stage", "13"]).stages == (12, 13)


@pytest.mark.parametrize(
    "options", [["--stage"], ["stage", "3"], ["--lang", "en", "x"]]
)
def test_an_argument_that_is_no_option_is_refused(options):
    with pytest.raises(UserError, match="--name value"):
        recipe.parse(options)


def test_help_names_every_own_option(asr1):
    done = run(asr1, "--help")
    assert done.returncode == 0
    for name in OWN_OPTIONS:
        assert f"--{name} " in done.stdout


SEARCH = ("--sizes", "full", "--search")

# --- mistakes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, word",
    [
        (["--asr_config", "conf/missing.yaml"], "conf/missing.yaml"),
        (["--stage", "eleven"], "--stage"),
        (["--asr_task", "asr_mystery"], "asr_transducer"),
        (["--download_model", "a/b", "--sizes", "small"], "--download_model"),
        (["--stock", "yes"], "--stock"),
        (["--calibration", "many"], "--calibration"),
        (["--calibration", "0"], "at least 1"),
        (["--stage", "9", "--stop_stage", "3"], "--stage 9 is after --stop_stage 3"),
        (["--search", "--seed 2"], "--search is for budgets among --sizes"),
        (["--repair_args", "--seed 2"], "--repair_args is for a repair"),
        ([*SEARCH, "-h"], "--search holds --help"),
        (["--repair", "1.5"], "--repair"),
        ([*SEARCH, "--objective mer"], "--search: argument --objective"),
        ([*SEARCH, "--rounds_ 3"], "--search: unrecognized arguments: --rounds_"),
        ([*SEARCH, "--init 'a"], "--search holds no arguments (No closing"),
        ([*UPLOAD], "--hf_repo"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistaken_option_gets_one_sentence(asr1, options, word):
    config = ["--asr_config", "conf/demo_supernet.yaml"]
    assert word in refusal(asr1, *config, *options)


def test_a_downloaded_model_is_decoded_as_it_is_with_our_encoders(asr1, monkeypatch):
    given = []
    monkeypatch.setattr(recipe, "prepare", lambda run: None)
    monkeypatch.setattr(
        recipe.subprocess,
        "run",
        lambda command: given.append(command) or subprocess.CompletedProcess([], 0),
    )
    with contextlib.chdir(asr1):
        options = ["--download_model", "a/b", "--stage", "12", "--stop_stage", "13"]
        recipe.main([*options, "--speed_perturb_factors", ""])
    (command,) = given
    named = dict(zip(command[1::2], command[2::2], strict=True))
    assert named["--download_model"] == "a/b"
    assert named["--python"] == "python3 -m espnet_omnisparse.launch"
    assert (named["--stage"], named["--stop_stage"]) == ("12", "13")


def test_what_stage_12_reads_is_looked_for_before_stage_1(asr1):
    config = ["--asr_config", "conf/demo_supernet.yaml"]
    assert "--subnets" in refusal(asr1, *config, "--subnets", "none_here")
    for name in ("inference_config", "pretrained_model"):
        assert f"--{name}" in refusal(asr1, *config, f"--{name}", "none_here:a:b")
    lm = ("--lm_config", "none_here", "--use_lm", "true")
    assert "--lm_config" in refusal(asr1, *config, *lm)
    with contextlib.chdir(asr1):  # what is not read may be missing
        unread = ("--skip_stages", "12", "--inference_config", "none_here")
        for options in (unread, ("--inference_config", ""), (*lm[:2], "--use_lm", "0")):
            plain = [*config, "--speed_perturb_factors", "", *options]
            recipe.check(recipe.parse(plain))
    (asr1 / "conf/decode_ctc.yaml").unlink()
    assert "conf/decode_ctc.yaml" in refusal(asr1, *config)


def test_a_wrong_espnet_root_gets_one_sentence(asr1, tmp_path):
    wrong = str(tmp_path / "wrong")
    config = ["--asr_config", "conf/demo_supernet.yaml", "--speed_perturb_factors", ""]
    assert f"ESPNET_ROOT={wrong}" in refusal(asr1, *config, ESPNET_ROOT=wrong)


def test_speed_perturbation_without_sox_is_refused_where_stage_2_runs(asr1, tools):
    path, config = tools(), ["--asr_config", "conf/demo_supernet.yaml"]
    assert "sox" in refusal(asr1, *config, PATH=path)
    wrong = {"ESPNET_ROOT": str(asr1 / "wrong"), "PATH": path}
    assert "ESPNET_ROOT" in refusal(asr1, *config, "--stage", "3", **wrong)
    plain = ["--speed_perturb_factors", ""]
    assert "ESPNET_ROOT" in refusal(asr1, *config, *plain, **wrong)


def test_with_speed_perturbation_tokens_are_made_from_the_unperturbed_text(asr1):
    (asr1 / "asr.sh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments\n')
    (asr1 / "asr.sh").chmod(0o755)

    def arguments(factors: str) -> list[str]:
        given = ["--train_set", "tr", "--speed_perturb_factors", factors]
        with contextlib.chdir(asr1):
            recipe.asr_sh(recipe.parse(given))
        return (asr1 / "arguments").read_text().splitlines()

    perturbed = arguments("0.9 1.0")
    assert perturbed[perturbed.index("--bpe_train_text") + 1] == "data/tr/text"
    assert perturbed[perturbed.index("--lm_train_text") + 1] == "data/tr/text"
    assert "--bpe_train_text" not in arguments("")


def make_repository(folder: Path, identity: dict[str, str]) -> None:
    """A git repository with one commit at `folder`."""
    environment = {**recipe_environment(folder), **identity}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=folder, env=environment, check=True)


def git_settings(**settings: str) -> dict[str, str]:
    """The variables that give git these settings; `__` stands for a dot."""
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for index, (name, value) in enumerate(settings.items()):
        variables[f"GIT_CONFIG_KEY_{index}"] = name.replace("__", ".")
        variables[f"GIT_CONFIG_VALUE_{index}"] = value
    return variables


IDENTITY = {"user__name": "tester", "user__email": "tester@example.org"}


@pytest.fixture
def tools(tmp_path):
    """A PATH with what run.sh needs, and the named tools."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(*names: str) -> str:
        python = folder / "python3"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        for name in ("bash", "env", "sh", "dirname", *names):
            (folder / name).symlink_to(shutil.which(name))
        return str(folder)

    return add


def test_an_upload_without_git_lfs_is_refused_before_anything_runs(asr1, tools):
    config = ["--asr_config", "conf/demo_supernet.yaml", "--hf_repo", "a/b"]
    path = tools("git")
    # git finds its own lfs command elsewhere than on PATH, too
    sentence = refusal(asr1, *config, *UPLOAD, PATH=path, **git_settings(**IDENTITY))
    assert "git-lfs" in sentence


@pytest.mark.parametrize("given", [{}, {"user__name": "tester"}], ids=["no", "half"])
def test_an_upload_without_git_identity_is_refused(asr1, tools, given):
    config = ["--asr_config", "conf/demo_supernet.yaml", "--hf_repo", "a/b"]
    (Path(tools("git")) / "git-lfs").symlink_to("/bin/true")
    path = str(Path(asr1.parents[2].parent, "bin"))
    make_repository(asr1.parents[2], git_settings(**IDENTITY))
    sentence = refusal(asr1, *config, *UPLOAD, PATH=path, **git_settings(**given))
    assert "user.email" in sentence if given else "user.name" in sentence


def test_an_upload_from_outside_a_git_commit_is_refused(asr1, tools):
    config = ["--asr_config", "conf/demo_supernet.yaml", "--hf_repo", "a/b"]
    (Path(tools("git")) / "git-lfs").symlink_to("/bin/true")
    path = str(Path(asr1.parents[2].parent, "bin"))
    sentence = refusal(asr1, *config, *UPLOAD, PATH=path, **git_settings(**IDENTITY))
    assert "commit" in sentence


def make_trained(asr1: Path) -> Path:
    """What a run leaves that looks trained, as far as the sizes' names go."""
    exp = asr1 / "exp" / "asr_tag"
    (exp / "subnets").mkdir(parents=True)
    (exp / "config.yaml").write_text("model: omni\n")
    spec = SubnetSpec("small", "0f", SearchSpace(1), (True, False, False, False))
    write_spec(spec, exp / "subnets" / "small.yaml")
    return exp


def test_an_unknown_size_gets_one_sentence_and_no_folder(asr1):
    template.link(asr1, template.locate())
    make_trained(asr1)
    config = ["--asr_config", "conf/demo_supernet.yaml", "--asr_tag", "tag"]
    sentence = refusal(asr1, *config, "--sizes", "smal", *STAGE_12)
    assert "smal is not one of small" in sentence


def test_names_that_no_spec_has_are_told_before_stage_1(asr1):
    subnets = make_trained(asr1) / "subnets"
    config = ["--asr_config", "conf/demo_plain.yaml", "--speed_perturb_factors", ""]
    sentence = refusal(asr1, *config, "--subnets", str(subnets), "--sizes", "smal")
    assert "--sizes: smal is not one of small" in sentence


def test_a_search_that_will_not_see_all_masks_is_told_before_stage_1(asr1):
    config = yaml.safe_load((asr1 / "conf/omni_sparse.yaml").read_text())
    config["model_conf"]["mask_decoder"] = True
    (asr1 / "conf/decoder.yaml").write_text(yaml.safe_dump(config))
    given = ["--asr_config", "conf/decoder.yaml", "--sizes", "75%"]
    given += ["--speed_perturb_factors", "", "--ngpu", "0"]
    assert "search with --objective loss" in refusal(asr1, *given)
    with contextlib.chdir(asr1):
        recipe.check(recipe.parse([*given, "--search", "--objective loss"]))


def test_sizes_before_training_get_one_sentence(asr1):
    template.link(asr1, template.locate())
    config = ["--asr_config", "conf/demo_supernet.yaml", "--asr_tag", "tag"]
    sentence = refusal(asr1, *config, *STAGE_12)
    assert "exp/asr_tag is not an experiment folder" in sentence


# --- the whole recipe --------------------------------------------------------------

OPTIONS = (
    *("--ngpu", "0", "--nj", "1", "--inference_nj", "1", "--token_type", "char"),
    *("--speed_perturb_factors", "", "--audio_format", "wav", "--lang", "demo"),
    *("--asr_config", "conf/tiny.yaml", "--asr_tag", "tiny"),
    *("--inference_config", "conf/greedy.yaml", "--hf_repo", "tester/demo"),
    *("--train_set", "train", "--valid_set", "dev", "--test_sets", "demo_test"),
    "--local_data_opts",
    "--corpus downloads/LibriSpeech --train_set train --train_parts demo-train "
    "--valid_set dev --valid_parts demo-dev --test_parts demo-test",
)
LOAD = """
import json, sys
import soundfile
{first}
from espnet2.bin.asr_inference import Speech2Text
for folder in sys.argv[2:]:
    speech2text = Speech2Text(folder + "/config.yaml", folder + "/model.pth",
                              ctc_weight=1.0, beam_size=1)
    samples, _ = soundfile.read(sys.argv[1])
    text = speech2text(samples)[0][0]
    print(json.dumps([folder, text]))
"""
WITHOUT_OURS = 'sys.modules["espnet_omnisparse"] = None'
WITH_OURS = "import espnet_omnisparse.tasks"


def write_small_corpus(folder: Path) -> None:
    """A few of the demo corpus's utterances, in LibriSpeech's layout."""
    from espnet_omnisparse.data import demo_corpus, made_corpus, synthesis

    wanted = {"demo-train": 5, "demo-dev": 1, "demo-test": 1}
    chosen = [one for one in demo_corpus.plan() if one.number < wanted[one.part]]
    made_corpus.write_corpus(folder, chosen, synthesis.speak)


def result_rows(results: Path) -> list[str]:
    """The table rows of a RESULTS.md of asr.sh, which also holds the date."""
    return [x for x in results.read_text().splitlines() if "/demo_test|" in x]


def hypotheses(asr1: Path, first: str, folders: list[str]) -> dict[str, str]:
    """What ESPnet's Speech2Text makes of one recording with each model."""
    audio = min((asr1 / "downloads").rglob("demo-test/**/*.flac"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(first=first), str(audio), *folders],
        cwd=asr1,
        env=recipe_environment(asr1.parents[2]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("[")]
    return dict(lines)


@pytest.mark.slow
def test_the_unmodified_asr_sh_makes_decodes_packs_and_uploads_each_size(tmp_path):
    pytest.importorskip("espeakng_loader")
    work = tmp_path / "work"
    asr1 = copy_recipe(work)
    write_small_corpus(asr1 / "downloads" / "LibriSpeech")
    (asr1 / "conf" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    greedy = {"batch_size": 1, "beam_size": 1, "ctc_weight": 1.0}
    (asr1 / "conf" / "greedy.yaml").write_text(yaml.safe_dump(greedy))

    hub = tmp_path / "hub"
    settings = {f"url__file://{hub}/__insteadOf": "https://huggingface.co/"}
    git = git_settings(**IDENTITY, **settings)
    # a dot in the folder's name would read as one of the key's own
    git["GIT_CONFIG_KEY_2"] = f"url.file://{hub}/.insteadOf"
    make_repository(work, git)
    upload = shutil.which("git-lfs") is not None
    for size in SIZES if upload else ():
        bare = hub / "tester" / f"demo-{size}"
        subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True)

    def recipe_run(*options: str) -> str:
        done = run(asr1, *OPTIONS, *options, **git)
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    packing = UPLOAD if upload else UPLOAD[:2]
    output = recipe_run("--stage", "1", "--stop_stage", "15", *packing)
    assert (asr1 / "asr.sh").resolve().is_relative_to(template.locate().resolve())
    assert output.count("\nextracted") == 3

    exp = asr1 / "exp" / "asr_tiny"
    folders = {size: asr1 / "exp" / f"asr_tiny_{size}" for size in SIZES}
    assert (exp / "RESULTS.md").is_file()
    lengths = [(folders[size] / "model.pth").stat().st_size for size in SIZES]
    assert lengths == sorted(set(lengths))
    for size, folder in folders.items():
        assert len(result_rows(folder / "RESULTS.md")) >= 2, size  # words, characters
        (packed,) = folder.glob("*.zip")
        if upload:
            bare = hub / "tester" / f"demo-{size}"
            pushed = subprocess.run(
                ["git", "ls-tree", "-r", "--name-only", "HEAD"],
                cwd=bare,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()
            assert "meta.yaml" in pushed
            assert f"exp/asr_tiny_{size}/model.pth" in pushed

    # again: nothing changes
    models = {size: (folders[size] / "model.pth").read_bytes() for size in SIZES}
    rows = {size: result_rows(folders[size] / "RESULTS.md") for size in SIZES}
    output = recipe_run("--stage", "12", "--stop_stage", "13")
    assert output.count("\nalready extracted") == 3
    assert {s: (folders[s] / "model.pth").read_bytes() for s in SIZES} == models
    assert {s: result_rows(folders[s] / "RESULTS.md") for s in SIZES} == rows

    # one stage alone, for one size alone
    for folder in folders.values():
        (folder / "RESULTS.md").unlink()
    output = recipe_run("--stage", "13", "--stop_stage", "13", "--sizes", "small")
    assert "Stage 13" in output and "Stage 12" not in output
    assert result_rows(folders["small"] / "RESULTS.md") == rows["small"]
    assert not (folders["medium"] / "RESULTS.md").exists()

    # the form that an ESPnet without this package loads
    stock = f"{folders['small']}_stock"
    recipe_run(*STAGE_12, "--sizes", "small", "--stock", "true")
    ours = hypotheses(asr1, WITH_OURS, [str(folder) for folder in folders.values()])
    assert set(ours) == {str(folder) for folder in folders.values()}
    assert all(isinstance(text, str) for text in ours.values())
    alone = hypotheses(asr1, WITHOUT_OURS, [stock, str(folders["full"])])
    assert alone[stock] == ours[str(folders["small"])]
    assert alone[str(folders["full"])] == ours[str(folders["full"])]

    # and from the packed file
    from espnet2.main_funcs.pack_funcs import unpack

    unpacked = unpack(next(folders["small"].glob("*.zip")), tmp_path / "unpacked")
    folder = str(Path(unpacked["asr_model_file"]).parent)
    assert hypotheses(asr1, WITH_OURS, [folder])[folder] == ours[str(folders["small"])]

    # a supernet of sparsities, of both axes: budgets are searched for
    supernet = {
        "method": "uniform",
        "sizes": {"half": {"units": 4, "sparsity": 0.5}, "s50": {"sparsity": 0.5}},
        "sparsity": {"ramp": 0.4, "sandwich": ["dense", "sparsest", "nearby"]},
    }
    sparse = {**TINY, "encoder": "omni_sparse_conformer"}
    sparse["model_conf"] = {**TINY["model_conf"], "supernet": supernet}
    (asr1 / "conf" / "sparse.yaml").write_text(yaml.safe_dump(sparse))
    sizes = ("half", "s50", "60%", "14k")
    output = recipe_run(
        *("--asr_config", "conf/sparse.yaml", "--asr_tag", "sparse"),
        *("--stage", "11", "--stop_stage", "13", "--sizes", " ".join(sizes)),
        *("--search", "--population 2 --generations 1 --utterances 4"),
    )
    assert "| 60pct_uniform |" in output
    for size in ("half", "s50", "60pct", "14k"):
        folder = asr1 / "exp" / f"asr_sparse_{size}"
        assert len(result_rows(folder / "RESULTS.md")) >= 2, size
        cost = json.loads((folder / "cost.json").read_text())
        if size != "14k":  # which dropped branches alone may meet
            assert cost["nonzero_parameters"] < cost["parameters"]
        assert cost["packed_bytes"] < cost["file_bytes"]
    assert cost["nonzero_parameters"] <= 14_000
    assert "packed (MB)" in (asr1 / "exp" / "asr_sparse" / "RESULTS.md").read_text()

    # repaired, with ESPnet's own stage 11; RESULTS.md tells both apart
    repair = (
        *("--asr_config", "conf/sparse.yaml", "--asr_tag", "sparse", *STAGE_12[:2]),
        *("--stop_stage", "13", "--sizes", "s50", "--repair", "0.5"),
    )
    assert "already repaired" not in recipe_run(*repair)
    folder = asr1 / "exp" / "asr_sparse_s50-repaired"
    assert len(result_rows(folder / "RESULTS.md")) >= 2
    text = (asr1 / "exp" / "asr_sparse" / "RESULTS.md").read_text()
    assert "| s50 |" in text and "| s50-repaired |" in text
    assert "## Sizes: supernet, repaired" in text and "come on top" in text
    assert "already repaired" in recipe_run(*repair)
