#!/usr/bin/env python3
"""The CIFAR-100 exercise, a test a demand, on cifar100_transfer.py.

Offline unless REAL_DATA=1: then images of noise stand for CIFAR-100, and
random weights for ImageNet's.
"""
import json
import os
import re
import shutil
import signal
import sys
import time
import types

import numpy as np
import pytest
from tensorflow import keras as K

import cifar100_transfer as cifar100
import networks
import report
import runs
from helpers import (
    ROOT, Script, Stop, full_disk, he_initialize, noise_images, real_data, run,
    script, usage_error, without_network)

transfer = cifar100.transfer
SCRIPT = os.path.join(ROOT, "cifar100_transfer.py")
FROZEN = {"MobileNetV2": (27, 52), "EfficientNetV2B0": (50, 91),
          "DenseNet121": (61, 120), "Xception": (20, 40)}
STYLES = "fixed", "partial"


def noise(label_mode="fine"):
    """Stand for CIFAR-100: 600 images to train on and 200 to test.

    Each class is an image of noise, each image this one with more noise.
    """
    def split(m, seed):
        """Classes in turn, five to a group."""
        fine = np.arange(m) % 100
        X = noise_images(100)[fine] * 0.9 + noise_images(m, seed) * 0.1
        labels = fine if label_mode == "fine" else fine // 5
        return X.astype("uint8"), labels[:, None].astype("uint8")

    return split(600, 1), split(200, 2)


def go_offline():
    """Let the script do without a network, and train few layers.

    Keras's predict is as fast as the number of the process says, so that the
    records tell which process wrote them.
    """
    build = cifar100.build_base
    cifar100.load_cifar100 = noise
    cifar100.build_base = lambda name: he_initialize(build(name, None))
    cifar100.CLASSIFIERS = (0, 0.5), (0, 0.1), (8, 0.1)
    cifar100.FIXED_EPOCHS = 3
    networks.BASES["MobileNetV2"] = networks.BASES["MobileNetV2"]._replace(
        size=32, first_trained="block_16_expand")
    networks.predict_throughput = lambda *_: float(os.getpid())


def variant(folder, code):
    """Write the script with code before its main(); return its path."""
    path = str(folder / "variant.py")
    with open(path, "w") as file:
        file.write(  # It starts itself again for each of several bases.
            f"import os, sys, time\nsys.path.insert(0, {ROOT!r})\n"
            f"import cifar100_transfer, networks\n"
            f"{code}\ncifar100_transfer.main()\n")
    return path


OFFLINE = "import test_exercise_cifar100\ntest_exercise_cifar100.go_offline()"


@pytest.fixture(scope="module")
def bases():
    """Build each base once, with random weights."""
    return {name: he_initialize(cifar100.build_base(name, weights=None))
            for name in networks.BASES}


# "Import the built in CIFAR100 dataset"

@pytest.fixture
def images(monkeypatch):
    """Return the function that loads all stand-ins for CIFAR-100, or some."""
    monkeypatch.setattr(cifar100, "load_cifar100", noise)
    return cifar100.Images


def test_every_image_is_there_with_its_mirror_image_or_validates(images):
    (X, Y), (X_test, Y_test) = noise()
    data = images(None)
    train, mirrored, validation, test = (
        data.images[data.rows[part]] for part in (
            "train", "train-mirrored", "validation", "test"))
    assert [len(part) for part in (train, validation)] == [570, 30]
    np.testing.assert_array_equal(mirrored, train[:, :, ::-1])
    np.testing.assert_array_equal(test, X_test)
    number = {image.tobytes(): i for i, image in enumerate(X)}
    chosen, held = ([number[image.tobytes()] for image in part]
                    for part in (train, validation))
    assert sorted(chosen + held) == list(range(600))
    np.testing.assert_array_equal(data.Y, np.eye(100)[np.concatenate(
        [Y[chosen], Y[chosen], Y[held], Y_test])[:, 0]])
    assert data.Y.dtype == "float32" and data.images.dtype == "uint8"
    assert np.bincount(Y[held, 0]).max() == 1  # the classes evenly


