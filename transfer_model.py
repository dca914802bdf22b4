#!/usr/bin/env python3
"""Desserts, part 3: Xception, or another base, with a new head.

    ./transfer_model.py DATA --base MobileNetV2

DATA is as for simple_cnn.py. First the new head alone is trained (warm-up),
then the base's 14th block onward as well, at a lower rate. The best epoch on
the validation pictures is kept and compared with simple_cnn.py's network on
the same holdout. Several bases or optimizers make one table. It writes into
--out a model and its record for each, logs for TensorBoard, a table and
pictures. A stopped run goes on after its last whole epoch. On two cores,
MobileNetV2 takes some 10 minutes for 4,200 pictures, Xception several times
as long.
"""
import itertools
import os
import shlex

from scipy.stats import binomtest
from tensorflow import keras as K

import cifar100_transfer
import pictures
import report
import runs
import simple_cnn

transfer = simple_cnn.transfer

SIZE = 160
# Of a base, what is trained after the warm-up: the layers from the first
# whose name begins so. Xception's 14th block is its last; in the others it is
# what is about as far up.
UNFROZEN = {"Xception": "block14", "MobileNetV2": "block_14",
            "DenseNet121": "conv5"}
OPTIMIZERS = {"adam": K.optimizers.Adam, "rmsprop": K.optimizers.RMSprop,
              "sgd": K.optimizers.SGD}
WARM_UP = 3             # epochs
WARM_UP_SLOWER = 2      # times than the optimizer's default rate
FINE = 10
FINE_SLOWER = 5


def create_transfer_model(input_size, n_categories, weights="imagenet",
                          model=K.applications.Xception):
    """A base with a new head.

    input_size: (height, width, 3)
    n_categories: how many classes
    weights: "imagenet", downloaded if need be, or None (random)
    model: one of K.applications, by its name in UNFROZEN
    Returns: a flat K.Model, RGB pictures in 0..255 -> (m, n_categories)
    """
    base = cifar100_transfer.BASES[model.__name__]
    images = K.Input(input_size, name="images")
    # What the base's own preprocess_input does, kept with the model
    x = K.layers.Normalization(mean=base.mean, variance=[
        std ** 2 for std in base.std], name="preprocess")(images)
    x = cifar100_transfer.application(
        model.__name__, x, weights, "" if model.__name__ == "MobileNetV2"
        else ", or choose --base MobileNetV2").output
    x = K.layers.GlobalAveragePooling2D(name="features")(x)
    # Of features that few pictures have, little is learned: what random
    # weights say of them would stay.
    return K.Model(images, K.layers.Dense(
        n_categories, activation="softmax", kernel_initializer="zeros",
        name="head")(x))


def warm_up(model):
    """Freeze everything but the head."""
    for layer in model.layers:
        layer.trainable = layer.name == "head"


def first_unfrozen(model, base):
    """The lowest layer of a base that is trained after the warm-up."""
    return next(layer for layer in model.layers
                if layer.name.startswith(UNFROZEN[base]))


def unfreeze(model, base):
    """Train the base's last layers as well as the head.

    But not BatchNorm: trained on batches of 16 pictures, its averages would
    be those of too few.
    """
    first = model.layers.index(first_unfrozen(model, base))
    for layer in model.layers[first:]:
        layer.trainable = not isinstance(
            layer, K.layers.BatchNormalization)


def compile_slowly(model, optimizer, rate, slower, steps):
    """Compile with label smoothing and a rate that falls to 0 in these steps.

    rate: where it begins; None: so many times below the optimizer's default
    """
    make = OPTIMIZERS[optimizer]
    rate = rate or float(make().learning_rate) / slower
    model.compile(
        make(K.optimizers.schedules.CosineDecay(rate, steps)),
        K.losses.CategoricalCrossentropy(
            label_smoothing=transfer.LABEL_SMOOTHING), metrics=["accuracy"])


