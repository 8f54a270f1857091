"""The key: a digest of everything that can change the answer.

Lives here: `cache_key`, `item_keys` (embeddings), and `form_of`: in which form a call wants its answer. Elsewhere: which calls have a key (wishes.py), what a model's name stands for
(meaning.py), what lies under a key (entry.py, embeddings.py).
Idea: one key for all forms of an answer. Who must tell forms apart takes both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from hookline import CACHE_VARY, Call

HINTS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""Who asks, and hints to the provider's own cache: they don't change the answer. (A Responses object repeats them: see echo.py.)"""
NOT_IN_KEY = HINTS | {"stream", "stream_options", "model"}
"""The model is in the key by its canonical name, so that an alias shares its entries."""
HEADERS_IN_KEY = ("openai-beta", "anthropic-beta", "anthropic-version")
DIGEST_BYTES = 20

Form = Literal["json", "events", "events+usage"]


def form_of(call: Call) -> Form:
    """What this call's client reads: a plain reply, a stream, or a stream with the usage event (which a Responses stream always has)."""
    if not call.is_stream or call.endpoint not in ("chat", "completions", "responses"):
        return "json"
    return "events+usage" if call.endpoint != "responses" and call.chat.wants_usage else "events"


def is_read_alike(call: Call) -> bool:
    """Whether the upstream reads in the body what stands in the key: no member twice at any depth (its first may count there), no number that we know
    only roughly. Else who asks so could leave another question's answer under a key."""
    payload, body = call.payload, call.body
    try:
        return orjson.dumps(payload) == body or bool(json.loads(body, object_pairs_hook=_without_repeats) == payload)
    except (ValueError, TypeError, RecursionError):  # orjson writes less deep ones than it reads
        return False


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a member stands twice")
    return made


def cache_key(
    call: Call, *, is_shared: bool = False, model: str | None = None, meaning: bytes = b"", headers: Sequence[str] = ()
) -> bytes:
    """`is_shared`: the same for all tenants. `model`: its canonical name. `meaning`: what that stands for. `headers`: more of them that change the answer."""
    return _digest(call, call.payload or {}, is_shared, model, meaning, headers)


def item_keys(
    call: Call,
    items: Sequence[Any],
    *,
    is_shared: bool = False,
    model: str | None = None,
    meaning: bytes = b"",
    headers: Sequence[str] = (),
) -> list[bytes]:
    """A key for each input of an embeddings call: the same one, however the inputs were gathered into calls."""
    payload = {**(call.payload or {})}
    del payload["input"]
    beside = _digest(call, payload, is_shared, model, meaning, headers)
    return [
        hashlib.blake2b(beside + orjson.dumps(item), digest_size=DIGEST_BYTES, person=b"item").digest()
        for item in items
    ]


def _digest(
    call: Call, payload: dict[str, Any], is_shared: bool, model: str | None, meaning: bytes, headers: Sequence[str]
) -> bytes:
    payload = {**payload}
    for name in NOT_IN_KEY & payload.keys():
        del payload[name]
    find_header = call.headers.get
    parts: list[Any] = [
        None if is_shared else call.principal.tenant,
        call.model if model is None else model,
        meaning.hex(),
        call.endpoint,
        call.path,
        call.query,
        *map(find_header, HEADERS_IN_KEY),
        [[name, find_header(name)] for name in headers],
        call.slots.get(CACHE_VARY),
        payload,
    ]
    return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=DIGEST_BYTES).digest()
