"""Values made of tensors, kept until one of the tensors changes."""

from collections.abc import Callable, Iterable

import torch


class Kept[T]:
    """A value that is computed anew only when a tensor has changed.

    What a training asks for in every update, such as the masks of sizes that are
    settled, would else be read from a GPU each time, and each read waits for it.
    Collectives of `torch.distributed` write unseen: copy what they bring.

    >>> kept, weights = Kept(), torch.zeros(2)
    >>> kept.get([weights], lambda: float(weights.sum()))
    0.0
    >>> _ = weights.add_(1.0)
    >>> kept.get([weights], lambda: float(weights.sum()))
    2.0
    """

    def __init__(self):
        self._key: tuple | None = None
        self._value: T | None = None

    def get(self, tensors: Iterable[torch.Tensor], compute: Callable[[], T]) -> T:
        """The value.

        Args:
            tensors: What it is made of.
            compute: Makes it.
        """
        # in-place changes count up the version, others bring other memory
        key = tuple((id(t), t.data_ptr(), t._version) for t in tensors)
        if key != self._key:
            self._key, self._value = key, compute()
        return self._value

    def __deepcopy__(self, memo: dict) -> "Kept[T]":
        return Kept()

    def __reduce__(self):
        return Kept, ()
