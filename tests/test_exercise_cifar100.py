#!/usr/bin/env python3
"""The CIFAR-100 exercise, a test a demand, on cifar100_transfer.py.

Offline unless REAL_DATA=1: pictures of noise stand for CIFAR-100 then, and
random weights for ImageNet's.
"""
import argparse
import glob
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
from tensorflow import keras as K

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [ROOT, HERE]
import cifar100_transfer as cifar100  # noqa: E402
import report  # noqa: E402
from test_exercise_0 import (  # noqa: E402
    kill, pictures, real_data, run, without_network)

transfer = cifar100.transfer
SCRIPT = os.path.join(ROOT, "cifar100_transfer.py")
FROZEN = {"MobileNetV2": (27, 52), "DenseNet121": (61, 120),
          "Xception": (20, 40)}


def noise(label_mode="fine"):
    """What stands for CIFAR-100: 600 training images and 200 to test.

    Each class is a picture of noise, each image that picture with noise.
    """
    def split(m, seed):
        """Classes in turn, five to a group."""
        fine = np.arange(m) % 100
        X = pictures(100)[fine] * 0.6 + pictures(m, seed) * 0.4
        labels = fine if label_mode == "fine" else fine // 5
        return X.astype("uint8"), labels[:, None].astype("uint8")

    return split(600, 1), split(200, 2)


def lively(base):
    """Random weights that let a signal through, the same in each process."""
    rng = np.random.default_rng(0)
    for layer in base.layers:
        if "conv" in type(layer).__name__.lower():
            layer.set_weights([
                rng.normal(size=w.shape) * np.sqrt(2 / np.prod(
                    w.shape[:2] if w.shape[-1] == 1 else w.shape[:3]))
                for w in layer.get_weights()])  # 1: depthwise
    return base


def offline(module):
    """Let cifar100_transfer get by without a network, small and quick."""
    build = module.build_base
    module.load_cifar100 = noise
    module.build_base = lambda name: lively(build(name, weights=None))
    module.BASES = {name: module.BASES[name]._replace(size=32)
                    for name in ("MobileNetV2", "Xception")}
    module.CLASSIFIERS = (0, 0.1), (8, 0.1)
    module.FIXED_EPOCHS = 3
    module.transfer.PIECE = 64


OFFLINE = (f"import sys; sys.path[:0] = [{ROOT!r}, {HERE!r}]\n"
           "import cifar100_transfer, test_exercise_cifar100 as tests\n"
           "tests.offline(cifar100_transfer)\n"
           "cifar100_transfer.main()")


def process(code, folder, *arguments):
    """The command for the script with its offline stand-ins, or as it is."""
    path = SCRIPT
    if code:  # a file, since the script starts itself again for each base
        path = os.path.join(str(folder), "offline.py")
        with open(path, "w") as file:
            file.write(code)
    return [sys.executable, path, *map(str, arguments)]


@pytest.fixture(scope="module")
def bases():
    """Each base once, with random weights."""
    return {name: lively(cifar100.build_base(name, weights=None))
            for name in cifar100.BASES}


# "Import the built in CIFAR100 dataset"

@pytest.fixture
def data(monkeypatch):
    """All of the pictures that stand for CIFAR-100."""
    monkeypatch.setattr(cifar100, "load_cifar100", noise)
    return cifar100.Images(None)


def test_every_image_is_there_once_with_its_mirror_image(data):
    """Every image is there once with its mirror image, or held out."""
    (X, Y), (X_test, Y_test) = noise()
    m = len(data.Y)
    assert (m, len(data.Y_held), len(data.Y_test)) == (570, 30, 200)
    np.testing.assert_array_equal(data.images[m:2 * m],
                                  data.images[:m, :, ::-1])
    np.testing.assert_array_equal(data.images[data.first_test:], X_test)
    np.testing.assert_array_equal(data.Y_test.argmax(axis=1), Y_test[:, 0])
    place = {image.tobytes(): i for i, image in enumerate(X)}
    held = data.images[data.first_held:data.first_test]
    rows = [place[image.tobytes()] for image in (*data.images[:m], *held)]
    assert sorted(rows) == list(range(600))
    np.testing.assert_array_equal(
        np.concatenate([data.Y, data.Y_held]), np.eye(100)[Y[rows, 0]])
    assert data.Y_held.sum(axis=0).max() == 1  # the classes evenly


