#!/usr/bin/env python3
"""A folder or zip of images, checked once, as a clean copy for Keras.

    find        the images in a folder or zip, by split and class
    clean_copy  opens each of them once, and writes it as a PNG
    Copy        a clean copy, for Keras's image_dataset_from_directory
    Views       its images and their mirror images, by number
"""
import collections
import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
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

# What people call the splits. Of exact duplicates, the copy keeps the first
# in this order, so that no test image is also trained on.
SPLITS = {"holdout": ("holdout", "hold-out", "test", "testing"),
          "validation": ("validation", "valid", "val"),
          "train": ("train", "training")}
WHOLE = "all"          # the one split of a folder without splits
JUNK = "__MACOSX", "Thumbs.db", "desktop.ini"
MAX_EXPANSION = 100    # of a zip's size: images hardly compress
LISTED = 5             # how many of the files left out are printed

# files: {split: {class: {path: File}}}
# classes: their names, sorted
# left_out: {path: why} of files that belong to no class
# identity: names these images, and changes when one of them does
Source = collections.namedtuple("Source", "files classes left_out identity")
# stamp: changes with the content; read: a function that returns the bytes
File = collections.namedtuple("File", "stamp read")


def find(data, splits=True):
    """Find the images in a folder or zip.

    data: its path. It contains train/cats/1.jpg, or cats/1.jpg without
        splits; enclosing folders, such as data/, don't matter
    splits: whether there are splits, under any of their names in SPLITS
    Returns: Source
    Raises OSError if this isn't such a folder or zip.
    """
    if os.path.isdir(data):
        contents = in_folder(data)
    elif zipfile.is_zipfile(data):
        contents = in_zip(data)
    else:
        raise OSError(
            f"{data} " + ("is neither a folder nor a readable zip"
                          if os.path.exists(data) else "doesn't exist")
            + ": expected a folder or zip of images")
    if not any(len(path) > 1 for path in contents):
        raise OSError(f"{data} has no folders of images: expected one for "
                      "each class")
    depth, top = top_folders(contents, splits)
    if splits:
        files, left_out = by_split(data, contents, depth, top)
    elif sum(split_of(name) is not None for name in top) > 1:
        raise OSError(
            f"{data} is split already: found {', '.join(top)}, expected a "
            "folder for each class. Choose one of these folders, or use "
            "simple_cnn.py and transfer_model.py")
    else:
        left_out = {}
        files = {WHOLE: by_class(contents, depth, left_out)}
    training = files["train" if splits else WHOLE]
    classes = sorted(training)
    if len(classes) < 2:
        raise OSError(
            f"{data} has {' and '.join(classes) or 'no class'} to learn: "
            "expected at least two folders of images, one for each class")
    for name in classes:
        if not training[name]:
            raise nothing_to_learn(name)
    for split in files:
        unknown = sorted(set(files[split]) - set(classes))
        if unknown:
            raise OSError(
                f"{data}: {split} has {', '.join(unknown)}, expected only "
                f"the classes of the training folder, {', '.join(classes)}")
    stamps = "\n".join("/".join(path) + f" {file.stamp}"
                       for path, file in contents.items() if file)
    return Source(files, classes, left_out, "{} ({:,} files, {})".format(
        os.path.basename(os.path.realpath(data)), len(contents),
        hashlib.sha256(stamps.encode()).hexdigest()[:8]))


def nothing_to_learn(name):
    """Make the error for a class without images."""
    return OSError(f"{name} has no images to learn from: add some to its "
                   "folder, or delete the folder")


def is_junk(name):
    """Tell whether a file or folder is the system's, not the user's."""
    return name in JUNK or name.startswith(".")


def readable(name):
    """Return a name as people read it, whatever system wrote it."""
    return unicodedata.normalize(  # macOS decomposes umlauts
        "NFC", name.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"))


def top_folders(contents, splits):
    """Find the classes or splits; return their depth and sorted names."""
    depth = 0
    while True:
        top = {path[depth] for path in contents if len(path) > depth + 1}
        if len(top) != 1 or splits and split_of(*top) or all(
                len(path) <= depth + 2 for path in contents):
            return depth, sorted(top)
        depth += 1


def split_of(name):
    """Return the split that people give this name, or None."""
    return next((split for split, names in SPLITS.items()
                 if name.lower() in names), None)


def by_class(contents, depth, left_out):
    """Sort files by the class at this depth; add others to left_out.

    Returns: {class: {path: File}}
    """
    classes = {}
    for path, file in contents.items():
        if len(path) < depth + 2:
            left_out["/".join(path)] = "not in a class's folder"
            continue
        inside = classes.setdefault(path[depth], {})
        if path[-1]:  # otherwise it is an empty folder
            inside["/".join(path)] = file
    return classes


def by_split(data, contents, depth, top):
    """Sort files by split and class.

    Returns: {split: {class: {path: File}}}; {path: why} of other files
    """
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
        path: file for path, file in contents.items()
        if path[depth:depth + 1] == (folders[split],)},
        depth + 1, left_out) for split in SPLITS}
    for path in contents:
        if not set(path[depth:depth + 1]) & set(folders.values()):
            left_out["/".join(path)] = "not in a split's folder"
    return files, left_out


