#!/usr/bin/env python3
"""What benchmarks/frozen_once.py compares, and that it runs.

With few layers in the place of EfficientNetV2-B0's, except on real images.
"""
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tensorflow import keras as K

import choices
import frozen_once
from helpers import (
    noise_images, real_data, script, small_application, usage_error,
    without_network)

transfer = frozen_once.transfer
IMAGES = noise_images(300)
LABELS = np.eye(10, dtype="float32")[np.arange(300) % 10]


@pytest.fixture
def model(monkeypatch):
    """Build the network with few layers."""
    monkeypatch.setattr(K.applications, "EfficientNetV2B0", small_application)
    return choices.build(choices.UPPER._replace(size=64, weights=None))[0]


@pytest.mark.parametrize("way, last", [
    ("fit, base frozen, from images", "features"),
    ("fit, upper half trained, from images", "block5c_add")])
def test_fit_changes_what_is_above_a_layer_and_nothing_below(
        model, way, last):
    before = {layer.name: layer.get_weights() for layer in model.layers}
    assert frozen_once.WAYS[way](model, IMAGES, LABELS) > 0
    above = False
    for layer in model.layers:
        for old, new in zip(before[layer.name], layer.get_weights()):
            assert above != np.array_equal(old, new), layer.name
        above = above or layer.name == last


def test_throughput_counts_from_the_end_of_the_first_batch(monkeypatch):
    clock = frozen_once.Clock()
    times = iter([5.0, 6.0, 9.0])  # the first took 5 seconds to begin
    monkeypatch.setattr(frozen_once.time, "perf_counter", lambda: next(times))
    for batch in range(3):
        (clock.on_train_batch_end if batch else clock.on_predict_batch_end)(
            batch)
    assert clock.throughput(128) == 128 * 2 / 4


@pytest.mark.parametrize("way, name", [
    ("predict, whole base", "features"),
    ("predict, frozen part", "block5c_add")])
def test_predict_is_given_what_it_says(model, monkeypatch, way, name):
    assert frozen_once.WAYS[way](model, IMAGES, LABELS) > 0
    seen = []

    def predict(part, X, verbose, callbacks):
        """Look at what predict is given; say that 9 batches took 4 s."""
        callbacks[0].times = list(np.linspace(10, 14, 9))
        seen.extend([part.output, X])

    monkeypatch.setattr(K.Model, "predict", predict)
    assert frozen_once.WAYS[way](model, IMAGES, LABELS) == 32 * 8 / 4
    assert seen[0] is model.get_layer(name).output
    np.testing.assert_array_equal(seen[1], transfer.scale(IMAGES[:288]))


def assert_stored(path, model, images):
    """Stored are the outputs of the frozen part, as Keras's predict has them.
    """
    expected = K.Model(model.input, frozen_once.cut(model)).predict(
        transfer.scale(images), verbose=0)
    np.testing.assert_allclose(np.load(path), expected, rtol=2e-3,
                               atol=2e-3 * np.abs(expected).max())


def test_our_frozen_pass_goes_over_each_image_once(model, monkeypatch):
    def pass_record(path):
        """Look at what is stored; say that it took 4 s."""
        assert_stored(path, model, IMAGES)
        return {"seconds": 4.0}

    monkeypatch.setattr(frozen_once.networks, "pass_record", pass_record)
    assert frozen_once.WAYS["our frozen pass"](model, IMAGES, LABELS) == 75


def test_our_training_is_measured_in_its_second_epoch(model, monkeypatch):
    images, labels = IMAGES[:290], LABELS[:290]
    before = model.get_layer("classes").get_weights()
    train = transfer.train

    def train_and_look(top, stored, Y, views, *arguments, **options):
        """Train; say that the first epoch took 100 s, and the second 2."""
        assert_stored(stored, model, np.concatenate(
            [images, images[:, :, ::-1]])[views.ravel()])
        for rows in views:
            np.testing.assert_array_equal(Y[rows], labels)
        history = train(top, stored, Y, views, *arguments, **options)
        assert len(history) == 2 and history[1]["seconds"] > 0
        return [{"seconds": 100.0}, {"seconds": 2.0}]

    monkeypatch.setattr(transfer, "train", train_and_look)
    # 20 batches of 14 images
    assert frozen_once.WAYS["an epoch of our training"](
        model, images, labels) == 280 / 2
    for old, new in zip(before, model.get_layer("classes").get_weights()):
        assert not np.array_equal(old, new)


def test_a_way_is_measured_on_the_images_that_are_asked_for(
        monkeypatch, capsys):
    monkeypatch.setattr(transfer, "cifar10", lambda: (
        (IMAGES, np.arange(300)[:, None] % 10), None))
    monkeypatch.setattr(choices, "build", lambda row: (row, None))
    kept = []
    monkeypatch.setattr(transfer, "keep_memory", lambda: kept.append(True))
    seen = []
    monkeypatch.setitem(
        frozen_once.WAYS, "predict, whole base",
        lambda *arguments: seen.extend([list(kept), *arguments]) or 12.5)
    monkeypatch.setattr(sys, "argv", [
        "frozen_once.py", "--way", "predict, whole base", "--images", "256",
        "--size", "96"])
    frozen_once.main()
    # Every way is measured with the same setting of glibc.
    assert seen[0] == [True]
    assert seen[1] == choices.ROWS["upper half"]._replace(size=96)
    np.testing.assert_array_equal(seen[2], IMAGES[:256])
    np.testing.assert_array_equal(seen[3], LABELS[:256])
    measured = json.loads(capsys.readouterr().out)
    assert measured["images_per_second"] == 12.5
    assert measured["peak_memory_bytes"] > 2 ** 20