def test_the_groups_are_those_of_the_coarse_labels(data):
    """The groups are those of the coarse labels."""
    np.testing.assert_array_equal(data.group_of, np.arange(100) // 5)
    assert len(set(cifar100.GROUPS)) == 20


def test_a_limit_takes_all_classes_evenly(monkeypatch):
    """A limit takes all classes evenly."""
    monkeypatch.setattr(cifar100, "load_cifar100", noise)
    few = cifar100.Images(200)
    assert (len(few.Y), len(few.Y_held), len(few.Y_test)) == (190, 10, 40)
    assert set(np.concatenate([few.Y, few.Y_held]).sum(axis=0)) == {2}


# "Import this model using the imagenet weights, and include_top=False"

@pytest.mark.parametrize("name, module", [
    ("MobileNetV2", "mobilenet_v2"), ("DenseNet121", "densenet"),
    ("Xception", "xception")])
def test_features_are_those_of_the_application(bases, name, module):
    """Features are those of the application as its documentation uses it."""
    X = pictures(4)
    size = cifar100.BASES[name].size
    scaled = K.layers.Resizing(size, size)(X.astype("float32"))
    application = getattr(K.applications, name)(
        include_top=False, weights=None, pooling="avg",
        input_shape=(size, size, 3))
    application.set_weights(bases[name].get_weights())
    expected = application.predict_on_batch(getattr(
        K.applications, module).preprocess_input(np.array(scaled)))
    found = bases[name].predict_on_batch(X.astype("float32"))
    assert found.std() > 1e-3  # or nothing would be compared
    np.testing.assert_allclose(found, expected, rtol=1e-3,
                               atol=1e-3 * np.abs(expected).max())


@real_data
@pytest.mark.parametrize("name", ["MobileNetV2", "DenseNet121"])
def test_the_weights_are_imagenet_s(name):
    """The weights are ImageNet's."""
    application = getattr(K.applications, name)(include_top=False)
    ours = cifar100.build_base(name)
    for mine, theirs in zip(ours.get_weights(), application.get_weights()):
        np.testing.assert_array_equal(mine, theirs)


# "Freeze at least the first half of all convolutional layers in that model"

@pytest.mark.parametrize("name", FROZEN)
def test_half_of_the_convolutions_stay_as_they_are(bases, name):
    """A training step changes what is above the cut and nothing below."""
    base = bases[name]
    before = base.get_weights()
    model, top = cifar100.freeze(base, name, cifar100.build_classifier(
        base.output.shape[-1], 0, 0.3))
    assert transfer.convolutions(model) == FROZEN[name]
    above = set(map(id, top.layers))
    names = [layer.name for layer in base.layers if layer.weights]
    trained = [layer.name for layer in base.layers
               if layer.weights and id(layer) in above]
    assert names[-len(trained):] == trained  # all of the upper layers
    weights = {layer.name: layer.get_weights() for layer in base.layers}
    model.compile(K.optimizers.AdamW(1e-3), "categorical_crossentropy")
    model.train_on_batch(pictures(8).astype("float32"),
                         np.eye(100, dtype="float32")[:8])
    assert model.output_shape == (None, 100)
    for layer in base.layers:
        for old, new in zip(weights[layer.name], layer.get_weights()):
            if layer.name in trained:
                assert not np.array_equal(old, new), layer.name
            else:
                np.testing.assert_array_equal(old, new)
    base.set_weights(before)


def test_too_few_frozen_convolutions_are_refused(bases, monkeypatch):
    """Too few frozen convolutions are refused."""
    base = cifar100.BASES["MobileNetV2"]
    monkeypatch.setitem(cifar100.BASES, "MobileNetV2", base._replace(
        first_trained="block_7_expand"))
    with pytest.raises(ValueError, match="21 of 52"):
        cifar100.freeze(bases["MobileNetV2"], "MobileNetV2",
                        cifar100.build_classifier(1280, 0, 0.3))


def test_batchnorm_above_the_cut_keeps_up(bases):
    """BatchNorm has a momentum that few steps are enough for."""
    for base in bases.values():
        momenta = {layer.momentum for layer in base.layers if isinstance(
            layer, K.layers.BatchNormalization)}
        assert momenta == {0.9}


def test_part_2_trains_on_with_part_1_s_classifier(bases, monkeypatch):
    """Part 2 begins with the weights that part 1's linear classifier has."""
    classifier = cifar100.build_classifier(1280, 0, 0.3)
    learned, began = classifier.get_weights(), []

    def train(top, *arguments):
        """Look at what is about to be trained; the history is empty."""
        began.extend(top.get_layer("classifier").get_weights())
        return []

    for module, name, stand_in in (
            (cifar100, "load_features", lambda folder: None),
            (cifar100, "trained_classifier", lambda *_: (classifier, [])),
            (cifar100, "finish", lambda *_, **more: None),
            (transfer, "train", train)):
        monkeypatch.setattr(module, name, stand_in)
    cifar100.train_partial(argparse.Namespace(
        name="MobileNetV2", base=bases["MobileNetV2"], at_cut=None,
        args=argparse.Namespace(seed=0, out="", limit=None),
        data=argparse.Namespace(Y=None, Y_held=None), keep=lambda what: None))
    assert len(began) == len(learned) == 2
    for now, before in zip(began, learned):
        np.testing.assert_array_equal(now, before)


# "Accept as input the result of our pretrained model. Produce as output a
# classification for the CIFAR100 dataset."

@pytest.mark.parametrize("units, parameters", [
    (0, 1280 * 100 + 100), (64, 1280 * 64 + 64 + 64 * 100 + 100)])
def test_the_classifier_takes_features(units, parameters):
    """The classifier takes features and gives a hundred probabilities."""
    classifier = cifar100.build_classifier(1280, units, 0.5)
    P = classifier.predict_on_batch(np.ones((3, 1280), "float32"))
    assert P.shape == (3, 100)
    np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-5)
    assert classifier.count_params() == parameters


