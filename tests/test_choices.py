#!/usr/bin/env python3
"""What benchmarks/choices.py changes, leaves alone, and measures."""
import argparse
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from tensorflow import keras as K

import choices
from helpers import (
    ROOT, Script, Stop, noise_images, real_data, run, script,
    small_application, stop_after, usage_error, without_network)

transfer = choices.transfer


# "One change at a time, three seeds"

def test_one_change_at_a_time():
    def chosen(row):
        """A row without what isn't a choice."""
        row = row._asdict()
        if row["cut"] == "features":
            del row["epochs"]
        return row

    rows = {name: chosen(row) for name, row in choices.ROWS.items()
            if not name.startswith("from scratch")}
    for name, row in rows.items():
        assert 1 == min(
            sum(row.get(key) != other.get(key)
                for key in set(row) | set(other))
            for another, other in rows.items() if another != name), name


@pytest.mark.parametrize("name", choices.ROWS)
def test_a_row_is_what_its_name_says(name):
    row, words = choices.ROWS[name], name.split()
    base = words[0] if words[0] in ("MobileNetV2", "DenseNet121") else (
        "ResNet-9" if "scratch" in name else "EfficientNetV2B0")
    head = "head" in name or "hidden" in name
    scratch = "scratch" in name
    assert row.base == base
    assert row.seeds == (1 if "45000" in name else 3)
    assert row.images == (45000 if "45000" in name else 5000)
    assert row.size == (
        int(words[1]) if words[0] == "size" else
        {"MobileNetV2": 160, "DenseNet121": 64, "ResNet-9": 32}.get(base, 128))
    assert row.cut == (
        "features" if head else None if scratch else
        f"block{words[3].rstrip(',')}_add" if words[0] == "cut" else
        {"MobileNetV2": "block_8_add", "DenseNet121": "conv4_block11_concat"}
        .get(base, "block5c_add"))
    if not scratch:
        assert row.epochs == (int(words[-2]) if "epoch" in words[-1]
                              else 60 if head else 3)
    assert row.momentum == (
        None if "inference mode" in name else
        float(words[2]) if "momentum" in name else 0.9)
    assert row.learning_rate == (
        float(words[-1]) if words[-2] == "rate" else 1e-3)
    assert row.views == (
        "crop" if "crops" in name or scratch else "image"
        if "not mirrored" in name or head and "mirrored" not in name
        else "mirror")
    assert row.hidden == (512 if "hidden" in name else 0)
    assert row.weights == (
        None if "random" in name or scratch else "imagenet")
    assert row.storage == ("float32" if "float32" in name else "float16")


@pytest.mark.parametrize("name", [
    "upper half", "hidden layer, mirrored", "MobileNetV2 upper half",
    "DenseNet121 upper half", "BatchNorm in inference mode, rate 1e-5",
    "cut after block 3b, rate 1e-3", "cut after block 6d, rate 1e-3",
    "fresh crops, 3 epochs", "from scratch, rate 1e-3"])
def test_a_row_trains_what_it_says(name):
    row = choices.ROWS[name]._replace(weights=None, size=64)
    model, start = choices.build(row)
    names = [layer.name for layer in model.layers]
    first = names.index(row.cut) + 1 if row.cut else 0
    for layer in model.layers[:first]:
        assert not layer.trainable_weights, layer.name
    for layer in model.layers[first:]:
        assert bool(layer.trainable_weights) == bool(
            layer.weights and not isinstance(layer, K.layers.DepthwiseConv2D))
        if isinstance(layer, K.layers.BatchNormalization) and row.momentum:
            assert layer.momentum == row.momentum
    assert names[names.index("features") + 1:] == ["dropout"] + (
        ["hidden", "hidden_dropout"] if row.hidden else []) + ["classes"]
    assert model.output_shape == (None, 10)
    if row.hidden:
        assert model.get_layer("hidden").units == 512
        assert model.get_layer("hidden_dropout").rate == 0.3
    assert start is (model.input if row.views == "crop"
                     else model.get_layer(row.cut).output)
    if row.cut:  # frozen layers have no dropout, even in training
        frozen = K.Model(model.input, model.get_layer(row.cut).output)
        X = transfer.scale(noise_images(4))
        np.testing.assert_array_equal(
            frozen(X, training=True), frozen(X, training=False))
    # Everything passes through the cut, or this would fail.
    K.Model(start, model.output)


