"""Sizes decoded greedily on development data, and scored as a recipe scores them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from espnet2.train.dataset import ESPnetDataset

from espnet_omnisparse.console import bar
from espnet_omnisparse.extract.experiment import load_size, located, read_config
from espnet_omnisparse.files import atomic_folder
from espnet_omnisparse.recipe import sclite
from espnet_omnisparse.streaming.search import greedy_search
from espnet_omnisparse.streaming.text import tokenizer_of

#: Where the scores of a size are, in its folder; reports look for them there.
PLACE = Path("decode_greedy/dev")


def score(size: Path, lists: Path) -> None:
    """Decodes and scores a size, unless that is done.

    CTC, of hybrid models too, and transducers take the best token at each step.

    Args:
        size: Its folder.
        lists: Folder of the development data's `wav.scp` and `text`.
    """
    out = size / PLACE
    if out.exists():
        return
    rows = (line.split(maxsplit=1) for line in (lists / "text").open(encoding="utf-8"))
    references = {name: text.strip() for name, text in rows}
    hypotheses = dict(_decoded(size, lists, list(references)))
    with atomic_folder(out) as folder:
        for kind, units in (("wer", str.split), ("cer", _characters)):
            place = folder / f"score_{kind}"
            place.mkdir()
            for file, texts in (("ref", references), ("hyp", hypotheses)):
                lines = (
                    f"{' '.join(units(text))} ({n})\n" for n, text in texts.items()
                )
                (place / f"{file}.trn").write_text("".join(lines), encoding="utf-8")
            (place / "result.txt").write_bytes(_result(place))


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


def _result(place: Path) -> bytes:
    """The table that sclite makes of two files."""
    reference, hypothesis = (
        sclite.read_trn(place / f"{name}.trn", False) for name in ("ref", "hyp")
    )
    total = sclite.Tally()
    for alignment in sclite.score(reference, hypothesis).values():
        total.add(alignment)
    return sclite.summary("hyp.trn", total).encode("latin-1")
