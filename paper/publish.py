#!/usr/bin/env python3
"""Turn paper/README.md into paper/publish.html, to be pasted elsewhere.

    paper/publish.py

Medium and LinkedIn accept headings, lists, images and preformatted text from
a page that is open in a browser, but no tables and no links into a folder. So
tables become preformatted text, and such links become plain words. Images
have to be uploaded by hand: the page names the file at each place, in order.
"""
import argparse
import itertools
import os
import re
import sys

import markdown

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
runs = __import__("runs")


def without_comments(text):
    """Remove the comments that name the numbers and tables for fill_in.py."""
    return re.sub(r"^<!--.*?-->\n|<!--.*?-->", "", text, flags=re.M)


def plain_table(lines):
    """Turn a Markdown table's lines into text in columns."""
    rows = [[cell.strip(" *") for cell in line.strip().strip("|").split("|")]
            for line in lines if not re.match(r"\|[ :|-]+\|$", line)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(
        row, widths)).rstrip() for row in rows)


def without_tables(text):
    """Turn the tables of a Markdown text into preformatted text."""
    return re.sub(r"(?:^\|.*\|\n)+", lambda table: "\n```\n" + plain_table(
        table[0].splitlines()) + "\n```\n", text, flags=re.M)


def without_local_links(text):
    """Turn links into the repository into their words."""
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def name_images(html):
    """Name the file at each image, numbered in order."""
    numbers = itertools.count(1)
    return re.sub(
        r'<img [^>]*src="([^"]*)"[^>]*>', lambda image:
        f"{image[0]}<br>(image {next(numbers)}: {image[1]})", html)


def page(text):
    """Turn the paper's Markdown into a page."""
    title = text.splitlines()[0].lstrip("# ")
    body = markdown.markdown(
        without_local_links(without_tables(without_comments(text))),
        extensions=["fenced_code"])
    return ("<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n"
            f"<title>{title}</title>\n<body style=\"max-width: 700px\">\n"
            f"{name_images(body)}\n</body></html>\n")


def main():
    """Write publish.html."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    try:
        with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
            text = file.read()
        runs.write(os.path.join(HERE, "publish.html"), page(text).encode())
    except OSError as error:
        sys.exit(str(error))
    print("publish.html")


if __name__ == "__main__":
    main()
