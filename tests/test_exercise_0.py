#!/usr/bin/env python3
"""The first exercise, a test a demand, on 0-transfer.py and cifar10.h5.

Offline unless REAL_DATA=1: then on the real CIFAR-10 and ImageNet's weights,
which Keras must find or be able to download.
"""
import inspect
import json
import os
import shutil
import signal
import socket
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tensorflow import keras as K

from helpers import (
    ROOT, Script, Stop, accuracy, damaged, full_disk, fuzz, noise_images,
    real_data, run, script, small_application, stop_after, usage_error,
    without_network)

transfer = __import__("0-transfer")
SCRIPT = os.path.join(ROOT, "0-transfer.py")
SHIPPED = os.path.join(ROOT, "cifar10.h5")

NEWER_CHECKER = """\
#!/usr/bin/env python3

from tensorflow import keras as K
preprocess_data = __import__('0-transfer').preprocess_data

# to fix issue with saving keras applications
K.learning_phase = K.backend.learning_phase\x20

_, (X, Y) = K.datasets.cifar10.load_data()
X_p, Y_p = preprocess_data(X, Y)
model = K.models.load_model('cifar10.h5')
model.evaluate(X_p, Y_p, batch_size=128, verbose=1)
"""
OLDER_CHECKER = NEWER_CHECKER.replace(
    "\nfrom tensorflow import keras as K", "\nimport tensorflow.keras as K")


def test_the_checker_is_the_exercise_s():
    with open(os.path.join(ROOT, "0-main.py"), "rb") as file:
        assert file.read() == NEWER_CHECKER.encode()


# "Your script should not run when the file is imported"

def test_import_changes_only_what_the_checker_needs(tmp_path):
    offline = without_network(tmp_path / "home")
    code = ("from tensorflow import keras as K\n"
            "before = set(K.utils.get_custom_objects())\n"
            "had = hasattr(K.backend, 'learning_phase')\n"
            "module = __import__('0-transfer')\n"
            "assert module.__doc__\n"
            "new = set(K.utils.get_custom_objects()) - before\n"
            "assert new == {'TransferModel'}, new\n"
            "assert K.backend.learning_phase() == 0 or had\n")
    shutil.copy(SCRIPT, tmp_path)
    # TensorFlow itself writes keras.json: let it, before we look.
    python = [sys.executable, "-B", "-c"]
    done = run(python + ["from tensorflow import keras; keras.layers"],
               tmp_path, offline)
    assert done.returncode == 0, done.stderr
    before = sorted(tmp_path.rglob("*"))
    done = run(python + [code], tmp_path, offline)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


# preprocess_data(X, Y)

@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_preprocess_data_scales_and_encodes(dtype, shape):
    X = noise_images(7).astype(dtype)
    Y = np.arange(7).reshape(shape).astype(dtype)
    X_before, Y_before = X.copy(), Y.copy()
    X_p, Y_p = transfer.preprocess_data(X, Y)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(Y, Y_before)
    assert not np.shares_memory(X, X_p) and not np.shares_memory(Y, Y_p)
    assert X_p.dtype == Y_p.dtype == np.float32
    np.testing.assert_allclose(
        X_p, X.astype("float64") / 255 * 2 - 1, atol=1e-6)
    assert X_p.min() >= -1 and X_p.max() <= 1
    assert Y_p.shape == (7, 10)
    for i, row in enumerate(Y_p):
        assert row[i] == 1 and row.sum() == 1


def test_preprocess_data_takes_no_images():
    X_p, Y_p = transfer.preprocess_data(
        np.zeros((0, 32, 32, 3), "uint8"), np.zeros((0, 1), "uint8"))
    assert X_p.shape == (0, 32, 32, 3) and Y_p.shape == (0, 10)


def changed(array, value):
    """A float copy of an array whose first value is another."""
    array = array.astype("float64")
    array.flat[0] = value
    return array


GOOD = noise_images(4), np.arange(4)


@pytest.mark.parametrize("X, Y, found, expected", [
    (GOOD[0][0], GOOD[1], "(32, 32, 3)", "(m, 32, 32, 3)"),
    (GOOD[0][..., :1], GOOD[1], "(4, 32, 32, 1)", "(m, 32, 32, 3)"),
    (GOOD[0], GOOD[1][:3], "(3,)", "(4,)"),
    (GOOD[0], np.eye(10)[GOOD[1]], "(4, 10)", "(4, 1)"),
    (changed(GOOD[0], -1), GOOD[1], "-1", "0 to 255"),
    (changed(GOOD[0], 255.5), GOOD[1], "255.5", "0 to 255"),
    (changed(GOOD[0], np.nan), GOOD[1], "nan", "0 to 255"),
    (changed(GOOD[0], np.inf), GOOD[1], "inf", "0 to 255"),
    (GOOD[0].astype(str), GOOD[1], "<U", "integers or floats"),
    (GOOD[0], changed(GOOD[1], 10), "10", "0 to 9"),
    (GOOD[0], changed(GOOD[1], -1), "-1", "0 to 9"),
    (GOOD[0], changed(GOOD[1], np.nan), "nan", "0 to 9"),
    (GOOD[0], changed(GOOD[1], 0.5), "0.5", "whole numbers"),
])
def test_preprocess_data_refuses(X, Y, found, expected):
    with pytest.raises(ValueError) as error:
        transfer.preprocess_data(X, Y)
    assert found in str(error.value) and expected in str(error.value)


NUMBERS = st.sampled_from([
    byte_order + kind for byte_order in "<>"
    for kind in ("u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8")])


def laid_out(array, how):
    """The same values, elsewhere in memory."""
    if how == "Fortran":
        array = np.asfortranarray(array)
    elif how == "every other":
        array = np.repeat(array, 2, axis=0)[::2]
    elif how == "reversed":
        array = array[::-1].copy()[::-1]
    array.flags.writeable = how != "read-only"
    return array


