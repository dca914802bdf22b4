#!/usr/bin/env python3
"""Draw the paper's plots from the records of the experiments.

    paper/figures.py

It reads results/ and writes the PNG files beside this script. Each carries
the SHA-256 of the data that it shows, as the text "data-sha256".
"""
import argparse
import base64
import functools
import hashlib
import json
import os
import statistics
import sys

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
report = __import__("report")

RESULTS = os.path.join(ROOT, "results")
WIDTH = 7.0     # inches: at half their width, a README's column
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = report.COLOURS
GREY = "#666666"


def record(*path):
    """Read a record under results/. Raises OSError if that fails."""
    content = report.runs.read_json(os.path.join(RESULTS, *path))
    if not isinstance(content, dict):
        raise OSError(f"{os.path.join('results', *path)} is missing or "
                      "damaged")
    return content


def slug(name):
    """Return the name of a row as it is in file names."""
    return "-".join(name.replace(",", "").split())


def arguments(experiment):
    """Return what an experiment of benchmarks/ was run with.

    Raises OSError if the run isn't finished.
    """
    run = record(experiment, "run.json")
    if not run["finished"]:
        raise OSError(f"results/{experiment} isn't complete: run "
                      f"benchmarks/{experiment}.py")
    return run["arguments"]


@functools.lru_cache(None)  # the files are read once
def rows():
    """Read the rows of benchmarks/choices.py, in its order.

    Returns: {row: its records, one for each seed}
    """
    return {name: [record("choices", f"{slug(name)}-{seed}.json")
                   for seed in range(fields[0])]
            for name, fields in arguments("choices").items()
            if isinstance(fields, list)}


def accuracies(seeds):
    """Return the validation accuracies of a row's seeds, in %."""
    return [100 * seed["val_accuracy"] for seed in seeds]


def timed_parts(seed):
    """Return what was timed in a training: its frozen pass and its epochs.

    Returns: a list of (seconds, the part's record)
    """
    frozen, head = seed.get("frozen_pass"), seed.get("head", {"history": []})
    return [(epoch["training_seconds"], epoch)
            for epoch in head["history"] + seed["history"]] + (
        [(frozen["seconds"] * frozen["share"], frozen)] if frozen else [])


@functools.lru_cache(None)
def throughputs():
    """Return the throughput of Keras's predict through the whole base.

    Returns: {process: median of its measurements, in images per second}
    """
    measurements = {}
    for seeds in rows().values():
        for seed in seeds:
            for _, part in timed_parts(seed):
                measurements.setdefault(part["process"], set()).add(
                    part["predict_images_per_second"])
    return {process: statistics.median(values)
            for process, values in measurements.items()}


def costs(seeds):
    """Return the cost of each of a row's seeds, in passes.

    A pass: predict sends the row's training images through the whole base.
    """
    return [sum(seconds * throughputs()[part["process"]]
                for seconds, part in timed_parts(seed)) / seed["images"]
            for seed in seeds]


def multiply_adds(seeds):
    """Return a row's billions of multiply-adds for each training image."""
    return seeds[0]["multiply_adds"] / seeds[0]["images"] / 1e9


def mean_and_deviation(values):
    """Return mean and sample standard deviation (0 for a single value)."""
    return [statistics.mean(values),
            statistics.stdev(values) if len(values) > 1 else 0]


def digest(data):
    """Return the SHA-256 of the data that a plot shows."""
    return hashlib.sha256(json.dumps(
        data, sort_keys=True).encode()).hexdigest()


# Figure 1: accuracy against cost

# {marker: (words in a row's name, what the legend says)}; the first that fits
MARKERS = {
    "o": (("head", "hidden"), "new head only"),
    "s": (("upper half", "stored", "random"), "upper half trained"),
    "D": (("cut",), "cut elsewhere"),
    "^": (("size",), "other sizes"),
    "X": (("crops",), "fresh crops"),
    "v": (("epoch",), "other numbers of epochs"),
    "P": (("BatchNorm",), "BatchNorm otherwise"),
    "p": (("scratch",), "all layers trained")}
# {base: (colour, what the legend says)}; None: without ImageNet's weights
BASES = {
    "EfficientNetV2B0": (BLUE, "EfficientNetV2-B0"),
    "MobileNetV2": (ORANGE, "MobileNetV2"),
    "DenseNet121": (GREEN, "DenseNet121"),
    None: (PINK, "no ImageNet weights")}
