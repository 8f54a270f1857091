"""What commands print.

Lives here: a table, a line of JSON, a remark beside what is printed. Elsewhere: errors and exit statuses (the command line itself), what is printed (each plugin).
Idea: stdout holds the answer and nothing else, so that a script can read it; what a person should know beside it goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import orjson


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Lines of equally many cells, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def print_json(value: Any) -> None:
    """One line."""
    print(orjson.dumps(value).decode())


def remark(text: str) -> None:
    """A sentence on stderr."""
    print(f"hookline: {text}", file=sys.stderr)
