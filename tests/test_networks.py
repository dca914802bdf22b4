#!/usr/bin/env python3
"""The bases that know ImageNet, through networks.py.

How their features compare with Keras's own, and which layers are trained, is
in test_exercise_cifar100.py and test_exercise_desserts.py.
"""
import json
import os
import sys
import types

import numpy as np
import pytest
from tensorflow import keras as K

import networks
from helpers import ROOT, he_initialize, real_data, run, without_network

MOMENTA = {"MobileNetV2": 0.999, "EfficientNetV2B0": 0.9, "DenseNet121": 0.99,
           "Xception": 0.99}


# The bases

@pytest.fixture(scope="module", params=networks.BASES)
def base(request):
    """Build a base without momentum; return its name and input, too."""
    images = K.Input((64, 64, 3))
    return request.param, images, K.Model(
        images, networks.features(request.param, images, None))


def batch_norms(model):
    """Return a model's layers of BatchNorm."""
    return [layer for layer in model.layers
            if isinstance(layer, K.layers.BatchNormalization)]


def test_batchnorm_keeps_the_application_s_momentum(base):
    name, _, model = base
    assert {layer.momentum for layer in batch_norms(model)} == {MOMENTA[name]}


def test_the_base_is_flat_and_has_no_top(base):
    name, _, model = base
    assert not any(isinstance(layer, (K.Model, K.layers.Dense))
                   for layer in model.layers)
    assert model.layers[-1].name == "features"
    assert len(model.output_shape) == 2


def test_first_trained_and_last_block_are_layers_in_this_order(base):
    name, _, model = base
    names = [layer.name for layer in model.layers]
    last = networks.last_block(model, name).name
    assert last.startswith(networks.BASES[name].last_block)
    assert names.index(networks.BASES[name].first_trained) <= names.index(last)
    assert not any(other.startswith(networks.BASES[name].last_block)
                   for other in names[:names.index(last)])


@pytest.mark.parametrize("name, first", [
    ("ResNet50V2", "conv4_block6_2_conv"),  # where the size is halved
    ("InceptionV3", "conv2d_71"), ("VGG16", "block5_conv1")])
def test_the_last_block_of_any_other_application(name, first):
    K.backend.clear_session()  # InceptionV3 numbers its layers
    images = K.Input((96, 96, 3))
    model = K.Model(images, networks.features(name, images, None))
    names = [layer.name for layer in model.layers]
    start = names.index(networks.last_block(model, name).name)
    assert next(layer.name for layer in model.layers[start:]
                if "Conv" in type(layer).__name__) == first


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_images_that_are_too_small_get_a_message(weights):
    with pytest.raises(SystemExit,
                       match="InceptionV3 doesn't take images of 32 pixels"):
        networks.features("InceptionV3", K.Input((32, 32, 3)), weights)


@pytest.mark.parametrize("name", [  # three ways of preprocessing
    "VGG16", "DenseNet121", "MobileNetV2"])
def test_the_preprocessing_is_saved_with_the_model(name, tmp_path):
    model = he_initialize(networks.build_with_head(name, (32, 32, 3), 3, None))
    model.layers[-1].set_weights([
        np.random.default_rng(0).normal(size=w.shape)
        for w in model.layers[-1].get_weights()])
    images = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3))
    expected = model.predict_on_batch(images)
    assert expected.std() > 0.01
    model.save(tmp_path / "model.keras")
    again = K.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.predict_on_batch(images), expected, atol=1e-5)


def test_batchnorm_gets_the_momentum_that_is_asked_for():
    images = K.Input((32, 32, 3))
    model = K.Model(images, networks.features(
        "MobileNetV2", images, None, momentum=0.5))
    assert len(batch_norms(model)) == 52
    assert {layer.momentum for layer in batch_norms(model)} == {0.5}


@pytest.fixture
def with_head():
    """Put a new head on MobileNetV2, whose features aren't all 0."""
    return he_initialize(networks.build_with_head(
        "MobileNetV2", (32, 32, 3), 5, None))


def trained(model):
    """Return the names of the layers whose weights are trained."""
    return [layer.name for layer in model.layers if layer.trainable_weights]


def test_a_new_head_has_no_opinion(with_head):
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3))
    np.testing.assert_allclose(with_head(images), np.full((3, 5), 0.2))


def test_freezing_leaves_the_head_or_the_last_block(with_head):
    networks.freeze_base(with_head)
    assert trained(with_head) == ["head"]
    networks.unfreeze_last_block(with_head, "MobileNetV2")
    assert trained(with_head) == [
        f"block_{number}_{part}" for number in (14, 15, 16)
        for part in ("expand", "depthwise", "project")] + ["Conv_1", "head"]
    assert not any(layer.trainable for layer in batch_norms(with_head))
    assert not any(layer.momentum == 0.9 for layer in batch_norms(
        with_head)[:-10])


def test_batchnorm_of_the_last_block_can_be_trained(with_head):
    networks.freeze_base(with_head)
    networks.unfreeze_last_block(with_head, "MobileNetV2", batch_norm=True)
    some = [layer for layer in batch_norms(with_head) if layer.trainable]
    assert [layer.name for layer in some] == [
        f"block_{number}_{part}_BN" for number in (14, 15, 16)
        for part in ("expand", "depthwise", "project")] + ["Conv_1_bn"]
    assert {layer.momentum for layer in some} == {0.9}


# "imagenet" weights

DOWNLOADS = """\
import networks

fetch = networks.transfer.fetch


def print_and_fetch(load, *arguments):
    def print_error():
        try:
            load()
        except Exception as error:
            print(error)
            raise
    return fetch(print_error, *arguments)


networks.transfer.fetch = print_and_fetch
for name in networks.BASES:
    try:
        networks.build_with_head(name, (32, 32, 3), 5)
    except SystemExit as end:
        print("exit status", end.code)
"""


