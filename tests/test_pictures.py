#!/usr/bin/env python3
"""Folders and zips of images as people have them, through pictures.py."""
import contextlib
import io
import json
import os
import re
import shutil
import socket
import struct
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

import pictures
from helpers import damaged, fuzz


SPLITS = "train", "validation", "holdout"
Image.init()  # of all formats


def save(image, format="PNG", **options):
    """Return the bytes of a file with this image."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def plain(colour, mode="RGB", format="PNG", size=(8, 6)):
    """Return the bytes of an image of one colour."""
    return save(Image.new(mode, size, colour), format)


def noise(height, width, seed=0):
    """Make an image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(
        0, 256, (height, width, 3)).astype("uint8"))


def as_bytes(data):
    """Return bytes as they are, a number as an image of its own colour."""
    return data if isinstance(data, bytes) else plain(
        (data, 100, 200 - data))


def write(folder, files):
    """Write {path: bytes or number}; a path ending with / is a folder."""
    for path, data in files.items():
        path = os.path.join(str(folder), path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not path.endswith("/"):
            with open(path, "wb") as file:
                file.write(as_bytes(data))
    return str(folder)


def write_zip(path, files):
    """Write the same into a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, as_bytes(data))
    return str(path)


def three_splits(classes=("cake", "pie"), around=""):
    """Return a folder's files: two images of each class in each split."""
    return {f"{around}{split}/{name}/{i}.png": 60 * s + 20 * c + i
            for s, split in enumerate(SPLITS)
            for c, name in enumerate(classes) for i in range(2)}


def copied(data, tmp_path, splits=True, size=16):
    """Make the clean copy of the images in `data`."""
    return pictures.clean_copy(pictures.find(data, splits),
                               str(tmp_path / "copy"), size)


# Where the images are

@pytest.mark.parametrize("around", ["", "data/", "my data/desserts/v2/"])
@pytest.mark.parametrize("how", [write, write_zip])
def test_folders_around_do_not_matter(tmp_path, how, around):
    files = {**three_splits(around=around), "__MACOSX/._x.png": b"",
             f"{around}train/cake/.DS_Store": b"", f"{around}notes.txt": b"",
             f"{around}train/cake/Thumbs.db": b"", "README.txt": b""}
    copy = copied(how(tmp_path / "in.zip", files), tmp_path)
    assert copy.classes == ["cake", "pie"]
    assert [copy.count(split) for split in SPLITS] == [4, 4, 4]
    assert set(copy.left_out) == {"README.txt", f"{around}notes.txt"}
    for path, original in copy.source.items():
        assert original.startswith(around)
        assert original[len(around):].split("/")[:2] == path.split("/")[:2]


@pytest.mark.parametrize("names", [
    SPLITS, ("Training", "val", "Test"), ("TRAIN", "valid", "hold-out")])
def test_splits_have_the_names_that_people_give_them(tmp_path, names):
    files = {}
    for path, data in three_splits().items():
        split, rest = path.split("/", 1)
        files[f"{names[SPLITS.index(split)]}/{rest}"] = data
    copy = copied(write(tmp_path / "in", files), tmp_path)
    for split, name in zip(SPLITS, names):
        assert copy.count(split) == 4
        assert all(original.startswith(name)
                   for path, original in copy.source.items()
                   if path.startswith(split))


@pytest.mark.parametrize("around", ["", "data/"])
def test_a_folder_for_each_class(tmp_path, around):
    files = {f"{around}cats/1.png": 1, f"{around}cats/more/2.png": 2,
             f"{around}dogs/3.png": 3, f"{around}loose.png": 4}
    copy = copied(write(tmp_path / "in", files), tmp_path, splits=False)
    assert copy.classes == ["cats", "dogs"]
    assert copy.count("all", "cats") == 2 and copy.count("all", "dogs") == 1
    assert list(copy.left_out) == [f"{around}loose.png"]


@pytest.mark.parametrize("how", [write, write_zip])
def test_an_umlaut_written_in_two_ways_is_one_class(tmp_path, how):
    name = "Crème brûlée & Käse 100%"
    files = three_splits(classes=("pie", unicodedata.normalize("NFD", name)))
    files = {path if path.startswith("train") else unicodedata.normalize(
        "NFC", path): data for path, data in files.items()}
    copy = copied(how(tmp_path / "mit Ümläuten", files), tmp_path)
    assert copy.classes == [name, "pie"]
    for split in SPLITS:
        X, Y = next(iter(copy.dataset(split, 16, 10)))
        assert np.array(Y).argmax(axis=1).tolist() == [0, 0, 1, 1]


def test_a_zip_of_macos_has_utf8_names_without_the_flag(tmp_path):
    path = write_zip(tmp_path / "in.zip", {
        "Kxse/1.png": 1, "Kxse/2.png": 2, "Brot/3.png": 3})
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:  # ä has two bytes, as xs had
        file.write(data.replace(b"Kxse", "Kä".encode() + b"e"))
    assert pictures.find(path, splits=False).classes == ["Brot", "Käe"]


def test_names_that_are_not_utf8(tmp_path):
    write(tmp_path / "in", {"cats/1.png": 1, "dogs/1.png": 2})
    os.rename(os.fsencode(str(tmp_path / "in" / "dogs" / "1.png")),
              os.fsencode(str(tmp_path / "in" / "dogs")) + b"/K\xe4se.png")
    copy = copied(str(tmp_path / "in"), tmp_path, splits=False)
    assert copy.count("all", "dogs") == 1
    assert "dogs/K\\xe4se.png" in copy.source.values()


RUN = b'{"script": "simple_cnn.py", "arguments": {}, "finished": true}'


def test_links_are_followed_and_runs_are_not(tmp_path):
    data = write(tmp_path / "in", {
        "cats/1.png": 1, "runs/mine/run.json": RUN,
        "runs/mine/pictures/all/cats/1.png": 1, "cats/2.png": 3})
    write(tmp_path / "elsewhere", {"1.png": 2})
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "dogs")
    os.symlink(tmp_path / "in", tmp_path / "in" / "cats" / "back")
    copy = copied(data, tmp_path, splits=False)
    assert copy.classes == ["cats", "dogs"]
    assert [copy.count("all", name) for name in copy.classes] == [2, 1]
    assert copy.left_out == {"runs/mine": "a run of these scripts",
                             "cats/back": f"the same folder as {data}"}


