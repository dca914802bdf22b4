#!/usr/bin/env python3
"""README and paper: their numbers, plots and links agree with the records.

The numbers are written by paper/fill_in.py. The most important ones are
computed a second time here, straight from the JSON files.
"""
import collections
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
from helpers import ROOT, run, usage_error

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
    """Read a row of the ablation, a record for each seed."""
    return [json.loads(read(path)) for path in sorted(glob.glob(
        f"{ROOT}/results/ablation/{fill_in.slug(name)}-[0-9].json"))]


# Records

def test_the_records_are_those_of_today_s_scripts():
    import ablation  # loads TensorFlow
    transfer = ablation.transfer
    made = load("ablation", "run.json")
    assert made["finished"] and made["arguments"] == json.loads(json.dumps({
        "images": ablation.IMAGES, "held out": ablation.VALIDATION_IMAGES,
        **{name: list(each) for name, each in ablation.ROWS.items()}}))
    assert set(figures.rows()) == set(ablation.ROWS)
    for name, each in ablation.ROWS.items():
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


# Figures, computed a second time

def accuracies(name, key="val_accuracy"):
    """Return a row's accuracies after the last epoch, in %."""
    return 100 * np.array([seed["history"][-1][key] for seed in row(name)])


def throughputs():
    """Return {process: the median throughput of predict in it}."""
    parts = [part for name in figures.rows() for seed in row(name)
             for part in [seed["frozen_pass"], *seed["history"]]]
    return {process: np.median(list({
        part["predict_images_per_second"] for part in parts
        if part["process"] == process}))
        for process in {part["process"] for part in parts}}


def passes(name):
    """Return the cost of a row, in passes.

    Of the 25,000 images that went through, 5,000 were held out; if they
    weren't mirrored, 10,000 others went through twice.
    """
    per_second = throughputs()
    return np.mean([
        seed["frozen_pass"]["seconds"] * (0.8 if seed["mirror"] else 0.4)
        * per_second[seed["frozen_pass"]["process"]] / 10000
        + sum(epoch["training_seconds"] * per_second[epoch["process"]]
              for epoch in seed["history"]) / 10000
        for seed in row(name)])


def seconds(way):
    """Return the time of a way for an image, in passes."""
    ways = load("cifar10", "frozen_once.json")["ways"]
    return (ways["predict, whole base"]["images_per_second"]
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
        "removed:upper-half/linear-head-mirrored":
            100 * (upper - head) / (100 - head),
        "seconds:pass": 10000 / np.median(list(throughputs().values())),
        "passes:ours": ours, "passes:fit/ours":
            4 * seconds("fit, upper half trained, from images") / ours,
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
        "memory:ablation": max(
            seed["machine"]["peak_memory_bytes"] for name in figures.rows()
            for seed in row(name)) / 2 ** 30}


def test_the_most_important_figures_are_right():
    text = "".join(map(read, TEXTS))
    for key, value in headlines().items():
        shown = re.findall(rf"([\d.]+(?:e-\d+)?)\s?%?<!--{key}-->", text)
        assert shown, key
        for number in shown:
            decimals = len(number.partition(".")[2])
            assert number in (f"{value:.{decimals}f}", f"{value:.2g}"), key


