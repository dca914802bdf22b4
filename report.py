#!/usr/bin/env python3
"""Draw what runs have recorded: tables and pictures, without training.

    ./report.py results/cifar100

reads the records (*.json) in a folder and writes beside them table.md,
table.json, curves.png, accuracy-time.png and a confusion-....png for each
training. cifar100_transfer.py does the same at its end.
"""
import argparse
import glob
import io
import json
import os
import sys

import numpy as np
from matplotlib.figure import Figure

WIDTH = 8.0   # inches: at 100 dots per inch, the width of a README
STYLES = {"fixed": "fixed features", "partial": "partially frozen"}
# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def read(folder):
    """The records of trainings in a folder, a base's styles together.

    Returns: a list of dicts, as cifar100_transfer.py writes them
    Raises OSError if there are none or one can't be read.
    """
    records = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder),
                                              "*.json"))):
        try:
            with open(path, encoding="utf-8") as file:
                record = json.load(file)
        except ValueError as error:
            raise OSError(f"{path} can't be read: {error}") from error
        if isinstance(record, dict) and "style" in record:
            records.append(record)
    if not records:
        raise OSError(f"No record of a training in {folder}: expected "
                      "*.json files that cifar100_transfer.py wrote")
    # The quicker base first, whatever its name.
    return sorted(records, key=lambda record: (
        -record["frozen_pass"]["predict_images_per_second"],
        record["base"], record["style"]))


def name(record):
    """A training's name in tables and pictures."""
    return f"{record['base']}, {STYLES[record['style']]}"


def warning(records):
    """What every output of a run on few images says; else nothing."""
    limits = {record["limit"] for record in records} - {None}
    return (f"NOT A RESULT: limited to {max(limits):,} images"
            if limits else "")


def processors(records):
    """The machines of these records, in words."""
    return "; ".join(sorted({
        f"{here['processor']}, {here['cores']} cores, "
        f"{here.get('memory_bytes', 0) / 2 ** 30:.0f} GiB"
        for here in (record["machine"] for record in records)}))


def training_seconds(record):
    """How long the epochs of a training took, without those not chosen."""
    return sum(epoch["seconds"] for epoch in record["history"])


def seconds_before(record):
    """What came before a training: the frozen pass and other classifiers.

    Before the chosen classifier, those that were not chosen; before the
    partially frozen base, the one that it starts with.
    """
    return record["frozen_pass"]["seconds"] + record["seconds_before"]


def passes(record):
    """All that a training needed, in passes of predict over 50,000 images."""
    once, epochs = record["frozen_pass"], record["history"]
    return (once["seconds"] * once["predict_images_per_second"]
            + record["seconds_before"]
            * epochs[0]["predict_images_per_second"]
            + sum(epoch["seconds"] * epoch["predict_images_per_second"]
                  for epoch in epochs)) / 50000


def minutes(record):
    """All that a training needed, in minutes."""
    return (seconds_before(record) + training_seconds(record)) / 60


def answers(records):
    """Which, and at what cost? A line for each base, and one for all."""
    lines = []
    for base in dict.fromkeys(record["base"] for record in records):
        styles = {record["style"]: record for record in records
                  if record["base"] == base}
        if len(styles) == 2:
            fixed, partial = styles["fixed"], styles["partial"]
            lines.append(
                f"Training {base}'s upper half as well takes the test "
                f"accuracy from {100 * fixed['test_top1']:.1f} % to "
                f"{100 * partial['test_top1']:.1f} %, in "
                f"{minutes(partial):.0f} minutes instead of "
                f"{minutes(fixed):.0f}: "
                f"{passes(partial) / passes(fixed):.1f} times the cost.")
    best = max(records, key=lambda record: record["test_top1"])
    cheapest = min(records, key=minutes)
    if best is not cheapest:
        lines.append(
            f"The most accurate, {name(best)}, costs "
            f"{minutes(best) / minutes(cheapest):.1f} times as many minutes "
            f"as the cheapest, {name(cheapest)}, for "
            f"{100 * (best['test_top1'] - cheapest['test_top1']):.1f} points "
            "more.")
    return lines


def rates(record):
    """The rates of predict in the processes that trained, lowest first."""
    found = sorted({round(epoch["predict_images_per_second"])
                    for epoch in record["history"]})
    return " to ".join(map(str, found[::max(1, len(found) - 1)]))


ROWS = {
    "size, pixels": lambda r: f"{r['size']}",
    "test accuracy, top-1": lambda r: f"{100 * r['test_top1']:.2f} %",
    "test accuracy, top-5": lambda r: f"{100 * r['test_top5']:.2f} %",
    "held-out accuracy": lambda r:
        f"{100 * r['history'][-1]['val_accuracy']:.2f} %",
    "trained parameters": lambda r: f"{r['trained_parameters']:,}",
    "other parameters: frozen, BatchNorm's averages": lambda r:
        f"{r['other_parameters']:,}",
    "frozen convolutions": lambda r:
        f"{r['frozen_convolutions']} of {r['convolutions']}",
    "frozen pass (both styles share it), minutes": lambda r:
        f"{r['frozen_pass']['seconds'] / 60:.1f}",
    "Keras's predict in its process, images/s": lambda r:
        f"{r['frozen_pass']['predict_images_per_second']:.0f}",
    "other classifiers before, minutes": lambda r:
        f"{r['seconds_before'] / 60:.1f}",
    "training, minutes": lambda r: f"{training_seconds(r) / 60:.1f}",
    "an epoch, seconds": lambda r:
        f"{training_seconds(r) / len(r['history']):.1f}",
    "epochs": lambda r: f"{len(r['history'])}",
    "Keras's predict in its processes, images/s": rates,
    "all of it, in passes of that predict over 50,000 images":
        lambda r: f"{passes(r):.1f}",
    "peak memory of the process so far, GiB": lambda r:
        f"{r['machine'].get('peak_memory_bytes', 0) / 2 ** 30:.2f}",
}


