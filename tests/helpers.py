#!/usr/bin/env python3
"""What several test files share: running scripts, killing them, images."""
import contextlib
import multiprocessing
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, settings, strategies as st

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECONDS = 1800  # longer than any script takes here, on the slowest machine
# How many cases a test draws: always the same 30, or FUZZ new ones. They may
# be slow, and fixtures needn't be made anew for each.
fuzz = settings(
    max_examples=int(os.environ.get("FUZZ", 30)), deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck))

# A fresh Python spends three seconds on importing TensorFlow, a child that is
# forked from one that has imported it spends none.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tensorflow.keras.layers", "sklearn.datasets",
                              "sklearn.metrics", "matplotlib.figure",
                              "scipy.stats", "h5py"])

real_data = pytest.mark.skipif(
    os.environ.get("REAL_DATA") != "1",
    reason="needs real data and ImageNet's weights: REAL_DATA=1")


def run(command, folder, env=None):
    """Run a command in a folder, in a process of its own."""
    return subprocess.run([*map(str, command)], cwd=folder, env=env,
                          text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=SECONDS)


def run_as_main(path, arguments, folder, env, outputs):
    """In a forked child: become this script, in this folder."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, name in enumerate(outputs, start=1):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


class Script:
    """A script of the project at work in a folder, in a forked process."""

    def __init__(self, name, folder, *arguments, env=None):
        """Start it. env: its environment, by default this one."""
        self.outputs = [tempfile.mkstemp(dir=os.environ.get("TMPDIR"))[1]
                        for _ in range(2)]
        self.process = FORKS.Process(target=run_as_main, args=(
            os.path.join(ROOT, name), list(map(str, arguments)), str(folder),
            dict(env or os.environ), self.outputs))
        self.process.start()

    def printed(self):
        """Return what it has printed so far: stdout, stderr."""
        texts = []
        for name in self.outputs:
            with open(name, encoding="utf-8", errors="replace",
                      newline="") as file:  # or no test would see a "\r"
                texts.append(file.read())
        return texts

    def wait(self):
        """Wait for its end; return a subprocess.CompletedProcess."""
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, self.printed()
        done = subprocess.CompletedProcess(
            [], self.process.exitcode, *self.printed())
        for name in self.outputs:
            os.remove(name)
        return done

    def wait_until(self, when):
        """Wait until when(stdout) is true."""
        while not when(self.printed()[0]):
            assert self.process.exitcode is None, self.printed()
            time.sleep(0.001)

    def kill(self, when, how=signal.SIGKILL):
        """Kill it once when(stdout) is true; return what it printed."""
        self.wait_until(when)
        os.kill(self.process.pid, how)
        done = self.wait()
        assert done.returncode == (130 if how == signal.SIGINT else -how)
        return done


def script(name, folder, *arguments, env=None):
    """Run a script of the project; return a subprocess.CompletedProcess."""
    return Script(name, folder, *arguments, env=env).wait()


@contextlib.contextmanager
def full_disk():
    """No file can be larger than 10 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def usage_error(main, monkeypatch, capsys, folder, *arguments):
    """Call main() with a mistake in its command line; return the message."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    before = sorted(os.listdir(folder))
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert sorted(os.listdir(folder)) == before
    return capsys.readouterr().err


def without_network(home):
    """Return an environment with an empty home and no network."""
    env = {name: value for name, value in os.environ.items()
           if name.lower() not in ("pythonpath", "xdg_cache_home",
                                   "no_proxy")}
    env.update(HOME=str(home), KERAS_HOME=str(home / ".keras"),
               http_proxy="http://127.0.0.1:9",
               https_proxy="http://127.0.0.1:9", TF_CPP_MIN_LOG_LEVEL="2")
    os.makedirs(env["KERAS_HOME"], exist_ok=True)
    return env


def accuracy(text):
    """Return the last accuracy in what a run printed."""
    return float(re.findall(r"acc\w*:? +([0-9.]+)", text)[-1])


def noise_images(m, seed=0):
    """Make smooth uint8 images (m, 32, 32, 3): noise scaled up."""
    small = np.random.default_rng(seed).integers(0, 256, (m, 4, 4, 3))
    return small.repeat(8, axis=1).repeat(8, axis=2).astype("uint8")


def he_initialize(model):
    """Give a model random weights that let a signal through; return it."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if "Conv" in type(layer).__name__:
            layer.set_weights([
                rng.normal(size=w.shape) * np.sqrt(2 / np.prod(
                    # of a depthwise kernel, each output has one input
                    w.shape[:2] if w.shape[-1] == 1 else w.shape[:3]))
                for w in layer.get_weights()])
    return model


def thin_out(data, path, step):
    """Copy every step-th file of a zip into another zip."""
    with zipfile.ZipFile(data) as everything, (
            zipfile.ZipFile(path, "w")) as some:
        for name in sorted(everything.namelist())[::step]:
            some.writestr(name, everything.read(name))


def small_application(input_tensor, **options):
    """Make few layers, with the name of the cut, in the place of a base."""
    from tensorflow import keras as K  # not all tests need it
    x = input_tensor
    for name in "Conv1", "block5c_add", "Conv_1":
        x = K.layers.Conv2D(8, 3, strides=2, name=name)(x)
        x = K.layers.BatchNormalization(name=f"{name}_BN")(x)
    x = K.layers.Dropout(0.2, noise_shape=(None, 1, 1, 1), name="drop")(x)
    return K.Model(K.utils.get_source_inputs(input_tensor), x)


@st.composite
def damaged(draw, original):
    """Draw bytes that differ from these: flipped, cut short or swapped."""
    position = st.integers(0, len(original) - 1)
    harm = draw(st.sampled_from(["flip", "truncate", "swap", "replace"]))
    data = bytearray(original)
    if harm == "flip":
        for place in draw(st.lists(position, min_size=1, max_size=3)):
            data[place] ^= 1 << draw(st.integers(0, 7))
    elif harm == "truncate":
        del data[draw(position):]
    elif harm == "swap":  # two stretches, such as a header and what follows
        first, second = sorted([draw(position), draw(position)])
        data = data[second:] + data[first:second] + data[:first]
    else:
        place = draw(position)
        data[place:place + 8] = draw(st.binary(max_size=16))
    assume(data != original)
    return bytes(data)


class Stop(Exception):
    """Raised where a kill would strike."""


def stop_after(epochs, checkpoint):
    """Make a training stop when so many epochs are done, as a kill would."""
    begin = checkpoint.on_epoch_begin

    def stop_or_begin(epoch, logs=None):
        """Stop before this epoch, or begin it."""
        if epoch == epochs:
            raise Stop
        begin(epoch, logs)

    checkpoint.on_epoch_begin = stop_or_begin
    return checkpoint
