"""Demo pattern: a text that a regular expression matches.

Lives here: a small reading of the expressions that JSON Schemas use: classes, groups, alternatives, counts, anchors. Elsewhere: when a pattern is asked (demo_schema.py).
Idea: an expression read from left to right is a recipe: the first character of each class, the first alternative, the least count. The expression itself never runs: it is a client's, and could run for ever."""

from __future__ import annotations

import re

MAX_PATTERN_CHARS = 2000
MAX_DEPTH = 40
MAX_TEXT_CHARS = 10_000

_ESCAPED = {"d": "1", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "n": "\n", "t": "\t", "r": "\r", "b": "", "B": "", "A": "", "z": "", "Z": ""}  # fmt: skip
_SHORT = {
    "d": set("0123456789"),
    "w": set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"),
    "s": set(" \t\n\r"),
}
_OTHERS = "a1A -_.é"
"""What is tried for a class of what is not allowed."""
_GROUP = re.compile(r"\(\?(?P<look>=|!|<=|<!)|\(\?:|\(\?P?<\w+>|\((?!\?)")
_COUNT = re.compile(r"\{(\d{1,5})(,?)(\d{0,5})\}")


def text_for(pattern: str, *, min_chars: int = 0) -> str | None:
    """A text for the pattern, of at least `min_chars` if a count in it allows that. None for what is not understood."""
    if len(pattern) > MAX_PATTERN_CHARS:
        return None
    try:
        text = _Recipe(pattern).write()
        if len(text) < min_chars:
            text = _Recipe(pattern, min_chars - len(text)).write()
    except (IndexError, ValueError):
        return None
    return text


class _Recipe:
    """Reads the pattern once. `more` characters are wanted beyond the least; the first count that may be higher gives them."""

    def __init__(self, pattern: str, more: int = 0) -> None:
        self._pattern = pattern
        self._more = more
        self._at = 0

    def write(self) -> str:
        text = self._alternatives(0)
        if self._at < len(self._pattern):
            raise ValueError("a parenthesis too many")
        return text

    def _alternatives(self, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        first = self._sequence(depth)
        while self._peek() == "|":
            self._at += 1
            more, self._more = self._more, 0
            self._sequence(depth)  # read, to know where it ends
            self._more = more
        return first

    def _sequence(self, depth: int) -> str:
        text = ""
        while self._peek() not in ("", "|", ")"):
            text += self._repeat(self._one(depth))
            if len(text) > MAX_TEXT_CHARS:
                raise ValueError("too long")
        return text

    def _one(self, depth: int) -> str:
        char = self._peek()
        if char == "(":
            return self._group(depth)
        self._at += 1
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        return {"^": "", "$": "", ".": "a"}.get(char, char)

    def _group(self, depth: int) -> str:
        opening = _GROUP.match(self._pattern, self._at)
        if opening is None:
            raise ValueError("a group of another kind")
        self._at = opening.end()
        text = self._alternatives(depth + 1)
        if self._next() != ")":
            raise ValueError("a group without an end")
        return "" if opening["look"] else text

    def _escape(self) -> str:
        char = self._next()
        if char in "pPk" or char.isdigit():
            raise ValueError("a property or a reference")
        return self._code(char) or _ESCAPED.get(char, char)

    def _code(self, char: str) -> str:
        digits = {"x": 2, "u": 4}.get(char, 0)
        if not digits:
            return ""
        code = self._pattern[self._at : self._at + digits]
        self._at += digits
        return chr(int(code, 16))

    def _class(self) -> str:
        is_negated = self._peek() == "^"
        self._at += is_negated
        first, members = "", set[str]()
        is_first = True
        while (char := self._next()) != "]" or is_first:
            is_first = False
            low = char
            if char == "\\":
                low = self._next()
                if low.lower() in _SHORT:
                    members |= _SHORT[low.lower()]
                    first = first or _ESCAPED[low]
                    continue
                low = self._code(low) or _ESCAPED.get(low, low)
            high = low
            if self._peek() == "-" and self._pattern[self._at + 1] != "]":
                self._at += 1
                high = self._next()
                if high == "\\":
                    high = self._next()
                    high = self._code(high) or high
            members |= {chr(code) for code in range(ord(low), min(ord(high), ord(low) + 256) + 1)}
            first = first or low
        return next(other for other in [*_OTHERS, ""] if other not in members) if is_negated else first

    def _repeat(self, unit: str) -> str:
        least, most = self._counts()
        times = least
        if self._more and unit and most > least:
            times = min(most, least + -(-self._more // len(unit)))
            self._more = max(0, self._more - (times - least) * len(unit))
        if times * len(unit) > MAX_TEXT_CHARS:
            raise ValueError("too long")
        return unit * times

    def _counts(self) -> tuple[int, int]:
        char = self._peek()
        counts = {"*": (0, MAX_TEXT_CHARS), "+": (1, MAX_TEXT_CHARS), "?": (0, 1)}.get(char)
        if counts is not None:
            self._at += 1
        elif char == "{" and (found := _COUNT.match(self._pattern, self._at)):
            self._at = found.end()
            least = int(found[1])
            counts = least, int(found[3]) if found[3] else MAX_TEXT_CHARS if found[2] else least
        else:
            return 1, 1
        if self._peek() in ("?", "+"):  # lazy, possessive: the same texts
            self._at += 1
        return counts

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._pattern[self._at]  # IndexError: the pattern ends too early
        self._at += 1
        return char
