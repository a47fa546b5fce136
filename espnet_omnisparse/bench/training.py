"""What supernet training costs, and how fast its sizes are, paired in one run.

    python3 -m espnet_omnisparse.bench

Every line is timed in turn with the stock ESPnet Conformer of the same shape, so that
a slow moment of the machine hits both; ratios are medians of paired ratios.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch

from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.cost.count import measure_paired, measure_rtf, paired_ratio
from espnet_omnisparse.errors import one_sentence
from espnet_omnisparse.extract.experiment import build, cut
from espnet_omnisparse.recipe.derive import SUPERNETS
from espnet_omnisparse.tasks import OmniASRTask
from espnet_omnisparse.train.journal import settled_specs

TOKENS = ["<blank>", "<unk>", *(f"t{i}" for i in range(97)), "<sos/eos>"]
SPARSE = "sparse"  # not a method, but masks on weights
LEARNED = ("simple_topk", "iterative_zero_out", "ortho_softmax")
RUN_LENGTH = 1000
STEP1_AT, STEP2_AT = 300, 800
BEFORE_SETTLING = 620  # masks on weights follow them to update 650


def configuration(
    args: argparse.Namespace,
    update: str | None,
    method: str = "simple_topk",
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """ESPnet configuration of the benchmarked shape.

    Args:
        args: The command line's shape.
        update: `None` for stock ESPnet, `plain` for our encoder without a supernet,
            or a value of `supernet.update`.
        method: The supernet's selection method, or `SPARSE`.
        options: Further ones of the supernet.
    """
    parser = OmniASRTask.get_parser()
    config = vars(parser.parse_args(["--output_dir", os.devnull]))
    encoder = {
        "output_size": args.size,
        "attention_heads": 4,
        "linear_units": 4 * args.size,
        "num_blocks": args.blocks,
        "rel_pos_type": "latest",
        "cnn_module_kernel": 15,
        "macaron_style": True,
    }
    config.update(
        token_list=TOKENS,
        input_size=80,
        normalize=None,
        encoder="conformer" if update is None else "layer_prunable_conformer",
        encoder_conf=encoder,
        model="espnet" if update is None else "omni",
        model_conf={"ctc_weight": 1.0},
    )
    if update not in (None, "plain"):
        units = 4 * args.blocks
        config["model_conf"]["supernet"] = {
            "method": method,
            "sizes": {"small": units // 3, "medium": 2 * units // 3},
            "update": update,
        }
        if method == "ortho_softmax":
            encoder["granularity"] = "component"
            sizes = {"fraction_of": "params", "sizes": {"small": 0.4, "medium": 0.7}}
            config["model_conf"]["supernet"] |= sizes
        if method == SPARSE:
            config["encoder"] = "omni_sparse_conformer"
            config["model_conf"]["supernet"] = {**SUPERNETS["weight"], "update": update}
        config["model_conf"]["supernet"] |= options or {}
    return config


def step(
    model: Any, batch: dict[str, torch.Tensor], counts: bool = False
) -> Callable[[], None]:
    """A function that makes one training step: forward, backward, update.

    Args:
        model: The model.
        batch: A batch as the model's forward takes it.
        counts: Whether the supernet's next update follows; or it stays at this one.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if counts:
        model.supernet.follow(optimizer)

    def run() -> None:
        model.train()
        model(**batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def make_batch(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Random features of `args.batch` utterances of `args.seconds` seconds."""
    generator = torch.Generator().manual_seed(0)
    frames, labels = int(100 * args.seconds), int(4 * args.seconds)
    shape = (args.batch, labels)
    return {
        "speech": torch.randn(args.batch, frames, 80, generator=generator),
        "speech_lengths": torch.full((args.batch,), frames),
        "text": torch.randint(2, len(TOKENS) - 1, shape, generator=generator),
        "text_lengths": torch.full((args.batch,), labels),
    }


def supernet_at(
    args: argparse.Namespace,
    update: str,
    at: int,
    method: str = "simple_topk",
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A supernet at a certain update of its run.

    Args:
        args: The command's options.
        update: See `configuration`.
        at: The update count.
        method: The same.
        options: The same.
    """
    model = build(configuration(args, update, method, options))
    model.supernet.set_run_length(RUN_LENGTH)
    model.supernet.update = at
    return model


def bench_training(args: argparse.Namespace) -> None:
    """Prints the time of a training step against stock."""
    models = {
        "stock conformer": build(configuration(args, None)),
        "ours, no supernet": supernet_at(args, "plain", STEP2_AT),
        "supernet, step 1": supernet_at(args, "per_batch", STEP1_AT),
        "supernet, step 2": supernet_at(args, "per_batch", STEP2_AT),
        "step 1, split_batch": supernet_at(args, "split_batch", STEP1_AT),
        "step 2, split_batch": supernet_at(args, "split_batch", STEP2_AT),
    }
    batch = make_batch(args)
    times = measure_paired(
        {name: step(model, batch) for name, model in models.items()}, args.rounds
    )
    print("\n| training step | median (ms) | against stock |\n|---|---|---|")
    for name, row in times.items():
        ratio = paired_ratio(times, name, "stock conformer")
        print(f"| {name} | {1e3 * statistics.median(row):.0f} | {ratio:.3f}x |")


def bench_selection(args: argparse.Namespace) -> None:
    """Prints what learning a selection adds to an update of step 1.

    Each method is timed beside the same update, of the same two nets, that learns
    nothing: gates that are constants, and no penalty.
    """
    batch = make_batch(args)
    print(
        "\n| learning the selection | update (ms) | without (ms) | adds |\n"
        "|---|---|---|---|"
    )
    for method in LEARNED:
        learning = supernet_at(args, "per_batch", STEP1_AT, method)
        fixed = supernet_at(args, "per_batch", STEP1_AT, method)
        units = len(fixed.supernet.space)
        fixed.supernet.selection.gates = lambda *_, units=units: (1.0,) * units
        fixed.supernet.selection.penalty = lambda *_: 0.0
        runs = {"learning": step(learning, batch), "fixed": step(fixed, batch)}
        times = measure_paired(runs, 2 * args.rounds)
        ratio = paired_ratio(times, "learning", "fixed")
        medians = (1e3 * statistics.median(row) for row in times.values())
        cells = " | ".join(f"{ms:.0f}" for ms in medians)
        print(f"| {method} | {cells} | {100 * (ratio - 1):+.1f} % |", flush=True)


def bench_sparsity(args: argparse.Namespace) -> None:
    """Prints what training with masks costs, and what keeping them fresh does."""
    dense = supernet_at(args, "plain", STEP2_AT)
    modes = ("per_batch", "split_batch", "per_accum", "in_turn")
    models = {mode: supernet_at(args, mode, STEP2_AT, SPARSE) for mode in modes}
    nets = models["per_accum"].supernet.subnets_per_update
    models["per_accum"].accumulate(nets)
    batch = make_batch(args)
    runs = {"dense": step(dense, batch)}
    with TemporaryDirectory() as folder:
        # as omnisparse shrink has it
        options = {"distillation": "kl", "teacher": f"{folder}/teacher.pth"}
        torch.save(build(configuration(args, None)).state_dict(), options["teacher"])
        taught = supernet_at(args, "in_turn", STEP2_AT, SPARSE, options)
        models["in_turn, with a teacher"] = taught
        for mode, model in models.items():
            # only the updates of a turn must be different ones
            runs[mode] = step(model, batch, counts=mode.startswith("in_turn"))
        # in turn each of the nets: their mean is what a batch costs
        times = measure_paired(runs, nets * max(2, args.rounds // 2), warmup=nets)
    print(
        "\n| masks on weights, a batch | mean (ms) | against the dense net |\n"
        "|---|---|---|"
    )
    for name, row in times.items():
        ratio = sum(row) / sum(times["dense"])
        print(f"| {name} | {1e3 * statistics.mean(row):.0f} | {ratio:.3f}x |")

    model = supernet_at(args, "split_batch", BEFORE_SETTLING, SPARSE)
    train = step(model, batch)

    def refreshing() -> None:
        model.mask_upkeep.forget()
        train()

    times = measure_paired({"following": refreshing, "fixed": train}, 2 * args.rounds)
    ratio = paired_ratio(times, "following", "fixed")
    every = model.supernet.config.sparsity.refresh
    print(
        f"\nOrdering all weights anew adds {100 * (ratio - 1):+.1f} % to an update, "
        f"and {100 * (ratio - 1) / every:+.2f} % if done every {every} updates."
    )


def bench_gating(args: argparse.Namespace) -> None:
    """Prints the cost of gating at full size: encoder forward against stock."""
    stock = build(configuration(args, None))
    ours = build(configuration(args, "plain"))
    batch = make_batch(args)

    def forward(model: Any) -> Callable[[], Any]:
        feats, lengths = batch["speech"][:1], batch["speech_lengths"][:1]
        return torch.no_grad()(lambda: model.encoder(feats, lengths))

    runs = {"stock": forward(stock), "ours": forward(ours)}
    times = measure_paired(runs, 10 * args.rounds)
    ratio = paired_ratio(times, "ours", "stock")
    print(
        f"\nGating overhead at full size, encoder forward: {100 * (ratio - 1):+.1f} %"
    )


def cut_sizes(config: dict[str, Any], model: Any) -> Iterator[tuple[SubnetSpec, Any]]:
    """The spec and the physically small model of every size.

    Args:
        config: The supernet's configuration.
        model: The model.
    """
    state = model.state_dict()
    for spec in settled_specs(model.supernet, fingerprint(state, TOKENS)).values():
        yield spec, build(*cut(config, state, spec))


def bench_sizes(args: argparse.Namespace) -> None:
    """Prints the real-time factor of every size of an (untrained) supernet."""
    config = configuration(args, "per_batch")
    config["input_size"] = None  # from the waveform: with ESPnet's front end
    model = build(config)
    # random scores: with equal ones the kept branches would all lie at the bottom
    scores = torch.rand(len(model.supernet.space), generator=torch.manual_seed(0))
    model.supernet.selection.scores.data.copy_(scores)
    models = {
        "{} ({} of {} {})".format(spec.name, *spec.counts): size
        for spec, size in cut_sizes(config, model)
    }
    rtf = measure_rtf(models, seconds=10, rounds=args.rounds)
    largest = list(rtf)[-1]
    print("\n| size | RTF, 10 s, 1 thread | against full |\n|---|---|---|")
    for name, row in rtf.items():
        ratio = paired_ratio(rtf, name, largest)
        print(f"| {name} | {statistics.median(row):.4f} | {ratio:.2f}x |")


def latency_budgets(
    args: argparse.Namespace, granularity: str
) -> dict[str, tuple[float, float]]:
    """Sizes given by latency: name -> budget and measured latency, in milliseconds.

    The units are taken at random. Measured latencies are corrected for a machine that
    has become faster or slower since the budgets were set, by the full net's.

    Args:
        args: The command's options.
        granularity: Of the supernet's units.
    """
    config = configuration(args, "per_batch", "random")
    config["input_size"] = None  # from the waveform: with ESPnet's front end
    config["encoder_conf"]["granularity"] = granularity
    config["model_conf"]["supernet"] |= {
        "fraction_of": "latency_ms",
        "sizes": {"tiny": 0.4, "small": 0.6, "medium": 0.8},
    }
    model = build(config)
    model.supernet.measure()
    models = {spec.name: size for spec, size in cut_sizes(config, model)}
    rtf = measure_rtf(models, rounds=args.rounds)
    full = model.supernet.tables["latency_ms"].total / 1e6
    return {
        name: (size.limit / 1e6, full * paired_ratio(rtf, name, FULL))
        for name, size in model.supernet.sizes.items()
    }


def bench_latency(args: argparse.Namespace) -> None:
    """Prints how well sizes given by a latency keep to it."""
    print(
        "\n| granularity | size | budget (ms) | extracted (ms) | "
        "difference |\n|---|---|---|---|---|"
    )
    for granularity in ("branch", "component"):
        for name, (budget, measured) in latency_budgets(args, granularity).items():
            difference = f"{100 * (measured / budget - 1):+.1f} %"
            cells = f"{budget:.1f} | {measured:.1f} | {difference}"
            print(f"| {granularity} | {name} | {cells} |", flush=True)


BENCHES = {
    "training": bench_training,
    "selection": bench_selection,
    "sparsity": bench_sparsity,
    "gating": bench_gating,
    "sizes": bench_sizes,
    "latency": bench_latency,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the benchmarks asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--size", type=int, default=144, help="model dimension")
    parser.add_argument("--batch", type=int, default=12, help="utterances")
    parser.add_argument("--seconds", type=float, default=5.0, help="per utterance")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only", nargs="+", choices=BENCHES, default=list(BENCHES), help="default: all"
    )
    with one_sentence():
        args = parser.parse_args(argv)
        torch.set_num_threads(1)
        print(f"{args.blocks} blocks, d {args.size}, one thread, {args.rounds} rounds")
        for name in args.only:
            BENCHES[name](args)


if __name__ == "__main__":
    main()
