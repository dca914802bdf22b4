#!/usr/bin/env python3
"""The course's rules, for every Python file of the project."""
import ast
import glob
import os

import pycodestyle
import pytest

from helpers import ROOT

FILES = sorted(path for folder in ("", "tests", "benchmarks", "paper")
               for path in glob.glob(os.path.join(ROOT, folder, "*.py")))


@pytest.mark.parametrize("path", FILES, ids=os.path.basename)
def test_a_file_follows_the_rules_of_the_course(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert text.startswith("#!/usr/bin/env python3\n")
    assert os.access(path, os.X_OK)
    if os.path.basename(path) == "0-main.py":
        return  # the exercise's own
    assert pycodestyle.StyleGuide().check_files([path]).total_errors == 0
    tree = ast.parse(text, feature_version=(3, 9))
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        # A test's name says what it tests.
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not (
                node.name.startswith("test_")):
            assert ast.get_docstring(node), node.name


def test_the_first_script_is_read_in_one_sitting():
    with open(os.path.join(ROOT, "0-transfer.py"), encoding="utf-8") as file:
        assert len(file.readlines()) <= 700
