"""How good subnets are on a development set, with their supernet's weights.

The full net's front end is computed once and kept; of subnets that share it an
evaluation runs the blocks and the output alone.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import editdistance
import torch
from espnet2.train.dataset import ESPnetDataset

from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.batch_norm import reestimate
from espnet_omnisparse.extract.calibration import (
    calibration_batches,
    chosen_batches,
    espnet3_dataset,
)
from espnet_omnisparse.nn.batch_norm import has_batch_norm
from espnet_omnisparse.nn.block import Frames
from espnet_omnisparse.streaming.search import greedy_search
from espnet_omnisparse.streaming.text import tokenizer_of
from espnet_omnisparse.supernet.sampling import SampledSubnet
from espnet_omnisparse.tasks import task_of
from espnet_omnisparse.train.batch import Batch

OBJECTIVES = ("loss", "wer")
_BATCH = 16


@dataclass(frozen=True)
class _Heard:
    """Some utterances.

    Attributes:
        frames: What the full net's blocks take.
        feats: `[batch, frames, features]`; `None` where all subnets take the same.
        lengths: Of the features `[batch]`.
    """

    frames: Frames
    feats: torch.Tensor | None
    lengths: torch.Tensor


class DevSet:
    """Front-end outputs and labels of a development set, and how to score subnets.

    Args:
        model: The supernet, which is moved to the device.
        config: Its training's configuration, which names the data.
        objective: `loss`: mean training loss of an utterance; `wer`: word error rate
            in percent of greedy search.
        utterances: How many of the validation set are used.
        calibration: Training utterances for each subnet's BatchNorm statistics.
        device: Where it runs.

    Raises:
        UserError: If the data is missing.
    """

    def __init__(
        self,
        model: Any,
        config: Mapping[str, Any],
        objective: str = "loss",
        utterances: int = 200,
        calibration: int = 64,
        device: str | torch.device = "cpu",
    ):
        self._model = model.to(device).eval()
        self._objective = objective
        self._device = device
        self._tokens = config["token_list"]
        self._tokenizer = tokenizer_of(config)
        model.encoder.refresh_masks()
        with torch.no_grad():
            self._batches = [
                self._prepared(batch) for batch in _valid_batches(config, utterances)
            ]
            self._calibration: list[_Heard] = []
            if has_batch_norm(model.encoder):
                for batch in calibration_batches(config, calibration):
                    batch = {name: one.to(device) for name, one in batch.items()}
                    feats = model.features(batch["speech"], batch["speech_lengths"])
                    self._calibration.append(self._heard(*feats))

    @torch.no_grad()
    def score(
        self,
        mask: Sequence[bool],
        sparsity: Sequence[float],
        objective: str | None = None,
        size: str = FULL,
    ) -> float:
        """The objective of one subnet; less is better.

        Args:
            mask: Its units.
            sparsity: Per weight of the space, or empty.
            objective: Another than that of this set.
            size: Whose decoder it has, by which the loss is another.
        """
        objective = objective or self._objective
        gates = mask_gates(mask)
        if self._calibration:
            reestimate(
                self._model,
                lambda frames: self._model.encoder.blocks(frames, gates, sparsity),
                [self._frames(one, sparsity) for one in self._calibration],
            )
        counted = [
            self._count(
                self._frames(heard, sparsity), batch, gates, sparsity, objective, size
            )
            for heard, batch in self._batches
        ]
        wrong, of = (sum(column) for column in zip(*counted, strict=True))
        return (100.0 if objective == "wer" else 1.0) * wrong / max(of, 1)

    def _front_end(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor,
        sparsity: Sequence[float] = (),
    ) -> Frames:
        """What the blocks take, seeing what sizes see."""
        hidden = self._model.encoder.front_end(feats, lengths, sparsity)
        return hidden.with_chunk_mask(self._model.supernet.chunks[-1])

    def _heard(self, feats: torch.Tensor, lengths: torch.Tensor) -> "_Heard":
        if not self._model.encoder.space.front_end:
            # the features have done their part and would only take memory
            return _Heard(self._front_end(feats, lengths), None, lengths)
        return _Heard(self._front_end(feats, lengths), feats, lengths)

    def _frames(self, heard: "_Heard", sparsity: Sequence[float]) -> Frames:
        """What the blocks of a subnet take."""
        if not self._model.encoder.has_own_front_end(sparsity):
            return heard.frames
        return self._front_end(heard.feats, heard.lengths, sparsity)

    def _prepared(self, batch: dict[str, torch.Tensor]) -> tuple["_Heard", Batch]:
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        names = ("speech", "speech_lengths", "text", "text_lengths")
        made = self._model.make_batch(*(batch[name] for name in names))
        heard = self._heard(made.feats, made.feats_lengths)
        return heard, dataclasses.replace(made, feats=made.feats[:, :0].clone())

    def _count(
        self,
        hidden: Frames,
        batch: Batch,
        gates: Any,
        sparsity: Sequence[float],
        objective: str,
        size: str,
    ) -> tuple[float, int]:
        """Summed loss and utterances, or errors and words."""
        model = self._model
        if objective == "loss":
            subnet = SampledSubnet(size, gates, sparsity=sparsity)
            loss = model.subnet_loss(hidden, batch, subnet)
            return float(loss) * len(batch), len(batch)
        encoded, lengths = model.encoder.blocks(hidden, gates, sparsity)
        errors = words = 0
        for frames, length, text, count in zip(
            encoded, lengths, batch.text.cpu(), batch.text_lengths, strict=True
        ):
            search = greedy_search(model)
            search.push(frames[:length])
            hypothesis = self._words(search.best())
            reference = self._words(text[:count].tolist())
            errors += editdistance.eval(reference, hypothesis)
            words += len(reference)
        return errors, words

    def _words(self, ids: Sequence[int]) -> list[str]:
        """The words that tokens spell."""
        tokens = [self._tokens[number] for number in ids]
        return self._tokenizer.tokens2text(tokens).split()


def _valid_batches(
    config: Mapping[str, Any], utterances: int
) -> Iterator[dict[str, torch.Tensor]]:
    """A fixed, seeded subset of the validation set, by length."""
    preprocess = task_of(config).build_preprocess_fn(
        argparse.Namespace(**config), train=False
    )
    if config.get("dataset"):
        dataset = espnet3_dataset(config, "valid", preprocess)
        ids: Sequence[Any] = range(len(dataset))
    else:
        dataset, ids = _listed(config, preprocess)
    yield from chosen_batches(ids, dataset.__getitem__, utterances, _BATCH)


def _listed(
    config: Mapping[str, Any], preprocess: Any
) -> tuple[ESPnetDataset, list[str]]:
    """ESPnet2's validation set, and the ids in it."""
    sources = [tuple(one) for one in config["valid_data_path_and_name_and_type"]]
    sources = [source for source in sources if source[1] in ("speech", "text")]
    for path, *_ in sources:
        if not Path(path).exists():
            raise UserError(
                f"{path}, the validation data that subnets are evaluated on, does not "
                "exist: run stages 1-5 first, in the recipe's folder."
            )
    speech = next(path for path, name, _ in sources if name == "speech")
    ids = sorted(line.split(maxsplit=1)[0] for line in Path(speech).open())
    return ESPnetDataset(sources, preprocess=preprocess), ids
