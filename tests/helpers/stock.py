"""Tiny models of stock ESPnet, as a user has them: made by ESPnet's own classes."""

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from espnet2.main_funcs import pack_funcs

from helpers.tiny import DECODER, FRONTEND, SHAPE, changed
from helpers.training import TOKENS

STATS = "feats_stats.npz"
TRANSDUCER = {
    "decoder": "transducer",
    "decoder_conf": {"hidden_size": 8, "rnn_type": "gru"},
    "joint_net_conf": {"joint_space_size": 8},
    "model_conf": {"ctc_weight": 0.3},
}
HYBRID = {
    "decoder": "transformer",
    "decoder_conf": DECODER,
    "model_conf": {"ctc_weight": 0.3},
}
SMALL = {"output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 2}
E_BRANCHFORMER = {
    "encoder": "e_branchformer",
    "encoder_conf": {
        **SMALL,
        **{"cgmlp_linear_units": 32, "cgmlp_conv_kernel": 7, "merge_conv_kernel": 3},
        **{"use_ffn": True, "macaron_ffn": True},
    },
}
BARE_TRANSFORMER = {
    "encoder": "transformer",
    "encoder_conf": {**SMALL, "num_blocks": 4},
}
#: what the user trained with
CONFIG = {
    "token_list": list(TOKENS),
    "token_type": "char",
    "frontend_conf": {**FRONTEND, "n_mels": 30},
    "normalize": "global_mvn",
    "specaug": None,
    "encoder": "conformer",
    "encoder_conf": {**SHAPE, "macaron_style": True, "cnn_module_kernel": 7},
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0},
    "optim": "adam",
    "optim_conf": {"lr": 0.004},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 5},
    "batch_type": "sorted",
    "batch_size": 4,
    "max_epoch": 4,
    "seed": 3,
    "num_workers": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
}


def stock_model(folder: Path, **changes: Any) -> Path:
    """Writes an experiment folder with freshly drawn weights.

    Args:
        folder: To write.
        **changes: Options in place of those of `CONFIG`.
    """
    from espnet2.tasks.asr import ASRTask

    parser = ASRTask.get_parser()
    defaults = vars(parser.parse_args(["--output_dir", str(folder)]))
    # another encoder has options of its own
    before = {**CONFIG, "encoder_conf": {}} if "encoder" in changes else CONFIG
    config = {**defaults, **changed(before, changes)}
    folder.mkdir(parents=True)
    mels = config["frontend_conf"]["n_mels"]
    squares = np.full(mels, 40.0)
    np.savez(folder / STATS, count=4, sum=np.ones(mels), sum_square=squares)
    config["normalize_conf"] = {"stats_file": str(folder / STATS)}
    torch.manual_seed(7)
    torch.save(_build(config).state_dict(), folder / "valid.loss.ave.pth")
    # a training names it from the recipe's folder
    config["normalize_conf"] = {"stats_file": f"{folder.name}/{STATS}"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def _build(config: Mapping[str, Any]) -> torch.nn.Module:
    """By stock ESPnet; a transducer needs what PyPI has not, but for its loss."""
    from espnet2.tasks.asr import ASRTask

    from espnet_omnisparse.tasks import OmniASRTask

    if config["decoder"] == "transducer":
        # of the same parameters, as tests of the model itself show
        return OmniASRTask.build_model(
            Namespace(**{**config, "model": "omni_transducer"})
        )
    return ASRTask.build_model(Namespace(**config))


def packed(folder: Path, out: Path) -> Path:
    """The folder as ESPnet packs it, from the folder above it."""
    before = Path.cwd()
    os.chdir(folder.parent)
    try:
        pack_funcs.pack(
            {"asr_model_file": f"{folder.name}/valid.loss.ave.pth"},
            {"asr_train_config": f"{folder.name}/config.yaml"},
            out,
            [f"{folder.name}/{STATS}"],
        )
    finally:
        os.chdir(before)
    return out
