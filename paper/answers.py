#!/usr/bin/env python3
"""What cifar10.h5 says of CIFAR-10's test images, for the paper's pictures.

    paper/answers.py

Writes results/cifar10/answers.json: accuracy, confusion matrix, and some
images with their answers. It takes about a minute.
"""
import argparse
import base64
import os
import sys

import numpy as np
from sklearn.metrics import confusion_matrix
from tensorflow import keras as K

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
import runs  # noqa: E402

transfer = __import__("0-transfer")

CLASSES = ("airplane automobile bird cat deer dog frog horse ship "
           "truck").split()
WRONG = 10   # of the surest wrong answers are shown
PAIRS = 3    # of a class and what it is most often taken for
EACH = 6     # images of a pair


def collect(X, truth, P):
    """What the pictures show.

    X: uint8 (m, 32, 32, 3); truth: (m,); P: probabilities (m, 10)
    Returns: a dict for JSON
    """
    answer, sure = P.argmax(axis=1), P.max(axis=1)
    confusion = confusion_matrix(truth, answer, labels=range(10))

    def some(chosen):
        """Images with their answers; pixels as text."""
        return [{"truth": int(truth[i]), "answer": int(answer[i]),
                 "probability": float(sure[i]),
                 "pixels": base64.b64encode(X[i].tobytes()).decode()}
                for i in chosen]

    surest = np.argsort(-sure, kind="stable")
    wrong = surest[truth[surest] != answer[surest]]
    mixed = confusion * (1 - np.eye(10, dtype=int))
    pairs = np.argsort(-mixed, axis=None, kind="stable")[:PAIRS]
    return {
        "accuracy": float(np.mean(truth == answer)), "classes": CLASSES,
        "confusion": confusion.tolist(),
        "right": some([np.flatnonzero((truth == i) & (answer == i))[0]
                       for i in range(10)]),
        "wrong": some(wrong[:WRONG]),
        "pairs": [some([i for i in wrong if (truth[i], answer[i]) == pair]
                       [:EACH]) for pair in zip(*divmod(pairs, 10))]}


def run(args):
    """Ask the saved network, and write."""
    _, (X, labels) = transfer.cifar10()
    model = K.models.load_model(os.path.join(ROOT, "cifar10.h5"))
    X_p, _ = transfer.preprocess_data(X, labels)
    P = model.predict(X_p, batch_size=128, verbose=transfer.bar_or_lines())
    found = collect(X, labels[:, 0], P)
    runs.write(args.out, found)
    print(f"{args.out}: accuracy {found['accuracy']:.4f}")


def main():
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", metavar="FILE", default=os.path.join(
        ROOT, "results", "cifar10", "answers.json"))
    transfer.explain(run, parser.parse_args(), "mend this")


if __name__ == "__main__":
    main()
