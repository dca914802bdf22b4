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

from scipy.stats import binomtest, t

import figures

report, record, slug = figures.report, figures.record, figures.slug

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


def travel_records():
    """Return {data: its records, one for each seed}."""
    return {name: [record("travel", f"{name}-{seed}.json")
                   for seed in range(seeds)]
            for name, seeds in figures.arguments("travel")["seeds"].items()}


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

def mean_and_deviation(kind, name, values):
    """Return the numbers "kind:name" and "kind-deviation:name"."""
    mean, deviation = figures.mean_and_deviation(values)
    return {f"{kind}:{name}": f"{mean:.1f}",
            f"{kind}-deviation:{name}": f"{deviation:.1f}"}


def variance_of_share(share, images):
    """Return the variance by chance of the share of images that are right."""
    return share * (1 - share) / images


def choices():
    """Return the numbers of benchmarks/choices.py; after the colon: a row."""
    numbers, accuracy, cost, multiply_adds = {}, {}, {}, {}
    for name, seeds in figures.rows().items():
        row = slug(name)
        multiply_adds[row] = figures.multiply_adds(seeds)
        accuracies, costs = figures.accuracies(seeds), figures.costs(seeds)
        accuracy[row], cost[row] = map(statistics.mean, (accuracies, costs))
        numbers.update({**mean_and_deviation("accuracy", row, accuracies),
                        **mean_and_deviation("cost", row, costs)})
        if "val_accuracy_averages_anew" in seeds[0]:
            numbers.update(mean_and_deviation("anew", row, [
                100 * seed["val_accuracy_averages_anew"] for seed in seeds]))
    for row, other in itertools.permutations(accuracy, 2):
        numbers.update({
            f"gain:{row}/{other}": f"{accuracy[row] - accuracy[other]:.1f}",
            f"times:{row}/{other}": f"{cost[row] / cost[other]:.1f}",
            f"multiply-adds:{row}/{other}":
                f"{multiply_adds[row] / multiply_adds[other]:.1f}"})
    return numbers


def spread():
    """Return how well accuracies, costs and times are known."""
    rows = figures.rows()
    three = [seeds for seeds in rows.values() if len(seeds) == 3]
    # Pooled; without ImageNet or with slow averages, seeds differ more
    alike = [seeds for seeds in three if seeds[0]["weights"]
             and (seeds[0]["momentum"] or 0) <= 0.9]
    deviation = statistics.mean(
        statistics.variance(figures.accuracies(seeds))
        for seeds in alike) ** 0.5
    share = statistics.mean(figures.accuracies(rows["upper half"])) / 100
    validation = figures.arguments("choices")["validation images"]
    relative = [deviation / mean for mean, deviation in (
        figures.mean_and_deviation(figures.costs(seeds)) for seeds in three)]
    # Some rows share a frozen pass.
    times = {(part["process"], part["seconds"]) for seeds in rows.values()
             for seed in seeds for _, part in figures.timed_parts(seed)}
    speeds = figures.throughputs().values()
    return {
        "rows:three-seeds": str(len(three)),
        "deviation": f"{deviation:.1f}",
        # Two means of three seeds; each row has two degrees of freedom
        "visible": "{:.1f}".format(t.ppf(0.975, 2 * len(alike))
                                   * deviation * (2 / 3) ** 0.5),
        "standard-error": "{:.1f}".format(
            100 * variance_of_share(share, validation) ** 0.5),
        "cost:percent": f"{100 * statistics.median(relative):.0f}",
        "cost:most-percent": f"{100 * max(relative):.0f}",
        "choices:hours": "{:.0f}".format(
            sum(seconds for _, seconds in times) / 3600),
        "pass:seconds": "{:.0f}".format(
            rows["upper half"][0]["images"] / max(speeds)),
        "speed:times": f"{max(speeds) / min(speeds):.1f}"}


