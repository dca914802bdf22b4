#!/usr/bin/env python3
"""What the scripts promise, tried the hard way: make torture.

    tests/torture.py [ITEM ...]

The items are the functions in ITEMS. Together they take three to four hours on
two cores. They need Linux, CIFAR-10, CIFAR-100 and ImageNet's weights, which
Keras downloads if need be, and zips of images in the environment variables
DESSERTS (train, validation, holdout) and FOUR_CLASSES. Each item that ends is
written into results/trust/torture.json, and tried again only after a script
has changed. The exit status is 1 if anything failed.
"""
import concurrent.futures
import contextlib
import ctypes
import functools
import glob
import hashlib
import io
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile

import h5py
import numpy as np
from PIL import Image

import helpers
from helpers import ROOT

sys.path.insert(0, ROOT)
report, runs = __import__("report"), __import__("runs")

RESULT = os.path.join(ROOT, "results", "trust", "torture.json")
DATA = {"DESSERTS": 60, "FOUR_CLASSES": 8}  # one image in so many is taken
SCRIPTS = {  # with arguments that make an undisturbed run take half a minute
    "0-transfer.py": "--limit 400 --validation 100 --size 32 --epochs 2 "
                     "--cache cache",
    # Two bases: each in a process of its own
    "cifar100_transfer.py": "--limit 200 --bases MobileNetV2 EfficientNetV2B0 "
                            "--cache cache --out out",
    "simple_cnn.py": "{}/DESSERTS.zip --size 48 --epochs 4 --out out",
    "transfer_model.py": "{}/DESSERTS.zip --base MobileNetV2 --size 48 "
                         "--warm-up 1 --fine 2 --out out",
    "four_classes_transfer.py": "{}/FOUR_CLASSES.zip --base MobileNetV2 "
                                "--size 48 --out out"}
KILLS = 20              # of each script
# Shares of an undisturbed run's time after its imports
INTERRUPTS = 0.1, 0.25, 0.4, 0.55, 0.7  # later, it may be done before
# In this order, each until the script stops: the size of a file, or of the
# disk, in bytes
LIMITS = (("file", 10e3), ("disk", 1e6), ("file", 2e6), ("disk", 20e6),
          ("file", 20e6), ("disk", 60e6))
CASES = 1000            # of each fuzz test
FUZZ_FILES = ["test_exercise_0.py", "test_pictures.py", "test_runs.py",
              "test_report.py"]
FUZZ_TESTS = "fuzz or property or damaged and (never or neither or refused)"
GIB = 2 ** 30
IMPORT = 0.1            # seconds
SECONDS = helpers.SECONDS


# What the items share

@functools.lru_cache(None)
def scripts_hash(*more):
    """Hash all scripts, and more files: what is tried."""
    digest = hashlib.sha256()
    for path in (*sorted(glob.glob(os.path.join(ROOT, "*.py"))), *more):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


@functools.lru_cache(None)
def cache():
    """Return the cache folder, whose name tells which scripts are tried."""
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
        "transfer-torture", scripts_hash(__file__))


def work(*names):
    """Return a path in the cache folder."""
    return os.path.join(cache(), *names)


def fresh(*names):
    """Make an empty folder in the cache; return its path."""
    path = work(*names)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def environment(**more):
    """Return this environment, in which TensorFlow says what it wants to."""
    return {**{name: value for name, value in os.environ.items()
               if name != "TF_CPP_MIN_LOG_LEVEL"}, **more}


def run(name, folder, *more, seconds=SECONDS, how=signal.SIGKILL, limit=None):
    """Run a script in a folder, and stop it and its children after a time.

    more: arguments
    limit: a function that the process calls before it becomes the script
    Returns: its exit status, None if it went on for a minute; its output
    """
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, name),
         *SCRIPTS[name].format(work()).split(), *more], cwd=folder,
        env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=limit)
    status = process.returncode
    try:
        text, _ = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, how)
        try:
            text, _ = process.communicate(timeout=60)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
    return status, text.decode(errors="replace")  # with every "\r"