def in_folder(data):
    """List the files of a folder, without what our own scripts wrote.

    Returns: {path in it, a tuple: File}; an empty folder's path ends with ""
    """
    contents, seen = {}, set()
    for folder, subfolders, names in os.walk(data, onerror=fail,
                                             followlinks=True):
        if "run.json" in names or os.path.realpath(folder) in seen:
            subfolders.clear()  # a link may lead back up
            continue
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(
            name for name in subfolders if not is_junk(name))
        names = sorted(name for name in names if not is_junk(name))
        parts = [part for part in os.path.relpath(folder, data).split(os.sep)
                 if part != "."]
        for name in names:
            path = os.path.join(folder, name)
            add(contents, parts + [name], File(
                os.path.getsize(path), pathlib.Path(path).read_bytes))
        if parts and not names and not subfolders:
            add(contents, parts + [""], None)
    return contents


def fail(error):
    """Raise what os.walk would ignore: a folder that it can't read."""
    raise error


def add(contents, parts, file):
    """Add a file under a path as people read it."""
    path = tuple(map(readable, parts))
    while path in contents and path[-1]:  # two names that look the same
        path = path[:-1] + (path[-1] + "~",)
    contents[path] = file


def in_zip(data):
    """List the files of a zip, in the form that in_folder returns.

    Nothing is unpacked: each image is read from the zip.
    Raises OSError if the zip is damaged or looks malicious.
    """
    try:
        archive = zipfile.ZipFile(data)
    except zipfile.BadZipFile as error:
        raise OSError(f"{data} is damaged: {error}") from error
    size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_EXPANSION * os.path.getsize(data):
        raise OSError(f"{data} claims to unpack to {size:,} bytes, more than "
                      f"{MAX_EXPANSION} times its size: expected images")
    contents = {}
    for entry in archive.infolist():
        name = entry.filename
        if not entry.flag_bits & 0x800:  # macOS writes UTF-8 without the flag
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or parts[0].endswith(":"):
            raise OSError(f"{data} has an entry outside its own folder, "
                          f"{name}: expected images")
        if entry.flag_bits & 1:
            raise OSError(f"{data} needs a password: unpack it first")
        if not any(map(is_junk, parts)):
            add(contents, [part for part in parts if part != "."], File(
                entry.CRC, functools.partial(archive.read, entry)))
    inside = collections.Counter(
        path[:i] for path in contents for i in range(1, len(path)))
    return {path: file for path, file in sorted(contents.items())
            if path[-1] or inside[path[:-1]] == 1}  # an empty folder stays


