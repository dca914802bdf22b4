#!/usr/bin/env python3
"""Bases that know ImageNet, which the scripts put new heads on.

    BASES            where each base is cut, and where its weights are
    APPLICATIONS     the names of all of Keras's applications
    features         a base without its top, its preprocessing included
    build_with_head  a base with a new head for other classes
    freeze_base, last_block, unfreeze_last_block: which layers are trained
    pass_record      how long a frozen pass took
    save_model       writes a .keras file, loads it back and compares

The scripts on CIFAR-100 and on folders of images use it.
"""
import collections
import json
import os
import sys
import time

import numpy as np

transfer = __import__("0-transfer")
K, tf = transfer.K, transfer.tf  # imported there, where its log is hidden

Base = collections.namedtuple("Base", "size first_trained last_block weights")
# size: pixels to which CIFAR-100's 32x32 images are scaled up
# first_trained: the layer above CIFAR-100's cut; through its input passes
#     everything that the layers above see of an image
# last_block: how the name of the first layer begins that is fine-tuned on
#     folders of images; Xception's 14th block is its last, the other bases'
#     are about as far up
# weights: where Keras downloads them from
BASES = {
    "MobileNetV2": Base(
        160, "block_9_expand",  # 27 of 52 convolutions frozen
        "block_14",
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_"
        "224_no_top.h5"),
    "EfficientNetV2B0": Base(
        160, "block6a_expand_conv",  # 50 of 91
        "block6a", "efficientnet_v2/efficientnetv2-b0_notop.h5"),
    "DenseNet121": Base(
        128, "conv4_block12_0_bn",  # 61 of 120
        "conv5",
        "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "Xception": Base(
        128, "block8_sepconv1_act",  # 20 of 40
        "block14",
        "xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5"),
}
APPLICATIONS = [name for name in dir(K.applications) if name[0].isupper()]
URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
MOMENTUM = 0.9  # of a BatchNorm that is trained: at 0.999 its averages lag
# Between probabilities from float16 features and those from images: rounding
# makes 0.0003, a wrong layer or wrong weights far more.
MAX_DIFFERENCE = 0.05


def weights_path(name):
    """Where Keras keeps a base's weights; of some, only the folder's known."""
    weights = BASES[name].weights if name in BASES else ""
    return os.path.join(transfer.keras_folder("models"),
                        os.path.basename(weights))


def load_weights(name, build, offline_hint=""):
    """Return build(), for which Keras may have to download a base's weights.

    name: one of APPLICATIONS
    offline_hint: what a user without a network can do instead
    """
    path, base = weights_path(name), BASES.get(name)
    return transfer.fetch(
        build, os.path.basename(path) or f"{name}'s file of weights", path,
        URL + (base.weights if base else ""), offline_hint)


def features(name, images, weights, momentum=None, offline_hint=""):
    """One of K.applications without its top: a base's features of images.

    name: one of APPLICATIONS
    images: a tensor of RGB images in 0..255
    weights: "imagenet", downloaded if need be, or None (random)
    momentum: of BatchNorm; None leaves the application's own, which is right
        where BatchNorm stays frozen
    offline_hint: what a user without a network can do instead
    Returns: a tensor (m, f), averaged over all positions
    Exits with a message if the images are too small for the application.
    """
    module = next(
        (module for module in vars(K.applications).values()
         if hasattr(module, "preprocess_input") and hasattr(module, name)),
        K.applications.mobilenet_v3)  # the only one that names no network
    # On a tensor, it becomes a part of the model and is saved with it.
    x = module.preprocess_input(images)

    def build(weights):
        """The application on these images."""
        try:
            return getattr(K.applications, name)(
                input_tensor=x, include_top=False, weights=weights)
        except ValueError as error:
            if weights:
                build(None)  # is it the weights, or the size?
                raise
            sys.exit(f"{name} doesn't take images of {images.shape[1]} "
                     f"pixels: {error}")

    application = load_weights(
        name, lambda: build(weights), offline_hint) if weights else build(None)
    for layer in application.layers:
        if momentum and isinstance(layer, K.layers.BatchNormalization):
            layer.momentum = momentum
    return K.layers.GlobalAveragePooling2D(name="features")(
        application.output)


