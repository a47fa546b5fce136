"""What goes where: the members of a family, and the files of each of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_omnisparse import __version__
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.report.results import SizeResult, read_family, with_rtf
from espnet_omnisparse.report.timing import Timing, read_timing, same_models
from espnet_omnisparse.train.journal import SUBNETS

CARD = "README.md"
META = "meta.yaml"
#: Where `omnisparse export` writes by default: behind the name of a size's folder.
EXPORTS = tuple(
    f"{to}{dtype}"
    for to in ("packed", "onnx", "sherpa")
    for dtype in ("", "_fp16", "_int8")
)


@dataclass(frozen=True)
class Member:
    """One repository.

    Attributes:
        repo: Its name, `user/name`.
        folder: The experiment folder that is published in it.
        model: Its model file.
        size: What is known of it; `None`: it is the supernet.
        streams: Whether it recognises speech that is still arriving.
        timing: Of the family's real-time factors; `None`: none was measured.
        exports: Name in the repository -> the exported file or folder.
    """

    repo: str
    folder: Path
    model: Path
    size: SizeResult | None
    streams: bool
    timing: Timing | None
    exports: Mapping[str, Path]


def members_of(asr_exp: Path, repo: str, checkpoint: str) -> list[Member]:
    """The repositories of a family: its sizes, smallest first, then the supernet.

    Args:
        asr_exp: The supernet's experiment folder.
        repo: Of the supernet; a size has its name behind it.
        checkpoint: The supernet's file in its folder.

    Raises:
        UserError: If there is no size, or a file is missing or garbled.
    """
    model = asr_exp / checkpoint
    if not model.is_file():
        raise UserError(
            f"{model} does not exist: name the supernet's model with --checkpoint."
        )
    members = []
    for series, suffix in zip(read_family(asr_exp), ("", "-stock"), strict=False):
        timing = read_timing(asr_exp / "rtf.json")
        folders = [size.folder for size in series.sizes]
        if timing is not None and same_models(timing, folders):
            series = with_rtf(series, timing.medians)
        else:
            timing = None
        members += [
            Member(
                f"{repo}-{size.size}{suffix}",
                size.folder,
                size.folder / family.MODEL,
                size,
                _streams(size.folder),
                timing,
                dict(_exports(size.folder)),
            )
            for size in series.sizes
        ]
    whole = Member(repo, asr_exp, model, None, False, None, {})
    return [*members, whole]


def _streams(folder: Path) -> bool:
    config = family.read_config(folder)
    encoder = config["encoder_conf"]
    live = (encoder.get("main_conf") or {}).get("dynamic_chunk_training")
    return bool(encoder.get("causal") or live)


def _exports(folder: Path) -> Iterator[tuple[str, Path]]:
    for name in EXPORTS:
        path = folder.with_name(f"{folder.name}_{name}")
        if path.is_dir():
            yield name, path
        for file in (path, path.with_name(f"{path.name}.omni")):
            if file.is_file():
                yield f"{name.replace('packed', 'model')}.omni", file
    inside = folder / "model.omni"
    if inside.is_file():
        yield "model.omni", inside


def staged(member: Member, folder: Path, card: str) -> None:
    """Lays a repository out in an empty folder; large files are links.

    The layout is that of ESPnet's own packing, which its model zoo loads: paths as they
    are in the recipe's folder, and a `meta.yaml` that names model and configuration.

    Args:
        member: The repository.
        folder: Where.
        card: Its README.md.

    Raises:
        UserError: If a file that the configuration names is not there.
    """
    config, beside = _portable(member.folder)
    home = Path("exp") / member.folder.name
    _write_yaml(folder / home / family.CONFIG, config)
    _link(member.model, folder / home / member.model.name)
    for name in (family.SPEC, family.ORIGIN, family.COST, "RESULTS.md"):
        if (member.folder / name).is_file():
            _link(member.folder / name, folder / home / name)
    for below in ("images", SUBNETS):
        _link_all(member.folder / below, folder / home / below)
    for name, path in beside.items():
        _link(path, folder / name)
    for name, path in member.exports.items():
        (_link_all if path.is_dir() else _link)(path, folder / name)
    meta = {
        "yaml_files": {"asr_train_config": str(home / family.CONFIG)},
        "files": {"asr_model_file": str(home / member.model.name)},
        # of the model, not of now: publishing again then changes nothing
        "timestamp": member.model.stat().st_mtime,
        "made_by": f"espnet-omnisparse {__version__}",
    }
    _write_yaml(folder / META, meta)
    (folder / CARD).write_text(card, encoding="utf-8")


def _portable(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """A configuration whose files lie in the repository, and these by their names."""
    config = read_yaml(folder / family.CONFIG)
    located = family.located(config, folder)
    beside: dict[str, Path] = {}

    def inside(given: str, found: str) -> str:
        if not Path(found).is_file():
            raise UserError(
                f"{found}, which {folder / family.CONFIG} names, is not there: run in "
                "the recipe's folder, or restore it."
            )
        path = Path(given)
        if path.is_absolute() or ".." in path.parts:
            path = Path("data") / path.name
        beside[path.as_posix()] = Path(found)
        return path.as_posix()

    if config.get("bpemodel"):
        config["bpemodel"] = inside(config["bpemodel"], located["bpemodel"])
    normalize = config.get("normalize_conf") or {}
    if normalize.get("stats_file"):
        found = located["normalize_conf"]["stats_file"]
        name = inside(normalize["stats_file"], found)
        config["normalize_conf"] = {**normalize, "stats_file": name}
    return config, beside


def _write_yaml(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source.resolve())


def _link_all(source: Path, folder: Path) -> None:
    for file in sorted(source.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            _link(file, folder / file.relative_to(source))


def files_of(folder: Path) -> Sequence[tuple[str, int]]:
    """Name and bytes of each file of a laid-out repository."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(f.relative_to(folder).as_posix(), f.stat().st_size) for f in files]


def listing(member: Member, folder: Path) -> str:
    """What a repository consists of, a file per line.

    Args:
        member: The repository.
        folder: Where it is laid out.
    """
    files = files_of(folder)
    total = sum(size for _, size in files)
    lines = [f"{member.repo}: {len(files)} files, {total / 1e6:.2f} MB"]
    lines += [f"  {name}  {size:,} bytes" for name, size in files]
    return "\n".join(lines)
