#!/usr/bin/env python3
"""Use CIFAR-10's recipe, unchanged, on the data of the other exercises.

    benchmarks/travel.py --desserts DATA --four-classes DATA

The recipe is that of 0-transfer.py: EfficientNetV2-B0 at 128 pixels, frozen up
to block 5c, mirror images, BatchNorm's momentum of 0.9, AdamW from 0.001, four
epochs. Nothing is chosen for the new data. It is tested on the same images as
the exercise's own script, with three seeds. The four classes have ten seeds,
each with a split of its own, the script's.

It writes a JSON file for each data set and seed into --out. It takes one to
three hours on two cores, most of it for CIFAR-100, and 2 GB of disk. A stopped
run continues where it was.
"""
import argparse
import collections
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
import choices  # noqa: E402
import cifar100_transfer  # noqa: E402
import four_classes_transfer  # noqa: E402
import networks  # noqa: E402
import pictures  # noqa: E402
import runs  # noqa: E402

transfer = networks.transfer
K = transfer.K

SEEDS = {"cifar100": 3, "desserts": 3, "four_classes": 10}
RECIPE = choices.UPPER._replace(epochs=transfer.EPOCHS)
# images: anything with len and slices, RGB in 0..255, mirror images included
# labels: int (rows,); classes: how many
# train: rows of images, mirror images not included; test: rows
# mirror: how many rows after an image its mirror image comes
Data = collections.namedtuple(
    "Data", "images labels classes train test mirror")


def cifar100(args, seed):
    """Read CIFAR-100's images, all seeds the same."""
    data = cifar100_transfer.Images(None)
    return Data(data.images, data.Y.argmax(axis=1), 100, data.rows["train"],
                data.rows["test"], len(data.rows["train"]))


def clean_copy(path, args, splits):
    """Copy a data set's images, checked, at the recipe's size."""
    source = pictures.find(path, splits=splits)
    return pictures.clean_copy(
        source, os.path.join(args.cache, source.identity), RECIPE.size)


def desserts(args, seed):
    """Read the desserts, all seeds the same."""
    copy = clean_copy(args.desserts, args, True)
    split = np.array([path.split("/")[0] for path in copy.source])
    return of_copy(copy, *map(np.flatnonzero, (
        split == "train", split == "holdout")))


def four_classes(args, seed):
    """Read the four classes; each seed has its split."""
    copy = clean_copy(args.four_classes, args, False)
    train, _, test = four_classes_transfer.split(
        copy.labels(list(copy.source)), seed)
    return of_copy(copy, train, test)


def of_copy(copy, train, test):
    """Take the images of a clean copy."""
    labels = copy.labels(list(copy.source))
    return Data(pictures.Views(copy, RECIPE.size), np.tile(labels, 2),
                len(copy.classes), train, test, len(labels))


DATA_SETS = {"cifar100": cifar100, "desserts": desserts,
             "four_classes": four_classes}


def build(data):
    """Build 0-transfer.py's network for other images and classes.

    Returns: a K.Model (m, height, width, 3) in 0..255 -> (m, classes)
    """
    model, _ = choices.build(
        RECIPE, data.images.shape[1:], data.classes, scaled=False)
    return model


def train(name, seed, args):
    """Train on a data set with a seed, test, and write the record."""
    data = DATA_SETS[name](args, seed)
    K.backend.clear_session()
    K.utils.set_random_seed(seed)
    model = build(data)
    cut = model.get_layer(RECIPE.cut).output
    stored, = transfer.frozen_outputs(
        K.Model(model.input, cut), data.images, args.cache, np.float32)
    Y = np.eye(data.classes, dtype="float32")[data.labels]
    top = K.Model(cut, model.output)
    path = os.path.join(args.out, f"{name}-{seed}.json")
    checkpoint = transfer.Checkpoint(path.replace(".json", ".npz"))
    history = transfer.train(
        top, stored, Y, np.stack([data.train, data.train + data.mirror]),
        np.arange(0), RECIPE.epochs, seed, checkpoint, batch=transfer.BATCH,
        learning_rate=RECIPE.learning_rate,
        weight_decay=transfer.WEIGHT_DECAY,
        label_smoothing=transfer.LABEL_SMOOTHING)
    _, accuracy = top.evaluate(transfer.batches(
        top, stored, data.test, Y, transfer.BATCH), verbose=0)
    runs.write(path, {
        "data": name, "seed": seed, **RECIPE._asdict(),
        "images": len(data.train), "test_images": len(data.test),
        "test_accuracy": accuracy, "history": history,
        "frozen_pass": networks.pass_record(stored),
        "machine": runs.machine()})
    os.remove(checkpoint.path)
    print(f"{name}, seed {seed}: test accuracy {accuracy:.4f}", flush=True)


def run(args):
    """All that isn't recorded yet."""
    runs.start(args.out, "benchmarks/travel.py", {
        "seeds": SEEDS, "recipe": list(RECIPE), **{
            name: pictures.find(getattr(args, name), splits=name == "desserts"
                                ).identity
            for name in ("desserts", "four_classes")}}, args.overwrite)
    os.makedirs(args.cache, exist_ok=True)
    lock = transfer.wait_for_others(args.cache)
    for name in reversed(DATA_SETS):  # the longest one last
        for seed in range(SEEDS[name]):
            if not os.path.exists(os.path.join(
                    args.out, f"{name}-{seed}.json")):
                train(name, seed, args)
    lock.close()
    runs.finish(args.out)
    print(f"All results are in {args.out}")


def main():
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option in "--desserts", "--four-classes":
        parser.add_argument(option, metavar="DATA", required=True,
                            help="folder or zip of images")
    choices.start(parser, run, "travel", "images and frozen outputs, 2 GB")


if __name__ == "__main__":
    main()
