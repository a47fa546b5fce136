"""The steps from a model to its family; each is done once, however often it is run."""

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_omnisparse.arguments import refuse_in_one_sentence, split_words
from espnet_omnisparse.bin import asr_train
from espnet_omnisparse.console import say
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.environment import require_gpus
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import (
    ORIGIN,
    extract_size,
    read_config,
    wanted_specs,
)
from espnet_omnisparse.extract.names import CALIBRATION, CHECKPOINT, size_folder
from espnet_omnisparse.files import (
    atomic_folder,
    read_yaml,
    require_replaceable,
    write_yaml,
)
from espnet_omnisparse.report.family import write_family
from espnet_omnisparse.report.results import SizeResult, read_size
from espnet_omnisparse.search.feasible import check_shares
from espnet_omnisparse.shrink.data import write_lists
from espnet_omnisparse.shrink.one_shot import build_supernet, one_shot, one_shot_table
from espnet_omnisparse.shrink.original import Original, read_original
from espnet_omnisparse.shrink.plan import Length, data_options, training_config
from espnet_omnisparse.shrink.scores import BEAM_PLACE, PLACE, score
from espnet_omnisparse.tasks import OmniASRTask
from espnet_omnisparse.train.journal import read_log

#: What a folder is the family of; and the training's configuration.
MARK, TRAINING = "shrink.yaml", "training.yaml"
#: What says that the training has come to its end.
_TRAINED = "trained.yaml"
_MODEL, _DATA = "model", "data"


@dataclass(frozen=True)
class Wish:
    """What a command asks for.

    Attributes:
        model: An experiment folder, a packed zip, or a tag of the Hub.
        out: Folder of the supernet; those of sizes are beside it.
        data: Kaldi-style folder of the training data.
        dev: The same of the development data.
        supernet: The options of the supernet.
        length: Of its training.
        checkpoint: File in the folder of the model; `None`: the one there is.
        lr: Highest learning rate; `None`: as `training_config` has it.
        utterances: Of the development data, before training.
        ngpu: GPUs that train.
        rounds: Of the timing.
        train_args: Further arguments of the training.
    """

    model: str
    out: Path
    data: Path
    dev: Path
    supernet: Mapping[str, Any]
    length: Length = field(default_factory=Length)
    checkpoint: str | None = None
    lr: float | None = None
    utterances: int = 50
    ngpu: int = 0
    rounds: int = 15
    train_args: str = ""


def shrink(wish: Wish, command: str) -> list[str]:
    """Makes the family, or goes on with it.

    Args:
        wish: What is asked for.
        command: The command, for the report.

    Returns:
        A line per size.

    Raises:
        UserError: If the model, the data or the folder cannot be taken.
    """
    if not (wish.out / _TRAINED).exists():
        require_gpus(f"--ngpu {wish.ngpu}", wish.ngpu)
    if not wish.out.exists():
        with atomic_folder(wish.out) as folder:
            _prepare(wish, folder)
    elif not (wish.out / MARK).exists():
        raise UserError(
            f"{wish.out} is there already and no family of omnisparse shrink: choose "
            "another --out, or remove it."
        )
    packed = Path(wish.model)
    if packed.is_file():  # before it is unpacked into another model's family
        _require_same(wish, packed)
    original = _original(wish, wish.out)
    if not packed.is_file():
        _require_same(wish, original.checkpoint)
    config = _config(wish, original, wish.out)
    net = build_supernet(config, original.checkpoint, original.name)
    found = one_shot(net, config, wish.utterances, wish.out)
    say(one_shot_table(found, wish.utterances))
    _train(wish, original)
    folders = _extract(wish)
    write_family(wish.out, command, rtf_rounds=wish.rounds)
    return [_line(read_size(folder)) for folder in folders]


def _prepare(wish: Wish, folder: Path) -> None:
    """Everything that can be refused, before anything stays."""
    for name in (*wish.supernet["sizes"], FULL):
        require_replaceable(size_folder(str(wish.out), name), ORIGIN, "a size")
    original = _original(wish, folder)
    for source, part in ((wish.data, "train"), (wish.dev, "dev")):
        write_lists(source, original.config, folder / _DATA / part)
    config = _config(wish, original, folder)
    net = build_supernet(config, original.checkpoint, original.name)
    net.supernet.measure()
    check_shares(net, "--sizes" if "method" in wish.supernet else "--sparsity")
    packed = Path(wish.model)
    weights = packed if packed.is_file() else original.checkpoint
    write_yaml(folder / MARK, _mark(wish, weights))


