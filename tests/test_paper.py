#!/usr/bin/env python3
"""The paper: its pictures, numbers and links agree with the records.

The numbers are computed anew here from the JSON files. Each number of the
abstract, of a table and of a caption has to be one of them: what remains of
the text when they are taken away has no digits, but for names.
"""
import base64
import glob
import html
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
PAPER = os.path.join(ROOT, "paper")
RESULTS = os.path.join(ROOT, "results")
sys.path[:0] = [ROOT, HERE, PAPER, os.path.join(ROOT, "benchmarks")]
import ablation  # noqa: E402
import answers  # noqa: E402
import figures  # noqa: E402
import publish  # noqa: E402
import report  # noqa: E402
from figures import record as recorded, rows  # noqa: E402
from test_exercise_0 import real_data, run  # noqa: E402


def read(*path):
    """A text file of the repository."""
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


# Records

def test_the_records_are_those_of_the_rows():
    """All rows and seeds, made with what the script says today."""
    assert recorded("ablation", "run.json")["finished"]
    found = rows()
    assert set(found) == set(ablation.ROWS)
    for name, row in ablation.ROWS.items():
        assert [seed["seed"] for seed in found[name]] == list(
            range(row.seeds))
        for seed in found[name]:
            for key, value in row._asdict().items():
                assert seed[key] == value, (name, key)
            assert len(seed["history"]) == row.epochs


def mean(values):
    """The mean, as numpy has it."""
    return np.mean(list(values))


def held_out_mean(name):
    """The mean held-out accuracy of a row's last epoch, in %."""
    return 100 * mean(seed["history"][-1]["val_accuracy"]
                      for seed in rows()[name])


def speeds():
    """{process: the median speed of predict in it}"""
    found = {(part["process"], part["predict_images_per_second"])
             for seeds in rows().values() for seed in seeds
             for part in [seed["frozen_pass"]] + seed["history"]}
    return {process: np.median([speed for other, speed in found
                                if other == process])
            for process, _ in found}


def passes(name):
    """What a row costs, in passes, from seconds and speeds.

    Of the 25,000 images that went through, 5,000 were held out; if they
    weren't mirrored, 10,000 others went through twice.
    """
    speed = speeds()
    return mean(
        seed["frozen_pass"]["seconds"] * (0.8 if seed["mirror"] else 0.4)
        * speed[seed["frozen_pass"]["process"]] / 10000
        + sum(epoch["training_seconds"] * speed[epoch["process"]]
              for epoch in seed["history"]) / 10000
        for seed in rows()[name])


# Pictures

@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_picture_carries_the_digest_of_its_data(name):
    """The data is what is recorded now; the picture is 700 pixels wide."""
    data, _ = figures.FIGURES[name]
    with Image.open(os.path.join(PAPER, name)) as picture:
        assert picture.text["data-sha256"] == figures.digest(data()), (
            "run: make paper")
        assert picture.width == 700


def lines(panel):
    """What a panel's lines show, as lists of points."""
    return [line.get_xydata().tolist() for line in panel.lines]


def test_the_top_picture_shows_all_rows():
    """A point for each, at its cost and accuracy."""
    data = figures.cost_data()
    high, low = figures.draw_cost(data).axes[:2]
    for name in rows():
        x, y = passes(name), held_out_mean(name)
        assert data["points"][name][:2] == pytest.approx([x, y])
        if len(rows()[name]) > 1:
            assert data["points"][name][2] == pytest.approx(100 * np.std(
                [seed["val_accuracy"] for seed in rows()[name]], ddof=1))
        panel = low if y < 80 else high
        assert any(point == pytest.approx([x, y])
                   for line in lines(panel) for point in line), name
        assert panel.get_xlim()[0] < x < panel.get_xlim()[1]
        assert panel.get_ylim()[0] < y < panel.get_ylim()[1]
    anew = from_images("fit, upper half trained, from images", 3)
    assert any(line[-1] == pytest.approx([anew, held_out_mean("upper half")])
               for line in lines(high) if line)