def both(function, *arguments):
    """Call a function with each argument, two at once; return the results."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, *arguments))


def models(folder):
    """Read all saved models: {path in the folder: {name: array}}."""
    found = {}
    for path in sorted(glob.glob(f"{folder}/**/*.h5", recursive=True)
                       + glob.glob(f"{folder}/**/*.keras", recursive=True)):
        content = path
        if path.endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read("model.weights.h5"))
        arrays = found.setdefault(os.path.relpath(path, folder), {})
        with h5py.File(content, "r") as file:
            file.visititems(lambda name, item: arrays.update(
                {name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same(ours, theirs):
    """Tell whether saved models have the same weights, to the bit."""
    return bool(ours) and ours.keys() == theirs.keys() and all(
        ours[path].keys() == theirs[path].keys() and all(
            np.array_equal(array, theirs[path][name])
            for name, array in ours[path].items()) for path in ours)


def undisturbed(name):
    """Run a script once; return its models, its seconds and its output."""
    folder = work("undisturbed", name)
    info = f"{folder}.json"
    if not os.path.exists(info):
        start = time.perf_counter()
        status, text = run(name, fresh("undisturbed", name))
        if status:
            sys.exit(f"{name} fails when nothing disturbs it:\n{text}")
        runs.write(info, {"seconds": time.perf_counter() - start,
                          "text": text})
    info = runs.read_json(info)
    return models(folder), info["seconds"], info["text"]


def is_done(name, folder, text):
    """Tell whether a script has made and printed all that it should."""
    expected, _, undisturbed_text = undisturbed(name)
    return (same(models(folder), expected)
            and len(tree(folder)) == len(tree(work("undisturbed", name)))
            and text.count("\n") == undisturbed_text.count("\n"))


def row(what, tries, note=""):
    """Make a row of the table, and print what failed.

    tries: {what was tried: None, or how it failed}
    note: for those who read the table
    """
    failed = {name: why.replace(work(""), "")  # nobody's folders are recorded
              for name, why in tries.items() if why is not None}
    for name, why in failed.items():
        print(f"FAILED {what}, {name}: {why}", flush=True)
    return {"what": what, "tried": len(tries),
            "held": len(tries) - len(failed), "note": note, "failed": failed}


def failed_scripts(item):
    """Return the scripts that an item has to try.

    These are all, unless the same ones were tried: then those that failed.
    """
    last = last_results().get(item, {"scripts": ""})
    if last["scripts"] != scripts_hash():
        return list(SCRIPTS)
    failed = [name for line in last["rows"] for name in line["failed"]]
    return [script for script in SCRIPTS
            if any(name.startswith(script) for name in failed)]


def last_results():
    """Read what was written last: {item: what RESULT says of it}."""
    return (runs.read_json(RESULT) or {"items": {}})["items"]


def refusal(status, text, *words):
    """Return None if a script refused with a message, else what it did.

    words: one of them is in the message
    """
    message = "\n".join(text.splitlines()[-2:])
    good = (status not in (0, None) and status > 0
            and "Traceback" not in text
            and any(word in message for word in words))
    return None if good else f"exit status {status}: {text[-2000:]}"


def tree(folder):
    """List everything in a folder."""
    return sorted(glob.glob(f"{folder}/**", recursive=True))


# The items: each returns rows

def repeated():
    """Run each script again, and with another seed."""
    first = dict(zip(SCRIPTS, map(undisturbed, SCRIPTS)))

    def again(name, seed):
        """Run it in another folder; return its models."""
        folder = fresh("repeated", f"{name}-{seed}")
        status, text = run(name, folder, "--seed", seed)
        if status:
            sys.exit(f"{name} --seed {seed} fails:\n{text}")
        return models(folder)

    zeros, ones = (both(again, SCRIPTS, [seed] * len(SCRIPTS))
                   for seed in "01")
    unwanted = re.compile(  # control characters; lines of TensorFlow's log
        r"[^\n\x20-\x7e\xa0-\U0010ffff]|^.*(?:cuda|oneDNN).*$"
        r"|^[IWEF]\d{4} .*$|^WARNING.*$", re.I | re.M)
    seconds = [each for _, each, _ in first.values()]
    return [
        row("two runs with one seed: the same weights to the bit", {
            name: None if same(zero, first[name][0]) else "they differ"
            for name, zero in zip(SCRIPTS, zeros)},
            f"{min(seconds):.0f} to {max(seconds):.0f} s each"),
        row("another seed: other weights", {
            name: "the same" if same(one, first[name][0])
            else None for name, one in zip(SCRIPTS, ones)}),
        row("output to a pipe: no control characters, no lines of "
            "TensorFlow's", {name: "; ".join(map(repr, unwanted.findall(text)))
                             or None for name, (_, _, text) in first.items()})]


def killed():
    """Kill each script at random moments, and start it again each time."""
    def kill(name):
        """Return {kill: None or what went wrong}."""
        expected, seconds, _ = undisturbed(name)
        moments = random.Random(name)
        folder, tries, kills = fresh("killed", name), {}, []
        while True:
            more = len(tries) + len(kills) < KILLS
            status, text = run(name, folder, seconds=moments.uniform(
                0, seconds) if more else SECONDS)
            if more and status == -signal.SIGKILL:
                kills.append(f"{name}, kill {len(tries) + len(kills) + 1}")
                continue
            # The last kill may have come after the last step.
            failed = status and "contains a finished run" not in text
            wrong = (f"exit status {status}: {text[-2000:]}" if failed else
                     None if same(models(folder), expected) else
                     "ends with other weights")
            tries.update(dict.fromkeys(
                kills or [name] * bool(wrong), wrong))
            kills = []
            if wrong or not more:
                return tries
            folder = fresh("killed", name)

    names = failed_scripts("killed")
    tries = {f"{name}, kill {i + 1}": None  # those that held last time
             for name in SCRIPTS if name not in names for i in range(KILLS)}
    for some in both(kill, names):
        tries.update(some)
    return [row("killed at a random moment and started again: ends with the "
                "undisturbed weights, to the bit", tries)]


def interrupted():
    """Press Ctrl-C."""
    def interrupt(name):
        """Do so at some moments; return {moment: None or what it did}."""
        _, seconds, _ = undisturbed(name)
        start = time.perf_counter()
        helpers.run([sys.executable, "-c", f"__import__({name[:-3]!r})"], ROOT)
        start = time.perf_counter() - start
        tries = {}
        for share in INTERRUPTS:
            moment = start + share * (seconds - start)
            folder = fresh("interrupted", name)
            status, text = run(name, folder, seconds=moment, how=signal.SIGINT)
            # A script that is done has no handler any more.
            if not (status in (0, -signal.SIGINT)
                    and is_done(name, folder, text)):
                tries[f"{name} after {moment:.0f} s"] = (
                    None if status == 130 and "Traceback" not in text
                    and "Rerun the same command" in text
                    else f"exit status {status}: {text[-2000:]}")
        return tries

    return [row("Ctrl-C: says how to go on, exit status 130", {
        name: why for tries in both(interrupt, SCRIPTS)
        for name, why in tries.items()})]


def at_once():
    """Run each script twice at once, with one cache or one --out."""
    cache, out = {}, {}
    for name in SCRIPTS:
        expected, _, _ = undisturbed(name)
        if "--cache" in SCRIPTS[name]:
            two = [fresh("at_once", name, each) for each in "ab"]
            shared = fresh("at_once", name, "shared")
            done = both(lambda folder: run(name, folder, "--cache", shared),
                        two)
            right = all(status == 0 and same(models(folder), expected)
                        for folder, (status, _) in zip(two, done))
            cache[name] = None if right else str(done)
        if "--out" in SCRIPTS[name]:
            folder = fresh("at_once", name)
            (first, _), (second, text) = sorted(both(
                lambda folder: run(name, folder), [folder] * 2),
                key=lambda pair: abs(pair[0] or 0))
            wrong = refusal(second, text, "Another process is using")
            out[name] = wrong if wrong or (first == 0 and same(
                models(folder), expected)) else "the other one's are wrong"
    return [row("two at once with one cache: both right", cache),
            row("two at once with one --out: one right, one refused", out)]


def half_written(folder):
    """Find files under their real names that can't be read."""
    readers = {
        ".json": lambda path: json.loads(pathlib.Path(path).read_text()),
        ".npz": lambda path: [dict(np.load(path))],
        ".npy": lambda path: np.load(path, mmap_mode="r"),
        ".keras": lambda path: [zipfile.ZipFile(path).read(name) for name in
                                zipfile.ZipFile(path).namelist()],
        ".png": lambda path: Image.open(path).load()}
    broken = []
    for path in tree(folder):
        reader = readers.get(os.path.splitext(path)[1])
        if reader and ".part" not in path:
            try:
                reader(path)
            except Exception as error:  # each has its own
                broken.append(f"{path}: {error}")
    return broken


