"""How well a size recognises: what the scoring of ESPnet2 or of ESPnet3 has left."""

import re
from dataclasses import dataclass
from pathlib import Path

from espnet_omnisparse.errors import UserError

# ESPnet3's, of a metric, after the alignments of the utterances that have errors
_COUNTS = re.compile(
    r"hits=(\d+), substitutions=(\d+), deletions=(\d+), insertions=(\d+)\)\s*$"
)
# reference, hypothesis, and below them a letter for each error
_UTTERANCE = re.compile(r"^REF: .*\nHYP: .*\n(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Score:
    """The Sum/Avg row of sclite's table, or what ESPnet3 counted.

    Attributes:
        sentences: Utterances scored.
        words: Words, or characters, of the reference.
        corr: Percentage of them that is correct.
        sub: Substituted.
        del_: Deleted.
        ins: Inserted.
        err: The error rate: substituted, deleted and inserted.
        sentence_err: Percentage of utterances with an error.
    """

    sentences: int
    words: int
    corr: float
    sub: float
    del_: float
    ins: float
    err: float
    sentence_err: float


def read_scores(folder: Path, kind: str) -> dict[str, Score]:
    """The scores of a size by data set, each named `inference_tag/test_set`.

    Args:
        folder: Its experiment folder.
        kind: `wer` or `cer`.

    Raises:
        UserError: If a table is empty or garbled.
    """
    # asr.sh decodes the validation set, when asked to, into a folder org/ of its own
    patterns = (f"*/*/score_{kind}/result.txt", f"*/org/*/score_{kind}/result.txt")
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    found = {path.parent.parent: read_score(path) for path in paths}
    for path in sorted(folder.glob(f"*/*/{kind}_alignment")):
        found[path.parent] = _read_alignment(path)
    return {path.relative_to(folder).as_posix(): one for path, one in found.items()}


def read_score(path: Path) -> Score:
    """Reads a `result.txt` that sclite, or its stand-in, has written.

    Raises:
        UserError: If the file is missing, empty or has no Sum/Avg row.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: score this size first (stage 13).")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        cells = line.split("|")
        if len(cells) > 3 and cells[1].strip() == "Sum/Avg":
            # more columns follow where a recogniser gives confidences
            counts, shares = cells[2].split(), cells[3].split()
            try:
                return Score(*map(int, counts), *map(float, shares))
            except (ValueError, TypeError):
                break
    raise UserError(
        f"{path} is empty or not sclite's table (it has no whole Sum/Avg row): score "
        "this size again (stage 13)."
    )


def _read_alignment(path: Path) -> Score:
    """Reads what ESPnet3's stage `measure` writes, beside what was decoded."""
    text = path.read_text(encoding="utf-8", errors="replace")
    counts, decoded = _COUNTS.search(text), path.with_name("text.scp")
    if counts is None or not decoded.is_file():
        raise UserError(
            f"{path} has no counts at its end, or no {decoded.name} beside it: run the "
            "stages infer and measure of this size again."
        )
    hits, *wrong = map(int, counts.groups())
    words = hits + wrong[0] + wrong[1]
    sentences = len(decoded.read_text(encoding="utf-8").splitlines())
    with_errors = sum(bool(line.strip()) for line in _UTTERANCE.findall(text))

    def share(count: int, of: int) -> float:
        return round(100.0 * count / max(of, 1), 1)  # as sclite's

    shares = [share(count, words) for count in (hits, *wrong, sum(wrong))]
    return Score(sentences, words, *shares, share(with_errors, sentences))