def test_the_upper_half_is_the_network_of_the_exercise():
    def layers(model):
        """What a model consists of, but for what names its layers."""
        return [(type(layer).__name__, layer.trainable, [
            tuple(values.shape) for values in layer.weights])
            for layer in model.layers]

    ours, _ = choices.build(choices.UPPER._replace(weights=None, size=64))
    theirs = transfer.build_model(64)
    assert layers(ours) == layers(theirs)
    ours.set_weights(theirs.get_weights())
    X = transfer.scale(noise_images(4))
    np.testing.assert_allclose(
        ours.predict(X, verbose=0), theirs.predict(X, verbose=0), atol=1e-6)
    assert [layer.momentum for layer in ours.layers
            if isinstance(layer, K.layers.BatchNormalization)] == [
        layer.momentum for layer in theirs.layers
        if isinstance(layer, K.layers.BatchNormalization)]


# "Inference mode, scale and shift trainable"

def test_inference_mode_trains_scale_and_shift_alone(small):
    model, _ = choices.build(choices.ROWS[
        "BatchNorm in inference mode, rate 1e-3"])
    norm = model.get_layer("Conv_1_BN")
    before = [value.numpy() for value in norm.weights]
    model.compile("adam", "categorical_crossentropy")
    X = transfer.scale(small[0][:32])
    assert (model(X, training=True).numpy() != model(
        X, training=True).numpy()).any()  # the head has its dropout
    features = K.Model(model.input, model.get_layer("features").output)
    np.testing.assert_array_equal(
        features(X, training=True), features(X, training=False))
    model.fit(X, np.eye(10)[np.arange(32) % 10], verbose=0)
    changed = dict(zip(
        [value.name for value in norm.weights],
        [np.any(old != value.numpy())
         for old, value in zip(before, norm.weights)]))
    assert changed == {"gamma": True, "beta": True, "moving_mean": False,
                       "moving_variance": False}


# "Averages estimated anew"

def test_averages_are_estimated_anew_and_nothing_else_changes(small):
    X, labels = small
    data = choices.Data(X, labels, 300)
    model, _ = choices.build(choices.ROWS["BatchNorm momentum 0.999"])
    model.get_layer("drop").rate = 0  # for a reference
    stored = transfer.scale(data.images)
    weights = [value.numpy() for value in model.trainable_variables]
    accuracy = choices.estimate_averages(model, stored, data)
    for old, value in zip(weights, model.trainable_variables):
        np.testing.assert_array_equal(old, value.numpy())
    # First of all, since the reference below moves the averages once more
    predicted = model.predict(stored[data.validation], verbose=0)
    assert accuracy == pytest.approx(np.mean(
        predicted.argmax(1) == data.Y[data.validation].argmax(1)))
    # Plain numpy: the averages of two batches, at a momentum of 0.9
    norm = model.get_layer("Conv_1_BN")
    below = K.Model(model.input, model.get_layer("Conv_1").output)
    mean, variance = np.zeros(8), np.ones(8)
    rows = transfer.epoch_rows(data.views, 0, 0)
    for batch in rows[:128], rows[128:256]:  # 44 would weigh as much as 128
        # In training, as the layers below use each batch's own averages
        y = np.asarray(below(stored[batch], training=True))
        mean = 0.9 * mean + 0.1 * y.mean(axis=(0, 1, 2))
        variance = 0.9 * variance + 0.1 * y.var(axis=(0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean.numpy(), mean, atol=1e-4)
    np.testing.assert_allclose(
        norm.moving_variance.numpy(), variance, atol=1e-3)


# "Random weights with calibrated BatchNorm"

def test_calibration_lets_random_weights_through(small):
    X, _ = small
    model, cut = choices.build(choices.ROWS["upper half"]._replace(
        weights=None))
    frozen = K.Model(model.input, cut)
    first = frozen.get_layer("Conv1")  # such as random weights may be
    first.set_weights([first.get_weights()[0] / 1e3, np.zeros(8)])
    norm = frozen.get_layer("Conv1_BN")
    normalized = K.Model(frozen.input, norm.output)
    images = transfer.scale(X[:256])
    assert normalized.predict(images, verbose=0).std() < 0.2
    choices.calibrate(frozen, X)
    y = normalized.predict(images, verbose=0)
    spread = y.reshape(-1, 8).std(axis=0)
    assert abs(y.mean()) < 0.01 and spread.min() > 0.3
    assert not norm.trainable and norm.momentum == 0.9


# "Random crops and mirror images, computed anew"

def test_crops_are_windows_of_the_padded_image():
    images = noise_images(6)
    crops = choices.Crops(images, 4, 0)
    rows = np.array([3, 0, 4, 2])
    some = crops[rows]
    assert some.dtype == "float32"
    np.testing.assert_array_equal(some[2], transfer.scale(images[4:5])[0])
    moves = set()
    for row, crop in zip(rows, some):
        padded = np.pad(images[row], ((4, 4), (4, 4), (0, 0)), "reflect")
        found = [(y, x) for y in range(9) for x in range(9)
                 if np.array_equal(transfer.scale(
                     padded[None, y:y + 32, x:x + 32])[0], crop)]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) > 1
    np.testing.assert_array_equal(choices.Crops(images, 4, 0)[rows], some)
    assert (choices.Crops(images, 4, 1)[rows] != some).any()
    assert (crops[rows[::-1]][::-1] != some).any()  # another epoch's order


