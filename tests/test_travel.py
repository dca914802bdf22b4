#!/usr/bin/env python3
"""What benchmarks/travel.py trains and tests on, and that it runs."""
import argparse
import json
import os
import zipfile

import numpy as np
import pytest
from tensorflow import keras as K

import four_classes_transfer
import travel
from helpers import (
    ROOT, noise_images, real_data, script, small_application, thin_out,
    usage_error)
from PIL import Image

transfer = travel.transfer


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    """Write small zips: {"desserts": path, "four_classes": path}."""
    folder = tmp_path_factory.mktemp("zips")
    images = iter(noise_images(200))
    paths = {}
    for name, splits in (("desserts", ["train", "validation", "holdout"]),
                         ("four_classes", [""])):
        paths[name] = str(folder / f"{name}.zip")
        with zipfile.ZipFile(paths[name], "w") as archive:
            for split in splits:
                for label in "ab":
                    for i in range(20 if split in ("", "train") else 5):
                        with archive.open(os.path.join(
                                split, label, f"{i}.png"), "w") as file:
                            Image.fromarray(next(images)).save(file, "PNG")
    return paths


@pytest.fixture
def args(zips, tmp_path):
    """Return the arguments of run."""
    return argparse.Namespace(**zips, out=str(tmp_path / "out"), cache=str(
        tmp_path / "cache"), overwrite=False)


# "CIFAR-10's recipe, unchanged"

def test_the_recipe_is_that_of_0_transfer():
    recipe = travel.RECIPE
    assert (recipe.base, recipe.size, recipe.cut, recipe.epochs,
            recipe.views, recipe.momentum, recipe.learning_rate) == (
        "EfficientNetV2B0", 128, "block5c_add", 4, "mirror", 0.9, 1e-3)
    assert (transfer.SIZE, transfer.CUT, transfer.EPOCHS,
            transfer.LEARNING_RATE) == (128, "block5c_add", 4, 1e-3)


def test_the_network_takes_pixels_of_any_size(monkeypatch):
    monkeypatch.setattr(
        K.applications, "EfficientNetV2B0", small_application)
    monkeypatch.setattr(travel, "RECIPE", travel.RECIPE._replace(
        weights=None, size=64))
    images = noise_images(3)
    ours = travel.build(argparse.Namespace(images=images, classes=10))
    theirs = transfer.build_model(64)
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(
        ours.predict(images.astype("float32"), verbose=0),
        theirs.predict(transfer.scale(images), verbose=0), atol=1e-5)
    large = argparse.Namespace(images=np.zeros((1, 64, 64, 3)), classes=7)
    assert travel.build(large).output_shape == (None, 7)


# "Tested on the same images as the exercise's own script"

@pytest.mark.parametrize("name", ["desserts", "four_classes"])
def test_images_and_labels_belong_together(name, args):
    os.makedirs(args.cache)
    data = travel.DATA_SETS[name](args, 1)
    assert data.classes == 2 and len(data.images) == len(data.labels)
    assert not set(data.train) & set(data.test)
    assert data.images.shape[1:] == (128, 128, 3)
    rows = np.concatenate([data.train, data.test])
    np.testing.assert_array_equal(
        data.labels[rows], data.labels[rows + data.mirror])
    for row in data.train[0], data.test[-1]:
        image, mirrored = (data.images[i:i + 1][0]
                           for i in (row, row + data.mirror))
        np.testing.assert_array_equal(image[:, ::-1], mirrored)


def test_desserts_are_tested_on_the_holdout(args):
    os.makedirs(args.cache)
    data = travel.desserts(args, 0)
    assert (len(data.train), len(data.test)) == (40, 10)
    copy = travel.clean_copy(args.desserts, args, True)
    paths = [list(copy.source)[i] for i in data.test]
    assert all(path.startswith("holdout/") for path in paths)
    np.testing.assert_array_equal(
        data.labels[data.test], [path.split("/")[1] == "b" for path in paths])


def test_four_classes_have_the_splits_of_their_script(args):
    os.makedirs(args.cache)
    tests = []
    for seed in range(3):
        data = travel.four_classes(args, seed)
        labels = data.labels[:data.mirror]
        train, _, test = four_classes_transfer.split(labels, seed)
        np.testing.assert_array_equal(data.train, train)
        np.testing.assert_array_equal(data.test, test)
        tests.append(tuple(test))
    assert len(set(tests)) == 3


