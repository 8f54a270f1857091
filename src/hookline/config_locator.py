"""Where in a TOML file a value stands: dotted path -> line number.

Lives here: a scanner for text that tomllib has already accepted. Elsewhere: parsing (tomllib), reading the file and `${NAME}` (config_source.py),
what the values mean (config.py).
Idea: tomllib keeps no positions, so the text is walked a second time, and only keys, brackets and the ends of strings are understood; a valid file is
assumed, so nothing here reports errors."""

from __future__ import annotations

import re
from collections.abc import Mapping

Path = tuple[str | int, ...]
"""Table names and keys as str, places in an array as int."""

_BLANK = re.compile(r"[ \t]*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\r\n#]*")
_STRING_ENDS = {
    '"""': re.compile(r'(?:[^\\"]|\\.|"(?!""))*("{3,5})', re.DOTALL),
    "'''": re.compile(r"(?:[^']|'(?!''))*('{3,5})", re.DOTALL),
    '"': re.compile(r'(?:[^\\"]|\\.)*"'),
    "'": re.compile(r"[^']*'"),
}
_ESCAPE = re.compile(r'\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[btnfr"\\])')
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def locate(text: str) -> Mapping[Path, int]:
    """The line (from 1) on which each table, key and array element of `text` begins. `text` is valid TOML."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.array_lengths: dict[Path, int] = {}
        self._counted_to = 0
        self._line = 1

    def scan(self) -> Mapping[Path, int]:
        table: Path = ()
        while True:
            self.skip(_BLANK_LINES)
            if self.at >= len(self.text):
                return self.lines
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.assignment(table)

    def header(self) -> Path:
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        names = self.dotted_key()
        self.at = self.text.index("]", self.at) + (2 if is_array else 1)
        path: Path = ()
        for number, name in enumerate(names, 1):
            path = (*path, name)
            self.mark(path)
            is_last = number == len(names)
            if is_last and is_array:
                index = self.array_lengths.get(path, 0)
                self.array_lengths[path] = index + 1
                path = (*path, index)
                self.mark(path)
            elif path in self.array_lengths:
                path = (*path, self.array_lengths[path] - 1)
        return path

    def assignment(self, table: Path) -> None:
        path = table
        line = self.line()
        for name in self.dotted_key():
            path = (*path, name)
            self.mark(path, line)
        self.skip(_BLANK)
        self.at += 1  # the "="
        self.value(path)

    def value(self, path: Path) -> None:
        self.skip(_BLANK)
        character = self.text[self.at]
        if character == "[":
            self.array(path)
        elif character == "{":
            self.inline_table(path)
        elif character in "\"'":
            self.string()
        else:
            self.skip(_SCALAR)

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while True:
            self.skip(_BLANK_LINES)
            character = self.text[self.at]
            if character in ",]":
                self.at += 1
                if character == "]":
                    return
                continue
            self.mark((*path, index))
            self.value((*path, index))
            index += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        while True:
            self.skip(_BLANK_LINES)
            character = self.text[self.at]
            if character in ",}":
                self.at += 1
                if character == "}":
                    return
                continue
            self.assignment(path)

    def dotted_key(self) -> list[str]:
        names: list[str] = []
        while True:
            self.skip(_BLANK)
            names.append(self.string() if self.text[self.at] in "\"'" else self.bare_key())
            self.skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return names
            self.at += 1

    def bare_key(self) -> str:
        start = self.at
        self.skip(_BARE_KEY)
        return self.text[start : self.at]

    def string(self) -> str:
        """Step over a string of any of the four kinds; answers what is between the quotes (keys need it)."""
        three = self.text[self.at : self.at + 3]
        quotes = three if three in _STRING_ENDS else self.text[self.at]
        start = self.at + len(quotes)
        found = _STRING_ENDS[quotes].match(self.text, start)
        if found is None:
            raise ValueError(f"unterminated string at line {self.line()}")
        self.at = found.end()
        inner = self.text[start : self.at - len(quotes)]
        return _ESCAPE.sub(_unescape, inner) if quotes == '"' else inner

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()

    def mark(self, path: Path, line: int | None = None) -> None:
        self.lines.setdefault(path, line or self.line())

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line


def _unescape(found: re.Match[str]) -> str:
    code = found.group(1)
    return chr(int(code[1:], 16)) if code[0] in "uU" else _ESCAPED[code]