def test_the_folder_of_a_run_is_no_folder_of_images(tmp_path):
    data = write(tmp_path / "in", {
        "run.json": RUN, "cats/1.png": 1, "dogs/1.png": 2})
    with pytest.raises(OSError, match=r"no folders of images.*\(\.: a run of"):
        pictures.find(data, splits=False)


def test_another_program_s_run_json_hides_no_images(tmp_path):
    data = write(tmp_path / "in", {
        "cats/1.png": 1, "dogs/1.png": 2, "dogs/run.json": b"[1]"})
    copy = copied(data, tmp_path, splits=False)
    assert copy.count("all", "dogs") == 1
    assert list(copy.left_out) == ["dogs/run.json"]


@pytest.mark.parametrize("link", ["dogs", "cats/more"])
def test_a_class_that_is_a_link_to_another_is_refused(tmp_path, link):
    data = write(tmp_path / "in", {"cats/1.png": 1, "cows/1.png": 2})
    os.symlink(tmp_path / "in" / "cows", tmp_path / "in" / link)
    name, other = ("dogs", "cows") if link == "dogs" else ("cows", link)
    with pytest.raises(OSError, match=f"{name} has no images to learn from "
                       rf"\({name}: the same folder as {data}/{other}\)"):
        pictures.find(data, splits=False)


