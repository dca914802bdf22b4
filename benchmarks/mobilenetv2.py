#!/usr/bin/env python3
"""The network that the paper's experiments change: MobileNetV2.

It is 0-transfer.py's network on another base, with BatchNorm's momentum
lowered to 0.9.
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import networks  # noqa: E402

transfer = networks.transfer
K, tf = transfer.K, transfer.tf

CUT = "block_8_add"     # 27 of 52 convolutions lie below it
SIZE = 160              # pixels


def build_model(size, weights=None):
    """Build the network, from 32x32 images to ten probabilities.

    size: pixels that the images are scaled up to
    weights: None (random) or "imagenet", downloaded if need be
    Returns: a K.Model (m, 32, 32, 3), in [-1, 1], -> (m, 10), frozen up to
        CUT
    """
    images = K.Input((32, 32, 3), name="images")
    scaled = K.layers.Lambda(lambda x: tf.image.resize(x, (size, size)),
                             name="scale_up")(images)

    def build():
        """Build the application, without its top."""
        return K.applications.MobileNetV2(
            input_tensor=scaled, include_top=False, weights=weights)

    application = networks.load_weights(
        "MobileNetV2", build) if weights else build()
    x = K.layers.GlobalAveragePooling2D(name="average")(application.output)
    x = K.layers.Dropout(transfer.DROPOUT, name="dropout")(x)
    model = K.Model(images, K.layers.Dense(
        10, activation="softmax", name="classes")(x))
    frozen = True
    for layer in application.layers:
        layer.trainable = not frozen
        if isinstance(layer, K.layers.BatchNormalization):
            layer.momentum = networks.MOMENTUM
        frozen = frozen and layer.name != CUT
    return model


def images_and_model(size):
    """Load CIFAR-10, and the network with ImageNet's weights."""
    return transfer.cifar10(), build_model(size, "imagenet")
