#!/usr/bin/env python3
"""Folders and zips of pictures as people have them, through pictures.py."""
import io
import os
import sys
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import pictures  # noqa: E402


def png(colour, size=(8, 6), mode="RGB", format="PNG", **options):
    """Bytes of a picture of one colour."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format, **options)
    return file.getvalue()


def write(folder, files):
    """Write {path: bytes, or a number for a picture of its own}."""
    for path, data in files.items():
        path = os.path.join(str(folder), path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not path.endswith("/"):
            with open(path, "wb") as file:
                file.write(data if isinstance(data, bytes) else png(
                    (data, 100, 200 - data)))
    return str(folder)


def write_zip(path, files):
    """The same as a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data if isinstance(data, bytes)
                             else png((data, 100, 200 - data)))
    return str(path)


def three_splits(classes=("cake", "pie"), around=""):
    """A folder's files: two pictures of each class in each split."""
    return {f"{around}{split}/{name}/{i}.png": 60 * s + 20 * c + i
            for s, split in enumerate(("train", "validation", "holdout"))
            for c, name in enumerate(classes) for i in range(2)}


def copied(data, tmp_path, splits=True, size=16):
    """The clean copy of what is found."""
    return pictures.clean_copy(pictures.find(data, splits),
                               str(tmp_path / "copy"), size)


# Where the pictures are

@pytest.mark.parametrize("around", ["", "data/", "my data/desserts/v2/"])
@pytest.mark.parametrize("how", [write, write_zip])
def test_folders_around_do_not_matter(tmp_path, how, around):
    """Folder or zip, whatever is around and beside the pictures."""
    files = {**three_splits(around=around), "__MACOSX/._x.png": b"",
             f"{around}train/cake/.DS_Store": b"", f"{around}notes.txt": b"",
             f"{around}train/cake/Thumbs.db": b"", "README.txt": b""}
    copy = copied(how(tmp_path / "in.zip", files), tmp_path)
    assert copy.classes == ["cake", "pie"]
    assert [copy.count(split) for split in pictures.SPLITS] == [4, 4, 4]
    assert set(copy.left_out) == {"README.txt", f"{around}notes.txt"}
    source = {os.path.basename(os.path.dirname(path))
              for path in copy.source.values()}
    assert source == {"cake", "pie"}


@pytest.mark.parametrize("names", [
    ("train", "validation", "holdout"), ("Training", "val", "Test"),
    ("TRAIN", "valid", "hold-out")])
def test_splits_have_the_names_that_people_give_them(tmp_path, names):
    """Splits have the names that people give them."""
    files = {}
    for path, data in three_splits().items():
        split, rest = path.split("/", 1)
        files[names[("train", "validation", "holdout").index(split)]
              + "/" + rest] = data
    copy = copied(write(tmp_path / "in", files), tmp_path)
    for split, name in zip(("train", "validation", "holdout"), names):
        assert copy.count(split) == 4
        assert all(source.startswith(name)
                   for path, source in copy.source.items()
                   if path.startswith(split))


@pytest.mark.parametrize("around", ["", "data/"])
def test_a_folder_for_each_class(tmp_path, around):
    """Without splits there is a folder for each class."""
    files = {f"{around}cats/1.png": 1, f"{around}cats/more/2.png": 2,
             f"{around}dogs/3.png": 3, f"{around}loose.png": 4}
    copy = copied(write(tmp_path / "in", files), tmp_path, splits=False)
    assert copy.classes == ["cats", "dogs"]
    assert copy.count("all", "cats") == 2 and copy.count("all", "dogs") == 1
    assert list(copy.left_out) == [f"{around}loose.png"]


@pytest.mark.parametrize("how", [write, write_zip])
def test_names_with_spaces_and_umlauts(tmp_path, how):
    """Names with spaces and umlauts, written in two ways, are one class."""
    name = "Crème brûlée & Käse 100%"
    files = three_splits(classes=("pie", unicodedata.normalize("NFD", name)))
    files = {path if path.startswith("train") else unicodedata.normalize(
        "NFC", path): data for path, data in files.items()}
    copy = copied(how(tmp_path / "mit Ümläuten", files), tmp_path)
    assert copy.classes == [name, "pie"]
    for split in pictures.SPLITS:
        X, Y = next(iter(copy.dataset(split, 16, 10)))
        assert np.array(Y).argmax(axis=1).tolist() == [0, 0, 1, 1]