def test_what_is_neither_a_file_nor_a_folder_is_named(tmp_path):
    """A pipe or a device would be waited for, or read, for ever."""
    folder = write(tmp_path / "in", {"cats/1.png": 1, "dogs/1.png": 2})
    os.mkfifo(tmp_path / "in" / "dogs" / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "in" / "dogs" / "device.png")
    os.symlink("nowhere", tmp_path / "in" / "dogs" / "dangling.png")
    os.symlink("itself.png", tmp_path / "in" / "dogs" / "itself.png")
    os.symlink("nowhere", tmp_path / "in" / "birds")
    path = os.path.relpath(tmp_path / "in" / "dogs" / "socket.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)  # a long path isn't allowed
    copy = copied(folder, tmp_path, splits=False)
    assert [copy.count("all", name) for name in copy.classes] == [1, 1]
    reason = "can't be read: neither a file nor a folder"
    missing = "can't be read: No such file or directory"
    assert copy.left_out == {
        "birds": missing, "dogs/dangling.png": missing,
        "dogs/device.png": reason, "dogs/pipe.png": reason,
        "dogs/socket.png": reason, "dogs/itself.png":
        "can't be read: Too many levels of symbolic links"}


def test_a_pipe_is_no_folder_and_no_zip(tmp_path):
    os.mkfifo(tmp_path / "data.zip")
    with pytest.raises(OSError, match="neither a folder nor a readable zip"):
        pictures.find(str(tmp_path / "data.zip"))


def test_a_class_of_nothing_but_a_pipe_is_an_empty_class(tmp_path):
    data = write(tmp_path / "in", {
        "cats/1.png": 1, "dogs/1.png": 2, "birds/": b""})
    os.mkfifo(tmp_path / "in" / "birds" / "1.png")
    with pytest.raises(OSError, match=r"birds has no images to learn from "
                       r"\(birds/1.png: can't be read: neither"):
        pictures.find(data, splits=False)


@pytest.mark.parametrize("how", [write, write_zip])
def test_a_file_without_permission_or_too_large_is_named(
        tmp_path, monkeypatch, how):
    data = how(tmp_path / "in", {
        "cats/1.png": 1, "dogs/1.png": 2, "dogs/film.png": bytes(5000)})
    monkeypatch.setattr(pictures, "MAX_BYTES", 4000)
    copy = copied(data, tmp_path, splits=False)
    assert copy.left_out == {"dogs/film.png": "can't be read: 5,000 bytes, "
                             "expected at most 4,000"}
    monkeypatch.undo()

    def denied(path, *arguments, open=open):
        """Refuse to open one of the files."""
        if str(path).endswith("film.png"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *arguments)

    if how == write:  # root may read any file, so chmod is no test
        monkeypatch.setattr(pictures, "open", denied, raising=False)
        source = pictures.find(data, splits=False)
        assert source.left_out == {
            "dogs/film.png": "can't be read: Permission denied"}


def test_names_that_look_the_same_are_all_there(tmp_path):
    data = write(tmp_path / "in", {"cats/1.png": 1, "dogs/1.png": 2})
    for number, name in enumerate((b"\xe4.png", b"\\xe4.png")):
        with open(os.fsencode(os.path.join(data, "cats/")) + name,
                  "wb") as file:
            file.write(as_bytes(3 + number))
    assert copied(data, tmp_path, splits=False).count("all", "cats") == 3
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            for number, name in enumerate(("cats", "cats", "dogs")):
                archive.writestr(f"{name}/1.png", as_bytes(number))
    source = pictures.find(str(tmp_path / "in.zip"), splits=False)
    assert [len(source.files["all"][name]) for name in source.classes] == [
        2, 1]


@pytest.mark.parametrize("how", [write, write_zip])
def test_a_folder_of_nothing_but_junk_is_an_empty_class(tmp_path, how):
    data = how(tmp_path / "in", {
        "cats/1.png": 1, "dogs/1.png": 2, "birds/": b"",
        "birds/.DS_Store": b"x"})
    with pytest.raises(OSError, match="birds has no images to learn from"):
        pictures.find(data, splits=False)


@pytest.mark.parametrize("how", [write, write_zip])
def test_no_name_commands_the_terminal(tmp_path, how, capsys):
    """Escape sequences and changes of direction are spelled out."""
    family = "\U0001f469\u200d\U0001f467"  # two emoji and a joiner
    data = how(tmp_path / "in\x1b[1m", {
        "\x1b[31mcats/1.png": 1, f"{family}/1.png": 2,
        f"{family}/\u202egnp.txt": b"no image", "a\nb/": b""})
    with pytest.raises(OSError, match=re.escape(
            "a\\nb has no images to learn from")):
        pictures.find(data, splits=False)
    data = how(tmp_path / "in\x1b[2m", {
        "\x1b[31mcats/1.png": 1, f"{family}/1.png": 2,
        f"{family}/\u202egnp.txt": b"no image"})
    source = pictures.find(data, splits=False)
    assert source.identity.startswith("in\\x1b[2m (")
    copy = pictures.clean_copy(source, str(tmp_path / "copy"), 16)
    assert copy.classes == ["\\x1b[31mcats", family]
    assert list(copy.left_out) == [f"{family}/\\u202egnp.txt"]
    assert len(list(copy.dataset("all", 16, 1))) == 2
    assert not re.search("[\x1b\u202e]", copy.describe())
    with pytest.raises(OSError, match=re.escape("no\\x1b[2m.zip doesn't")):
        pictures.find("no\x1b[2m.zip")


@pytest.mark.parametrize("around", ["train/", "data/test/"])
def test_one_half_of_a_split_folder_is_a_folder_around(tmp_path, around):
    data = write(tmp_path / "in", {
        f"{around}cats/1.png": 1, f"{around}dogs/1.png": 2})
    assert pictures.find(data, splits=False).classes == ["cats", "dogs"]


def test_a_class_may_be_called_train(tmp_path):
    data = write(tmp_path / "in", {
        "car/1.png": 1, "plane/1.png": 2, "train/1.png": 3})
    assert pictures.find(data, splits=False).classes == [
        "car", "plane", "train"]


@pytest.mark.parametrize("how", [write, write_zip])
def test_other_images_under_the_same_names_have_another_identity(
        tmp_path, how):
    # The second other has as many bytes.
    first, same, other, equal = [pictures.find(how(tmp_path / "in", {
        "cats/1.png": data, "dogs/1.png": 2}), splits=False).identity
        for data in (1, 1, plain(9, size=(80, 60)), as_bytes(3))]
    assert len(as_bytes(1)) == len(as_bytes(3))
    assert first == same and len({first, other, equal}) == 3
    assert first.startswith("in (2 files, ")


# What is wrong with them

@pytest.mark.parametrize("files, words", [
    ({"readme.txt": b""}, "no folders of images"),
    ({"cake/1.png": 1, "cake/2.png": 2}, "has cake to learn"),
    ({"train/a/1.png": 1, "train/b/1.png": 2, "test/a/1.png": 3},
     "split already"),
    ({"test/a/1.png": 1, "holdout/b/1.png": 2}, "split already"),
    ({"a/1.png": 1, "b/": b""}, "b has no images to learn from"),
    ({"a/1.png": 1, "b/1.png": b"no image"}, "b has no images to learn from"),
])
def test_one_clear_message_without_splits(tmp_path, files, words):
    data = write(tmp_path / "in", files)
    with pytest.raises(OSError, match=words):
        copied(data, tmp_path, splits=False)
    assert not os.path.exists(tmp_path / "copy")


def without(files, words):
    """Return the files whose path has none of these words in it."""
    return {path: data for path, data in files.items() if words not in path}


@pytest.mark.parametrize("files, words", [
    ({}, "no folders of images"),
    ({"train/cake/0.png": 1, "train/pie/0.png": 2}, "has train: expected"),
    ({"train/cake/0.png": 1, "train/pie/0.png": 2},
     "missing: validation, holdout. Move some images to validation or hol"),
    (without(three_splits(), "train"), "has holdout, validation: expected "
     "train, validation and holdout; missing: train. Move the images to learn "
     "from to train"),
    ({"cake/0.png": 1, "pie/0.png": 2}, "missing: train, validation, holdout. "
     "four_classes_transfer.py takes a folder without them"),
    ({**without(three_splits(), "holdout/"), "test/1.png": 1},
     r"test has no images in folders of classes \(test/1.png: not in a class"),
    ({**without(three_splits(), "holdout/"), "train/flan/1.png": 1},
     "flan has one training image, which can't be split"),
    ({**three_splits(), "test/cake/1.png": 5}, "both holdout and test"),
    ({**without(three_splits(), "train"), "train/1.png": 1},
     "has no class to learn"),
    ({**three_splits(), "validation/tart/1.png": 5}, "validation has tart"),
    (without(three_splits(), "cake"), "has pie to learn"),
    ({**three_splits(), "train/flan/": b""}, "flan has no images to learn"),
    ({**three_splits(), "train/pie/0.png": b"", "train/pie/1.png": b""},
     "pie has no images to learn"),
    ({**three_splits(), **{f"holdout/{name}/{i}.png": b"" for name in (
        "cake", "pie") for i in range(2)}},
     "holdout has no images that can be read"),
])
def test_one_clear_message_with_splits(tmp_path, files, words):
    os.makedirs(tmp_path / "in")
    with pytest.raises(OSError, match=words):
        copied(write(tmp_path / "in", files), tmp_path)
    assert not os.path.exists(tmp_path / "copy")


@pytest.mark.parametrize("missing", ["validation", "holdout"])
def test_a_missing_split_is_split_off_the_training_images(
        tmp_path, capsys, missing):
    """The most usual download has train and val."""
    other = {"validation": "holdout", "holdout": "val"}[missing]
    data = write(tmp_path / "in", {
        f"{split}/{name}/{i}.png": noise_bytes(s, c, i)
        for s, (split, count) in enumerate((("train", 20), (other, 3)))
        for c, name in enumerate(("cake", "pie")) for i in range(count)})
    write(data, {f"train/pie/{i}.png": noise_bytes(0, 1, i)
                 for i in (20, 21, 22)})
    for i in range(23):  # and each pie is there twice
        write(data, {f"train/pie/again {i}.png": noise_bytes(0, 1, i)})
    source = pictures.find(data)
    assert capsys.readouterr().out == (
        f"{data} has {', '.join(sorted(['train', other]))}: 15 % of each "
        f"class's training images become the {missing} set\n")
    assert list(source.files) == ["holdout", "validation", "train"]
    assert [len(source.files[missing][name]) for name in source.classes] == [
        3, 7]
    again = pictures.find(data)  # always the same
    for name in source.classes:
        assert list(again.files[missing][name]) == list(
            source.files[missing][name])
        assert not set(source.files[missing][name]) & set(
            source.files["train"][name])
    copy = pictures.clean_copy(source, str(tmp_path / "copy"), 16)
    assert copy.count("train", "cake") == 17
    assert copy.count(missing, "cake") == 3
    # Of duplicates, those that aren't trained on stay.
    assert copy.count("train", "pie") + copy.count(missing, "pie") == 23
    assert set(source.files[missing]["pie"]) & set(copy.source.values())
    for path, why in copy.left_out.items():
        kept = why.split("a duplicate of ")[1]
        assert path in source.files["train"]["pie"] or (
            kept in source.files[missing]["pie"])


def noise_bytes(*seed):
    """Return the bytes of an image of noise that no other seed gives."""
    return save(noise(8, 8, seed))


@pytest.mark.parametrize("top, advised", [
    (("train", "val"), True), (("train", "test"), True),
    (("val", "test"), False), (("holdout", "test"), False)])
def test_advice_is_not_circular(tmp_path, top, advised):
    """Scripts that are named take the folder that was refused."""
    data = write(tmp_path / "in", {
        f"{split}/{name}/{i}.png": noise_bytes(s, c, i) for i in range(2)
        for s, split in enumerate(top) for c, name in enumerate("ab")})
    with pytest.raises(OSError, match="is split already") as error:
        pictures.find(data, splits=False)
    assert ("simple_cnn.py" in str(error.value)) == advised
    if advised:
        assert pictures.find(data).classes == ["a", "b"]
    for split in top:
        pictures.find(os.path.join(data, split), splits=False)


def test_a_path_that_does_not_exist_or_is_no_zip(tmp_path):
    with pytest.raises(OSError, match="doesn't exist: expected a folder"):
        pictures.find(str(tmp_path / "data.zip"))
    (tmp_path / "data.zip").write_bytes(b"PK but no zip")
    with pytest.raises(OSError, match="neither a folder nor a readable zip"):
        pictures.find(str(tmp_path / "data.zip"))


def test_a_folder_that_cannot_be_read_is_not_skipped(tmp_path, monkeypatch):
    data, scandir = write(tmp_path / "in", three_splits()), os.scandir

    def denied(path):
        """Refuse to list a folder."""
        if str(path).endswith("pie"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="pie"):
        pictures.find(data)


@pytest.mark.parametrize("name", [
    "../cats/1.png", "/cats/1.png", "a/../../b.png", "C:/cats/1.png",
    "..\\cats\\1.png"])
def test_a_zip_entry_outside_its_folder_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "in.zip", {
        "cats/1.png": 1, "dogs/1.png": 2, name: 3})
    with pytest.raises(OSError, match="outside its own folder"):
        pictures.find(path, splits=False)
    assert os.listdir(tmp_path) == ["in.zip"]


