#!/usr/bin/env python3
"""What benchmarks/ablation.py changes, leaves alone, and measures."""
import argparse
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from tensorflow import keras as K

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [ROOT, HERE, os.path.join(ROOT, "benchmarks")]
import ablation  # noqa: E402
from test_exercise_0 import (  # noqa: E402
    kill, real_data, run, without_network)
from test_exercise_cifar100 import lively  # noqa: E402


# "One change at a time"

def test_one_change_at_a_time():
    """Each row but the last control differs from another in one choice.

    A row's epochs follow from whether it trains only a head; its seeds are
    no choice.
    """
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
    """Sizes, blocks, epochs, momentum and rates."""
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


@pytest.mark.parametrize("name", ablation.ROWS)
def test_a_row_trains_what_it_says(name):
    """What is trained begins at the cut; BatchNorm as the row says."""
    row = ablation.ROWS[name]._replace(weights=None)
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
    assert model.output_shape == (None, 10)
    assert model.input_shape == (None, 32, 32, 3)
    assert model.get_layer(index=1).output.shape[1] == row.size
    assert ("hidden" in names) == bool(row.hidden)
    expected = model.get_layer(row.cut).output if row.cut else model.input
    assert tuple(cut.shape)[1:] == tuple(expected.shape)[1:]


# "10,000 training images, 5,000 others held out"

@pytest.fixture
def small(monkeypatch):
    """Few images, and random weights that let something through.

    Returns: X, labels, and a speed
    """
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (400, 32, 32, 3)).astype("uint8")
    labels = np.arange(400) % 10
    for name, value in (("IMAGES", 128), ("HELD_OUT", 64),
                        ("SPEED_IMAGES", 32)):
        monkeypatch.setattr(ablation, name, value)
    make = ablation.transfer.build_model
    monkeypatch.setattr(ablation.transfer, "build_model", lambda size,
                        weights: lively(make(32, weights=None)))
    return X, labels, ablation.Speed(make(32), X)


@pytest.mark.parametrize("name", [
    "upper half", "upper half, not mirrored", "linear head",
    "stored as float32", "random weights, all trained, 1 epoch"])
def test_each_image_is_where_it_belongs(name, small, tmp_path, monkeypatch):
    """Images, then mirror images or the same again, then others."""
    X, labels, speed = small
    row = ablation.ROWS[name]
    seen = {}

    def train(top, stored, Y, Y_held, epochs, seed, keep, rate):
        """Look at what would be trained on."""
        seen.update(Y=Y, Y_held=Y_held, arguments=(epochs, seed, rate),
                    stored=np.array(stored[np.arange(128 * 2 + 64)]))
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation.transfer, "train", train)
    with pytest.raises(KeyboardInterrupt):
        ablation.train_row(name, 2, X, labels, speed,
                           str(tmp_path / "out.json"), str(tmp_path))
    K.utils.set_random_seed(2)
    model, cut = ablation.build(row)
    frozen = K.Model(model.input, cut)

    def outputs(images):
        """What the frozen half makes of them, by Keras's predict."""
        scaled = images / np.float32(127.5) - 1
        return frozen.predict(scaled, verbose=0) if row.cut else scaled

    order = ablation.transfer.stratified_order(labels, 0)
    held, some = order[:64], order[64:192]
    assert not set(held) & set(some)
    expected = np.concatenate([outputs(X[some]), outputs(
        X[some][:, :, ::-1] if row.mirror else X[some]), outputs(X[held])])
    differences = np.abs(seen["stored"] - expected).reshape(320, -1)
    # Another image's outputs are further away than float16 rounds.
    others = np.abs(np.roll(expected, 1, axis=0) - expected).reshape(320, -1)
    assert differences.max() < 0.1 * others.max(axis=1).min()
    if row.cut:
        assert seen["stored"].dtype == row.storage
    np.testing.assert_array_equal(seen["Y"].argmax(1), labels[some])
    np.testing.assert_array_equal(seen["Y_held"].argmax(1), labels[held])
    assert seen["arguments"] == (row.epochs, 2, row.learning_rate)


# "Cost given in passes of predict", "goes on where it was killed"

@pytest.mark.parametrize("name, share", [
    ("upper half", 256 / 320), ("upper half, not mirrored", 128 / 320)])
def test_a_row_needs_its_share_of_the_pass(
        name, share, small, tmp_path, monkeypatch):
    """Not what the held-out images took, nor images that went twice."""
    X, labels, speed = small
    once = {"seconds": 10.0, "process": "a", "predict_images_per_second": 50}
    history = [{"val_accuracy": 0.5}, {"val_accuracy": 0.7}]
    monkeypatch.setattr(ablation.cifar100_transfer, "timed_pass",
                        lambda *_, **__: (None, once))
    monkeypatch.setattr(ablation.transfer, "train", lambda *_, **__: history)
    (tmp_path / "out.npz").touch()  # as after a training
    ablation.train_row(name, 0, X, labels, speed, str(tmp_path / "out.json"),
                       str(tmp_path))
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["share_of_pass"] == pytest.approx(share)
    assert (record["frozen_pass"], record["history"]) == (once, history)
    assert record["val_accuracy"] == 0.7
    assert (record["row"], record["seed"]) == (name, 0)


