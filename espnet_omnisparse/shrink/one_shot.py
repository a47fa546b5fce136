"""Pruning at birth: what each size is worth before anything is trained.

Branches are ranked by what the loss on a few utterances gains without each alone, and
weights masked by magnitude alike in every layer. It is what training begins from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from espnet_omnisparse.console import bar
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import load_tensors, write_text
from espnet_omnisparse.report.tables import Table
from espnet_omnisparse.search.dev_set import OBJECTIVES, DevSet

FILE = "one_shot.json"


def build_supernet(config: Mapping[str, Any], checkpoint: Path, name: str) -> Any:
    """The supernet with a model's tensors.

    Args:
        config: Its whole configuration.
        checkpoint: The model's tensors.
        name: What messages call the model.

    Raises:
        UserError: If the supernet cannot have all of them, or needs others.
    """
    try:
        net = family.build(config)
    except UserError as error:
        raise UserError(f"{name} cannot be shrunk: {error}") from error
    state, own = load_tensors(checkpoint), net.state_dict()
    differing = [n for n in state if n not in own or own[n].shape != state[n].shape]
    differing += [n for n in own if n not in state and not n.startswith("supernet.")]
    if differing:
        raise UserError(
            f"{name} cannot be shrunk: its checkpoint and its supernet differ in "
            f"{differing[0]}; is {checkpoint.name} the checkpoint of its config.yaml?"
        )
    net.load_state_dict(state, strict=False)
    return net.eval()


def one_shot(
    net: Any, config: Mapping[str, Any], utterances: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Loss and word error rate of each size without training, largest first.

    Args:
        net: The supernet with the model's tensors.
        config: Its configuration, with its data.
        utterances: Of the development data.
        folder: Where the result is kept; one that is there is read.
    """
    path = folder / FILE
    if path.exists():
        return json.loads(path.read_text())
    data = DevSet(net, config, "loss", utterances)
    units = len(net.encoder.space)
    everything = [True] * units
    supernet = net.supernet
    supernet.measure()
    dropping = [n for n, one in supernet.sizes.items() if not one.keeps_all_units]
    ranking = torch.arange(0)
    if dropping:
        harms = []
        with bar("branches left out", units, "") as shown:
            for unit in range(units):
                harms.append(data.score([n != unit for n in range(units)], ()))
                shown.update()
        ranking = torch.tensor(harms).argsort(descending=True, stable=True)
    found = {FULL: {one: data.score(everything, (), one) for one in OBJECTIVES}}
    for name, size in supernet.sizes.items():
        mask = size.mask(ranking).tolist() if name in dropping else everything
        shares = (size.sparsity,) * len(net.encoder.space.weights)
        sparsity = shares if size.sparsity else ()
        found[name] = {o: data.score(mask, sparsity, o, name) for o in OBJECTIVES}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def one_shot_table(found: Mapping[str, Mapping[str, float]], utterances: int) -> str:
    """The result in words.

    Args:
        found: What `one_shot` returned.
        utterances: Of the development data.
    """
    rows = [
        [name, f"{one['loss']:.3f}", f"{one['wer']:.1f}"] for name, one in found.items()
    ]
    heading = f"Without any training, on up to {utterances} utterances:"
    return f"{heading}\n{Table(['size', 'loss', 'WER (%)'], rows).text()}"
