#!/usr/bin/env python3
"""README and paper: their numbers, plots and links agree with the records.

The numbers are written by paper/fill_in.py. The most important ones are
computed a second time here, straight from the JSON files.
"""
import collections
import functools
import glob
import html
import json
import math
import os
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import figures
import fill_in
import publish
import report
from helpers import ROOT, noise_images, run, usage_error

PAPER = os.path.join(ROOT, "paper")
TEXTS = "README.md", "paper/README.md"


def read(*path):
    """Read a text file of the repository."""
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def load(*path):
    """Read a record under results/."""
    return json.loads(read("results", *path))


def row(name):
    """Read a row of benchmarks/choices.py, a record for each seed."""
    return [json.loads(read(path)) for path in sorted(glob.glob(
        f"{ROOT}/results/choices/{figures.slug(name)}-[0-9].json"))]


# Records

def test_the_records_are_those_of_today_s_scripts():
    import choices  # loads TensorFlow
    transfer = choices.transfer
    made = load("choices", "run.json")
    assert made["finished"] and made["arguments"] == json.loads(json.dumps({
        "images": choices.IMAGES,
        "validation images": choices.VALIDATION_IMAGES,
        **{name: list(each) for name, each in choices.ROWS.items()}}))
    assert list(figures.rows()) == list(choices.ROWS)
    for name, each in choices.ROWS.items():
        assert [seed["seed"] for seed in row(name)] == list(range(each.seeds))
        for seed in row(name):
            assert {key: seed[key] for key in each._fields} == each._asdict()
            assert len(seed["history"]) == each.epochs
    for i in range(3):
        seed = load("cifar10", f"seed-{i}.json")
        for key in ("CUT", "BATCH", "LEARNING_RATE", "WEIGHT_DECAY",
                    "LABEL_SMOOTHING", "DROPOUT"):
            assert seed["recipe"][key] == getattr(transfer, key)
        assert (seed["arguments"]["size"], seed["arguments"]["epochs"],
                seed["arguments"]["seed"]) == (
                    transfer.SIZE, transfer.EPOCHS, i)


def test_the_records_of_the_speeds_are_those_of_today_s_script():
    import frozen_once  # loads TensorFlow
    made = load("cifar10", "frozen_once.json")
    assert made["size"] == frozen_once.choices.UPPER.size
    assert list(made["ways"]) == list(frozen_once.WAYS)
    for way in made["ways"].values():
        assert [len(values) for values in way.values()] == [
            frozen_once.REPETITIONS] * 2


def test_the_records_of_other_data_are_those_of_today_s_script():
    import travel  # loads TensorFlow
    made = load("travel", "run.json")
    assert made["finished"]
    assert made["arguments"]["seeds"] == travel.SEEDS
    assert made["arguments"]["recipe"] == list(travel.RECIPE)
    for name, seeds in travel.SEEDS.items():
        for i in range(seeds):
            seed = load("travel", f"{name}-{i}.json")
            assert (seed["data"], seed["seed"]) == (name, i)
            assert len(seed["history"]) == travel.RECIPE.epochs


@pytest.mark.parametrize("collect", [figures.rows, fill_in.travel_records])
def test_an_unfinished_experiment_is_named(tmp_path, monkeypatch, collect):
    for name in "choices", "travel":
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({
            "finished": False, "arguments": {"seeds": {}}}))
    monkeypatch.setattr(figures, "RESULTS", str(tmp_path))
    with pytest.raises(OSError, match=r"^results/(\w+) isn't complete: run "
                       r"benchmarks/\1\.py$"):
        getattr(collect, "__wrapped__", collect)()  # read anew


def test_the_momentum_changes_nothing_but_the_averages():
    for seeds in zip(*(row(name) for name in (
            "upper half", "BatchNorm momentum 0.99",
            "BatchNorm momentum 0.999"))):
        for key in "accuracy", "loss":
            assert len({tuple(epoch[key] for epoch in seed["history"])
                        for seed in seeds}) == 1
        assert len({seed["weights_sha256"] for seed in seeds}) == 1
        assert seeds[2]["val_accuracy"] < seeds[0]["val_accuracy"] - 0.01


# Figures, computed a second time

