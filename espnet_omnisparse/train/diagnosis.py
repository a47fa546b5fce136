"""How far the gradients of sparse sizes agree with the dense net's, for the log.

Supernets of Transformers suffer from gradients in conflict (NASViT, ICLR 2022), and
sparse nets from noisy ones on masked weights (arXiv 2402.04744). Both are measured
every so many updates on a few utterances of the update's batch, the same for all nets,
without dropout in the blocks. Training does not notice: neither gradients nor running
statistics nor random numbers change.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from espnet_omnisparse.core.decoder import DECODER, in_layers, keeps
from espnet_omnisparse.nn.block import Frames
from espnet_omnisparse.nn.encoder import PrunableEncoder
from espnet_omnisparse.supernet.sampling import SampledSubnet
from espnet_omnisparse.supernet.supernet import Supernet
from espnet_omnisparse.train.batch import Batch

UTTERANCES = 8
#: what is measured of each size
COSINE, KEPT, DENSE_KEPT, DENSE_MASKED = (
    *("cosine", "norm_kept", "dense_norm_kept", "dense_norm_masked"),
)
Loss = Callable[..., torch.Tensor]


def compare(
    dense: Mapping[str, torch.Tensor],
    sparse: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
) -> dict[str, float]:
    """Compares the gradients of two nets, each of all weights that take masks as one.

    Args:
        dense: Name -> gradient of the dense net.
        sparse: The same of the size.
        kept: Name -> boolean, which weights the size keeps.

    Returns:
        `cosine` of both on the kept weights; `norm_kept` of the size's there;
        `dense_norm_kept` and `dense_norm_masked` of the dense net's there and on the
        weights that the size masks.

    >>> dense, sparse = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([-2.0, 0])}
    >>> compare(dense, sparse, {"w": torch.tensor([True, False])})
    {'cosine': -1.0, 'norm_kept': 2.0, 'dense_norm_kept': 3.0, 'dense_norm_masked': 4.0}
    """

    def joined(gradients: Mapping[str, torch.Tensor], kept_ones: bool) -> torch.Tensor:
        parts = (one[kept[name] == kept_ones] for name, one in gradients.items())
        return torch.cat([*parts]).double()

    own, teacher = joined(sparse, True), joined(dense, True)
    norms = [one.norm() for one in (own, teacher, joined(dense, False))]
    product = norms[0] * norms[1]
    cosine = own @ teacher / product if product > 0 else product
    values = torch.stack([cosine, *norms]).tolist()
    return dict(zip((COSINE, KEPT, DENSE_KEPT, DENSE_MASKED), values, strict=True))


class GradientDiagnosis:
    """Means over an epoch of what `compare` finds.

    When it measures is a function of the update count, so that the lines of a resumed
    run are those of an uninterrupted one.

    Args:
        supernet: Says when, and which sizes there are.
        encoder: Its encoder.
        loss: Of hidden frames, utterances and a subnet.
    """

    def __init__(self, supernet: Supernet, encoder: PrunableEncoder, loss: Loss):
        self._supernet, self._encoder, self._loss = supernet, encoder, loss
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forgets what was measured."""
        self._measured: dict[str, list[dict[str, float]]] = {}
        self._last: int | None = None

    def means(self) -> dict[str, dict[str, float]]:
        """Size -> what `compare` calls its numbers -> the epoch's mean."""
        return {
            name: {key: sum(one[key] for one in found) / len(found) for key in found[0]}
            for name, found in self._measured.items()
        }

    def before_update(self, batch: Batch) -> None:
        """Measures, if it is time to.

        Args:
            batch: The (micro-)batch of the update; its first utterances are taken.
        """
        plan, now = self._supernet.config.sparsity, self._supernet.update
        if plan is None or not plan.diagnose or now % plan.diagnose:
            return
        dense, *sizes = self._supernet.validation_subnets()
        sizes = [size for size in sizes if any(size.sparsity)]
        # accumulated micro-batches have the same update count
        if not sizes or any(dense.sparsity) or self._last == now:
            return
        self._last = now
        (few,) = batch.split([torch.arange(min(len(batch), UTTERANCES))])
        for name, found in self._of(dense, sizes, few).items():
            if all(map(torch.isfinite, map(torch.tensor, found.values()))):
                self._measured.setdefault(name, []).append(found)

    def _of(
        self, dense: SampledSubnet, sizes: Sequence[SampledSubnet], batch: Batch
    ) -> dict[str, dict[str, float]]:
        # one for all nets, unless it takes masks too
        shared = None if self._encoder.space.front_end else self._hidden(dense, batch)
        reference = self._gradients(dense, shared, batch)
        return {
            size.size: compare(
                reference,
                self._gradients(size, shared, batch),
                self._kept(size),
            )
            for size in sizes
        }

    def _kept(self, size: SampledSubnet) -> dict[str, torch.Tensor]:
        """Which weights a size keeps: none of decoder layers that it has not."""
        layers = self._supernet.sizes[size.size].decoder
        return {
            name: kept
            & (not name.startswith(DECODER) or keeps(layers, in_layers(name)))
            for name, kept in self._encoder.kept_weights(size.sparsity).items()
        }

    def _hidden(self, subnet: SampledSubnet, batch: Batch) -> Frames:
        """A net's front end; it has gradients where its weights take masks."""
        trained = bool(self._encoder.space.front_end)
        device = batch.feats.device
        with (
            _same_random_numbers(device),
            torch.autocast(device.type, enabled=False),
            torch.set_grad_enabled(trained),
        ):
            return self._encoder.front_end(
                batch.feats.float(), batch.feats_lengths, subnet.sparsity
            )

    def _gradients(
        self, subnet: SampledSubnet, hidden: Frames | None, batch: Batch
    ) -> dict[str, torch.Tensor]:
        """Of the mean loss over the utterances, with respect to what takes masks."""
        device = batch.feats.device
        weights = {n: w for n, w in self._encoder.maskable().items() if w.requires_grad}
        hidden = (hidden or self._hidden(subnet, batch)).with_chunk_mask(subnet.chunk)
        with (
            _same_random_numbers(device),
            torch.autocast(device.type, enabled=False),
            self._encoder.as_subnet("none"),
        ):
            loss = self._loss(hidden, batch, subnet)
            found = torch.autograd.grad(loss, [*weights.values()], allow_unused=True)
        return {
            name: torch.zeros_like(weight) if gradient is None else gradient
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
        }


def _same_random_numbers(device: torch.device):
    """Inside, random numbers are drawn that outside are drawn again."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