# The whole script, as a process

ARGUMENTS = ("--bases", "MobileNetV2", "Xception", "--limit", 500,
             "--cache", "cache", "--out", "out")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A run that was killed in each part, and its last process's output."""
    folder = tmp_path_factory.mktemp("comparison")
    command = process(OFFLINE, folder, *ARGUMENTS)
    env = without_network(folder)

    for pattern, how in (
            ("cache/*/0000064-0-*.npy", signal.SIGKILL),  # the frozen pass
            ("out/MobileNetV2-8-0.1.npz", signal.SIGKILL),  # 2nd classifier
            ("out/MobileNetV2-partial.npz", signal.SIGINT)):  # part 2, Ctrl-C
        kill(command, folder, lambda printed: glob.glob(
            str(folder / pattern)), how, env)
    done = run(command, folder, env)
    assert done.returncode == 0, done.stderr
    return folder, (folder / "log").read_text(), done.stdout


def records(folder):
    """The records of a run by base and style."""
    found = {}
    for path in glob.glob(str(folder / "out" / "*-*.json")):
        with open(path) as file:
            record = json.load(file)
        found[record["base"], record["style"]] = record
    return found


def test_all_four_trainings_are_made(comparison):
    """All four trainings are made and recorded."""
    folder, _, output = comparison
    found = records(folder)
    assert set(found) == {(base, style) for base in ("MobileNetV2",
                          "Xception") for style in ("fixed", "partial")}
    for (base, style), record in found.items():
        assert len(record["history"]) == (
            3 if style == "fixed" else cifar100.PARTIAL_EPOCHS)
        assert all({"accuracy", "val_accuracy", "seconds",
                    "predict_images_per_second"} <= set(row)
                   for row in record["history"])
        frozen, total = FROZEN[base]
        assert record["convolutions"] == total
        assert record["frozen_convolutions"] == (
            total if style == "fixed" else frozen)
    assert "20 of 40 convolution layers frozen" in output