def accuracies(name, key="val_accuracy"):
    """Return a row's accuracies after the last epoch, in %."""
    return 100 * np.array([seed["history"][-1][key] for seed in row(name)])


def parts(seed):
    """Return what was timed in a training, with its seconds.

    Of the 15,000 images of a frozen pass, 5,000 are to validate on; if they
    aren't mirrored, 5,000 others aren't used.
    """
    timed = [(epoch["training_seconds"], epoch) for epoch in seed["history"]]
    if "head" in seed:
        timed += [(epoch["training_seconds"], epoch)
                  for epoch in seed["head"]["history"]]
    if "frozen_pass" in seed:
        share = {"image": 1 / 3, "mirror": 2 / 3}[seed["views"]]
        timed.append((seed["frozen_pass"]["seconds"] * share,
                      seed["frozen_pass"]))
    return timed


def throughputs():
    """Return {process: the median throughput of predict in it}."""
    everything = [part for name in figures.rows() for seed in row(name)
                  for _, part in parts(seed)]
    return {process: np.median(list({
        part["predict_images_per_second"] for part in everything
        if part["process"] == process}))
        for process in {part["process"] for part in everything}}


def passes(name):
    """Return the costs of a row's seeds, in passes of its images."""
    per_second = throughputs()
    return np.array([sum(
        seconds * per_second[part["process"]] for seconds, part in parts(seed)
        ) / seed["images"] for seed in row(name)])


def seconds(way):
    """Return the times of a way for an image, in passes."""
    ways = load("cifar10", "frozen_once.json")["ways"]
    return (np.array(ways["predict, whole base"]["images_per_second"])
            / ways[way]["images_per_second"])


def right(*paths):
    """Return an array: whether each image of these records is right."""
    return np.array([truth == predicted for path in paths for _, _, truth,
                     predicted, _ in sorted(
                         load(path)["evaluation"]["answers"],
                         key=lambda answer: answer[1])])


def right_splits(style):
    """Return an array: in how many splits each image is right."""
    counts = collections.Counter()
    for i in range(10):
        for _, image, truth, predicted, _ in load(
                "four_classes", f"split-{i}-{style}.json")[
                    "evaluation"]["answers"]:
            counts[image] += truth == predicted
    return np.array([counts[image] for image in sorted(counts)])


def mcnemar(ours, theirs):
    """Return the exact p of McNemar's test."""
    wins, losses = (ours > theirs).sum(), (theirs > ours).sum()
    n = int(wins + losses)
    return min(1, 2 * sum(math.comb(n, k) for k in range(
        min(wins, losses) + 1)) / 2 ** n)


