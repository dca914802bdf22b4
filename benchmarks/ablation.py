#!/usr/bin/env python3
"""What each choice of 0-transfer.py is worth: one change at a time.

    benchmarks/ablation.py --out runs/ablation

Each row is trained on 10,000 of CIFAR-10's training images and judged on
5,000 others that are held out; the test images stay out of it. Some rows are
trained with three seeds, the others with one (see ROWS). Before each frozen
pass and each training it measures how fast Keras's predict is on 1,000 images
through the whole base at 128 pixels: what a row costs is told in such passes
over its 10,000 images, at the median speed of its process.

It writes a JSON file for each row and seed into --out (results/ablation has
those that are shown), and goes on where it was stopped. It takes an hour and
a half on two cores, 6 GiB of memory and 3 GB of disk.
"""
import argparse
import collections
import os
import sys
import time

import numpy as np
from tensorflow import keras as K

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
import cifar100_transfer  # noqa: E402
import runs  # noqa: E402

transfer = cifar100_transfer.transfer

IMAGES = 10000
HELD_OUT = 5000
SPEED_IMAGES = 1000
SPEED_TIMES = 2         # of which the mean counts
SPEED_SIZE = 128        # of the passes in which all rows are measured
# seeds: with how many; cut: the last frozen layer ("average": all of the
# base), or None if nothing is frozen; mirror: mirror images as well; hidden:
# units of a hidden layer; momentum: BatchNorm's above the cut, or None if it
# is frozen; storage: of the frozen outputs
Row = collections.namedtuple(
    "Row", "seeds size cut epochs mirror hidden momentum learning_rate "
    "weights storage")
UPPER = Row(3, 128, transfer.CUT, 3, True, 0, transfer.MOMENTUM,
            transfer.LEARNING_RATE, "imagenet", "float16")
HEAD = UPPER._replace(cut="average", epochs=20, mirror=False)
ONCE = UPPER._replace(seeds=1)
ROWS = {
    "linear head": HEAD,
    "hidden layer": HEAD._replace(hidden=512),
    "linear head, mirrored": HEAD._replace(mirror=True),
    "hidden layer, mirrored": HEAD._replace(hidden=512, mirror=True),
    "upper half": UPPER,
    "upper half, not mirrored": UPPER._replace(mirror=False),
    "BatchNorm frozen": ONCE._replace(momentum=None),
    "BatchNorm frozen, rate 2e-4": ONCE._replace(
        momentum=None, learning_rate=2e-4),
    "BatchNorm momentum 0.999": UPPER._replace(momentum=0.999),
    "stored as float32": UPPER._replace(storage="float32"),
    "size 96": ONCE._replace(size=96),
    "size 160": ONCE._replace(size=160),
    "cut after block 2": ONCE._replace(cut="block_2_add"),
    "cut after block 5": ONCE._replace(cut="block_5_add"),
    "cut after block 12": ONCE._replace(cut="block_12_add"),
    "cut after block 15": ONCE._replace(cut="block_15_add"),
    "1 epoch": ONCE._replace(epochs=1),
    "2 epochs": ONCE._replace(epochs=2),
    "6 epochs": ONCE._replace(epochs=6),
    "random weights, lower half frozen": ONCE._replace(weights=None),
    "random weights, all trained, 1 epoch": ONCE._replace(
        weights=None, cut=None, epochs=1),
}


class KeepEpochs(transfer.KeepEpochs):
    """Notes how long an epoch takes without the held-out images.

    In the first, that counts in TensorFlow's tracing of the model.
    """

    def on_test_begin(self, logs=None):
        """The images of this epoch are through."""
        self.note["training_seconds"] = time.perf_counter() - self.start


def build(row):
    """0-transfer's network with a row's changes.

    Returns: the model; the tensor at the cut, the images if there is none
    """
    model = transfer.build_model(row.size, weights=row.weights)
    if row.hidden:
        x = model.get_layer("dropout").output
        x = K.layers.Dense(row.hidden, activation="relu", name="hidden")(x)
        x = K.layers.Dropout(transfer.DROPOUT, name="hidden_dropout")(x)
        model = K.Model(model.input, K.layers.Dense(
            10, activation="softmax", name="classes")(x))
    above = row.cut is None
    for layer in model.layers:
        layer.trainable = above
        if isinstance(layer, K.layers.BatchNormalization):
            layer.trainable = above and row.momentum is not None
            layer.momentum = row.momentum or layer.momentum
        above = above or layer.name == row.cut
    return model, (model.get_layer(row.cut).output if row.cut
                   else model.input)


