#!/usr/bin/env python3
"""Tables and plots from records, through report.py.

The numbers are computed a second time from the records under results/, and
the plots are looked at as matplotlib's figures.
"""
import glob
import json
import os
import re
import shutil
import sys
import tempfile
import unittest.mock

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from PIL import Image
from scipy.stats import binomtest, norm

import report
from helpers import ROOT, damaged, fuzz, run, usage_error

RESULTS = ["cifar100", "desserts/simple_cnn", "desserts/simple_cnn_160",
           "desserts/smaller", "desserts/transfer_model", "four_classes"]
MACHINE = {"processor": "A chip", "cores": 2, "memory_bytes": 8 * 2 ** 30}


def read_json(path):
    """Return the content of a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def results(name):
    """Return {name of a file: record} of a folder under results/."""
    records = {os.path.splitext(os.path.basename(path))[0]: read_json(path)
               for path in glob.glob(f"{ROOT}/results/{name}/*.json")}
    return {file: record for file, record in records.items()
            if file not in ("run", "table")}


def table_of(name):
    """Return {name of a row: its cells} of a committed table."""
    return {row[0]: row[1:] for row in read_json(
        f"{ROOT}/results/{name}/table.json")["rows"]}


def write_records(folder, *records):
    """Write records as 0.json, 1.json and so on."""
    for number, record in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(record))
    return str(folder)


def cifar100(base, style, top1, seconds, throughput, before=0, **more):
    """Make the record of two epochs on CIFAR-100."""
    return {
        "base": base, "style": style, "test_top1": top1, "test_top5": top1,
        "size": 32, "trained_parameters": 1, "other_parameters": 2,
        "convolutions": 5, "frozen_convolutions": 3, "seconds_before": before,
        "frozen_pass": {"seconds": 600,
                        "predict_images_per_second": throughput},
        "history": [{"seconds": seconds / 2, "accuracy": accuracy,
                     "val_accuracy": accuracy - 0.1,
                     "loss": 1 - accuracy, "val_loss": 1.1 - accuracy,
                     "predict_images_per_second": throughput}
                    for accuracy in (0.4, 0.6)],
        "groups": ["fish", "trees"], "confusion": [[3, 1], [0, 4]],
        "machine": MACHINE, **more}


def classified(exercise, title, rows, classes=("cake", "pie"), **more):
    """Make the record of three epochs on a folder of images.

    rows: (path in the copy, true class, predicted class, probability)
    """
    confusion = np.zeros((len(classes), len(classes)), int)
    for _, truth, predicted, _ in rows:
        confusion[truth, predicted] += 1
    return {
        "exercise": exercise, "title": title, "size": 8, "parameters": 9,
        "classes": list(classes), "val_accuracy": 0.5, "machine": MACHINE,
        "pictures": [6, 2, len(rows)], "pass_seconds": 3,
        "history": [{"accuracy": accuracy, "val_accuracy": accuracy / 2,
                     "loss": 3 * accuracy, "val_loss": 4 * accuracy,
                     "seconds": 60, "phase": phase} for accuracy, phase in (
                         (0.2, "warm-up"), (0.4, "warm-up"),
                         (0.9, "fine-tuning"))],
        "evaluation": {
            "loss": 1.0, "accuracy": np.trace(confusion) / len(rows),
            "interval": [0.25, 0.75], "confusion": confusion.tolist(),
            "answers": [[row[0], f"original/{row[0]}", *row[1:]]
                        for row in rows]}, **more}


ROWS = [("0.png", 0, 0, 0.9), ("1.png", 0, 1, 0.6), ("2.png", 1, 1, 0.8),
        ("3.png", 1, 0, 0.7)]


@pytest.fixture
def plots(monkeypatch):
    """Collect {name of a plot: figure} instead of writing files.

    figure.banner is the warning above it.
    """
    kept = {}

    def keep(figure, path, banner=""):
        """Keep a figure."""
        figure.banner = banner
        kept[os.path.basename(path)] = figure

    monkeypatch.setattr(report, "write_plot", keep)
    return kept


def points(line):
    """Return the coordinates of a line's points."""
    return np.transpose(line.get_data()).tolist()


def dotted(panel):
    """Return where a panel has dotted vertical lines."""
    return [line.get_xdata()[0] for line in panel.get_lines()
            if line.get_linestyle() == ":"]


# What is a record

@pytest.mark.parametrize("name, columns", [
    ("cifar100", ["EfficientNetV2B0, fixed features",
                  "EfficientNetV2B0, partially frozen",
                  "MobileNetV2, fixed features",
                  "MobileNetV2, partially frozen",
                  "DenseNet121, fixed features",
                  "DenseNet121, partially frozen"]),
    ("desserts/smaller", [
        "simple network", *(
            f"{base}, {optimizer}, BatchNorm trained"
            for base in ("EfficientNetV2B0", "MobileNetV2")
            for optimizer in ("adam", "sgd"))])])
def test_faster_bases_come_first_and_the_simple_network_before_all(
        name, columns):
    records = report.read(f"{ROOT}/results/{name}")
    assert list(map(report.name, records)) == columns
    assert report.warning(records) == ""


