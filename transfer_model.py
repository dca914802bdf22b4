#!/usr/bin/env python3
"""Desserts, part 3: Xception, or another base, with a new head.

    ./transfer_model.py DATA --base EfficientNetV2B0

DATA is as for simple_cnn.py. First the new head alone is trained (warm-up),
then the base's last block (Xception's 14th) as well, at a lower learning rate.
The epoch with the best validation accuracy is kept and compared with
simple_cnn.py's network on the same holdout. Several bases, optimizers or ways
to treat BatchNorm make one table.

With 4,200 images of 224 pixels, EfficientNetV2B0 takes about 27 minutes on two
cores, Xception several times as long. It writes into --out a model and its
record for each training, logs for TensorBoard, a table and plots. A stopped
run continues after its last whole epoch, and ends with the same models as an
undisturbed one.
"""
import itertools
import os
import shlex

import folders
import networks
import pictures
import report
import runs
import simple_cnn

K = networks.transfer.K

SIZE = 160              # pixels; more than the simple network's, as it pays
BATCH = 16              # the exercise's
OPTIMIZERS = {"adam": K.optimizers.Adam, "rmsprop": K.optimizers.RMSprop,
              "sgd": K.optimizers.SGD}
WARM_UP = 3             # epochs
WARM_UP_LR_DIVISOR = 2  # the optimizer's default divided by this: 2 to 10
FINE = 10               # epochs
FINE_LR_DIVISOR = 5     # lower still: the base already knows a lot
LABEL_SMOOTHING = 0.1   # as for CIFAR-10, where it did well


def create_transfer_model(input_size, n_categories, weights="imagenet",
                          model=K.applications.Xception):
    """A base with a new head: feed it 0..255, do not preprocess again.

    input_size: (height, width, 3)
    n_categories: how many classes
    weights: "imagenet", downloaded if need be, or None (random)
    model: any of K.applications
    Returns: a flat K.Model, RGB images in 0..255 -> (m, n_categories)
    """
    return networks.build_with_head(
        model.__name__, input_size, n_categories, weights)


def build(args, base, n_categories):
    """The model that the command line asks for."""
    return create_transfer_model((args.size, args.size, 3), n_categories,
                                 model=getattr(K.applications, base))


def compile_model(model, optimizer, learning_rate, divisor, steps):
    """Compile with label smoothing and a learning rate that decays to 0.

    learning_rate: at the start; None: the optimizer's default / divisor
    steps: until it is 0
    """
    make = OPTIMIZERS[optimizer]
    learning_rate = learning_rate or float(make().learning_rate) / divisor
    model.compile(
        make(K.optimizers.schedules.CosineDecay(learning_rate, steps)),
        K.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING),
        metrics=["accuracy"])


