"""The front end's outputs for the utterances that some subnets see."""

from collections.abc import Sequence
from dataclasses import replace

from espnet_omnisparse.nn.block import Frames
from espnet_omnisparse.nn.encoder import PrunableEncoder
from espnet_omnisparse.train.batch import Batch
from espnet_omnisparse.train.gradients import GradientAccumulator


class FrontEnds:
    """One for all subnets that have the full net's front end, made when it is needed.

    Args:
        encoder: Whose front end it is.
        part: The utterances.
        gradients: Of what is shared the graph is kept in it.
    """

    def __init__(
        self, encoder: PrunableEncoder, part: Batch, gradients: GradientAccumulator
    ):
        self._encoder, self._part, self._gradients = encoder, part, gradients
        self._shared: Frames | None = None

    def of(self, sparsity: Sequence[float]) -> Frames:
        """What the blocks of a subnet take.

        Args:
            sparsity: Its sparsity per weight; empty: nothing is masked.
        """
        if self._encoder.has_own_front_end(sparsity):
            return self._made(sparsity)
        if self._shared is None:
            made = self._made()
            self._shared = replace(made, x=self._gradients.detach_shared(made.x))
        return self._shared

    def of_full(self) -> Frames:
        """What the full net's blocks take, of a pass that does not train it."""
        return self._shared or self._made()

    def _made(self, sparsity: Sequence[float] = ()) -> Frames:
        part = self._part
        return self._encoder.front_end(part.feats, part.feats_lengths, sparsity)