def no_room():
    """Let files or the disk be too small, and then large enough."""
    tries, ends, older = {}, {}, b"an older model"
    for name in SCRIPTS:
        expected, _, _ = undisturbed(name)
        quiet("umount", "--lazy", work("no_room", name))  # if it was stopped
        folder = fresh("no_room", name)
        mounted = quiet("mount", "-t", "tmpfs", "-o", "size=2g", "none",
                        folder) == 0
        model = os.path.join(folder, "trial.h5")
        if name == "0-transfer.py":
            with open(model, "wb") as file:
                file.write(older)
        try:
            for kind, size in LIMITS:
                size, limit = int(size), None
                if kind == "file":
                    def limit(size=size):
                        """Let no file be larger."""
                        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
                elif not mounted or resize(folder, size):
                    continue  # not root, or more is there already
                status, text = run(name, folder, limit=limit)
                if kind == "disk":
                    resize(folder, 2 * GIB)
                if status == 0:
                    break
                wrong = refusal(status, text, "written", "space", "large",
                                "free", "room") or half_written(folder)
                if name == "0-transfer.py" and open(
                        model, "rb").read() != older:
                    wrong = "the older model has changed"
                tries[f"{name}, {kind} of {size:,} bytes"] = wrong or None
                print(f"{name}, {kind} of {size:,} bytes: {text[-400:]}")
            else:
                status, text = run(name, folder)
            ends[name] = (
                f"exit status {status}: {text[-2000:]}" if status else None
                if same(models(folder), expected) else "other weights")
        finally:
            if mounted:
                quiet("umount", "--lazy", folder)
    return [row("disk full, or a file too large: a message, an older file "
                "untouched, nothing half-written", tries),
            row("started again with room: ends with the undisturbed weights",
                ends)]


