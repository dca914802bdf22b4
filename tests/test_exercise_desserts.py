#!/usr/bin/env python3
"""The desserts, a test a demand, on simple_cnn.py and transfer_model.py.

On folders that these tests draw; with REAL_DATA=1 on the desserts that
DESSERTS names as well, and on ImageNet's weights.
"""
import glob
import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.stats import norm
from tensorflow import keras as K

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [ROOT, HERE]
import pictures  # noqa: E402
import report  # noqa: E402
import simple_cnn  # noqa: E402
import transfer_model  # noqa: E402
from test_exercise_0 import (  # noqa: E402
    kill, real_data, run as run_command, without_network)
from test_exercise_cifar100 import lively  # noqa: E402

APPLICATIONS = {"Xception": "xception", "MobileNetV2": "mobilenet_v2",
                "DenseNet121": "densenet"}
COLOURS = {"crème brûlée": (230, 200, 90), "donut": (150, 80, 40),
           "ice cream": (180, 220, 240)}


def draw(folder, split, name, count):
    """Draw pictures of a class: a disc of about its colour."""
    rng = np.random.default_rng([len(name), len(split)])
    os.makedirs(os.path.join(folder, split, name))
    for i in range(count):
        width, height = rng.integers(40, 70, 2)
        picture = Image.fromarray(rng.integers(
            0, 256, (height, width, 3)).astype("uint8"))
        ImageDraw.Draw(picture).ellipse(
            [5, 5, width - 5, height - 5], fill=tuple(
                int(c) for c in COLOURS[name] + rng.integers(-20, 20, 3)))
        picture.save(os.path.join(folder, split, name, f"{i}.jpg"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three desserts."""
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


def command(script, *arguments, code=None):
    """What runs a script, or code in its place."""
    return [sys.executable, *(["-c", code] if code else [
        os.path.join(ROOT, script)]), *map(str, arguments)]


def run(script, folder, *arguments, code=None, env=None):
    """Run a script as a process in a folder."""
    return run_command(command(script, *arguments, code=code), folder, env)


def read(path):
    """A JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# Part 2, "Using the create_model function in simple_cnn.py"

@pytest.mark.parametrize("size", [(100, 100, 3), (64, 48, 3), (7, 5, 3)])
@pytest.mark.parametrize("classes", [2, 6, 20])
def test_create_model_takes_any_size_and_number(size, classes):
    """create_model takes any size and any number of classes."""
    model = simple_cnn.create_model(size, classes)
    P = model.predict_on_batch(np.full((2, *size), 99, "float32"))
    assert P.shape == (2, classes)
    np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-5)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Conv2D") >= 2 and "MaxPooling2D" in kinds


# "for both, use the Xception preprocessor"

def test_pictures_are_prepared_as_for_xception():
    """Pictures are prepared as for Xception."""
    X = np.random.default_rng(0).uniform(0, 255, (2, 20, 20, 3))
    first = simple_cnn.create_model((20, 20, 3), 2).layers[0]
    np.testing.assert_allclose(
        first(X.astype("float32")),
        K.applications.xception.preprocess_input(X.copy()), atol=1e-5)


# "don't use augmentation in the validation datagen"

def test_only_training_pictures_are_changed(data, tmp_path, monkeypatch):
    """Training pictures are changed at random, validation pictures aren't."""
    copy = pictures.clean_copy(pictures.find(data), str(tmp_path / "copy"),
                               32)
    args = simple_cnn.argparse.Namespace(out=str(tmp_path), seed=0)
    seen = {}

    class Model(K.Model):
        """What fit gets."""

        def fit(self, training, validation_data, **options):
            """Look at two epochs of each."""
            seen["training"] = [np.concatenate([x for x, _ in training])
                                for _ in range(2)]
            seen["validation"] = [np.concatenate(
                [x for x, _ in validation_data]) for _ in range(2)]
            raise KeyboardInterrupt

    inputs = K.Input((32, 32, 3))
    model = Model(inputs, K.layers.Dense(3)(K.layers.Flatten()(inputs)))
    model.compile("sgd", "mse")
    with pytest.raises(KeyboardInterrupt):
        simple_cnn.train(model, copy, args, 1, "simple")
    expected = np.concatenate([x for x, _ in copy.dataset(
        "validation", 32, 16)])
    for found in seen["validation"]:
        np.testing.assert_array_equal(found, expected)
    original = np.concatenate([x for x, _ in copy.dataset("train", 32, 16)])
    for found in seen["training"]:
        assert len(found) == len(original) == 72
        same = [np.abs(original - x).max(axis=(1, 2, 3)).min() < 1
                for x in found]
        assert sum(same) < 10
    assert np.abs(np.subtract(*seen["training"])).max() > 50


# The script as a process: "Run your model for a few epochs"

SIMPLE = ("--size", 32, "--epochs", 6)


@pytest.fixture(scope="module")
def simple(data, tmp_path_factory):
    """A run of simple_cnn.py that was killed after two epochs."""
    folder = tmp_path_factory.mktemp("simple")
    kill(command("simple_cnn.py", data, *SIMPLE), folder,
         lambda printed: "Epoch 3/6" in printed)
    done = run("simple_cnn.py", folder, data, *SIMPLE)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_says_what_is_in_the_folder(simple):
    """It says what is in the folder: classes, pictures, sizes."""
    output = simple[1]
    assert re.search(r"120 pictures of 3 classes, their sides 4\d to 6\d",
                     output)
    for name in COLOURS:
        assert re.search(rf"{name} +8 +24 +8", output)


def test_a_killed_run_goes_on_after_its_last_epoch(simple):
    """A killed run goes on after its last epoch."""
    folder, output = simple
    assert "Going on with the run in runs/simple_cnn" in output
    done = int(re.search(r"going on after epoch (\d)", output).group(1))
    assert done >= 2 and f"Epoch {done}/6" not in output
    history = read(folder / "runs/simple_cnn/simple.json")["history"]
    assert len(history) == 6
    assert not glob.glob(str(folder / "runs/simple_cnn/*.npz"))


# "add a tensorboard callback"

def test_tensorboard_can_look_at_it(simple):
    """TensorBoard's logs are there, and the command is printed."""
    folder, output = simple
    assert "tensorboard --logdir runs/simple_cnn/logs" in output
    for part in "train", "validation":
        assert glob.glob(str(folder / f"runs/simple_cnn/logs/simple/training"
                             f"/{part}/events*"))


# "load your best model from disk", "evaluate our model on the holdout set"

def test_the_best_model_is_evaluated_on_the_holdout(simple, data):
    """The saved model is the best epoch's, and its figures are true."""
    folder, output = simple
    record = read(folder / "runs/simple_cnn/simple.json")
    model = K.models.load_model(str(folder / "runs/simple_cnn/simple.keras"))
    accuracy = {}
    for split in "validation", "holdout":
        right = 0
        for number, name in enumerate(sorted(COLOURS)):
            for path in glob.glob(os.path.join(data, split, name, "*")):
                x = Image.open(path).resize((32, 32), Image.LANCZOS)
                P = model.predict_on_batch(np.asarray(x, "float32")[None])
                right += P[0].argmax() == number
        accuracy[split] = right / 24
    assert max(row["val_accuracy"] for row in record["history"]) == (
        pytest.approx(accuracy["validation"]))
    found = record["evaluation"]
    assert found["accuracy"] == pytest.approx(accuracy["holdout"])
    assert 0.5 < found["accuracy"] < 1  # chance: 0.33
    assert f"{100 * found['accuracy']:.1f} %" in output
    counts = np.zeros((3, 3), int)
    for copy, source, truth, answer, p in found["answers"]:
        assert source.split("/")[-2] == sorted(COLOURS)[truth]
        counts[truth, answer] += 1
    assert counts.tolist() == found["confusion"]
    assert found["loss"] > 0


def test_the_interval_is_wilson_s():
    """The interval is Wilson's (JASA 22, 1927), by its formula."""
    copy = type("Copy", (), {
        "classes": ["a", "b"], "labels": lambda self, paths: np.array(
            [0] * 7 + [1] * 3), "source": {str(i): "" for i in range(10)}})()
    P = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2)
    found = simple_cnn.figures(P, copy, [str(i) for i in range(10)])
    assert found["accuracy"] == 0.9
    assert found["confusion"] == [[7, 0], [1, 2]]
    z, n, p = norm.ppf(0.975), 10, 0.9
    middle, half = (p + z * z / 2 / n) / (1 + z * z / n), (
        z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2))
    np.testing.assert_allclose(found["interval"],
                               [middle - half, middle + half])
    assert found["loss"] == pytest.approx(
        -(9 * np.log(0.9) + np.log(0.1)) / 10)