def test_splits_come_in_their_order(tmp_path):
    folder = write_records(tmp_path, *[
        classified("four classes", title, ROWS, split=split, base="B")
        for title in ("B", "A") for split in (10, 9, 0)])
    assert [(record["title"], record["split"])
            for record in report.read(folder)] == [
        (title, split) for title in "AB" for split in (0, 9, 10)]


def test_other_json_files_are_not_records(tmp_path):
    folder = tmp_path / "100% [a] *"
    folder.mkdir()
    write_records(folder, {"script": "simple_cnn.py"}, [{"title": "a list"}],
                  *(classified("desserts", title, ROWS) for title in "BA"),
                  "title")
    assert [record["title"] for record in report.read(str(folder))] == [
        "A", "B"]


@pytest.mark.parametrize("change", [
    {"history": None}, {"history": []}, {"history": {}}, {"history": [1]},
    {"history": [{"accuracy": 1}]}, {"machine": None}, {"machine": [1]},
    {"machine": {}}, {"title": ["B"]}, {"split": "first"},
    {"title": "", "base": "B", "style": ["fixed"]}, {"title": None}])
def test_what_a_record_must_have(tmp_path, plots, change):
    """A JSON file of another program may have a title, too."""
    foreign = dict(classified("desserts", "B", ROWS), **change)
    foreign = {key: value for key, value in foreign.items()
               if value is not None}
    folder = write_records(
        tmp_path, foreign, classified("desserts", "A", ROWS))
    assert [record["title"] for record in report.read(folder)] == ["A"]
    assert report.report(folder).startswith("|  | A |\n")
    assert read_json(tmp_path / "0.json") == foreign  # left alone
    os.remove(tmp_path / "1.json")
    with pytest.raises(OSError, match="^No record of a training in"):
        report.read(folder)


def test_a_file_that_can_not_be_read_is_left_out_by_name(tmp_path, capsys):
    folder = write_records(tmp_path, classified("desserts", "A", ROWS))
    (tmp_path / "\x1b[31m.json").write_text('{"title": "B", "his')
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "deep.json").write_text("[" * 100000)
    assert [record["title"] for record in report.read(folder)] == ["A"]
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "".join(
        f"{folder}/{name}.json can't be read: it is left out\n"
        for name in (r"\x1b[31m", "deep", "folder"))


@pytest.mark.parametrize("change", [
    {"evaluation": None}, {"classes": []}, {"classes": 1},
    {"exercise": "another"}, {"exercise": []}, {"exercise": "CIFAR-100"},
    {"size": None}, {"parameters": "many"}, {"val_accuracy": None},
    {"history": [{"seconds": 1}]}, {"limit": "few"}])
def test_a_damaged_record_gets_one_message(
        tmp_path, monkeypatch, change, capsys):
    record = dict(classified("desserts", "A", ROWS), **change)
    folder = write_records(tmp_path, {
        key: value for key, value in record.items() if value is not None})
    (tmp_path / "table.md").write_text("older")
    monkeypatch.setattr(sys, "argv", ["report.py", folder])
    with pytest.raises(SystemExit) as end:
        report.main()
    assert end.value.code.startswith(f"A record in {folder} is damaged, or of "
                                     "another exercise: ")
    assert "\n" not in end.value.code and capsys.readouterr().out == ""
    assert (tmp_path / "table.md").read_text() == "older"


@fuzz
@given(damaged(json.dumps({
    key: value for key, value in read_json(
        f"{ROOT}/results/four_classes/split-0-extraction.json").items()
    if key not in ("tried", "model")}, ensure_ascii=False).encode()))
def test_damaged_records_are_reported_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.json")
        with open(path, "wb") as file:
            file.write(data)
        with unittest.mock.patch.object(report, "write_plot"):
            try:
                text = report.report(folder)
            except OSError as error:
                assert "No record" in str(error) or "damaged" in str(error)
            else:
                title = json.loads(data.decode())["title"]
                assert text.startswith(f"|  | {report.printable(title)} |\n")
        with open(path, "rb") as file:
            assert file.read() == data


@pytest.mark.parametrize("folder", ["", "nowhere", "file", "file/below"])
def test_a_usage_error_gets_one_message(
        tmp_path, monkeypatch, capsys, folder):
    (tmp_path / "file").touch()
    assert usage_error(
        report.main, monkeypatch, capsys, tmp_path, folder).endswith(
            f"error: folder is {folder!r}, expected a folder where a run "
            "wrote its records\n")


CLASSES = "\U0001f370", "\x1b[31mpie\x9b1m\r\x07" + os.fsdecode(b"\xe4")


