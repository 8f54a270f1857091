"""Embeddings: one entry per input.

Lives here: the inputs of a call, entries of a reply, a reply of entries. Elsewhere: their keys (key.py), when they are read and written (__init__.py).
Idea: an input has the same vector in whatever list it stands, so a list is a hit if all its inputs are known, from whichever calls. An entry holds what stood around its
vector, and the vector's bytes, which are never parsed again.

Usage: a list's tokens are shared out over its inputs by their length, so that the same list tells the same sum; of inputs from several lists it is a close guess. It costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from hookline import Call

ITEM_VERSION = 2


class Item:
    """One kept input. `around`: the vector's object without it; `top`: the reply's object without its data."""

    __slots__ = ("around", "content_type", "made_by", "stored_at", "tokens", "top", "vector")

    def __init__(self, told: dict[str, Any], vector: bytes) -> None:
        self.stored_at: float = told["at"]
        self.content_type: str = told["type"]
        self.top: dict[str, Any] = told["top"]
        self.around: dict[str, Any] = told["around"]
        self.tokens: int | None = told["tokens"]
        self.made_by: str = told.get("by", "")
        self.vector = vector


def inputs_of(call: Call) -> list[Any] | None:
    """The inputs of an embeddings call: texts or lists of tokens. None: something else, which is cached whole."""
    if call.endpoint != "embeddings" or call.payload is None:
        return None
    given = call.payload.get("input")
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        return None
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return [given]
    return given if kinds == {str} or kinds == {list} else None


def split(reply: Any, inputs: Sequence[Any], content_type: str, now: float, made_by: str) -> list[bytes] | None:
    """An entry for each input, in their order; None if the reply does not have one vector for each."""
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, list) or len(data) != len(inputs):
        return None
    by_index = {item.get("index"): item for item in data if isinstance(item, dict) and "embedding" in item}
    if set(by_index) != set(range(len(inputs))):
        return None
    usage = reply.get("usage")
    total = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    tokens = share_out(total, [len(item) if isinstance(item, list) else len(item.encode()) for item in inputs])
    top = {**reply, "data": None}
    entries = []
    for index in range(len(inputs)):
        around = {**by_index[index], "embedding": None}
        told = {
            "version": ITEM_VERSION,
            "at": now,
            "by": made_by,
            "type": content_type,
            "top": top,
            "around": around,
            "tokens": tokens[index],
        }
        vector = orjson.dumps(by_index[index]["embedding"])
        entries.append(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE) + vector)
    return entries


def share_out(total: Any, weights: Sequence[int]) -> list[int | None]:
    """`total` in whole parts by weight, none lost."""
    if type(total) is not int or total < 0:
        return [None] * len(weights)
    whole, given, seen, parts = sum(weights) or 1, 0, 0, list[int | None]()
    for weight in weights:
        seen += weight
        part = total * seen // whole - given
        given += part
        parts.append(part)
    return parts


def read_item(kept: bytes) -> Item | None:
    """What `split` wrote; None if it is of another version."""
    line, _, vector = kept.partition(b"\n")
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(told, dict) or told.get("version") != ITEM_VERSION or "around" not in told:
        return None
    return Item(told, vector)


def join(items: Sequence[Item]) -> bytes:
    """The reply to a call with these inputs."""
    reply = {**items[0].top}
    reply["data"] = [
        {**item.around, "index": index, "embedding": orjson.Fragment(item.vector)} for index, item in enumerate(items)
    ]
    tokens = [item.tokens for item in items]
    usage = reply.get("usage")
    if isinstance(usage, dict):
        total = sum(count or 0 for count in tokens)
        reply["usage"] = {**usage, **{name: total for name in ("prompt_tokens", "total_tokens") if name in usage}}
    return orjson.dumps(reply)
