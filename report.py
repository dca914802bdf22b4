#!/usr/bin/env python3
"""Make tables and plots from the records of runs, without training.

    ./report.py results/cifar100

reads the records (*.json) in a folder and writes table.md, table.json and
plots beside them: curves.png, a confusion-....png for each training, and
more by exercise. The scripts call this when their runs end.
"""
import argparse
import collections
import contextlib
import glob
import io
import itertools
import os
import re
import sys
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import classification_report

import runs

WIDTH = 8.0    # inches: at half their width, a README's column
DOTS = 200     # per inch
MISTAKES = 24  # how many of the worst a sheet shows
STYLES = {"fixed": "fixed features", "partial": "partially frozen"}
# Okabe and Ito's colours, which colour-blind people can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# What a damaged record, or one of another program, may raise anywhere
DAMAGED = ArithmeticError, AttributeError, LookupError, TypeError, ValueError


def is_record(content):
    """Say whether the content of a JSON file is a training's record."""
    try:
        *_, title, split = sort_key(content)
        return (isinstance(title, str) and isinstance(split, int)
                and isinstance(content["history"][-1], dict)
                and training_seconds(content) >= 0
                and processors([content]) != "")
    except DAMAGED:
        return False


def read(folder):
    """Read the records of the trainings in a folder, and sort them.

    Leaves out other JSON files, and names those that can't be read.
    Returns: a list of dicts, as the scripts write them
    Raises OSError if there are none.
    """
    contents = {path: runs.read_json(path) for path in sorted(
        glob.glob(os.path.join(glob.escape(folder), "*.json")))}
    unread = "".join(f"{printable(path)} can't be read: it is left out\n"
                     for path, content in contents.items() if content is None)
    records = list(filter(is_record, contents.values()))
    if not records:
        raise OSError(f"{unread}No record of a training in {folder}: expected "
                      "*.json files from cifar100_transfer.py, simple_cnn.py, "
                      "transfer_model.py or four_classes_transfer.py")
    print(unread, end="", file=sys.stderr)
    return sorted(records, key=sort_key)


def printable(text):
    """Return a text with its control characters escaped, except newlines."""
    return re.sub(r"[\0-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]",
                  lambda match: ascii(match[0])[1:-1], text)


def sort_key(record):
    """Put faster bases first, and a network without a base before all."""
    throughput = record.get("frozen_pass", {}).get(
        "predict_images_per_second", 0)
    return -throughput, "base" in record, name(record), record.get("split", 0)


def name(record):
    """Name a training, for tables and plots."""
    return record.get("title") or (
        f"{record['base']}, {STYLES[record['style']]}")


def warning(records):
    """Return what all output of a run on few images must say, or ""."""
    limits = {record.get("limit") for record in records} - {None}
    return (f"NOT A RESULT: limited to {max(limits):,} images"
            if limits else "")


def processors(records):
    """Name the machines of these records."""
    return "; ".join(sorted({
        f"{here['processor']}, {here['cores']} cores, "
        f"{here.get('memory_bytes', 0) / 2 ** 30:.0f} GiB"
        for here in (record["machine"] for record in records)}))


# CIFAR-100: which base and style, and at what cost?

def training_seconds(record):
    """Return the time of a training's epochs."""
    return sum(epoch["seconds"] for epoch in record["history"])


def seconds_before(record):
    """Return the time before the epochs: the frozen pass and classifiers.

    These are the classifiers that weren't chosen; or, for a partially frozen
    base, the classifier that it starts with.
    """
    return record["frozen_pass"]["seconds"] + record["seconds_before"]


def minutes(record):
    """Return the total time of a training, in minutes."""
    return (seconds_before(record) + training_seconds(record)) / 60


def passes(record):
    """Return the cost of a training, in predict passes over 50,000 images.

    Each part counts as the images that predict does in the same time, by the
    throughput that was measured in the same process.
    """
    frozen, epochs = record["frozen_pass"], record["history"]
    return (frozen["seconds"] * frozen["predict_images_per_second"]
            + record["seconds_before"]
            * epochs[0]["predict_images_per_second"]
            + sum(epoch["seconds"] * epoch["predict_images_per_second"]
                  for epoch in epochs)) / 50000


