#!/usr/bin/env python3
"""Write the numbers and tables of README.md and paper/README.md anew.

    paper/fill_in.py

They come from results/. A comment behind a number is its key, as in
"91.5 %<!--accuracy:upper-half-->"; the functions below make the numbers. A
table is everything between <!--table NAME--> and <!--end-->. All other text
stays as it is.
"""
import argparse
import itertools
import os
import re
import statistics
import sys

from scipy.stats import binomtest

import figures

report, record = figures.report, figures.record

FILES = [os.path.join(figures.ROOT, *path) for path in (
    ["README.md"], ["paper", "README.md"])]
COMMENT = re.compile(
    r"<!--table (?P<table>[\w-]+)-->\n(?:(?!<!--).)*<!--end-->"
    r"|(?:(?P<number>(?:(?<!\w)-)?\d[\d.,]*(?:e-\d+)?)(?P<percent>\s%)?)?"
    r"<!--(?P<key>.*?)-->", re.S)


# Records that are more than one file

def final_records():
    """Return CIFAR-10's final network, a record for each seed."""
    return [record("cifar10", f"seed-{seed}.json") for seed in range(3)]


def cifar100_records():
    """Return both styles on both bases."""
    return report.read(os.path.join(figures.RESULTS, "cifar100"))


def dessert_records():
    """Return the simple network and the pretrained ones, at all sizes."""
    return [each for folder in (
        "simple_cnn", "simple_cnn_160", "smaller", "transfer_model")
        for each in report.read(os.path.join(
            figures.RESULTS, "desserts", folder))
        # transfer_model.py has its own copy of a simple network's record.
        if "base" in each or "simple" in folder]


def four_classes_records():
    """Return both styles, a list with a record for each split."""
    records = report.read(os.path.join(figures.RESULTS, "four_classes"))
    return [list(splits)
            for _, splits in itertools.groupby(records, report.name)]


# Numbers, {key: text}. Behind a key's colon is mostly the name of a record.

def slug(name):
    """Return the name of a row as it is in file names."""
    return "-".join(name.replace(",", "").split())


def ablation():
    """Return the numbers of the ablation; after the colon: a row."""
    numbers, accuracy, cost = {}, {}, {}
    for name, seeds in figures.rows().items():
        row, epochs = slug(name), figures.history(seeds)
        each = figures.accuracies(seeds)
        accuracy[row], cost[row] = statistics.mean(each), figures.cost(seeds)
        numbers.update({
            f"accuracy:{row}": f"{accuracy[row]:.1f}",
            f"training:{row}": f"{100 * epochs[-1]['accuracy']:.1f}",
            f"cost:{row}": f"{cost[row]:.1f}",
            f"worst-seed:{row}": f"{min(each):.0f}",
            f"best-seed:{row}": f"{max(each):.0f}"})
        for i, epoch in enumerate(epochs, start=1):
            numbers[f"epoch-{i}:{row}"] = f"{100 * epoch['val_accuracy']:.1f}"
        if len(each) > 1:
            numbers[f"deviation:{row}"] = f"{statistics.stdev(each):.1f}"
    for row, other in itertools.permutations(accuracy, 2):
        gain = accuracy[row] - accuracy[other]
        numbers.update({
            f"gain:{row}/{other}": f"{gain:.1f}",
            f"removed:{row}/{other}":
                f"{100 * gain / (100 - accuracy[other]):.0f}",
            f"times:{row}/{other}": f"{cost[row] / cost[other]:.1f}"})
    heads = [row for row in accuracy if "linear" in row or "hidden" in row]
    same_work = [
        sum(epoch["training_seconds"] for epoch in seed["history"])
        for name in ("upper half", "upper half, not mirrored",
                     "BatchNorm momentum 0.999")
        for seed in figures.rows()[name]]
    share = accuracy["upper-half-not-mirrored"] / 100
    throughput = statistics.median(figures.throughputs().values())
    machine = figures.rows()["upper half"][0]["machine"]
    return {
        **numbers,
        "accuracy:lowest-head": f"{min(accuracy[row] for row in heads):.1f}",
        "accuracy:highest-head": f"{max(accuracy[row] for row in heads):.1f}",
        "cost:lowest-head": f"{min(cost[row] for row in heads):.1f}",
        "cost:highest-head": f"{max(cost[row] for row in heads):.1f}",
        "cost:highest": f"{max(cost.values()):.1f}",
        "rows": str(len(accuracy)),
        "rows:three-seeds": str(sum(
            len(seeds) == 3 for seeds in figures.rows().values())),
        "seconds:pass": f"{figures.IMAGES / throughput:.0f}",
        "seconds:fastest": f"{min(same_work):.0f}",
        "seconds:slowest": f"{max(same_work):.0f}",
        "standard-error": f"{100 * (share * (1 - share) / 5000) ** 0.5:.1f}",
        "tensorflow": machine["tensorflow"].rpartition(".")[0],
        "keras": machine["keras"].rpartition(".")[0]}


