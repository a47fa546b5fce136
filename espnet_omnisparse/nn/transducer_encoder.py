"""The standalone transducer's Conformer with prunable branches.

ESPnet's `asr_transducer` task describes its encoder block by block (`body_conf`); the
blocks are its own modules under its own parameter names.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.asr_transducer.utils import TooShortUttError, make_source_mask

from espnet_omnisparse.core.branches import BRANCHES, QUARTERS
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import heads_of
from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.layout import TRANSDUCER_LAYOUT, expanded
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.block import ChannelNorm, Frames, TransducerBlock
from espnet_omnisparse.nn.encoder import CONV_NORMS, PrunableEncoder
from espnet_omnisparse.nn.recording import telling_if_long


class OmniTransducerEncoder(PrunableEncoder, Encoder):
    """ESPnet's `asr_transducer` encoder, run through one gate per prunable unit.

    With `dynamic_chunk_training` its Conv modules are causal, as in ESPnet, and a net
    that is no supernet is trained with random chunks; a supernet takes its chunks from
    `model_conf.supernet.chunks`.

    Args:
        input_size: Feature dimension.
        body_conf: ESPnet's; Conformer blocks of one width.
        input_conf: ESPnet's.
        main_conf: ESPnet's.
        conv_norm: As in `LayerPrunableConformerEncoder`.
        granularity: As in `LayerPrunableConformerEncoder`.
        kept: As in `LayerPrunableConformerEncoder`.
        pattern: As in `LayerPrunableConformerEncoder`.
        pattern_norm: As in `LayerPrunableConformerEncoder`.
        mask_front_end: As in `LayerPrunableConformerEncoder`.
        chunk: As in `LayerPrunableConformerEncoder`.

    Raises:
        UserError: If an option excludes pruning.
    """

    layout = TRANSDUCER_LAYOUT

    def __init__(
        self,
        input_size: int,
        body_conf: Sequence[Mapping[str, Any]],
        input_conf: Mapping[str, Any] | None = None,
        main_conf: Mapping[str, Any] | None = None,
        conv_norm: str = "batch_norm",
        granularity: str = "branch",
        kept: Sequence[Sequence[str] | Mapping[str, int]] | None = None,
        pattern: str | None = None,
        pattern_norm: str = "l1",
        mask_front_end: bool = False,
        chunk: Mapping[str, int] | str | None = None,
    ):
        main_conf = dict(main_conf or {})
        _check(body_conf, main_conf, conv_norm, granularity)
        # copies: ESPnet writes defaults into them
        body = [dict(block) for block in body_conf]
        super().__init__(input_size, body, dict(input_conf or {}), main_conf)
        self.input_size = input_size
        self._arguments = {
            "body_conf": [dict(block) for block in expanded(body_conf)],
            "input_conf": copy.deepcopy(dict(input_conf or {})),
            "main_conf": main_conf,
            "conv_norm": conv_norm,
        }
        self.width = self.output_size
        self.conv_norm = conv_norm
        self.causal = self.dynamic_chunk_training
        self.chunk = Chunk.parse(chunk, "encoder_conf.chunk")
        if self.chunk is not None and not self.causal:
            raise UserError(
                "encoder_conf.chunk needs main_conf.dynamic_chunk_training: true, with "
                "which the Conv modules are causal: they would see the future "
                "otherwise."
            )
        blocks = self.encoders.blocks
        if kept is not None and len(kept) != len(blocks):
            raise UserError(
                f"encoder_conf.kept names {len(kept)} blocks, but body_conf has "
                f"{len(blocks)}."
            )
        heads = [heads_of(block.self_att) for block in blocks]
        if granularity == "component" and len(set(heads)) > 1:
            raise UserError(
                "encoder_conf.granularity: component needs the same number of heads in "
                f"every block of body_conf, not {', '.join(map(str, heads))}: choose "
                "one number, or granularity: branch."
            )
        mask_pattern = None if pattern is None else Pattern.parse(pattern, pattern_norm)
        front = self._maskable_front_end(mask_front_end, pattern)
        self.space = SearchSpace(
            len(blocks), granularity, heads[0], mask_pattern, True, front
        )
        self.set_pattern(mask_pattern)
        if conv_norm == "layer_norm":
            for block in blocks:
                block.conv_mod.norm = ChannelNorm(block.block_size)
        rows = kept if kept is not None else [BRANCHES] * len(blocks)
        self.encoders.blocks = torch.nn.ModuleList(
            TransducerBlock(block, row) for block, row in zip(blocks, rows, strict=True)
        )

    def front_end(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor,
        sparsity: Sequence[float] = (),
    ) -> Frames:
        """See `PrunableEncoder.front_end`."""
        needed = self.embed.min_frame_length  # ESPnet's own check allows 3 of 7
        if feats.size(1) < needed:
            raise TooShortUttError(
                f"has {feats.size(1)} frames and is too short for subsampling (it "
                f"needs {needed} frames), return empty results",
                feats.size(1),
                needed,
            )
        x, padding = self._embed(sparsity, feats, make_source_mask(lengths))
        frames = Frames(x, self.pos_enc(x), ~padding[:, None])
        return frames.with_chunk_mask(self.chunk)

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        """See `PrunableEncoder.final_norm`."""
        return self.encoders.norm_blocks(x)

    def subsample(self, feats: torch.Tensor) -> torch.Tensor:
        """See `PrunableEncoder.subsample`."""
        return self.embed(feats)[0]

    def positions(self, queries: int, keys: int) -> torch.Tensor:
        """See `PrunableEncoder.positions`."""
        like = next(self.parameters()).new_empty(1, queries)
        return self.pos_enc(like, left_context=keys - queries)

    def resized(
        self,
        kept: Sequence[Sequence[str] | Mapping[str, int]],
        blocks: Sequence[int] | None = None,
    ) -> "OmniTransducerEncoder":
        """See `LayerPrunableConformerEncoder.resized`."""
        arguments = dict(self._arguments)
        if blocks is not None:
            body = arguments["body_conf"]
            arguments["body_conf"] = [body[number] for number in blocks]
        return OmniTransducerEncoder(self.input_size, **arguments, kept=kept)

    def forward(
        self,
        x: torch.Tensor,
        x_len: torch.Tensor,
        gates: Sequence[Gate] | None = None,
        sparsity: Sequence[float] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes features, as ESPnet's encoder does, optionally through a subnet.

        Args:
            x: Features `[batch, frames, input_size]`.
            x_len: Frames of each sequence `[batch]`.
            gates: A gate per unit; `None` for the full net.
            sparsity: A sparsity per weight; empty: nothing is masked.

        Returns:
            Output `[batch, time, size]` and lengths `[batch]`.

        Raises:
            UserError: If the memory does not suffice for a long recording.
        """
        frames = self.front_end(x, x_len, sparsity)
        if self.training and self.dynamic_chunk_training and self.chunk is None:
            frames = frames.with_chunk_mask(self._random_chunk(frames.x.size(1)))
        with telling_if_long(self, frames.x.size(1)):
            return self.blocks(frames, gates, sparsity)

    def _random_chunk(self, frames: int) -> Chunk | None:
        """ESPnet's dynamic chunk training: a short chunk, or the whole recording."""
        size = int(torch.randint(1, max(frames, 2), (1,)))
        if size > frames * self.short_chunk_threshold:
            return None
        size = size % self.short_chunk_size + 1
        return Chunk(size, self.num_left_chunks * size or frames)


