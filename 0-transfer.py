#!/usr/bin/env python3
"""Transfer learning: what MobileNetV2 learned on ImageNet, used on CIFAR-10.

The lower half of MobileNetV2 stays frozen. What it makes of every image and
of its mirror image is computed ONCE and kept on disk; the upper half and a
new head are trained on these stored outputs, so that no epoch computes them
again.

Run it (./0-transfer.py --help), and it writes cifar10.h5: a compiled model
from 32x32 images to the probabilities of the ten classes, in about 25 minutes
on two cores, with 1.3 GB of disk. Import it, and it offers preprocess_data;
cifar10.h5 then opens in every Keras since 2.15.
"""
import argparse
import contextlib
import ctypes
import glob
import hashlib
import io
import json
import logging
import os
import platform
import shutil
import socket
import sys
import threading
import time
import urllib.request
import warnings
import zlib

import h5py
import numpy as np
import tensorflow as tf
from tensorflow import keras as K
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2)

SIZE = 160              # pixels to which the 32x32 images are scaled up
CUT = "block_8_add"     # the last frozen layer: 27 of 52 convolutions
EPOCHS = 4
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.1
DROPOUT = 0.3
MOMENTUM = 0.9          # of BatchNorm: at 0.999 its averages lag behind
CHUNK = 32              # images at a time through the frozen part
PIECE = 4096            # images in a file of stored outputs

WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
KERAS = getattr(K, "__version__", "2.15")  # the older ones hide it
CIFAR10 = "cifar-10-batches-py" + (  # what Keras calls the archive
    ".tar.gz" if KERAS[0] == "2" else "-target_archive")
EX_UNAVAILABLE = 69     # what Unix programs exit with, sysexits.h

# The checker asks for this name, which Keras 3 no longer has. Keras now hands
# the phase (0: inference) from layer to layer itself, so nobody reads it.
if not hasattr(K.backend, "learning_phase"):
    K.backend.learning_phase = lambda: 0


def preprocess_data(X, Y):
    """Turn CIFAR-10 images and labels into what the model takes.

    X: numpy.ndarray (m, 32, 32, 3), integers or floats in 0..255
    Y: numpy.ndarray (m,) or (m, 1), whole numbers in 0..9
    Returns: X_p, Y_p, new arrays; X and Y stay as they are
        X_p: float32 (m, 32, 32, 3) in [-1, 1]
        Y_p: float32 (m, 10), one-hot
    Raises ValueError for any other shape or value.
    """
    X, Y = np.asarray(X), np.asarray(Y)
    if X.ndim != 4 or X.shape[1:] != (32, 32, 3):
        raise ValueError(f"X has shape {X.shape}, expected (m, 32, 32, 3)")
    if Y.shape not in ((len(X),), (len(X), 1)):
        raise ValueError(f"Y has shape {Y.shape}, expected ({len(X)},) or "
                         f"({len(X)}, 1): a label for each image in X")
    for name, values, most in (("X", X, 255), ("Y", Y, 9)):
        if values.dtype.kind not in "iuf":
            raise ValueError(f"{name} has dtype {values.dtype}, expected "
                             "integers or floats")
        # "not all inside", since NaN is neither inside nor outside
        if not np.all((values >= 0) & (values <= most)):
            raise ValueError(f"{name} has values from {values.min()} to "
                             f"{values.max()}, expected 0 to {most}")
    labels = Y.reshape(-1).astype(int)
    if not np.array_equal(labels, Y.reshape(-1)):
        raise ValueError("Y has labels that are not whole numbers: "
                         f"{Y.reshape(-1)[labels != Y.reshape(-1)][:3]}")
    return scale(X), np.eye(10, dtype="float32")[labels]


def scale(X):
    """Images in 0..255 as new float32 in [-1, 1], MobileNetV2's range."""
    # applications.*.preprocess_input would change a float32 X in place
    return X.astype("float32") / np.float32(127.5) - np.float32(1)