def settings():
    """Return what was set, from the same records."""
    run = figures.arguments("choices")
    upper = figures.rows()["upper half"][0]
    seed = final_records()[0]
    steps = upper["epochs"] * (upper["images"] // seed["recipe"]["BATCH"])
    versions = upper["machine"]
    return {
        **{f"set:{name}": str(seed["recipe"][name.upper().replace("-", "_")])
           for name in ("batch", "learning-rate", "weight-decay",
                        "label-smoothing", "dropout")},
        **{f"set:{name}": str(upper[name])
           for name in ("momentum", "size", "epochs")},
        "set:images": f"{upper['images']:,}",
        "set:validation": f"{run['validation images']:,}",
        "set:steps": str(steps), "kept:0.999": f"{100 * 0.999 ** steps:.0f}",
        "set:frozen": str(upper["frozen_convolutions"]),
        "set:convolutions": str(upper["convolutions"]),
        "set:hidden": str(figures.rows()["hidden layer"][0]["hidden"]),
        "set:head-epochs": str(figures.rows()["linear head"][0]["epochs"]),
        **{name: versions[name].rpartition(".")[0]
           for name in ("tensorflow", "keras", "numpy", "python")}}


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
    confusion = predictions["confusion"]
    numbers = {
        "cifar10": f"{statistics.mean(accuracies):.2f}",
        "cifar10:deviation": f"{statistics.stdev(accuracies):.2f}",
        "cifar10:interval-low": f"{100 * interval.low:.1f}",
        "cifar10:interval-high": f"{100 * interval.high:.1f}",
        "cifar10:above": f"{statistics.mean(accuracies) - 87:.1f}",
        "cifar10:minutes": f"{min(minutes):.0f}",
        "cifar10:fastest": f"{min(minutes):.1f}",
        "cifar10:slowest": f"{max(minutes):.1f}",
        "cifar10:most-minutes": f"{max(minutes):.0f}",
        "cifar10:mistakes": str(sum(map(sum, confusion)) - sum(
            row[i] for i, row in enumerate(confusion)))}
    for i, seed in enumerate(seeds):
        numbers[f"cifar10:seed-{i}"] = f"{accuracies[i]:.2f}"
        numbers[f"loss:seed-{i}"] = f"{seed['test_loss']:.4f}"
    trial = record("cifar10", "trials", "block-5c.json")["history"][-1]
    return {**numbers, "trials:EfficientNetV2-B0":
            f"{100 * trial['val_accuracy']:.1f}"}


def computing_once():
    """Return the numbers of the benchmark, in passes."""
    ways = record("cifar10", "frozen_once.json")["ways"]
    epochs = figures.rows()["linear head"][0]["epochs"]

    def costs(predict, head, fit, frozen_pass, training):
        """Return the passes of a head's epochs, and of four of ours."""
        return (epochs * predict / head, 4 * predict / fit,
                predict * (2 / frozen_pass + 4 / training))

    names = ("predict, whole base", "fit, base frozen, from images",
             "fit, upper half trained, from images", "our frozen pass",
             "an epoch of our training")
    # In each repetition, all ways were measured one after the other.
    each = [costs(*speeds) for speeds in zip(*(
        ways[name]["images_per_second"] for name in names))]
    head, fit, ours = map(statistics.median, zip(*each))
    ratios = [fit / ours for _, fit, ours in each]
    return {"passes:head": f"{head:.0f}", "passes:fit": f"{fit:.1f}",
            "passes:ours": f"{ours:.1f}",
            "passes:fit/ours": f"{statistics.median(ratios):.2f}",
            "passes:fit/ours-lowest": f"{min(ratios):.2f}",
            "passes:fit/ours-highest": f"{max(ratios):.2f}"}


def travel():
    """Return what can be seen on other data; after the colon: the data."""
    numbers = {}
    for name, seeds in travel_records().items():
        share = statistics.mean(seed["test_accuracy"] for seed in seeds)
        variance = variance_of_share(share, seeds[0]["test_images"])
        # Between two networks, each on its own draw of as many test images
        numbers[f"visible:{name}"] = f"{196 * (2 * variance) ** 0.5:.1f}"
    return numbers


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
        variance = sum(variance_of_share(share, 10000)
                       for share in (fixed, partial))
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
               "choices": sum(figures.rows().values(), [])}
    return {f"memory:{folder}": "{:.1f}".format(max(
        each["machine"]["peak_memory_bytes"] for each in some) / 2 ** 30)
        for folder, some in records.items()}


