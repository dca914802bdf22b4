#!/usr/bin/env python3
"""Draw the paper's plots from the records of the experiments.

    paper/figures.py

It reads results/ and writes the PNG files beside this script. Each carries
the SHA-256 of the data that it shows, as the text "data-sha256".
"""
import argparse
import base64
import functools
import glob
import hashlib
import json
import os
import statistics
import sys

import numpy as np
from matplotlib.figure import Figure

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
report = __import__("report")

RESULTS = os.path.join(ROOT, "results")
WIDTH = 7.0     # inches: at half their width, a README's column
IMAGES = 10000  # in a pass
BLUE, ORANGE, *_, SKY = report.COLOURS


def record(*path):
    """Read a record under results/. Raises OSError if that fails."""
    content = report.runs.read_json(os.path.join(RESULTS, *path))
    if not isinstance(content, dict):
        raise OSError(f"{os.path.join('results', *path)} is missing or "
                      "damaged")
    return content


@functools.lru_cache(None)  # the files are read once
def rows():
    """Read the rows of the ablation.

    Returns: {row: its records, one for each seed}
    Raises OSError if the ablation isn't finished.
    """
    if not record("ablation", "run.json")["finished"]:
        raise OSError("results/ablation isn't complete: run "
                      "benchmarks/ablation.py")
    seeds = {}
    for path in sorted(glob.glob(os.path.join(
            RESULTS, "ablation", "*-[0-9].json"))):
        seed = record("ablation", os.path.basename(path))
        seeds.setdefault(seed["row"], []).append(seed)
    return seeds


def accuracies(seeds):
    """Return the validation accuracies of a row's seeds, in %."""
    return [100 * seed["val_accuracy"] for seed in seeds]


@functools.lru_cache(None)
def throughputs():
    """Return the throughput of Keras's predict through the whole base.

    Returns: {process: median of its measurements, in images per second}
    """
    measurements = {}
    for seeds in rows().values():
        for seed in seeds:
            for part in (seed["frozen_pass"], *seed["history"]):
                measurements.setdefault(part["process"], set()).add(
                    part["predict_images_per_second"])
    return {process: statistics.median(values)
            for process, values in measurements.items()}


def cost(seeds):
    """Return the cost of a row in passes, the mean of its seeds."""
    def images(seed):
        """Return how many images predict does in the same time."""
        once = seed["frozen_pass"]
        return (once["seconds"] * seed["share_of_pass"]
                * throughputs()[once["process"]]
                + sum(epoch["training_seconds"]
                      * throughputs()[epoch["process"]]
                      for epoch in seed["history"]))

    return statistics.mean(map(images, seeds)) / IMAGES


def history(seeds):
    """Return a row's accuracies by epoch, the mean of its seeds."""
    return [{key: statistics.mean(epoch[key] for epoch in epochs)
             for key in ("accuracy", "val_accuracy")}
            for epochs in zip(*(seed["history"] for seed in seeds))]


def digest(data):
    """Return the SHA-256 of the data that a plot shows."""
    return hashlib.sha256(json.dumps(
        data, sort_keys=True).encode()).hexdigest()


# The rows by the depth of their cut
DEPTHS = ("cut after block 2", "cut after block 5", "upper half",
          "cut after block 12", "cut after block 15",
          "linear head, mirrored")
LOW = 80                # accuracies below are drawn in the lower panel, in %
LINES = ("depth of the cut", "size of the images", "epochs")
# Offsets, in points, of labels in the first plot that would cover others
OFFSETS = {"cut after block 12": (-7, 3), "cut after block 15": (-7, 3),
           "cut after block 2": (-4, -14), "6 epochs": (4, -14),
           "size 160": (2, 7), "upper half, not mirrored": (-7, 3),
           "stored as float32": (2, 14),
           "random weights, lower half frozen": (6, 2)}
# The rows of each series, with the label of each point
SERIES = {
    "all frozen, a new head trained": {
        "linear head": "linear", "hidden layer": "hidden layer",
        "linear head, mirrored": "linear, mirrored",
        "hidden layer, mirrored": "hidden layer, mirrored"},
    "depth of the cut": {
        "cut after block 15": "block 15", "cut after block 12": "block 12",
        "upper half": "", "cut after block 5": "block 5",
        "cut after block 2": "block 2"},
    "size of the images": {
        "size 96": "96 pixels", "upper half": "",
        "size 160": "160 pixels"},
    "epochs": {"1 epoch": "1 epoch", "2 epochs": "2 epochs",
               "upper half": "", "6 epochs": "6 epochs"},
    "BatchNorm": {
        "BatchNorm momentum 0.999": "BatchNorm's momentum 0.999",
        "BatchNorm frozen": "BatchNorm frozen",
        "BatchNorm frozen, rate 2e-4": "BatchNorm frozen, rate 0.0002"},
    "controls": {
        "upper half, not mirrored": "not mirrored",
        "stored as float32": "stored as float32",
        "random weights, lower half frozen": "random weights, half frozen",
        "random weights, all trained, 1 epoch": "random weights"},
}


