"""Server-sent events: where one ends, what is in it, how to write one.

Lives here: framing only, by the WHATWG rules (lines end with LF, CRLF or CR; a blank line ends an event). Elsewhere: what the
data means (providers, pipeline).
Idea: the splitter never changes a byte. Blocks joined, plus `tail`, are the input, whatever the pieces it came in; so a relay
can look at events and still forward exactly what the upstream sent.

Theory. A CR at the end of a piece may be half of a CRLF, so it is held back until the next byte decides. Of an unfinished
event only one fact is needed: whether what is held ends with a line end. So each byte is looked at once, and a 10 MB event in
small pieces costs what it costs in one."""

from __future__ import annotations

import re
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"  # as numbers: `in` on bytes is quick for a number only
_LINE_END = re.compile(rb"\r\n?|\n")
_BLANK_LINE = re.compile(rb"(?:\r\n?+|\n)(?:\r\n?+|\n)")  # possessive: a CRLF is never read as two line ends


class SseSplitter:
    """Cuts a stream into raw event blocks, each with the blank line that ends it. A blank line too many is a block too."""

    __slots__ = ("_held_cr", "_is_at_line_start", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # the unfinished event, without a CR that may be half of a CRLF
        self._held_cr = b""
        self._is_at_line_start = True

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that `data` completes, often none or one."""
        if self._held_cr:
            data = self._held_cr + data
            self._held_cr = b""
        if data.endswith(b"\r"):
            self._held_cr = b"\r"
            data = data[:-1]
        if not data:
            return []
        return self._split(data, is_lf_only=b"\r" not in data)

    @property
    def tail(self) -> bytes:
        """The bytes of the last, unfinished event. At the end of a stream it may be a whole one that ends in CR."""
        return b"".join(self._pieces) + self._held_cr

    def _split(self, data: bytes, *, is_lf_only: bool) -> list[bytes]:
        blocks: list[bytes] = []
        start, size = 0, len(data)
        while start < size:
            end = self._end_of_blank_line(data, start, is_lf_only)
            if end < 0:
                self._pieces.append(data[start:])
                self._is_at_line_start = data[-1] in b"\r\n"
                return blocks
            block = data[start:end]
            if self._pieces:
                self._pieces.append(block)
                block = b"".join(self._pieces)
                self._pieces.clear()
            blocks.append(block)
            self._is_at_line_start = True
            start = end
        return blocks

    def _end_of_blank_line(self, data: bytes, start: int, is_lf_only: bool) -> int:
        if self._is_at_line_start and data[start] in b"\r\n":
            return start + (2 if data.startswith(b"\r\n", start) else 1)
        if is_lf_only:
            found = data.find(b"\n\n", start)
            return found + 2 if found >= 0 else -1
        match = _BLANK_LINE.search(data, start)
        return match.end() if match is not None else -1


class SseEvent(NamedTuple):
    """One parsed block. `event` and `id` are None where the block has no such field."""

    event: str | None
    data: bytes  # the data lines, joined with LF
    id: str | None
    is_comment_only: bool  # nothing a client would dispatch: comments, blank lines, retry


def parse_event(block: bytes) -> SseEvent:
    """Read one block, complete or not. Never raises: unknown fields are ignored, as the standard demands."""
    if block.startswith(b"data: ") and block.endswith(b"\n\n"):
        line = block[6:-2]
        if _LF not in line and _CR not in line:
            return SseEvent(None, line, None, False)
    event: str | None = None
    event_id: str | None = None
    data: list[bytes] = []
    for line in _LINE_END.split(block.removeprefix(BOM)):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value:
            event_id = value.decode(errors="replace")
    return SseEvent(event, b"\n".join(data), event_id, not data and event is None and event_id is None)


def serialize_event(data: bytes, *, event: str | None = None, id: str | None = None) -> bytes:
    """One event as bytes; data with line ends becomes several data lines. Raises ValueError for a line end in a name."""
    lines: list[bytes] = []
    for field, value in (("event", event), ("id", id)):
        if value is not None:
            if "\n" in value or "\r" in value:
                raise ValueError(f"SSE field {field} cannot hold a line end")
            lines.append(f"{field}: {value}\n".encode())
    lines += [b"data: %b\n" % line for line in _LINE_END.split(data)]
    return b"".join(lines) + b"\n"
