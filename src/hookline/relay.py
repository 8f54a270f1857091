"""The body of a reply, from the upstream's bytes to the client's.

Lives here: the relay of an upstream's body with its end, edits and taps of plugins, heartbeats. Elsewhere: what an end looks like
(openai_wire.py), attempts (attempts.py), who writes to the client (surfaces).
Idea: bodies are async generators, pulled by whoever writes, so a slow reader slows the upstream and closing one closes all below it.

Rules. The attempt ends, and its tickets settle, before the held last bytes leave. A body that was cut yields the error event and
then raises: the surface must end the connection without a clean terminator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hookline.attempt import Attempt, Outcome
from hookline.attempts import AttemptLoop, PeekedBody, as_upstream_error, close_body
from hookline.call import Call
from hookline.call_timer import CallTimer
from hookline.errors import ApiError, Rejected, UpstreamError
from hookline.money import Usage
from hookline.openai_wire import StreamWatch, error_event
from hookline.reply import Event, Reply, Tap
from hookline.transport.sse import SseSplitter, parse_event, serialize_event

Body = AsyncGenerator[bytes, None]


@dataclass(slots=True)
class Layer:
    """What one plugin does to a body: its taps see what plugins after it produced, then it edits."""

    taps: list[Tap]
    edit: Callable[[Call, Event], Any] | None


async def relay(
    loop: AttemptLoop, attempt: Attempt, upstream: AsyncIterator[bytes], timer: CallTimer, *, is_events: bool
) -> Body:
    """An upstream's body. Ends the attempt; raises ApiError after the error event if the upstream was lost."""
    call = loop.call
    while True:
        endpoint = call.endpoint if is_events else "relay"
        watch = StreamWatch(endpoint, hides_usage=attempt.has_hidden_usage, choices=call.chat.choices)
        lost: ApiError | None = None
        body: Any = upstream
        try:
            if isinstance(body, PeekedBody):
                for chunk in body.head:
                    if out := watch.feed(chunk):
                        yield out
                if body.pending is not None:
                    chunk, body.pending = await body.pending or b"", None
                    if out := watch.feed(chunk):
                        yield out
                body = body.rest
            async for chunk in body:
                if out := watch.feed(chunk):
                    yield out
            if out := watch.finish():
                yield out
            if not watch.is_complete and watch.error is None:
                lost = UpstreamError(f"{attempt.deployment.id} ended its stream before the end", kind="reset")
        except asyncio.CancelledError:
            if not timer.was_cancelled_for("deadline"):
                raise
            lost = UpstreamError("the call reached its deadline", kind="deadline")
        except Exception as error:
            if not watch.is_complete:
                lost = as_upstream_error(error, attempt.deployment.id)
        finally:
            _note_end(call, attempt, watch, is_events=is_events)
            await close_body(upstream)
        if watch.error is not None:
            attempt.error = UpstreamError(f"{attempt.deployment.id} sent an error in its stream", kind="stream_error")
            lost = None if watch.is_complete else attempt.error
        elif lost is not None:
            attempt.error = lost
        outcome: Outcome = (
            "upstream_lost" if lost is not None else "upstream_error" if attempt.error is not None else "ok"
        )
        await loop.end(attempt, outcome)
        if lost is None:
            if held := watch.release():
                yield held
            return
        following = await loop.go_on(attempt, may_continue=is_events and not watch.has_tool_call)
        if following is None:
            if is_events and watch.error is None:
                yield (b"\n\n" if watch.is_inside_event else b"") + error_event(
                    endpoint, lost, watch.next_sequence_number
                )
            raise lost
        attempt, upstream = following


def _note_end(call: Call, attempt: Attempt, watch: StreamWatch, *, is_events: bool) -> None:
    """What the stream told, else a bound: no token is shorter than a byte."""
    attempt.is_complete = watch.is_complete
    if watch.usage is not None:
        attempt.usage = watch.usage
    elif is_events and call.method == "POST":
        attempt.usage = Usage(len(call.body), watch.output_bytes, is_estimated=True)


async def edited(body: AsyncIterator[bytes], call: Call, layers: Sequence[Layer]) -> Body:
    """`body` through taps and `edit_event`s, innermost layer first. Events are parsed only where a layer edits them."""
    is_complete = False
    splitter = SseSplitter() if any(layer.edit is not None for layer in layers) else None
    try:
        async for chunk in body:
            if splitter is None:
                for layer in layers:
                    _feed(layer.taps, chunk)
                yield chunk
            elif out := b"".join(_edit(block, call, layers) for block in splitter.feed(chunk)):
                yield out
        if splitter is not None and (tail := splitter.tail):
            for layer in layers:
                _feed(layer.taps, tail)
            yield tail
        is_complete = True
    except Rejected as rejected:
        yield error_event(call.endpoint, rejected.error, 0)
        raise rejected.error from rejected
    finally:
        for layer in layers:
            for tap in layer.taps:
                tap.end(is_complete)
        await close_body(body)


def _feed(taps: list[Tap], chunk: bytes) -> None:
    for tap in taps:
        tap.feed(chunk)


def _edit(block: bytes, call: Call, layers: Sequence[Layer]) -> bytes:
    """One event through all layers."""
    blocks = [block]
    for layer in layers:
        if layer.taps:
            _feed(layer.taps, b"".join(blocks))
        if layer.edit is not None:
            blocks = [new for old in blocks for new in _edit_one(old, call, layer.edit)]
    return b"".join(blocks)


def _edit_one(block: bytes, call: Call, edit: Callable[[Call, Event], Any]) -> list[bytes]:
    parsed = parse_event(block)
    if parsed.is_comment_only:
        return [block]
    event = Event(parsed.event, parsed.data)
    answer = edit(call, event)
    if answer is event and not event.is_changed:
        return [block]
    events = [answer] if isinstance(answer, Event) else answer or ()
    return [serialize_event(e.data, event=e.name, id=parsed.id if e is event else None) for e in events]


async def with_heartbeats(
    answering: asyncio.Task[Reply], call: Call, interval_s: float, answered: Callable[[], None]
) -> Body:
    """Comments until the answer is there, then its body. The status has left as 200, so a late error is an error event."""
    try:
        while not answering.done():
            yield b": waiting\n\n"
            await asyncio.wait({answering}, timeout=interval_s)
    finally:
        if not answering.done():
            answering.cancel()
            await asyncio.wait({answering})
    answered()
    reply = answering.result()
    body = reply.body
    if not isinstance(body, bytes):
        try:
            async for chunk in body:
                yield chunk
        finally:
            await close_body(body)
    elif reply.status < 400:
        yield b"data: %b\n\ndata: [DONE]\n\n" % body
    else:
        told = (reply.json() or {}).get("error") or {}
        error = UpstreamError(str(told.get("message") or f"the upstream answered {reply.status}"), kind="status")
        error.error_code = told.get("code")
        yield error_event(call.endpoint, error, 0)
        raise error