def cost_data():
    """Return cost, accuracy and its deviation (None for a single seed)."""
    records = [seed for seeds in rows().values() for seed in seeds]
    ways = record("cifar10", "frozen_once.json")["ways"]
    predict, fit = (ways[way]["images_per_second"] for way in (
        "predict, whole base", "fit, upper half trained, from images"))
    return {"anew": rows()["upper half"][0]["epochs"] * predict / fit,
            "points": {name: [
                cost(seeds), statistics.mean(accuracies(seeds)),
                statistics.stdev(accuracies(seeds)) if len(seeds) > 1
                else None] for name, seeds in rows().items()},
            "speed": statistics.median(throughputs().values()),
            "machine": report.processors(records)}


def draw_point(panel, x, y, deviation, marker, colour):
    """Draw a row with a bar for its deviation; hollow for a single seed."""
    panel.errorbar(x, y, deviation, fmt=marker, color=colour, markersize=6,
                   markerfacecolor=colour if deviation else "white",
                   elinewidth=1)


def draw_cost(data):
    """Draw accuracy against cost; rows that fail are in a lower panel."""
    figure = Figure((WIDTH, 6.6), layout="constrained")
    high, low = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1.3])
    points = data["points"]
    for (series, names), colour, marker in zip(
            SERIES.items(), report.COLOURS, "osD^vP"):
        high.plot([], [], marker, color=colour, label=series)
        if series in LINES:
            high.plot(*zip(*(points[name][:2] for name in names)),
                      color=colour, linewidth=0.8)
        for name, label in names.items():
            x, y, deviation = points[name]
            panel = high if y > LOW else low
            draw_point(panel, x, y, deviation, marker, colour)
            offset = OFFSETS.get(name, (6, -9))
            panel.annotate(
                label, (x, y), textcoords="offset points", xytext=offset,
                ha="left" if offset[0] > 0 else "right", fontsize=8)
    x, y, _ = points["upper half"]
    # Only the cost of these epochs is measured; the accuracy is the star's.
    high.plot([x, data["anew"]], [y, y], "x:", color="black", markersize=6)
    high.annotate("images anew in each epoch", (data["anew"], y),
                  textcoords="offset points", xytext=(6, -9), fontsize=8)
    high.plot(x, y, "*", color="black", markersize=15)
    high.annotate("upper half", (x, y), textcoords="offset points",
                  xytext=(-9, 6), ha="right", fontsize=9, weight="bold")
    accuracy = [y for _, y, _ in points.values()]
    high.set_ylim(min(y for y in accuracy if y > LOW) - 1,
                  max(accuracy) + 0.7)
    low.set_ylim(0, LOW)
    high.set_xlim(0, 1.1 * max(x for x, _, _ in points.values()))
    high.set_ylabel("held-out accuracy, %")
    low.set_ylabel("held-out, %")
    low.set_xlabel(f"cost, in passes of predict over {IMAGES:,} images")
    minutes = IMAGES / data["speed"] / 60
    high.secondary_xaxis("top", functions=(
        lambda x: x * minutes, lambda x: x / minutes)).set_xlabel(
            f"minutes on {data['machine']}")
    for panel in high, low:
        panel.grid(alpha=0.3)
    high.legend(loc="lower right", fontsize=8)
    return figure


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
    figure = Figure((WIDTH, 6.2), layout="constrained")
    panels = figure.subplots(4, 5).ravel()
    for panel, image in zip(panels, data["right"] + data["wrong"]):
        truth, predicted = (data["classes"][image[key]]
                            for key in ("truth", "answer"))
        title = f"{predicted}, {100 * image['probability']:.0f} %"
        if truth == predicted:
            show(panel, image, title)
        else:
            show(panel, image, f"{title}\ntrue: {truth}", ORANGE)
    return figure


# {title of a panel of learning curves: row}
CURVES = {
    "linear head": "linear head",
    "hidden layer, mirrored": "hidden layer, mirrored",
    "upper half": "upper half",
    "upper half, 6 epochs": "6 epochs"}
