"""A backward pass per subnet: no two subnets' graphs are alive together.

ESPnet's trainer takes one loss and calls one backward, for which the graphs of all
subnets of an update would have to wait: of a transducer, whose joint network's output
has a value per frame, label and token, that is the memory of several models. So each
subnet's gradients are computed as soon as its loss is known, and what the trainer gets
is a number that has them already. Hooks on parameters, such as those of distributed
training, see one backward.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from espnet_omnisparse.supernet.sampling import SampledSubnet


class GradientAccumulator:
    """Sums losses, and their gradients one after the other.

    Args:
        parameters: With respect to which gradients are taken.
        keep_graphs: Sum the losses alone and leave all gradients to the trainer.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> gradients = GradientAccumulator([weight])
    >>> for factor in (1.0, 10.0):
    ...     gradients.add((factor * weight).sum())
    >>> total = gradients.total()
    >>> (2 * total).backward()
    >>> total.item(), weight.grad.tolist()
    (22.0, [22.0, 22.0])
    """

    def __init__(self, parameters: Iterable[torch.Tensor], keep_graphs: bool = False):
        self._keep_graphs = keep_graphs
        # with respect to what -> whose gradient that is
        self._targets = {p: p for p in parameters if p.requires_grad}
        self._detached: dict[torch.Tensor, torch.Tensor] = {}
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}
        self._value: torch.Tensor | float = 0.0

    def detach_shared(self, shared: torch.Tensor) -> torch.Tensor:
        """What to make losses of instead of something that they share.

        Its graph, unlike a loss's, is kept until the trainer's backward.
        """
        if self._keep_graphs or not shared.requires_grad:
            return shared
        if shared not in self._detached:
            self._detached[shared] = shared.detach().requires_grad_()
            self._targets[self._detached[shared]] = shared
        return self._detached[shared]

    def add(self, loss: torch.Tensor) -> None:
        """Adds a loss, a scalar, and frees its graph."""
        if self._keep_graphs or not loss.requires_grad:
            self._value = self._value + loss
            return
        self._value = self._value + loss.detach()
        inputs, targets = self._targets.keys(), self._targets.values()
        found = torch.autograd.grad(loss, list(inputs), allow_unused=True)
        for target, gradient in zip(targets, found, strict=True):
            if gradient is None:
                continue
            if target in self._gradients:
                # never in place: autograd may give two parameters the same tensor
                gradient = self._gradients[target] + gradient
            self._gradients[target] = gradient

    @property
    def has_gradients(self) -> bool:
        """Whether `total` leads anywhere."""
        return bool(self._gradients) or getattr(self._value, "requires_grad", False)

    def total(self) -> torch.Tensor | float:
        """The sum of the losses, whose backward hands out the gradients."""
        if not self._gradients:
            return self._value
        return _Known.apply(
            self._value, list(self._gradients.values()), *self._gradients
        )


class _Known(torch.autograd.Function):
    """A value whose gradients with respect to some tensors are known."""

    @staticmethod
    def forward(
        ctx, value: torch.Tensor, gradients: list[torch.Tensor], *tensors: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *(gradient * factor for gradient in ctx.gradients)


def in_float16(computed: torch.Tensor) -> bool:
    """Whether gradients need the trainer's scale not to vanish."""
    device = computed.device.type
    half = torch.get_autocast_dtype(device) == torch.float16
    return torch.is_autocast_enabled(device) and half


def with_shared_gates(
    subnet: SampledSubnet, gradients: GradientAccumulator
) -> SampledSubnet:
    """The subnet; its gates, which may be made of a selection's scores, are shared.

    Args:
        subnet: A subnet of an update.
        gradients: Of the update.
    """
    gates = (
        gradients.detach_shared(gate) if isinstance(gate, torch.Tensor) else gate
        for gate in subnet.gates
    )
    return replace(subnet, gates=tuple(gates))
