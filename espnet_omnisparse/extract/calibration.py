"""The audio of a training that statistics are re-estimated on, as it named its data.

ESPnet2's configurations list files; ESPnet3's name datasets of the recipe.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.dataset import ESPnetDataset

from espnet_omnisparse.errors import UserError

#: What a dataset has of an utterance: its id, and by name what there is.
Utterance = tuple[str, dict[str, Any]]


def calibration_batches(
    config: Mapping[str, Any], utterances: int, batch_size: int = 8
) -> Iterator[dict[str, torch.Tensor]]:
    """A fixed, seeded subset of the training audio, without augmentation.

    Args:
        config: A training's configuration, of ESPnet2 or ESPnet3.
        utterances: How many.
        batch_size: Utterances at a time.
    """
    if config.get("dataset"):
        dataset = espnet3_dataset(config, "train")
        ids: Sequence[Any] = range(len(dataset))
        read: Callable[[Any], Utterance] = dataset.__getitem__
    else:
        ids, read = _listed(config)

    def speech(uid: Any) -> Utterance:
        name, data = read(uid)
        return name, {"speech": data["speech"]}

    yield from chosen_batches(ids, speech, utterances, batch_size)


def chosen_batches(
    ids: Sequence[Any],
    read: Callable[[Any], Utterance],
    utterances: int,
    batch_size: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """A fixed, seeded subset of a set of utterances, in batches.

    By length, as in training: padding would enter statistics.

    Args:
        ids: Of all that there are.
        read: Gives the utterance of an id, with its `speech`.
        utterances: How many.
        batch_size: Utterances at a time.
    """
    chosen = random.Random(0).sample(ids, min(utterances, len(ids)))
    items = sorted((read(uid) for uid in chosen), key=_samples)
    collate = CommonCollateFn(float_pad_value=0.0, int_pad_value=-1)
    for start in range(0, len(items), batch_size):
        yield collate(items[start : start + batch_size])[1]


def espnet3_dataset(
    config: Mapping[str, Any], split: str, preprocess: Any = None
) -> Any:
    """The utterances of a training under ESPnet3 as its recipe reads them.

    Args:
        config: The configuration that the training wrote.
        split: `train` or `valid`.
        preprocess: ESPnet's preprocessor in place of the training's own, which
            augments; `None`: none, and text is text.

    Returns:
        What has a length, and an `Utterance` at each index.

    Raises:
        UserError: If the recipe's datasets are not found from here.
    """
    from hydra.utils import get_class  # of ESPnet3, which not every training needs

    section = {**config["dataset"], "preprocessor": preprocess, "test": None}
    organizer = get_class(section["_target_"])
    options = {name: v for name, v in section.items() if not name.startswith("_")}
    try:
        dataset = getattr(organizer(**options), split)
    except (ImportError, OSError) as error:
        raise UserError(
            f"The datasets of the training are not found ({error}): run in the "
            "recipe's folder."
        ) from error
    dataset.use_espnet_collator = True  # which takes ids as well
    return dataset


def _samples(item: Utterance) -> tuple[int, str]:
    return len(item[1]["speech"]), item[0]


def _listed(config: Mapping[str, Any]) -> tuple[list[str], Callable[[str], Utterance]]:
    """The ids of ESPnet2's list of audio, and what reads one."""
    sources = config["train_data_path_and_name_and_type"]
    path, name, kind = next(source for source in sources if source[1] == "speech")
    if not Path(path).exists():
        raise UserError(
            f"{path}, the training audio that BatchNorm statistics are re-estimated "
            "on, does not exist: run in the recipe's folder, after stages 1-5 (with "
            "--num_splits_asr, stage 11)."
        )
    owner = {}
    for part in _parts(Path(path)):
        dataset = ESPnetDataset([(str(part), name, kind)])
        owner |= {line.split(maxsplit=1)[0]: dataset for line in part.open()}
    return sorted(owner), lambda uid: owner[uid][uid]


def _parts(path: Path) -> list[Path]:
    """The files of a list that `--num_splits_asr` may have made a folder."""
    if not path.is_dir():
        return [path]
    try:
        count = int((path / "num_splits").read_text())
    except (OSError, ValueError):
        count = 0
    parts = [path / f"split.{index}" for index in range(count)]
    if not parts or not all(part.is_file() for part in parts):
        raise UserError(
            f"{path}, the training list in splits, is not whole (num_splits and a "
            f"split.N for each): delete {path.parent} and run stage 11 again, which "
            "makes the splits anew and goes on with what is trained."
        )
    return parts