def quiet(*command):
    """Run a command; return its exit status, and hide what it says."""
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode


def resize(folder, size):
    """Resize a mounted tmpfs; return 0 if that's possible."""
    return quiet("mount", "-o", f"remount,size={size}", folder)


def read_only():
    """Let the folders that a script writes into be read-only."""
    def obey_modes():
        """Let even root obey them: drop two capabilities before exec."""
        for capability in 1, 2:  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP

    tries = {}
    for name, arguments in SCRIPTS.items():
        for inside in ".", "cache", "out":
            if inside not in [".", *arguments.split()]:
                continue
            top = fresh("read_only", name)
            folder = os.path.join(top, inside)
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, 0o555)
            before = tree(top)
            status, text = run(name, top, limit=obey_modes)
            tries[f"{name}, {inside}"] = refusal(
                status, text, "ermission", "read-only", "writ") or (
                    None if tree(top) == before else "it wrote something")
    return [row("read-only folders: a message, nothing written", tries)]


def watched(command, folder, limit):
    """Run Python; kill it once its resident memory exceeds a limit, bytes.

    Returns: its exit status, its peak of memory in bytes, its output
    """
    with open(os.path.join(folder, "output"), "w+", errors="replace") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment(
                PYTHONPATH=os.pathsep.join(
                    [ROOT, os.environ.get("PYTHONPATH", "")])),
            stdout=file, stderr=file)
        peak = 0
        while process.poll() is None:
            # Not ru_maxrss, which begins with the memory of this process
            with contextlib.suppress(OSError, TypeError):
                with open(f"/proc/{process.pid}/status") as info:
                    peak = max(peak, 1024 * int(re.search(
                        r"VmHWM:\s*(\d+)", info.read())[1]))
            if peak > limit:
                process.kill()
            time.sleep(0.05)
        file.seek(0)
        return process.returncode, peak, file.read()


