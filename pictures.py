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
import shutil
import stat
import sys
import unicodedata
import warnings
import zipfile
import zlib

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.model_selection import train_test_split
from tensorflow import keras as K

import runs

# What people call the splits. Of exact duplicates, the copy keeps the first
# in this order, so that no test image is also trained on.
SPLITS = {"holdout": ("holdout", "hold-out", "test", "testing"),
          "validation": ("validation", "valid", "val"),
          "train": ("train", "training")}
WHOLE = "all"          # the one split of a folder without splits
SHARE = 0.15           # of the training images, for a split that is missing
JUNK = "__MACOSX", "Thumbs.db", "desktop.ini"
MAX_EXPANSION = 100    # of a zip's size: images hardly compress
MAX_BYTES = 2 ** 28    # of a file, as it is read into memory
MAX_PIXELS = 50 * 2 ** 20  # of an image: each takes up to 25 bytes of memory
MAX_DEPTH = 50         # of folders in folders
LISTED = 5             # how many of the files left out are printed

# files: {split: {class: {path: File}}}
# classes: their names, sorted
# left_out: {path: why} of files and folders that belong to no class
# identity: names these images, and changes when one of them does
Source = collections.namedtuple("Source", "files classes left_out identity")
# stamp: CRC-32 of the content; read: a function that returns the bytes
File = collections.namedtuple("File", "stamp read")


def find(data, splits=True):
    """Find the images in a folder or zip.

    data: its path. It contains train/cats/1.jpg, or cats/1.jpg without
        splits; enclosing folders, such as data/, don't matter
    splits: whether there are splits, under any of their names in SPLITS
    Returns: Source
    Raises OSError if this isn't such a folder or zip.
    """
    name = readable(data)
    if os.path.isdir(data):
        contents, left_out = in_folder(data)
    elif os.path.isfile(data):
        contents, left_out = in_zip(data)
    else:
        raise OSError(f"{name} " + (
            "is neither a folder nor a readable zip"
            if os.path.lexists(data) else "doesn't exist")
            + ": expected a folder or zip of images")
    if not any(len(path) > 1 for path in contents):
        raise OSError(f"{name} has no folders of images: expected one for "
                      "each class" + because(left_out))
    depth, top = top_folders(contents, splits)
    if splits:
        files = by_split(name, contents, depth, top, left_out)
    else:
        check_whole(name, top)
        files = {WHOLE: by_class(contents, depth, left_out)}
    training = files["train" if splits else WHOLE]
    classes = sorted(training)
    if len(classes) < 2:
        raise OSError(
            f"{name} has {' and '.join(classes) or 'no class'} to learn: "
            "expected at least two folders of images, one for each class"
            + because(left_out))
    for split in files:
        unknown = sorted(set(files[split]) - set(classes))
        if unknown:
            raise OSError(
                f"{name}: {split} has {', '.join(unknown)}, expected only "
                f"the classes of the training folder, {', '.join(classes)}")
    for label in classes:
        if not training[label]:
            raise nothing_to_learn(label, under(label, left_out))
    stamps = "\n".join("/".join(path) + f" {file.stamp}"
                       for path, file in contents.items() if file)
    return Source(files, classes, left_out, "{} ({:,} files, {})".format(
        readable(os.path.basename(os.path.realpath(data))), len(contents),
        hashlib.sha256(stamps.encode()).hexdigest()[:8]))


def because(left_out):
    """Say why the first file was left out, if one was."""
    return next((f" ({path}: {why})" for path, why in left_out.items()), "")


def under(name, left_out):
    """Return what left_out says of folders of this name and files in them."""
    return {path: why for path, why in left_out.items()
            if name in path.split("/")}


def nothing_to_learn(name, left_out):
    """Make the error for a class without images.

    left_out: {path: why} of its files
    """
    return OSError(f"{name} has no images to learn from{because(left_out)}: "
                   "add some to its folder, or delete the folder")


def is_junk(name):
    """Tell whether a file or folder is the system's, not the user's."""
    return name in JUNK or name.startswith(".")


