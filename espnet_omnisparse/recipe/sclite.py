"""A stand-in for NIST's `sclite`, for machines where it is not installed.

ESPnet's recipes score a recogniser's text with `sclite -r ref.trn trn -h hyp.trn trn
-i rm -o all stdout`. This module answers that command line with the same alignments,
the same counts, the two rows of the summary that recipes read and the listing of every
utterance: `python3 -m espnet_omnisparse.recipe.sclite`.

It knows the part of sclite that a recipe needs. Words in braces, which sclite reads as
alternatives, are ordinary words here, so that text scored by character may hold them.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from espnet_omnisparse.errors import UserError, one_sentence

SUBSTITUTION = 4
GAP = 3  # the cost of an insertion and of a deletion

# Words stay bytes: like sclite, we split at ASCII blanks and fold ASCII letters only.
Words = list[bytes]
Pair = tuple[bytes | None, bytes | None]


@dataclass(frozen=True)
class Alignment:
    """The cheapest way from a reference to a hypothesis.

    Attributes:
        steps: One letter a step: Correct, Substituted, Deleted, Inserted.
        pairs: The reference's and the hypothesis' word of each step; None where an
            insertion or a deletion leaves a gap.
    """

    steps: str
    pairs: list[Pair]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many words are correct, substituted, deleted and inserted."""
        correct, substituted, deleted, inserted = map(self.steps.count, "CSDI")
        return correct, substituted, deleted, inserted


@dataclass
class Tally:
    """Counts over utterances."""

    sentences: int = 0
    wrong_sentences: int = 0
    correct: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0

    @property
    def words(self) -> int:
        """The number of words in the reference."""
        return self.correct + self.substituted + self.deleted

    @property
    def errors(self) -> tuple[int, int, int, int, int]:
        """Correct, substituted, deleted, inserted, and the errors among them."""
        wrong = self.substituted + self.deleted + self.inserted
        return self.correct, self.substituted, self.deleted, self.inserted, wrong

    @property
    def sentence_error(self) -> float:
        """The percentage of utterances with an error."""
        return self.wrong_sentences / self.sentences * 100.0

    def percentages(self) -> list[float]:
        """The six percentages of the table; zeros where there is no word to divide by.

        Returns:
            Correct, substituted, deleted, inserted, errors and sentence errors.
        """
        words = self.words
        # divided first and multiplied then, as sclite does: the other order ends on
        # the other side of some halves.
        shares = [count / words * 100.0 if words else 0.0 for count in self.errors]
        return [*shares, self.sentence_error]

    def add(self, alignment: Alignment) -> None:
        """Counts one more utterance.

        Args:
            alignment: The utterance's alignment.
        """
        correct, substituted, deleted, inserted = alignment.counts
        self.sentences += 1
        self.wrong_sentences += bool(substituted or deleted or inserted)
        self.correct += correct
        self.substituted += substituted
        self.deleted += deleted
        self.inserted += inserted


def align(reference: Words, hypothesis: Words) -> Alignment:
    """Aligns two word sequences at sclite's costs.

    Of several alignments that cost the same, it gives the one that sclite gives: read
    from the last word backwards, a pair goes before an insertion, and an insertion
    before a deletion.

    Args:
        reference: The words of the transcript.
        hypothesis: What was recognised.
    """
    equal = _equal(reference, hypothesis)
    cost = _costs(equal)
    paired = cost[1:, 1:] == cost[:-1, :-1] + _pair_costs(equal)
    inserted = cost[:, 1:] == cost[:, :-1]

    row, column = equal.shape
    steps: list[str] = []
    pairs: list[Pair] = []
    while row or column:
        if row and column and paired[row - 1, column - 1]:
            row, column = row - 1, column - 1
            steps.append("C" if equal[row, column] else "S")
            pairs.append((reference[row], hypothesis[column]))
        elif column and inserted[row, column - 1]:
            column -= 1
            steps.append("I")
            pairs.append((None, hypothesis[column]))
        else:
            row -= 1
            steps.append("D")
            pairs.append((reference[row], None))
    return Alignment("".join(reversed(steps)), pairs[::-1])