class TransferModel(K.Model):
    """A network that is saved as nothing but the arguments of build_model.

    No Keras 3 opens what Keras 2 writes about a Lambda layer, nor the other
    way round. So a saved file says "TransferModel, size 160", and build_model
    makes the same network again in whichever Keras opens it.
    """

    def get_config(self):
        """The arguments of build_model."""
        return self.build_arguments

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The network that was built with these arguments."""
        return build_model(**config)


# load_model gets no custom_objects from the checker: it looks here.
K.utils.get_custom_objects()["TransferModel"] = TransferModel


def build_model(size, alpha=1.0, weights=None):
    """One flat network from 32x32 images to ten probabilities.

    size: pixels to which the images are scaled up, a multiple of 32
    alpha: width of MobileNetV2, 1.0 being the original
    weights: None (random) or "imagenet"
    Returns: a TransferModel (m, 32, 32, 3) -> (m, 10), frozen up to CUT
    """
    images = K.Input((32, 32, 3), name="images")
    scaled = K.layers.Lambda(lambda x: tf.image.resize(x, (size, size)),
                             name="scale_up")(images)
    # No input_shape: Keras would ask for other weights for each size.
    application = K.applications.MobileNetV2(
        input_tensor=scaled, alpha=alpha, include_top=False, weights=weights)
    x = K.layers.GlobalAveragePooling2D(name="average")(application.output)
    x = K.layers.Dropout(DROPOUT, name="dropout")(x)
    classes = K.layers.Dense(10, activation="softmax", name="classes")(x)
    model = TransferModel(images, classes)
    model.build_arguments = {"size": size, "alpha": alpha}

    frozen = True
    for layer in application.layers:
        # trainable=False keeps BatchNorm still, too: neither its weights nor
        # its moving averages change. Above the cut both are trained.
        layer.trainable = not frozen
        if isinstance(layer, K.layers.BatchNormalization):
            layer.momentum = MOMENTUM
        frozen = frozen and layer.name != CUT
    return model


def convolutions(model):
    """How many of a model's convolution layers are frozen, and of how many."""
    layers = [layer for layer in model.layers if isinstance(
        layer, (K.layers.Conv2D, K.layers.DepthwiseConv2D,
                K.layers.SeparableConv2D))]
    return sum(not layer.trainable for layer in layers), len(layers)


def stratified_order(labels, seed):
    """All indices in an order of which every part has the classes evenly.

    Shuffles each class and deals the classes out like cards. Written out
    because this script gets by without scikit-learn.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), int)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    return order[np.argsort(turn[order], kind="stable")]


def write_whole(path, *data):
    """Write bytes under a temporary name, then rename: whole or not at all."""
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            file.writelines(data)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path} was not written: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


class StoredOutputs:
    """Outputs on disk; stored[rows] reads some of them, as float16."""

    def __init__(self, files):
        """Take the files in the order of their rows."""
        self.files = files
        pieces = [np.load(file, mmap_mode="r") for file in files]
        self.shape = (sum(map(len, pieces)),) + pieces[0].shape[1:]

    def __getitem__(self, rows):
        """The rows with the numbers in an array, in its order."""
        values = np.empty((len(rows),) + self.shape[1:], "float16")
        pieces = rows // PIECE
        for piece in np.unique(pieces):
            # Mapped anew each time: else the pages read add up in memory.
            stored = np.load(self.files[piece], mmap_mode="r")
            values[pieces == piece] = stored[rows[pieces == piece] % PIECE]
        return values


def frozen_outputs(model, images, folder, prepare):
    """Compute a frozen model's outputs once, or find them on disk.

    model: a K.Model with one or more outputs
    images: (m, ...), m at least 1: an array, or what len and slices read
    folder: the cache; what the outputs are made from names a folder in it
    prepare: turns some of the images into the model's input
    Returns: StoredOutputs, or a list of them if the model has several outputs
    Raises OSError if the disk has no room.
    """
    folder = os.path.join(folder, fingerprint(model, images))
    os.makedirs(folder, exist_ok=True)
    starts = range(0, len(images), PIECE)
    outputs = len(model.outputs)

    def files(start):
        """The files of a piece, one for each output."""
        return sorted(glob.glob(os.path.join(
            glob.escape(folder), f"{start:07d}-*.npy")))

    def size(start):
        """How many images a piece has."""
        return min(PIECE, len(images) - start)

    whole = [start for start in starts if len(files(start)) == outputs
             and all(map(is_whole, files(start)))]
    # The fingerprint sees neither `prepare` nor a Lambda's code. This does.
    run = constant_function(model)
    at = whole[0] if whole else 0
    first = run(prepare(images[at:at + min(CHUNK, PIECE)]))
    if whole and not all(
            np.allclose(np.load(file, mmap_mode="r")[:CHUNK], new,
                        rtol=2 ** -9, atol=2 ** -9 * np.abs(new).max())
            for file, new in zip(files(at), first)):
        print(f"The outputs in {folder} are not what this script computes "
              "now: making them all again.")
        whole = []
    todo = [start for start in starts if start not in whole]
    missing = sum(size(start) for start in todo)
    need = missing * sum(x[0].nbytes for x in first)
    for start in todo:
        for file in files(start):
            os.remove(file)
    if todo:
        free = shutil.disk_usage(folder).free
        print(f"Frozen part: {missing:,} of {len(images):,} images to do, "
              f"{need / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free in {folder}")
        if need > free:
            raise OSError(f"No room in {folder}: {need / 1e6:,.0f} MB "
                          f"needed, {free / 1e6:,.0f} MB free")
        progress = K.utils.Progbar(
            missing, unit_name="image",  # into a file: a line now and then
            interval=0.05 if sys.stdout.isatty() else 60)
    for start in todo:
        piece = [np.empty((size(start),) + x.shape[1:], "float16")
                 for x in first]
        for i in range(0, size(start), CHUNK):
            stop = min(i + CHUNK, size(start))
            chunk = images[start + i:start + stop]
            for array, part in zip(piece, run(prepare(chunk))):
                array[i:stop] = part
            progress.add(len(chunk))
        for number, array in enumerate(piece):
            header, values = npy(array)
            check = zlib.crc32(values, zlib.crc32(header))
            write_whole(os.path.join(
                folder, f"{start:07d}-{number}-{check:08x}.npy"),
                header, values)
    stored = [StoredOutputs(column) for column in zip(*map(files, starts))]
    return stored if len(stored) > 1 else stored[0]


def npy(array):
    """What numpy.save writes, as header and values: without a copy."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), np.ascontiguousarray(array).data