def throughputs(record):
    """Format the throughput of predict in the processes that trained."""
    values = {round(epoch["predict_images_per_second"])
              for epoch in record["history"]}
    return " to ".join(map(str, sorted({min(values), max(values)})))


def change(before, after):
    """Say how test accuracy changes, from one share to another."""
    if before == after:
        return f"doesn't change test accuracy, {100 * before:.1f} %"
    return (("raises" if after > before else "lowers")
            + f" test accuracy from {100 * before:.1f} % to "
            f"{100 * after:.1f} %")


def conclusions(records):
    """Say which is best, and at what cost, in a few sentences."""
    lines, styles = [], {}
    for record in records:
        styles.setdefault(record["base"], {})[record["style"]] = record
    for base, pair in styles.items():
        if len(pair) == 2:
            fixed, partial = pair["fixed"], pair["partial"]
            lines.append(
                f"Fine-tuning {base}'s upper half "
                f"{change(fixed['test_top1'], partial['test_top1'])}. It "
                f"takes {minutes(partial):.0f} minutes instead of "
                f"{minutes(fixed):.0f}. In passes of predict, that is "
                f"{passes(partial) / passes(fixed):.1f} times the cost.")
    for style, words in STYLES.items():
        same = [record for record in records if record["style"] == style]
        if same[1:]:
            lines.append(f"{words.capitalize()}: " + ", ".join(
                f"{record['base']} reaches {100 * record['test_top1']:.1f} % "
                f"in {minutes(record):.0f} minutes" for record in same) + ".")
    sizes = {record["base"]: record["size"] for record in records}
    if len(set(sizes.values())) > 1:
        lines.append("The bases see images of different sizes: " + ", ".join(
            f"{base} {size} pixels" for base, size in sizes.items()) + ".")
    best = max(records, key=lambda record: record["test_top1"])
    cheapest = min(records, key=minutes)
    if best is not cheapest:
        lines.append(
            f"The most accurate model ({name(best)}) takes "
            f"{minutes(best) / minutes(cheapest):.1f} times as long as the "
            f"cheapest ({name(cheapest)}) and gains "
            f"{100 * (best['test_top1'] - cheapest['test_top1']):.1f} "
            "percentage points.")
    return lines


CIFAR100_ROWS = {
    "input size, pixels": lambda r: f"{r['size']}",
    "test accuracy, top-1": lambda r: f"{100 * r['test_top1']:.2f} %",
    "test accuracy, top-5": lambda r: f"{100 * r['test_top5']:.2f} %",
    "validation accuracy": lambda r:
        f"{100 * r['history'][-1]['val_accuracy']:.2f} %",
    "trained parameters": lambda r: f"{r['trained_parameters']:,}",
    "other parameters (frozen, BatchNorm averages)": lambda r:
        f"{r['other_parameters']:,}",
    "frozen convolutions": lambda r:
        f"{r['frozen_convolutions']} of {r['convolutions']}",
    "frozen pass (shared by both styles), minutes": lambda r:
        f"{r['frozen_pass']['seconds'] / 60:.1f}",
    "predict throughput during the frozen pass, images/s": lambda r:
        f"{r['frozen_pass']['predict_images_per_second']:.0f}",
    "classifiers trained before, minutes": lambda r:
        f"{r['seconds_before'] / 60:.1f}",
    "training, minutes": lambda r: f"{training_seconds(r) / 60:.1f}",
    "training, seconds per epoch": lambda r:
        f"{training_seconds(r) / len(r['history']):.1f}",
    "epochs": lambda r: f"{len(r['history'])}",
    "in all, minutes": lambda r: f"{minutes(r):.1f}",
    "predict throughput during training, images/s": throughputs,
    "total cost, in predict passes over 50,000 images":
        lambda r: f"{passes(r):.1f}",
    "peak memory of the process, GiB": lambda r:
        f"{r['machine'].get('peak_memory_bytes', 0) / 2 ** 30:.2f}",
}


# Folders of images