BATCHNORM = {
    "BatchNorm trained, momentum 0.9": "upper half",
    "BatchNorm trained, momentum 0.999": "BatchNorm momentum 0.999",
    "BatchNorm frozen, learning rate 0.001": "BatchNorm frozen",
    "BatchNorm frozen, learning rate 0.0002": "BatchNorm frozen, rate 2e-4"}


def curves_data(names):
    """Return the accuracies by epoch of some rows."""
    return {title: history(rows()[name]) for title, name in names.items()}


def draw_curves(data):
    """Draw training and validation accuracy, epoch by epoch."""
    figure = Figure((WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).ravel()
    for panel, (title, epochs) in zip(panels, data.items()):
        report.show_history(panel, epochs, "held out")
        panel.set_title(title, fontsize=10)
    panels[0].legend(fontsize=9, loc="lower right")
    return figure


def depth_data():
    """Return accuracy and cost by depth of the cut."""
    return [{"frozen": rows()[name][0]["frozen_convolutions"],
             "seeds": len(rows()[name]), "passes": cost(rows()[name]),
             "accuracy": statistics.mean(accuracies(rows()[name]))}
            for name in DEPTHS]


def draw_depth(data):
    """Draw accuracy and cost by the number of frozen convolutions."""
    figure = Figure((WIDTH, 4.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for panel, key, label, colour in zip(
            panels, ("accuracy", "passes"),
            ("held-out accuracy, %", "cost, passes"), (BLUE, ORANGE)):
        panel.plot([row["frozen"] for row in data],
                   [row[key] for row in data], color=colour)
        for row in data:
            panel.plot(row["frozen"], row[key], "o", color=colour,
                       markerfacecolor=colour if row["seeds"] > 1
                       else "white")
            panel.annotate(f"{row[key]:.1f}", (row["frozen"], row[key]),
                           textcoords="offset points", xytext=(4, 6),
                           fontsize=9)
        panel.set_ylabel(label)
        panel.margins(y=0.2)
        panel.grid(alpha=0.3)
    panels[1].set_ylim(bottom=0)
    panels[1].set_xlim(5, 56)
    panels[1].set_xlabel("frozen convolution layers, of 52")
    return figure


def confusion_data():
    """Return the confusion matrix of the test images, and the worst pairs."""
    predictions = record("cifar10", "answers.json")
    return {key: predictions[key]
            for key in ("classes", "confusion", "pairs")}


def draw_confusion(data):
    """Draw which class is taken for which, and images of the worst pairs."""
    figure = Figure((WIDTH, 11), layout="constrained")
    above, *below = figure.subfigures(
        1 + len(data["pairs"]), 1,
        height_ratios=[4] + [1] * len(data["pairs"]))
    report.show_confusion(above, data["confusion"], data["classes"])
    for part, pair in zip(below, data["pairs"]):
        part.suptitle("{}, taken for {}".format(*(
            data["classes"][pair[0][key]] for key in ("truth", "answer"))),
            fontsize=10)
        for panel, image in zip(part.subplots(1, len(pair)), pair):
            show(panel, image, f"{100 * image['probability']:.0f} %")
    return figure


def speed_data():
    """Return the images per second of each way."""
    benchmark = record("cifar10", "frozen_once.json")
    return {"ways": {name: way["images_per_second"]
                     for name, way in benchmark["ways"].items()},
            "size": benchmark["size"],
            "machine": report.processors([benchmark])}


def draw_speed(data):
    """Draw a bar for each way."""
    figure = Figure((WIDTH, 2.8), layout="constrained")
    panel = figure.subplots()
    names = list(data["ways"])
    bars = panel.barh(names, list(data["ways"].values()), color=[
        BLUE if "our" in name else SKY for name in names])
    panel.bar_label(bars, fmt="%.0f", padding=3)
    panel.invert_yaxis()
    panel.margins(x=0.1)
    panel.set_xlabel(f"images/s at {data['size']} pixels on "
                     f"{data['machine']}")
    return figure


FIGURES = {
    "1-accuracy-cost.png": (cost_data, draw_cost),
    "2-examples.png": (examples_data, draw_examples),
    "3-curves.png": (functools.partial(curves_data, CURVES), draw_curves),
    "4-batchnorm.png": (functools.partial(curves_data, BATCHNORM),
                        draw_curves),
    "5-depth.png": (depth_data, draw_depth),
    "6-confusion.png": (confusion_data, draw_confusion),
    "7-speed.png": (speed_data, draw_speed),
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
