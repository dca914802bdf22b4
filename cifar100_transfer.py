#!/usr/bin/env python3
"""Two styles of transfer learning on two networks, compared on CIFAR-100.

    ./cifar100_transfer.py

Each base sees every image and its mirror image ONCE. This frozen pass gives
the features for part 1 and the outputs of the frozen half for part 2:

    part 1, fixed features: a classifier is trained on the base's features
    part 2, partially frozen: the base's upper half is trained together with
        a classifier
    part 3: the same with another base, and the comparison

With the two default bases it takes about 70 minutes on two cores, and 5 GB of
disk while it runs. It writes into --out the features, the four models, a
record of each training, and a table and plots, which report.py makes of the
records. A stopped run continues where it was and repeats no finished part; a
finished one can be continued with other --bases.
"""
import argparse
import contextlib
import ctypes
import glob
import os
import signal
import subprocess
import sys

import numpy as np
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

import networks
import report
import runs

transfer = networks.transfer
K = transfer.K

# Units of the hidden layer (0: none) and dropout of the classifiers that are
# tried; the one with the best validation accuracy is taken.
CLASSIFIERS = (0, 0.3), (1024, 0.3), (2048, 0.3), (2048, 0.5)
FIXED_EPOCHS = 15        # a few seconds each
BATCH = 128
LEARNING_RATE = 1e-3     # at the start; decays to 0 along a cosine
PARTIAL_EPOCHS = 4       # minutes each
PARTIAL_BATCH = 64       # half the memory of 128
PARTIAL_LEARNING_RATE = 7e-4  # LEARNING_RATE / sqrt(2), for half the batch
WEIGHT_DECAY = 0.01      # these three as for CIFAR-10, where they did well
LABEL_SMOOTHING = 0.1
VALIDATION_SHARE = 20    # one training image in 20 is a validation image
THROUGHPUT_IMAGES = 1000  # on which Keras's predict is timed
COMPARED = 256           # test images on which a saved model is compared
CIFAR100 = "cifar-100-python-target_archive"  # Keras's name for the archive
PARTS = "train", "train-mirrored", "validation", "test"
GROUPS = (
    "aquatic mammals", "fish", "flowers", "food containers",
    "fruit and vegetables", "household electrical devices",
    "household furniture", "insects", "large carnivores",
    "large man-made outdoor things", "large natural outdoor scenes",
    "large omnivores and herbivores", "medium-sized mammals",
    "non-insect invertebrates", "people", "reptiles", "small mammals",
    "trees", "vehicles 1", "vehicles 2")


