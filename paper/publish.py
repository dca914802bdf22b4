#!/usr/bin/env python3
"""Turn paper/README.md into paper/publish.html, to be pasted elsewhere.

    paper/publish.py

Medium and LinkedIn take headings, lists, pictures and preformatted text from
a page that is open in a browser, but no tables, and no links into a folder:
tables become preformatted text, such links the words alone. Pictures have to
be uploaded by hand: the page names the file at each place, in their order.
"""
import os
import re
import sys

import markdown

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import runs  # noqa: E402


def plain_table(lines):
    """A Markdown table's lines as text in columns."""
    rows = [[cell.strip(" *") for cell in line.strip().strip("|").split("|")]
            for line in lines if not re.match(r"\|[ :|-]+\|$", line)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(
        row, widths)).rstrip() for row in rows)


def without_tables(text):
    """Markdown with its tables as preformatted text."""
    found = re.compile(r"(?:^\|.*\|\n)+", re.M)
    return found.sub(lambda table: "\n```\n" + plain_table(
        table[0].splitlines()) + "\n```\n", text)


def without_local_links(text):
    """Markdown whose links into the repository are words alone."""
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def name_pictures(html):
    """HTML that names the file at each picture, in their order."""
    count = 0

    def named(picture):
        """A picture and its file's name."""
        nonlocal count
        count += 1
        name = re.search('src="([^"]*)"', picture[0])[1]
        return f"{picture[0]}<br>(picture {count}: {name})"

    return re.sub(r"<img [^>]*>", named, html)


def page(text):
    """The paper's Markdown as a page."""
    title = text.splitlines()[0].lstrip("# ")
    body = markdown.markdown(without_local_links(without_tables(text)),
                             extensions=["fenced_code"])
    return ("<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n"
            f"<title>{title}</title>\n<body style=\"max-width: 700px\">\n"
            f"{name_pictures(body)}\n</body></html>\n")


def main():
    """Write publish.html."""
    try:
        with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
            text = file.read()
        runs.write(os.path.join(HERE, "publish.html"), page(text).encode())
    except OSError as error:
        sys.exit(str(error))
    print("publish.html")


if __name__ == "__main__":
    main()