def readable(name):
    """Return a name as people read it, whatever system wrote it."""
    name = unicodedata.normalize(  # macOS decomposes umlauts
        "NFC", name.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"))
    # What would command the terminal, or change the direction of writing.
    # Emoji and several scripts need the two joiners.
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")
        and c not in "\u200c\u200d" else c for c in name)


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


def check_whole(data, top):
    """Raise OSError if these folders are splits, where none are expected."""
    splits = [split for split in map(split_of, top) if split]
    if len(splits) > 1:
        raise OSError(
            f"{data} is split already: found {', '.join(top)}, expected a "
            "folder for each class. Choose one of these folders" + (
                ", or use simple_cnn.py and transfer_model.py, which keep "
                "to the splits" if "train" in splits else ""))


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


def by_split(data, contents, depth, top, left_out):
    """Sort files by split and class; add others to left_out.

    If validation or holdout is missing, it is split off train.

    Returns: {split: {class: {path: File}}}
    Raises OSError if train is missing, or both of the others.
    """
    folders = {}
    for name in top:
        split = split_of(name)
        if split in folders:
            raise OSError(f"{data} has both {folders[split]} and {name}: "
                          f"expected one folder for {split}")
        if split:
            folders[split] = name
    missing = [split for split in reversed(SPLITS) if split not in folders]
    if "train" in missing or len(missing) > 1:
        raise OSError(
            f"{data} has {', '.join(top)}: expected train, validation and "
            f"holdout; missing: {', '.join(missing)}. "
            + ("Move some images to validation or holdout"
               if "train" in folders else
               "Move the images to learn from to train" if folders else
               "four_classes_transfer.py takes a folder without them. Or move "
               "the images to train, and some to validation or holdout")
            + ", in a folder for each class")
    files = {split: by_class({
        path: file for path, file in contents.items()
        if path[depth:depth + 1] == (folders.get(split),)},
        depth + 1, left_out) for split in SPLITS}
    for path in contents:
        if not set(path[depth:depth + 1]) & set(folders.values()):
            left_out["/".join(path)] = "not in a split's folder"
    for split, name in folders.items():
        if split != "train" and not any(files[split].values()):
            raise OSError(
                f"{data}: {name} has no images in folders of classes"
                f"{because(under(name, left_out))}: add some, or delete the "
                "folder, and training images take their place")
    for split in missing:
        files["train"], files[split] = split_off(files["train"])
        print(f"{data} has {', '.join(top)}: {100 * SHARE:.0f} % of each "
              f"class's training images become the {split} set")
    return files


def split_off(training):
    """Take a share of each class's images away, always the same.

    training: {class: {path: File}}
    Returns: the rest, and the share, in the same form
    Raises OSError if a class has only one image.
    """
    rest, share = {}, {}
    for name, files in training.items():
        if len(files) == 1:
            raise OSError(f"{name} has one training image, which can't be "
                          "split: add some to its folder, or delete the "
                          "folder")
        # Not by --seed: runs with other seeds are tested on the same images.
        parts = train_test_split(
            sorted(files), test_size=max(1, round(SHARE * len(files))),
            random_state=0) if files else ([], [])
        rest[name], share[name] = (
            {path: files[path] for path in sorted(part)} for part in parts)
    return rest, share


def in_folder(data):
    """List the files of a folder, without what our own scripts wrote.

    Returns: {path in it, a tuple: File}, where an empty folder's path ends
        with ""; {path: why} of what can't be read
    """
    contents, left_out, seen = {}, {}, {}
    for folder, subfolders, names in os.walk(data, onerror=fail,
                                             followlinks=True):
        subfolders[:] = sorted(
            name for name in subfolders if not is_junk(name))
        names = sorted(name for name in names if not is_junk(name))
        parts = [part for part in os.path.relpath(folder, data).split(os.sep)
                 if part != "."]
        first = seen.setdefault(os.path.realpath(folder), folder)
        if first != folder:  # a link
            left_out[joined(parts)] = f"the same folder as {readable(first)}"
            subfolders.clear()
            names.clear()
            if folder.startswith(os.path.join(first, "")):
                continue  # back up
        if len(parts) > MAX_DEPTH or is_run(folder):
            left_out[joined(parts) or "."] = (
                "a run of these scripts" if len(parts) <= MAX_DEPTH else
                f"more than {MAX_DEPTH} folders deep")
            subfolders.clear()
            continue
        empty = not subfolders
        for name in names:
            path = os.path.join(folder, name)
            try:
                add(contents, parts + [name], File(
                    zlib.crc32(read_file(path)),
                    functools.partial(read_file, path)))
                empty = False
            except OSError as error:
                left_out[joined(parts + [name])] = (
                    f"can't be read: {error.strerror or error}")
        if parts and empty:
            add(contents, parts + [""], None)
    return contents, left_out