class Speed:
    """Images per second of Keras's predict through the whole base."""

    def __init__(self, model, images):
        """Begin; the process is known by its time.

        model: 0-transfer's; images: CIFAR-10's, uint8 (m, 32, 32, 3)
        """
        self.base = K.Model(model.input, model.get_layer("average").output)
        self.images = transfer.scale(images[:SPEED_IMAGES])
        self.process = time.strftime("%Y-%m-%d %H:%M:%S")

    def __call__(self):
        """Measure it now. Returns: a dict, for a record"""
        return {"process": self.process, "predict_images_per_second": float(
            np.mean([cifar100_transfer.predict_rate(self.base, self.images)
                     for _ in range(SPEED_TIMES)]))}


def stored_outputs(row, model, cut, images, cache, speed):
    """What goes into the trained part, and the record of its pass.

    Returns: stored, indexed by an array of numbers; the record, as timed_pass
        gives it, which may be that of an earlier row with the same cut
    """
    if row.cut is None:
        return transfer.scale(images), {"seconds": 0.0, **speed}
    frozen = K.Model(model.input, cut)
    stored, record = cifar100_transfer.timed_pass(
        frozen, images, cache, transfer.scale, **speed)
    if row.storage == "float32":
        # In memory: this row shows what rounding does, not what disks do.
        stored = frozen.predict(transfer.scale(images), verbose=0)
    return stored, record


def train_row(name, seed, X, labels, speed, path, cache):
    """Train a row with a seed, and write its record.

    X: CIFAR-10's training images, uint8 (m, 32, 32, 3); labels: (m,)
    speed: a Speed
    path: where the record goes; cache: the folder of frozen outputs
    """
    row = ROWS[name]
    order = transfer.stratified_order(labels, 0)
    held, some = order[:HELD_OUT], order[HELD_OUT:HELD_OUT + IMAGES]
    # Not mirrored: the image itself stands for its mirror image.
    views = X[some], X[some][:, :, ::-1] if row.mirror else X[some]
    images = np.concatenate([*views, X[held]])
    one_hot = np.eye(10, dtype="float32")[labels]
    K.backend.clear_session()
    K.utils.set_random_seed(seed)
    model, cut = build(row)
    stored, frozen_pass = stored_outputs(
        row, model, cut, images, cache, speed())
    keep = KeepEpochs(path.replace(".json", ".npz"), **speed())
    history = transfer.train(
        K.Model(cut, model.output), stored, one_hot[some], one_hot[held],
        row.epochs, seed, keep, rate=row.learning_rate)
    frozen, total = transfer.convolutions(model)
    runs.write(path, {
        "row": name, "seed": seed, **row._asdict(),
        "frozen_convolutions": frozen, "convolutions": total,
        "val_accuracy": history[-1]["val_accuracy"],
        # An image that isn't mirrored went through twice, and the held-out
        # ones went through, too, which training needs not.
        "share_of_pass": (1 + row.mirror) * IMAGES / len(images),
        "frozen_pass": frozen_pass, "history": history,
        "machine": transfer.machine()})
    os.remove(keep.path)


def run(args):
    """All rows that aren't there yet."""
    # First what may be missing: --overwrite deletes the rows that are there.
    ((X, labels), _), model = transfer.cifar10_and_model(SPEED_SIZE)
    runs.start(args.out, "benchmarks/ablation.py", {
        "images": IMAGES, "held out": HELD_OUT,
        **{name: list(row) for name, row in ROWS.items()}}, args.overwrite)
    speed = Speed(model, X)
    for name, row in ROWS.items():
        for seed in range(row.seeds):
            path = os.path.join(args.out, f"{slug(name)}-{seed}.json")
            if not os.path.exists(path):
                print(f"{name}, seed {seed}", flush=True)
                train_row(name, seed, X, labels[:, 0], speed, path, args.cache)
    runs.finish(args.out)
    print(f"All rows are in {args.out}")


def slug(name):
    """A row's name as a file's."""
    return "-".join(name.replace(",", "").split())


def main():
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", metavar="DIR", default=os.path.join(
        ROOT, "results", "ablation"), help="(%(default)s)")
    add("--cache", metavar="DIR", default=transfer.cache_folder("ablation"),
        help="where the frozen outputs go, 3 GB (%(default)s)")
    add("--overwrite", action="store_true",
        help="replace a finished run, or another one, in --out")
    transfer.keep_memory()
    transfer.explain(run, parser.parse_args(), "mend this")


if __name__ == "__main__":
    main()
