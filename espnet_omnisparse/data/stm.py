"""Transcripts in NIST's STM format as TED-LIUM's are: read, cleaned, timed.

A line is `talk channel speaker start end <label> words`, in seconds. What is made of it
is what Kaldi's and ESPnet's recipes make of it, so that results can be compared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path

from espnet_omnisparse.data.corpus_files import read_lines
from espnet_omnisparse.errors import UserError

_LINE = re.compile(
    r"(?P<talk>\S+)\s+\S+\s+\S+\s+(?P<start>\d{1,9}(?:\.\d*)?)\s+"
    r"(?P<end>\d{1,9}(?:\.\d*)?)\s+(?P<label>\S+)(?P<words>.*)"
)
_LABELLED = re.compile("<.*>")
_IGNORED = "ignore_time_segment_in_scoring"


@dataclass(frozen=True)
class Segment:
    """A stretch of a talk with its words.

    Attributes:
        name: Utterance id; the times in it are those of the transcript, in hundredths.
        talk: The recording.
        start: Where it begins, in milliseconds.
        end: Where it ends, in milliseconds.
        words: Its words, separated by single spaces.
        source: Where it was read, for a sentence to begin with.
    """

    name: str
    talk: str
    start: int
    end: int
    words: str
    source: str = field(compare=False)

    @property
    def ignored(self) -> bool:
        """Whether it is no speech of the talk, such as a gap or a film shown."""
        return _IGNORED in self.words


def read_stm(path: Path) -> list[Segment]:
    """Reads one transcript, leaving its words as they are.

    Raises:
        UserError: If it cannot be read, is empty or a line is malformed.
    """
    segments = [
        _read_line(line, f"Line {number} of {path}")
        for number, line in read_lines(path)
        if not line.startswith(";;")
    ]
    if not segments:
        raise UserError(
            f"{path} holds no segment: restore it, or remove it with its .sph file."
        )
    return segments


def _read_line(line: str, source: str) -> Segment:
    found = _LINE.fullmatch(line.strip())
    if not found or not (_LABELLED.fullmatch(found["label"]) or _IGNORED in line):
        raise UserError(
            f"{source} is not of the form `talk channel speaker start end <label> "
            "words`: correct or remove it."
        )
    talk = found["talk"]
    if "-" in talk:
        raise UserError(
            f"{source} is of the talk {talk}, but in ids a hyphen ends the talk's "
            "name: name it without one, in its .sph and .stm files too."
        )
    # cut off, not rounded, as in every recipe's ids
    start, end = (int(float(found[key]) * 100) for key in ("start", "end"))
    segment = Segment(
        name=f"{talk}-{start:07d}-{end:07d}",
        talk=talk,
        start=10 * start,
        end=10 * end,
        words=_spaced(found["words"]),
        source=source,
    )
    if end <= start and not segment.ignored:
        raise UserError(
            f"{source} does not end after it begins ({found['start']} to "
            f"{found['end']} s): correct or remove it."
        )
    return segment


def _spaced(words: str) -> str:
    return " ".join(words.split())


# Words -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One thing done to the words of every segment.

    Attributes:
        what: What is done, for the counts.
        pattern: What is replaced, in words separated by single spaces.
        replacement: What stands there afterwards.
    """

    what: str
    pattern: re.Pattern[str]
    replacement: str = ""

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        """Edits the words."""
        return [
            replace(
                segment,
                words=_spaced(self.pattern.sub(self.replacement, segment.words)),
            )
            for segment in segments
        ]


_PRONUNCIATION = Edit("pronunciation marks removed", re.compile(r"\([0-9]\)"))
_SILENCE = Edit("<sil> removed", re.compile("<sil>"))
_LABEL = Edit("labels at the end removed", re.compile(r"\([^ ]*\)$"))
_TAG = re.compile(r"\{([^{}]*)\}")
_KEEP_TAGS = Edit("{NOISE} written [NOISE]", _TAG, r"[\1]")
_DROP_TAGS = Edit("{NOISE} dropped", _TAG)
# a word takes one suffix, as in the stock recipe: `it 's 's` is `it's 's`
_APOSTROPHE = Edit("apostrophes rejoined", re.compile(r"(\S+) ('\S*)"), r"\1\2")


