"""What happens to masks, and to what sparse subnets own, between two passes."""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.weight_masks import flip_rate
from espnet_omnisparse.nn.encoder import PrunableEncoder
from espnet_omnisparse.supernet.supernet import Supernet


class MaskUpkeep:
    """Refreshes masks as often as wanted, settles them, and begins what sizes own.

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
        if self._supernet.config.sparsity is None:
            return
        self._keep_own_parameters()
        self._leave_stage()
        settles = self._settles
        # after validating, training begins anew: a resumed run has no older masks
        if not training or settles or self._is_due:
            self._refreshed_at = self._supernet.update if training else None
            ranks = self._encoder.mask_ranks()
            if settles:
                # whatever pass comes first, its weights are those of this update
                self._supernet.order.settle(ranks)
            elif training and self._leaves_out:
                self._supernet.order.leave_out(ranks, self._supernet.max_sparsity)

    def _keep_own_parameters(self) -> None:
        """Begins each size's with the dense net's, and goes on until it is trained."""
        own, highest = self._supernet.own, self._supernet.max_sparsity
        if own is None or highest == 0.0:
            return
        if not own.is_begun:
            own.begin(self._encoder.vectors())
        own.follow(highest)

    def _leave_stage(self) -> None:
        """Lets masks move again in the next stage of a gradual pruning."""
        order = self._supernet.order
        if order is not None and order.settled and not self._stand:
            order.forget()
            self.forget()

    @property
    def _is_due(self) -> bool:
        """Whether masks have not followed the weights for long enough."""
        last, refresh = self._refreshed_at, self._supernet.config.sparsity.refresh
        return last is None or self._supernet.update - last >= refresh

    def ranks(self) -> dict[str, torch.Tensor]:
        """The present order of the groups of each weight; empty: nothing is masked."""
        if self._supernet.config.sparsity is None:
            return {}
        return self._encoder.mask_ranks()

    def flip_rates(self, before: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Size -> how much of its mask has changed since an earlier order.

        Args:
            before: What `ranks` returned.
        """
        shapes = {name: w.shape for name, w in self._encoder.maskable().items()}
        pattern, now = self._encoder.space.pattern, self.ranks()
        return {
            name: flip_rate(before, now, shapes, size.sparsity, pattern)
            for name, size in self._supernet.sizes.items()
            if size.sparsity > 0.0
        }

    @property
    def _settles(self) -> bool:
        """Whether it is time to, and not yet done."""
        order = self._supernet.order
        wanted = order is not None and not order.settled
        return wanted and self._stand

    @property
    def _leaves_out(self) -> bool:
        """Whether what the ramp has dropped shall not come back."""
        supernet = self._supernet
        follows = supernet.max_sparsity > 0.0 and not supernet.config.sparsity.regrow
        return follows and not supernet.order.settled

    @property
    def _stand(self) -> bool:
        """Whether masks stand still at the present update."""
        return self._supernet.timeline.masks_stand(self._supernet.update)
