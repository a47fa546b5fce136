"""A Conformer of a given size with random weights: for speed alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from espnet_omnisparse.core.branches import BRANCHES
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.mask import Pattern, group_ranks, weight_mask
from espnet_omnisparse.export.packed import matrices_of
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml

TOKENS = 500
FEATURES: dict[str, dict[str, int]] = {
    "default": {"n_fft": 512, "hop_length": 160, "n_mels": 80},
    "kaldi_fbank": {"n_mels": 80},
}


@dataclass(frozen=True)
class Net:
    """A streaming CTC Conformer, of 80 mels and 500 tokens.

    FFNs are four times as wide as the encoder, heads 64 channels, the kernel 15.

    Attributes:
        blocks: How many.
        width: Of the encoder.
        kept: Share of the branches, evenly spread.
        features: Of its front end, `default` or `kaldi_fbank`.
    """

    blocks: int
    width: int
    kept: float = 1.0
    features: str = "default"

    def branches(self) -> list[list[str]]:
        """What each block keeps.

        >>> Net(2, 64, 0.5).branches()
        [['mhsa', 'ffn2'], ['mhsa', 'ffn2']]
        """
        count = len(BRANCHES)
        return [
            [
                name
                for at, name in enumerate(BRANCHES, block * count)
                if int((at + 1) * self.kept) > int(at * self.kept)
            ]
            for block in range(self.blocks)
        ]


def write_size(folder: Path, net: Net, chunk: Chunk | None) -> None:
    """Writes a net with random weights as a size's folder.

    Args:
        folder: To write.
        net: What it is.
        chunk: Of its stream.
    """
    torch.manual_seed(0)
    config = config_of(net, chunk)
    model = family.build(config)
    folder.mkdir(parents=True)
    write_yaml(folder / family.CONFIG, config)
    save_tensors(folder / family.MODEL, model.state_dict())


def config_of(net: Net, chunk: Chunk | None) -> dict[str, Any]:
    """The configuration of such a net.

    Args:
        net: What it is.
        chunk: Of its stream.
    """
    from espnet_omnisparse.tasks import OmniASRTask

    parser = OmniASRTask.get_parser()
    config = vars(parser.parse_args(["--output_dir", "unused"]))
    tokens = ["<blank>", "<unk>", *(f"t{n}" for n in range(TOKENS - 3)), "<sos/eos>"]
    return config | {
        "token_list": tokens,
        "token_type": "word",
        "frontend": net.features,
        "frontend_conf": FEATURES[net.features],
        "specaug": None,
        "normalize": None,
        "normalize_conf": {},
        "encoder": "layer_prunable_conformer",
        "encoder_conf": {
            "output_size": net.width,
            "attention_heads": max(net.width // 64, 1),
            "linear_units": 4 * net.width,
            "num_blocks": net.blocks,
            "cnn_module_kernel": 15,
            "rel_pos_type": "latest",
            "conv_norm": "layer_norm",
            "causal": True,
            "kept": None if net.kept == 1.0 else net.branches(),
            "chunk": None if chunk is None else chunk.as_dict(),
        },
        "decoder": None,
        "ctc_conf": {},
        "model": "espnet",
        "model_conf": {"ctc_weight": 1.0},
    }


@torch.no_grad()
def masked(model: Any, sparsity: float) -> Any:
    """Masks the encoder's matrices by blocks of 8 x 1, the front end's too.

    Args:
        model: Changed in place, and returned.
        sparsity: Share of zeros in each.
    """
    pattern = Pattern.parse("8x1")
    for name in matrices_of(model):
        if name.startswith("encoder."):
            weight = model.get_parameter(name)
            ranks = group_ranks(weight, pattern)
            weight *= weight_mask(ranks, weight.shape, sparsity, pattern)
    return model
