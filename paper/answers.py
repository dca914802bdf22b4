#!/usr/bin/env python3
"""Record cifar10.h5's predictions on CIFAR-10's test images, for the paper.

    paper/answers.py

It writes results/cifar10/answers.json: the accuracy, the confusion matrix, and
some images with their predictions. It takes about a minute.
"""
import argparse
import base64
import os
import sys

import numpy as np
from sklearn.metrics import confusion_matrix

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
import runs  # noqa: E402

transfer = __import__("0-transfer")
K = transfer.K

CLASSES = ("airplane automobile bird cat deer dog frog horse ship "
           "truck").split()
WRONG = 10   # of the most confident wrong predictions are shown
PAIRS = 3    # of classes that are confused most often
EACH = 6     # images of such a pair


def collect(X, truth, P):
    """Choose the images that the paper shows.

    X: uint8 (m, 32, 32, 3); truth: (m,); P: probabilities (m, 10)
    Returns: a dict for JSON
    """
    predicted, confidence = P.argmax(axis=1), P.max(axis=1)
    confusion = confusion_matrix(truth, predicted, labels=range(10))

    def some(chosen):
        """Images with their predictions; pixels as text."""
        return [{"truth": int(truth[i]), "answer": int(predicted[i]),
                 "probability": float(confidence[i]),
                 "pixels": base64.b64encode(X[i].tobytes()).decode()}
                for i in chosen]

    order = np.argsort(-confidence, kind="stable")
    wrong = order[truth[order] != predicted[order]]
    mistakes = confusion * (1 - np.eye(10, dtype=int))
    pairs = np.argsort(-mistakes, axis=None, kind="stable")[:PAIRS]
    return {
        "accuracy": float(np.mean(truth == predicted)), "classes": CLASSES,
        "confusion": confusion.tolist(),
        "right": some([np.flatnonzero((truth == i) & (predicted == i))[0]
                       for i in range(10)]),
        "wrong": some(wrong[:WRONG]),
        "pairs": [some([i for i in wrong if (truth[i], predicted[i]) == pair]
                       [:EACH]) for pair in zip(*divmod(pairs, 10))]}


def run(args):
    """Let the saved model predict, and write."""
    _, (X, labels) = transfer.cifar10()
    model = K.models.load_model(os.path.join(ROOT, "cifar10.h5"))
    X_p, _ = transfer.preprocess_data(X, labels)
    P = model.predict(X_p, batch_size=128, verbose=transfer.bar_or_lines())
    record = collect(X, labels[:, 0], P)
    runs.write(args.out, record)
    print(f"{args.out}: accuracy {record['accuracy']:.4f}")


def main():
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", metavar="FILE", default=os.path.join(
        ROOT, "results", "cifar10", "answers.json"))
    args = parser.parse_args()
    try:
        runs.check_file("--out", args.out)
    except ValueError as error:
        parser.error(str(error))
    transfer.exit_with_message(run, args, "Fix this")


if __name__ == "__main__":
    main()
