"""A learning rate in fractions of the run, so that it falls to zero at any length.

Sparse nets want schedules that end at zero (Kuznedelev et al., TMLR 2024), and ESPnet's
own schedulers take updates.
"""

from typing import Any

from espnet2.schedulers.piecewise_linear_warmup_lr import PiecewiseLinearWarmupLR

from espnet_omnisparse.core.schedule import resolve_updates
from espnet_omnisparse.errors import UserError

_STEPS = "scheduler_conf.warmup_steps_list"


class PiecewiseLinearLR(PiecewiseLinearWarmupLR):
    """ESPnet's `piecewiselinearwarmuplr`, which also takes fractions of the run.

    A float up to 1.0 in `warmup_steps_list` is one. A run that goes on with another
    length has the fractions of its new one.
    """

    def set_run_length(self, total: int | None) -> None:
        """To be called before the first update, and before a state is loaded.

        Args:
            total: Updates of the run; `None`: unknown.

        Raises:
            UserError: If a fraction meets a run of unknown length, or the steps fall.
        """
        if not self._has_fractions:
            return
        given = self.warmup_steps_list
        steps = [
            resolve_updates(_STEPS, one, total) if _is_fraction(one) else one
            for one in given
        ]
        if steps != sorted(steps):
            raise UserError(
                f"{_STEPS}: {given} is {steps} in a run of {total} updates, but must "
                "rise: give fractions alone, or fewer updates."
            )
        self.warmup_steps_list = _Resolved(steps)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """In plain types."""
        return {**super().state_dict(), "warmup_steps_list": [*self.warmup_steps_list]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state; steps that were fractions stay those of this run."""
        steps = self.warmup_steps_list
        super().load_state_dict(state_dict)
        if isinstance(steps, _Resolved):
            self.warmup_steps_list = steps
            self._apply()

    @property
    def _has_fractions(self) -> bool:
        return any(_is_fraction(one) for one in self.warmup_steps_list)

    def _apply(self) -> None:
        """Gives the optimiser the rate of the present step."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class _Resolved(list):
    """Steps that were fractions."""


def _is_fraction(step: int | float) -> bool:
    return isinstance(step, float) and 0.0 < step <= 1.0
