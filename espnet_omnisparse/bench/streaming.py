"""How fast sizes stream, paired in one run, on one thread.

    python3 -m espnet_omnisparse.bench.streaming exp/asr_x_full exp/asr_x_s80 \
        --audio a.wav b.wav

The files, one after the other, are one recording; every model recognises all of it in
every round, chunk by chunk, in turn with the others.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from espnet_omnisparse.arguments import named_path
from espnet_omnisparse.cost.count import measure_paired, paired_ratio
from espnet_omnisparse.cost.metrics import METRICS
from espnet_omnisparse.data.audio_blocks import file_blocks
from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.streaming.live import Latency, recognise
from espnet_omnisparse.streaming.recogniser import Recogniser


def measure(
    models: Mapping[str, Recogniser], audio: torch.Tensor, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Latency]]:
    """Streams a recording through each model in turn.

    Args:
        models: Name -> recogniser.
        audio: Samples `[n]` at the models' rate.
        rounds: How often; one more before is not timed.

    Returns:
        Name -> seconds of each round, and name -> the chunks of all rounds.
    """
    found = {
        name: Latency(one.chunk_seconds, one.lookahead_seconds)
        for name, one in models.items()
    }
    passed = dict.fromkeys(models, 0)

    def run(name: str) -> None:
        recogniser, total = models[name], found[name]
        block = round(recogniser.chunk_seconds * recogniser.sample_rate)
        _, latency = recognise(recogniser, audio.split(block))
        passed[name] += 1
        if passed[name] > 1:  # the first one warms up
            total.audio += latency.audio
            total.chunks += latency.chunks

    runs = {name: partial(run, name) for name in models}
    return measure_paired(runs, rounds, warmup=1), found


def table(
    models: Mapping[str, Recogniser],
    times: Mapping[str, list[float]],
    found: Mapping[str, Latency],
) -> Iterator[str]:
    """Markdown rows, ratios being to the first model.

    Args:
        models: Name -> recogniser.
        times: Name -> seconds of each round.
        found: Name -> its latency.
    """
    params, nonzero, speed = (METRICS[name] for name in ("params", "nonzero", "rtf"))
    yield (
        f"| model | {params.heading} | {nonzero.heading} | algorithmic latency (ms) | "
        f"{speed.heading} | against the first | chunk p50 (ms) | p95 | p99 |"
    )
    yield "|---" * 9 + "|"
    first = next(iter(models))
    for name, recogniser in models.items():
        values = [p.detach() for p in recogniser.model.parameters()]
        latency = found[name].as_dict()
        rtf = statistics.median(times[name]) * len(times[name]) / found[name].audio
        cells = [
            name,
            params.shown(sum(v.numel() for v in values)),
            nonzero.shown(sum(int(v.count_nonzero()) for v in values)),
            f"{latency['latency_ms']:.0f}",
            speed.shown(rtf),
            f"{paired_ratio(times, name, first):.2f}x",
            *(f"{latency[f'p{share}_ms']:.1f}" for share in (50, 95, 99)),
        ]
        yield "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", nargs="+", type=named_path, help="of sizes that stream"
    )
    parser.add_argument("--audio", nargs="+", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beam", type=int, default=1, help="1 is greedy")
    with one_sentence():
        args = parser.parse_args(argv)
        torch.set_num_threads(1)
        if args.rounds < 1:
            raise UserError(f"--rounds must be at least 1, not {args.rounds}.")
        names = Counter(folder.name for folder in args.folders)
        models = {
            folder.name if names[folder.name] == 1 else str(folder): Recogniser.load(
                folder, beam=args.beam
            )
            for folder in args.folders
        }
        rate, *others = {model.sample_rate for model in models.values()}
        if others:
            raise UserError("The sizes have several sampling rates: name those of one.")
        audio = torch.cat(
            [block for path in args.audio for block in file_blocks(path, rate, 10.0)]
        )
        print(f"{len(audio) / rate:.0f} s of audio, {args.rounds} rounds")
        for row in table(models, *measure(models, audio, args.rounds)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