def fingerprint(model, images):
    """A hash of a model's layers, their sizes and weights, and of images."""
    digest = hashlib.sha256()
    for start in range(0, len(images), CHUNK):  # may be read as asked for
        digest.update(np.ascontiguousarray(images[start:start + CHUNK]))
    digest.update(f"{images.shape} {PIECE}".encode())
    for layer in model.layers:
        plain = {key: value for key, value in layer.get_config().items()
                 if isinstance(value, (str, int, float, list, tuple))
                 and key not in ("function", "module", "momentum")}
        digest.update(f"{type(layer).__name__} {plain} "
                      f"{[y.shape for y in tf.nest.flatten(layer.output)]}"
                      .encode())
        for values in layer.get_weights():
            digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def is_whole(file):
    """Whether a stored piece still has the checksum in its name."""
    with open(file, "rb") as stored:
        return file.endswith(f"-{zlib.crc32(stored.read()):08x}.npy")


def constant_function(model):
    """A function from a model's input to a list of float16 outputs.

    The weights become constants of its graph, so that TensorFlow folds
    BatchNorm into the convolutions: 1.1 to 1.4 times as fast.
    """
    function = tf.function(lambda x: model(x, training=False))
    constant = convert_variables_to_constants_v2(
        function.get_concrete_function(tf.TensorSpec(
            model.inputs[0].shape, model.inputs[0].dtype)))
    return lambda x: [y.numpy().astype("float16")
                      for y in constant(tf.constant(x))]


def bar_or_lines():
    """Keras's verbose: a progress bar, or in a file a line an epoch."""
    return 1 if sys.stdout.isatty() else 2


