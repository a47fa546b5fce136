"""Sizes decoded on development data, and scored as a recipe scores them.

All are decoded greedily. Where sizes differ in their attention decoder, which greedy
search does not use, they are also decoded by beam search.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from espnet2.train.dataset import ESPnetDataset

from espnet_omnisparse.bin.asr_inference import Speech2Text
from espnet_omnisparse.console import bar
from espnet_omnisparse.core.layout import has_ctc_alone
from espnet_omnisparse.extract.experiment import (
    CONFIG,
    MODEL,
    load_size,
    located,
    read_config,
)
from espnet_omnisparse.files import atomic_folder
from espnet_omnisparse.recipe import sclite
from espnet_omnisparse.streaming.search import greedy_search
from espnet_omnisparse.streaming.text import tokenizer_of

#: Where the scores of a size are, in its folder; reports look for them there.
PLACE = Path("decode_greedy/dev")
BEAM_PLACE = Path("decode_beam/dev")
_BEAM, _CTC_WEIGHT = 10, 0.3


def score(size: Path, lists: Path, place: Path = PLACE) -> None:
    """Decodes and scores a size, unless that is done.

    Args:
        size: Its folder.
        lists: Folder of the development data's `wav.scp` and `text`.
        place: `PLACE`: CTC, of hybrid models too, and transducers take the best token
            at each step; `BEAM_PLACE`: a beam search of CTC and attention, or of CTC
            where there is no decoder.
    """
    out = size / place
    if out.exists():
        return
    decoded = _decoded if place == PLACE else _decoded_by_beam
    rows = (line.split(maxsplit=1) for line in (lists / "text").open(encoding="utf-8"))
    references = {name: text.strip() for name, text in rows}
    hypotheses = dict(decoded(size, lists, list(references)))
    with atomic_folder(out) as folder:
        for kind, units in (("wer", str.split), ("cer", _characters)):
            part = folder / f"score_{kind}"
            part.mkdir()
            for file, texts in (("ref", references), ("hyp", hypotheses)):
                lines = (
                    f"{' '.join(units(text))} ({n})\n" for n, text in texts.items()
                )
                (part / f"{file}.trn").write_text("".join(lines), encoding="utf-8")
            (part / "result.txt").write_bytes(_result(part))


def _characters(text: str) -> list[str]:
    return [one if one != " " else "<space>" for one in " ".join(text.split())]


def _decoded(size: Path, lists: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    config = located(read_config(size), size)
    model: Any = load_size(size)
    tokenizer, tokens = tokenizer_of(config), config["token_list"]
    audio = ESPnetDataset([(str(lists / "wav.scp"), "speech", "sound")])
    with bar(f"decoding {size.name}", len(names), "") as shown, torch.no_grad():
        for name in names:
            speech = torch.from_numpy(audio[name][1]["speech"])[None]
            encoded, lengths = model.encode(speech, torch.tensor([speech.size(1)]))
            search = greedy_search(model)
            search.push(encoded[0, : lengths[0]])
            search.finish()
            yield name, tokenizer.tokens2text([tokens[one] for one in search.best()])
            shown.update()


def _decoded_by_beam(
    size: Path, lists: Path, names: list[str]
) -> Iterator[tuple[str, str]]:
    config = read_config(size)
    recognise = Speech2Text(
        size / CONFIG,
        size / MODEL,
        beam_size=min(_BEAM, len(config["token_list"])),
        ctc_weight=1.0 if has_ctc_alone(config) else _CTC_WEIGHT,
    )
    audio = ESPnetDataset([(str(lists / "wav.scp"), "speech", "sound")])
    with bar(f"beam search, {size.name}", len(names), "") as shown:
        for name in names:
            text, *_ = recognise(audio[name][1]["speech"])[0]
            yield name, text
            shown.update()


def _result(place: Path) -> bytes:
    """The table that sclite makes of two files."""
    reference, hypothesis = (
        sclite.read_trn(place / f"{name}.trn", False) for name in ("ref", "hyp")
    )
    total = sclite.Tally()
    for alignment in sclite.score(reference, hypothesis).values():
        total.add(alignment)
    return sclite.summary("hyp.trn", total).encode("latin-1")
