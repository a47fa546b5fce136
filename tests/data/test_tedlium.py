"""TED-LIUM's preparation, on small trees written here; the recipe, on joined talks."""

import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from helpers import REPOSITORY
from helpers.corpora import (
    Server,
    command,
    contents,
    refused,
    table,
    words,
    write_sphere,
    write_talk,
    write_tedlium,
)
from helpers.recipes import PARSE, SIZES, TINY, recipe_environment
from helpers.talks import write_talks

from espnet_omnisparse.data.audio_files import check_audio
from espnet_omnisparse.data.download import Archive
from espnet_omnisparse.data.tedlium import RELEASE, ensure_release, prepare
from espnet_omnisparse.recipe import template

RECIPE = REPOSITORY / "egs2" / "tedlium2" / "asr1"
DATA = Path(os.environ.get("OMNISPARSE_TEST_DATA", "unset"))
CHAPTERS = DATA / "LibriSpeech" / "ls8-test"
STOCK = Path(os.environ.get("ESPNET_ROOT", "unset"))
STOCK_LOCAL = STOCK / "egs2" / "tedlium2" / "asr1" / "local"
IGNORED = "ignore_time_segment_in_scoring"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_tedlium(tmp_path / RELEASE)


@pytest.fixture
def made(corpus: Path, tmp_path: Path):
    """Prepares the corpus with other lines in one talk of a split; returns its folder.

    Where lines are given without times, each takes half a second from 1.00 on.
    """

    def make(*lines: str, split: str = "test", seconds: float = 12, **options) -> Path:
        talk = min((corpus / split / "stm").iterdir()).stem
        timed = (
            "" if re.match(r"-?\d", line) else f"{1 + n / 2} {1.5 + n / 2} <F0_M> "
            for n, line in enumerate(lines)
        )
        lines = [time + line for time, line in zip(timed, lines, strict=True)]
        write_talk(corpus / split, talk, *lines, seconds=seconds)
        prepare(corpus, tmp_path / "data", **options)
        return tmp_path / "data" / split

    return make


def times(folder: Path) -> list[tuple[float, float]]:
    rows = [row.split() for row in table(folder / "segments").values()]
    return [(float(start), float(end)) for _, start, end in rows]