def test_any_class_name_can_be_printed(tmp_path, capfd):
    """Under an ASCII terminal, too, and without control characters."""
    write_records(tmp_path, classified(
        "four classes", "A", ROWS, CLASSES, split=0, seconds_before=0))
    done = run([f"{ROOT}/report.py", str(tmp_path)], tmp_path, dict(
        os.environ, PYTHONIOENCODING="ascii", PATH=os.pathsep.join([
            os.path.dirname(sys.executable), os.environ["PATH"]])))
    assert (done.returncode, done.stderr) == (0, "")
    assert r" \U0001f370 " in done.stdout
    assert r"\x1b[31mpie\x9b1m\r\x07\udce4 " in done.stdout
    assert set(done.stdout) <= set("\n" + "".join(map(chr, range(32, 127))))
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "\U0001f370" in table and "\x1b" not in table


@pytest.mark.parametrize("limit, name, drawn", [
    (300, "table.md", False), (20000, "curves.png", True)])
def test_a_full_disk_leaves_the_older_report(
        tmp_path, monkeypatch, limit, name, drawn):
    resource = pytest.importorskip("resource")
    shutil.copy(f"{ROOT}/results/desserts/simple_cnn/simple.json", tmp_path)
    (tmp_path / name).write_text("older")
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    if not drawn:
        monkeypatch.setattr(report, "write_plot", lambda *_: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What is larger than the limit doesn't get on this disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SystemExit, match=f"{name} was not written: "):
            report.main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / name).read_text() == "older"
    assert sorted(os.listdir(tmp_path)) == sorted(["simple.json", name])


# The tables

@pytest.mark.parametrize("name", RESULTS)
def test_the_committed_reports_are_what_the_records_give(
        tmp_path, plots, name):
    folder = tmp_path / "copy"
    shutil.copytree(f"{ROOT}/results/{name}", folder,
                    ignore=shutil.ignore_patterns("table*", "*.png"))
    text = report.report(str(folder))
    for file in "table.md", "table.json":
        with open(f"{ROOT}/results/{name}/{file}", encoding="utf-8") as old:
            assert (folder / file).read_text(encoding="utf-8") == old.read()
    assert (folder / "table.md").read_text(encoding="utf-8") == f"{text}\n"
    assert set(plots) == {
        os.path.basename(path) for path in glob.glob(
            f"{ROOT}/results/{name}/*.png")
        if not os.path.basename(path).startswith("mistakes")}


def test_the_table_of_cifar100_is_its_records():
    records, rows = results("cifar100"), table_of("cifar100")
    for column, title in enumerate(rows[""]):
        base, style = title.split(", ")
        style = {"fixed features": "fixed",
                 "partially frozen": "partial"}[style]
        record = records[f"{base}-{style}"]
        frozen, history = record["frozen_pass"], record["history"]
        seconds = np.array([epoch["seconds"] for epoch in history])
        throughput = np.array([epoch["predict_images_per_second"]
                               for epoch in history])
        # Part 2 starts with part 1's linear classifier.
        tried = [row["seconds"] for row in records[f"{base}-fixed"]["tried"]]
        before = {"fixed": sum(tried) - seconds.sum(),
                  "partial": tried[0]}[style]
        cost = (frozen["seconds"] * frozen["predict_images_per_second"]
                + before * throughput[0] + seconds @ throughput) / 50000
        expected = {
            "input size, pixels": f"{record['size']}",
            "test accuracy, top-1": f"{100 * record['test_top1']:.2f} %",
            "test accuracy, top-5": f"{100 * record['test_top5']:.2f} %",
            "validation accuracy":
                f"{100 * history[-1]['val_accuracy']:.2f} %",
            "trained parameters": f"{record['trained_parameters']:,}",
            "other parameters (frozen, BatchNorm averages)":
                f"{record['other_parameters']:,}",
            "frozen convolutions": "{} of {}".format(
                record["frozen_convolutions"], record["convolutions"]),
            "frozen pass (shared by both styles), minutes":
                f"{frozen['seconds'] / 60:.1f}",
            "predict throughput during the frozen pass, images/s":
                f"{frozen['predict_images_per_second']:.0f}",
            "classifiers trained before, minutes": f"{before / 60:.1f}",
            "training, minutes": f"{seconds.sum() / 60:.1f}",
            "training, seconds per epoch": f"{seconds.mean():.1f}",
            "epochs": str(len(history)),
            "in all, minutes": "{:.1f}".format(
                (frozen["seconds"] + before + seconds.sum()) / 60),
            "predict throughput during training, images/s": " to ".join(
                dict.fromkeys(f"{f(throughput):.0f}" for f in (min, max))),
            "total cost, in predict passes over 50,000 images":
                f"{cost:.1f}",
            "peak memory of the process, GiB":
                f"{record['machine']['peak_memory_bytes'] / 2 ** 30:.2f}"}
        assert {row: cells[column] for row, cells in rows.items()
                if row} == expected


def wilson(correct, n):
    """Format an accuracy and Wilson's 95 % interval (JASA 22, 1927)."""
    p, z = correct / n, norm.ppf(0.975)
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)
    return (f"{100 * p:.1f} % ({100 * (middle - half):.1f} to "
            f"{100 * (middle + half):.1f})")


