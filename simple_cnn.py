#!/usr/bin/env python3
"""Desserts, parts 1 and 2: a small convolutional network from scratch.

    ./simple_cnn.py DATA

DATA is a folder or zip with train, validation and holdout, each with a folder
for each class. If validation or holdout is missing, 15 % of the training
images take its place. The network is trained on the training images; the
epoch with the best validation accuracy is kept and evaluated once on the
holdout. With 4,200 images it takes about 15 minutes on two cores. It writes
into --out the model (simple.keras), its record (simple.json), logs for
TensorBoard, a table and plots. A stopped run continues after its last whole
epoch, and ends with the same model as an undisturbed one.
"""
import glob
import os
import shlex

import numpy as np

import folders
import pictures
import report
import runs

transfer = __import__("0-transfer")
K = transfer.K

SIZE = 100              # pixels, the exercise's; any size will do
BATCH = 16              # the exercise's
EPOCHS = 40             # from scratch, and augmented, it learns slowly
LEARNING_RATE = 1e-3    # Adam's default; decays to 0 along a cosine
DROPOUT = 0.3
MOMENTUM = 0.9          # of BatchNorm: at 0.99 its averages lag behind


def create_model(input_size, n_categories):
    """A small convolutional network: feed it 0..255, do not preprocess again.

    input_size: (height, width, 3)
    n_categories: how many classes
    Returns: a K.Model, RGB images in 0..255 -> (m, n_categories)
    """
    model = K.Sequential([
        K.Input(input_size),
        # Xception's preprocess_input, as a layer that is saved with the model
        K.layers.Rescaling(1 / 127.5, offset=-1)])
    for filters in 16, 32, 64, 128, 256:
        model.add(K.layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(K.layers.BatchNormalization(momentum=MOMENTUM))
        model.add(K.layers.ReLU())
        # "same", or an image of a few pixels would be pooled to nothing
        model.add(K.layers.MaxPooling2D(padding="same"))
    model.add(K.layers.GlobalAveragePooling2D())
    model.add(K.layers.Dropout(DROPOUT))
    model.add(K.layers.Dense(n_categories, activation="softmax"))
    return model


def augmentation():
    """Augmentation layers, for images in 0..255."""
    return K.Sequential([
        K.layers.RandomFlip("horizontal"),
        K.layers.RandomRotation(0.05),
        K.layers.RandomTranslation(0.1, 0.1),
        K.layers.RandomZoom((-0.2, 0.1))])


def augmented(copy, size, batch, seed):
    """The training images of one epoch.

    Their order and augmentation depend on the seed alone, so a resumed
    training sees the same images as an undisturbed one.
    """
    K.utils.set_random_seed(seed)
    augment = augmentation()
    # One batch after the other: in parallel, chance would decide which batch
    # gets which of the layers' random numbers.
    return transfer.without_autotune(
        copy.dataset("train", size, batch, seed).map(
            lambda x, y: (augment(x, training=True), y)).prefetch(2))


def train(model, copy, args, epochs, name, *, batch, phase="training",
          before=()):
    """Train, and load the epoch with the best validation accuracy.

    model: compiled, images -> classes
    copy: the clean Copy of the images
    args: the command line: out, seed
    name: of the model's files in args.out
    phase, before: if a model is trained in two phases, this one's name and
        the history of the one before, whose best epoch counts, too
    Returns: the best model, and the history, a list with a dict an epoch
    """
    size, logs = model.input_shape[1], os.path.join(args.out, "logs")
    print(f"{name}, {phase}. To watch it: tensorboard --logdir "
          f"{shlex.quote(logs)}")
    checkpoint = transfer.Checkpoint(
        os.path.join(args.out, f"{name}-{phase}.npz"), phase=phase)
    checkpoint.set_model(model)
    checkpoint.restore()
    saved = os.path.join(args.out.replace("{", "{{").replace("}", "}}"),
                         f"{name}-{phase}-{{epoch}}.keras")

    def accuracies():
        """The validation accuracies of all epochs so far."""
        return [epoch["val_accuracy"]
                for epoch in [*before, *checkpoint.history]]

    def best_epoch():
        """Where the best epoch's model is saved, if it is one of this phase.
        """
        best = accuracies().index(max(accuracies()))
        return saved.format(epoch=best + 1 - len(before))

    def end_epoch(epoch, logs=None):
        """Delete all models but the best epoch's, and return from fit."""
        for path in glob.glob(os.path.join(
                glob.escape(args.out), f"{name}-{phase}-*.keras")):
            if path != best_epoch():
                os.remove(path)
        model.stop_training = True

    save_best = K.callbacks.ModelCheckpoint(
        saved, monitor="val_accuracy", mode="max", save_best_only=True,
        initial_value_threshold=max(accuracies(), default=None))
    validation = transfer.without_autotune(
        copy.dataset("validation", size, batch))
    for epoch in range(len(checkpoint.history), epochs):
        seed = np.random.default_rng([args.seed, len(before) + epoch])
        model.fit(
            augmented(copy, size, batch, int(seed.integers(2 ** 31))),
            validation_data=validation, initial_epoch=epoch, epochs=epochs,
            shuffle=False,  # the dataset is shuffled already
            verbose=transfer.bar_or_lines(), callbacks=[
                K.callbacks.TensorBoard(os.path.join(logs, name, phase),
                                        write_graph=epoch == 0),
                save_best,
                checkpoint,  # after it: the epoch is done once it is saved
                K.callbacks.LambdaCallback(on_epoch_end=end_epoch)])
    path = os.path.join(args.out, f"{name}.keras")
    if os.path.exists(best_epoch()):
        os.replace(best_epoch(), path)
    return folders.load(path), [*before, *checkpoint.history]


def run(args):
    """Parts 1 and 2."""
    copy = folders.begin(args, "simple_cnn.py", pictures.find(args.data),
                         "size", "epochs", "rate", "seed")
    K.utils.set_random_seed(args.seed)
    model = create_model((args.size, args.size, 3), len(copy.classes))
    steps = -(-copy.count("train") // BATCH)
    model.compile(
        K.optimizers.Adam(K.optimizers.schedules.CosineDecay(
            args.rate, args.epochs * steps)),
        "categorical_crossentropy", metrics=["accuracy"])
    model, history = train(model, copy, args, args.epochs, "simple",
                           batch=BATCH)
    folders.record(args.out, "simple", model, copy, history,
                   title="simple network")
    text = report.report(args.out)
    runs.finish(args.out)
    print(text)


def main():
    """Read the command line, and run."""
    options = folders.parser(
        "simple_cnn", "Train a small convolutional network on a folder of "
        "images.", SIZE)
    add = options.add_argument
    add("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    add("--rate", type=float, default=LEARNING_RATE,
        help="learning rate (%(default)s)")
    folders.start(options, run)


if __name__ == "__main__":
    main()
