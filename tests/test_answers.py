#!/usr/bin/env python3
"""The predictions of cifar10.h5 on the test images, for the paper's plots."""
import base64
import json
import os

import numpy as np
import pytest

import answers
from helpers import ROOT, real_data, script


def test_predictions_are_collected():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (400, 32, 32, 3)).astype("uint8")
    truth = np.arange(400) % 10
    P = rng.dirichlet(np.ones(10), 400) + np.eye(10)[truth] / 2
    P /= P.sum(axis=1, keepdims=True)
    collected = answers.collect(X, truth, P)
    predicted = [max(range(10), key=lambda k: p[k]) for p in P]
    pairs = list(zip(truth.tolist(), predicted))
    number = {X[i].tobytes(): i for i in range(400)}

    def numbers(images):
        """Return which images these are, from their pixels."""
        indices = [number[base64.b64decode(image["pixels"])]
                   for image in images]
        for i, image in zip(indices, images):
            assert (image["truth"], image["answer"]) == pairs[i]
            assert image["probability"] == pytest.approx(P[i].max())
        return indices

    assert collected["accuracy"] == sum(a == b for a, b in pairs) / 400
    assert collected["confusion"] == [
        [pairs.count((i, j)) for j in range(10)] for i in range(10)]
    assert numbers(collected["right"]) == [
        pairs.index((i, i)) for i in range(10)]
    wrong = sorted((i for i in range(400) if predicted[i] != truth[i]),
                   key=lambda i: -P[i].max())
    assert numbers(collected["wrong"]) == wrong[:10]
    most = sorted((pairs.count(pair) for pair in set(pairs)
                   if pair[0] != pair[1]), reverse=True)[:3]
    for images, count in zip(collected["pairs"], most):
        pair = pairs[numbers(images)[0]]
        assert pairs.count(pair) == count
        assert numbers(images) == [i for i in wrong if pairs[i] == pair][:6]


@real_data
def test_the_predictions_are_those_of_cifar10_h5(tmp_path):
    out = tmp_path / "answers.json"
    done = script("paper/answers.py", tmp_path, "--out", out)
    assert done.returncode == 0, done.stderr
    made = json.loads(out.read_text())
    with open(os.path.join(ROOT, "results/cifar10/answers.json")) as file:
        kept = json.load(file)
    np.testing.assert_allclose(made["accuracy"], kept["accuracy"], atol=2e-3)
    np.testing.assert_allclose(made["confusion"], kept["confusion"], atol=5)
    for image, before in zip(made["right"], kept["right"]):
        assert image["pixels"] == before["pixels"]
        assert image["probability"] == pytest.approx(
            before["probability"], abs=1e-2)