def headlines():
    """Compute the most important figures; returns {key: value}."""
    seeds = [load("cifar10", f"seed-{i}.json") for i in range(3)]
    final = np.array([100 * seed["test_accuracy"] for seed in seeds])
    p, z, n = final.min() / 100, 1.959964, 10000
    wilson = (p + z * z / 2 / n - z * math.sqrt(
        p * (1 - p) / n + z * z / 4 / n / n)) / (1 + z * z / n)
    first, second, _ = (seed["seconds"] for seed in seeds)
    upper, head = (accuracies(name).mean()
                   for name in ("upper half", "linear head, mirrored"))
    ours = (2 * seconds("our frozen pass")
            + 4 * seconds("an epoch of our training"))
    fixed, partial, dense = (
        load("cifar100", f"{name}.json") for name in (
            "EfficientNetV2B0-fixed", "EfficientNetV2B0-partial",
            "DenseNet121-partial"))
    shares = np.array([partial["test_top1"], fixed["test_top1"]])
    best, simple = (right(f"desserts/transfer_model/{name}.json")
                    for name in ("EfficientNetV2B0-adam-batch-norm", "simple"))
    dessert = "EfficientNetV2B0-adam-BatchNorm-trained-224"
    other = np.array([load("travel", f"desserts-{i}.json")["test_accuracy"]
                      for i in range(3)])
    tuning = right(*(f"four_classes/split-{i}-fine-tuning.json"
                     for i in range(10)))
    return {
        "cifar10": final.mean(), "cifar10:deviation": final.std(ddof=1),
        "cifar10:interval-low": 100 * wilson,
        "cifar10:most-minutes": (second["all"] - second["frozen part"]
                                 + first["frozen part"]) / 60,
        "cifar10:mistakes": 10000 - np.trace(
            load("cifar10", "answers.json")["confusion"]),
        "accuracy:upper-half": upper,
        "gain:upper-half/linear-head-mirrored": upper - head,
        "gain:upper-half/hidden-layer-mirrored":
            upper - accuracies("hidden layer, mirrored").mean(),
        "accuracy-deviation:upper-half": accuracies("upper half").std(ddof=1),
        "cost:upper-half": passes("upper half").mean(),
        "times:upper-half/linear-head-mirrored":
            passes("upper half").mean()
            / passes("linear head, mirrored").mean(),
        "anew:BatchNorm-momentum-0.999": 100 * np.mean([
            seed["val_accuracy_averages_anew"]
            for seed in row("BatchNorm momentum 0.999")]),
        "visible": 1.989 * math.sqrt(2 / 3 * np.mean([
            accuracies(name).var(ddof=1) for name in figures.rows()
            if not re.search(r"momentum|scratch|random", name)])),
        "multiply-adds:BatchNorm-in-inference-mode-rate-1e-3/upper-half":
            row("BatchNorm in inference mode, rate 1e-3")[0]["multiply_adds"]
            / row("upper half")[0]["multiply_adds"],
        "pass:seconds": 5000 / max(throughputs().values()),
        "visible:desserts": 100 * 1.96 * math.sqrt(
            2 * other.mean() * (1 - other.mean()) / 958),
        "cifar10:above": final.mean() - 87,
        "passes:ours": np.median(ours), "passes:fit/ours": np.median(
            4 * seconds("fit, upper half trained, from images") / ours),
        "top1:EfficientNetV2B0-partial": 100 * partial["test_top1"],
        "minutes:EfficientNetV2B0-partial": (
            partial["frozen_pass"]["seconds"] + partial["seconds_before"]
            + sum(epoch["seconds"] for epoch in partial["history"])) / 60,
        "gain:EfficientNetV2B0/DenseNet121": 100 * (
            partial["test_top1"] - dense["test_top1"]),
        "z:EfficientNetV2B0": np.diff(-shares)[0] / math.sqrt(
            (shares * (1 - shares)).sum() / 10000),
        f"holdout:{dessert}": 100 * best.mean(),
        f"wins:{dessert}": (best & ~simple).sum(),
        "p:EfficientNetV2B0-sgd-BatchNorm-trained-128": mcnemar(*(
            right(f"desserts/smaller/{name}.json") for name in (
                "EfficientNetV2B0-sgd-batch-norm", "simple"))),
        "four-classes:fine-tuning": 100 * tuning.mean(),
        "four-classes:p": mcnemar(*map(right_splits, (
            "fine-tuning", "extraction"))),
        "memory:choices": max(
            seed["machine"]["peak_memory_bytes"] for name in figures.rows()
            for seed in row(name)) / 2 ** 30}


def test_the_most_important_figures_are_right():
    text = "".join(map(read, TEXTS))
    for key, value in headlines().items():
        found = re.findall(rf"([\d.]+(?:e-\d+)?)\s?%?<!--{key}-->", text)
        assert found, key
        for number in found:
            decimals = len(number.partition(".")[2])
            assert number in (f"{value:.{decimals}f}", f"{value:.2g}"), key


def table(name):
    """Return the cells of a table of the paper, without its header."""
    block = read("paper", "README.md").split(f"<!--table {name}-->\n")[1]
    return [line.strip("| ").split(" | ") for line in
            block[:block.index("<!--end")].splitlines()[2:]]


