#!/usr/bin/env python3
"""Measure the effect of each choice, one at a time, on EfficientNetV2-B0.

    benchmarks/choices.py --out runs/choices

Everything else is as in 0-transfer.py. Each row of ROWS is trained on 5,000 of
CIFAR-10's training images, with three seeds, and validated on 5,000 others;
the test images are not used.

The cost of a row is given in passes: the time in which Keras's predict sends
5,000 images through the whole base at 128 pixels. Its throughput is measured
on 500 images before each frozen pass and each training; the median of a
process counts. The number of multiply-adds, which needs no machine, is
computed from the shapes of the layers.

It writes a JSON file for each row and seed into --out. It takes three to
twelve hours on two cores and 5 GB of disk. A process that runs through needs
19 GiB of memory; stopped and started again, it needs less. A stopped run
continues where it was.
"""
import argparse
import collections
import functools
import hashlib
import os
import shutil
import sys
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
import networks  # noqa: E402
import runs  # noqa: E402

transfer = networks.transfer
K, tf = transfer.K, transfer.tf

IMAGES = 5000
VALIDATION_IMAGES = 5000
THROUGHPUT_IMAGES = 500
CALIBRATION_IMAGES = 256
PADDING = 4             # pixels: a random crop moves an image by so many
# seeds: how many
# images: to train on
# size: pixels that the images are scaled up to
# cut: the last frozen layer ("features": the whole base is frozen), or None if
#     nothing is frozen
# views: "image", "mirror" (its mirror image, too) or "crop" (random crops of
#     both, fresh in each epoch, frozen layers included)
# hidden: units of a hidden layer, or 0
# momentum: of BatchNorm above the cut; None: inference mode, the head first
# weights: "imagenet" or None (random)
# storage: the type of the frozen outputs
Row = collections.namedtuple(
    "Row", "seeds images base size cut epochs views hidden momentum "
    "learning_rate weights storage")
UPPER = Row(3, IMAGES, "EfficientNetV2B0", 128, transfer.CUT, 3, "mirror", 0,
            networks.MOMENTUM, transfer.LEARNING_RATE, "imagenet", "float16")
HEAD = {"cut": "features", "epochs": 60}
LADDER = {
    "linear head": {**HEAD, "views": "image"},
    "linear head, mirrored": HEAD,
    "hidden layer": {**HEAD, "views": "image", "hidden": 512},
    "hidden layer, mirrored": {**HEAD, "hidden": 512},
    "upper half, not mirrored": {"views": "image"},
    "upper half": {},
}
OTHER_BASES = {  # sizes at which the upper half costs about as much
    "MobileNetV2": {"size": 160, "cut": "block_8_add"},
    "DenseNet121": {"size": 64, "cut": "conv4_block11_concat"}}
# Its epochs take as long as the upper half's with its frozen pass.
FROM_SCRATCH = UPPER._replace(
    base="ResNet-9", size=32, cut=None, epochs=17, views="crop", weights=None)
