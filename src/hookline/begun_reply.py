"""The reply of a call, handed to another task as it comes.

Lives here: `BegunReply`: a call runs in its own task, and whoever asked for it reads its body. Elsewhere: replies read whole (plugin_host.py), who asks (a plugin, by `host.begin`).
Idea: one chunk waits between the two tasks, so a slow reader slows the upstream; a reader that stops is to the call a client that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from hookline.call import Call
from hookline.errors import ApiError, ClientGone, InternalError
from hookline.reply import Reply
from hookline.settling import end_tasks

Run = Callable[[Call, Callable[[Reply], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]


class BegunReply:
    """One call and its reader."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._begun: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._error: ApiError | None = None
        self._is_left = False
        self._task: asyncio.Task[None] | None = None

    async def begin(self, run: Run) -> Reply:
        """Start the call; come back with its reply when that has begun. Cancelled: the call is ended."""
        task = self._task = asyncio.get_running_loop().create_task(self._run(run))
        try:
            return await self._begun
        except BaseException:
            await end_tasks({task})
            raise

    async def _run(self, run: Run) -> None:
        try:
            await run(self._call, self._deliver)
        finally:
            if not self._begun.done():
                self._begun.set_result(Reply.from_error(InternalError("the call ended without a reply")))
            elif not self._is_left:
                await self._chunks.put(None)

    async def _deliver(self, reply: Reply) -> None:
        body = reply.body
        if self._begun.done():  # cancelled, at the moment at which the call came to its own deadline
            raise ClientGone("the reader of the reply has left")
        if isinstance(body, bytes):
            self._begun.set_result(Reply(reply.status, reply.headers, body, source=reply.source))
            return
        self._begun.set_result(Reply(reply.status, reply.headers, self._read(), source=reply.source))
        try:
            async for chunk in body:
                if self._is_left:
                    raise ClientGone("the reader of the reply has left")
                await self._chunks.put(chunk)
        except ApiError as error:
            self._error = error
            raise

    async def _read(self) -> AsyncGenerator[bytes, None]:
        try:
            while (chunk := await self._chunks.get()) is not None:
                yield chunk
            if self._error is not None:
                raise self._error
        finally:
            self._is_left = True
            if self._task is not None and not self._task.done():
                await self._leave(self._task)

    async def _leave(self, task: asyncio.Task[None]) -> None:
        """End the call as a client's leaving does."""
        if self._call.client_closed is not None:
            self._call.client_closed()
        while not self._chunks.empty():
            self._chunks.get_nowait()
        await asyncio.wait({task})