def test_all_ways_take_turns_five_times(tmp_path, monkeypatch, capsys):
    turns = []

    def run(command, **_):
        """Stand for a process: the n-th measures n images per second."""
        turns.append(command[command.index("--way") + 1])
        return subprocess.CompletedProcess([], 0, "a warning\n" + json.dumps({
            "images_per_second": len(turns),
            "peak_memory_bytes": len(turns) * 2 ** 30}))

    ways = ["predict, frozen part", "our frozen pass"]
    monkeypatch.setattr(frozen_once, "WAYS", dict.fromkeys(ways))
    monkeypatch.setattr(frozen_once.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", [
        "frozen_once.py", "--json", str(tmp_path / "out.json")])
    frozen_once.main()
    assert turns == ways * 5
    printed = capsys.readouterr().out
    measured = json.loads((tmp_path / "out.json").read_text())["ways"]
    for i, way in enumerate(ways, start=1):
        speeds = list(range(i, 11, 2))
        assert measured[way] == {
            "images_per_second": speeds,
            "peak_memory_bytes": [speed * 2 ** 30 for speed in speeds]}
        assert (f"{way:>36} {speeds[2]:6.0f} images/s ({speeds[0]} to "
                f"{speeds[4]}), {speeds[4]}.00 GiB") in printed


@pytest.mark.parametrize("arguments, words", [
    (["--images", 255], "--images is 255, expected 256 to 50000"),
    (["--images", -1], "--images is -1, expected 256 to 50000"),
    (["--images", 50001], "--images is 50001, expected 256 to 50000"),
    (["--images", "nan"], "--images: invalid int value: 'nan'"),
    (["--size", 0], "--size is 0, expected 32 to 224"),
    (["--size", -1], "--size is -1"), (["--size", 31], "--size is 31"),
    (["--size", 10000], "--size is 10000, expected 32 to 224"),
    (["--size", ""], "--size: invalid int value: ''"),
    (["--json", ""], "--json is '', expected a file that can be written"),
    (["--json", "."], "--json is '.', expected a file that can be written"),
    (["--json", os.devnull], f"--json is '{os.devnull}', expected a file"),
    (["--json", f"{__file__}/out.json"], "there is no such folder"),
    (["--json", "nowhere/out.json"], "there is no such folder"),
    (["--way", "fit"], "our frozen pass"), (["--sise", 96], "--sise")])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, arguments, words):
    assert words in usage_error(frozen_once.main, monkeypatch, capsys,
                                tmp_path, *arguments).splitlines()[-1]


@pytest.mark.parametrize("status, words", [
    (-9, "predict, whole base: its process was killed by signal 9; 9 may "
     "mean: out of memory"), (69, 69)])
def test_a_way_that_fails_is_the_end(
        tmp_path, monkeypatch, status, words):
    monkeypatch.setattr(frozen_once, "WAYS", {"predict, whole base": None})
    monkeypatch.setattr(
        frozen_once.subprocess, "run", lambda *_, **__: (
            subprocess.CompletedProcess([], status, "")))
    monkeypatch.setattr(sys, "argv", [
        "frozen_once.py", "--json", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as end:
        frozen_once.main()
    assert end.value.code == words and not os.listdir(tmp_path)


def test_a_full_disk_gets_one_message(tmp_path, monkeypatch):
    def full(*_):
        """Fail as runs.write does."""
        raise OSError("out.json was not written")

    row = '{"images_per_second": 1, "peak_memory_bytes": 2}'
    monkeypatch.setattr(frozen_once.runs, "write", full)
    monkeypatch.setattr(frozen_once.subprocess, "run", lambda *_, **__: (
        subprocess.CompletedProcess([], 0, row)))
    monkeypatch.setattr(sys, "argv", [
        "frozen_once.py", "--json", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="out.json was not written"):
        frozen_once.main()


def test_ctrl_c_stays_ignored_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_once, "run", lambda args: None)
    monkeypatch.setattr(sys, "argv", [
        "frozen_once.py", "--json", str(tmp_path / "out.json")])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        frozen_once.main()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_without_data_and_network(tmp_path):
    done = script("benchmarks/frozen_once.py", tmp_path, "--json",
                  tmp_path / "out.json", env=without_network(tmp_path))
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    assert done.stderr.count("CIFAR-10 is missing") == 1
    assert not (tmp_path / "out.json").exists()


# Three of the ways, twice, or half the time would go into starting TensorFlow
SHORT = """\
import frozen_once
frozen_once.REPETITIONS = 2
frozen_once.WAYS = {way: None for way in (
    "predict, whole base", "fit, base frozen, from images",
    "an epoch of our training")}
frozen_once.main()
"""


@real_data
def test_the_benchmark_runs(tmp_path):
    path = tmp_path / "short.py"
    path.write_text(SHORT)
    done = script(path, tmp_path, "--images", 256, "--size", 64, "--json",
                  tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out.json") as file:
        record = json.load(file)
    assert (record["images"], record["size"]) == (256, 64)
    assert record["machine"]["cores"] == os.cpu_count()
    assert "peak_memory_bytes" not in record["machine"]
    assert len(record["ways"]) == 3
    for way, measured in record["ways"].items():
        assert len(measured["images_per_second"]) == 2
        assert min(measured["images_per_second"]) > 0
        assert min(measured["peak_memory_bytes"]) > 2 ** 28
        assert f"{way:>36} " in done.stdout