def _equal(reference: Words, hypothesis: Words) -> np.ndarray:
    """Says for every pair of a reference and a hypothesis word whether they agree."""
    numbers: dict[bytes, int] = {}
    rows = [numbers.setdefault(word, len(numbers)) for word in reference]
    columns = [numbers.setdefault(word, len(numbers)) for word in hypothesis]
    return np.equal.outer(np.array(rows, np.int32), np.array(columns, np.int32))


def _pair_costs(equal: np.ndarray) -> np.ndarray:
    """The cost of pairing two words, less that of leaving both unpaired."""
    return np.where(equal, np.int32(-2 * GAP), np.int32(SUBSTITUTION - 2 * GAP))


def _costs(equal: np.ndarray) -> np.ndarray:
    """The cheapest cost of every two beginnings, less that of leaving all unpaired.

    Measured so, a gap costs nothing, and a row's chain of insertions is a running
    minimum, which numpy takes in one go.
    """
    rows, columns = equal.shape
    cost = np.zeros((rows + 1, columns + 1), np.int32)
    for above, below, pair in zip(cost, cost[1:], _pair_costs(equal), strict=False):
        best = np.minimum(above[:-1] + pair, above[1:])
        np.minimum.accumulate(best, out=below[1:])
        np.minimum(below[1:], 0, out=below[1:])
    return cost


def read_trn(path: Path, case_sensitive: bool) -> dict[bytes, Words]:
    """Reads a file of lines that are words and then an utterance id in parentheses.

    Args:
        path: The file.
        case_sensitive: Leave ids and words as they are; else ASCII letters are folded.

    Returns:
        The words of each utterance under its id, parentheses included.

    Raises:
        UserError: The file cannot be read, holds no utterance, holds one twice, or has
            a line without an id.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    utterances: dict[bytes, Words] = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip() or line.startswith(b";;"):
            continue
        start, end = line.rfind(b"("), line.rfind(b")")
        if start < 0 or end < start:
            raise UserError(
                f"line {number} of {path} does not end with an utterance id in "
                "parentheses, such as (speaker-utterance)."
            )
        identity, words = line[start : end + 1], line[:start]
        if not case_sensitive:
            identity, words = identity.lower(), words.lower()
        if identity in utterances:
            raise UserError(f"{path} has two lines for utterance {_text(identity)}.")
        utterances[identity] = _words(words)
    if not utterances:
        raise UserError(f"{path} holds no utterance.")
    return utterances


def _words(text: bytes) -> Words:
    """Splits a transcript as sclite does.

    A word ends at a semicolon, after which sclite keeps remarks, and a lone @ is its
    sign for no word at all.
    """
    words = (token.partition(b";")[0] for token in text.split())
    return [word for word in words if word != b"@"]


def score(
    reference: dict[bytes, Words], hypothesis: dict[bytes, Words]
) -> dict[bytes, Alignment]:
    """Aligns every utterance of the hypothesis.

    Args:
        reference: Words by utterance id, as `read_trn` gives them.
        hypothesis: The same for the recognised text.

    Returns:
        The alignments by utterance id, in the hypothesis' order.

    Raises:
        UserError: An utterance of the hypothesis has no reference.
    """
    strange = [identity for identity in hypothesis if identity not in reference]
    if strange:
        raise UserError(
            f"{len(strange)} utterance(s) of the hypothesis have no reference, "
            f"such as {_text(strange[0])}; score files of the same utterances."
        )
    return {
        identity: align(reference[identity], words)
        for identity, words in hypothesis.items()
    }


def summary(title: str, total: Tally) -> str:
    """The two rows of sclite's table that recipes read: the heading and the sum.

    Args:
        title: What stands above them: the hypothesis' file.
        total: The counts of all speakers.
    """
    numbers = f"{total.sentences:5d} {total.words:6d}"
    shares = "  ".join(f"{_rounded(value):5.1f}" for value in total.percentages())
    return (
        f"\n\n{title}\n\n"
        "       | SPKR   | # Snt # Wrd | Corr    Sub    Del    Ins    Err  S.Err |\n"
        f"       | Sum/Avg|{numbers} |{shares} |\n"
    )


def _rounded(value: float) -> float:
    """One decimal; halves go up, as sclite rounds them."""
    return math.floor(value * 10.0 + 0.5) / 10.0


def listing(
    title: str, alignments: dict[bytes, Alignment], case_sensitive: bool
) -> str:
    """Every utterance, its words aligned and its errors marked.

    Args:
        title: The hypothesis' file.
        alignments: By utterance id.
        case_sensitive: Leave the words' case; else those of errors become upper case.
    """
    lines = ["", "", "\t\tDUMP OF SYSTEM ALIGNMENT STRUCTURE", ""]
    lines += [f"System name:   {title}", ""]
    for identity, alignment in alignments.items():
        counts = " ".join(map(str, alignment.counts))
        lines += [f"id: {_text(identity)}", f"Scores: (#C #S #D #I) {counts}"]
        if case_sensitive:
            lines.append("Attributes: Case_sensitive ")
        lines += [*_aligned(alignment, case_sensitive), ""]
    return "\n".join(lines) + "\n"


def _aligned(alignment: Alignment, case_sensitive: bool) -> list[str]:
    """An utterance's lines of words, each word over the one it is paired with."""
    if not alignment.steps:
        return []
    rows = ["REF:  ", "HYP:  ", "Eval: "]
    for step, pair in zip(alignment.steps, alignment.pairs, strict=True):
        width = max(len(word) for word in pair if word is not None)
        shown = []
        for word in pair:
            if word is None:
                shown.append("*" * width)
            else:
                raised = step != "C" and not case_sensitive
                shown.append(_text(word.upper() if raised else word))
        for index, cell in enumerate([*shown, "" if step == "C" else step]):
            rows[index] += cell.ljust(width + 1)
    return rows