@fuzz
@given(st.data())
def test_property_any_array_of_numbers_is_preprocessed(data):
    m = data.draw(st.integers(1, 3))
    X, Y = (
        laid_out(data.draw(arrays.arrays(
            (dtype := np.dtype(data.draw(NUMBERS))), shape, fill=None,
            elements=elements(dtype))), data.draw(st.sampled_from([
                "plain", "Fortran", "every other", "reversed", "read-only"])))
        for shape, elements in (
            ((m, 32, 32, 3), values_up_to_255),
            (data.draw(st.sampled_from([(m,), (m, 1)])), whole_up_to_9)))
    X_before, Y_before = X.tobytes(), Y.tobytes()
    X_p, Y_p = transfer.preprocess_data(X, Y)
    assert (X.tobytes(), Y.tobytes()) == (X_before, Y_before)
    assert not np.shares_memory(X, X_p) and not np.shares_memory(Y, Y_p)
    assert X_p.dtype == Y_p.dtype == np.dtype("float32")  # of this machine
    np.testing.assert_allclose(
        X_p, X.astype("float64") / 255 * 2 - 1, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        Y_p, Y.reshape(-1, 1) == np.arange(10, dtype="float64"))


def values_up_to_255(dtype):
    """Values of an image: whole numbers, or any in 0..255."""
    return (st.floats(0, 255, width=8 * dtype.itemsize)
            if dtype.kind == "f" else st.integers(0, 255))


def whole_up_to_9(dtype):
    """Labels, as integers or as floats."""
    return st.integers(0, 9).map(float if dtype.kind == "f" else int)


@fuzz
@given(st.data())
def test_property_one_wrong_value_is_refused(data):
    X, Y = (array.astype("float64") for array in GOOD)
    name, array, most = data.draw(st.sampled_from([
        ("X", X, 255), ("Y", Y, 9)]))
    value = data.draw(st.one_of(
        st.floats(max_value=0, exclude_max=True, allow_nan=False),
        st.floats(min_value=most, exclude_min=True), st.just(np.nan),
        *([st.floats(0, 9).filter(lambda y: y % 1)] if name == "Y" else [])))
    array.flat[data.draw(st.integers(0, array.size - 1))] = value
    with pytest.raises(ValueError, match=f"{name} has"):
        transfer.preprocess_data(X, Y)


@pytest.mark.parametrize("dtype", [
    "bool", "complex64", "object", "S3", "M8[s]"])
def test_preprocess_data_refuses_what_is_no_number(dtype):
    for X, Y in ((GOOD[0].astype(dtype), GOOD[1]),
                 (GOOD[0], GOOD[1].astype(dtype))):
        with pytest.raises(ValueError, match="expected integers or floats"):
            transfer.preprocess_data(X, Y)


# "You must use one of the applications listed in Keras Applications"
# "Your saved model should be compiled"

@pytest.fixture(scope="module")
def shipped():
    """cifar10.h5 as the checker loads it."""
    return K.models.load_model(SHIPPED)


def test_shipped_model_is_compiled_and_small(shipped):
    assert shipped.optimizer is not None
    X, Y = transfer.preprocess_data(noise_images(20), np.arange(20) % 10)
    loss, share = shipped.evaluate(X, Y, verbose=0)
    P = shipped.predict_on_batch(X)
    assert loss == pytest.approx(-np.log((P * Y).sum(axis=1)).mean(), 1e-3)
    assert share == pytest.approx((P.argmax(1) == Y.argmax(1)).mean())
    assert shipped.input_shape == (None, 32, 32, 3)
    assert shipped.output_shape == (None, 10)
    assert os.path.getsize(SHIPPED) < 26e6
    with h5py.File(SHIPPED, "r") as file:
        assert "optimizer_weights" not in file


def test_shipped_model_gives_probabilities(shipped):
    X, _ = transfer.preprocess_data(noise_images(5), np.zeros(5))
    P = shipped.predict_on_batch(X)
    np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-5)
    assert P.min() >= 0


def test_shipped_model_has_the_layers_of_efficientnetv2b0(shipped):
    names = [layer.name for layer in shipped.layers]
    original = K.applications.EfficientNetV2B0(
        weights=None, include_top=False)
    # The first three, input and preprocessing, have no names of their own.
    missing = {layer.name for layer in original.layers[3:]} - set(names)
    assert not missing


# Hint 2: "Your first layer should be a lambda layer that scales up the data"

def test_first_layer_is_a_lambda_that_scales_up(shipped):
    first = [layer for layer in shipped.layers
             if not isinstance(layer, K.layers.InputLayer)][0]
    assert isinstance(first, K.layers.Lambda)
    images = noise_images(2)
    scaled = K.Model(shipped.input, first.output).predict_on_batch(
        transfer.preprocess_data(images, np.zeros(2))[0])
    assert scaled.shape[1] == scaled.shape[2] > 32
    # What the application expects, 0..255: bicubic, as Pillow's own code
    for ours, image in zip(scaled, images):
        theirs = np.stack([np.asarray(Image.fromarray(
            channel.astype("float32")).resize(
                scaled.shape[1:3], Image.BICUBIC))
            for channel in np.moveaxis(image, -1, 0)], axis=-1)
        np.testing.assert_allclose(ours[8:-8, 8:-8], theirs[8:-8, 8:-8],
                                   atol=0.01)


# Hint 3: "You will want to freeze most of the application layers"

def test_half_of_the_convolutions_are_frozen(shipped):
    for model in shipped, transfer.build_model(64):
        frozen, total = transfer.convolutions(model)
        assert total == 91 and frozen >= total / 2
        trained = {layer.name for layer in model.layers
                   if layer.trainable and layer.weights}
        names = [layer.name for layer in model.layers]
        cut = names.index(transfer.CUT)
        assert trained == {layer.name for layer in model.layers[cut + 1:]
                           if layer.weights
                           and not isinstance(layer, K.layers.DepthwiseConv2D)}


@real_data
def test_frozen_weights_are_imagenet_s(shipped):
    original = K.applications.EfficientNetV2B0(include_top=False)
    for layer in shipped.layers:
        if layer.weights and not layer.trainable:
            for ours, theirs in zip(
                    layer.get_weights(),
                    original.get_layer(layer.name).get_weights()):
                np.testing.assert_array_equal(ours, theirs)


# Hint 3: "you should compute the output of the frozen layers ONCE"