# "Multiply-adds"

@pytest.mark.parametrize("base, size, published", [
    # Sandler et al., 2018, table 4; Tan and Le, 2021 (the repository's
    # table); torchvision's table of weights
    ("MobileNetV2", 224, 0.300e9), ("EfficientNetV2B0", 224, 0.72e9),
    ("DenseNet121", 224, 2.83e9)])
def test_multiply_adds_are_the_published_ones(base, size, published):
    model, _ = choices.build(choices.UPPER._replace(
        base=base, size=size, cut="features", weights=None))
    below, above = choices.multiply_adds(model)
    assert below == pytest.approx(published, rel=0.03)
    features = model.get_layer("features").output.shape[-1]
    assert above == 3 * 10 * features  # the head: forward, and two gradients


def test_multiply_adds_by_hand():
    x = K.Input((9, 9, 3))
    y = K.layers.Conv2D(4, 3)(x)                                # 7x7
    y = K.layers.Conv2D(5, 1)(y)
    y = K.layers.DepthwiseConv2D(3, name="depthwise")(y)        # 5x5
    y = K.layers.Dense(2)(K.layers.Flatten()(y))
    model = K.Model(x, y)
    counts = 49 * 27 * 4, 49 * 4 * 5, 25 * 9 * 5, 125 * 2
    model.layers[1].trainable = False
    model.get_layer("depthwise").trainable = False
    assert choices.multiply_adds(model) == (
        counts[0], 3 * counts[1] + 2 * counts[2] + 3 * counts[3])


# "5,000 training images, 5,000 others for validation"

@pytest.fixture
def small(monkeypatch):
    """Return few images and their labels; let the networks have few layers.
    """
    monkeypatch.setattr(choices, "VALIDATION_IMAGES", 64)
    for name, row in choices.ROWS.items():
        monkeypatch.setitem(choices.ROWS, name, row._replace(
            size=64, images=128))
    monkeypatch.setattr(
        K.applications, "EfficientNetV2B0", small_application)
    return noise_images(400), np.arange(400) % 10


def speed():
    """Stand for a Throughput."""
    return {"process": "a", "predict_images_per_second": 50.0}


@pytest.mark.parametrize("name", [
    "upper half", "upper half, not mirrored", "linear head",
    "stored as float32", "fresh crops, 3 epochs",
    "random weights, lower half frozen"])
def test_each_image_is_where_it_belongs(name, small, tmp_path, monkeypatch):
    X, labels = small
    row = choices.ROWS[name]
    seen = {}

    def train(top, stored, Y, views, validation, epochs, seed, checkpoint,
              **hyperparameters):
        """Look at what would be trained on."""
        if isinstance(stored, str):
            stored = np.load(stored)
        seen.update(views=np.stack([stored[rows] for rows in views]),
                    validation=stored[validation],
                    Y_views=Y[views], Y_validation=Y[validation],
                    epochs=epochs, seed=seed, **hyperparameters)
        raise Stop

    monkeypatch.setattr(choices.transfer, "train", train)
    monkeypatch.setattr(choices, "PADDING", 0)  # crops that can be compared
    with pytest.raises(Stop):
        choices.train_row(name, 2, X, labels, speed,
                          str(tmp_path / "out.json"), str(tmp_path))
    order = transfer.stratified_order(labels, 0)
    validation, train = order[:64], order[64:192]
    assert not set(validation) & set(train)
    K.utils.set_random_seed(2)
    model, start = choices.build(row)
    frozen = K.Model(model.input, start)
    mirrored = X[train][:, :, ::-1]
    if row.weights is None:
        choices.calibrate(frozen, np.concatenate([X[train], mirrored]))
    for ours, images in (
            (seen["views"][0], X[train]), (seen["validation"], X[validation]),
            (seen["views"][1],
             X[train] if row.views == "image" else mirrored)):
        theirs = images / np.float32(127.5) - 1
        if row.views != "crop":
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

