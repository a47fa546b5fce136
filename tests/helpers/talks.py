"""Talks joined from real LibriSpeech chapters, laid out as TED-LIUM release 2 is.

They are no TED talks: they let the recipe meet real speech in long SPHERE recordings,
and every convention of the transcripts.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from espnet_omnisparse.data.librispeech import Utterance, read_part

RATE = 16000
GAP = 0.5  # seconds of silence before, between and after utterances


def write_talks(
    corpus: Path, part: Path, talks: Mapping[str, int], seconds: float = np.inf
) -> None:
    """Makes `corpus/{split}/{sph,stm}`, a talk of each chapter.

    Args:
        corpus: Folder to write.
        part: A part of LibriSpeech, such as `ls8-test`.
        talks: How many talks each split has.
        seconds: How much of a chapter a talk takes at most, two utterances at least.
    """
    chapters: dict[str, list[Utterance]] = {}
    for utterance in read_part(part):
        chapters.setdefault(utterance.speaker, []).append(utterance)
    remaining = iter(chapters.items())
    for split, number in talks.items():
        for _ in range(number):
            speaker, utterances = next(remaining)
            # a hyphen would end a talk's name
            talk = speaker.replace("-", "_")
            _write_talk(corpus / split, talk, utterances, seconds)


def _write_talk(
    folder: Path, talk: str, utterances: list[Utterance], seconds: float
) -> None:
    silence = np.zeros(int(GAP * RATE))
    samples, lines = [silence], []
    length = len(silence)
    for number, utterance in enumerate(utterances):
        speech, rate = soundfile.read(utterance.audio)
        assert rate == RATE
        if number > 1 and (length + len(speech)) / RATE > seconds:
            break
        start, end = length / RATE, (length + len(speech)) / RATE
        words = _as_transcribed(utterance.words, number)
        label = f"({talk}-{start:.2f}-{end:.2f}-F0_M-S1)" if number % 2 else ""
        lines.append(
            f"{talk} 1 {talk} {start:.2f} {end:.2f} <o,f0,male> {words}{label}"
        )
        samples += [speech, silence]
        length += len(speech) + len(silence)
    ignored = "<o,,unknown> ignore_time_segment_in_scoring"
    lines.insert(0, f"{talk} 1 inter_segment_gap 0 {GAP:.2f} {ignored}")
    lines.append(lines[-1])
    for kind in ("sph", "stm"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / "stm" / f"{talk}.stm").write_text("".join(f"{x}\n" for x in lines))
    audio = folder / "sph" / f"{talk}.sph"
    joined = np.concatenate(samples)
    soundfile.write(audio, joined, RATE, format="NIST", subtype="PCM_16")


def _as_transcribed(words: str, number: int) -> str:
    """The words as TED-LIUM would write them, with one of its marks now and then."""
    first, *rest = words.lower().replace("'", " '").split()
    marks = (["<sil>", first], [f"{first}(2)"], ["{NOISE}", first])
    return " ".join([*marks[number % len(marks)], *rest]) + " "