@pytest.mark.parametrize("name, titles", [
    ("3-curves.png", {
        "linear head": "linear head",
        "hidden layer, mirrored": "hidden layer, mirrored",
        "upper half": "upper half", "upper half, 6 epochs": "6 epochs"}),
    ("4-batchnorm.png", {
        "BatchNorm trained, momentum 0.9": "upper half",
        "BatchNorm trained, momentum 0.999": "BatchNorm momentum 0.999",
        "BatchNorm frozen, learning rate 0.001": "BatchNorm frozen",
        "BatchNorm frozen, learning rate 0.0002":
            "BatchNorm frozen, rate 2e-4"})])
def test_curves_are_the_histories(name, titles):
    """Both accuracies by epoch, the mean of the seeds."""
    data, draw = figures.FIGURES[name]
    panels = draw(data()).axes
    assert [panel.get_title() for panel in panels] == list(titles)
    for panel, row in zip(panels, titles.values()):
        for line, key in zip(lines(panel), ("accuracy", "val_accuracy")):
            np.testing.assert_allclose(line, [
                (i + 1, 100 * mean(seed["history"][i][key]
                                   for seed in rows()[row]))
                for i in range(len(rows()[row][0]["history"]))])


def test_depth_is_the_rows_by_their_cut():
    """Accuracy above, cost below."""
    panels = figures.draw_depth(figures.depth_data()).axes
    names = ("cut after block 2", "cut after block 5", "upper half",
             "cut after block 12", "cut after block 15",
             "linear head, mirrored")
    for panel, value in zip(panels, (held_out_mean, passes)):
        line = lines(panel)[0]
        np.testing.assert_allclose(line, [
            (frozen, value(name))
            for frozen, name in zip((9, 18, 27, 39, 48, 52), names)])


def test_bars_are_the_speeds():
    """A bar for each way."""
    panel, = figures.draw_speed(figures.speed_data()).axes
    ways = recorded("cifar10", "frozen_once.json")["ways"]
    assert [bar.get_width() for bar in panel.patches] == [
        way["images_per_second"] for way in ways.values()]
    assert [label.get_text() for label in panel.get_yticklabels()] == list(
        ways)


def test_other_data_has_another_digest():
    """The SHA-256 is that of the data as JSON."""
    assert figures.digest({"b": 1, "a": [2.5]}) == (
        "e29416a8e9008a7c9d3ad5a27ece0434abb04d45df100b745b30285ce8538c04")