def fail(error):
    """Raise what os.walk would ignore: a folder that it can't read."""
    raise error


def is_run(folder):
    """Tell whether a folder is that of a run, by its run.json."""
    run = runs.read_json(os.path.join(folder, "run.json"))
    return isinstance(run, dict) and {"script", "arguments"} <= set(run)


def read_file(path):
    """Return the bytes of a file.

    Raises OSError if it is too large or not a regular file; reading a pipe
    could block for ever.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("neither a file nor a folder")
    if status.st_size > MAX_BYTES:
        raise OSError(f"{status.st_size:,} bytes, expected at most "
                      f"{MAX_BYTES:,}")
    with open(path, "rb") as file:
        return file.read()


def joined(parts):
    """Join the parts of a path as people read it."""
    return "/".join(map(readable, parts))


def add(contents, parts, file):
    """Add a file under a path as people read it."""
    path = tuple(map(readable, parts))
    while path in contents and path[-1]:  # two names that look the same
        path = (*path[:-1], f"{path[-1]}~{len(contents)}")
    contents[path] = file


def in_zip(data):
    """List the files of a zip, in the form that in_folder returns.

    Nothing is unpacked: each image is read from the zip.
    Raises OSError if the zip is damaged or looks malicious.
    """
    zip_name = readable(data)
    try:
        archive = zipfile.ZipFile(data)
    except Exception as error:  # of many kinds, where bytes are damaged
        raise OSError(
            f"{zip_name} is neither a folder nor a readable zip, or is "
            f"damaged ({error}): expected a folder or zip of images"
        ) from error
    size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_EXPANSION * os.path.getsize(data):
        raise OSError(f"{zip_name} claims to unpack to {size:,} bytes, more "
                      f"than {MAX_EXPANSION} times its size: expected images")
    contents, left_out = {}, {}
    for entry in archive.infolist():
        name = entry.filename
        if not entry.flag_bits & 0x800:  # macOS writes UTF-8 without the flag
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or parts[0].endswith(":"):
            raise OSError(f"{zip_name} has an entry outside its own folder, "
                          f"{readable(name)}: expected images")
        if entry.flag_bits & 1:
            raise OSError(f"{zip_name} needs a password: unpack it first")
        parts = [part for part in parts[:-1] if part not in ("", ".")] + (
            parts[-1:])
        if any(map(is_junk, parts)):
            continue
        why = (
            "a link or a device" if stat.S_IFMT(entry.external_attr >> 16)
            not in (0, stat.S_IFREG, stat.S_IFDIR) else
            f"{entry.file_size:,} bytes, expected at most {MAX_BYTES:,}"
            if entry.file_size > MAX_BYTES else
            f"more than {MAX_DEPTH} folders deep"
            if len(parts) > MAX_DEPTH else None)
        if why:
            left_out[joined(parts)] = f"can't be read: {why}"
            add(contents, parts[:-1][:MAX_DEPTH] + [""], None)
        else:
            add(contents, parts, File(
                entry.CRC, functools.partial(archive.read, entry)))
    inside = collections.Counter(
        path[:i] for path in contents for i in range(1, len(path)))
    return {path: file for path, file in sorted(contents.items())
            if path[-1] or inside[path[:-1]] == 1}, left_out


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
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("{:,} x {:,} pixels, expected at most {:,} in "
                             "all".format(*original, MAX_PIXELS))
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("fractions, expected whole numbers")
        if image.mode.startswith("I"):
            x = np.asarray(image)
            # 16 bits, which convert would clip
            x = x // 257 if x.max() > 255 else x
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

    folder: gets <split>/<class>/<number>.png and index.json; if it is a copy
        already, that is used as it is, unless it is damaged
    size: pixels; larger images are reduced to it
    Returns: Copy
    Raises OSError if a class has no images to learn from.
    """
    if os.path.isdir(folder):
        try:
            return Copy(folder)
        except PermissionError:
            raise
        except Exception as error:  # of many kinds, where JSON is damaged
            print(f"{folder} is damaged ({readable(str(error))}): copying "
                  "the images again")
            shutil.rmtree(folder)
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
        verbose=1 if sys.stdout.isatty() else 2)  # in a log: a line
    origin, left_out, sides, seen = {}, dict(source.left_out), [], {}
    for place, path, file in todo:
        progress.add(1)
        try:
            data = file.read()
            image, original = read_image(data, size)
        except Exception as error:  # Pillow raises many kinds
            left_out[path] = readable(f"can't be read: {error}")
            continue
        first = seen.setdefault(hashlib.sha256(data).digest(), path)
        if first != path:
            left_out[path] = f"a duplicate of {first}"
            continue
        copy = f"{place}/{len(origin):07d}.png"
        try:
            image.save(os.path.join(temporary, copy), compress_level=1)
        except OSError as error:
            raise OSError(f"{folder} was not written: {error}") from error
        origin[copy] = path
        sides += original
    filled = {os.path.dirname(copy) for copy in origin}
    for split, classes in source.files.items():
        empty = [name for name in source.classes
                 if f"{split}/{name}" not in filled]
        if empty and split in ("train", WHOLE):
            raise nothing_to_learn(empty[0], {
                path: left_out[path] for path in classes[empty[0]]})
        if empty == source.classes:
            raise OSError(f"{split} has no images that can be read")
        for name in empty:
            print(f"Warning: {split} has no images of {name}")
    index = {"classes": source.classes, "source": origin,
             "left_out": left_out, "sides": [min(sides), max(sides)]}
    runs.write(os.path.join(temporary, "index.json"), dict(
        index, checksums=checksums(temporary, index)))
    os.rename(temporary, folder)
    return Copy(folder)


