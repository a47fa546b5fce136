import fcntl
import os
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from helpers import REPOSITORY

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.recipe import template


def make_tree(root: Path, mark: str = "") -> Path:
    parts = root / "egs2" / "TEMPLATE" / "asr1"
    for name in template.LINKED:
        if name.endswith(".sh"):
            parts.mkdir(parents=True, exist_ok=True)
            (parts / name).write_text(f"echo {name} {mark}\n")
            (parts / name).chmod(0o755)
        else:
            (parts / name).mkdir(parents=True)
    (root / "tools").mkdir()
    (root / "tools" / "extra_path.sh").touch()
    return root


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "work" / "egs2" / "corpus" / "asr1"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("ESPNET_ROOT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "espnet-omnisparse"


@pytest.fixture
def sdist(tmp_path, cache, monkeypatch):
    """A small sdist, and a `download` that counts how often it is asked for it."""
    tree = make_tree(tmp_path / "espnet-202611")
    (tree / "doc").mkdir()
    (tree / "doc" / "unneeded.md").touch()
    path = tmp_path / "espnet-202611.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree, tree.name)
    downloads = []

    def download(folder: Path) -> Path:
        downloads.append(folder)
        return path

    monkeypatch.setattr(template, "download", download)
    digest = sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(template, "SDIST_SHA256", digest)
    return downloads


def test_the_sdist_is_fetched_once_and_only_what_is_needed(sdist, cache):
    root = template.locate()
    assert root == cache / "espnet-202611"
    assert os.access(root / "egs2/TEMPLATE/asr1/asr.sh", os.X_OK)
    assert (root / "tools" / "extra_path.sh").is_file()
    assert not (root / "doc").exists()
    assert template.locate() == root
    assert len(sdist) == 1
    assert list(cache.iterdir()) == [root]


def test_a_wrong_hash_is_refused_and_leaves_nothing(sdist, cache, monkeypatch):
    monkeypatch.setattr(template, "SDIST_SHA256", "0" * 64)
    with pytest.raises(UserError, match="is not the ESPnet 202611"):
        template.locate()
    assert not cache.exists()


def test_an_interruption_leaves_nothing(sdist, cache, monkeypatch):
    def interrupt(sdist, folder):
        (folder / "espnet-202611").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(template, "_unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template.locate()
    assert not cache.exists()
    assert template.locate().is_dir()


def test_two_processes_may_fetch_at_once(sdist, cache, monkeypatch):
    alone = template.download

    def download_while_another_process_is_faster(folder: Path) -> Path:
        monkeypatch.setattr(template, "download", alone)
        template.locate()
        return alone(folder)

    monkeypatch.setattr(template, "download", download_while_another_process_is_faster)
    root = template.locate()
    assert (root / "egs2/TEMPLATE/asr1/asr.sh").is_file()
    assert len(sdist) == 2
    assert list(cache.iterdir()) == [root]


def test_an_incomplete_cache_is_told(sdist, cache):
    (cache / "espnet-202611" / "tools").mkdir(parents=True)
    with pytest.raises(UserError, match="incomplete: delete it"):
        template.locate()


def test_an_unusable_cache_is_told(tmp_path, cache, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="could not be written .*XDG_CACHE_HOME"):
        template.locate()


def test_no_network_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UserError, match="set ESPNET_ROOT .* or connect") as caught:
        template.download(tmp_path)
    assert "\n" not in str(caught.value)


def test_espnet_root_is_taken_as_it_is(tmp_path, cache, monkeypatch):
    root = make_tree(tmp_path / "espnet")
    monkeypatch.setenv("ESPNET_ROOT", str(root))
    assert template.locate() == root
    assert not cache.exists()


def test_a_wrong_espnet_root_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPNET_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="ESPNET_ROOT=.* top folder of an ESPnet"):
        template.locate()


def test_a_linked_recipe_runs_and_linking_again_changes_nothing(tmp_path, recipe):
    root = make_tree(tmp_path / "espnet")
    for _ in range(2):
        template.link(recipe, root)
        names = {path.name for path in recipe.iterdir()}
        assert names == {*template.LINKED, "local"}
        assert (recipe / "local" / "path.sh").read_text() == ""
        assert (recipe / "../../../tools/extra_path.sh").is_file()
        done = subprocess.run(
            ["./asr.sh"], cwd=recipe, capture_output=True, shell=True, text=True
        )
        assert done.stdout.strip() == "asr.sh"


def test_what_the_user_put_there_stays(tmp_path, recipe):
    root = make_tree(tmp_path / "espnet")
    (recipe / "cmd.sh").write_text("mine")
    (tmp_path / "my_db").write_text("mine")
    (recipe / "db.sh").symlink_to(tmp_path / "my_db")
    (recipe / "local").mkdir()
    (recipe / "local" / "path.sh").write_text("mine")
    tools = recipe.parents[2] / "tools"
    tools.mkdir()
    template.link(recipe, root)
    assert (recipe / "cmd.sh").read_text() == "mine"
    assert (recipe / "db.sh").read_text() == "mine"
    assert (recipe / "local" / "path.sh").read_text() == "mine"
    assert tools.is_dir() and not tools.is_symlink()