def build_with_head(name, input_size, n_categories, weights="imagenet"):
    """A base with a new head.

    name: one of APPLICATIONS
    input_size: (height, width, 3)
    n_categories: how many classes
    weights: "imagenet", downloaded if need be, or None (random)
    Returns: a flat K.Model, RGB images in 0..255 -> (m, n_categories)
    """
    here = [base for base in BASES if os.path.exists(weights_path(base))]
    images = K.Input(input_size, name="images")
    x = features(name, images, weights, offline_hint=(
        f", or choose --base {' or '.join(here)}" if here else ""))
    # Zero-initialised: rarely active features get little gradient, so random
    # weights would persist.
    return K.Model(images, K.layers.Dense(
        n_categories, activation="softmax", kernel_initializer="zeros",
        name="head")(x))


def freeze_base(model):
    """Freeze everything but the head."""
    for layer in model.layers:
        layer.trainable = layer.name == "head"


def last_block(model, name):
    """The first layer of a base's last block, within a model.

    Where BASES doesn't say, the last block is what comes after the last layer
    whose output is larger, in pixels, than that of the last convolution.
    Padding doesn't count.
    """
    if name in BASES:
        return next(layer for layer in model.layers
                    if layer.name.startswith(BASES[name].last_block))
    *_, last = (layer for layer in model.layers
                if "Conv" in type(layer).__name__)
    larger = [i for i, layer in enumerate(model.layers)
              if len(layer.output.shape) == 4
              and layer.output.shape[1] > last.output.shape[1]
              and not isinstance(layer, K.layers.ZeroPadding2D)]
    return model.layers[larger[-1] + 1]


def unfreeze_last_block(model, name, batch_norm=False):
    """Train a base's last block onward, and the head.

    batch_norm: whether BatchNorm is trained, too; its averages over batches
        of a few images are noisy
    """
    first = model.layers.index(last_block(model, name))
    for layer in model.layers[first:]:
        layer.trainable = True
        if isinstance(layer, K.layers.BatchNormalization):
            layer.trainable, layer.momentum = batch_norm, MOMENTUM


def batches_of(images):
    """Images as a dataset of float32, in batches of Keras's usual size."""
    return transfer.without_autotune(tf.data.Dataset.from_tensor_slices(
        images.astype("float32")).batch(32))


def predict_throughput(model, images):
    """Images per second of Keras's predict, measured after a first batch."""
    dataset = batches_of(images)
    model.predict(dataset.take(1), verbose=0)
    start = time.perf_counter()
    model.predict(dataset, verbose=0)
    return len(images) / (time.perf_counter() - start)


def pass_record(path):
    """How long a frozen pass took, from what its shards say.

    path: one that transfer.frozen_outputs returned
    Returns: a dict for JSON: seconds and images in all, measured_on (as many
        images), and what each shard's note says. A throughput is a mean by
        time, since the pass may have been stopped and resumed.
    """
    with open(os.path.join(os.path.dirname(path), "index.json")) as file:
        shards = json.load(file)
    seconds = [shard["seconds"] for shard in shards]
    images = sum(shard["images"] for shard in shards)
    record = {"seconds": sum(seconds), "images": images,
              "measured_on": images}
    for key in set(shards[-1]) - {"seconds", "images", "crc32"}:
        values = [shard[key] for shard in shards]
        record[key] = values[-1] if isinstance(values[-1], str) else float(
            np.average(values, weights=seconds))
    return record


def save_model(model, path, images, expected):
    """Write a whole model as .keras; load it back and compare.

    images: what the model takes, (m, height, width, 3) in 0..255
    expected: the probabilities from the stored outputs, (m, classes)
    Returns: the largest difference between probabilities
    Raises OSError if the file can't be written, or loads as another model.
    """
    # Plain SGD has no state that a saved model would have to carry.
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    with transfer.whole_file(path) as temporary:
        model.save(temporary)
        P = K.models.load_model(temporary).predict(
            batches_of(images), verbose=0)
        difference = float(np.abs(P - expected).max())
        if not difference < MAX_DIFFERENCE:
            raise OSError("loaded back, its probabilities differ by "
                          f"{difference}")
    return difference
