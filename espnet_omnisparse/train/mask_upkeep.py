"""What happens to the masks on weights between two passes of a training."""

from espnet_omnisparse.nn.encoder import PrunableEncoder
from espnet_omnisparse.supernet.supernet import Supernet


class MaskUpkeep:
    """Refreshes masks as often as wanted, and settles them when it is time.

    Args:
        supernet: Says when.
        encoder: Has the masks.
    """

    def __init__(self, supernet: Supernet, encoder: PrunableEncoder):
        self._supernet, self._encoder = supernet, encoder
        self.forget()

    def forget(self) -> None:
        """Lets the next pass of a training refresh the masks."""
        self._refreshed_at: int | None = None

    def before_pass(self, training: bool) -> None:
        """To be called before subnets are run.

        Args:
            training: Whether the pass trains them, and does not validate.
        """
        plan, now = self._supernet.config.sparsity, self._supernet.update
        if plan is None:
            return
        last = self._refreshed_at
        due = last is None or now - last >= plan.refresh or self._settles
        if training and not due:
            return
        # after validating, training begins anew: a resumed run has no older masks
        self._refreshed_at = now if training else None
        self._encoder.refresh_masks()
        if self._settles:
            # whatever pass comes first, its weights are those of this update
            self._supernet.order.settle(self._encoder.mask_ranks())

    @property
    def _settles(self) -> bool:
        """Whether it is time to, and not yet done."""
        return self._supernet.masks_settled and not self._supernet.order.settled
