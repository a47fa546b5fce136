"""The stand-in for sclite: its counts, its table, its complaints, and the real tool."""

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.recipe import sclite


def real_sclite() -> str | None:
    """Where NIST's tool is; a stand-in of the same name on PATH is not it."""
    # Debian's sctk package keeps its tools outside PATH.
    for folders in ("/usr/lib/sctk/bin", None):
        found = shutil.which("sclite", path=folders)
        if found:
            usage = subprocess.run([found], capture_output=True, text=True)
            if "SCTK Version" in usage.stdout + usage.stderr:
                return found
    return None


REAL = real_sclite()


def run(folder: Path, reference: str, hypothesis: str, *options: str) -> None:
    """Writes the two files and scores them as a recipe does."""
    paths = folder / "ref.trn", folder / "hyp.trn"
    for path, text in zip(paths, (reference, hypothesis), strict=True):
        path.write_text(text, encoding="utf-8")
    files = ["-r", str(paths[0]), "trn", "-h", str(paths[1]), "trn"]
    sclite.main([*options, *files, "-i", "rm", "-o", "all", "stdout"])


def table_row(report: str, name: str) -> list[str]:
    """The cells of the table's row of that name."""
    found = re.search(rf"^ *\| *{re.escape(name)} *\|(.*)\|$", report, re.MULTILINE)
    assert found, f"no row {name} in {report}"
    return found[1].replace("|", " ").split()


def steps(reference: str, hypothesis: str) -> str:
    return sclite.align(reference.encode().split(), hypothesis.encode().split()).steps


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("", "", ""),
        ("a b", "", "DD"),
        ("", "a b", "II"),
        ("a b c", "a b c", "CCC"),
        ("a b c", "a x c", "CSC"),
        ("a b c", "a c", "CDC"),
        ("a c", "a b c", "CIC"),
        # A pair is preferred from the last word on, so the gap comes first.
        ("a b", "x", "DS"),
        ("x", "a b", "IS"),
        # Three substitutions cost as much as two insertions and two deletions.
        ("a b c", "c x y", "SSS"),
        ("b d d c", "c a b", "DSSS"),
        # A substitution is cheaper than an insertion and a deletion together.
        ("a", "b", "S"),
    ],
)
def test_align_takes_the_cheapest_steps(reference, hypothesis, expected):
    assert steps(reference, hypothesis) == expected


def test_align_keeps_the_words_of_each_step():
    alignment = sclite.align([b"a", b"b"], [b"a", b"x", b"b"])
    assert alignment.pairs == [(b"a", b"a"), (None, b"x"), (b"b", b"b")]
    assert alignment.counts == (2, 0, 0, 1)


def test_table_of_a_small_case(tmp_path, capsys):
    run(
        tmp_path,
        "the cat sat\t(s1-u1)\non the mat\t(s1-u2)\nhello\t(s2-u3)\n",
        "hello you\t(s2-u3)\nthe cat sat\t(s1-u1)\nin mat\t(s1-u2)\n",
    )
    report = capsys.readouterr().out
    # by hand: of 7 words one is substituted, one deleted, and one inserted
    assert table_row(report, "Sum/Avg") == "3 7 71.4 14.3 14.3 14.3 42.9 66.7".split()


