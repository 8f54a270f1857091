"""What may be cached.

Lives here: which calls may take an answer from the cache or leave one there, by endpoint, payload, headers and options. Elsewhere: under which key (key.py), which replies are
kept (recording.py).
Idea: a decision over one call and its options, before anything is asked; calls in flight are shared by the same one.

The rules
- Only POSTs on the endpoints of CACHED_ENDPOINTS, and none that asks for a lasting effect (LASTING_EFFECTS): a hit would leave it undone.
- `cache-control` of the request is obeyed as RFC 9111 says; what can't be read is ignored. `no-store` leaves no trace and takes nothing."""

from __future__ import annotations

from typing import NamedTuple

from hookline import BadRequest, Call, Rejected
from hookline.builtins.cache.options import CacheOptions

CACHED_ENDPOINTS = frozenset({"chat", "completions", "embeddings", "responses", "moderations"})
ALWAYS_SAME = frozenset({"embeddings", "moderations"})
LASTING_EFFECTS = frozenset({"store", "background", "conversation"})
"""Payload members that ask the provider to keep or start something, when true or named."""


class Wishes(NamedTuple):
    """What a call may take from the cache and leave in it. `max_age_s`: older entries will not do; `max_stale_s`: so long after its time an entry will do."""

    may_serve: bool
    may_store: bool
    max_age_s: float | None = None
    max_stale_s: float | None = None
    must_hit: bool = False
    """`only-if-cached`: no upstream is to be asked."""


ANY_AGE = Wishes(True, True)
BYPASS = Wishes(False, False)


def read_wishes(call: Call, options: CacheOptions) -> Wishes:
    """What the call, its headers and the options allow. Raises Rejected for an unknown `x-hookline-cache`."""
    asked = call.headers.get("x-hookline-cache")
    if asked is not None and (asked := asked.strip().lower()) not in ("use", "bypass"):
        raise Rejected(BadRequest('x-hookline-cache must be "use" or "bypass"', param="x-hookline-cache"))
    payload = call.payload
    if payload is None or call.endpoint not in CACHED_ENDPOINTS or options.when == "never" or asked == "bypass":
        return BYPASS
    if not LASTING_EFFECTS.isdisjoint(payload) and any(payload.get(name) for name in LASTING_EFFECTS):
        return BYPASS
    if call.endpoint == "responses" and payload.get("store") is not False:  # kept by the provider unless told otherwise
        return BYPASS
    is_wanted = asked == "use" or options.when == "always" or call.endpoint in ALWAYS_SAME
    if not is_wanted and payload.get("temperature") != 0:
        return BYPASS
    control = call.headers.get("cache-control")
    return ANY_AGE if control is None else obey(control)


def obey(cache_control: str) -> Wishes:
    """A request's `cache-control`: `no-store` = leave no trace, `no-cache` = ask anew and keep the answer, `max-age`, `max-stale`, `only-if-cached`."""
    may_serve, must_hit, max_age_s, max_stale_s = True, False, None, None
    for directive in cache_control.lower().split(","):
        name, has_value, value = directive.strip().partition("=")
        value = value.strip('" ')
        seconds = float(value) if value.isascii() and value.isdecimal() and len(value) < 16 else None
        if name == "no-store":
            return BYPASS
        if name == "no-cache":
            may_serve = False
        elif name == "only-if-cached":
            must_hit = True
        elif name == "max-age" and seconds is not None:
            max_age_s = seconds
        elif name == "max-stale" and (seconds is not None or not has_value):
            max_stale_s = float("inf") if seconds is None else seconds
    return Wishes(may_serve, True, max_age_s, max_stale_s, must_hit)