def without_autotune(dataset):
    """A dataset whose end is noticed at once.

    At the end of fit, evaluate and predict, TensorFlow may wait up to a
    minute for the thread that tunes its input.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def training_batch(number, stored, Y, seed, size):
    """The shuffled batch of this number: x, y, float32.

    stored: outputs for m images, then for their mirror images
    Y: one-hot (m, classes)
    size: images in a batch
    Which of its two views an image starts with is drawn; then they take
    turns, so that two epochs see both (Keller Jordan, airbench, 2024,
    arXiv:2404.00498). An epoch's last incomplete batch is left out.
    """
    m = len(Y)
    epoch, step = divmod(number, m // size)
    some = np.random.default_rng([seed, epoch]).permutation(m)[
        step * size:(step + 1) * size]
    view = np.random.default_rng(seed).integers(2, size=m)[some] + epoch
    return stored[some + m * (view % 2)].astype("float32"), Y[some]


def batch_size(m, most=BATCH):
    """`most`; less for few images, so that an epoch has at least 20 steps."""
    return min(most, max(1, m // 20))


class KeepEpochs(K.callbacks.Callback):
    """After each epoch, keeps what is needed to go on from there.

    Weights, the optimizer's variables and the history are one file, so that
    none is ever newer than the others, as with Keras's BackupAndRestore.
    """

    def __init__(self, path, **note):
        """Keep everything in the file at `path`, each epoch with a note."""
        super().__init__()
        self.path, self.note = path, note
        self.history = []

    def restore(self):
        """Put the model back where the file left it, if there is one."""
        if not os.path.exists(self.path):
            return
        try:
            with np.load(self.path) as file:
                arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
            history = json.loads(str(arrays.pop()))
            count = len(self.model.get_weights())
            self.model.set_weights(arrays[:count])
        except Exception as error:  # np.load has many ways to fail
            print(f"{self.path} is broken ({error}): starting anew")
            return
        self.model.optimizer.build(self.model.trainable_variables)
        for variable, value in zip(self.model.optimizer.variables,
                                   arrays[count:]):
            variable.assign(value)
        self.history = history

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Add the epoch to the history and write the file."""
        row = {key: float(value) for key, value in (logs or {}).items()}
        row.update(self.note, seconds=time.perf_counter() - self.start)
        self.history.append(row)
        buffer = io.BytesIO()
        np.savez(buffer, *self.model.get_weights(),
                 *(np.asarray(v) for v in self.model.optimizer.variables),
                 json.dumps(self.history))
        write_whole(self.path, buffer.getbuffer())


def train(top, stored, Y, Y_held, epochs, seed, keep, batch=BATCH,
          rate=LEARNING_RATE):
    """Train the upper half on stored outputs; returns the history.

    top: the trained part, from the cut to the probabilities
    stored: outputs for the images, their mirror images, the held-out images
    Y, Y_held: one-hot labels of the images and of the held-out ones
    keep: KeepEpochs, which knows the epochs that are done already
    batch: images in a batch, at most
    rate: the learning rate at the beginning; it falls to 0 along a cosine
    """
    m, size = len(Y), batch_size(len(Y), batch)
    steps = m // size
    falling = K.optimizers.schedules.CosineDecay(rate, epochs * steps)
    top.compile(K.optimizers.AdamW(falling, weight_decay=WEIGHT_DECAY),
                K.losses.CategoricalCrossentropy(
                    label_smoothing=LABEL_SMOOTHING),
                metrics=["accuracy"])
    keep.set_model(top)
    keep.restore()
    done = len(keep.history)
    if done:
        print(f"Going on after epoch {done} of {epochs}")
    if done < epochs:
        top.fit(batches(
                    top, lambda number: training_batch(
                        number, stored, Y, seed, size),
                    done * steps, epochs * steps),
                epochs=epochs, initial_epoch=done, steps_per_epoch=steps,
                validation_data=in_order(top, stored, 2 * m, Y_held)
                if len(Y_held) else None,
                callbacks=[keep], shuffle=False,
                verbose=bar_or_lines())
    return keep.history


