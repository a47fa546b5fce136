"""The model to be shrunk: a folder, a packed file, or a tag of the Hugging Face Hub."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2.main_funcs import pack_funcs

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.experiment import MODEL, located, read_config
from espnet_omnisparse.files import atomic_folder, read_yaml
from espnet_omnisparse.tasks import OmniASRTask

#: What a packed model calls its configuration and its checkpoint.
_PACKED = ("asr_train_config", "asr_model_file")
_FAVOURITES = (MODEL, "valid.acc.ave.pth")


@dataclass(frozen=True)
class Original:
    """A trained ESPnet model.

    Attributes:
        name: What messages call it.
        config: Its whole configuration; the files that it names are there.
        checkpoint: Its tensors.
    """

    name: str
    config: Mapping[str, Any]
    checkpoint: Path


def read_original(model: str, checkpoint: str | None, unpacked: Path) -> Original:
    """Finds a model.

    Args:
        model: An experiment folder, a packed zip, or a tag of the Hub.
        checkpoint: Name of the file in a folder; `None`: the one there is.
        unpacked: Where a zip is unpacked, unless it is there already.

    Raises:
        UserError: If it is none, or no model of waveforms of the task `asr`.
    """
    path = Path(model)
    if path.is_dir():
        folder, file = path, path / (checkpoint or _only_checkpoint(path))
        config = located(read_config(folder), folder)
    elif checkpoint is not None:
        raise UserError("--checkpoint names a file in a folder: leave it out here.")
    else:
        files = _unpack(path, unpacked) if path.is_file() else _download(model)
        place, file = (Path(files[key]) for key in _PACKED)
        config = located(read_yaml(place), place.parent)
    if not file.is_file():
        raise UserError(f"{model} has no file {file.name}: check --checkpoint.")
    defaults = vars(OmniASRTask.get_parser().parse_args(["--output_dir", "unused"]))
    # an earlier ESPnet may have had fewer options
    whole = {**defaults, **config}
    _check(model, whole, config)
    return Original(model, whole, file.resolve())


def _only_checkpoint(folder: Path) -> str:
    for name in _FAVOURITES:
        if (folder / name).is_file():
            return name
    found = sorted(path.name for path in folder.glob("valid.*.ave.pth"))
    if not found:
        raise UserError(
            f"{folder} has no {MODEL} and no valid.*.ave.pth: name its checkpoint with "
            "--checkpoint FILE."
        )
    if len(found) > 1:
        raise UserError(
            f"{folder} has several checkpoints ({', '.join(found)}): choose one with "
            "--checkpoint FILE."
        )
    return found[0]


def _unpack(path: Path, folder: Path) -> dict[str, str]:
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is no packed model of ESPnet: give a zip that espnet2.bin.pack "
            "wrote (stage 14), or an experiment folder."
        )
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            try:
                pack_funcs.unpack(path, temporary)
            except (RuntimeError, KeyError) as error:
                raise UserError(
                    f"{path} is no packed model of ESPnet: it has no meta.yaml."
                ) from error
    meta = read_yaml(folder / "meta.yaml")
    files = {**meta["yaml_files"], **meta["files"]}
    _check_packed(str(path), files)
    return {key: str(folder / name) for key, name in files.items()}


def _download(tag: str) -> dict[str, str]:
    if tag.count("/") != 1 or tag.startswith((".", "/")):
        raise UserError(
            f"{tag} does not exist: give an experiment folder, a packed zip, or a tag "
            "of the Hugging Face Hub such as user/model."
        )
    try:
        from espnet_model_zoo.downloader import ModelDownloader

        files = ModelDownloader().download_and_unpack(tag)
    except Exception as error:
        # of two libraries and of the network, many kinds
        raise UserError(
            f"{tag} is no folder or file here, and could not be fetched from the "
            f"Hugging Face Hub ({type(error).__name__}): check its name and the "
            "network."
        ) from error
    _check_packed(tag, files)
    return files


def _check_packed(name: str, files: Mapping[str, Any]) -> None:
    if not all(key in files for key in _PACKED):
        raise UserError(f"{name} is not a model of ESPnet's task asr.")


def _check(name: str, config: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Refuses models of which no supernet can be made, whatever their encoder."""
    if "body_conf" in written["encoder_conf"]:
        raise UserError(
            f"{name} is of the task asr_transducer; only models of the task asr can be "
            "shrunk."
        )
    if config["model"] == "omni":
        raise UserError(
            f"{name} is a supernet already: extract its sizes (omnisparse extract), or "
            "search for others (omnisparse search)."
        )
    if config.get("input_size") or not config.get("frontend"):
        raise UserError(
            f"{name} takes features, not waveforms, and cannot be shrunk: train it "
            "with feats_type raw."
        )
    bpe = config.get("bpemodel")
    if config["token_type"] == "bpe" and not (bpe and Path(bpe).is_file()):
        raise UserError(
            f"The BPE model {bpe} of {name} is not there: run in the recipe's folder, "
            "or pack the model first."
        )
    stats = (config.get("normalize_conf") or {}).get("stats_file")
    if stats and not Path(stats).is_file():
        raise UserError(
            f"The feature statistics {stats} of {name} are not there: run in the "
            "recipe's folder, or pack the model first."
        )