ROWS = {
    **{name: UPPER._replace(**changes) for name, changes in LADDER.items()},
    **{f"{base} {name}": UPPER._replace(
        **{"base": base, **other, **changes})
       for base, other in OTHER_BASES.items()
       for name, changes in {**LADDER, **{
           f"upper half, rate {rate}": {"learning_rate": float(rate)}
           for rate in ("5e-4", "2e-3")}}.items()},
    **{f"BatchNorm momentum {momentum}": UPPER._replace(momentum=momentum)
       for momentum in (0.99, 0.999)},
    **{f"BatchNorm in inference mode, rate {rate}": UPPER._replace(
        momentum=None, learning_rate=float(rate))
       for rate in ("1e-5", "1e-4", "2e-4", "1e-3")},
    **{f"cut after block {block}, rate {rate}": UPPER._replace(
        cut=f"block{block}_add", learning_rate=float(rate))
       for block in ("3b", "5c", "6d")
       for rate in ("5e-4", "1e-3", "2e-3")
       if (block, rate) != ("5c", "1e-3")},  # the upper half
    **{f"size {size}": UPPER._replace(size=size) for size in (96, 160)},
    "1 epoch": UPPER._replace(epochs=1),
    **{f"{epochs} epochs": UPPER._replace(epochs=epochs)
       for epochs in (2, 6)},
    **{f"fresh crops, {epochs} epochs": UPPER._replace(
        views="crop", epochs=epochs) for epochs in (3, 5)},
    "stored as float32": UPPER._replace(storage="float32"),
    "random weights, lower half frozen": UPPER._replace(weights=None),
    **{f"from scratch, rate {rate}": FROM_SCRATCH._replace(
        learning_rate=float(rate)) for rate in ("1e-3", "3e-3", "1e-2")},
    # As long as the final network takes: 7.6 passes of its 50,000 images
    "from scratch, 45000 images, rate 3e-3": FROM_SCRATCH._replace(
        seeds=1, images=45000, epochs=23, learning_rate=3e-3),
}


class Checkpoint(transfer.Checkpoint):
    """Notes how long an epoch takes without validation.

    In the first epoch this includes TensorFlow's tracing of the model.
    """

    def on_test_begin(self, logs=None):
        """Training is over for this epoch, and validation begins."""
        self.note["training_seconds"] = time.perf_counter() - self.start


class Crops:
    """Images that are cropped at random when they are read.

    A crop has as many pixels as the image, which is padded by reflection (He
    et al., 2016, arXiv:1512.03385, padded with zeros).
    """

    def __init__(self, images, training, seed):
        """Hold images, uint8 (rows, 32, 32, 3); the first ones are cropped.

        training: how many are; the others are read as they are
        """
        self.images, self.training, self.seed = images, training, seed

    def __getitem__(self, rows):
        """Read some rows, scaled to float32 in [-1, 1]."""
        # The rows, whose order is new in each epoch, are the seed: a resumed
        # training draws the crops that an undisturbed one draws.
        moves = np.random.default_rng([self.seed, *rows]).integers(
            2 * PADDING + 1, size=(2, len(rows), 1))
        moves[:, rows >= self.training] = PADDING
        y, x = moves + np.arange(self.images.shape[1])
        padded = np.pad(self.images[rows], (
            (0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)), "reflect")
        return transfer.scale(padded[
            np.arange(len(rows))[:, None, None], y[:, :, None], x[:, None]])


def resnet_9(x, width=16):
    """Build a small network for images of 32 pixels.

    David Page's ResNet-9 (How to Train Your ResNet, 2018), a quarter as wide;
    half as wide, it learned less in as many minutes

    x: a tensor (m, 32, 32, 3)
    Returns: a tensor of features (m, 8 * width)
    """
    def block(x, channels):
        """A convolution, BatchNorm and ReLU."""
        x = K.layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        x = K.layers.BatchNormalization(momentum=networks.MOMENTUM)(x)
        return K.layers.ReLU()(x)

    x = block(x, width)
    for channels, residual in ((2 * width, True), (4 * width, False),
                               (8 * width, True)):
        x = K.layers.MaxPooling2D()(block(x, channels))
        if residual:
            x = K.layers.Add()([x, block(block(x, channels), channels)])
    return K.layers.GlobalMaxPooling2D(name="features")(x)


