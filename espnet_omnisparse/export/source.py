"""A size as exports take it: the model, what it is, and the stream it is asked for."""

import argparse
from dataclasses import dataclass
from typing import Any

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.layout import ASR_LAYOUT, layout_of
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.pack import size_config
from espnet_omnisparse.extract import experiment as family


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        model: In eval.
        config: What it was built with.
        description: What `describe` tells of it.
        head: `ctc` or `transducer`.
        chunk: Of its stream; `None`: it has none.
    """

    model: Any
    config: dict[str, Any]
    description: dict[str, Any]
    head: str
    chunk: Chunk | None

    @property
    def tokens(self) -> list[str]:
        """The vocabulary, by id."""
        return self.description["tokens"]


def load_source(args: argparse.Namespace) -> Source:
    """Reads a size as the command asks for it.

    Args:
        args: `size`, `head`, `chunk` and `left`, as `omnisparse export` has them.

    Raises:
        UserError: If there is no such size, head or stream.
    """
    config = family.located(size_config(args.size), args.size)
    return source_of(family.load_size(args.size), config, args)


def source_of(model: Any, config: dict[str, Any], args: argparse.Namespace) -> Source:
    """The same of a model that is loaded.

    Args:
        model: In eval.
        config: Its configuration.
        args: `head`, `chunk` and `left`.

    Raises:
        UserError: If it has no such head or stream, or cannot be exported.
    """
    description = describe(model, config)
    head = args.head or description["task"]
    key = "head" if head == "ctc" else "transducer"
    if description[key] is None:
        raise UserError(f"This model has no {head} head: leave out --head {head}.")
    encoder = description["encoder"]
    chunk = None if encoder["chunk"] is None else Chunk(**encoder["chunk"])
    if args.chunk is not None:
        chunk = Chunk(args.chunk, 4 * args.chunk if args.left is None else args.left)
    if chunk is not None and layout_of(config).stock != ASR_LAYOUT.stock:
        raise UserError(
            "This model cannot stream, since its encoder needs the whole recording: "
            "leave out --chunk, or train a Conformer with encoder_conf.causal: true."
        )
    if chunk is not None and not encoder["causal"]:
        raise UserError(
            "This model cannot stream, since its Conv modules see the future: leave "
            "out --chunk, or train with encoder_conf.causal: true (of the task "
            "asr_transducer: main_conf.dynamic_chunk_training: true)."
        )
    return Source(model, config, description, head, chunk)
