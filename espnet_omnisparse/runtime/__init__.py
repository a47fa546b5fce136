"""Speech recognition with packed models: the engine from Python, with NumPy alone.

Examples:
    >>> from espnet_omnisparse import runtime
    >>> model = runtime.load("model.omni")  # doctest: +SKIP
    >>> model.recognize(waveform, 16000)  # doctest: +SKIP
    'some words'
    >>> stream = model.stream()  # doctest: +SKIP
    >>> for block in microphone:  # doctest: +SKIP
    ...     stream.push(block)
    ...     print(stream.text)
"""

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.runtime.model import Model, Stream, Token, instruction_set, load

__all__ = ["Model", "Stream", "Token", "UserError", "instruction_set", "load"]
