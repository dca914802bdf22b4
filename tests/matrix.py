#!/usr/bin/env python3
"""The first exercise on seven versions of TensorFlow: make matrix.

    tests/matrix.py [VERSION ...]

Each version has a virtual environment of its own in ~/.cache/transfer-matrix,
which is kept: 16 GB in all. On each: both editions of the exercise's checker
on cifar10.h5, the offline tests of the exercise, and the predictions on all
test images. The oldest and the newest version also train a little, and each
opens the other's file. Needs CIFAR-10 and ImageNet's weights, which Keras
downloads if need be. A stopped run continues after its last whole version.
Prints a table; of all versions, writes results/trust/versions.json, whole or
not at all. The exit status is 1 if anything failed.
"""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np

from helpers import ROOT, accuracy, run

sys.path.insert(0, ROOT)
report, runs, exercise_0 = map(
    __import__, ("report", "runs", "test_exercise_0"))

CACHE = exercise_0.transfer.cache_folder("transfer-matrix")
RESULT = os.path.join(ROOT, "results", "trust", "versions.json")
VERSIONS = {  # of TensorFlow: a Keras of about the same day, and more
    "2.15.1": ["keras==2.15.0", "numpy==1.25.2"],  # the course's own
    "2.16.2": ["keras==3.3.3"],
    "2.17.1": ["keras==3.4.1"],
    "2.18.1": ["keras==3.6.0"],
    "2.19.1": ["keras==3.9.2"],
    "2.20.0": ["keras==3.11.3"],
    "2.21.0": ["keras==3.15.1"],
}
OLDEST, NEWEST = "2.15.1", "2.21.0"
ALSO = ["Pillow", "scikit-learn", "pytest", "hypothesis"]
SAME = 1e-4             # float32 on other kernels: 5e-6 was seen
INFO = """\
import json, platform, numpy, tensorflow as tf
print(json.dumps({
    "python": platform.python_version(), "numpy": numpy.__version__,
    "tensorflow": tf.__version__,
    "keras": getattr(tf.keras, "__version__", "2.15")}))
"""
# The predictions of a model on all test images, as any user would get them
PREDICT = """\
import sys
import numpy as np
from tensorflow import keras as K
preprocess_data = __import__("0-transfer").preprocess_data
X, _ = preprocess_data(*K.datasets.cifar10.load_data()[1])
model = K.models.load_model(sys.argv[1])
np.save(sys.argv[2], model.predict(X, batch_size=128, verbose=0))
"""
TRAINING = "--limit", 1000, "--size", 64, "--epochs", 1, "--cache", "cache"


def base_python():
    """Find a Python that all of these versions run on."""
    for name in sys.executable, "python3.11", "python3.10":
        path = shutil.which(name)
        if path and run([path, "-c", "import sys; print(*sys.version_info[:2]"
                         ", sep='.')"], ROOT).stdout[:4] in ("3.10", "3.11"):
            return path
    sys.exit("TensorFlow 2.15 to 2.21 need Python 3.10 or 3.11: install one "
             "as python3.11")


def python(version):
    """Return the Python of a version, in an environment made once."""
    folder = os.path.join(CACHE, version)
    wanted = " ".join([f"tensorflow=={version}", *VERSIONS[version], *ALSO])
    ready = os.path.join(folder, "ready")  # written last
    path = os.path.join(folder, "bin", "python")
    if not os.path.exists(ready) or open(ready).read() != wanted:
        print(f"Installing {wanted}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([base_python(), "-m", "venv", folder], check=True)
        subprocess.run([path, "-m", "pip", "install", "--quiet",
                        *wanted.split()], check=True)
        with open(ready, "w") as file:
            file.write(wanted)
    return path


def results_folder():
    """Make the folder of results, whose name tells what was tried."""
    digest = hashlib.sha256()
    for name in ("0-transfer.py", "cifar10.h5", "tests/matrix.py",
                 "tests/helpers.py", "tests/test_exercise_0.py"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    folder = os.path.join(CACHE, f"results-{digest.hexdigest()[:16]}")
    os.makedirs(folder, exist_ok=True)
    return folder


def must(command, folder):
    """Run a command; return what it printed. Exits if it fails."""
    done = run(command, folder)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}"
                 f"{done.stderr}")
    return done.stdout


def check(version, checker, folder):
    """Run one of the checkers; return the accuracy that it shows, or None."""
    with open(os.path.join(folder, "0-main.py"), "w") as file:
        file.write(checker)
    done = run([python(version), "0-main.py"], folder)
    if done.returncode:
        print(f"TensorFlow {version}: the checker failed:\n{done.stderr}")
        return None
    return accuracy(done.stdout)


