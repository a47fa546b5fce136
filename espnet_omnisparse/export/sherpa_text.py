"""What of a sherpa-onnx folder is text: tokens, README, and what is recognised."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from espnet_omnisparse.export.onnx_encoder import Encoder, Subsampling, chunk_hides
from espnet_omnisparse.export.onnx_features import Normalise
from espnet_omnisparse.export.onnx_modules import Head, Joiner, Predictor
from espnet_omnisparse.export.source import Source

_SPACE = "▁"  # what sherpa-onnx prints a space for


def symbols(source: Source) -> list[str]:
    """The tokens as sherpa-onnx spells them, spaces as such or before a token.

    Args:
        source: What is exported.
    """
    told = source.description["text"]
    words = told["kind"] == "word"
    found = []
    for number, token in enumerate(source.tokens):
        if token == told["space"]:
            token = " "
        elif words and number != source.description["blank"]:
            token = _SPACE + token
        found.append(token)
    return found


def tokens_text(source: Source) -> str:
    """`tokens.txt`: a symbol and its id a line, of a space the id alone.

    Args:
        source: What is exported.
    """
    lines = [f"{one} {id}" for id, one in enumerate(symbols(source))]
    return "".join(f"{line.strip()}\n" for line in lines)


@torch.no_grad()
def reference_text(source: Source, samples: torch.Tensor) -> str:
    """What PyTorch recognises, greedily and as sherpa-onnx spells it.

    Args:
        source: What is exported.
        samples: A recording `[n]`, full scale being 1.
    """
    model, description = source.model, source.description
    feats, _ = model.frontend(samples[None], torch.tensor([len(samples)]))
    x = Subsampling(model, description)(Normalise(model, description)(feats))
    hidden = None if source.chunk is None else chunk_hides(source.chunk, x.size(1))
    encoded = Encoder(model, description)(x, hidden)[0]
    out = Head(model, description, source.head)(encoded)[0]
    found = _best_ctc(out) if source.head == "ctc" else _best_transducer(source, out)
    spelled = symbols(source)
    return "".join(spelled[id] for id in found).replace(_SPACE, " ").strip()


def _best_ctc(log_probs: torch.Tensor) -> list[int]:
    ids = log_probs.argmax(-1).unique_consecutive().tolist()
    return [id for id in ids if id != 0]


def _best_transducer(source: Source, encoded: torch.Tensor) -> list[int]:
    """At most one token a frame, as sherpa-onnx finds them."""
    predictor = Predictor(source.model, source.description)
    joiner = Joiner(source.model)
    found: list[int] = []
    predicted = predictor(torch.tensor([[0]]))[0]
    for frame in encoded.split(1):
        id = int(joiner(frame, predicted).argmax())
        if id != 0:
            found.append(id)
            predicted = predictor(torch.tensor([[id]]))[0]
    return found


def readme(source: Source, call: Mapping[str, Any], text: str) -> str:
    """How to use a folder.

    Args:
        source: What is exported.
        call: What `call_of` returns.
        text: What sherpa-onnx recognises in the folder's test recording.
    """
    given = {**call["files"], **call["arguments"]}
    arguments = ", ".join(f"{name}={json.dumps(v)}" for name, v in given.items())
    live = source.chunk is not None
    lines = [
        f"# A model for sherpa-onnx: {call['class']}.{call['method']}",
        "",
        "```python",
        "import sherpa_onnx, soundfile" + (", numpy" if live else ""),
        "",
        f"recognizer = sherpa_onnx.{call['class']}.{call['method']}({arguments})",
        'samples, rate = soundfile.read("test.wav", dtype="float32")',
        "stream = recognizer.create_stream()",
        "stream.accept_waveform(rate, samples)",
    ]
    if live:
        tail = call["tail_seconds"]
        lines += [
            "# silence, without which the last words are not recognised",
            f"stream.accept_waveform(rate, numpy.zeros(int({tail} * rate), 'float32'))",
            "stream.input_finished()",
            "while recognizer.is_ready(stream):",
            "    recognizer.decode_stream(stream)",
            "print(recognizer.get_result(stream))",
        ]
    else:
        lines += ["recognizer.decode_stream(stream)", "print(stream.result.text)"]
    lines += ["```", "", f"prints {json.dumps(text, ensure_ascii=False)}.", ""]
    if live:
        lines += [
            f"A chunk has {source.chunk.size} encoder frames of 40 ms and sees "
            f"{source.chunk.left} before it.",
            "",
        ]
    return "\n".join(lines)
