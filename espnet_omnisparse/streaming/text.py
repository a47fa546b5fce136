"""Tokens as text, by ESPnet's tokenizer, as decoding and scoring spell them."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2.text.abs_tokenizer import AbsTokenizer
from espnet2.text.build_tokenizer import build_tokenizer

from espnet_omnisparse.errors import UserError


def tokenizer_of(config: Mapping[str, Any]) -> AbsTokenizer:
    """The tokenizer of a training's configuration.

    Raises:
        UserError: If its BPE file is missing.
    """
    options = Namespace(**config)
    bpe = options.bpemodel if options.token_type == "bpe" else None
    if bpe is not None and not Path(bpe).exists():
        raise UserError(
            f"The model's BPE file {bpe} is not there: run in the recipe's folder, or "
            "restore it."
        )
    return build_tokenizer(token_type=options.token_type, bpemodel=bpe)


def settled_text(text: str, revises: bool) -> str:
    """A text without what the next chunks may well change.

    Of a greedy search all of it; of a beam what comes before the last word, or, where
    nothing tells words apart, before the last two characters.

    Args:
        text: So far.
        revises: Whether the search may change what it once found.

    >>> settled_text("one two thr", True), settled_text("one two thr", False)
    ('one two', 'one two thr')
    """
    text = " ".join(text.split())
    if not revises:
        return text
    before, space, _ = text.rpartition(" ")
    return before if space else text[:-2]
