"""A net that does not learn and teaches every subnet: the model one began from."""

import copy
from dataclasses import replace
from typing import Any

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import load_tensors
from espnet_omnisparse.losses.distillation import Teacher
from espnet_omnisparse.train.batch import Batch


class FrozenTeacher:
    """A copy of a model with the tensors of a checkpoint.

    No module: it is in no checkpoint, no optimiser sees it, and it stays in eval. It
    hears what its students hear, augmentation included.

    Args:
        model: The model, before its supernet is made.
        path: The checkpoint. It is read when the first update needs it: a size that is
            extracted, or a training that has ended, does without.

    Raises:
        UserError: When it is read, if it does not fit.
    """

    def __init__(self, model: Any, path: str):
        self._net = copy.deepcopy(model).requires_grad_(False).eval()
        self._path = path
        self._loaded = False

    @classmethod
    def of(cls, model: Any, path: str | None) -> "FrozenTeacher | None":
        """The teacher that an option asks for; `None`: none.

        Args:
            model: As in the constructor.
            path: The same, or `None`.
        """
        return None if path is None else cls(model, path)

    @torch.no_grad()
    def __call__(
        self, part: Batch, chunk: Chunk | None, blocks: bool = False
    ) -> Teacher:
        """What it says of some utterances.

        Args:
            part: The utterances.
            chunk: What each frame sees; `None`: the whole recording.
            blocks: Also what comes after each block.
        """
        if not self._loaded:
            self._load()
        net = self._net.to(part.feats.device)
        hidden = net.encoder.front_end(part.feats, part.feats_lengths)
        depth = len(net.encoder.layers)
        after = range(1 if blocks else depth, depth + 1)
        outputs = net.encoder.intermediate_outputs(hidden.with_chunk_mask(chunk), after)
        teacher = net._make_teacher(outputs[-1], hidden.lengths, part)
        return replace(teacher, blocks=tuple(outputs)) if blocks else teacher

    def _load(self) -> None:
        state = load_tensors(self._path)
        try:
            self._net.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"supernet.teacher: {self._path} does not fit this configuration: give "
                "a checkpoint of the full net, such as the one of --init_param."
            ) from error
        self._loaded = True
