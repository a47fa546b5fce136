"""What the encoder gives of a subnet for some utterances."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from espnet_omnisparse.core.gate import layer_dropout_gates
from espnet_omnisparse.nn.block import Frames
from espnet_omnisparse.nn.encoder import PrunableEncoder
from espnet_omnisparse.supernet.sampling import SampledSubnet


@dataclass(frozen=True)
class Outputs:
    """Encoder outputs of one pass.

    Attributes:
        sizes: `[batch, time, size]` of the subnet, by its name, then of its exits.
        blocks: The same after each block; empty where nobody asked for them.
    """

    sizes: Mapping[str, torch.Tensor]
    blocks: tuple[torch.Tensor, ...] = ()

    def detach(self) -> "Outputs":
        """The same without gradients, which keeps no graph alive."""
        sizes = {size: encoded.detach() for size, encoded in self.sizes.items()}
        return Outputs(sizes, tuple(block.detach() for block in self.blocks))


def run_subnet(
    encoder: PrunableEncoder,
    subnet: SampledSubnet,
    hidden: Frames,
    dropout: str,
    blocks: bool = False,
) -> Outputs:
    """Runs a subnet on the front end's output.

    Args:
        encoder: The encoder.
        subnet: The subnet.
        hidden: The front end's output, as the subnet has it.
        dropout: Of any but the main one, as in `PrunableEncoder.as_subnet`.
        blocks: Also return what comes after each block.
    """
    gates = subnet.gates
    if subnet.layer_dropout is not None:
        groups = encoder.space.groups
        gates = layer_dropout_gates(
            subnet.layer_dropout, len(hidden.x), groups, hidden.x.device
        )
    hidden = hidden.with_chunk_mask(subnet.chunk)
    ends = {subnet.size: len(encoder.layers), **subnet.exits}
    after = {*range(1, len(encoder.layers) + 1)} if blocks else {*ends.values()}
    with nullcontext() if subnet.is_main else encoder.as_subnet(dropout):
        outputs = encoder.intermediate_outputs(hidden, after, gates, subnet.sparsity)
    by_end = dict(zip(sorted(after), outputs, strict=True))
    sizes = {size: by_end[end] for size, end in ends.items()}
    return Outputs(sizes, tuple(outputs) if blocks else ())
