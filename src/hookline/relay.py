"""The body of a reply, from the upstream's bytes to the client's.

Lives here: the relay of an upstream's body with its end, edits and taps of plugins. Elsewhere: what an end looks like (stream_watch.py),
attempts (attempts.py), comments while waiting (heartbeats.py), who writes to the client (surfaces).
Idea: bodies are async generators, pulled by whoever writes, so a slow reader slows the upstream and closing one closes all below it. Whoever writes may offer a
`sink` (ADR 0018): then chunks go from the upstream's socket to the client's without waking the call's task, until the reader is slow or the end has come.

Rules. The attempt ends, and its tickets settle, before the held last bytes leave. A body that was cut yields the error event and
then raises: the surface must end the connection without a clean terminator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hookline.attempt import Attempt, outcome_of
from hookline.attempt_errors import as_upstream_error
from hookline.attempts import AttemptLoop
from hookline.call import Call
from hookline.call_timer import CallTimer
from hookline.continuation import JoinedBody, tell_whole_usage
from hookline.cost_on_wire import add_cost, tells_usage
from hookline.deadline import deadline_error
from hookline.errors import ApiError, InternalError, Rejected, UpstreamError
from hookline.money import Usage
from hookline.openai_wire import error_event, sequence_number_after
from hookline.peek import PeekedBody, close_body
from hookline.reply import Event, Tap
from hookline.results import sum_of
from hookline.settling import is_being_cancelled, settled
from hookline.stream_watch import StreamWatch
from hookline.transport.sse import SseSplitter, parse_event, serialize_event

log = logging.getLogger("hookline.relay")

Body = AsyncGenerator[bytes, None]

EDITED_EVENT_BYTES_MAX = 64 << 20
"""An event that a plugin edits must be held whole; one without an end must not fill the memory."""


@dataclass(slots=True)
class Layer:
    """What one plugin does to a body: its taps see what plugins after it produced, then it edits."""

    plugin: str
    taps: list[Tap]
    edit: Callable[[Call, Event], Any] | None = None

    def feed(self, chunk: bytes) -> None:
        for tap in self.taps:
            try:
                tap.feed(chunk)
            except Exception as error:
                self.taps = [other for other in self.taps if other is not tap]
                self._drop(error)

    def end(self, is_complete: bool) -> None:
        """Tell the taps that the body has ended, once."""
        while self.taps:
            try:
                self.taps.pop().end(is_complete)
            except Exception as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        """Who only reads along must not cut the stream."""
        log.error('plugin "%s": its tap failed and was dropped: %s: %s', self.plugin, type(error).__name__, error)


class RelayedBody:
    """An upstream's body. Ends the attempt; raises ApiError after the error event if the upstream was lost."""

    __slots__ = ("_body", "layers", "sink")

    def __init__(
        self, loop: AttemptLoop, attempt: Attempt, upstream: AsyncIterator[bytes], timer: CallTimer, *, is_events: bool
    ) -> None:
        self.sink: Callable[[bytes], bool] | None = None
        """Sends a chunk at once; False: wait for the reader before the next, and iterate on. Set and unset by who iterates, for iterating on."""
        self.layers: Sequence[Layer] = ()
        """Taps to be fed."""
        self._body = _relay(self, loop, attempt, upstream, timer, is_events=is_events)

    def __aiter__(self) -> Body:
        return self._body

    async def __anext__(self) -> bytes:
        return await anext(self._body)

    async def aclose(self) -> None:
        await self._body.aclose()


