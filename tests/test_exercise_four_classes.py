#!/usr/bin/env python3
"""Lab 8's task, a test a demand, on four_classes_transfer.py.

On images that these tests draw; with REAL_DATA=1 also on the images that
FOUR_CLASSES names, and with ImageNet's weights.
"""
import glob
import json
import os
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image
from tensorflow import keras as K

import four_classes_transfer as four_classes
import networks
import pictures
from helpers import (
    ROOT, Script, he_initialize, real_data, run, script, thin_out,
    usage_error, without_network)

CLASSES = ["cats", "dogs", "horses", "humans"]


def draw(folder, counts, size=(48, 40)):
    """Draw images of noise, with a tint for each class."""
    rng = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        os.makedirs(folder / name)
        for i in range(count):
            x = rng.integers(0, 120, (*size, 3))
            x[:, :, number % 3] += 120 if number < 3 else 0
            Image.fromarray(x.astype("uint8")).save(folder / name / f"{i}.png")
    return folder


def read(path):
    """Return the content of a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# The split

def test_the_split_is_stratified_and_by_seed():
    labels = np.repeat(np.arange(4), 100)
    parts = four_classes.split(labels, 0)
    assert sorted(np.concatenate(parts)) == list(range(400))
    assert list(map(len, parts)) == [280, 60, 60]
    for part in parts:
        assert len(set(np.bincount(labels[part]))) == 1
    for mine, same, other in zip(parts, four_classes.split(labels, 0),
                                 four_classes.split(labels, 1)):
        np.testing.assert_array_equal(mine, same)
        assert not np.array_equal(mine, other)


@pytest.mark.parametrize("counts", [
    (5, 5), (5,) * 20, (100, 5), (7, 6, 50), (100, 5, 5, 5)])
def test_a_few_images_of_each_class_are_enough(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(20):
        parts = four_classes.split(labels, seed)
        assert sorted(np.concatenate(parts)) == list(range(len(labels)))
        for part in parts:
            assert set(labels[part]) == set(labels)


# "implement both Feature Extractor and Fine-Tuning methods on data.zip"

ARGUMENTS = ("data.zip", "--base", "MobileNetV2", "--size", 48, "--splits")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Run it on data.zip: killed in fine-tuning, and undisturbed."""
    folder = tmp_path_factory.mktemp("four")
    data = draw(folder / "data", dict(zip(CLASSES, (10, 9, 11, 10))))
    for copy, original in (("cats/99", "cats/0"), ("dogs/99", "horses/5")):
        os.link(data / f"{original}.png", data / f"{copy}.png")
    shutil.make_archive(data, "zip", folder, "data")
    arguments = ("tests/small_base.py", folder, "four_classes_transfer",
                 *ARGUMENTS)
    other = Script(*arguments, 1, "--out", "undisturbed")
    out = folder / "runs" / "four_classes_transfer"
    Script(*arguments, 2).kill(
        lambda printed: os.path.exists(out / "split-0-fine-tuning-2.npz"))
    done, undisturbed = script(*arguments, 2), other.wait()
    assert done.returncode == 0, done.stderr
    assert undisturbed.returncode == 0, undisturbed.stderr
    return out, done.stdout


def records(out, number):
    """Return the records of both styles on a split."""
    return [read(out / f"split-{number}-{style}.json")
            for style in four_classes.TITLES]


def assert_same_run(out, undisturbed):
    """The first split of two runs is the same, to the bit."""
    for ours, theirs in zip(records(out, 0), records(undisturbed, 0)):
        for epoch in ours["history"] + theirs["history"]:
            epoch.pop("seconds")
        assert ours["history"] == theirs["history"]
        assert ours["evaluation"] == theirs["evaluation"]
        for mine, other in zip(*(
                K.models.load_model(folder / ours["model"]).get_weights()
                for folder in (out, undisturbed))):
            np.testing.assert_array_equal(mine, other)
    assert not list(out.glob("*.npz"))


def test_duplicates_are_named_and_left_out(comparison):
    out, printed = comparison
    assert "data/cats/99.png: a duplicate of data/cats/0.png" in printed
    assert "horses/5.png: a duplicate of data/dogs/99.png" in printed
    for number in range(2):
        for record in records(out, number):
            assert record["pictures"] == [24, 8, 8]


def test_a_killed_run_ends_as_an_undisturbed_one(comparison):
    out, printed = comparison
    assert "Continuing the run" in printed
    assert ("Split 1 of 2: extraction\nContinuing after epoch 2\n"
            "Continuing after epoch 3\n") in printed
    assert "Split 1 of 2: fine-tuning\nContinuing after epoch " in printed
    assert "Frozen part" not in printed  # the base sees the images once
    assert_same_run(out, out.parent.parent / "undisturbed")


