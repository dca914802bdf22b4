#!/usr/bin/env python3
"""Draw what runs have recorded: tables and pictures, without training.

    ./report.py results/cifar100

reads the records (*.json) in a folder and writes beside them table.md,
table.json and pictures: curves.png, a confusion-....png for each training,
and what else there is to see. The scripts do the same at their end.
"""
import argparse
import glob
import io
import itertools
import json
import os
import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import classification_report

import runs

WIDTH = 8.0   # inches: at 100 dots per inch, the width of a README
MISTAKES = 24  # of the worst, on a sheet
STYLES = {"fixed": "fixed features", "partial": "partially frozen"}
# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def read(folder):
    """The records of trainings in a folder, a base's styles together.

    Returns: a list of dicts, as the scripts write them
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
        if isinstance(record, dict) and {"title", "style"} & set(record):
            records.append(record)
    if not records:
        raise OSError(f"No record of a training in {folder}: expected "
                      "*.json files that cifar100_transfer.py, simple_cnn.py,"
                      " transfer_model.py or four_classes_transfer.py wrote")
    return sorted(records, key=place)


def place(record):
    """Where a record comes: the quicker base first, or the one without."""
    rate = record.get("frozen_pass", {}).get("predict_images_per_second", 0)
    return -rate, "base" in record, name(record), record.get("split", 0)


def name(record):
    """A training's name in tables and pictures."""
    return record.get("title") or (
        f"{record['base']}, {STYLES[record['style']]}")


def warning(records):
    """What every output of a run on few images says; else nothing."""
    limits = {record.get("limit") for record in records} - {None}
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


CIFAR100_ROWS = {
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


def accuracy(evaluation):
    """An accuracy and its 95 % interval, in words."""
    return "{:.1f} % ({:.1f} to {:.1f})".format(*(
        100 * x for x in [evaluation["accuracy"], *evaluation["interval"]]))


def against_simple(record):
    """How many pictures only one of two networks gets right, in words."""
    pair = record.get("against_simple")
    if not pair:
        return ""
    return "{only_this_right} to {only_other_right}, p = {p:.2g}".format(
        **pair)


def mean_and_deviation(records):
    """Of the accuracies of some splits, in words."""
    found = [100 * record["evaluation"]["accuracy"] for record in records]
    return f"{np.mean(found):.2f} %" + (
        f" ± {np.std(found, ddof=1):.2f}" if len(found) > 1 else "")


DESSERTS_ROWS = {
    "size, pixels": lambda r: f"{r['size']}",
    "holdout accuracy (95 % interval)": lambda r: accuracy(r["evaluation"]),
    "holdout loss": lambda r: f"{r['evaluation']['loss']:.3f}",
    "best validation accuracy": lambda r: f"{100 * r['val_accuracy']:.1f} %",
    "parameters": lambda r: f"{r['parameters']:,}",
    "epochs": lambda r: f"{len(r['history'])}",
    "training, minutes": lambda r: f"{training_seconds(r) / 60:.1f}",
    "pictures that only it gets right, to only the simple network; "
    "McNemar's test": against_simple,
}
FOUR_CLASSES_ROWS = {
    "size, pixels": lambda r: f"{r[0]['size']}",
    "pictures to train on, to validate, to test": lambda r: ", ".join(
        f"{count:,}" for count in r[0]["pictures"]),
    "splits": lambda r: f"{len(r)}",
    "test accuracy, mean ± standard deviation": mean_and_deviation,
    "test accuracy of the first split (95 % interval)": lambda r:
        accuracy(r[0]["evaluation"]),
    "frozen pass, once for all, seconds": lambda r:
        f"{r[0]['pass_seconds']:.0f}",
    "training, seconds a split": lambda r:
        f"{np.mean(list(map(training_seconds, r))):.1f}",
}


def table(records, cells=CIFAR100_ROWS):
    """A list of rows of words, the first with the names of the trainings.

    records: one for each column, or a list of them, whose first has the name
    """
    names = [name(r[0] if isinstance(r, list) else r) for r in records]
    rows = [[row] + [cell(record) for record in records]
            for row, cell in cells.items()]
    return [[""] + names] + [row for row in rows if any(row[1:])]


def markdown(rows):
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|"] + lines[1:])


def write_picture(figure, path, warned="", **texts):
    """Write a figure as a PNG, whole or not at all.

    warned: a warning above the figure; texts: what else the file says
    """
    if warned:
        figure.suptitle(warned, color="#D55E00", weight="bold")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100, metadata=texts)
    runs.write(path, picture.getvalue())