@pytest.fixture
def two_outputs():
    """A small model with two outputs."""
    K.utils.set_random_seed(0)
    x = K.Input((32, 32, 3))
    y = K.layers.Conv2D(4, 3, strides=4, name="first")(x)
    z = K.layers.Conv2D(2, 3, name="second")(y)
    return K.Model(x, [y, z])


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 50 images, 16 of them at a time."""
    monkeypatch.setattr(transfer, "SHARD", 50)
    monkeypatch.setattr(transfer, "INFERENCE_BATCH", 16)


class Counted:
    """A preprocess that counts images, and may fail after some."""

    def __init__(self, factor=1 / 255, most=None):
        """Scale by a factor; `most`: images before it fails."""
        self.factor, self.most, self.images = factor, most, 0

    def __call__(self, images):
        """Return float32, scaled."""
        self.images += len(images)
        if self.most and self.images > self.most:
            raise Stop
        return images.astype("float32") * np.float32(self.factor)


def assert_stored(paths, model, X):
    """Stored outputs are those of Keras's predict, to float16."""
    expected = model.predict(X, verbose=0)
    expected = expected if isinstance(expected, list) else [expected]
    assert len(paths) == len(expected)
    for path, values in zip(paths, expected):
        stored = np.load(path)
        assert stored.dtype == np.float16 and stored.shape == values.shape
        np.testing.assert_allclose(stored, values, rtol=2e-3,
                                   atol=2e-3 * np.abs(values).max())


def test_frozen_outputs_are_those_of_predict(
        two_outputs, small_shards, tmp_path):
    images = noise_images(130)
    paths = transfer.frozen_outputs(
        two_outputs, images, str(tmp_path), Counted())
    assert_stored(paths, two_outputs, images / np.float32(255))


def test_frozen_outputs_of_the_shipped_model(shipped, tmp_path):
    images = noise_images(40)
    cut = shipped.get_layer(transfer.CUT).output
    frozen, top = K.Model(shipped.input, cut), K.Model(cut, shipped.output)
    paths = transfer.frozen_outputs(
        frozen, images, str(tmp_path), transfer.scale)
    X, _ = transfer.preprocess_data(images, np.zeros(40))
    assert_stored(paths, frozen, X)
    # The trained part on what is stored is the whole model on images.
    np.testing.assert_allclose(
        top.predict_on_batch(np.load(paths[0]).astype("float32")),
        shipped.predict_on_batch(X), atol=0.02)


def test_frozen_outputs_are_computed_once(
        two_outputs, small_shards, tmp_path, capsys):
    images, preprocess = noise_images(130), Counted()
    arguments = two_outputs, images, str(tmp_path), preprocess
    transfer.frozen_outputs(*arguments)
    assert preprocess.images == 16 + 130  # the comparison and the pass
    assert "130 of 130 images to do" in capsys.readouterr().out
    preprocess.images = 0
    transfer.frozen_outputs(*arguments)
    assert preprocess.images == 16  # the comparison alone
    assert "images to do" not in capsys.readouterr().out


def test_each_shard_has_its_time_and_note(two_outputs, small_shards, tmp_path):
    paths = transfer.frozen_outputs(
        two_outputs, noise_images(130), str(tmp_path), Counted(), note=7)
    with open(os.path.join(os.path.dirname(paths[0]), "index.json")) as file:
        shards = json.load(file)
    assert [shard["images"] for shard in shards] == [50, 50, 30]
    assert all(shard["seconds"] > 0 and shard["note"] == 7
               for shard in shards)


def test_frozen_outputs_have_a_folder_for_what_they_are_made_from(
        two_outputs, tmp_path):
    def folders():
        """Count them."""
        return len(os.listdir(tmp_path))

    images = noise_images(20)
    for model, some, expected in (
            (two_outputs, images, 1), (two_outputs, images, 1),
            (two_outputs, images[:, :, ::-1], 2),
            (two_outputs, images[:19], 3),
            (K.Model(two_outputs.input, two_outputs.outputs[0]), images, 4)):
        transfer.frozen_outputs(model, some, str(tmp_path), Counted())
        assert folders() == expected
    kernel, bias = two_outputs.get_layer("second").get_weights()
    two_outputs.get_layer("second").set_weights([kernel, bias + 1])
    transfer.frozen_outputs(two_outputs, images, str(tmp_path), Counted())
    assert folders() == 5


def test_a_killed_pass_continues(two_outputs, small_shards, tmp_path):
    images, cache = noise_images(130), str(tmp_path)
    with pytest.raises(Stop):  # in the third shard
        transfer.frozen_outputs(
            two_outputs, images, cache, Counted(most=16 + 110))
    preprocess = Counted()
    paths = transfer.frozen_outputs(two_outputs, images, cache, preprocess)
    assert preprocess.images == 16 + 30
    assert_stored(paths, two_outputs, images / np.float32(255))


@pytest.mark.parametrize("harm, again", [
    ("truncated", 130), ("changed", 80), ("longer", 80), ("missing", 130),
    ("without index", 130), ("garbage index", 130), ("other index", 130)])
def test_damaged_outputs_are_computed_again(
        two_outputs, small_shards, tmp_path, harm, again):
    images = noise_images(130)
    arguments = two_outputs, images, str(tmp_path)
    paths = transfer.frozen_outputs(*arguments, Counted())
    index = os.path.join(os.path.dirname(paths[0]), "index.json")
    if harm == "truncated":
        os.truncate(paths[1], os.path.getsize(paths[1]) - 1)
    elif harm == "changed":  # a bit in the second shard
        stored = np.load(paths[1], mmap_mode="r+")
        stored[60].view("uint8").flat[0] ^= 1
        stored.flush()
    elif harm == "longer":  # bytes that don't belong in the second shard
        stored = np.load(paths[1], mmap_mode="r")
        with open(paths[1], "rb") as file:
            content = file.read()
        middle = stored.offset + 60 * stored[0].nbytes
        change(paths[1], content[:middle] + b"longer" + content[middle:])
    elif harm == "without index":
        os.remove(index)
    elif "index" in harm:
        with open(index, "w") as file:
            file.write("{" if harm == "garbage index" else '[{"crc32": 1}]')
    else:
        os.remove(paths[1])
    preprocess = Counted()
    paths = transfer.frozen_outputs(*arguments, preprocess)
    assert preprocess.images == 16 + again
    assert_stored(paths, two_outputs, images / np.float32(255))


