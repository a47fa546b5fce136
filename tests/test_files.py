import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from espnet_omnisparse import files

WRITER = """
import os, signal, sys, time
from pathlib import Path
from espnet_omnisparse import files
path, when = Path(sys.argv[1]), sys.argv[2]
if when == "replacing":
    plain = Path.replace
    def replace(self, target):
        if target == path:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, target)
    Path.replace = replace
write = files.atomic_path if sys.argv[3] == "file" else files.atomic_folder
with write(path) as temporary:
    half = temporary if sys.argv[3] == "file" else temporary / "half"
    half.write_text("half")
    print("writing", flush=True)
    if when == "writing":
        time.sleep(60)
"""


def writer(path, when, kind):
    """A process that writes `path` and is half through when this returns."""
    command = [sys.executable, "-c", WRITER, str(path), when, kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def kill(process):
    process.kill()
    assert process.wait(20) == -signal.SIGKILL


def write_folder(path):
    with files.atomic_folder(path) as folder:
        (folder / "new").touch()


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_writing(tmp_path, kind):
    kill(writer(tmp_path / "x_60pct", "writing", kind))
    assert len(names(tmp_path)) == 1
    files.write_text(tmp_path / "other", "other")
    assert names(tmp_path) == ["other"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_living_process_writes_stays(tmp_path, kind):
    alive = writer(tmp_path / "x_60pct", "writing", kind)
    write_folder(tmp_path / "x_60pct")
    files.write_text(tmp_path / "other", "other")
    partial, *others = names(tmp_path)
    assert others == ["other", "x_60pct"] and partial.startswith(".x_60pct.")
    kill(alive)


def test_nothing_that_is_not_ours_is_removed(tmp_path):
    host = files._host()
    foreign = [".git", ".x.abcdefgh", ".x.partial", ".x.swp"]
    foreign += [f"x.partial-{host}-abcdefgh", f".x.partial-{host}"]
    for name in foreign:
        (tmp_path / name).touch()
    (tmp_path / f".link.partial-{host}-abcdefgh").symlink_to(".git")
    before = names(tmp_path)
    files.write_text(tmp_path / "y", "y")
    assert names(tmp_path) == sorted([*before, "y"])


def test_another_machine_has_a_day_to_go_on(tmp_path, monkeypatch):
    # its locks may be invisible here
    partial = tmp_path / ".x.partial-elsewhere-example-org-abcdefgh"
    partial.mkdir()
    (partial / "model.pth").touch()
    os.utime(partial / "model.pth", (0, 0))
    files.write_text(tmp_path / "y", "y")
    assert partial.exists()
    now = time.time()
    monkeypatch.setattr(files.time, "time", lambda: now + 25 * 3600)
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    files.write_text(tmp_path / "y", "y")
    assert partial.exists()
    os.close(handle)
    files.write_text(tmp_path / "y", "y")
    assert names(tmp_path) == ["y"]


def test_a_file_system_without_locks_removes_nothing_and_writes(tmp_path, monkeypatch):
    kill(writer(tmp_path / "x", "writing", "file"))

    def flock(handle, operation):
        raise OSError("No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    files.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert len(names(tmp_path)) == 2


def test_a_folder_killed_while_replaced_blocks_nothing(tmp_path):
    path = tmp_path / "exp_small"
    write_folder(path)
    for _ in range(2):
        process = writer(path, "replacing", "folder")
        assert process.wait(20) == -signal.SIGKILL
        assert not path.exists()
        # another size is written next, and this one's only copy is not lost
        write_folder(tmp_path / "exp_medium")
        assert names(path) == ["new"]
        assert names(tmp_path) == ["exp_medium", "exp_small"]
    process = writer(path, "replacing", "folder")
    assert process.wait(20) == -signal.SIGKILL
    for _ in range(2):
        write_folder(path)
        assert names(tmp_path) == ["exp_medium", "exp_small"]


def test_a_leftover_of_older_releases_blocks_nothing(tmp_path):
    for name in (".exp_small.old", ".exp_small.abcdefgh.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pth").touch()
    for _ in range(2):
        write_folder(tmp_path / "exp_small")
    assert names(tmp_path / "exp_small") == ["new"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling", "file link"])
def test_whatever_lies_in_the_way_is_replaced_again_and_again(tmp_path, kind):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (there / "mine").touch()
    path = here / "exp_60%"
    for _ in range(2):
        if kind == "folder":
            path.mkdir(exist_ok=True)
        elif kind == "file":
            path.touch()
        else:
            target = {"link": there, "file link": there / "mine"}
            path.symlink_to(target.get(kind, tmp_path / "nowhere"))
        for _ in range(2):
            write_folder(path)
            assert not path.is_symlink() and names(path) == ["new"]
            assert names(here) == ["exp_60%"]
        (path / "new").unlink()
        path.rmdir()
    assert names(there) == ["mine"]


def test_a_folder_that_another_process_finishes_first_is_replaced(
    tmp_path, monkeypatch
):
    path, plain, rivals = tmp_path / "exp_small", Path.replace, iter("ab")

    def replace(self, target):
        if target == path:
            for rival in rivals:
                path.mkdir()
                (path / rival).touch()
                break
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_folder(path)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["exp_small"]


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path, monkeypatch):
    path, plain = tmp_path / "exp_small", Path.replace
    path.mkdir()
    (path / "old").touch()

    def replace(self, target):
        if self.name == files._NEW:
            raise OSError(28, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        write_folder(path)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["exp_small"]


@pytest.mark.parametrize("write", [files.atomic_path, files.atomic_folder])
def test_a_refused_writing_leaves_no_folder_that_it_made(tmp_path, write):
    def refused(path):
        with pytest.raises(files.UserError, match="no"), write(path):
            assert path.parent.is_dir()
            raise files.UserError("no")

    refused(tmp_path / "exp" / "of" / "mine")
    assert names(tmp_path) == []
    (tmp_path / "exp").mkdir()  # the user's own stays, empty or not
    refused(tmp_path / "exp" / "of" / "mine")
    assert names(tmp_path) == ["exp"] and names(tmp_path / "exp") == []


def test_a_folder_that_others_write_into_meanwhile_stays(tmp_path):
    with (
        pytest.raises(files.UserError),
        files.atomic_path(tmp_path / "exp" / "of" / "mine"),
    ):
        files.write_text(tmp_path / "exp" / "theirs", "theirs")
        raise files.UserError("no")
    assert names(tmp_path / "exp") == ["theirs"]


def test_lines_of_json_are_read_but_for_one_that_was_cut_off(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert files.read_json_lines(path) == []
    path.write_text('{"a": 1}\n[2]\n{"a":')
    assert files.read_json_lines(path) == [{"a": 1}, [2]]
    path.write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(files.UserError, match="line 2 is not JSON"):
        files.read_json_lines(path)


def test_what_is_made_a_program_stays_one(tmp_path):
    with files.atomic_path(tmp_path / "run") as temporary:
        temporary.write_text("#!/bin/sh\n")
        temporary.chmod(0o755)
    assert os.access(tmp_path / "run", os.X_OK)


def test_a_file_that_a_writer_replaces_is_for_all_to_read(tmp_path):
    with files.atomic_path(tmp_path / "x") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_lines_are_appended_behind_the_last_whole_one(tmp_path):
    path = tmp_path / "lines"
    files.append_lines(path, "one\n")
    with path.open("a") as file:
        file.write("cut o")
    files.append_lines(path, "two\nthree\n")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_written_files_and_folders_are_for_all_to_read(tmp_path):
    old = os.umask(0o022)
    try:
        write_folder(tmp_path / "folder")
        files.write_text(tmp_path / "file", "text")
    finally:
        os.umask(old)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    paths = [tmp_path / part / "model.pth" for part in "ab"]
    for path in paths:
        files.save_tensors(path, {"a": torch.ones(2)})
    assert paths[0].read_bytes() == paths[1].read_bytes()


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk: the write fails
import torch
from espnet_omnisparse.errors import one_sentence
from espnet_omnisparse.files import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
with one_sentence():
    save_tensors("model.pth", {"weight": torch.zeros(100_000)})
"""


def test_a_disk_that_fills_up_under_a_checkpoint_gets_one_sentence(tmp_path):
    (tmp_path / "model.pth").write_text("before")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ") and "model.pth" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert (tmp_path / "model.pth").read_text() == "before"