def show_history(panel, history, others):
    """Training's accuracy and that on others, epoch by epoch.

    history: a dict with accuracy, val_accuracy and perhaps a phase for each
        epoch; others: what these pictures are, in words
    """
    epochs = range(1, len(history) + 1)
    for key, words, colour, mark in (
            ("accuracy", "training, while it learns", COLOURS[1], "s"),
            ("val_accuracy", others, COLOURS[0], "o")):
        panel.plot(epochs, [100 * row[key] for row in history],
                   color=colour, marker=mark, markersize=4, label=words)
    phases = [row.get("phase") for row in history]
    for i in range(1, len(phases)):
        if phases[i] != phases[i - 1]:
            panel.axvline(i + 0.5, color="grey", linestyle=":")
    panel.set_xlabel("epoch")
    panel.set_xticks(epochs[::-(-len(epochs) // 10)])
    panel.set_ylabel("accuracy, %")
    panel.yaxis.set_tick_params(labelleft=True)
    panel.grid(alpha=0.3)


def draw_curves(records, path):
    """Accuracy of each training, epoch by epoch.

    The pictures that weren't learned from are "held out" of CIFAR-100, which
    has no validation pictures of its own.
    """
    columns = min(2, len(records))
    lines = -(-len(records) // columns)
    figure = Figure((WIDTH, 2.9 * lines + 0.3), layout="constrained")
    panels = figure.subplots(
        lines, columns, sharey=True, squeeze=False).ravel()
    for panel, record in zip(panels, records):
        show_history(panel, record["history"],
                     "held out" if "style" in record else "validation")
        panel.set_title(name(record), fontsize=11)
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


def show_confusion(figure, counts, classes):
    """Which class the pictures of each class are taken for, as a panel.

    counts: a row for each true class
    Returns: the panel
    """
    counts = np.array(counts)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panel = figure.subplots()
    image = panel.imshow(share, cmap="Blues", vmin=0, vmax=100)
    small = 8 if len(classes) > 10 else 10
    for (i, j), value in np.ndenumerate(share):
        if round(value):
            panel.text(j, i, f"{value:.0f}", ha="center", va="center",
                       fontsize=small - 1,
                       color="white" if value > 50 else "black")
    panel.set_xticks(range(len(classes)), classes, rotation=60, ha="right",
                     rotation_mode="anchor", fontsize=small)
    panel.set_yticks(range(len(classes)), classes, fontsize=small)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    figure.colorbar(image, shrink=0.6, label="% of the true class's pictures")
    return panel


def draw_confusion(counts, classes, title, path, warned="", right="right"):
    """Draw which class is taken for which.

    counts: a row for each true class
    right: what the answers on the diagonal are, in words
    """
    figure = Figure((WIDTH, 7.6), layout="constrained")
    share = 100 * np.trace(counts) / np.sum(counts)
    show_confusion(figure, counts, classes).set_title(
        f"{title}: {share:.1f} % {right}", fontsize=11)
    write_picture(figure, path, warned)


def draw_evaluation(record, folder, file):
    """What is taken for what, and the worst mistakes.

    file: the end of the pictures' names
    """
    draw_confusion(
        record["evaluation"]["confusion"], record["classes"], name(record),
        os.path.join(folder, f"confusion-{file}.png"))
    draw_mistakes(record, os.path.join(folder, "pictures"),
                  os.path.join(folder, f"mistakes-{file}.png"))


def draw_mistakes(record, folder, path):
    """The wrong answers that a model was surest of, each picture once.

    folder: the clean copy of the pictures; if it isn't there any more, the
        sheet stays as it is
    """
    wrong = {row[0]: row for row in sorted(
        record["evaluation"]["answers"], key=lambda row: row[4])
        if row[2] != row[3]}
    wrong = sorted(wrong.values(), key=lambda row: -row[4])[:MISTAKES]
    if not wrong or not os.path.isdir(folder):
        return
    lines = -(-len(wrong) // 6)
    figure = Figure((WIDTH, 1.75 * lines + 0.5), layout="constrained")
    figure.suptitle(f"{name(record)}: the wrong answers it was surest of",
                    fontsize=11)
    panels = figure.subplots(lines, 6, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, (copy, _, truth, answer, p) in zip(panels, wrong):
        with Image.open(os.path.join(folder, copy)) as picture:
            panel.imshow(np.asarray(picture))
        panel.set_title(f"{record['classes'][answer]} {100 * p:.0f} %\n"
                        f"true: {record['classes'][truth]}", fontsize=7)
    write_picture(figure, path, "")


def draw_accuracies(records, path):
    """The accuracy of each training, with its 95 % interval."""
    figure = Figure((WIDTH, 0.45 * len(records) + 1), layout="constrained")
    panel = figure.subplots()
    for i, record in enumerate(records):
        found = record["evaluation"]
        low, high = (100 * x for x in found["interval"])
        panel.plot([low, high], [i, i], color=COLOURS[0])
        panel.plot(100 * found["accuracy"], i, "o", color=COLOURS[0])
    panel.set_yticks(range(len(records)), map(name, records))
    panel.invert_yaxis()
    panel.set_xlabel("accuracy on the same holdout, %, and 95 % interval")
    panel.grid(alpha=0.3)
    write_picture(figure, path, "")


def slug(record):
    """A training's name in a file's name."""
    return name(record).replace(", ", "-").replace(" ", "-")


def report_cifar100(folder, records):
    """CIFAR-100's pictures; returns the table's rows, and answers."""
    draw_curves(records, os.path.join(folder, "curves.png"))
    draw_accuracy_against_time(
        records, os.path.join(folder, "accuracy-time.png"))
    for record in records:
        draw_confusion(
            record["confusion"], record["groups"], name(record),
            os.path.join(folder, f"confusion-{record['base']}-"
                         f"{record['style']}.png"), warning([record]),
            "in the right group")
    return table(records), answers(records)


def report_desserts(folder, records):
    """The desserts' pictures; returns the table's rows, and answers."""
    draw_curves(records, os.path.join(folder, "curves.png"))
    draw_accuracies(records, os.path.join(folder, "accuracies.png"))
    for record in records:
        draw_evaluation(record, folder, slug(record))
    simple = [record for record in records if "base" not in record]
    return table(records, DESSERTS_ROWS), [
        better(record, simple[0]) for record in records
        if "against_simple" in record]


def better(record, simple):
    """Whether a network is better than the simple one, in a line."""
    ours, theirs = record["evaluation"], simple["evaluation"]
    answer = "can't be told" if record["against_simple"]["p"] >= 0.05 else (
        "yes" if ours["accuracy"] > theirs["accuracy"] else "no")
    return (f"Is {name(record)} better than the simple network? "
            f"{answer.capitalize()}: {100 * ours['accuracy']:.1f} % to "
            f"{100 * theirs['accuracy']:.1f} % on the same "
            f"{len(ours['answers']):,} pictures (pictures that only one of "
            f"them gets right: {against_simple(record)})")


def together(splits):
    """The same training on several splits as one; its curves are a mean."""
    found = [record["evaluation"] for record in splits]
    return {
        **splits[0], "title": f"{name(splits[0])}, " + (
            "one split" if len(splits) == 1 else
            f"{len(splits)} splits together"),
        "history": [{key: np.mean([row[key] for row in rows])
                     for key in ("accuracy", "val_accuracy")}
                    for rows in zip(*(record["history"]
                                      for record in splits))],
        "evaluation": {
            "answers": [row for one in found for row in one["answers"]],
            "confusion": np.sum([one["confusion"] for one in found], 0)}}


def report_four_classes(folder, records):
    """Lab 8's pictures; returns the table's rows, and a report by class."""
    styles = [list(group) for _, group in itertools.groupby(records, name)]
    draw_curves(list(map(together, styles)),
                os.path.join(folder, "curves.png"))
    texts = []
    for splits in styles:
        all_of_it, file = together(splits), slug(splits[0])
        draw_evaluation(all_of_it, folder, file)
        truth, answer = np.array([
            row[2:4] for row in all_of_it["evaluation"]["answers"]]).T
        texts.append(f"{name(all_of_it)}:\n\n```\n" + classification_report(
            truth, answer, labels=range(len(all_of_it["classes"])),
            target_names=all_of_it["classes"], zero_division=0) + "```")
    return table(styles, FOUR_CLASSES_ROWS), texts


REPORTS = {"CIFAR-100": report_cifar100, "desserts": report_desserts,
           "four classes": report_four_classes}


def report(folder):
    """Write a folder's tables and pictures; return what there is to say."""
    records = read(folder)
    # A class may be called "$5": that is no formula.
    matplotlib.rcParams["text.parse_math"] = False
    rows, more = REPORTS[records[0].get("exercise", "CIFAR-100")](
        folder, records)
    text = "\n\n".join(filter(None, [
        warning(records), markdown(rows), *more,
        f"On {processors(records)}."]))
    runs.write(os.path.join(folder, "table.md"), (text + "\n").encode())
    runs.write(os.path.join(folder, "table.json"), {
        "warning": warning(records), "machines": processors(records),
        "rows": rows, "answers": more})
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
