#!/usr/bin/env python3
"""A folder or zip of pictures, checked once, as a clean copy for Keras.

    find        the pictures in a folder or zip, by split and class
    clean_copy  each of them opened once, and written as a PNG
    Copy        such a copy, which Keras's image_dataset_from_directory reads
    Views       its pictures and their mirror images, by number

The three scripts on folders of pictures borrow it.
"""
import collections
import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import unicodedata
import warnings
import zipfile

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError
from tensorflow import keras as K

import runs

# What people call the splits. A picture that is there more than once stays
# in the first of these that has it: none is learned and asked for as well.
SPLITS = {"holdout": ("holdout", "hold-out", "test", "testing"),
          "validation": ("validation", "valid", "val"),
          "train": ("train", "training")}
WHOLE = "all"           # the one split of a folder without splits
JUNK = "__MACOSX", "Thumbs.db", "desktop.ini"
UNPACKS_TO = 100        # times its own size, at most: pictures hardly shrink
NAMED = 5               # so many of the files left out are printed

# files: {split: {class: {path: File}}}
# left_out: {path: why} of files that are in no class
# identity: which pictures these are, in words
Found = collections.namedtuple("Found", "files classes left_out identity")
# mark: another file's is another; read: a function that returns its bytes
File = collections.namedtuple("File", "mark read")


def find(data, splits=True):
    """Find the pictures in a folder or zip.

    data: its path. In it is train/cats/1.jpg, or cats/1.jpg without splits;
        folders around all of it, such as data/, don't matter
    splits: whether there are splits, by one of their names in SPLITS
    Returns: Found
    Raises OSError if this isn't such a folder or zip.
    """
    if os.path.isdir(data):
        found = in_folder(data)
    elif zipfile.is_zipfile(data):
        found = in_zip(data)
    else:
        raise OSError(
            f"{data} " + ("is no folder and no zip that can be read"
                          if os.path.exists(data) else "isn't there")
            + ": expected a folder or zip of pictures")
    if not any(len(path) > 1 for path in found):
        raise OSError(f"{data} has no folders with pictures in them: "
                      "expected one for each class")
    around = folders_around(found, splits)
    top = sorted({path[around] for path in found if len(path) > around + 1})
    if splits:
        files, left_out = by_split(data, found, around, top)
    elif sum(split_of(name) is not None for name in top) > 1:
        raise OSError(
            f"{data} is split already: found {', '.join(top)}, expected a "
            "folder for each class. Give one of these, or use simple_cnn.py "
            "and transfer_model.py")
    else:
        left_out = {}
        files = {WHOLE: by_class(found, around, left_out)}
    classes = sorted(files["train" if splits else WHOLE])
    if len(classes) < 2:
        raise OSError(
            f"{data} has {' and '.join(classes) or 'no class'} to learn: "
            "expected at least two folders of pictures, one for each class")
    for name in classes:
        if not files["train" if splits else WHOLE][name]:
            raise nothing_to_learn(name)
    for split in files:
        unknown = sorted(set(files[split]) - set(classes))
        if unknown:
            raise OSError(
                f"{data}: {split} has {', '.join(unknown)}, expected none "
                f"but the training folder's classes, {', '.join(classes)}")
    marks = "\n".join("/".join(path) + f" {file.mark}"
                      for path, file in found.items() if file)
    return Found(files, classes, left_out, "{} ({:,} files, {})".format(
        os.path.basename(os.path.realpath(data)), len(found),
        hashlib.sha256(marks.encode()).hexdigest()[:8]))


def nothing_to_learn(name):
    """The error that a class has no picture."""
    return OSError(f"{name} has no picture to learn from: put some into its "
                   "folder, or delete it")


def is_junk(name):
    """Whether a file or folder is none of the user's."""
    return name in JUNK or name.startswith(".")