def test_one_pass_serves_both_parts(comparison):
    """Each base sees each image once: training, mirrored, held out, test."""
    folder, log, output = comparison
    rows = 2 * 475 + 25 + 100
    todo = re.findall(r"Frozen part: ([\d,]+) of ([\d,]+) images to do",
                      log + output)
    first, rest, other = [[int(n.replace(",", "")) for n in pair]
                          for pair in todo]
    assert first == other == [rows, rows] and rest[1] == rows
    assert rest[0] < rows  # the killed one went on
    for record in records(folder).values():
        assert record["frozen_pass"]["images"] == rows
        assert record["frozen_pass"]["seconds"] > 0
        assert record["frozen_pass"]["predict_images_per_second"] > 0


def test_a_killed_run_went_on(comparison):
    """A killed run went on, and took its unfinished files away."""
    folder, log, output = comparison
    assert "Going on after epoch 3 of 3" in log  # the first classifier
    assert re.search(r"Going on after epoch \d of 4", output)
    assert "Stopped. The same command goes on from here." in log
    assert "Traceback" not in log
    assert not list(folder.rglob("*.npz")) + list(folder.rglob("*.part*"))


def test_part_2_has_part_1_s_linear_classifier(comparison):
    """Part 2 has part 1's linear classifier, and counts its time."""
    found = records(comparison[0])
    for base in "MobileNetV2", "Xception":
        model = K.models.load_model(str(
            comparison[0] / "out" / f"{base}-partial-limit-500.keras"))
        assert [type(layer).__name__ for layer in model.get_layer(
            "classifier").layers] == ["Dropout", "Dense"]
        assert found[base, "partial"]["seconds_before"] == found[
            base, "fixed"]["tried"][0]["seconds"]


def test_the_classifier_was_chosen_on_held_out_images(comparison):
    """The classifier was chosen on held-out images, not on test images."""
    for (_, style), record in records(comparison[0]).items():
        if style == "fixed":
            best = max(row["val_accuracy"] for row in record["tried"])
            assert len(record["tried"]) == 2
            assert record["choice"]["val_accuracy"] == best
            assert record["history"][-1]["val_accuracy"] == best


def test_features_are_files_for_numpy_load(comparison, monkeypatch):
    """Features are files for numpy.load, labels beside them."""
    monkeypatch.setattr(cifar100, "load_cifar100", noise)
    data = cifar100.Images(500)
    folder = comparison[0] / "out" / "features-limit-500" / "MobileNetV2"
    base = K.models.load_model(str(
        comparison[0] / "out" / "MobileNetV2-fixed-limit-500.keras"))
    base = K.Model(base.input, base.get_layer("classifier").input)
    expected = base.predict(data.images.astype("float32"), verbose=0)
    found = [np.load(folder / f"{name}.npy") for name in (
        "train", "train-mirrored", "held-out", "test")]
    assert [len(array) for array in found] == [475, 475, 25, 100]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=2e-3,
                               atol=2e-3 * np.abs(expected).max())
    for name, Y in (("train", data.Y), ("train-mirrored", data.Y),
                    ("held-out", data.Y_held), ("test", data.Y_test)):
        np.testing.assert_array_equal(
            np.load(folder / f"{name}-labels.npy"), Y.argmax(axis=1))