# {row: (label, offset in points)}
LABELS = {
    "linear head": ("linear head", (3, -13)),
    "hidden layer": ("hidden layer", (-4, 8)),
    "1 epoch": ("1 epoch", (3, -13)),
    "cut after block 6d, rate 2e-3": ("cut after block 6d", (-5, 8)),
    "size 96": ("96 pixels", (3, 7)),
    "size 160": ("160 pixels", (-4, 7)),
    "MobileNetV2 upper half": ("MobileNetV2's upper half", (8, -2)),
    "DenseNet121 upper half, rate 2e-3": ("DenseNet121's upper half",
                                          (7, -4)),
    "BatchNorm momentum 0.999": ("BatchNorm's momentum 0.999", (7, -9)),
    "BatchNorm in inference mode, rate 1e-3": ("inference mode", (-5, 5)),
    "fresh crops, 3 epochs": ("fresh crops", (2, -13)),
    "from scratch, rate 3e-3": ("ResNet-9 from scratch", (6, 6)),
    "random weights, lower half frozen": (
        "random weights, lower half frozen", (7, -4))}
CHANCE = 10     # %
TICKS = (10, 30, 50, 60, 70, 75, 80, 85, 88, 90, 92, 94)


def cost_data():
    """Return each row's cost, accuracy and multiply-adds.

    Left out are rows that are trained on other numbers of images.
    """
    upper = rows()["upper half"][0]
    points = {name: {
        "passes": mean_and_deviation(costs(seeds)),
        "multiply-adds": [multiply_adds(seeds), 0],
        "accuracy": mean_and_deviation(accuracies(seeds)),
        "base": seeds[0]["weights"] and seeds[0]["base"]}
        for name, seeds in rows().items()
        if seeds[0]["images"] == upper["images"]}
    return {"points": points, "images": upper["images"]}


def frontier(points, cost):
    """Return the rows to which no cheaper one is at least as accurate."""
    best, names = 0, []
    for name in sorted(points, key=lambda name: (
            points[name][cost][0], -points[name]["accuracy"][0])):
        if points[name]["accuracy"][0] > best:
            best = points[name]["accuracy"][0]
            names.append(name)
    return names


def marker_of(name):
    """Return a row's marker in Figure 1."""
    return next(marker for marker, (words, _) in MARKERS.items()
                if any(word in name for word in words))