def test_speed_is_that_of_predict_on_some_images(monkeypatch):
    """The mean of two measurements on 1,000 images, through the base."""
    X = np.full((1500, 32, 32, 3), 255, "uint8")
    speed = ablation.Speed(ablation.transfer.build_model(32), X)
    found = iter((10, 30))

    def predict_rate(base, images):
        """What is measured."""
        assert base.output_shape == (None, 1280)
        assert images.shape == (1000, 32, 32, 3)
        assert images.min() == images.max() == 1
        return next(found)

    monkeypatch.setattr(ablation.cifar100_transfer, "predict_rate",
                        predict_rate)
    assert speed() == {"process": speed.process,
                       "predict_images_per_second": 20}


def test_a_killed_row_goes_on_and_each_epoch_has_its_speed(
        small, tmp_path, monkeypatch):
    """Two epochs, killed after the first, then in another process."""
    X, labels, _ = small

    def row(process):
        """What train_row gets in a process."""
        return ("2 epochs", 0, X, labels, lambda: {
            "process": process, "predict_images_per_second": 100.0},
            str(tmp_path / "out.json"), str(tmp_path / "cache"))

    class Killed(ablation.KeepEpochs):
        """Is killed after an epoch."""

        def on_epoch_end(self, epoch, logs=None):
            """Write, and be killed."""
            super().on_epoch_end(epoch, logs)
            raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(ablation, "KeepEpochs", Killed)
        with pytest.raises(KeyboardInterrupt):
            ablation.train_row(*row("first"))
    assert not (tmp_path / "out.json").exists()
    assert (tmp_path / "out.npz").exists()
    ablation.train_row(*row("second"))
    record = json.loads((tmp_path / "out.json").read_text())
    assert [epoch["process"] for epoch in record["history"]] == [
        "first", "second"]
    for epoch in record["history"]:
        assert epoch["predict_images_per_second"] == 100
        assert 0 < epoch["training_seconds"] < epoch["seconds"]
    assert record["frozen_pass"]["process"] == "first"
    assert record["frozen_pass"]["images"] == 320
    assert not (tmp_path / "out.npz").exists()


@pytest.fixture
def processes(monkeypatch):
    """Let this process stand for several; with next to no data."""
    # Each would hold its folder until it ends.
    monkeypatch.setattr(ablation.runs, "claim", lambda folder: None)
    monkeypatch.setattr(
        ablation.transfer, "cifar10_and_model", lambda size: (
            ((np.zeros((1, 32, 32, 3), "uint8"), np.zeros((1, 1))), None),
            ablation.transfer.build_model(size)))


def test_rows_that_are_there_are_not_made_again(
        processes, tmp_path, monkeypatch):
    """Killed at the third; then finished; then refused."""
    made = []

    def train_row(name, seed, X, labels, speed, path, cache):
        """Be killed at the third."""
        if len(made) == 2:
            made.append("killed")
            raise KeyboardInterrupt
        assert path == str(tmp_path / f"{ablation.slug(name)}-{seed}.json")
        ablation.runs.write(path, {"row": name})
        made.append((name, seed))

    monkeypatch.setattr(ablation, "train_row", train_row)
    arguments = argparse.Namespace(out=str(tmp_path), cache="",
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


def test_a_changed_row_is_not_mixed_with_others(
        processes, tmp_path, monkeypatch, capsys):
    """Another learning rate is another run."""
    monkeypatch.setattr(
        ablation, "train_row",
        lambda *arguments: (tmp_path / "linear-head-0.json").write_text("{}"))
    arguments = argparse.Namespace(out=str(tmp_path), cache="",
                                   overwrite=False)
    ablation.run(arguments)
    monkeypatch.setitem(ablation.ROWS, "size 96", ablation.ROWS[
        "size 96"]._replace(learning_rate=0.5))
    with pytest.raises(SystemExit) as refused:
        ablation.run(arguments)
    assert refused.value.code == 2
    assert "size 96" in capsys.readouterr().err


def test_without_data_and_network(tmp_path):
    """One message, exit status 69, and an earlier run stays."""
    out = tmp_path / "out"
    shutil.copytree(os.path.join(ROOT, "results", "ablation"), out)
    done = run([sys.executable, ablation.__file__, "--out", out,
                "--overwrite"], tmp_path, without_network(tmp_path))
    assert sorted(os.listdir(out)) == sorted(os.listdir(
        os.path.join(ROOT, "results", "ablation")))
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    assert done.stderr.count("CIFAR-10 is missing") == 1
    assert "--rehearse" not in done.stderr


# On real images

SMALL = (f"import sys; sys.path[:0] = [{ROOT!r}, {ROOT + '/benchmarks'!r}]\n"
         "import ablation\n"
         "ablation.IMAGES, ablation.HELD_OUT = 1000, 500\n"
         "ablation.SPEED_IMAGES = 128\n"
         "ablation.ROWS = {name: ablation.ROWS[name] for name in (\n"
         "    'linear head', '2 epochs')}\n"
         "ablation.main()")


@real_data
def test_real_images(tmp_path):
    """A process, on a tenth of the images, with Ctrl-C in the middle."""
    command = [sys.executable, "-c", SMALL, "--out", str(tmp_path / "out"),
               "--cache", str(tmp_path / "cache")]
    kill(command, tmp_path, lambda printed: "linear head, seed 2" in printed,
         signal.SIGINT)
    printed = (tmp_path / "log").read_text()
    assert "Traceback" not in printed
    assert printed.count("Stopped. The same command goes on") == 1
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "linear head, seed 1" not in done.stdout
    for name, frozen in (("linear-head-0", 52), ("linear-head-2", 52),
                         ("2-epochs-0", 27)):
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert record["val_accuracy"] > 0.6
        assert record["frozen_convolutions"] == frozen
        assert record["frozen_pass"]["seconds"] > 0