def build(row, shape=(32, 32, 3), classes=10, scaled=True):
    """Build the network of a row; its frozen layers are frozen.

    shape: of an image
    scaled: whether images are in [-1, 1], or else in 0..255
    Returns: a K.Model (m, *shape) -> (m, classes); the tensor that training
        starts from, at the cut or the images themselves
    """
    images = K.Input(shape, name="images")
    if row.base == "ResNet-9":
        x = resnet_9(images)
    else:
        x = K.layers.Lambda(lambda x: tf.image.resize(
            (x + 1) * 127.5 if scaled else x, (row.size, row.size),
            "bicubic"), name="scale_up")(images)
        x = networks.features(row.base, x, row.weights, row.momentum)
    x = K.layers.Dropout(transfer.DROPOUT, name="dropout")(x)
    if row.hidden:
        x = K.layers.Dense(row.hidden, activation="relu", name="hidden")(x)
        x = K.layers.Dropout(transfer.DROPOUT, name="hidden_dropout")(x)
    model = K.Model(images, K.layers.Dense(
        classes, activation="softmax", name="classes")(x))
    above = row.cut is None
    for layer in model.layers:
        layer.trainable = above and not isinstance(
            layer, K.layers.DepthwiseConv2D)  # as in 0-transfer.py
        if not above:  # or crops would pass through a frozen part with dropout
            keep_in_inference_mode([layer], K.layers.Dropout)
        above = above or layer.name == row.cut
    if row.momentum is None:
        keep_in_inference_mode(model.layers[:-2],  # not the head's dropout
                               K.layers.BatchNormalization, K.layers.Dropout)
    return model, (model.input if row.views == "crop"
                   else model.get_layer(row.cut).output)


def keep_in_inference_mode(layers, *kinds):
    """Let layers of these kinds behave as in inference while others train.

    Keras's guide does so by base(x, training=False), which Keras 3 ignores
    within fit. BatchNorm's scale and shift are trained all the same.
    """
    for layer in layers:
        if isinstance(layer, kinds):
            def call(x, *_, call=layer.call, **__):
                """Ignore whether this is training."""
                return call(x, training=False)
            layer.call = call


def calibrate(frozen, images):
    """Set BatchNorm's averages in a frozen part to those of some images.

    With random weights they would be far off, and nothing would get through.
    """
    layers = [layer for layer in frozen.layers
              if isinstance(layer, K.layers.BatchNormalization)]
    for layer in layers:
        layer.trainable, momentum, layer.momentum = True, layer.momentum, 0
    frozen(transfer.scale(images[:CALIBRATION_IMAGES]), training=True)
    for layer in layers:
        layer.trainable, layer.momentum = False, momentum


def multiply_adds(model):
    """Count the multiply-adds of an image: below and above the cut.

    Only convolutions and dense layers count, as usual. In training, the
    gradient costs as much again for a layer's input and for its weights.

    Returns: of the layers below the first trained one, in inference; of the
        others, in training
    """
    below = above = 0
    trained = False
    for layer in model.layers:
        trained = trained or bool(layer.trainable_weights and isinstance(
            layer, (K.layers.Conv2D, K.layers.Dense)))
        if "Conv2D" in type(layer).__name__ or "Dense" == type(layer).__name__:
            kernel = layer.weights[0].shape
            positions = np.prod(layer.output.shape[1:-1], dtype=int)
            count = int(np.prod(kernel) * positions)
            below += 0 if trained else count
            above += count * (2 + layer.trainable) if trained else 0
    return below, above


@functools.lru_cache(None)  # all seeds share it
def training_multiply_adds(row):
    """Count those of a row's frozen layers, and of its trained ones."""
    below, above = multiply_adds(build(row._replace(weights=None))[0])
    views = {"image": 1, "mirror": 2, "crop": row.epochs}[row.views]
    return row.images * views * below, row.images * row.epochs * above


class Throughput:
    """Images per second of Keras's predict through the whole base."""

    def __init__(self, images):
        """Begin; the time names this process.

        images: CIFAR-10's, uint8 (m, 32, 32, 3)
        """
        model, _ = build(UPPER)
        self.base = K.Model(model.input, model.get_layer("features").output)
        self.images = transfer.scale(images[:THROUGHPUT_IMAGES])
        self.process = time.strftime("%Y-%m-%d %H:%M:%S")

    def __call__(self):
        """Measure it now. Returns: a dict, for a record"""
        return {"process": self.process, "predict_images_per_second":
                networks.predict_throughput(self.base, self.images)}


