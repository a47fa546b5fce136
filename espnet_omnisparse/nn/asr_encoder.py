"""What all prunable encoders of the task `asr` have in common.

An encoder of ESPnet becomes prunable by a class of two bases, this one and its own,
which names its options that exclude pruning and the blocks that its own become.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
    check_short_utt,
)

from espnet_omnisparse.core.branches import QUARTERS
from espnet_omnisparse.core.components import heads_of
from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.layout import has_gate_linear
from espnet_omnisparse.core.mask import DEFAULT_PATTERN, Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.block import Frames, PrunableBlock
from espnet_omnisparse.nn.encoder import PrunableEncoder
from espnet_omnisparse.nn.recording import telling_if_long

#: options of all of them that exclude pruning -> their only value
FIXED = {
    "interctc_layer_idx": [],
    "interctc_use_conditioning": False,
    "layer_drop_rate": 0.0,
}
#: options that an encoder which cannot stream refuses
STREAMING = ("causal", "chunk")


class PrunableAsrEncoder(PrunableEncoder):
    """Mixin of an encoder of the task `asr`, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        granularity: `branch`, `block` or `component`; see `SearchSpace`.
        kept: Of an extracted size: the branches that each block has, or their names
            with the number of parts each is narrowed to. `None`: all.
        pattern: Of the masks on the blocks' weights, such as `8x1`; `None`: weights are
            not masked. See `Pattern`.
        pattern_norm: By which groups of weights are compared, `l1` or `l2`.
        mask_front_end: Whether the front end's weights take masks too: all
            convolutions but the first, as matrices over their window, and the output
            layer.
        causal: Only a Conformer can be.
        chunk: Only a Conformer can have one.
        **conf: All other options of ESPnet's own encoder.

    Attributes:
        block_class: What ESPnet's blocks become.
        fixed: Options that exclude pruning -> their only value.
        can_stream: Whether it can be trained as it runs in a stream.

    Raises:
        UserError: If an option excludes pruning.
    """

    block_class: type[PrunableBlock]
    fixed: Mapping[str, Any] = FIXED
    can_stream = False
    causal = False
    chunk = None

    def __init_subclass__(cls) -> None:
        # ESPnet's --print_config shows the options that a class has by its signature
        found: dict[str, inspect.Parameter] = {}
        for base in cls.__mro__:
            if issubclass(base, PrunableAsrEncoder) and "__init__" in vars(base):
                found = {**inspect.signature(base.__init__).parameters, **found}
        named = [
            one
            for name, one in found.items()
            if one.kind is not one.VAR_KEYWORD
            and (cls.can_stream or name not in STREAMING)
        ]
        _, *options = sorted(named, key=lambda one: one.default is not one.empty)
        cls.__signature__ = inspect.Signature(options)  # without self

    def __init__(
        self,
        input_size: int,
        granularity: str = "branch",
        kept: Sequence[Sequence[str] | Mapping[str, int]] | None = None,
        pattern: str | None = None,
        pattern_norm: str = "l1",
        mask_front_end: bool = False,
        causal: bool = False,
        chunk: Mapping[str, int] | str | None = None,
        **conf,
    ):
        if not self.can_stream and (causal or chunk is not None):
            raise UserError(
                "encoder_conf.causal and chunk are options of a Conformer: "
                f"{self.layout.stock} cannot stream, leave them out."
            )
        _set_fixed(conf, self.fixed)
        super().__init__(input_size, **conf)
        if kept is not None and len(kept) != len(self.encoders):
            raise UserError(
                f"encoder_conf.kept names {len(kept)} blocks, but num_blocks is "
                f"{len(self.encoders)}."
            )
        self.width = self.output_size()
        self._arguments = {**conf, "input_size": input_size}
        first, parts = self.encoders[0], self.layout.parts
        attention = getattr(first, parts["mhsa"][1])
        self.space = SearchSpace(
            len(self.encoders),
            granularity,
            heads_of(attention),
            None if pattern is None else Pattern.parse(pattern, pattern_norm),
            hasattr(attention, "linear_pos"),
            self._maskable_front_end(mask_front_end, pattern),
            tuple(b for b in parts if getattr(first, parts[b][1], None) is not None),
            has_gate_linear(self._model_parameters()),
        )
        ffn = getattr(first, parts["ffn2"][1])
        if granularity == "component":
            _check_components(ffn, attention, getattr(first, "cgmlp", None))
        self.set_pattern(self.space.pattern)
        self._change(self.encoders)
        rows = kept if kept is not None else [self.space.branches] * len(self.encoders)
        self.encoders = torch.nn.ModuleList(
            self.block_class(layer, row)
            for layer, row in zip(self.encoders, rows, strict=True)
        )

    def _change(self, layers: torch.nn.ModuleList) -> None:
        """Replaces modules of ESPnet's blocks by others of ours."""

    @property
    def input_size(self) -> int:
        """Feature dimension."""
        return self._arguments["input_size"]

    def front_end(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor,
        sparsity: Sequence[float] = (),
    ) -> Frames:
        """See `PrunableEncoder.front_end`."""
        # ESPnet's own make_pad_mask takes memory by the square of the length
        times = torch.arange(feats.size(1), device=feats.device)
        mask = times < lengths.to(feats.device)[:, None, None]
        if self.embed is None:
            return Frames(feats, None, mask).with_chunk_mask(self.chunk)
        too_short, limit = check_short_utt(self.embed, feats.size(1))
        if too_short:
            raise TooShortUttError(
                f"has {feats.size(1)} frames and is too short for subsampling (it "
                f"needs more than {limit} frames), return empty results",
                feats.size(1),
                limit,
            )
        if isinstance(self.embed, torch.nn.Sequential | torch.nn.Linear):
            embedded = self._embed(sparsity, feats)
        else:
            embedded, mask = self._embed(sparsity, feats, mask)
        x, pos_emb = embedded if isinstance(embedded, tuple) else (embedded, None)
        return Frames(x, pos_emb, mask).with_chunk_mask(self.chunk)

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        """The norm after the last block."""
        return self.after_norm(x)

    def subsample(self, feats: torch.Tensor) -> torch.Tensor:
        """The front end on features without padding, as the blocks take its output."""
        (x, _), _ = self.embed(feats, None)
        return x

    def positions(self, queries: int, keys: int) -> torch.Tensor:
        """See `PrunableEncoder.positions`."""
        encoding = self.embed.pos_enc
        encoding.extend_pe(self.after_norm.weight.new_empty(1, keys))
        now = encoding.pe.size(1) // 2
        return encoding.pe[:, now - keys + 1 : now + queries]

    def resized(
        self,
        kept: Sequence[Sequence[str] | Mapping[str, int]],
        blocks: Sequence[int] | None = None,
    ) -> "PrunableAsrEncoder":
        """An encoder of the same options that has less in it, freshly initialised.

        Args:
            kept: As in the constructor, of the blocks that it has.
            blocks: Their numbers, if not all; those of `asr` encoders are alike.
        """
        arguments = {**self._arguments, "num_blocks": len(kept)}
        return type(self)(**arguments, pattern=None, kept=kept)

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
        gates: Sequence[Gate] | None = None,
        sparsity: Sequence[float] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Encodes features, as ESPnet's encoders do, optionally through a subnet.

        Args:
            xs_pad: Features `[batch, frames, input_size]`.
            ilens: Frames of each sequence `[batch]`.
            prev_states: Unused, part of ESPnet's interface.
            gates: A gate per unit; `None` for the full net.
            sparsity: A sparsity per weight; empty: nothing is masked.

        Returns:
            Output `[batch, time, size]`, lengths `[batch]`, and `None`.

        Raises:
            UserError: If the memory does not suffice for a long recording.
        """
        frames = self.front_end(xs_pad, ilens, sparsity)
        with telling_if_long(self, frames.x.size(1)):
            encoded, lengths = self.blocks(frames, gates, sparsity)
        return encoded, lengths, None


class OmniSparse(PrunableAsrEncoder):
    """Mixin before a prunable encoder: the weights of its blocks are masked by default.

    Args:
        input_size: Feature dimension.
        pattern: Of the masks.
        **options: As for the encoder.
    """

    def __init__(
        self, input_size: int, pattern: str | None = DEFAULT_PATTERN, **options
    ):
        super().__init__(input_size, pattern=pattern, **options)


def _set_fixed(conf: dict[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuses options that exclude pruning, and spells the others as ESPnet does."""
    for name, needed in fixed.items():
        given = conf.get(name, needed)
        if not _same(given, needed):
            raise UserError(
                f"encoder_conf.{name}: {given} cannot be combined with prunable "
                f"branches: set it to {needed} or leave it out"
                + (
                    " (layer dropout is an option of model_conf.supernet)."
                    if "rate" in name
                    else "."
                )
            )
        if name in conf:  # ESPnet counts the blocks of a list of rates
            conf[name] = needed


def _same(given: Any, needed: Any) -> bool:
    """Whether an option says what is needed, in whatever spelling.

    >>> _same([0.0, 0.0], 0.0), _same((), []), _same(None, False), _same([0.1], 0.0)
    (True, True, True, False)
    """
    if isinstance(needed, float) and isinstance(given, list | tuple):
        return not any(given)
    return given == needed or (not needed and not given)


def _check_components(
    ffn: torch.nn.Module | None,
    attention: torch.nn.Module,
    cgmlp: torch.nn.Module | None,
) -> None:
    """Refuses what cannot be divided into components."""
    if ffn is not None and ffn.w_1.weight.size(0) % QUARTERS:
        raise UserError(
            "encoder_conf.granularity: component needs linear_units divisible by "
            f"{QUARTERS}."
        )
    # half of the units are gates of the other half
    if cgmlp is not None and cgmlp.channel_proj1[0].out_features % (2 * QUARTERS):
        raise UserError(
            "encoder_conf.granularity: component needs cgmlp_linear_units divisible by "
            f"{2 * QUARTERS}."
        )
    if getattr(attention, "use_flash_attn", False):
        raise UserError(
            "encoder_conf.granularity: component cannot be combined with "
            "use_flash_attn: set it to false."
        )
