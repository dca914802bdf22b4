#!/usr/bin/env python3
"""Measure what each choice is worth, one at a time, on MobileNetV2.

    benchmarks/ablation.py --out runs/ablation

Everything else is as in 0-transfer.py. Each row is trained on 10,000 of
CIFAR-10's training images and validated on 5,000 others; the test images are
not used. Some rows are trained with three seeds, the others with one (see
ROWS).

Before each frozen pass and each training, the throughput of Keras's predict is
measured on 1,000 images through the whole base at 128 pixels. The cost of a
row is given in such passes over its 10,000 images, at the median throughput of
its process.

It writes a JSON file for each row and seed into --out; those that the paper
shows are in results/ablation. It takes an hour and a half on two cores, 6 GiB
of memory and 3 GB of disk. A stopped run continues where it was.
"""
import argparse
import collections
import os
import sys
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
import choices  # noqa: E402
import mobilenetv2  # noqa: E402
import networks  # noqa: E402
import runs  # noqa: E402

transfer = networks.transfer
K = transfer.K
Checkpoint, slug = choices.Checkpoint, choices.slug

IMAGES = 10000
VALIDATION_IMAGES = 5000
THROUGHPUT_IMAGES = 1000
THROUGHPUT_TIMES = 2    # whose mean counts
THROUGHPUT_SIZE = 128   # pixels, whatever the size of the row
# seeds: how many
# cut: the last frozen layer ("average": the whole base is frozen), or None if
#     nothing is frozen
# mirror: whether mirror images are trained on, too
# hidden: units of a hidden layer, or 0
# momentum: of BatchNorm above the cut, or None if it is frozen
# storage: the type of the frozen outputs
# What a row doesn't name is as in 0-transfer.py.
Row = collections.namedtuple(
    "Row", "seeds size cut epochs mirror hidden momentum learning_rate "
    "weights storage")
UPPER = Row(3, 128, mobilenetv2.CUT, 3, True, 0, networks.MOMENTUM,
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


def build(row):
    """The network with a row's changes.

    Returns: the model; the tensor at the cut, or the images without a cut
    """
    model = mobilenetv2.build_model(row.size, weights=row.weights)
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


class Throughput:
    """Images per second of Keras's predict through the whole base."""

    def __init__(self, model, images):
        """Begin; the time names this process.

        model: the network; images: CIFAR-10's, uint8 (m, 32, 32, 3)
        """
        self.base = K.Model(model.input, model.get_layer("average").output)
        self.images = transfer.scale(images[:THROUGHPUT_IMAGES])
        self.process = time.strftime("%Y-%m-%d %H:%M:%S")

    def __call__(self):
        """Measure it now. Returns: a dict, for a record"""
        return {"process": self.process, "predict_images_per_second": float(
            np.mean([networks.predict_throughput(self.base, self.images)
                     for _ in range(THROUGHPUT_TIMES)]))}


def stored_outputs(row, model, cut, images, cache, throughput):
    """The inputs of the trained part, and the record of the frozen pass.

    throughput: what a Throughput says now
    Returns: stored, as transfer.train takes it; the record, as from
        networks.pass_record, of an earlier row if that had the same cut
    """
    if row.cut is None:
        return transfer.scale(images), {"seconds": 0.0, **throughput}
    frozen = K.Model(model.input, cut)
    stored, = transfer.frozen_outputs(
        frozen, images, cache, transfer.scale, **throughput)
    record = networks.pass_record(stored)
    if row.storage == "float32":
        # In memory: this row shows the effect of rounding, not of disks.
        stored = frozen.predict(transfer.scale(images), verbose=0)
    return stored, record


def train_row(name, seed, X, labels, throughput, path, cache):
    """Train a row with a seed, and write its record.

    X: CIFAR-10's training images, uint8 (m, 32, 32, 3); labels: (m,)
    throughput: a Throughput
    path: of the record; cache: the folder of frozen outputs
    """
    row = ROWS[name]
    order = transfer.stratified_order(labels, 0)[:VALIDATION_IMAGES + IMAGES]
    validation, train = np.split(order, [VALIDATION_IMAGES])
    # Without mirror images, the image itself stands for its mirror image.
    images = np.concatenate([
        X[train], X[train][:, :, ::-1] if row.mirror else X[train],
        X[validation]])
    Y = np.eye(10, dtype="float32")[labels[
        np.concatenate([train, train, validation])]]
    views, validation_rows = np.split(np.arange(len(Y)), [2 * IMAGES])
    K.backend.clear_session()
    K.utils.set_random_seed(seed)
    model, cut = build(row)
    stored, frozen_pass = stored_outputs(
        row, model, cut, images, cache, throughput())
    checkpoint = Checkpoint(path.replace(".json", ".npz"), **throughput())
    history = transfer.train(
        K.Model(cut, model.output), stored, Y, views.reshape(2, -1),
        validation_rows, row.epochs, seed, checkpoint, batch=transfer.BATCH,
        learning_rate=row.learning_rate, weight_decay=transfer.WEIGHT_DECAY,
        label_smoothing=transfer.LABEL_SMOOTHING)
    frozen, total = transfer.convolutions(model)
    runs.write(path, {
        "row": name, "seed": seed, **row._asdict(),
        "frozen_convolutions": frozen, "convolutions": total,
        "val_accuracy": history[-1]["val_accuracy"],
        # Training needs neither the validation images nor the second pass of
        # images that aren't mirrored.
        "share_of_pass": (1 + row.mirror) * IMAGES / len(images),
        "frozen_pass": frozen_pass, "history": history,
        "machine": runs.machine()})
    os.remove(checkpoint.path)


def run(args):
    """All rows that aren't recorded yet."""
    # This may fail, so it comes before --overwrite deletes anything.
    ((X, labels), _), model = mobilenetv2.images_and_model(
        THROUGHPUT_SIZE)
    runs.start(args.out, "benchmarks/ablation.py", {
        "images": IMAGES, "held out": VALIDATION_IMAGES,
        **{name: list(row) for name, row in ROWS.items()}}, args.overwrite)
    os.makedirs(args.cache, exist_ok=True)
    lock = transfer.wait_for_others(args.cache)
    throughput = Throughput(model, X)
    for name, row in ROWS.items():
        for seed in range(row.seeds):
            path = os.path.join(args.out, f"{slug(name)}-{seed}.json")
            if not os.path.exists(path):
                print(f"{name}, seed {seed}", flush=True)
                train_row(name, seed, X, labels[:, 0], throughput, path,
                          args.cache)
    lock.close()
    runs.finish(args.out)
    print(f"All rows are in {args.out}")


def main():
    """Read the command line, and run."""
    choices.start(
        argparse.ArgumentParser(description=__doc__.split("\n")[0]), run,
        "ablation", "frozen outputs, 3 GB")


if __name__ == "__main__":
    main()