@pytest.mark.parametrize("name", ["transfer_model", "smaller"])
def test_the_table_of_the_desserts_is_their_records(name):
    records = {record["title"]: record for record in results(
        f"desserts/{name}").values()}
    rows = table_of(f"desserts/{name}")
    correct = {title: {row[1]: row[2] == row[3]
                       for row in record["evaluation"]["answers"]}
               for title, record in records.items()}
    simple = correct["simple network"]
    for column, title in enumerate(rows[""]):
        record, ours = records[title], correct[title]
        assert set(ours) == set(simple)
        wins = sum(ours[path] and not simple[path] for path in simple)
        losses = sum(simple[path] and not ours[path] for path in simple)
        expected = {
            "input size, pixels": str(record["size"]),
            "holdout accuracy (95 % interval)": wilson(
                sum(ours.values()), len(ours)),
            "holdout loss": f"{record['evaluation']['loss']:.3f}",
            "best validation accuracy": "{:.1f} %".format(100 * max(
                epoch["val_accuracy"] for epoch in record["history"])),
            "parameters": f"{record['parameters']:,}",
            "epochs": str(len(record["history"])),
            "training, minutes": "{:.1f}".format(sum(
                epoch["seconds"] for epoch in record["history"]) / 60),
            "wins : losses against the simple network (McNemar)":
                f"{wins} : {losses}, p = "
                f"{binomtest(wins, wins + losses).pvalue:.2g}"
                if "base" in record else ""}
        assert {row: cells[column] for row, cells in rows.items()
                if row} == expected