def shown(values, unit=""):
    """Return mean and standard deviation as a table shows them."""
    return f"{np.mean(values):.1f}{unit}" + (
        f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def test_the_table_of_all_variants_is_what_was_measured():
    assert table("choices") == [[
        name, shown(accuracies(name, "accuracy"), " %"),
        shown(accuracies(name), " %"), shown(passes(name)),
        "{:.2f}".format(row(name)[0]["multiply_adds"] / 1e9
                        / row(name)[0]["images"])]
        for name in figures.rows()]


def test_the_table_of_speeds_is_what_was_measured():
    ways = load("cifar10", "frozen_once.json")["ways"]
    for (name, middle, both, memory), way in zip(table("speeds"), ways):
        speeds = sorted(ways[way]["images_per_second"])
        assert name == way and middle == f"{speeds[2]:.0f}"
        assert both == f"{speeds[0]:.0f} to {speeds[-1]:.0f}"
        assert float(memory) == pytest.approx(
            max(ways[way]["peak_memory_bytes"]) / 2 ** 30, abs=0.006)


def test_the_table_of_other_data_is_what_was_measured():
    own = {
        "cifar100": load("cifar100", "EfficientNetV2B0-partial.json")[
            "test_top1"],
        "desserts": right("desserts/transfer_model/"
                          "EfficientNetV2B0-adam-batch-norm.json").mean(),
        "four_classes": right(*(f"four_classes/split-{i}-fine-tuning.json"
                                for i in range(10))).mean()}
    labels = dict(zip(own, ("CIFAR-100", "desserts", "four classes")))
    rows = []
    for name, accuracy in own.items():
        seeds = [load("travel", os.path.basename(path)) for path in glob.glob(
            f"{ROOT}/results/travel/{name}-*.json")]
        rows.append([
            labels[name], f"{seeds[0]['images']:,}",
            f"{seeds[0]['test_images']:,}", str(len(seeds)),
            shown([100 * seed["test_accuracy"] for seed in seeds], " %"),
            f"{100 * accuracy:.1f} %",
            f"{160 if name == 'cifar100' else 224} pixels"])
    assert sorted(table("travel")) == sorted(rows)


def test_the_machine_is_named():
    for records in sum(figures.rows().values(), []), [
            load("cifar10", f"seed-{i}.json") for i in range(3)]:
        assert report.processors(records) in read("paper", "README.md")


# The code in the text

def test_the_code_trains_the_model_and_leaves_its_lower_half(monkeypatch):
    import tensorflow as tf
    K = tf.keras
    code = re.search("```python\n(.*?)```", read("paper", "README.md"), re.S)
    monkeypatch.setattr(  # no network here
        K.applications, "EfficientNetV2B0", functools.partial(
            K.applications.EfficientNetV2B0, weights=None))
    images = noise_images(8)
    X, Y = images / np.float32(127.5) - 1, np.eye(10)[:8]
    names = {"K": K, "tf": tf, "X": X, "Y": Y}
    before, after = code[1].split("top.fit")
    exec(before, names)
    model = names["model"]
    first, lower = model.predict(X), names["outputs"]
    assert lower.shape == (8, 8, 8, 112)
    exec(f"top.fit{after}", names)
    assert np.abs(model.predict(X) - first).max() > 1e-3
    np.testing.assert_array_equal(names["frozen"].predict(X), lower)


# Numbers in the text

@pytest.mark.parametrize("path", TEXTS)
def test_the_text_is_filled_in(path):
    assert fill_in.fill_in(read(path)) == read(path), "run: make paper"


def test_the_paper_is_short():
    text = re.sub(r"<!--table.*?<!--end-->|<!--.*?-->|```.*?```"
                  r"|!\[[^]]*\]\([^)]*\)|^\*Figure.*?\*$|^\|.*?$", "",
                  read("paper", "README.md"), flags=re.S | re.M)
    assert len(text.split()) <= 2500


def test_abstract_and_results_have_no_percentage_of_their_own():
    text = read("paper", "README.md")
    for first, last in (("## Abstract", "## Introduction"),
                        ("## Results", "## Discussion")):
        part = text[text.index(first):text.index(last)]
        part = re.sub(r"<!--table.*?<!--end-->", "", part, flags=re.S)
        assert not re.findall(r"\d\s%(?!<!--)", part)


def test_a_key_has_one_number():
    keys = [key for part in fill_in.NUMBERS for key in part()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("text", [
    "95 %<!--cifar11-->", "about<!--cifar10-->", "<!--cifar10-->",
    "<!-- a note -->", "<!--table cifar11-->\n<!--end-->",
    "<!--table seeds-->\n| seed |\n",
    "<!--table seeds-->\n1<!--cifar10-->\n<!--end-->", "1<!--end-->"])
def test_a_comment_that_names_nothing_is_an_error(text):
    with pytest.raises(ValueError, match="line 3: "):
        fill_in.fill_in(f"95.2 %<!--cifar10-->\n\n{text}")


@pytest.mark.parametrize("before, after", [
    ("-1,000.5\n%<!--a--> ± 2<!--b/c-->, v2<!--b/c-->",
     "95.17\n%<!--a--> ± 21<!--b/c-->, v21<!--b/c-->"),
    ("(-0.3<!--d-->) p = 1e-05<!--e-->. 1 %<!--d-->",
     "(-2.7<!--d-->) p = 7.6e-09<!--e-->. -2.7 %<!--d-->"),
    ("<!--table t-->\n<!--end-->\nx",
     "<!--table t-->\n| x |\n| --- |\n| 1 |\n<!--end-->\nx")])
def test_numbers_and_tables_are_filled_in(before, after, monkeypatch):
    monkeypatch.setattr(fill_in, "NUMBERS", [
        lambda: {"a": "95.17", "b/c": "21"},
        lambda: {"d": "-2.7", "e": "7.6e-09"}])
    monkeypatch.setattr(fill_in, "tables", lambda: {"t": [["x"], ["1"]]})
    assert fill_in.fill_in(before) == fill_in.fill_in(after) == after


@pytest.mark.parametrize("names", [
    [], ["versions"], ["torture"], ["versions", "torture"]])
def test_the_tables_of_trust_are_filled_in_once_they_are_made(
        tmp_path, monkeypatch, names):
    monkeypatch.setattr(figures, "RESULTS", str(tmp_path))
    for name in set(os.listdir(os.path.join(ROOT, "results"))) - {"trust"}:
        os.symlink(os.path.join(ROOT, "results", name), tmp_path / name)
    (tmp_path / "trust").mkdir()
    for name in names:
        (tmp_path / "trust" / f"{name}.json").write_text(json.dumps({
            "rows": [["", name], ["2.15.1", "96.2 %"]], "machine": {}}))
    for name in "versions", "torture":
        empty = f"a\n\n<!--table {name}-->\n<!--end-->\n"
        if name in names:
            filled = (f"a\n\n<!--table {name}-->\n|  | {name} |\n| --- | --- "
                      "|\n| 2.15.1 | 96.2 % |\n<!--end-->\n")
            assert fill_in.fill_in(empty) == filled == fill_in.fill_in(filled)
        else:
            with pytest.raises(ValueError, match="line 3: .* a known table"):
                fill_in.fill_in(empty)


@pytest.mark.parametrize("text", [None, "{broken", "[1]"])
def test_a_missing_or_damaged_record_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(figures, "RESULTS", str(tmp_path))
    if text:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(OSError, match="^results/a.json is missing or damaged"):
        figures.record("a.json")


@pytest.mark.parametrize("script, arguments, words", [
    (figures, ["1-cost.png"], "unrecognized arguments: 1-cost.png"),
    (fill_in, ["README.md"], "unrecognized arguments: README.md"),
    (publish, ["--out", "x"], "unrecognized arguments: --out x"),
    (publish, ["--code", ""], "--code is '', expected an address such as"),
    (publish, ["--code", "github.com/x"], "--code is 'github.com/x', expect"),
    ("answers", ["--out", ""], "--out is '', expected a file"),
    ("answers", ["--out", "."], "--out is '.', expected a file"),
    ("answers", ["--out", os.devnull], f"--out is '{os.devnull}', expected"),
    ("answers", ["--out", "nowhere/a.json"], ": there is no such folder"),
    ("answers", ["--out", f"{__file__}/a"], ": there is no such folder"),
    ("answers", ["answers.json"], "unrecognized arguments: answers.json")])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, script, arguments, words):
    if script == "answers":  # loads TensorFlow
        script = __import__(script)
    assert words in usage_error(script.main, monkeypatch, capsys, tmp_path,
                                *arguments).splitlines()[-1]


@pytest.fixture
def copy(tmp_path):
    """Copy all that make paper needs."""
    shutil.copytree(os.path.join(ROOT, "results"), tmp_path / "results",
                    ignore=shutil.ignore_patterns("*.png"))
    shutil.copytree(PAPER, tmp_path / "paper", ignore=shutil.ignore_patterns(
        "*.png", "*.html", "__pycache__"))
    for name in ("README.md", "report.py", "runs.py"):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    return tmp_path


def test_other_records_change_their_numbers_and_nothing_else(copy):
    for i in range(3):
        path = copy / "results" / "cifar10" / f"seed-{i}.json"
        path.write_text(json.dumps(dict(
            json.loads(path.read_text()), test_accuracy=0.9 + i / 100)))
    command = [sys.executable, copy / "paper" / "fill_in.py"]
    done = run(command, copy / "results")  # from any folder
    assert done.returncode == 0, done.stderr
    texts = [(copy / path).read_text(encoding="utf-8") for path in TEXTS]
    for path, text in zip(TEXTS, texts):
        assert "91.00 %<!--cifar10--> ± 1.00<!--cifar10:deviation-->" in text
        assert re.sub(r"[\d.]+", "0", text) == re.sub(
            r"[\d.]+", "0", read(path))
    assert "| 2 | 92.00 % |" in texts[1]
    assert run(command, copy).returncode == 0
    assert texts == [(copy / path).read_text(encoding="utf-8")
                     for path in TEXTS]
    (copy / "README.md").write_text("1<!--typo-->")
    done = run(command, copy)
    assert done.returncode == 1
    assert "README.md: line 1: " in done.stderr and "typo" in done.stderr
    assert "Traceback" not in done.stderr
    assert (copy / "README.md").read_text() == "1<!--typo-->"


# Plots

@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_plot_carries_the_digest_of_its_data(name):
    collect, _ = figures.FIGURES[name]
    with Image.open(os.path.join(PAPER, name)) as plot:
        assert plot.text["data-sha256"] == figures.digest(collect()), (
            "run: make paper")
        assert plot.width == 1400


def test_the_digest_is_the_sha256_of_the_data_as_json():
    assert figures.digest({"b": 1, "a": [2.5]}) == (
        "e29416a8e9008a7c9d3ad5a27ece0434abb04d45df100b745b30285ce8538c04")


def marks(panel):
    """Return the points at which a panel has marks with bars."""
    return [tuple(line.get_xydata()[0]) for line in panel.lines
            if len(line.get_xydata()) == 1 and line.get_marker() != "None"]


def test_the_first_plot_shows_all_rows_on_5000_images():
    figure = figures.draw_cost(figures.cost_data())
    drawn = [name for name in figures.rows() if "45000" not in name]
    for panel, cost in zip(figure.axes, (
            lambda name: passes(name).mean(),
            lambda name: row(name)[0]["multiply_adds"] / 5000 / 1e9)):
        points = marks(panel)
        assert len(points) == len(drawn)
        for name in drawn:
            x, y = cost(name), accuracies(name).mean()
            assert any(point == pytest.approx((x, 100 - y))
                       for point in points), name
            assert panel.get_xlim()[0] < x < panel.get_xlim()[1]
            assert panel.get_ylim()[0] > 100 - y > panel.get_ylim()[1]
        # The star is the last one, above all others.
        assert points[-1] == pytest.approx((
            cost("upper half"), 100 - accuracies("upper half").mean()))
        chance, frontier = panel.lines[:2]
        assert set(chance.get_ydata()) == {90}
        best = [(x, y) for x, y in points if not any(
            other <= x and error <= y and (other, error) != (x, y)
            for other, error in points)]
        assert set(map(tuple, frontier.get_xydata().round(9).tolist())) == {
            (round(x, 9), round(y, 9)) for x, y in best}
    ticks = figure.axes[0].get_yticks()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()
            ] == [f"{100 - tick:.0f}" for tick in ticks]


