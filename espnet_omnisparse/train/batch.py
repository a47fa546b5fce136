"""The utterances that a subnet is trained on."""

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

    def rows(self, index: torch.Tensor) -> "Batch":
        """The utterances at `index`, without padding that none of them needs."""
        feats_lengths, text_lengths = (
            self.feats_lengths[index],
            self.text_lengths[index],
        )
        return Batch(
            self.feats[index, : int(feats_lengths.max())],
            feats_lengths,
            self.text[index, : int(text_lengths.max())],
            text_lengths,
        )
