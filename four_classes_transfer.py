#!/usr/bin/env python3
"""Lab 8: feature extraction and fine-tuning on a few classes of images.

    ./four_classes_transfer.py data.zip

DATA is a zip or folder with a folder for each class. The base sees each image
and its mirror image ONCE, which gives its features and the inputs of its last
layers. Then, on the same training images:

    feature extraction: a new classifier is trained on the features
    fine-tuning: the base's last layers are trained together with that
        classifier, at a low learning rate

Both are tested on the same images. The number of epochs is chosen on
validation images. --splits N repeats it with N - 1 other splits, for a mean
and a standard deviation. With 800 images it takes about two minutes on two
cores. It writes into --out the two models of the first split, a record of each
training, the stored outputs, a table and plots. A stopped run continues after
its last whole epoch.
"""
import os

import numpy as np
from sklearn.model_selection import train_test_split

import folders
import networks
import pictures
import report
import runs

transfer = networks.transfer
K = transfer.K

SIZE = 224              # pixels: the bases learned ImageNet at this size
SHARE = 0.15            # of the images to validate, and as many to test
LEAST = 5               # images in a class
TITLES = {"extraction": "feature extraction", "fine-tuning": "fine-tuning"}
# Of which the one with the lower validation loss is taken: with so few images,
# most validation accuracies are 100 %.
EPOCHS = {"extraction": (10, 30), "fine-tuning": (3, 10)}
# At the start; they decay to 0 along a cosine. Fine-tuning starts from layers
# that are good already, and a higher learning rate would spoil them.
LEARNING_RATES = {"extraction": 1e-3, "fine-tuning": 1e-4}
BATCH = 128             # at most; few images make smaller ones
WEIGHT_DECAY = 0.01     # these two as for CIFAR-10, where they did well
LABEL_SMOOTHING = 0.1
COMPARED = 64           # test images on which a saved model is compared


def split(labels, seed):
    """The numbers of the images to train on, to validate and to test.

    labels: an array (m,) of classes; each part has its share of each class
    """
    parts = [], [], []
    for members in (np.flatnonzero(labels == number)
                    for number in range(labels.max() + 1)):
        share = max(1, round(SHARE * len(members)))
        rest, test = train_test_split(
            members, test_size=share, random_state=seed)
        for part, some in zip(parts, (*train_test_split(
                rest, test_size=share, random_state=seed), test)):
            part.extend(some)
    return tuple(map(np.array, parts))


def build(args, classes):
    """The base with a new classifier; all else is frozen."""
    model = networks.build_with_head(
        args.base, (args.size, args.size, 3), classes)
    networks.freeze_base(model)
    return model


def cuts(model, base):
    """Where a model is cut: below it is frozen, above it is trained.

    Returns: {style: tensor}
    """
    return {"extraction": model.get_layer("head").input,
            "fine-tuning": networks.last_block(model, base).input}


def frozen_pass(args, copy):
    """Both views of all images through the base, once.

    Returns: {style: path of the stored outputs at its cut}, and the seconds
    """
    model = build(args, len(copy.classes))
    at = cuts(model, args.base)
    print(f"{args.base}: {copy.count(pictures.WHOLE):,} images and their "
          "mirror images")
    paths = transfer.frozen_outputs(
        K.Model(model.input, list(at.values())),
        pictures.Views(copy, args.size), os.path.join(args.out, "outputs"),
        np.float32)  # the model has its own preprocessing
    return dict(zip(at, paths)), networks.pass_record(paths[0])["seconds"]