def change(path, data):
    """Write other bytes into a file."""
    with open(path, "wb") as file:
        file.write(data)


def test_fuzz_damaged_outputs_are_never_taken_for_whole(
        two_outputs, small_shards, tmp_path):
    images = noise_images(60)
    arguments = two_outputs, images, str(tmp_path)
    paths = transfer.frozen_outputs(*arguments, Counted())
    index = os.path.join(os.path.dirname(paths[0]), "index.json")
    originals = {}
    for path in [*paths, index]:
        with open(path, "rb") as file:
            originals[path] = file.read()
    expected = [np.load(path) for path in paths]

    @fuzz
    @given(st.data())
    def try_one(data):
        """Damage one of the files, and ask for the outputs again."""
        for path, original in originals.items():
            change(path, original)
        path = data.draw(st.sampled_from(list(originals)))
        change(path, data.draw(damaged(originals[path])))
        for path, values in zip(transfer.frozen_outputs(
                *arguments, Counted()), expected):
            stored = np.load(path)
            assert stored.dtype == values.dtype
            np.testing.assert_array_equal(stored, values)

    try_one()


@pytest.mark.parametrize("other", [
    np.int16, ">f2", object, "Fortran"], ids=str)
def test_outputs_in_another_form_are_computed_again(
        two_outputs, small_shards, tmp_path, other):
    images = noise_images(60)
    arguments = two_outputs, images, str(tmp_path)
    paths = transfer.frozen_outputs(*arguments, Counted())
    array = np.load(paths[1])
    if other == "Fortran":
        np.save(paths[1], np.asfortranarray(array))
    elif other == np.int16:  # the same bytes
        np.save(paths[1], array.view("int16"))
    else:  # objects are pickled, and a pickle could run anything
        np.save(paths[1], array.astype(other))
    paths = transfer.frozen_outputs(*arguments, Counted())
    assert_stored(paths, two_outputs, images / np.float32(255))


def test_another_preprocess_computes_all_again(
        two_outputs, small_shards, tmp_path, capsys):
    images = noise_images(130)
    arguments = two_outputs, images, str(tmp_path)
    transfer.frozen_outputs(*arguments, Counted())
    preprocess = Counted(1 / 127)
    paths = transfer.frozen_outputs(*arguments, preprocess)
    assert "computing all of them again" in capsys.readouterr().out
    assert preprocess.images == 16 + 130
    assert_stored(paths, two_outputs, images / np.float32(127))


def test_a_full_disk_is_noticed_before_the_pass(
        two_outputs, small_shards, tmp_path):
    preprocess = Counted()
    with full_disk(), pytest.raises(
            OSError, match="0.npy was not written: .* File too large"):
        transfer.frozen_outputs(
            two_outputs, noise_images(130), str(tmp_path), preprocess)
    assert preprocess.images == 16  # the comparison alone
    assert not list(tmp_path.rglob("*.npy"))


# "[...] and use those values as input to train the remaining trainable layers"