class Data:
    """A row's images: those to train on, mirrored, and to validate on."""

    def __init__(self, X, labels, count):
        """Split CIFAR-10's training images, uint8 (m, 32, 32, 3).

        labels: (m,); count: how many to train on
        """
        order = transfer.stratified_order(
            labels, 0)[:VALIDATION_IMAGES + count]
        validation, train = np.split(order, [VALIDATION_IMAGES])
        self.images = np.concatenate([
            X[train], X[train][:, :, ::-1], X[validation]])
        self.Y = np.eye(10, dtype="float32")[labels[
            np.concatenate([train, train, validation])]]
        views, self.validation = np.split(
            np.arange(len(self.Y)), [2 * count])
        self.views = views.reshape(2, -1)


def frozen_outputs(row, model, cut, data, cache, throughput):
    """Compute the inputs of the trained part, or find them stored.

    throughput: what a Throughput says now
    Returns: stored, as transfer.train takes it; the record of the frozen pass,
        as from networks.pass_record, of an earlier row if that had the same
        cut
    """
    frozen = K.Model(model.input, cut)
    stored, = transfer.frozen_outputs(
        frozen, data.images, cache, transfer.scale, **throughput)
    record = networks.pass_record(stored)
    # Training needs neither the validation images nor, without views, the
    # mirror images.
    used = data.views[:1 if row.views == "image" else 2].size
    record["share"] = used / len(data.images)
    if row.storage == "float32":
        # In memory: this row shows the effect of rounding, not of disks.
        stored = frozen.predict(transfer.scale(data.images), verbose=0)
    return stored, record


def train_part(row, top, stored, data, seed, path, throughput):
    """Train a part of a row's network; return its history.

    top, stored: as transfer.train takes them
    path: of the checkpoint; throughput: what a Throughput says now
    """
    views = data.views[[0, 0]] if row.views == "image" else data.views
    return transfer.train(
        top, stored, data.Y, views, data.validation, row.epochs, seed,
        Checkpoint(path, **throughput), batch=transfer.BATCH,
        learning_rate=row.learning_rate, weight_decay=transfer.WEIGHT_DECAY,
        label_smoothing=transfer.LABEL_SMOOTHING)


