"""`--to sherpa`: a folder that sherpa-onnx loads as it is.

Whole recordings or streams, CTC or a transducer: which of sherpa-onnx's constructors
takes the folder, and with which arguments, is in its `sherpa.json`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile
import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.onnx_file import DTYPES, Graph, write_graph
from espnet_omnisparse.export.onnx_modules import Head, Joiner, Predictor
from espnet_omnisparse.export.onnx_session import require
from espnet_omnisparse.export.sherpa_modules import (
    Batch,
    ConformerChunk,
    Context,
    WenetChunk,
)
from espnet_omnisparse.export.sherpa_text import readme, reference_text, tokens_text
from espnet_omnisparse.export.source import Source, load_source
from espnet_omnisparse.files import atomic_folder, require_replaceable
from espnet_omnisparse.nn.kaldi_fbank import KaldiFbank

CALL, TOKENS, AUDIO = "sherpa.json", "tokens.txt", "test.wav"
#: Found by no decoder of ours in a recording, and printed by sherpa-onnx.
_SILENT = ("<unk>", "<sos/eos>")
_FRAMES, _BATCH = 200, 2  # of the examples that graphs are traced with


def export(args: argparse.Namespace, out: Path) -> None:
    """Writes the folder, whole or not at all, once sherpa-onnx has loaded it.

    Args:
        args: As `omnisparse export` has them.
        out: Folder to write.

    Raises:
        UserError: If sherpa-onnx cannot have the size, or a package is missing.
    """
    if args.dtype not in DTYPES:
        raise UserError(f"--to sherpa has --dtype {' or '.join(DTYPES)}.")
    require("onnx", "onnxruntime", "sherpa_onnx")
    require_replaceable(out, CALL, "a folder for sherpa-onnx")
    source = load_source(args)
    _check(source)
    graphs = graphs_of(source)
    suffix = ".onnx" if args.dtype == "fp32" else f".{args.dtype}.onnx"
    rate = source.description["sample_rate"]
    samples = example_recording(source.config, rate)
    call = call_of(source, {name: f"{name}{suffix}" for name in graphs})
    silence = torch.zeros(round(call["tail_seconds"] * rate))
    expected = reference_text(source, torch.cat((samples, silence)))
    with atomic_folder(out) as folder:
        for name, graph in graphs.items():
            write_graph(folder / f"{name}{suffix}", graph, args.dtype)
        (folder / CALL).write_text(json.dumps(call, indent=2) + "\n")
        (folder / TOKENS).write_text(tokens_text(source), encoding="utf-8")
        soundfile.write(folder / AUDIO, samples.numpy(), rate, "PCM_16")
        found = recognised(folder).strip()
        (folder / "README.md").write_text(readme(source, call, found), encoding="utf-8")
    if found != expected:
        print(f"{out / AUDIO}: sherpa-onnx hears {found!r}, PyTorch {expected!r}")


def recognised(folder: Path) -> str:
    """The text of a folder's test recording, by sherpa-onnx in its own process.

    Args:
        folder: What `export` writes.

    Raises:
        UserError: If it does not load the folder: it ends the process then.
    """
    command = [sys.executable, "-m", "espnet_omnisparse.export.sherpa_run", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(
            f"sherpa-onnx does not load the export ({lines[-1] if lines else 'silent'})"
            ": install another version of it, 2.0.1 being the one that is tested."
        )
    return json.loads(done.stdout.splitlines()[-1])["text"]


def _check(source: Source) -> None:
    """Refuses what sherpa-onnx cannot have."""
    model, description, chunk = source.model, source.description, source.chunk
    if not isinstance(model.frontend, KaldiFbank):
        raise UserError(
            "sherpa-onnx computes Kaldi's features itself and this model has others: "
            "train with frontend: kaldi_fbank, as in conf/deployment.yaml, or export "
            "--to onnx."
        )
    if description["encoder"]["positions"] == "legacy":
        raise UserError(
            "sherpa-onnx pads recordings, and what this model hears depends on their "
            "length: train with rel_pos_type: latest, or export --to onnx."
        )
    stride = 1
    for conv in description["front_end"]["convs"]:
        stride *= conv["stride"][0]
    if stride != 4:
        raise UserError(
            f"sherpa-onnx takes every model to subsample by 4, and this one does by "
            f"{stride}: train with input_layer: conv2d (or subsampling_factor: 4), or "
            "export --to onnx."
        )
    if source.head == "transducer":
        kind = description["transducer"]["predictor"]["kind"]
        if kind != "stateless":
            raise UserError(
                "sherpa-onnx's transducers have a stateless prediction network, and "
                f"this one has {kind}: train with decoder: stateless (of the task "
                "asr_transducer), or export --head ctc or --to onnx."
            )
    if chunk is None:
        return
    if (description["normalize"] or {}).get("kind") == "utterance_mvn":
        raise UserError(
            "A stream cannot be normalised by the whole recording: train with "
            "--feats_normalize global_mvn."
        )
    if not chunk.left or (source.head == "ctc" and chunk.left % chunk.size):
        raise UserError(
            "sherpa-onnx's streams see a number of whole chunks in the past, and this "
            f"one sees {chunk.left} frames before a chunk of {chunk.size}: give "
            "--chunk and --left, a multiple of it."
        )


def graphs_of(source: Source) -> dict[str, Graph]:
    """The files of a model, by name.

    Args:
        source: What is exported.
    """
    ids = [source.tokens.index(one) for one in _SILENT if one in source.tokens]
    model, description = source.model, source.description
    if source.head == "ctc":
        head = Head(model, description, "ctc", tuple(ids))
        if source.chunk is None:
            return {"model": _batch(source, head, "log_probs")}
        return {"model": _wenet(source, head)}
    head = Head(model, description, "transducer")
    encoder = (
        _batch(source, head, "encoder_out")
        if source.chunk is None
        else _conformer(source, head)
    )
    width = model.joint_network.lin_enc.out_features
    batch = {0: "N"}
    return {
        "encoder": encoder,
        "decoder": Graph(
            Context(Predictor(model, description)),
            {"y": torch.tensor([[-1], [1]])},
            ["decoder_out"],
            {"y": torch.tensor([[-1], [1], [0]])},
            {"y": batch, "decoder_out": batch},
            {"context_size": 1, "vocab_size": len(source.tokens)},
        ),
        "joiner": Graph(
            Joiner(model, tuple(ids)),
            {name: torch.randn(2, width) for name in ("encoder_out", "decoder_out")},
            ["logit"],
            {name: torch.randn(3, width) for name in ("encoder_out", "decoder_out")},
            {name: batch for name in ("encoder_out", "decoder_out", "logit")},
            {"joiner_dim": width},
        ),
    }


def _features(source: Source, *shape: int) -> torch.Tensor:
    size = source.description["features"]["n_mels"]
    return 2.0 * torch.randn(*shape, size) - 8.0


def _batch(source: Source, head: Head, output: str) -> Graph:
    return Graph(
        Batch(source, head),
        {
            "x": _features(source, _BATCH, _FRAMES),
            "x_lens": torch.tensor([_FRAMES, _FRAMES // 2]),
        },
        [output, f"{output}_lens"],
        {
            "x": _features(source, 3, _FRAMES // 3),
            "x_lens": torch.tensor([9, _FRAMES // 3, 30]),
        },
        {
            "x": {0: "N", 1: "T"},
            "x_lens": {0: "N"},
            output: {0: "N", 1: "frames"},
            f"{output}_lens": {0: "N"},
        },
        {
            "model_type": "zipformer2_ctc" if source.head == "ctc" else "conformer",
            "vocab_size": len(source.tokens),
            "subsampling_factor": 4,
        },
    )


def _wenet(source: Source, head: Head) -> Graph:
    module, chunk = WenetChunk(source, head), source.chunk
    width, seen = module.encoder.width, torch.ones(1, 1, chunk.left + chunk.size)
    seen[..., : chunk.left // 2] = 0
    return Graph(
        module,
        {
            "x": _features(source, 1, module.frames) + 20.0,
            "attn_cache": torch.randn(module.rows, 1, chunk.left, 2 * width),
            "conv_cache": torch.randn(module.rows, 1, width, module.kernel - 1),
            "attn_mask": seen.bool(),
        },
        ["log_probs", "next_attn_cache", "next_conv_cache"],
        metadata={
            "head": 1,
            "num_blocks": module.rows,
            "output_size": width,
            "cnn_module_kernel": module.kernel,
            "right_context": module.subsampling.field - 1,
            "subsampling_factor": module.subsampling.stride,
            "vocab_size": len(source.tokens),
            "chunk_size": chunk.size,
            "left_chunks": chunk.left // chunk.size,
        },
        unused={"offset": 1, "required_cache_size": 2},
    )


def _conformer(source: Source, head: Head) -> Graph:
    module, chunk = ConformerChunk(source, head), source.chunk
    width, past = module.encoder.width, module.kernel - 1

    def inputs(batch: int) -> dict[str, torch.Tensor]:
        return {
            "x": _features(source, batch, module.frames),
            "cached_attn": torch.randn(module.rows, chunk.left, batch, width),
            "cached_conv": torch.randn(module.rows, past, batch, width),
            "processed_lens": torch.arange(batch) * module.shift,
        }

    caches = ("cached_attn", "cached_conv")
    axes: Mapping[str, Mapping[int, str]] = {
        **{name: {0: "N"} for name in ("x", "processed_lens", "encoder_out")},
        **{f"{new}{name}": {2: "N"} for name in caches for new in ("", "new_")},
    }
    return Graph(
        module,
        inputs(2),
        ["encoder_out", *(f"new_{name}" for name in caches)],
        inputs(3),
        axes,
        {
            "model_type": "conformer",
            "num_encoder_layers": module.rows,
            "T": module.frames,
            "decode_chunk_len": module.shift,
            "left_context": chunk.left,
            "encoder_dim": width,
            "pad_length": module.subsampling.field,
            "cnn_module_kernel": module.kernel,
        },
    )


def call_of(source: Source, files: Mapping[str, str]) -> dict[str, Any]:
    """How sherpa-onnx is called.

    Args:
        source: What is exported.
        files: Name of a part -> its file.

    Returns:
        `class`, `method` and `arguments`, those that are files apart, and the seconds
        of silence behind a recording that its last words need.
    """
    chunk, rate = source.chunk, source.description["sample_rate"]
    given: dict[str, Any] = {}
    if source.head == "ctc":
        method = "from_zipformer_ctc" if chunk is None else "from_wenet_ctc"
        if chunk is not None:
            given["chunk_size"] = chunk.size
            given["num_left_chunks"] = chunk.left // chunk.size
    else:
        method = "from_transducer"
    mels = source.description["features"]["n_mels"]
    given |= {"sample_rate": rate} if rate != 16000 else {}
    given |= {"feature_dim": mels} if mels != 80 else {}
    # a chunk is computed when more frames are there than it sees
    tail = 0.0 if chunk is None else round(0.01 * (8 * chunk.size + 8), 2)
    return {
        "class": "OfflineRecognizer" if chunk is None else "OnlineRecognizer",
        "method": method,
        "files": {**files, "tokens": TOKENS},
        "arguments": given,
        "tail_seconds": tail,
    }


def example_recording(config: Mapping[str, Any], rate: int) -> torch.Tensor:
    """A recording to try an export with: the first to validate on, if it is there.

    Args:
        config: Of the training.
        rate: Sampling rate in Hz.

    Returns:
        Samples `[n]`; chirps, where there is no recording.
    """
    from espnet2.train.dataset import ESPnetDataset

    sources = config.get("valid_data_path_and_name_and_type") or []
    for path, name, kind in sources:
        if name == "speech" and Path(path).is_file():
            with Path(path).open(encoding="utf-8") as lines:
                uid = next(lines).split(maxsplit=1)[0]
            speech = ESPnetDataset([(path, name, kind)])[uid][1]["speech"]
            return torch.from_numpy(speech).float().clamp(-1, 32767 / 32768)
    time = torch.arange(3 * rate) / rate
    return 0.3 * torch.sin(900.0 * (time % 0.4 + 1.0) * time)