@pytest.mark.parametrize("name", fill_in.ABLATION)
def test_a_table_of_the_ablation_is_what_was_measured(name):
    block = read("paper", "README.md").split(f"<!--table {name}-->\n")[1]
    header, _, *rows = [line.strip("| ").split(" | ") for line in
                        block[:block.index("<!--end")].splitlines()]
    assert [cells[0] for cells in rows] == list(fill_in.ABLATION[name][1])
    for cells, each in zip(rows, fill_in.ABLATION[name][1].values()):
        shown = dict(zip(header, cells))
        assert shown.pop("seeds") == str(len(row(each)))
        assert shown.pop("cost, passes") == f"{passes(each):.1f}"
        for column, key in (("held-out accuracy", "val_accuracy"),
                            ("training accuracy", "accuracy")):
            values = accuracies(each, key)
            words = f"{values.mean():.1f} %" + (
                f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")
            assert shown.get(column, words) == words


def test_every_row_is_in_a_table():
    assert set(figures.rows()) == {
        each for _, rows in fill_in.ABLATION.values()
        for each in rows.values()}


def test_the_machine_is_named():
    records = sum(figures.rows().values(), [])
    assert report.processors(records) in read("paper", "README.md")


# Numbers in the text

@pytest.mark.parametrize("path", TEXTS)
def test_the_text_is_filled_in(path):
    assert fill_in.fill_in(read(path)) == read(path), "run: make paper"


def test_abstract_and_results_have_no_percentage_of_their_own():
    text = read("paper", "README.md")
    for first, last in (("## Abstract", "## Introduction"),
                        ("## Results", "### Beside others")):
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


def lines(panel):
    """Return the points of a panel's lines."""
    return [line.get_xydata().tolist() for line in panel.lines]


def test_the_first_plot_shows_all_rows():
    data = figures.cost_data()
    high, low = figures.draw_cost(data).axes[:2]
    for name in figures.rows():
        x, y = passes(name), accuracies(name).mean()
        assert data["points"][name][:2] == pytest.approx([x, y])
        if len(row(name)) > 1:
            assert data["points"][name][2] == pytest.approx(
                accuracies(name).std(ddof=1))
        panel = low if y < 80 else high
        assert any(point == pytest.approx([x, y])
                   for line in lines(panel) for point in line), name
        assert panel.get_xlim()[0] < x < panel.get_xlim()[1]
        assert panel.get_ylim()[0] < y < panel.get_ylim()[1]
    anew = [3 * seconds("fit, upper half trained, from images"),
            accuracies("upper half").mean()]
    assert any(line[-1] == pytest.approx(anew) for line in lines(high) if line)


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
def test_curves_are_the_mean_accuracies_by_epoch(name, titles):
    collect, draw = figures.FIGURES[name]
    panels = draw(collect()).axes
    assert [panel.get_title() for panel in panels] == list(titles)
    for panel, each in zip(panels, titles.values()):
        for line, key in zip(lines(panel), ("accuracy", "val_accuracy")):
            np.testing.assert_allclose(line, [
                (i + 1, 100 * np.mean([epoch[key] for epoch in epochs]))
                for i, epochs in enumerate(zip(*(
                    seed["history"] for seed in row(each))))])


def test_depth_is_the_rows_by_their_cut():
    panels = figures.draw_depth(figures.depth_data()).axes
    names = ("cut after block 2", "cut after block 5", "upper half",
             "cut after block 12", "cut after block 15",
             "linear head, mirrored")
    for panel, value in zip(panels, (
            lambda name: accuracies(name).mean(), passes)):
        np.testing.assert_allclose(lines(panel)[0], [
            (frozen, value(name))
            for frozen, name in zip((9, 18, 27, 39, 48, 52), names)])


def test_bars_are_the_images_per_second():
    panel, = figures.draw_speed(figures.speed_data()).axes
    ways = load("cifar10", "frozen_once.json")["ways"]
    assert [bar.get_width() for bar in panel.patches] == [
        way["images_per_second"] for way in ways.values()]
    assert [label.get_text() for label in panel.get_yticklabels()] == list(
        ways)


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


@pytest.mark.parametrize("make", [
    lambda: read("paper", "publish.html"),
    lambda: publish.page(read("paper", "README.md"))], ids=["kept", "made"])
def test_publish_html_can_be_pasted(make):
    page = make()
    named = re.findall(r"\(image (\d+): ([^)]*)\)", page)
    assert named == [(str(i + 1), name)
                     for i, name in enumerate(figures.FIGURES)]
    assert not re.search(r"<table|\| ---|\*\*|<!--|--&gt;", page)
    assert all(link.startswith("http")
               for link in re.findall(r'href="([^"]*)"', page))
    for heading in re.findall(r"^## (.*)", read("paper", "README.md"), re.M):
        assert f"<h2>{heading}</h2>" in page


def test_a_table_becomes_preformatted_text():
    assert publish.without_tables(publish.without_comments(
        "1<!--a-->\n\n<!--table t-->\n| x | long |\n| --- | --- |\n"
        "| **12 %** | 3 |\n<!--end-->\n\nb\n")) == (
        "1\n\n\n```\nx     long\n12 %  3\n```\n\nb\n")