NUMBERS = (choices, spread, settings, final_network, computing_once, travel,
           cifar100, desserts, four_classes, memory)


# Tables, {name: rows of cells}

# Of report.py's tables, README shows these rows; row 0 is the header.
SHOWN = {"cifar100": (0, 1, 2, 3, 7, 8, 11, 14),
         "desserts": (0, 1, 2, 4, 5, 7, 8),
         "four-classes": (0, 1, 2, 3, 4, 6, 7)}
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


def with_deviation(values, unit=""):
    """Return mean and standard deviation, as text."""
    mean, deviation = figures.mean_and_deviation(values)
    return f"{mean:.1f}{unit}" + (
        f" ± {deviation:.1f}" if len(values) > 1 else "")


def choices_table():
    """Return the table of all rows of benchmarks/choices.py."""
    rows = [["what", "training accuracy", "validation accuracy",
             "cost, passes", "10⁹ multiply-adds an image"]]
    for name, seeds in figures.rows().items():
        rows.append([
            name, with_deviation([100 * seed["history"][-1]["accuracy"]
                                  for seed in seeds], " %"),
            with_deviation(figures.accuracies(seeds), " %"),
            with_deviation(figures.costs(seeds)),
            f"{figures.multiply_adds(seeds):.2f}"])
    return rows


def travel_table():
    """Return the table of the recipe on other data."""
    of_cifar100 = next(
        each for each in cifar100_records()
        if (each["base"], each["style"]) == ("EfficientNetV2B0", "partial"))
    of_desserts = next(
        each for each in dessert_records()
        if (report.name(each), each["size"]) == (
            "EfficientNetV2B0, adam, BatchNorm trained", 224))
    of_four_classes = next(
        splits for splits in four_classes_records()
        if report.name(splits[0]) == "fine-tuning")
    own = {
        "cifar100": ("CIFAR-100", of_cifar100["test_top1"],
                     of_cifar100["size"]),
        "desserts": ("desserts", of_desserts["evaluation"]["accuracy"],
                     of_desserts["size"]),
        "four_classes": ("four classes", statistics.mean(
            split["evaluation"]["accuracy"] for split in of_four_classes),
            of_four_classes[0]["size"])}
    rows = [["data", "training images", "test images", "trainings",
             "the recipe", "the exercise's own script",
             "the script's image size"]]
    for name, seeds in travel_records().items():
        label, accuracy, size = own[name]
        rows.append([label, f"{seeds[0]['images']:,}",
                     f"{seeds[0]['test_images']:,}", str(len(seeds)),
                     with_deviation([100 * seed["test_accuracy"]
                                     for seed in seeds], " %"),
                     f"{100 * accuracy:.1f} %", f"{size} pixels"])
    return rows


def seeds_table():
    """Return the table of the final network, with each seed."""
    return [["seed", "test accuracy", "test loss"]] + [
        [str(i), f"{100 * seed['test_accuracy']:.2f} %",
         f"{seed['test_loss']:.3f}"] for i, seed in enumerate(final_records())]


def trials_table():
    """Return the table of the trials for the final network."""
    rows = [["images", "epochs", "what", "validation accuracy"]]
    for name, label in TRIALS.items():
        trial = record("cifar10", "trials", f"{name}.json")
        epochs = trial["history"]
        rows.append([f"{trial['training_images']:,}", str(len(epochs)), label,
                     f"{100 * epochs[-1]['val_accuracy']:.2f} %"])
    return rows


def speeds_table():
    """Return the table of the benchmark: medians, and the range."""
    rows = [["way", "images/s", "slowest to fastest", "peak memory, GiB"]]
    for name, way in record("cifar10", "frozen_once.json")["ways"].items():
        speeds = way["images_per_second"]
        rows.append([name, f"{statistics.median(speeds):.0f}",
                     f"{min(speeds):.0f} to {max(speeds):.0f}",
                     f"{max(way['peak_memory_bytes']) / 2 ** 30:.2f}"])
    return rows


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
            "choices": choices_table(), "travel": travel_table(),
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
