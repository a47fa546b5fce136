"""The utterances that a subnet is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """Features and labels of the utterances that a subnet sees.

    Attributes:
        feats: `[batch, frames, features]`.
        feats_lengths: `[batch]`.
        text: Labels `[batch, labels]`, padded with the ignore id.
        text_lengths: `[batch]`.
    """

    feats: torch.Tensor
    feats_lengths: torch.Tensor
    text: torch.Tensor
    text_lengths: torch.Tensor

    def __len__(self) -> int:
        return self.feats.size(0)

    def split(self, parts: Sequence[torch.Tensor]) -> list["Batch"]:
        """The utterances of each part, without padding that none of them needs.

        The lengths are read from their device once for all parts.

        Args:
            parts: Numbers of utterances `[n]`, on the CPU.
        """
        lengths = torch.stack([self.feats_lengths, self.text_lengths]).cpu()
        batches = []
        for part in parts:
            frames, labels = lengths[:, part].amax(1).tolist()
            index = part.to(self.feats.device)
            batches.append(
                Batch(
                    self.feats[index, :frames],
                    self.feats_lengths[index],
                    self.text[index, :labels],
                    self.text_lengths[index],
                )
            )
        return batches
