#!/usr/bin/env python3
"""What benchmarks/frozen_once.py compares, and that it runs."""
import json

import numpy as np
import pytest

import frozen_once
from helpers import real_data, script

transfer = frozen_once.transfer
LABELS = np.eye(10, dtype="float32")[np.arange(256) % 10]


@pytest.fixture(scope="module")
def trained():
    """Train what is above the base, then what is above the cut.

    Returns: {way: (layers, {layer: whether its weights have changed})}
    """
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3))
    changed = {}
    for way in ("fit, base frozen, from images",
                "fit, upper half trained, from images"):
        model = transfer.build_model(32, 0.35)
        before = {layer.name: layer.get_weights() for layer in model.layers}
        assert frozen_once.WAYS[way](
            model, images.astype("uint8"), LABELS) > 0
        changed[way] = [layer.name for layer in model.layers], {
            layer.name: [not np.array_equal(old, new) for old, new in zip(
                before[layer.name], layer.get_weights())]
            for layer in model.layers if layer.weights}
    return changed


@pytest.mark.parametrize("way, last", [
    ("fit, base frozen, from images", "average"),
    ("fit, upper half trained, from images", transfer.CUT)])
def test_fit_changes_what_is_above_a_layer_and_nothing_below(
        trained, way, last):
    names, changed = trained[way]
    for name, weights in changed.items():
        above = names.index(name) > names.index(last)
        assert all(weights) if above else not any(weights), name


def test_throughput_counts_from_the_end_of_the_first_batch():
    clock = frozen_once.Clock()
    clock.times = [5.0, 6.0, 7.0]  # the first took 5 seconds to begin
    assert clock.throughput(128) == 128


@real_data
def test_the_benchmark_runs(tmp_path):
    out = tmp_path / "out.json"
    done = script("benchmarks/frozen_once.py", tmp_path, "--images", 256,
                  "--size", 96, "--json", out)
    assert done.returncode == 0, done.stderr
    ways = json.loads(out.read_text())["ways"]
    assert list(ways) == list(frozen_once.WAYS) and len(ways) == 6
    assert all(way["images_per_second"] > 0 for way in ways.values())