def test_a_zip_that_unpacks_to_more_than_it_should(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w",
                         zipfile.ZIP_DEFLATED) as archive:
        for name in "cats/1.png", "dogs/1.png":
            archive.writestr(name, bytes(10 ** 7))
    with pytest.raises(OSError, match="20,000,000 bytes"):
        pictures.find(str(tmp_path / "in.zip"), splits=False)


def test_a_zip_with_a_password_and_a_truncated_one(tmp_path):
    path = write_zip(tmp_path / "in.zip", {"cats/1.png": 1, "dogs/1.png": 2})
    with open(path, "rb") as file:
        data = file.read()
    at = data.index(b"PK\1\2") + 8  # the flags in the list of contents
    for content, words in (
            (data[:at] + bytes([data[at] | 1]) + data[at + 1:],
             "needs a password"),
            (data[:len(data) // 2], "nor a readable zip"),
            (data.replace(b"PK\1\2", b"PK\1\3"), "is damaged")):
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(OSError, match=words):
            pictures.find(path, splits=False)


def patched(data, at, value):
    """Return bytes with others in a place."""
    return data[:at] + value + data[at + len(value):]


@pytest.mark.parametrize("field, value, words", [
    (6, b"\xff\0", "is damaged .*version"),
    (8, b"\0\x08", "is damaged .*utf-8"),  # the flag of a UTF-8 name
    (8, b"\1\0", "needs a password"),
    (10, b"\x63\0", "cats has no .*compression method"),
    (16, b"\1\2\3\4", "cats has no .*Bad CRC-32"),
    (20, b"\0\0\0\0", "cats has no images to learn from"),
    (24, b"\0\0\0\x7f", "claims to unpack to"),
    (42, b"\xff\xff\xff\x7f", "cats has no images to learn from")])
@pytest.mark.parametrize("method", [
    zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_is_wrong_with_a_zip_is_one_message(
        tmp_path, field, value, words, method):
    """A field in the list of contents, at the entry of the only cat."""
    with zipfile.ZipFile(tmp_path / "in.zip", "w", method) as archive:
        archive.writestr("cats/?.png", as_bytes(1))
        archive.writestr("dogs/1.png", as_bytes(2))
    data = (tmp_path / "in.zip").read_bytes().replace(
        b"cats/?.png", b"cats/\xff.png")
    at = data.index(b"PK\1\2")
    (tmp_path / "in.zip").write_bytes(patched(data, at + field, value))
    with pytest.raises(OSError, match=words):
        copied(str(tmp_path / "in.zip"), tmp_path, splits=False)


def test_an_entry_of_a_zip_that_cannot_be_read_is_named(tmp_path):
    """The others are read."""
    path = write_zip(tmp_path / "in.zip", {
        "cats/1.png": 1, "cats/2.png": 2, "dogs/1.png": 3,
        "dogs/inner.zip": b"PK", "dogs/film.png": bytes(5000)})
    with open(path, "rb") as file:
        data = file.read()
    at = data.index(as_bytes(2))
    with open(path, "wb") as file:
        file.write(patched(data, at, b"\0"))
    copy = copied(path, tmp_path, splits=False)
    assert sorted(copy.source.values()) == ["cats/1.png", "dogs/1.png"]
    assert copy.left_out == {
        "cats/2.png": "can't be read: Bad CRC-32 for file 'cats/2.png'",
        "dogs/film.png": "can't be read: not an image that Pillow knows",
        "dogs/inner.zip": "can't be read: not an image that Pillow knows"}


def test_links_and_devices_in_a_zip_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, mode in (("cats/1.png", 0o100644), ("dogs/1.png", 0),
                           ("dogs/link.png", 0o120777), ("birds", 0o120777),
                           ("dogs/device.png", 0o20666), ("cows/", 0o40755),
                           ("cows/pipe.png", 0o10666)):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, mode << 16
            archive.writestr(entry, b"" if name[-1] == "/" else as_bytes(
                mode % 250))
    with pytest.raises(OSError, match="cows has no images to learn from "
                       r"\(cows/pipe.png: can't be read: a link or a dev"):
        pictures.find(str(tmp_path / "in.zip"), splits=False)
    thinned = tmp_path / "thinned.zip"
    with zipfile.ZipFile(tmp_path / "in.zip") as everything, (
            zipfile.ZipFile(thinned, "w")) as archive:
        for entry in everything.infolist():
            if "cows" not in entry.filename:
                archive.writestr(entry, everything.read(entry))
    source = pictures.find(str(thinned), splits=False)
    assert source.classes == ["cats", "dogs"]
    assert source.left_out == {name: "can't be read: a link or a device"
                               for name in ("dogs/link.png", "birds",
                                            "dogs/device.png")}


@pytest.mark.parametrize("around", ["./", "./data/./", "data//"])
def test_zips_that_other_programs_write(tmp_path, around):
    """That of bsdtar has an entry ./ and names that begin with it."""
    path = write_zip(tmp_path / "in.zip", {
        around: b"", f"{around}cats/": b"", f"{around}cats/1.png": 1,
        f"{around}dogs/1.png": 2})
    source = pictures.find(path, splits=False)
    assert source.classes == ["cats", "dogs"] and not source.left_out


def test_two_thousand_entries_of_one_name(tmp_path):
    """Their other names stay short, or 100,000 would take hours."""
    with pytest.warns(UserWarning), zipfile.ZipFile(
            tmp_path / "in.zip", "w") as archive:
        for name in ["cats/1.png"] * 2000 + ["dogs/1.png"]:
            archive.writestr(name, b"x")
    source = pictures.find(str(tmp_path / "in.zip"), splits=False)
    assert [len(source.files["all"][name]) for name in source.classes] == [
        2000, 1]
    assert max(map(len, source.files["all"]["cats"])) < 20


@pytest.mark.parametrize("how", [write, write_zip])
def test_folders_too_deep_in_each_other_are_named(tmp_path, how):
    deep = "cats/" + "a/" * (100 if how == write else 30000)
    data = how(tmp_path / "in", {
        "cats/1.png": 1, "dogs/1.png": 2, f"{deep}1.png": 3})
    source = pictures.find(data, splits=False)
    why, = source.left_out.values()
    assert why.endswith("more than 50 folders deep")
    assert source.classes == ["cats", "dogs"]
    assert len(source.files["all"]["cats"]) == 1


def test_a_class_that_another_split_lacks_keeps_its_number(tmp_path, capsys):
    files = without(three_splits(classes=("cake", "flan", "pie")),
                    "holdout/cake")
    copy = copied(write(tmp_path / "in", files), tmp_path)
    assert "Warning: holdout has no images of cake\n" in (
        capsys.readouterr().out)
    dataset = copy.dataset("holdout", 16, 10)
    assert dataset.class_names == ["cake", "flan", "pie"]
    X, Y = next(iter(dataset))
    assert np.array(Y).argmax(axis=1).tolist() == [1, 1, 2, 2]
    assert copy.labels(copy.source)[:4].tolist() == [1, 1, 2, 2]


def test_duplicates_are_never_on_both_sides(tmp_path):
    files = three_splits()
    files["train/cake/again.png"] = files["holdout/cake/0.png"]
    files["train/pie/twice.png"] = files["train/pie/0.png"]
    copy = copied(write(tmp_path / "in", files), tmp_path)
    assert copy.left_out == {
        "train/cake/again.png": "a duplicate of holdout/cake/0.png",
        "train/pie/twice.png": "a duplicate of train/pie/0.png"}
    assert [copy.count(split) for split in SPLITS] == [4, 4, 4]


def test_the_copy_says_what_is_in_it_and_what_is_not(tmp_path):
    files = {**three_splits(("pie", "ice cream")), **{
        f"notes {i}.txt": b"" for i in range(7)}}
    files["train/pie/2.png"] = plain(1, size=(3, 1200))
    copy = copied(write(tmp_path / "in", files), tmp_path)
    assert copy.describe().split("\n") == [
        "13 images of 2 classes, with sides of 3 to 1,200 pixels",
        "             holdout      train validation",
        "ice cream          2          2          2",
        "pie                2          3          2",
        "Left out: 7 files", *(
            f"  notes {i}.txt: not in a split's folder" for i in range(5)),
        f"  all of them: {tmp_path}/copy/index.json"]


# What the images are

def test_every_kind_of_image_becomes_rgb():
    red, grey, white = (200, 30, 40), (120, 120, 120), (255, 255, 255)
    palette = Image.new("RGB", (8, 6), red).convert("P", palette=1)
    kinds = {
        "rgb": (plain(red), red), "jpeg": (plain(red, format="JPEG"), red),
        "grey": (plain(120, "L"), grey),
        "palette": (save(palette), red),
        "rgba": (plain((*red, 255), "RGBA"), red),
        "transparent": (plain((*red, 0), "RGBA"), white),
        "half": (plain((0, 0, 0, 128), "RGBA"), (127, 127, 127)),
        "grey and alpha": (plain((120, 255), "LA"), grey),
        "gif": (save(palette, "GIF"), red),
        "see-through gif": (save(Image.new("P", (8, 6), 0), "GIF",
                                 transparency=0), white),
        "cmyk": (plain((0, 255, 255, 0), "CMYK", "TIFF"), (255, 0, 0)),
        "webp": (plain(red, format="WEBP"), red),
        "tiff": (plain(red, format="TIFF"), red),
        "bmp": (plain(red, format="BMP"), red),
        "one bit": (plain(1, "1"), white),
        "16 bits": (save(Image.fromarray(np.full(
            (6, 8), 120 * 257, "uint16"))), grey),
        "32 bits": (save(Image.fromarray(np.full(
            (6, 8), 120, "int32")), "TIFF"), grey)}
    for kind, (data, colour) in kinds.items():
        image, size = pictures.read_image(data, 100)
        assert image.mode == "RGB" and size == (8, 6), kind
        np.testing.assert_allclose(
            np.asarray(image), np.broadcast_to(colour, (6, 8, 3)), atol=6,
            err_msg=kind)


COLOURED = "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"
GREY = "L", "LA"
OTHER = ("1", "La", "LAB", "HSV", "I", "F", "I;16", "I;16B", "I;16L",
         "I;16N")


@pytest.mark.parametrize("format", sorted(Image.SAVE))
def test_what_pillow_writes_is_read_or_left_out_by_name(tmp_path, format):
    """Every format in every mode, and never in a wrong colour."""
    red, files = Image.new("RGBA", (12, 10), (200, 30, 40)), {}
    for mode in COLOURED + GREY + OTHER:
        try:
            image = red.convert(mode)
        except ValueError:
            image = Image.new(mode, red.size, 99)
        with contextlib.suppress(Exception):  # most can't be written
            files[f"reds/{mode}"] = save(image, format)
    write(tmp_path / "in", {**files, "reds/0.png": 1, "blues/0.png": 2})
    copy = copied(str(tmp_path / "in"), tmp_path, splits=False)
    assert {*files, "reds/0.png", "blues/0.png"} == {
        *copy.source.values(), *copy.left_out}
    if format in ("PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "TGA"):
        assert len(copy.source) >= 6
    for path, original in copy.source.items():
        mode = original.split("/")[1]
        if mode in COLOURED + GREY:
            with Image.open(os.path.join(copy.folder, path)) as image:
                np.testing.assert_allclose(
                    np.asarray(image)[5, 5],
                    (200, 30, 40) if mode in COLOURED else 82, atol=6,
                    err_msg=mode)


def test_of_an_animation_the_first_image_is_read():
    frames = [Image.new("RGB", (8, 6), (50 * i, 200, 20)) for i in range(5)]
    for format in {"GIF", "WEBP", "PNG", "TIFF", "AVIF"} & {*Image.SAVE_ALL}:
        image, _ = pictures.read_image(save(
            frames[0], format, save_all=True, append_images=frames[1:]), 16)
        np.testing.assert_allclose(np.mean(image, axis=(0, 1)), (0, 200, 20),
                                   atol=8, err_msg=format)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    """The number that is decoded counts: of a large JPEG, a share."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 300 * 200)
    for width, format in ((300, "PNG"), (600, "JPEG")):
        data = save(noise(width * 2 // 3, width), format)
        image, size = pictures.read_image(data, 100)
        assert size == (width, width * 2 // 3) and image.size == (100, 100)
    data = save(noise(200, 301))
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(ValueError, match="301 x 200 pixels, expected at most "
                       "60,000 in all"):
        pictures.read_image(data, 100)
    bomb = patched(data, 16, struct.pack(">II", 20000, 25000))
    bomb = patched(bomb, 29, struct.pack(">I", zlib.crc32(bomb[12:29])))
    with pytest.raises(Image.DecompressionBombError, match="500000000 pixels"):
        pictures.read_image(bomb, 100)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
@fuzz
@given(st.data())
def test_a_damaged_image_is_an_image_or_refused(format, data):
    content = data.draw(damaged(save(noise(40, 30), format)))
    try:
        image, size = pictures.read_image(content, 16)
    except Exception:  # clean_copy names it
        return
    assert image.mode == "RGB" and max(image.size) <= 16 and min(size) >= 1


def test_images_are_turned_as_their_exif_says():
    x = np.zeros((6, 8, 3), "uint8")
    x[:3] = 255  # white above, black below
    exif = Image.Exif()
    exif[0x112] = 6  # lying on its left side
    turned, _ = pictures.read_image(
        save(Image.fromarray(x), exif=exif), 100)
    assert turned.size == (6, 8)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(x, -1))


def test_large_images_are_reduced_and_small_ones_not_enlarged():
    for width, reduced in ((40, (40, 64)), (900, (64, 64))):
        original = noise(600, width)
        for format in "PNG", "JPEG":
            image, size = pictures.read_image(save(original, format), 64)
            assert size == (width, 600) and image.size == reduced
        image, _ = pictures.read_image(save(original), 64)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(
            original.resize(reduced, Image.LANCZOS)))


def test_what_cannot_be_read_is_left_out_counted_and_named(tmp_path):
    files, whole = three_splits(), save(noise(50, 50), "JPEG")
    files["train/pie/cut.jpg"] = whole[:len(whole) // 2]
    files["train/pie/empty.jpg"] = b""
    files["train/pie/notes.txt"] = b"apple, cherry"
    files["train/pie/fractions.tif"] = plain(0.5, "F", "TIFF")
    copy = copied(write(tmp_path / "in", files), tmp_path)
    assert set(copy.left_out) == {
        f"train/pie/{name}" for name in (
            "cut.jpg", "empty.jpg", "fractions.tif", "notes.txt")}
    assert copy.count("train", "pie") == 2
    assert copy.left_out["train/pie/notes.txt"] == (
        "can't be read: not an image that Pillow knows")
    assert "train/pie/cut.jpg: can't be read" in copy.describe()
    assert "Left out: 4 files" in copy.describe()


def test_keras_reads_the_images_as_they_are(tmp_path):
    files = three_splits()
    copy = copied(write(tmp_path / "in", files), tmp_path, size=8)
    copy.classes.reverse()  # as the copy says, whatever Keras would choose
    for split in SPLITS:
        dataset = copy.dataset(split, 8, 3)
        X = np.concatenate([x for x, _ in dataset])
        Y = np.concatenate([y for _, y in dataset]).argmax(axis=1)
        assert X.shape == (4, 8, 8, 3) and X.dtype == "float32"
        for x, y, path in zip(X, Y, dataset.file_paths):
            original = copy.source[os.path.relpath(path, copy.folder)]
            assert original.split("/")[1] == copy.classes[y]
            np.testing.assert_array_equal(
                x[0, 0], [files[original], 100, 200 - files[original]])


def test_a_seed_gives_another_order_in_each_epoch(tmp_path):
    files = {f"{name}/{i}.png": 20 * c + i for c, name in enumerate(
        ("cats", "dogs")) for i in range(10)}
    copy = copied(write(tmp_path / "in", files), tmp_path, splits=False)

    def epochs(seed):
        """Return two epochs, as the red of each image."""
        dataset = copy.dataset("all", 8, 20, seed)
        return [next(iter(dataset))[0][:, 0, 0, 0].numpy().tolist()
                for _ in range(2)]

    first, second = epochs(0)
    assert sorted(first) == sorted(second) == sorted(files.values())
    assert first != second
    assert epochs(0) == [first, second] != epochs(1)
    assert epochs(None) == [sorted(files.values())] * 2


def test_views_are_the_images_and_then_their_mirror_images(tmp_path):
    files = {f"{name}/{i}.png": save(noise(20 + i, 30, seed)) for i in range(3)
             for seed, name in ((i, "cats"), (10 + i, "dogs"))}
    copy = copied(write(tmp_path / "in", files), tmp_path, splits=False,
                  size=32)
    expected = np.concatenate([x for x, _ in copy.dataset("all", 24, 4)])
    views = pictures.Views(copy, 24)
    assert len(views) == 12 and views.shape == (12, 24, 24, 3)
    assert views[0:6].dtype == "float32"
    np.testing.assert_allclose(views[0:6], expected, atol=1e-4)
    np.testing.assert_array_equal(views[6:12], views[0:6][:, :, ::-1])
    np.testing.assert_array_equal(views[4:100], views[0:12][4:])


def test_a_copy_is_whole_or_not_there(tmp_path, monkeypatch):
    data, save = write(tmp_path / "in", three_splits()), Image.Image.save

    def full(self, path, **options):
        """Save the first few; then the disk is full."""
        if path.endswith("5.png"):
            raise OSError(28, "No space left on device")
        save(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            copied(data, tmp_path)
    assert not os.path.exists(tmp_path / "copy")
    first = copied(data, tmp_path)
    assert len(first.source) == 12
    written = [os.path.relpath(os.path.join(folder, name), first.folder)
               for folder, _, names in os.walk(first.folder)
               for name in names]
    assert set(written) == {*first.source, "index.json"}


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
    def full(self, path, **options):
        """Fail as a disk does, without a name."""
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    data = write_zip(tmp_path / "in.zip", {"a/1.png": b"", "b/1.png": b""})
    monkeypatch.setattr(pictures, "read_image", lambda data, size: (
        Image.new("RGB", (8, 8)), (8, 8)))
    with pytest.raises(OSError, match="copy was not written: .*No space"):
        copied(data, tmp_path, splits=False)


def state(copy):
    """Return all that is in a clean copy."""
    return (copy.classes, copy.source, copy.left_out, copy.sides, {
        path: np.asarray(Image.open(os.path.join(copy.folder, path))).tolist()
        for path in copy.source})


def harm_replace(folder):
    """Replace an image by another one."""
    os.replace(os.path.join(folder, "train/cake/0000008.png"),
               os.path.join(folder, "train/pie/0000010.png"))
    Image.new("RGB", (8, 6)).save(
        os.path.join(folder, "train/cake/0000008.png"))


def harm_add(folder):
    """Add an image, which Keras would read as well."""
    write(folder, {"train/pie/new.png": 1})


def harm_delete(folder):
    """Delete an image."""
    os.remove(os.path.join(folder, "train/pie/0000010.png"))


def harm_pipe(folder):
    """Put a pipe in the place of an image."""
    harm_delete(folder)
    os.mkfifo(os.path.join(folder, "train/pie/0000010.png"))


def harm_index(folder):
    """Change what the index says, in JSON that can be read."""
    path = os.path.join(folder, "index.json")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert "train/cake/1.png" in text
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("train/cake/1.png", "train/cake/2.png"))


def harm_no_index(folder):
    """Delete the index."""
    os.remove(os.path.join(folder, "index.json"))


@pytest.mark.parametrize("harm", [
    harm_replace, harm_add, harm_delete, harm_pipe, harm_index,
    harm_no_index])
def test_a_damaged_copy_is_made_anew(tmp_path, capsys, harm):
    data = write(tmp_path / "in", {**three_splits(), "train/cake/x.txt": b""})
    whole = state(copied(data, tmp_path))
    harm(str(tmp_path / "copy"))
    capsys.readouterr()
    assert state(copied(data, tmp_path)) == whole
    assert re.search("copy is damaged .*: copying the images again\n",
                     capsys.readouterr().out)
    assert state(copied(data, tmp_path)) == whole
    assert "damaged" not in capsys.readouterr().out


@fuzz
@given(st.data())
def test_a_damaged_index_never_gives_another_answer(small_copy, data):
    source, folder, whole, index = small_copy
    with open(os.path.join(folder, "index.json"), "wb") as file:
        file.write(data.draw(damaged(index)))
    assert state(pictures.clean_copy(source, folder, 8)) == whole


@pytest.fixture(scope="module")
def small_copy(tmp_path_factory):
    """Make a small copy; return its source, folder, state and index."""
    folder = tmp_path_factory.mktemp("small")
    source = pictures.find(write(folder / "in", {
        "a/1.png": 1, "a/2.png": 1, "b/1.png": 2, "b/3.txt": b""}), False)
    copy = pictures.clean_copy(source, str(folder / "copy"), 8)
    with open(folder / "copy" / "index.json", "rb") as file:
        index = file.read()
    assert set(json.loads(index)) == {
        "classes", "source", "left_out", "sides", "checksums"}
    return source, copy.folder, state(copy), index


@pytest.fixture(scope="module")
def small_zip(tmp_path_factory):
    """Write a small zip; return its folder, its bytes and its images."""
    folder = tmp_path_factory.mktemp("zip")
    files = {f"{name}/{i}.bmp": save(noise(8, 8, [c, i]), "BMP")
             for c, name in enumerate(("ab", "ac")) for i in range(3)}
    with zipfile.ZipFile(folder / "whole.zip", "w",
                         zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return folder, (folder / "whole.zip").read_bytes(), {
        path: np.asarray(Image.open(io.BytesIO(content)))
        for path, content in files.items()}


@fuzz
@given(st.data())
def test_a_damaged_zip_never_gives_another_image(small_zip, data):
    """Each image is the right one, or is left out, or the zip is refused."""
    folder, whole, images = small_zip
    (folder / "in.zip").write_bytes(data.draw(damaged(whole)))
    shutil.rmtree(folder / "copy", ignore_errors=True)
    try:
        source = pictures.find(str(folder / "in.zip"), splits=False)
        copy = pictures.clean_copy(source, str(folder / "copy"), 8)
    except OSError as error:
        assert str(error)
        return
    assert copy.classes == ["ab", "ac"]
    for path, original in copy.source.items():
        with Image.open(os.path.join(copy.folder, path)) as image:
            np.testing.assert_array_equal(image, images[original])
        assert path.split("/")[1] == original.split("/")[0]


def test_a_copy_that_is_there_is_used_as_it_is(tmp_path):
    data = write(tmp_path / "in", three_splits())
    source = pictures.find(data)
    first = copied(data, tmp_path)
    os.rename(data, tmp_path / "elsewhere")
    again = pictures.clean_copy(source, first.folder, 99)
    assert again.source == first.source
    assert again.classes == first.classes == ["cake", "pie"]