def draw_cost(data):
    """Draw accuracy against passes and multiply-adds.

    Accuracy has a logarithmic scale of errors: from 90 to 95 % is as far as
    from 80 to 90 %.
    """
    figure = Figure((WIDTH, 8.6), layout="constrained")
    panels = figure.subplots(2, 1, height_ratios=[1.6, 1])
    points = data["points"]
    for panel, cost, label in zip(panels, ("passes", "multiply-adds"), (
            f"cost, in passes of the {data['images']:,} images through the "
            "whole base",
            "cost, in billions of multiply-adds for each training image")):
        panel.axhline(100 - CHANCE, color=GREY, linestyle=":")
        line = [[points[name][key][0] for name in frontier(points, cost)]
                for key in (cost, "accuracy")]
        panel.step(line[0], [100 - y for y in line[1]], where="post",
                   color=GREY, linewidth=1)
        # The star comes last, on top of all others.
        for name in sorted(points, key="upper half".__eq__):
            (x, dx), (y, dy) = (points[name][key]
                                for key in (cost, "accuracy"))
            colour, marker = BASES[points[name]["base"]][0], marker_of(name)
            star = name == "upper half"
            panel.errorbar(
                x, 100 - y, dy, dx, fmt="*" if star else marker,
                color="black" if star else colour, elinewidth=0.8,
                markersize=16 if star else 6,
                zorder=10 if star else 3)
        panel.set_yscale("log")
        panel.set_ylim(97, 0.85 * (100 - max(
            point["accuracy"][0] for point in points.values())))
        panel.set_yticks([100 - tick for tick in TICKS], TICKS)
        panel.set_yticks([], minor=True)
        panel.set_xlim(0, 1.03 * max(
            sum(point[cost]) for point in points.values()))
        panel.set_xlabel(label)
        panel.set_ylabel("validation accuracy, %")
        panel.grid(alpha=0.3)
    for name, (label, offset) in LABELS.items():
        panels[0].annotate(
            label, (points[name]["passes"][0],
                    100 - points[name]["accuracy"][0]),
            textcoords="offset points", xytext=offset, fontsize=9,
            ha="left" if offset[0] > 0 else "right")
    panels[0].annotate(
        "chance", (0, 100 - CHANCE), textcoords="offset points",
        xytext=(4, 3), fontsize=9, color=GREY)
    figure.legend(handles=[
        Line2D([], [], linestyle="", marker="*", color="black",
               markersize=14, label="the recipe: upper half, 3 epochs"),
        Line2D([], [], color=GREY, label="best accuracy at each cost"),
        *(Line2D([], [], linestyle="", marker="o", color=colour, label=label)
          for colour, label in BASES.values()),
        *(Line2D([], [], linestyle="", marker=marker, color=GREY,
                 markerfacecolor="white", label=label)
          for marker, (_, label) in MARKERS.items())],
        loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle("The base sets the level; training its upper half adds "
                    "to it", fontsize=12)
    return figure


# Figure 2: the mechanism

def mechanism_data():
    """Return where the network is cut, and at which size."""
    upper = rows()["upper half"][0]
    return {key: upper[key] for key in ("cut", "size")}


def draw_mechanism(data):
    """Draw the way of the images: frozen half, disk, trained half."""
    figure = Figure((WIDTH, 2.6), layout="constrained")
    figure.suptitle("The frozen half runs once", fontsize=12)
    panel = figure.subplots()
    block = data["cut"].replace("block", "").replace("_add", "")
    boxes = [
        ("images\nand mirror\nimages", "white"),
        (f"frozen half\n\nscaled up to {data['size']} pixels,\n"
         f"blocks 1 to {block},\nas ImageNet\nleft them", SKY),
        ("disk\n\nits outputs,\n16-bit floats", "#DDDDDD"),
        (f"trained half\n\nblocks above {block}\nand a new head", YELLOW),
        ("ten\nprobabilities", "white")]
    widths = 1.1, 2.3, 1.4, 1.8, 1.3
    left = 0
    for i, ((words, colour), width) in enumerate(zip(boxes, widths)):
        panel.text(left + width / 2, 0.5, words, ha="center", va="center",
                   fontsize=9)
        panel.fill_between([left, left + width], 0, 1, facecolor=colour,
                           edgecolor="black")
        if i:
            panel.annotate("", (left, 0.5), (left - 0.4, 0.5), arrowprops={
                "arrowstyle": "-|>", "color": "black"})
        left += width + 0.4
    for start, end, words in ((0, 5.6, "once"), (6.0, 9.5, "every epoch")):
        panel.annotate("", (start, 1.15), (end, 1.15), arrowprops={
            "arrowstyle": "<->", "color": GREY})
        panel.text((start + end) / 2, 1.22, words, ha="center", fontsize=10,
                   weight="bold")
    panel.set_ylim(-0.05, 1.45)
    panel.set_xlim(-0.05, left - 0.35)
    panel.axis("off")
    return figure


# Figure 3: examples

def pixels(image):
    """Decode an image from the text that answers.py made of it."""
    return np.frombuffer(base64.b64decode(image["pixels"]),
                         "uint8").reshape(32, 32, 3)


def show(panel, image, title, colour="black"):
    """Show an image, scaled up, under its title."""
    panel.imshow(pixels(image), interpolation="bilinear")
    panel.set_title(title, fontsize=9, color=colour)
    panel.axis("off")


def examples_data():
    """Return images with cifar10.h5's predictions, right and wrong."""
    predictions = record("cifar10", "answers.json")
    return {key: predictions[key] for key in ("classes", "right", "wrong")}


def draw_examples(data):
    """Draw the images as the network sees them: 32 pixels, scaled up."""
    figure = Figure((WIDTH, 6.6), layout="constrained")
    for part, key in zip(figure.subfigures(2, 1, height_ratios=[1, 1.17]),
                         ("right", "wrong")):
        part.suptitle(key, fontsize=12, weight="bold")
        for panel, image in zip(part.subplots(2, 5).ravel(), data[key]):
            truth, predicted = (data["classes"][image[key]]
                                for key in ("truth", "answer"))
            title = f"{predicted}, {100 * image['probability']:.0f} %"
            if truth == predicted:
                show(panel, image, title)
            else:
                show(panel, image, f"{title}\ntrue: {truth}", ORANGE)
    return figure


# Figure 4: BatchNorm

MOMENTA = {"momentum 0.9": "upper half",
           "momentum 0.99": "BatchNorm momentum 0.99",
           "momentum 0.999": "BatchNorm momentum 0.999"}
INFERENCE = {f"rate {rate}": f"BatchNorm in inference mode, rate {rate}"
             for rate in ("1e-5", "1e-4", "2e-4", "1e-3")}


def batchnorm_data():
    """Return each seed's accuracies by epoch, and with new averages."""
    return {title: [{
        "accuracies": [[epoch[key] for key in ("accuracy", "val_accuracy")]
                       for epoch in seed["history"]],
        "anew": seed.get("val_accuracy_averages_anew")}
        for seed in rows()[name]]
        for title, name in {**MOMENTA, **INFERENCE}.items()}


def draw_batchnorm(data):
    """Draw the accuracies of each seed, epoch by epoch."""
    figure = Figure((WIDTH, 6.0), layout="constrained")
    figure.suptitle("Training looks the same at all momentums; only "
                    "validation tells", fontsize=12)
    above, below = figure.subfigures(2, 1)
    above.suptitle("batch statistics, by momentum", fontsize=11)
    below.suptitle("inference mode, by learning rate", fontsize=11)
    panels = [*above.subplots(1, len(MOMENTA)),
              *below.subplots(1, len(INFERENCE))]
    lowest = min(min(accuracy) for seeds in data.values() for seed in seeds
                 for accuracy in seed["accuracies"])
    for panel, (title, seeds) in zip(panels, data.items()):
        for seed in seeds:
            accuracy = 100 * np.array(seed["accuracies"])
            epochs = np.arange(1, len(accuracy) + 1)
            panel.plot(epochs, accuracy[:, 0], "s--", color=ORANGE,
                       markersize=3, linewidth=1)
            panel.plot(epochs, accuracy[:, 1], "o-", color=BLUE,
                       markersize=4, linewidth=1.2)
            if seed["anew"]:
                panel.plot(len(epochs), 100 * seed["anew"], "*",
                           color="black", markersize=9, zorder=5)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(100 * lowest - 1, 101)
        panel.set_xticks(epochs)
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
    for i in 0, len(MOMENTA):
        panels[i].set_ylabel("accuracy, %")
    figure.legend(handles=[
        Line2D([], [], linestyle="--", marker="s", color=ORANGE,
               markersize=3, label="training"),
        Line2D([], [], marker="o", color=BLUE, markersize=4,
               label="validation, a line for each seed"),
        Line2D([], [], linestyle="", marker="*", color="black", markersize=9,
               label="averages re-estimated")],
        loc="outside lower center", ncols=3, fontsize=9)
    return figure


# Figure 5: depth

RATES = {"5e-4": GREEN, "1e-3": BLUE, "2e-3": ORANGE}
CUTS = "3b", "5c", "6d"


def depth_data():
    """Return accuracy and cost of each cut, lowest first, for each rate."""
    names = {rate: [f"cut after block {cut}, rate {rate}" for cut in CUTS]
             for rate in RATES}
    names["1e-3"][1] = "upper half"
    names["head"] = ["linear head, mirrored"]
    return {rate: [{
        "accuracy": mean_and_deviation(accuracies(rows()[name])),
        "passes": mean_and_deviation(costs(rows()[name]))} for name in some]
        for rate, some in names.items()}


def draw_depth(data):
    """Draw accuracy and cost of each cut."""
    figure = Figure((WIDTH, 5.8), layout="constrained")
    figure.suptitle("A cut below block 5c costs more and gains nothing "
                    "that can be seen", fontsize=12)
    panels = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    for panel, key, label in zip(panels, ("accuracy", "passes"), (
            "validation accuracy, %", "cost, passes")):
        for i, (rate, points) in enumerate(data.items()):
            # Side by side, or their bars would cover each other
            x = np.arange(len(points)) + (
                0.24 * (i - 1) if rate in RATES else len(CUTS))
            y, dy = zip(*(point[key] for point in points))
            colour = RATES.get(rate, "black")
            panel.errorbar(x, y, dy, fmt="o-" if rate in RATES else "D",
                           color=colour, markersize=5, elinewidth=1,
                           label=f"learning rate {rate}" if rate in RATES
                           else "linear head only")
            if key == "accuracy" or rate in ("1e-3", "head"):
                for point, value, deviation in zip(x, y, dy):
                    panel.annotate(
                        f"{value:.1f}", (point, value - deviation),
                        color=colour, textcoords="offset points", fontsize=9,
                        xytext=(0, -7), ha="center", va="top")
        panel.set_ylabel(label)
        panel.margins(x=0.08, y=0.15)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=9)
    panels[1].set_ylim(bottom=0)
    panels[1].set_xticks(range(len(CUTS) + 1), [
        *(f"after block {cut}" for cut in CUTS), "below the head"])
    panels[1].set_xlabel("cut")
    return figure


