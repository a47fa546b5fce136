"""The word error rate of a model in a run time, of its own text."""

from collections.abc import Iterator
from pathlib import Path

import editdistance
import numpy as np
from espnet2.fileio.read_text import read_2columns_text
from espnet2.train.dataset import ESPnetDataset

from espnet_omnisparse.bench.contestants import Contestant
from espnet_omnisparse.errors import UserError


class TestSet:
    """Recordings and their texts, of a data folder of Kaldi's.

    Args:
        folder: With `wav.scp` and `text`.

    Raises:
        UserError: If one of them is missing, or they have no utterance in common.
    """

    __test__ = False  # of pytest

    def __init__(self, folder: Path):
        for name in ("wav.scp", "text"):
            if not (folder / name).is_file():
                raise UserError(f"--test {folder} has no {name}: name a data folder.")
        self._speech = ESPnetDataset([(str(folder / "wav.scp"), "speech", "sound")])
        spoken = read_2columns_text(folder / "text")
        heard = set(read_2columns_text(folder / "wav.scp"))
        self._texts = {uid: text for uid, text in spoken.items() if uid in heard}
        if not self._texts:
            raise UserError(f"--test {folder}: no utterance has audio and a text.")

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, str]]:
        for uid, text in self._texts.items():
            yield self._speech[uid][1]["speech"].astype(np.float32), text

    def wer(self, contestant: Contestant) -> float:
        """The word error rate in per cent.

        Args:
            contestant: What recognises.
        """
        errors = words = 0
        for samples, text in self:
            reference = text.split()
            errors += editdistance.eval(reference, contestant.text(samples).split())
            words += len(reference)
        return 100.0 * errors / max(words, 1)
