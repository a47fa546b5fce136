"""Non-finite losses of a subnet are left out of the update, and told."""

import logging

import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.supernet.sampling import SampledSubnet

# updates in a row
MAX_NON_FINITE = 20


class LossGuard:
    """Tells finite losses from others, and logs of which subnets the others are."""

    def __init__(self):
        self._in_a_row: dict[str, int] = {}

    def admits(
        self, subnet: SampledSubnet, size: str, loss: torch.Tensor, update: int
    ) -> bool:
        """Whether a loss is finite; a non-finite one is logged with its subnet.

        Args:
            subnet: The subnet.
            size: Its name, or that of an exit of it.
            loss: Its loss.
            update: Number of the update, for the log.

        Raises:
            UserError: If that size has had no finite loss for many updates.
        """
        count = 0 if loss.isfinite() else self._in_a_row.get(size, 0) + 1
        self._in_a_row[size] = count
        if not count:
            return True
        kept = sum(gate is not None for gate in subnet.gates)
        shares = ", ".join(f"{share:.2f}" for share in subnet.sparsity) or "none"
        found = (
            f"the loss of subnet {size} is {float(loss)} (units kept: {kept} of "
            f"{len(subnet.gates)}, sparsities: {shares})"
        )
        if count > MAX_NON_FINITE:
            raise UserError(
                f"For {count} updates in a row {found}: lower the learning rate, "
                "lengthen the ramp or the warm start, or set ctc_conf.ignore_nan_grad."
            )
        logging.warning(f"Update {update}: {found}; left out.")
        return False