def test_every_stretch_of_the_order_has_the_classes_evenly():
    labels = np.random.default_rng(0).permutation(np.arange(1000) % 10)
    order = transfer.stratified_order(labels, 0)
    assert sorted(order) == list(range(1000))
    for n in (10, 90, 500):
        assert set(np.bincount(labels[order[:n]])) == {n // 10}
        assert set(np.bincount(labels[order[n:2 * n]])) == {n // 10}
    assert not np.array_equal(order, transfer.stratified_order(labels, 1))


def test_an_epoch_sees_every_image_once_and_two_see_both_views():
    views = np.arange(200).reshape(2, 100) + 7
    first, second = (transfer.epoch_rows(views, i, 3) for i in range(2))
    np.testing.assert_array_equal(first, transfer.epoch_rows(views, 0, 3))
    for rows in first, second:
        images = (rows - 7) % 100
        assert sorted(images) == list(range(100))
        assert not np.array_equal(images, np.sort(images))
    assert sorted([*first, *second]) == list(range(7, 207))
    other = transfer.epoch_rows(views, 0, 4)
    assert not np.array_equal(first, other)
    assert not np.array_equal(np.sort(first), np.sort(other))


def small_top(seed):
    """Make a small network with BatchNorm and dropout, and data for it."""
    K.utils.set_random_seed(seed)
    if transfer.KERAS[0] == "2":
        K.backend.experimental.enable_tf_random_generator()
    x = K.Input((4,))
    y = K.layers.BatchNormalization()(K.layers.Dense(6)(x))
    y = K.layers.Dropout(0.5)(y)
    stored = np.random.default_rng(0).normal(size=(90, 4)).astype("float16")
    return K.Model(x, K.layers.Dense(10, activation="softmax")(y)), stored, (
        np.eye(10, dtype="float32")[np.arange(90) % 40 % 10])


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("rows", [[3, 1, 4, 1, 5, 9, 2], [8]])
def test_batches_are_the_stored_rows_in_order(tmp_path, as_file, rows):
    top, stored, Y = small_top(0)
    path = str(tmp_path / "stored.npy")
    np.save(path, stored)
    pairs = list(transfer.batches(
        top, path if as_file else stored, np.array(rows), Y, 3))
    assert max(len(x) for x, _ in pairs) <= 3
    x, y = (np.concatenate(column) for column in zip(*pairs))
    assert x.dtype == y.dtype == np.float32
    np.testing.assert_array_equal(x, stored[rows])
    np.testing.assert_array_equal(y, Y[rows])


def train_small(top, stored, Y, checkpoint, epochs=3, seed=0):
    """Train the small network on 40 images with their mirror images."""
    return transfer.train(
        top, stored, Y, np.arange(80).reshape(2, 40), np.arange(80, 90),
        epochs, seed, checkpoint, batch=128, learning_rate=0.01,
        weight_decay=0.1, label_smoothing=0.2)


@pytest.mark.parametrize("harm", [None, "truncated", "of another model"])
def test_a_killed_training_ends_as_an_undisturbed_one(
        tmp_path, capsys, harm):
    top, stored, Y = small_top(0)
    history = train_small(
        top, stored, Y, transfer.Checkpoint(str(tmp_path / "whole.npz")))
    path = str(tmp_path / "killed.npz")
    with pytest.raises(Stop):
        train_small(*small_top(0), stop_after(2, transfer.Checkpoint(path)))
    if harm == "truncated":
        os.truncate(path, os.path.getsize(path) // 2)
    elif harm:
        np.savez(path, np.zeros(3), history="[]")
    # From the checkpoint come the weights, else from the seed.
    again, *_ = small_top(0 if harm else 7)
    resumed = train_small(again, stored, Y, transfer.Checkpoint(path))
    printed = capsys.readouterr().out
    assert ("is damaged" if harm else "Continuing after epoch 2") in printed
    for ours, theirs in zip(resumed, history):
        ours.pop("seconds"), theirs.pop("seconds")
    assert resumed == history and len(resumed) == 3
    for ours, theirs in zip(again.get_weights(), top.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("other", ["dtype", "shape", "fewer"])
def test_a_checkpoint_of_another_form_is_refused(tmp_path, capsys, other):
    path = str(tmp_path / "killed.npz")
    with pytest.raises(Stop):
        train_small(*small_top(0), stop_after(1, transfer.Checkpoint(path)))
    with np.load(path) as file:
        parts = dict(file)
    if other == "dtype":
        parts["arr_0"] = parts["arr_0"].view("int32")
    elif other == "shape":  # of as many values
        parts["arr_0"] = parts["arr_0"].T
    else:
        del parts["arr_1"]
    np.savez(path, **parts)
    top, *_ = small_top(0)
    before = top.get_weights()
    top.compile("adam", "mse")
    checkpoint = transfer.Checkpoint(path)
    checkpoint.set_model(top)
    checkpoint.restore()
    assert "is damaged" in capsys.readouterr().out
    assert checkpoint.history == []
    for ours, theirs in zip(top.get_weights(), before):
        np.testing.assert_array_equal(ours, theirs)


def test_fuzz_a_damaged_checkpoint_is_never_taken_for_whole(tmp_path):
    path = str(tmp_path / "killed.npz")
    top, stored, Y = small_top(0)
    with pytest.raises(Stop):
        train_small(top, stored, Y,
                    stop_after(1, transfer.Checkpoint(path)))
    with open(path, "rb") as file:
        original = file.read()
    whole = transfer.Checkpoint(path)
    whole.set_model(top)
    whole.restore()
    values = [np.array(variable) for variable in whole.variables()]

    @fuzz
    @given(damaged(original))
    def try_one(data):
        """Restore from a damaged file: nothing, or the very same."""
        change(path, data)
        for variable in whole.variables():
            variable.assign(np.zeros_like(np.asarray(variable)))
        checkpoint = transfer.Checkpoint(path)
        checkpoint.set_model(top)
        checkpoint.restore()
        assert checkpoint.history in ([], whole.history)
        for variable, value in zip(checkpoint.variables(), values):
            np.testing.assert_array_equal(
                np.array(variable),
                value if checkpoint.history else np.zeros_like(value))

    try_one()


def test_a_full_disk_is_noticed_before_the_training(tmp_path):
    top, stored, Y = small_top(0)
    before = top.get_weights()
    with full_disk(), pytest.raises(OSError, match="a.npz was not written"):
        train_small(top, stored, Y, transfer.Checkpoint(
            str(tmp_path / "a.npz")))
    for ours, theirs in zip(top.get_weights(), before):
        np.testing.assert_array_equal(ours, theirs)
    assert not list(tmp_path.iterdir())


def test_training_is_keras_s_own(tmp_path):
    """The same as a plain fit, batch for batch."""
    top, stored, Y = small_top(0)
    history = train_small(
        top, stored, Y, transfer.Checkpoint(str(tmp_path / "a.npz")))
    plain, *_ = small_top(0)
    plain.compile(
        K.optimizers.AdamW(K.optimizers.schedules.CosineDecay(0.01, 3 * 20),
                           weight_decay=0.1),
        K.losses.CategoricalCrossentropy(label_smoothing=0.2))
    for epoch in range(3):
        rows = transfer.epoch_rows(np.arange(80).reshape(2, 40), epoch, 0)
        for some in rows.reshape(20, 2):
            plain.train_on_batch(stored[some].astype("float32"), Y[some])
    for ours, theirs in zip(top.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    P = plain.predict_on_batch(stored[80:].astype("float32"))
    assert history[-1]["val_accuracy"] == pytest.approx(
        np.mean(P.argmax(1) == Y[80:].argmax(1)))


# "Your script must save your trained model [...] as cifar10.h5"

def test_a_failed_save_never_costs_an_older_file(tmp_path, monkeypatch):
    path = str(tmp_path / "cifar10.h5")
    with open(path, "w") as file:
        file.write("older")
    model = transfer.build_model(64)
    other = transfer.build_model(64)
    monkeypatch.setattr(K.models, "load_model", lambda path: other)
    kernel, bias = other.get_layer("classes").get_weights()
    other.get_layer("classes").set_weights([kernel, bias + np.arange(10)])
    with pytest.raises(OSError, match="cifar10.h5 was not written.*differ"):
        transfer.save_model(model, path, transfer.scale(noise_images(2)))
    with open(path) as file:
        assert file.read() == "older"
    assert os.listdir(tmp_path) == ["cifar10.h5"]


def test_a_saved_model_is_the_one_in_memory(shipped, tmp_path):
    X = transfer.scale(noise_images(6))
    expected = shipped.predict_on_batch(X)
    path = str(tmp_path / "copy.h5")
    transfer.save_model(shipped, path, X)
    again = K.models.load_model(path)
    np.testing.assert_allclose(again.predict_on_batch(X), expected, atol=1e-6)
    assert ([layer.trainable for layer in again.layers]
            == [layer.trainable for layer in shipped.layers])
    with h5py.File(path, "r") as file:
        config = json.loads(file.attrs["training_config"])
    assert config["loss"] == "categorical_crossentropy"


# The whole script, as a process

CHECKPOINT = f"cache/training-{16 * '?'}.npz"  # but not .part.npz
SMALL = """\
import numpy as np
from tensorflow import keras as K
from helpers import noise_images, small_application

K.applications.EfficientNetV2B0 = small_application
transfer = __import__("0-transfer")
transfer.SHARD = 64
X, Y = noise_images(200), np.arange(200)[:, None] % 10
transfer.cifar10_and_model = lambda size: (
    ((X, Y), (X[:20], Y[:20])), transfer.build_model(size))
transfer.main()
"""


def weights(path):
    """Read all weights of a saved model."""
    with h5py.File(path, "r") as file:
        found = {}
        file.visititems(
            lambda name, item: found.update({name: item[()]})
            if isinstance(item, h5py.Dataset) else None)
    return found


def test_killed_anywhere_a_run_ends_as_an_undisturbed_one(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    arguments = path, tmp_path, "--size", 64, "--epochs", 4, "--cache"
    undisturbed = script(*arguments, "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    os.rename(tmp_path / "cifar10.h5", tmp_path / "undisturbed.h5")
    in_pass, in_training = (
        Script(*arguments, "cache").kill(
            lambda printed: list(tmp_path.glob(pattern))).stdout
        for pattern in ("cache/*/index.json", CHECKPOINT))
    assert "400 of 400 images to do" in in_pass
    assert "400 of 400 images to do" not in in_training
    assert not (tmp_path / "cifar10.h5").exists()
    done = script(*arguments, "cache")
    assert done.returncode == 0, done.stderr
    assert "Continuing after epoch" in done.stdout
    assert "images to do" not in done.stdout
    assert not list(tmp_path.glob("cache/training-*"))
    ours, theirs = map(weights, (tmp_path / "cifar10.h5",
                                 tmp_path / "undisturbed.h5"))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_runs_at_once_wait_for_each_other(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    for name in "alone", "first", "second", "cache":
        (tmp_path / name).mkdir()
    arguments = "--size", 64, "--epochs", 2, "--cache"
    alone = script(path, tmp_path / "alone", *arguments, "cache")
    assert alone.returncode == 0, alone.stderr
    lock = transfer.wait_for_others(str(tmp_path / "cache"))
    runs = [Script(path, tmp_path / name, *arguments, tmp_path / "cache")
            for name in ("first", "second")]
    for one in runs:
        one.wait_until(lambda printed: "Waiting for another process in"
                       in printed)
    lock.close()
    for one in runs:
        done = one.wait()
        assert done.returncode == 0, done.stderr
    ours = [weights(tmp_path / name / "cifar10.h5")
            for name in ("alone", "first", "second")]
    for name in ours[0]:
        np.testing.assert_array_equal(ours[1][name], ours[0][name])
        np.testing.assert_array_equal(ours[2][name], ours[0][name])


FULL_DISK = """\
import os
import resource

def on_a_full_disk(*arguments, **options):
    if os.path.exists("full"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    return function(*arguments, **options)

function, transfer.{0} = transfer.{0}, on_a_full_disk
transfer.main()
"""


@pytest.mark.parametrize("function, unwritten", [
    ("frozen_outputs", "0.npy"), ("train", "training-"),
    ("save_model", "cifar10.h5")])
def test_a_full_disk_costs_nothing_that_is_made(
        tmp_path, function, unwritten):
    path = tmp_path / "small.py"
    path.write_text(SMALL.replace(
        "transfer.main()\n", FULL_DISK.format(function)))
    (tmp_path / "cifar10.h5").write_text("older")
    (tmp_path / "full").touch()
    arguments = path, tmp_path, "--size", 64, "--epochs", 2, "--cache", "cache"
    done = script(*arguments)
    assert done.returncode == 1, done.stdout
    message, remedy = done.stderr.splitlines()[-2:]
    assert unwritten in message and "was not written" in message
    assert "Finished work is kept" in remedy
    assert (tmp_path / "cifar10.h5").read_text() == "older"
    assert not list(tmp_path.rglob("*.part*"))
    (tmp_path / "full").unlink()
    done = script(*arguments)
    assert done.returncode == 0, done.stderr
    assert len(weights(tmp_path / "cifar10.h5")) > 10


SMALL_REHEARSAL = """\
from tensorflow import keras as K
from helpers import small_application

K.applications.EfficientNetV2B0 = small_application
__import__("0-transfer").main()
"""


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """Rehearse with few layers; return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "small.py").write_text(SMALL_REHEARSAL)
    done = script(folder / "small.py", folder, "--rehearse", "--size", 32,
                  "--epochs", 2, "--limit", 200, "--record", "record.json",
                  "--cache", folder / "cache", env=without_network(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_rehearsal_says_what_it_is(rehearsal):
    folder, printed = rehearsal
    assert "REHEARSAL" in printed.splitlines()[-1]
    assert "REHEARSAL" in printed.splitlines()[0]
    assert "2 of 3 convolution layers frozen" in printed
    assert (folder / "rehearsal.h5").exists()
    assert not (folder / "cifar10.h5").exists()
    assert not list(folder.rglob("*.part*"))


def test_the_record_tells_the_run(rehearsal):
    folder, printed = rehearsal
    with open(folder / "record.json") as file:
        record = json.load(file)
    assert record["arguments"]["seed"] == 0
    assert len(record["history"]) == 2 and record["training_images"] == 200
    assert record["test_accuracy"] == pytest.approx(
        accuracy(printed), abs=1e-4)
    assert record["recipe"] == {
        "CUT": "block5c_add", "BATCH": 128, "LEARNING_RATE": 1e-3,
        "WEIGHT_DECAY": 0.01, "LABEL_SMOOTHING": 0.1, "DROPOUT": 0.3}
    assert {"processor", "cores", "memory_bytes", "peak_memory_bytes",
            "tensorflow"} <= set(record["machine"])
    assert {"frozen part", "training", "all"} <= set(record["seconds"])
    assert str(folder) not in json.dumps(record)


@real_data
def test_the_rehearsal_transfers(tmp_path):
    done = script("0-transfer.py", tmp_path, "--rehearse", "--cache", "cache")
    assert done.returncode == 0, done.stderr
    assert "50 of 91 convolution layers frozen" in done.stdout
    assert accuracy(done.stdout) > 0.85


@pytest.fixture
def run_small(tmp_path, monkeypatch, capsys):
    """Give a function that runs main() on few images, with few layers.

    It returns the images, the model as it was before, what was printed.
    """
    def run_it(*options):
        """Run main() with these options."""
        images, labels = noise_images(200), np.arange(200)[:, None] % 10
        monkeypatch.setattr(
            K.applications, "EfficientNetV2B0", small_application)
        model = transfer.build_model(64)
        monkeypatch.setattr(transfer, "cifar10_and_model", lambda size: (
            ((images, labels), (images[:20], labels[:20])), model))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [
            "0-transfer.py", "--size", "64", "--cache", "cache", "--record",
            "run.json", *options])
        transfer.main()
        return images, model, capsys.readouterr().out

    return run_it


def test_a_run_writes_cifar10_h5_into_the_current_directory(
        run_small, tmp_path):
    images, _, printed = run_small("--epochs", "1")
    assert sorted(os.listdir(tmp_path)) == ["cache", "cifar10.h5", "run.json"]
    model = K.models.load_model(tmp_path / "cifar10.h5")
    P = model.predict(transfer.scale(images[:20]), verbose=0)
    expected = np.mean(P.argmax(axis=1) == np.arange(20) % 10)
    assert accuracy(printed) == pytest.approx(expected, abs=1e-4)
    assert printed.endswith(" (the exercise asks for 0.87)\n")


def test_validation_leaves_the_test_images_alone(run_small, tmp_path):
    images, model, printed = run_small("--validation", "50", "--epochs", "2")
    assert "350 of 350 images to do" in printed  # 150, mirrored, 50
    assert "validation accuracy" in printed.splitlines()[-1]
    with open(tmp_path / "run.json") as file:
        record = json.load(file)
    assert record["training_images"] == 150
    assert record["validation_accuracy"] == (
        record["history"][-1]["val_accuracy"])
    assert "test_accuracy" not in record
    assert sorted(os.listdir(tmp_path)) == ["cache", "run.json", "trial.h5"]

    # What is stored: training images, mirrored, validation images
    order = transfer.stratified_order(np.arange(200) % 10, 0)
    chosen = images[np.sort(order[50:])]
    expected = K.Model(
        model.input, model.get_layer(transfer.CUT).output).predict(
            transfer.scale(np.concatenate(
                [chosen, np.flip(chosen, axis=2), images[order[:50]]])),
            verbose=0)
    stored, = (tmp_path / "cache").glob("*/0.npy")
    np.testing.assert_allclose(np.load(stored), expected, rtol=2e-3,
                               atol=2e-3 * np.abs(expected).max())


def test_a_log_has_nothing_but_lines(rehearsal):
    _, printed = rehearsal
    assert "\r" not in printed and "\b" not in printed
    assert "\x1b" not in printed
    assert "of 400 images done\n" in printed
    for line in printed.splitlines():
        assert len(line) < 200


def test_tensorflow_says_nothing_first(tmp_path):
    env = without_network(tmp_path)
    del env["TF_CPP_MIN_LOG_LEVEL"]
    code = ("transfer = __import__('0-transfer')\n"
            "transfer.K.Sequential([transfer.K.Input((2,)),"
            " transfer.K.layers.Dense(2)])\n"
            "__import__('os').write(2, b'still heard')\n")
    done = run([sys.executable, "-c", code], ROOT, env)
    assert (done.stdout, done.stderr) == ("", "still heard")


def test_ctrl_c_says_how_to_continue(tmp_path):
    done = Script("0-transfer.py", tmp_path, "--rehearse").kill(
        lambda printed: "First" in printed, signal.SIGINT)
    assert "Rerun the same command" in done.stdout
    assert "Traceback" not in done.stderr


RUN = """\
import os, signal, sys, time
sys.path.insert(0, {!r})
{}
__import__("0-transfer").exit_with_message(run, None, "Fix this")
"""
LOSES_EXCEPTIONS = """\
class Loses:
    def __del__(self):  # Python ignores exceptions in it
        print("at work", flush=True)
        time.sleep(60)
def run(args):
    Loses()
    print("goes on", flush=True)
"""
IGNORES_CTRL_C = """\
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
def run(args):
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on")
"""


def test_ctrl_c_is_not_lost_where_exceptions_are(tmp_path):
    path = tmp_path / "loses.py"
    path.write_text(RUN.format(ROOT, LOSES_EXCEPTIONS))
    done = Script(path, tmp_path).kill(
        lambda printed: "at work" in printed, signal.SIGINT)
    assert done.stdout == (
        "at work\n\nStopped. Rerun the same command to continue.\n")
    assert done.stderr == ""


def test_a_process_that_ignores_ctrl_c_still_does(tmp_path):
    path = tmp_path / "ignores.py"
    path.write_text(RUN.format(ROOT, IGNORES_CTRL_C))
    done = script(path, tmp_path)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


@pytest.mark.parametrize("network", ["closed", "silent"])
def test_without_a_network_one_message_tells_what_to_do(tmp_path, network):
    shutil.copy(SCRIPT, tmp_path)  # it works alone
    offline = without_network(tmp_path / "home")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and never answers
        if network == "silent":
            offline["http_proxy"] = offline["https_proxy"] = (
                f"http://127.0.0.1:{silent.getsockname()[1]}")
        done = run([sys.executable, "0-transfer.py"], tmp_path, offline)
    assert done.returncode == 69
    for words in ("CIFAR-10 is missing", transfer.CIFAR10,
                  os.path.join(offline["HOME"], ".keras", "datasets"),
                  "--rehearse"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cifar10.h5").exists()


def test_a_broken_data_file_is_named(tmp_path):
    offline = without_network(tmp_path)
    path = tmp_path / ".keras" / "datasets" / transfer.CIFAR10
    path.parent.mkdir()
    path.write_text("broken")
    done = run([sys.executable, SCRIPT], tmp_path, offline)
    assert done.returncode == 1
    assert f"Delete {path}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_rehearsal_s_file_is_named_where_it_is_missing(tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    done = run([sys.executable, "0-transfer.py", "--rehearse"], tmp_path)
    assert done.returncode == 1 and "rehearsal" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments, words", [
    (["--size", 100], "--size is 100, expected 32, 48, 64"),
    (["--size", 0], "--size is 0"), (["--epochs", 0], "expected 1, 2, 3"),
    (["--limit", 3], "expected 10"), (["--seed", -1], "--seed is -1"),
    (["--validation", -1], "--validation is -1"),
    (["--record", "nowhere/run.json"], "can't write"),
    (["--record", "."], "is a folder"), (["--sise", 96], "--sise"),
    (["--size", "large"], "large"), (["--size", ""], "--size"),
    (["--size", 10000], "--size is 10000, expected 32, 48, 64, … 1024"),
    (["--size", 7], "--size is 7"), (["--size", "nan"], "--size"),
    (["--epochs", -3], "--epochs is -3"), (["--epochs", 1.5], "--epochs"),
    (["--epochs", 10 ** 12], "expected 1, 2, 3, … 1000"),
    (["--seed", 2 ** 32], f"--seed is {2 ** 32}"),
    (["--limit", 50001], "expected 10, 11, 12, … 50000"),
    (["--limit", 49999, "--validation", 2], "--validation is 2"),
    (["--validation", 49991], "--validation is 49991"),
    (["--cache", ""], "--cache is ''"),
    (["--cache", __file__], "--cache is"),
    (["--cache", os.path.join(__file__, "below")], "expected a folder"),
    (["--record", ""], "--record: can't write ''"),
    (["--record", os.devnull], "a device"),
    (["--rehearse", "yes"], "yes"),
])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, arguments, words):
    assert words in usage_error(
        transfer.main, monkeypatch, capsys, tmp_path, *arguments)


def test_a_typo_on_the_real_command_line(tmp_path):
    done = run([sys.executable, SCRIPT, "--size", "100"], tmp_path)
    assert done.returncode == 2 and "--size is 100" in done.stderr
    assert "Traceback" not in done.stderr


# "Your saved model should have a validation accuracy of 87% or higher"

def recorded():
    """Read what the run that made cifar10.h5 wrote."""
    with open(os.path.join(ROOT, "results/cifar10/seed-0.json")) as file:
        return json.load(file)


@real_data
@pytest.mark.parametrize("checker", [NEWER_CHECKER, OLDER_CHECKER],
                         ids=["newer", "older"])
def test_the_checker_accepts_the_shipped_file(checker, tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    shutil.copy(SHIPPED, tmp_path)
    (tmp_path / "0-main.py").write_text(checker)
    done = run([sys.executable, "0-main.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert accuracy(done.stdout) >= 0.955
    # The bar of some Keras 3 averages what is a mean already: 3.10 shows
    # 0.9505 where evaluate returns 0.9500.
    averaged = transfer.KERAS.startswith("3.") and "stateless_metrics" not in (
        inspect.signature(K.utils.Progbar).parameters)
    assert accuracy(done.stdout) == pytest.approx(
        recorded()["test_accuracy"], abs=1e-3 if averaged else 3e-4)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Train a little on real data, undisturbed and killed twice."""
    folder = tmp_path_factory.mktemp("trials")
    arguments = ("0-transfer.py", folder, "--limit", 5000, "--size", 64,
                 "--epochs", 3, "--cache")
    undisturbed = script(*arguments, "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    os.rename(folder / "trial.h5", folder / "undisturbed.h5")
    logs = [Script(*arguments, "cache").kill(
        lambda printed: list(folder.glob(pattern))).stdout
            for pattern in ("cache/*/index.json", CHECKPOINT)]
    done = script(*arguments, "cache")
    assert done.returncode == 0, done.stderr
    return folder, undisturbed.stdout, logs, done.stdout


@real_data
def test_real_images_and_weights_end_to_end(trials):
    folder, undisturbed, _, _ = trials
    assert "10,000 of 10,000 images to do" in undisturbed
    # Linear on random features stays below 50 %; ours is about 75 %.
    assert accuracy(undisturbed) > 0.65
    assert "the exercise asks for 0.87" in undisturbed.splitlines()[-1]
    assert not (folder / "cifar10.h5").exists()


@real_data
def test_killed_anywhere_real_runs_end_the_same(trials):
    folder, undisturbed, (first, second), last = trials
    assert "10,000 of 10,000 images to do" in first
    assert "of 10,000 images to do" in second
    assert "10,000 of 10,000 images to do" not in second
    assert "images to do" not in last and "Continuing after" in last
    assert accuracy(last) == accuracy(undisturbed)
    ours, theirs = map(weights, (folder / "trial.h5",
                                 folder / "undisturbed.h5"))
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@real_data
def test_broken_weights_are_named(tmp_path):
    env = dict(os.environ, HOME=str(tmp_path), KERAS_HOME=str(
        tmp_path / ".keras"), XDG_CACHE_HOME=os.path.expanduser("~/.cache"))
    path = tmp_path / ".keras" / "models" / transfer.WEIGHTS
    path.parent.mkdir(parents=True)
    path.write_text("broken")
    done = script("0-transfer.py", tmp_path, "--limit", 100, env=env)
    assert done.returncode == 1
    assert f"Delete {path}" in done.stderr
    assert "Traceback" not in done.stderr


@real_data
def test_missing_weights_are_named(tmp_path):
    env = without_network(tmp_path)
    env["XDG_CACHE_HOME"] = os.path.expanduser("~/.cache")
    if "PYTHONPATH" in os.environ:
        env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    else:  # CIFAR-10 as this machine's Keras has it
        shutil.copytree(transfer.keras_folder("datasets"),
                        tmp_path / ".keras" / "datasets")
    done = run([sys.executable, SCRIPT], tmp_path, env)
    assert done.returncode == 69
    assert f"{transfer.WEIGHTS} is missing" in done.stderr
    assert str(tmp_path / ".keras" / "models") in done.stderr