def test_layout_is_the_one_recipes_grep(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ref.trn").write_text("a b (s-1)\n")
    Path("hyp.trn").write_text("a c (s-1)\n")
    sclite.main("-r ref.trn trn -h hyp.trn trn -i rm -o all stdout".split())
    shown = capsys.readouterr().out
    margin = " " * 7
    found = [line for line in shown.split("\n") if re.search("Avg|SPKR", line)]
    assert found == [
        margin + "| SPKR   | # Snt # Wrd | Corr    Sub    Del    Ins    Err  S.Err |",
        margin + "| Sum/Avg|    1      2 | 50.0   50.0    0.0    0.0   50.0  100.0 |",
    ]
    assert "\nhyp.trn\n" in shown


def test_halves_are_rounded_up():
    table = sclite.summary("hyp", sclite.Tally(1, 1, 1, 15, 0, 0))
    assert table_row(table, "Sum/Avg")[2:4] == ["6.3", "93.8"]


def test_listing_shows_the_errors(tmp_path, capsys):
    run(tmp_path, "one two three (s-1)\n(s-2)\n", "one too three four (s-1)\n(s-2)\n")
    listing = capsys.readouterr().out
    assert (
        "id: (s-1)\n"
        "Scores: (#C #S #D #I) 2 1 0 1\n"
        "REF:  one TWO three **** \n"
        "HYP:  one TOO three FOUR \n"
        "Eval:     S         I    \n"
    ) in listing
    assert "id: (s-2)\nScores: (#C #S #D #I) 0 0 0 0\n\n" in listing


def test_insertions_into_nothing_count_as_errors(tmp_path, capsys):
    run(tmp_path, "(s-1)\na (t-1)\n", "x y (s-1)\na (t-1)\n")
    report = capsys.readouterr().out
    assert table_row(report, "Sum/Avg")[2:] == "100.0 0.0 0.0 200.0 200.0 50.0".split()


def test_case_is_folded_unless_asked_for(tmp_path, capsys):
    texts = "Hello WORLD (S-1)\n", "hello World (S-1)\n"
    run(tmp_path, *texts)
    folded = capsys.readouterr().out
    assert table_row(folded, "Sum/Avg")[2:4] == ["100.0", "0.0"]
    run(tmp_path, *texts, "-s")
    kept = capsys.readouterr().out
    assert table_row(kept, "Sum/Avg")[2:4] == ["0.0", "100.0"]
    assert "REF:  Hello WORLD \n" in kept


def test_text_beyond_ascii_passes_through(tmp_path, capsys):
    run(tmp_path, "caf\u00e9 \u4e2d (s-1)\n", "caf\u00e9 \u56fd (s-1)\n")
    listing = capsys.readouterr().out
    assert "Scores: (#C #S #D #I) 1 1 0 0\nREF:  caf\u00e9 \u4e2d \n" in listing


def test_comments_blank_lines_and_marks_are_skipped(tmp_path, capsys):
    run(tmp_path, ";; a remark\n\na @ b;note (s-1)\n", "a b (s-1)\n")
    assert table_row(capsys.readouterr().out, "Sum/Avg")[:3] == ["1", "2", "100.0"]


def test_only_the_summary_when_asked(tmp_path, capsys):
    path = tmp_path / "a.trn"
    path.write_text("a (s-1)\n")
    files = ["-r", str(path), "trn", "-h", str(path), "trn"]
    sclite.main([*files, "-o", "sum", "stdout"])
    report = capsys.readouterr().out
    assert "Sum/Avg" in report and "Scores:" not in report


def test_an_utterance_without_hypothesis_is_warned_of(tmp_path, capsys):
    run(tmp_path, "a (s-1)\nb (s-2)\n", "a (s-1)\n")
    shown = capsys.readouterr()
    assert table_row(shown.out, "Sum/Avg")[:2] == ["1", "1"]
    assert shown.err == (
        "warning: 1 utterance(s) of the reference have no hypothesis and are not "
        "scored, such as (s-2).\n"
    )


@pytest.mark.parametrize(
    ("reference", "hypothesis", "sentence"),
    [
        ("a (s-1)\n", "a (s-1)\nb (s-2)\n", "have no reference, such as (s-2)"),
        ("a (s-1)\n", "a (s-1)\nb (s-1)\n", "has two lines for utterance (s-1)"),
        ("a (s-1)\n", "a\n", "does not end with an utterance id"),
        ("", "a (s-1)\n", "holds no utterance"),
    ],
)
def test_unfit_files_end_in_a_sentence(
    tmp_path, capsys, reference, hypothesis, sentence
):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, reference, hypothesis)
    shown = capsys.readouterr()
    assert stop.value.code == 1
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert sentence in shown.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("-q -r a trn -h a trn", "unrecognized arguments: -q"),
        ("-r a trn", "-h FILE trn is needed once"),
        ("-r a trn -h a trn -h b trn", "-h FILE trn is needed once"),
        ("-r a stm -h a trn", "-r a is not followed by trn alone"),
        ("-r a trn -h a trn -i swb", "invalid choice: 'swb'"),
        ("-r a trn -h a trn -o all", "-o lacks stdout"),
        ("-r missing.trn trn -h a trn", "cannot read missing.trn"),
    ],
)
def test_unfit_command_lines_end_in_a_sentence(capsys, options, sentence):
    with pytest.raises(SystemExit) as stop:
        sclite.main(options.split())
    shown = capsys.readouterr().err
    assert stop.value.code == 1
    assert sentence in shown and shown.count("\n") == 1


