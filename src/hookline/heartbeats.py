"""Heartbeats: comments of a stream, so that nobody between us and the client hangs up while an upstream thinks.

Lives here: a reply that begins before there is one. Elsewhere: who makes the reply (pipeline.py), when (`heartbeat_s`, off by default).
Idea: the first comment commits status 200. Until the upstream's first byte everything else still works, fallback too; an error is then an error event, and like every stream
that ends with one it has no clean end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

from hookline.call import Call
from hookline.call_timer import CallTimer
from hookline.errors import UpstreamError
from hookline.openai_wire import error_event
from hookline.peek import close_body
from hookline.reply import AlreadyTold, Reply
from hookline.settling import end_tasks
from hookline.transport.sse import serialize_event

HEARTBEAT = b": waiting\n\n"


async def reply_with_heartbeats(
    answer: Callable[[], Coroutine[Any, Any, Reply]], call: Call, interval_s: float, timer: CallTimer
) -> Reply:
    """What `answer` answers; if the call is a stream and it takes longer than `interval_s`, a stream of comments that becomes it."""
    task = asyncio.current_task()
    assert task is not None
    answering = asyncio.ensure_future(answer())
    timer.rebind(answering)
    try:
        await asyncio.wait({answering}, timeout=interval_s)
        if not answering.done() and call.is_stream:
            body = _Body(_beating(answering, call, interval_s, lambda: timer.rebind(task)), answering)
            return Reply(200, {"content-type": "text/event-stream", "cache-control": "no-cache"}, body)
        await asyncio.wait({answering})
    except BaseException:
        await end_tasks({answering})
        raise
    timer.rebind(task)
    return answering.result()


class _Body:
    """A body that can be closed before anybody has begun to read it."""

    def __init__(self, body: AsyncGenerator[bytes, None], answering: asyncio.Task[Reply]) -> None:
        self._body = body
        self._answering = answering

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body

    async def __anext__(self) -> bytes:
        return await anext(self._body)

    async def aclose(self) -> None:
        await self._body.aclose()
        await end_tasks({self._answering})


async def _beating(
    answering: asyncio.Task[Reply], call: Call, interval_s: float, answered: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    while not answering.done():
        yield HEARTBEAT
        await asyncio.wait({answering}, timeout=interval_s)
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
        yield serialize_event(body) + (b"" if call.endpoint == "responses" else b"data: [DONE]\n\n")
    else:
        yield error_event(call.endpoint, _told(reply), 0)
        raise AlreadyTold


def _told(reply: Reply) -> dict[str, Any]:
    """The error object of a reply with an error status, whoever wrote its body."""
    body = reply.json()
    told: Any = body.get("error") if isinstance(body, dict) else body
    if isinstance(told, dict):
        return told
    message = told if isinstance(told, str) and told else f"the upstream answered {reply.status}"
    error: dict[str, Any] = UpstreamError(message, kind="status").to_object()["error"]
    return error
