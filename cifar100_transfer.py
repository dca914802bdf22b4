#!/usr/bin/env python3
"""Two styles of transfer learning on two networks, compared on CIFAR-100.

For each base, all images and their mirror images pass through it ONCE. That
gives the features for part 1 and the outputs of the frozen half for part 2:

    part 1, fixed features: a classifier is trained on the base's features
    part 2, partially frozen: the base's upper half and a classifier are
        trained together
    part 3: the same with another base, and the comparison

Run it (./cifar100_transfer.py --help): about two hours on two cores with the
two bases that are the default, 11 GB of disk while it runs. It writes under
--out the features, the four models, a record of each training, and what
report.py draws from the records: a table and pictures. A run that was stopped
goes on where it was; finished parts are not repeated (so after changing this
script choose another --out).
"""
import argparse
import collections
import contextlib
import glob
import json
import os
import sys
import time

import numpy as np
import tensorflow as tf
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from tensorflow import keras as K

import report
import runs

transfer = __import__("0-transfer")

Base = collections.namedtuple("Base", "size first_trained mean std weights")
IMAGENET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
MINUS_1_TO_1 = [127.5] * 3, [127.5] * 3
# Size: pixels to which images are scaled up. First trained: the layer above
# the cut; what goes into it is all that the layers above see of the image.
# Then the mean and standard deviation that the base was trained with.
BASES = {
    "MobileNetV2": Base(
        160, "block_9_expand", *MINUS_1_TO_1,  # 27 of 52 convolutions frozen
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_"
        "224_no_top.h5"),
    "DenseNet121": Base(
        128, "conv4_block12_0_bn", *IMAGENET,  # 61 of 120
        "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "Xception": Base(
        128, "block8_sepconv1_act", *MINUS_1_TO_1,  # 20 of 40
        "xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5"),
}
# Units of the hidden layer (0: none) and dropout; the best on the held-out
# images is taken.
CLASSIFIERS = (0, 0.3), (1024, 0.3), (2048, 0.3), (2048, 0.5)
FIXED_EPOCHS = 15
PARTIAL_EPOCHS = 4
PARTIAL_BATCH = 64       # half of 0-transfer's, and of the memory
PARTIAL_RATE = 7e-4      # for batches of this size
HELD_OUT = 20            # one image in 20 of the training set
RATE_IMAGES = 1000       # to measure how fast Keras's predict is
COMPARED = 256           # test images on which a saved model is compared
CIFAR100 = "cifar-100-python-target_archive"  # what Keras calls the archive
GROUPS = (
    "aquatic mammals", "fish", "flowers", "food containers",
    "fruit and vegetables", "household electrical devices",
    "household furniture", "insects", "large carnivores",
    "large man-made outdoor things", "large natural outdoor scenes",
    "large omnivores and herbivores", "medium-sized mammals",
    "non-insect invertebrates", "people", "reptiles", "small mammals",
    "trees", "vehicles 1", "vehicles 2")


