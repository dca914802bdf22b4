#!/usr/bin/env python3
"""The folder of a run: claimed, resumed or refused; JSON in and out.

Its run.json says which script made the run, with which arguments, and
whether the run is finished. `machine` describes what the run was made with.
"""
import contextlib
import glob
import json
import os
import platform
import shutil
import sys

import numpy as np


def read_json(path):
    """Return the content of a JSON file; None if missing or broken."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if os.path.isfile(path):  # a named pipe would wait for ever
            with open(path, encoding="utf-8") as file:
                return json.load(file)


def write(path, data):
    """Write bytes as they are, anything else as JSON: whole or not at all.

    0-transfer.py has its own way, because it must work alone. report.py
    can't use that one, because it would load TensorFlow.
    """
    if not isinstance(data, bytes):
        # A file name that isn't UTF-8 becomes JSON's own "\\udc.."
        data = json.dumps(data, indent=1, ensure_ascii=False).encode(
            errors="backslashreplace")
    # A name of its own: report.py may write into the folder of a run at work
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} was not written: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def check_folder(option, path):
    """Check that a path is a folder to write to, or that one can be made.

    option: whose value the path is
    Raises ValueError with one line if not. Makes nothing on disk.
    """
    usable, above = False, os.path.abspath(path)
    with contextlib.suppress(OSError, ValueError):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # fails otherwise if a name is too long
        while not os.path.lexists(above) and above != os.path.dirname(above):
            above = os.path.dirname(above)
        usable = os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)
    if not path or not usable:
        raise ValueError(f"{option} is {path!r}, expected a folder that can "
                         "be written to, or a path where one can be made")


def check_file(option, path):
    """Check that a path is a file that can be written, in a folder.

    option: whose value the path is
    Raises ValueError with one line if not. Makes nothing on disk.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # Writing replaces what is there, which must not be a folder or a device.
    usable = os.path.basename(path) and len(os.fsencode(name)) < 240 and (
        os.path.isfile(path) or not os.path.lexists(path))
    if not usable or not os.access(os.path.join(folder, ""), os.W_OK):
        raise ValueError(f"{option} is {path!r}, expected a file that can be "
                         "written" + ("" if os.path.isdir(folder) else
                                      ": there is no such folder"))


def claim(folder):
    """Keep other processes from writing into this folder.

    Raises OSError if another process has claimed it. Does nothing on
    Windows, which has no flock.
    """
    with contextlib.suppress(ImportError):
        import fcntl
        lock = os.open(folder, os.O_RDONLY)
        os.set_inheritable(lock, True)  # for subprocesses, see close_fds
        try:  # held until this process ends, however it ends
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"Another process is using {folder}")


def start(folder, script, arguments, overwrite, extend=False):
    """Start a run in a folder, or continue the same run if it is unfinished.

    arguments: a dict for JSON; the same run has the same arguments
    overwrite: whether to delete any other run in the folder
    extend: whether to continue the same run if it is finished, too
    Exits with status 2 if the folder contains something that must stay.
    """
    path = os.path.join(folder, "run.json")
    wanted = json.loads(json.dumps(
        {"script": script, "arguments": arguments, "finished": False}))
    os.makedirs(folder, exist_ok=True)
    claim(folder)
    existing = read_json(path)
    # What processes that were killed have left; only run.json's name is ours
    # for certain where that file isn't there yet.
    for unfinished in glob.glob(os.path.join(
            glob.escape(folder),
            ("run.json" if existing is None else "*") + ".[0-9]*.part")):
        os.remove(unfinished)
    if existing == wanted or (extend and not overwrite and existing == dict(
            wanted, finished=True)):
        write(path, wanted)
        print(f"Continuing the run in {folder}", flush=True)
        return
    ours = isinstance(existing, dict) and (
        {key: type(value) for key, value in existing.items()}
        == {key: type(value) for key, value in wanted.items()})
    if not ours and os.listdir(folder):  # even with --overwrite
        refuse(f"{folder} contains something that isn't a run: choose another "
               "--out")
    results = set(os.listdir(folder)) - {
        "run.json", "pictures", "pictures.part"}
    if results and not overwrite:
        refuse(f"{folder} contains {describe(existing, wanted)}: choose "
               "another --out, or --overwrite it")
    for name in os.listdir(folder):
        inside = os.path.join(folder, name)
        if os.path.isdir(inside) and not os.path.islink(inside):
            shutil.rmtree(inside)
        elif name != "run.json":  # stays, to mark the folder as ours
            os.remove(inside)
    write(path, wanted)


def describe(existing, wanted):
    """Say how an existing run differs from the wanted one."""
    if existing["script"] != wanted["script"]:
        return f"a run of {existing['script']}"
    differences = [
        f"{name} {existing['arguments'].get(name)} instead of {value}"
        for name, value in wanted["arguments"].items()
        if existing["arguments"].get(name) != value]
    return (f"a run with {', '.join(differences)}" if differences
            else "a finished run")


def refuse(message):
    """Exit as after a usage error, with status 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def finish(folder):
    """Mark the run as finished, and delete its checkpoints (*.npz)."""
    path = os.path.join(folder, "run.json")
    existing = read_json(path)
    if not isinstance(existing, dict):
        raise OSError(f"{path} is missing or damaged: it can't say that the "
                      "run is finished")
    for checkpoint in glob.glob(os.path.join(glob.escape(folder), "*.npz")):
        os.remove(checkpoint)
    write(path, dict(existing, finished=True))


def machine():
    """Describe this machine, the versions, and the peak memory so far."""
    import tensorflow  # report.py does without it
    info = {"processor": platform.processor(), "cores": os.cpu_count(),
            "system": platform.system(), "python": platform.python_version(),
            "tensorflow": tensorflow.__version__,
            "keras": getattr(tensorflow.keras, "__version__", "2.15"),
            "numpy": np.__version__}
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/cpuinfo") as file:  # only on Linux
            info["processor"] = next(line.split(":")[1].strip() for line
                                     in file if line.startswith("model name"))
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        info["peak_memory_bytes"] = peak * (
            1 if sys.platform == "darwin" else 1024)
        info["memory_bytes"] = (os.sysconf("SC_PHYS_PAGES")
                                * os.sysconf("SC_PAGE_SIZE"))
    return info
