"""Body: the bytes of one attempt, made from the client's with as few changes as there are.

Lives here: which members differ per attempt (`model`, `stream_options`, the completion limit) and how a member is replaced in JSON text. Elsewhere: who lowers the limit
(`attempt.output_cap`), multipart bodies (the surface's `Upload`).
Idea: the client's bytes go out untouched when nothing differs. Otherwise only the values of those top-level members are exchanged, and every other byte stays: unknown
fields, number formats, key order and duplicate keys arrive as they were sent.

Theory. The text has been parsed, so it is valid JSON and an object, and it is known which members it has. A member that it lacks is put before the last `}`. A member that it
has is found fast if the token `"name"` occurs once and no letter of a name can be hidden in a `\\u` escape: then that token is the member. Otherwise the top level is
scanned: strings and whole nested values are skipped by possessive patterns (no backtracking, each byte is looked at once), and all occurrences of the name are replaced,
because which of two duplicates counts is the upstream's choice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from hookline.call import Endpoint

_LIMIT_NAMES: dict[str, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""The completion limit by endpoint. Where none was sent, the first is added (for chat: what the provider is told to write)."""

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_SPACE = rb"[ \t\r\n]*+"
_SIMPLE_VALUE = re.compile(rb"%b:%b(%b|[-+.\w]++)" % (_SPACE, _SPACE, _STRING), re.DOTALL)
_KEY = re.compile(rb"[{,]%b(%b)%b:%b" % (_SPACE, _STRING, _SPACE, _SPACE), re.DOTALL)
_SCALAR = re.compile(rb"%b|[-+.\w]++" % _STRING, re.DOTALL)
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|%b)*+' % _STRING, re.DOTALL)
# A letter of our names (a-z, _) written as an escape begins with one of these.
_HIDDEN_LETTERS = (b"\\u006", b"\\u007", b"\\u005")


def limit_changes(
    payload: Mapping[str, Any], endpoint: Endpoint, cap: int | None, *, chat_name: str = "max_completion_tokens"
) -> dict[str, Any]:
    """The members that bring the completion limit down to `cap`; empty if nothing must be said.

    The client's own limit stays where it is not higher. `chat_name` is written where a chat request has none."""
    names = _LIMIT_NAMES.get(endpoint)
    if cap is None or names is None:
        return {}
    limits: dict[str, float] = {name: payload[name] for name in names if type(payload.get(name)) in (int, float)}
    if not limits:
        return {chat_name if endpoint == "chat" else names[0]: cap}
    return {name: cap for name, limit in limits.items() if limit > cap or limit < 0}


def splice(body: bytes, payload: Mapping[str, Any], changes: Mapping[str, Any]) -> bytes:
    """`body` with the top-level members of `changes` set to their values, all other bytes as they are.

    `payload` is what `body` parses to; `body` is a JSON object. Names are lower-case letters and `_`."""
    missing: list[bytes] = []
    for name, value in changes.items():
        text = orjson.dumps(value)
        if name in payload:
            body = _replace(body, name.encode(), text)
        else:
            missing.append(b'"%b":%b' % (name.encode(), text))
    if not missing:
        return body
    end = body.rindex(b"}")
    return b"%b%b%b%b" % (body[:end], b"," if payload else b"", b",".join(missing), body[end:])


def _replace(body: bytes, name: bytes, text: bytes) -> bytes:
    token = b'"%b"' % name
    if body.count(token) == 1 and (b"\\u00" not in body or not any(letters in body for letters in _HIDDEN_LETTERS)):
        found = _SIMPLE_VALUE.match(body, body.index(token) + len(token))
        if found is not None:
            return body[: found.start(1)] + text + body[found.end(1) :]
    pieces: list[bytes] = []
    at = 0
    for start, end in _values_of(body, name.decode()):
        pieces += (body[at:start], text)
        at = end
    pieces.append(body[at:])
    return b"".join(pieces)


def _values_of(body: bytes, name: str) -> list[tuple[int, int]]:
    """Where the values of all top-level members called `name` begin and end."""
    found: list[tuple[int, int]] = []
    at = body.index(b"{")
    while (key := _KEY.match(body, at)) is not None:
        start = key.end()
        end = _end_of_value(body, start)
        if orjson.loads(key.group(1)) == name:
            found.append((start, end))
        at = end
        while body[at : at + 1] in (b" ", b"\t", b"\r", b"\n"):
            at += 1
    return found


def _end_of_value(body: bytes, start: int) -> int:
    scalar = _SCALAR.match(body, start)
    if scalar is not None:
        return scalar.end()
    depth, at = 1, start + 1
    while depth:
        found = _TO_BRACKET.match(body, at)
        assert found is not None  # the pattern matches the empty string
        at = found.end()
        depth += 1 if body[at] in b"{[" else -1
        at += 1
    return at
