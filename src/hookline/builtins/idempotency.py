"""Idempotency-Key: a call that is sent again gets the first one's reply, and runs once.

Lives here: which calls have a key, what makes two of them the same, what is kept. Elsewhere: waiting for a call that is still running, keeping and replaying (flights,
`host.flights`), the header's way upstream, which it doesn't have (providers/headers.py).
Idea: the key names a flight that is kept for a day. What the client wants is "this once, whatever becomes of my connection", so a call with a key is read to its end when
its client leaves.

The rules
- Scope: tenant, key, method, path. The same key with another body or query is a 409; the body is compared as its bytes, a form without regard to its boundary.
- A complete reply of 2xx or 4xx is kept, but for 429. Everything else frees the key: what failed may be tried again.
- A reply longer than `max_entry_bytes` is not kept: its key is free again when it has ended, and taken (409) until then.
- The store that can't be asked is a 503 for calls with a key, and nothing to all others."""

from __future__ import annotations

import hashlib
import re

from multidict import istr
from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    BadRequest,
    Call,
    Conflict,
    FlightMismatch,
    FlightRules,
    Host,
    Lead,
    Rejected,
    Reply,
    Result,
    Slot,
    Unavailable,
    Upload,
    hookimpl,
)

HEADER = istr("idempotency-key")
KEY_CHARS_MAX = 255
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, so a key says nothing."""
KEY = re.compile(rf"[\x20-\x7e]{{1,{KEY_CHARS_MAX}}}")
BOUNDARY = re.compile(r'boundary\s*=\s*"?([^\s";,]+)', re.IGNORECASE)


class IdempotencyOptions(BaseModel):
    """`[plugins.idempotency]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    ttl_s: float = Field(
        86_400, gt=0, le=366 * 86_400, description="How long a reply is kept for those who send its key again."
    )
    max_entry_bytes: int = Field(4 * 1024 * 1024, gt=0, le=1 << 30, description="Longer replies are not kept.")


LEAD: Slot[Lead] = Slot("idempotency_lead")


class Plugin:
    """Looks for a key, and takes its flight."""

    Options = IdempotencyOptions
    on_error = "closed"
    needs_shared_state = True
    supports_dry_run = True
    has_model_options = False

    def __init__(self, options: IdempotencyOptions, host: Host) -> None:
        self._flights = host.flights
        self._records = host.records
        self._rules = FlightRules(
            "idempotency",
            "replay",
            options.max_entry_bytes,
            options.ttl_s,
            keeps=is_kept,
            shares=is_shared,
            is_required=True,
        )
        self._calls = host.metrics.counter(
            "hookline_idempotent_calls_total", "Calls with an Idempotency-Key: first, replayed, conflict.", ("part",)
        )

    @hookimpl
    async def lookup(self, call: Call) -> Reply | Lead | None:
        if HEADER not in call.headers or call.method in SAFE_METHODS:
            return None
        key = read_key(call.headers.getall(HEADER))
        if call.is_dry_run:
            call.note("idempotency", "not looked up", "a kept reply would be replayed; a dry run does not ask for it")
            return None
        scope = hashlib.blake2b(digest_size=20)
        for part in (call.principal.tenant, key, call.method, call.path):
            scope.update(part.encode("utf-8", "surrogateescape") + b"\0")
        note = await fingerprint(call)
        try:
            await self._records.ping()  # a call that is promised to run once is not begun where its row may be lost
            found = await self._flights.board(call, scope.digest(), self._rules, note=note)
        except FlightMismatch:
            self._calls("conflict").inc()
            message = f"this {HEADER} was used for another request to {call.method} {call.path}; use a new key for a new request"
            raise Rejected(Conflict(message, code="idempotency_key_reused", param=HEADER)) from None
        except Unavailable as error:
            raise Rejected(error) from error
        if found is None:
            self._calls("conflict").inc()
            message = f"the call with this {HEADER} is still running, and its reply is too long to be shared; wait for its end"
            raise Rejected(
                Conflict(message, code="idempotency_key_in_use", param=HEADER, may_retry=True, retry_after_s=1.0)
            )
        if isinstance(found, Lead):
            self._calls("first").inc()
            call[LEAD] = found
            call.on_disconnect = "drain"
            return found
        self._calls("replayed").inc()
        call.note("idempotency", "replayed", "the reply of the first call with this key")
        found.headers["x-hookline-replayed"] = "true"
        return found

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        lead = call.slots.get(LEAD)
        if lead is not None:
            lead.begin(reply)
        return reply


def is_kept(result: Result, status: int) -> bool:
    """Whether the reply is the last word on its request."""
    if status >= 400:
        return status < 500 and status != 429
    attempt = result.attempt
    return status >= 200 and (attempt is None or attempt.error is None)


def is_shared(result: Result, status: int) -> bool:
    """Whether who waits for this call gets its error; else it is the call's own, and one of them takes its place."""
    return result.outcome == "upstream_error" or is_kept(result, status)


def read_key(values: list[str]) -> str:
    """The key of these header lines. Raises Rejected."""
    key = values[0].strip()
    if len(values) > 1 or KEY.fullmatch(key) is None:
        raise Rejected(
            BadRequest(
                f"{HEADER} must be one line of 1 to {KEY_CHARS_MAX} printable ASCII characters; a UUID is a good one",
                code="invalid_idempotency_key",
                param=HEADER,
            )
        )
    return key


async def fingerprint(call: Call) -> bytes:
    """What must be the same in a call that is sent again. Raises Rejected for an upload that is not here whole."""
    digest = hashlib.blake2b(call.query.encode("utf-8", "surrogateescape") + b"\0", digest_size=16)
    upload = call.upload
    if upload is None:
        digest.update(call.body)
        return digest.digest()
    if not upload.is_replayable:
        message = (
            f"{HEADER} needs the whole upload before it is sent on, and this one is too large; send it without the key"
        )
        raise Rejected(BadRequest(message, code="idempotency_upload_too_large", param=HEADER))
    await call.wait(_add_upload(digest, upload))
    return digest.digest()


async def _add_upload(digest: hashlib.blake2b, upload: Upload) -> None:
    """The bytes of an upload; of a form without its boundary, which clients make anew each time."""
    found = BOUNDARY.search(upload.content_type)
    boundary = found[1].encode() if found is not None else b""
    digest.update(upload.content_type.partition(";")[0].strip().lower().encode() + b"\0")
    rest = b""
    async for chunk in upload.chunks(None):
        rest += chunk
        if boundary:
            *parts, rest = rest.split(boundary)
            for part in parts:
                digest.update(part + b"\0")
        whole = max(0, len(rest) - len(boundary))
        digest.update(rest[:whole])
        rest = rest[whole:]
    digest.update(rest)