def accuracy(evaluation):
    """Format an accuracy and its 95 % interval."""
    return "{:.1f} % ({:.1f} to {:.1f})".format(*(
        100 * x for x in [evaluation["accuracy"], *evaluation["interval"]]))


def against_simple(record):
    """Format the wins and losses against the simple network."""
    pair = record.get("against_simple")
    return "{only_this_right} : {only_other_right}, p = {p:.2g}".format(
        **pair) if pair else ""


def comparison_line(record, simple):
    """Say whether a network is better than the simple one."""
    ours, theirs = record["evaluation"], simple["evaluation"]
    verdict = "Unclear" if record["against_simple"]["p"] >= 0.05 else (
        "Yes" if ours["accuracy"] > theirs["accuracy"] else "No")
    return (f"Is {name(record)} better than the simple network? {verdict}: "
            f"{100 * ours['accuracy']:.1f} % against "
            f"{100 * theirs['accuracy']:.1f} % on the same "
            f"{len(ours['answers']):,} images (wins : losses "
            f"{against_simple(record)}, McNemar).")


def compare(this, other):
    """Count the images that one of two models gets right, the other wrong.

    this, other: evaluations of both on the same images, see folders.metrics;
        if an image is there several times, its right predictions are counted
    Returns: a dict for JSON: how many images only this one and only the other
        gets right, and the p of McNemar's exact test (Psychometrika 12, 1947)
    """
    ours, theirs = collections.Counter(), collections.Counter()
    for count, evaluation in (ours, this), (theirs, other):
        for _, image, truth, predicted, _ in evaluation["answers"]:
            count[image] += int(truth == predicted)
    if ours.keys() != theirs.keys():
        raise ValueError("compared on other images")
    wins = sum(ours[image] > theirs[image] for image in ours)
    losses = sum(ours[image] < theirs[image] for image in ours)
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return {"only_this_right": wins, "only_other_right": losses,
            "p": float(p)}


def best_line(records):
    """Say which training is best on validation images, and how sure that is.

    records: of trainings with a base, evaluated on the same holdout
    """
    best = max(records, key=lambda record: record["val_accuracy"])
    others = [record for record in records if record is not best]
    pairs = [compare(best["evaluation"], other["evaluation"])
             for other in others]
    return (f"Best on the validation images: {name(best)}, which gets "
            f"{100 * best['evaluation']['accuracy']:.1f} % of the holdout "
            "right. Compared with the others on the same images (wins : "
            "losses; McNemar's test" + (
                f", Bonferroni-corrected for {len(others)} comparisons"
                if others[1:] else "") + "): " + "; ".join(
                "{}, {} : {}, p = {:.2g}".format(
                    name(other), pair["only_this_right"],
                    pair["only_other_right"],
                    min(1, len(others) * pair["p"]))
                for other, pair in zip(others, pairs)) + ".")


def style_line(extraction, tuning):
    """Say which of Lab 8's two ways is better, if that can be told.

    extraction, tuning: merged records of both on the same splits
    """
    pair = compare(tuning["evaluation"], extraction["evaluation"])
    wins, losses = pair["only_this_right"], pair["only_other_right"]
    verdict = ("No difference can be told" if pair["p"] >= 0.05 else
               "Yes" if wins > losses else "No, it is worse")
    images = {row[1] for row in tuning["evaluation"]["answers"]}
    before, after = (
        np.trace(confusion) / np.sum(confusion) for confusion in (
            merged["evaluation"]["confusion"]
            for merged in (extraction, tuning)))
    return (f"Is fine-tuning better? {verdict}: of {len(images):,} test "
            f"images, it gets {wins} right more often than feature extraction "
            f"does, and {losses} less often (sign test, p = "
            f"{pair['p']:.2g}). On these images, it "
            f"{change(before, after)}.")


