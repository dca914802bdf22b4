#!/usr/bin/env python3
"""Lab 8's task, a test a demand, on four_classes_transfer.py.

On folders that these tests draw; with REAL_DATA=1 on the animals that
FOUR_CLASSES names as well, and on ImageNet's weights.
"""
import glob
import os
import sys

import numpy as np
import pytest
from PIL import Image
from tensorflow import keras as K

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [ROOT, HERE]
import four_classes_transfer as four_classes  # noqa: E402
import pictures  # noqa: E402
import report  # noqa: E402
import transfer_model  # noqa: E402
from test_exercise_0 import kill, real_data  # noqa: E402
from test_exercise_cifar100 import lively  # noqa: E402
from test_exercise_desserts import (  # noqa: E402
    WITHOUT_WEIGHTS, command, read, run as run_script)
from test_pictures import save, write, write_zip  # noqa: E402

CLASSES = ["cats", "dogs", "horses", "humans"]
OFFLINE = WITHOUT_WEIGHTS + (
    "import four_classes_transfer\n"
    "four_classes_transfer.EPOCHS = {'extraction': 4, 'fine-tuning': 2}\n"
    "four_classes_transfer.main()")


def run(folder, *arguments, code=OFFLINE):
    """Run the script as a process in a folder."""
    return run_script("four_classes_transfer.py", folder, *arguments,
                      code=code)


@pytest.fixture(scope="module")
def files():
    """Twenty pictures of each class, {path: bytes}; two of them twice."""
    rng = np.random.default_rng(0)
    found = {}
    for number, name in enumerate(CLASSES):
        for i in range(20):
            x = rng.integers(0, 120, (48, 40 + i, 3))
            x[:, :, number % 3] += 120 if number < 3 else 0
            found[f"data/{name}/{i:02d}.jpg"] = save(
                Image.fromarray(x.astype("uint8")), "PNG")
    found["data/cats/99.jpg"] = found["data/cats/00.jpg"]
    found["data/dogs/99.jpg"] = found["data/horses/05.jpg"]
    return found


# The split

def test_the_split_is_stratified_and_by_seed():
    """Three parts, classes evenly in each; another seed, another split."""
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
def test_few_pictures_are_split_as_well(counts):
    """A handful of pictures in each of many classes is enough."""
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(20):
        parts = four_classes.split(labels, seed)
        assert sorted(np.concatenate(parts)) == list(range(len(labels)))
        for part in parts:
            assert set(labels[part]) == set(labels)


def test_too_few_pictures_get_one_message(tmp_path):
    """Too few pictures get one message."""
    data = write(tmp_path / "in", {"cats/1.png": 1, "dogs/1.png": 2})
    done = run(tmp_path, data)
    assert done.returncode == 1
    assert "A class of 1 can't be split" in done.stderr
    assert "expected at least 5 in each" in done.stderr
    assert "Traceback" not in done.stderr


# "implement both Feature Extractor and Fine-Tuning methods on data.zip"

ARGUMENTS = ("--size", 48, "--splits", 2)