@pytest.mark.parametrize("base", ["MobileNetV2", "Xception"])
@pytest.mark.parametrize("style", ["fixed", "partial"])
def test_the_saved_model_gives_the_recorded_figures(
        comparison, monkeypatch, base, style):
    """The saved model takes 32x32 images and gives the recorded figures."""
    monkeypatch.setattr(cifar100, "load_cifar100", noise)
    data = cifar100.Images(500)
    record = records(comparison[0])[base, style]
    model = K.models.load_model(str(
        comparison[0] / "out" / f"{base}-{style}-limit-500.keras"))
    assert not any(isinstance(layer, K.layers.Lambda)
                   for layer in model.layers)
    P = model.predict(data.images[data.first_test:].astype("float32"),
                      verbose=0)
    truth = data.Y_test.argmax(axis=1)
    order = np.argsort(-P, axis=1)
    if style == "partial":
        assert record["test_top5"] > 0.2  # chance: 0.05
    # Stored as float16, an image in a hundred may fall on the other side.
    assert record["test_top1"] == pytest.approx(
        np.mean(order[:, 0] == truth), abs=0.011)
    assert record["test_top5"] == pytest.approx(np.mean(
        [t in row[:5] for t, row in zip(truth, order)]), abs=0.011)
    counts = np.zeros((20, 20), int)
    for t, p in zip(truth, order[:, 0]):
        counts[t // 5, p // 5] += 1
    assert np.abs(counts - record["confusion"]).sum() <= 4
    assert record["saved_model_differs_by"] < 0.05
    trained = sum(np.prod(w.shape) for w in model.trainable_weights)
    assert record["trained_parameters"] == trained
    assert record["other_parameters"] + trained == model.count_params()


def test_a_second_run_repeats_nothing(comparison):
    """A second run repeats nothing, not even the loading of the images."""
    folder = comparison[0]
    shutil.rmtree(folder / "cache")  # as its last line invites to
    before = {path: path.read_bytes() for path in (folder / "out").glob(
        "*-*.json")}
    done = run(process(OFFLINE, folder, *ARGUMENTS), folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished already") == 2
    assert "Epoch" not in done.stdout and "images to do" not in done.stdout
    assert before == {path: path.read_bytes() for path in before}


def test_every_output_of_a_limited_run_says_so(comparison):
    """Every output of a limited run says so."""
    folder, _, output = comparison
    out = folder / "out"
    assert "NOT A RESULT: limited to 500 images" in output
    assert "NOT A RESULT: limited to 500" in (out / "table.md").read_text()
    assert "NOT A RESULT" in (out / "table.json").read_text()
    assert all(record["limit"] == 500 for record in records(folder).values())
    for path in list(out.glob("*.keras")) + list(out.glob("features*")):
        assert "limit-500" in path.name


def test_other_arguments_need_another_folder(comparison):
    """Other arguments need another folder."""
    folder = comparison[0]
    done = run(process(OFFLINE, folder, *ARGUMENTS, "--seed", 1), folder)
    assert done.returncode == 2
    assert "seed 0, not 1" in done.stderr and "--out" in done.stderr


def test_no_room_is_said_before_the_work(tmp_path):
    """No room is said before the work, and nothing is left half-written."""
    code = OFFLINE.replace("cifar100_transfer.main()", (
        "import collections\n"
        "usage = collections.namedtuple('usage', 'free')(1000)\n"
        "cifar100_transfer.transfer.shutil.disk_usage = lambda p: usage\n"
        "cifar100_transfer.main()"))
    done = run(process(code, tmp_path, *ARGUMENTS), tmp_path)
    assert done.returncode == 1
    assert "No room" in done.stderr and "MB needed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.npy"))


def test_a_model_that_reads_back_different_is_not_kept(tmp_path):
    """A model that reads back different is not kept, an older one is."""
    classifier = cifar100.build_classifier(4, 0, 0.3)
    X = np.eye(4, dtype="uint8")
    path = str(tmp_path / "model.keras")
    with open(path, "w") as file:
        file.write("older")
    right = classifier.predict_on_batch(X.astype("float32"))
    with pytest.raises(OSError, match="differ"):
        cifar100.save_model(classifier, path, X, right + 0.1)
    with open(path) as file:
        assert file.read() == "older"
    assert os.listdir(tmp_path) == ["model.keras"]
    assert cifar100.save_model(classifier, path, X, right) < 1e-5
    assert os.path.getsize(path) > 1000


def test_a_part_is_finished_with_its_record_and_its_model(tmp_path):
    """A part is finished when its record can be read and its model is there.
    """
    args = argparse.Namespace(out=str(tmp_path), limit=None)
    record = tmp_path / "MobileNetV2-fixed.json"
    model = tmp_path / "MobileNetV2-fixed.keras"
    for text, there, expected in (
            (None, True, False), ("{broken", True, False),
            ('{"base": 1}', False, False), ('{"base": 1}', True, True)):
        for path in record, model:
            if path.exists():
                os.remove(path)
        if text:
            record.write_text(text)
        if there:
            model.write_text("a model")
        assert cifar100.finished(args, "MobileNetV2", "fixed") is expected