def load_cifar100(label_mode="fine"):
    """(X, Y), (X_test, Y_test), which Keras downloads if need be."""
    return transfer.fetch(
        lambda: K.datasets.cifar100.load_data(label_mode), "CIFAR-100",
        os.path.join(transfer.keras_folder("datasets"), CIFAR100),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz")


class Images:
    """CIFAR-100 in the order in which it passes through a base.

    images: uint8 (rows, 32, 32, 3)
    Y: one-hot labels of all rows, float32 (rows, 100)
    rows: {name in PARTS: the numbers of its rows}
    group_of: the coarse group, 0..19, of each of the 100 classes
    """

    def __init__(self, limit):
        """Load it; with a limit, that many training images, classes evenly.

        Then a fifth as many test images, as in the whole of CIFAR-100.
        """
        (X, Y), (X_test, Y_test) = load_cifar100()
        (_, coarse), _ = load_cifar100(label_mode="coarse")
        self.group_of = np.zeros(100, int)
        self.group_of[Y[:, 0]] = coarse[:, 0]
        # The same split for every seed, so that all share the stored outputs
        order = transfer.stratified_order(Y[:, 0], 0)
        test = transfer.stratified_order(Y_test[:, 0], 0)
        if limit:
            order, test = order[:limit], test[:limit // 5]
        count = len(order) // VALIDATION_SHARE
        validation, train, test = order[:count], order[count:], np.sort(test)
        self.images = np.concatenate([
            X[train], X[train][:, :, ::-1], X[validation], X_test[test]])
        self.Y = np.eye(100, dtype="float32")[np.concatenate([
            Y[train], Y[train], Y[validation], Y_test[test]])[:, 0]]
        self.rows = dict(zip(PARTS, np.split(
            np.arange(len(self.Y)),
            np.cumsum([len(train), len(train), count]))))


def build_base(name, weights="imagenet"):
    """A base without its top, one flat K.Model.

    It turns RGB images (m, 32, 32, 3) in 0..255 into features (m, f).
    """
    size = networks.BASES[name].size
    images = K.Input((32, 32, 3), name="images")
    scaled = K.layers.Resizing(size, size, name="scale_up")(images)
    return K.Model(images, networks.features(
        name, scaled, weights, networks.MOMENTUM,
        f", or choose other --bases than {name}"), name=name)


class Shared:
    """A base, the images, and what both styles need of them.

    name, args: one of networks.BASES, and the command line
    data: the Images, of which only `sample`, some test images, stays
    base: the network, images -> features
    throughput: images per second of Keras's predict, in this process
    at_cut, features: the paths of the stored outputs
    frozen_pass: how long the pass through the base took, a record
    """

    def __init__(self, name, args, data):
        """Load the base, and let all images pass through it."""
        self.name, self.args, self.data = name, args, data
        K.utils.set_random_seed(args.seed)  # EfficientNet has dropout
        self.base = build_base(name)
        self.throughput = networks.predict_throughput(
            self.base, data.images[:THROUGHPUT_IMAGES])
        print(f"{name}: Keras's predict does {self.throughput:.0f} images/s")
        cut = self.base.get_layer(networks.BASES[name].first_trained).input
        self.at_cut, self.features = transfer.frozen_outputs(
            K.Model(self.base.input, [cut, self.base.output]), data.images,
            args.cache, np.float32,  # the base has its own preprocessing
            predict_images_per_second=self.throughput)
        self.frozen_pass = networks.pass_record(self.at_cut)
        self.sample = data.images[data.rows["test"][:COMPARED]]
        del data.images  # their memory is needed from here on
        save_features(self.features, data, os.path.join(
            args.out, f"features{args.suffix}", name))

    def train(self, top, stored, what, epochs, batch, learning_rate):
        """Train `top` on stored outputs; returns the history.

        what: names the checkpoint
        """
        checkpoint = transfer.Checkpoint(
            part_path(self.args, self.name, f"{what}.npz"),
            predict_images_per_second=self.throughput)
        rows = self.data.rows
        return transfer.train(
            top, stored, self.data.Y,
            np.stack([rows["train"], rows["train-mirrored"]]),
            rows["validation"], epochs, self.args.seed, checkpoint,
            batch=batch, learning_rate=learning_rate,
            weight_decay=WEIGHT_DECAY, label_smoothing=LABEL_SMOOTHING)


def part_path(args, name, what):
    """A file of a base in the run's folder."""
    return os.path.join(args.out, f"{name}-{what}")


def save_features(stored, data, folder):
    """Write the features as files for numpy.load, labels beside them.

    stored: the path of the features of all rows
    folder: gets each of PARTS as <part>.npy, float16 (m, f), and
        <part>-labels.npy, int64 (m,) in 0..99
    """
    os.makedirs(folder, exist_ok=True)
    features = np.load(stored, mmap_mode="r")
    for part, rows in data.rows.items():
        for name, array in ((part, features[rows]),
                            (f"{part}-labels", data.Y[rows].argmax(axis=1))):
            path = os.path.join(folder, f"{name}.npy")
            with transfer.whole_file(path) as temporary, open(
                    temporary, "w+b") as out:  # as in frozen_outputs
                np.save(out, array)


def build_classifier(width, units, dropout):
    """The classification network: (m, width) features -> (m, 100)."""
    hidden = [K.layers.Dropout(dropout),
              K.layers.Dense(units, activation="relu")] if units else []
    return K.Sequential(
        [K.Input((width,))] + hidden + [
            K.layers.Dropout(dropout),
            K.layers.Dense(100, activation="softmax")], name="classifier")


def train_classifier(shared, units, dropout):
    """Train a classifier on the saved features; returns it and its history.
    """
    print(f"{shared.name}, fixed features: "
          + (f"hidden layer of {units:,}" if units else "no hidden layer")
          + f", dropout {dropout}")
    K.utils.set_random_seed(shared.args.seed)
    classifier = build_classifier(shared.base.output.shape[1], units, dropout)
    return classifier, shared.train(
        classifier, shared.features, f"{units}-{dropout}", FIXED_EPOCHS,
        BATCH, LEARNING_RATE)


def train_fixed(shared):
    """Part 1: try classifiers on the saved features, and take the best."""
    trained = [train_classifier(shared, *choice) for choice in CLASSIFIERS]
    tried = [{"units": units, "dropout": dropout,
              "val_accuracy": history[-1]["val_accuracy"],
              "seconds": sum(epoch["seconds"] for epoch in history)}
             for (units, dropout), (_, history) in zip(CLASSIFIERS, trained)]
    best = max(range(len(tried)), key=lambda i: tried[i]["val_accuracy"])
    classifier, history = trained[best]
    for layer in shared.base.layers:
        layer.trainable = False
    model = K.Model(shared.base.input, classifier(shared.base.output))
    finish(shared, "fixed", model, classifier, shared.features, history,
           choice=tried[best], tried=tried,
           seconds_before=sum(row["seconds"] for row in tried)
           - tried[best]["seconds"])


def freeze(base, name, classifier):
    """Freeze the lower half of a base, below a classifier.

    Returns: (model, top), which share their layers
        model: (m, 32, 32, 3) images -> (m, 100)
        top: outputs at the cut -> (m, 100); all of it is trained
    """
    cut = base.get_layer(networks.BASES[name].first_trained).input
    classes = classifier(base.output)
    model, top = K.Model(base.input, classes), K.Model(cut, classes)
    for layer in model.layers:
        layer.trainable = False  # keeps BatchNorm's averages still, too
    for layer in top.layers:
        layer.trainable = True
    frozen, total = transfer.convolutions(model)
    if 2 * frozen < total:
        raise ValueError(f"{name}: {frozen} of {total} convolutions frozen, "
                         "expected at least half")
    return model, top


def train_partial(shared):
    """Part 2: train the base's upper half together with a classifier.

    The classifier starts as part 1's without a hidden layer: one with random
    weights would first spoil the layers below (Kumar et al., 2022,
    arXiv:2202.10054).
    """
    linear, before = train_classifier(shared, *CLASSIFIERS[0])
    print(f"{shared.name}, partially frozen")
    K.utils.set_random_seed(shared.args.seed)
    classifier = build_classifier(linear.input_shape[1], *CLASSIFIERS[0])
    classifier.set_weights(linear.get_weights())  # dropout starts anew
    model, top = freeze(shared.base, shared.name, classifier)
    print("{} of {} convolution layers frozen".format(
        *transfer.convolutions(model)))
    history = shared.train(top, shared.at_cut, "partial", PARTIAL_EPOCHS,
                           PARTIAL_BATCH, PARTIAL_LEARNING_RATE)
    finish(shared, "partial", model, top, shared.at_cut, history,
           seconds_before=sum(epoch["seconds"] for epoch in before))


def finish(shared, style, model, top, stored, history, **more):
    """Test, save, compare and record a trained model.

    model: the whole of it, images -> classes
    top: the part of it that was trained, stored outputs -> classes
    more: what else the record says; seconds_before: of training the other
        classifiers that led to this model
    """
    name, args, data = shared.name, shared.args, shared.data
    rows = data.rows["test"]
    truth = data.Y[rows].argmax(axis=1)
    P = top.predict(transfer.batches(top, stored, rows, data.Y, BATCH),
                    verbose=0)
    difference = networks.save_model(
        model, part_path(args, name, f"{style}{args.suffix}.keras"),
        shared.sample, P[:len(shared.sample)])
    frozen, total = transfer.convolutions(model)
    trained = int(sum(np.prod(w.shape) for w in model.trainable_weights))
    top1, top5 = (top_k_accuracy_score(truth, P, k=k, labels=range(100))
                  for k in (1, 5))
    record = {
        "base": name, "style": style, "limit": args.limit,
        "size": networks.BASES[name].size,
        "test_top1": top1, "test_top5": top5,
        "trained_parameters": trained,
        "other_parameters": model.count_params() - trained,
        "frozen_convolutions": frozen, "convolutions": total,
        "training_images": len(data.rows["train"]),
        "held_out_images": len(data.rows["validation"]),
        "test_images": len(rows),
        "frozen_pass": shared.frozen_pass, "history": history, **more,
        "saved_model_differs_by": difference,
        "groups": GROUPS, "confusion": confusion_matrix(
            data.group_of[truth], data.group_of[P.argmax(axis=1)],
            labels=range(len(GROUPS))).tolist(),
        "machine": runs.machine(),
    }
    runs.write(part_path(args, name, f"{style}.json"), record)
    print(f"{report.name(record)}: test accuracy top-1 {top1:.4f}, top-5 "
          f"{top5:.4f} {report.warning([record])}")
    report.report(args.out)


def finished(args, name, style):
    """Whether a training is recorded and its model saved."""
    return report.is_record(runs.read_json(part_path(
        args, name, f"{style}.json"))) and os.path.exists(part_path(
            args, name, f"{style}{args.suffix}.keras"))


def train_both_styles(name, args):
    """Parts 1 and 2 for one base, except for what is finished."""
    os.makedirs(args.cache, exist_ok=True)
    lock = transfer.wait_for_others(args.cache)
    # Before keep_memory: what loading takes goes back to the system.
    data = Images(args.limit)
    transfer.keep_memory()
    shared = Shared(name, args, data)
    for style, train in (("fixed", train_fixed), ("partial", train_partial)):
        if not finished(args, name, style):
            train(shared)
    lock.close()


def run_in_new_process(name):
    """Run the same command for one base alone.

    Only a new process has none of the memory that another base took. Ctrl-C
    reaches both; this one says so and kills the other, which ignores it.
    """
    def exit_both(*_):
        """Kill the other process, and exit."""
        process.kill()
        transfer.exit_after_ctrl_c()

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # is inherited
    process = subprocess.Popen(
        [sys.executable, *sys.argv, "--bases", name, "--parent",
         str(os.getpid())], close_fds=False)  # so is runs.claim
    signal.signal(signal.SIGINT, exit_both if handler
                  is transfer.exit_after_ctrl_c else handler)
    status = process.wait()
    signal.signal(signal.SIGINT, handler)
    if status < 0:
        raise OSError(f"{name}: its process was killed by signal "
                      f"{-status}; 9 may mean: out of memory")
    if status:
        sys.exit(status)  # it has said why


def end_with_parent(parent):
    """Let this process live no longer than the one that started it."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)  # it was killed before prctl


def recipe(args):
    """What a run's parts must have in common: all but the bases asked for."""
    return {
        "limit": args.limit, "seed": args.seed,
        "bases": {name: (base.size, base.first_trained, base.weights)
                  for name, base in networks.BASES.items()},
        "CLASSIFIERS": CLASSIFIERS, "FIXED_EPOCHS": FIXED_EPOCHS,
        "PARTIAL_EPOCHS": PARTIAL_EPOCHS, "PARTIAL_BATCH": PARTIAL_BATCH,
        "PARTIAL_RATE": PARTIAL_LEARNING_RATE, "HELD_OUT": VALIDATION_SHARE,
        "BATCH": BATCH, "LEARNING_RATE": LEARNING_RATE,
        "WEIGHT_DECAY": WEIGHT_DECAY, "LABEL_SMOOTHING": LABEL_SMOOTHING,
        "MOMENTUM": networks.MOMENTUM}


def parse_arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description="Compare two styles of transfer learning on CIFAR-100. "
        "A stopped run continues where it was.")
    add = parser.add_argument
    add("--bases", nargs="+", choices=networks.BASES, metavar="BASE",
        default=["MobileNetV2", "EfficientNetV2B0"],
        help=f"from {', '.join(networks.BASES)} (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="try it out on N training "
        "images; every output says so")
    add("--seed", type=int, default=0)
    add("--out", metavar="DIR", help="write everything into this folder "
        "(default runs/cifar100, with --limit runs/cifar100-limit-N)")
    add("--overwrite", action="store_true",
        help="delete a finished run, or another one, that is in --out")
    add("--cache", metavar="DIR",
        default=transfer.cache_folder("cifar100-transfer"),
        help="for stored outputs, 4.5 GB with the default bases (%(default)s)")
    add("--parent", type=int, help=argparse.SUPPRESS)  # run_in_new_process
    args = parser.parse_args()
    if args.limit is not None and not 200 <= args.limit <= 50000:
        parser.error(f"--limit is {args.limit}, expected 200 to 50000: at "
                     "least two images of each class, at most all")
    if not 0 <= args.seed < 2 ** 32:
        parser.error(f"--seed is {args.seed}, expected 0 to {2 ** 32 - 1}")
    # In file names, lest a limited run be taken for a result
    args.suffix = f"-limit-{args.limit}" if args.limit else ""
    if args.out is None:
        args.out = os.path.join("runs", f"cifar100{args.suffix}")
    try:
        runs.check_folder("--out", args.out)
        runs.check_folder("--cache", args.cache)
    except ValueError as error:
        parser.error(str(error))
    return args


def run(args):
    """All bases, one after the other, and the comparison."""
    if args.parent:
        end_with_parent(args.parent)
        return train_both_styles(*args.bases, args)
    if args.overwrite:  # What may fail comes before it deletes anything.
        load_cifar100()
        for name in args.bases:
            build_base(name)
    runs.start(args.out, "cifar100_transfer.py", recipe(args), args.overwrite,
               extend=True)
    todo = []
    for name in dict.fromkeys(args.bases):
        if all(finished(args, name, style) for style in report.STYLES):
            print(f"{name}: already finished", flush=True)
        else:
            todo.append(name)
    for name in todo:
        if todo[1:]:
            run_in_new_process(name)
        else:
            train_both_styles(name, args)
    print(report.report(args.out))
    print(f"\nEverything is in {os.path.abspath(args.out)}.")
    others = {os.path.basename(path).partition("-")[0] for path in glob.glob(
        os.path.join(glob.escape(args.out), "*.npz"))} - set(args.bases)
    # A base that was stopped, and isn't asked for now, may still continue.
    if all(finished(args, name, style)
           for name in others for style in report.STYLES):
        runs.finish(args.out)
        print(f"The stored outputs in {args.cache} may be deleted now.")


def main():
    """Read the command line, and run."""
    transfer.exit_with_message(run, parse_arguments(), "Fix this")


if __name__ == "__main__":
    main()