def test_the_stored_outputs_stay_until_the_user_deletes_them(comparison):
    out, printed = comparison
    assert printed.endswith(
        "The stored outputs in runs/four_classes_transfer/outputs may be "
        "deleted now.\n")
    assert glob.glob(str(out / "outputs" / "*" / "*.npy"))


def test_both_styles_are_tested_on_the_same_images(comparison):
    out, _ = comparison
    copy, tests = pictures.Copy(str(out / "pictures")), []
    for number in range(2):
        both = records(out, number)
        paths = [[row[1] for row in record["evaluation"]["answers"]]
                 for record in both]
        assert paths[0] == paths[1] and len(set(paths[0])) == 8
        assert [record["title"] for record in both] == [
            "feature extraction", "fine-tuning"]
        for record in both:
            assert record["split"] == number
            assert record["val_accuracy"] == (
                record["history"][-1]["val_accuracy"])
        _, _, test = four_classes.split(copy.labels(copy.source), number)
        originals = list(copy.source.values())
        assert paths[0] == [originals[i] for i in test]
        tests.append(set(paths[0]))
    assert tests[0] != tests[1]


@pytest.mark.parametrize("number, style", enumerate(four_classes.TITLES))
def test_the_saved_model_gives_the_recorded_predictions(
        comparison, number, style):
    out, _ = comparison
    model = K.models.load_model(out / f"split-0-{style}.keras")
    copy = pictures.Copy(str(out / "pictures"))
    assert copy.classes == CLASSES
    rows = records(out, 0)[number]["evaluation"]["answers"]
    images = []
    for path, source, truth, _, _ in rows:
        assert source.split("/")[-2] == CLASSES[truth]
        with Image.open(out / "pictures" / path) as image:
            images.append(image.resize((48, 48), Image.BILINEAR))
    P = model.predict_on_batch(np.array(images, "float32"))
    np.testing.assert_allclose(
        [p[row[3]] for p, row in zip(P, rows)], [row[4] for row in rows],
        atol=0.02)
    assert np.mean(P.argmax(axis=1) == [row[3] for row in rows]) > 0.8


def train_plainly(part, stored, Y, views, epochs, learning_rate):
    """Train as the lab's script should, with plain Keras."""
    steps = views.shape[1]  # few images: a batch is one image
    part.compile(
        K.optimizers.AdamW(K.optimizers.schedules.CosineDecay(
            learning_rate, epochs * steps), weight_decay=0.01),
        K.losses.CategoricalCrossentropy(label_smoothing=0.1))
    for epoch in range(epochs):
        for row in networks.transfer.epoch_rows(views, epoch, 0):
            part.train_on_batch(stored[row:row + 1], Y[row:row + 1])


def test_both_styles_are_keras_s_own_training(comparison):
    out, _ = comparison
    features, inputs = (np.load(path) for path in sorted(
        glob.glob(str(out / "outputs" / "*" / "*.npy"))))
    copy = pictures.Copy(str(out / "pictures"))
    labels = copy.labels(copy.source)
    train, _, _ = four_classes.split(labels, 0)
    views = np.stack([train, train + 40])  # and the mirror images
    Y = np.eye(4)[np.tile(labels, 2)]
    extraction, fine_tuning = (
        K.models.load_model(out / f"split-0-{style}.keras")
        for style in four_classes.TITLES)
    classifier = K.Sequential([
        K.Input((16,)), K.layers.Dense(4, "softmax",
                                       kernel_initializer="zeros")])
    chosen = [len(record["history"]) for record in records(out, 0)]
    train_plainly(classifier, features, Y, views, chosen[0], 1e-3)
    model = K.models.clone_model(extraction)
    model.set_weights(extraction.get_weights())
    for layer in model.layers:
        layer.trainable = layer.name in ("block_14_expand", "Conv_1", "head")
    train_plainly(K.Model(model.get_layer("block_14_expand").input,
                          model.output), inputs, Y, views, chosen[1], 1e-4)
    for plain, saved in ((classifier.get_weights(),
                          extraction.get_layer("head").get_weights()),
                         (model.get_weights(), fine_tuning.get_weights())):
        for expected, ours in zip(plain, saved):
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_validation_images_choose_the_number_of_epochs(
        monkeypatch, tmp_path):
    """Each number starts from the same weights; the lowest loss is kept."""
    K.utils.set_random_seed(0)
    part = K.Sequential([K.Input((2,)), K.layers.Dense(3)])
    start, losses = part.get_weights(), {5: 0.4, 7: 0.2, 9: 0.3}

    def train(part, epochs, checkpoint, seed):
        """Leave the number of epochs as all weights, after a second each."""
        for ours, expected in zip(part.get_weights(), start):
            np.testing.assert_array_equal(ours, expected)
        assert checkpoint.path == f"{tmp_path}/name-{epochs}.npz"
        part.set_weights([np.full_like(w, epochs) for w in start])
        return [{"val_loss": 0.0, "seconds": 1},
                {"val_loss": losses[epochs], "seconds": seed}]

    monkeypatch.setattr(four_classes.transfer, "train", train)
    history, tried, before = four_classes.train_best(
        part, (5, 7, 9), f"{tmp_path}/name", seed=3)
    assert history == [{"val_loss": 0.0, "seconds": 1},
                       {"val_loss": 0.2, "seconds": 3}]
    assert tried == losses
    assert before == 2 * (1 + 3)  # of the two that aren't kept
    assert all((w == 7).all() for w in part.get_weights())