def test_a_zip_of_macos_says_utf8_without_saying(tmp_path):
    """A zip whose names are UTF-8 without the flag that says so."""
    path = write_zip(tmp_path / "in.zip", {
        "Kxse/1.png": 1, "Kxse/2.png": 2, "Brot/3.png": 3})
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:  # two bytes, as "xs" had
        file.write(data.replace(b"Kxse", "Kä".encode() + b"e"))
    assert pictures.find(path, splits=False).classes == ["Brot", "Käe"]


def test_names_that_are_not_utf8(tmp_path):
    """Names as an old Windows wrote them are read as far as possible."""
    write(tmp_path / "in", {"cats/1.png": 1, "dogs/1.png": 2})
    os.rename(os.fsencode(str(tmp_path / "in" / "dogs" / "1.png")),
              os.fsencode(str(tmp_path / "in" / "dogs")) + b"/K\xe4se.png")
    copy = copied(str(tmp_path / "in"), tmp_path, splits=False)
    assert copy.count("all", "dogs") == 1
    assert "dogs/K\\xe4se.png" in copy.source.values()


def test_links_are_followed_and_runs_are_not(tmp_path):
    """A class may be a link; what a run wrote into DATA is no class."""
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
    """Names that look the same, in a folder or a zip, are all there."""
    data = write(tmp_path / "in", {"cats/1.png": 1, "dogs/1.png": 2})
    for number, name in enumerate((b"\xe4.png", b"\xf6.png")):
        with open(os.fsencode(os.path.join(data, "cats/")) + name,
                  "wb") as file:
            file.write(png((3 + number, 0, 0)))
    assert copied(data, tmp_path, splits=False).count("all", "cats") == 3
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            for number, name in enumerate(("cats", "cats", "dogs")):
                archive.writestr(f"{name}/1.png", png((number, 0, 0)))
    found = pictures.find(str(tmp_path / "in.zip"), splits=False)
    assert [len(found.files["all"][name]) for name in found.classes] == [2, 1]


@pytest.mark.parametrize("how", [write, write_zip])
def test_a_folder_of_nothing_but_junk_is_an_empty_class(tmp_path, how):
    """A folder with nothing but the system's files in it isn't passed over."""
    data = how(tmp_path / "in", {
        "cats/1.png": 1, "dogs/1.png": 2, "birds/": b"",
        "birds/.DS_Store": b"x"})
    with pytest.raises(OSError, match="birds has no picture to learn"):
        pictures.find(data, splits=False)


@pytest.mark.parametrize("around", ["train/", "data/test/"])
def test_what_is_around_may_be_called_train(tmp_path, around):
    """Half of a split folder, as people hand it over, is a folder around."""
    data = write(tmp_path / "in", {
        f"{around}cats/1.png": 1, f"{around}dogs/1.png": 2})
    assert pictures.find(data, splits=False).classes == ["cats", "dogs"]


def test_other_pictures_under_the_same_names_are_noticed(tmp_path):
    """What names the pictures changes when one of them does."""
    for how in write, write_zip:
        found = [pictures.find(how(tmp_path / how.__name__, {
            "cats/1.png": data, "dogs/1.png": 2}), splits=False).identity
            for data in (1, 1, png(9, size=(80, 60)))]
        assert found[0] == found[1] != found[2]


def test_a_class_may_be_called_train(tmp_path):
    """A class may be called train, as long as no other is called test."""
    data = write(tmp_path / "in", {
        "car/1.png": 1, "plane/1.png": 2, "train/1.png": 3})
    assert pictures.find(data, splits=False).classes == [
        "car", "plane", "train"]


# What is wrong with them

