"""Prompts: one legacy completion with several prompts, sent as several chat calls and joined.

Lives here: sending them side by side, and one stream out of many. Elsewhere: what each call and chunk is translated to (completions_as_chat.py), one prompt alone (it takes the same way, and costs no task).
Idea: all of them are one attempt. One that fails ends the others; nothing of them outlives `send_all` or the joined stream.

A joined stream ends as one: the usages are added up and sent once, `[DONE]` is sent once, and only if every stream ended properly.
A finish_reason waits until each stream has said something: a stream is complete when all choices it has shown are finished, so one that never shows its own must not look like that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import orjson

from hookline.attempt import Attempt, Provider
from hookline.call import Call
from hookline.deployment import Deployment
from hookline.errors import UpstreamError
from hookline.providers.completions_as_chat import CompletionsStream, sum_usage
from hookline.providers.event_reader import close, read_events
from hookline.providers.untranslatable import JsonObject
from hookline.reply import Reply

MAX_PARALLEL = 8
"""Of one request; the others wait."""
MAX_QUEUED = 64

_DONE = b"data: [DONE]\n\n"


async def send_all(provider: Provider, calls: Sequence[Call], attempt: Attempt) -> list[Reply]:
    """Send every call, a few at a time; the replies in order. Raises the first error, when nothing of the others is left."""
    if len(calls) == 1:
        return [await provider.send(calls[0], attempt)]
    places = asyncio.Semaphore(MAX_PARALLEL)

    async def send(call: Call) -> Reply:
        async with places:
            return await provider.send(call, attempt)

    tasks = [asyncio.ensure_future(send(call)) for call in calls]
    try:
        replies = await asyncio.gather(*tasks)
    except BaseException:
        await _abandon(tasks)
        raise
    if any(reply.status >= 400 for reply in replies):
        await _close_all(replies)
    return replies


def join_streams(
    replies: Sequence[Reply], deployment: Deployment, *, model: str, choices: int
) -> AsyncGenerator[bytes, None]:
    """The legacy stream of all replies; `choices` answers belong to each prompt."""
    shared = _Shared(len(replies))
    streams = [
        _Stream(reply, deployment, CompletionsStream(model=model, index_offset=number * choices), shared)
        for number, reply in enumerate(replies)
    ]
    return _joined(streams)


class _Shared:
    """What the streams of one request have in common: the id of their chunks, which is that of the first to come, and how many have yet to begin."""

    def __init__(self, streams: int) -> None:
        self.id: str | None = None
        self.all_have_begun = asyncio.Event()
        self._waiting = streams

    def count_one(self) -> None:
        """One more has begun."""
        self._waiting -= 1
        if not self._waiting:
            self.all_have_begun.set()


class _Stream:
    """One prompt's stream, translated."""

    def __init__(self, reply: Reply, deployment: Deployment, translation: CompletionsStream, shared: _Shared) -> None:
        self._body = reply.body  # now: the first reply's is about to become the joined one
        self._deployment = deployment
        self._translation = translation
        self._shared = shared
        self._has_begun = False
        self.is_done = False
        self.usage_chunk: JsonObject | None = None

    def begin(self) -> None:
        """A choice was shown, or there will be none: the others need not wait."""
        if not self._has_begun:
            self._has_begun = True
            self._shared.count_one()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Bytes for the client, without the end. Raises UpstreamError for a stream that was cut."""
        body = self._body
        if isinstance(body, bytes):
            raise UpstreamError(f"{self._deployment.id} answered a stream with a whole reply", kind="garbage")
        has_finished = False
        async with aclosing(read_events(body, self._deployment.id)) as events:
            async for event in events:
                if event.comment:
                    yield event.comment
                self.is_done = self.is_done or event.is_done
                if event.data is None:
                    continue
                for chunk in self._translation.feed(event.data):
                    if "id" in chunk:
                        chunk["id"] = self._shared.id = self._shared.id or chunk["id"]
                    legacy = chunk.get("choices") or []
                    if legacy:
                        self.begin()
                    if any(choice.get("finish_reason") for choice in legacy):
                        has_finished = True
                        await self._shared.all_have_begun.wait()
                    if not legacy and "error" not in chunk:
                        self.usage_chunk = chunk
                    else:
                        yield b"data: %b\n\n" % orjson.dumps(chunk)
                        if "error" in chunk:
                            return
        if not self.is_done and not has_finished:
            raise UpstreamError(f"{self._deployment.id} ended its stream before the end", kind="reset")

    async def aclose(self) -> None:
        await close(self._body)


async def _joined(streams: Sequence[_Stream]) -> AsyncGenerator[bytes, None]:
    has_begun = False
    try:
        async with aclosing(streams[0].pieces() if len(streams) == 1 else _merged(streams)) as pieces:
            async for piece in pieces:
                has_begun = True
                yield piece
    except UpstreamError as error:
        if not has_begun or error.upstream_body is None:
            raise
        yield (
            b"data: %b\n\n" % error.upstream_body
        )  # an error object that came first in its own stream, but not in this one
        return
    finally:
        for stream in streams:
            await stream.aclose()
    usage_chunks = [stream.usage_chunk for stream in streams if stream.usage_chunk is not None]
    if len(usage_chunks) == len(streams):
        usage = sum_usage([chunk["usage"] for chunk in usage_chunks])
        yield b"data: %b\n\n" % orjson.dumps({**usage_chunks[0], "usage": usage})
    if all(stream.is_done for stream in streams):
        yield _DONE


async def _merged(streams: Sequence[_Stream]) -> AsyncGenerator[bytes, None]:
    """Whichever stream has something next. An error of one ends all."""
    queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(MAX_QUEUED)

    async def pump(stream: _Stream) -> None:
        end: Exception | None = None
        try:
            async with aclosing(stream.pieces()) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
            stream.begin()
        except Exception as error:
            end = error
        await queue.put(end)

    tasks = [asyncio.ensure_future(pump(stream)) for stream in streams]
    left = len(tasks)
    try:
        while left:
            piece = await queue.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        await _cancel(tasks)


async def _abandon(tasks: Sequence[asyncio.Future[Reply]]) -> None:
    await _cancel(tasks)
    await _close_all([task.result() for task in tasks if not task.cancelled() and task.exception() is None])


async def _cancel(tasks: Sequence[asyncio.Future[Reply]] | Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _close_all(replies: Sequence[Reply]) -> None:
    for reply in replies:
        await close(reply.body)
