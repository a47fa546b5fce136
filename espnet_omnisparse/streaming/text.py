"""Tokens as text, by ESPnet's tokenizer, as decoding and scoring spell them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2.text.abs_tokenizer import AbsTokenizer
from espnet2.text.build_tokenizer import build_tokenizer

from espnet_omnisparse.errors import UserError


def tokenizer_of(config: Mapping[str, Any]) -> AbsTokenizer:
    """The tokenizer of a training's configuration.

    Of phonemes it is that of words: ESPnet's own leaves no blanks between them, and a
    text could not be compared with another.

    Raises:
        UserError: If its BPE file is missing.
    """
    kind, bpe = config["token_type"], config.get("bpemodel")
    if kind == "phn":
        kind = "word"
    if kind == "bpe" and bpe is not None and not Path(bpe).exists():
        raise UserError(
            f"The model's BPE file {bpe} is not there: run in the recipe's folder, or "
            "restore it."
        )
    # of other kinds it is the name of a model that has a tokenizer
    return build_tokenizer(token_type=kind, bpemodel=bpe)


def settled_text(text: str, revises: bool) -> str:
    """A text without what the next chunks may well change.

    Of a greedy search all of it; of a beam what comes before the last word, or, where
    nothing tells words apart, before the last two characters. Bytes at the end that
    are of no character yet, which the next tokens complete, are left out.

    Args:
        text: So far.
        revises: Whether the search may change what it once found.

    >>> settled_text("one two thr", True), settled_text("one two thr", False)
    ('one two', 'one two thr')
    """
    text = " ".join(text.rstrip("\ufffd").split())
    if not revises:
        return text
    before, space, _ = text.rpartition(" ")
    return before if space else text[:-2]
