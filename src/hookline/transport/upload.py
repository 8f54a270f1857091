"""Request bodies that arrive while they are sent.

Lives here: pumping an async iterator into a connection while watching for an early answer. Elsewhere: bodies that are bytes
(connection.py writes them at once).
Idea: the pump is a task, because the upstream may refuse while the client is still uploading; it never outlives `upload()`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hookline.transport.connection import Connection
from hookline.transport.http1 import LAST_CHUNK, frame_chunk
from hookline.transport.response import Http1Response


async def upload(
    connection: Connection, response: Http1Response, body: AsyncIterator[bytes], content_length: int | None
) -> None:
    """Send the body; return when it is sent, or when the upstream has answered without waiting for it:
    a complete reply, or the head of one that is no success. Such a connection is not used again.

    Raises what the iterator raises, and ValueError if it yields another number of bytes than `content_length`."""
    connection.upload_started()
    pump = asyncio.create_task(_pump(connection, body, content_length))
    try:
        while not pump.done() and response.connection is not None and response.status < 300:
            changed = response.changed()
            await asyncio.wait({pump, changed}, return_when=asyncio.FIRST_COMPLETED)
        if pump.done():
            pump.result()
    finally:
        if not pump.done():
            pump.cancel()
            await asyncio.wait({pump})
        if not pump.cancelled():
            pump.exception()  # seen: the reply is the news, not what the body did when it was cut off


async def _pump(connection: Connection, body: AsyncIterator[bytes], content_length: int | None) -> None:
    sent_bytes = 0
    async for piece in body:
        if connection.response is None:  # the exchange is over; `upload` reports how
            return
        if not piece:
            continue
        sent_bytes += len(piece)
        if content_length is not None and sent_bytes > content_length:
            raise ValueError(f"request body is longer than its announced {content_length} bytes")
        connection.write(piece if content_length is not None else frame_chunk(piece))
        if connection.is_write_paused:
            await connection.drained()
    if connection.response is None:
        return
    if content_length is None:
        connection.write(LAST_CHUNK)
    elif sent_bytes < content_length:
        raise ValueError(f"request body ended after {sent_bytes} of its announced {content_length} bytes")
    connection.upload_ended()
