"""Peak memory of a transducer's training step: a supernet's against its dense net's.

    python3 -m espnet_omnisparse.bench.memory

The joint network's output, a value per frame, label and token, is most of it. Each
step is made, twice, in a process of its own, whose memory is measured before and at its
peak.
"""

import argparse
import multiprocessing
import os
import resource
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from espnet_omnisparse.errors import one_sentence
from espnet_omnisparse.extract.experiment import build
from espnet_omnisparse.tasks import OmniASRTransducerTask

FEATURES = 80
SUPERNET = {
    "sizes": {"s90": {"sparsity": 0.9}},
    "sparsity": {"ramp": 1, "sandwich": ["dense", "sparsest", "random", "random"]},
}
STEPS = ("dense", "in_turn", "split_batch", "per_batch")


def configuration(args: argparse.Namespace, update: str | None) -> dict[str, Any]:
    """A transducer of ESPnet's `asr_transducer` task; `None`: no supernet.

    Args:
        args: The command's options.
        update: A value of `supernet.update`; `None`: no supernet.
    """
    parser = OmniASRTransducerTask.get_parser()
    config = vars(parser.parse_args(["--output_dir", os.devnull]))
    block = {
        "block_type": "conformer",
        "num_blocks": args.blocks,
        "hidden_size": args.size,
        "linear_size": 4 * args.size,
        "heads": 4,
        "conv_mod_kernel_size": 15,
    }
    config |= {
        "token_list": [f"t{number}" for number in range(args.tokens)],
        "input_size": FEATURES,
        "normalize": None,
        "encoder_conf": {
            "body_conf": [block],
            "input_conf": {"vgg_like": False},
            "main_conf": {"dynamic_chunk_training": True},
            "conv_norm": "layer_norm",
            "pattern": "8x1",
        },
        "decoder_conf": {"embed_size": args.size, "hidden_size": args.size},
        "joint_network_conf": {"joint_space_size": args.size},
        "model_conf": {},
    }
    if update is not None:
        config["model_conf"]["supernet"] = {**SUPERNET, "update": update}
    return config


def peak_of_step(args: argparse.Namespace, step: str) -> float:
    """Megabytes that a forward and backward pass takes at its peak.

    Args:
        args: The command line's shape.
        step: One of `STEPS`.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    update = None if step == "dense" else step
    model = build(configuration(args, update)).train()
    if update is not None:
        model.supernet.set_run_length(100)
        model.supernet.update = 99
    frames, labels = int(100 * args.seconds), int(5 * args.seconds)
    batch = {
        "speech": torch.randn(args.batch, frames, FEATURES),
        "speech_lengths": torch.full((args.batch,), frames),
        "text": torch.randint(1, args.tokens - 1, (args.batch, labels)),
        "text_lengths": torch.full((args.batch,), labels),
    }
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    for _ in range(2):
        model(**batch)[0].backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--size", type=int, default=144, help="model dimension")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8, help="utterances")
    parser.add_argument("--seconds", type=float, default=10.0, help="per utterance")
    with one_sentence():
        args = parser.parse_args(argv)
        # what is freed goes back to the system, or the heap's holes are measured too
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        print("| training step | peak (MB) | against dense |\n|---|---|---|")
        dense = None
        for step in STEPS:
            # spawned, so that nothing of one step is in another's memory
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as pool:
                peak = pool.submit(peak_of_step, args, step).result()
            dense = dense or peak
            print(f"| {step} | {peak:.0f} | {peak / dense:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
