"""The data preparation, on small trees written here and on real files if there are."""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from helpers import REPOSITORY
from helpers.corpora import (
    FORMATS,
    SPEAKERS,
    Server,
    command,
    contents,
    prepared,
    refused,
    write_audio,
    write_chapter,
    write_librispeech,
)
from helpers.recipes import PARSE

from espnet_omnisparse.data import librispeech
from espnet_omnisparse.data.audio_files import check_audio
from espnet_omnisparse.data.librispeech import Archive, prepare, read_part
from espnet_omnisparse.recipe import template

DATA = Path(os.environ.get("OMNISPARSE_TEST_DATA", "unset"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_librispeech(tmp_path / "LibriSpeech")


@pytest.fixture
def chapter(corpus: Path) -> Path:
    """The chapter that the tests of mistakes damage: 7-70 of part `one`."""
    return corpus / "one" / "7" / "70"


def everything(folder: Path) -> dict[Path, bytes]:
    """Content by path, of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestFolders:
    def test_contents(self, corpus, tmp_path):
        written = prepared(corpus, tmp_path / "data")
        names = [path.name for path in written]
        assert names == ["one", "two", "test_it", "train", "dev"]
        train = tmp_path / "data" / "train"
        # C order: 12 comes before 7
        assert (train / "text").read_text() == (
            "12-30-0000 HELLO THERE\n12-30-0001 GOOD BYE\n"
            "12-31-0000 HELLO THERE\n12-31-0001 GOOD BYE\n"
            "7-70-0000 HELLO THERE\n7-70-0001 GOOD BYE\n"
        )
        assert (train / "utt2spk").read_text().splitlines()[0] == "12-30-0000 12-30"
        assert (train / "spk2utt").read_text() == (
            "12-30 12-30-0000 12-30-0001\n"
            "12-31 12-31-0000 12-31-0001\n"
            "7-70 7-70-0000 7-70-0001\n"
        )
        assert (train / "spk2gender").read_text() == "12-30 m\n12-31 m\n7-70 f\n"
        for line in (train / "wav.scp").read_text().splitlines():
            name, path = line.split(" ", 1)
            assert Path(path).stem == name
            assert soundfile.info(path).duration == pytest.approx(0.5)

    def test_twice_is_the_same(self, corpus, tmp_path):
        prepared(corpus, tmp_path / "data")
        first = contents(tmp_path / "data")
        prepared(corpus, tmp_path / "data")
        assert contents(tmp_path / "data") == first

    def test_parent_of_the_corpus_is_accepted(self, corpus, tmp_path):
        prepared(corpus, tmp_path / "a")
        prepared(corpus.parent, tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_no_sex_known(self, corpus, tmp_path, capsys):
        (corpus / "SPEAKERS.TXT").unlink()
        prepared(corpus, tmp_path / "data")
        assert not (tmp_path / "data" / "train" / "spk2gender").exists()
        assert "spk2gender" in capsys.readouterr().err

    def test_training_alone(self, corpus, tmp_path):
        written = prepared(corpus, tmp_path / "data", valid_parts=[], test_parts=[])
        assert [path.name for path in written] == ["one", "two", "train"]

    def test_a_mistake_leaves_the_folders_alone(self, corpus, tmp_path):
        prepared(corpus, tmp_path / "data")
        before = contents(tmp_path / "data")
        write_chapter(corpus / "one", 7, 99)
        (corpus / "test-it" / "7" / "71" / "7-71.trans.txt").unlink()
        refused(lambda: prepared(corpus, tmp_path / "data"), "7-71.trans.txt")
        assert contents(tmp_path / "data") == before

    def test_a_mistake_writes_nothing(self, corpus, tmp_path):
        (corpus / "test-it" / "7" / "71" / "7-71.trans.txt").unlink()
        refused(lambda: prepared(corpus, tmp_path / "data"), "7-71.trans.txt")
        assert not (tmp_path / "data").exists()


class TestMistakes:
    def test_audio_without_transcript(self, corpus, chapter):
        write_audio(chapter / "7-70-0002.flac")
        refused(
            lambda: read_part(corpus / "one"), "7-70-0002.flac", "no line in 7-70.tr"
        )

    def test_transcript_without_audio(self, corpus, chapter):
        (chapter / "7-70-0001.flac").unlink()
        refused(lambda: read_part(corpus / "one"), "7-70.trans.txt", "no 7-70-0001.fla")

    def test_transcript_without_words(self, corpus, chapter):
        (chapter / "7-70.trans.txt").write_text("7-70-0000 HELLO\n7-70-0001 \n")
        refused(lambda: read_part(corpus / "one"), "Line 2 of", "has no words")

    def test_transcript_of_another_chapter(self, corpus, chapter):
        (chapter / "7-70.trans.txt").write_text("8-70-0000 HELLO\n")
        refused(lambda: read_part(corpus / "one"), "Line 1 of", "8-70-0000")

    def test_transcript_not_utf8(self, corpus, chapter):
        (chapter / "7-70.trans.txt").write_bytes(b"7-70-0000 CAF\xc9\n")
        refused(lambda: read_part(corpus / "one"), "7-70.trans.txt is not UTF-8")

    def test_transcript_missing(self, corpus, chapter):
        (chapter / "7-70.trans.txt").unlink()
        refused(lambda: read_part(corpus / "one"), "7-70.trans.txt is missing")

    def test_id_twice_in_a_transcript(self, corpus, chapter):
        with (chapter / "7-70.trans.txt").open("a") as file:
            file.write("7-70-0001 AGAIN\n")
        refused(lambda: read_part(corpus / "one"), "7-70-0001 occurs twice")

    def test_id_twice_in_audio(self, corpus, chapter):
        write_audio(chapter / "7-70-0001.wav")
        refused(lambda: read_part(corpus / "one"), "7-70-0001.flac and", "7-70-0001.w")

    def test_id_twice_in_two_parts(self, corpus, tmp_path):
        write_chapter(corpus / "two", 7, 70)
        refused(lambda: prepared(corpus, tmp_path / "data"), "7-70-0000 occurs twice")

    def test_reader_without_chapters(self, corpus, chapter):
        (chapter.parents[1] / "8").mkdir()
        refused(lambda: read_part(corpus / "one"), "8 has no chapter")

    def test_part_of_which_much_is_missing(self, corpus, capsys):
        (corpus / "one").rename(corpus / "dev-clean")
        read_part(corpus / "dev-clean")
        told = capsys.readouterr().err
        assert "dev-clean has 4 utterances; the whole part: 2703" in told

    def test_part_without_utterances(self, corpus):
        (corpus / "none").mkdir()
        refused(lambda: read_part(corpus / "none"), "none holds no utterance")

    def test_unknown_part(self, corpus, tmp_path):
        refused(
            lambda: prepared(corpus, tmp_path / "data", test_parts=["tset-it"]),
            "tset-it cannot be found in",
            "holds one, test-it, two",
        )

    def test_no_part(self, corpus, tmp_path):
        refused(
            lambda: prepared(
                corpus, tmp_path / "d", train_parts=[], valid_parts=[], test_parts=[]
            ),
            "No part",
        )

    @pytest.mark.parametrize(
        "changes, told",
        [
            ({"test_parts": ["."]}, "'.' cannot be the name of a data folder"),
            ({"test_parts": ["one/7"]}, "a name is needed, not a path"),
            ({"train_set": ""}, "'' cannot be the name of a data folder"),
            ({"train_set": "converted"}, "holds converted recordings"),
            ({"test_parts": ["test-it", "test_it"]}, "test_it cannot name test_it"),
        ],
    )
    def test_names_that_would_cost_other_folders(self, corpus, tmp_path, changes, told):
        prepared(corpus, tmp_path / "data")
        before = everything(tmp_path)
        refused(lambda: prepared(corpus, tmp_path / "data", **changes), told)
        assert everything(tmp_path) == before

    def test_the_corpus_itself_is_never_replaced(self, corpus, tmp_path):
        before = everything(corpus)
        refused(lambda: prepared(corpus, corpus), "one is there already and is not")
        assert everything(corpus) == before

    def test_a_part_may_have_a_slash_behind_it(self, corpus, tmp_path):
        plain = prepared(corpus, tmp_path / "d")
        again = prepared(corpus, tmp_path / "d", test_parts=["test-it/"])
        assert again == plain

    def test_set_named_as_another_part(self, corpus, tmp_path):
        refused(
            lambda: prepared(corpus, tmp_path / "d", train_set="test_it"), "test_it"
        )


class TestAudio:
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_whole(self, tmp_path, suffix):
        for seconds in (1 / 16000, 0.01, 3):
            write_audio(tmp_path / f"a{suffix}", seconds)
            check_audio(tmp_path / f"a{suffix}")

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_empty(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        path.touch()
        refused(lambda: check_audio(path), f"a{suffix} is empty", "again")

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_no_samples(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        write_audio(path, 0)
        refused(lambda: check_audio(path), f"a{suffix} ", "again")

    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("kept", [-1, -20, -3000, 0.9, 0.5, 0.1])
    def test_truncated(self, tmp_path, suffix, kept):
        path = tmp_path / f"a{suffix}"
        write_audio(path, 3)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole)) if kept > 0 else kept])
        refused(lambda: check_audio(path), f"a{suffix} is truncated", "again")

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_no_audio(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        path.write_text("<html>Not found</html>" * 100)
        refused(lambda: check_audio(path), f"a{suffix} cannot be read")

    def test_broken_file_is_named(self, corpus, chapter, tmp_path):
        (chapter / "7-70-0001.flac").write_bytes(b"")
        refused(lambda: prepared(corpus, tmp_path / "d"), "7-70-0001.flac is empty")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves the part dev-clean, one chapter, as OpenSLR packs it."""
    source = tmp_path / "source" / "LibriSpeech"
    write_chapter(source / "dev-clean", 7, 70)
    (source / "SPEAKERS.TXT").write_text(SPEAKERS)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(source, "LibriSpeech")
    served = Server(packed.getvalue())
    running = served.start()
    yield served
    running.shutdown()
    running.server_close()


def archives_of(body: bytes) -> dict[str, Archive]:
    return {"dev-clean": Archive(len(body), hashlib.md5(body).hexdigest())}


def ensure(corpus: Path, server: Server, **archives: Archive) -> None:
    librispeech.ensure_parts(
        corpus, ["dev-clean"], server.url, archives or archives_of(server.body)
    )


class TestDownload:
    def test_downloaded_and_read(self, server, tmp_path):
        corpus = tmp_path / "new" / "LibriSpeech"
        prepare(
            corpus,
            tmp_path / "data",
            train_set="train",
            train_parts=[],
            valid_set="dev",
            valid_parts=["dev-clean"],
            test_parts=[],
            url=server.url,
            archives=archives_of(server.body),
        )
        assert len((tmp_path / "data/dev/text").read_text().splitlines()) == 2
        assert (tmp_path / "data/dev/spk2gender").read_text() == "7-70 f\n"
        assert sorted(os.listdir(corpus)) == ["SPEAKERS.TXT", "dev-clean"]

    def test_present_parts_are_not_downloaded(self, server, tmp_path):
        write_chapter(tmp_path / "dev-clean", 7, 70)
        ensure(tmp_path, server)
        assert server.ranges == []

    def test_continues_what_an_earlier_run_left(self, server, tmp_path):
        left = len(server.body) // 2
        (tmp_path / "dev-clean.tar.gz.part").write_bytes(server.body[:left])
        ensure(tmp_path, server)
        assert server.ranges == [f"bytes={left}-"]
        assert len(read_part(tmp_path / "dev-clean")) == 2

    def test_continues_after_broken_connections(self, server, tmp_path):
        server.break_after = len(server.body) // 3 + 1
        ensure(tmp_path / "c", server)
        assert len(server.ranges) == 3 and server.ranges[0] is None
        assert len(read_part(tmp_path / "c" / "dev-clean")) == 2

    def test_starts_anew_where_ranges_are_not_known(self, server, tmp_path):
        server.honour_range = False
        (tmp_path / "dev-clean.tar.gz.part").write_bytes(server.body[:100])
        ensure(tmp_path, server)
        assert len(read_part(tmp_path / "dev-clean")) == 2

    def test_dead_connection_keeps_what_arrived(self, server, tmp_path):
        server.break_after = 0
        part = tmp_path / "dev-clean.tar.gz.part"
        part.write_bytes(server.body[:100])
        refused(lambda: ensure(tmp_path, server), "closed early", "dev-clean")
        assert part.read_bytes() == server.body[:100]

    @pytest.mark.parametrize("names", [["84", "174"], ["SPEAKERS.TXT"], ["TEDLIUM"]])
    def test_another_tree(self, server, tmp_path, names):
        for name in names:
            (tmp_path / "c" / name).mkdir(parents=True)
        refused(
            lambda: ensure(tmp_path / "c", server),
            f"c is there, but holds {', '.join(sorted(names))}, none of the expected "
            "dev-clean: point --corpus or LIBRISPEECH at",
        )
        assert server.ranges == []
        assert sorted(os.listdir(tmp_path / "c")) == sorted(names)

    def test_many_names_are_counted(self, server, tmp_path):
        for number in range(10, 22):
            (tmp_path / str(number)).touch()
        shutil.rmtree(tmp_path / "source")
        refused(lambda: ensure(tmp_path, server), "10, 11, 12, 13, 14 and 7 more, none")

    @pytest.mark.parametrize("present", ["empty", "hidden", "other part"])
    def test_into_a_folder_that_is_there(self, server, tmp_path, present):
        corpus = tmp_path / "c"
        corpus.mkdir()
        if present == "hidden":
            (corpus / ".DS_Store").touch()
        if present == "other part":
            write_chapter(corpus / "my-test", 8, 1)
        librispeech.ensure_parts(
            corpus,
            ["my-test"] * (present == "other part") + ["dev-clean"],
            server.url,
            archives_of(server.body),
        )
        assert len(read_part(corpus / "dev-clean")) == 2

    @pytest.mark.parametrize("there", [True, False])
    def test_a_part_itself(self, server, tmp_path, there):
        corpus = tmp_path / "LibriSpeech" / "dev-clean"
        if there:
            write_chapter(corpus, 7, 70)
        refused(
            lambda: ensure(corpus, server),
            f"{corpus} has the name of a part",
            f"point --corpus or LIBRISPEECH at {corpus.parent}.",
        )
        assert server.ranges == [] and not (corpus / "dev-clean").exists()

    def test_a_file_or_a_dangling_link(self, server, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        for name in ("file", "link"):
            refused(
                lambda name=name: ensure(tmp_path / name, server), "but is no folder"
            )
        assert server.ranges == []

    def test_home(self, corpus, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(corpus.parent))
        monkeypatch.chdir(tmp_path)
        prepared(Path("~/LibriSpeech"), tmp_path / "data")
        assert str(corpus) in (tmp_path / "data" / "one" / "wav.scp").read_text()
        refused(
            lambda: prepared(Path("~no_such_user/x"), tmp_path / "d"), "nobody's home"
        )
        assert not list(tmp_path.glob("~*"))

    def test_wrong_checksum(self, server, tmp_path):
        wrong = {"dev-clean": Archive(len(server.body), "0" * 32)}
        refused(lambda: ensure(tmp_path / "c", server, **wrong), "MD5", "run again")
        assert not (tmp_path / "c").exists()

    def test_wrong_size(self, server, tmp_path):
        wrong = {"dev-clean": Archive(len(server.body) - 1, "0" * 32)}
        told = f"the server answers with {len(server.body)} bytes, where"
        refused(lambda: ensure(tmp_path / "c", server, **wrong), told, "run again")
        assert not (tmp_path / "c").exists()

    def test_killed_when_the_part_had_come(self, server, tmp_path, monkeypatch):
        """The part comes last, and what is left of its archive goes with the next."""
        moved = []
        rename = Path.rename

        def dies(path, target):
            rename(path, target)
            moved.append(target.name)
            if target.name == "dev-clean":
                raise KeyboardInterrupt

        monkeypatch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            ensure(tmp_path / "c", server)
        assert moved == ["SPEAKERS.TXT", "dev-clean"]
        monkeypatch.undo()
        ensure(tmp_path / "c", server)
        assert sorted(os.listdir(tmp_path / "c")) == ["SPEAKERS.TXT", "dev-clean"]
        assert len(server.ranges) == 1

    def test_a_part_that_is_removed_is_downloaded_again(self, server, tmp_path):
        ensure(tmp_path / "c", server)
        shutil.rmtree(tmp_path / "c" / "dev-clean")
        ensure(tmp_path / "c", server)
        assert len(read_part(tmp_path / "c" / "dev-clean")) == 2

    def test_a_part_that_is_a_file(self, server, tmp_path):
        (tmp_path / "dev-clean").touch()
        refused(lambda: ensure(tmp_path, server), "dev-clean is there, but is no")
        assert server.ranges == []

    def test_archive_that_leaves_its_folder(self, server, tmp_path):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../../escaped.txt"))
        server.body = packed.getvalue()
        refused(lambda: ensure(tmp_path / "c", server), "cannot be unpacked")
        assert not list(tmp_path.rglob("escaped.txt"))
        assert not (tmp_path / "c" / "dev-clean").exists()

    def test_no_network(self, tmp_path):
        closed = Server(b"").start()
        port = closed.server_port
        closed.shutdown()
        closed.server_close()
        corpus = tmp_path / "none"
        parts = ["dev-clean", "test-clean"]
        refused(
            lambda: librispeech.ensure_parts(corpus, parts, f"http://127.0.0.1:{port}"),
            "dev-clean, test-clean of LibriSpeech cannot be found",
            "--corpus or LIBRISPEECH",
        )
        assert not corpus.exists()


class TestDataSh:
    """The stage that asr.sh calls, with stand-ins for ESPnet's two shell scripts."""

    OPTIONS = "--train_set train --train_parts one,two --valid_parts test-it".split()

    @pytest.fixture
    def recipe(self, tmp_path: Path) -> Path:
        recipe = tmp_path / "recipe"
        (recipe / "local").mkdir(parents=True)
        (recipe / "utils").mkdir()
        stage = REPOSITORY / "egs2/librispeech/asr1/local/data.sh"
        (recipe / "local" / "data.sh").symlink_to(stage)
        (recipe / "utils" / "parse_options.sh").write_text(PARSE)
        validate = recipe / "utils" / "validate_data_dir.sh"
        validate.write_text('#!/usr/bin/env bash\necho "validated $*"\n')
        validate.chmod(0o755)
        return recipe

    def test_writes_and_validates(self, recipe, corpus):
        done = command(
            "local/data.sh",
            *("--corpus", str(corpus), *self.OPTIONS, "--test_parts", "test-it one"),
            cwd=recipe,
        )
        assert done.returncode == 0, done.stderr
        for name in ("one", "two", "test_it", "train", "dev"):
            assert f"validated --no-feats --non-print data/{name}\n" in done.stdout
            assert (recipe / "data" / name / "wav.scp").is_file()

    def test_words_of_any_language(self, corpus, chapter, tmp_path):
        """ESPnet's own scripts, which may find no locale that knows letters."""
        asr1 = tmp_path / "egs2" / "own" / "asr1"
        asr1.mkdir(parents=True)
        template.link(asr1, template.locate())
        stage = REPOSITORY / "egs2/librispeech/asr1/local/data.sh"
        (asr1 / "local" / "data.sh").symlink_to(stage)
        transcript = chapter / "7-70.trans.txt"
        transcript.write_text("7-70-0000 UN CAFÉ NOIR\n7-70-0001 안녕 하세요\n")
        given = ["--corpus", str(corpus), *self.OPTIONS, "--test_parts", "one"]
        done = command("local/data.sh", *given, cwd=asr1)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "UN CAFÉ NOIR\n" in (asr1 / "data" / "one" / "text").read_text("utf-8")

    def test_a_mistake_is_one_sentence(self, recipe, corpus):
        (corpus / "two" / "12" / "31" / "12-31-0000.opus").write_bytes(b"")
        done = command(
            "local/data.sh",
            *("--corpus", str(corpus), *self.OPTIONS, "--test_parts", "test-it"),
            cwd=recipe,
        )
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        assert len(errors) == 1 and "12-31-0000.opus is empty" in errors[0]
        assert "Traceback" not in done.stderr and not (recipe / "data").exists()


@pytest.mark.skipif(
    not (DATA / "flac-sample").is_dir(),
    reason="OMNISPARSE_TEST_DATA names no recordings",
)
class TestRealRecordings:
    def test_flac(self, tmp_path):
        prepare(
            DATA / "flac-sample",
            tmp_path,
            train_set="train",
            train_parts=["train-clean-100"],
            valid_set="dev",
            valid_parts=["test-other"],
            test_parts=["test-clean"],
        )
        genders = (tmp_path / "train" / "spk2gender").read_text()
        assert genders == "26-496 m\n"
        assert len((tmp_path / "test_clean" / "text").read_text().splitlines()) == 41

    def test_truncated_flac(self, tmp_path):
        whole = sorted(DATA.glob("flac-sample/LibriSpeech/*/*/*/*.flac"))[0]
        path = tmp_path / whole.name
        for kept in (-1, -100, whole.stat().st_size // 2):
            path.write_bytes(whole.read_bytes()[:kept])
            refused(lambda: check_audio(path), "is truncated")

    def test_opus(self):
        utterances = read_part(DATA / "LibriSpeech" / "digits-dev")
        assert len(utterances) == 120

    def test_truncated_opus(self, tmp_path):
        whole = sorted(DATA.glob("LibriSpeech/digits-dev/*/*/*.opus"))[0]
        path = tmp_path / whole.name
        for kept in (-1, -100, whole.stat().st_size // 2):
            path.write_bytes(whole.read_bytes()[:kept])
            refused(lambda: check_audio(path), "is truncated")