@pytest.mark.parametrize("files, words", [
    ({"readme.txt": b""}, "no folders with pictures"),
    ({"cake/1.png": 1, "cake/2.png": 2}, "has cake to learn"),
    ({"train/a/1.png": 1, "train/b/1.png": 2, "test/a/1.png": 3},
     "split already"),
    ({"test/a/1.png": 1, "holdout/b/1.png": 2}, "split already"),
    ({"a/1.png": 1, "b/": b""}, "b has no picture to learn from"),
    ({"a/1.png": 1, "b/1.png": b"no picture"}, "b has no picture"),
])
def test_one_clear_message_without_splits(tmp_path, files, words):
    """One clear message for what is no folder of classes."""
    data = write(tmp_path / "in", files)
    with pytest.raises(OSError, match=words):
        copied(data, tmp_path, splits=False)
    assert not os.path.exists(tmp_path / "copy")


@pytest.mark.parametrize("change, words", [
    (lambda files: files.clear(), "no folders with pictures"),
    (lambda files: [files.pop(path) for path in list(files)
                    if path.startswith("hold")],
     "train, validation: expected the folders train, validation and holdout"),
    (lambda files: files.update({"test/cake/1.png": 5}),
     "both holdout and test"),
    (lambda files: [files.pop(path) for path in list(files)
                    if path.startswith("train")]
     + [files.update({"train/1.png": 1})], "has no class to learn"),
    (lambda files: files.update({"validation/tart/1.png": 5}),
     "validation has tart"),
    (lambda files: [files.pop(path) for path in list(files)
                    if "cake" in path], "has pie to learn"),
    (lambda files: files.update({"train/flan/": b""}),
     "flan has no picture to learn from"),
    (lambda files: [files.update({path: b""}) for path in list(files)
                    if path.startswith("hold")],
     "holdout has no picture that can be read"),
])
def test_one_clear_message_with_splits(tmp_path, change, words):
    """One clear message for what isn't split as it should be."""
    files = three_splits()
    change(files)
    os.makedirs(tmp_path / "in")
    with pytest.raises(OSError, match=words):
        copied(write(tmp_path / "in", files), tmp_path)


def test_a_path_that_is_not_there(tmp_path):
    """A path that isn't there, and a file that is no zip."""
    with pytest.raises(OSError, match="isn't there: expected a folder"):
        pictures.find(str(tmp_path / "data.zip"))
    (tmp_path / "data.zip").write_bytes(b"PK but no zip")
    with pytest.raises(OSError, match="no folder and no zip"):
        pictures.find(str(tmp_path / "data.zip"))


@pytest.mark.parametrize("name", [
    "../cats/1.png", "/cats/1.png", "a/../../b.png", "C:/cats/1.png",
    "..\\cats\\1.png"])
def test_a_zip_entry_that_leaves_its_folder_is_refused(tmp_path, name):
    """A zip entry that leaves its folder is refused."""
    path = write_zip(tmp_path / "in.zip", {
        "cats/1.png": 1, "dogs/1.png": 2, name: 3})
    with pytest.raises(OSError, match="leaves its folder"):
        pictures.find(path, splits=False)
    assert os.listdir(tmp_path) == ["in.zip"]


def test_a_zip_that_unpacks_to_more_than_it_should(tmp_path):
    """A zip that unpacks to more than it should is refused unread."""
    with zipfile.ZipFile(tmp_path / "in.zip", "w",
                         zipfile.ZIP_DEFLATED) as archive:
        for name in "cats/1.png", "dogs/1.png":
            archive.writestr(name, bytes(10 ** 7))
    with pytest.raises(OSError, match="20,000,000 bytes"):
        pictures.find(str(tmp_path / "in.zip"), splits=False)


