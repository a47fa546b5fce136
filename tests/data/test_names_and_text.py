"""Names and transcripts as systems and editors leave them, in both corpora."""

import os
import random
import subprocess
import unicodedata
from pathlib import Path

import pytest
from helpers.corpora import refused, write_audio, write_talk

from espnet_omnisparse.data import librispeech, tedlium
from espnet_omnisparse.data.corpus_files import read_lines
from espnet_omnisparse.data.kaldi import check_order
from espnet_omnisparse.data.recordings import AudioRules
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.recipe import template

COMPOSED = "Zoë"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
# what str.splitlines takes for the end of a line beside CR and LF
SEPARATORS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
TRANSCRIPT = "11-22-0000 HELLO THERE\n11-22-0001 GOOD BYE\n"


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    """Reader 11's chapter 22, of part `my-test`."""
    folder = tmp_path / "corpus" / "my-test" / "11" / "22"
    for name in ("11-22-0000", "11-22-0001"):
        write_audio(folder / f"{name}.flac")
    (folder / "11-22.trans.txt").write_text(TRANSCRIPT)
    return folder


def libri(corpus: Path, data: Path, **options) -> list[str]:
    """Prepares `my-test`; returns the lines of its text."""
    prepared = librispeech.prepare(
        corpus, data, "train", [], "dev", [], ["my-test"], **options
    )
    return prepared[0].joinpath("text").read_bytes().decode().split("\n")[:-1]


def ted(corpus: Path, data: Path) -> list[str]:
    """Prepares `test`; returns the lines of its text."""
    (folder,) = tedlium.prepare(corpus, data, ["test"])
    return folder.joinpath("text").read_bytes().decode().split("\n")[:-1]


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """The transcript of Ann_2001, in a corpus of that talk alone."""
    corpus = tmp_path / tedlium.RELEASE
    write_talk(corpus / "test", "Ann_2001", "1 2 <F0_F> hello there")
    return corpus / "test" / "stm" / "Ann_2001.stm"


