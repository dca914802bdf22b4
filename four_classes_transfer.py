#!/usr/bin/env python3
"""Lab 8: feature extraction and fine-tuning on a few classes of pictures.

    ./four_classes_transfer.py data.zip

DATA is a zip or folder with a folder for each class. The base sees each
picture and its mirror image ONCE, which gives its features and what goes into
its last layers. Then, on the same training pictures:

    feature extraction: a new classifier is trained on the features
    fine-tuning: the base's last layers are trained together with that
        classifier, at a low rate

Both are asked for the same test pictures. --splits N does it again with N - 1
other splits, for a mean and a standard deviation. It takes about a minute on
two cores for 400 pictures and writes into --out the two models of the first
split, a record of each training, the stored outputs, a table and pictures. A
stopped run goes on after its last whole epoch.
"""
import os

import numpy as np
from sklearn.model_selection import train_test_split
from tensorflow import keras as K

import cifar100_transfer
import pictures
import report
import runs
import simple_cnn
import transfer_model

transfer = simple_cnn.transfer

SIZE = 224
SHARE = 0.15            # of the pictures to validate, and as many to test
LEAST = 5               # pictures in a class
COMPARED = 64           # test pictures on which a saved model is compared
TITLES = {"extraction": "feature extraction", "fine-tuning": "fine-tuning"}
EPOCHS = {"extraction": 30, "fine-tuning": 10}
RATES = {"extraction": 1e-3, "fine-tuning": 1e-4}


class Rows:
    """Some rows of stored outputs, under new numbers."""

    def __init__(self, stored, rows):
        """Row i is stored's row rows[i]."""
        self.stored, self.rows = stored, rows

    def __getitem__(self, numbers):
        """The rows with these numbers."""
        return self.stored[self.rows[numbers]]


def split(labels, seed):
    """Numbers of the pictures to train on, to validate and to test.

    labels: an array (m,) of classes; each part has its share of each
    Raises OSError if there are too few.
    """
    parts = [], [], []
    for pictures_of_it in (np.flatnonzero(labels == number)
                           for number in range(labels.max() + 1)):
        if len(pictures_of_it) < LEAST:
            raise OSError(f"A class of {len(pictures_of_it)} can't be split: "
                          f"expected at least {LEAST} in each")
        share = max(1, round(SHARE * len(pictures_of_it)))
        rest, test = train_test_split(
            pictures_of_it, test_size=share, random_state=seed)
        for part, some in zip(parts, (*train_test_split(
                rest, test_size=share, random_state=seed), test)):
            part.extend(some)
    return tuple(map(np.array, parts))


def build(args, classes):
    """The base with a new classifier, all else frozen."""
    model = transfer_model.create_transfer_model(
        (args.size, args.size, 3), classes,
        model=getattr(K.applications, args.base))
    transfer_model.warm_up(model)
    return model


def cuts(model, base):
    """Where a model is cut: what is below is frozen, what is above trained.

    Returns: {style: tensor}
    """
    return {"extraction": model.get_layer("head").input,
            "fine-tuning": transfer_model.first_unfrozen(model, base).input}


def frozen_pass(args, copy):
    """Both views of all pictures through the base, once.

    Returns: {style: StoredOutputs, what its cut puts out}, and the seconds
    """
    model = build(args, len(copy.classes))
    at = cuts(model, args.base)
    print(f"{args.base}: {copy.count(pictures.WHOLE):,} pictures, each as it "
          "is and mirrored")
    stored, record = cifar100_transfer.timed_pass(
        K.Model(model.input, list(at.values())),
        pictures.Views(copy, args.size), os.path.join(args.out, "outputs"))
    return dict(zip(at, stored)), record["seconds"]


def train_split(args, copy, stored, seconds, number):
    """Feature extraction and then fine-tuning, on one split."""
    seed = args.seed + number
    paths = np.array(list(copy.source))
    labels = copy.labels(paths)
    train, validation, test = split(labels, seed)
    # In the order in which transfer.train takes them, and then to test
    rows = np.concatenate([train, train + len(labels), validation, test])
    one_hot = np.eye(len(copy.classes), dtype="float32")[labels]
    K.utils.set_random_seed(seed)
    model = build(args, len(copy.classes))
    for style, cut in cuts(model, args.base).items():
        name = f"split-{number}-{style}"
        part = K.Model(cut, model.output)
        print(f"Split {number + 1} of {args.splits}: {style}")
        if style == "fine-tuning":
            transfer_model.unfreeze(model, args.base)
        outputs = Rows(stored[style], rows)
        keep = transfer.KeepEpochs(os.path.join(args.out, f"{name}.npz"))
        history = transfer.train(
            part, outputs, one_hot[train], one_hot[validation],
            EPOCHS[style], seed, keep, rate=RATES[style])
        P = part.predict(transfer.in_order(
            part, outputs, len(rows) - len(test), one_hot[test]), verbose=0)
        more = {}
        if number == 0:
            more["model"] = f"{name}.keras"
            views = pictures.Views(copy, args.size)
            cifar100_transfer.save_model(
                model, os.path.join(args.out, more["model"]),
                np.stack([views.read(i) for i in test[:COMPARED]]),
                P[:COMPARED])
        runs.write(os.path.join(args.out, f"{name}.json"), {
            "exercise": "four classes", "title": TITLES[style],
            "split": number, "base": args.base, "size": args.size,
            "classes": copy.classes,
            "pictures": list(map(len, (train, validation, test))),
            "pass_seconds": seconds, "history": history, **more,
            "val_accuracy": history[-1]["val_accuracy"],
            "evaluation": simple_cnn.figures(P, copy, paths[test]),
            "machine": transfer.machine()})


def run(args):
    """All splits."""
    found = pictures.find(args.data, splits=False)
    build(args, 2)  # or say at once that weights are missing
    copy = simple_cnn.begin(args, "four_classes_transfer.py", found, "base",
                            "size", "splits", "seed")
    split(copy.labels(copy.source), args.seed)  # or say at once why not
    todo = [number for number in range(args.splits) if not all(
        runs.read_json(os.path.join(args.out, f"split-{number}-{style}.json"))
        for style in EPOCHS)]
    if todo:
        stored, seconds = frozen_pass(args, copy)
    for number in todo:
        train_split(args, copy, stored, seconds, number)
        K.backend.clear_session()
    text = report.report(args.out)
    runs.finish(args.out)
    print(f"{text}\n\nThe stored outputs in {args.out}/outputs may be "
          "deleted now.")


def main():
    """Read the command line, and run."""
    options = simple_cnn.parser(
        "four_classes_transfer", "Feature extraction and fine-tuning on a "
        "few classes of pictures.", size=SIZE)
    add = options.add_argument
    add("--base", choices=transfer_model.UNFROZEN, default="MobileNetV2",
        metavar="BASE", help=f"from {', '.join(transfer_model.UNFROZEN)} "
        "(%(default)s)")
    add("--splits", type=int, default=1, metavar="N",
        help="do it on N splits (%(default)s)")
    simple_cnn.start(options, run, smallest=32)


if __name__ == "__main__":
    main()