def train_both_phases(args, copy, base, optimizer, batch_norm, name):
    """Warm-up, then the last block; writes a model and its record."""
    steps = -(-copy.count("train") // BATCH)
    K.utils.set_random_seed(args.seed)
    model = build(args, base, len(copy.classes))
    networks.freeze_base(model)
    compile_model(model, optimizer, args.warm_up_rate, WARM_UP_LR_DIVISOR,
                  steps * args.warm_up)
    model, history = simple_cnn.train(
        model, copy, args, args.warm_up, name, batch=BATCH, phase="warm-up")
    networks.unfreeze_last_block(model, base, batch_norm == "trained")
    compile_model(model, optimizer, args.fine_rate, FINE_LR_DIVISOR,
                  steps * args.fine)
    model, history = simple_cnn.train(
        model, copy, args, args.fine, name, batch=BATCH, phase="fine-tuning",
        before=history)
    folders.record(
        args.out, name, model, copy, history, title=f"{base}, {optimizer}"
        + (", BatchNorm trained" if batch_norm == "trained" else ""),
        base=base, optimizer=optimizer, batch_norm=batch_norm)


def find_simple(folder, source):
    """The record of simple_cnn.py's network; None if there is none.

    Raises OSError if it was trained on other images: some of the holdout
    could have been among them.
    """
    record = runs.read_json(os.path.join(folder, "simple.json"))
    if not report.is_record(record) or "model" not in record:
        return None
    try:
        run_info = runs.read_json(os.path.join(folder, "run.json"))
        script, data = run_info["script"], run_info["arguments"]["data"]
    except (KeyError, TypeError):
        script = data = None  # missing or damaged
    if (script, data) != ("simple_cnn.py", source.identity):
        raise OSError(
            f"{folder} has a run of {script} on {data}, expected "
            f"simple_cnn.py on {source.identity}: choose another --simple")
    folders.load(os.path.join(folder, record["model"]))
    return record


def evaluate_simple(args, source, copy, simple):
    """Evaluate simple_cnn.py's network on the same holdout.

    Its images are copied at its own size, the one that it was trained on.
    simple: its record
    Returns: the record with this evaluation, also written into args.out
    """
    if simple["size"] != args.size:
        copy = pictures.clean_copy(
            source._replace(files={"holdout": source.files["holdout"]}),
            os.path.join(args.out, f"pictures-{simple['size']}"),
            simple["size"])
    model = folders.load(os.path.join(args.simple, simple.pop("model")))
    simple["evaluation"] = folders.evaluate(model, copy)
    runs.write(os.path.join(args.out, "simple.json"), simple)
    return simple


def run(args):
    """Part 3."""
    source = pictures.find(args.data)
    simple = find_simple(args.simple, source)
    for base in args.base:  # to find out at once if weights are missing
        build(args, base, len(source.classes))
    copy = folders.begin(
        args, "transfer_model.py", source, "base", "optimizer", "size",
        "batch_norm", "warm_up", "warm_up_rate", "fine", "fine_rate", "seed")
    records = {}
    for base, optimizer, batch_norm in itertools.product(
            args.base, args.optimizer, args.batch_norm):
        name = f"{base}-{optimizer}" + (
            "-batch-norm" if batch_norm == "trained" else "")
        path = os.path.join(args.out, f"{name}.json")
        if not report.is_record(runs.read_json(path)):
            train_both_phases(args, copy, base, optimizer, batch_norm, name)
        K.backend.clear_session()
        records[path] = runs.read_json(path)
    if simple:
        simple = evaluate_simple(args, source, copy, simple)
        for path, record in records.items():
            record["against_simple"] = report.compare(
                record["evaluation"], simple["evaluation"])
            runs.write(path, record)
    text = report.report(args.out)
    if simple:
        runs.finish(args.out)
    else:
        text += ("\n\nIs it better than the simple network? Train that one "
                 f"first: ./simple_cnn.py {shlex.quote(args.data)} --out "
                 f"{shlex.quote(args.simple)}\nThen rerun this command.")
    print(text)


def main():
    """Read the command line, and run."""
    options = folders.parser(
        "transfer_model", "Put a new head on a network that knows ImageNet, "
        "train it on a folder of images, and compare.", SIZE)
    add = options.add_argument
    add("--base", nargs="+", choices=networks.APPLICATIONS,
        default=["Xception"], metavar="BASE", help="any of Keras's "
        "applications (Xception, the exercise's; its weights couldn't be had "
        "for the results in the README)")
    add("--optimizer", nargs="+", choices=OPTIMIZERS, default=["adam"],
        metavar="OPTIMIZER", help=f"from {', '.join(OPTIMIZERS)} (adam)")
    # Trained was the better on validation images, by little.
    add("--batch-norm", nargs="+", choices=("frozen", "trained"),
        default=["trained"], metavar="HOW",
        help="trained or frozen in the last block (trained)")
    add("--warm-up", type=int, default=WARM_UP, metavar="EPOCHS",
        help="train the head alone for so many (%(default)s)")
    add("--warm-up-rate", type=float, metavar="RATE", help="learning rate "
        f"(the optimizer's default / {WARM_UP_LR_DIVISOR})")
    add("--fine", type=int, default=FINE, metavar="EPOCHS", help="then train "
        "the last block (Xception's 14th) as well for so many (%(default)s)")
    add("--fine-rate", type=float, metavar="RATE", help="learning rate "
        f"(the optimizer's default / {FINE_LR_DIVISOR})")
    add("--simple", metavar="DIR", default=os.path.join("runs", "simple_cnn"),
        help="where simple_cnn.py wrote its network (%(default)s)")
    folders.start(options, run, smallest=32)


if __name__ == "__main__":
    main()