def hash_weights(model):
    """Hash what was trained: all weights but BatchNorm's averages."""
    digest = hashlib.sha256()
    for variable in model.trainable_variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def estimate_averages(top, stored, data):
    """Re-estimate BatchNorm's averages; return the validation accuracy.

    The training images go through once more, at a learning rate of 0, so that
    nothing but the averages changes.
    """
    for layer in top.layers:
        if isinstance(layer, K.layers.BatchNormalization):
            layer.momentum = networks.MOMENTUM
    top.compile(K.optimizers.SGD(0.0), "categorical_crossentropy",
                metrics=["accuracy"])
    rows = transfer.epoch_rows(data.views, 0, 0)
    rows = rows[:len(rows) // transfer.BATCH * transfer.BATCH]  # as in train
    top.fit(transfer.batches(top, stored, rows, data.Y, transfer.BATCH),
            verbose=0)
    return top.evaluate(transfer.batches(
        top, stored, data.validation, data.Y, transfer.BATCH), verbose=0)[1]


def train_row(name, seed, X, labels, throughput, path, cache):
    """Train a row with a seed, and write its record.

    X: CIFAR-10's training images, uint8 (m, 32, 32, 3); labels: (m,)
    throughput: a Throughput
    path: of the record; cache: the folder of frozen outputs
    """
    row = ROWS[name]
    data = Data(X, labels, row.images)
    record = {"row": name, "seed": seed, **row._asdict()}
    below, above = training_multiply_adds(row)
    if row.momentum is None:
        head = ROWS["linear head, mirrored"]
        below, more = training_multiply_adds(head)
        above += more
    checkpoints = [path.replace(".json", ".npz")]
    K.backend.clear_session()
    K.utils.set_random_seed(seed)
    model, cut = build(row)
    if row.views == "crop":
        stored = Crops(data.images, data.views.size, seed)
    else:
        if row.weights is None:
            calibrate(K.Model(model.input, cut), data.images)
        stored, record["frozen_pass"] = frozen_outputs(
            row, model, cut, data, cache, throughput())
    if row.momentum is None:
        features = model.get_layer("features").output
        checkpoints.append(path.replace(".json", "-head.npz"))
        # A pass through the whole base could store the outputs at the cut as
        # well: it is the only one that counts.
        head_stored, record["frozen_pass"] = frozen_outputs(
            head, model, features, data, cache, throughput())
        record["head"] = {"history": train_part(
            head, K.Model(features, model.output), head_stored, data, seed,
            checkpoints[-1], throughput())}
    top = K.Model(cut, model.output)
    history = train_part(
        row, top, stored, data, seed, checkpoints[0], throughput())
    record["weights_sha256"] = hash_weights(top)
    if row.momentum and row.momentum > networks.MOMENTUM:
        record["val_accuracy_averages_anew"] = estimate_averages(
            top, stored, data)
    frozen, total = transfer.convolutions(model)
    runs.write(path, {
        **record, "multiply_adds": below + above,
        "frozen_convolutions": frozen, "convolutions": total,
        "val_accuracy": history[-1]["val_accuracy"], "history": history,
        "machine": runs.machine()})
    for checkpoint in checkpoints:
        os.remove(checkpoint)


def run(args):
    """All rows that aren't recorded yet."""
    # This may fail, so it comes before --overwrite deletes anything.
    (X, labels), _ = transfer.cifar10()
    throughput = Throughput(X)
    runs.start(args.out, "benchmarks/choices.py", {
        "images": IMAGES, "validation images": VALIDATION_IMAGES,
        **{name: list(row) for name, row in ROWS.items()}}, args.overwrite)
    os.makedirs(args.cache, exist_ok=True)
    lock = transfer.wait_for_others(args.cache)
    for seed in range(UPPER.seeds):
        # Each seed measures its own frozen passes.
        cache = os.path.join(args.cache, f"seed-{seed}")
        for name, row in ROWS.items():
            path = os.path.join(args.out, f"{slug(name)}-{seed}.json")
            if seed < row.seeds and not os.path.exists(path):
                print(f"{name}, seed {seed}", flush=True)
                train_row(name, seed, X, labels[:, 0], throughput, path, cache)
        shutil.rmtree(cache, ignore_errors=True)
    lock.close()
    runs.finish(args.out)
    print(f"All rows are in {args.out}")


def slug(name):
    """A row's name as a file name."""
    return "-".join(name.replace(",", "").split())


def start(parser, run, name, stored):
    """Add the options that the experiments share; read all of them, and run.

    name: of the default folders of results and of the cache
    stored: what is in the cache, and how much
    """
    add = parser.add_argument
    add("--out", metavar="DIR", default=os.path.join(ROOT, "results", name),
        help="(%(default)s)")
    add("--cache", metavar="DIR", default=transfer.cache_folder(name),
        help=f"for {stored} (%(default)s)")
    add("--overwrite", action="store_true",
        help="delete a finished run, or another one, that is in --out")
    args = parser.parse_args()
    try:
        runs.check_folder("--out", args.out)
        runs.check_folder("--cache", args.cache)
    except ValueError as error:
        parser.error(str(error))
    transfer.keep_memory()
    transfer.exit_with_message(run, args, "Fix this")


def main():
    """Read the command line, and run."""
    start(argparse.ArgumentParser(description=__doc__.split("\n")[0]), run,
          "choices", "frozen outputs, 5 GB")


if __name__ == "__main__":
    main()