def read_image(data, size):
    """Decode an image: RGB, turned as its EXIF says, not needlessly large.

    data: the bytes, in any format that Pillow knows
    size: pixels; a larger width or height is reduced to it
    Returns: a PIL.Image.Image; its original width and height
    Raises one of Pillow's many Exceptions if it can't be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd EXIF or many pixels
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise ValueError("not an image that Pillow knows") from error
        original = image.size
        image.draft(None, (2 * size, 2 * size))  # decodes large JPEGs faster
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("fractions, expected whole numbers")
        if image.mode.startswith("I"):
            x = np.asarray(image)
            # 16 bits, which convert would clip
            x = x / 257 if x.max() > 255 else x
            image = Image.fromarray(x.clip(0, 255).astype("uint8"))
        if image.mode[-1] in "Aa" or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB").resize(
            (min(size, image.width), min(size, image.height)),
            Image.LANCZOS), original


def clean_copy(source, folder, size):
    """Write the images of a Source in a form that every Keras reads.

    folder: gets <split>/<class>/<number>.png and index.json; if it exists,
        it is a copy already, and used as it is
    size: pixels; larger images are reduced to it
    Returns: Copy
    Raises OSError if a class has no images to learn from.
    """
    if os.path.isdir(folder):
        return Copy(folder)
    temporary = f"{folder}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    todo = []
    for split, classes in source.files.items():
        for name in source.classes:
            os.makedirs(os.path.join(temporary, split, name))
            todo += [(f"{split}/{name}", path, file)
                     for path, file in classes.get(name, {}).items()]
    progress = K.utils.Progbar(
        len(todo), unit_name="image",
        interval=0.05 if sys.stdout.isatty() else 60)
    origin, left_out, sides, seen = {}, dict(source.left_out), [], {}
    for place, path, file in todo:
        progress.add(1)
        try:
            data = file.read()
            image, original = read_image(data, size)
        except Exception as error:  # Pillow raises many kinds
            left_out[path] = f"can't be read: {error}"
            continue
        first = seen.setdefault(hashlib.sha256(data).digest(), path)
        if first != path:
            left_out[path] = f"a duplicate of {first}"
            continue
        copy = f"{place}/{len(origin):07d}.png"
        image.save(os.path.join(temporary, copy), compress_level=1)
        origin[copy] = path
        sides += original
    filled = {os.path.dirname(copy) for copy in origin}
    for split in source.files:
        empty = [name for name in source.classes
                 if f"{split}/{name}" not in filled]
        if empty and split in ("train", WHOLE):
            raise nothing_to_learn(empty[0])
        if empty == source.classes:
            raise OSError(f"{split} has no images that can be read")
        for name in empty:
            print(f"Warning: {split} has no images of {name}")
    runs.write(os.path.join(temporary, "index.json"), {
        "classes": source.classes, "source": origin, "left_out": left_out,
        "sides": [min(sides), max(sides)]})
    os.rename(temporary, folder)
    return Copy(folder)


class Copy:
    """A clean copy of images.

    folder: where it is
    classes: their names, in the order of their numbers
    source: {path in the copy: path of the original}
    left_out: {path: why}
    sides: the shortest and longest side of the original images, pixels
    """

    def __init__(self, folder):
        """Read the index of a folder that clean_copy wrote."""
        self.folder = folder
        with open(os.path.join(folder, "index.json"),
                  encoding="utf-8") as file:
            index = json.load(file)
        self.classes, self.source, self.left_out, self.sides = (
            index[key] for key in ("classes", "source", "left_out", "sides"))

    def count(self, *path):
        """Count the images in a split, or in a split's class."""
        return sum(copy.split("/")[:len(path)] == list(path)
                   for copy in self.source)

    def describe(self):
        """Say in a few lines what is in the copy, and what was left out."""
        splits = sorted({copy.split("/")[0] for copy in self.source})
        width = max(map(len, self.classes))
        lines = [
            f"{len(self.source):,} images of {len(self.classes)} classes, "
            "with sides of {:,} to {:,} pixels".format(*self.sides),
            " ".join([" " * width] + [f"{split:>10}" for split in splits])]
        lines += [" ".join([f"{name:{width}}"] + [
            f"{self.count(split, name):10,}" for split in splits])
            for name in self.classes]
        if self.left_out:
            lines.append(f"Left out: {len(self.left_out):,} files")
        lines += [f"  {path}: {why}"
                  for path, why in list(self.left_out.items())[:LISTED]]
        if len(self.left_out) > LISTED:
            lines.append(f"  all of them: {self.folder}/index.json")
        return "\n".join(lines)

    def labels(self, paths):
        """Return the class numbers of images in the copy, an array."""
        return np.array([self.classes.index(path.split("/")[1])
                         for path in paths])

    def dataset(self, split, size, batch, seed=None):
        """Let Keras read a split on the fly.

        seed: of the order, which changes every epoch; None: a fixed order
        Returns: a tf.data.Dataset of float32 (batch, size, size, 3) in
            0..255 and one-hot (batch, classes); its file_paths are in order
        """
        return K.utils.image_dataset_from_directory(
            os.path.join(self.folder, split), label_mode="categorical",
            class_names=self.classes, batch_size=batch,
            image_size=(size, size), shuffle=seed is not None, seed=seed,
            verbose=False)


class Views:
    """All images of a clean copy, then their mirror images, read on demand.

    views[i:j] is float32 (j - i, size, size, 3) in 0..255, the same pixels
    as from Copy.dataset.
    """

    def __init__(self, copy, size):
        """Take the images of a Copy, in the order of copy.source."""
        self.paths = [os.path.join(copy.folder, path) for path in copy.source]
        self.shape = (2 * len(self.paths), size, size, 3)

    def __len__(self):
        """Return twice the number of images."""
        return self.shape[0]

    def __getitem__(self, rows):
        """Read a slice."""
        return np.stack([self.read(i) for i in range(*rows.indices(len(
            self)))])

    def read(self, i):
        """Read image i, or its mirror image."""
        with Image.open(self.paths[i % len(self.paths)]) as image:
            x = tf.image.resize(np.asarray(image), self.shape[1:3]).numpy()
        return x if i < len(self.paths) else x[:, ::-1]
