"""Searches, extracts, profiles and reports sizes of a supernet: `omnisparse`.

Run it in the recipe's folder, where the paths of `config.yaml` start. Each command
imports what it needs itself: PyTorch and ESPnet take seconds, `--help` none.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import espnet_omnisparse
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.recipe import options as recipe

CHECKPOINT = recipe.STOCK_DEFAULTS["inference_asr_model"]
TABLE = {
    "parameters": ("params (M)", 1e6),
    "encoder_parameters": ("encoder (M)", 1e6),
    "nonzero_parameters": ("non-zero (M)", 1e6),
    "macs_10s": ("MACs 10 s (G)", 1e9),
    "macs_30s": ("MACs 30 s (G)", 1e9),
    "packed_bytes": ("packed (MB)", 1e6),
    "file_bytes": ("file (MB)", 1e6),
    "rtf": ("RTF", 1.0),
}


def extract(args: argparse.Namespace) -> None:
    """Writes sizes of a supernet as experiment folders of their own."""
    from espnet_omnisparse.environment import require_writable
    from espnet_omnisparse.extract.experiment import extract_size, wanted_specs

    specs = wanted_specs(args.exp, args.subnets, args.sizes or ())
    prefix = args.out or str(args.exp)
    for size, spec in specs.items():
        out = Path(recipe.size_folder(prefix, size, args.stock))
        require_writable(out / "model.pth")  # before minutes of calibration
        written = extract_size(
            args.exp,
            args.exp / args.checkpoint,
            spec,
            out,
            args.stock,
            args.calibration,
        )
        print(f"{out}: {'extracted' if written else 'already extracted'}")


def profile(args: argparse.Namespace) -> None:
    """Prints the costs of sizes and of models, their times measured in turn."""
    from espnet_omnisparse.cost.count import measure_rtf

    models: dict[str, Any] = {}
    costs: dict[str, dict[str, float]] = {}
    for folder in args.folders:
        for name, (model, cost) in _models(folder, args).items():
            models[name], costs[name] = model, cost
    for name, row in measure_rtf(models, rounds=args.rounds).items():
        costs[name]["rtf"] = statistics.median(row)
    if args.json:
        print(json.dumps(costs, indent=2))
    else:
        print(_table(costs))


def _models(
    folder: Path, args: argparse.Namespace
) -> dict[str, tuple[Any, dict[str, float]]]:
    """What a folder holds: name -> model and its costs."""
    from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
    from espnet_omnisparse.core.spec_yaml import read_spec
    from espnet_omnisparse.cost.count import count_cost
    from espnet_omnisparse.extract import experiment as family
    from espnet_omnisparse.files import load_tensors
    from espnet_omnisparse.tasks import is_supernet
    from espnet_omnisparse.train.journal import SUBNETS, read_specs

    spec_path = args.spec
    config = family.located(family.read_config(folder), folder)
    if (folder / family.COST).exists() and not spec_path:
        return {str(folder): (family.load_size(folder), family.read_cost(folder))}
    # an unpacked size has its model alone, under the name that sizes give it
    names = (args.checkpoint, family.MODEL)
    trained = next((folder / n for n in names if (folder / n).exists()), None)
    if args.random:
        state = family.build(config).state_dict()
    elif trained:
        state = load_tensors(trained)
    else:
        raise UserError(
            f"{folder} has no {args.checkpoint}: name its model with --checkpoint, or "
            "profile freshly drawn weights with --random."
        )
    if spec_path:
        loaded = read_spec(spec_path)
        specs = {loaded.name: loaded}
    else:
        specs = read_specs(folder / SUBNETS)
    if not specs and is_supernet(config):  # still in step 1
        space = family.build(config).encoder.space
        mark = fingerprint(state, config["token_list"])
        specs = {FULL: SubnetSpec.full(mark, space)}
    cuts = {name: family.cut(config, state, spec) for name, spec in specs.items()}
    if not specs:  # a model of ordinary training
        cuts = {"": (config, state)}
    found = {}
    for name, (small_config, small) in cuts.items():
        model = family.build(small_config, small)
        pattern = specs[name].space.pattern if name in specs else None
        cost = count_cost(model, family.feature_size(config), pattern).as_dict()
        cost["file_bytes"] = _file_bytes(small)
        found[f"{folder} {name}".strip()] = model, cost
    return found


def _file_bytes(state: Mapping[str, Any]) -> int:
    """The size of the model file that extraction would write."""
    from espnet_omnisparse.files import save_tensors

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        save_tensors(path, {name: tensor.clone() for name, tensor in state.items()})
        return path.stat().st_size


def _table(costs: Mapping[str, Mapping[str, float]]) -> str:
    from espnet_omnisparse.report.tables import Table

    table = Table(["", *(title for title, _ in TABLE.values())])
    for name, cost in costs.items():
        # sizes extracted by an earlier version have no packed bytes
        numbers = ((cost.get(key), unit) for key, (_, unit) in TABLE.items())
        cells = ("" if n is None else f"{n / unit:.4f}" for n, unit in numbers)
        table.rows.append([name, *cells])
    return table.text()


def search(args: argparse.Namespace) -> None:
    """Searches the sparsities that are best within budgets; goes on if interrupted."""
    from espnet_omnisparse.environment import require_folders
    from espnet_omnisparse.search import run as search_run
    from espnet_omnisparse.search.evolution import SearchOptions
    from espnet_omnisparse.search.spec_costs import parse_budget
    from espnet_omnisparse.train.journal import SUBNETS

    budgets = [parse_budget(one) for one in args.budgets.split()]
    if not budgets:
        raise UserError(
            '--budgets names none: give one or more, such as "70% 12M 8MB".'
        )
    # read here too where others do the work: a mistake is told once
    problem = search_run.read_problem(args.exp, args.checkpoint, budgets)
    if args.jobs > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return search_run.launch(args.jobs, args.argv)
    require_folders([args.exp / SUBNETS, args.exp / search_run.FOLDER])
    options = SearchOptions(args.population, args.generations, seed=args.seed)
    found = search_run.run_search(
        problem, options, args.objective, args.utterances, args.calibration
    )
    if found is not None:
        from espnet_omnisparse.search.report import write_found

        command = shlex.join(["omnisparse", *args.argv])
        print(write_found(problem, found, args.objective, command))


def stream(args: argparse.Namespace) -> None:
    """Recognises a file, or raw 16-bit PCM on stdin, printing words as they come."""
    import torch

    from espnet_omnisparse.core.chunk import Chunk
    from espnet_omnisparse.streaming import live
    from espnet_omnisparse.streaming.recogniser import Recogniser

    torch.set_num_threads(1)
    chunk = None
    if args.chunk is not None:
        left = 4 * args.chunk if args.left is None else args.left
        chunk = Chunk(args.chunk, left)
    elif args.left is not None:
        raise UserError("--left needs --chunk beside it.")
    live.run(Recogniser.load(args.model, chunk, args.beam), args.audio, args.json)


def report(args: argparse.Namespace) -> None:
    """Writes RESULTS.md and the plots of a supernet's scored sizes."""
    from espnet_omnisparse.report.family import write_family

    baselines = []
    for given in args.baseline:
        label, equals, folder = given.partition("=")
        if not (label and equals and folder):
            raise UserError(
                f"--baseline {given}: give it as LABEL=FOLDER or SERIES, LABEL=FOLDER."
            )
        baselines.append((label, Path(folder)))
    command = shlex.join(["omnisparse", *args.argv])
    print(write_family(args.exp, command, baselines, args.rounds).summary())