def test_all_marks_of_the_first_plot_are_in_its_legend():
    figure = figures.draw_cost(figures.cost_data())
    handles = figure.legends[0].legend_handles
    for name, point in figures.cost_data()["points"].items():
        assert any(handle.get_marker() == figures.marker_of(name)
                   for handle in handles)
        assert any(handle.get_color() == figures.BASES[point["base"]][0]
                   for handle in handles)


def test_batchnorm_is_a_line_for_each_seed():
    panels = figures.draw_batchnorm(figures.batchnorm_data()).axes
    names = ["upper half", "BatchNorm momentum 0.99",
             "BatchNorm momentum 0.999"] + [
        f"BatchNorm in inference mode, rate {rate}"
        for rate in ("1e-5", "1e-4", "2e-4", "1e-3")]
    assert len(panels) == len(names)
    for panel, name in zip(panels, names):
        drawn = [line.get_ydata().tolist() for line in panel.lines]
        for seed in row(name):
            for key in "accuracy", "val_accuracy":
                assert pytest.approx([
                    100 * epoch[key] for epoch in seed["history"]]) in drawn
        anew = [100 * seed["val_accuracy_averages_anew"]
                for seed in row(name) if "val_accuracy_averages_anew" in seed]
        assert len(anew) == (3 if "momentum" in name else 0)
        for value in anew:
            assert pytest.approx([value]) in drawn


