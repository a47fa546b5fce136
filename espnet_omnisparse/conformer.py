"""ESPnet's Conformer with prunable branches.

The blocks are ESPnet's own modules under their own parameter names, so a stock
checkpoint loads by name; a branch whose gate is `None` is not computed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.legacy.nets.pytorch_backend.conformer.encoder_layer import EncoderLayer
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
    check_short_utt,
)

from espnet_omnisparse.block import BranchGate, ChannelNorm, Frames, PrunableBlock
from espnet_omnisparse.components import (
    BRANCH_PARTS,
    BRANCHES,
    FFN_CHUNKS,
    PRUNABLE,
    Masked,
)
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.gate import Gate, same_gate
from espnet_omnisparse.mask import DEFAULT_PATTERN, Pattern
from espnet_omnisparse.subnet import SearchSpace
from espnet_omnisparse.weights import WeightMasks

CONV_NORMS = ("batch_norm", "layer_norm")
_FIXED = {
    "macaron_style": True,
    "use_cnn_module": True,
    "normalize_before": True,
    "concat_after": False,
    "interctc_layer_idx": [],
    "interctc_use_conditioning": False,
    "ctc_trim": False,
    "stochastic_depth_rate": 0.0,
    "layer_drop_rate": 0.0,
}


class LayerPrunableConformerEncoder(ConformerEncoder):
    """ESPnet's Conformer encoder, run through one gate per prunable unit.

    Args:
        input_size: Feature dimension.
        conv_norm: Norm of the Conv module: `batch_norm` as in ESPnet, or
            `layer_norm`, whose statistics do not depend on the subnet.
        granularity: `branch`, `block` or `component`; see `SearchSpace`.
        kept: Of an extracted size: the branches that each block has, or their names
            with the number of parts each is narrowed to. `None`: all.
        pattern: Of the masks on the blocks' weights, such as `8x1`; `None`: weights are
            not masked. See `Pattern`.
        pattern_norm: By which groups of weights are compared, `l1` or `l2`.
        macaron_style: Must be true: both FFNs are prunable branches.
        **conformer_conf: All other options of ESPnet's `conformer`.

    Raises:
        UserError: If an option excludes pruning.
    """

    def __init__(
        self,
        input_size: int,
        conv_norm: str = "batch_norm",
        granularity: str = "branch",
        kept: Sequence[Sequence[str] | Mapping[str, int]] | None = None,
        pattern: str | None = None,
        pattern_norm: str = "l1",
        macaron_style: bool = True,
        **conformer_conf,
    ):
        conformer_conf["macaron_style"] = macaron_style
        for name, needed in _FIXED.items():
            given = conformer_conf.get(name, needed)
            if given != needed:
                raise UserError(
                    f"encoder_conf.{name}: {given} cannot be combined with prunable "
                    f"branches: set it to {needed} or leave it out"
                    + (
                        " (layer dropout is an option of model_conf.supernet)."
                        if "rate" in name
                        else "."
                    )
                )
        if conv_norm not in CONV_NORMS:
            raise UserError(
                f"encoder_conf.conv_norm must be one of {', '.join(CONV_NORMS)}, "
                f"not {conv_norm!r}."
            )
        super().__init__(input_size, **conformer_conf)
        if kept is not None and len(kept) != len(self.encoders):
            raise UserError(
                f"encoder_conf.kept names {len(kept)} blocks, but num_blocks is "
                f"{len(self.encoders)}."
            )
        self.conv_norm = conv_norm
        self.subnet_dropout = "adaptive"
        self._arguments = {
            **conformer_conf,
            "input_size": input_size,
            "conv_norm": conv_norm,
        }
        heads = getattr(self.encoders[0].self_attn, "h", 1)
        self.space = SearchSpace(
            len(self.encoders),
            granularity,
            heads,
            None if pattern is None else Pattern.parse(pattern, pattern_norm),
            hasattr(self.encoders[0].self_attn, "linear_pos"),
        )
        if granularity == "component":
            _check_components(self.encoders[0])
        self._masks = None
        if self.space.pattern is not None:
            _check_maskable(self.encoders[0])
            self._masks = WeightMasks(self.space.pattern)
        if conv_norm == "layer_norm":
            for layer in self.encoders:
                layer.conv_module.norm = ChannelNorm(layer.size)
        rows = kept if kept is not None else [BRANCHES] * len(self.encoders)
        self.encoders = torch.nn.ModuleList(
            PrunableBlock(layer, row)
            for layer, row in zip(self.encoders, rows, strict=True)
        )

    @property
    def input_size(self) -> int:
        """Feature dimension."""
        return self._arguments["input_size"]

    def front_end(self, feats: torch.Tensor, lengths: torch.Tensor) -> Frames:
        """Subsampling and positions, shared by all subnets of an update.

        Args:
            feats: `[batch, frames, input_size]`.
            lengths: Frames of each sequence `[batch]`.

        Raises:
            TooShortUttError: ESPnet's, if the input is too short to subsample.
        """
        mask = (~make_pad_mask(lengths)[:, None, :]).to(feats.device)
        too_short, limit = check_short_utt(self.embed, feats.size(1))
        if too_short:
            raise TooShortUttError(
                f"has {feats.size(1)} frames and is too short for subsampling (it "
                f"needs more than {limit} frames), return empty results",
                feats.size(1),
                limit,
            )
        if isinstance(self.embed, torch.nn.Sequential):
            embedded = self.embed(feats)
        else:
            embedded, mask = self.embed(feats, mask)
        x, pos_emb = embedded if isinstance(embedded, tuple) else (embedded, None)
        return Frames(x, pos_emb, mask)

    def blocks(
        self,
        frames: Frames,
        gates: Sequence[Gate] | None = None,
        sparsity: Sequence[float] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs one subnet on the front end's output.

        Args:
            frames: Output of `front_end`.
            gates: A gate per unit of `self.space`; `None` runs every branch that
                exists.
            sparsity: A sparsity per weight of `self.space`; empty: nothing is masked.

        Returns:
            `[batch, time, size]`, and the number of frames of each sequence.
        """
        (encoded,) = self.exits(frames, (len(self.encoders),), gates, sparsity)
        return encoded, frames.lengths

    def exits(
        self,
        frames: Frames,
        after: Collection[int],
        gates: Sequence[Gate] | None = None,
        sparsity: Sequence[float] = (),
    ) -> list[torch.Tensor]:
        """The outputs of one pass, each as if the encoder ended there.

        Args:
            frames: Output of `front_end`.
            after: Numbers of blocks to end after.
            gates: As in `blocks`.
            sparsity: As in `blocks`.

        Returns:
            `[batch, time, size]` for each of `after`, in ascending order.
        """
        outputs = []
        shares = self._shares(sparsity)
        for number, row in enumerate(self._rows(gates), start=1):
            if row is not None:
                masked = self._masked(number - 1, row, shares)
                x = self._run_block(self.encoders[number - 1], frames, row, masked)
                frames = Frames(x, frames.pos_emb, frames.mask)
            if number in after:
                outputs.append(self.after_norm(frames.x))
        return outputs

    def _rows(
        self, gates: Sequence[Gate] | None
    ) -> Iterator[tuple[BranchGate, ...] | Gate]:
        """Per block: its branches' gates, or at block granularity the one gate."""
        if gates is None:
            yield from ((1.0,) * len(block.kept) for block in self.encoders)
        elif len(gates) != len(self.space):
            raise ValueError(f"{len(gates)} gates for {len(self.space)} units")
        elif self.space.granularity == "block":
            yield from gates
        else:
            rest = iter(gates)
            for _ in self.encoders:
                parts = (
                    tuple(islice(rest, count)) for count in self.space.parts.values()
                )
                # a branch whose parts share a gate is gated as a whole
                yield tuple(one[0] if same_gate(one) else one for one in parts)

    @staticmethod
    def _run_block(
        block: PrunableBlock,
        frames: Frames,
        row: tuple[BranchGate, ...] | Gate,
        masked: Mapping[str, Masked],
    ) -> torch.Tensor:
        if isinstance(row, tuple):
            return block(frames, row, masked)
        full = block(frames, (1.0,) * len(block.kept), masked)
        # the gate of a whole block fades between its input and its output
        return full if isinstance(row, float) else frames.x + row * (full - frames.x)

    def maskable(self) -> dict[str, torch.nn.Parameter]:
        """The weights of `self.space.weights`, by name."""
        found = {}
        for name in self.space.weights:
            block, branch, layer = name.split(".")
            module = getattr(self.encoders[int(block)], BRANCH_PARTS[branch][1])
            found[name] = getattr(module, layer).weight
        return found

    def refresh_masks(self) -> None:
        """Makes the masks follow the weights' present magnitudes."""
        if self._masks is not None:
            self._masks.refresh(self.maskable())

    def _shares(self, sparsity: Sequence[float]) -> dict[str, float]:
        """Weight -> sparsity, of those that are masked."""
        if not any(sparsity):
            return {}
        pairs = zip(self.space.weights, sparsity, strict=True)
        return {name: share for name, share in pairs if share > 0.0}

    def _masked(
        self,
        number: int,
        row: tuple[BranchGate, ...] | Gate,
        shares: Mapping[str, float],
    ) -> dict[str, Masked]:
        """The masked weights of the branches of a block that are computed."""
        if not shares:
            return {}
        block = self.encoders[number]
        gates = row if isinstance(row, tuple) else (row,) * len(block.kept)
        found = {}
        for branch, gate in zip(block.kept, gates, strict=True):
            if gate is None:
                continue
            weights, kept, total = {}, 0.0, 0
            module = getattr(block, BRANCH_PARTS[branch][1])
            for layer in PRUNABLE[branch]:
                name = f"{number}.{branch}.{layer}"
                if layer == "linear_pos" and not self.space.positional:
                    continue
                weight, share = getattr(module, layer).weight, shares.get(name, 0.0)
                total += weight.numel()
                kept += (1.0 - share) * weight.numel()
                if share > 0.0:
                    weights[f"{layer}.weight"] = self._masks.masked(name, weight, share)
            if weights:
                scaled = self.subnet_dropout == "adaptive"
                found[branch] = Masked(weights, kept / total if scaled else 1.0)
        return found

    def resized(
        self, kept: Sequence[Sequence[str] | Mapping[str, int]]
    ) -> "LayerPrunableConformerEncoder":
        """An encoder of the same options that has less in it, freshly initialised.

        Args:
            kept: As in the constructor; fewer blocks than this one has are possible.
        """
        arguments = {**self._arguments, "num_blocks": len(kept)}
        return LayerPrunableConformerEncoder(**arguments, kept=kept)

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
        """
        frames = self.front_end(xs_pad, ilens)
        encoded, lengths = self.blocks(frames, gates, sparsity)
        return encoded, lengths, None

    @contextmanager
    def as_subnet(self, dropout: str = "adaptive") -> Iterator[None]:
        """Inside, the encoder is trained as a subnet is, not as the full net.

        BatchNorms use the batch's statistics but do not record them: subnets shift the
        statistics, and only the full net may update the running ones.

        Args:
            dropout: `adaptive`: an FFN's rate shrinks with the share of its weights
                that is not masked; `full`: it does not; `none`: nothing is dropped.
        """
        norms = [m for m in self.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        for norm in norms:
            norm.track_running_stats = False
        rates = self._dropout_rates() if dropout == "none" else []
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        before, self.subnet_dropout = self.subnet_dropout, dropout
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True
            for module, name, rate in rates:
                setattr(module, name, rate)
            self.subnet_dropout = before

    def _dropout_rates(self) -> list[tuple[torch.nn.Module, str, float]]:
        """Where the blocks keep their dropout rates."""
        found = []
        for module in self.encoders.modules():
            if isinstance(module, torch.nn.Dropout):
                found.append((module, "p", module.p))
            elif hasattr(module, "dropout_rate"):  # of fused attention
                found.append((module, "dropout_rate", module.dropout_rate))
        return found


class OmniSparseConformerEncoder(LayerPrunableConformerEncoder):
    """The same, with masks on the weights of its blocks by default.

    Args:
        input_size: Feature dimension.
        pattern: Of the masks.
        **options: As for `LayerPrunableConformerEncoder`.
    """

    def __init__(self, input_size: int, pattern: str = DEFAULT_PATTERN, **options):
        super().__init__(input_size, pattern=pattern, **options)


def _check_maskable(layer: EncoderLayer) -> None:
    """Refuses blocks whose weights are not those of linear layers."""
    if not isinstance(getattr(layer.feed_forward, "w_1", None), torch.nn.Linear):
        raise UserError(
            "encoder_conf.pattern needs positionwise_layer_type: linear: set it, or "
            "leave the pattern out."
        )


def _check_components(layer: EncoderLayer) -> None:
    """Refuses what cannot be divided into components."""
    hidden = getattr(getattr(layer.feed_forward, "w_1", None), "out_features", 0)
    if not hidden or hidden % FFN_CHUNKS:
        raise UserError(
            "encoder_conf.granularity: component needs positionwise_layer_type: linear "
            f"and linear_units divisible by {FFN_CHUNKS}."
        )
    if layer.self_attn.use_flash_attn:
        raise UserError(
            "encoder_conf.granularity: component cannot be combined with "
            "use_flash_attn: set it to false."
        )