@pytest.mark.parametrize("name, share, views", [
    ("upper half", 256 / 320, 2), ("upper half, not mirrored", 128 / 320, 1),
    ("fresh crops, 3 epochs", None, 3)])
def test_a_row_records_what_its_cost_is_made_of(
        name, share, views, small, tmp_path, monkeypatch):
    X, labels = small
    once = {"seconds": 10.0, "process": "a", "predict_images_per_second": 50}
    history = [{"val_accuracy": 0.5}, {"val_accuracy": 0.7}]
    monkeypatch.setattr(
        choices.transfer, "frozen_outputs", lambda *_, **__: ("path",))
    monkeypatch.setattr(
        choices.networks, "pass_record", lambda path: dict(once))
    monkeypatch.setattr(choices.transfer, "train", lambda *_, **__: history)
    (tmp_path / "out.npz").touch()  # as after a training
    choices.train_row(name, 0, X, labels, speed, str(tmp_path / "out.json"),
                      str(tmp_path))
    record = json.loads((tmp_path / "out.json").read_text())
    assert record.get("frozen_pass") == (share and {
        **once, "share": pytest.approx(share)})
    below, above = choices.multiply_adds(
        choices.build(choices.ROWS[name])[0])
    assert record["multiply_adds"] == 128 * (views * below + 3 * above)
    assert record["history"] == history
    assert record["val_accuracy"] == 0.7
    assert (record["row"], record["seed"]) == (name, 0)
    assert choices.Row(**{key: record[key] for key in choices.Row._fields}
                       ) == choices.ROWS[name]
    assert not (tmp_path / "out.npz").exists()


def test_inference_mode_begins_with_a_trained_head(
        small, tmp_path, monkeypatch):
    X, labels = small
    trained = []

    def train(top, stored, Y, views, validation, epochs, *_, **more):
        """Note which part is trained, and how."""
        stored = np.load(stored)
        assert stored.shape[1:] == top.input_shape[1:]
        trained.append((len(top.layers), epochs, more["learning_rate"]))
        return [{"val_accuracy": 0.5}]

    monkeypatch.setattr(choices.transfer, "train", train)
    for name in "out.npz", "out-head.npz":
        (tmp_path / name).touch()  # as after a training
    choices.train_row(
        "BatchNorm in inference mode, rate 1e-4", 0, X, labels, speed,
        str(tmp_path / "out.json"), str(tmp_path))
    (head, *first), (top, *second) = trained
    assert head < top
    assert (first, second) == ([60, 1e-3], [3, 1e-4])
    record = json.loads((tmp_path / "out.json").read_text())
    (_, top), (once, head) = (
        choices.training_multiply_adds(choices.ROWS[name])
        for name in ("upper half", "linear head, mirrored"))
    assert record["multiply_adds"] == once + head + top
    assert record["head"] == {"history": [{"val_accuracy": 0.5}]}
    assert record["frozen_pass"]["share"] == 256 / 320
    assert os.listdir(tmp_path).count("out-head.npz") == 0


def test_throughput_is_that_of_predict_on_some_images(monkeypatch):
    X = np.full((1500, 32, 32, 3), 255, "uint8")
    monkeypatch.setattr(choices, "UPPER", choices.UPPER._replace(
        size=32, weights=None))
    throughput = choices.Throughput(X)

    def predict_throughput(base, images):
        """Look at what is measured."""
        assert base.output_shape == (None, 1280)
        assert images.shape == (500, 32, 32, 3)
        assert images.min() == images.max() == 1
        return 20

    monkeypatch.setattr(choices.networks, "predict_throughput",
                        predict_throughput)
    assert throughput() == {"process": throughput.process,
                            "predict_images_per_second": 20}