def test_depth_is_the_rows_by_their_cut_and_learning_rate():
    panels = figures.draw_depth(figures.depth_data()).axes
    for panel, value in zip(panels, (accuracies, passes)):
        lines = [container.lines[0].get_xydata()
                 for container in panel.containers]
        assert len(lines) == 4
        for line, rate in zip(lines, ("5e-4", "1e-3", "2e-3")):
            names = [f"cut after block {cut}, rate {rate}".replace(
                "cut after block 5c, rate 1e-3", "upper half")
                for cut in ("3b", "5c", "6d")]
            np.testing.assert_allclose(
                line[:, 1], [value(name).mean() for name in names])
            assert np.abs(line[:, 0] - (0, 1, 2)).max() < 0.3
        np.testing.assert_allclose(
            lines[3], [[3, value("linear head, mirrored").mean()]])
    assert [label.get_text() for label in panels[1].get_xticklabels()] == [
        "after block 3b", "after block 5c", "after block 6d",
        "below the head"]


def test_bars_are_the_images_per_second():
    panel, = figures.draw_speed(figures.speed_data()).axes
    ways = load("cifar10", "frozen_once.json")["ways"]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert sorted(names) == sorted(ways)
    assert [bar.get_width() for bar in panel.patches] == [
        sorted(ways[name]["images_per_second"])[2] for name in names]