def test_the_pictures_are_drawn_from_the_records(tmp_path):
    """paper/figures.py as a process, in a copy: as large as those here."""
    for name in ("ablation", "cifar10"):
        shutil.copytree(os.path.join(RESULTS, name),
                        tmp_path / "results" / name)
    for name in ("report.py", "runs.py"):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    os.mkdir(tmp_path / "paper")
    shutil.copy(figures.__file__, tmp_path / "paper")
    done = run([sys.executable, tmp_path / "paper" / "figures.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    for name in figures.FIGURES:
        with Image.open(tmp_path / "paper" / name) as drawn, Image.open(
                os.path.join(PAPER, name)) as kept:
            assert drawn.text["data-sha256"] == kept.text["data-sha256"]
            assert drawn.size == kept.size


# Tables, from the records

def percent(values):
    """Mean and deviation in %; one value alone has none."""
    values = 100 * np.array(values)
    return f"{values.mean():.1f} %" + (
        f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def held_out(name):
    """The held-out accuracy of a row."""
    return percent([seed["val_accuracy"] for seed in rows()[name]])


def training(name):
    """The training accuracy of a row in its last epoch."""
    return percent([seed["history"][-1]["accuracy"]
                    for seed in rows()[name]])


def cost(name):
    """What a row costs, in words."""
    return f"{passes(name):.1f}"


def gain(name, other):
    """By how many points a row is better than another."""
    return f"{held_out_mean(name) - held_out_mean(other):.1f}"


def speed(way):
    """Images per second, as the benchmark measured."""
    return recorded("cifar10", "frozen_once.json")[
        "ways"][way]["images_per_second"]


def markdown(head, lines):
    """A table, as whole lines."""
    return report.markdown([head, *lines]) + "\n"


COLUMNS = {"held-out accuracy": held_out, "training accuracy": training,
           "cost, passes": cost}
TABLES = [
    ("what is trained", ("held-out accuracy", "cost, passes"), {
        "a linear head": "linear head",
        "a linear head, mirror images as well": "linear head, mirrored",
        "a head with a hidden layer": "hidden layer",
        "a hidden layer, mirror images as well": "hidden layer, mirrored",
        "the upper half and a linear head": "upper half, not mirrored",
        "the upper half, mirror images as well": "upper half"}),
    ("BatchNorm above the cut", (
        "training accuracy", "held-out accuracy", "cost, passes"), {
        "trained, momentum 0.9": "upper half",
        "trained, momentum 0.999": "BatchNorm momentum 0.999",
        "frozen, learning rate 0.001": "BatchNorm frozen",
        "frozen, learning rate 0.0002": "BatchNorm frozen, rate 2e-4"}),
    ("the upper half, but", ("held-out accuracy", "cost, passes"), {
        "nothing else (128 pixels, block 8, 3 epochs)": "upper half",
        "96 pixels": "size 96", "160 pixels": "size 160",
        "cut after block 2": "cut after block 2",
        "cut after block 5": "cut after block 5",
        "cut after block 12": "cut after block 12",
        "cut after block 15": "cut after block 15",
        "1 epoch": "1 epoch", "2 epochs": "2 epochs",
        "6 epochs": "6 epochs"}),
    ("control", ("held-out accuracy", "cost, passes"), {
        "the upper half, as above": "upper half",
        "frozen outputs stored as 32-bit floats": "stored as float32",
        "random weights, lower half frozen":
            "random weights, lower half frozen",
        "random weights, all trained, 1 epoch":
            "random weights, all trained, 1 epoch"}),
]


def ablation_table(first, columns, names):
    """A table of rows of the ablation."""
    return markdown((first, "seeds", *columns), [
        (words, str(len(rows()[name])), *(
            COLUMNS[column](name) for column in columns))
        for words, name in names.items()])


@pytest.mark.parametrize("first, columns, names", TABLES)
def test_a_table_of_the_paper_is_what_is_recorded(first, columns, names):
    """Each cell, computed anew."""
    assert ablation_table(first, columns, names) in read(
        "paper", "README.md")


def test_every_row_is_in_a_table():
    """All that was tried is told."""
    assert set(rows()) == {name for _, _, names in TABLES
                           for name in names.values()}


def final_runs():
    """The records of the final network, one for each seed."""
    return [recorded("cifar10", f"seed-{seed}.json") for seed in range(3)]


def final_accuracy():
    """Mean and deviation of its test accuracies, in words."""
    accuracies = [100 * made["test_accuracy"] for made in final_runs()]
    return (f"{np.mean(accuracies):.2f} % ± "
            f"{np.std(accuracies, ddof=1):.2f}")


def slower():
    """How many times as long as the first the others' epochs took."""
    first, *others = (made["seconds"]["training"] for made in final_runs())
    return " and ".join(f"{part / first:.1f}" for part in sorted(others))


def final_table():
    """The final network, with each seed."""
    return markdown(("seed", "test accuracy", "test loss"), [
        (str(made["arguments"]["seed"]),
         f"{100 * made['test_accuracy']:.2f} %", f"{made['test_loss']:.3f}")
        for made in final_runs()])


def trials_table():
    """What was tried before, on held-out images."""
    words = {"plain": "as it is",
             "crop": "random 8×8 crops of the 10×10 stored outputs",
             "mix": "a rectangle of another image mixed into half of the "
                    "batches",
             "rate": "learning rate 0.0005 instead of 0.001"}
    runs = []
    for path in glob.glob(os.path.join(RESULTS, "cifar10", "trials",
                                       "*.json")):
        name = os.path.basename(path)
        runs.append((name.split("-")[0], recorded("cifar10", "trials", name)))
    assert len(runs) == 6
    runs.sort(key=lambda run: (run[1]["training_images"],
                               list(words).index(run[0])))
    return markdown(("images", "epochs", "what", "held-out accuracy"), [
        (f"{run['training_images']:,}", str(len(run["history"])), words[name],
         f"{100 * run['history'][-1]['val_accuracy']:.2f} %")
        for name, run in runs])


def speed_table():
    """What the benchmark measured."""
    ways = recorded("cifar10", "frozen_once.json")["ways"]
    return markdown(("way", "images/s", "peak memory, GiB"), [
        (name, f"{way['images_per_second']:.0f}",
         f"{way['peak_memory_bytes'] / 2 ** 30:.2f}")
        for name, way in ways.items()])


@pytest.mark.parametrize("table", [final_table, trials_table, speed_table])
def test_the_other_tables_are_what_is_recorded(table):
    """Each cell, computed anew."""
    assert table() in read("paper", "README.md")


# The numbers between the tables

def claims():
    """What the paper says of the records, in its own words."""
    seeds, final = final_runs(), final_accuracy()
    minutes = f"{seeds[0]['seconds']['all'] / 60:.0f} minutes"
    heads = ("linear head", "hidden layer", "linear head, mirrored",
             "hidden layer, mirrored")
    least, *_, most = sorted(heads, key=held_out)
    costs = sorted(map(passes, heads))
    lagging = sorted(seed["val_accuracy"] for seed in rows()[
        "BatchNorm momentum 0.999"])
    trainings = [sum(epoch["training_seconds"] for epoch in seed["history"])
                 for name in ("upper half", "BatchNorm momentum 0.999",
                              "upper half, not mirrored")
                 for seed in rows()[name]]
    counts = np.array(recorded("cifar10", "answers.json")["confusion"])
    share = 100 * counts / counts.sum(axis=1, keepdims=True)
    cat, dog = 3, 5
    top = max(passes(name) for name in rows())
    right = held_out_mean("upper half, not mirrored") / 100
    base, larger = (recorded("cifar100", f"{name}-partial.json")
                    for name in ("MobileNetV2", "DenseNet121"))
    trials = {count: recorded("cifar10", "trials", f"plain-160{name}.json")[
        "history"][-1]["val_accuracy"]
        for count, name in ((10000, ""), (20000, "-20000"))}
    longer = report.minutes(larger) / report.minutes(base)
    ours = passes_of_ours()
    closed = 1 - (100 - held_out_mean("upper half")) / (
        100 - held_out_mean("linear head, mirrored"))
    assert min(seeds, key=lambda run: run["seconds"]["training"]) is seeds[0]
    return [
        # Figure 1
        f"{10000 / np.median(list(speeds().values())):.0f} seconds on this "
        "machine",
        # Abstract
        f"gets {held_out(least)[:4]} to {held_out(most)[:6]} right",
        f"for {costs[0]:.1f} to {costs[-1]:.1f} passes",
        f"gets {held_out('upper half')} for {cost('upper half')} passes",
        f"costs up to {top:.1f} and gained nothing",
        f"ends at {held_out('BatchNorm momentum 0.999')}; frozen",
        f"reaches {held_out('BatchNorm frozen, rate 2e-4')} with a fifth",
        "Mirror images "
        f"({gain('upper half', 'upper half, not mirrored')} points), twice "
        f"the epochs ({gain('6 epochs', 'upper half')}) and larger images "
        f"({gain('size 160', 'upper half')})",
        "the same network gets "
        f"{held_out('random weights, all trained, 1 epoch')[:4]} to "
        f"{held_out('random weights, lower half frozen')} for the same",
        f"the network gets {final} of the test images right, the first and "
        f"quickest of three runs after {minutes}",
        # Materials and methods
        f"Nine trainings took {min(trainings):.0f} to {max(trainings):.0f} "
        "seconds for",
        f"{sum(len(found) == 3 for found in rows().values())} of the "
        f"{len(rows())} variants",
        f"of {100 * right:.0f} % has a standard error of "
        f"{100 * np.sqrt(right * (1 - right) / 5000):.1f} points",
        report.processors(rows()["upper half"]) + ", with TensorFlow "
        "{tensorflow[0]}.{tensorflow[1]} and Keras {keras[0]}.{keras[1]}"
        .format(**{key: rows()["upper half"][0]["machine"][key].split(".")
                   for key in ("tensorflow", "keras")}),
        # What is trained
        f"on the frozen network gets {held_out('linear head')[:6]} right",
        f"512 units adds {gain('hidden layer', 'linear head')} points",
        f"Mirror images add {gain('linear head, mirrored', 'linear head')} "
        f"and {gain('hidden layer, mirrored', 'hidden layer')} points, and",
        "Training the upper half as well adds "
        f"{gain('upper half', 'linear head, mirrored')} points",
        "it costs "
        f"{passes('upper half') / passes('linear head, mirrored'):.1f} times "
        "as much",
        "Mirror images add "
        f"{gain('upper half', 'upper half, not mirrored')} points here",
        f"ends at {training('upper half')[:6]} instead of "
        f"{training('upper half, not mirrored')[:6]}: less",
        "the second already brings it to "
        + percent([mean(seed["history"][1]["val_accuracy"]
                        for seed in rows()["upper half"])]) + ".",
        f"training reaches {training('6 epochs')}, and the held-out images "
        f"stay at {held_out('6 epochs')}",
        # BatchNorm
        "own mean, reports "
        f"{training('BatchNorm momentum 0.999')[:6]}, while",
        f"gets {100 * lagging[0]:.0f} to {100 * lagging[-1]:.0f} % of the "
        "held-out images right",
        f"it works: {gain('upper half', 'BatchNorm frozen, rate 2e-4')} "
        "points below ours",
        # Size, depth, epochs
        f"the network gains {gain('upper half', 'size 96')} points, from 128 "
        f"to 160 only {gain('size 160', 'upper half')}, for "
        f"{passes('size 160') / passes('upper half'):.1f} times the cost",
        "and was "
        + min(gain("upper half", "cut after block 2"),
              gain("upper half", "cut after block 5")) + " points worse",
        f"The second gives {gain('2 epochs', '1 epoch')} points, the third "
        f"{gain('upper half', '2 epochs')}, three more together "
        f"{gain('6 epochs', 'upper half')}.",
        f"the cut after block 12 gives {held_out('cut after block 12')} for "
        f"{cost('cut after block 12')} passes, that after block 15 "
        f"{held_out('cut after block 15')} for {cost('cut after block 15')}. "
        "Smaller images give "
        f"{held_out('size 96')} for {cost('size 96')}, a single epoch "
        f"{held_out('1 epoch')} for {cost('1 epoch')}.",
        # Controls
        f"{held_out('random weights, all trained, 1 epoch')} in the one "
        "epoch that it pays for, and "
        f"{held_out('random weights, lower half frozen')} if",
        # The final network
        f"The mean is {final}.",
        f"took {minutes} and {peak(seeds[:1]):.1f} GiB of memory",
        f"took {slower()} times as long",
        f"takes {10000 - np.trace(counts)} of the 10,000 test images for "
        "something else",
        f"taken for dogs in {share[cat, dog]:.0f} % of the cases, dogs for "
        f"cats in {share[dog, cat]:.0f} %",
        # What computing once saves
        f"handles {speed('our frozen pass'):.0f} images a second where "
        f"Keras's `predict` handles {speed('predict, frozen part'):.0f}",
        f"our training {speed('an epoch of our training'):.0f} where `fit`, "
        "which computes the frozen half anew, handles "
        f"{speed('fit, upper half trained, from images'):.0f}",
        f"cost {from_images('fit, base frozen, from images', 20):.1f} with",
        "upper half cost "
        f"{from_images('fit, upper half trained, from images', 4):.1f} "
        f"from the images; from stored outputs {ours:.1f}, both",
        "That is "
        f"{from_images('fit, upper half trained, from images', 4) / ours:.1f}"
        " times as fast",
        # Beside others
        f"**{final.split(' ±')[0]}** | **{minutes}, 2 cores**",
        # Discussion
        "a head of 12,810 numbers",
        f"{gain('cut after block 15', 'linear head, mirrored')} points if "
        "those after block 15 are trained, "
        f"{gain('cut after block 12', 'linear head, mirrored')} after block "
        f"12, {gain('upper half', 'linear head, mirrored')} after block 8.",
        f"closes {100 * closed:.0f} % of the linear head's gap",
        "DenseNet121 gets "
        f"{100 * (larger['test_top1'] - base['test_top1']):.1f} points more "
        f"than MobileNetV2, in {longer:.1f} times the minutes",
        "only more training images were worth a point: "
        f"{100 * (trials[20000] - trials[10000]):.1f} for twice as many",
    ]


def from_images(way, epochs):
    """What epochs of Keras's fit cost, in passes over the same images."""
    return epochs * speed("predict, whole base") / speed(way)


def passes_of_ours():
    """What both views' frozen pass and our four epochs cost, likewise."""
    return (2 / speed("our frozen pass")
            + 4 / speed("an epoch of our training")
            ) * speed("predict, whole base")


# What no run measures: names, and what was set
SETTINGS = re.compile("|".join((
    "CIFAR-10", "MobileNetV2", r"cifar10\.h5", r"\]\([^)]*\)",
    r"Figures? \d( and \d)?", "32×32", "[15]0,000 images, and measured",
    "accuracy on 5,000 held-out images", "training on 10,000\\. One",
    "[15]0,000 training images", "from 10,000 images", "on 50,000 images",
    "96 to 128 pixels", "at 160 pixels",
    r"momentum of 0\.999", r"At 0\.9 they", "are 234 steps",
    r"learning rate of 0\.0+1( \[\d+\])?",
    "of the 52 convolution", r"0\.001, which is",
    "(but|,) 20 (for|epochs)", "16(-bit| bits)", "than 32 changes",
    "The 32-bit row", "with 50,000 images, 160 pixels and four",
    "128 pixels, block 8", "one after block 8", "made for 32 pixels",
    "than 95 %\\.")))


def test_each_number_is_recorded():
    """The abstract, captions and results say what the records say."""
    text = " ".join(read("paper", "README.md").split())
    for claim in claims():
        assert claim in text


def test_no_number_is_left_unchecked():
    """Abstract, captions and results have no others."""
    text = read("paper", "README.md")
    results = text[text.index("## Results"):text.index("### Beside others")]
    for table in [ablation_table(*table) for table in TABLES] + [
            final_table()]:
        results = results.replace(table, "")
    captions = re.findall(r"^\*Figure.*?\*$", text, re.M | re.S)
    assert len(captions) == len(figures.FIGURES)
    abstract = text[text.index("## Abstract"):text.index("## Introduction")]
    left = " ".join(" ".join([*captions, abstract, results]).split())
    for claim in sorted(claims(), key=len, reverse=True):
        left = left.replace(claim, "")
    left = SETTINGS.sub("", left)
    assert not re.findall(r".{0,20}\d.{0,20}", left)


def test_what_was_set_is_what_the_paper_says():
    """Images, size, epochs and all that the scripts set."""
    text = " ".join(read("paper", "README.md").split())
    transfer, row = ablation.transfer, ablation.UPPER
    steps = row.epochs * (ablation.IMAGES // transfer.BATCH)
    frozen, total = (rows()["upper half"][0][key] for key in (
        "frozen_convolutions", "convolutions"))
    for claim in (
            f"we draw {ablation.IMAGES:,} to train on, evenly from the ten "
            f"classes, and hold {ablation.HELD_OUT:,} others out",
            f"from 32 to {row.size} pixels ({transfer.SIZE} in the final",
            f"{total} convolution layers.", f"{frozen} convolutions lie",
            f"below it and {total - frozen} above",
            f"dropout of {transfer.DROPOUT}",
            f"falls from {transfer.LEARNING_RATE} to 0",
            f"weight decay {transfer.WEIGHT_DECAY}",
            f"batches of {transfer.BATCH}",
            f"label smoothing of {transfer.LABEL_SMOOTHING}",
            f"a momentum of {transfer.MOMENTUM} where MobileNetV2 has 0.999",
            f"on {ablation.SPEED_IMAGES:,} images, twice",
            f"epochs are {steps} steps",
            f"hidden layer of {ablation.ROWS['hidden layer'].hidden} units"):
        assert claim in text
    assert (row.epochs, transfer.EPOCHS, ablation.HEAD.epochs,
            ablation.SPEED_TIMES) == (3, 4, 20, 2)  # which it says in words


def test_the_readme_says_what_is_recorded():
    """The first screen of the README, and what else isn't in a table."""
    text = " ".join(read("README.md").split())
    seeds, final = final_runs(), final_accuracy()
    stored = max(sum(run["seconds"][part] for part in (
        "images and weights", "frozen part")) for run in seeds[1:])
    cifar100 = [recorded("cifar100", f"{base}-{style}.json")
                for base in ("MobileNetV2", "DenseNet121")
                for style in ("fixed", "partial")]
    fine_tuned = [recorded("four_classes", f"split-{split}-fine-tuning.json")
                  for split in range(10)]

    def holdout(*path):
        """A holdout accuracy, in %."""
        record = recorded("desserts", *path)
        return f"{100 * record['evaluation']['accuracy']:.1f} %"

    for claim in (
            f"| {final} |", f"| {100 * seeds[0]['test_accuracy']:.2f} % |",
            f"| {seeds[0]['seconds']['all'] / 60:.0f} minutes on AMD EPYC, "
            "2 cores, 24 GiB |",
            f"the epochs cost {passes_of_ours():.1f} passes of Keras's",
            f"begins to train after {stored:.0f} s",
            f"test loss {seeds[0]['test_loss']:.4f}, test accuracy "
            f"{seeds[0]['test_accuracy']:.4f}",
            f"accuracy: {seeds[0]['test_accuracy']:.4f} - loss: "
            f"{seeds[0]['test_loss']:.4f}",
            f"(0-transfer.py) | {final.split(' ±')[0]} |",
            "(cifar100_transfer.py) | "
            f"{100 * max(run['test_top1'] for run in cifar100):.1f} % |",
            f"| {holdout('simple_cnn', 'simple.json')}, "
            f"{holdout('larger', 'MobileNetV2-adam.json')} |",
            "(four_classes_transfer.py) | " + percent([
                run["evaluation"]["accuracy"] for run in fine_tuned
                ]).split(" ±")[0] + " |",
            f"needs {peak(seeds):.1f} GiB at its peak, "
            f"`cifar100_transfer.py` {peak(cifar100):.1f}, "
            "`benchmarks/ablation.py` "
            f"{peak(sum(rows().values(), [])):.1f}.",
            "takes "
            f"{passes('size 96') / passes('size 160'):.1f} of the time, for "
            f"{gain('size 160', 'size 96')} points less",
            "costs "
            f"{gain('upper half', 'BatchNorm momentum 0.999')} points on new",
            f"of the others took {slower()} times as long)"):
        assert claim in text


def peak(records):
    """The most memory that one of these needed, in GiB."""
    return max(record["machine"]["peak_memory_bytes"]
               for record in records) / 2 ** 30


# Links

def headings(text):
    """The names by which a text's headings are linked to."""
    return {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(
        " ", "-") for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("path", ["README.md", "paper/README.md"])
def test_links_resolve(path):
    """Every link inside the repository leads somewhere."""
    text = read(path)
    links = re.findall(r"\]\(([^)]*)\)", text)
    inside = [link for link in links if "://" not in link]
    assert inside
    for link in inside:
        target, _, heading = link.partition("#")
        found = os.path.normpath(os.path.join(os.path.dirname(path), target)
                                 ) if target else path
        assert os.path.exists(os.path.join(ROOT, found)), link
        if heading:
            assert heading in headings(read(found)), link


def test_all_pictures_are_in_the_paper_in_their_order():
    """The pictures' numbers are their order; the first is at the top."""
    text = read("paper", "README.md")
    shown = re.findall(r"!\[[^]]+\]\(([^)]*)\)", text)
    assert shown == list(figures.FIGURES)
    assert text.index(shown[0]) < text.index("## Abstract")
    captions = re.findall(r"^\*Figure (\d)\.", text, re.M)
    assert captions == [str(i + 1) for i in range(len(shown))]


def test_the_sections_are_those_of_the_exercise():
    """The parts of a journal-style paper, in their order."""
    assert re.findall(r"^## (.*)", read("paper", "README.md"), re.M) == [
        "Abstract", "Introduction", "Materials and Methods", "Results",
        "Discussion", "Acknowledgments", "Literature Cited", "Appendices"]


# publish.html

def words(page):
    """The words of an HTML page, without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", page)).split()


def test_publish_html_is_the_paper_as_it_is_now():
    """The page that is committed says what the paper says."""
    made = publish.page(read("paper", "README.md"))
    assert words(read("paper", "publish.html")) == words(made), (
        "run: make paper")


@pytest.mark.parametrize("make", [
    lambda: read("paper", "publish.html"),
    lambda: publish.page(read("paper", "README.md"))], ids=["kept", "made"])
def test_publish_html_can_be_pasted(make):
    """Pictures named in their order; no tables; no links into a folder."""
    page = make()
    named = re.findall(r"\(picture (\d+): ([^)]*)\)", page)
    assert named == [(str(i + 1), name)
                     for i, name in enumerate(figures.FIGURES)]
    assert not re.search(r"<table|\| ---|\*\*", page)
    assert all(link.startswith("http")
               for link in re.findall(r'href="([^"]*)"', page))
    for heading in re.findall(r"^## (.*)", read("paper", "README.md"), re.M):
        assert f"<h2>{heading}</h2>" in page


def test_a_table_becomes_preformatted_text():
    """Columns below one another."""
    assert publish.without_tables(
        "a\n\n| x | long |\n| --- | --- |\n| **12 %** | 3 |\n\nb\n") == (
        "a\n\n\n```\nx     long\n12 %  3\n```\n\nb\n")


# What cifar10.h5 says of the test images

def test_answers_are_collected():
    """Accuracy, confusion, images; against a slow count."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (400, 32, 32, 3)).astype("uint8")
    truth = np.arange(400) % 10
    P = rng.dirichlet(np.ones(10), 400) + np.eye(10)[truth] / 2
    P /= P.sum(axis=1, keepdims=True)
    found = answers.collect(X, truth, P)
    answer = [max(range(10), key=lambda k: row[k]) for row in P]
    assert found["accuracy"] == sum(
        a == t for a, t in zip(answer, truth)) / 400
    counts = [[sum(1 for a, t in zip(answer, truth) if (t, a) == (i, j))
               for j in range(10)] for i in range(10)]
    assert found["confusion"] == counts

    def number(image):
        """Which of the images it is, from its pixels."""
        pixels = np.frombuffer(base64.b64decode(image["pixels"]), "uint8")
        i, = np.flatnonzero((X.reshape(400, -1) == pixels).all(axis=1))
        assert image["truth"] == truth[i] and image["answer"] == answer[i]
        assert image["probability"] == pytest.approx(P[i].max())
        return i

    assert [truth[number(image)] for image in found["right"]] == list(
        range(10))
    assert all(image["truth"] == image["answer"] for image in found["right"])
    wrong = sorted((i for i in range(400) if answer[i] != truth[i]),
                   key=lambda i: -P[i].max())
    assert [number(image) for image in found["wrong"]] == wrong[:10]
    most = sorted((-counts[i][j] for i in range(10) for j in range(10)
                   if i != j))[:3]
    for pair, count in zip(found["pairs"], most):
        i, j = pair[0]["truth"], pair[0]["answer"]
        assert counts[i][j] == -count
        assert [number(image) for image in pair] == [
            k for k in wrong if (truth[k], answer[k]) == (i, j)][:6]


@real_data
def test_the_answers_are_those_of_cifar10_h5(tmp_path):
    """paper/answers.py as a process: what is committed, but for rounding."""
    out = tmp_path / "answers.json"
    done = run([sys.executable, answers.__file__, "--out", out], tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    kept = recorded("cifar10", "answers.json")
    np.testing.assert_allclose(found["accuracy"], kept["accuracy"],
                               atol=2e-3)
    np.testing.assert_allclose(found["confusion"], kept["confusion"],
                               atol=5)
    for image, before in zip(found["right"], kept["right"]):
        assert image["pixels"] == before["pixels"]
        assert image["probability"] == pytest.approx(
            before["probability"], abs=1e-2)
