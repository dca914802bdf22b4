#!/usr/bin/env python3
"""Desserts, parts 1 and 2: a small convolutional network from scratch.

    ./simple_cnn.py DATA

DATA is a folder or zip with train, validation and holdout, in each of them a
folder for each class. The network learns from the training pictures; the
epoch that is best on the validation pictures is kept, and evaluated once on
the holdout. It takes some 15 minutes on two cores for 4,200 pictures and
writes into --out: the model (simple.keras), its record (simple.json), logs
for TensorBoard, a table and pictures. A stopped run goes on after its last
whole epoch.
"""
import argparse
import glob
import os
import shlex
import sys

import numpy as np
import tensorflow as tf
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from tensorflow import keras as K

import pictures
import report
import runs

transfer = __import__("0-transfer")

SIZE = 100              # pixels, as the exercise has it; any will do
BATCH = 16
EPOCHS = 40
LEARNING_RATE = 1e-3    # of Adam; falls to 0 along a cosine
DROPOUT = 0.3
MOST = 2 ** 31 - 1      # of what the command line takes


def create_model(input_size, n_categories):
    """A small convolutional network.

    input_size: (height, width, 3)
    n_categories: how many classes
    Returns: a K.Model, RGB pictures in 0..255 -> (m, n_categories)
    """
    model = K.Sequential([
        K.Input(input_size),
        # What Xception's preprocess_input does, kept with the model
        K.layers.Rescaling(1 / 127.5, offset=-1)])
    for filters in 16, 32, 64, 128, 256:
        model.add(K.layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(K.layers.BatchNormalization(momentum=transfer.MOMENTUM))
        model.add(K.layers.ReLU())
        # "same": a picture of a few pixels isn't pooled to nothing
        model.add(K.layers.MaxPooling2D(padding="same"))
    model.add(K.layers.GlobalAveragePooling2D())
    model.add(K.layers.Dropout(DROPOUT))
    model.add(K.layers.Dense(n_categories, activation="softmax"))
    return model


def augmentation():
    """What makes other pictures of training pictures, in 0..255."""
    return K.Sequential([
        K.layers.RandomFlip("horizontal"),
        K.layers.RandomRotation(0.05),
        K.layers.RandomTranslation(0.1, 0.1),
        K.layers.RandomZoom((-0.2, 0.1))])


def train(model, copy, args, epochs, name, phase="training", before=()):
    """Train, and load the epoch that was best on the validation pictures.

    model: compiled, pictures -> classes
    copy: the clean Copy of the pictures
    name: of the model's files under args.out
    phase, before: where a model is trained in two, this one's name and the
        history before it, whose best epoch counts as well
    Returns: the best model, and the history, a list with a dict an epoch
    """
    best = os.path.join(args.out, f"{name}.keras")
    size, augment = model.input_shape[1], augmentation()
    keep = transfer.KeepEpochs(
        os.path.join(args.out, f"{name}-{phase}.npz"), phase=phase)
    keep.set_model(model)
    keep.restore()
    print(f"{name}, {phase}" + (f": going on after epoch {len(keep.history)}"
                                if keep.history else ""))
    logs = os.path.join(args.out, "logs")
    print(f"To watch it: tensorboard --logdir {shlex.quote(logs)}")

    checkpoint = os.path.join(
        args.out.replace("{", "{{").replace("}", "}}"),
        f"{name}-{phase}-{{epoch}}.keras")

    def best_so_far():
        """The checkpoint of the best epoch of both phases."""
        values = [epoch["val_accuracy"] for epoch in [*before, *keep.history]]
        return checkpoint.format(epoch=1 + values.index(max(values))
                                 - len(before))

    def tidy(epoch, logs=None):
        """Only the best epoch's checkpoint stays."""
        for path in glob.glob(os.path.join(
                glob.escape(args.out), f"{name}-{phase}-*.keras")):
            if path != best_so_far():
                os.remove(path)

    model.fit(
        transfer.without_autotune(
            copy.dataset("train", size, BATCH, args.seed).map(
                lambda x, y: (augment(x, training=True), y),
                num_parallel_calls=2).prefetch(2)),
        validation_data=transfer.without_autotune(
            copy.dataset("validation", size, BATCH)),
        epochs=epochs, initial_epoch=len(keep.history),
        verbose=transfer.bar_or_lines(), callbacks=[
            K.callbacks.TensorBoard(os.path.join(logs, name, phase)),
            K.callbacks.ModelCheckpoint(
                checkpoint, monitor="val_accuracy", mode="max",
                save_best_only=True, initial_value_threshold=max(
                    (epoch["val_accuracy"]
                     for epoch in [*before, *keep.history]), default=None)),
            keep,  # after it: an epoch is done once it is checkpointed
            K.callbacks.LambdaCallback(on_epoch_end=tidy)])
    if os.path.exists(best_so_far()):
        os.replace(best_so_far(), best)
    return load(best), [*before, *keep.history]


def load(path):
    """A saved model. Raises OSError if it can't be read."""
    try:
        return K.models.load_model(path)
    except Exception as error:  # Keras raises many
        raise OSError(f"{path} can't be read: {error}") from error


def evaluate(model, copy):
    """How good a model is on the holdout's pictures: see `figures`."""
    dataset = copy.dataset("holdout", model.input_shape[1], BATCH)
    paths = [os.path.relpath(path, copy.folder).replace(os.sep, "/")
             for path in dataset.file_paths]
    return figures(model.predict(transfer.without_autotune(dataset),
                                 verbose=0), copy, paths)


def figures(P, copy, paths):
    """How good predictions are.

    P: probabilities (m, classes)
    paths: of the pictures, in the copy
    Returns: a dict for JSON
        loss; accuracy, and its 95 % interval, by Wilson
        confusion: counts, a row for each true class
        answers: for each picture its path in the copy, the path where it
            comes from, the true class, the predicted one, its probability
    """
    truth, answer = copy.labels(paths), P.argmax(axis=1)
    correct = int((truth == answer).sum())
    return {
        "loss": float(np.mean(K.losses.sparse_categorical_crossentropy(
            truth, P))),
        "accuracy": correct / len(P),
        "interval": list(binomtest(correct, len(P)).proportion_ci(
            method="wilson")),
        "confusion": confusion_matrix(
            truth, answer, labels=range(len(copy.classes))).tolist(),
        "answers": list(zip(
            paths, [copy.source[path] for path in paths], truth.tolist(),
            answer.tolist(), P.max(axis=1).tolist()))}


def predict(args):
    """Say what is on pictures of one's own, and exit.

    Of the models in args.out, the best on its validation pictures does it.
    The exit status is 1 if one of the pictures can't be read, else 0.
    """
    records = [record for record in report.read(args.out)
               if "model" in record]
    if not records:
        raise OSError(f"{args.out} has no model that predicts")
    record = max(records, key=lambda record: record["val_accuracy"])
    model = load(os.path.join(args.out, record["model"]))
    print(f"{record['model']}:")
    size, failed = model.input_shape[1], False
    for path in args.predict:
        try:
            with open(path, "rb") as file:
                picture, _ = pictures.read_picture(file.read(), size)
        except Exception as error:  # Pillow has no class for all of them
            failed = True
            print(f"{path} can't be read: {error}", file=sys.stderr)
            continue
        x = tf.image.resize(np.asarray(picture), (size, size))[None]
        p = model.predict_on_batch(x)[0]
        print(f"{path}: {record['classes'][p.argmax()]}, "
              f"{100 * p.max():.1f} %")
    sys.exit(failed)


def parser(script, description, **defaults):
    """The options that all scripts on folders of pictures have."""
    found = argparse.ArgumentParser(description=description)
    add = found.add_argument
    add("data", nargs="?", metavar="DATA", help="folder or zip of pictures")
    add("--out", metavar="DIR", default=os.path.join("runs", script),
        help="where everything is written (%(default)s)")
    add("--overwrite", action="store_true",
        help="delete another run, or a finished one, that is in --out")
    add("--predict", nargs="+", metavar="PICTURE", help="say what is on "
        "pictures of one's own, with the model in --out")
    add("--size", type=int, default=SIZE, metavar="PIXELS",
        help="to which all pictures are scaled (%(default)s)")
    add("--seed", type=int, default=0)
    found.set_defaults(**defaults)
    return found


def parse(options, smallest):
    """The command line, checked. smallest: the least --size"""
    args = options.parse_args()
    if not args.data and not args.predict:
        options.error("DATA is missing: a folder or zip of pictures")
    for name, value in vars(args).items():
        option = "--" + name.replace("_", "-")
        least = {"seed": 0, "overwrite": 0, "size": smallest}.get(name, 1)
        if isinstance(value, int) and not least <= value <= MOST:
            options.error(f"{option} is {value}, expected {least} to {MOST}")
        if isinstance(value, float) and not 0 < value <= 1:
            options.error(f"{option} is {value}, expected more than 0 and "
                          "at most 1")
    return args


def start(options, run, smallest=1):
    """Read the command line; predict if it asks for that, else run."""
    transfer.keep_memory()
    args = parse(options, smallest)
    transfer.explain(predict if args.predict else run, args, "mend this")


def begin(args, script, found, *names):
    """Claim args.out, make the clean copy and say what is in it.

    found: what pictures.find found in args.data
    names: the arguments, beside the pictures, that two runs must have in
        common to be the same
    Returns: the clean Copy
    """
    if os.path.realpath(args.data).startswith(os.path.join(
            os.path.realpath(args.out), "")):
        raise OSError(f"{args.data} is inside of --out {args.out}: choose "
                      "another --out")
    runs.start(args.out, script, {
        "data": found.identity, **{name: getattr(args, name)
                                   for name in names}}, args.overwrite)
    copy = pictures.clean_copy(
        found, os.path.join(args.out, "pictures"), args.size)
    print(copy.describe())
    return copy


def run(args):
    """Parts 1 and 2."""
    copy = begin(args, "simple_cnn.py", pictures.find(args.data), "size",
                 "epochs", "rate", "seed")
    K.utils.set_random_seed(args.seed)
    model = create_model((args.size, args.size, 3), len(copy.classes))
    steps = -(-copy.count("train") // BATCH)
    model.compile(
        K.optimizers.Adam(K.optimizers.schedules.CosineDecay(
            args.rate, args.epochs * steps)),
        "categorical_crossentropy", metrics=["accuracy"])
    model, history = train(model, copy, args, args.epochs, "simple")
    record(args.out, "simple", model, copy, history, title="simple network")
    text = report.report(args.out)
    runs.finish(args.out)
    print(text)


def record(out, name, model, copy, history, **more):
    """Evaluate a trained model on the holdout; write all down."""
    runs.write(os.path.join(out, f"{name}.json"), {
        "exercise": "desserts", **more, "model": f"{name}.keras",
        "classes": copy.classes, "size": model.input_shape[1],
        "parameters": model.count_params(),
        "training_pictures": copy.count("train"), "history": history,
        "val_accuracy": max(epoch["val_accuracy"] for epoch in history),
        "evaluation": evaluate(model, copy), "machine": transfer.machine()})


def main():
    """Read the command line, and run."""
    options = parser("simple_cnn", "Train a small convolutional network on "
                     "a folder of pictures.")
    add = options.add_argument
    add("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    add("--rate", type=float, default=LEARNING_RATE,
        help="learning rate (%(default)s)")
    start(options, run)


if __name__ == "__main__":
    main()
