#!/usr/bin/env python3
"""The folder of a run, through runs.py."""
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import types
import unittest.mock

import pytest
from hypothesis import given

import runs
from helpers import ROOT, damaged, fuzz

ARGUMENTS = {"data": "Käse.zip (3 files)", "size": 32, "optimizer": ("adam",)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a path for runs, which this process may claim again."""
    monkeypatch.setattr(runs, "claim", lambda folder: None)
    return tmp_path / "100% [a] *"


def start(folder, script="simple_cnn.py", overwrite=False, **arguments):
    """Start a run, ARGUMENTS being its arguments unless named otherwise."""
    runs.start(str(folder), script, {**ARGUMENTS, **arguments}, overwrite)


def refused(capsys, *arguments, **options):
    """Return the message with which start refuses a folder."""
    with pytest.raises(SystemExit) as end:
        start(*arguments, **options)
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    return output.err


def contents(folder):
    """Return {path: bytes} of the files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


# JSON in and out

def test_what_is_written_can_be_read(tmp_path):
    path = str(tmp_path / "a.json")
    data = {"crème": [1, 0.1, None, True], "nested": {"": "\n"}}
    runs.write(path, data)
    assert runs.read_json(path) == data
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert json.loads(text) == data and "crème" in text
    runs.write(path, b"\0\xff")
    with open(path, "rb") as file:
        assert file.read() == b"\0\xff"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_a_missing_or_broken_file_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert runs.read_json(str(tmp_path / "a.json")) is None


@pytest.mark.parametrize("step", ["open", "replace"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, step):
    def full(*arguments):
        """Fail as on a full disk."""
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.json"
    path.write_text("older")
    if step == "open":
        monkeypatch.setitem(runs.__dict__, "open", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="a.json was not written: .*No space"):
        runs.write(str(path), [1, 2])
    assert contents(tmp_path) == {"a.json": b"older"}


def test_a_file_appears_whole(tmp_path, monkeypatch):
    # What a kill just before the end would leave behind
    path, replace = tmp_path / "a.json", os.replace

    def look(source, target):
        """Look at both files just before one becomes the other."""
        assert not path.exists()
        assert json.loads(open(source, "rb").read()) == [1, 2]
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    runs.write(str(path), [1, 2])
    assert contents(tmp_path) == {"a.json": b"[\n 1,\n 2\n]"}


def test_a_full_disk_leaves_the_older_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("older")
    code = ("import resource, runs\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "try: runs.write('a.json', b'0' * 5000)\n"
            "except OSError as error: print(error)")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, check=True,
        env=dict(os.environ, PYTHONPATH=ROOT), stdout=subprocess.PIPE)
    assert done.stdout.startswith("a.json was not written: ")
    assert contents(tmp_path) == {"a.json": b"older"}


def test_two_processes_write_one_file_without_harm(tmp_path, monkeypatch):
    path, replace = tmp_path / "a.json", os.replace

    def write_too(source, target):
        """Write the same file in another process, in between."""
        monkeypatch.setattr(os, "replace", replace)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            runs.write(str(path), ["other"])
        replace(source, target)

    (tmp_path / "a.json.part").write_text("somebody else's")
    monkeypatch.setattr(os, "replace", write_too)
    runs.write(str(path), ["ours"])
    assert runs.read_json(str(path)) == ["ours"]
    assert (tmp_path / "a.json.part").read_text() == "somebody else's"
    assert len(os.listdir(tmp_path)) == 2


def test_a_file_name_that_is_not_utf_8_is_kept(tmp_path):
    name = os.fsdecode(b"K\xe4se.zip")
    runs.write(str(tmp_path / "a.json"), {"data": name})
    assert runs.read_json(str(tmp_path / "a.json")) == {"data": name}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    def waits(*_):
        """Fail instead of hanging for ever."""
        raise TimeoutError

    os.mkfifo(tmp_path / "run.json")
    signal.signal(signal.SIGALRM, waits)
    signal.alarm(60)
    try:
        assert runs.read_json(str(tmp_path / "run.json")) is None
    finally:
        signal.alarm(0)


def test_json_that_nests_too_deeply_is_broken(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100000)
    assert runs.read_json(str(tmp_path / "a.json")) is None


# Paths in a command line

@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Go to a folder with a file, a folder, and a link to nowhere."""
    (tmp_path / "file").touch(0o777)
    (tmp_path / "folder").mkdir()
    os.symlink("nowhere", tmp_path / "dangling")
    monkeypatch.chdir(tmp_path)
    yield
    assert sorted(os.listdir()) == ["dangling", "file", "folder"]
    assert not os.listdir("folder")


@pytest.mark.parametrize("path", [
    "", "file", "file/below", "dangling", "dangling/below", "n" * 300,
    "a\nb" * 99])
def test_what_can_not_be_a_folder_is_named(paths, path):
    with pytest.raises(ValueError) as refusal:
        runs.check_folder("--out", path)
    assert str(refusal.value) == (
        f"--out is {path!r}, expected a folder that can be written to, or a "
        "path where one can be made")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("path", [
    "folder", "folder/", ".", "new", "new/deep", "folder/new", "a\nb"])
def test_a_folder_that_can_be_made_is_not_made_yet(paths, path):
    runs.check_folder("--out", path)
    runs.check_folder("--out", os.path.abspath(path))


@pytest.mark.parametrize("path, words", [
    ("", ""), ("folder", ""), (".", ""), ("new/", ""), ("/dev/null", ""),
    ("dangling", ""), ("n" * 300, ""),
    ("new/deep", ": there is no such folder"),
    ("file/below", ": there is no such folder")])
def test_what_can_not_be_a_file_is_named(paths, path, words):
    with pytest.raises(ValueError) as refusal:
        runs.check_file("--json", path)
    assert str(refusal.value) == (
        f"--json is {path!r}, expected a file that can be written{words}")
    for path in "file", "new.json", "folder/new.json":
        runs.check_file("--json", path)


def test_a_read_only_folder_is_named(paths, monkeypatch):
    # Root may write everywhere, so the answer of the system is made up.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    for check in runs.check_folder, runs.check_file:
        for path in "new", "folder", "file":
            with pytest.raises(ValueError, match=f"--x is '{path}'"):
                check("--x", path)


# One process for each folder

def test_a_folder_has_one_process_until_it_ends(tmp_path):
    code = "import runs; runs.claim('.'); print(1, flush=True); input()"
    with subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, text=True,
            env=dict(os.environ, PYTHONPATH=ROOT), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(OSError, match="Another process is using"):
            runs.claim(str(tmp_path))
        other.kill()
    runs.claim(str(tmp_path))


def test_a_subprocess_can_share_the_claim(tmp_path):
    code = ("import runs, subprocess, sys; runs.claim('.'); subprocess.Popen("
            "[sys.executable, '-c', 'print(1, flush=True); input()'], "
            "close_fds=False)")
    with subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, text=True,
            env=dict(os.environ, PYTHONPATH=ROOT), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE) as other:
        assert other.wait() == 0 and other.stdout.readline() == "1\n"
        with pytest.raises(OSError, match="Another process is using"):
            runs.claim(str(tmp_path))
        other.stdin.close()
        assert not other.stdout.read()  # the subprocess has ended, too
    runs.claim(str(tmp_path))


def test_a_start_claims_the_folder(tmp_path):
    start(tmp_path / "new")
    with pytest.raises(OSError, match="Another process is using"):
        start(tmp_path / "new", overwrite=True)
    assert list(contents(tmp_path / "new")) == ["run.json"]


# Started, continued, refused

def test_a_new_run_says_what_it_is(folder, capsys):
    start(folder)
    assert json.loads((folder / "run.json").read_text(encoding="utf-8")) == {
        "script": "simple_cnn.py", "finished": False, "arguments": {
            "data": "Käse.zip (3 files)", "size": 32, "optimizer": ["adam"]}}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_run_continues(folder, capsys, overwrite):
    start(folder)
    (folder / "model.npz").write_text("two epochs")
    before = contents(folder)
    start(folder, overwrite=overwrite)
    assert contents(folder) == before
    assert capsys.readouterr().out == f"Continuing the run in {folder}\n"


def test_a_finished_run_is_refused(folder, capsys):
    start(folder)
    (folder / "model.keras").write_text("a model")
    (folder / "model.npz").write_text("a checkpoint")
    (folder / "logs").mkdir()
    (folder / "logs" / "own.npz").write_text("no checkpoint")
    (folder.parent / "other.npz").write_text("another run's")
    runs.finish(str(folder))
    before = contents(folder)
    assert set(before) == {"run.json", "model.keras", "logs/own.npz"}
    assert (folder.parent / "other.npz").exists()
    assert json.loads(before["run.json"])["finished"] is True
    assert refused(capsys, folder) == (
        f"{folder} contains a finished run: choose another --out, or "
        "--overwrite it\n")
    assert contents(folder) == before


def test_a_finished_run_can_be_extended_if_it_is_the_same(folder, capsys):
    def extend(size=32, overwrite=False):
        """Start or extend a run with these arguments."""
        runs.start(str(folder), "simple_cnn.py", dict(ARGUMENTS, size=size),
                   overwrite, extend=True)

    extend()
    (folder / "model.keras").write_text("a model")
    runs.finish(str(folder))
    extend()
    assert capsys.readouterr().out == f"Continuing the run in {folder}\n"
    assert (folder / "model.keras").exists()
    assert runs.read_json(str(folder / "run.json"))["finished"] is False
    runs.finish(str(folder))
    with pytest.raises(SystemExit):
        extend(size=40)
    assert "a run with size 32 instead of 40" in capsys.readouterr().err
    assert runs.read_json(str(folder / "run.json"))["finished"] is True
    extend(overwrite=True)
    assert os.listdir(folder) == ["run.json"]


def test_a_run_whose_file_is_gone_can_not_be_finished(folder):
    start(folder)
    (folder / "model.npz").write_text("two epochs")
    for text in None, "[1]", "{broken":
        (folder / "run.json").unlink()
        if text:
            (folder / "run.json").write_text(text)
        with pytest.raises(OSError, match="run.json is missing or damaged"):
            runs.finish(str(folder))
        (folder / "run.json").touch()
    assert (folder / "model.npz").exists()


def test_a_run_that_is_killed_while_it_starts_can_start(folder):
    folder.mkdir()
    (folder / "run.json.7.part").write_text('{"scri')
    start(folder)
    assert os.listdir(folder) == ["run.json"]


def test_a_run_with_other_arguments_is_refused(folder, capsys):
    start(folder)
    (folder / "model.npz").write_text("two epochs")
    before = contents(folder)
    assert ("a run with size 32 instead of 40, seed None instead of 1: choose"
            ) in refused(capsys, folder, size=40, seed=1)
    assert "a run of simple_cnn.py: choose another --out" in refused(
        capsys, folder, script="transfer_model.py", size=40)
    assert contents(folder) == before


@pytest.mark.parametrize("copy", [
    "pictures.part",  # killed while it copied the images
    "pictures"])      # refused for its images, which have changed since
def test_a_run_without_results_needs_no_overwrite(folder, capsys, copy):
    start(folder)
    (folder / copy).mkdir()
    (folder / copy / "1.png").write_text("")
    start(folder, size=40)
    assert list(contents(folder)) == ["run.json"]
    assert runs.read_json(str(folder / "run.json"))["arguments"]["size"] == 40


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(folder):
    start(folder)
    runs.finish(str(folder))
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("years of work")
    os.symlink(outside, folder / "link")
    (folder / "logs").mkdir()
    (folder / "logs" / "events").write_text("")
    (folder / "model.keras").write_text("a model")
    start(folder, overwrite=True)
    assert os.listdir(folder) == ["run.json"]
    assert (outside / "thesis.txt").read_text() == "years of work"
    assert runs.read_json(str(folder / "run.json"))["finished"] is False


def test_a_run_that_is_half_deleted_stays_known_as_one(folder, monkeypatch):
    start(folder)
    runs.finish(str(folder))
    (folder / "logs").mkdir()
    listdir = os.listdir

    def fail(path):
        """Stop instead of deleting a folder."""
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: sorted(
            listdir(path), key=lambda name: name != "run.json"))
        patch.setattr(runs.shutil, "rmtree", fail)
        with pytest.raises(KeyboardInterrupt):
            start(folder, overwrite=True)
    start(folder, overwrite=True)  # isn't refused
    assert os.listdir(folder) == ["run.json"]


@pytest.mark.parametrize("files", [
    {"thesis.txt": "years of work"}, {"run.json": '{"model": "mine"}'},
    {"run.json": "[]"}, {"run.json": "no JSON", "a.keras": "a model"},
    {"run.json": '{"script": "simple_cnn.py", "arguments": {}}'},
    {"run.json": '{"script": [], "arguments": {}, "finished": true}'},
    {"run.json": '{"script": "a.py", "arguments": [1], "finished": true}'},
    {"run.json": '{"script": "a.py", "arguments": {}, "finished": "no"}'}])
def test_what_is_not_a_run_is_never_deleted(folder, capsys, files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    for overwrite in False, True:
        assert refused(capsys, folder, overwrite=overwrite) == (
            f"{folder} contains something that isn't a run: choose another "
            "--out\n")
    assert contents(folder) == {
        name: text.encode() for name, text in files.items()}


@fuzz
@given(damaged(json.dumps({
    "script": "simple_cnn.py", "arguments": {
        "data": "Käse.zip", "size": 32}, "finished": False},
    indent=1, ensure_ascii=False).encode()))
def test_a_damaged_run_json_is_neither_continued_nor_deleted(data):
    arguments = {"data": "Käse.zip", "size": 32}
    for overwrite in False, True:
        with tempfile.TemporaryDirectory() as name:
            folder = os.path.join(name, "out")
            os.mkdir(folder)
            for file, text in (("run.json", data), ("model.npz", b"epochs")):
                with open(os.path.join(folder, file), "wb") as there:
                    there.write(text)
            try:
                content = json.loads(data.decode("utf-8"))
            except ValueError:
                content = None
            ours = isinstance(content, dict) and sorted(content) == [
                "arguments", "finished", "script"] and [
                type(content[key]) for key in sorted(content)] == [
                    dict, bool, str]
            same = ours and content == {"script": "simple_cnn.py", "finished":
                                        False, "arguments": arguments}
            refused = not same and not (ours and overwrite)
            with unittest.mock.patch.object(runs, "claim"):
                try:
                    runs.start(folder, "simple_cnn.py", arguments, overwrite)
                except SystemExit as end:
                    assert refused and end.code == 2
                else:
                    assert not refused
            assert os.path.exists(os.path.join(folder, "model.npz")) == (
                refused or same)
            if refused:
                with open(os.path.join(folder, "run.json"), "rb") as there:
                    assert there.read() == data


# The machine

@pytest.mark.skipif(not os.path.exists("/proc/self/status"),
                    reason="needs Linux's /proc")
def test_the_machine_is_this_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(
        __version__="2.99", keras=types.SimpleNamespace(__version__="3.99")))
    info = runs.machine()
    json.dumps(info)
    assert (info["tensorflow"], info["keras"]) == ("2.99", "3.99")
    assert info["python"] == platform.python_version()
    assert info["cores"] == os.cpu_count()
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if "VmHWM" in line)
    assert 1000 * peak < info["peak_memory_bytes"] < info["memory_bytes"]
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file
                 if line.startswith("model name")]
    assert info["processor"] in (names or [platform.processor()])
