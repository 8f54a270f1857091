"""What a Responses object repeats of its request.

Lives here: `metadata`, `user` and other members that are not in the key but stand in the reply. Elsewhere: the key (key.py).
Idea: a call must read its own metadata, never another caller's; where both are equal, which is nearly always, the bytes stay as they were."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from hookline import Call
from hookline.builtins.cache.event_stream import blocks_of, data_of
from hookline.builtins.cache.key import HINTS

if TYPE_CHECKING:
    from hookline.builtins.cache.entry import Entry


def echo_of(call: Call) -> dict[str, Any]:
    """What of this call a Responses object may repeat."""
    payload = call.payload or {}
    if call.endpoint != "responses" or HINTS.isdisjoint(payload):
        return {}
    return {name: payload[name] for name in HINTS if payload.get(name) is not None}


def form_in_flight(call: Call, form: str) -> str:
    """The form in which an answer can be read along: one that repeats another caller's words is another form."""
    own = echo_of(call)
    if not own:
        return form
    return f"{form}+{hashlib.blake2b(orjson.dumps(own, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()}"


def with_echo(body: bytes, entry: Entry, call: Call) -> bytes:
    """The kept body as a reply to this call. Raises Inexact."""
    own = echo_of(call)
    if own == entry.echo:
        return body
    if entry.form == "json":
        response = orjson.loads(body)
        _replace(response, own)
        return orjson.dumps(response)
    out = []
    for block in blocks_of(body):
        data = data_of(block) if b'"response":' in block else None
        if isinstance(data, dict) and isinstance(data.get("response"), dict):
            _replace(data["response"], own)
            name = block.partition(b"data:")[0]
            block = b"%bdata: %b\n\n" % (name, orjson.dumps(data))
        out.append(block)
    return b"".join(out)


def _replace(response: dict[str, Any], own: dict[str, Any]) -> None:
    for name in HINTS:
        if name in response or name in own:
            response[name] = own.get(name, {} if name == "metadata" else None)
