#!/usr/bin/env python3
"""Compare frozen outputs that are computed once with the usual ways.

    benchmarks/frozen_once.py [--images N] [--size PIXELS] [--json FILE]

The network is that of 0-transfer.py. Each way runs in its own process, on the
same real images at the same size. There are five rounds of all ways. It takes
ten to thirty minutes, prints a table of images per second and peak memory, and
writes all measurements as JSON. The warm-up doesn't count, nor does the wait
for TensorFlow's input tuner at the end of Keras's fit and predict. All ways
tell glibc to keep its memory, as 0-transfer.py does. The peak memory of our
training includes the frozen pass.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import choices  # noqa: E402
import networks  # noqa: E402
import runs  # noqa: E402

transfer = networks.transfer
K = transfer.K

SIZES = range(32, 225)  # EfficientNetV2-B0's smallest, and that of ImageNet
REPETITIONS = 5


class Clock(K.callbacks.Callback):
    """Notes the time after each batch."""

    def __init__(self):
        """Begin before the first batch."""
        super().__init__()
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        """A batch of fit is done."""
        self.times.append(time.perf_counter())

    def on_predict_batch_end(self, batch, logs=None):
        """A batch of predict is done."""
        self.times.append(time.perf_counter())

    def throughput(self, batch):
        """Images per second, from the end of the first batch on."""
        return batch * (len(self.times) - 1) / (
            self.times[-1] - self.times[0])


def fit(model, images, labels):
    """Keras's fit on images, which trains the same layers as our training.
    """
    model.compile("adam", "categorical_crossentropy")
    clock = Clock()
    full = len(images) // 128 * 128  # an incomplete batch means a retrace
    model.fit(transfer.scale(images[:full]), labels[:full], batch_size=128,
              verbose=0, callbacks=[clock])
    return clock.throughput(128)


def fit_head(model, images, labels):
    """Keras's fit on images, the base frozen, the head trained."""
    for layer in model.layers[:-1]:
        layer.trainable = False
    return fit(model, images, labels)


def predict(model, images):
    """Keras's predict with its own batch size."""
    clock = Clock()
    full = len(images) // 32 * 32
    model.predict(transfer.scale(images[:full]), verbose=0,
                  callbacks=[clock])
    return clock.throughput(32)


def predict_whole(model, images, labels):
    """Keras's predict through the whole base: one pass."""
    base = K.Model(model.input, model.get_layer("features").output)
    return predict(base, images)


def predict_frozen(model, images, labels):
    """Keras's predict through the frozen part alone."""
    return predict(K.Model(model.input, cut(model)), images)


def frozen_pass(model, images, labels):
    """Our frozen pass, including writing."""
    with tempfile.TemporaryDirectory() as folder:
        stored, = transfer.frozen_outputs(
            K.Model(model.input, cut(model)), images, folder, transfer.scale)
        return len(images) / networks.pass_record(stored)["seconds"]


def train_epoch(model, images, labels):
    """The second of two epochs of our training on stored outputs."""
    m = len(images)
    with tempfile.TemporaryDirectory() as folder:
        stored, = transfer.frozen_outputs(
            K.Model(model.input, cut(model)),
            np.concatenate([images, images[:, :, ::-1]]), folder,
            transfer.scale)
        history = transfer.train(
            K.Model(cut(model), model.output), stored,
            np.concatenate([labels, labels]), np.arange(2 * m).reshape(2, m),
            np.arange(0), 2, 0,
            transfer.Checkpoint(os.path.join(folder, "training.npz")),
            batch=transfer.BATCH, learning_rate=transfer.LEARNING_RATE,
            weight_decay=transfer.WEIGHT_DECAY,
            label_smoothing=transfer.LABEL_SMOOTHING)
    size = min(transfer.BATCH, m // 20)  # as transfer.train has it
    return m // size * size / history[1]["seconds"]


def cut(model):
    """The tensor between the frozen part and the trained one."""
    return model.get_layer(choices.UPPER.cut).output


WAYS = {
    "fit, base frozen, from images": fit_head,
    "fit, upper half trained, from images": fit,
    "predict, whole base": predict_whole,
    "predict, frozen part": predict_frozen,
    "our frozen pass": frozen_pass,
    "an epoch of our training": train_epoch,
}


def measure(way, count, size):
    """Measure one way in this process, and print the result."""
    transfer.keep_memory()
    (X, labels), _ = transfer.cifar10()
    model, _ = choices.build(choices.UPPER._replace(size=size))
    throughput = WAYS[way](
        model, X[:count], np.eye(10, dtype="float32")[labels[:count, 0]])
    print(json.dumps({
        "images_per_second": throughput,
        "peak_memory_bytes": runs.machine().get("peak_memory_bytes", 0)}))


def measure_in_a_process(way, args):
    """Measure one way in a process of its own; return the result."""
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, "--images",
         str(args.images), "--size", str(args.size)],
        stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        sys.exit(f"{way}: its process was killed by signal "
                 f"{-done.returncode}; 9 may mean: out of memory")
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return json.loads(done.stdout.splitlines()[-1])


def run(args):
    """Measure all ways, round after round; print and write the results."""
    ways = {way: {"images_per_second": [], "peak_memory_bytes": []}
            for way in WAYS}
    for repetition in range(REPETITIONS):
        print(f"repetition {repetition + 1} of {REPETITIONS}", flush=True)
        for way, measured in ways.items():
            for key, value in measure_in_a_process(way, args).items():
                measured[key].append(value)
    for way, measured in ways.items():
        speeds = measured["images_per_second"]
        print(f"{way:>36} {statistics.median(speeds):6.0f} images/s "
              f"({min(speeds):.0f} to {max(speeds):.0f}), "
              f"{max(measured['peak_memory_bytes']) / 2 ** 30:.2f} GiB")
    machine = runs.machine()
    del machine["peak_memory_bytes"]  # this process only waits
    print(f"{args.images:,} images at {args.size} pixels on "
          f"{machine['processor']}, {machine['cores']} cores, "
          f"{machine['memory_bytes'] / 2 ** 30:.0f} GiB")
    runs.write(args.json, {"images": args.images, "size": args.size,
                           "machine": machine, "ways": ways})


def main():
    """Read the command line; measure one way, or run all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=choices.UPPER.size)
    parser.add_argument("--json", metavar="FILE", default=os.path.join(
        HERE, os.pardir, "results", "cifar10", "frozen_once.json"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 256 <= args.images <= 50000:
        parser.error(f"--images is {args.images}, expected 256 to 50000")
    if args.size not in SIZES:
        parser.error(f"--size is {args.size}, expected {SIZES[0]} to "
                     f"{SIZES[-1]}")
    try:
        runs.check_file("--json", args.json)
    except ValueError as error:
        parser.error(str(error))
    # In both processes, as in transfer.exit_with_message, which says more
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        if args.way:
            measure(args.way, args.images, args.size)
        else:
            run(args)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