def offline_tests(version):
    """Run the offline tests; return how many passed, failed, ..., and which.
    """
    env = {name: value for name, value in os.environ.items()
           if name not in ("REAL_DATA", "PYTEST_ADDOPTS")}
    done = run([python(version), "-m", "pytest", "-q", "-o", "addopts=", "-p",
                "no:cacheprovider", "tests/test_exercise_0.py"], ROOT, env)
    counts = {what: int(n) for n, what in re.findall(
        r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1])}
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.M)
    for line in failed:
        print(f"TensorFlow {version}: {line}")
    return {**counts, "names": failed}


def predict(version, model, path, folder):
    """Let a version write a model's predictions, float32 (10000, 10)."""
    must([python(version), "-c", PREDICT, model, f"{path}.part.npy"], folder)
    os.replace(f"{path}.part.npy", path)


def examine(version, results):
    """Try everything on one version, but not its training; return it."""
    path = os.path.join(results, f"{version}.json")
    if os.path.exists(path):
        return runs.read_json(path)
    print(f"TensorFlow {version}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in "0-transfer.py", "cifar10.h5":
            shutil.copy(os.path.join(ROOT, name), folder)
        found = json.loads(must([python(version), "-c", INFO], folder))
        for checker in "newer", "older":
            found[f"{checker}_checker"] = check(version, getattr(
                exercise_0, f"{checker.upper()}_CHECKER"), folder)
        predict(version, "cifar10.h5", os.path.join(
            results, f"{version}.npy"), folder)
        if version in (OLDEST, NEWEST):
            must([python(version), "0-transfer.py", *TRAINING], folder)
            trained = os.path.join(results, f"{version}-trained.h5")
            predict(version, "trial.h5", f"{trained}.{version}.npy", folder)
            shutil.move(os.path.join(folder, "trial.h5"), trained)
    found["tests"] = offline_tests(version)
    runs.write(path, found)
    return found


def opened(version, results):
    """Let a version open the other's training; return the difference."""
    other = {OLDEST: NEWEST, NEWEST: OLDEST}[version]
    trained = os.path.join(results, f"{other}-trained.h5")
    path = f"{trained}.{version}.npy"
    if not os.path.exists(path):
        predict(version, trained, path, ROOT)
    return largest_difference(path, f"{trained}.{other}.npy")


def largest_difference(path, other):
    """Compare two files of predictions."""
    return float(np.abs(np.load(path) - np.load(other)).max())


def compare(found, results):
    """Add what takes two versions: differences between predictions."""
    for version, row in found.items():
        row["largest_difference"] = max((largest_difference(*(
            os.path.join(results, f"{each}.npy")
            for each in (version, other))) for other in found), default=0)
        if version in (OLDEST, NEWEST) and {OLDEST, NEWEST} <= set(found):
            row["other_training_differs_by"] = opened(version, results)


def table(found):
    """Return the rows of the table, the header first."""
    def share(value):
        """An accuracy, for people."""
        return "failed" if value is None else f"{100 * value:.2f} %"

    rows = [["TensorFlow", "Keras", "Python", "numpy", "newer checker",
             "older checker", "offline tests passed",
             "predictions differ by at most", "opens the training of"]]
    for version, row in found.items():
        tests, other = row["tests"], {OLDEST: NEWEST, NEWEST: OLDEST}.get(
            version)
        wrong = tests.get("failed", 0) + tests.get("error", 0)
        rows.append([
            row["tensorflow"], row["keras"], row["python"], row["numpy"],
            share(row["newer_checker"]), share(row["older_checker"]),
            f"{tests.get('passed', 0)} of {tests.get('passed', 0) + wrong}",
            f"{row['largest_difference']:.0e}",
            f"{other}, differs by {row['other_training_differs_by']:.0e}"
            if "other_training_differs_by" in row else ""])
    return rows


def held(row):
    """Tell whether everything held on a version."""
    return (None not in (row["newer_checker"], row["older_checker"])
            and not row["tests"]["names"] and row["tests"].get("passed")
            and max(row["largest_difference"],
                    row.get("other_training_differs_by", 0)) < SAME)


def main():
    """Try all versions, or those that the command line names."""
    versions = sys.argv[1:] or list(VERSIONS)
    if not set(versions) <= set(VERSIONS):
        sys.exit(f"Expected some of {', '.join(VERSIONS)}")
    results = results_folder()
    found = {version: examine(version, results) for version in versions}
    compare(found, results)
    rows = table(found)
    print(report.markdown(rows))
    if versions == list(VERSIONS):
        os.makedirs(os.path.dirname(RESULT), exist_ok=True)
        runs.write(RESULT, {"rows": rows, "machine": runs.machine(),
                            "versions": found})
    sys.exit(not all(map(held, found.values())))


if __name__ == "__main__":
    main()
