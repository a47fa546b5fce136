"""A Conformer of a given size with random weights: for speed alone."""

from pathlib import Path
from typing import Any

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.mask import Pattern, group_ranks, weight_mask
from espnet_omnisparse.export.packed import matrices_of
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml

TOKENS = 500


def write_size(folder: Path, blocks: int, width: int, chunk: Chunk | None) -> None:
    """Writes a streaming CTC Conformer with random weights as a size's folder.

    FFNs are four times as wide, heads 64 channels; kernel 15, 80 mels, 500 tokens.

    Args:
        folder: To write.
        blocks: How many.
        width: Of the encoder.
        chunk: Of its stream.
    """
    torch.manual_seed(0)
    config = config_of(blocks, width, chunk)
    model = family.build(config)
    folder.mkdir(parents=True)
    write_yaml(folder / family.CONFIG, config)
    save_tensors(folder / family.MODEL, model.state_dict())


def config_of(blocks: int, width: int, chunk: Chunk | None) -> dict[str, Any]:
    """The configuration of such a net.

    Args:
        blocks: How many.
        width: Of the encoder.
        chunk: Of its stream.
    """
    from espnet_omnisparse.tasks import OmniASRTask

    parser = OmniASRTask.get_parser()
    config = vars(parser.parse_args(["--output_dir", "unused"]))
    tokens = ["<blank>", "<unk>", *(f"t{n}" for n in range(TOKENS - 3)), "<sos/eos>"]
    return config | {
        "token_list": tokens,
        "token_type": "word",
        "frontend": "default",
        "frontend_conf": {"n_fft": 512, "hop_length": 160, "n_mels": 80},
        "specaug": None,
        "normalize": None,
        "normalize_conf": {},
        "encoder": "layer_prunable_conformer",
        "encoder_conf": {
            "output_size": width,
            "attention_heads": max(width // 64, 1),
            "linear_units": 4 * width,
            "num_blocks": blocks,
            "cnn_module_kernel": 15,
            "rel_pos_type": "latest",
            "conv_norm": "layer_norm",
            "causal": True,
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
