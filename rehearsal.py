#!/usr/bin/env python3
"""Rehearse 0-transfer.py without a network: ./0-transfer.py --rehearse.

The network learns scikit-learn's digits 0 to 4 in the place of ImageNet. The
digits 5 to 9 then take the place of CIFAR-10.
"""
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorflow import keras as K

transfer = __import__("0-transfer")

LEARNING_RATE = 2e-3
EPOCHS = 5              # of learning 0 to 4
BATCH = 32
TEST_IMAGES = 250


def digits_and_model(size):
    """Load the digits 5 to 9, and a model that has learned 0 to 4.

    size: pixels that the images are scaled up to
    Returns: ((X, Y), (X_test, Y_test)), model, as cifar10_and_model does
    """
    # A killed rehearsal can use its stored outputs again only if the first
    # digits are learned to the same weights.
    tf.config.experimental.enable_op_determinism()
    digits = load_digits()
    images = np.kron(digits.images, np.ones((4, 4)))[..., None] * (255 / 16)
    images = np.repeat(images, 3, axis=-1).astype("uint8")
    known = digits.target < 5
    print("THIS IS A REHEARSAL with scikit-learn's digits, not CIFAR-10.\n"
          "First, the network learns the digits 0 to 4:")
    model = transfer.build_model(size)
    for layer in model.layers:  # model.trainable = True would change none
        layer.trainable = True
    model.compile(K.optimizers.AdamW(LEARNING_RATE),
                  "categorical_crossentropy", metrics=["accuracy"])
    X, Y = transfer.preprocess_data(images[known], digits.target[known])
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    model.fit(transfer.without_autotune(
        dataset.shuffle(len(X)).batch(BATCH)), epochs=EPOCHS,
        verbose=transfer.bar_or_lines())
    weights = model.get_weights()
    model = transfer.build_model(size)
    head = model.get_layer("classes").get_weights()
    model.set_weights(weights[:-2] + head)  # a new head for new classes
    images, labels = images[~known], digits.target[~known].astype("uint8")
    order = transfer.stratified_order(labels, 0)
    test, rest = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return ((images[rest], labels[rest]), (images[test], labels[test])), model
