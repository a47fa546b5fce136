"""Tokens and their times as words, and words as text, JSON or subtitles."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from espnet_omnisparse.runtime import Token

_BEGINS = "\N{LOWER ONE EIGHTH BLOCK}"  # a word, in BPE pieces
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a piece that is a part of a character
_FRAME = 0.08  # seconds that a token is taken to last
_LINE = 7.0  # seconds of a subtitle
_PAUSE = 1.0  # seconds that end one


@dataclass(frozen=True)
class Word:
    """A recognised word.

    Attributes:
        text: As the tokens spell it.
        begin: When its first token was recognised, in seconds.
        end: When its last one was, and a moment more.
    """

    text: str
    begin: float
    end: float


def collapsed(best: Iterable[int], blank: int) -> Iterator[tuple[int, int]]:
    """CTC: repeats joined and blanks dropped.

    Args:
        best: The best token of each frame.
        blank: The one that is none.

    Yields:
        Tokens, and the frame at which each begins.

    >>> list(collapsed([0, 3, 3, 0, 3, 5], 0))
    [(3, 1), (3, 4), (5, 5)]
    """
    last = blank
    for frame, token in enumerate(best):
        if token not in (last, blank):
            yield token, frame
        last = token


def words_of(
    tokens: Iterable[Token], text: Mapping[str, Any], offset: float = 0.0
) -> Iterator[Word]:
    """Joins tokens to words.

    Args:
        tokens: Of a recording.
        text: How they spell, as a packed model's description has it.
        offset: When the recording begins, in seconds.

    >>> tokens = [Token("h", 1, 0.1), Token("i", 2, 0.2), Token("<space>", 3, 0.3)]
    >>> [word.text for word in words_of(tokens, {"kind": "char", "space": "<space>"})]
    ['hi']
    """
    spelt, begin, last = b"", 0.0, 0.0
    for token in tokens:
        piece, starts = token.text, text["kind"] not in ("char", "bpe")
        if text["kind"] == "bpe" and piece.startswith(_BEGINS):
            piece, starts = piece.removeprefix(_BEGINS), True
        elif piece == text["space"]:
            piece, starts = "", True
        if starts and spelt:
            yield Word(_decoded(spelt), offset + begin, offset + last + _FRAME)
            spelt = b""
        if not spelt:
            begin = token.seconds
        if piece:
            byte = _BYTE.fullmatch(piece) if text["kind"] == "bpe" else None
            spelt += bytes.fromhex(byte[1]) if byte else piece.encode()
            last = token.seconds
    if spelt:
        yield Word(_decoded(spelt), offset + begin, offset + last + _FRAME)


def _decoded(spelt: bytes) -> str:
    r"""UTF-8 as text, each byte that is of no character as U+FFFD.

    >>> _decoded(b"\xe6\x97\xa5\xe6\x9c") == "\u65e5\ufffd\ufffd"
    True
    """
    return spelt.decode(errors=_EACH)


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    return "\ufffd" * (error.end - error.start), error.end


_EACH = "omnisparse-each"
codecs.register_error(_EACH, _replace_each)


def as_text(words: Sequence[Word]) -> str:
    """The words in one line."""
    return " ".join(word.text for word in words)


def as_json(name: str, words: Sequence[Word]) -> str:
    """A line of JSON: the file, its text, its words with their times.

    Args:
        name: Of the file.
        words: In it.
    """
    rounded = [
        {k: v if k == "text" else round(v, 3) for k, v in asdict(w).items()}
        for w in words
    ]
    told = {"file": name, "text": as_text(words), "words": rounded}
    return json.dumps(told, ensure_ascii=False)


def as_srt(words: Sequence[Word]) -> str:
    """Subtitles of some seconds each."""
    lines: list[list[Word]] = []
    for word in words:
        line = lines[-1] if lines else None
        if (
            line is None
            or word.end - line[0].begin > _LINE
            or word.begin - line[-1].end > _PAUSE
        ):
            lines.append([word])
        else:
            line.append(word)
    return "\n".join(
        f"{number}\n{_clock(line[0].begin)} --> {_clock(line[-1].end)}\n"
        f"{as_text(line)}\n"
        for number, line in enumerate(lines, 1)
    ).rstrip("\n")


def _clock(seconds: float) -> str:
    """Seconds as subtitles have them.

    >>> _clock(3723.5)
    '01:02:03,500'
    """
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return "{:02}:{:02}:{:02},{:03}".format(*divmod(minutes, 60), *divmod(rest, 1000))
