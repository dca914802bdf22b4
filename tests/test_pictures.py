#!/usr/bin/env python3
"""Folders and zips of images as people have them, through pictures.py."""
import io
import os
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

import pictures

SPLITS = "train", "validation", "holdout"


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


def test_links_are_followed_and_runs_are_not(tmp_path):
    data = write(tmp_path / "in", {
        "cats/1.png": 1, "runs/mine/run.json": b"{}",
        "runs/mine/pictures/all/cats/1.png": 1, "cats/2.png": 3})
    write(tmp_path / "elsewhere", {"1.png": 2})
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "dogs")
    os.symlink(tmp_path / "in", tmp_path / "in" / "cats" / "back")
    copy = copied(data, tmp_path, splits=False)
    assert copy.classes == ["cats", "dogs"]
    assert [copy.count("all", name) for name in copy.classes] == [2, 1]


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
    first, same, other = [pictures.find(how(tmp_path / "in", {
        "cats/1.png": data, "dogs/1.png": 2}), splits=False).identity
        for data in (1, 1, plain(9, size=(80, 60)))]
    assert first == same != other
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
    (without(three_splits(), "holdout"),
     "train, validation: expected the folders train, validation and holdout"),
    ({"train/cake/0.png": 1, "train/pie/0.png": 2}, "has train: expected"),
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


def test_a_copy_that_is_there_is_used_as_it_is(tmp_path):
    data = write(tmp_path / "in", three_splits())
    source = pictures.find(data)
    first = copied(data, tmp_path)
    os.rename(data, tmp_path / "elsewhere")
    again = pictures.clean_copy(source, first.folder, 99)
    assert again.source == first.source
    assert again.classes == first.classes == ["cake", "pie"]