def train_both_phases(args, copy, base, optimizer, name):
    """Warm-up, then the 14th block onward: a model and its record."""
    steps = -(-copy.count("train") // simple_cnn.BATCH)
    K.utils.set_random_seed(args.seed)
    model = create_transfer_model(
        (args.size, args.size, 3), len(copy.classes),
        model=getattr(K.applications, base))
    warm_up(model)
    compile_slowly(model, optimizer, args.warm_up_rate, WARM_UP_SLOWER,
                   steps * args.warm_up)
    model, history = simple_cnn.train(
        model, copy, args, args.warm_up, name, "warm-up")
    unfreeze(model, base)
    compile_slowly(model, optimizer, args.fine_rate, FINE_SLOWER,
                   steps * args.fine)
    model, history = simple_cnn.train(
        model, copy, args, args.fine, name, "fine-tuning", history)
    simple_cnn.record(
        args.out, name, model, copy, history, title=f"{base}, {optimizer}",
        base=base, optimizer=optimizer)


def compare(better, worse):
    """Whether one of two models is right more often on the same pictures.

    better, worse: what simple_cnn.evaluate gave
    Returns: a dict: pictures on which only this or only the other is right,
        and the p of McNemar's exact test (Psychometrika 12, 1947)
    """
    def right(evaluation):
        """By picture, whether the answer is right."""
        return {source: truth == answer for _, source, truth, answer, _
                in evaluation["answers"]}

    ours, theirs = right(better), right(worse)
    only_ours = sum(ours[picture] > theirs[picture] for picture in ours)
    only_theirs = sum(ours[picture] < theirs[picture] for picture in ours)
    p = binomtest(only_ours, only_ours + only_theirs).pvalue if (
        only_ours + only_theirs) else 1.0
    return {"only_this_right": only_ours, "only_other_right": only_theirs,
            "p": float(p)}


def find_simple(folder, found):
    """The record of simple_cnn.py's network; None if there is none.

    Raises OSError if it learned from other pictures: some of the holdout's
    may have been among them.
    """
    record = runs.read_json(os.path.join(folder, "simple.json"))
    if not record:
        return None
    run = runs.read_json(os.path.join(folder, "run.json")) or {}
    data = run.get("arguments", {}).get("data")
    if run.get("script") != "simple_cnn.py" or data != found.identity:
        raise OSError(
            f"{folder} has a run of {run.get('script')} on {data}, expected "
            f"simple_cnn.py on {found.identity}: choose another --simple")
    simple_cnn.load(os.path.join(folder, record["model"]))
    return record


def evaluate_simple(args, found, copy, simple):
    """Evaluate simple_cnn.py's network on the same holdout.

    Its pictures are copied at its own size, as it learned from them.
    simple: its record
    Returns: its record with this evaluation, which args.out gets as well
    """
    if simple["size"] != args.size:
        copy = pictures.clean_copy(
            found._replace(files={"holdout": found.files["holdout"]}),
            os.path.join(args.out, f"pictures-{simple['size']}"),
            simple["size"])
    model = simple_cnn.load(os.path.join(args.simple, simple.pop("model")))
    simple["evaluation"] = simple_cnn.evaluate(model, copy)
    runs.write(os.path.join(args.out, "simple.json"), simple)
    return simple


def run(args):
    """Part 3."""
    found = pictures.find(args.data)
    simple = find_simple(args.simple, found)
    for base in args.base:  # or say at once that weights are missing
        create_transfer_model((args.size, args.size, 3), len(found.classes),
                              model=getattr(K.applications, base))
    copy = simple_cnn.begin(
        args, "transfer_model.py", found, "base", "optimizer", "size",
        "warm_up", "warm_up_rate", "fine", "fine_rate", "seed")
    records = {}
    for base, optimizer in itertools.product(args.base, args.optimizer):
        name = f"{base}-{optimizer}"
        path = os.path.join(args.out, f"{name}.json")
        if not runs.read_json(path):
            train_both_phases(args, copy, base, optimizer, name)
        K.backend.clear_session()
        records[path] = runs.read_json(path)
    if simple:
        simple = evaluate_simple(args, found, copy, simple)
        for path, record in records.items():
            record["against_simple"] = compare(
                record["evaluation"], simple["evaluation"])
            runs.write(path, record)
    text = report.report(args.out)
    if simple:
        runs.finish(args.out)
    else:
        text += ("\n\nIs it better than the simple network? That isn't there "
                 f"yet: ./simple_cnn.py {shlex.quote(args.data)} --out "
                 f"{shlex.quote(args.simple)}\nand then this command again.")
    print(text)


def main():
    """Read the command line, and run."""
    options = simple_cnn.parser(
        "transfer_model", "Put a new head on a network that knows ImageNet, "
        "train both on a folder of pictures, and compare.", size=SIZE)
    add = options.add_argument
    add("--base", nargs="+", choices=UNFROZEN, default=["Xception"],
        metavar="BASE", help=f"from {', '.join(UNFROZEN)} (Xception)")
    add("--optimizer", nargs="+", choices=OPTIMIZERS, default=["adam"],
        metavar="OPTIMIZER", help=f"from {', '.join(OPTIMIZERS)} (adam)")
    add("--warm-up", type=int, default=WARM_UP, metavar="EPOCHS",
        help="in which the head alone is trained (%(default)s)")
    add("--warm-up-rate", type=float, metavar="RATE", help="learning rate "
        f"(the optimizer's default / {WARM_UP_SLOWER})")
    add("--fine", type=int, default=FINE, metavar="EPOCHS",
        help="in which the 14th block onward is trained, too (%(default)s)")
    add("--fine-rate", type=float, metavar="RATE", help="learning rate "
        f"(the optimizer's default / {FINE_SLOWER})")
    add("--simple", metavar="DIR", default=os.path.join("runs", "simple_cnn"),
        help="where simple_cnn.py wrote its network (%(default)s)")
    simple_cnn.start(options, run, smallest=32)


if __name__ == "__main__":
    main()