def test_a_killed_row_ends_as_an_undisturbed_one(
        small, tmp_path, monkeypatch):
    X, labels = small
    monkeypatch.setitem(choices.ROWS, "linear head", choices.ROWS[
        "linear head"]._replace(epochs=2))

    def row(process, name="out"):
        """Return what train_row gets in a process."""
        return ("linear head", 0, X, labels, lambda: {
            "process": process, "predict_images_per_second": 100.0},
            str(tmp_path / f"{name}.json"), str(tmp_path / "cache"))

    choices.train_row(*row("first", "undisturbed"))
    with monkeypatch.context() as first:
        first.setattr(
            choices, "Checkpoint", lambda *args, make=choices.Checkpoint,
            **note: stop_after(1, make(*args, **note)))
        with pytest.raises(Stop):
            choices.train_row(*row("first"))
    assert not (tmp_path / "out.json").exists()
    assert (tmp_path / "out.npz").exists()
    choices.train_row(*row("second"))
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
    monkeypatch.setattr(choices.runs, "claim", lambda folder: None)
    monkeypatch.setattr(
        choices.transfer, "wait_for_others",
        lambda folder: open(os.devnull))
    monkeypatch.setattr(choices.transfer, "cifar10", lambda: (
        (np.zeros((1, 32, 32, 3), "uint8"), np.zeros((1, 1))), None))
    monkeypatch.setattr(choices, "Throughput", lambda images: None)


def test_rows_that_are_there_are_not_made_again(
        processes, tmp_path, monkeypatch):
    made = []

    def train_row(name, seed, X, labels, throughput, path, cache):
        """Be killed at the third."""
        if len(made) == 2:
            made.append("killed")
            raise KeyboardInterrupt
        assert path == str(tmp_path / f"{choices.slug(name)}-{seed}.json")
        choices.runs.write(path, {"row": name})
        made.append((name, seed))

    monkeypatch.setattr(choices, "train_row", train_row)
    arguments = argparse.Namespace(out=str(tmp_path), cache=str(tmp_path),
                                   overwrite=False)
    with pytest.raises(KeyboardInterrupt):
        choices.run(arguments)
    assert made == [("linear head", 0), ("linear head, mirrored", 0), "killed"]
    choices.run(arguments)
    assert made[3:] == [
        (name, seed) for seed in range(3)
        for name, row in choices.ROWS.items() if seed < row.seeds][2:]
    with pytest.raises(SystemExit) as refused:
        choices.run(arguments)
    assert refused.value.code == 2


def test_a_cache_has_one_process(processes, tmp_path, monkeypatch):
    def wait_for_others(folder):
        """Stop where it would wait."""
        assert folder == str(tmp_path / "cache") and os.path.isdir(folder)
        raise Stop

    monkeypatch.setattr(choices.transfer, "wait_for_others", wait_for_others)
    with pytest.raises(Stop):
        choices.run(argparse.Namespace(
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
    assert words in usage_error(choices.main, monkeypatch, capsys, tmp_path,
                                *arguments).splitlines()[-1]


def test_a_changed_row_is_not_mixed_with_others(
        processes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        choices, "train_row",
        lambda *arguments: (tmp_path / "linear-head-0.json").write_text("{}"))
    arguments = argparse.Namespace(out=str(tmp_path), cache=str(tmp_path),
                                   overwrite=False)
    choices.run(arguments)
    monkeypatch.setitem(choices.ROWS, "size 96", choices.ROWS[
        "size 96"]._replace(learning_rate=0.5))
    with pytest.raises(SystemExit) as refused:
        choices.run(arguments)
    assert refused.value.code == 2
    assert "size 96" in capsys.readouterr().err


def test_without_data_and_network(tmp_path):
    out = tmp_path / "out"
    shutil.copytree(os.path.join(ROOT, "results", "choices"), out)
    done = run([sys.executable, choices.__file__, "--out", out,
                "--overwrite"], tmp_path, without_network(tmp_path))
    assert sorted(os.listdir(out)) == sorted(os.listdir(
        os.path.join(ROOT, "results", "choices")))
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    assert done.stderr.count("CIFAR-10 is missing") == 1


# On real images

SMALL = """\
import choices
choices.VALIDATION_IMAGES = 250
choices.THROUGHPUT_IMAGES = 32
choices.ROWS = {
    name: choices.ROWS[name]._replace(seeds=seeds, images=500)
    for name, seeds in (("linear head", 2), ("2 epochs", 1))}
choices.main()
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
    for name, frozen in (("linear-head-0", 91), ("linear-head-1", 91),
                         ("2-epochs-0", 50)):
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert record["val_accuracy"] > 0.5
        assert record["frozen_convolutions"] == frozen
        assert record["frozen_pass"]["seconds"] > 0
