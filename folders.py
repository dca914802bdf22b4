#!/usr/bin/env python3
"""What the scripts on folders of images share.

    parser, parse, start   the command line
    begin                  claims --out and makes the clean copy of the images
    load                   a saved model
    evaluate, metrics      how good a model's predictions are
    record                 writes down a training on the desserts
    predict                the command line's --predict, on a user's images
"""
import argparse
import os
import sys
import zipfile

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

import networks
import pictures
import report
import runs

transfer = networks.transfer
tf, K = transfer.tf, transfer.K  # imported there, without TensorFlow's log

MAX_SEED = 2 ** 31 - 1
MAX_SIZE = 1024  # pixels: a batch of larger images wouldn't fit into memory
MAX_COUNT = 1000  # of epochs and splits


def parser(script, description, size):
    """The options that all scripts on folders of images have.

    script: names the default of --out
    size: the default of --size
    """
    options = argparse.ArgumentParser(description=description)
    add = options.add_argument
    add("data", nargs="?", metavar="DATA", help="folder or zip of images")
    add("--out", metavar="DIR", default=os.path.join("runs", script),
        help="write everything into this folder (%(default)s)")
    add("--overwrite", action="store_true",
        help="delete a finished run, or another one, that is in --out")
    add("--predict", nargs="+", metavar="IMAGE", help="classify your own "
        "images with the best model in --out")
    add("--size", type=int, default=size, metavar="PIXELS",
        help="scale all images to this (%(default)s)")
    add("--seed", type=int, default=0)
    return options


def parse(options, smallest):
    """The command line, checked. smallest: the least --size"""
    args = options.parse_args()
    if args.data is None and not args.predict:
        options.error("DATA is missing: a folder or zip of images")
    for name, value in vars(args).items():
        option = "DATA" if name == "data" else "--" + name.replace("_", "-")
        least, most = {
            "seed": (0, MAX_SEED), "size": (smallest, MAX_SIZE)}.get(
                name, (1, MAX_COUNT))
        if type(value) is int and not least <= value <= most:  # no bool
            options.error(f"{option} is {value}, expected {least} to {most}")
        if isinstance(value, float) and not 0 < value <= 1:
            options.error(f"{option} is {value}, expected more than 0 and "
                          "at most 1")
        if value == "" or name == "predict" and "" in (value or ()):
            options.error(f"{option} is '', expected a path")
        if (name in ("out", "simple") and os.path.exists(value)
                and not os.path.isdir(value)):
            options.error(f"{option} is {value!r}, a file: expected a folder")
    for path in filter(os.path.isdir, args.predict or ()):
        options.error(f"--predict is {path!r}, a folder: expected images")
    try:
        if not args.predict:
            runs.check_folder("--out", args.out)
    except ValueError as error:
        options.error(str(error))
    return args


def start(options, run, smallest=1):
    """Read the command line; run, or predict if that is asked for."""
    transfer.keep_memory()
    args = parse(options, smallest)
    transfer.exit_with_message(
        predict if args.predict else run, args, "Fix this")


def begin(args, script, source, *names):
    """Claim args.out, make the clean copy and print what is in it.

    source: what pictures.find says about args.data
    names: the arguments that, beside the images, make a run the same run
    Returns: the clean Copy
    """
    if os.path.realpath(args.data).startswith(os.path.join(
            os.path.realpath(args.out), "")):
        raise OSError(f"{pictures.readable(args.data)} is inside --out "
                      f"{args.out}: choose another --out")
    runs.start(args.out, script, {
        "data": source.identity, **{name: getattr(args, name)
                                    for name in names}}, args.overwrite)
    copy = pictures.clean_copy(
        source, os.path.join(args.out, "pictures"), args.size)
    print(copy.describe())
    return copy


def load(path):
    """A saved model. Raises OSError if it can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # which Keras would overlook
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
        return K.models.load_model(path)
    except Exception as error:  # Keras raises many kinds
        raise OSError(f"{path} can't be read: {error}. Expected a model that "
                      "Keras saved") from error


def evaluate(model, copy):
    """The metrics of a model on the holdout images."""
    dataset = copy.dataset("holdout", model.input_shape[1],
                           transfer.INFERENCE_BATCH)
    paths = [os.path.relpath(path, copy.folder).replace(os.sep, "/")
             for path in dataset.file_paths]
    P = model.predict(transfer.without_autotune(dataset), verbose=0)
    return metrics(P, copy, paths)


def metrics(P, copy, paths):
    """How good predictions are.

    P: probabilities (m, classes)
    paths: of the images, in the copy
    Returns: a dict for JSON
        loss; accuracy, and its 95 % interval (Wilson)
        confusion: counts, a row for each true class
        answers: for each image its path in the copy, the path that it comes
            from, the true class, the predicted one, its probability
    """
    truth, predicted = copy.labels(paths), P.argmax(axis=1)
    correct = int((truth == predicted).sum())
    return {
        "loss": float(np.mean(K.losses.sparse_categorical_crossentropy(
            truth, P))),
        "accuracy": correct / len(P),
        "interval": list(binomtest(correct, len(P)).proportion_ci(
            method="wilson")),
        "confusion": confusion_matrix(
            truth, predicted, labels=range(len(copy.classes))).tolist(),
        "answers": list(zip(
            paths, [copy.source[path] for path in paths], truth.tolist(),
            predicted.tolist(), P.max(axis=1).tolist()))}


def record(out, name, model, copy, history, **more):
    """Evaluate a model on the desserts' holdout; write its record.

    name: of its files in the folder `out`
    more: what else the record says
    """
    runs.write(os.path.join(out, f"{name}.json"), {
        "exercise": "desserts", **more, "model": f"{name}.keras",
        "classes": copy.classes, "size": model.input_shape[1],
        "parameters": model.count_params(),
        "training_pictures": copy.count("train"), "history": history,
        "val_accuracy": max(epoch["val_accuracy"] for epoch in history),
        "evaluation": evaluate(model, copy), "machine": runs.machine()})


def predict(args):
    """Classify the user's own images, and exit.

    The model is the one in args.out that did best on its validation images.
    The exit status is 1 if one of the images can't be read, else 0.
    """
    records = [record for record in report.read(args.out)
               if isinstance(record.get("model"), str)
               and isinstance(record.get("val_accuracy"), float)
               and isinstance(record.get("classes"), list)]
    if not records:
        raise OSError(f"{args.out} has no model that predicts")
    best = max(records, key=lambda record: record["val_accuracy"])
    model = load(os.path.join(args.out, best["model"]))
    print(f"{best['model']}:")
    size, failed = model.input_shape[1], False
    for path in args.predict:
        try:
            image, _ = pictures.read_image(pictures.read_file(path), size)
        except Exception as error:  # Pillow raises many kinds
            failed = True
            print(pictures.readable(f"{path} can't be read: {error}"),
                  file=sys.stderr)
            continue
        x = tf.image.resize(np.asarray(image), (size, size))[None]
        p = model.predict_on_batch(x)[0]
        print(pictures.readable(f"{path}: {best['classes'][p.argmax()]}, "
                                f"{100 * p.max():.1f} %"))
    sys.exit(failed)