def test_the_table_of_the_four_classes_is_their_records():
    records, rows = results("four_classes"), table_of("four_classes")
    assert rows[""] == ["feature extraction", "fine-tuning"]
    for column, style in enumerate(("extraction", "fine-tuning")):
        splits = [records[f"split-{number}-{style}"]
                  for number in range(len(records) // 2)]
        correct = np.array([[
            row[2] == row[3] for row in record["evaluation"]["answers"]]
            for record in splits])
        accuracy = 100 * correct.mean(axis=1)
        seconds = [sum(epoch["seconds"] for epoch in record["history"])
                   + record["seconds_before"] for record in splits]
        epochs = [len(record["history"]) for record in splits]
        expected = {
            "input size, pixels": str(splits[0]["size"]),
            "training, validation and test images": ", ".join(
                map(str, splits[0]["pictures"])),
            "splits": str(len(splits)),
            "test accuracy, mean ± standard deviation":
                f"{accuracy.mean():.2f} % ± {accuracy.std(ddof=1):.2f}",
            "test accuracy on the first split (95 % interval)": wilson(
                correct[0].sum(), len(correct[0])),
            "frozen pass (shared by all trainings), seconds":
                f"{splits[0]['pass_seconds']:.0f}",
            "epochs, chosen on validation images": ", ".join(
                f"{n} ({epochs.count(n)} of {len(splits)})"
                for n in sorted(set(epochs))),
            "training (all numbers of epochs), seconds per split":
                f"{np.mean(seconds):.1f}"}
        assert {row: cells[column] for row, cells in rows.items()
                if row} == expected


def test_the_scores_of_each_class_are_over_all_splits():
    for style, text in zip(("extraction", "fine-tuning"), read_json(
            f"{ROOT}/results/four_classes/table.json")["answers"][-2:]):
        splits = [record for file, record in results("four_classes").items()
                  if file.endswith(f"-{style}")]
        assert text.startswith(
            f"{splits[0]['title']}, all {len(splits)} splits:\n")
        counts = sum(np.array(record["evaluation"]["confusion"])
                     for record in splits)
        for i, name in enumerate(splits[0]["classes"]):
            precision, recall = (counts[i, i] / counts.sum(axis=axis)[i]
                                 for axis in (0, 1))
            assert re.search(rf"{name} +" + " +".join([
                f"{precision:.2f}", f"{recall:.2f}",
                f"{2 / (1 / precision + 1 / recall):.2f}",
                str(counts[i].sum())]) + "\n", text)


def test_a_single_split_has_no_deviation(tmp_path, plots):
    folder = write_records(tmp_path, classified(
        "four classes", "fine-tuning", ROWS, base="MobileNetV2", split=0,
        seconds_before=0))
    text = report.report(folder)
    assert "mean ±" not in text  # such a row needs several splits
    assert "| 50.0 % (25.0 to 75.0) |" in text
    assert "fine-tuning, one split:" in text


def test_a_row_without_cells_is_left_out():
    rows = report.table([{"title": "A", "x": 1}, {"title": "B", "x": 2}], {
        "x": lambda record: str(record["x"]), "empty": lambda record: "",
        "B's": lambda record: "yes" if record["x"] == 2 else ""})
    assert report.markdown(rows) == (
        "|  | A | B |\n| --- | --- | --- |\n| x | 1 | 2 |\n| B's |  | yes |")


# The conclusions

def test_cifar100_concludes_which_and_at_what_cost():
    assert report.conclusions([
        cifar100("A", "fixed", 0.6, 600, 100),
        cifar100("A", "partial", 0.7, 1200, 100, before=600),
        cifar100("B", "fixed", 0.65, 3000, 100)]) == [
        "Fine-tuning A's upper half raises test accuracy from 60.0 % to "
        "70.0 %. It takes 40 minutes instead of 20. In passes of predict, "
        "that is 2.0 times the cost.",
        "Fixed features: A reaches 60.0 % in 20 minutes, B reaches 65.0 % in "
        "60 minutes.",
        "The most accurate model (A, partially frozen) takes 2.0 times as "
        "long as the cheapest (A, fixed features) and gains 10.0 percentage "
        "points."]


def test_cifar100_concludes_no_more_than_the_records_say():
    worse = cifar100("A", "partial", 0.5, 1200, 100, before=600)
    lines = report.conclusions([cifar100("A", "fixed", 0.6, 600, 100), worse])
    assert len(lines) == 1  # the cheapest is the most accurate
    assert "upper half lowers test accuracy from 60.0 % to 50.0 %" in (
        lines[0])
    line, = report.conclusions([
        cifar100("A", style, 0.6, 600, 100) for style in ("fixed", "partial")])
    assert "upper half doesn't change test accuracy, 60.0 %. It" in line
    assert report.conclusions([worse]) == []


@pytest.mark.parametrize("predictions, p, words", [
    ([0, 0, 1, 1], 0.01, "Yes: 100.0 % against 75.0 %"),
    ([1, 1, 0, 1], 0.049, "No: 25.0 % against 75.0 %"),
    ([0, 0, 1, 1], 0.05, "Unclear: 100.0 % against 75.0 %")])
def test_better_than_the_simple_network_only_if_significant(
        tmp_path, plots, predictions, p, words):
    pair = {"only_this_right": 1234, "only_other_right": 5, "p": p}
    rows = [("", truth, predicted, 1) for truth, predicted in zip(
        [0, 0, 1, 1], predictions)]
    folder = write_records(
        tmp_path, classified("desserts", "simple network", [
            ("", 0, 0, 1), ("", 0, 0, 1), ("", 1, 1, 1), ("", 1, 0, 1)]),
        classified("desserts", "B, adam", rows, base="B",
                   against_simple=pair))
    assert (f"Is B, adam better than the simple network? {words} on the same "
            f"4 images (wins : losses 1234 : 5, p = {p:.2g}, McNemar)."
            ) in report.report(folder)


def test_without_a_comparison_there_is_no_verdict(tmp_path, plots):
    folder = write_records(
        tmp_path, classified("desserts", "B, adam", ROWS, base="B"))
    text = report.report(folder)
    assert "better than" not in text and "McNemar" not in text


def answers(right):
    """Make metrics, as far as compare looks at them."""
    return {"answers": [[f"copy/{i}", i, 1, int(right[i]), 1.0]
                        for i in right]}


def test_mcnemar_s_test_is_exact():
    ours = dict(zip("abcdefghijklmnopqrst",
                    [1] * 9 + [0] + [1] * 5 + [0] * 5))
    theirs = dict(zip("abcdefghijklmnopqrst",
                      [0] * 9 + [1] + [1] * 5 + [0] * 5))
    shuffled = {image: theirs[image] for image in sorted(theirs)[::-1]}
    pair = report.compare(answers(ours), answers(shuffled))
    assert pair["only_this_right"] == 9 and pair["only_other_right"] == 1
    # A fair coin for each image on which the two differ
    assert pair["p"] == pytest.approx(2 * (1 + 10) / 2 ** 10)
    assert report.compare(answers(ours), answers(ours)) == {
        "only_this_right": 0, "only_other_right": 0, "p": 1.0}


def test_the_best_is_chosen_on_validation_images_and_p_is_corrected():
    def trained(title, val_accuracy, right):
        """Make the record of a training that gets these images right."""
        rows = [(str(i), 1, answer, 1) for i, answer in enumerate(right)]
        return classified("desserts", title, rows, base="B",
                          val_accuracy=val_accuracy)

    line = report.best_line([
        trained("all right", 0.8, [1] * 10),
        trained("chosen", 0.9, [1] * 8 + [0] * 2),
        trained("few right", 0.7, [0] * 8 + [0, 1])])
    # 0 : 2 has p = 1/2, and 8 : 1 has p = 20/512; each counts twice
    assert line == (
        "Best on the validation images: chosen, which gets 80.0 % of the "
        "holdout right. Compared with the others on the same images (wins : "
        "losses; McNemar's test, Bonferroni-corrected for 2 comparisons): "
        "all right, 0 : 2, p = 1; few right, 8 : 1, p = 0.078.")


@pytest.mark.parametrize("right, words, change", [
    ([1, 1, 1, 1, 1, 1], "Yes: of 6 test images, it gets 6 right more often "
     "than feature extraction does, and 0 less often (sign test, p = 0.031)",
     "raises test accuracy from 0.0 % to 100.0 %"),
    ([-1, -1, -1, -1, -1, -1], "No, it is worse: of 6 test images, it gets 0",
     "lowers test accuracy from 100.0 % to 0.0 %"),
    ([1, 1, 1, -1, 0, 0], "No difference can be told: of 6 test images, it "
     "gets 3 right more often than feature extraction does, and 1 less",
     "raises test accuracy from 50.0 % to 83.3 %"),
    ([-1, 0, 0, 0, 0, 0], "No difference can be told: of 6 test images, it "
     "gets 0 right more often than feature extraction does, and 1 less",
     "lowers test accuracy from 100.0 % to 83.3 %"),
    ([0, 0, 0, 0, 1, -1], "No difference can be told",
     "doesn't change test accuracy, 83.3 %")])
def test_which_of_lab_8_s_ways_is_better(
        tmp_path, plots, right, words, change):
    def split(title, number, better):
        """Make the record of a split on the same six images."""
        rows = [(str(i), 1, int(each >= 0 if better else each <= 0), 1)
                for i, each in enumerate(right)]
        return classified("four classes", title, rows, split=number,
                          seconds_before=0)

    both = [split(title, number, title == "fine-tuning")
            for title in ("feature extraction", "fine-tuning")
            for number in range(2)]
    line = next(line for line in report.report(
        write_records(tmp_path, *both)).splitlines() if "better?" in line)
    assert line.startswith(f"Is fine-tuning better? {words}")
    assert line.endswith(f". On these images, it {change}.")
    os.remove(tmp_path / "3.json")  # an unfinished run has one split less
    assert "Is fine-tuning better?" not in report.report(str(tmp_path))


def test_models_are_compared_on_the_same_images_only():
    with pytest.raises(ValueError, match="other images"):
        report.compare(answers({"a": 1, "b": 0}), answers({"a": 1}))


def test_eight_trainings_are_all_in_the_plot_of_time(tmp_path, plots):
    report.report(write_records(tmp_path, *[
        cifar100(base, style, 0.5, 240, 100) for base in "ABCD"
        for style in ("fixed", "partial")]))
    panel, = plots["accuracy-time.png"].axes
    assert len(panel.get_legend().get_texts()) == 8


def test_all_machines_are_named(tmp_path, plots):
    other = dict(MACHINE, processor="Another", memory_bytes=2 ** 34)
    folder = write_records(tmp_path, *[cifar100(
        base, "fixed", 0.5, 600, 100, machine=machine)
        for base, machine in (("A", MACHINE), ("B", other), ("C", MACHINE))])
    words = "A chip, 2 cores, 8 GiB; Another, 2 cores, 16 GiB"
    assert report.report(folder).endswith(f"\n\nMeasured on {words}.")
    panel, = plots["accuracy-time.png"].axes
    assert panel.get_title() == words
    assert read_json(tmp_path / "table.json")["machines"] == words


def test_all_output_of_a_limited_run_says_so(tmp_path, plots):
    folder = write_records(
        tmp_path, cifar100("A", "fixed", 0.5, 600, 100, limit=500),
        cifar100("A", "partial", 0.6, 600, 100, limit=500))
    text = report.report(folder)
    words = "NOT A RESULT: limited to 500 images"
    assert text.startswith(f"{words}\n\n|  | A, fixed")
    assert (tmp_path / "table.md").read_text().startswith(words)
    assert read_json(tmp_path / "table.json")["warning"] == words
    assert len(plots) == 4
    assert {figure.banner for figure in plots.values()} == {words}


# The plots

def test_curves_are_the_accuracies_of_each_epoch(tmp_path, plots):
    report.report(write_records(tmp_path, *[
        classified("desserts", title, ROWS) for title in "ABC"]))
    panels = plots["curves.png"].axes
    assert [panel.get_title() for panel in panels] == [
        "A", "", "B", "", "C", ""]
    for panel in panels[::2]:
        lines = {line.get_label(): points(line)
                 for line in panel.get_lines()}
        np.testing.assert_allclose(lines["training (running average)"], [
            [1, 20], [2, 40], [3, 90]])
        np.testing.assert_allclose(lines["validation"], [
            [1, 10], [2, 20], [3, 45]])
        assert dotted(panel) == [2.5]  # after the warm-up
        assert panel.get_xticks().tolist() == [1, 2, 3]
    for panel in panels[1::2]:  # the loss is beside it
        training, validation, _ = map(points, panel.get_lines())
        np.testing.assert_allclose(training, [[1, 0.6], [2, 1.2], [3, 2.7]])
        np.testing.assert_allclose(validation, [
            [1, 0.8], [2, 1.6], [3, 3.6]])
        assert panel.get_ylabel() == "loss"


def test_curves_of_several_splits_are_those_of_the_first(tmp_path, plots):
    splits = [classified("four classes", "T", ROWS, split=i,
                         seconds_before=30) for i in range(2)]
    splits[1]["history"] = splits[1]["history"][:1]
    text = report.report(write_records(tmp_path, *splits))
    panel, _ = plots["curves.png"].axes
    training, validation, _ = map(points, panel.get_lines())
    assert panel.get_title() == "T, first split"
    np.testing.assert_allclose(training, [[1, 20], [2, 40], [3, 90]])
    np.testing.assert_allclose(validation, [[1, 10], [2, 20], [3, 45]])
    assert "| 1 (1 of 2), 3 (1 of 2) |" in text
    # 3 and 1 minutes, and half a minute each for what wasn't kept
    assert "seconds per split | 150.0 |" in text


def test_time_is_counted_from_the_start_of_the_frozen_pass(tmp_path, plots):
    report.report(write_records(
        tmp_path, cifar100("A", "fixed", 0.5, 240, 100, before=60),
        cifar100("A", "partial", 0.5, 1200, 100)))
    panel, = plots["accuracy-time.png"].axes
    fixed, fixed_marks, partial, partial_marks, _ = map(
        points, panel.get_lines())
    np.testing.assert_allclose(fixed, [
        [13, 30], [15, 50]])  # 10 minutes, 1, and 2 for each epoch
    np.testing.assert_allclose(fixed_marks, [[15, 50]])  # the last alone
    for each in partial, partial_marks:
        np.testing.assert_allclose(each, [[20, 30], [30, 50]])
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "A, fixed features", "A, partially frozen"]
    assert dotted(panel) == [10]
    assert [text.get_text() for text in panel.texts] == [
        "50.0", "50.0", "A's frozen pass ends"]


def test_accuracies_are_shown_with_their_intervals(tmp_path, plots):
    report.report(write_records(
        tmp_path, classified("desserts", "A", ROWS[:3]),
        classified("desserts", "B", ROWS)))
    panel, = plots["accuracies.png"].axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "A", "B"]
    assert panel.yaxis_inverted()  # in the order of the table
    assert panel.get_xlabel().startswith("holdout accuracy, %")
    drawn = list(map(points, panel.get_lines()))
    np.testing.assert_allclose(np.concatenate(drawn), [
        [25, 0], [75, 0], [200 / 3, 0], [25, 1], [75, 1], [50, 1]])
    assert [text.get_text() for text in panel.texts] == ["66.7", "50.0"]


