#!/usr/bin/env python3
"""The desserts, a test a demand, on simple_cnn.py and transfer_model.py.

On images that these tests draw; with REAL_DATA=1 also on the desserts that
DESSERTS names, and with ImageNet's weights.
"""
import glob
import itertools
import json
import os
import re
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator)
from tensorflow import keras as K, make_ndarray

import networks
import pictures
import report
import runs
import simple_cnn
import small_base
import transfer_model
from helpers import (
    ROOT, Script, Stop, he_initialize, real_data, run, script, thin_out,
    usage_error, without_network)

COLOURS = {"crème brûlée": (230, 200, 90), "donut": (150, 80, 40),
           "ice cream": (180, 220, 240)}


def draw(folder, split, name, count):
    """Draw images of a class: a disc of about its colour."""
    rng = np.random.default_rng([len(name), len(split)])
    os.makedirs(os.path.join(folder, split, name))
    for i in range(count):
        width, height = rng.integers(40, 70, 2)
        image = Image.fromarray(rng.integers(
            0, 256, (height, width, 3)).astype("uint8"))
        ImageDraw.Draw(image).ellipse(
            [5, 5, width - 5, height - 5], fill=tuple(
                int(c) for c in COLOURS[name] + rng.integers(-20, 20, 3)))
        image.save(os.path.join(folder, split, name, f"{i}.jpg"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Draw a folder of three desserts."""
    folder = str(tmp_path_factory.mktemp("desserts") / "my desserts")
    for split, count in (("train", 24), ("validation", 8), ("holdout", 8)):
        for name in COLOURS:
            draw(folder, split, name, count)
    here, there = (os.path.join(folder, "holdout", name, "0.jpg")
                   for name in ("donut", "ice cream"))
    os.rename(here, f"{there}.swapped.jpg")  # so that there are mistakes
    os.rename(there, here)
    os.rename(f"{there}.swapped.jpg", there)
    return folder


@pytest.fixture(scope="module")
def copy(data, tmp_path_factory):
    """Make the clean copy of these images."""
    return pictures.clean_copy(pictures.find(data), str(
        tmp_path_factory.mktemp("copy") / "pictures"), 32)


def read(path):
    """Return the content of a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def assert_same_run(out, undisturbed, name):
    """Two runs recorded and saved the same, to the bit."""
    ours, theirs = (read(folder / f"{name}.json")
                    for folder in (out, undisturbed))
    for epoch in ours["history"] + theirs["history"]:
        epoch.pop("seconds")
    assert ours["history"] == theirs["history"]
    assert ours["evaluation"] == theirs["evaluation"]
    for mine, other in zip(*(
            K.models.load_model(folder / f"{name}.keras").get_weights()
            for folder in (out, undisturbed))):
        np.testing.assert_array_equal(mine, other)
    assert not list(out.rglob("*.npz"))


def logged(folder, name):
    """Return what TensorBoard shows of a scalar, a value for each epoch."""
    board = EventAccumulator(str(folder)).Reload()
    return [float(make_ndarray(event.tensor_proto))
            for event in board.Tensors(name)]


def assert_cosine(values, start, epochs):
    """Learning rates after each epoch decay to 0 along a cosine."""
    np.testing.assert_allclose(values, [
        start * (1 + np.cos(np.pi * (epoch + 1) / epochs)) / 2
        for epoch in range(epochs)], rtol=1e-4, atol=1e-9)


# Part 2, "Using the create_model function in simple_cnn.py"

@pytest.mark.parametrize("size, classes", [
    ((100, 100, 3), 6), ((64, 48, 3), 2), ((7, 5, 3), 20)])
def test_create_model_takes_any_size_and_number(size, classes):
    model = simple_cnn.create_model(size, classes)
    P = model.predict_on_batch(np.full((2, *size), 99, "float32"))
    assert P.shape == (2, classes)
    np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-5)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Conv2D") >= 2
    assert {"MaxPooling2D", "Dropout"} < set(kinds)


# "for both, use the Xception preprocessor"

def test_images_are_preprocessed_as_for_xception():
    X = np.random.default_rng(0).uniform(0, 255, (2, 20, 20, 3))
    first = simple_cnn.create_model((20, 20, 3), 2).layers[0]
    np.testing.assert_allclose(
        first(X.astype("float32")),
        K.applications.xception.preprocess_input(X.copy()), atol=1e-5)


# "don't use augmentation in the validation datagen"

def seen_by_fit(copy, folder, seed):
    """Return the images and labels that two epochs train on and validate."""
    seen = []

    class Model(K.Model):
        """A model that only looks."""

        def fit(self, *datasets, validation_data, **options):
            """Look at an epoch; stop after two."""
            seen.append([tuple(map(np.concatenate, zip(*dataset)))
                         for dataset in (*datasets, validation_data)])
            if len(seen) == 2:
                raise Stop

    inputs = K.Input((32, 32, 3))
    model = Model(inputs, K.layers.Dense(3)(K.layers.Flatten()(inputs)))
    model.compile("sgd", "mse")
    args = types.SimpleNamespace(out=str(folder), seed=seed)
    with pytest.raises(Stop):
        simple_cnn.train(model, copy, args, 2, "simple", batch=16)
    return zip(*seen)


def differences(X, others):
    """Return how far each image is from the nearest of the others."""
    return np.array([np.abs(others - x).mean(axis=(1, 2, 3)).min()
                     for x in X])


def test_only_training_images_are_augmented(copy, tmp_path):
    training, validation = seen_by_fit(copy, tmp_path, 0)
    X, Y = map(np.concatenate, zip(*copy.dataset("validation", 32, 16)))
    for images, labels in validation:
        np.testing.assert_array_equal(images, X)
        np.testing.assert_array_equal(labels, Y)
    original = np.concatenate([x for x, _ in copy.dataset("train", 32, 16)])
    for images, labels in training:
        assert images.shape == original.shape == (72, 32, 32, 3)
        assert np.mean(differences(images, original) > 1) > 0.9
        # An augmented image still has its class's colour in the middle.
        middles = images[:, 12:20, 12:20].mean(axis=(1, 2))
        distances = [np.abs(middles - COLOURS[name]).sum(axis=1)
                     for name in sorted(COLOURS)]
        np.testing.assert_array_equal(
            np.argmin(distances, axis=0), labels.argmax(axis=1))
    (first, _), (second, _) = training
    assert np.mean(differences(first, second) > 1) > 0.9


def test_order_and_augmentation_depend_on_the_seed(copy, tmp_path):
    (one, _), (same, _), (other, _) = (
        next(iter(seen_by_fit(copy, tmp_path, seed)))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.mean(differences(one, other) > 1) > 0.9


# "save_best_only=True"

class Worse(K.callbacks.Callback):
    """Says that each epoch is worse than the one before."""

    def on_epoch_end(self, epoch, logs=None):
        """Change what the next callbacks see."""
        logs["val_accuracy"] = 0.9 - 0.1 * epoch


def train_small(copy, folder, epochs, **phase):
    """Train a small network; return the best weights and the history."""
    K.utils.set_random_seed(0)
    model = K.Sequential([
        K.Input((8, 8, 3)), K.layers.Flatten(), K.layers.Rescaling(0.01),
        K.layers.Dense(3, activation="softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    os.makedirs(folder, exist_ok=True)
    best, history = simple_cnn.train(
        model, copy, types.SimpleNamespace(out=str(folder), seed=0), epochs,
        "small", batch=16, **phase)
    return best.get_weights(), history


def test_the_best_epoch_is_kept_and_not_the_last(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(K.callbacks, "TensorBoard",
                        lambda *arguments, **options: Worse())
    first, _ = train_small(copy, tmp_path / "{stopped} [a] *", 1)
    resumed, history = train_small(copy, tmp_path / "{stopped} [a] *", 3)
    assert [round(row["val_accuracy"], 1) for row in history] == [
        0.9, 0.8, 0.7]
    at_once, _ = train_small(copy, tmp_path / "at once", 3)
    for best in resumed, at_once:
        for ours, theirs in zip(best, first):
            np.testing.assert_array_equal(ours, theirs)
    assert [path.name for path in tmp_path.rglob("*.keras")] == [
        "small.keras"] * 2


def test_the_best_of_both_phases_is_kept(copy, tmp_path):
    warmed_up, history = train_small(copy, tmp_path, 1, phase="warm-up")
    history[0]["val_accuracy"] = 1.0
    best, history = train_small(
        copy, tmp_path, 1, phase="fine-tuning", before=history)
    assert [row["phase"] for row in history] == ["warm-up", "fine-tuning"]
    for ours, theirs in zip(best, warmed_up):
        np.testing.assert_array_equal(ours, theirs)


# The script as a process: "Run your model for a few epochs"

SIMPLE = ("--size", 32, "--epochs", 4, "--rate", 2e-3)


@pytest.fixture(scope="module")
def simple(data, tmp_path_factory):
    """Run simple_cnn.py: killed in its third epoch, and undisturbed."""
    folder = tmp_path_factory.mktemp("simple")
    os.mkdir(folder / "undisturbed")
    runs.write(folder / "undisturbed" / "run.json", {
        "script": "simple_cnn.py", "arguments": {}, "finished": True})
    (folder / "undisturbed" / "left over").write_text("")
    other = Script("simple_cnn.py", folder, data, *SIMPLE, "--out",
                   "undisturbed", "--overwrite")
    Script("simple_cnn.py", folder, data, *SIMPLE).kill(
        lambda printed: "Epoch 3/4" in printed)
    done = script("simple_cnn.py", folder, data, *SIMPLE)
    undisturbed = other.wait()
    assert done.returncode == 0, done.stderr
    assert undisturbed.returncode == 0, undisturbed.stderr
    return folder, done.stdout, undisturbed.stdout


def test_it_says_what_is_in_the_folder(simple):
    _, printed, _ = simple
    assert re.search(
        r"120 images of 3 classes, with sides of 4\d to 6\d pixels", printed)
    for name in COLOURS:
        assert re.search(rf"{name} +8 +24 +8", printed)


def test_a_killed_run_ends_as_an_undisturbed_one(simple):
    folder, printed, undisturbed = simple
    assert "Continuing the run in runs/simple_cnn" in printed
    done = int(re.search(r"Continuing after epoch (\d)", printed).group(1))
    assert done >= 2 and f"Epoch {done}/4" not in printed
    assert "Continuing" not in undisturbed and "Epoch 1/4" in undisturbed
    out = folder / "runs" / "simple_cnn"
    assert len(read(out / "simple.json")["history"]) == 4
    assert_same_run(out, folder / "undisturbed", "simple")


def test_overwrite_starts_again_from_nothing(simple):
    folder, _, undisturbed = simple
    assert "Continuing" not in undisturbed
    assert not (folder / "undisturbed" / "left over").exists()


# "Start with target_size 100x100 and batch_size 16"

def test_the_exercise_s_sizes_are_the_defaults(simple, monkeypatch):
    assert "5/5 - " in simple[1]  # 72 images in batches of 16
    seen = []
    monkeypatch.setattr(simple_cnn, "run", seen.append)
    monkeypatch.setattr(sys, "argv", ["simple_cnn.py", "x"])
    simple_cnn.main()
    assert seen[0].size == 100


# "add a tensorboard callback"

def test_tensorboard_shows_the_training(simple):
    folder, printed, _ = simple
    assert "tensorboard --logdir runs/simple_cnn/logs" in printed
    logs = folder / "runs/simple_cnn/logs/simple/training"
    history = read(folder / "runs/simple_cnn/simple.json")["history"]
    for part, key in (("train", "accuracy"), ("validation", "val_accuracy")):
        np.testing.assert_allclose(
            logged(logs / part, "epoch_accuracy"),
            [epoch[key] for epoch in history], rtol=1e-6)
    assert_cosine(logged(logs / "train", "epoch_learning_rate"), 2e-3, 4)


# "load your best model from disk", "evaluate our model on the holdout set"

def test_the_best_model_is_evaluated_on_the_holdout(simple, data):
    folder, printed, _ = simple
    record = read(folder / "runs/simple_cnn/simple.json")
    model = K.models.load_model(folder / "runs/simple_cnn/simple.keras")
    accuracy = {}
    for split in "validation", "holdout":
        images, labels = [], []
        for number, name in enumerate(sorted(COLOURS)):
            for path in glob.glob(os.path.join(data, split, name, "*")):
                images.append(np.asarray(
                    Image.open(path).resize((32, 32), Image.LANCZOS)))
                labels.append(number)
        P = model.predict_on_batch(np.array(images, "float32"))
        accuracy[split] = np.mean(P.argmax(axis=1) == labels)
    assert max(row["val_accuracy"] for row in record["history"]) == (
        pytest.approx(accuracy["validation"]))
    evaluation = record["evaluation"]
    assert evaluation["accuracy"] == pytest.approx(accuracy["holdout"])
    assert 0.5 < evaluation["accuracy"] < 1  # chance: 0.33
    assert f"{100 * evaluation['accuracy']:.1f} %" in printed
    for _, source, truth, _, _ in evaluation["answers"]:
        assert source.split("/")[-2] == sorted(COLOURS)[truth]


def test_plots_and_a_table_show_how_good_it_is(simple):
    out = simple[0] / "runs" / "simple_cnn"
    for name in ("curves", "confusion-simple-network",
                 "mistakes-simple-network"):
        plot = np.asarray(Image.open(out / f"{name}.png"))
        assert 1400 <= plot.shape[1] <= 1800 and plot.std() > 10
    assert "| holdout accuracy (95 % interval) |" in (
        out / "table.md").read_text()


def test_predict_says_what_is_on_an_image(simple, data):
    folder = simple[0]
    rows = read(folder / "runs/simple_cnn/simple.json")[
        "evaluation"]["answers"][::5]
    own = [os.path.join(data, row[1]) for row in rows]
    done = script("simple_cnn.py", folder, "--predict", *own, __file__)
    assert done.returncode == 1
    assert f"{__file__} can't be read" in done.stderr
    assert done.stdout.splitlines() == ["simple.keras:"] + [
        f"{path}: {sorted(COLOURS)[row[3]]}, {100 * row[4]:.1f} %"
        for path, row in zip(own, rows)]


@pytest.mark.parametrize("arguments, words", [
    (SIMPLE, "a finished run"),
    (("--size", 40), "size 32 instead of 40"),
    (("--out", "."), "isn't a run"),
    (("--out", ".", "--overwrite"), "isn't a run")])
def test_what_must_stay_is_refused(simple, data, arguments, words):
    folder = simple[0]
    before = sorted(folder.rglob("*"))
    done = script("simple_cnn.py", folder, data, *arguments)
    assert done.returncode == 2 and words in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_cifar100_transfer_leaves_this_run_alone(simple):
    done = script("cifar100_transfer.py", simple[0], "--out",
                  "runs/simple_cnn")
    assert done.returncode == 2 and "a run of simple_cnn.py" in done.stderr


def test_a_typo_does_not_cost_the_run_that_overwrite_names(simple):
    folder = simple[0]
    done = script("simple_cnn.py", folder, "desserts.zpi", "--overwrite")
    assert done.returncode == 1
    assert "desserts.zpi doesn't exist" in done.stderr
    assert (folder / "runs" / "simple_cnn" / "simple.keras").exists()


def test_any_number_of_classes(tmp_path):
    """Two or twenty, with one image of each to validate and to test.

    Of three, that to test is split off the training images.
    """
    rng, started = np.random.default_rng(0), {}
    for classes in 2, 20, 3:
        for split, count in (("train", 2), ("valid", 1), ("test", 1))[
                :2 if classes == 3 else 3]:
            for number in range(classes):
                folder = (tmp_path / f"{classes}" / split /
                          f"{{n° {number}}} 100%")
                os.makedirs(folder)
                for i in range(count):
                    Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(
                        "uint8")).save(folder / f"{i}.png")
        started[classes] = Script(
            "simple_cnn.py", tmp_path, classes, "--size", 16, "--epochs", 1,
            "--out", f"out {{here}} {classes}")
    for classes, run_of_it in started.items():
        done = run_of_it.wait()
        assert done.returncode == 0, done.stderr
        record = read(tmp_path / f"out {{here}} {classes}" / "simple.json")
        assert len(record["classes"]) == classes
        assert np.sum(record["evaluation"]["confusion"]) == classes
        assert ("images become the holdout set" in done.stdout) == (
            classes == 3)


@pytest.mark.parametrize("main, arguments, words", [
    (simple_cnn.main, [], "DATA is missing"),
    (simple_cnn.main, ["x", "--size", 0], "--size is 0, expected 1 to"),
    (simple_cnn.main, ["x", "--size", 1025], "expected 1 to 1024"),
    (simple_cnn.main, ["x", "--epochs", 0], "--epochs is 0"),
    (simple_cnn.main, ["x", "--epochs", 1001], "expected 1 to 1000"),
    (simple_cnn.main, ["x", "--rate", 2], "--rate is 2.0"),
    (simple_cnn.main, ["x", "--rate", "nan"], "--rate is nan, expected more"),
    (transfer_model.main, ["x", "--size", 31], "--size is 31, expected 32"),
    (transfer_model.main, ["x", "--warm-up", -1], "--warm-up is -1, expected"),
    (transfer_model.main, ["x", "--warm-up-rate", 0], "--warm-up-rate is 0.0"),
    (transfer_model.main, ["x", "--fine", 0], "--fine is 0"),
    (transfer_model.main, ["x", "--fine-rate", "inf"], "--fine-rate is inf"),
    (transfer_model.main, ["x", "--base", "VGG"], "VGG16"),
    (transfer_model.main, ["x", "--base", ""], "--base: invalid choice: ''"),
    (transfer_model.main, ["x", "--optimizer", "lion"], "rmsprop"),
    (transfer_model.main, ["x", "--batch-norm", "x"], "frozen"),
    (transfer_model.main, ["x", "--simple", ""], "--simple is ''")])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, main, arguments, words):
    assert words in usage_error(
        main, monkeypatch, capsys, tmp_path, *arguments).splitlines()[-1]


def test_a_typo_on_the_real_command_line(tmp_path):
    done = run([os.path.join(ROOT, "simple_cnn.py"), "x", "--sise", 10],
               tmp_path, dict(os.environ, PATH=os.pathsep.join([
                   os.path.dirname(sys.executable), os.environ["PATH"]])))
    assert done.returncode == 2 and "--sise" in done.stderr
    assert "Traceback" not in done.stderr and not os.listdir(tmp_path)


# Part 3, "adds a new head for our current task onto it"

PREPROCESS = {"Xception": K.applications.xception,
              "MobileNetV2": K.applications.mobilenet_v2,
              "EfficientNetV2B0": K.applications.efficientnet_v2,
              "DenseNet121": K.applications.densenet,
              # not in networks.BASES
              "VGG16": K.applications.vgg16,
              "MobileNetV3Small": K.applications.mobilenet_v3}


@pytest.fixture(scope="module", params=PREPROCESS)
def base(request):
    """Put a new head on a base with random weights; return its name, too."""
    return request.param, he_initialize(transfer_model.create_transfer_model(
        (72, 72, 3), 4, weights=None,
        model=getattr(K.applications, request.param)))


def test_the_base_has_a_new_head(base):
    name, model = base
    assert [type(layer).__name__ for layer in model.layers[-2:]] == [
        "GlobalAveragePooling2D", "Dense"]
    assert model.output_shape == (None, 4)
    assert model.layers[-1].activation is K.activations.softmax
    W, b = model.layers[-1].get_weights()
    assert not W.any() and not b.any()  # no opinion to begin with
    original = getattr(K.applications, name)(
        include_top=False, weights=None, pooling="avg",
        input_shape=(72, 72, 3))
    original.set_weights(model.get_weights()[:-2])
    X = np.random.default_rng(0).uniform(0, 255, (2, 72, 72, 3)).astype(
        "float32")
    expected = original(PREPROCESS[name].preprocess_input(X.copy()),
                        training=False)
    features = K.Model(model.input, model.layers[-1].input)(
        X, training=False)
    assert np.std(features) > 1e-3  # or nothing would be compared
    np.testing.assert_allclose(features, expected, rtol=1e-3,
                               atol=1e-3 * np.abs(expected).max())


def test_xception_is_the_default(monkeypatch):
    assert transfer_model.create_transfer_model.__defaults__ == (
        "imagenet", K.applications.Xception)
    seen = []
    monkeypatch.setattr(transfer_model, "run", seen.append)
    monkeypatch.setattr(sys, "argv", ["transfer_model.py", "x"])
    transfer_model.main()
    assert seen[0].base == ["Xception"]


# "Set all of the layers except for the new head to untrainable", "unfreeze
# the 14th convolutional block onward"

FIRST = {"Xception": "block14_sepconv1", "MobileNetV2": "block_14_expand",
         "EfficientNetV2B0": "block6a_expand_conv",
         "DenseNet121": "conv5_block1_0_bn", "VGG16": "block5_conv1",
         # whose padding belongs to the block, too
         "MobileNetV3Small": "expanded_conv_8_depthwise"}


def test_which_layers_change_in_which_phase(base):
    name, model = base
    X = np.random.default_rng(0).uniform(0, 255, (4, 72, 72, 3))
    names = [layer.name for layer in model.layers]
    last = [layer.name for layer in model.layers[names.index(FIRST[name]):]
            if layer.weights
            and not isinstance(layer, K.layers.BatchNormalization)]
    for prepare, expected in (
            (networks.freeze_base, ["head"]),
            (lambda model: networks.unfreeze_last_block(model, name), last)):
        prepare(model)
        transfer_model.compile_model(model, "adam", None, 5, 10)
        model.run_eagerly = True  # a graph would take longer to build
        before = {layer.name: layer.get_weights() for layer in model.layers}
        for _ in range(2):  # as a head of zeros gives no gradient
            model.train_on_batch(X.astype("float32"), np.eye(4))
        assert [layer.name for layer in model.layers if any(
            not np.array_equal(old, new) for old, new in zip(
                before[layer.name], layer.get_weights()))] == expected
    assert len(last) >= 3


# "use a lower learning rate than you normally would ~(2x to 10x smaller)"

@pytest.mark.parametrize("optimizer", transfer_model.OPTIMIZERS)
def test_the_head_is_warmed_up_slowly(optimizer):
    model = simple_cnn.create_model((8, 8, 3), 2)
    default = float({"adam": K.optimizers.Adam, "sgd": K.optimizers.SGD,
                     "rmsprop": K.optimizers.RMSprop}[
                         optimizer]().learning_rate)
    rates = []
    for divisor in (transfer_model.WARM_UP_LR_DIVISOR,
                    transfer_model.FINE_LR_DIVISOR):
        transfer_model.compile_model(model, optimizer, None, divisor, 100)
        rates.append(float(model.optimizer.learning_rate))
        assert type(model.optimizer).__name__.lower() == optimizer
    assert 2 <= default / rates[0] <= 10 and rates[1] < rates[0]


def test_labels_are_smoothed_and_the_learning_rate_decays():
    model = simple_cnn.create_model((8, 8, 3), 2)
    transfer_model.compile_model(model, "adam", 0.007, 5, 100)
    for step, share in ((0, 1), (50, 0.5), (100, 0)):
        model.optimizer.iterations.assign(step)
        assert float(model.optimizer.learning_rate) == pytest.approx(
            0.007 * share, abs=1e-7)
    X, Y = np.full((1, 8, 8, 3), 99.0, "float32"), np.eye(2)[:1]
    log_p = np.log(model.predict_on_batch(X)[0])
    assert model.test_on_batch(X, Y)[0] == pytest.approx(
        -0.95 * log_p[0] - 0.05 * log_p[1], 1e-4)


# "recompile and continue training", "Is it better than the simple ConvNet?"

TRANSFER = ("--base", "MobileNetV2", "--size", 40, "--warm-up", 1, "--fine",
            2, "--warm-up-rate", 1e-3, "--fine-rate", 2e-2, "--batch-norm",
            "frozen")


@pytest.fixture(scope="module")
def transferred(simple, data):
    """Run transfer_model.py: killed in fine-tuning, and undisturbed.

    Then without a simple network, and then with it.
    """
    folder = simple[0]
    arguments = ("tests/small_base.py", folder, "transfer_model", data,
                 *TRANSFER)
    other = Script(*arguments, "--out", "undisturbed 3")
    arguments += ("--optimizer", "adam", "sgd")
    checkpoint = "runs/transfer_model/MobileNetV2-adam-fine-tuning.npz"
    Script(*arguments).kill(
        lambda printed: os.path.exists(folder / checkpoint))
    outputs = []
    for simple_folder in "runs/not yet", "runs/simple_cnn":
        done = script(*arguments, "--simple", simple_folder)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    undisturbed = other.wait()
    assert undisturbed.returncode == 0, undisturbed.stderr
    return folder, outputs


def test_a_killed_transfer_ends_as_an_undisturbed_one(transferred):
    folder, (printed, _) = transferred
    assert re.search("MobileNetV2-adam, warm-up.*\nContinuing after epoch 1\n"
                     "MobileNetV2-adam, fine-tuning.*\n"
                     "Continuing after epoch [12]\n", printed)
    assert re.search("MobileNetV2-sgd, warm-up.*\n5/5 - ", printed)
    assert_same_run(folder / "runs" / "transfer_model",
                    folder / "undisturbed 3", "MobileNetV2-adam")


def test_each_phase_has_its_epochs_and_learning_rate(transferred):
    out = transferred[0] / "runs" / "transfer_model"
    for optimizer in "adam", "sgd":
        record = read(out / f"MobileNetV2-{optimizer}.json")
        assert [row["phase"] for row in record["history"]] == (
            ["warm-up"] + ["fine-tuning"] * 2)
        logs = out / "logs" / f"MobileNetV2-{optimizer}"
        for phase, start, epochs in (("warm-up", 1e-3, 1),
                                     ("fine-tuning", 2e-2, 2)):
            assert_cosine(logged(logs / phase / "train",
                                 "epoch_learning_rate"), start, epochs)


def test_only_the_last_block_and_the_head_are_trained(
        transferred, monkeypatch):
    monkeypatch.setattr(K.applications, "MobileNetV2", small_base.MobileNetV2)
    for optimizer in "adam", "sgd":
        path = transferred[0] / f"runs/transfer_model/MobileNetV2-{optimizer}"
        history = read(f"{path}.json")["history"]
        best = max(history, key=lambda epoch: epoch["val_accuracy"])
        model = networks.build_with_head(
            "MobileNetV2", (40, 40, 3), 3, weights=None)
        saved = K.models.load_model(f"{path}.keras")
        assert [layer.name for layer in model.layers if any(
            not np.array_equal(ours, theirs) for ours, theirs in zip(
                layer.get_weights(),
                saved.get_layer(layer.name).get_weights()))] == {
            "warm-up": ["head"],
            "fine-tuning": ["block_14_expand", "Conv_1", "head"],
        }[best["phase"]]
        # or the last block would not be looked at
        assert optimizer != "adam" or best["phase"] == "fine-tuning"


def test_without_a_simple_network_its_command_is_named(transferred):
    folder, (first, second) = transferred
    assert "./simple_cnn.py" in first and "not yet" in first
    assert "Is MobileNetV2" not in first
    assert "Epoch" in first and "Epoch" not in second


def test_both_are_compared_on_the_same_images(transferred, data):
    folder, (_, printed) = transferred
    out = folder / "runs" / "transfer_model"
    simple = read(out / "simple.json")["evaluation"]
    alone = read(folder / "runs/simple_cnn/simple.json")["evaluation"]
    assert [row[1:] for row in simple["answers"]] == [
        row[1:] for row in alone["answers"]]
    for optimizer in "adam", "sgd":
        record = read(out / f"MobileNetV2-{optimizer}.json")
        ours, theirs = (
            {row[1]: row[2] == row[3] for row in evaluation["answers"]}
            for evaluation in (record["evaluation"], simple))
        assert set(ours) == set(theirs) and len(ours) == 24
        pair = record["against_simple"]
        assert pair["only_this_right"] == sum(
            ours[path] and not theirs[path] for path in ours)
        assert pair["only_other_right"] == sum(
            theirs[path] and not ours[path] for path in ours)
        assert f"Is MobileNetV2, {optimizer} better than the simple" in (
            printed)
    assert "| simple network | MobileNetV2, adam | MobileNetV2, sgd |" in (
        out / "table.md").read_text()
    assert (out / "accuracies.png").exists()


def test_batchnorm_of_the_last_block_is_frozen_or_trained(simple, data):
    folder = simple[0]
    done = script(
        "tests/small_base.py", folder, "transfer_model", data, *TRANSFER,
        "--fine", 1, "--batch-norm", "frozen", "trained", "--out", "norms")
    assert done.returncode == 0, done.stderr
    table = (folder / "norms" / "table.md").read_text()
    assert ("| simple network | MobileNetV2, adam | MobileNetV2, adam, "
            "BatchNorm trained |") in table
    assert "Best on the validation images: MobileNetV2, adam" in table
    for name, how in (("MobileNetV2-adam", "frozen"),
                      ("MobileNetV2-adam-batch-norm", "trained")):
        assert read(folder / "norms" / f"{name}.json")["batch_norm"] == how


def test_a_simple_network_that_learned_other_images(simple, tmp_path):
    for split, name in itertools.product(
            ("train", "validation", "holdout"), COLOURS):
        draw(tmp_path / "other", split, name, 1)
    done = script("transfer_model.py", tmp_path, "other", "--simple",
                  simple[0] / "runs" / "simple_cnn")
    assert done.returncode == 1 and "choose another --simple" in done.stderr
    assert os.listdir(tmp_path) == ["other"]


@pytest.mark.parametrize("content", [
    None, b"[1]", b"{", b'{"script": "simple_cnn.py", "arguments": []}'])
def test_a_simple_network_whose_run_is_unknown(
        simple, data, tmp_path, content):
    shutil.copy(simple[0] / "runs/simple_cnn/simple.json", tmp_path)
    if content:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(OSError, match="a run of None on None, expected "
                       "simple_cnn.py on my desserts .*another --simple"):
        transfer_model.find_simple(str(tmp_path), pictures.find(data))


@pytest.mark.parametrize("content", [b"[1]", b'{"title": 1}', b"{", b"1"])
def test_another_program_s_simple_json_is_no_network(
        data, tmp_path, content):
    (tmp_path / "simple.json").write_bytes(content)
    assert transfer_model.find_simple(
        str(tmp_path), pictures.find(data)) is None


def test_missing_weights_are_named(data, tmp_path):
    """At once, and that command isn't refused."""
    done = run([sys.executable, os.path.join(ROOT, "transfer_model.py"),
                data], tmp_path, without_network(tmp_path / "home"))
    assert done.returncode == 69
    assert "xception" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["home"]


def test_the_readme_says_what_old_names_are_called_today():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    for name in ("ImageDataGenerator", "flow_from_directory", "fit_generator",
                 "steps_per_epoch", "evaluate_generator"):
        assert name in readme


# On real images

needs_desserts = pytest.mark.skipif(
    "DESSERTS" not in os.environ,
    reason="needs a zip of desserts: DESSERTS=path")


@real_data
@needs_desserts
def test_real_desserts_end_to_end(tmp_path):
    data = os.path.abspath(os.environ["DESSERTS"])
    done = script("simple_cnn.py", tmp_path, data, "--size", 48, "--epochs",
                  2)
    assert done.returncode == 0, done.stderr
    done = script("transfer_model.py", tmp_path, data, "--base",
                  "MobileNetV2", "--size", 64, "--warm-up", 1, "--fine", 1)
    assert done.returncode == 0, done.stderr
    accuracy = {report.name(record): record["evaluation"]["accuracy"]
                for record in report.read(tmp_path / "runs/transfer_model")}
    assert accuracy["simple network"] > 0.2  # chance: 0.17
    name = "MobileNetV2, adam, BatchNorm trained"  # by default
    assert accuracy[name] > 0.45
    assert f"Is {name} better than the simple network? Yes" in done.stdout


@real_data
@needs_desserts
def test_killed_anywhere_both_end_as_undisturbed(tmp_path):
    thin_out(os.environ["DESSERTS"], tmp_path / "few.zip", 15)
    for name, model, arguments, moments in (
            ("simple_cnn", "simple", ("--epochs", 2), [
                lambda printed: os.path.exists(out / "pictures.part"),
                lambda printed: "simple, training" in printed,
                lambda printed: "Epoch 2/2" in printed]),
            ("transfer_model", "MobileNetV2-adam-batch-norm", (
                "--base", "MobileNetV2", "--warm-up", 1, "--fine", 2,
                "--simple", "simple_cnn-killed"), [
                lambda printed: list(out.glob("*-warm-up.npz")),
                lambda printed: "fine-tuning" in printed,
                lambda printed: list(out.glob("*-fine-tuning.npz")),
                lambda printed: list(out.glob("*-batch-norm.json"))])):
        arguments = (f"{name}.py", tmp_path, "few.zip", "--size", 64,
                     *arguments, "--out")
        undisturbed = script(*arguments, name)
        assert undisturbed.returncode == 0, undisturbed.stderr
        out = tmp_path / f"{name}-killed"
        for moment in moments:
            Script(*arguments, out.name).kill(moment)
        done = script(*arguments, out.name)
        assert done.returncode == 0, done.stderr
        assert_same_run(out, tmp_path / name, model)