def memory():
    """Run the first exercise as it is, on all of CIFAR-10."""
    status, peak, text = watched(
        [os.path.join(ROOT, "0-transfer.py"), "--cache", "cache"],
        fresh("memory"), 3 * GIB)
    good = status == 0 and peak < 3 * GIB and helpers.accuracy(text) > 0.955
    return [row("the first exercise as it is, within 3 GiB of memory", {
        "0-transfer.py": None if good else f"exit status {status}, peak "
        f"{peak / GIB:.2f} GiB: {text[-2000:]}"},
        f"peak {peak / GIB:.2f} GiB" + (
            f", test accuracy {100 * helpers.accuracy(text):.2f} %"
            if good else ""))]


COPY = """\
import json, sys
import pictures
try:
    source = pictures.find(sys.argv[1], splits=False)
    copy = pictures.clean_copy(source, "copy", 224)
except OSError as error:
    sys.exit(f"refused: {error}")
print()
print(json.dumps({"copied": len(copy.source), "left out": copy.left_out}))
"""


def noise(number):
    """Make a small image; return it as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(
        0, 256, (4, 4, 3)).astype("uint8")).save(file, "PNG")
    return file.getvalue()


def large_images(folder):
    """Write images of 50 and 500 megapixels; return their number."""
    for sides in (10000, 5000), (25000, 20000):
        image = Image.linear_gradient("L").resize(sides)
        for mode in "L", "RGB":
            path = f"{folder}/{mode}/{sides[0]}"
            image.convert(mode).save(f"{path}.png", compress_level=1)
            image.convert(mode).save(f"{path}.jpg")
    Image.new("RGBA", (10000, 5000)).save(f"{folder}/L/rgba.png")
    return 9


def links_and_devices(folder):
    """Write links to nowhere and to a device, a pipe, a device and images."""
    for name, target in (("dangling", "nowhere"), ("itself", "itself.png"),
                         ("zero", "/dev/zero")):
        os.symlink(target, f"{folder}/L/{name}.png")
    os.mkfifo(f"{folder}/RGB/pipe.png")
    with contextlib.suppress(PermissionError):  # root alone may
        os.mknod(f"{folder}/RGB/null.png", stat.S_IFCHR, os.makedev(1, 3))
    for number, mode in enumerate(("L", "RGB")):
        with open(f"{folder}/{mode}/good.png", "wb") as file:
            file.write(noise(number))
    return len(glob.glob(f"{folder}/*/*"))


def many_images(folder):
    """Write a zip of 100,000 images in the place of the folder."""
    return write_zip(folder, ((f"{'L' if i % 2 else 'RGB'}/{i}.png", noise(i))
                              for i in range(100000)))


def zeros(folder, more=b""):
    """Write a zip of 1,000:1: two images, and 3 GB of zeros."""
    return write_zip(folder, [
        ("L/good.png", noise(0)), ("RGB/good.png", noise(1)),
        ("L/zeros.bmp", None), ("L/noise.png", more)])


def zeros_and_noise(folder):
    """Write the same with 50 MB of noise, so less than 100:1 in all."""
    return zeros(folder, np.random.default_rng(0).bytes(50 * 10 ** 6))


def write_zip(folder, entries):
    """Write a zip in the place of a folder; return the number of entries."""
    shutil.rmtree(folder)
    with zipfile.ZipFile(folder, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            with archive.open(name, "w", force_zip64=True) as file:
                for part in ([bytes(2 ** 20)] * 3000 if content is None
                             else [content]):
                    file.write(part)
        return len(archive.namelist())


DATA_SETS = {
    "images of 50 and 500 megapixels": large_images,
    "links and devices": links_and_devices,
    "zip of 100,000 images": many_images,
    "zip of 1,000:1": zeros,
    "zip with an entry of 1,000:1": zeros_and_noise,
}


def images():
    """Make clean copies of images and archives that are hard to read."""
    tries, notes = {}, []
    for name, write in DATA_SETS.items():
        folder = fresh("images")
        for mode in "L", "RGB":
            os.makedirs(f"{folder}/data/{mode}")
        count = write(f"{folder}/data")
        status, peak, text = watched(["-c", COPY, "data"], folder, 2 * GIB)
        tries[name] = refusal(status, text, "refused: ")
        if status == 0:  # all are read, or left out by name
            found = json.loads(text.splitlines()[-1])
            tries[name] = (None if found["copied"] + len(found["left out"])
                           == count else f"{count} files: {text[-2000:]}")
        notes.append(f"{name}: {peak / GIB:.2f} GiB")
        print(f"{notes[-1]}: {text[-500:].splitlines()[-1]}", flush=True)
    return [row("large images, odd files, malicious zips: read, refused or "
                "left out by name, within 2 GiB of memory", tries,
                f"with TensorFlow's own; {', '.join(notes)}")]


def fuzz():
    """Run the tests that draw their cases at random, on many more cases."""
    done = helpers.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-o", "addopts=", "-p",
         "no:cacheprovider", "--show-capture=no", "-k", FUZZ_TESTS,
         *(os.path.join("tests", name) for name in FUZZ_FILES)],
        ROOT, dict(os.environ, FUZZ=str(CASES)))
    found = re.findall(r"^(PASSED|FAILED|ERROR) (.*)", done.stdout, re.M)
    return [row("damaged files and odd arrays: right, or refused", {
        name: None if result == "PASSED" else done.stdout[-5000:]
        for result, name in found}, f"{CASES:,} cases each")]


IMPORT_TIME = """\
import time
import h5py, numpy, tensorflow
from tensorflow import keras
keras.layers  # TensorFlow loads Keras when it is used
start = time.perf_counter()
__import__("0-transfer")
print(time.perf_counter() - start)
"""


def import_time():
    """Measure how long the import takes beyond TensorFlow's own."""
    seconds = min(float(helpers.run(
        [sys.executable, "-c", IMPORT_TIME], ROOT).stdout.split()[-1])
        for _ in range(5))
    return [row(
        f"import of 0-transfer.py within {IMPORT} s of TensorFlow's own",
        {"0-transfer.py": None if seconds < IMPORT else f"{seconds:.3f} s"},
        f"{seconds:.3f} s")]