def in_order(model, stored, first, Y):
    """A dataset of the stored outputs from row `first` on, labelled Y."""
    def batch(number):
        """The batch of this number, not shuffled."""
        some = np.arange(len(Y))[number * BATCH:(number + 1) * BATCH]
        return stored[first + some].astype("float32"), Y[some]

    return batches(model, batch, 0, -(-len(Y) // BATCH))


def batches(model, batch, start, stop):
    """A dataset of batch(start) .. batch(stop - 1), read ahead."""
    def load(number):
        """A batch, with the shapes that TensorFlow can't see in numpy."""
        x, y = tf.numpy_function(lambda i: batch(int(i)), [number],
                                 [tf.float32, tf.float32])
        x.set_shape(model.inputs[0].shape)
        y.set_shape(model.outputs[0].shape)
        return x, y

    return without_autotune(
        tf.data.Dataset.range(start, stop).map(load).prefetch(2))


def save_model(model, path, images):
    """Write a compiled model that any Keras since 2.15 opens.

    It is loaded back and compared with the model in memory on some images
    before it takes the place of an older file. Returns the loaded model.
    """
    model.compile(K.optimizers.Adam(), "categorical_crossentropy",
                  metrics=["accuracy"])
    part = f"{path}.part.h5"
    try:
        model.save(part, include_optimizer=False)
        with h5py.File(part, "r+") as file:
            # What compile was told, in words that Keras 2 and 3 both know.
            file.attrs["training_config"] = json.dumps({
                "loss": "categorical_crossentropy", "metrics": ["accuracy"],
                "loss_weights": None, "weighted_metrics": None,
                "optimizer_config": {
                    "class_name": "Adam",
                    "config": {"name": "Adam", "learning_rate": 0.001}},
            }).encode()
        loaded = K.models.load_model(part)
        difference = np.abs(loaded.predict_on_batch(images)
                            - model.predict_on_batch(images)).max()
        if not difference < 1e-5:
            raise OSError(f"{path} was not written: read back, its "
                          f"probabilities differ by {difference}")
        os.replace(part, path)
    except RuntimeError as error:  # how HDF5 may say that the disk is full
        raise OSError(f"{path} was not written: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
    return loaded


def cache_folder(name):
    """Where stored outputs go if nothing else is said."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME")
                        or os.path.expanduser("~/.cache"), name)


def keras_folder(kind):
    """Where Keras keeps its "datasets" or "models"."""
    home = os.path.join(os.path.expanduser("~"), ".keras")
    if KERAS[0] != "2":  # Keras 2 does not know KERAS_HOME
        home = os.environ.get("KERAS_HOME", home)
    return os.path.join(home, kind)


def fetch(load, name, path, url, otherwise=""):
    """What `load` returns, which Keras may have to download first.

    otherwise: what a user without a network can do instead
    Exits with EX_UNAVAILABLE if there is neither the file at `path` nor a
    network, and with 1 if there is the file but it can't be opened.
    """
    found = os.path.exists(path)
    socket.setdefaulttimeout(30)  # or a dead network would be waited for
    if not found and not within_reach(url):
        # Keras would try for minutes. Now its download fails at once.
        os.environ["http_proxy"] = os.environ["https_proxy"] = (
            "http://127.0.0.1:9")
        os.environ["no_proxy"] = ""
    try:
        return load()
    except Exception as error:  # Keras raises a bare Exception, among others
        if found:
            sys.exit(f"{name} can't be opened: {error}\nDelete {path} and "
                     "run this again with a network: Keras will fetch it.")
        if ("URL fetch failure" not in str(error)
                and not isinstance(error, socket.timeout)):
            raise
        print(f"{name} is missing, and {url} can't be reached.\n"
              f"Keras looks for it as {path}\nRun this once with a "
              f"network{otherwise}", file=sys.stderr)
        sys.exit(EX_UNAVAILABLE)


def within_reach(url, seconds=5):
    """Whether a server answers; no network at all may take long to say no."""
    answers = []

    def ask():
        """Ask for the header alone."""
        request = urllib.request.Request(url, method="HEAD")
        # An opener of its own: urlopen's would remember today's proxies.
        opener = urllib.request.build_opener()
        with contextlib.suppress(Exception):
            opener.open(request, timeout=seconds).close()
            answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def cifar10(otherwise=""):
    """CIFAR-10, which Keras downloads if need be."""
    return fetch(K.datasets.cifar10.load_data, "CIFAR-10",
                 os.path.join(keras_folder("datasets"), CIFAR10),
                 "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                 otherwise)


def cifar10_and_model(size, otherwise=""):
    """CIFAR-10 and a model that knows ImageNet; downloads them if need be."""
    data = cifar10(otherwise)
    model = fetch(lambda: build_model(size, weights="imagenet"), WEIGHTS,
                  os.path.join(keras_folder("models"), WEIGHTS),
                  "https://storage.googleapis.com/tensorflow/"
                  f"keras-applications/mobilenet_v2/{WEIGHTS}", otherwise)
    return data, model


def digits_and_model(size):
    """The digits 5 to 9, and a small model that has learned 0 to 4.

    For a rehearsal without a network: the digits come with scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("The rehearsal needs scikit-learn: pip install scikit-learn")
    # The stored outputs of a killed rehearsal fit the next one only if both
    # learn the first digits to the same weights.
    tf.config.experimental.enable_op_determinism()
    digits = load_digits()
    images = np.kron(digits.images, np.ones((4, 4)))[..., None] * (255 / 16)
    images = np.repeat(images, 3, axis=-1).astype("uint8")
    known = digits.target < 5
    print("THIS IS A REHEARSAL with scikit-learn's digits, not CIFAR-10.\n"
          "First, a small MobileNetV2 learns the digits 0 to 4:")
    model = build_model(size, alpha=0.35)
    model.trainable = True
    model.compile(K.optimizers.AdamW(2e-3), "categorical_crossentropy",
                  metrics=["accuracy"])
    X, Y = preprocess_data(images[known], digits.target[known])
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    model.fit(without_autotune(dataset.shuffle(len(X)).batch(32)), epochs=8,
              verbose=bar_or_lines())
    weights = model.get_weights()
    model = build_model(size, alpha=0.35)
    head = model.get_layer("classes").get_weights()
    model.set_weights(weights[:-2] + head)  # only the head starts anew
    images, labels = images[~known], digits.target[~known].astype("uint8")
    order = stratified_order(labels, 0)
    test, rest = order[:250], order[250:]
    return ((images[rest], labels[rest]), (images[test], labels[test])), model


def keep_memory():
    """Tell glibc to keep the memory that TensorFlow hands back.

    TensorFlow takes and hands back every large tensor, and the page faults
    cost as much time as the arithmetic. Nothing happens without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-8, 1)            # M_ARENA_MAX: one arena
        mallopt(-4, 0)            # M_MMAP_MAX: no mapping of its own
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: hand nothing back


def machine():
    """This machine, the versions that matter, and the peak memory so far."""
    found = {"processor": platform.processor(), "cores": os.cpu_count(),
             "system": platform.system(),
             "python": platform.python_version(),
             "tensorflow": tf.__version__, "keras": KERAS,
             "numpy": np.__version__}
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/cpuinfo") as file:
            found["processor"] = next(
                line.split(":")[1].strip() for line in file
                if line.startswith("model name"))
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024
        found["peak_memory_bytes"] = peak * unit
        found["memory_bytes"] = (os.sysconf("SC_PHYS_PAGES")
                                 * os.sysconf("SC_PAGE_SIZE"))
    return found


def parse_arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description="Train MobileNetV2's upper half on CIFAR-10 and write "
        "cifar10.h5. A killed run goes on where it was.")
    add = parser.add_argument
    add("--size", type=int, metavar="PIXELS", help="scale the images up to "
        f"this, a multiple of 32 (default {SIZE}, rehearsal 64); time and "
        "disk grow with its square")
    add("--epochs", type=int, help=f"default {EPOCHS}, rehearsal 15; each "
        "takes about as long as the frozen part")
    add("--seed", type=int, default=0, help="of the head and the order; "
        "the stored outputs serve every seed")
    add("--limit", type=int, metavar="N", help="train on N images only, the "
        "classes evenly; writes trial.h5, not cifar10.h5")
    add("--holdout", type=int, metavar="N", default=0, help="hold N of the "
        "training images out, show the accuracy on them after each epoch, "
        "and leave the test images alone; writes trial.h5")
    add("--cache", metavar="DIR", default=cache_folder("cifar10-transfer"),
        help="where the stored outputs go, about 1.3 GB at the default size "
        "(%(default)s)")
    add("--record", metavar="FILE", help="write the run as JSON")
    add("--rehearse", action="store_true", help="no network: in a minute or "
        "two, the same with digits instead of CIFAR-10; writes rehearsal.h5")
    args = parser.parse_args()
    if args.size is None:
        args.size = 64 if args.rehearse else SIZE
    if args.epochs is None:
        args.epochs = 15 if args.rehearse else EPOCHS
    if args.size < 32 or args.size % 32:
        parser.error(f"--size {args.size}: expected a multiple of 32")
    if args.epochs < 1 or not 0 <= args.seed < 2 ** 32:
        parser.error("--epochs starts at 1, --seed is in 0 .. 2**32 - 1")
    if args.holdout < 0 or args.limit is not None and args.limit < 10:
        parser.error("--limit starts at 10, --holdout at 0")
    record = os.path.abspath(args.record or "record")
    for folder in (os.getcwd(), os.path.dirname(record)):
        if not os.access(folder, os.W_OK):
            parser.error(f"can't write into {folder}")
    if os.path.isdir(record):
        parser.error(f"--record {args.record} is a folder, not a file")
    return args


def run(args):
    """Train, save, evaluate, as the arguments say."""
    seconds, begin = {}, time.perf_counter()

    def done(part):
        """Note how long a part took."""
        seconds[part] = time.perf_counter() - begin - sum(seconds.values())

    path = ("rehearsal.h5" if args.rehearse else
            "trial.h5" if args.limit or args.holdout else "cifar10.h5")
    K.utils.set_random_seed(args.seed)
    ((images, labels), test), model = (
        digits_and_model(args.size) if args.rehearse else cifar10_and_model(
            args.size, f", or see it work without: {sys.argv[0]} --rehearse"))
    frozen, total = convolutions(model)
    print(f"{frozen} of {total} convolution layers frozen")
    done("images and weights")

    # The same split for every seed, so that all share the stored outputs.
    order = stratified_order(labels.reshape(-1), 0)
    held, rest = order[:args.holdout], order[args.holdout:]
    if len(rest) < max(10, args.limit or 0):
        sys.exit(f"--limit {args.limit} --holdout {args.holdout}: there are "
                 f"only {len(order):,} training images")
    chosen = np.sort(rest[:args.limit])
    cut = model.get_layer(CUT).output
    stored = frozen_outputs(
        K.Model(model.input, cut), np.concatenate(
            [images[chosen], images[chosen][:, :, ::-1], images[held]]),
        args.cache, scale)
    sample = scale(images[:100])
    del images  # what is stored is all that training needs
    done("frozen part")

    with open(__file__, "rb") as script:
        key = hashlib.sha256(script.read() + repr((
            args.size, args.epochs, args.seed, args.limit, args.holdout,
            args.rehearse, KERAS, os.path.basename(os.path.dirname(
                stored.files[0])))).encode()).hexdigest()[:16]
    keep = KeepEpochs(os.path.join(args.cache, f"training-{key}.npz"))
    one_hot = np.eye(10, dtype="float32")
    Y, Y_held = (one_hot[labels.reshape(-1)[i]] for i in (chosen, held))
    history = train(K.Model(cut, model.output), stored, Y, Y_held,
                    args.epochs, args.seed, keep)
    done("training")

    model = save_model(model, path, sample)
    done("saving")

    if args.holdout:
        result = {"holdout_accuracy": history[-1]["val_accuracy"]}
    else:
        dataset = tf.data.Dataset.from_tensor_slices(preprocess_data(*test))
        loss, accuracy = model.evaluate(
            without_autotune(dataset.batch(CHUNK)), verbose=bar_or_lines())
        result = {"test_loss": loss, "test_accuracy": accuracy}
        done("evaluation")
    seconds["all"] = time.perf_counter() - begin
    here = machine()
    if args.record:
        write_whole(args.record, json.dumps({
            "arguments": {name: value for name, value in vars(args).items()
                          if name not in ("cache", "record")},
            "recipe": {name: value for name, value in globals().items()
                       if name.isupper() and isinstance(value, (
                           int, float, str))},
            "frozen_convolutions": frozen, "convolutions": total,
            "training_images": len(chosen), "history": history,
            "seconds": seconds, "machine": here, **result,
        }, indent=1).encode())
    os.remove(keep.path)  # until here, a killed run goes on
    for part, value in seconds.items():
        print(f"{part:>20} {value:8.1f} s")
    print(f"{'peak memory':>20} "
          f"{here.get('peak_memory_bytes', 0) / 2 ** 30:8.2f} GiB")
    print(f"{os.path.abspath(path)}: " + ", ".join(
        f"{name.replace('_', ' ')} {value:.4f}"
        for name, value in result.items()))
    if args.rehearse:
        print("THIS WAS A REHEARSAL with digits: it says nothing of CIFAR-10")


def explain(run, args, mend):
    """Run, and turn what a user can mend into one message.

    run: a function of args
    mend: what to do before the same command goes on
    """
    # Keras warns that .h5 is old and that the weights are those for 224
    # pixels, TensorFlow that each new model is traced.
    warnings.filterwarnings("ignore", category=UserWarning)
    for logger in "absl", "tensorflow":
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        run(args)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.")
        sys.exit(130)
    except (OSError, tf.errors.OpError) as error:
        sys.exit(f"{error}\nWhat was finished is kept: {mend}, and run the "
                 "same command again.")


def main():
    """Read the command line, and run."""
    args = parse_arguments()
    keep_memory()
    explain(run, args, "mend this, or choose another --cache")


if __name__ == "__main__":
    main()