def test_the_mechanism_names_both_halves():
    words = " ".join(text.get_text() for text in figures.draw_mechanism(
        figures.mechanism_data()).axes[0].texts)
    seed = load("cifar10", "seed-0.json")
    assert seed["recipe"]["CUT"] == "block5c_add"
    assert "blocks 1 to 5c" in words and "blocks above 5c" in words
    assert f"{seed['arguments']['size']} pixels" in words


def test_the_plots_are_drawn_from_the_records(copy):
    done = run([sys.executable, copy / "paper" / "figures.py"], copy)
    assert done.returncode == 0, done.stderr
    for name in figures.FIGURES:
        with Image.open(copy / "paper" / name) as drawn, Image.open(
                os.path.join(PAPER, name)) as kept:
            assert drawn.text["data-sha256"] == kept.text["data-sha256"]
            assert drawn.size == kept.size


# README and links

def headings(text):
    """Return the anchors of a text's headings."""
    return {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(
        " ", "-") for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("path", TEXTS)
def test_links_resolve(path):
    links = re.findall(r"\]\(([^)]*)\)", read(path))
    inside = [link for link in links if "://" not in link]
    assert inside
    for link in inside:
        target, _, heading = link.partition("#")
        file = os.path.normpath(os.path.join(
            os.path.dirname(path), target)) if target else path
        assert os.path.exists(os.path.join(ROOT, file)), link
        if heading:
            assert heading in headings(read(file)), link


def test_readme_is_short():
    text = re.sub("<!--.*?-->", "", read("README.md")).splitlines()
    assert len(text) <= 240
    assert all(len(line) <= 120 for line in text if line[:1] != "|")


def test_readme_names_code_that_exists():
    def defined(name, path):
        """Say whether a Python file defines a name."""
        return re.search(rf"^ *(def|class) {name}\b|^{name}\b.* = ",
                         read(path), re.M)

    text = read("README.md")
    demands = text[text.index("| the exercise demands"):].split("\n\n")[0]
    for name in re.findall(r"\| `(\w+)`", demands):
        assert defined(name, "tests/test_exercise_0.py" if "test_" in name
                       else "0-transfer.py"), name
    for module, names in re.findall(r"`([a-z_]+)\.([\w.]+)`", text):
        if names not in ("py", "h5") and (
                os.path.exists(os.path.join(ROOT, f"{module}.py"))):
            for name in names.split("."):
                assert defined(name, f"{module}.py"), name
    for script in re.findall(r"(?:^\$ |`)\./([\w/-]+\.py)", text, re.M):
        assert os.access(os.path.join(ROOT, script), os.X_OK)


def test_readme_has_the_options_of_0_transfer():
    text = read("README.md")
    section = text[text.index("## CIFAR-10\n"):text.index("## CIFAR-100\n")]
    assert set(re.findall(r"`(--[\w-]+)", section)) == set(
        re.findall(r'add\("(--[\w-]+)"', read("0-transfer.py")))


def test_readme_has_the_old_names_of_the_desserts():
    for name in ("ImageDataGenerator", "flow_from_directory",
                 "fit_generator", "steps_per_epoch", "evaluate_generator"):
        assert name in read("README.md")


def test_all_plots_are_in_the_paper_in_order():
    text = read("paper", "README.md")
    shown = re.findall(r"!\[[^]]+\]\(([^)]*)\)", text)
    assert shown == list(figures.FIGURES)
    assert text.index(shown[0]) < text.index("## Abstract")
    captions = re.findall(r"^\*Figure (\d)\.", text, re.M)
    assert captions == [str(i + 1) for i in range(len(shown))]


def test_both_texts_say_where_the_paper_is_published():
    assert "## Published at\n" in read("README.md")
    assert "**Published at.**" in read("paper", "README.md")


def test_the_sections_are_those_of_the_exercise():
    assert re.findall(r"^## (.*)", read("paper", "README.md"), re.M) == [
        "Abstract", "Introduction", "Materials and Methods", "Results",
        "Discussion", "Acknowledgments", "Literature Cited", "Appendices"]


# publish.html

def words(page):
    """Return the words of an HTML page, without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", page)).split()


def test_publish_html_is_the_paper_of_today(copy):
    done = run([sys.executable, copy / "paper" / "publish.py"], copy)
    assert done.returncode == 0, done.stderr
    made = (copy / "paper" / "publish.html").read_text(encoding="utf-8")
    assert made == publish.page(read("paper", "README.md"))
    assert words(made) == words(read("paper", "publish.html")), (
        "run: make paper")


URL = "https://example.org/them/transfer/blob/main"


@pytest.mark.parametrize("make", [
    lambda: read("paper", "publish.html"),
    lambda: publish.page(read("paper", "README.md"), URL)],
    ids=["kept", "with code"])
def test_publish_html_can_be_pasted(make):
    page = make()
    named = re.findall(r"\(image (\d+): ([^)]*)\)", page)
    assert named == [(str(i + 1), name)
                     for i, name in enumerate(figures.FIGURES)]
    assert not re.search(r"<table|\| ---|\*\*|<!--|--&gt;", page)
    for heading in re.findall(r"^## (.*)", read("paper", "README.md"), re.M):
        assert f"<h2>{heading}</h2>" in page


@pytest.mark.parametrize("code", [URL, URL + "/"])
def test_links_to_the_code_work_where_it_is_published(copy, code):
    done = run([sys.executable, copy / "paper" / "publish.py", "--code",
                code], copy)
    assert done.returncode == 0, done.stderr
    page = (copy / "paper" / "publish.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]*)"', page)
    assert all(link.startswith("http") for link in links)
    assert {link for link in links if "example.org" in link} == {
        f"{URL}/README.md", f"{URL}/README.md#published-at",
        f"{URL}/benchmarks", f"{URL}/benchmarks/choices.py",
        f"{URL}/results"}
    assert "Not ready" not in page


def test_without_an_address_of_the_code_the_page_says_so():
    page = read("paper", "publish.html")
    assert "Not ready to be published" in page
    for link in re.findall(r'href="([^"]*)"', page):
        assert link.startswith("http") or os.path.exists(
            os.path.join(PAPER, link.partition("#")[0])), link


def test_a_table_becomes_preformatted_text():
    assert publish.without_tables(publish.without_comments(
        "1<!--a-->\n\n<!--table t-->\n| x | long |\n| --- | --- |\n"
        "| **12 %** | 3 |\n<!--end-->\n\nb\n")) == (
        "1\n\n\n```\nx     long\n12 %  3\n```\n\nb\n")