class TestConventions:
    def test_folders(self, corpus, tmp_path):
        written = prepare(corpus, tmp_path / "data")
        assert written == [
            tmp_path / "data" / name for name in ("train", "dev", "test")
        ]
        sphere = corpus / "test" / "sph" / "Cid_2003.sph"
        assert contents(tmp_path / "data" / "test") == {
            "wav.scp": f"Cid_2003 {sphere}\n",
            "segments": "Cid_2003-0000100-0000200 Cid_2003 1.000 2.000\n",
            "text": "Cid_2003-0000100-0000200 good bye\n",
            "utt2spk": "Cid_2003-0000100-0000200 Cid_2003-1\n",
            "spk2utt": "Cid_2003-1 Cid_2003-0000100-0000200\n",
        }

    def test_ignored_segments_are_dropped(self, made):
        folder = made(
            f"0 1.00 <o,,unknown> {IGNORED}",
            "1.00 2.00 <F0_M> one",
            f"2.00 99.00 <o,,unknown> {IGNORED}",
        )
        assert words(folder) == ["one"]

    def test_comments_and_empty_lines_are_passed_over(self, corpus, tmp_path):
        stm = corpus / "test" / "stm" / "Cid_2003.stm"
        stm.write_text(f';; LABEL "o" "Overall"\n\n{stm.read_text()}\r\n')
        prepare(corpus, tmp_path)
        assert words(tmp_path / "test") == ["good bye"]

    def test_labels_at_the_end_of_a_line_are_removed(self, made):
        folder = made(
            "one two (Cid_2003-1.00-1.50-F0_M-S1)", "(a) three(Cid) ", "x <sil>"
        )
        assert words(folder) == ["one two", "(a) three", "x"]

    def test_silences_are_removed(self, made):
        assert words(made("<sil> one <sil><sil> two <sil>")) == ["one two"]

    def test_pronunciation_marks_are_removed(self, made):
        assert words(made("the(2) end(3) of(10) it(4)")) == ["the end of(10) it"]

    def test_noise_tags_are_kept(self, made):
        assert words(made("{NOISE} one{COUGH}")) == ["[NOISE] one[COUGH]"]

    def test_noise_tags_are_dropped(self, made):
        folder = made("{NOISE} it {UM} 's", "{NOISE}", keep_noise_tags=False)
        assert words(folder) == ["it's"]

    def test_apostrophes_are_rejoined(self, made):
        folder = made("it 's all the speakers ' <sil> 's", "you 're 's", "'cause 't")
        assert words(folder) == ["it's all the speakers' 's", "you're 's", "'cause't"]

    def test_consecutive_duplicates_are_dropped(self, made):
        folder = made(
            "1.00 2.00 <F0_M> one",
            "1.00 2.00 <F0_M> one",
            "2.00 3.00 <F0_M> one",
            "2.00 3.00 <F0_M> one(2) (label)",
        )
        assert words(folder) == ["one", "one"]

    def test_lines_need_not_be_in_order(self, made):
        folder = made("10.0 11.0 <F0_M> ten", "9.0 10.0 <F0_M> nine", "2 3 <F0_M> two")
        assert words(folder) == ["two", "nine", "ten"]

    def test_train_is_padded(self, made):
        folder = made("0.10 1.00 <F0_M> a", "2.00 3.00 <F0_M> b", split="train")
        assert times(folder) == [(0.0, 1.1), (1.85, 3.1)]
        # the ids tell the transcript's times
        assert list(table(folder / "text"))[1] == "Ann_2001-0000200-0000300"

    def test_padded_segments_meet_in_the_middle(self, made):
        folder = made("1.00 2.00 <F0_M> a", "2.02 3.00 <F0_M> b", split="train")
        assert times(folder) == [(0.85, 1.985), (1.985, 3.1)]

    @pytest.mark.parametrize("split", ["dev", "test"])
    def test_dev_and_test_are_not_padded(self, made, split):
        folder = made("1.00 2.00 <F0_M> a", "2.00 3.00 <F0_M> b", split=split)
        assert times(folder) == [(1.0, 2.0), (2.0, 3.0)]

    def test_times_are_cut_to_hundredths(self, made):
        folder = made("1.009 2.0199 <F0_M> a", "4.35 5 <F0_M> b")
        assert times(folder)[0] == (1.0, 2.01)
        # 100 * 4.35 is 434.99999999999994 to awk as well
        assert list(table(folder / "segments"))[1] == "Cid_2003-0000434-0000500"

    def test_speakers_are_split_at_180_seconds(self, made):
        lines = ["0 100 <F0_M> a", "100 180 <F0_M> b", "180 181 <F0_M> c"]
        speakers = table(made(*lines, seconds=181) / "utt2spk")
        assert list(speakers.values()) == ["Cid_2003-1", "Cid_2003-1", "Cid_2003-2"]

    def test_a_longer_segment_has_a_speaker_of_its_own(self, made):
        lines = ["0 1 <F0_M> a", "1 200 <F0_M> b", "200 201 <F0_M> c"]
        speakers = table(made(*lines, seconds=201) / "utt2spk")
        assert list(speakers.values()) == [f"Cid_2003-{n}" for n in (1, 2, 3)]

    def test_speakers_of_a_talk_are_numbered_in_equal_width(self, made):
        lines = [f"{100 * n} {100 * n + 100} <F0_M> a" for n in range(10)]
        folder = made(*lines, seconds=1000)
        assert list(table(folder / "spk2utt"))[::9] == ["Cid_2003-01", "Cid_2003-10"]

    def test_sphere_is_read_without_sph2pipe(self, corpus, tmp_path):
        samples = write_sphere(corpus / "test" / "sph" / "Cid_2003.sph", 3)
        assert (corpus / "test/sph/Cid_2003.sph").read_bytes().startswith(b"NIST_1A\n")
        prepare(corpus, tmp_path)
        read, rate = soundfile.read(table(tmp_path / "test/wav.scp")["Cid_2003"])
        assert rate == 16000 and (read * 2**15 == samples).all()

    def test_hidden_files_are_passed_over(self, corpus, tmp_path):
        for kind in ("sph", "stm"):
            (corpus / "test" / kind / f"._Cid_2003.{kind}").write_bytes(b"\0")
        assert len(prepare(corpus, tmp_path)) == 3

    def test_counts_are_printed(self, made, capsys):
        one, gap = "1 2 <F0_M> {NOISE} one(2)", f"0 1 <o,,unknown> {IGNORED}"
        made(gap, one, one, "3 4 <F0_M> <sil>", "4 5 <F0_M> it 's (label)")
        printed = capsys.readouterr().err
        for line in (
            "test: 1 talks, 5 lines",
            "test: 5 -> 4 segments without those not to be scored",
            "test: pronunciation marks removed in 2 of 4 segments",
            "test: <sil> removed in 1 of 4 segments",
            "test: labels at the end removed in 1 of 4 segments",
            "test: {NOISE} written [NOISE] in 2 of 4 segments",
            "test: apostrophes rejoined in 1 of 4 segments",
            "test: 4 -> 3 segments without repeated lines",
            "test: 3 -> 2 segments without those that have no words",
            "test: 1 talks -> 1 speakers of at most 180 s",
            "notice: test has 2 segments; the whole release: 1155",
            "notice: there are 3 talks; the whole release: 1514",
        ):
            assert f"{line}\n" in printed

    def test_twice_is_the_same(self, corpus, tmp_path):
        prepare(corpus, tmp_path / "data")
        first = contents(tmp_path / "data")
        prepare(corpus, tmp_path / "data")
        assert contents(tmp_path / "data") == first

    def test_parent_of_the_corpus_is_accepted(self, corpus, tmp_path):
        prepare(corpus, tmp_path / "a")
        prepare(corpus.parent, tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_some_splits(self, corpus, tmp_path):
        shutil.rmtree(corpus / "train")
        written = prepare(corpus, tmp_path, splits=["test", "dev"])
        assert [folder.name for folder in written] == ["test", "dev"]


@pytest.mark.skipif(
    not STOCK_LOCAL.is_dir(), reason="ESPNET_ROOT names no tree with egs2/tedlium2"
)
def test_the_folders_are_those_of_espnets_own_recipe(tmp_path):
    """Its scripts run beside ours on talks with random times and all the marks."""
    rng = random.Random(0)
    marks = [
        "<sil>",
        "{NOISE}",
        "{COUGH}",
        "one",
        "two(2)",
        "it 's",
        "dogs ' ",
        "we 'll",
    ]
    corpus = tmp_path / RELEASE
    for split in ("train", "dev", "test"):
        for talk in (f"Ann_{split}", f"Ann{split}", f"AnnB.{split}"):
            lines, time = [], 0.0
            for _ in range(40):
                start, time = time + rng.choice([0, 0.02, 0.3, 3]), time + 1
                time = start + rng.uniform(1, 20)
                text = " ".join(["so", *rng.choices(marks, k=6)])
                label = f" ({talk}-{start:.2f}-S1)" if rng.random() < 0.5 else ""
                lines.append(f"{start:.4f} {time:.4f} <o,f0,male> {text}{label}")
                if rng.random() < 0.2:
                    lines.append(lines[-1])
                if rng.random() < 0.2:
                    lines.append(f"{time} {time + 1} <o,,unknown> {IGNORED}")
            rng.shuffle(lines)
            write_talk(corpus / split, talk, *lines, seconds=time + 2)
    ours = tmp_path / "data"
    prepare(corpus, ours)

    asr1 = tmp_path / "stock" / "egs2" / "tedlium2" / "asr1"
    asr1.mkdir(parents=True)
    template.link(asr1, STOCK)
    shutil.rmtree(asr1 / "local")
    shutil.copytree(STOCK_LOCAL, asr1 / "local")
    split_speakers = "utils/data/modify_speaker_info.sh --seconds-per-spk-max 180"
    for order in (
        f"bash local/prepare_data.sh {tmp_path}",
        *(
            f"{split_speakers} data/{name}.orig data/{name}"
            for name in os.listdir(ours)
        ),
    ):
        done = command(*order.split(), cwd=asr1)
        assert done.returncode == 0, done.stdout + done.stderr
    for split in ("train", "dev", "test"):
        stock = asr1 / "data" / split
        for name in ("text", "utt2spk", "spk2utt"):
            assert (ours / split / name).read_text() == (stock / name).read_text()
        assert list(table(stock / "segments")) == list(table(ours / split / "segments"))
        assert np.abs(np.subtract(times(stock), times(ours / split))).max() < 1e-5
        assert table(stock / "wav.scp").keys() == table(ours / split / "wav.scp").keys()


class TestMistakes:
    def test_split_is_missing(self, corpus, tmp_path):
        shutil.rmtree(corpus / "dev")
        refused(lambda: prepare(corpus, tmp_path / "d"), "no folder dev", "TEDLIUM2")
        assert not (tmp_path / "d").exists()

    def test_unknown_split(self, corpus, tmp_path):
        refused(lambda: prepare(corpus, tmp_path / "d", ["train", "tset"]), "not tset")
        refused(lambda: prepare(corpus, tmp_path / "d", []), "--splits")

    @pytest.mark.parametrize("kind", ["sph", "stm"])
    def test_no_files(self, corpus, tmp_path, kind):
        shutil.rmtree(corpus / "dev" / kind)
        refused(lambda: prepare(corpus, tmp_path / "d"), f"{kind} holds no .{kind}")

    @pytest.mark.parametrize("text", ["", "\n", ";; a comment\n"])
    def test_empty_stm(self, corpus, tmp_path, text):
        (corpus / "dev" / "stm" / "Bob_2002.stm").write_text(text)
        refused(
            lambda: prepare(corpus, tmp_path / "d"), "Bob_2002.stm holds no segment"
        )

    def test_stm_not_utf8(self, corpus, tmp_path):
        stm = corpus / "dev" / "stm" / "Bob_2002.stm"
        stm.write_bytes(b"Bob_2002 1 Bob_2002 1 2 <F0_M> caf\xe9\n")
        refused(lambda: prepare(corpus, tmp_path / "d"), "Bob_2002.stm is not UTF-8")

    @pytest.mark.parametrize(
        "line",
        [
            *("1.00 two <F0_M> a", "-1 2.00 <F0_M> a", "1.00 2.00", "1 2 no label"),
            *("1 2 <o, f0> a", f"1 {'9' * 400} <F0_M> a"),
        ],
    )
    def test_malformed_line(self, made, line):
        refused(lambda: made("0 1 <F0_M> a", line), "Line 2 of", "is not of the form")

    def test_times_in_the_wrong_order(self, made):
        refused(lambda: made("2.00 1.00 <F0_M> a"), "Line 1 of", "2.00 to 1.00 s")

    def test_time_beyond_the_audio(self, made):
        refused(
            lambda: made("1 12.51 <F0_M> a"), "Line 1 of", "12.51 s", "12.00 s long"
        )
        assert made("1 12.5 <F0_M> a").is_dir()
        refused(lambda: made("12.1 12.4 <F0_M> a"), "12.40 s", "12.00 s long")

    def test_nothing_left_between_neighbours(self, made):
        lines = "1.0 9.0 <F0_M> a", "4.9 5.0 <F0_M> b", "2.0 9.0 <F0_M> c"
        refused(lambda: made(*lines, split="train"), "nothing of it is left")

    def test_a_segment_inside_another_does_not_get_other_audio(self, made):
        lines = "1.00 5.00 <F0_M> a", "2.00 3.00 <F0_M> b"
        refused(lambda: made(*lines, split="train"), "nothing of it is left")

    def test_same_times_with_other_words(self, made):
        lines = "1.00 2.00 <F0_M> a", "1.001 2.001 <F0_M> b"
        refused(lambda: made(*lines), "Line 2 of", "(Line 1 of")

    def test_no_words_at_all(self, made):
        refused(lambda: made("<sil>"), "no segment with words")

    def test_talk_in_two_splits(self, corpus, tmp_path):
        write_talk(corpus / "train", "Cid_2003", "1 2 <F0_M> a")
        refused(
            lambda: prepare(corpus, tmp_path / "d"),
            "Cid_2003 occurs twice",
            "train/sph",
        )

    def test_hyphen_in_a_name(self, corpus, tmp_path):
        write_talk(corpus / "dev", "Bob-2002", "1 2 <F0_M> a")
        refused(lambda: prepare(corpus, tmp_path / "d"), "Bob-2002", "hyphen")

    def test_transcript_without_audio(self, corpus, tmp_path):
        (corpus / "dev" / "sph" / "Bob_2002.sph").rename(corpus / "dev/sph/Bob.sph")
        refused(
            lambda: prepare(corpus, tmp_path / "d"), "Line 1 of", "no ", "Bob_2002.s"
        )

    def test_audio_without_transcript(self, corpus, tmp_path):
        write_sphere(corpus / "dev" / "sph" / "Dan_2004.sph", 1)
        refused(lambda: prepare(corpus, tmp_path / "d"), "Dan_2004.sph has no line")

    def test_a_mistake_leaves_the_folders_alone(self, corpus, tmp_path):
        prepare(corpus, tmp_path / "data")
        before = contents(tmp_path / "data")
        write_talk(corpus / "train", "Eve_2005", "1 2 <F0_M> a")
        (corpus / "test" / "sph" / "Cid_2003.sph").write_bytes(b"")
        refused(lambda: prepare(corpus, tmp_path / "data"), "Cid_2003.sph is empty")
        assert contents(tmp_path / "data") == before


class TestSphere:
    @pytest.fixture
    def sphere(self, tmp_path: Path) -> Path:
        write_sphere(tmp_path / "a.sph", 2)
        return tmp_path / "a.sph"

    def test_length(self, sphere):
        assert check_audio(sphere).seconds == 2

    @pytest.mark.parametrize("kept", [10, 500, 1023, 1024, 1026, 0.5, -1])
    def test_truncated(self, sphere, kept):
        whole = sphere.read_bytes()
        kept = int(kept * len(whole)) if 0 < kept < 1 else kept
        sphere.write_bytes(whole[:kept])
        refused(lambda: check_audio(sphere), "a.sph ", "again")

    def test_compressed(self, sphere):
        coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00"
        whole = sphere.read_bytes()
        header = whole[:1024].replace(b"sample_coding -s3 pcm", coding)
        sphere.write_bytes(header[:1024] + whole[1024:])
        refused(lambda: check_audio(sphere), "embedded-shorten-v2.00", "sph2pipe")

    @pytest.mark.parametrize(
        "content", [b"<html>", b"NIST_1A\n   many\n", b"NIST_1A\n   1024\nx\n"]
    )
    def test_no_sphere(self, sphere, content):
        sphere.write_bytes(content * 200)
        refused(lambda: check_audio(sphere), "a.sph cannot be read")


@pytest.fixture
def server(corpus: Path, tmp_path: Path) -> Iterator[Server]:
    """Serves the corpus as OpenSLR packs it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(corpus, RELEASE)
    served = Server(packed.getvalue())
    running = served.start()
    yield served
    running.shutdown()
    running.server_close()


def archive_of(server: Server) -> Archive:
    checksum = hashlib.sha256(server.body).hexdigest()
    return Archive(len(server.body), checksum, "sha256")


class TestDownload:
    def test_downloaded_and_read(self, server, corpus, tmp_path):
        new = tmp_path / "new" / RELEASE
        prepare(new, tmp_path / "a", url=server.url, archive=archive_of(server))
        assert os.listdir(new.parent) == [RELEASE]
        prepare(corpus, tmp_path / "b")
        read = contents(tmp_path / "a"), contents(tmp_path / "b")
        assert str(read[0]).replace(str(new), str(corpus)) == str(read[1])

    def test_into_a_folder_that_a_link_points_to(self, server, tmp_path):
        (tmp_path / "disk" / "ted").mkdir(parents=True)
        (tmp_path / "new").mkdir()
        link = tmp_path / "new" / RELEASE
        link.symlink_to(tmp_path / "disk" / "ted")
        ensure_release(link, server.url, archive_of(server))
        assert link.is_symlink() and sorted(os.listdir(link)) == [
            "dev",
            "test",
            "train",
        ]
        assert os.listdir(tmp_path / "disk") == ["ted"]

    def test_interrupted_and_continued(self, server, tmp_path):
        folder = tmp_path / "new" / RELEASE
        part = tmp_path / "new" / f"{RELEASE}.tar.gz.part"
        part.parent.mkdir()
        part.write_bytes(server.body[:5000])
        server.break_after = len(server.body) // 2
        ensure_release(folder, server.url, archive_of(server))
        assert server.ranges[0] == "bytes=5000-" and len(server.ranges) == 2
        assert (folder / "train" / "sph" / "Ann_2001.sph").is_file()
        assert not part.exists()

    def test_present_is_not_downloaded(self, server, corpus):
        ensure_release(corpus, server.url, archive_of(server))
        assert server.ranges == []

    @pytest.mark.parametrize("named", [".", "TEDLIUM_release-3", RELEASE])
    def test_another_tree(self, server, tmp_path, named):
        corpus = tmp_path / "new" / named
        (corpus / "legacy" / "train").mkdir(parents=True)
        refused(
            lambda: prepare(corpus, tmp_path / "d", url=server.url),
            f"{corpus} is there, but holds legacy, none of the expected train, dev, "
            "test: point --corpus or TEDLIUM2 at",
            f"{corpus / RELEASE}, which is new",
        )
        assert server.ranges == [] and os.listdir(corpus) == ["legacy"]

    def test_another_tree_in_the_given_one(self, server, tmp_path):
        (tmp_path / "new" / RELEASE / "legacy").mkdir(parents=True)
        refused(
            lambda: prepare(tmp_path / "new", tmp_path / "d", url=server.url),
            f"{RELEASE} is there, but holds legacy",
        )

    def test_a_split_itself(self, server, corpus, tmp_path):
        refused(
            lambda: prepare(corpus / "dev", tmp_path / "d", url=server.url),
            f"{corpus / 'dev'} is there, but holds sph, stm",
            f"TEDLIUM2 at {corpus}.",
        )
        assert server.ranges == []

    def test_a_file_or_a_dangling_link(self, server, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / RELEASE).symlink_to(tmp_path / "gone")
        for name in ("file", "new", f"new/{RELEASE}"):
            refused(
                lambda name=name: prepare(tmp_path / name, tmp_path / "d"),
                "but is no folder",
            )

    def test_the_way_out_of_another_tree(self, server, corpus, tmp_path):
        (tmp_path / "other" / "legacy").mkdir(parents=True)
        new = tmp_path / "other" / RELEASE
        prepare(new, tmp_path / "a", url=server.url, archive=archive_of(server))
        assert sorted(os.listdir(new)) == ["dev", "test", "train"]

    @pytest.mark.parametrize("empty", [True, False])
    def test_continued_in_the_parent(self, server, tmp_path, empty):
        parent = tmp_path / "new"
        (parent / "LibriSpeech").mkdir(parents=True)
        (parent / f"{RELEASE}.tar.gz.part").write_bytes(server.body[:5000])
        if empty:
            (parent / RELEASE).mkdir()
        prepare(parent, tmp_path / "a", url=server.url, archive=archive_of(server))
        assert server.ranges == ["bytes=5000-"]

    def test_home(self, server, corpus, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        prepare(Path("~") / RELEASE, tmp_path / "a", url=server.url)
        assert server.ranges == [] and not list(tmp_path.glob("~*"))

    def test_a_dead_connection_keeps_what_arrived(self, server, tmp_path):
        server.break_after = 0
        part = tmp_path / "new" / f"{RELEASE}.tar.gz.part"
        part.parent.mkdir()
        part.write_bytes(server.body[:100])
        folder = part.parent / RELEASE
        refused(
            lambda: ensure_release(folder, server.url, archive_of(server)),
            "TED-LIUM 2 cannot be found in",
            "--corpus or TEDLIUM2",
        )
        assert part.read_bytes() == server.body[:100] and not folder.exists()

    def test_wrong_checksum(self, server, tmp_path):
        wrong = Archive(len(server.body), "0" * 64, "sha256")
        folder = tmp_path / "new" / RELEASE
        refused(
            lambda: ensure_release(folder, server.url, wrong), "SHA256", "run again"
        )
        assert not folder.parent.exists()

    def test_another_archive(self, server, tmp_path):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("other/file"))
        server.body = packed.getvalue()
        folder = tmp_path / "new" / RELEASE
        refused(
            lambda: ensure_release(folder, server.url, archive_of(server)), "unpacked"
        )
        assert not folder.exists()


class TestStage1:
    """local/data.sh, with stand-ins for ESPnet's two shell scripts."""

    @pytest.fixture
    def recipe(self, tmp_path: Path) -> Path:
        recipe = tmp_path / "recipe"
        (recipe / "utils").mkdir(parents=True)
        (recipe / "local").symlink_to(RECIPE / "local")
        (recipe / "utils" / "parse_options.sh").write_text(PARSE)
        validate = recipe / "utils" / "validate_data_dir.sh"
        validate.write_text('#!/usr/bin/env bash\necho "validated $*"\n')
        validate.chmod(0o755)
        return recipe

    def test_writes_and_validates(self, recipe, made, corpus):
        made("{NOISE} one")
        options = ["--keep_noise_tags", "false", "--splits", "dev,test"]
        done = command("local/data.sh", "--corpus", str(corpus), *options, cwd=recipe)
        assert done.returncode == 0, done.stderr
        for name in ("dev", "test"):
            assert f"validated --no-feats --non-print data/{name}\n" in done.stdout
        assert words(recipe / "data" / "test") == ["one"]
        assert not (recipe / "data" / "train").exists()

    @pytest.mark.parametrize(
        "options, sentence",
        [
            ([], "Bob_2002.sph is empty"),
            (["--keep_noise_tags", "no"], "--keep_noise_tags is true or false, not no"),
        ],
    )
    def test_a_mistake_is_one_sentence(self, recipe, corpus, options, sentence):
        (corpus / "dev" / "sph" / "Bob_2002.sph").write_bytes(b"")
        done = command("local/data.sh", "--corpus", str(corpus), *options, cwd=recipe)
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        assert len(errors) == 1 and sentence in errors[0]
        assert "Traceback" not in done.stderr and not (recipe / "data").exists()


def test_talks_are_joined_from_chapters(tmp_path):
    """The helper that the next test needs: what it tells of times is true."""
    part = tmp_path / "LibriSpeech" / "part"
    rng = np.random.default_rng(0)
    for chapter in ("7/70", "8/80"):
        name = chapter.replace("/", "-")
        (part / chapter).mkdir(parents=True)
        text = [f"{name}-{n} IT'S TALK {n}" for n in range(4)]
        (part / chapter / f"{name}.trans.txt").write_text("\n".join(text))
        for n in range(4):
            samples = rng.uniform(0.1, 0.2, 16000 * (n + 1))
            soundfile.write(part / chapter / f"{name}-{n}.flac", samples, 16000)
    write_talks(tmp_path / RELEASE, part, {"train": 1, "test": 1}, seconds=9)
    prepare(tmp_path / RELEASE, tmp_path, splits=["train", "test"])
    assert words(tmp_path / "test") == [
        "it's talk 0",
        "it's talk 1",
        "[NOISE] it's talk 2",
    ]
    samples, rate = soundfile.read(tmp_path / RELEASE / "test" / "sph" / "8_80.sph")
    assert rate == 16000
    speech = np.zeros(len(samples), bool)
    for start, end in times(tmp_path / "test"):
        speech[round(start * rate) : round(end * rate)] = True
    assert (speech == (samples > 0.05)).all()


# --- the whole recipe --------------------------------------------------------------


def copy_recipe(folder: Path) -> Path:
    """The recipe, without what runs have left in a checkout."""
    asr1 = folder / "egs2" / "tedlium2" / "asr1"
    asr1.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "conf", folder / "conf")
    shutil.copytree(RECIPE / "conf", asr1 / "conf", symlinks=True)
    shutil.copytree(RECIPE / "local", asr1 / "local")
    shutil.copy(RECIPE / "run.sh", asr1)
    return asr1