def readable(name):
    """A name as people read it, whatever system wrote it."""
    return unicodedata.normalize(  # macOS takes umlauts apart
        "NFC", name.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"))


def folders_around(found, splits):
    """How many folders there are around all of the classes or splits."""
    around = 0
    while True:
        top = {path[around] for path in found if len(path) > around + 1}
        if len(top) != 1 or splits and split_of(*top) or all(
                len(path) <= around + 2 for path in found):
            return around
        around += 1


def split_of(name):
    """The split that people call so, or None."""
    return next((split for split, names in SPLITS.items()
                 if name.lower() in names), None)


def by_class(found, depth, left_out):
    """{class: {path: File}} of files whose class is at this depth."""
    classes = {}
    for path, file in found.items():
        if len(path) < depth + 2:
            left_out["/".join(path)] = "in no class's folder"
            continue
        inside = classes.setdefault(path[depth], {})
        if path[-1]:  # else it is a folder with nothing in it
            inside["/".join(path)] = file
    return classes


def by_split(data, found, around, top):
    """{split: {class: {path: File}}}, and what is in no split."""
    folders, left_out = {}, {}
    for name in top:
        split = split_of(name)
        if split in folders:
            raise OSError(f"{data} has both {folders[split]} and {name}: "
                          f"expected one folder for {split}")
        if split:
            folders[split] = name
    if len(folders) < len(SPLITS):
        raise OSError(f"{data} has {', '.join(top)}: expected the folders "
                      "train, validation and holdout")
    files = {split: by_class({
        path: file for path, file in found.items()
        if path[around:around + 1] == (folders[split],)},
        around + 1, left_out) for split in SPLITS}
    for path in found:
        if not set(path[around:around + 1]) & set(folders.values()):
            left_out["/".join(path)] = "in no split's folder"
    return files, left_out


def in_folder(data):
    """The files of a folder: {path in it, a tuple: File}.

    A folder with nothing in it is there as a path that ends with "". What
    our own runs wrote isn't.
    """
    def stop(error):
        """A folder that can't be looked into isn't passed over."""
        raise error

    def reader(path):
        """What reads this file."""
        def read():
            """Its bytes."""
            with open(path, "rb") as file:
                return file.read()
        return read

    found, seen = {}, set()
    for folder, folders, files in os.walk(data, onerror=stop,
                                          followlinks=True):
        if "run.json" in files or os.path.realpath(folder) in seen:
            folders.clear()  # a link may lead back to where it is
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if not is_junk(name))
        files = sorted(name for name in files if not is_junk(name))
        around = [part for part in os.path.relpath(folder, data).split(os.sep)
                  if part != "."]
        for name in files:
            path = os.path.join(folder, name)
            add(found, around + [name], File(
                os.path.getsize(path), reader(path)))
        if around and not files and not folders:
            add(found, around + [""], None)
    return found


def add(found, parts, file):
    """Add a file under names as people read them."""
    path = tuple(map(readable, parts))
    while path in found and path[-1]:  # two names that look the same
        path = path[:-1] + (path[-1] + "~",)
    found[path] = file


def in_zip(data):
    """The files of a zip, as in_folder gives those of a folder.

    Nothing is unpacked: each picture is read from the zip.
    Raises OSError for a zip that isn't what it should be.
    """
    try:
        archive = zipfile.ZipFile(data)
    except zipfile.BadZipFile as error:
        raise OSError(f"{data} is damaged: {error}") from error
    size = sum(entry.file_size for entry in archive.infolist())
    if size > UNPACKS_TO * os.path.getsize(data):
        raise OSError(f"{data} says that it unpacks to {size:,} bytes, more "
                      f"than {UNPACKS_TO} times its size: expected pictures")
    found = {}
    for entry in archive.infolist():
        name = entry.filename
        if not entry.flag_bits & 0x800:  # macOS writes UTF-8, but not so
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or parts[0].endswith(":"):
            raise OSError(f"{data} has an entry that leaves its folder, "
                          f"{name}: expected pictures")
        if entry.flag_bits & 1:
            raise OSError(f"{data} needs a password: unpack it first")
        if not any(map(is_junk, parts)):
            add(found, [part for part in parts if part != "."], File(
                entry.CRC, lambda entry=entry: archive.read(entry)))
    inside = collections.Counter(
        path[:i] for path in found for i in range(1, len(path)))
    return {path: file for path, file in sorted(found.items())
            if path[-1] or inside[path[:-1]] == 1}  # an empty folder stays


