"""Small parameters that each sparsity has for itself: norms and biases.

As slimmable nets have norms for each width (arXiv 1812.08928), and since retraining
hardly more than these restores pruned nets (PERP, arXiv 2312.15230).
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from espnet_omnisparse.core.weight_masks import nested

_BEGUN = "begun"


class OwnParameters(torch.nn.Module):
    """Copies of an encoder's vectors, for each of some sparsities.

    Args:
        vectors: The dense net's: where it is (a block's number, or the front end), a
            point, and its name there -> vector.
        sparsities: Those that have copies. The dense net has the encoder's.

    Attributes:
        is_begun: Whether the copies are in use; until then all nets have the dense
            net's.
    """

    def __init__(
        self, vectors: Mapping[str, torch.Tensor], sparsities: Iterable[float]
    ):
        super().__init__()
        for share in sorted(set(sparsities)):
            copies = torch.nn.Module()
            self.add_module(_key(share), copies)
            for name, vector in vectors.items():
                module, leaf = nested(copies, name)
                copied = torch.nn.Parameter(vector.detach().clone())
                # ESPnet's exclude_weight_decay knows a norm's by its module's type
                copied._no_weight_decay = True
                module.register_parameter(leaf, copied)
        self.is_begun = False
        self.register_buffer(_BEGUN, torch.zeros((), dtype=torch.bool))
        self.register_load_state_dict_post_hook(lambda *_: self._look())

    @torch.no_grad()
    def begin(self, vectors: Mapping[str, torch.Tensor]) -> None:
        """Takes the dense net's present values, to be trained apart from now on."""
        for name, vector in vectors.items():
            for copies in self.children():
                copies.get_parameter(name).copy_(vector)
        self.is_begun = True
        self.begun.fill_(True)

    @torch.no_grad()
    def follow(self, highest: float) -> None:
        """Lets copies that no subnet has yet be those of the highest that one has.

        Or they would be as old as `begin` when a ramp of sparsities comes to them.

        Args:
            highest: The highest sparsity of any weight of a subnet so far.
        """
        used = nearest((highest,), self._modules) if self.is_begun else None
        if used is None:
            return
        for key, copies in self._modules.items():
            if _sparsity(key) > _sparsity(used):
                copies.load_state_dict(self._modules[used].state_dict())

    def of(self, sparsity: Sequence[float]) -> dict[str, dict[str, torch.Tensor]]:
        """What a subnet has instead of the dense net's vectors.

        Args:
            sparsity: A sparsity per weight; see `nearest`.

        Returns:
            A block's number, or the front end -> name there -> tensor; empty for the
            dense net.
        """
        key = nearest(sparsity, self._modules) if self.is_begun else None
        found: dict[str, dict[str, torch.Tensor]] = {}
        if key is not None:
            for name, tensor in self._modules[key].named_parameters():
                where, rest = name.split(".", 1)
                found.setdefault(where, {})[rest] = tensor
        return found

    def _look(self) -> None:
        self.is_begun = bool(self.begun)


def nearest(sparsity: Sequence[float], keys: Iterable[str]) -> str | None:
    """The copies that a subnet has: of the sparsity nearest to its own.

    Args:
        sparsity: A sparsity per weight. Its own is the mean over those masked.
        keys: Names of the copies.

    Returns:
        `None` where nothing is masked.

    >>> nearest((0.0, 0.9, 0.7), ["0p5", "0p75"])
    '0p75'
    """
    masked = [share for share in sparsity if share > 0.0]
    if not masked:
        return None
    own = sum(masked) / len(masked)
    return min(keys, key=lambda key: (abs(_sparsity(key) - own), _sparsity(key)))


def own_tensors(
    state: Mapping[str, torch.Tensor], sparsity: Sequence[float]
) -> dict[str, torch.Tensor]:
    """What a subnet has instead of the dense net's vectors, by their names.

    Args:
        state: State dict of an `OwnParameters`; empty: there is none.
        sparsity: A sparsity per weight.
    """
    if not any(sparsity) or not state.get(_BEGUN, False):
        return {}
    names = [name.partition(".") for name in state if name != _BEGUN]
    chosen = nearest(sparsity, dict.fromkeys(key for key, _, _ in names))
    return {rest: state[f"{key}.{rest}"] for key, _, rest in names if key == chosen}


def _key(share: float) -> str:
    return repr(float(share)).replace(".", "p")  # a module's name has no point


def _sparsity(key: str) -> float:
    return float(key.replace("p", "."))