@pytest.mark.slow
@pytest.mark.skipif(
    not CHAPTERS.is_dir(), reason="OMNISPARSE_TEST_DATA names no recordings"
)
def test_the_recipe_runs_on_talks_joined_from_librispeech(tmp_path):
    asr1 = copy_recipe(tmp_path / "work")
    talks = {"train": 4, "dev": 1, "test": 1}
    write_talks(tmp_path / RELEASE, CHAPTERS, talks, seconds=40)
    tiny = {**TINY, "max_epoch": 2, "batch_bins": 1600000}
    (asr1 / "conf" / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    options = (
        *("--ngpu", "0", "--nj", "2", "--inference_nj", "1", "--nbpe", "50"),
        *("--asr_config", "conf/tiny.yaml", "--asr_tag", "tiny"),
        *("--audio_format", "wav"),
        *("--stop_stage", "14", "--skip_packing", "false"),
        # stage 2 is ESPnet's, which asks for sox
        *("--speed_perturb_factors", "0.9 1.0" if shutil.which("sox") else ""),
    )
    done = subprocess.run(
        ["./run.sh", *options],
        cwd=asr1,
        env=recipe_environment(tmp_path / "work", TEDLIUM2=str(tmp_path / RELEASE)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]

    # stage 3 cut out of the talks what the transcripts say
    lengths = table(asr1 / "dump" / "raw" / "test" / "utt2num_samples").values()
    spoken = [16000 * (end - start) for start, end in times(asr1 / "data" / "test")]
    assert np.abs(np.subtract([int(length) for length in lengths], spoken)).max() <= 1
    assert set(words(asr1 / "data" / "test")[2].split()) >= {"[NOISE]"}

    exp = asr1 / "exp" / "asr_tiny"
    assert (exp / "RESULTS.md").is_file()
    lengths = [(exp.parent / f"asr_tiny_{x}/model.pth").stat().st_size for x in SIZES]
    assert lengths == sorted(set(lengths))
    for size in SIZES:
        folder = exp.with_name(f"asr_tiny_{size}")
        (packed,) = folder.glob("*.zip")
        assert packed.stat().st_size > 0
        # asr.sh decodes a test set that is the validation set before its filter
        for name in ("org/dev", "test"):
            (result,) = folder.glob(f"decode_ctc_*/{name}/score_wer/result.txt")
            rows = re.findall(r"\| *Sum/Avg.*", result.read_text(errors="replace"))
            assert len(rows) == 1, result