def settings():
    """Return what was set, from the same records."""
    images = record("ablation", "run.json")["arguments"]
    upper = figures.rows()["upper half"][0]
    seed = final_records()[0]
    steps = upper["epochs"] * (images["images"] // seed["recipe"]["BATCH"])
    frozen, total = upper["frozen_convolutions"], upper["convolutions"]
    return {
        **{f"set:{name}": str(seed["recipe"][name.upper().replace("-", "_")])
           for name in ("batch", "learning-rate", "weight-decay",
                        "label-smoothing", "dropout")},
        "set:momentum": str(upper["momentum"]),
        "set:final-frozen": str(seed["frozen_convolutions"]),
        "set:final-convolutions": str(seed["convolutions"]),
        "set:images": f"{images['images']:,}",
        "set:validation": f"{images['held out']:,}",
        "set:size": str(upper["size"]), "set:steps": str(steps),
        "set:final-size": str(seed["arguments"]["size"]),
        "set:hidden": str(figures.rows()["hidden layer"][0]["hidden"]),
        "set:frozen": str(frozen), "set:trained": str(total - frozen),
        "set:convolutions": str(total)}


def final_network():
    """Return the numbers of CIFAR-10's final network, on all images."""
    seeds = final_records()
    accuracies = [100 * seed["test_accuracy"] for seed in seeds]
    interval = binomtest(round(100 * min(accuracies)), 10000).proportion_ci(
        method="wilson")
    # The first seed computed the frozen outputs that the others used.
    before = [seed["seconds"]["images and weights"]
              + seed["seconds"]["frozen part"] for seed in seeds]
    minutes = [(seed["seconds"]["all"] - cached + before[0]) / 60
               for seed, cached in zip(seeds, before)]
    predictions = record("cifar10", "answers.json")
    confusion, classes = predictions["confusion"], predictions["classes"]
    numbers = {
        "cifar10": f"{statistics.mean(accuracies):.2f}",
        "cifar10:deviation": f"{statistics.stdev(accuracies):.2f}",
        "cifar10:interval-low": f"{100 * interval.low:.1f}",
        "cifar10:interval-high": f"{100 * interval.high:.1f}",
        "cifar10:minutes": f"{min(minutes):.0f}",
        "cifar10:most-minutes": f"{max(minutes):.0f}",
        "cifar10:second-run": f"{max(before[1:]):.0f}",
        "cifar10:mistakes": str(sum(map(sum, confusion)) - sum(
            row[i] for i, row in enumerate(confusion)))}
    for i, seed in enumerate(seeds):
        numbers[f"cifar10:seed-{i}"] = f"{accuracies[i]:.2f}"
        numbers[f"loss:seed-{i}"] = f"{seed['test_loss']:.4f}"
    for (i, truth), (j, taken) in itertools.permutations(
            enumerate(classes), 2):
        numbers[f"taken:{truth}/{taken}"] = (
            f"{100 * confusion[i][j] / sum(confusion[i]):.0f}")
    one, two = (record("cifar10", "trials", f"{name}.json")["history"][-1]
                for name in ("plain-160-20000", "block-5c"))
    gain = 100 * (two["val_accuracy"] - one["val_accuracy"])
    return {**numbers, "trials:gain": f"{gain:.1f}"}


def computing_once():
    """Return the numbers of the benchmark; after the colon: a way."""
    speed = {slug(name): way["images_per_second"] for name, way in record(
        "cifar10", "frozen_once.json")["ways"].items()}
    predict = speed["predict-whole-base"]
    fit = 4 * predict / speed["fit-upper-half-trained-from-images"]
    ours = predict * (2 / speed["our-frozen-pass"]
                      + 4 / speed["an-epoch-of-our-training"])
    return {**{f"speed:{way}": f"{value:.0f}" for way, value in speed.items()},
            "passes:head": "{:.1f}".format(
                20 * predict / speed["fit-base-frozen-from-images"]),
            "passes:fit": f"{fit:.1f}", "passes:ours": f"{ours:.1f}",
            "passes:fit/ours": f"{fit / ours:.1f}"}


def cifar100():
    """Return the numbers of CIFAR-100; after the colon: a base, a style."""
    numbers, accuracy, minutes = {}, {}, {}
    for each in cifar100_records():
        key = each["base"], each["style"]
        accuracy[key], minutes[key] = each["test_top1"], report.minutes(each)
        numbers["top1:{}-{}".format(*key)] = f"{100 * accuracy[key]:.1f}"
        numbers["minutes:{}-{}".format(*key)] = f"{minutes[key]:.0f}"
    for base in dict.fromkeys(base for base, _ in accuracy):
        fixed, partial = (accuracy[base, style] for style in report.STYLES)
        variance = sum(p * (1 - p) / 10000 for p in (fixed, partial))
        numbers[f"gain:{base}"] = f"{100 * (partial - fixed):.1f}"
        numbers[f"z:{base}"] = f"{(partial - fixed) / variance ** 0.5:.0f}"
    for (base, style), (other, same) in itertools.permutations(accuracy, 2):
        if style == same == "partial":
            gain = accuracy[base, style] - accuracy[other, style]
            times = minutes[base, style] / minutes[other, style]
            numbers[f"gain:{base}/{other}"] = f"{100 * gain:.1f}"
            numbers[f"times:{base}/{other}"] = f"{times:.1f}"
    return numbers


def desserts():
    """Return the numbers of the desserts; after the colon: a network."""
    numbers = {}
    for each in dessert_records():
        name = slug(f"{report.name(each)} {each['size']}")
        evaluation = each["evaluation"]
        numbers.update({
            f"holdout:{name}": f"{100 * evaluation['accuracy']:.1f}",
            f"minutes:{name}":
                f"{report.training_seconds(each) / 60:.0f}",
            "desserts": str(len(evaluation["answers"]))})
        if "against_simple" in each:
            pair = each["against_simple"]
            numbers.update({f"wins:{name}": str(pair["only_this_right"]),
                            f"losses:{name}": str(pair["only_other_right"]),
                            f"p:{name}": f"{pair['p']:.2g}"})
    return numbers


def four_classes():
    """Return the numbers of the four classes; after the colon: a style."""
    numbers, merged = {}, {}
    for splits in four_classes_records():
        style = slug(report.name(splits[0]))
        numbers[f"four-classes:{style}"] = report.mean_and_deviation(
            splits).split()[0]
        merged[style] = report.merge_splits(splits)["evaluation"]
    pair = report.compare(merged["fine-tuning"], merged["feature-extraction"])
    images = {row[1] for row in merged["fine-tuning"]["answers"]}
    return {**numbers, "four-classes": str(len(images)),
            "four-classes:wins": str(pair["only_this_right"]),
            "four-classes:losses": str(pair["only_other_right"]),
            "four-classes:p": f"{pair['p']:.2g}"}


def memory():
    """Return the highest peak memory in GiB; after the colon: a folder."""
    records = {"cifar10": final_records(), "cifar100": cifar100_records(),
               "ablation": sum(figures.rows().values(), [])}
    return {f"memory:{folder}": "{:.1f}".format(max(
        each["machine"]["peak_memory_bytes"] for each in some) / 2 ** 30)
        for folder, some in records.items()}


NUMBERS = (ablation, settings, final_network, computing_once, cifar100,
           desserts, four_classes, memory)


# Tables, {name: rows of cells}

# Of report.py's tables, README shows these rows; row 0 is the header.
SHOWN = {"cifar100": (0, 1, 2, 3, 7, 8, 11, 14),
         "desserts": (0, 1, 2, 4, 5, 7, 8),
         "four-classes": (0, 1, 2, 3, 4, 6, 7)}
# The paper's tables of the ablation, {name: (header, {first cell: row})}
ABLATION = {
    "heads": ("what is trained", {
        "a linear head": "linear head",
        "a linear head, mirror images as well": "linear head, mirrored",
        "a head with a hidden layer": "hidden layer",
        "a hidden layer, mirror images as well": "hidden layer, mirrored",
        "the upper half and a linear head": "upper half, not mirrored",
        "the upper half, mirror images as well": "upper half"}),
    "batchnorm": ("BatchNorm above the cut", {
        "trained, momentum 0.9": "upper half",
        "trained, momentum 0.999": "BatchNorm momentum 0.999",
        "frozen, learning rate 0.001": "BatchNorm frozen",
        "frozen, learning rate 0.0002": "BatchNorm frozen, rate 2e-4"}),
    "upper-half": ("the upper half, but", {
        "nothing else (128 pixels, block 8, 3 epochs)": "upper half",
        "96 pixels": "size 96", "160 pixels": "size 160",
        "cut after block 2": "cut after block 2",
        "cut after block 5": "cut after block 5",
        "cut after block 12": "cut after block 12",
        "cut after block 15": "cut after block 15",
        "1 epoch": "1 epoch", "2 epochs": "2 epochs",
        "6 epochs": "6 epochs"}),
    "controls": ("control", {
        "the upper half, as above": "upper half",
        "frozen outputs stored as 32-bit floats": "stored as float32",
        "random weights, lower half frozen":
            "random weights, lower half frozen",
        "random weights, all trained, 1 epoch":
            "random weights, all trained, 1 epoch"})}
# The trials for the final network, {file: label}
TRIALS = {
    "plain-160": "MobileNetV2, 160 pixels, cut after block 8",
    "crop-160": "the same, random 8×8 crops of the 10×10 stored outputs",
    "mix-160": "the same, a rectangle of another image mixed into half of the "
    "batches",
    "rate-160": "the same, half the learning rate",
    "plain-160-20000": "MobileNetV2, as in the first row",
    "rate-160-20000": "the same, half the learning rate",
    "block-5e": "EfficientNetV2-B0, 128 pixels, cut after block 5e",
    "block-5e-warm-up": "the same; the head begins with zeros, the learning "
    "rate rises in the first tenth",
    "block-5c-warm-up": "the same, cut after block 5c, depthwise convolutions "
    "frozen",
    "block-5c-warm-up-4": "the same, four epochs",
    "block-5c-warm-up-rate": "three epochs, half the learning rate",
    "block-5c": "cut after block 5c, depthwise convolutions frozen, no "
    "warm-up"}


def percent(values):
    """Return mean and standard deviation of shares, in %."""
    values = [100 * value for value in values]
    return f"{statistics.mean(values):.1f} %" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def ablation_table(name):
    """Return one of ABLATION; BatchNorm's has the training accuracy, too."""
    header, rows = ABLATION[name]
    columns = {
        "seeds": lambda seeds: str(len(seeds)),
        "training accuracy": lambda seeds: percent(
            seed["history"][-1]["accuracy"] for seed in seeds),
        "held-out accuracy": lambda seeds: percent(
            seed["val_accuracy"] for seed in seeds),
        "cost, passes": lambda seeds: f"{figures.cost(seeds):.1f}"}
    if name != "batchnorm":
        del columns["training accuracy"]
    return [[header, *columns]] + [
        [label] + [cell(figures.rows()[row]) for cell in columns.values()]
        for label, row in rows.items()]


def seeds_table():
    """Return the table of the final network, with each seed."""
    return [["seed", "test accuracy", "test loss"]] + [
        [str(i), f"{100 * seed['test_accuracy']:.2f} %",
         f"{seed['test_loss']:.3f}"] for i, seed in enumerate(final_records())]


def trials_table():
    """Return the table of the trials for the final network."""
    rows = [["images", "epochs", "what", "held-out accuracy"]]
    for name, label in TRIALS.items():
        trial = record("cifar10", "trials", f"{name}.json")
        epochs = trial["history"]
        rows.append([f"{trial['training_images']:,}", str(len(epochs)), label,
                     f"{100 * epochs[-1]['val_accuracy']:.2f} %"])
    return rows


def speeds_table():
    """Return the table of the benchmark."""
    return [["way", "images/s", "peak memory, GiB"]] + [
        [name, f"{way['images_per_second']:.0f}",
         f"{way['peak_memory_bytes'] / 2 ** 30:.2f}"] for name, way in record(
             "cifar10", "frozen_once.json")["ways"].items()]


def trust_tables():
    """Return the tables of make matrix and make torture, if they have run."""
    return {name: record("trust", f"{name}.json")["rows"]
            for name in ("versions", "torture") if os.path.exists(
                os.path.join(figures.RESULTS, "trust", f"{name}.json"))}


def tables():
    """Return all tables."""
    whole = {"cifar100": report.table(cifar100_records()),
             "desserts": report.table(
                 dessert_records(), report.DESSERTS_ROWS),
             "four-classes": report.table(
                 four_classes_records(), report.FOUR_CLASSES_ROWS)}
    return {**{name: [rows[i] for i in SHOWN[name]]
               for name, rows in whole.items()},
            **{name: ablation_table(name) for name in ABLATION},
            "seeds": seeds_table(), "trials": trials_table(),
            "speeds": speeds_table(), **trust_tables()}


# The text

def fill_in(text):
    """Return a text with today's numbers and tables in it.

    Raises ValueError if a comment doesn't belong to one of them.
    """
    numbers = {key: value for part in NUMBERS
               for key, value in part().items()}
    rows = tables()

    def today(match):
        """Return the number or table that a match should be."""
        name, number, key = match["table"], match["number"], match["key"]
        if name in rows:
            return (f"<!--table {name}-->\n{report.markdown(rows[name])}\n"
                    "<!--end-->")
        if number and key in numbers:
            return f"{numbers[key]}{match['percent'] or ''}<!--{key}-->"
        line = text.count("\n", 0, match.start()) + 1
        raise ValueError(f"line {line}: expected a number and a known key, or "
                         f"a known table and its end: {match[0]}")

    return COMMENT.sub(today, text)


def main():
    """Fill in both texts."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    for path in FILES:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            report.runs.write(path, fill_in(text).encode())
        except (OSError, ValueError) as error:
            sys.exit(f"{path}: {error}")
        print(os.path.relpath(path, figures.ROOT))


if __name__ == "__main__":
    main()