class Images:
    """CIFAR-100 in the order in which it passes through a base.

    images: uint8 (rows, 32, 32, 3): the training images, their mirror images,
        the held-out images, the test images
    Y, Y_held, Y_test: one-hot labels, float32 (m, 100)
    group_of: the coarse group, 0..19, of each of the 100 classes
    """

    def __init__(self, limit):
        """Load it; with a limit that many training images, classes evenly.

        Then a fifth as many test images, as in the whole of CIFAR-100.
        """
        (X, Y), (X_test, Y_test) = load_cifar100()
        (_, coarse), _ = load_cifar100(label_mode="coarse")
        self.group_of = np.zeros(100, int)
        self.group_of[Y[:, 0]] = coarse[:, 0]
        # The same split whatever the seed: all share the stored outputs.
        order = transfer.stratified_order(Y[:, 0], 0)
        test = transfer.stratified_order(Y_test[:, 0], 0)
        if limit:
            order, test = order[:limit], test[:limit // 5]
        count = len(order) // HELD_OUT
        held, chosen, test = order[:count], order[count:], np.sort(test)
        self.images = np.concatenate([
            X[chosen], X[chosen][:, :, ::-1], X[held], X_test[test]])
        one_hot = np.eye(100, dtype="float32")
        self.Y, self.Y_held = one_hot[Y[chosen, 0]], one_hot[Y[held, 0]]
        self.Y_test = one_hot[Y_test[test, 0]]
        self.first_held = 2 * len(chosen)
        self.first_test = self.first_held + len(held)


def load_cifar100(label_mode="fine"):
    """(X, Y), (X_test, Y_test), which Keras downloads if need be."""
    return transfer.fetch(
        lambda: K.datasets.cifar100.load_data(label_mode), "CIFAR-100",
        os.path.join(transfer.keras_folder("datasets"), CIFAR100),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz")


def build_base(name, weights="imagenet"):
    """A base without its top, from 32x32 images to features.

    name: one of BASES
    weights: "imagenet", downloaded if need be, or None (random)
    Returns: one flat K.Model, float32 (m, 32, 32, 3) in 0..255 -> (m, f)
    """
    base = BASES[name]
    images = K.Input((32, 32, 3), name="images")
    x = K.layers.Resizing(base.size, base.size, name="scale_up")(images)
    x = K.layers.Normalization(mean=base.mean, variance=[
        std ** 2 for std in base.std], name="preprocess")(x)
    x = application(name, x, weights, f", or choose other --bases than "
                    f"{name}").output
    features = K.layers.GlobalAveragePooling2D(name="features")(x)
    return K.Model(images, features, name=name)


def application(name, images, weights, otherwise=""):
    """One of K.applications without its top, BatchNorm ready for few steps.

    images: a tensor, prepared as the application wants it
    weights, otherwise: "imagenet", and what a user can do without a network
        instead of downloading them; or None (random)
    """
    file = os.path.basename(BASES[name].weights)

    def build():
        """The application, on these images."""
        return getattr(K.applications, name)(
            input_tensor=images, include_top=False, weights=weights)

    found = transfer.fetch(
        build, file, os.path.join(transfer.keras_folder("models"), file),
        "https://storage.googleapis.com/tensorflow/keras-applications/"
        + BASES[name].weights, otherwise) if weights else build()
    for layer in found.layers:
        if isinstance(layer, K.layers.BatchNormalization):
            layer.momentum = transfer.MOMENTUM
    return found


def build_classifier(width, units, dropout):
    """The classification network: (m, width) features -> (m, 100)."""
    hidden = [K.layers.Dropout(dropout),
              K.layers.Dense(units, activation="relu")] if units else []
    return K.Sequential(
        [K.Input((width,))] + hidden + [
            K.layers.Dropout(dropout),
            K.layers.Dense(100, activation="softmax")], name="classifier")


def freeze(base, name, classifier):
    """Freeze the lower half of a base; what is above and a classifier train.

    Returns: (model, top), which share their layers
        model: (m, 32, 32, 3) images -> (m, 100)
        top: what the cut puts out -> (m, 100)
    """
    cut = base.get_layer(BASES[name].first_trained).input
    classes = classifier(base.output)
    model, top = K.Model(base.input, classes), K.Model(cut, classes)
    for layer in model.layers:
        layer.trainable = False  # keeps BatchNorm still, too
    for layer in top.layers:
        layer.trainable = True
    frozen, total = transfer.convolutions(model)
    if 2 * frozen < total:
        raise ValueError(f"{name}: {frozen} of {total} convolutions frozen, "
                         "expected at least half")
    return model, top


def in_batches(images):
    """Images as a dataset of float32, in batches of Keras's usual size."""
    return transfer.without_autotune(tf.data.Dataset.from_tensor_slices(
        images.astype("float32")).batch(32))


def predict_rate(base, images):
    """Images per second of Keras's predict, after a first batch."""
    dataset = in_batches(images)
    base.predict(dataset.take(1), verbose=0)
    start = time.perf_counter()
    base.predict(dataset, verbose=0)
    return len(images) / (time.perf_counter() - start)


def as_float(images):
    """Images for a network that scales by itself."""
    return images.astype("float32")


def timed_pass(model, images, cache, prepare=as_float, **note):
    """All images through a frozen model once, and how long that takes.

    model, images, cache, prepare: for transfer.frozen_outputs
    note: what else the record says
    Returns: what frozen_outputs returns; a record, a dict: seconds, images,
        measured_on, and the note, as they were when the pass was made
    """
    calls = []

    def prepare_and_note(chunk):
        """Note when, and how many."""
        calls.append((time.perf_counter(), len(chunk)))
        return prepare(chunk)

    stored = transfer.frozen_outputs(model, images, cache, prepare_and_note)
    end = time.perf_counter()
    files = (stored[0] if isinstance(stored, list) else stored).files
    # Beside what is stored, which may serve more than one run.
    path = os.path.join(os.path.dirname(files[0]), "pass.json")
    record = runs.read_json(path) or {"measured_on": 0}
    # The first call only checks what is there, and warms up.
    measured = sum(count for _, count in calls[1:])
    if measured > record["measured_on"]:
        record = {  # if it was stopped before, its last part stands for all
            "seconds": (end - calls[1][0]) * len(images) / measured,
            "images": len(images), "measured_on": measured, **note}
        runs.write(path, record)
    elif not record["measured_on"]:
        # Killed just before: the last piece tells how long it takes.
        os.remove(files[-1])
        return timed_pass(model, images, cache, prepare, **note)
    return stored, record


class Shared:
    """A base, the images, and what both styles need of them.

    name, args: one of BASES, and the command line
    data: the Images, of which only the first test images are kept
    base: the network, images -> features
    rate: images per second of Keras's predict, in this process
    at_cut: the StoredOutputs at the cut
    frozen_pass: a record of the time that the pass through the base took
    """

    def __init__(self, name, args, data):
        """Load the base, and let all images pass through."""
        self.name, self.args, self.data = name, args, data
        self.base = build_base(name)
        self.rate = predict_rate(self.base, data.images[:RATE_IMAGES])
        print(f"{name}: Keras's predict does {self.rate:.0f} images/s")
        cut = self.base.get_layer(BASES[name].first_trained).input
        (self.at_cut, features), self.frozen_pass = timed_pass(
            K.Model(self.base.input, [cut, self.base.output]), data.images,
            args.cache, predict_images_per_second=self.rate)
        # All others have gone through: their memory is needed from here on.
        data.images = data.images[data.first_test:][:COMPARED].copy()
        save_features(features, data, features_folder(args, name))

    def keep(self, what):
        """What keeps the epochs of a training, for KeepEpochs."""
        return transfer.KeepEpochs(
            part_path(self.args, self.name, f"{what}.npz"),
            predict_images_per_second=self.rate)


def part_path(args, name, what):
    """A file of a base in the run's folder."""
    return os.path.join(args.out, f"{name}-{what}")


def mark(args):
    """What names of files say, lest few images' be taken for a result."""
    return f"-limit-{args.limit}" if args.limit else ""


def model_path(args, name, style):
    """Where the model of a base and style is saved."""
    return part_path(args, name, f"{style}{mark(args)}.keras")


def features_folder(args, name):
    """Where the features of a base are saved."""
    return os.path.join(args.out, f"features{mark(args)}", name)


def finished(args, name, style):
    """Whether a training is recorded and its model there."""
    return bool(runs.read_json(part_path(args, name, f"{style}.json"))
                and os.path.exists(model_path(args, name, style)))


FEATURES = "train", "train-mirrored", "held-out", "test"


def load_features(folder):
    """All features that save_features wrote, in the order of Images."""
    return np.concatenate([
        np.load(os.path.join(folder, f"{name}.npy")) for name in FEATURES])


def save_features(features, data, folder):
    """Write the features as files for numpy.load, labels beside them.

    features: StoredOutputs (rows, f)
    folder: gets FEATURES as <name>.npy, float16 (m, f), and
        <name>-labels.npy, int64 (m,) in 0..99
    """
    os.makedirs(folder, exist_ok=True)
    start = 0
    for name, Y in zip(FEATURES, (data.Y, data.Y, data.Y_held, data.Y_test)):
        rows = np.arange(start, start + len(Y))
        start += len(Y)
        for file, array in ((f"{name}.npy", features[rows]),
                            (f"{name}-labels.npy", Y.argmax(axis=1))):
            transfer.write_whole(os.path.join(folder, file),
                                 *transfer.npy(array))


def trained_classifier(shared, features, units, dropout):
    """A classifier that was trained on the saved features.

    features: float16 (rows, f), in the order of Images
    Returns: the K.Model and its history
    """
    print(f"{shared.name}, fixed features: "
          + (f"hidden layer of {units:,}" if units else "no hidden layer")
          + f", dropout {dropout}")
    K.utils.set_random_seed(shared.args.seed)
    classifier = build_classifier(features.shape[1], units, dropout)
    return classifier, transfer.train(
        classifier, features, shared.data.Y, shared.data.Y_held,
        FIXED_EPOCHS, shared.args.seed, shared.keep(f"{units}-{dropout}"))


def train_fixed(shared):
    """Part 1: classifiers on the saved features; the best is taken."""
    features = load_features(features_folder(shared.args, shared.name))
    trained = [trained_classifier(shared, features, *choice)
               for choice in CLASSIFIERS]
    tried = [{"units": units, "dropout": dropout,
              "val_accuracy": history[-1]["val_accuracy"],
              "seconds": sum(epoch["seconds"] for epoch in history)}
             for (units, dropout), (_, history) in zip(CLASSIFIERS, trained)]
    best = max(range(len(tried)), key=lambda i: tried[i]["val_accuracy"])
    classifier, history = trained[best]
    for layer in shared.base.layers:
        layer.trainable = False
    model = K.Model(shared.base.input, classifier(shared.base.output))
    finish(shared, "fixed", model, classifier, features, history,
           choice=tried[best], tried=tried,
           seconds_before=sum(row["seconds"] for row in tried)
           - tried[best]["seconds"])


def train_partial(shared):
    """Part 2: the base's upper half and a classifier, trained together.

    The classifier is part 1's without a hidden layer, as trained there: from
    random weights it would first spoil the layers below (Kumar et al., 2022,
    arXiv:2202.10054).
    """
    name, args, data = shared.name, shared.args, shared.data
    classifier, before = trained_classifier(
        shared, load_features(features_folder(args, name)), *CLASSIFIERS[0])
    print(f"{name}, partially frozen")
    K.utils.set_random_seed(args.seed)
    model, top = freeze(shared.base, name, classifier)
    print("{} of {} convolution layers frozen".format(
        *transfer.convolutions(model)))
    history = transfer.train(
        top, shared.at_cut, data.Y, data.Y_held, PARTIAL_EPOCHS, args.seed,
        shared.keep("partial"), PARTIAL_BATCH, PARTIAL_RATE)
    finish(shared, "partial", model, top, shared.at_cut, history,
           seconds_before=sum(epoch["seconds"] for epoch in before))


def finish(shared, style, model, top, stored, history, **more):
    """Test, save, compare and record a trained model.

    model: the whole of it, images -> classes
    top: the part of it that was trained, stored outputs -> classes
    more: what else goes into the record; seconds_before: of training other
        classifiers, without which this model would not be
    """
    name, args, data = shared.name, shared.args, shared.data
    truth = data.Y_test.argmax(axis=1)
    P = top.predict(transfer.in_order(
        top, stored, data.first_test, data.Y_test), verbose=0)
    difference = save_model(
        model, model_path(args, name, style), data.images,
        P[:len(data.images)])
    frozen, total = transfer.convolutions(model)
    trained = int(sum(np.prod(w.shape) for w in model.trainable_weights))
    top1, top5 = (top_k_accuracy_score(truth, P, k=k, labels=range(100))
                  for k in (1, 5))
    record = {
        "base": name, "style": style, "limit": args.limit,
        "size": BASES[name].size, "test_top1": top1, "test_top5": top5,
        "trained_parameters": trained,
        "other_parameters": model.count_params() - trained,
        "frozen_convolutions": frozen, "convolutions": total,
        "training_images": len(data.Y), "held_out_images": len(data.Y_held),
        "test_images": len(data.Y_test),
        "frozen_pass": shared.frozen_pass, "history": history, **more,
        "saved_model_differs_by": difference,
        "groups": GROUPS, "confusion": confusion_matrix(
            data.group_of[truth], data.group_of[P.argmax(axis=1)],
            labels=range(len(GROUPS))).tolist(),
        "machine": transfer.machine(),
    }
    runs.write(part_path(args, name, f"{style}.json"), record)
    print(f"{report.name(record)}: test accuracy top-1 {top1:.4f}, top-5 "
          f"{top5:.4f} {report.warning([record])}")


def save_model(model, path, images, expected):
    """Write a whole model as .keras; load it back and compare.

    images: what the model takes, (m, height, width, 3) in 0..255
    expected: what the stored outputs gave for these images, (m, classes)
    Returns: the largest difference between probabilities
    Raises OSError if it can't be written or is another model when read back.
    """
    # Plain SGD has no state that a saved model would have to carry.
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    part = f"{path}.part.keras"
    try:
        model.save(part)
        found = K.models.load_model(part).predict(in_batches(images),
                                                  verbose=0)
        difference = float(np.abs(found - expected).max())
        # What is stored is float16: nearly the same, but not quite.
        if not difference < 0.05:
            raise OSError(f"{path} was not written: read back, its "
                          f"probabilities differ by {difference}")
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
    return difference


def both_styles(name, args):
    """Parts 1 and 2 for one base, as far as they aren't finished."""
    # Before keep_memory: what loading takes goes back to the system.
    data = Images(args.limit)
    transfer.keep_memory()
    shared = Shared(name, args, data)
    for style, train in (("fixed", train_fixed), ("partial", train_partial)):
        if not finished(args, name, style):
            train(shared)


def recipe(args):
    """What a run's parts must have in common, as JSON gives it back."""
    return json.loads(json.dumps({
        "limit": args.limit, "seed": args.seed, "bases": BASES,
        **{name: globals()[name] for name in (
            "CLASSIFIERS", "FIXED_EPOCHS", "PARTIAL_EPOCHS",
            "PARTIAL_BATCH", "PARTIAL_RATE", "HELD_OUT")},
        **{name: getattr(transfer, name) for name in (
            "BATCH", "LEARNING_RATE", "WEIGHT_DECAY", "LABEL_SMOOTHING",
            "MOMENTUM")}}))


def parse_arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description="Compare two styles of transfer learning on CIFAR-100. "
        "A run that was stopped goes on where it was.")
    add = parser.add_argument
    add("--bases", nargs="+", choices=BASES, metavar="BASE",
        default=["MobileNetV2", "DenseNet121"],
        help=f"from {', '.join(BASES)} (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="do all of it on N training "
        "images, to try it out; every output says so")
    add("--seed", type=int, default=0)
    add("--out", metavar="DIR", help="where everything is written (default "
        "runs/cifar100, with --limit runs/cifar100-limit-N)")
    add("--cache", metavar="DIR",
        default=transfer.cache_folder("cifar100-transfer"),
        help="where the stored outputs go, 10 GB for the default bases "
        "(%(default)s)")
    args = parser.parse_args()
    if args.limit is not None and not 200 <= args.limit <= 50000:
        parser.error("--limit is in 200 .. 50000: two images of each class "
                     "at least, all at most")
    if not 0 <= args.seed < 2 ** 32:
        parser.error("--seed is in 0 .. 2**32 - 1")
    args.out = args.out or os.path.join("runs", f"cifar100{mark(args)}")
    try:
        os.makedirs(args.out, exist_ok=True)
        os.makedirs(args.cache, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    found = runs.read_json(os.path.join(args.out, "run.json")) or {}
    if "script" in found:
        parser.error(f"{args.out} has a run of {found['script']}: choose "
                     "another --out")
    for what, value in recipe(args).items():
        if found.get(what, value) != value:
            parser.error(f"{args.out} has a run with {what} {found[what]}, "
                         f"not {value}: choose another --out, or delete it")
    return args


def run(args):
    """All bases, one after the other, and the comparison."""
    runs.claim(args.out)
    runs.write(os.path.join(args.out, "run.json"), recipe(args))
    todo = []
    for name in dict.fromkeys(args.bases):
        if all(finished(args, name, style) for style in report.STYLES):
            print(f"{name}: finished already")
        else:
            todo.append(name)
    if todo:
        both_styles(todo[0], args)
    if todo[1:]:
        # Only a new process has none of the memory that this one took.
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.argv])
    for name in args.bases:
        for path in glob.glob(os.path.join(glob.escape(args.out),
                                           f"{name}-*.npz")):
            os.remove(path)  # what a stopped training would go on from
    print(report.report(args.out))
    print(f"\nEverything is in {os.path.abspath(args.out)}; the stored "
          f"outputs in {args.cache} may be deleted now.")


def main():
    """Read the command line, and run."""
    transfer.explain(run, parse_arguments(), "mend this")


if __name__ == "__main__":
    main()
