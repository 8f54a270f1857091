"""The key: a digest of everything that can change the answer.

Lives here: `cache_key`, and `form_of`: in which form a call wants it. Elsewhere: which calls have a key (wishes.py), what lies under it (entry.py).
Idea: one key for all forms of an answer. Who must tell forms apart (calls in flight: a stream's bytes are not a plain reply's) takes `(cache_key(call), form_of(call))`."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import orjson

from hookline import Call

NOT_IN_KEY = frozenset({"stream", "stream_options", "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""How the answer is handed over, who asks, and hints to the provider's own cache. `model` is in the key by its canonical name."""
HEADERS_IN_KEY = ("openai-beta", "anthropic-beta", "anthropic-version")

Form = Literal["json", "events", "events+usage"]


def form_of(call: Call) -> Form:
    """What this call's client reads: a plain reply, a stream, or a stream with the usage event."""
    if not call.is_stream:
        return "json"
    return "events+usage" if call.chat.wants_usage else "events"


def cache_key(call: Call, *, is_shared: bool = False, meaning: bytes = b"", headers: tuple[str, ...] = ()) -> bytes:
    """20 bytes. `is_shared`: the same for all tenants. `meaning`: what the model's name stands for (meaning.py). `headers`: more that change the answer."""
    payload = {**(call.payload or {})}
    for name in NOT_IN_KEY & payload.keys():
        del payload[name]
    parts: list[Any] = [
        None if is_shared else call.principal.tenant,
        call.model,
        meaning.hex(),
        call.endpoint,
        call.path,
        call.query,
        [*map(call.headers.get, (*HEADERS_IN_KEY, *headers))],
        payload,
    ]
    return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=20).digest()