def test_stale_and_dangling_links_are_replaced(tmp_path, recipe):
    old = make_tree(tmp_path / "old", "old")
    new = make_tree(tmp_path / "new", "new")
    template.link(recipe, old)
    (recipe / "cmd.sh").unlink()
    (recipe / "cmd.sh").symlink_to("nowhere")
    template.link(recipe, new)
    assert {path.resolve().parent for path in recipe.iterdir()} == {
        recipe,
        new / "egs2" / "TEMPLATE" / "asr1",
    }
    assert (recipe / "../../../tools").resolve() == new / "tools"


def test_a_link_left_by_a_killed_process_of_the_same_number_blocks_nothing(
    tmp_path, recipe
):
    tree = make_tree(tmp_path / "tree", "tree")
    left = recipe / f".cmd.sh.{os.getpid()}"  # in containers numbers come again
    left.symlink_to("nowhere")
    template.link(recipe, tree)
    assert (recipe / "cmd.sh").resolve().parent == tree / "egs2/TEMPLATE/asr1"


@pytest.mark.parametrize("folder", ["/", "/tmp", "/tmp/recipe"])
def test_a_recipe_that_is_not_deep_enough_is_told(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(Path, "resolve", lambda path: path)
    with pytest.raises(UserError, match="not deep enough.*such as egs2/my_corpus/asr1"):
        template.link(Path(folder), tmp_path)


def test_a_recipe_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="is not a folder: name a recipe"):
        template.link(tmp_path / "nowhere", tmp_path)


def test_an_old_python_is_told(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 11, 7, "final", 0))
        with pytest.raises(UserError, match="Python 3.11.7 is too old"):
            template.require_versions()


@pytest.mark.parametrize("installed", ["202511", "0.10.3a1", "unknown"])
def test_an_old_espnet_is_told(monkeypatch, installed):
    monkeypatch.setattr(template, "version", lambda name: installed)
    with pytest.raises(UserError, match=f"ESPnet {installed} is too old"):
        template.require_versions()


def test_a_missing_espnet_is_told(monkeypatch):
    def missing(name):
        raise template.PackageNotFoundError(name)

    monkeypatch.setattr(template, "version", missing)
    with pytest.raises(UserError, match="ESPnet is not installed"):
        template.require_versions()


@pytest.mark.parametrize("installed", ["202611", "202611.post1", "202612"])
def test_a_new_espnet_passes(monkeypatch, installed):
    monkeypatch.setattr(template, "version", lambda name: installed)
    template.require_versions()


def test_the_command_links_and_says_where_from(tmp_path, recipe, monkeypatch, capsys):
    root = make_tree(tmp_path / "espnet")
    monkeypatch.setenv("ESPNET_ROOT", str(root))
    monkeypatch.setattr(sys, "argv", ["template", str(recipe)])
    template.main()
    assert str(root) in capsys.readouterr().out
    assert (recipe / "asr.sh").is_file()


def test_the_command_fails_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ESPNET_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["template"])
    with pytest.raises(SystemExit, match="1"):
        template.main()
    printed = capsys.readouterr().err
    assert printed.startswith("error: ESPNET_ROOT=") and printed.count("\n") == 1


def write_script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def start_set_up(tmp_path: Path, *options: str, **environment: str):
    """Starts setup_env.sh with `tmp_path` before the system's folders on PATH."""
    settings = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    return subprocess.Popen(
        [REPOSITORY / "setup_env.sh", *options],
        env={**settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def set_up(tmp_path: Path, *options: str, **environment: str):
    process = start_set_up(tmp_path, *options, **environment)
    out, err = process.communicate()
    return subprocess.CompletedProcess(options, process.returncode, out, err)


def test_set_up_passes_over_pythons_that_do_not_run(tmp_path):
    write_script(tmp_path / "mine", "exit 127")
    write_script(tmp_path / "python3.12", "echo 'no such version' >&2; exit 127")
    write_script(tmp_path / "python3.13", "exit 0")
    write_script(tmp_path / "python3", f'exec "{sys.executable}" "$@"')
    done = set_up(tmp_path, "--print-python", PYTHON=str(tmp_path / "mine"))
    assert done.returncode == 0, done.stderr
    python = done.stdout.strip()
    asked = [python, "-c", "import sys; print(sys.base_prefix)"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == sys.base_prefix


def test_set_up_tells_an_unknown_option(tmp_path):
    done = set_up(tmp_path, "--print-pyhton")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --print-pyhton is unknown")


def test_set_up_leaves_a_folder_alone_that_is_no_environment(tmp_path):
    precious = tmp_path / "folder" / "precious"
    precious.parent.mkdir()
    precious.touch()
    done = set_up(tmp_path, VENV=str(precious.parent))
    assert done.returncode == 1
    assert "is not a virtual environment" in done.stderr
    assert list(precious.parent.iterdir()) == [precious]


def test_a_second_set_up_waits_for_the_first(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with (REPOSITORY / "setup.py").open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = start_set_up(tmp_path, VENV=str(tmp_path / "folder"))
        assert "Waiting for another set-up" in second.stdout.readline()
        assert second.poll() is None
    _, err = second.communicate()
    assert "is not a virtual environment" in err
