#!/usr/bin/env python3
"""What benchmarks/ablation.py changes, leaves alone, and measures."""
import argparse
import functools
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from tensorflow import keras as K

import ablation
from helpers import (
    ROOT, Script, Stop, real_data, run, script, small_application,
    stop_after, usage_error, without_network)


# "One change at a time"

def test_one_change_at_a_time():
    def choices(row):
        """A row without what isn't a choice."""
        row = row._asdict()
        del row["seeds"]
        if row["cut"] == "average":
            del row["epochs"]
        return row

    rows = {name: choices(row) for name, row in ablation.ROWS.items()}
    del rows["random weights, all trained, 1 epoch"]  # more is too slow
    for name, row in rows.items():
        assert 1 == min(
            sum(row.get(key) != other.get(key)
                for key in set(row) | set(other))
            for another, other in rows.items() if another != name), name


@pytest.mark.parametrize("name", ablation.ROWS)
def test_a_row_is_what_its_name_says(name):
    row, words = ablation.ROWS[name], name.split()
    assert (row.size == 128) != (words[0] == "size")
    assert row.size == 128 or row.size == int(words[1])
    assert row.epochs == (
        int(words[-2]) if words[-1].startswith("epoch") else
        20 if "head" in name or "hidden" in name else 3)
    assert row.cut == (
        f"block_{words[3]}_add" if words[0] == "cut" else
        "average" if "head" in name or "hidden" in name else
        None if "all trained" in name else "block_8_add")
    assert row.momentum == (
        None if "BatchNorm frozen" in name else
        float(words[2]) if "momentum" in name else 0.9)
    assert row.learning_rate == (
        float(words[-1]) if words[-2] == "rate" else 1e-3)
    assert row.mirror == (name not in (
        "linear head", "hidden layer", "upper half, not mirrored"))
    assert row.hidden == (512 if "hidden" in name else 0)
    assert row.weights == (None if "random" in name else "imagenet")
    assert row.storage == ("float32" if "float32" in name else "float16")


@pytest.fixture(scope="module")
def network():
    """Build the network once: rows change it."""
    return ablation.mobilenetv2.build_model(64)


@pytest.mark.parametrize("name", ablation.ROWS)
def test_a_row_trains_what_it_says(name, network, monkeypatch):
    row = ablation.ROWS[name]

    def build_model(size, weights):
        """Return the network as it is when built."""
        assert (size, weights) == (row.size, row.weights)
        for layer in network.layers:
            layer.trainable = True
            if isinstance(layer, K.layers.BatchNormalization):
                layer.momentum = 0.9
        return network

    monkeypatch.setattr(ablation.mobilenetv2, "build_model", build_model)
    model, cut = ablation.build(row)
    names = [layer.name for layer in model.layers]
    first = names.index(row.cut) + 1 if row.cut else 0
    for layer in model.layers[:first]:
        assert not layer.trainable_weights, layer.name
    for layer in model.layers[first:]:
        if isinstance(layer, K.layers.BatchNormalization):
            assert bool(layer.trainable_weights) == (row.momentum is not None)
            assert layer.momentum == (row.momentum or 0.9)
        else:
            assert len(layer.trainable_weights) == len(layer.weights)
    assert names[names.index("average") + 1:] == ["dropout"] + (
        ["hidden", "hidden_dropout"] if row.hidden else []) + ["classes"]
    assert model.output_shape == (None, 10)
    if row.hidden:
        assert model.get_layer("hidden").units == 512
        assert model.get_layer("hidden_dropout").rate == 0.3
    assert cut is (model.get_layer(row.cut).output if row.cut
                   else model.input)


# "10,000 training images, 5,000 others held out"

@pytest.fixture
def small(monkeypatch):
    """Return few images and their labels; let the network have few layers."""
    X = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3))
    for name, value in (("IMAGES", 128), ("VALIDATION_IMAGES", 64)):
        monkeypatch.setattr(ablation, name, value)
    for name, row in ablation.ROWS.items():
        monkeypatch.setitem(ablation.ROWS, name, row._replace(size=64))
    monkeypatch.setattr(K.applications, "MobileNetV2", functools.partial(
        small_application, cut="block_8_add"))
    return X.astype("uint8"), np.arange(400) % 10


def speed():
    """Stand for a Throughput."""
    return {"process": "a", "predict_images_per_second": 50.0}


@pytest.mark.parametrize("name", [
    "upper half", "upper half, not mirrored", "linear head",
    "stored as float32", "BatchNorm frozen, rate 2e-4",
    "random weights, all trained, 1 epoch"])