def checksums(folder, index):
    """Compute what tells a clean copy from one that was changed.

    index: what its index.json says beside this
    Returns: {path in the folder: CRC-32}
    """
    paths = [os.path.join(inside, name)
             for inside, _, names in os.walk(folder)
             for name in names if not is_junk(name)]
    stamps = {os.path.relpath(path, folder).replace(os.sep, "/"):
              zlib.crc32(read_file(path)) for path in paths}
    return {**stamps, "index.json": zlib.crc32(json.dumps(index).encode())}


class Copy:
    """A clean copy of images.

    folder: where it is
    classes: their names, in the order of their numbers
    source: {path in the copy: path of the original}
    left_out: {path: why}
    sides: the shortest and longest side of the original images, pixels
    """

    def __init__(self, folder):
        """Read the index of a folder that clean_copy wrote.

        Raises one of many Exceptions if a file in it has changed.
        """
        self.folder = folder
        with open(os.path.join(folder, "index.json"),
                  encoding="utf-8") as file:
            index = json.load(file)
        if index.pop("checksums") != checksums(folder, index):
            raise ValueError("its files have changed")
        self.classes, self.source, self.left_out, self.sides = (
            index[key] for key in ("classes", "source", "left_out", "sides"))

    def count(self, *path):
        """Count the images in a split, or in a split's class."""
        return sum(copy.split("/")[:len(path)] == list(path)
                   for copy in self.source)

    def describe(self):
        """Say in a few lines what is in the copy, and what was left out."""
        counts = collections.Counter(
            tuple(copy.split("/")[:2]) for copy in self.source)
        splits = sorted({split for split, _ in counts})
        width = max(map(len, self.classes))
        lines = [
            f"{len(self.source):,} images of {len(self.classes)} classes, "
            "with sides of {:,} to {:,} pixels".format(*self.sides),
            " ".join([" " * width] + [f"{split:>10}" for split in splits])]
        lines += [" ".join([f"{name:{width}}"] + [
            f"{counts[split, name]:10,}" for split in splits])
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
        numbers = {name: i for i, name in enumerate(self.classes)}
        return np.array([numbers[path.split("/")[1]] for path in paths])

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
