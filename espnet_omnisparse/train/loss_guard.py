"""A subnet whose loss is no number spoils no update, and does not go unnoticed."""

import logging

import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.supernet.supernet import Draw

# updates in a row
MAX_NON_FINITE = 20


class LossGuard:
    """Leaves losses out that are not finite, and tells of which subnets they are."""

    def __init__(self):
        self._in_a_row: dict[str, int] = {}

    def admits(self, draw: Draw, size: str, loss: torch.Tensor, update: int) -> bool:
        """Whether a loss is a number; logs those that are not, with their subnet.

        Args:
            draw: The subnet.
            size: Its name, or that of an exit of it.
            loss: Its loss.
            update: Number of the update, for the log.

        Raises:
            UserError: If that size has had none for many updates.
        """
        count = 0 if loss.isfinite() else self._in_a_row.get(size, 0) + 1
        self._in_a_row[size] = count
        if not count:
            return True
        kept = sum(gate is not None for gate in draw.gates)
        shares = ", ".join(f"{share:.2f}" for share in draw.sparsity) or "none"
        found = (
            f"the loss of subnet {size} is {float(loss)} (units kept: {kept} of "
            f"{len(draw.gates)}, sparsities: {shares})"
        )
        if count > MAX_NON_FINITE:
            raise UserError(
                f"For {count} updates in a row {found}: lower the learning rate, "
                "lengthen the ramp or the warm start, or set ctc_conf.ignore_nan_grad."
            )
        logging.warning(f"Update {update}: {found}; left out.")
        return False
