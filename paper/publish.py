#!/usr/bin/env python3
"""Turn paper/README.md into paper/publish.html, to be pasted elsewhere.

    paper/publish.py --code URL

URL is where the repository is published: links into it then lead there. Medium
and LinkedIn accept headings, lists, images and preformatted text from a page
that is open in a browser, but no tables, which become preformatted text.
Images have to be uploaded by hand: the page names the file at each place, in
order. Without --code the links lead into this folder, and the page says so.
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

DRAFT = """\
*Not ready to be published: links to the code lead into this folder. Rewrite
this page with `paper/publish.py --code URL`.*

"""


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


def link_to_code(text, code):
    """Let links into the repository lead to where it is published."""
    def published(link):
        """Return one of them, which was relative to this folder."""
        path, hash_sign, heading = link[2].partition("#")
        path = os.path.normpath(os.path.join("paper", path or "README.md"))
        return f"{link[1]}({code.rstrip('/')}/{path}{hash_sign}{heading})"

    return re.sub(r"((?<!!)\[[^]]+\])\((?!https?:)([^)]*)\)", published,
                  text)


def name_images(html):
    """Name the file at each image, numbered in order."""
    numbers = itertools.count(1)
    return re.sub(
        r'<img [^>]*src="([^"]*)"[^>]*>', lambda image:
        f"{image[0]}<br>(image {next(numbers)}: {image[1]})", html)


def page(text, code=None):
    """Turn the paper's Markdown into a page.

    code: where the repository is published, or None
    """
    title = text.splitlines()[0].lstrip("# ")
    text = without_tables(without_comments(text))
    text = link_to_code(text, code) if code else DRAFT + text
    body = markdown.markdown(text, extensions=["fenced_code"])
    return ("<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n"
            f"<title>{title}</title>\n<body style=\"max-width: 700px\">\n"
            f"{name_images(body)}\n</body></html>\n")


def main():
    """Write publish.html."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--code", metavar="URL", help="where the repository "
                        "is published, up to the folder of README.md")
    code = parser.parse_args().code
    if code is not None and not re.match(r"https?://[^/\s]+\S*$", code):
        parser.error(f"--code is {code!r}, expected an address such as "
                     "https://github.com/NAME/REPOSITORY/blob/main")
    try:
        with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
            html = page(file.read(), code)
        runs.write(os.path.join(HERE, "publish.html"), html.encode())
    except OSError as error:
        sys.exit(str(error))
    print("publish.html")


if __name__ == "__main__":
    main()