def read_picture(data, size):
    """Bytes of a picture as RGB, turned as its EXIF says, no larger than
    needed.

    data: bytes of any format that Pillow knows
    size: pixels; a larger width is reduced to it, a larger height as well
    Returns: a PIL.Image.Image; width and height as they were
    Raises one of Pillow's many Exceptions if it can't be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF, or of many pixels
        try:
            picture = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise ValueError("no picture that Pillow knows") from error
        original = picture.size
        picture.draft(None, (2 * size, 2 * size))  # a large JPEG: quicker
        picture = ImageOps.exif_transpose(picture)
        if picture.mode == "F":
            raise ValueError("fractions, expected whole numbers")
        if picture.mode.startswith("I"):
            x = np.asarray(picture)
            # 16 bits, which convert would clip
            x = x / 257 if x.max() > 255 else x
            picture = Image.fromarray(x.clip(0, 255).astype("uint8"))
        if picture.mode[-1] in "Aa" or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB").resize(
            (min(size, picture.width), min(size, picture.height)),
            Image.LANCZOS), original


def clean_copy(found, folder, size):
    """Write the pictures that were found so that every Keras reads them.

    folder: gets <split>/<class>/<number>.png and index.json; made already,
        it is taken as it is
    size: pixels; larger pictures are made this small
    Returns: Copy
    Raises OSError if a class has no picture to learn from.
    """
    if os.path.isdir(folder):
        return Copy(folder)
    part = f"{folder}.part"
    shutil.rmtree(part, ignore_errors=True)
    source, left_out, sides, seen = {}, dict(found.left_out), [], {}
    progress = K.utils.Progbar(
        sum(len(inside) for classes in found.files.values()
            for inside in classes.values()), unit_name="picture",
        interval=0.05 if sys.stdout.isatty() else 60)
    for split, classes in found.files.items():
        for name in found.classes:
            os.makedirs(os.path.join(part, split, name))
            before = len(source)
            for path, file in classes.get(name, {}).items():
                progress.add(1)
                try:
                    data = file.read()
                    picture, original = read_picture(data, size)
                except Exception as error:  # Pillow has no class for it
                    left_out[path] = f"can't be read: {error}"
                    continue
                same = seen.setdefault(hashlib.sha256(data).digest(), path)
                if same != path:
                    left_out[path] = f"the same picture as {same}"
                    continue
                copy = f"{split}/{name}/{len(source):07d}.png"
                picture.save(os.path.join(part, copy), compress_level=1)
                source[copy] = path
                sides += original
            if len(source) == before:
                if split in ("train", WHOLE):
                    raise nothing_to_learn(name)
                print(f"Warning: {split} has no picture of {name}")
        if not any(path.startswith(f"{split}/") for path in source):
            raise OSError(f"{split} has no picture that can be read")
    runs.write(os.path.join(part, "index.json"), {
        "classes": found.classes, "source": source, "left_out": left_out,
        "sides": [min(sides), max(sides)]})
    os.rename(part, folder)
    return Copy(folder)


class Copy:
    """A clean copy of pictures.

    folder: where it is
    classes: their names, in the order of their numbers
    source: {path in the copy: path where the picture comes from}
    left_out: {path: why}
    sides: the smallest and the largest of the pictures' own sides, pixels
    """

    def __init__(self, folder):
        """Take the copy that clean_copy wrote into a folder."""
        self.folder = folder
        with open(os.path.join(folder, "index.json"),
                  encoding="utf-8") as file:
            index = json.load(file)
        self.classes, self.source, self.left_out, self.sides = (
            index[key] for key in ("classes", "source", "left_out", "sides"))

    def count(self, *path):
        """How many pictures a split has, or a class in a split."""
        return sum(copy.split("/")[:len(path)] == list(path)
                   for copy in self.source)

    def describe(self):
        """What is in the copy, and what isn't, in a few lines."""
        splits = sorted({copy.split("/")[0] for copy in self.source})
        width = max(map(len, self.classes))
        lines = [
            f"{len(self.source):,} pictures of {len(self.classes)} classes, "
            "their sides {:,} to {:,} pixels".format(*self.sides),
            " ".join([" " * width] + [f"{split:>10}" for split in splits])]
        lines += [" ".join([f"{name:{width}}"] + [
            f"{self.count(split, name):10,}" for split in splits])
            for name in self.classes]
        if self.left_out:
            lines.append(f"Left out: {len(self.left_out):,} files")
        lines += [f"  {path}: {why}"
                  for path, why in list(self.left_out.items())[:NAMED]]
        if len(self.left_out) > NAMED:
            lines.append(f"  and others: {self.folder}/index.json")
        return "\n".join(lines)

    def labels(self, paths):
        """The numbers of the classes of pictures in the copy, an array."""
        return np.array([self.classes.index(path.split("/")[1])
                         for path in paths])

    def dataset(self, split, size, batch, seed=None):
        """A split as Keras reads it, on the fly.

        seed: of the order, another in each epoch; None: always the same
        Returns: a tf.data.Dataset of float32 (batch, size, size, 3) in
            0..255 and one-hot (batch, classes); file_paths has its order
        """
        return K.utils.image_dataset_from_directory(
            os.path.join(self.folder, split), label_mode="categorical",
            class_names=self.classes, batch_size=batch,
            image_size=(size, size), shuffle=seed is not None, seed=seed,
            verbose=False)


class Views:
    """Pictures and then their mirror images, read when they are asked for.

    views[i:j] is float32 (j - i, size, size, 3) in 0..255, as `dataset`
    gives it.
    """

    def __init__(self, copy, size):
        """All pictures of a clean Copy, in the order of copy.source."""
        self.paths = [os.path.join(copy.folder, path) for path in copy.source]
        self.shape = (2 * len(self.paths), size, size, 3)

    def __len__(self):
        """Twice as many as there are pictures."""
        return self.shape[0]

    def __getitem__(self, some):
        """Read a slice."""
        return np.stack([self.read(i) for i in range(*some.indices(len(
            self)))])

    def read(self, i):
        """Picture i, or its mirror image."""
        with Image.open(self.paths[i % len(self.paths)]) as picture:
            x = tf.image.resize(np.asarray(picture), self.shape[1:3]).numpy()
        return x if i < len(self.paths) else x[:, ::-1]
