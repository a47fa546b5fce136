"""Which budgets a net can meet: asked of a trained one, and before it is trained."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from espnet_omnisparse.cost.budget import Budget
from espnet_omnisparse.cost.metrics import ZEROS
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.search.spec_costs import SpecCosts
from espnet_omnisparse.supernet.sparsity import SparsityConfig

#: Metrics that need a table of the units' costs.
TABLED = ("macs_10s", "latency_ms")
#: Hardly anything is kept: of each matrix what masks always keep.
_ALL = 1.0 - 1e-9


def trained_sparsities(model: Any, exp: Any) -> SparsityConfig:
    """The section of a net's options by which its weights are masked in training.

    Args:
        model: The net.
        exp: Its experiment folder, for messages.

    Raises:
        UserError: If it has none, or keeps a net for each size.
    """
    space = getattr(model.encoder, "space", None)
    plan = model.supernet.config.sparsity if hasattr(model, "supernet") else None
    if plan is None or space is None or space.pattern is None:
        raise UserError(
            f"{exp} was not trained with masks on its weights, so there is nothing to "
            "search: train it with encoder: omni_sparse_conformer and a section "
            "model_conf.supernet.sparsity."
        )
    if plan.snapshots:
        raise UserError(
            f"{exp} keeps a net of its own for each size, which shares no weights with "
            "the others: there is nothing to search."
        )
    return plan


def check_objective(objective: str, masks_decoder: bool) -> None:
    """Refuses an objective that does not depend on all weights that take masks.

    Args:
        objective: `loss` or `wer`.
        masks_decoder: Whether those of the attention decoder do.

    Raises:
        UserError: If it does not.
    """
    if objective == "wer" and masks_decoder:
        raise UserError(
            "--objective wer is by greedy CTC search, in which the attention decoder, "
            "whose weights take masks, has no part: search with --objective loss."
        )


def check_budgets(
    costs: SpecCosts, budgets: Iterable[Budget], sparsest: Sequence[Sequence[float]]
) -> None:
    """Checks that budgets can be met.

    Args:
        costs: Of the net, the set of all its branches first.
        budgets: Limits on them.
        sparsest: Per set of branches the sparsities of what is cheapest of it; empty:
            these are not known yet.

    Raises:
        UserError: For the first budget that cannot, naming the nearest that can.
    """
    for budget in budgets:
        found = (costs.of(budget.kind, *one) for one in enumerate(sparsest))
        budget.check(min(found, default=0.0), costs.of(budget.kind, 0, ()))


@torch.no_grad()
def check_untrained(model: Any, exp: Any, budgets: Sequence[Budget]) -> None:
    """Checks before a training whether a search will meet budgets afterwards.

    Which branches its sizes will keep is not known yet: where there are such sizes, a
    budget that is too low is not told.

    Args:
        model: The net, freshly made; vectors in it that are zero, as biases are until
            they are trained, become one.
        exp: Where it will be trained, for messages.
        budgets: Limits on costs.

    Raises:
        UserError: If one cannot be met, or the net cannot be searched at all.
    """
    plan = trained_sparsities(model, exp)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter[parameter == 0.0] = 1.0
    space = model.encoder.space
    chosen = any(not size.keeps_all_units for size in model.supernet.sizes.values())
    sparsest = [] if chosen else [(plan.final,) * len(space.weights)]
    # a time that is not compared need not be measured
    budgets = [one for one in budgets if one.kind != "latency_ms" or not chosen]
    kinds = {budget.kind for budget in budgets}
    tables = {kind: cost_table(model, kind) for kind in TABLED if kind in kinds}
    check_budgets(SpecCosts(model, [(True,) * len(space)], tables), budgets, sparsest)


def check_shares(model: Any, where: str) -> None:
    """Checks that sizes can have as many zeros as they ask for.

    Args:
        model: The net.
        where: What a message calls the place that they come from.

    Raises:
        UserError: For the first that cannot, naming the nearest share that can.
    """
    shares = [one.sparsity for one in model.supernet.sizes.values() if one.sparsity]
    if not shares:
        return
    space = model.encoder.space
    costs = SpecCosts(model, [(True,) * len(space)])
    least = costs.of(ZEROS, 0, (_ALL,) * len(space.weights))
    for share in shares:
        Budget(ZEROS, round(100.0 * share, 6)).check(least, 1.0, where)
