#!/usr/bin/env python3
"""The folder that a run writes into: claimed, gone on with, or refused.

A run's run.json says which script with which arguments made it, and whether
it is finished. The scripts on folders of pictures borrow it;
cifar100_transfer.py and report.py borrow what reads and writes files.
"""
import contextlib
import glob
import json
import os
import shutil
import sys


def read_json(path):
    """What a JSON file says; None if there is none or it is broken."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="utf-8") as file:
            return json.load(file)


def write(path, data):
    """Write bytes, or as JSON what isn't bytes: whole or not at all.

    0-transfer.py has its own, since it gets by alone; report.py can't borrow
    that one, which brings TensorFlow.
    """
    if not isinstance(data, bytes):
        data = json.dumps(data, indent=1, ensure_ascii=False).encode()
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path} was not written: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def claim(folder):
    """Make sure that no other process writes into this folder.

    Raises OSError if one does. Does nothing on Windows, which has no flock.
    """
    with contextlib.suppress(ImportError):
        import fcntl
        try:  # held until this process ends, however it ends
            fcntl.flock(os.open(folder, os.O_RDONLY),
                        fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"Another process is at work in {folder}")


def start(folder, script, arguments, overwrite):
    """Begin a run in a folder, or go on with the same one, unfinished.

    arguments: a dict for JSON: what the same run must have in common
    overwrite: whether any other run that is in the folder is deleted
    Exits with status 2 if the folder holds something that stays.
    """
    path = os.path.join(folder, "run.json")
    wanted = json.loads(json.dumps(
        {"script": script, "arguments": arguments, "finished": False}))
    os.makedirs(folder, exist_ok=True)
    claim(folder)
    found = read_json(path)
    if found == wanted:
        print(f"Going on with the run in {folder}")
        return
    ours = isinstance(found, dict) and set(found) == set(wanted)
    if not ours and os.listdir(folder):
        refuse(f"{folder} holds something that isn't a run: choose another "
               "--out")  # whatever --overwrite says: it isn't ours
    made = set(os.listdir(folder)) - {"run.json", "pictures.part"}
    if made and not overwrite:
        refuse(f"{folder} has {describe(found, wanted)}: choose another "
               "--out, or --overwrite it")
    for name in os.listdir(folder):
        inside = os.path.join(folder, name)
        if os.path.isdir(inside) and not os.path.islink(inside):
            shutil.rmtree(inside)
        elif name != "run.json":  # the last: until then it is known as ours
            os.remove(inside)
    write(path, wanted)


def describe(found, wanted):
    """In what a run differs from the one that was asked for."""
    if found["script"] != wanted["script"]:
        return f"a run of {found['script']}"
    other = [f"{name} {found['arguments'].get(name)} instead of {value}"
             for name, value in wanted["arguments"].items()
             if found["arguments"].get(name) != value]
    return f"a run with {', '.join(other)}" if other else "a finished run"


def refuse(message):
    """Exit with the status of a command that can't be meant, 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def finish(folder):
    """Say in run.json that the run is finished.

    What a stopped training would go on from (*.npz) is deleted.
    """
    for kept in glob.glob(os.path.join(glob.escape(folder), "*.npz")):
        os.remove(kept)
    path = os.path.join(folder, "run.json")
    write(path, dict(read_json(path), finished=True))
