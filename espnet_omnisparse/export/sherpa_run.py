"""Recognises a recording with sherpa-onnx, as an exported folder says.

    python -m espnet_omnisparse.export.sherpa_run FOLDER [WAV]

A process of its own: sherpa-onnx ends the one that gives it what it cannot load.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def load(folder: Path, threads: int = 1) -> tuple[Any, float]:
    """A folder's recogniser, and the seconds of silence that its recordings end with.

    Args:
        folder: What `omnisparse export --to sherpa` has written.
        threads: Of its computation.
    """
    import sherpa_onnx

    call = json.loads((folder / "sherpa.json").read_text())
    files = {name: str(folder / file) for name, file in call["files"].items()}
    method = getattr(getattr(sherpa_onnx, call["class"]), call["method"])
    made = method(**files, **call["arguments"], num_threads=threads)
    return made, call["tail_seconds"]


def recognise(recogniser: Any, samples: np.ndarray, rate: int, tail: float) -> str:
    """The text of a recording.

    Args:
        recogniser: Of either of sherpa-onnx's classes.
        samples: `[n]`, full scale being 1.
        rate: In Hz.
        tail: Seconds of silence behind it.
    """
    stream = recogniser.create_stream()
    stream.accept_waveform(rate, samples)
    if hasattr(recogniser, "decode_streams") and hasattr(recogniser, "is_ready"):
        stream.accept_waveform(rate, np.zeros(round(tail * rate), np.float32))
        stream.input_finished()
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)
        return recogniser.get_result(stream)
    recogniser.decode_stream(stream)
    return stream.result.text


def main() -> None:
    """Prints the text as JSON."""
    folder = Path(sys.argv[1])
    wav = sys.argv[2] if len(sys.argv) > 2 else folder / "test.wav"
    samples, rate = soundfile.read(wav, dtype="float32")
    recogniser, tail = load(folder)
    print(json.dumps({"text": recognise(recogniser, samples, rate, tail)}))


if __name__ == "__main__":
    main()
