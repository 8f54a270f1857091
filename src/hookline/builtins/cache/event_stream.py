"""Event streams as the cache keeps them: whole, as bytes.

Lives here: blocks, their data, and a stream with or without the usage event. Elsewhere: streams on their way (the transport's splitter), what their events mean together (assemble.py).
Idea: a kept stream is complete and was relayed once, so it can be cut at its blank lines; a block that need not change stays byte for byte."""

from __future__ import annotations

import re
from typing import Any

import orjson

from hookline import Inexact

DONE = b"data: [DONE]\n\n"
_NO_USAGE_YET = b',"usage":null}\n\n'
"""How a chunk ends before the usage is told."""
_WORDS = re.compile(
    rb"""^(data: ?(?:(?!"delta").)*"delta": ?\{(?:"role": ?"assistant", ?)?"content": ?")((?:[^"\\\n]|\\.)*)("\}[^{\[\n]*\n\n)""",
    re.MULTILINE,
)
"""An event with one delta, which says nothing but a piece of content; what stands behind it are plain values and closing brackets."""
RUNS_MAX = 8
"""So many runs of such events are joined; a stream in which several choices take turns has too many to gain by it."""


def blocks_of(events: bytes) -> list[bytes]:
    """The events, each with its blank line."""
    if b"\r" in events:
        events = events.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    parts = events.split(b"\n\n")
    last = parts.pop()
    blocks = [part + b"\n\n" for part in parts]
    return [*blocks, last + b"\n\n"] if last.strip() else blocks


def text_of(block: bytes) -> bytes | None:
    """An event's data as it stands; None for comments and `[DONE]`."""
    if block.startswith(b"data: ") and block.find(b"\n") == len(block) - 2:
        data = block[6:-2]
    else:
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        data = b"\n".join(lines)
    return None if not data or data == b"[DONE]" else data


def data_of(block: bytes) -> Any:
    """What an event's data parse to; None for comments and `[DONE]`. Raises Inexact."""
    data = text_of(block)
    try:
        return None if data is None else orjson.loads(data)
    except orjson.JSONDecodeError:
        raise Inexact from None


def with_joined_words(events: bytes) -> bytes:
    """The events, where such as differ only in the piece of content that they say, one after the other, are one that says all of it.

    That is most of a stream: what puts it together reads a few events instead of hundreds."""
    told: list[bytes] = []
    at = 0
    for _ in range(RUNS_MAX):
        said = _WORDS.search(events, at)
        if said is None:
            break
        before, _, after = said.groups()
        pieces = events[said.start(2) :].split(after + before)
        count = len(pieces) - 1
        if b"\n" in b"".join(pieces[:count]):  # another event stands between two of them: the run ends there
            count = next(n for n, piece in enumerate(pieces) if b"\n" in piece)
        last = pieces[count].partition(after)[0]
        pieces[count:] = [] if b"\n" in last else [last]  # what stands behind the last one may be something else
        told.append(events[at : said.start(2)])
        at = said.start(2) + sum(map(len, pieces)) + (len(pieces) - 1) * (len(after) + len(before))
        told.append((b"" if _are_texts(pieces) else after + before).join(pieces))
    return b"".join([*told, events[at:]])


def _are_texts(pieces: list[bytes]) -> bool:
    """Whether each is the inside of one JSON text, neither more nor less."""
    try:
        return len(orjson.loads(b'["%b"]' % b'","'.join(pieces))) == len(pieces)
    except orjson.JSONDecodeError:
        return False


def chunks_of(events: bytes) -> list[dict[str, Any]]:
    """The objects that the events hold, in one parse: a hundred small ones cost three times as much. Raises Inexact for anything else."""
    found = [data for block in blocks_of(events) if (data := text_of(block)) is not None]
    try:
        chunks: list[Any] = orjson.loads(b"[%b]" % b",".join(found))
    except orjson.JSONDecodeError:
        raise Inexact from None
    if len(chunks) != len(found) or not all(isinstance(chunk, dict) for chunk in chunks):
        raise Inexact
    return chunks


def joined_chunks_of(events: bytes) -> list[dict[str, Any]]:
    """The same of `with_joined_words`: to be put together, not to be counted."""
    return chunks_of(with_joined_words(events))


def event(data: Any) -> bytes:
    """One event."""
    return b"data: %b\n\n" % orjson.dumps(data)


def without_usage(events: bytes) -> bytes:
    """The stream for a client that did not ask for the usage event."""
    out: list[bytes] = []
    for block in blocks_of(events):
        if block.endswith(
            _NO_USAGE_YET
        ):  # nearly every one; it closes the object, so it is a member of the chunk's own
            out.append(block[: -len(_NO_USAGE_YET)] + b"}\n\n")
            continue
        data = data_of(block) if b'"usage"' in block else None
        if isinstance(data, dict) and "usage" in data:
            if data["usage"] is not None and not data.get("choices"):
                continue
            if data["usage"] is None:
                del data["usage"]
                block = event(data)
        out.append(block)
    return b"".join(out)


def with_usage(events: bytes, usage: Any) -> bytes:
    """The stream for a client that asked for the usage event. Raises Inexact if there is nothing to tell."""
    last: dict[str, Any] = {}
    out: list[bytes] = []
    for block in blocks_of(events):
        if b"[DONE]" in block and data_of(block) is None:
            continue
        out.append(block)
        if isinstance(data := data_of(block), dict):
            if data.get("usage") is not None:
                return events  # this upstream tells it unasked
            last = data
    if usage is None or not last:
        raise Inexact
    told = {name: value for name, value in last.items() if name not in ("choices", "usage", "obfuscation")}
    return b"".join([*out, event({**told, "choices": [], "usage": usage}), DONE])