def _text(data: bytes) -> str:
    """Bytes as text of the same length, whatever they encode.

    The listing is padded by bytes, as sclite's is, and goes back to them in `main`.
    """
    return data.decode("latin-1")


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message}; this stand-in for sclite takes -r FILE trn -h FILE trn -i rm "
            "-o all stdout and -s, so install NIST's sclite for anything else."
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line in sclite's own spelling."""
    parser = _Parser(prog="sclite", add_help=False, allow_abbrev=False)
    parser.add_argument("-r", dest="reference", nargs="+", action="append")
    parser.add_argument("-h", dest="hypothesis", nargs="+", action="append")
    parser.add_argument("-i", dest="ids", choices=["rm"], default="rm")
    parser.add_argument("-s", dest="case_sensitive", action="store_true")
    reports = ["all", "sum", "pralign", "stdout"]
    default = ["sum", "stdout"]
    parser.add_argument(
        "-o", dest="reports", nargs="+", choices=reports, default=default
    )
    args = parser.parse_args(argv)
    args.reference = _trn_path(parser, "-r", args.reference)
    args.hypothesis = _trn_path(parser, "-h", args.hypothesis)
    if "stdout" not in args.reports:
        parser.error("-o lacks stdout")
    return args


def _trn_path(
    parser: argparse.ArgumentParser, option: str, given: list[list[str]] | None
) -> Path:
    """The one file that -r or -h names."""
    if given is None or len(given) != 1:
        parser.error(f"{option} FILE trn is needed once")
    if given[0][1:] != ["trn"]:
        parser.error(f"{option} {given[0][0]} is not followed by trn alone")
    return Path(given[0][0])


def _warn_of_missing(
    reference: dict[bytes, Words], hypothesis: dict[bytes, Words]
) -> None:
    """Says on stderr what sclite leaves out in silence."""
    missing = [identity for identity in reference if identity not in hypothesis]
    if missing:
        print(
            f"warning: {len(missing)} utterance(s) of the reference have no hypothesis "
            f"and are not scored, such as {_text(missing[0])}.",
            file=sys.stderr,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Scores a hypothesis against a reference and prints sclite's reports.

    Args:
        argv: The command line; the process' own where it is None.
    """
    with one_sentence():
        args = _parse(argv)
        reference = read_trn(args.reference, args.case_sensitive)
        hypothesis = read_trn(args.hypothesis, args.case_sensitive)
        found = score(reference, hypothesis)
        _warn_of_missing(reference, hypothesis)

        title = _text(os.fsencode(args.hypothesis))
        total = Tally()
        for alignment in found.values():
            total.add(alignment)
        report = ""
        if {"all", "sum"} & set(args.reports):
            report += summary(title, total)
        if {"all", "pralign"} & set(args.reports):
            report += listing(title, found, args.case_sensitive)
        sys.stdout.buffer.write(report.encode("latin-1"))


if __name__ == "__main__":
    main()