async def _relay(
    target: RelayedBody,
    loop: AttemptLoop,
    attempt: Attempt,
    upstream: AsyncIterator[bytes],
    timer: CallTimer,
    *,
    is_events: bool,
) -> Body:
    call = loop.call
    endpoint = call.endpoint if is_events else "relay"
    watch: StreamWatch

    def take(chunk: bytes) -> bytes:
        out = watch.feed(chunk)
        if out:
            for layer in target.layers:
                layer.feed(out)
        return out

    def push(chunk: bytes) -> bool:
        out = watch.feed(chunk)
        if not out:
            return not watch.is_over
        for layer in target.layers:
            layer.feed(out)
        sink = target.sink
        return sink is not None and sink(out) and not watch.is_over

    while True:
        watch = StreamWatch(endpoint, hides_usage=attempt.has_hidden_usage, choices=call.chat.choices)
        lost: ApiError | None = None
        body: Any = upstream
        attempt.is_relayed = True
        try:
            if isinstance(body, PeekedBody):
                for chunk in body.head:
                    if out := take(chunk):
                        yield out
                if body.pending is not None:
                    chunk, body.pending = await body.pending or b"", None
                    if out := take(chunk):
                        yield out
                body = body.rest
            forward = getattr(body, "forward", None)
            if not watch.is_over:
                async for chunk in body:
                    if out := take(chunk):
                        yield out
                    if forward is not None and target.sink is not None and not watch.is_over:
                        await forward(push)
                        yield b""  # who iterates waits for a slow reader now
                    if watch.is_over:
                        break
            rest = watch.finish()
            if watch.is_unreadable:
                lost = UpstreamError(f"{attempt.deployment.id} sent an event that is no JSON object", kind="garbage")
            elif not watch.is_complete:
                lost = UpstreamError(f"{attempt.deployment.id} ended its stream before the end", kind="reset")
        except asyncio.CancelledError:
            rest = watch.take_unfinished()
            if timer.was_cancelled_for("deadline"):
                lost = deadline_error(call, timer)
            elif is_being_cancelled():
                raise
            else:
                lost = as_upstream_error(RuntimeError("cancelled itself"), attempt.deployment.id)
        except Exception as error:
            rest = watch.take_unfinished()
            lost = as_upstream_error(error, attempt.deployment.id)
        finally:
            _note_end(call, attempt, watch, is_events=is_events)
            await loop.close(upstream)
        lost = None if watch.is_complete else lost
        if watch.error is not None or watch.has_failed:
            attempt.error = UpstreamError(f"{attempt.deployment.id} sent an error in its stream", kind="stream_error")
            lost = lost and attempt.error
        elif lost is not None:
            attempt.error = lost
        following = None
        try:
            await settled(loop.end(attempt, "upstream_lost" if lost else "upstream_error" if attempt.error else "ok"))
            if lost is not None and outcome_of(lost) != "timeout":
                may_continue = endpoint == "chat" and not watch.has_tool_call and not watch.is_inside_event
                following = await loop.go_on(attempt, may_continue=may_continue, has_spoken=watch.has_spoken)
        except asyncio.CancelledError:
            if not timer.was_cancelled_for("deadline"):
                raise
            lost = deadline_error(call, timer)
        except Rejected as rejected:
            lost = rejected.error
        if following is not None:
            attempt, upstream = following
            continue
        last = rest + watch.release()
        if is_events and last and (told := watch.usage) is not None and tells_usage(call):
            cost = loop.cost_nanousd
            if isinstance(upstream, JoinedBody) and (whole := sum_of(loop.results)) is not None:
                last, told = tell_whole_usage(last, told, whole), whole
            last = last if cost is None else add_cost(last, told, cost)
        if lost is not None and is_events:
            last += b"\n\n" if watch.is_inside_event else b""
            if watch.error is None:
                last += error_event(endpoint, lost.to_object()["error"], watch.next_sequence_number)
        if last:
            for layer in target.layers:
                layer.feed(last)
            yield last
        if lost is not None:
            raise lost
        for layer in target.layers:
            layer.end(True)
        return