def test_read_trn_raises_for_its_caller(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        sclite.read_trn(tmp_path / "none.trn", case_sensitive=False)


def test_it_runs_as_a_command_and_starts_light():
    code = (
        "import sys, espnet_omnisparse.recipe.sclite;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'espnet2')))"
    )
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
    asked = [sys.executable, "-m", "espnet_omnisparse.recipe.sclite"]
    ended = subprocess.run(asked, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "-r FILE trn is needed once" in ended.stderr


def random_trn(rng: random.Random, names: list[str]) -> list[str]:
    """A reference and a hypothesis over few words, so that many alignments tie."""
    lines: list[list[str]] = [[], []]
    for number in range(400):
        vocabulary = ["a", "bb", "C", "c", "\u00e9", "d;x"][: rng.randint(1, 6)]
        longest = rng.choice([3, 8, 8, 30])
        name = f"({rng.choice(names)}{rng.choice('-_')}{number})"
        for file in lines:
            words = rng.choices(vocabulary, k=rng.randint(0, longest))
            file.append(" ".join([*words, name]))
        if number < 2 * len(names):
            # So that no speaker is without a word.
            lines[0][-1] = f"a {lines[0][-1]}"
    rng.shuffle(lines[0])
    return ["\n".join(file) + "\n" for file in lines]


@pytest.mark.skipif(REAL is None, reason="NIST's sclite is not installed")
@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_real_tool(tmp_path, capsys, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    names = [f"s{number}" + "x" * rng.randint(0, 8) for number in range(4)]
    reference, hypothesis = random_trn(rng, names)
    # The title sets the table's width, so its length is drawn too.
    title = "h" * rng.choice([5, 70, 133])
    Path("ref.trn").write_text(reference, encoding="utf-8")
    Path(title).write_text(hypothesis, encoding="utf-8")
    options = ["-s"] if seed % 2 else []
    options += f"-r ref.trn trn -h {title} trn -i rm -o all stdout".split()

    ended = subprocess.run([REAL, *options], capture_output=True, check=True)
    expected = ended.stdout.decode("utf-8")
    # its blocks of utterances; it groups them by speaker and misspells a word
    blocks = re.findall(r"^id: .*?\n\n", expected, re.MULTILINE | re.DOTALL)
    theirs = sorted(block.replace("sensitve", "sensitive") for block in blocks)

    sclite.main(options)
    ours = capsys.readouterr().out
    mine = re.findall(r"^id: .*?\n\n", ours, re.MULTILINE | re.DOTALL)
    assert sorted(mine) == theirs and len(mine) == 400
    greps = [
        [
            line.replace("|", " | ").split()
            for line in text.split("\n")
            if re.search("Avg|SPKR", line)
        ][:2]
        for text in (expected, ours)
    ]
    assert len(greps[0]) == 2 and greps[0] == greps[1]