def test_two_runs_in_one_folder_are_refused(tmp_path):
    """Two runs in one folder are refused."""
    (tmp_path / "out").mkdir()
    cifar100.runs.claim(str(tmp_path / "out"))  # until these tests end
    done = run(process(OFFLINE, tmp_path, *ARGUMENTS), tmp_path)
    assert done.returncode == 1
    assert "Another process is at work in out" in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("arguments, words", [
    (["--limit", 100], "200 .. 50000"),
    (["--bases", "ResNet"], "DenseNet121"),
    (["--seed", -1], "--seed is in"),
    (["--sead", 1], "--sead"),
    (["--out", os.path.join(SCRIPT, "out")], SCRIPT),
])
def test_a_typo_gets_one_message(tmp_path, arguments, words):
    """A typo gets one message."""
    done = run(process(None, tmp_path, *arguments), tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_network_one_message_tells_what_to_do(tmp_path):
    """Without a network one message tells what to do."""
    done = run(process(None, tmp_path), tmp_path, without_network(tmp_path))
    assert done.returncode == 69
    assert "CIFAR-100 is missing" in done.stderr
    assert os.path.join(str(tmp_path), ".keras", "datasets") in done.stderr
    assert "--rehearse" not in done.stderr
    assert "Traceback" not in done.stderr


@real_data
def test_the_groups_are_cifar100_s():
    """The names of the groups fit the coarse labels: a class for each."""
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
    assert (len(data.Y), len(data.Y_held), len(data.Y_test)) == (
        47500, 2500, 10000)


@real_data
def test_missing_weights_are_named(tmp_path):
    """Missing weights are named, and other bases offered."""
    env = dict(os.environ, HOME=str(tmp_path), KERAS_HOME=str(
        tmp_path / ".keras"), XDG_CACHE_HOME=os.path.expanduser("~/.cache"),
        http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    (tmp_path / ".keras").mkdir()
    if not env.get("PYTHONPATH"):  # CIFAR-100 as this machine's Keras has it
        shutil.copytree(transfer.keras_folder("datasets"),
                        tmp_path / ".keras" / "datasets")
    done = run(process(None, tmp_path, "--limit", 200, "--bases",
                       "Xception", "--cache", tmp_path / "cache"),
               tmp_path, env)
    assert done.returncode == 69
    assert "xception_weights" in done.stderr
    assert "other --bases than Xception" in done.stderr


# "Plot your results", "compare your results"

def test_the_answer_compares_styles_and_bases():
    """The answer to "which, and at what cost?" has the records' figures."""
    def training(base, style, top1, seconds, rate, before=0):
        """A record, as far as the answer looks at it."""
        return {"base": base, "style": style, "test_top1": top1,
                "seconds_before": before, "frozen_pass": {
                    "seconds": 600, "predict_images_per_second": rate},
                "history": [{"seconds": seconds / 2,
                             "predict_images_per_second": rate}] * 2}

    assert report.answers([
        training("A", "fixed", 0.6, 600, 100),
        training("A", "partial", 0.7, 1200, 100, before=600),
        training("B", "fixed", 0.65, 3000, 100)]) == [
        "Training A's upper half as well takes the test accuracy from 60.0 % "
        "to 70.0 %, in 40 minutes instead of 20: 2.0 times the cost.",
        "The most accurate, A, partially frozen, costs 2.0 times as many "
        "minutes as the cheapest, A, fixed features, for 10.0 points more."]


def test_report_draws_again_without_training(comparison):
    """Report draws again without training, and gives the same table."""
    folder, _, output = comparison
    out = folder / "out"
    names = ["curves.png", "accuracy-time.png"] + [
        f"confusion-{base}-{style}.png" for base in ("MobileNetV2",
                                                     "Xception")
        for style in ("fixed", "partial")]
    for name in names:
        os.remove(out / name)
    done = run([sys.executable, os.path.join(ROOT, "report.py"), str(out)],
               folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in output
    for name in names:
        picture = K.utils.img_to_array(K.utils.load_img(out / name))
        assert 700 <= picture.shape[1] <= 900 and picture.std() > 10


def test_the_table_is_the_records(comparison):
    """The table is the records."""
    folder, _, output = comparison
    found = records(folder)
    with open(folder / "out" / "table.json") as file:
        rows = {row[0]: row[1:] for row in json.load(file)["rows"]}
    for column, title in enumerate(rows[""]):
        base, style = title.split(", ")
        record = found[base, {"fixed features": "fixed",
                              "partially frozen": "partial"}[style]]
        once = record["frozen_pass"]
        seconds = [epoch["seconds"] for epoch in record["history"]]
        rate = record["history"][0]["predict_images_per_second"]
        tried = found[base, "fixed"]["tried"]
        # Part 2 starts with a classifier of part 1: it needs that one, too.
        before = {"fixed": sum(row["seconds"] for row in tried) - sum(seconds),
                  "partial": tried[0]["seconds"]}[record["style"]]
        whole = once["seconds"] * once["predict_images_per_second"] + (
            rate * before + sum(
                epoch["seconds"] * epoch["predict_images_per_second"]
                for epoch in record["history"]))
        cells = {
            "test accuracy, top-1": f"{100 * record['test_top1']:.2f} %",
            "test accuracy, top-5": f"{100 * record['test_top5']:.2f} %",
            "trained parameters": f"{record['trained_parameters']:,}",
            "other classifiers before, minutes": f"{before / 60:.1f}",
            "all of it, in passes of that predict over 50,000 images":
                f"{whole / 50000:.1f}",
            "peak memory of the process so far, GiB":
                f"{record['machine']['peak_memory_bytes'] / 2 ** 30:.2f}",
            "frozen convolutions": "{} of {}".format(
                record["frozen_convolutions"], record["convolutions"]),
            "frozen pass (both styles share it), minutes":
                f"{once['seconds'] / 60:.1f}",
            "training, minutes": f"{sum(seconds) / 60:.1f}",
            "an epoch, seconds": f"{np.mean(seconds):.1f}"}
        for row, cell in cells.items():
            assert rows[row][column] == cell
        assert f"{rate:.0f}" in rows[
            "Keras's predict in its processes, images/s"][column]


@pytest.mark.parametrize("content", [None, "{}", "broken"])
def test_report_says_what_it_needs(tmp_path, content):
    """Report says what it needs."""
    if content:
        (tmp_path / "run.json").write_text(content)
    done = run([sys.executable, os.path.join(ROOT, "report.py"),
                str(tmp_path)], tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and "Traceback" not in done.stderr


def test_report_needs_no_tensorflow():
    """Report needs no TensorFlow: it draws within a second or two."""
    code = "import report, sys; sys.exit('tensorflow' in sys.modules)"
    assert run([sys.executable, "-c", code], ROOT).returncode == 0


# On real images

@real_data
def test_real_images_and_weights_end_to_end(tmp_path):
    """All four trainings on a few hundred real images."""
    done = run(process(None, tmp_path, "--limit", 600, "--cache", "cache"),
               tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "cifar100-limit-600"
    found = report.read(str(out))
    assert [(r["base"], r["style"]) for r in found] == [
        ("MobileNetV2", "fixed"), ("MobileNetV2", "partial"),
        ("DenseNet121", "fixed"), ("DenseNet121", "partial")]
    for record in found:  # chance gives 1 %
        assert record["test_top1"] > 0.2 and record["test_top5"] > 0.4
    assert "NOT A RESULT: limited to 600 images" in done.stdout


# What the README says

def test_the_figures_in_the_readme_are_the_recorded_ones():
    """The figures in the readme are the recorded ones."""
    folder = os.path.join(ROOT, "results", "cifar100")
    found = report.read(folder)
    assert report.warning(found) == ""
    assert [report.name(record) for record in found] == [
        "MobileNetV2, fixed features", "MobileNetV2, partially frozen",
        "DenseNet121, fixed features", "DenseNet121, partially frozen"]
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    assert report.markdown(report.table(found)) in readme
    for answer in report.answers(found):
        assert answer in " ".join(readme.split())
    with open(os.path.join(folder, "table.md"), encoding="utf-8") as file:
        assert report.markdown(report.table(found)) in file.read()
