"""What is kept of a reply.

Lives here: reading along with a reply, and whether it is an answer at all. Elsewhere: how it is written (entry.py), what may be cached (wishes.py).
Idea: the reply is judged when all of it is there.

The rules
- Only complete replies of an upstream with status 200, that are what they should be: JSON without an error in it, or a whole stream, and that say something.
- Not one that our own output cap cut: another call may have another cap.
- Not one that two deployments told, one after the other's death: no model would have said it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hookline import Attempt, Lead, Reply

CUT_BY_LENGTH = re.compile(rb'"finish_reason"\s*:\s*"(?:length|max_tokens)"|"status"\s*:\s*"incomplete"')
"""In the raw JSON of a reply: text that a model wrote has its quotes escaped, so it can't match."""
FAILED = re.compile(
    rb'"status"\s*:\s*"(?:failed|cancelled|queued)"|"finish_reason"\s*:\s*"error"|^event: ?error|^data: ?\{"error"',
    re.MULTILINE,
)
"""A 2xx can still say that there is no answer: a Responses object that failed, an error inside a stream."""
MARKS_MAX = 512


class Recording:
    """A reply on its way into the cache; for a stream it is the tap that reads along, up to `max_bytes`, unless `lead` does.

    `monotonic`: when bytes came is kept, too; then `lead` must be None."""

    __slots__ = (
        "_began_at",
        "_lead",
        "_max_bytes",
        "_monotonic",
        "_parts",
        "_size",
        "body",
        "content_type",
        "is_stream",
        "marks",
    )

    def __init__(
        self,
        reply: Reply,
        max_bytes: int,
        *,
        monotonic: Callable[[], float] | None = None,
        lead: Lead | None = None,
    ) -> None:
        self.content_type = reply.headers.get("content-type", "")
        self.body: bytes | None = None
        """None: there is none, or it is not to be kept. Ask `may_be_kept` first."""
        self._lead = lead
        self.marks: list[tuple[int, int]] = []
        """(milliseconds after the first byte, bytes until then)."""
        self.is_stream = not isinstance(reply.body, bytes)
        if lead is not None:
            pass  # the same bytes, kept once
        elif not isinstance(reply.body, bytes):
            self._max_bytes = max_bytes
            self._parts: list[bytes] = []
            self._size = 0
            self._monotonic = monotonic
            self._began_at: float | None = None
            reply.tap(self)
        elif len(reply.body) <= max_bytes:
            self.body = reply.body

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._max_bytes:
            self._parts.clear()
            return
        self._parts.append(chunk)
        if self._monotonic is not None:
            now = self._monotonic()
            if self._began_at is None:
                self._began_at = now
            if len(self.marks) < MARKS_MAX:
                self.marks.append((round((now - self._began_at) * 1000), self._size))

    def end(self, is_complete: bool) -> None:
        if is_complete and self._size <= self._max_bytes:
            self.body = b"".join(self._parts)

    def may_be_kept(self, attempts: Sequence[Attempt]) -> bool:
        """Whether there is an answer for everybody, now that the call has ended."""
        if self._lead is not None:
            self.body = self._lead.body
        body = self.body
        if sum(attempt.is_relayed for attempt in attempts) > 1:
            return False
        if body is None or has_failed(body) or (self.is_stream and is_empty(body)):
            return False
        # The body is searched last: that costs a tenth of a microsecond for each chunk of a stream.
        return not (any(attempt.output_cap is not None for attempt in attempts) and is_cut(body))


def is_answer(reply: Reply) -> bool:
    """Whether a whole reply is JSON without an error in it (it has been parsed for its usage already); a stream is judged at its end."""
    if not isinstance(reply.body, bytes):
        return reply.is_event_stream
    told = reply.json()
    if not isinstance(told, dict):
        return told is not None
    return told.get("error") is None and told.get("choices") != []


def is_empty(events: bytes) -> bool:
    """Whether a stream ends before it has said anything."""
    start = events.find(b"data:")
    return start < 0 or events.startswith((b" [DONE]", b"[DONE]"), start + 5)


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