def changed(model, train):
    """Return the names of the layers that a training changes."""
    before = {layer.name: layer.get_weights() for layer in model.layers}
    train()
    return [layer.name for layer in model.layers if any(
        not np.array_equal(old, new) for old, new in zip(
            before[layer.name], layer.get_weights()))]


def test_which_layers_are_trained():
    """Extraction: the classifier alone; fine-tuning: the last layers, too."""
    model = he_initialize(networks.build_with_head(
        "MobileNetV2", (48, 48, 3), 4, weights=None))
    networks.freeze_base(model)
    cuts = four_classes.cuts(model, "MobileNetV2")
    assert cuts["extraction"].shape == (None, 1280)
    X = np.random.default_rng(0).uniform(0, 255, (4, 48, 48, 3))
    whole = model(X, training=False)
    trained = {}
    for style, cut in cuts.items():
        below, part = K.Model(model.input, cut), K.Model(cut, model.output)
        stored = below(X, training=False)
        np.testing.assert_allclose(
            part(stored, training=False), whole, atol=1e-4)
        if style == "fine-tuning":
            networks.unfreeze_last_block(model, "MobileNetV2")
        part.compile("sgd", "categorical_crossentropy", run_eagerly=True)
        trained[style] = changed(
            model, lambda: part.train_on_batch(stored, np.eye(4)))
        whole = model(X, training=False)
    assert trained["extraction"] == ["head"]
    assert trained["fine-tuning"][0] == "block_14_expand"
    assert {"block_14_depthwise", "block_16_project", "Conv_1", "head"} < set(
        trained["fine-tuning"])
    assert not any(name.lower().endswith("bn")
                   for name in trained["fine-tuning"])


def test_fine_tuning_continues_from_feature_extraction(comparison):
    out, _ = comparison
    model, tuned = (K.models.load_model(out / f"split-0-{style}.keras")
                    for style in four_classes.TITLES)
    assert changed(model, lambda: model.set_weights(
        tuned.get_weights())) == ["block_14_expand", "Conv_1", "head"]


# Both side by side

def test_the_table_has_mean_and_standard_deviation(comparison):
    out, printed = comparison
    rows = {row[0]: row[1:] for row in read(out / "table.json")["rows"]}
    assert rows[""] == ["feature extraction", "fine-tuning"]
    for column in range(2):
        shares = [100 * records(out, number)[column]["evaluation"]["accuracy"]
                  for number in range(2)]
        assert rows["test accuracy, mean ± standard deviation"][column] == (
            f"{np.mean(shares):.2f} % ± {np.std(shares, ddof=1):.2f}")
        assert rows["splits"][column] == "2"
        assert rows["test accuracy on the first split (95 % interval)"][
            column].startswith(f"{shares[0]:.1f} % (")
    assert printed.count("precision    recall  f1-score") == 2
    for name in CLASSES:
        assert f"{name} " in printed


def test_plots_show_both(comparison):
    out, _ = comparison
    for name in ("curves", "confusion-feature-extraction",
                 "confusion-fine-tuning"):
        plot = np.asarray(Image.open(out / f"{name}.png"))
        assert 1400 <= plot.shape[1] <= 1800 and plot.std() > 10


def test_predict_says_what_is_on_an_image(comparison):
    out, _ = comparison
    mine = out.parent.parent / "data" / "cats" / "3.png"
    done = script("four_classes_transfer.py", out.parent, "--out", out,
                  "--predict", mine)
    assert done.returncode == 0, done.stderr
    assert any(f"3.png: {name}, " in done.stdout for name in CLASSES)


# Mistakes

@pytest.mark.parametrize("splits, words", [
    (2, "a finished run"), (3, "a run with splits 2 instead of 3")])
def test_what_must_stay_is_refused(comparison, splits, words):
    done = script("tests/small_base.py", comparison[0].parent.parent,
                  "four_classes_transfer", *ARGUMENTS, splits)
    assert done.returncode == 2 and words in done.stderr