def test_a_bad_epoch_does_not_squeeze_the_others(tmp_path, plots):
    record = classified("desserts", "A", ROWS)
    losses = [1.2, 1.1, 900.0, 1.0, 0.9, 0.9, 0.8] * 2
    record["history"] = [dict(record["history"][0], loss=loss, val_loss=loss)
                         for loss in losses]
    report.report(write_records(tmp_path, record))
    accuracy, panel = plots["curves.png"].axes
    low, high = panel.get_ylim()
    assert low < 0.8 and 1.2 < high < 4
    assert [text.get_text() for text in panel.texts] == 4 * ["↑ 900"]
    assert not accuracy.texts


@pytest.mark.parametrize("values, limits", [
    ([1, 2, 3], (0.9, 3.1)), ([5], (4, 6)), ([5, 5], (4, 6)),
    ([*range(100), -900], (-4.95, 103.95)), ([0, 10], (-0.5, 10.5))])
def test_limits_leave_out_what_is_far_from_the_rest(values, limits):
    assert report.limits_of(values) == pytest.approx(limits)


def test_a_confusion_matrix_has_shares_of_each_true_class(plots):
    counts = [[180, 20, 0], [1, 99, 100], [0, 0, 0]]  # an absent class
    report.draw_confusion(counts, ["a", "b", "c"], "A title", "plot.png",
                          "A warning", "in place")
    panel, _ = plots["plot.png"].axes
    shown = panel.images[0].get_array()
    np.testing.assert_allclose(shown.filled(-1), [  # no colour: -1
        [-1, 10, 0], [0.5, -1, 50], [0, 0, -1]])
    assert panel.images[0].get_clim() == (0, 50)  # of mistakes alone
    assert {(*text.get_position(), text.get_text(), text.get_color())
            for text in panel.texts} == {
        (0, 0, "90", "grey"), (1, 0, "10", "black"), (1, 1, "50", "grey"),
        (2, 1, "50", "white"), (2, 2, "0", "grey")}
    for texts, axis in ((["a", "b", "c"], panel.xaxis),
                        (["a", "b", "c"], panel.yaxis)):
        assert [tick.get_text() for tick in axis.get_ticklabels()] == texts
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("predicted", "true")
    assert panel.get_title() == "A title: 69.8 % in place"  # 279 of 400
    assert plots["plot.png"].banner == "A warning"