def _original(wish: Wish, folder: Path) -> Original:
    return read_original(wish.model, wish.checkpoint, folder / _MODEL)


def _require_same(wish: Wish, weights: Path) -> None:
    """Refuses a folder that is the family of anything else.

    Args:
        wish: What is asked for.
        weights: The file that has the model's.
    """
    if read_yaml(wish.out / MARK) != _mark(wish, weights):
        raise UserError(
            f"{wish.out} is the family of another model, other data or other options "
            f"({MARK} in it tells them): choose another --out, or remove it."
        )


def _mark(wish: Wish, weights: Path) -> dict[str, Any]:
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "sha256": digest,
        "data": str(wish.data.resolve()),
        "dev": str(wish.dev.resolve()),
        "supernet": _plain(wish.supernet),
        "length": vars(wish.length),
        "lr": wish.lr,
        "train_args": wish.train_args,
    }


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _plain(value) if isinstance(value, Mapping) else value
        for name, value in section.items()
    }


def _training(wish: Wish, original: Original, folder: Path) -> dict[str, Any]:
    """What the training reads from a file."""
    config = training_config(original, wish.supernet, wish.length, wish.lr)
    if not wish.ngpu:
        config["use_amp"] = False  # needs a GPU
    return {**config, **data_options(folder / _DATA)}


def _config(wish: Wish, original: Original, folder: Path) -> dict[str, Any]:
    """The whole configuration of the supernet, as the training will have it."""
    config = {**original.config, **_training(wish, original, folder)}
    parser = OmniASRTask.get_parser()
    refuse_in_one_sentence(parser, "--train_args")
    begun = argparse.Namespace(**{**config, "config": None})
    given = ["--output_dir", str(wish.out), *_train_args(wish)]
    return vars(parser.parse_args(given, begun))


def _train_args(wish: Wish) -> list[str]:
    """Further arguments of the training."""
    words = split_words("--train_args", wish.train_args)
    ours = [word for word in _given(wish, Path()) if word.startswith("--")]
    for word in words:
        name = word.partition("=")[0]
        # argparse takes the beginning of a name for it
        if name.startswith("--") and any(one.startswith(name) for one in ours):
            raise UserError(
                f"--train_args: {word} is given by omnisparse shrink: leave it out."
            )
    return words


def _given(wish: Wish, checkpoint: Path) -> list[str]:
    """The arguments of the training that are the command's to give."""
    return [
        *("--config", str(wish.out / TRAINING), "--output_dir", str(wish.out)),
        *("--init_param", str(checkpoint), "--resume", "true"),
        *("--ngpu", str(wish.ngpu)),
        *("--multiprocessing_distributed", str(wish.ngpu > 1).lower()),
    ]


def _train(wish: Wish, original: Original) -> None:
    """Trains by ESPnet's own means, which go on where they were."""
    done = wish.out / _TRAINED
    if done.exists():
        return
    write_yaml(wish.out / TRAINING, _training(wish, original, wish.out))
    asr_train.main([*_given(wish, original.checkpoint), *_train_args(wish)])
    last = read_log(wish.out)[-1]
    write_yaml(done, {name: last[name] for name in ("epoch", "update")})


def _extract(wish: Wish) -> list[Path]:
    """Extracts and scores every size, smallest first."""
    folders = []
    for name, spec in wanted_specs(wish.out, None, ()).items():
        folder = Path(size_folder(str(wish.out), name))
        extract_size(
            wish.out, wish.out / CHECKPOINT, spec, folder, calibration=CALIBRATION
        )
        for place in _places(wish):
            score(folder, wish.out / _DATA / "dev", place)
        folders.append(folder)
    return folders


def _places(wish: Wish) -> list[Path]:
    """How sizes are decoded: where some have less of the decoder, also with it."""
    sizes = wish.supernet["sizes"].values()
    fewer = any(isinstance(one, Mapping) and "decoder" in one for one in sizes)
    masked = read_config(wish.out)["model_conf"].get("mask_decoder")
    return [PLACE, BEAM_PLACE] if fewer or masked else [PLACE]


def _line(size: SizeResult) -> str:
    wer = size.wer[PLACE.as_posix()].err
    beam = size.wer.get(BEAM_PLACE.as_posix())
    also = f" ({beam.err:.1f} % by beam search)" if beam else ""
    params, packed = size.cost["parameters"], size.cost["packed_bytes"]
    return (
        f"{size.label}: {params / 1e6:.2f} M parameters, "
        f"{100 * size.zeros:.0f} % zeros, {packed / 1e6:.2f} MB packed, "
        f"dev WER {wer:.1f} %{also}, {size.folder}"
    )