# Figure 6: speed

# {what is done: two ways of it}; the last pair has none of ours
PAIRS = {
    "a frozen pass": ("predict, frozen part", "our frozen pass"),
    "an epoch of the upper half": (
        "fit, upper half trained, from images", "an epoch of our training"),
    "for comparison: through the whole base": (
        "predict, whole base", "fit, base frozen, from images")}


def speed_data():
    """Return the images per second of each way, all repetitions."""
    benchmark = record("cifar10", "frozen_once.json")
    return {"ways": {name: way["images_per_second"]
                     for name, way in benchmark["ways"].items()},
            "size": benchmark["size"],
            "machine": report.processors([benchmark])}


def draw_speed(data):
    """Draw a bar for each way, in pairs, with the range of repetitions."""
    figure = Figure((WIDTH, 3.8), layout="constrained")
    figure.suptitle("Our frozen pass and our epochs beside Keras's own",
                    fontsize=12)
    panel = figure.subplots()
    for i, (work, pair) in enumerate(PAIRS.items()):
        panel.text(0, 3 * i - 0.75, work, fontsize=10, weight="bold")
        for j, way in enumerate(pair):
            speeds = data["ways"][way]
            middle = statistics.median(speeds)
            panel.barh(3 * i + j, middle, color=BLUE if "our" in way else SKY,
                       xerr=[[middle - min(speeds)], [max(speeds) - middle]],
                       ecolor=GREY)
            panel.annotate(f"{middle:.0f}", (max(speeds), 3 * i + j),
                           textcoords="offset points", xytext=(5, 0),
                           va="center", fontsize=9)
    panel.set_yticks([3 * i + j for i in range(len(PAIRS)) for j in (0, 1)],
                     [way for pair in PAIRS.values() for way in pair])
    panel.set_ylim(3 * len(PAIRS) - 1.3, -1.4)
    panel.margins(x=0.1)
    panel.set_xlabel(f"images/s at {data['size']} pixels on "
                     f"{data['machine']}")
    return figure