LONG = "a class whose name is longer than all others", "the other class"


@pytest.mark.parametrize("classes, height", [
    ("ab", (2.5, 3.5)), (LONG, (4, 5)), (LONG * 10, (6.5, 8)),
    (LONG * 25, (13, 16))])
def test_a_confusion_matrix_is_as_large_as_its_classes_need(
        plots, classes, height):
    report.draw_confusion(np.eye(len(classes)), classes, "A", "plot.png")
    figure = plots["plot.png"]
    figure.draw_without_rendering()
    panel, _ = figure.axes
    width, high = figure.get_size_inches()
    assert height[0] < high < height[1] and width == max(report.WIDTH, high)
    # The squares take their share, and no name is clipped.
    box = panel.get_window_extent()
    assert box.height / 100 > min(1.7, 0.6 * high)
    assert box.width == pytest.approx(box.height)
    for label in [*panel.get_xticklabels(), *panel.get_yticklabels()]:
        area = label.get_window_extent()
        assert min(area.x0, area.y0) >= 0
        assert area.x1 <= 100 * width and area.y1 <= 100 * high


def test_a_confusion_matrix_of_300_classes_is_not_too_large(plots):
    report.draw_confusion(np.eye(300), LONG * 150, "A", "plot.png")
    assert max(plots["plot.png"].get_size_inches()) < 30