def test_each_image_is_where_it_belongs(name, small, tmp_path, monkeypatch):
    X, labels = small
    row = ablation.ROWS[name]
    seen = {}

    def train(top, stored, Y, views, validation, epochs, seed, checkpoint,
              **hyperparameters):
        """Look at what would be trained on."""
        if isinstance(stored, str):
            stored = np.load(stored)
        seen.update(views=stored[views], validation=stored[validation],
                    Y_views=Y[views], Y_validation=Y[validation],
                    epochs=epochs, seed=seed, **hyperparameters)
        raise Stop

    monkeypatch.setattr(ablation.transfer, "train", train)
    with pytest.raises(Stop):
        ablation.train_row(name, 2, X, labels, speed,
                           str(tmp_path / "out.json"), str(tmp_path))
    K.utils.set_random_seed(2)
    model, cut = ablation.build(row)
    frozen = K.Model(model.input, cut)

    order = ablation.transfer.stratified_order(labels, 0)
    validation, train = order[:64], order[64:192]
    assert not set(validation) & set(train)
    for ours, images in (
            (seen["views"][0], X[train]), (seen["validation"], X[validation]),
            (seen["views"][1],
             X[train][:, :, ::-1] if row.mirror else X[train])):
        theirs = images / np.float32(127.5) - 1
        if row.cut:
            theirs = frozen.predict(theirs, verbose=0)
            assert ours.dtype == row.storage
        differences = np.abs(ours - theirs).reshape(len(images), -1)
        # Another image's outputs are further away than float16 rounds.
        others = np.abs(np.roll(theirs, 1, axis=0) - theirs)
        assert differences.max() < 0.1 * others.reshape(
            len(images), -1).max(axis=1).min()
    for view in seen["Y_views"]:
        np.testing.assert_array_equal(view.argmax(1), labels[train])
    np.testing.assert_array_equal(
        seen["Y_validation"].argmax(1), labels[validation])
    assert (seen["epochs"], seen["seed"], seen["learning_rate"]) == (
        row.epochs, 2, row.learning_rate)
    assert (seen["batch"], seen["weight_decay"],
            seen["label_smoothing"]) == (128, 0.01, 0.1)


# "Cost given in passes of predict", "goes on where it was killed"

@pytest.mark.parametrize("name, share", [
    ("upper half", 256 / 320), ("upper half, not mirrored", 128 / 320)])
def test_a_row_needs_its_share_of_the_pass(
        name, share, small, tmp_path, monkeypatch):
    X, labels = small
    once = {"seconds": 10.0, "process": "a", "predict_images_per_second": 50}
    history = [{"val_accuracy": 0.5}, {"val_accuracy": 0.7}]
    monkeypatch.setattr(ablation, "stored_outputs", lambda *_: (None, once))
    monkeypatch.setattr(ablation.transfer, "train", lambda *_, **__: history)
    (tmp_path / "out.npz").touch()  # as after a training
    ablation.train_row(name, 0, X, labels, speed, str(tmp_path / "out.json"),
                       str(tmp_path))
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["share_of_pass"] == pytest.approx(share)
    assert (record["frozen_pass"], record["history"]) == (once, history)
    assert record["val_accuracy"] == 0.7
    assert (record["row"], record["seed"]) == (name, 0)
    assert ablation.Row(**{key: record[key] for key in ablation.Row._fields}
                        ) == ablation.ROWS[name]


def test_throughput_is_that_of_predict_on_some_images(monkeypatch):
    X = np.full((1500, 32, 32, 3), 255, "uint8")
    throughput = ablation.Throughput(ablation.mobilenetv2.build_model(32), X)
    measured = iter((10, 30))

    def predict_throughput(base, images):
        """Look at what is measured."""
        assert base.output_shape == (None, 1280)
        assert images.shape == (1000, 32, 32, 3)
        assert images.min() == images.max() == 1
        return next(measured)

    monkeypatch.setattr(ablation.networks, "predict_throughput",
                        predict_throughput)
    assert throughput() == {"process": throughput.process,
                            "predict_images_per_second": 20}


def test_a_killed_row_ends_as_an_undisturbed_one(
        small, tmp_path, monkeypatch):
    X, labels = small
    monkeypatch.setitem(ablation.ROWS, "linear head", ablation.ROWS[
        "linear head"]._replace(epochs=2))

    def row(process, name="out"):
        """Return what train_row gets in a process."""
        return ("linear head", 0, X, labels, lambda: {
            "process": process, "predict_images_per_second": 100.0},
            str(tmp_path / f"{name}.json"), str(tmp_path / "cache"))

    ablation.train_row(*row("first", "undisturbed"))
    with monkeypatch.context() as first:
        first.setattr(
            ablation, "Checkpoint", lambda *args, make=ablation.Checkpoint,
            **note: stop_after(1, make(*args, **note)))
        with pytest.raises(Stop):
            ablation.train_row(*row("first"))
    assert not (tmp_path / "out.json").exists()
    assert (tmp_path / "out.npz").exists()
    ablation.train_row(*row("second"))
    undisturbed, record = (
        json.loads((tmp_path / name).read_text())
        for name in ("undisturbed.json", "out.json"))
    assert [epoch["process"] for epoch in record["history"]] == [
        "first", "second"]
    for epoch, expected in zip(record["history"], undisturbed["history"]):
        assert epoch["predict_images_per_second"] == 100
        assert 0 < epoch["training_seconds"] < epoch["seconds"]
        for key in "loss", "accuracy", "val_loss", "val_accuracy":
            assert epoch[key] == expected[key]
    assert record["frozen_pass"]["process"] == "first"
    assert record["frozen_pass"]["images"] == 320
    assert not (tmp_path / "out.npz").exists()