def mean_and_deviation(records):
    """Format the mean accuracy on several splits, and its deviation."""
    values = [100 * record["evaluation"]["accuracy"] for record in records]
    return f"{np.mean(values):.2f} %" + (
        f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def merge_splits(splits):
    """Merge the evaluations of a training on several splits."""
    evaluations = [record["evaluation"] for record in splits]
    return {
        **splits[0], "title": f"{name(splits[0])}, " + (
            "one split" if len(splits) == 1 else f"all {len(splits)} splits"),
        "evaluation": {
            "answers": sum((one["answers"] for one in evaluations), []),
            "confusion": np.sum([one["confusion"] for one in evaluations],
                                axis=0)}}


DESSERTS_ROWS = {
    "input size, pixels": lambda r: f"{r['size']}",
    "holdout accuracy (95 % interval)": lambda r: accuracy(r["evaluation"]),
    "holdout loss": lambda r: f"{r['evaluation']['loss']:.3f}",
    "best validation accuracy": lambda r: f"{100 * r['val_accuracy']:.1f} %",
    "parameters": lambda r: f"{r['parameters']:,}",
    "epochs": lambda r: f"{len(r['history'])}",
    "training, minutes": lambda r: f"{training_seconds(r) / 60:.1f}",
    "wins : losses against the simple network (McNemar)": against_simple,
}
FOUR_CLASSES_ROWS = {
    "input size, pixels": lambda r: f"{r[0]['size']}",
    "training, validation and test images": lambda r: ", ".join(
        f"{count:,}" for count in r[0]["pictures"]),
    "splits": lambda r: f"{len(r)}",
    "test accuracy, mean ± standard deviation": lambda r:
        mean_and_deviation(r) if r[1:] else "",
    "test accuracy on the first split (95 % interval)": lambda r:
        accuracy(r[0]["evaluation"]),
    "frozen pass (shared by all trainings), seconds": lambda r:
        f"{r[0]['pass_seconds']:.0f}",
    "epochs, chosen on validation images": lambda r: ", ".join(
        f"{epochs} ({count} of {len(r)})" for epochs, count in sorted(
            collections.Counter(len(split["history"]) for split in r)
            .items())),
    "training (all numbers of epochs), seconds per split": lambda r:
        "{:.1f}".format(np.mean([
            training_seconds(split) + split["seconds_before"]
            for split in r])),
}


# Tables and plots

def table(records, cells=CIFAR100_ROWS):
    """Make a list of rows of strings; the first has the trainings' names.

    records: one for each column, or a list of them, named after its first
    cells: {name of a row: function of a column}; empty rows are left out
    """
    names = [name(r[0] if isinstance(r, list) else r) for r in records]
    rows = [[row] + [cell(record) for record in records]
            for row, cell in cells.items()]
    return [[""] + names] + [row for row in rows if any(row[1:])]


def markdown(rows):
    """Format a table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|"] + lines[1:])


def short(name, most=30):
    """Write a class's name as people do, shortened in the middle."""
    name, half = printable(name).replace("_", " "), (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def write_plot(figure, path, banner="", **metadata):
    """Write a figure as a PNG, whole or not at all.

    banner: a warning above the figure
    metadata: {keyword: text} in the file
    """
    if banner:
        figure.suptitle(banner, color="#D55E00", weight="bold")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DOTS, metadata=metadata)
    runs.write(path, png.getvalue())


def show_history(panel, history, label="validation", quantity="accuracy",
                 limits=None):
    """Show a training and its validation, epoch by epoch.

    history: a dict for each epoch with the quantity and val_<quantity>, and
        perhaps a phase; a dotted line separates phases
    quantity: "accuracy" or "loss"
    limits: of the axis; a value beyond them is written at its edge
    """
    epochs = range(1, len(history) + 1)
    for key, words, colour, marker in (
            (quantity, "training (running average)", COLOURS[1], "s"),
            (f"val_{quantity}", label, COLOURS[0], "o")):
        values = in_percent(history, key)
        panel.plot(epochs, values, color=colour, marker=marker, markersize=4,
                   label=words)
        for epoch, value in zip(epochs, values):
            if limits and not limits[0] <= value <= limits[1]:
                above = value > limits[1]
                panel.annotate(
                    f"{'↑' if above else '↓'} {value:.3g}",
                    (epoch, limits[above]), color=colour, fontsize=8,
                    xytext=(4, {"s": 9, "o": 19}[marker] * (-1) ** above),
                    textcoords="offset points", va="center")
    phases = [epoch.get("phase") for epoch in history]
    for i in range(1, len(phases)):
        if phases[i] != phases[i - 1]:
            panel.axvline(i + 0.5, color="grey", linestyle=":")
    panel.set_ylim(limits)
    panel.set_xlabel("epoch")
    panel.set_xticks(epochs[::-(-len(epochs) // 10)])
    panel.set_ylabel("accuracy, %" if quantity == "accuracy" else quantity)
    panel.yaxis.set_tick_params(labelleft=True)
    panel.grid(alpha=0.3)


def in_percent(history, key):
    """List a quantity by epoch, accuracies in %."""
    return [(100 if "accuracy" in key else 1) * epoch[key]
            for epoch in history]


def limits_of(values):
    """Choose the limits of an axis so that a few bad values don't squeeze it.

    They show all values, except those whose distance from the middle half is
    more than ten times the width of that.
    """
    low, high = np.percentile(values, (25, 75))
    far = 10 * (high - low)
    shown = [value for value in values if low - far <= value <= high + far]
    margin = 0.05 * (max(shown) - min(shown)) or 1
    return min(shown) - margin, max(shown) + margin


def draw_curves(records, path):
    """Plot each training's accuracy and loss, epoch by epoch."""
    figure = Figure((WIDTH, 2.6 * len(records) + 0.3), layout="constrained")
    panels = figure.subplots(len(records), 2, squeeze=False)
    for column, quantity in zip(panels.T, ("accuracy", "loss")):
        limits = limits_of(sum([
            in_percent(record["history"], key) for record in records
            for key in (quantity, f"val_{quantity}")], []))
        for panel, record in zip(column, records):
            show_history(panel, record["history"], quantity=quantity,
                         limits=limits)
    for panel, record in zip(panels[:, 0], records):
        panel.set_title(name(record), fontsize=11)
    panels[0, 0].legend()
    write_plot(figure, path, warning(records))


def draw_accuracy_against_time(records, path):
    """Plot validation accuracy against the total time."""
    figure = Figure((WIDTH, 5), layout="constrained")
    panel = figure.subplots()
    bases = list(dict.fromkeys(record["base"] for record in records))
    colours = dict(zip(bases, itertools.cycle(COLOURS)))
    for record in records:
        colour, fixed = colours[record["base"]], record["style"] == "fixed"
        ends = (seconds_before(record) + np.cumsum([
            epoch["seconds"] for epoch in record["history"]])) / 60
        values = in_percent(record["history"], "val_accuracy")
        panel.plot(ends, values, color=colour, linewidth=1)
        # A classifier's epochs take seconds: a mark for each would be a smear
        ends, values = (each[-1:] if fixed else each
                        for each in (ends, values))
        panel.plot(ends, values, "o", color=colour, label=name(record),
                   markerfacecolor="white" if fixed else colour)
        panel.annotate(f"{values[-1]:.1f}", (ends[-1], values[-1]),
                       xytext=(6, 3), textcoords="offset points")
    for record in {record["base"]: record for record in records}.values():
        end, colour = (record["frozen_pass"]["seconds"] / 60,
                       colours[record["base"]])
        panel.axvline(end, color=colour, linestyle=":", linewidth=1)
        # Names on both sides, as two lines may be close to each other
        left = bases.index(record["base"]) % 2 == 0
        panel.annotate(
            f"{record['base']}'s frozen pass ends", (end, 0.02),
            xycoords=("data", "axes fraction"), xytext=(-2 if left else 2, 0),
            textcoords="offset points", rotation=90, color=colour, fontsize=8,
            ha="right" if left else "left", va="bottom")
    panel.margins(x=0.08)
    panel.set_xlim(left=0)
    panel.set_xlabel("minutes since the start of the base's frozen pass")
    panel.set_ylabel("validation accuracy, %")
    panel.set_title(processors(records), fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    write_plot(figure, path, warning(records))


def show_confusion(figure, counts, classes):
    """Show which class the images of each class are taken for.

    The diagonal has no colour: next to it, mistakes would all look alike.

    counts: a row for each true class
    Returns: the panel
    """
    counts = np.array(counts)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = np.ma.masked_array(share, np.eye(len(share), dtype=bool))
    most = max(mistakes.filled(0).max(), 1)
    panel = figure.subplots()
    colours = panel.imshow(mistakes, cmap="Blues", vmin=0, vmax=most)
    classes, small = list(map(short, classes)), 8 if len(classes) > 10 else 10
    for (i, j), value in np.ndenumerate(share):
        if round(value) or i == j:
            panel.text(j, i, f"{value:.0f}", ha="center", va="center",
                       fontsize=small - 1, color="grey" if i == j else
                       "white" if value > most / 2 else "black")
    panel.set_xticks(range(len(classes)), classes, rotation=60, ha="right",
                     rotation_mode="anchor", fontsize=small)
    panel.set_yticks(range(len(classes)), classes, fontsize=small)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    figure.colorbar(colours, shrink=0.6,
                    label="mistakes, % of the true class")
    return panel


def draw_confusion(counts, classes, title, path, banner="",
                   diagonal="correct"):
    """Plot which class is taken for which.

    counts: a row for each true class
    diagonal: words for the predictions on the diagonal
    """
    # The squares, and below them the names, which are slanted
    height = max(2, 0.25 * min(100, len(classes))) + 0.8 + 0.055 * max(
        len(short(name)) for name in classes)
    figure = Figure((max(WIDTH, height), height), layout="compressed")
    share = 100 * np.trace(counts) / np.sum(counts)
    show_confusion(figure, counts, classes).set_title(
        f"{title}: {share:.1f} % {diagonal}", fontsize=11)
    write_plot(figure, path, banner)


def draw_mistakes(record, folder, path):
    """Plot a sheet of the wrong predictions that a model was surest of.

    folder: the clean copy of the images; without it, or without mistakes, a
        sheet that exists stays as it is
    """
    wrong = sorted((row for row in record["evaluation"]["answers"]
                    if row[2] != row[3]), key=lambda row: -row[4])[:MISTAKES]
    if not wrong or not os.path.isdir(folder):
        return
    lines = -(-len(wrong) // 6)
    figure = Figure((WIDTH, 1.75 * lines + 0.5), layout="constrained")
    figure.suptitle(f"{name(record)}: most confident mistakes", fontsize=11)
    panels = figure.subplots(lines, 6, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, (copy, _, truth, predicted, p) in zip(panels, wrong):
        with Image.open(os.path.join(folder, copy)) as image:
            panel.imshow(np.asarray(image))
        guess, label = (short(record["classes"][i], 15)
                        for i in (predicted, truth))
        panel.set_title(f"{guess} {100 * p:.0f} %\ntrue: {label}", fontsize=7)
    write_plot(figure, path)


def draw_accuracies(records, path):
    """Plot each training's accuracy with its 95 % interval.

    A single training needs no plot.
    """
    if len(records) == 1:
        return
    figure = Figure((WIDTH, 0.45 * len(records) + 1), layout="constrained")
    panel = figure.subplots()
    for i, record in enumerate(records):
        low, high = (100 * x for x in record["evaluation"]["interval"])
        panel.plot([low, high], [i, i], color=COLOURS[0])
        value = 100 * record["evaluation"]["accuracy"]
        panel.plot(value, i, "o", color=COLOURS[0])
        panel.annotate(f"{value:.1f}", (value, i), xytext=(0, 5),
                       textcoords="offset points", ha="center")
    panel.set_yticks(range(len(records)), map(name, records))
    panel.margins(y=0.25)
    panel.invert_yaxis()
    panel.set_xlabel("holdout accuracy, % (line: 95 % interval)")
    panel.grid(alpha=0.3)
    write_plot(figure, path)


def slug(record):
    """Name a training, for file names."""
    return name(record).replace(", ", "-").replace(" ", "-")


# A report for each exercise: it draws the plots in a folder, and returns the
# rows of the table and the paragraphs below it

def report_cifar100(folder, records):
    """Report on CIFAR-100: both styles on each base."""
    draw_curves(records, os.path.join(folder, "curves.png"))
    draw_accuracy_against_time(
        records, os.path.join(folder, "accuracy-time.png"))
    for record in records:
        draw_confusion(
            record["confusion"], record["groups"], name(record),
            os.path.join(folder, f"confusion-{record['base']}-"
                         f"{record['style']}.png"), warning([record]),
            "in the right group")
    return table(records), conclusions(records)


def report_desserts(folder, records):
    """Report on the desserts: the simple network, and bases with a head."""
    draw_curves(records, os.path.join(folder, "curves.png"))
    draw_accuracies(records, os.path.join(folder, "accuracies.png"))
    for record in records:
        draw_confusion(
            record["evaluation"]["confusion"], record["classes"],
            name(record),
            os.path.join(folder, f"confusion-{slug(record)}.png"))
        draw_mistakes(record, os.path.join(folder, "pictures"),
                      os.path.join(folder, f"mistakes-{slug(record)}.png"))
    simple = [record for record in records if "base" not in record]
    based = [record for record in records if "base" in record]
    return table(records, DESSERTS_ROWS), [
        *(comparison_line(record, simple[0]) for record in based
          if "against_simple" in record),
        *([best_line(based)] if based[1:] else [])]


def report_four_classes(folder, records):
    """Report on Lab 8: both styles on all splits.

    There is no sheet of mistakes, since some of the images are of people.
    """
    styles = [list(group) for _, group in itertools.groupby(records, name)]
    merged = list(map(merge_splits, styles))
    # Each split has its own number of epochs, so there is no mean of curves.
    draw_curves([dict(splits[0], title=f"{name(splits[0])}, first split")
                 for splits in styles], os.path.join(folder, "curves.png"))
    counts = [len(splits) for splits in styles]
    texts = [style_line(*merged)] if counts == 2 * counts[:1] else []
    for splits, record in zip(styles, merged):
        classes, evaluation = record["classes"], record["evaluation"]
        draw_confusion(
            evaluation["confusion"], classes, name(record),
            os.path.join(folder, f"confusion-{slug(splits[0])}.png"))
        truth, predicted = np.array([
            row[2:4] for row in evaluation["answers"]]).T
        texts.append(f"{name(record)}:\n\n```\n" + classification_report(
            truth, predicted, labels=range(len(classes)),
            target_names=classes, zero_division=0) + "```")
    return table(styles, FOUR_CLASSES_ROWS), texts


REPORTS = {"CIFAR-100": report_cifar100, "desserts": report_desserts,
           "four classes": report_four_classes}


def report(folder):
    """Write a folder's table and plots; return the table and conclusions.

    Raises OSError if there are no records, or damaged ones.
    """
    records = read(folder)
    # A class may be called "$5", which isn't a formula.
    matplotlib.rcParams["text.parse_math"] = False
    try:
        rows, texts = REPORTS[records[0].get("exercise", "CIFAR-100")](
            folder, records)
        banner, machines = warning(records), processors(records)
    except DAMAGED as error:
        raise OSError(f"A record in {folder} is damaged, or of another "
                      f"exercise: {error!r}") from error
    text = printable("\n\n".join(filter(None, [
        banner, markdown(rows), *texts, f"Measured on {machines}."])))
    runs.write(os.path.join(folder, "table.md"), (text + "\n").encode())
    runs.write(os.path.join(folder, "table.json"), {
        "warning": banner, "machines": machines, "rows": rows,
        "answers": texts})
    return text


def main():
    """Report on the folder that the command line names."""
    with contextlib.suppress(AttributeError):  # a notebook's can't be
        sys.stdout.reconfigure(errors="backslashreplace")  # ASCII terminals
    # That a font lacks a character of a class's name: nothing to fix
    warnings.filterwarnings("ignore", category=UserWarning)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="where a run wrote its records")
    args = parser.parse_args()
    if not os.path.isdir(args.folder):
        parser.error(f"folder is {args.folder!r}, expected a folder where a "
                     "run wrote its records")
    try:
        print(report(args.folder))
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
