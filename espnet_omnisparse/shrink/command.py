"""`omnisparse shrink`."""

import argparse
import shlex
from pathlib import Path

from espnet_omnisparse.arguments import (
    Commands,
    add_command,
    add_rounds,
    count,
    count_from_0,
    named_path,
    positive,
)
from espnet_omnisparse.errors import UserError


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, shrink)
    command.add_argument(
        "model",
        metavar="MODEL",
        help="experiment folder, packed zip, or tag of the Hub",
    )
    for name in ("data", "dev"):
        command.add_argument(
            f"--{name}",
            type=Path,
            required=True,
            metavar="DIR",
            help="Kaldi-style folder: wav.scp, text",
        )
    axis = command.add_mutually_exclusive_group(required=True)
    axis.add_argument(
        "--sizes",
        metavar='"small:0.33 8MB"',
        help="by dropping branches: NAME:FRACTION, NAME:BRANCHES or a budget; with "
        "@ZEROS behind it, as in small:0.5@70%%, by zeros in what is kept, too",
    )
    axis.add_argument("--sparsity", metavar='"0.5 0.8"', help="by zeros in the weights")
    command.add_argument(
        "--decoder",
        metavar="none|N",
        help="of sizes: none (CTC alone), or the first N layers of it (all)",
    )
    length = command.add_mutually_exclusive_group()
    length.add_argument(
        "--fraction",
        type=float,
        default=0.3,
        help="of the epochs of the model's own training (%(default)s)",
    )
    length.add_argument("--epochs", type=count, help="of the training")
    length.add_argument("--updates", type=count, help="of the training")
    command.add_argument("--out", type=Path, help="folder (exp/asr_MODEL_shrunk)")
    command.add_argument("--checkpoint", metavar="FILE", help="file in MODEL's folder")
    command.add_argument(
        "--lr",
        type=positive,
        help="highest learning rate (the model's own; half of it if no size has zeros)",
    )
    command.add_argument(
        "--utterances",
        type=count,
        default=50,
        help="of DEV that sizes are tried on before training (%(default)s)",
    )
    command.add_argument("--ngpu", type=count_from_0, help="(1 if there is one)")
    command.add_argument(
        "--train_args",
        default="",
        metavar='"--batch_bins 1000000"',
        help="further arguments of ESPnet's training",
    )
    add_rounds(command)


def shrink(args: argparse.Namespace) -> None:
    """Makes a family of sizes of a trained ESPnet model; goes on if interrupted."""
    from espnet_omnisparse.shrink.plan import Length, layer_axis, weight_axis
    from espnet_omnisparse.shrink.run import Wish
    from espnet_omnisparse.shrink.run import shrink as make
    from espnet_omnisparse.shrink.sizes import layer_sizes, sparse_sizes, with_decoder

    if not 0.0 < args.fraction <= 1.0:
        raise UserError(
            f"--fraction must be above 0 and at most 1, not {args.fraction}."
        )
    if args.sizes is not None:
        supernet = layer_axis(with_decoder(layer_sizes(args.sizes), args.decoder))
    else:
        supernet = weight_axis(with_decoder(sparse_sizes(args.sparsity), args.decoder))
    wish = Wish(
        args.model,
        args.out or _default_out(args.model),
        args.data,
        args.dev,
        supernet,
        Length(args.epochs, args.updates, args.fraction),
        args.checkpoint,
        args.lr,
        args.utterances,
        _gpus() if args.ngpu is None else args.ngpu,
        args.rounds,
        args.train_args,
    )
    print("\n".join(make(wish, shlex.join(["omnisparse", *args.argv]))))


def _default_out(model: str) -> Path:
    name = named_path(model).name.removesuffix(".zip").removeprefix("asr_")
    return Path("exp") / f"asr_{name}_shrunk"


def _gpus() -> int:
    import torch

    return int(torch.cuda.is_available())