@pytest.fixture
def processes(monkeypatch):
    """Let this process stand for several; with next to no data."""
    # Each would hold its folders until it ends.
    monkeypatch.setattr(ablation.runs, "claim", lambda folder: None)
    monkeypatch.setattr(
        ablation.transfer, "wait_for_others",
        lambda folder: open(os.devnull))
    monkeypatch.setattr(
        ablation.mobilenetv2, "images_and_model", lambda size: (
            ((np.zeros((1, 32, 32, 3), "uint8"), np.zeros((1, 1))), None),
            ablation.mobilenetv2.build_model(size)))


def test_rows_that_are_there_are_not_made_again(
        processes, tmp_path, monkeypatch):
    made = []

    def train_row(name, seed, X, labels, throughput, path, cache):
        """Be killed at the third."""
        if len(made) == 2:
            made.append("killed")
            raise KeyboardInterrupt
        assert path == str(tmp_path / f"{ablation.slug(name)}-{seed}.json")
        ablation.runs.write(path, {"row": name})
        made.append((name, seed))

    monkeypatch.setattr(ablation, "train_row", train_row)
    arguments = argparse.Namespace(out=str(tmp_path), cache=str(tmp_path),
                                   overwrite=False)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(arguments)
    assert made == [("linear head", 0), ("linear head", 1), "killed"]
    ablation.run(arguments)
    assert made[3:] == [(name, seed) for name, row in ablation.ROWS.items()
                        for seed in range(row.seeds)][2:]
    with pytest.raises(SystemExit) as refused:
        ablation.run(arguments)
    assert refused.value.code == 2


def test_a_cache_has_one_process(processes, tmp_path, monkeypatch):
    def wait_for_others(folder):
        """Stop where it would wait."""
        assert folder == str(tmp_path / "cache") and os.path.isdir(folder)
        raise Stop

    monkeypatch.setattr(ablation.transfer, "wait_for_others", wait_for_others)
    with pytest.raises(Stop):
        ablation.run(argparse.Namespace(
            out=str(tmp_path / "out"), cache=str(tmp_path / "cache"),
            overwrite=False))


@pytest.mark.parametrize("arguments, words", [
    (["--out", ""], "--out is '', expected a folder"),
    (["--out", __file__], f"--out is '{__file__}', expected a folder"),
    (["--cache", ""], "--cache is '', expected a folder"),
    (["--cache", __file__], f"--cache is '{__file__}', expected a folder"),
    (["--out"], "--out: expected one argument"),
    (["--overwrite", "out"], "unrecognized arguments: out"),
    (["--seed", 1], "unrecognized arguments: --seed 1")])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, arguments, words):
    assert words in usage_error(ablation.main, monkeypatch, capsys, tmp_path,
                                *arguments).splitlines()[-1]


def test_a_changed_row_is_not_mixed_with_others(
        processes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        ablation, "train_row",
        lambda *arguments: (tmp_path / "linear-head-0.json").write_text("{}"))
    arguments = argparse.Namespace(out=str(tmp_path), cache=str(tmp_path),
                                   overwrite=False)
    ablation.run(arguments)
    monkeypatch.setitem(ablation.ROWS, "size 96", ablation.ROWS[
        "size 96"]._replace(learning_rate=0.5))
    with pytest.raises(SystemExit) as refused:
        ablation.run(arguments)
    assert refused.value.code == 2
    assert "size 96" in capsys.readouterr().err


def test_without_data_and_network(tmp_path):
    out = tmp_path / "out"
    shutil.copytree(os.path.join(ROOT, "results", "ablation"), out)
    done = run([sys.executable, ablation.__file__, "--out", out,
                "--overwrite"], tmp_path, without_network(tmp_path))
    assert sorted(os.listdir(out)) == sorted(os.listdir(
        os.path.join(ROOT, "results", "ablation")))
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    assert done.stderr.count("CIFAR-10 is missing") == 1


# On real images

SMALL = """\
import ablation
ablation.IMAGES, ablation.VALIDATION_IMAGES = 500, 250
ablation.THROUGHPUT_IMAGES = 32
ablation.ROWS = {name: ablation.ROWS[name]._replace(seeds=seeds)
                 for name, seeds in (("linear head", 2), ("2 epochs", 1))}
ablation.main()
"""


@real_data
def test_real_images(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    arguments = path, tmp_path, "--out", "out", "--cache", "cache"
    printed = Script(*arguments).kill(
        lambda printed: "linear head, seed 1" in printed, signal.SIGINT)
    assert "Traceback" not in printed.stderr
    assert printed.stdout.count("Stopped. Rerun the same command") == 1
    done = script(*arguments)
    assert done.returncode == 0, done.stderr
    assert "linear head, seed 0" not in done.stdout
    for name, frozen in (("linear-head-0", 52), ("linear-head-1", 52),
                         ("2-epochs-0", 27)):
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert record["val_accuracy"] > 0.5
        assert record["frozen_convolutions"] == frozen
        assert record["frozen_pass"]["seconds"] > 0