def test_a_zip_with_a_password_and_a_damaged_one(tmp_path):
    """A zip with a password, and one that was cut, get one message."""
    path = write_zip(tmp_path / "in.zip", {"cats/1.png": 1, "dogs/1.png": 2})
    with open(path, "rb") as file:
        data = file.read()
    at = data.index(b"PK\1\2") + 8  # the flags in the list of contents
    with open(path, "wb") as file:
        file.write(data[:at] + bytes([data[at] | 1]) + data[at + 1:])
    with pytest.raises(OSError, match="needs a password"):
        pictures.find(path, splits=False)
    with open(path, "wb") as file:
        file.write(data[:len(data) // 2])
    with pytest.raises(OSError, match="no zip that can be read"):
        pictures.find(path, splits=False)


def test_a_class_that_another_split_lacks(tmp_path, capsys):
    """A class that another split lacks doesn't shift its labels."""
    files = three_splits(classes=("cake", "flan", "pie"))
    del files["holdout/cake/0.png"], files["holdout/cake/1.png"]
    copy = copied(write(tmp_path / "in", files), tmp_path)
    assert "Warning: holdout has no picture of cake" in (
        capsys.readouterr().out)
    dataset = copy.dataset("holdout", 16, 10)
    assert dataset.class_names == ["cake", "flan", "pie"]
    X, Y = next(iter(dataset))
    assert np.array(Y).argmax(axis=1).tolist() == [1, 1, 2, 2]
    assert copy.labels(copy.source)[:4].tolist() == [1, 1, 2, 2]


def test_equal_pictures_are_never_on_both_sides(tmp_path):
    """Equal pictures are found, named, and never on both sides."""
    files = three_splits()
    files["train/cake/again.png"] = files["holdout/cake/0.png"]
    files["train/pie/twice.png"] = files["train/pie/0.png"]
    copy = copied(write(tmp_path / "in", files), tmp_path)
    assert copy.left_out == {
        "train/cake/again.png": "the same picture as holdout/cake/0.png",
        "train/pie/twice.png": "the same picture as train/pie/0.png"}
    assert [copy.count(split) for split in pictures.SPLITS] == [4, 4, 4]
    assert "Left out: 2 files" in copy.describe()
    assert "holdout/cake/0.png" in copy.describe()


# What the pictures are

def test_every_kind_of_picture_becomes_rgb():
    """Greyscale, palette, RGBA, CMYK, WebP, TIFF, 16 bits: RGB."""
    red, grey = (200, 30, 40), (120, 120, 120)
    palette = Image.new("RGB", (8, 6), red).convert("P", palette=1)
    kinds = {
        "rgb": (png(red), red), "jpeg": (png(red, format="JPEG"), red),
        "grey": (png(120, mode="L"), grey),
        "palette": (save(palette, "PNG"), red),
        "rgba": (png((*red, 255), mode="RGBA"), red),
        "transparent": (png((*red, 0), mode="RGBA"), (255, 255, 255)),
        "half": (png((0, 0, 0, 128), mode="RGBA"), (127, 127, 127)),
        "grey and alpha": (png((120, 255), mode="LA"), grey),
        "gif": (save(palette, "GIF"), red),
        "see-through gif": (save(Image.new("P", (8, 6), 0), "GIF",
                                 transparency=0), (255, 255, 255)),
        "cmyk": (png((0, 255, 255, 0), mode="CMYK", format="TIFF"),
                 (255, 0, 0)),
        "webp": (png(red, format="WEBP"), red),
        "tiff": (png(red, format="TIFF"), red),
        "bmp": (png(red, format="BMP"), red),
        "one bit": (png(1, mode="1"), (255, 255, 255)),
        "16 bits": (save(Image.fromarray(np.full(
            (6, 8), 120 * 257, "uint16")), "PNG"), grey),
        "32 bits": (save(Image.fromarray(np.full(
            (6, 8), 120, "int32")), "TIFF"), grey)}
    for kind, (data, colour) in kinds.items():
        picture, size = pictures.read_picture(data, 100)
        assert picture.mode == "RGB" and size == (8, 6), kind
        np.testing.assert_allclose(
            np.asarray(picture), np.broadcast_to(colour, (6, 8, 3)), atol=6,
            err_msg=kind)


def save(picture, format, **options):
    """A picture's bytes."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def test_pictures_are_turned_as_their_exif_says():
    """Pictures are turned as their EXIF says."""
    x = np.zeros((6, 8, 3), "uint8")
    x[:3] = 255  # above it is white
    exif = Image.Exif()
    exif[0x112] = 6  # lying on its left side
    turned, _ = pictures.read_picture(
        save(Image.fromarray(x), "PNG", exif=exif), 100)
    assert turned.size == (6, 8)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(x, -1))


def test_pictures_are_no_larger_than_needed():
    """Pictures are reduced to what is needed, never enlarged."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (300, 40, 3)).astype("uint8")
    for format in "PNG", "JPEG":
        picture, size = pictures.read_picture(
            save(Image.fromarray(x), format), 64)
        assert size == (40, 300) and picture.size == (40, 64)
    expected = Image.fromarray(x).resize((40, 64), Image.LANCZOS)
    found, _ = pictures.read_picture(save(Image.fromarray(x), "PNG"), 64)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_what_cannot_be_read_is_left_out_counted_and_named(tmp_path):
    """What can't be read is left out, counted and named."""
    files = three_splits()
    rng = np.random.default_rng(0)
    whole = save(Image.fromarray(rng.integers(
        0, 256, (50, 50, 3)).astype("uint8")), "JPEG")
    files["train/pie/cut.jpg"] = whole[:len(whole) // 2]
    files["train/pie/empty.jpg"] = b""
    files["train/pie/notes.txt"] = b"apple, cherry"
    files["train/pie/fractions.tif"] = png(0.5, mode="F", format="TIFF")
    copy = copied(write(tmp_path / "in", files), tmp_path)
    assert set(copy.left_out) == {
        f"train/pie/{name}" for name in (
            "cut.jpg", "empty.jpg", "fractions.tif", "notes.txt")}
    assert copy.count("train", "pie") == 2
    assert "Left out: 4 files" in copy.describe()
    assert copy.left_out["train/pie/notes.txt"] == (
        "can't be read: no picture that Pillow knows")
    assert "train/pie/cut.jpg: can't be read" in copy.describe()


def test_keras_reads_the_pictures_as_they_are(tmp_path):
    """The dataset gives the pictures' own pixels, each with its class."""
    files = three_splits()
    copy = copied(write(tmp_path / "in", files), tmp_path, size=8)
    for split in pictures.SPLITS:
        dataset = copy.dataset(split, 8, 3)
        X = np.concatenate([x for x, _ in dataset])
        Y = np.concatenate([y for _, y in dataset]).argmax(axis=1)
        assert X.shape == (4, 8, 8, 3) and X.dtype == "float32"
        for x, y, path in zip(X, Y, dataset.file_paths):
            source = copy.source[os.path.relpath(path, copy.folder)]
            assert source.split("/")[1] == copy.classes[y]
            np.testing.assert_array_equal(
                x[0, 0], [files[source], 100, 200 - files[source]])


def test_views_are_the_pictures_and_their_mirror_images(tmp_path):
    """Views are what the dataset gives, and then its mirror images."""
    rng = np.random.default_rng(0)
    files = {f"{name}/{i}.png": save(Image.fromarray(rng.integers(
        0, 256, (20 + i, 30, 3)).astype("uint8")), "PNG")
        for name in ("cats", "dogs") for i in range(3)}
    copy = copied(write(tmp_path / "in", files), tmp_path, splits=False)
    expected = np.concatenate([x for x, _ in copy.dataset("all", 24, 4)])
    views = pictures.Views(copy, 24)
    assert len(views) == 12 and views.shape == (12, 24, 24, 3)
    np.testing.assert_allclose(views[0:6], expected, atol=1e-4)
    np.testing.assert_array_equal(views[6:12], views[0:6][:, :, ::-1])
    np.testing.assert_array_equal(views[4:100], views[0:12][4:])


def test_a_copy_is_whole_or_not_there(tmp_path, monkeypatch):
    """A copy that was stopped is made again; one that is there isn't."""
    data = write(tmp_path / "in", three_splits())
    save = Image.Image.save

    def full(self, path, **options):
        """Save the first few; then the disk is full."""
        if path.endswith("5.png"):
            raise OSError(28, "No space left on device")
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        copied(data, tmp_path)
    assert not os.path.exists(tmp_path / "copy")
    monkeypatch.undo()
    first = copied(data, tmp_path)
    assert sum(map(first.count, pictures.SPLITS)) == 12
    os.rename(data, tmp_path / "elsewhere")
    assert pictures.Copy(first.folder).source == first.source
