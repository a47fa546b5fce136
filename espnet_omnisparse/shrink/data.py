"""Kaldi-style folders as what a training of ESPnet reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile
from espnet2.text.token_id_converter import TokenIDConverter

from espnet_omnisparse.console import bar
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import atomic_folder
from espnet_omnisparse.streaming.text import tokenizer_of

_TABLES = ("wav.scp", "text")
_MOST_UNKNOWN = 0.1


def write_lists(source: Path, config: Mapping[str, Any], out: Path) -> None:
    """Writes `wav.scp`, `text` and `speech_shape` of a folder, checked.

    Utterances are those that are in both tables and have text.

    Args:
        source: The Kaldi-style folder.
        config: Of the model that shall read them.
        out: Folder to write, whole or not at all; one that is there is left.

    Raises:
        UserError: If the model cannot read them.
    """
    if out.exists():
        return
    audio, text = (_read_table(source / name) for name in _TABLES)
    if (source / "segments").exists():
        raise UserError(
            f"{source} has segments, which must be audio files of their own: give the "
            "folder that ESPnet's stage 3 or 4 made of it (dump/raw/...)."
        )
    names = [name for name in sorted(audio) if text.get(name)]
    if not names:
        raise UserError(f"{source} has no utterance with both audio and text.")
    _check_tokens(source, [text[name] for name in names], config)
    rate = _rate(config)
    shapes = []
    with bar(f"audio of {source}", len(names), " files") as shown:
        for name in names:
            shapes.append(_samples(audio[name], rate))
            shown.update()
    tables = {
        "wav.scp": (audio[name] for name in names),
        "text": (text[name] for name in names),
        "speech_shape": map(str, shapes),
    }
    with atomic_folder(out) as folder:
        for file, values in tables.items():
            rows = zip(names, values, strict=True)
            lines = "".join(f"{name} {value}\n" for name, value in rows)
            (folder / file).write_text(lines, encoding="utf-8")


def _read_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: give a Kaldi-style folder with "
            f"{' and '.join(_TABLES)}."
        )
    rows = (line.split(maxsplit=1) for line in path.open(encoding="utf-8"))
    return {row[0]: row[1].strip() if len(row) > 1 else "" for row in rows if row}


def _rate(config: Mapping[str, Any]) -> int:
    """Samples per second that the model's features are made for."""
    rate = (config.get("frontend_conf") or {}).get("fs") or 16000
    if isinstance(rate, str):
        return int(float(rate.removesuffix("k")) * (1000 if rate[-1] == "k" else 1))
    return int(rate)


def _samples(path: str, rate: int) -> int:
    if path.endswith("|"):
        raise UserError(
            f"wav.scp has a command ({path}): give the folder that ESPnet's stage 3 "
            "or 4 made of it (dump/raw/...), whose audio lies in files."
        )
    try:
        found = soundfile.info(path)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{path} is not there, or no audio that can be read."
        ) from error
    if found.samplerate != rate:
        raise UserError(
            f"{path} has {found.samplerate} samples a second, but the model takes "
            f"{rate}: resample the data (ESPnet's stage 3, --fs)."
        )
    return found.frames


def _check_tokens(source: Path, texts: list[str], config: Mapping[str, Any]) -> None:
    """Refuses text that the model's tokens cannot spell."""
    tokenizer = tokenizer_of(config)
    converter = TokenIDConverter(config["token_list"])
    ids = [
        number
        for text in texts[:1000]
        for number in converter.tokens2ids(tokenizer.text2tokens(text))
    ]
    unknown = ids.count(converter.unk_id)
    if unknown > _MOST_UNKNOWN * len(ids):
        raise UserError(
            f"{100 * unknown / len(ids):.0f} % of the tokens of {source}/text are not "
            "the model's: write the text as its training had it (case, punctuation)."
        )
