"""Write the tables of the pages from the JSON files that they come from, or name those that say something else.

    python eval/pages.py --write

A page is a Markdown file of the repository. A table that belongs to results stands behind a comment that makes it:

    <!-- table r=eval/results/addresses/evaluation_results.json
    | method | top-1 at 0.7 |
    |---|---|
    % for c in r.results if c.keep_ratio_asked == 0.7
    | {{ c.method }} | {{ c.top1 | estimate }} |
    % endfor
    -->

In its first line JSON files get names, paths are relative to the repository; one with a * for a folder stands for all that match,
as {folder: content} in the folders' order. The rest is a template of Jinja, whose control lines begin with %. Beside what Jinja
has there are the filters and functions of FILTERS and FUNCTIONS.
"""

import itertools
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jinja2

from data.artifacts import InputError, Parser, run, write_text
from data.provenance import REPOSITORY
from eval.records import read_any
from eval.report import agent_leads, by_budget, by_keep_ratio, by_kind, estimate, half, interval, number, one, standing_counts
from eval.report import verdicts

STAGES = ("data", "models", "rl", "eval", "plots")
WRONG = (jinja2.TemplateError, ValueError, OSError, LookupError, TypeError, AttributeError, ArithmeticError)  # of file, template
TABLE = re.compile(r"<!-- table (?P<sources>[^\n]+)\n(?P<template>.*?)\n-->\n(?P<table>(?:\|[^\n]*\n)*)", re.DOTALL)


FILTERS = {"number": number, "half": half, "interval": interval, "estimate": estimate}
FUNCTIONS = {
    "one": one, "by_keep_ratio": by_keep_ratio, "by_kind": by_kind, "by_budget": by_budget, "agent_leads": agent_leads,
    "verdicts": verdicts, "standing_counts": standing_counts,
}


def read_source(path):
    """The content of a JSON file, or of all that match a path with a * for a folder. Raises OSError or InputError."""
    if "*" not in path:
        return read_any(REPOSITORY / path)
    place = Path(path).parts.index("*") - len(Path(path).parts)
    found = {file.parts[place]: file for file in REPOSITORY.glob(path)}
    if not found:
        raise FileNotFoundError(f"expected files {path}, found none")
    return {folder: read_any(found[folder]) for folder in sorted(found)}


def make_table(sources, template):
    """The table that a comment makes. Raises InputError if a file is missing or has not what the template asks for."""
    try:
        named = dict(source.split("=", 1) for source in sources.split())
        files = {name: read_source(path) for name, path in named.items()}
        jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, line_statement_prefix="%", trim_blocks=True)
        jinja.filters |= FILTERS
        return jinja.from_string(template, globals=FUNCTIONS).render(files).strip("\n") + "\n"
    except WRONG as error:
        raise InputError(f"table {sources}: {type(error).__name__}: {error}") from None


def renew(text):
    """A page's text with all its tables made anew."""

    def replace(found):
        return found[0][: found.start("table") - found.start()] + make_table(found["sources"], found["template"])

    return TABLE.sub(replace, text)


def differences(text):
    """Lines of a page's tables that are not what the JSON files say: [(line number, expected, found), …]."""
    pairs = itertools.zip_longest(renew(text).splitlines(), text.splitlines(), fillvalue="")
    return [(line, expected, found) for line, (expected, found) in enumerate(pairs, 1) if expected != found]


def pages():
    """The Markdown files of the repository that have such tables."""
    found = [*REPOSITORY.glob("*.md"), *(path for stage in STAGES for path in (REPOSITORY / stage).rglob("*.md"))]
    return sorted(path for path in found if TABLE.search(path.read_text(encoding="utf-8")))


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables anew instead of naming one that differs")
    args = parser.parse_args(argv)
    for path in pages():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(REPOSITORY)
        if args.write:
            write_text(path, renew(text))
        elif wrong := differences(text):
            line, expected, found = wrong[0]
            remedy = "write it with: python eval/pages.py --write"
            raise InputError(f"{name}:{line}: expected '{expected}', found '{found}'; {remedy}")
        print(f"{name}: tables {'written' if args.write else 'as in the results'}, {len(TABLE.findall(text))} in all")


if __name__ == "__main__":
    run(main)