def test_too_few_images_get_one_message(tmp_path):
    """Before the base sees one of them."""
    draw(tmp_path / "in", {"cats": 9, "dogs": 4})
    done = script("tests/small_base.py", tmp_path, "four_classes_transfer",
                  "in", "--base", "MobileNetV2")
    assert done.returncode == 1
    assert ("dogs: a class of 4 images can't be split, expected at least 5. "
            "Add some to its folder, or delete the folder") in done.stderr
    assert "Traceback" not in done.stderr
    assert "Frozen part" not in done.stdout


def test_too_few_images_do_not_refuse_more_images(tmp_path, monkeypatch):
    """The same command goes on once the folder has enough of them."""
    class Reached(Exception):
        """Raised where the frozen pass would begin."""

    def reached(args, copy):
        """Stop there, with what is in the clean copy."""
        raise Reached(copy.count(pictures.WHOLE, "dogs"))

    monkeypatch.setattr(four_classes, "build", lambda args, classes: None)
    monkeypatch.setattr(four_classes, "frozen_pass", reached)
    monkeypatch.setattr(four_classes.runs, "claim", lambda folder: None)
    args = types.SimpleNamespace(
        data=str(draw(tmp_path / "in", {"cats": 9, "dogs": 4})), size=48,
        base="MobileNetV2", splits=1, seed=0, overwrite=False,
        out=str(tmp_path / "out"))
    with pytest.raises(OSError, match="dogs: a class of 4 images"):
        four_classes.run(args)
    draw(tmp_path / "more", {"dogs": 6}, size=(30, 30))
    os.rename(tmp_path / "more/dogs/5.png", tmp_path / "in/dogs/5.png")
    with pytest.raises(Reached, match="5"):
        four_classes.run(args)


@pytest.mark.parametrize("arguments, words", [
    ([], "DATA is missing"), (["x", "--splits", 0], "--splits is 0"),
    (["x", "--splits", 10 ** 9], "--splits is 1000000000, expected 1 to 1000"),
    (["x", "--size", 10000], "--size is 10000, expected 32 to 1024"),
    (["x", "--out", ""], "--out is ''"), ([""], "DATA is ''"),
    (["x", "--base", "VGG16"], "MobileNetV2"),
    (["x", "--size", 31], "--size is 31, expected 32")])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, arguments, words):
    assert words in usage_error(
        four_classes.main, monkeypatch, capsys, tmp_path, *arguments)


def test_images_that_are_split_already_are_for_the_other_scripts(tmp_path):
    for split in "train", "test":
        draw(tmp_path / "in" / split, {"cats": 1, "dogs": 1})
    done = script("four_classes_transfer.py", tmp_path, "in")
    assert done.returncode == 1 and "simple_cnn.py" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in"]


def test_missing_weights_are_named(tmp_path):
    """At once; that command isn't refused later."""
    draw(tmp_path / "in", {"cats": 1, "dogs": 1})
    done = run([sys.executable, os.path.join(
        ROOT, "four_classes_transfer.py"), "in"], tmp_path,
        without_network(tmp_path / "home"))
    assert done.returncode == 69
    assert "efficientnetv2-b0" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["home", "in"]


# On real images

needs_images = pytest.mark.skipif(
    "FOUR_CLASSES" not in os.environ,
    reason="needs a zip of four classes: FOUR_CLASSES=path")


@real_data
@needs_images
def test_real_images(tmp_path):
    done = script("four_classes_transfer.py", tmp_path,
                  os.path.abspath(os.environ["FOUR_CLASSES"]), "--size", 128)
    assert done.returncode == 0, done.stderr
    for record in records(tmp_path / "runs" / "four_classes_transfer", 0):
        assert record["classes"] == CLASSES
        assert record["evaluation"]["accuracy"] > 0.9  # chance: 0.25


@real_data
@needs_images
def test_killed_anywhere_it_ends_as_undisturbed(tmp_path):
    thin_out(os.environ["FOUR_CLASSES"], tmp_path / "few.zip", 5)
    arguments = ("four_classes_transfer.py", tmp_path, "few.zip", "--size",
                 64, "--out")
    undisturbed = script(*arguments, "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    out = tmp_path / "killed"
    for moment in (lambda printed: (out / "pictures.part").exists(),
                   lambda printed: "Frozen part" in printed,
                   *(lambda printed, name=name: (out / name).exists()
                     for name in ("split-0-extraction-10.npz",
                                  "split-0-fine-tuning-3.npz"))):
        Script(*arguments, out.name).kill(moment)
    done = script(*arguments, out.name)
    assert done.returncode == 0, done.stderr
    assert_same_run(out, tmp_path / "undisturbed")