def _check(
    body_conf: Sequence[Mapping[str, Any]],
    main_conf: Mapping[str, Any],
    norm: str,
    granularity: str,
) -> None:
    """Refuses what cannot be pruned."""
    if norm not in CONV_NORMS:
        raise UserError(
            f"encoder_conf.conv_norm must be one of {', '.join(CONV_NORMS)}, not "
            f"{norm!r}."
        )
    check_block_types(body_conf)
    for name in ("simplified_att_score", "blockdrop_rate"):
        if main_conf.get(name):
            raise UserError(
                f"encoder_conf.main_conf.{name} cannot be combined with prunable "
                "branches: leave it out"
                + (
                    " (layer dropout is an option of model_conf.supernet)."
                    if "rate" in name
                    else "."
                )
            )
    sizes = [block["linear_size"] for block in body_conf if "linear_size" in block]
    if granularity == "component" and any(size % QUARTERS for size in sizes):
        raise UserError(
            "encoder_conf.granularity: component needs a linear_size divisible by "
            f"{QUARTERS} in every block of body_conf."
        )


def check_block_types(body_conf: Sequence[Mapping[str, Any]]) -> None:
    """Refuses blocks that are no Conformer's.

    Raises:
        UserError: Then, also where a type is missing.
    """
    if not all(block.get("block_type") for block in body_conf):
        raise UserError(
            "encoder_conf.body_conf has an entry without block_type: write "
            "block_type: conformer in every one."
        )
    others = {block["block_type"] for block in body_conf} - {"conformer"}
    if others:
        raise UserError(
            "encoder_conf.body_conf has blocks of type "
            f"{', '.join(map(str, others))}: only conformer blocks can be pruned."
        )