def test_pictures_and_a_table_show_how_good_it_is(simple):
    """Pictures and a table show how good it is."""
    out = simple[0] / "runs" / "simple_cnn"
    for name in ("curves", "accuracies", "confusion-simple-network",
                 "mistakes-simple-network"):
        picture = np.asarray(Image.open(out / f"{name}.png"))
        assert 700 <= picture.shape[1] <= 900 and picture.std() > 10
    assert "| holdout accuracy (95 % interval) |" in (
        out / "table.md").read_text()


# "All three": runs

def test_a_finished_run_is_refused(simple, data):
    """A finished run, or one with other arguments, is refused with 2."""
    folder = simple[0]
    path = folder / "runs" / "simple_cnn" / "simple.json"
    before = path.read_bytes()
    for arguments, words in (
            (SIMPLE, "a finished run"),
            (("--size", 40), "size 32 instead of 40")):
        done = run("simple_cnn.py", folder, data, *arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr and "--overwrite" in done.stderr
        assert path.read_bytes() == before


def test_what_is_not_a_run_is_never_overwritten(data, tmp_path):
    """What isn't a run is never overwritten."""
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run("simple_cnn.py", tmp_path, data, "--overwrite", "--out", ".")
    assert done.returncode == 2 and "isn't a run" in done.stderr
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("content", ['{"model": "mine"}', "[]", "no JSON"])
def test_another_program_s_run_json_is_not_ours(data, tmp_path, content):
    """A run.json that another program wrote doesn't make a folder ours."""
    os.makedirs(tmp_path / "mine" / "pictures")
    (tmp_path / "mine" / "run.json").write_text(content)
    done = run("simple_cnn.py", tmp_path, data, "--overwrite", "--out",
               "mine")
    assert done.returncode == 2 and "isn't a run" in done.stderr
    assert (tmp_path / "mine" / "run.json").read_text() == content
    assert (tmp_path / "mine" / "pictures").exists()


def test_cifar100_transfer_leaves_this_run_alone(simple):
    """cifar100_transfer.py refuses the folder of another script's run."""
    done = run("cifar100_transfer.py", simple[0], "--out", "runs/simple_cnn")
    assert done.returncode == 2 and "a run of simple_cnn.py" in done.stderr


def test_data_inside_of_out_is_refused(tmp_path):
    """DATA that --overwrite would delete is refused."""
    for split in "train", "validation", "holdout":
        for name in COLOURS:
            draw(tmp_path / "all" / "data", split, name, 1)
    done = run("simple_cnn.py", tmp_path, "all/data", "--out", "all",
               "--overwrite")
    assert done.returncode == 1 and "is inside of --out" in done.stderr
    assert os.listdir(tmp_path / "all") == ["data"]


@pytest.mark.parametrize("classes", [2, 20])
def test_any_number_of_classes(tmp_path, classes):
    """Two classes or twenty, one picture of each to validate and to test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("valid", 1), ("test", 1)):
        for number in range(classes):
            folder = tmp_path / "in" / split / f"{{n° {number}}} 100%"
            os.makedirs(folder)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(
                    "uint8")).save(folder / f"{i}.png")
    done = run("simple_cnn.py", tmp_path, "in", "--size", 16, "--epochs", 1,
               "--out", "out {here}")
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "out {here}" / "simple.json")
    assert len(record["classes"]) == classes
    assert np.sum(record["evaluation"]["confusion"]) == classes


def test_a_typo_does_not_overwrite_a_run(simple):
    """A typo in DATA doesn't cost the run that --overwrite names."""
    folder = simple[0]
    done = run("simple_cnn.py", folder, "desserts.zpi", "--overwrite")
    assert done.returncode == 1 and "desserts.zpi isn't there" in done.stderr
    assert (folder / "runs" / "simple_cnn" / "simple.keras").exists()


def test_overwrite_starts_again(data, tmp_path):
    """--overwrite starts again, from nothing."""
    arguments = (data, "--size", 16, "--epochs", 1, "--out", "out")
    assert run("simple_cnn.py", tmp_path, *arguments).returncode == 0
    (tmp_path / "out" / "left over").write_text("")
    done = run("simple_cnn.py", tmp_path, *arguments, "--seed", 1,
               "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "simple, training\n" in done.stdout  # and not: going on
    assert not (tmp_path / "out" / "left over").exists()


@pytest.mark.parametrize("script, arguments, words", [
    ("simple_cnn.py", [], "DATA is missing"),
    ("simple_cnn.py", ["x", "--size", 0], "--size is 0"),
    ("simple_cnn.py", ["x", "--sise", 10], "--sise"),
    ("simple_cnn.py", ["--predict", "x.png"], "No record of a training"),
    ("transfer_model.py", ["nowhere"], "nowhere isn't there"),
    ("transfer_model.py", ["x", "--base", "VGG16"], "MobileNetV2"),
    ("four_classes_transfer.py", ["--predict", "x.png"], "No record")])
def test_a_typo_gets_one_message(tmp_path, script, arguments, words):
    """A typo gets one message, and leaves nothing behind."""
    done = run(script, tmp_path, *arguments)
    assert done.returncode in (1, 2) and words in done.stderr
    assert "Traceback" not in done.stderr and not os.listdir(tmp_path)


def test_predict_says_what_is_on_a_picture(simple, data):
    """--predict needs only --out, and says class and probability."""
    folder = simple[0]
    out = folder / "runs" / "simple_cnn"
    answers = read(out / "simple.json")["evaluation"]["answers"]
    own = [os.path.join(data, row[1]) for row in answers[::5]]
    done = run("simple_cnn.py", folder, "--predict", *own)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("simple.keras:")
    for row, line in zip(answers[::5], done.stdout.splitlines()[1:]):
        p = float(line.split()[-2])
        assert sorted(COLOURS)[row[3]] in line
        assert p == pytest.approx(100 * row[4], abs=0.2)
    done = run("simple_cnn.py", folder, "--predict", own[0], __file__)
    assert done.returncode == 1
    assert own[0] in done.stdout and "can't be read" in done.stderr


class Falling(K.callbacks.Callback):
    """Says that each epoch is worse than the one before."""

    def on_epoch_end(self, epoch, logs=None):
        """Change what the other callbacks see."""
        logs["val_accuracy"] = 0.9 - 0.1 * epoch


@pytest.mark.parametrize("stop", [1, 3])
def test_the_best_epoch_is_kept_and_not_the_last(data, tmp_path, monkeypatch,
                                                 stop):
    """The best epoch is kept, in one go or stopped after the first."""
    copy = pictures.clean_copy(pictures.find(data), str(tmp_path / "copy"),
                               16)
    args = simple_cnn.argparse.Namespace(out=str(tmp_path), seed=0)
    board = K.callbacks.TensorBoard
    monkeypatch.setattr(K.callbacks, "TensorBoard", lambda logs: Falling())
    for epochs in (stop, 3):
        K.utils.set_random_seed(0)
        model = simple_cnn.create_model((16, 16, 3), 3)
        model.compile("adam", "categorical_crossentropy",
                      metrics=["accuracy"])
        best, history = simple_cnn.train(model, copy, args, epochs, "simple")
        if epochs == 1:
            first = best.get_weights()
    monkeypatch.setattr(K.callbacks, "TensorBoard", board)
    assert [round(row["val_accuracy"], 1) for row in history] == [
        0.9, 0.8, 0.7]
    assert not any(np.array_equal(a, b) for a, b in zip(
        best.get_weights()[:1], model.get_weights()[:1]))
    if stop == 1:
        for a, b in zip(first, best.get_weights()):
            np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == [
        "simple.keras"]


def test_the_best_of_both_phases_is_kept(data, tmp_path):
    """A warm-up that was better than all that follows is what is kept."""
    copy = pictures.clean_copy(pictures.find(data), str(tmp_path / "copy"),
                               16)
    args = simple_cnn.argparse.Namespace(out=str(tmp_path), seed=0)
    model = simple_cnn.create_model((16, 16, 3), 3)
    model.save(tmp_path / "simple.keras")
    warmed_up = model.get_weights()
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    best, history = simple_cnn.train(
        model, copy, args, 1, "simple", "fine-tuning",
        [{"val_accuracy": 1.0}])
    assert len(history) == 2
    for a, b in zip(best.get_weights(), warmed_up):
        np.testing.assert_array_equal(a, b)


# Part 3, "adds a new head for our current task onto it"

@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_base_has_a_new_head(name):
    """GlobalAveragePooling2D and a Dense softmax; the base's own scaling."""
    application = getattr(K.applications, name)
    model = transfer_model.create_transfer_model(
        (96, 96, 3), 5, weights=None, model=application)
    lively(model)
    assert [type(layer).__name__ for layer in model.layers[-2:]] == [
        "GlobalAveragePooling2D", "Dense"]
    assert model.output_shape == (None, 5)
    assert model.layers[-1].activation is K.activations.softmax
    base = application(include_top=False, weights=None, pooling="avg",
                       input_shape=(96, 96, 3))
    base.set_weights(model.get_weights()[:-2])
    X = np.random.default_rng(0).uniform(0, 255, (2, 96, 96, 3)).astype(
        "float32")
    expected = base.predict_on_batch(getattr(
        K.applications, APPLICATIONS[name]).preprocess_input(X.copy()))
    found = K.Model(model.input, model.layers[-1].input).predict_on_batch(X)
    assert found.std() > 1e-3  # or nothing would be compared
    np.testing.assert_allclose(found, expected, rtol=1e-3,
                               atol=1e-3 * np.abs(expected).max())


def test_the_head_begins_with_no_opinion():
    """The new head begins with the same probability for each class."""
    model = transfer_model.create_transfer_model(
        (32, 32, 3), 4, weights=None, model=K.applications.MobileNetV2)
    W, b = model.layers[-1].get_weights()
    assert not W.any() and not b.any()


def test_xception_is_the_default():
    """The exercise's base is the default."""
    options = transfer_model.create_transfer_model.__defaults__
    assert options == ("imagenet", K.applications.Xception)


# "Set all of the layers except for the new head to untrainable", "unfreeze
# the 14th convolutional block onward"

@pytest.mark.parametrize("name, first, last", [
    ("Xception", "block14_sepconv1", "block13_sepconv2"),
    ("MobileNetV2", "block_14_expand", "block_13_expand"),
    ("DenseNet121", "conv5_block1_1_conv", "conv4_block24_2_conv")])
def test_which_variables_change_in_which_phase(name, first, last):
    """Warm-up changes the head, and nothing else; then the last block."""
    model = transfer_model.create_transfer_model(
        (64, 64, 3), 4, weights=None,
        model=getattr(K.applications, name))
    lively(model)
    X = np.random.default_rng(0).uniform(0, 255, (8, 64, 64, 3)).astype(
        "float32")
    Y = np.eye(4, dtype="float32")[np.arange(8) % 4]

    def changed():
        """The layers that some training steps change."""
        transfer_model.compile_slowly(model, "adam", None, 5, 10)
        before = {layer.name: layer.get_weights() for layer in model.layers}
        for _ in range(2):
            model.train_on_batch(X, Y)
        return [layer.name for layer in model.layers if any(
            not np.array_equal(old, new) for old, new in zip(
                before[layer.name], layer.get_weights()))]

    transfer_model.warm_up(model)
    assert changed() == ["head"]
    transfer_model.unfreeze(model, name)
    names = [layer.name for layer in model.layers]
    onward = names[names.index(first):]
    expected = [layer.name for layer in model.layers
                if layer.name in onward and layer.get_weights()
                and not isinstance(layer, K.layers.BatchNormalization)]
    assert changed() == expected
    assert first in expected and last not in expected


# "use a lower learning rate than you normally would ~(2x to 10x smaller)"

@pytest.mark.parametrize("optimizer", transfer_model.OPTIMIZERS)
def test_the_head_is_warmed_up_slowly(optimizer):
    """The rate is 2 to 10 times below the default, and then still lower."""
    model = simple_cnn.create_model((8, 8, 3), 2)
    default = float({"adam": K.optimizers.Adam, "sgd": K.optimizers.SGD,
                     "rmsprop": K.optimizers.RMSprop}[
                         optimizer]().learning_rate)
    rates = []
    for slower in (transfer_model.WARM_UP_SLOWER, transfer_model.FINE_SLOWER):
        transfer_model.compile_slowly(model, optimizer, None, slower, 100)
        rates.append(float(model.optimizer.learning_rate))
        assert type(model.optimizer).__name__.lower() == optimizer
    assert 2 <= default / rates[0] <= 10 and rates[1] < rates[0]
    transfer_model.compile_slowly(model, optimizer, 0.007, 5, 100)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.007)


# "Is it better than the simple ConvNet?"

# Random weights, so that no network is needed
WITHOUT_WEIGHTS = (
    f"import sys; sys.path[:0] = [{ROOT!r}, {HERE!r}]\n"
    "import transfer_model\n"
    "from test_exercise_cifar100 import lively\n"
    "make = transfer_model.create_transfer_model\n"
    "transfer_model.create_transfer_model = lambda *a, **b: lively(\n"
    "    make(*a, weights=None, **b))\n")
OFFLINE = WITHOUT_WEIGHTS + "transfer_model.main()"
TRANSFER = ("--base", "MobileNetV2", "--optimizer", "adam", "sgd", "--size",
            40, "--warm-up", 2, "--fine", 3, "--warm-up-rate", 2e-3,
            "--fine-rate", 1e-4)


@pytest.fixture(scope="module")
def transferred(simple, data):
    """A run of transfer_model.py that was killed while it fine-tuned.

    Then without a simple network, and then with it.
    """
    folder = simple[0]
    kill(command("transfer_model.py", data, *TRANSFER, code=OFFLINE), folder,
         lambda printed: os.path.exists(
             folder / "runs/transfer_model/MobileNetV2-adam-fine-tuning.npz"))
    outputs = []
    for simple_folder in "runs/not yet", "runs/simple_cnn":
        done = run("transfer_model.py", folder, data, *TRANSFER, "--simple",
                   simple_folder, code=OFFLINE)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    return folder, outputs


def test_without_a_simple_network_its_command_is_named(transferred):
    """Without a simple network its command is named, and nothing lost."""
    folder, (first, second) = transferred
    assert "./simple_cnn.py" in first and "not yet" in first
    assert "Is MobileNetV2" not in first
    assert "Epoch" in first and "Epoch" not in second


def test_a_killed_transfer_goes_on_after_its_last_epoch(transferred):
    """A killed transfer goes on after its last epoch, phase by phase."""
    folder, (first, _) = transferred
    assert "MobileNetV2-adam, warm-up: going on after epoch 2" in first
    assert "MobileNetV2-adam, fine-tuning: going on after epoch" in first
    assert "MobileNetV2-sgd, warm-up\n" in first


def test_both_are_compared_on_the_same_pictures(transferred, data):
    """Both are compared on the same pictures, as a pair."""
    folder, (_, output) = transferred
    out = folder / "runs" / "transfer_model"
    simple = read(out / "simple.json")["evaluation"]
    alone = read(folder / "runs/simple_cnn/simple.json")["evaluation"]
    assert [row[1:4] for row in simple["answers"]] == [
        row[1:4] for row in alone["answers"]]
    for optimizer in "adam", "sgd":
        record = read(out / f"MobileNetV2-{optimizer}.json")
        ours = {row[1]: row[2] == row[3]
                for row in record["evaluation"]["answers"]}
        theirs = {row[1]: row[2] == row[3] for row in simple["answers"]}
        assert set(ours) == set(theirs) and len(ours) == 24
        pair = record["against_simple"]
        assert pair["only_this_right"] == sum(
            ours[path] and not theirs[path] for path in ours)
        assert pair["only_other_right"] == sum(
            theirs[path] and not ours[path] for path in ours)
        assert [row["phase"] for row in record["history"]] == (
            ["warm-up"] * 2 + ["fine-tuning"] * 3)
        assert f"Is MobileNetV2, {optimizer} better than the simple" in output
    assert "| simple network | MobileNetV2, adam | MobileNetV2, sgd |" in (
        out / "table.md").read_text()
    assert (out / "accuracies.png").exists()


def test_a_simple_network_that_learned_other_pictures(simple, tmp_path):
    """A simple network that learned other pictures isn't compared with."""
    for split in "train", "validation", "holdout":
        for name in COLOURS:
            draw(tmp_path / "other", split, name, 1)
    done = run("transfer_model.py", tmp_path, "other", "--simple",
               simple[0] / "runs" / "simple_cnn")
    assert done.returncode == 1 and "choose another --simple" in done.stderr
    assert os.listdir(tmp_path) == ["other"]


def test_mcnemar_s_test_is_exact():
    """p is that of a fair coin for the pictures on which they differ."""
    def answers(right):
        """What evaluate gives, as far as compare looks at it."""
        return {"answers": [[str(i), str(i), 1, int(r), 1.0]
                            for i, r in enumerate(right)]}

    ours = [1] * 9 + [0] + [1] * 5 + [0] * 5
    theirs = [0] * 9 + [1] + [1] * 5 + [0] * 5
    found = transfer_model.compare(answers(ours), answers(theirs))
    assert found["only_this_right"] == 9 and found["only_other_right"] == 1
    assert found["p"] == pytest.approx(2 * (1 + 10) / 2 ** 10)
    same = transfer_model.compare(answers(ours), answers(ours))
    assert same == {"only_this_right": 0, "only_other_right": 0, "p": 1.0}


def test_the_best_of_several_predicts(transferred, data):
    """--predict takes the model that was best on the validation pictures."""
    folder = transferred[0]
    out = str(folder / "runs" / "transfer_model")
    best = max(("MobileNetV2-adam", "MobileNetV2-sgd"), key=lambda name: max(
        row["val_accuracy"] for row in read(os.path.join(
            out, f"{name}.json"))["history"]))
    path = glob.glob(os.path.join(data, "holdout", "donut", "*"))[0]
    done = run("transfer_model.py", folder, "--predict", path)
    assert done.returncode == 0 and path in done.stdout, done.stderr
    assert done.stdout.startswith(f"{best}.keras:")


def test_missing_weights_are_named(data, tmp_path):
    """Xception's weights missing: another base is offered, at once."""
    done = run("transfer_model.py", tmp_path, data,
               env=without_network(tmp_path / "home"))
    assert done.returncode == 69
    assert "xception" in done.stderr and "--base MobileNetV2" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["home"]  # that command isn't refused


# The README maps the exercise's old names to today's.

def test_the_readme_has_the_old_names():
    """The README says what the exercise's old names are called today."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    for name in ("ImageDataGenerator", "flow_from_directory", "fit_generator",
                 "steps_per_epoch", "evaluate_generator"):
        assert f"`{name}" in readme


@pytest.mark.parametrize("folder, columns", [
    ("transfer_model", [
        "simple network", "DenseNet121, adam", "DenseNet121, sgd",
        "MobileNetV2, adam", "MobileNetV2, sgd"]),
    ("larger", ["simple network", "MobileNetV2, adam"])])
def test_the_figures_in_the_readme_are_the_recorded_ones(folder, columns):
    """The figures in the README are the recorded ones."""
    found = report.read(os.path.join(ROOT, "results", "desserts", folder))
    assert [report.name(record) for record in found] == columns
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    assert report.markdown(report.table(
        found, report.DESSERTS_ROWS)) in readme
    for record in found[1:]:
        assert report.better(record, found[0]) in " ".join(readme.split())


# On real pictures

@real_data
@pytest.mark.skipif("DESSERTS" not in os.environ,
                    reason="needs a zip of desserts: DESSERTS=path")
def test_real_desserts_end_to_end(tmp_path):
    """Both scripts on the real desserts, for an epoch or two."""
    data = os.path.abspath(os.environ["DESSERTS"])
    done = run("simple_cnn.py", tmp_path, data, "--size", 48, "--epochs", 2)
    assert done.returncode == 0, done.stderr
    done = run("transfer_model.py", tmp_path, data, "--base", "MobileNetV2",
               "--size", 64, "--warm-up", 1, "--fine", 1)
    assert done.returncode == 0, done.stderr
    found = report.read(str(tmp_path / "runs" / "transfer_model"))
    accuracy = {report.name(record): record["evaluation"]["accuracy"]
                for record in found}
    assert accuracy["simple network"] > 0.2  # chance: 0.17
    assert accuracy["MobileNetV2, adam"] > 0.45
    assert "Is MobileNetV2, adam better than the simple network? Yes" in (
        done.stdout)
