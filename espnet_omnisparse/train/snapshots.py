"""The nets that a gradual pruning in stages keeps, one for each size.

Each is the whole state at the end of the size's stage, with the order that its mask
stood still by. A training that was interrupted and goes on writes the same again.
"""

from pathlib import Path

import torch

from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.core.updates import after_each_update
from espnet_omnisparse.files import save_tensors
from espnet_omnisparse.train.journal import SNAPSHOTS
from espnet_omnisparse.train.update import SupernetModel


def keep_snapshots(
    model: SupernetModel, optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Writes `folder/snapshots/<size>.pth` as soon as a stage of the training ends.

    Args:
        model: What is trained; it counts the optimiser's updates already.
        optimizer: Whose steps are the updates.
        folder: The experiment's folder.
    """
    supernet = model.supernet
    stages = supernet.timeline.stages
    ends = {stage.end: stage.size for stage in stages}
    if stages and stages[0].begin:
        ends[stages[0].begin] = FULL

    def keep() -> None:
        size = ends.get(supernet.update)
        if size is not None:
            save_tensors(folder / SNAPSHOTS / f"{size}.pth", model.state_dict())

    if stages:
        after_each_update(optimizer, keep)