@pytest.fixture(scope="module")
def comparison(files, tmp_path_factory):
    """A run on data.zip that was killed while it fine-tuned."""
    folder = tmp_path_factory.mktemp("four")
    write_zip(folder / "data.zip", files)
    kill(command("four_classes_transfer.py", "data.zip", *ARGUMENTS,
                 code=OFFLINE), folder, lambda printed: glob.glob(
                     str(folder / "runs/*/split-0-fine-tuning.npz")))
    done = run(folder, "data.zip", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "four_classes_transfer", done.stdout


def test_equal_pictures_are_named(comparison, files):
    """Equal pictures are found and named, and left out but one."""
    out, output = comparison
    assert "data/cats/99.jpg: the same picture as data/cats/00.jpg" in output
    assert "horses/05.jpg: the same picture as data/dogs/99.jpg" in output
    for number in range(2):
        record = read(out / f"split-{number}-extraction.json")
        assert sum(record["pictures"]) == 80


def test_a_killed_run_goes_on(comparison):
    """A killed run goes on, and the base sees the pictures once."""
    out, output = comparison
    assert "Going on with the run" in output
    assert "Going on after epoch 4 of 4" in output
    assert "Frozen part" not in output
    assert not glob.glob(str(out / "*.npz"))
    assert "outputs may be deleted now" in output
    assert glob.glob(str(out / "outputs" / "*" / "*.npy"))


def test_both_styles_are_asked_for_the_same_pictures(comparison):
    """Both styles are asked for the same test pictures, in each split."""
    out, _ = comparison
    tests = []
    for number in range(2):
        both = [read(out / f"split-{number}-{style}.json")
                for style in ("extraction", "fine-tuning")]
        paths = [[row[1] for row in record["evaluation"]["answers"]]
                 for record in both]
        assert paths[0] == paths[1] and len(set(paths[0])) == 12
        assert len(both[0]["history"]) == 4 and len(both[1]["history"]) == 2
        tests.append(set(paths[0]))
    assert tests[0] != tests[1]


@pytest.mark.parametrize("style", ["extraction", "fine-tuning"])
def test_the_saved_model_gives_the_recorded_answers(comparison, style):
    """The saved model takes pictures and gives the recorded answers."""
    out, _ = comparison
    model = K.models.load_model(str(out / f"split-0-{style}.keras"))
    copy = pictures.Copy(str(out / "pictures"))
    assert copy.classes == CLASSES
    record = read(out / f"split-0-{style}.json")
    for path, source, truth, answer, p in record["evaluation"]["answers"]:
        with Image.open(out / "pictures" / path) as picture:
            x = np.asarray(picture.resize((48, 48), Image.BILINEAR))
        P = model.predict_on_batch(x[None].astype("float32"))[0]
        assert source.split("/")[-2] == CLASSES[truth]
        assert P[answer] == pytest.approx(p, abs=0.1)


def test_feature_extraction_trains_the_classifier_alone():
    """Extraction trains the classifier; fine-tuning the last layers, too."""
    model = lively(transfer_model.create_transfer_model(
        (48, 48, 3), 4, weights=None, model=K.applications.MobileNetV2))
    transfer_model.warm_up(model)
    parts = {style: K.Model(cut, model.output) for style, cut in
             four_classes.cuts(model, "MobileNetV2").items()}
    assert parts["extraction"].input_shape == (None, 1280)
    assert len(parts["extraction"].trainable_weights) == 2
    rng = np.random.default_rng(0)
    Y = np.eye(4, dtype="float32")[np.arange(16) % 4]

    def changed(part):
        """Which of the model's layers some training changes."""
        old = {layer.name: layer.get_weights() for layer in model.layers}
        part.compile("sgd", "categorical_crossentropy")
        part.fit(rng.uniform(0, 1, (16,) + part.input_shape[1:]), Y,
                 verbose=0)
        return {layer.name for layer in model.layers if any(
            not np.array_equal(a, b) for a, b in zip(
                old[layer.name], layer.get_weights()))}

    assert changed(parts["extraction"]) == {"head"}
    transfer_model.unfreeze(model, "MobileNetV2")
    found = changed(parts["fine-tuning"])
    assert {"head", "block_14_expand", "block_16_project", "Conv_1"} <= found
    assert not any(name.endswith(("_BN", "_bn")) for name in found)
    assert not any(name.startswith("block_13") for name in found)


def test_fine_tuning_goes_on_from_feature_extraction(comparison):
    """Of the saved models, the last layers differ, not those below."""
    before, after = (K.models.load_model(str(
        comparison[0] / f"split-0-{style}.keras"))
        for style in ("extraction", "fine-tuning"))
    differ = [layer.name for layer in before.layers if any(
        not np.array_equal(old, new) for old, new in zip(
            layer.get_weights(), after.get_layer(layer.name).get_weights()))]
    assert differ[0] == "block_14_expand"
    assert {"block_16_project", "Conv_1", "head"} <= set(differ)


# "Both side by side"

def test_the_table_has_mean_and_standard_deviation(comparison):
    """Mean and standard deviation over the splits, and the interval."""
    out, output = comparison
    rows = {row[0]: row[1:] for row in read(out / "table.json")["rows"]}
    assert rows[""] == ["feature extraction", "fine-tuning"]
    for column, style in enumerate(("extraction", "fine-tuning")):
        found = [100 * read(out / f"split-{number}-{style}.json")[
            "evaluation"]["accuracy"] for number in range(2)]
        assert rows["test accuracy, mean ± standard deviation"][column] == (
            f"{np.mean(found):.2f} % ± {np.std(found, ddof=1):.2f}")
        assert rows["splits"][column] == "2"
        assert rows["test accuracy of the first split (95 % interval)"][
            column].startswith(f"{found[0]:.1f} % (")
    assert output.count("precision    recall  f1-score") == 2
    for name in CLASSES:
        assert f"{name} " in output


def test_pictures_show_both(comparison):
    """Curves and confusion matrices of both."""
    out, _ = comparison
    for name in ("curves", "confusion-feature-extraction",
                 "confusion-fine-tuning"):
        picture = np.asarray(Image.open(out / f"{name}.png"))
        assert 700 <= picture.shape[1] <= 900 and picture.std() > 10


def test_predict_says_what_is_on_a_picture(comparison, files, tmp_path):
    """--predict needs only --out."""
    out, _ = comparison
    (tmp_path / "mine.png").write_bytes(files["data/cats/03.jpg"])
    done = run(tmp_path, "--out", out, "--predict", "mine.png", code=None)
    assert done.returncode == 0, done.stderr
    assert any(f"mine.png: {name}, " in done.stdout for name in CLASSES)


def test_a_finished_run_is_refused(comparison):
    """A finished run is refused with 2, and named."""
    out, _ = comparison
    done = run(out.parent.parent, "data.zip", *ARGUMENTS)
    assert done.returncode == 2 and "a finished run" in done.stderr


def test_splits_that_are_split_already_are_named(files, tmp_path):
    """A folder that is split already is for the other scripts."""
    data = write(tmp_path / "in", {
        "train/" + path: data for path, data in files.items()})
    write(tmp_path / "in", {"test/a/1.png": 1})
    done = run(tmp_path, data)
    assert done.returncode == 1 and "simple_cnn.py" in done.stderr


def test_the_figures_in_the_readme_are_the_recorded_ones():
    """The figures in the README are the recorded ones."""
    found = report.read(os.path.join(ROOT, "results", "four_classes"))
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        assert report.markdown(report.table([
            [record for record in found if record["title"] == title]
            for title in four_classes.TITLES.values()],
            report.FOUR_CLASSES_ROWS)) in file.read()
    assert len(found) == 20  # both styles on ten splits


# On real pictures

@real_data
@pytest.mark.skipif("FOUR_CLASSES" not in os.environ,
                    reason="needs a zip of four classes: FOUR_CLASSES=path")
def test_real_animals(tmp_path):
    """The real animals: both styles do better than 90 %."""
    done = run(tmp_path, os.path.abspath(os.environ["FOUR_CLASSES"]),
               "--size", 128, code=None)
    assert done.returncode == 0, done.stderr
    found = report.read(str(tmp_path / "runs" / "four_classes_transfer"))
    assert [record["evaluation"]["accuracy"] > 0.9
            for record in found] == [True, True]