# "Continues where it was", small

@pytest.fixture
def small(monkeypatch):
    """Let the network have few layers, and CIFAR-100 few images."""
    monkeypatch.setattr(
        K.applications, "EfficientNetV2B0", small_application)
    monkeypatch.setattr(travel, "RECIPE", travel.RECIPE._replace(
        weights=None, size=32))

    def cifar100(args, seed):
        """Make 60 images of 100 classes, of which 20 are tested on."""
        images = noise_images(40)
        return travel.Data(
            np.concatenate([images, images[:, :, ::-1], noise_images(20)]),
            np.arange(100), 100, np.arange(40), np.arange(80, 100), 40)

    monkeypatch.setitem(travel.DATA_SETS, "cifar100", cifar100)


def test_all_data_sets_with_their_seeds(args, small, monkeypatch, capsys):
    train, done = travel.train, []

    def stop_at_the_fifth(name, seed, args):
        """Be stopped in the middle."""
        if len(done) == 4:
            done.append("stopped")
            raise KeyboardInterrupt
        train(name, seed, args)
        done.append((name, seed))

    monkeypatch.setattr(travel, "train", stop_at_the_fifth)
    monkeypatch.setattr(travel.runs, "claim", lambda folder: None)
    assert travel.SEEDS == {"cifar100": 3, "desserts": 3, "four_classes": 10}
    monkeypatch.setattr(  # or it would take a minute
        travel, "SEEDS", dict.fromkeys(travel.SEEDS, 2))
    with pytest.raises(KeyboardInterrupt):
        travel.run(args)
    travel.run(args)
    printed = capsys.readouterr().out
    wanted = [(name, seed) for name in ("four_classes", "desserts", "cifar100")
              for seed in range(2)]
    assert done == wanted[:4] + ["stopped"] + wanted[4:]
    for name, seed in wanted:
        with open(os.path.join(args.out, f"{name}-{seed}.json")) as file:
            record = json.load(file)
        assert (record["data"], record["seed"]) == (name, seed)
        assert len(record["history"]) == 4
        assert 0 <= record["test_accuracy"] <= 1
        assert (f"{name}, seed {seed}: test accuracy "
                f"{record['test_accuracy']:.4f}") in printed
    assert not [name for name in os.listdir(args.out) if "npz" in name]
    with pytest.raises(SystemExit) as refused:
        travel.run(args)
    assert refused.value.code == 2


@pytest.mark.parametrize("arguments, words", [
    ([], "required: --desserts, --four-classes"),
    (["--desserts", "a", "--four-classes", "b", "--out", ""],
     "--out is '', expected a folder"),
    (["--desserts", "a", "--four-classes", "b", "--cache", __file__],
     f"--cache is '{__file__}', expected a folder"),
    (["--desserts", "a", "--four-classes", "b", "c"],
     "unrecognized arguments: c")])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, arguments, words):
    assert words in usage_error(travel.main, monkeypatch, capsys, tmp_path,
                                *arguments).splitlines()[-1]


def test_a_missing_zip_gets_one_message(tmp_path):
    done = script(os.path.join(ROOT, "benchmarks", "travel.py"), tmp_path,
                  "--desserts", "nowhere.zip", "--four-classes", "here.zip",
                  "--out", "out", "--cache", "cache")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "nowhere.zip doesn't exist" in done.stderr
    assert not (tmp_path / "out").exists()


# On real images

SMALL = """\
import travel
travel.SEEDS = {"desserts": 1, "four_classes": 1}
del travel.DATA_SETS["cifar100"]
travel.main()
"""


@real_data
@pytest.mark.skipif(
    not {"DESSERTS", "FOUR_CLASSES"} <= set(os.environ),
    reason="needs zips of images: DESSERTS=path FOUR_CLASSES=path")
def test_real_images(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    for name, step in ("DESSERTS", 40), ("FOUR_CLASSES", 6):
        thin_out(os.environ[name], tmp_path / f"{name}.zip", step)
    done = script(path, tmp_path, "--desserts", "DESSERTS.zip",
                  "--four-classes", "FOUR_CLASSES.zip", "--out", "out",
                  "--cache", "cache")
    assert done.returncode == 0, done.stderr
    for name, least in ("desserts", 0.3), ("four_classes", 0.7):
        record = json.loads((tmp_path / "out" / f"{name}-0.json").read_text())
        assert record["test_accuracy"] > least
