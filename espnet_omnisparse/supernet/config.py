"""The options of a supernet: the `supernet` section of `model_conf`."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.spec import FULL, REPAIRED
from espnet_omnisparse.cost.budget import parse_number
from espnet_omnisparse.cost.metrics import BYTES, NONZERO, SCALES
from espnet_omnisparse.cost.size import budget_of, refuse_masked
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.options import Length, Number, Section, option
from espnet_omnisparse.supernet.sparsity import (
    DENSE,
    OF_SANDWICH,
    SIZE,
    SUBNETS,
    SparsityConfig,
)

CURRENT = "current"  # the subnet of step 1, in logs
ADAPTIVE = "adaptive"
PER_SIZE = "per_size"


class SupernetConfig(Section):
    """The `supernet` section of `model_conf`."""

    name: ClassVar[str] = "supernet"

    method: str = option(
        "none",
        "how the sizes are selected: [below](#selection-methods)",
        "the name of a selection method",
        strict=True,
    )
    method_conf: dict[str, Any] = option({}, "options of the method, below")
    sizes: dict[str, Any] = option(
        {},
        "name -> units kept, as an int (`small: 16`), a fraction (`small: 0.33`), or "
        "[a budget](#budgets) (`phone: 8MB`, `small: {params: 15M}`); with `sparsity` "
        "also a share of zeros in every masked weight, alone (`s70: {sparsity: 0.7}`) "
        "or beside a budget (`small: {units: 16, sparsity: 0.7}`), and with `chunk` "
        "what it sees in a stream (`live: {chunk: {size: 16, left: 32}}`), and with "
        "`decoder` [how much of the attention decoder](#the-decoder-of-a-size) it "
        "keeps (`ctc: {decoder: none}`). The full net is always a size, called `full`",
        "names of sizes, each with what it keeps, such as {small: 0.33}",
    )
    fraction_of: Literal["units", "params", "macs_10s", "latency_ms"] = option(
        "units",
        "what a fraction in `sizes` is of: the full net's `units`, `params`, "
        "`macs_10s` or `latency_ms`",
    )
    sparsity: SparsityConfig | None = option(
        None,
        "[the weight axis](#sparsities): the section that has masks on weights "
        "trained; needs a `pattern`",
        "a section of options, such as {final: 0.9}",
    )
    chunks: tuple[Chunk | None, ...] = option(
        (),
        "what the subnets of an update see, such as `[full, {size: 16, left: 32}]`: "
        "the first the largest, the last the smallest, a random one the others; a "
        "warm start trains the full net on each in turn. Sizes see what the last says "
        "unless they name one; by default what the encoder does",
        "a list, such as [full, {size: 16, left: 32}]",
    )
    heads: Literal["shared", "per_size"] = option(
        "shared",
        "`shared`: one CTC output projection; `per_size`: each size its own, as the "
        "authors of [2407.18930](https://arxiv.org/abs/2407.18930) do; not with "
        "`sparsity`",
    )
    update: Literal["per_batch", "split_batch", "per_accum", "in_turn"] = option(
        "per_batch",
        "`per_batch`: every subnet of an update sees the whole batch; `split_batch`: "
        "the batch is divided among them, with the same expected gradient at the cost "
        "of about one net; `per_accum`: with `accum_grad`, each micro-batch trains one "
        "of them; `in_turn`: each update trains one of them, on the whole batch, at "
        "the cost of one net",
    )
    subnet_weight: float | Literal["adaptive"] = option(
        0.3,
        "loss weight of each subnet; the full net's is 1, and an update's loss is the "
        "mean by these weights. `adaptive`: `1 - exp(-loss)` of its own loss per "
        "frame, as OrthoSoftmax has it, and the sum",
        "a number of at least 0, or adaptive",
    )
    subnet_dropout: Literal["adaptive", "full", "none"] = option(
        "adaptive",
        "of every subnet but the first of an update: `adaptive`: an FFN's rate shrinks "
        "with its share of unmasked weights, as it does of a first one that is sparse; "
        "`full`: it does not; `none`: no dropout",
    )
    distillation: Literal["none", "kl", "alpha"] = option(
        "none",
        "what the full net teaches the others on the same utterances: `kl`, or "
        "`alpha`, the adaptive alpha-divergence of "
        "[AlphaNet](https://arxiv.org/abs/2102.07954); on CTC's posteriors, and of a "
        "transducer on (label, blank, rest) at each node",
    )
    distillation_weight: Number = option(
        0.5,
        "share of a subnet's loss that is the teacher's",
        "between 0 and 1",
        ge=0,
        le=1,
    )
    distillation_blocks: Number = option(
        0.0,
        "with `distillation`: weight, beside the loss, of how far a subnet is from the "
        "teacher after each block, relative to the teacher's output there (SquareHead, "
        "[2310.06927](https://arxiv.org/abs/2310.06927))",
        "a number of at least 0",
        ge=0,
    )
    teacher: str | None = option(
        None,
        "with `distillation`: a checkpoint of the full net's shape, such as the model "
        "that `--init_param` begins from; its net, frozen, then teaches every subnet, "
        "the full one too",
        "the path of a checkpoint",
    )
    warm_start: Length = option(
        0,
        "length of training the full net alone, first; of methods with a step 1 or 2, "
        "and of masks",
    )
    step1: Length = option(
        0.6, "length of learning the selection; of methods with a step 1"
    )
    layer_dropout_step1: Number = option(
        0.0,
        "layer dropout (stochastic depth per sequence) on the full net in step 1, on "
        "branches of which the current subnet has nothing",
        ge=0,
        lt=1,
    )
    layer_dropout_step2: Number = option(
        0.0, "the same in step 2, with the smallest size", ge=0, lt=1
    )
    score_lr: Number | None = option(
        None,
        "learning rate of the scores, which have no weight decay; by default the "
        "optimiser's. A short run needs a larger one: scores move by about this much "
        "per update",
        "a number above 0",
        gt=0,
    )
    repair: Length = option(
        0,
        "length, in updates or as a fraction of this run, of a training of each size "
        "by itself afterwards, in which its zeros stay; `./run.sh` writes the result "
        "beside the size, as `NAME-repaired` (short retraining after pruning, as in "
        "[2312.15230](https://arxiv.org/abs/2312.15230))",
    )
    seed: int = option(
        0, "of the random intermediate size that step 2 draws", strict=True
    )

    @field_validator("sparsity", mode="before")
    @classmethod
    def _read_sparsity(cls, value: Any) -> Any:
        if value is None or isinstance(value, SparsityConfig):
            return value
        return SparsityConfig.read(value)

    @field_validator("chunks", mode="before")
    @classmethod
    def _read_chunks(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError("no list")
        return tuple(
            one if isinstance(one, Chunk) else Chunk.parse(one, "supernet.chunks")
            for one in value
        )

    @field_validator("subnet_weight", mode="before")
    @classmethod
    def _read_weight(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != ADAPTIVE and not (number and 0.0 <= value < float("inf")):
            raise ValueError("no weight")
        return value

    @model_validator(mode="after")
    def _check(self) -> "SupernetConfig":
        self._check_names()
        self._check_sparsity()
        if self.teacher is not None and self.distillation == "none":
            raise UserError(
                "supernet.teacher teaches nothing without distillation: set "
                "supernet.distillation to kl or alpha, or remove the teacher."
            )
        if self.method != "none" and not self.sizes:
            raise UserError(
                "supernet.sizes is empty: name at least one size, such as "
                "{small: 0.33, medium: 0.67}."
            )
        return self

    def _check_names(self) -> None:
        for name, wanted in self.sizes.items():
            if name == "sizes" or not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(
                    f"supernet.sizes may not be called {name!r}: use letters, digits, "
                    "_ and -, and not the word sizes."
                )
            if name.endswith(REPAIRED):
                raise UserError(
                    f"supernet.sizes may not be called {name!r}: what repair makes of "
                    f"a size has a name that ends in {REPAIRED}."
                )
            if name in (FULL, CURRENT) or name.rstrip("0123456789") in SUBNETS:
                raise UserError(
                    f"supernet.sizes may not be called {name!r}, a word that the log "
                    "uses: choose another name."
                )
            if isinstance(wanted, str):
                if parse_number(wanted) is not None and wanted[-1] not in SCALES:
                    raise UserError(
                        f"supernet.sizes.{name} must be a number, not the text "
                        f"{wanted!r}: write powers of ten as 1.0e-3."
                    )
                budget_of(name, wanted)

    def _check_sparsity(self) -> None:
        masked = {
            name: wanted["sparsity"]
            for name, wanted in self.sizes.items()
            if isinstance(wanted, Mapping) and "sparsity" in wanted
        }
        if self.sparsity is None:
            if masked:
                raise UserError(
                    f"supernet.sizes: {next(iter(masked))} has a sparsity, but nothing "
                    "trains one: add the section supernet.sparsity."
                )
            return
        for name, wanted in self.sizes.items():
            if self.method == "none" and isinstance(wanted, str | Mapping):
                budget = budget_of(name, wanted)
                if budget and budget.kind in (NONZERO, BYTES):
                    refuse_masked(name, budget)
        for name, share in masked.items():
            if isinstance(share, int | float) and share > self.sparsity.final:
                raise UserError(
                    f"supernet.sizes: {name} has a sparsity of {share}, but training "
                    f"goes up to supernet.sparsity.final: {self.sparsity.final}."
                )
        if self.sparsity.own != "none" and not any(masked.values()):
            raise UserError(
                f"supernet.sparsity.own: {self.sparsity.own} is for sizes with a "
                "sparsity, and supernet.sizes has none: name one, such as "
                "{s90: {sparsity: 0.9}}."
            )
        for name in ("sandwich", "ramp_sandwich"):
            subnets = getattr(self.sparsity, name)
            if set(subnets) - {*SUBNETS, SIZE, *self.sizes}:
                raise UserError(
                    f"supernet.sparsity.{name} must be {OF_SANDWICH}, not "
                    f"{list(subnets)}."
                )
            if SIZE in subnets and not self.sizes:
                raise UserError(
                    f"supernet.sparsity.{name} has size, but supernet.sizes is empty: "
                    "name at least one, such as {s90: {sparsity: 0.9}}."
                )
        if self.sparsity.snapshots and (
            self.method != "none" or not self.sizes or len(masked) < len(self.sizes)
        ):
            raise UserError(
                "supernet.sparsity.snapshots needs sizes that have a sparsity and keep "
                "every unit, such as {s50: {sparsity: 0.5}, s90: {sparsity: 0.9}}."
            )
        by_dense = self.distillation != "none" and self.teacher is None
        ramp = self.sparsity.ramp_sandwich or self.sparsity.sandwich
        if by_dense and (self.sparsity.sandwich[0], ramp[0]) != (DENSE, DENSE):
            raise UserError(
                "supernet.distillation needs the dense net, the teacher, as the first "
                "of supernet.sparsity.sandwich, and of ramp_sandwich if there is one."
            )
        if self.heads == PER_SIZE:
            raise UserError(
                "supernet.heads: per_size cannot be combined with supernet.sparsity, "
                "whose subnets have no names: use shared."
            )
