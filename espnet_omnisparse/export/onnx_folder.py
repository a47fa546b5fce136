"""`--to onnx`: waveform in, log-probabilities out, for onnxruntime.

A CTC model is `ctc.onnx`; a transducer is `encoder.onnx`, `predictor.onnx` and
`joiner.onnx`. Of a model with chunks there is `ctc_stream.onnx`, or
`encoder_stream.onnx`, as well, with what a stream keeps as inputs and outputs.
"""

import argparse
import json
from pathlib import Path

import torch

from espnet_omnisparse import __version__
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.onnx_file import DTYPES, Graph, write_graph
from espnet_omnisparse.export.onnx_modules import (
    Head,
    Joiner,
    LiveChunk,
    Predictor,
    Recording,
)
from espnet_omnisparse.export.onnx_session import require
from espnet_omnisparse.export.source import Source, load_source
from espnet_omnisparse.files import atomic_folder, require_replaceable

_TRACED = 2.0  # seconds


def export(args: argparse.Namespace, out: Path) -> None:
    """Writes the folder, whole or not at all.

    Args:
        args: As `omnisparse export` has them.
        out: Folder to write.

    Raises:
        UserError: If the size cannot be exported so, or a package is missing.
    """
    if args.dtype not in DTYPES:
        raise UserError(f"--to onnx has --dtype {' or '.join(DTYPES)}.")
    require("onnx", "onnxruntime")
    require_replaceable(out, "*.onnx", "a folder of ONNX files")
    graphs = graphs_of(load_source(args))
    with atomic_folder(out) as folder:
        for name, graph in graphs.items():
            write_graph(folder / name, graph, args.dtype)


def graphs_of(source: Source) -> dict[str, Graph]:
    """The files of a model, by name.

    Args:
        source: What is exported.
    """
    kind = "ctc" if source.head == "ctc" else "encoder"
    graphs = {f"{kind}.onnx": recording(source)}
    if source.chunk is not None:
        if source.chunk.left == 0:  # torch.onnx ends the process at caches of no frame
            raise UserError(
                "A stream in ONNX has frames before its chunk, and this size sees none "
                "(left: 0): give --chunk and --left, a few chunks."
            )
        graphs[f"{kind}_stream.onnx"] = stream(source)
    if source.head == "transducer":
        graphs["predictor.onnx"] = predictor(source)
        graphs["joiner.onnx"] = joiner(source)
    return graphs


def _common(source: Source) -> dict[str, str | int]:
    """The metadata of every file."""
    description = source.description
    return {
        "made_by": f"espnet-omnisparse {__version__}",
        "sample_rate": description["sample_rate"],
        "tokens": json.dumps(source.tokens),
        "blank": description["blank"],
        "text": json.dumps(description["text"]),
        "silent": json.dumps(description["silent"]),
    }


def _output(source: Source) -> str:
    return "log_probs" if source.head == "ctc" else "encoded"


def recording(source: Source) -> Graph:
    """The graph of whole recordings.

    Args:
        source: What is exported.
    """
    model, description = source.model, source.description
    module = Recording(model, description, Head(model, description, source.head))
    rate, output = description["sample_rate"], _output(source)
    samples = 0.1 * torch.randn(1, int(_TRACED * rate))
    features, front = module.features, module.subsampling
    least = (front.field - 1) * features.hop + features.length
    least -= features.before + features.behind
    return Graph(
        module,
        {"samples": samples},
        [output],
        {"samples": 0.1 * torch.randn(1, int(1.37 * _TRACED * rate))},
        {"samples": {1: "samples"}, output: {1: "frames"}},
        {
            **_common(source),
            "frame_samples": front.stride * features.hop,
            # what it takes to mirror the ends, and for one frame
            "least_samples": max(least, features.before + 1, features.behind + 1),
        },
    )


def stream(source: Source) -> Graph:
    """The graph of a chunk.

    Args:
        source: What is exported, with a chunk.
    """
    model, description, chunk = source.model, source.description, source.chunk
    head = Head(model, description, source.head)
    module = LiveChunk(model, description, chunk, head)
    features, front, encoder = module.features, module.subsampling, module.encoder
    frame = front.stride * features.hop
    one = (front.field - 1) * features.hop + features.length
    window = (chunk.size - 1) * frame + one
    shapes = encoder.cache_shapes()
    caches = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    output = _output(source)
    return Graph(
        module,
        {
            "samples": 0.1 * torch.randn(1, window),
            **caches,
            "frames": torch.tensor([chunk.left // 2]),
        },
        [output, *(f"next_{name}" for name in shapes), "next_frames"],
        {"samples": 0.1 * torch.randn(1, (chunk.size + 1) // 2 * frame - frame + one)},
        {"samples": {1: "samples"}, output: {1: "frames"}},
        {
            **_common(source),
            "chunk": chunk.size,
            "left": chunk.left,
            "window_samples": window,
            "shift_samples": chunk.size * frame,
            "least_samples": one,
            "before": features.before,
            "behind": features.behind,
            "mirror": "symmetric" if features.kaldi else "reflect",
        },
    )


def predictor(source: Source) -> Graph:
    """The graph of a step of the prediction network.

    Args:
        source: What is exported, a transducer.
    """
    module = Predictor(source.model, source.description)
    layers, width = module.state
    names = {"lstm": ["h", "c"], "gru": ["h"], "rnn": ["h"]}.get(module.kind, [])
    states = {name: torch.randn(layers, 2, width) for name in names}
    labels = torch.tensor([[0], [1]])
    batch = {name: {1: "batch"} for one in names for name in (one, f"next_{one}")}
    return Graph(
        module,
        {"labels": labels, **states},
        ["predicted", *(f"next_{name}" for name in names)],
        {
            "labels": torch.tensor([[0], [1], [0]]),
            **{name: torch.randn(layers, 3, width) for name in names},
        },
        {"labels": {0: "batch"}, "predicted": {0: "batch"}, **batch},
        _common(source),
    )


def joiner(source: Source) -> Graph:
    """The graph of the joint network.

    Args:
        source: What is exported, a transducer.
    """
    width = source.model.joint_network.lin_enc.out_features
    names = ("encoded", "predicted")
    return Graph(
        Joiner(source.model),
        {name: torch.randn(2, width) for name in names},
        ["scores"],
        {name: torch.randn(3, width) for name in names},
        {name: {0: "batch"} for name in (*names, "scores")},
        _common(source),
    )
