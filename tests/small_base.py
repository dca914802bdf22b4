#!/usr/bin/env python3
"""Run a script with a small network in the place of MobileNetV2.

    tests/small_base.py transfer_model DATA

It needs no weights, so no network, and few layers, so little time.
"""
import sys

from tensorflow import keras as K


def MobileNetV2(input_tensor, include_top, weights):
    """Build a network whose layers have some of MobileNetV2's names."""
    x = input_tensor
    for seed, name in enumerate((
            "Conv1", "block_13_expand", "block_14_expand", "Conv_1")):
        x = K.layers.Conv2D(
            16, 3, strides=2, padding="same", use_bias=False, name=name,
            # the same in each process, as ImageNet's weights are
            kernel_initializer=K.initializers.HeNormal(seed))(x)
        x = K.layers.BatchNormalization(name=f"{name}_BN")(x)
        x = K.layers.ReLU(name=f"{name}_relu")(x)
    return K.Model(K.utils.get_source_inputs(input_tensor), x)


if __name__ == "__main__":
    K.applications.MobileNetV2 = MobileNetV2
    script = __import__(sys.argv.pop(1))
    if script.__name__ == "four_classes_transfer":
        script.EPOCHS = {"extraction": (2, 3), "fine-tuning": (2, 3)}
    script.main()