def test_names_of_classes_are_as_people_read_them():
    assert report.short("ice_cream") == "ice cream"


def test_a_long_name_is_shortened_in_the_middle():
    assert report.short(LONG[0]) == "a class whose …han all others"
    assert report.short(LONG[0], 11) == "a cla…thers"
    for name in "large omnivores and herbivores", "cake", "a" * 30:
        assert report.short(name) == name
    assert report.short("\x1b[31m") == r"\x1b[31m"


@pytest.fixture
def mistakes(tmp_path):
    """Write a record of 40 predictions, the first 30 of them wrong.

    Beside it is a clean copy of the images, each of a colour of its own.
    Returns: the folder, and the rows that the sheet should show
    """
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    rows = [(f"{i}.png", i % 2, (i + (i < 30)) % 2, p)
            for i, p in enumerate(rng.uniform(0.5, 1, 40))]
    for i in range(40):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(
            tmp_path / "pictures" / f"{i}.png")
    write_records(tmp_path, classified("desserts", "A, b c", rows))
    return tmp_path, sorted(rows[:30], key=lambda row: row[3])[::-1][:24]


def test_the_most_confident_mistakes_are_shown(mistakes, plots):
    folder, worst = mistakes
    report.report(str(folder))
    panels = plots["mistakes-A-b-c.png"].axes
    assert len(panels) == len(worst) == 24
    for panel, (path, truth, predicted, p) in zip(panels, worst):
        image = np.asarray(panel.images[0].get_array())
        assert image.shape == (6, 8, 3)
        assert f"{image[0, 0, 0]}.png" == path
        classes = "cake", "pie"
        assert panel.get_title() == (
            f"{classes[predicted]} {100 * p:.0f} %\ntrue: {classes[truth]}")


def test_long_names_of_classes_leave_room_for_the_mistakes(mistakes, plots):
    folder, _ = mistakes
    record = dict(read_json(folder / "0.json"), classes=LONG)
    write_records(folder, record)
    report.report(str(folder))
    figure = plots["mistakes-A-b-c.png"]
    figure.draw_without_rendering()
    titles = [panel.title.get_window_extent() for panel in figure.axes]
    for left, right in zip(titles, titles[1:6]):
        assert left.x1 < right.x0
    assert titles[0].x0 >= 0 and titles[5].x1 <= 800


def test_a_sheet_of_mistakes_survives_the_loss_of_the_images(mistakes):
    folder, _ = mistakes
    shutil.rmtree(folder / "pictures")
    sheet = folder / "mistakes-A-b-c.png"
    sheet.write_bytes(b"as it was")
    report.report(str(folder))
    assert sheet.read_bytes() == b"as it was"


def test_without_mistakes_there_is_no_sheet(mistakes, plots):
    folder, _ = mistakes
    write_records(folder, classified("desserts", "A", [("0.png", 0, 0, 1)]))
    report.report(str(folder))
    # Of a single training there is no plot of accuracies, either.
    assert set(plots) == {"curves.png", "confusion-A.png"}


def test_no_images_of_the_four_classes_are_shown(mistakes, plots):
    folder, _ = mistakes  # one of the classes is humans
    record = read_json(folder / "0.json")
    write_records(folder, dict(record, exercise="four classes", split=0,
                               seconds_before=0))
    report.report(str(folder))
    assert set(plots) == {"curves.png", "confusion-A-b-c.png"}


def test_class_names_are_not_formulas(mistakes):
    folder, worst = mistakes
    record = dict(read_json(folder / "0.json"), title="$^{",
                  classes=["$5 & $_{x", "50 % $\\frac$"])
    write_records(folder, record, dict(record, title="$_{"))
    report.report(str(folder))
    for plot in "curves", "accuracies", "confusion-$^{", "mistakes-$^{":
        with Image.open(folder / f"{plot}.png") as image:
            assert image.width == 1600 and np.asarray(image).std() > 10


def test_a_plot_is_a_png_as_wide_as_a_readme(tmp_path):
    path = str(tmp_path / "plot.png")
    for banner in "", "A warning":
        figure = matplotlib.figure.Figure((report.WIDTH, 2))
        report.write_plot(figure, path, banner, **{"data-sha256": "abc"})
        with Image.open(path) as image:
            assert image.format == "PNG" and image.size == (1600, 400)
            assert image.text["data-sha256"] == "abc"
            orange = np.all(np.asarray(image)[:, :, :3] == (
                0xd5, 0x5e, 0), axis=2)
        assert orange.any() == bool(banner)
    assert os.listdir(tmp_path) == ["plot.png"]