def test_the_groups_are_those_of_the_coarse_labels(images):
    np.testing.assert_array_equal(
        images(None).group_of, np.arange(100) // 5)
    assert len(set(cifar100.GROUPS)) == 20


def test_a_limit_takes_all_classes_evenly(images):
    few = images(200)
    assert {part: len(rows) for part, rows in few.rows.items()} == {
        "train": 190, "train-mirrored": 190, "validation": 10, "test": 40}
    assert len(few.images) == len(few.Y) == 430
    assert set(few.Y[190:390].sum(axis=0)) == {2}
    assert few.Y[390:].sum(axis=0).max() == 1


# "Import this model using the imagenet weights, and include_top=False"

@pytest.mark.parametrize("name, module", [
    ("MobileNetV2", "mobilenet_v2"), ("EfficientNetV2B0", "efficientnet_v2"),
    ("DenseNet121", "densenet"), ("Xception", "xception")])
def test_features_are_those_of_the_application(bases, name, module):
    X = noise_images(2).astype("float32")
    size = networks.BASES[name].size
    application = getattr(K.applications, name)(
        include_top=False, weights=None, pooling="avg",
        input_shape=(size, size, 3))
    application.set_weights(bases[name].get_weights())
    scaled = np.array(K.layers.Resizing(size, size)(X))
    expected = application(getattr(
        K.applications, module).preprocess_input(scaled), training=False)
    assert np.std(expected) > 1e-3  # or nothing would be compared
    np.testing.assert_allclose(bases[name](X, training=False), expected,
                               rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_seed_also_seeds_the_dropout_in_a_base(monkeypatch):
    def build_base(name):
        """Look at the state of dropout, such as EfficientNet has it."""
        states.append(np.asarray(
            K.layers.Dropout(0.2).seed_generator.state).tolist())
        raise Stop

    states = []
    monkeypatch.setattr(cifar100, "build_base", build_base)
    for seed in 0, 0, 1:
        with pytest.raises(Stop):
            cifar100.Shared("MobileNetV2", types.SimpleNamespace(seed=seed),
                            None)
    assert states[0] == states[1] != states[2]


# "Freeze at least the first half of all convolutional layers in that model"

@pytest.mark.parametrize("name", FROZEN)
def test_half_of_the_convolutions_are_frozen(bases, name):
    base = bases[name]
    model, top = cifar100.freeze(base, name, cifar100.build_classifier(
        base.output.shape[-1], 0, 0.3))
    frozen, total = FROZEN[name]
    assert 2 * frozen >= total
    convolutions = [layer for layer in base.layers
                    if "Conv2D" in type(layer).__name__]
    assert [layer.trainable for layer in convolutions] == (
        [False] * frozen + [True] * (total - frozen))
    # What is trained: all from the first trained layer on, BatchNorm too
    names = [layer.name for layer in model.layers]
    first = names.index(networks.BASES[name].first_trained)
    assert [layer.name for layer in model.layers if layer.weights
            and layer.trainable] == [
                layer.name for layer in model.layers[first:] if layer.weights]
    assert list(map(id, top.trainable_weights)) == list(
        map(id, model.trainable_weights))
    # Nothing gets past the cut: outputs there determine the probabilities.
    X = noise_images(2).astype("float32")
    cut = K.Model(base.input, base.get_layer(
        networks.BASES[name].first_trained).input)
    P = model(X, training=False)
    np.testing.assert_allclose(top(cut(X, training=False), training=False), P,
                               atol=1e-5)
    assert P.shape == (2, 100)


def test_too_few_frozen_convolutions_are_refused(bases, monkeypatch):
    base = networks.BASES["MobileNetV2"]
    monkeypatch.setitem(networks.BASES, "MobileNetV2", base._replace(
        first_trained="block_7_expand"))
    with pytest.raises(ValueError, match="21 of 52"):
        cifar100.freeze(bases["MobileNetV2"], "MobileNetV2",
                        cifar100.build_classifier(1280, 0, 0.3))


def test_batchnorm_keeps_up_within_few_steps(bases):
    for base in bases.values():
        assert {layer.momentum for layer in base.layers if isinstance(
            layer, K.layers.BatchNormalization)} == {0.9}


# "Accept as input the result of our pretrained model. Produce as output a
# classification for the CIFAR100 dataset."

@pytest.mark.parametrize("units, parameters", [
    (0, 1280 * 100 + 100), (64, 1280 * 64 + 64 + 64 * 100 + 100)])
def test_the_classifier_takes_features(units, parameters):
    classifier = cifar100.build_classifier(1280, units, 0.5)
    P = classifier(np.ones((3, 1280), "float32"))
    assert P.shape == (3, 100)
    np.testing.assert_allclose(np.sum(P, axis=1), 1, atol=1e-5)
    assert classifier.count_params() == parameters
    # Dropout comes before each layer.
    assert [layer.rate for layer in classifier.layers[::2]] == (
        [0.5] * (2 if units else 1))


def test_part_2_starts_with_part_1_s_linear_classifier(bases, monkeypatch):
    weights = np.random.default_rng(0).normal(size=(1280, 100)), np.ones(100)
    seen = []

    def train(top, stored, what, epochs, batch, learning_rate):
        """Look at what would be trained; the first time, learn something."""
        if not seen:
            top.set_weights(weights)
        seen.append((stored, what, epochs, batch, learning_rate))
        np.testing.assert_allclose(top.get_weights()[-2], weights[0])
        np.testing.assert_allclose(top.get_weights()[-1], weights[1])
        return []

    monkeypatch.setattr(cifar100, "finish", lambda *_, **more: None)
    cifar100.train_partial(types.SimpleNamespace(
        name="MobileNetV2", base=bases["MobileNetV2"], train=train,
        features="features", at_cut="outputs at the cut",
        args=types.SimpleNamespace(seed=0)))
    assert seen == [("features", "0-0.3", 15, 128, 1e-3),
                    ("outputs at the cut", "partial", 4, 64, 7e-4)]


# The whole script, on one base

ARGUMENTS = ("--bases", "MobileNetV2", "--limit", 400, "--cache", "cache")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Run both parts: undisturbed, and killed in part 2 and resumed.

    Returns: the folder, and what the undisturbed run and the last one printed
    """
    folder = tmp_path_factory.mktemp("comparison")
    arguments = (variant(folder, OFFLINE), folder, *ARGUMENTS, "--out")
    undisturbed = Script(*arguments, "out")
    undisturbed.wait_until(lambda printed: (
        folder / "out" / "MobileNetV2-partial.npz").exists())
    # The plots of part 1 are there as soon as it is done.
    assert (folder / "out" / "confusion-MobileNetV2-fixed.png").exists()
    undisturbed = undisturbed.wait()
    assert undisturbed.returncode == 0, undisturbed.stderr
    shutil.copytree(folder / "out", folder / "killed")
    for path in (folder / "killed").glob("MobileNetV2-partial*"):
        os.remove(path)
    Script(*arguments, "killed").kill(lambda printed: (
        folder / "killed" / "MobileNetV2-partial.npz").exists())
    resumed = script(*arguments, "killed")
    assert resumed.returncode == 0, resumed.stderr
    return folder, undisturbed.stdout, resumed.stdout


@pytest.fixture(scope="module")
def models(comparison):
    """Load the saved models: {style: model}."""
    return {style: K.models.load_model(
        comparison[0] / "out" / f"MobileNetV2-{style}-limit-400.keras")
            for style in STYLES}


def records(out, base="MobileNetV2"):
    """Read a base's records in a folder: {style: record}."""
    return {style: runs.read_json(out / f"{base}-{style}.json")
            for style in STYLES}


def without_times(history):
    """Return a history without what differs between processes."""
    return [{key: value for key, value in epoch.items() if key not in (
        "seconds", "predict_images_per_second")} for epoch in history]


def assert_same_models(folder, other, name):
    """Saved models have the same weights, to the bit."""
    for ours, theirs in zip(*(K.models.load_model(path / name).get_weights()
                              for path in (folder, other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_killed_in_part_2_it_ends_as_an_undisturbed_run(comparison):
    folder, _, printed = comparison
    classifier, done = map(int, re.findall(
        r"Continuing after epoch (\d)", printed))
    assert classifier == 3 and 1 <= done <= 3
    assert printed.count("Epoch ") == 4 - done
    ours, theirs = (records(folder / out) for out in ("killed", "out"))
    assert ours["fixed"] == theirs["fixed"]  # not made again
    ours, theirs = ours["partial"], theirs["partial"]
    assert without_times(ours["history"]) == without_times(theirs["history"])
    for key in "test_top1", "test_top5", "confusion":
        assert ours[key] == theirs[key]
    assert_same_models(folder / "killed", folder / "out",
                       "MobileNetV2-partial-limit-400.keras")
    assert not list(folder.rglob("*.npz")) + list(folder.rglob("*.part*"))
    # Each epoch says how fast its process was.
    processes = [epoch["predict_images_per_second"]
                 for epoch in ours["history"]]
    assert len(set(processes[:done])) == len(set(processes[done:])) == 1
    assert len(set(processes)) == 2


def test_one_pass_serves_both_parts(comparison):
    folder, undisturbed, resumed = comparison
    rows = 2 * 380 + 20 + 80
    assert undisturbed.count("images to do") == 1
    assert f"Frozen part: {rows} of {rows} images to do" in undisturbed
    assert "images to do" not in resumed
    fixed, partial = records(folder / "out").values()
    for record in (fixed, partial, *records(folder / "killed").values()):
        once = record["frozen_pass"]
        assert (once["images"], once["measured_on"]) == (rows, rows)
        assert once["seconds"] == fixed["frozen_pass"]["seconds"] > 0
        assert once["predict_images_per_second"] == pytest.approx(
            fixed["history"][0]["predict_images_per_second"], 1e-9)


def test_both_trainings_are_recorded(comparison):
    for style, record in records(comparison[0] / "out").items():
        assert (record["base"], record["style"]) == ("MobileNetV2", style)
        assert len(record["history"]) == (3 if style == "fixed" else 4)
        assert all({"accuracy", "val_accuracy", "seconds"} <= set(row)
                   for row in record["history"])
        assert (record["training_images"], record["held_out_images"],
                record["test_images"]) == (380, 20, 80)
        assert record["size"] == 32 and record["limit"] == 400
        assert record["groups"] == list(cifar100.GROUPS)
        assert record["machine"]["peak_memory_bytes"] > 2 ** 20


def test_part_2_counts_the_time_of_part_1_s_linear_classifier(
        comparison, models):
    found = records(comparison[0] / "out")
    tried = found["fixed"]["tried"]
    assert [(row["units"], row["dropout"]) for row in tried] == [
        (0, 0.5), (0, 0.1), (8, 0.1)]
    assert found["partial"]["seconds_before"] == tried[0]["seconds"]
    assert found["fixed"]["seconds_before"] == pytest.approx(
        sum(row["seconds"] for row in tried)
        - sum(epoch["seconds"] for epoch in found["fixed"]["history"]))
    assert [type(layer).__name__ for layer in models["partial"].get_layer(
        "classifier").layers] == ["Dropout", "Dense"]


def read_features(folder):
    """Read the files of features: {part: (features, labels)}."""
    folder = folder / "out" / "features-limit-400" / "MobileNetV2"
    return {part: [np.load(folder / f"{part}{what}.npy")
                   for what in ("", "-labels")]
            for part in ("train", "train-mirrored", "validation", "test")}


def test_a_full_disk_leaves_no_half_file_of_features(tmp_path):
    stored = tmp_path / "stored.npy"
    np.save(stored, np.zeros((20, 1000), "float16"))
    data = types.SimpleNamespace(
        Y=np.eye(100)[:20], rows={"train": np.arange(20)})
    with full_disk(), pytest.raises(
            OSError, match="train.npy was not written: .* File too large"):
        cifar100.save_features(str(stored), data, str(tmp_path / "features"))
    assert not os.listdir(tmp_path / "features")


def test_the_classifier_is_chosen_on_validation_images(comparison, models):
    record = records(comparison[0] / "out")["fixed"]
    best = max(row["val_accuracy"] for row in record["tried"])
    assert record["choice"]["val_accuracy"] == best
    assert record["choice"] == record["tried"][1]  # not just the first one
    assert record["history"][-1]["val_accuracy"] == best
    features, labels = read_features(comparison[0])["validation"]
    P = models["fixed"].get_layer("classifier")(features.astype("float32"))
    assert best == pytest.approx(np.mean(np.argmax(P, axis=1) == labels))


def test_features_are_files_for_numpy_load(comparison, models, images):
    data = images(400)
    base = K.Model(models["fixed"].input,
                   models["fixed"].get_layer("features").output)
    for part, (features, labels) in read_features(comparison[0]).items():
        rows = data.rows[part]
        expected = base(data.images[rows].astype("float32"), training=False)
        assert features.dtype == "float16" and labels.dtype == "int64"
        np.testing.assert_allclose(features, expected, rtol=2e-3,
                                   atol=2e-3 * np.abs(expected).max())
        np.testing.assert_array_equal(labels, data.Y[rows].argmax(axis=1))


def test_the_classifier_is_what_keras_makes_of_the_saved_features(
        comparison, models):
    """Trained by Keras's fit alone, it has the same weights."""
    choice = records(comparison[0] / "out")["fixed"]["choice"]
    stored = read_features(comparison[0])
    X, labels = map(np.concatenate, zip(*stored.values()))
    Y = np.eye(100)[labels]
    K.utils.set_random_seed(0)
    classifier = cifar100.build_classifier(
        1280, choice["units"], choice["dropout"])
    batch = 380 // 20  # few images make small batches
    classifier.compile(K.optimizers.AdamW(
        K.optimizers.schedules.CosineDecay(1e-3, 3 * 20), weight_decay=0.01),
        K.losses.CategoricalCrossentropy(label_smoothing=0.1))
    for epoch in range(3):
        rows = transfer.epoch_rows(np.arange(760).reshape(2, 380), epoch, 0)
        classifier.fit(X[rows].astype("float32"), Y[rows], batch,
                       shuffle=False, verbose=0)
    for ours, theirs in zip(
            models["fixed"].get_layer("classifier").get_weights(),
            classifier.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_training_changes_what_it_should_and_nothing_else(
        comparison, models, bases, style):
    model = models[style]
    names = [layer.name for layer in model.layers]
    first = names.index("classifier" if style == "fixed"
                        else "block_16_expand")
    changed = []
    for layer in bases["MobileNetV2"].layers:
        for old, new in zip(layer.get_weights(),
                            model.get_layer(layer.name).get_weights()):
            assert np.array_equal(old, new) == (
                names.index(layer.name) < first), layer.name
            changed.append(not np.array_equal(old, new))
    record = records(comparison[0] / "out")[style]
    frozen = [not layer.trainable for layer in model.layers
              if "Conv2D" in type(layer).__name__]
    assert record["frozen_convolutions"] == sum(frozen)
    assert record["convolutions"] == len(frozen) == 52
    assert any(changed) == (style == "partial")
    trained = sum(np.prod(w.shape) for w in model.trainable_weights)
    assert record["trained_parameters"] == trained
    assert record["other_parameters"] + trained == model.count_params()


@pytest.mark.parametrize("style", STYLES)
def test_the_saved_model_gives_the_recorded_metrics(
        comparison, models, images, style):
    data, record = images(400), records(comparison[0] / "out")[style]
    assert not any(isinstance(layer, K.layers.Lambda)
                   for layer in models[style].layers)
    rows = data.rows["test"]
    P = models[style](data.images[rows].astype("float32"), training=False)
    order = np.argsort(-np.array(P), axis=1)
    truth = data.Y[rows].argmax(axis=1)
    # Features are stored as float16: an image may fall on the other side.
    for key, k in ("test_top1", 1), ("test_top5", 5):
        assert record[key] == pytest.approx(np.mean(
            [t in row[:k] for t, row in zip(truth, order)]), abs=1.1 / 80)
    assert record["test_top5"] > 0.2  # chance: 0.05
    counts = np.zeros((20, 20), int)
    for t, p in zip(truth, order[:, 0]):
        counts[t // 5, p // 5] += 1
    assert np.abs(counts - record["confusion"]).sum() <= 2
    assert np.sum(record["confusion"]) == 80
    assert record["saved_model_differs_by"] < 0.05


# "Plot your results", "compare your results"

def test_tables_and_plots_are_made(comparison):
    folder, printed, resumed = comparison
    out = folder / "out"
    assert report.markdown(report.table(report.read(str(out)))) in printed
    assert report.markdown(report.table(report.read(
        str(folder / "killed")))) in resumed
    assert {path.name for path in out.glob("*.png")} == {
        "curves.png", "accuracy-time.png", "confusion-MobileNetV2-fixed.png",
        "confusion-MobileNetV2-partial.png"}


def test_all_output_of_a_limited_run_says_so(comparison):
    folder, printed, _ = comparison
    out = folder / "out"
    for style in "fixed features", "partially frozen":
        line, = re.findall(f"MobileNetV2, {style}: test.*", printed)
        assert "NOT A RESULT: limited to 400 images" in line
    assert "NOT A RESULT: limited to 400" in (out / "table.md").read_text()
    assert "NOT A RESULT" in (out / "table.json").read_text()
    outputs = list(out.glob("*.keras")) + list(out.glob("features*"))
    assert len(outputs) == 3
    assert all("limit-400" in path.name for path in outputs)


def test_a_second_run_repeats_nothing(comparison):
    """It does not even load the images."""
    folder, _, _ = comparison
    shutil.rmtree(folder / "cache")  # as its last line suggests
    before = {path: path.read_bytes()
              for path in (folder / "out").glob("MobileNetV2-*")}
    assert len(before) == 4
    done = script(variant(folder, f"{OFFLINE}\n"
                          "cifar100_transfer.load_cifar100 = None"),
                  folder, *ARGUMENTS, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "MobileNetV2: already finished" in done.stdout
    assert "images to do" not in done.stdout
    assert before == {path: path.read_bytes() for path in before}


# What report.py needs of a record, to take it for one
RECORD = {"base": "Xception", "style": "fixed", "history": [{"seconds": 1}],
          "machine": {"processor": "A chip", "cores": 2}}


def test_a_part_is_finished_with_its_record_and_its_model(tmp_path):
    args = types.SimpleNamespace(out=str(tmp_path), suffix="-limit-500")
    record = tmp_path / "Xception-fixed.json"
    model = tmp_path / "Xception-fixed-limit-500.keras"
    assert not cifar100.finished(args, "Xception", "fixed")
    model.write_text("a model")
    assert not cifar100.finished(args, "Xception", "fixed")
    record.write_text("{broken")
    assert not cifar100.finished(args, "Xception", "fixed")
    record.write_text('{"base": "Xception", "style": "fixed"}')
    assert not cifar100.finished(args, "Xception", "fixed")
    record.write_text(json.dumps(RECORD))
    assert cifar100.finished(args, "Xception", "fixed")
    assert not cifar100.finished(args, "Xception", "partial")
    os.remove(model)
    assert not cifar100.finished(args, "Xception", "fixed")


# Part 3, "Repeat the previous two sections with a different base model"

@pytest.fixture
def main(monkeypatch, tmp_path):
    """Return a function that calls main() with nothing to train.

    It returns what would be done.
    """
    done = []
    for module, name in ((cifar100, "run_in_new_process"),
                         (cifar100, "train_both_styles"),
                         (cifar100, "end_with_parent"), (report, "report")):
        monkeypatch.setattr(module, name, lambda first, *_, name=name: (
            done.append((name, first))))
    monkeypatch.setattr(runs, "claim", lambda folder: None)
    monkeypatch.chdir(tmp_path)

    def call_main(*arguments):
        """Call main() with these arguments, and --cache."""
        monkeypatch.setattr(sys, "argv", [
            "cifar100_transfer.py", "--cache", "cache", *arguments])
        done.clear()
        cifar100.main()
        return list(done)

    return call_main


@pytest.fixture
def out(main, tmp_path):
    """Return the folder of a finished run on Xception."""
    main("--out", "run [1]", "--bases", "Xception")
    out = tmp_path / "run [1]"
    for style in STYLES:
        runs.write(str(out / f"Xception-{style}.json"), RECORD)
        (out / f"Xception-{style}.keras").write_text("a model")
    return out


def test_each_base_has_a_process_of_its_own(main, out, capsys):
    (out / "DenseNet121-partial.npz").write_text("a checkpoint")
    assert main("--out", "run [1]", "--bases", "Xception", "MobileNetV2",
                "DenseNet121", "MobileNetV2") == [
        ("run_in_new_process", "MobileNetV2"),
        ("run_in_new_process", "DenseNet121"), ("report", "run [1]")]
    assert "Xception: already finished\n" in capsys.readouterr().out
    assert not list(out.glob("*.npz"))
    assert runs.read_json(str(out / "run.json"))["finished"] is True


def test_a_base_that_is_not_asked_for_may_continue_later(main, out):
    checkpoint = out / "MobileNetV2-partial.npz"
    checkpoint.write_text("minutes of work")
    assert main("--out", "run [1]", "--bases", "Xception") == [
        ("report", "run [1]")]
    assert checkpoint.exists()
    assert runs.read_json(str(out / "run.json"))["finished"] is False


def test_the_committed_run_can_be_continued():
    assert runs.read_json(os.path.join(
        ROOT, "results", "cifar100", "run.json")) == {
            "script": "cifar100_transfer.py", "finished": True,
            "arguments": json.loads(json.dumps(cifar100.recipe(
                types.SimpleNamespace(limit=None, seed=0))))}


def test_overwrite_deletes_a_finished_run_once_nothing_else_can_fail(
        main, out, monkeypatch):
    def fail(*_):
        """Fail as without a network."""
        sys.exit(69)

    before = sorted(os.listdir(out))
    options = "--out", "run [1]", "--bases", "Xception", "--overwrite"
    for there, missing in (("build_base", "load_cifar100"),
                           ("load_cifar100", "build_base")):
        monkeypatch.setattr(cifar100, there, lambda *_: None)
        monkeypatch.setattr(cifar100, missing, fail)
        with pytest.raises(SystemExit) as end:
            main(*options)
        assert end.value.code == 69 and sorted(os.listdir(out)) == before
    monkeypatch.setattr(cifar100, "build_base", lambda _: None)
    assert main(*options) == [
        ("train_both_styles", "Xception"), ("report", "run [1]")]
    assert os.listdir(out) == ["run.json"]


def test_a_cache_has_one_process_before_anything_is_loaded(
        tmp_path, monkeypatch):
    def wait_for_others(folder):
        """Stop where it would wait."""
        assert os.path.isdir(folder)
        raise Stop

    monkeypatch.setattr(transfer, "wait_for_others", wait_for_others)
    monkeypatch.setattr(cifar100, "load_cifar100", None)
    with pytest.raises(Stop):
        cifar100.train_both_styles("Xception", types.SimpleNamespace(
            cache=str(tmp_path / "cache"), limit=None))


def test_a_single_base_is_trained_at_once(main):
    assert main("--bases", "Xception") == [
        ("train_both_styles", "Xception"),
        ("report", os.path.join("runs", "cifar100"))]
    # In a process for one of several bases, the parent reports.
    assert main("--bases", "Xception", "--parent", "7") == [
        ("end_with_parent", 7), ("train_both_styles", "Xception")]


def test_two_bases_and_a_folder_of_their_own_by_default(main):
    bases = [("run_in_new_process", name)
             for name in ("MobileNetV2", "EfficientNetV2B0")]
    assert main() == bases + [("report", os.path.join("runs", "cifar100"))]
    assert main("--limit", "500") == bases + [
        ("report", os.path.join("runs", "cifar100-limit-500"))]


def in_new_process(tmp_path, monkeypatch, code):
    """Call run_in_new_process, with code in the script's place."""
    (tmp_path / "script.py").write_text(f"import os, sys\n{code}")
    monkeypatch.setattr(sys, "argv", [
        str(tmp_path / "script.py"), "--bases", "MobileNetV2", "Xception"])
    cifar100.run_in_new_process("Xception")


def test_a_base_s_process_gets_the_same_command(tmp_path, monkeypatch, capfd):
    in_new_process(tmp_path, monkeypatch, "print(sys.argv[1:])")
    assert capfd.readouterr().out == (
        "['--bases', 'MobileNetV2', 'Xception', '--bases', 'Xception', "
        f"'--parent', '{os.getpid()}']\n")


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
def test_a_base_s_process_shares_the_claim(tmp_path, monkeypatch, capfd):
    runs.claim(str(tmp_path))  # until these tests end
    in_new_process(tmp_path, monkeypatch, (
        "import contextlib\n"
        "for file in range(3, 3000):\n"
        "    with contextlib.suppress(OSError):\n"
        "        if os.path.samestat(os.fstat(file), os.stat(\n"
        "                os.path.dirname(__file__))):\n"
        "            print('shared')\n"))
    assert capfd.readouterr().out == "shared\n"


def test_a_base_s_process_ignores_ctrl_c_from_its_first_moment(
        tmp_path, monkeypatch, capfd):
    handler = signal.getsignal(signal.SIGINT)
    in_new_process(tmp_path, monkeypatch, (
        "import signal\n"
        "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"))
    assert capfd.readouterr().out == "True\n"
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("status", [1, 2, 69, 130])
def test_the_exit_status_of_a_base_s_process_is_passed_on(
        tmp_path, monkeypatch, status):
    with pytest.raises(SystemExit) as end:
        in_new_process(tmp_path, monkeypatch, f"sys.exit({status})")
    assert end.value.code == status


def test_a_base_s_process_that_is_killed_is_named(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="Xception: .* killed by signal 9; .*"
                                      "out of memory"):
        in_new_process(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_started_it(tmp_path, how):
    path = variant(tmp_path, (
        "def train_both_styles(name, args):\n"
        "    print(os.getpid(), 'at work', flush=True)\n"
        "    time.sleep(600)\n"
        "cifar100_transfer.train_both_styles = train_both_styles\n") + (
            # Where there is no prctl, only the parent can end it.
            "cifar100_transfer.end_with_parent = lambda parent: None"
            if how == signal.SIGINT else ""))

    def at_work(printed):
        """Whether the child is at work; Ctrl-C reaches it, too."""
        match = re.search(r"(\d+) at work", printed)
        if match and how == signal.SIGINT:
            os.kill(int(match.group(1)), how)
        return match

    done = Script(path, tmp_path, "--out", "out", "--cache", "cache").kill(
        at_work, how)
    assert done.stdout.count("Stopped. Rerun the same command") == (
        how == signal.SIGINT)
    assert "Traceback" not in done.stderr
    for _ in range(1000):
        try:  # The child holds its claim on the folder until it ends.
            return runs.claim(str(tmp_path / "out"))
        except OSError:
            time.sleep(0.01)
    raise AssertionError("the child is still at work")


# What can go wrong

def test_other_arguments_need_another_folder(
        comparison, monkeypatch, capsys):
    def error(*arguments):
        """Return the message that a run in the same folder gets."""
        return usage_error(cifar100.main, monkeypatch, capsys, comparison[0],
                           *ARGUMENTS, *arguments, "--out", "out")

    monkeypatch.setattr(runs, "claim", lambda folder: None)
    message = error("--seed", 1)
    assert "out contains a run with " in message
    assert "seed 0 instead of 1" in message and "choose another" in message
    assert "limit 400 instead of 500" in error("--limit", 500)
    # The script itself has changed: it has its own bases in this process.
    assert "out contains a run with bases {" in error()


def test_a_folder_of_another_script_is_refused(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "claim", lambda folder: None)
    runs.write(str(tmp_path / "run.json"), {
        "script": "simple_cnn.py", "arguments": {}, "finished": True})
    (tmp_path / "simple.keras").write_text("a model")
    assert "contains a run of simple_cnn.py: choose another --out" in (
        usage_error(cifar100.main, monkeypatch, capsys, tmp_path, "--out",
                    ".", "--cache", "."))


@pytest.mark.parametrize("text", [
    '{"model": "mine"}', "[1]", '{"script": 1}', "{}", "broken", '"limit"',
    '{"limit": null, "seed": 0}'])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_the_run_json_of_another_program_stays(
        tmp_path, monkeypatch, capsys, text, options):
    monkeypatch.setattr(runs, "claim", lambda folder: None)
    monkeypatch.setattr(cifar100, "load_cifar100", lambda: None)
    monkeypatch.setattr(cifar100, "build_base", lambda name: None)
    (tmp_path / "run.json").write_text(text)
    assert usage_error(
        cifar100.main, monkeypatch, capsys, tmp_path, "--out", ".",
        *options) == (". contains something that isn't a run: choose another "
                      "--out\n")
    assert (tmp_path / "run.json").read_text() == text


def test_two_runs_in_one_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    runs.claim(str(tmp_path / "out"))  # until these tests end
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", *map(str, ARGUMENTS),
                                      "--out", "out"])
    with pytest.raises(SystemExit) as end:
        cifar100.main()
    assert end.value.code.startswith("Another process is using out\n")
    assert "rerun the same command" in end.value.code
    assert not os.listdir("out")


@pytest.mark.parametrize("arguments, words", [
    (["--limit", 199], "--limit is 199, expected 200 to 50000"),
    (["--limit", 50001], "--limit is 50001, expected 200 to 50000"),
    (["--limit", 0], "--limit is 0, expected 200 to 50000"),
    (["--limit", -1], "--limit is -1, expected 200 to 50000"),
    (["--limit", "nan"], "--limit: invalid int value: 'nan'"),
    (["--limit", ""], "--limit: invalid int value: ''"),
    (["--bases", ""], "--bases: invalid choice: ''"),
    (["--bases", "MobileNetV2", "x"], "--bases: invalid choice: 'x'"),
    (["--seed", "nan"], "--seed: invalid int value: 'nan'"),
    (["--seed", 0.5], "--seed: invalid int value: '0.5'"),
    (["--seed", -1], "seed is -1, expected 0 to 4294967295"),
    (["--out", ""], "--out is '', expected a folder"),
    (["--cache", ""], "--cache is '', expected a folder"),
    (["--out", SCRIPT], f"--out is '{SCRIPT}', expected a folder"),
    (["--cache", SCRIPT], f"--cache is '{SCRIPT}', expected a folder"),
    (["--overwrite", "out"], "unrecognized arguments: out"),
    (["--bases", "ResNet"], "DenseNet121"), (["--bases"], "--bases"),
    (["--seed", -1], "--seed is -1, expected 0 to 4294967295"),
    (["--seed", 2 ** 32], "--seed is 4294967296"), (["--sead", 1], "--sead"),
    (["--out", os.path.join(SCRIPT, "out")], SCRIPT),
    (["--out", ".", "--cache", os.path.join(SCRIPT, "cache")], SCRIPT)])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, arguments, words):
    assert words in usage_error(cifar100.main, monkeypatch, capsys, tmp_path,
                                *arguments).splitlines()[-1]


def test_without_a_network_one_message_tells_what_to_do(tmp_path):
    env = without_network(tmp_path)
    done = script("cifar100_transfer.py", tmp_path, env=env)
    assert done.returncode == 69
    assert done.stderr.count("CIFAR-100 is missing") == 1
    assert os.path.join(env["KERAS_HOME"], "datasets") in done.stderr
    assert "Run this once with a network\n" in done.stderr
    assert "Traceback" not in done.stderr


@real_data
def test_missing_weights_are_named(tmp_path):
    env = without_network(tmp_path)
    env["XDG_CACHE_HOME"] = os.path.expanduser("~/.cache")
    if "PYTHONPATH" in os.environ:
        env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    else:  # CIFAR-100 as this machine's Keras has it
        shutil.copytree(transfer.keras_folder("datasets"),
                        tmp_path / ".keras" / "datasets")
    done = run([sys.executable, SCRIPT, "--limit", 200, "--bases", "Xception",
                "--cache", "cache"], tmp_path, env)
    assert done.returncode == 69
    assert "xception_weights" in done.stderr
    assert "other --bases than Xception" in done.stderr


# On real images

@real_data
def test_the_groups_are_cifar100_s():
    data = cifar100.Images(None)
    examples = {  # CIFAR-100's classes are numbered by the alphabet
        30: "aquatic mammals", 1: "fish", 54: "flowers",
        9: "food containers", 0: "fruit and vegetables",
        22: "household electrical devices", 5: "household furniture",
        6: "insects", 43: "large carnivores",
        12: "large man-made outdoor things",
        23: "large natural outdoor scenes",
        31: "large omnivores and herbivores", 34: "medium-sized mammals",
        26: "non-insect invertebrates", 2: "people", 27: "reptiles",
        36: "small mammals", 47: "trees", 8: "vehicles 1", 41: "vehicles 2"}
    assert len(examples) == len(cifar100.GROUPS)
    for label, group in examples.items():
        assert cifar100.GROUPS[data.group_of[label]] == group
    assert [len(rows) for rows in data.rows.values()] == [
        47500, 47500, 2500, 10000]


# Fewer classifiers and epochs, or this would take twice as long
FEWER = """\
cifar100_transfer.CLASSIFIERS = (0, 0.3), (1024, 0.3)
cifar100_transfer.PARTIAL_EPOCHS = 2
"""


@real_data
def test_real_images_and_weights_end_to_end(tmp_path):
    done = script(variant(tmp_path, FEWER), tmp_path, "--limit", 200,
                  "--cache", "cache")
    assert done.returncode == 0, done.stderr
    found = report.read(str(tmp_path / "runs" / "cifar100-limit-200"))
    # Sorted, since the report has the base first that was faster here.
    assert sorted((r["base"], r["style"]) for r in found) == [
        ("EfficientNetV2B0", "fixed"), ("EfficientNetV2B0", "partial"),
        ("MobileNetV2", "fixed"), ("MobileNetV2", "partial")]
    for record in found:  # chance gives 5 %
        assert record["test_top5"] > 0.25
        frozen, total = FROZEN[record["base"]]
        assert record["frozen_convolutions"] == (
            total if record["style"] == "fixed" else frozen)
    assert done.stdout.count("| test accuracy, top-1 |") == 1
    assert done.stdout.count("NOT A RESULT: limited to 200 images\n\n|") == 1


# Small images, few layers and epochs: this is about being killed.
FASTER = """\
cifar100_transfer.transfer.SHARD = 256
cifar100_transfer.CLASSIFIERS = (0, 0.3), (64, 0.3)
cifar100_transfer.FIXED_EPOCHS = 5
cifar100_transfer.PARTIAL_EPOCHS = 1
networks.BASES["MobileNetV2"] = networks.BASES["MobileNetV2"]._replace(
    size=64, first_trained="block_16_expand")
"""


@real_data
def test_killed_before_part_2_it_ends_as_an_undisturbed_run(tmp_path):
    arguments = (variant(tmp_path, FASTER), tmp_path, "--bases",
                 "MobileNetV2", "--limit", 400)
    undisturbed = script(*arguments, "--cache", "cache", "--out", "out")
    assert undisturbed.returncode == 0, undisturbed.stderr
    arguments += ("--cache", "other", "--out", "killed")
    in_pass, in_classifier = [
        Script(*arguments).kill(lambda _: list(tmp_path.glob(pattern))).stdout
        for pattern in ("other/*/index.json", "killed/*-64-0.3.npz")]
    done = script(*arguments)
    assert done.returncode == 0, done.stderr
    assert "860 of 860 images to do" in in_pass
    assert "of 860 images to do" in in_classifier
    assert "860 of 860 images to do" not in in_classifier
    assert "images to do" not in done.stdout
    assert "Continuing after epoch 5\n" in done.stdout
    for style in STYLES:
        assert_same_models(tmp_path / "killed", tmp_path / "out",
                           f"MobileNetV2-{style}-limit-400.keras")
        ours, theirs = (records(tmp_path / out)[style]
                        for out in ("killed", "out"))
        assert without_times(ours["history"]) == without_times(
            theirs["history"])
        for key in "test_top1", "test_top5", "confusion":
            assert ours[key] == theirs[key]
