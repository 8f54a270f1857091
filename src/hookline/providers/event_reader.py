"""Event reader: a streamed body as parsed events, for the translations that need each one.

Lives here: bytes to events with a bound on one event, and closing what was read. Elsewhere: framing (transport/sse.py), what events mean (anthropic_stream.py, responses_stream.py, completions_as_chat.py).
Idea: a relay never parses; only a translation comes here. Comments are told apart, because they keep a connection alive and go on as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

import orjson

from hookline.errors import UpstreamError
from hookline.transport import SseSplitter, parse_event

MAX_EVENT_BYTES = 16 << 20
DONE = b"[DONE]"


class ReadEvent(NamedTuple):
    """One event: its name, its data parsed (None if that is no JSON object), and whether it is `[DONE]`. `comment` has the raw bytes of one that is only a comment."""

    name: str | None
    data: dict[str, Any] | None
    is_done: bool = False
    comment: bytes = b""


async def read_events(body: AsyncIterator[bytes], deployment_id: str) -> AsyncGenerator[ReadEvent, None]:
    """The events of a body, the last one also if its blank line is missing. Raises UpstreamError for one that is too large; closes the body."""
    splitter = SseSplitter()
    unfinished_bytes = 0
    try:
        async for chunk in body:
            blocks = splitter.feed(chunk)
            unfinished_bytes = unfinished_bytes + len(chunk) if not blocks else len(splitter.tail)
            for block in blocks:
                yield _read(block)
            if unfinished_bytes > MAX_EVENT_BYTES:
                message = (
                    f"{deployment_id} sent an event of more than {MAX_EVENT_BYTES} bytes, which can't be translated"
                )
                raise UpstreamError(message, kind="garbage")
        if tail := splitter.tail:
            yield _read(tail)
    finally:
        await close(body)


async def close(body: object) -> None:
    """Abandon a body, if it is one that can be closed."""
    closing = getattr(body, "aclose", None)
    if closing is not None:
        await closing()


def _read(block: bytes) -> ReadEvent:
    event = parse_event(block)
    if event.is_comment_only:
        return ReadEvent(None, None, comment=block)
    if event.data.strip() == DONE:
        return ReadEvent(event.event, None, is_done=True)
    try:
        data = orjson.loads(event.data)
    except orjson.JSONDecodeError:
        data = None
    return ReadEvent(event.event, data if isinstance(data, dict) else None)
