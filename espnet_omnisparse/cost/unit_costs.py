"""What each unit of a supernet costs, found on physically smaller models."""

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from espnet_omnisparse.core.components import joins_parts
from espnet_omnisparse.core.decoder import DECODER, layer_of
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.count import (
    VALUE,
    count_macs,
    count_packed_bytes,
    measure_rtf,
    paired_ratio,
)
from espnet_omnisparse.cost.size import CostTable
from espnet_omnisparse.errors import UserError


def cost_table(model: Any, kind: str) -> CostTable:
    """What each unit of a model's encoder costs, found on physically smaller models.

    A model without any unit gives the rest. For each branch, a model that has one part
    of it in every block, and one that has all parts, give the cost of a part and of
    what the branch has once; one that has two, where a weight joins each part with each
    other, of what a pair has. Where blocks are unlike, each kind of block has such
    models of its own. Parameters and MACs of any subnet follow exactly, latencies as
    well as time is additive.

    Args:
        model: Has ESPnet's `encode`, `ctc` and `encoder`, a supernet's.
        kind: `params`, `nonzero` (nothing masked: the same), `bytes` (stored densely),
            `macs_10s` or `latency_ms`.
    """
    space: SearchSpace = model.encoder.space
    kinds = _kinds_of_blocks(model.encoder)
    was_training = model.training
    # freshly drawn weights must not change what is drawn after them
    with torch.random.fork_rng(devices=[]):
        costs = _measure(dict(_variants(model, space, kinds)), kind)
    model.train(was_training)  # the variants share its modules
    full, decoder = costs["full"], _of_decoder(model, kind)
    if space.granularity == "block":
        once = [costs[_variant("one", number)] for number in kinds]
        # the rest is in each of them, and in the full net once
        rest = (sum(once) - full) / max(1, space.num_blocks - 1)
        each = [cost - rest for cost in once]
        shared = [0.0] * len(space)
        return CostTable(kind, space, rest, each, shared, decoder=decoder)
    rest = costs["rest"]
    found = {
        (number, branch): _OfBranch.solved(
            {
                count: (costs[_variant(f"{branch} {count}", number)] - rest)
                / kinds.count(number)
                for count in counts
            }
        )
        for number in dict.fromkeys(kinds)
        for branch, counts in _part_counts(model.encoder, number).items()
    }
    # times do not add up exactly: the full net's is the one to keep
    total = sum(
        found[number, branch].of(parts)
        for number in kinds
        for branch, parts in space.parts.items()
    )
    scale = (full - rest) / total
    units = (unit.split(".")[:2] for unit in space.units)
    branches = [found[number, branch] for number in kinds for branch in space.branches]
    return CostTable(
        kind,
        space,
        rest,
        [scale * found[kinds[int(block)], branch].part for block, branch in units],
        [scale * one.once for one in branches],
        [scale * one.pair for one in branches],
        decoder,
    )


def _of_decoder(model: Any, kind: str) -> list[int]:
    """What an attention decoder costs outside its layers, then each; see `CostTable`.

    MACs and time end at CTC: in them it costs nothing.
    """
    each = {"params": 1, "nonzero": 1, "bytes": VALUE}.get(kind, 0)
    costs: dict[int | None, int] = {None: 0}
    for name, parameter in model.named_parameters():
        if name.startswith(DECODER):
            layer = layer_of(name)
            costs[layer] = costs.get(layer, 0) + each * parameter.numel()
    return list(costs.values())


