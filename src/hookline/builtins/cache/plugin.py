"""Response cache: the same question gets the same answer, without an upstream.

Lives here: which calls may be cached, the key, what is kept, when. Elsewhere: where entries live (`host.replies`, stores/), who sees the status (logging.py, metrics.py).
Idea: the key is made of everything that can change the answer: tenant, model, endpoint, payload. What comes back is what was relayed: the bytes as
the plugins listed after this one left them.

The rules
- Only POSTs on the endpoints of CACHED_ENDPOINTS, and none that asks for a lasting effect (LASTING_EFFECTS): a hit would leave it undone.
- Only complete replies of an upstream with status 200, that are what they should be: JSON without an error in it, or a whole stream. Not one that our own output cap cut: another call may have another cap.
- A stream and a plain reply are separate entries, and so are streams with and without the usage event: an entry is exactly the bytes that its client saw.
- Equal calls in flight are one upstream call (`coalesce`): the followers read along. Who asks anew (`no-cache`) does not follow.
- An entry that can't be read (another version wrote it) is a miss."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Mapping

import orjson
from hookline import (
    CACHE_STATUS,
    ApiError,
    Call,
    FlightRules,
    Host,
    Lead,
    Reply,
    Result,
    Slot,
    hookimpl,
)
from hookline.builtins.cache.key import cache_key, form_of
from hookline.builtins.cache.options import CacheOptions
from hookline.builtins.cache.wishes import Wishes, read_wishes

KEPT_HEADERS = ("content-type", "content-encoding", "content-language")
ENTRY_VERSION = 1
REPLAY_CHUNK_BYTES = 64 * 1024
CUT_BY_LENGTH = re.compile(rb'"finish_reason"\s*:\s*"(?:length|max_tokens)"|"status"\s*:\s*"incomplete"')
"""In the raw JSON of a reply: text that a model wrote has its quotes escaped, so it can't match."""
FAILED = re.compile(
    rb'"status"\s*:\s*"(?:failed|cancelled|queued)"|"finish_reason"\s*:\s*"error"|^event: ?error|^data: ?\{"error"',
    re.MULTILINE,
)
"""A 2xx can still say that there is no answer: a Responses object that failed, an error inside a stream."""


class Recording:
    """A reply on its way into the cache; for a stream it is the tap that reads along, up to `max_bytes`."""

    __slots__ = ("_max_bytes", "_parts", "_size", "body", "headers", "status")

    def __init__(self, reply: Reply, max_bytes: int) -> None:
        headers = reply.headers
        self.status = reply.status
        self.headers = {name: headers[name] for name in KEPT_HEADERS if name in headers}
        self.body: bytes | None = None
        """None: there is none yet, or it is not to be kept."""
        if not isinstance(reply.body, bytes):
            self._max_bytes = max_bytes
            self._parts: list[bytes] = []
            self._size = 0
            reply.tap(self)
        elif len(reply.body) <= max_bytes:
            self.body = reply.body

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= self._max_bytes:
            self._parts.append(chunk)
        else:
            self._parts.clear()

    def end(self, is_complete: bool) -> None:
        if is_complete and self._size <= self._max_bytes:
            self.body = b"".join(self._parts)


MISSED: Slot[tuple[bytes, CacheOptions]] = Slot("cache_missed")
"""The key under which the answer is wanted, and how it is to be kept."""
RECORDING: Slot[Recording] = Slot("cache_recording")
LEAD: Slot[Lead] = Slot("cache_lead")