def table(records):
    """A list of rows of words, the first with the names of the trainings."""
    return [[""] + [name(record) for record in records]] + [
        [row] + [cell(record) for record in records]
        for row, cell in ROWS.items()]


def markdown(rows):
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|"] + lines[1:])


def write_picture(figure, path, warned):
    """Write a figure as a PNG, whole or not at all, with its warning."""
    if warned:
        figure.suptitle(warned, color="#D55E00", weight="bold")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write(path, picture.getvalue())


def write(path, data):
    """Write bytes under a temporary name, then rename.

    As 0-transfer.py does, which brings TensorFlow and gets by alone.
    """
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path} was not written: {error}") from error
    finally:
        if os.path.exists(part):
            os.remove(part)


def draw_curves(records, path):
    """Training and held-out accuracy of each training, epoch by epoch."""
    lines = -(-len(records) // 2)
    figure = Figure((WIDTH, 2.9 * lines + 0.3), layout="constrained")
    panels = figure.subplots(lines, 2, sharey=True, squeeze=False).ravel()
    for panel, record in zip(panels, records):
        history = record["history"]
        epochs = range(1, len(history) + 1)
        for key, words, colour, mark in (
                ("accuracy", "training (with dropout)", COLOURS[1], "s"),
                ("val_accuracy", "held out", COLOURS[0], "o")):
            panel.plot(epochs, [100 * row[key] for row in history],
                       color=colour, marker=mark, markersize=4, label=words)
        panel.set_title(name(record), fontsize=11)
        panel.set_xlabel("epoch")
        panel.set_xticks(epochs[::-(-len(epochs) // 10)])
        panel.set_ylabel("accuracy, %")
        panel.yaxis.set_tick_params(labelleft=True)
        panel.grid(alpha=0.3)
    panels[0].legend()
    for panel in panels[len(records):]:
        panel.remove()
    write_picture(figure, path, warning(records))


def draw_accuracy_against_time(records, path):
    """Held-out accuracy against minutes since a base's pass began."""
    figure = Figure((WIDTH, 4.5), layout="constrained")
    panel = figure.subplots()
    for record, colour, mark in zip(records, COLOURS, "osD^vP"):
        ends = seconds_before(record) + np.cumsum([
            row["seconds"] for row in record["history"]])
        panel.plot(ends / 60, [100 * row["val_accuracy"]
                               for row in record["history"]],
                   color=colour, marker=mark, markersize=5,
                   label=name(record))
        panel.axvline(record["frozen_pass"]["seconds"] / 60, color=colour,
                      linestyle=":", linewidth=1)
    panel.set_xlim(left=0)
    panel.set_xlabel("minutes for this base: frozen pass (to the dotted "
                     "line), classifiers, upper half")
    panel.set_ylabel("held-out accuracy, %")
    panel.set_title(processors(records), fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    write_picture(figure, path, warning(records))


def draw_confusion(record, path):
    """Which group of classes the test images of each group are put into."""
    counts = np.array(record["confusion"])
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    groups = record["groups"]
    figure = Figure((WIDTH, 7.6), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.5:
            panel.text(j, i, f"{value:.0f}", ha="center", va="center",
                       fontsize=7, color="white" if value > 50 else "black")
    panel.set_xticks(range(len(groups)), groups, rotation=60, ha="right",
                     rotation_mode="anchor", fontsize=8)
    panel.set_yticks(range(len(groups)), groups, fontsize=8)
    panel.set_xlabel("predicted group")
    panel.set_ylabel("true group")
    panel.set_title(f"{name(record)}: test images, "
                    f"{100 * np.trace(counts) / counts.sum():.1f} % in the "
                    "right group", fontsize=11)
    figure.colorbar(image, shrink=0.6, label="% of the true group's images")
    write_picture(figure, path, warning([record]))


def report(folder):
    """Write a folder's tables and pictures; return the table as Markdown."""
    records = read(folder)
    rows, lines = table(records), answers(records)
    text = "\n\n".join(filter(None, (
        warning(records), markdown(rows), *lines,
        f"On {processors(records)}.")))

    def inside(file):
        """A path in the folder."""
        return os.path.join(folder, file)

    write(inside("table.md"), (text + "\n").encode())
    write(inside("table.json"), json.dumps({
        "warning": warning(records), "machines": processors(records),
        "rows": rows, "answers": lines}, indent=1).encode())
    draw_curves(records, inside("curves.png"))
    draw_accuracy_against_time(records, inside("accuracy-time.png"))
    for record in records:
        draw_confusion(record, inside(
            f"confusion-{record['base']}-{record['style']}.png"))
    return text


def main():
    """Report on the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="where a run wrote its records")
    args = parser.parse_args()
    try:
        print(report(args.folder))
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