def _note_end(call: Call, attempt: Attempt, watch: StreamWatch, *, is_events: bool) -> None:
    """What the stream told, else a bound: no token is shorter than a byte."""
    attempt.is_complete = watch.is_complete
    seen = watch.usage
    if seen is not None and watch.is_complete and watch.is_usage_final:
        attempt.usage = seen
    elif is_events and call.method == "POST":
        limits = [n for n in (attempt.output_cap, call.chat.max_output_tokens) if n is not None]
        most = min(limits) * call.chat.choices if limits else watch.output_bytes
        attempt.usage = Usage(len(call.body), min(watch.output_bytes, most), is_estimated=True)
        if seen is not None:  # of a cut stream: a count on the way, which more has followed
            inputs, outputs = (
                max(seen.input_tokens, len(call.body)),
                max(seen.output_tokens, attempt.usage.output_tokens),
            )
            attempt.usage = seen._replace(input_tokens=inputs, output_tokens=outputs, is_estimated=True)


def with_layers(body: AsyncIterator[bytes], call: Call, layers: Mapping[int, Layer]) -> RelayedBody | Body:
    """`body` through the layers of plugins, by place in the chain. Taps alone need no stage of their own: the relay feeds them."""
    inner_first = [layers[index] for index in sorted(layers, reverse=True)]
    if isinstance(body, RelayedBody) and all(layer.edit is None for layer in inner_first):
        body.layers = inner_first
        return body
    return _edited(body, call, inner_first)


async def _edited(body: AsyncIterator[bytes], call: Call, layers: Sequence[Layer]) -> Body:
    """`body` through taps and `edit_event`s, innermost layer first. Events are parsed only where a layer edits them."""
    is_complete = False
    last, ready, held_bytes = b"", list[bytes](), 0
    splitter = SseSplitter() if any(layer.edit is not None for layer in layers) else None
    try:
        async for chunk in body:
            if splitter is None:
                for layer in layers:
                    layer.feed(chunk)
                yield chunk
                continue
            held_bytes += len(chunk)
            for block in splitter.feed(chunk):
                held_bytes -= len(block)
                ready.append(_edit(block, call, layers))
            if held_bytes > EDITED_EVENT_BYTES_MAX:
                size = f"{EDITED_EVENT_BYTES_MAX >> 20} MiB"
                raise Rejected(UpstreamError(f"an event of more than {size} can't be edited", kind="garbage"))
            if out := b"".join(ready):
                last = out
                yield out
            ready.clear()
        if splitter is not None and splitter.tail and (out := _edit(splitter.tail, call, layers)):
            yield out
        is_complete = True
    except Rejected as rejected:
        told = b"".join(ready)
        error = rejected.error.to_object()["error"]
        yield told + error_event(call.endpoint, error, sequence_number_after(told or last))
        raise rejected.error from rejected
    finally:
        for layer in layers:
            layer.end(is_complete)
        await close_body(body)


def _edit(block: bytes, call: Call, layers: Sequence[Layer]) -> bytes:
    """One event through all layers."""
    blocks = [block]
    for layer in layers:
        if layer.taps:
            layer.feed(b"".join(blocks))
        if layer.edit is not None:
            blocks = [new for old in blocks for new in _edit_one(old, call, layer)]
    return b"".join(blocks)


def _edit_one(block: bytes, call: Call, layer: Layer) -> list[bytes]:
    parsed = parse_event(block)
    if parsed.is_comment_only:
        return [block]
    event = Event(parsed.event, parsed.data)
    assert layer.edit is not None
    answer = layer.edit(call, event)
    if answer is event and not event.is_changed:
        return [block]
    events = [answer] if isinstance(answer, Event) else answer or ()
    try:
        return [serialize_event(e.data, event=e.name, id=parsed.id if e is event else None) for e in events]
    except (AttributeError, TypeError, ValueError) as error:
        log.error('plugin "%s": edit_event answered %r, which is no event: %s', layer.plugin, answer, error)
        raise Rejected(
            InternalError(f'plugin "{layer.plugin}" failed in edit_event; see the log of the gateway')
        ) from error