def compare(args: argparse.Namespace) -> None:
    """Runs the trainings of a comparison file and writes their table."""
    from espnet_omnisparse.report import compare

    seeds = [int(seed) for seed in args.seeds.split()]
    compare.compare(args.file, seeds, args.jobs, args.only.split())


def template(args: argparse.Namespace) -> None:
    """Links ESPnet's recipe template into recipe folders, fetching it when needed."""
    from espnet_omnisparse.recipe import template

    template.require_versions()
    root = template.locate()
    print(f"ESPnet's recipe template: {root}")
    for folder in args.recipes:
        template.link(folder, root)
        print(f"Linked into: {folder}")


def info(args: argparse.Namespace) -> None:
    """Prints what a report of a defect should state."""
    found = {
        "espnet-omnisparse": espnet_omnisparse.__version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "espnet": _version("espnet"),
        "sclite": _sclite(),
    }
    for name, value in found.items():
        print(f"{name}: {value}")


def _sclite() -> str:
    found = shutil.which("sclite")
    ours = Path(espnet_omnisparse.__file__).parent / "recipe/bin"
    # the recipe puts the stand-in on PATH under the same name
    if found is None or Path(found).resolve().parent == ours.resolve():
        return "the stand-in of espnet-omnisparse"
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omnisparse", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(
            run.__name__, help=run.__doc__, description=run.__doc__
        )
        command.set_defaults(run=run)
        return command

    def add_checkpoint(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--checkpoint", default=CHECKPOINT, help="file in EXP (%(default)s)"
        )

    def add_rounds(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--rounds", type=_count, default=15, help="of the timing (%(default)s)"
        )

    one = add(extract)
    one.add_argument("exp", type=Path, metavar="EXP", help="the supernet's folder")
    add_checkpoint(one)
    one.add_argument("--subnets", type=Path, help="folder of specs (EXP/subnets)")
    one.add_argument("--sizes", nargs="+", metavar="SIZE", help="default: all")
    one.add_argument("--out", metavar="PREFIX", help="of the folders written (EXP)")
    one.add_argument(
        "--stock", action="store_true", help="write the form that ESPnet alone loads"
    )
    one.add_argument(
        "--calibration",
        type=_count,
        default=int(recipe.OWN_OPTIONS["calibration"]),
        help="training utterances for BatchNorm's statistics (%(default)s)",
    )

    one = add(profile)
    one.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    one.add_argument("--spec", type=Path, help="cut this size out of FOLDER in memory")
    add_checkpoint(one)
    one.add_argument(
        "--random",
        action="store_true",
        help="freshly drawn weights: non-zero counts are not a trained net's",
    )
    one.add_argument("--json", action="store_true", help="print JSON, not a table")
    add_rounds(one)

    one = add(search)
    one.add_argument("exp", type=Path, metavar="EXP", help="the supernet's folder")
    one.add_argument(
        "--budgets",
        required=True,
        metavar='"70%% 12M 8MB"',
        help="zeros, non-zero parameters, packed bytes; also 2GMAC, 40ms",
    )
    one.add_argument(
        "--objective",
        choices=("loss", "wer"),
        default="wer",
        help="on the validation set (%(default)s)",
    )
    for name, default, text in (
        ("utterances", 200, "of the validation set"),
        ("population", 16, "subnets per budget and generation"),
        ("generations", 10, "after the first"),
        ("jobs", 1, "processes, each with a GPU of its own if there are any"),
        ("calibration", 64, "training utterances for BatchNorm's statistics"),
    ):
        one.add_argument(
            f"--{name}", type=_count, default=default, help=f"{text} (%(default)s)"
        )
    one.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    add_checkpoint(one)

    one = add(stream)
    one.add_argument("audio", metavar="FILE|-", help="audio; - for PCM on stdin")
    one.add_argument(
        "--model", type=Path, required=True, metavar="SIZE", help="a size's folder"
    )
    one.add_argument(
        "--chunk", type=_count, metavar="FRAMES", help="of the encoder (as trained)"
    )
    one.add_argument(
        "--left", type=int, metavar="FRAMES", help="seen before a chunk (4 chunks)"
    )
    one.add_argument(
        "--beam", type=_count, default=1, help="hypotheses kept (%(default)s: greedy)"
    )
    one.add_argument("--json", action="store_true", help="print text and times as JSON")

    one = add(report)
    one.add_argument("exp", type=Path, metavar="EXP", help="the supernet's folder")
    one.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="[SERIES, ]LABEL=FOLDER",
        help="a size to compare with; default: those in EXP/baselines.yaml",
    )
    add_rounds(one)

    one = add(compare)
    one.add_argument("file", type=Path, metavar="FILE", help="conf/compare/*.yaml")
    one.add_argument("--seeds", default="1", metavar='"1 2"', help="(%(default)s)")
    one.add_argument(
        "--only", default="", metavar='"A B"', help="variants to run (all)"
    )
    one.add_argument(
        "--jobs", type=_count, default=1, help="trainings at a time (%(default)s)"
    )

    one = add(template)
    one.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE")
    add(info)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    with one_sentence():
        args.run(args)


if __name__ == "__main__":
    main()