class Plugin:
    """Looks up before the upstream is asked, reads along with its reply, keeps it when the call has ended."""

    Options = CacheOptions
    supports_dry_run = True

    def __init__(self, options: CacheOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self._host = host
        self._replies = host.replies
        self._flights = host.flights
        self._clock = host.clock

    @hookimpl
    async def lookup(self, call: Call) -> Reply | Lead | None:
        options: CacheOptions = self._options_by_model.get(call.model or "", self._options)
        wishes = read_wishes(call, options)
        if not wishes.may_store:
            call[CACHE_STATUS] = "bypass"
            return None
        key = cache_key(call) + form_of(call).encode()
        if wishes.may_serve:
            reply = await self._find(call, key, wishes)
            if reply is not None:
                return reply
        call[CACHE_STATUS] = "miss"
        call[MISSED] = (key, options)
        if not options.coalesce or not wishes.may_serve or wishes.max_age_s == 0 or call.is_dry_run:
            return None
        return await self._board(call, key, options, wishes)

    async def _find(self, call: Call, key: bytes, wishes: Wishes) -> Reply | None:
        entry = await self._replies.get(key)
        reply = read_entry(entry, self._clock.time(), wishes.max_age_s) if entry is not None else None
        if reply is not None:
            call[CACHE_STATUS] = "hit"
            call.note("cache", "hit", f"answered {reply.headers['age']} s ago")
        return reply

    async def _board(self, call: Call, key: bytes, options: CacheOptions, wishes: Wishes) -> Reply | Lead | None:
        """Lead all calls like this one, or get the reply of who does."""
        rules = FlightRules("cache", "coalesced", options.max_entry_bytes)
        try:
            found = await self._flights.board(call, key, rules, look=lambda: self._find(call, key, wishes))
        except ApiError as error:
            found = Reply.from_error(error)
            found.source = "coalesced"
        if isinstance(found, Lead):
            call[LEAD] = found
        elif found is not None and found.source == "coalesced":
            call[CACHE_STATUS] = "coalesced"
            call.note("cache", "coalesced", "the reply of an equal call that came before")
            if found.status < 400:
                found.headers["x-hookline-cache"] = "hit"
                found.headers["age"] = "0"
        return found

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        status = call.slots.get(CACHE_STATUS)
        if status is None:
            return reply
        if (lead := call.slots.get(LEAD)) is not None:
            lead.begin(reply)
        reply.headers["x-hookline-cache"] = status
        missed = call.slots.get(MISSED)
        if missed is not None and reply.source == "upstream" and reply.status == 200 and is_answer(reply):
            call[RECORDING] = Recording(reply, missed[1].max_entry_bytes)
        return reply

    @hookimpl
    def call_ended(self, call: Call, result: Result) -> None:
        self._keep(call)
        if (lead := call.slots.get(LEAD)) is not None:
            lead.close()

    def _keep(self, call: Call) -> None:
        recording = call.slots.get(RECORDING)
        if recording is None or recording.body is None:
            return
        body = recording.body
        if has_failed(body) or (is_cut(body) and any(attempt.output_cap is not None for attempt in call.attempts)):
            return
        key, options = call[MISSED]
        entry = make_entry(recording.status, recording.headers, body, self._clock.time())
        tags = (f"tenant:{call.principal.tenant}", f"model:{call.model}")
        pending = self._replies.put(key, entry, ttl_s=options.ttl_s, tags=tags)
        if pending is not None:
            self._host.spawn("store", _wait_for(pending))


async def _wait_for(pending: Awaitable[None]) -> None:
    await pending


def is_answer(reply: Reply) -> bool:
    """Whether a whole reply is JSON without an error in it (it has been parsed for its usage already); a stream is judged at its end."""
    if not isinstance(reply.body, bytes):
        return reply.is_event_stream
    told = reply.json()
    return told is not None and not (isinstance(told, dict) and told.get("error") is not None)


def is_cut(body: bytes) -> bool:
    """Whether the answer ends at a limit. The words are counted first, here and below: a search by pattern costs far more, and `in` on bytes twice
    as much, for it makes and drops a TypeError."""
    return (
        bool(body.count(b'"length"') or body.count(b'"max_tokens"') or body.count(b'"incomplete"'))
        and CUT_BY_LENGTH.search(body) is not None
    )


def has_failed(body: bytes) -> bool:
    """Whether a 2xx body says that there is no answer."""
    return bool(body.count(b'"status"') or body.count(b"error")) and FAILED.search(body) is not None


def make_entry(status: int, headers: Mapping[str, str], body: bytes, now: float) -> bytes:
    """One line of JSON about the reply, then its body."""
    head = {"version": ENTRY_VERSION, "status": status, "headers": headers, "stored_at": now}
    return orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE) + body


def read_entry(entry: bytes, now: float, max_age_s: float | None) -> Reply | None:
    """The reply that `make_entry` kept, or None if it is too old for this call or of another version."""
    line, _, body = entry.partition(b"\n")
    try:
        head = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(head, dict) or head.get("version") != ENTRY_VERSION:
        return None
    age_s = max(0, int(now - head["stored_at"]))
    if max_age_s is not None and (max_age_s == 0 or age_s > max_age_s):
        return None
    reply = Reply(
        head["status"], {**head["headers"], "x-hookline-cache": "hit", "age": str(age_s)}, body, source="cache"
    )
    if reply.is_event_stream:
        reply.body = _replay(body)
    return reply


async def _replay(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), REPLAY_CHUNK_BYTES):
        yield body[start : start + REPLAY_CHUNK_BYTES]