class _OfBranch(NamedTuple):
    """What a branch costs: once, for each part, and for any two of its parts."""

    once: float
    part: float
    pair: float = 0.0

    @classmethod
    def solved(cls, costs: Mapping[int, float]) -> "_OfBranch":
        """From its costs with one part, with all, and perhaps with two.

        Args:
            costs: Number of parts -> cost.
        """
        parts, pair = max(costs), 0.0
        # never negative, however noisy a time: costs only grow with what is kept
        one = max(costs[1], 0.0)
        if parts == 1:
            return cls(0.0, one)
        if 2 in costs and parts > 2:
            bend = costs[parts] - one - (parts - 1) * (costs[2] - one)
            pair = max(bend / ((parts - 1) * (parts - 2) / 2), 0.0)
        each = (costs[parts] - one) / (parts - 1) - pair * parts / 2
        part = min(max(each, 0.0), one)
        return cls(one - part, part, pair)

    def of(self, parts: int) -> float:
        """The cost with so many parts."""
        return self.once + parts * self.part + parts * (parts - 1) / 2 * self.pair


def _part_counts(encoder: Any, number: int) -> dict[str, set[int]]:
    """Branch -> with how many parts of it a block is measured."""
    block = encoder.layers[number]
    counts = {branch: {1, parts} for branch, parts in encoder.space.parts.items()}
    for branch, some in counts.items():
        if max(some) > 2 and joins_parts(branch, block.module(branch)):
            some.add(2)
    return counts


def _kinds_of_blocks(encoder: Any) -> list[int]:
    """Of each block, the number of the first block that is like it."""
    shapes = [
        [(name, p.shape) for name, p in block.named_parameters()]
        for block in encoder.layers
    ]
    return [shapes.index(one) for one in shapes]


def _variant(what: str, number: int) -> str:
    """The name of the model that has something of the blocks like block `number`."""
    return f"{what} of {number}" if number else what


def _variants(
    model: Any, space: SearchSpace, kinds: Sequence[int]
) -> Iterator[tuple[str, Any]]:
    """The models to measure."""
    blocks = space.num_blocks
    yield "full", _with_encoder(model, [space.branches] * blocks)
    if space.granularity == "block":
        for number in dict.fromkeys(kinds):
            yield _variant("one", number), _with_encoder(
                model, [space.branches], [number]
            )
        return
    yield "rest", _with_encoder(model, [[]] * blocks)
    for number in dict.fromkeys(kinds):
        for branch, counts in _part_counts(model.encoder, number).items():
            for count in counts:
                # without components a branch has one part, which is all of it
                row = {branch: count} if max(counts) > 1 else [branch]
                kept = [row if like == number else [] for like in kinds]
                name = _variant(f"{branch} {count}", number)
                yield name, _with_encoder(model, kept)


def _with_encoder(model: Any, kept: Any, blocks: Sequence[int] | None = None) -> Any:
    """The model as it would be deployed, with another encoder; shares the rest."""
    small = copy.copy(model)
    small._modules = dict(model._modules)
    for training_only in ("supernet", "size_ctc"):
        small._modules.pop(training_only, None)
    small.encoder = model.encoder.resized(kept, blocks)
    return small.eval()


def _on_cpu(model: Any) -> Any:
    """The model, or a copy of it, where latency is measured, in the usual precision."""
    floating = filter(torch.is_floating_point, (*model.parameters(), *model.buffers()))
    if all(t.device.type == "cpu" and t.dtype == torch.float32 for t in floating):
        return model
    return copy.deepcopy(model).to("cpu", torch.float32)


def _measure(models: Mapping[str, Any], kind: str) -> dict[str, float]:
    if kind == "latency_ms":
        if getattr(next(iter(models.values())), "frontend", None) is None:
            raise UserError(
                "Latency is measured from the waveform on: a size given by latency_ms "
                "needs --feats_type raw."
            )
        seconds = 10
        models = {name: _on_cpu(model) for name, model in models.items()}
        rtf = measure_rtf(models, seconds)
        # pairs of the same round: a machine's speed drifts
        full = 1e3 * seconds * statistics.median(rtf["full"])
        return {name: full * paired_ratio(rtf, name, "full") for name in rtf}
    count = {
        "params": _count_parameters,
        "nonzero": _count_parameters,  # a weight that happens to be zero is stored
        "bytes": count_packed_bytes,
        "macs_10s": lambda model: count_macs(model, model.encoder.input_size, 10),
    }[kind]
    return {name: count(model) for name, model in models.items()}


def _count_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
