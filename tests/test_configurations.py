import re

import pytest
import yaml
from helpers import REPOSITORY

CONFIGURATIONS = sorted(
    path
    for path in [
        *REPOSITORY.glob("conf/*.yaml"),  # what the recipes share, by links
        *REPOSITORY.glob("egs2/*/asr1/conf/**/*.yaml"),
    ]
    if not path.is_symlink()
    and re.search(
        r"encoder: (layer_prunable|omni_sparse)_conformer|body_conf:", path.read_text()
    )
)
RUN_LENGTH = 732_000
TOKENS = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_builds_with_its_optimiser_and_scheduler(path, tmp_path):
    from espnet2.tasks.abs_task import scheduler_classes

    from espnet_omnisparse.tasks import task_of

    task = task_of(yaml.safe_load(path.read_text()))
    given = ["--config", str(path), "--output_dir", str(tmp_path / "exp")]
    args = task.get_parser().parse_args(given)
    args.token_list = TOKENS
    model = task.build_model(args)
    model.supernet.set_run_length(RUN_LENGTH)
    (optimizer,) = task.build_optimizers(args, model)
    scheduler_classes[args.scheduler](optimizer, **args.scheduler_conf)

    # a run of whatever length holds the phases, and at its end all sizes are trained
    assert model.supernet.timeline.settled_at < RUN_LENGTH
    model.supernet.update = RUN_LENGTH - 1
    assert model.supernet.settled
    sizes = {draw.size for draw in model.supernet.validation_subnets()}
    assert set(model.supernet.sizes) <= sizes
    plan = model.supernet.config.sparsity
    masked = getattr(args, "encoder", None) == "omni_sparse_conformer"
    assert (plan is not None) == (masked or "pattern" in args.encoder_conf)
    if plan is not None:
        drawn = model.supernet.sample_subnets()
        assert sum(draw.times for draw in drawn) == len(plan.sandwich)
        assert drawn[0].is_main and model.supernet.max_sparsity == plan.final

    comment = re.search(
        r"# T = ([\d,]+) updates per (?:(\d+) )?branch", path.read_text()
    )
    if comment:  # a published interval: k falls by r every T updates
        interval = int(comment[1].replace(",", ""))
        selection, length = model.supernet.selection, model.supernet.timeline.step1
        shrink = int(comment[2] or 1)
        start = len(model.supernet.space)
        assert selection.k(interval - 1, length) == start - shrink
        assert selection.k(interval, length) == start - 2 * shrink

    comment = re.search(r"# T_i = (.*) updates", path.read_text())
    if comment:  # published iterations: lengths, "then" or "x" how many
        lengths = []
        for item in comment[1].replace(",", "").split(" then "):
            interval, _, count = item.partition(" x ")
            lengths += [int(interval)] * int(count or 1)
        selection, length = model.supernet.selection, model.supernet.timeline.step1
        assert sum(lengths) == length
        units, step = len(model.supernet.space), selection.zero_out
        for number in range(len(lengths)):
            start, end = sum(lengths[:number]), sum(lengths[: number + 1])
            for update in (start, end - 1):
                assert selection.wanted_shut(update, length) == step * (number + 1)
        smallest = units - step * len(lengths)
        assert smallest == min(size.units for size in selection.sizes.values())


def test_there_are_configurations_of_every_published_schedule():
    text = "".join(path.read_text() for path in CONFIGURATIONS)
    assert set(re.findall(r"# T = ([\d,]+)", text)) == {
        *("14,640", "35,000", "26,600", "5,734"),
    }
    assert set(re.findall(r"# T_i = ([\d,]+) ", text.replace("0, then", "0 then"))) == {
        *("63,000", "42,000", "14,000", "27,450"),
    }


def test_there_are_configurations_of_the_weight_axis_and_of_both():
    axes = set()
    for path in CONFIGURATIONS:
        supernet = yaml.safe_load(path.read_text())["model_conf"].get("supernet", {})
        if "sparsity" in supernet:
            axes.add(supernet.get("method", "none") != "none")
    assert axes == {False, True}


def test_there_are_streaming_configurations_of_both_tasks():
    from espnet_omnisparse.tasks import OmniASRTask, OmniASRTransducerTask, task_of

    streaming = set()
    for path in CONFIGURATIONS:
        config = yaml.safe_load(path.read_text())
        if "chunk" in path.read_text():
            streaming.add(task_of(config))
    assert streaming == {OmniASRTask, OmniASRTransducerTask}


SHARED = sorted(path.name for path in REPOSITORY.glob("conf/*.yaml"))


@pytest.mark.parametrize("recipe", ["librispeech", "tedlium2"])
def test_both_recipes_have_the_shared_configurations(recipe, monkeypatch):
    from espnet_omnisparse.recipe.checks import check
    from espnet_omnisparse.recipe.options import parse

    folder = REPOSITORY / "egs2" / recipe / "asr1"
    monkeypatch.chdir(folder)
    for name in SHARED:
        assert (folder / "conf" / name).samefile(REPOSITORY / "conf" / name)
    for name, task in {
        "omni_sparse": "asr",
        "omni_both_axes": "asr",
        "omni_sparse_streaming": "asr_transducer",
        "deployment": "asr_transducer",
    }.items():
        given = ["--stage", "10", "--asr_config", f"conf/{name}.yaml"]
        given += ["--asr_task", task, "--sizes", "full 70%", "--ngpu", "0"]
        check(parse(given))
