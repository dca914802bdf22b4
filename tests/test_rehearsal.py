#!/usr/bin/env python3
"""The rehearsal: digits 0 to 4 learned, 5 to 9 to be learned."""
import os
import sys

import numpy as np
import pytest

from helpers import ROOT, real_data, run

# In a process of its own: it makes all of TensorFlow deterministic.
CODE = """
import sys
sys.path[:0] = sys.argv[1], f"{sys.argv[1]}/tests"
import numpy as np
import rehearsal
if sys.argv[3] != "1":  # few layers, little time
    from helpers import small_application
    rehearsal.K.applications.EfficientNetV2B0 = small_application
rehearsal.K.utils.set_random_seed(0)  # as 0-transfer.py does
fresh = rehearsal.transfer.build_model(32).get_weights()
rehearsal.EPOCHS = 2
((X, Y), (X_test, Y_test)), model = rehearsal.digits_and_model(32)
cut = [layer.name for layer in model.layers].index(rehearsal.transfer.CUT)
np.savez(sys.argv[2], X=X, Y=Y, X_test=X_test, Y_test=Y_test,
         trainable=[layer.trainable for layer in model.layers], cut=cut,
         depthwise=["Depthwise" in type(layer).__name__
                    for layer in model.layers],
         moved=[not np.array_equal(a, b) for a, b in zip(
             fresh, model.get_weights())],
         weights=np.concatenate([w.ravel() for w in model.get_weights()]),
         head=model.get_weights()[-2])
"""


def rehearse(folder, name):
    """Load what digits_and_model returns, after two epochs on 0 to 4."""
    done = run([sys.executable, "-c", CODE, ROOT, name,
                os.environ.get("REAL_DATA", "0")], folder)
    assert done.returncode == 0, done.stderr
    with np.load(os.path.join(folder, name)) as file:
        return dict(file)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What it returns."""
    return rehearse(tmp_path_factory.mktemp("digits"), "once.npz")


def test_the_digits_5_to_9_are_left_to_learn(found):
    for X, Y in ((found["X"], found["Y"]), (found["X_test"],
                                            found["Y_test"])):
        assert X.dtype == np.uint8 and X.shape == (len(Y), 32, 32, 3)
        assert set(Y) == {5, 6, 7, 8, 9}
        assert X.min() == 0 and X.max() == 255
    assert len(found["Y_test"]) == 250
    known = {image.tobytes() for image in found["X"]}
    assert not any(image.tobytes() in known for image in found["X_test"])


def test_the_model_has_learned_and_its_head_is_new(found):
    # Biases start at zero, moving averages at zero and one: all have moved.
    assert found["moved"][:-2].mean() > 0.95
    assert not found["moved"][-1]  # the head's bias
    # A trained head would have larger weights than Keras draws at first.
    limit = np.sqrt(6 / sum(found["head"].shape))
    assert np.abs(found["head"]).max() <= limit
    above = slice(found["cut"] + 1, None)
    np.testing.assert_array_equal(
        found["trainable"][above], ~found["depthwise"][above])
    assert not found["trainable"][1:found["cut"]].any()


@real_data
def test_two_rehearsals_share_their_stored_outputs(found, tmp_path):
    np.testing.assert_array_equal(
        rehearse(tmp_path, "again.npz")["weights"], found["weights"])
