"""Archives that arrive in pieces, from servers and beside processes of all kinds."""

import fcntl
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from helpers.corpora import Server, refused

from espnet_omnisparse.data import download
from espnet_omnisparse.data.download import Archive, bring, forget

PART = "x.tar.gz.part"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        file = tarfile.TarInfo("x/words")
        file.size = 90_000
        archive.addfile(file, io.BytesIO(os.urandom(file.size)))
    served = Server(packed.getvalue())
    running = served.start()
    yield served
    running.shutdown()
    running.server_close()


def brought(server, folder: Path, is_there=None) -> None:
    archive = Archive(len(server.body), hashlib.md5(server.body).hexdigest())
    target = folder / "x"
    bring(
        folder,
        "x.tar.gz",
        server.url,
        archive,
        lambda unpacked: (unpacked / "x").rename(target) and None,
        is_there or target.is_dir,
    )


def test_a_page_instead_of_the_archive_costs_nothing_of_it(server, tmp_path):
    left = server.body[:5000]
    (tmp_path / PART).write_bytes(left)
    server.instead = [b"<html>please log in</html>"]
    with pytest.raises(ConnectionError, match="web page"):
        brought(server, tmp_path)
    assert (tmp_path / PART).read_bytes() == left
    brought(server, tmp_path)
    assert os.listdir(tmp_path) == ["x"] and server.ranges[-1] == "bytes=5000-"


def test_a_page_is_not_taken_for_the_beginning_of_the_archive(server, tmp_path):
    server.instead = [b"<html>please log in</html>"]
    with pytest.raises(ConnectionError, match="web page"):
        brought(server, tmp_path / "new" / "place")
    assert not (tmp_path / "new").exists()


def test_another_archive_is_told_before_it_is_read(server, tmp_path):
    given = Archive(len(server.body) - 7, "0" * 32)
    there = (tmp_path / "x").is_dir
    with pytest.raises(ConnectionError, match=f"{len(server.body)} bytes, where the"):
        bring(tmp_path, "x.tar.gz", server.url, given, print, there)
    assert os.listdir(tmp_path) == []


def test_a_server_that_is_away_for_a_moment_is_asked_again(server, tmp_path):
    server.break_after = len(server.body) // 2 + 1
    server.instead = [None, 503, 503]
    brought(server, tmp_path)
    assert len(server.ranges) == 4 and os.listdir(tmp_path) == ["x"]


def test_a_server_that_stays_away_is_told_of_and_nothing_is_lost(server, tmp_path):
    server.break_after = 5000
    server.instead = [None, 503, 503, 503]
    with pytest.raises(ConnectionError, match="Service Unavailable"):
        brought(server, tmp_path)
    assert (tmp_path / PART).read_bytes() == server.body[:5000]


def test_two_processes_never_write_one_file(server, tmp_path):
    (tmp_path / PART).write_bytes(server.body[:5000])
    with (tmp_path / PART).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(lambda: brought(server, tmp_path), "by another process: wait")
        forget(tmp_path, "x.tar.gz")  # the other one's to remove
        assert server.ranges == []
        assert (tmp_path / PART).read_bytes() == server.body[:5000]
    brought(server, tmp_path)
    assert os.listdir(tmp_path) == ["x"]


def test_what_another_process_has_brought_is_not_downloaded_again(server, tmp_path):
    brought(server, tmp_path, is_there=lambda: True)
    assert server.ranges == [] and os.listdir(tmp_path) == []


def test_a_full_disk_is_not_taken_for_a_dead_network(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_copy", lambda *_: os.write(full, b"x"))
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left") as error:
        brought(server, tmp_path)
    os.close(full)
    assert not isinstance(error.value, ConnectionError)
    assert error.value.filename == str(tmp_path / PART)


def test_what_is_left_of_a_corpus_that_is_there_is_removed(tmp_path):
    (tmp_path / PART).write_bytes(b"left")
    forget(tmp_path, "x.tar.gz")
    forget(tmp_path, "x.tar.gz")
    assert os.listdir(tmp_path) == []
