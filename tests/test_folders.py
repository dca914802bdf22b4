#!/usr/bin/env python3
"""What the scripts on folders of images share, through folders.py."""
import io
import itertools
import json
import os
import re
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm
from tensorflow import keras as K

import folders
import pictures
import runs
from helpers import usage_error

COLOURS = "blue", "green", "red"  # classes: the strongest channel


def tinted(number, seed, size=(16, 16)):
    """Make an image of noise in which one colour is the strongest."""
    x = np.random.default_rng(seed).integers(0, 180, (*size, 3))
    x[..., 2 - number] += 15 + seed % 60
    return Image.fromarray(x.astype("uint8"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Make a clean copy of 36 images to test, three in the wrong folder."""
    folder, seed = tmp_path_factory.mktemp("colours"), itertools.count()
    for split, count in (("train", 2), ("validation", 1), ("holdout", 12)):
        for number, name in enumerate(COLOURS):
            inside = folder / "data" / split / name
            inside.mkdir(parents=True)
            for i in range(count):
                wrong = split == "holdout" and i == number
                tinted((number + wrong) % 3, next(seed)).save(
                    inside / f"{i}.png")
    return pictures.clean_copy(pictures.find(str(folder / "data")),
                               str(folder / "copy"), 16)


def judge(kernel=((0, 0, 0.03), (0, 0.03, 0), (0.03, 0, 0))):
    """Make a model that compares the means of the colours."""
    images = K.Input((16, 16, 3))
    dense = K.layers.Dense(3, activation="softmax")
    model = K.Model(images, dense(
        K.layers.GlobalAveragePooling2D()(images)))
    dense.set_weights([np.array(kernel), np.zeros(3)])
    return model


def judged(image):
    """Compute what the model says of an image."""
    z = 0.03 * np.asarray(image, "float64").mean(axis=(0, 1))[::-1]
    return np.exp(z) / np.exp(z).sum()


# The command line

def main(run=print):
    """Read a command line as the scripts do."""
    options = folders.parser("simple_cnn", "A test.", 100)
    options.add_argument("--warm-up", type=int, default=3)
    options.add_argument("--fine-rate", type=float)
    options.add_argument("--simple", default="runs")
    folders.start(options, run, smallest=32)


@pytest.mark.parametrize("arguments, words", [
    ([], "DATA is missing: a folder or zip of images"),
    ([""], "DATA is '', expected a path"),
    (["x", "--size", 31], "--size is 31, expected 32 to 1024"),
    (["x", "--size", 1025], "--size is 1025, expected 32 to 1024"),
    (["x", "--size", -100000], "--size is -100000, expected 32 to 1024"),
    (["x", "--seed", -1], "--seed is -1, expected 0 to 2147483647"),
    (["x", "--seed", 2 ** 31], "--seed is 2147483648, expected 0 to"),
    (["x", "--warm-up", 0], "--warm-up is 0, expected 1 to 1000"),
    (["x", "--warm-up", 10 ** 12], "--warm-up is 1000000000000, expected 1"),
    (["x", "--warm-up", 2.5], "--warm-up: invalid int value: '2.5'"),
    (["x", "--warm-up", ""], "--warm-up: invalid int value: ''"),
    (["x", "--fine-rate", 0], "--fine-rate is 0.0, expected more than 0"),
    (["x", "--fine-rate", 1.1], "--fine-rate is 1.1, expected more than 0"),
    (["x", "--fine-rate", "nan"], "--fine-rate is nan"),
    (["x", "--fine-rate", "inf"], "--fine-rate is inf"),
    (["x", "--fine-rate", -0.5], "--fine-rate is -0.5, expected more than 0"),
    (["x", "--fine-rate", "fast"], "--fine-rate: invalid float value: 'fast'"),
    (["x", "--out", ""], "--out is '', expected a path"),
    (["x", "--out", "a file"], "--out is 'a file', a file: expected a folder"),
    (["x", "--out", "a file/below"], "--out is 'a file/below', expected a "),
    (["x", "--out", "x" * 300], "--out is 'xxx"),
    (["x", "--simple", ""], "--simple is '', expected a path"),
    (["x", "--simple", "a file"], "--simple is 'a file', a file: expected"),
    (["--predict", ""], "--predict is '', expected a path"),
    (["--predict", "a file", "."], "--predict is '.', a folder: expected"),
    (["--predict", "a file", "--out", "a file"], "--out is 'a file', a file"),
    (["x", "--sise", 99], "--sise"), (["x", "--size", "large"], "large"),
    (["x", "y"], "y"), (["--predict"], "--predict")])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "a file").write_text("")
    assert words in usage_error(
        main, monkeypatch, capsys, tmp_path, *arguments).splitlines()[-1]


def test_what_is_right_reaches_the_run(monkeypatch):
    seen = []
    for arguments in ["x"], ["x", "--size", "32", "--seed", "2147483647",
                             "--fine-rate", "1", "--overwrite", "--out", "o"]:
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        main(seen.append)
    assert [vars(args) for args in seen] == [
        {"data": "x", "out": os.path.join("runs", "simple_cnn"), "seed": 0,
         "overwrite": False, "predict": None, "size": 100, "warm_up": 3,
         "fine_rate": None, "simple": "runs"},
        {"data": "x", "out": "o", "seed": 2 ** 31 - 1, "overwrite": True,
         "predict": None, "size": 32, "warm_up": 3, "fine_rate": 1.0,
         "simple": "runs"}]


def test_any_class_can_be_printed_on_an_ascii_terminal(monkeypatch):
    printed = [io.TextIOWrapper(io.BytesIO(), "ascii", errors=errors)
               for errors in ("strict", "backslashreplace")]  # as Python's own
    monkeypatch.setattr(sys, "argv", ["script", "x"])
    monkeypatch.setattr(sys, "stdout", printed[0])
    monkeypatch.setattr(sys, "stderr", printed[1])
    main(lambda args: [print("\U0001f370", file=file) for file in printed])
    for file in printed:
        file.flush()
        assert file.buffer.getvalue() == b"\\U0001f370\n"


def test_what_a_user_can_fix_gets_one_message(monkeypatch):
    def run(args):
        """Fail as on a full disk."""
        raise OSError("The disk is full")

    monkeypatch.setattr(sys, "argv", ["script", "x"])
    with pytest.raises(SystemExit) as end:
        main(run)
    assert end.value.code == ("The disk is full\nFinished work is kept. Fix "
                              "this, then rerun the same command.")


# Beginning a run

def cats_and_dogs(folder):
    """Write an image of each class for each split."""
    for split in "train", "validation", "holdout":
        for number, name in enumerate(("cats", "dogs")):
            inside = folder / split / name
            inside.mkdir(parents=True)
            tinted(number, len(split), (20, 20)).save(inside / "1.png")
    return str(folder)


def begin(data, out, *names, **options):
    """Begin a run as a script does."""
    args = types.SimpleNamespace(**{
        "data": data, "out": str(out), "size": 8, "seed": 0,
        "overwrite": False, **options})
    return folders.begin(args, "simple_cnn.py", pictures.find(data), "size",
                         *names)


def test_a_run_begins_with_a_clean_copy(tmp_path, capsys):
    data = cats_and_dogs(tmp_path / "data")
    copy = begin(data, tmp_path / "out", "seed", seed=3)
    assert copy.folder == str(tmp_path / "out" / "pictures")
    assert copy.describe() in capsys.readouterr().out
    with Image.open(os.path.join(copy.folder, list(copy.source)[0])) as image:
        assert image.size == (8, 8)
    assert runs.read_json(tmp_path / "out" / "run.json") == {
        "script": "simple_cnn.py", "finished": False, "arguments": {
            "data": pictures.find(data).identity, "size": 8, "seed": 3}}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_on_other_images_is_another_run(
        tmp_path, monkeypatch, capsys, overwrite):
    monkeypatch.setattr(runs, "claim", lambda folder: None)
    data = cats_and_dogs(tmp_path / "data")
    begin(data, tmp_path / "out")
    tinted(0, 99, (20, 20)).save(tmp_path / "data/train/cats/2.png")
    runs.write(tmp_path / "out" / "simple.json", {})
    if overwrite:
        copy = begin(data, tmp_path / "out", overwrite=True)
        assert copy.count("train", "cats") == 2
    else:
        with pytest.raises(SystemExit) as end:
            begin(data, tmp_path / "out")
        assert end.value.code == 2
        assert "a run with data data (6 files, " in capsys.readouterr().err


def test_a_run_that_failed_before_its_training_does_not_refuse_others(
        tmp_path, monkeypatch):
    """The clean copy is that of the mended images then."""
    monkeypatch.setattr(runs, "claim", lambda folder: None)
    data = cats_and_dogs(tmp_path / "data")
    begin(data, tmp_path / "out")
    tinted(0, 99, (20, 20)).save(tmp_path / "data/train/cats/2.png")
    os.replace(tmp_path / "data/train/dogs/1.png",
               tmp_path / "data/train/dogs/9.png")
    copy = begin(data, tmp_path / "out")
    assert copy.count("train", "cats") == 2
    assert "train/dogs/9.png" in copy.source.values()


@pytest.mark.parametrize("data, out", [
    ("all/data", "all"), ("all/data", "."), ("all/data/", "all/../all"),
    ("link", "all")])
def test_data_that_overwrite_would_delete_is_refused(
        tmp_path, monkeypatch, data, out):
    cats_and_dogs(tmp_path / "all" / "data")
    os.symlink(tmp_path / "all" / "data", tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="is inside --out .* another --out"):
        begin(data, out, overwrite=True)
    assert os.listdir(tmp_path / "all") == ["data"]


def test_data_beside_out_is_taken(tmp_path):
    data = cats_and_dogs(tmp_path / "out-data")
    assert begin(data, tmp_path / "out").classes == ["cats", "dogs"]


# How good predictions are

def test_a_model_is_evaluated_on_the_holdout(copy):
    evaluation = folders.evaluate(judge(), copy)
    assert len(evaluation["answers"]) == 36  # more than a batch
    confusion, losses = np.zeros((3, 3), int), []
    for path, source, truth, predicted, p in evaluation["answers"]:
        assert source.split("/")[:2] == ["holdout", COLOURS[truth]]
        assert path.split("/")[:2] == ["holdout", COLOURS[truth]]
        with Image.open(os.path.join(
                os.path.dirname(copy.folder), "data", source)) as image:
            P = judged(image)
        assert predicted == P.argmax() and p == pytest.approx(P.max(), 1e-4)
        confusion[truth, predicted] += 1
        losses.append(-np.log(P[truth]))
    assert evaluation["confusion"] == confusion.tolist() == [
        [11, 1, 0], [0, 11, 1], [1, 0, 11]]
    assert evaluation["accuracy"] == pytest.approx(33 / 36)
    assert evaluation["loss"] == pytest.approx(np.mean(losses), 1e-4)


def test_the_interval_is_wilson_s():
    """By the formula of JASA 22, 1927."""
    copy = types.SimpleNamespace(
        classes=["a", "b", "c"], source={str(i): "" for i in range(10)},
        labels=lambda paths: np.array([0] * 7 + [1] * 3))
    P = np.array([[0.9, 0.1, 0]] * 8 + [[0.1, 0.9, 0]] * 2)
    metrics = folders.metrics(P, copy, [str(i) for i in range(10)])
    json.dumps(metrics)
    assert metrics["accuracy"] == 0.9
    assert metrics["confusion"] == [[7, 0, 0], [1, 2, 0], [0, 0, 0]]
    z, n, p = norm.ppf(0.975), 10, 0.9
    middle, half = (p + z * z / 2 / n) / (1 + z * z / n), (
        z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2))
    np.testing.assert_allclose(metrics["interval"],
                               [middle - half, middle + half])
    assert metrics["loss"] == pytest.approx(
        -(9 * np.log(0.9) + np.log(0.1)) / 10)


def test_a_record_tells_the_training(copy, tmp_path):
    history = [{"val_accuracy": 0.5}, {"val_accuracy": 0.75},
               {"val_accuracy": 0.25}]
    folders.record(str(tmp_path), "judge", judge(), copy, history,
                   title="a judge")
    record = runs.read_json(tmp_path / "judge.json")
    assert record.pop("evaluation") == json.loads(json.dumps(
        folders.evaluate(judge(), copy)))
    assert set(record.pop("machine")) >= {"processor", "tensorflow"}
    assert record == {
        "exercise": "desserts", "title": "a judge", "model": "judge.keras",
        "classes": list(COLOURS), "size": 16, "parameters": 12,
        "training_pictures": 6, "history": history, "val_accuracy": 0.75}


# Saved models, and the user's own images

@pytest.mark.parametrize("content, words", [
    (None, "No such file"), (b"", "not a zip file"),
    (b"no model", "not a zip file")])
def test_a_model_that_cannot_be_read_is_named(tmp_path, content, words):
    path = str(tmp_path / "a.keras")
    if content is not None:
        with open(path, "wb") as file:
            file.write(content)
    with pytest.raises(OSError, match=f"a.keras can't be read: .*{words}.*"
                       "Expected a model that Keras saved"):
        folders.load(path)


def test_a_model_with_one_flipped_bit_is_not_loaded(tmp_path):
    path = tmp_path / "a.keras"
    judge().save(path)
    assert folders.load(str(path)).count_params() == 12
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    kernel = np.float32(0.03).tobytes()
    data = path.read_bytes()
    at = data.index(weights) + weights.index(kernel)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
    with pytest.raises(OSError, match="model.weights.h5 in it is damaged"):
        folders.load(str(path))


# A record without a model, as cifar100_transfer.py's are
UNSAVED = {"title": "x", "val_accuracy": 1.0, "history": [{"seconds": 1}],
           "machine": {"processor": "x", "cores": 1}, "classes": ["a", "b"]}


@pytest.fixture(scope="module")
def out(copy, tmp_path_factory):
    """Write three models with their records, and other JSON files."""
    folder = tmp_path_factory.mktemp("out")
    for name, val_accuracy, model in (
            ("a worse", 0.4, judge(np.zeros((3, 3)))), ("best", 0.8, judge()),
            ("c worse", 0.6, judge(np.zeros((3, 3))))):
        model.save(folder / f"{name}.keras")
        folders.record(str(folder), name, model, copy,
                       [{"val_accuracy": val_accuracy, "seconds": 1}],
                       title=name)
    runs.write(folder / "unsaved.json", UNSAVED)
    runs.write(folder / "foreign.json", {**UNSAVED, "model": "a worse.keras",
                                         "classes": None, "history": []})
    runs.write(folder / "run.json", {"script": "simple_cnn.py"})
    return str(folder)


def predict(monkeypatch, out, *images):
    """Run --predict; return the exit status."""
    monkeypatch.setattr(sys, "argv", [
        "script", "--out", out, "--predict", *map(str, images)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_best_model_predicts_as_it_was_evaluated(
        copy, out, monkeypatch, capsys):
    rows = runs.read_json(os.path.join(out, "best.json"))[
        "evaluation"]["answers"][::5]
    paths = [os.path.join(os.path.dirname(copy.folder), "data", row[1])
             for row in rows]
    assert predict(monkeypatch, out, *paths) == 0
    assert capsys.readouterr().out.splitlines() == ["best.keras:"] + [
        f"{path}: {COLOURS[row[3]]}, {100 * row[4]:.1f} %"
        for path, row in zip(paths, rows)]


def test_any_image_is_prepared_as_in_the_clean_copy(
        out, tmp_path, monkeypatch, capsys):
    image = tinted(1, 5, (60, 9)).convert("RGBA")
    image.putalpha(128)  # half of the white page shows through
    image.save(tmp_path / "leaf.webp", lossless=True)
    assert predict(monkeypatch, out, tmp_path / "leaf.webp") == 0
    name, p = capsys.readouterr().out.split("leaf.webp: ")[1].split(", ")
    P = judged(np.asarray(image.convert("RGB"), "float64") / 2 + 127)
    assert name == "green"
    assert float(p.split()[0]) == pytest.approx(100 * P.max(), abs=1)


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
        out, tmp_path, monkeypatch, capsys):
    tinted(2, 0).save(tmp_path / "rose.png")
    assert predict(monkeypatch, out, "nowhere.png", __file__,
                   tmp_path / "rose.png") == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[1].startswith(
        f"{tmp_path}/rose.png: red, ")
    errors = output.err.splitlines()
    assert errors[0].startswith("nowhere.png can't be read: ")
    assert errors[1].startswith(f"{__file__} can't be read: ")


def test_a_pipe_is_not_waited_for(out, tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    tinted(2, 0).save(tmp_path / "rose.png")
    assert predict(monkeypatch, out, tmp_path / "pipe.png",
                   tmp_path / "rose.png") == 1
    output = capsys.readouterr()
    assert "rose.png: red, " in output.out
    assert output.err == (f"{tmp_path}/pipe.png can't be read: neither a file "
                          "nor a folder\n")


def test_names_of_images_do_not_command_the_terminal(
        out, tmp_path, monkeypatch, capsys):
    names = "\x1b[2J.png", os.fsdecode(b"\xe4.png")
    tinted(2, 0).save(tmp_path / names[0])
    tinted(2, 0).save(tmp_path / names[1])
    assert predict(monkeypatch, out, *(tmp_path / name for name in (
        *names, "\x1b[2J"))) == 1
    output = capsys.readouterr()
    assert re.findall("(?m)^.*/(.*): red", output.out) == [
        "\\x1b[2J.png", "\\xe4.png"]
    assert "/\\x1b[2J can't be read" in output.err
    assert "\x1b" not in output.out + output.err


@pytest.mark.parametrize("record, words", [
    (None, "No record of a training in "),
    (UNSAVED, "has no model that predicts"),
    ({**UNSAVED, "model": "lost.keras"}, "lost.keras can't be read")])
def test_without_a_model_one_message_says_so(
        tmp_path, monkeypatch, record, words):
    if record:
        runs.write(tmp_path / "a.json", record)
    message = predict(monkeypatch, str(tmp_path), "x.png")
    assert words in message and "Fix this" in message