class TestLines:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_ends(self, tmp_path, end):
        path = tmp_path / "a.txt"
        path.write_bytes(f"a b{end}{end} {end}c\td".encode())
        assert read_lines(path) == [(1, "a b"), (4, "c\td")]

    def test_unreadable(self, tmp_path):
        refused(lambda: read_lines(tmp_path / "none.txt"), "none.txt cannot be read")
        refused(lambda: read_lines(tmp_path), "cannot be read")
        (tmp_path / "a.txt").write_text("a b\n", encoding="utf-16")
        refused(lambda: read_lines(tmp_path / "a.txt"), "not UTF-8")

    def test_control_characters_are_those_that_kaldi_refuses(self, tmp_path):
        """utils/validate_data_dir.sh looks for them with grep, in UTF-8."""
        path = tmp_path / "a.txt"
        for code in range(0xB0):
            text = f"id a{chr(code)}b\n"
            path.write_text(text, encoding="utf-8", newline="")
            found = subprocess.run(
                ["grep", "-ac", "[^[:print:][:space:]]"],
                input=text.encode(),
                capture_output=True,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
            try:
                read_lines(path)
                # what Python has for a blank will be a space in the table
                assert int(found.stdout) == 0 or chr(code).isspace()
            except UserError as error:
                assert f"Line 1 of {path}" in str(error) and f"U+{code:04X}" in str(
                    error
                )
                assert int(found.stdout) == 1

    def test_marks(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).write_text(f"{name} x\n", encoding="utf-8-sig")
        joined = (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes()
        (tmp_path / "a").write_bytes(joined)
        assert read_lines(tmp_path / "a") == [(1, "a x"), (2, "b x")]


class TestLibriSpeech:
    WANTED = ("11-22-0000 HELLO THERE", "11-22-0001 GOOD BYE")

    def prepared(self, chapter: Path) -> tuple[str, ...]:
        return tuple(libri(chapter.parents[2], chapter.parents[3] / "data"))

    def test_byte_order_mark(self, chapter):
        transcript = chapter / "11-22.trans.txt"
        transcript.write_text(TRANSCRIPT, encoding="utf-8-sig")
        assert self.prepared(chapter) == self.WANTED

    @pytest.mark.parametrize("separator", SEPARATORS)
    def test_separator_inside_a_line(self, chapter, separator):
        text = TRANSCRIPT.replace("LO TH", f"LO{separator}TH")
        (chapter / "11-22.trans.txt").write_text(text, encoding="utf-8")
        assert self.prepared(chapter) == self.WANTED

    def test_blank_lines_crlf_and_tabs(self, chapter):
        text = TRANSCRIPT.replace("\n", "\r\n\r\n").replace(" ", "\t")
        (chapter / "11-22.trans.txt").write_bytes(text.encode())
        assert self.prepared(chapter) == self.WANTED

    def test_suffixes_in_upper_case(self, chapter):
        for path in list(chapter.iterdir()):
            name, suffix = path.name.split(".", 1)
            path.rename(path.with_name(f"{name}.{suffix.upper()}"))
        assert self.prepared(chapter) == self.WANTED

    def test_hidden_files(self, chapter):
        for path in list(chapter.iterdir()):
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        (chapter.parent / "._22").write_bytes(b"\0")
        assert self.prepared(chapter) == self.WANTED

    @pytest.mark.parametrize(
        "on_disk, written",
        [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED), (DECOMPOSED, DECOMPOSED)],
    )
    def test_decomposed_names_and_words(self, tmp_path, on_disk, written):
        folder = tmp_path / "corpus" / "my-test" / on_disk / "1"
        write_audio(folder / f"{on_disk}-1-0.flac")
        transcript = folder / f"{on_disk}-1.trans.txt"
        transcript.write_text(f"{written}-1-0 {written}\n", encoding="utf-8")
        assert libri(tmp_path / "corpus", tmp_path / "data") == ["Zoë-1-0 Zoë"]
        speakers = (tmp_path / "data" / "my_test" / "utt2spk").read_text("utf-8")
        assert speakers == "Zoë-1-0 Zoë-1\n"
        audio = (tmp_path / "data" / "my_test" / "wav.scp").read_text("utf-8")
        assert Path(audio.rstrip("\n").split(" ", 1)[1]).is_file()

    @pytest.mark.parametrize("other", ["11-22-0001.FLAC", "11-22-0001.wav"])
    def test_two_files_of_a_name(self, chapter, other):
        whole = (chapter / "11-22-0001.flac").read_bytes()
        (chapter / other).write_bytes(whole)
        refused(lambda: self.prepared(chapter), "11-22-0001 occurs twice", other)

    def test_sexes(self, chapter):
        table = "11 | M | my-test | 1 | A\u2028B\n12 | F | my-test | 1 | C\n"
        path = chapter.parents[2] / "SPEAKERS.TXT"
        path.write_text(table, encoding="utf-8-sig")
        assert librispeech.read_genders(path.parent) == {"11": "m", "12": "f"}
        path.write_bytes(b"11 | M | my-test | 1 | Zo\xeb\0\n")
        assert librispeech.read_genders(path.parent) == {"11": "m"}

    @pytest.mark.parametrize("place", [".", "..", "inner"])
    @pytest.mark.parametrize("name", ["11-22-0002.flac", "11-22.trans.txt"])
    def test_file_out_of_its_place(self, chapter, place, name):
        stray = (chapter.parent / place if place != "inner" else chapter / place) / name
        stray.parent.mkdir(exist_ok=True)
        stray.touch()
        refused(lambda: self.prepared(chapter), name, "is not in its place")

    def test_link_to_a_chapter_that_is_gone(self, chapter):
        (chapter.parent / "23").symlink_to(chapter / "gone")
        refused(lambda: self.prepared(chapter), "11/23 is a link to what is not there")

    def test_name_that_is_not_utf8(self, chapter):
        name = os.fsencode(chapter) + b"/11-22-caf\xe9.flac"
        Path(os.fsdecode(name)).write_bytes(b"")
        refused(lambda: self.prepared(chapter), "is not UTF-8: rename")

    @pytest.mark.parametrize("name", ["my  corpus", "my\tcorpus", "my\fcorpus"])
    def test_blanks_that_kaldis_scripts_lose(self, chapter, name):
        corpus = chapter.parents[2]
        other = corpus.rename(corpus.with_name(name))
        data = corpus.with_name("data")
        refused(lambda: libri(other, data), "has a tab, or spaces in a row", "link")
        assert not data.exists()
        corpus.symlink_to(other)  # the way out
        assert tuple(libri(corpus, data)) == self.WANTED

    @pytest.mark.parametrize("name", ["my corpus", "corpus ", "ma\u3000corpus"])
    def test_blanks_that_kaldis_scripts_keep(self, chapter, name):
        corpus = chapter.parents[2].rename(chapter.parents[3] / name)
        data = corpus.with_name("data")
        assert tuple(libri(corpus, data)) == self.WANTED
        (data / "map").write_text("11-22-0000 a\n11-22-0001 b\n")
        kaldi = template.locate() / "egs2/TEMPLATE/asr1/utils/apply_map.pl"
        copied = subprocess.run(
            ["perl", kaldi.resolve(), "-f", "1", data / "map"],
            stdin=(data / "my_test" / "wav.scp").open("rb"),
            capture_output=True,
            check=True,
        ).stdout.decode()
        for line in copied.splitlines():
            assert Path(line.split(" ", 1)[1]).is_file(), line

    def test_path_that_begins_with_a_space(self, chapter, monkeypatch):
        corpus = chapter.parents[2].rename(chapter.parents[3] / " corpus")
        monkeypatch.chdir(corpus.parent)
        refused(lambda: libri(Path(" corpus"), Path("data")), "to begin with")

    @pytest.mark.parametrize("name", ["my corpus", "it's", "a$b", "a(b)", "a;b", "a*"])
    def test_paths_that_sox_would_not_get(self, chapter, name):
        corpus = chapter.parents[2].rename(chapter.parents[3] / name)
        data = corpus.with_name("data")
        rules = AudioRules(perturb=True)

        def train(corpus):
            parts = ["my-test"]
            return librispeech.prepare(
                corpus, data, "train", parts, "dev", [], [], rules=rules
            )

        refused(lambda: train(corpus), '--speed_perturb_factors "".', "by a link")
        assert not data.exists()
        # what is only decoded is not perturbed
        assert tuple(libri(corpus, data, rules=rules)) == self.WANTED
        corpus.with_name("my-Zoë_1.0,+@%~").symlink_to(corpus)
        assert len(train(corpus.with_name("my-Zoë_1.0,+@%~"))) == 2

    def test_order_of_speakers(self, tmp_path):
        for chapter in ("1", "1+2"):
            folder = tmp_path / "corpus" / "my-test" / "11" / chapter
            write_audio(folder / f"11-{chapter}-0.wav")
            (folder / f"11-{chapter}.trans.txt").write_text(f"11-{chapter}-0 A\n")
        rules = AudioRules(rate=8000, convert=True)
        refused(
            lambda: libri(tmp_path / "corpus", tmp_path / "data", rules=rules),
            "11-1+2-0 comes before 11-1-0",
            "rename",
        )
        assert not (tmp_path / "data").exists()

    def test_ids_of_two_parts_before_anything_is_converted(self, chapter, tmp_path):
        other = tmp_path / "corpus" / "other" / "11"
        other.mkdir(parents=True)
        (other / "22").symlink_to(chapter)
        rules = AudioRules(rate=8000, convert=True)
        corpus, parts = tmp_path / "corpus", ["my-test", "other"]
        refused(
            lambda: librispeech.prepare(
                corpus, tmp_path / "data", "t", parts, "d", [], [], rules=rules
            ),
            "11-22-0000 occurs twice",
        )
        assert not (tmp_path / "data").exists()


def test_order_is_what_kaldi_asks_for():
    """utils/validate_data_dir.sh compares utt2spk with `sort -k2` of it."""
    rng = random.Random(0)
    verdicts = []
    for _ in range(60):
        names = {"".join(rng.choices("a1+-é", k=rng.randint(1, 3))) for _ in range(3)}
        speakers = {f"{name}-{n}": name for name in names for n in range(2)}
        lines = "".join(f"{one} {speakers[one]}\n" for one in sorted(speakers))
        done = subprocess.run(
            ["sort", "-k2"],
            input=lines.encode(),
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            check=True,
        )
        verdicts.append(done.stdout == lines.encode())
        try:
            check_order(speakers)
            assert verdicts[-1]
        except UserError:
            assert not verdicts[-1]
    assert set(verdicts) == {True, False}


class TestTedlium:
    WANTED = ("Ann_2001-0000100-0000200 hello there",)

    def prepared(self, talk: Path) -> tuple[str, ...]:
        return tuple(ted(talk.parents[2], talk.parents[3] / "data"))

    def test_byte_order_mark(self, talk):
        talk.write_text(f";; a comment\n{talk.read_text()}", encoding="utf-8-sig")
        assert self.prepared(talk) == self.WANTED

    @pytest.mark.parametrize("separator", SEPARATORS)
    def test_separator_inside_a_line(self, talk, separator):
        text = talk.read_text().replace("lo th", f"lo{separator}th")
        talk.write_text(text, encoding="utf-8")
        assert self.prepared(talk) == self.WANTED

    def test_suffixes_in_upper_case(self, talk):
        sphere = talk.parents[1] / "sph" / "Ann_2001.sph"
        sphere.rename(sphere.with_suffix(".SPH"))
        talk.rename(talk.with_suffix(".STM"))
        assert self.prepared(talk) == self.WANTED

    def test_blanks_that_kaldis_scripts_lose(self, talk):
        corpus = talk.parents[2]
        other = corpus.rename(corpus.with_name("my  corpus"))
        refused(lambda: ted(other, other.with_name("data")), "spaces in a row")

    def test_paths_that_sox_would_not_get(self, talk):
        corpus = talk.parents[2].rename(talk.parents[3] / "my corpus")
        (corpus / "test").rename(corpus / "train")
        data, rules = corpus.with_name("data"), AudioRules(perturb=True)
        refused(
            lambda: tedlium.prepare(corpus, data, ["train"], rules=rules),
            "has ' ' in it, and ESPnet's speed perturbation",
        )
        assert not data.exists()
        tedlium.prepare(corpus, data, ["train"])

    def test_two_files_of_a_talk(self, talk):
        sphere = talk.parents[1] / "sph" / "Ann_2001.sph"
        sphere.with_suffix(".SPH").write_bytes(sphere.read_bytes())
        refused(lambda: self.prepared(talk), "Ann_2001 occurs twice", "Ann_2001.SPH")

    def test_decomposed_names_and_words(self, talk):
        write_talk(talk.parents[1], COMPOSED, f"1 2 <F0_F> {DECOMPOSED}")
        for path in (talk.parent, talk.parents[1] / "sph"):
            (file,) = path.glob(f"{COMPOSED}.*")
            file.rename(path / f"{DECOMPOSED}{file.suffix}")
        assert self.prepared(talk)[1] == "Zoë-0000100-0000200 Zoë"

    @pytest.mark.parametrize("place", ["..", "inner"])
    def test_talk_out_of_its_place(self, talk, place):
        for path in (talk, talk.parents[1] / "sph" / "Ann_2001.sph"):
            (path.parent / place).mkdir(exist_ok=True)
            stray = path.parent / place / f"Bob_2002{path.suffix}"
            stray.write_bytes(path.read_bytes())
        refused(lambda: self.prepared(talk), "Bob_2002.sph is not in its place")

    def test_transcript_that_cannot_be_read(self, talk):
        talk.with_name("Bob_2002.stm").symlink_to(talk.with_name("gone"))
        refused(lambda: self.prepared(talk), "Bob_2002.stm cannot be read")