ITEMS = {function.__name__: function for function in (
    repeated, killed, interrupted, at_once, no_room, read_only, images, fuzz,
    import_time, memory)}


def main():
    """Try all items, or those that the command line names; print a table."""
    chosen = sys.argv[1:] or list(ITEMS)
    if not set(chosen) <= set(ITEMS):
        sys.exit(f"Expected some of {', '.join(ITEMS)}")
    os.makedirs(work(), exist_ok=True)
    for name, step in DATA.items():
        if not os.path.isfile(os.environ.get(name, "")):
            sys.exit(f"{name} is {os.environ.get(name)!r}, expected the path "
                     "of a zip of images")
        helpers.thin_out(os.environ[name], work(f"{name}.zip"), step)
    found = last_results()
    for item in chosen:
        before = found.get(item, {"scripts": "", "rows": []})
        if before["scripts"] != scripts_hash() or any(
                line["failed"] for line in before["rows"]):
            print(f"{time.strftime('%H:%M')} {item}", flush=True)
            start = time.perf_counter()
            rows = ITEMS[item]()
            found[item] = {
                "scripts": scripts_hash(), "rows": rows,
                "seconds": time.perf_counter() - start,
                "machine": runs.machine()}
            os.makedirs(os.path.dirname(RESULT), exist_ok=True)
            runs.write(RESULT, {"rows": table(found), "items": found})
    print(report.markdown(table(found)))
    sys.exit(any(line["tried"] != line["held"] or not line["tried"]
                 for item in found.values() for line in item["rows"]))


def table(found):
    """Return the rows of the table, the header first.

    found: {item: what RESULT says of it}
    """
    return [["what", "tried", "held", "note"]] + [
        [line["what"], f"{line['tried']}", f"{line['held']}", line["note"]]
        for item in ITEMS if item in found for line in found[item]["rows"]]


if __name__ == "__main__":
    main()