# Figure 7: confusion

def confusion_data():
    """Return the confusion matrix of the test images, and the worst pairs."""
    predictions = record("cifar10", "answers.json")
    return {key: predictions[key]
            for key in ("classes", "confusion", "pairs")}


def draw_confusion(data):
    """Draw which class is taken for which, and images of the worst pairs."""
    figure = Figure((WIDTH, 11.4), layout="constrained")
    above, *below = figure.subfigures(
        1 + len(data["pairs"]), 1,
        height_ratios=[4] + [1] * len(data["pairs"]))
    counts = np.array(data["confusion"])
    cat, dog = map(data["classes"].index, ("cat", "dog"))
    share = (counts[cat, dog] + counts[dog, cat]) / (
        counts.sum() - np.trace(counts))
    above.suptitle(f"{100 * share:.0f} % of the mistakes mix up cats and dogs",
                   fontsize=12)
    report.show_confusion(above, data["confusion"], data["classes"])
    for part, pair in zip(below, data["pairs"]):
        part.suptitle("{}, taken for {}".format(*(
            data["classes"][pair[0][key]] for key in ("truth", "answer"))),
            fontsize=10)
        for panel, image in zip(part.subplots(1, len(pair)), pair):
            show(panel, image, f"{100 * image['probability']:.0f} %")
    return figure


FIGURES = {
    "1-accuracy-cost.png": (cost_data, draw_cost),
    "2-mechanism.png": (mechanism_data, draw_mechanism),
    "3-examples.png": (examples_data, draw_examples),
    "4-batchnorm.png": (batchnorm_data, draw_batchnorm),
    "5-depth.png": (depth_data, draw_depth),
    "6-speed.png": (speed_data, draw_speed),
    "7-confusion.png": (confusion_data, draw_confusion),
}


def main():
    """Draw all plots."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    try:
        for name, (collect, draw) in FIGURES.items():
            data = collect()
            report.write_plot(draw(data), os.path.join(HERE, name),
                              **{"data-sha256": digest(data)})
            print(name)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
