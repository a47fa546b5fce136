"""The phases of a run that begins, in updates."""

from espnet_omnisparse.core.schedule import Timeline, resolve_updates, stages_of
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.selection import Selection
from espnet_omnisparse.supernet.config import SupernetConfig


def phases_of(
    config: SupernetConfig, selection: Selection, joint: bool, total: int | None
) -> Timeline:
    """The phases of a run that begins.

    Args:
        config: The supernet's options.
        selection: Of its method.
        joint: Whether the full net has sizes trained beside it.
        total: Updates of the run; `None`: unknown.

    Raises:
        UserError: If a fraction meets a run of unknown length, step 1 is too short for
            the method, or masks settle before the ramp ends.
    """
    plan = config.sparsity
    warm = step1 = ramp = 0
    settle_at = None
    if selection.learns or joint or plan:
        warm = resolve_updates("supernet.warm_start", config.warm_start, total)
    if selection.learns:
        step1 = resolve_updates("supernet.step1", config.step1, total)
        selection.check_length(step1)
    if plan:
        ramp = resolve_updates("supernet.sparsity.ramp", plan.ramp, total)
    if plan and plan.snapshots:
        return _staged(config, warm, total)
    if plan and plan.settle:
        settle_at = _settle_at(plan.settle, total)
    timeline = Timeline(warm, step1, ramp, settle_at)
    if settle_at is not None and not timeline.ramped_at <= settle_at < total:
        raise UserError(
            f"supernet.sparsity.settle: {plan.settle} of a run of {total} updates "
            f"begins at update {settle_at}, but warm start, step 1 and ramp end at "
            f"{timeline.ramped_at}: shorten one of them or train longer."
        )
    return timeline


def _settle_at(length: int | float, total: int | None) -> int:
    """Where the last part of a run begins."""
    if total is None:
        raise UserError(
            f"supernet.sparsity.settle: {length} is the last part of a run whose "
            "length is unknown: set num_iters_per_epoch."
        )
    return total - resolve_updates("supernet.sparsity.settle", length, total)


def _staged(config: SupernetConfig, warm: int, total: int | None) -> Timeline:
    """The phases of a run that keeps a net at the end of each of its stages."""
    if total is None:
        raise UserError(
            "supernet.sparsity.snapshots divides a run whose length is unknown: set "
            "num_iters_per_epoch."
        )
    sizes = {name: one["sparsity"] for name, one in config.sizes.items()}
    stages = stages_of(sizes, warm, total, config.sparsity.snapshots)
    if not all(one.begin < one.still_at < one.end for one in stages):
        raise UserError(
            f"supernet.sparsity.snapshots: a run of {total} updates is too short for "
            f"{len(stages)} stages after a warm start of {warm}: train longer."
        )
    settle_at = stages[-1].still_at
    return Timeline(warm, 0, settle_at - warm, settle_at, stages)
