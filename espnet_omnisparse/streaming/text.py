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