def test_missing_weights_are_named_as_keras_names_them(tmp_path):
    env = dict(without_network(tmp_path), PYTHONPATH=ROOT)
    done = run([sys.executable, "-c", DOWNLOADS], tmp_path, env)
    assert done.returncode == 0, done.stderr
    for name, base in networks.BASES.items():
        url = ("https://storage.googleapis.com/tensorflow/keras-applications/"
               + base.weights)
        # Keras's own words
        assert f"URL fetch failure on {url}" in done.stdout
        path = tmp_path / ".keras" / "models" / os.path.basename(base.weights)
        assert (f"{path.name} is missing, and {url} can't be reached.\nKeras "
                f"looks for it at {path}\nRun this once with a network\n"
                ) in done.stderr
    assert done.stdout.count("exit status 69") == len(networks.BASES)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("folder_is_there", [False, True])
def test_without_a_network_any_application_gets_a_message(
        tmp_path, folder_is_there):
    env = dict(without_network(tmp_path), PYTHONPATH=ROOT)
    here = tmp_path / ".keras" / "models" / os.path.basename(
        networks.BASES["DenseNet121"].weights)
    if folder_is_there:
        here.parent.mkdir()
        here.touch()
    done = run([sys.executable, "-c", (
        "import networks; "
        "networks.build_with_head('VGG16', (32, 32, 3), 5)")], tmp_path, env)
    assert done.returncode == 69
    assert "VGG16's file of weights is missing" in done.stderr
    assert "Delete" not in done.stderr and "Traceback" not in done.stderr
    assert ("or choose --base DenseNet121" in done.stderr) == folder_is_there


@real_data
@pytest.mark.filterwarnings("ignore:.*input_shape")  # of MobileNetV2
@pytest.mark.parametrize("name", [
    "MobileNetV2", "EfficientNetV2B0", "DenseNet121"])
def test_the_weights_are_imagenet_s(name):
    images = K.Input((32, 32, 3))
    ours = K.Model(images, networks.features(name, images, "imagenet"))
    theirs = getattr(K.applications, name)(include_top=False).get_weights()
    assert len(ours.get_weights()) == len(theirs)
    for mine, other in zip(ours.get_weights(), theirs):
        np.testing.assert_array_equal(mine, other)
    assert os.path.exists(os.path.join(
        networks.transfer.keras_folder("models"),
        os.path.basename(networks.BASES[name].weights)))


# Throughput

def test_throughput_leaves_out_the_first_batch(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(networks, "time", clock)
    batches = []

    def predict(dataset, verbose):
        """Take 100 s at first, then 0.5 s for each image."""
        clock.now += 0 if batches else 100
        for batch in dataset:
            assert batch.dtype == "float32"
            batches.append(len(batch))
            clock.now += 0.5 * len(batch)

    images = np.zeros((70, 8, 8, 3), "uint8")
    assert networks.predict_throughput(
        types.SimpleNamespace(predict=predict), images) == 2
    assert batches == [32, 32, 32, 6]  # the first batch, then all


def test_a_pass_is_the_sum_of_its_shards(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps([
        {"images": 100, "seconds": 30.0, "crc32": [1],
         "predict_images_per_second": 40.0, "process": "first"},
        {"images": 60, "seconds": 10.0, "crc32": [2],
         "predict_images_per_second": 80.0, "process": "second"}]))
    assert networks.pass_record(str(tmp_path / "0.npy")) == {
        "seconds": 40, "images": 160, "measured_on": 160,
        "predict_images_per_second": (30 * 40 + 10 * 80) / 40,
        "process": "second"}


# Saving

@pytest.fixture
def saved(tmp_path):
    """Return a small model, images, its probabilities, and a path."""
    K.utils.set_random_seed(0)
    model = K.Sequential([
        K.Input((2, 2, 3)), K.layers.Rescaling(1 / 255), K.layers.Flatten(),
        K.layers.Dropout(0.5), K.layers.Dense(4, activation="softmax")])
    images = np.random.default_rng(0).integers(0, 256, (70, 2, 2, 3))
    W, b = model.layers[-1].get_weights()
    z = images.reshape(70, -1) / 255 @ W + b
    P = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    path = tmp_path / "model.keras"
    path.write_text("older")
    return model, images.astype("uint8"), P, path


def test_a_saved_model_is_compiled_and_predicts_the_same(saved, tmp_path):
    model, images, P, path = saved
    assert networks.save_model(model, str(path), images, P) < 1e-5
    Y = np.eye(4)[np.arange(70) % 4]
    _, accuracy = K.models.load_model(path).evaluate(images, Y, verbose=0)
    assert accuracy == pytest.approx((P.argmax(1) == Y.argmax(1)).mean())
    assert os.listdir(tmp_path) == ["model.keras"]


def test_a_difference_as_of_rounding_is_returned(saved):
    model, images, P, path = saved
    P[69, 3] += 0.03  # in the last of the batches
    assert networks.save_model(
        model, str(path), images, P) == pytest.approx(0.03, abs=1e-5)


@pytest.mark.parametrize("wrong", [0.06, -0.06, np.nan])
def test_a_model_that_loads_as_another_is_not_kept(saved, tmp_path, wrong):
    model, images, P, path = saved
    P[69, 3] += wrong
    with pytest.raises(OSError, match="model.keras was not written: loaded "
                                      "back, its probabilities differ by"):
        networks.save_model(model, str(path), images, P)
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["model.keras"]