def edits(keep_noise_tags: bool) -> tuple[Edit, ...]:
    """What is done to the words, in this order.

    The stock recipe edits whole lines, and so loses a first word such as `'cause` to
    the label before it; here it stays.

    >>> words = "it{BREATH} 's the(2) <sil> end (talk-1.00-2.00-F0_M)"
    >>> segments = [Segment("id", "talk", 1000, 2000, words, "here")]
    >>> for edit in edits(keep_noise_tags=False):
    ...     segments = edit(segments)
    >>> segments[0].words
    "it's the end"
    """
    tags = _KEEP_TAGS if keep_noise_tags else _DROP_TAGS
    return _PRONUNCIATION, _SILENCE, _LABEL, tags, _APOSTROPHE


def without_repeats(segments: Sequence[Segment]) -> list[Segment]:
    """Drops each segment that equals the one before; `segments` are sorted by id.

    Raises:
        UserError: If two with the same talk and times have different words.
    """
    kept = list(segments[:1])
    for segment in segments[1:]:
        if segment.name == kept[-1].name and segment != kept[-1]:
            raise UserError(
                f"{segment.source} has the talk and times of another one "
                f"({kept[-1].source}) and other words: remove one of them."
            )
        if segment != kept[-1]:
            kept.append(segment)
    return kept


# Times -------------------------------------------------------------------------------


def pad(segments: Sequence[Segment], before: int, after: int) -> list[Segment]:
    """Widens segments; those that then overlap meet in the middle of the overlap.

    Args:
        segments: Segments sorted by id.
        before: Milliseconds to begin earlier.
        after: Milliseconds to end later.

    Returns:
        The segments, sorted by id, with their ids as they were.

    Raises:
        UserError: If nothing is left of one that its neighbours overlap.
    """
    padded = []
    for _, talk in groupby(segments, lambda segment: segment.talk):
        ordered = sorted(talk, key=lambda segment: segment.start + segment.end)
        starts = [max(0, segment.start - before) for segment in ordered]
        ends = [segment.end + after for segment in ordered]
        for this, following in pairwise(range(len(ordered))):
            if ends[this] > starts[following]:
                middle = (ends[this] + starts[following]) // 2
                ends[this] = starts[following] = middle
        for segment, start, end in zip(ordered, starts, ends, strict=True):
            # of one inside another's, what is left may lie elsewhere
            if end <= max(start, segment.start) or start >= segment.end:
                raise UserError(
                    f"{segment.source} overlaps with the segments around it, so that "
                    "nothing of it is left: correct its times or remove it."
                )
            padded.append(replace(segment, start=start, end=end))
    return sorted(padded, key=lambda segment: segment.name)


def speakers(segments: Sequence[Segment], longest: int) -> dict[str, str]:
    """Divides each talk among speakers `talk-1`, `talk-2` ... of limited speech.

    Args:
        segments: Segments sorted by id.
        longest: Milliseconds of one speaker, unless a single segment is longer.

    Returns:
        Speaker by utterance id, sorted.
    """
    found = {}
    for name, talk in groupby(segments, lambda segment: segment.talk):
        groups: list[list[str]] = [[]]
        spoken = 0
        for segment in talk:
            length = segment.end - segment.start
            if groups[-1] and spoken + length > longest:
                groups.append([])
                spoken = 0
            groups[-1].append(segment.name)
            spoken += length
        digits = len(str(len(groups)))
        for number, group in enumerate(groups, 1):
            found |= dict.fromkeys(group, f"{name}-{number:0{digits}d}")
    return found