def train_best(part, epochs_tried, path, **arguments):
    """Train for each number of epochs; keep the lowest validation loss.

    part: the model to train, always from the weights that it has now
    path: of the checkpoints, without what tells them apart
    arguments: of transfer.train
    Returns: the history of the training that is kept; of all
        {epochs: validation loss}; the seconds of those that aren't kept
    """
    start, kept = part.get_weights(), {}
    for epochs in epochs_tried:
        part.set_weights(start)
        history = transfer.train(
            part, epochs=epochs, checkpoint=transfer.Checkpoint(
                f"{path}-{epochs}.npz"), **arguments)
        kept[epochs] = history, part.get_weights()
    tried = {epochs: history[-1]["val_loss"]
             for epochs, (history, _) in kept.items()}
    best, weights = kept.pop(min(tried, key=tried.get))
    part.set_weights(weights)
    return best, tried, sum(epoch["seconds"] for history, _ in kept.values()
                            for epoch in history)


def train_split(args, copy, stored, seconds, number):
    """Feature extraction and then fine-tuning, on one split."""
    seed = args.seed + number
    paths = np.array(list(copy.source))
    labels = copy.labels(paths)
    train, validation, test = split(labels, seed)
    views = np.stack([train, train + len(labels)])  # mirror images come last
    Y = np.eye(len(copy.classes), dtype="float32")[np.tile(labels, 2)]
    K.utils.set_random_seed(seed)
    model = build(args, len(copy.classes))
    for style, cut in cuts(model, args.base).items():
        name = f"split-{number}-{style}"
        part = K.Model(cut, model.output)
        print(f"Split {number + 1} of {args.splits}: {style}")
        if style == "fine-tuning":
            networks.unfreeze_last_block(model, args.base)
        history, tried, before = train_best(
            part, EPOCHS[style], os.path.join(args.out, name),
            stored=stored[style], Y=Y, views=views, validation=validation,
            seed=seed, batch=BATCH, learning_rate=LEARNING_RATES[style],
            weight_decay=WEIGHT_DECAY, label_smoothing=LABEL_SMOOTHING)
        P = part.predict(transfer.batches(
            part, stored[style], test, Y, BATCH), verbose=0)
        more = {}
        if number == 0:
            more["model"] = f"{name}.keras"
            images = pictures.Views(copy, args.size)
            networks.save_model(
                model, os.path.join(args.out, more["model"]),
                np.stack([images.read(i) for i in test[:COMPARED]]),
                P[:COMPARED])
        runs.write(os.path.join(args.out, f"{name}.json"), {
            "exercise": "four classes", "title": TITLES[style],
            "split": number, "base": args.base, "size": args.size,
            "classes": copy.classes,
            "pictures": list(map(len, (train, validation, test))),
            "pass_seconds": seconds, "history": history, "tried": tried,
            "seconds_before": before, **more,
            "val_accuracy": history[-1]["val_accuracy"],
            "evaluation": folders.metrics(P, copy, paths[test]),
            "machine": runs.machine()})


def run(args):
    """All splits."""
    source = pictures.find(args.data, splits=False)
    build(args, 2)  # to find out at once if weights are missing
    copy = folders.begin(args, "four_classes_transfer.py", source, "base",
                         "size", "splits", "seed")
    for name in copy.classes:
        count = copy.count(pictures.WHOLE, name)
        if count < LEAST:
            raise OSError(f"{name}: a class of {count} images can't be split, "
                          f"expected at least {LEAST}. Add some to its "
                          "folder, or delete the folder")
    todo = [number for number in range(args.splits) if not all(
        report.is_record(runs.read_json(os.path.join(
            args.out, f"split-{number}-{style}.json"))) for style in EPOCHS)]
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
    options = folders.parser(
        "four_classes_transfer", "Feature extraction and fine-tuning on a "
        "few classes of images.", SIZE)
    add = options.add_argument
    add("--base", choices=networks.BASES, default="EfficientNetV2B0",
        metavar="BASE",
        help=f"from {', '.join(networks.BASES)} (%(default)s)")
    add("--splits", type=int, default=1, metavar="N",
        help="repeat it on N splits (%(default)s)")
    folders.start(options, run, smallest=32)


if __name__ == "__main__":
    main()
