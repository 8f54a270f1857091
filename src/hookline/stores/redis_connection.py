"""One connection to a Redis: commands out in the order they came, answers back in the same order.

Lives here: `RedisConnection`, an asyncio.Protocol on hiredis. Elsewhere: when to dial, what an outage means (redis_client.py), the URL (redis_url.py).
Idea: RESP answers questions in order, so a queue of who asked is all there is to know. Commands of one turn of the loop leave in one write. Who is cancelled leaves
its place in the queue behind: its answer is read and dropped where it belongs, so a connection is never dirty, and nothing has to be lent or returned.

The server is silent for `timeout_s` while somebody waits = the connection ends, and all who wait are told. See docs/adr/0016 for why this is not redis-py."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from hookline.stores.redis_url import RedisUrl

MAX_BUFFERED = 64 * 1024 * 1024
"""Bytes that may wait for a server that does not read."""

READ_FIRST_S = 0.01

Waiter = Callable[[Any], None]
"""Is told the answer: a value, a ReplyError, or the ConnectionError that ended the connection."""


class ReplyError(Exception):
    """The server said no: `-CODE words`."""


class RedisConnection(asyncio.Protocol):
    """Made by `connect`. `on_lost` is called once, when it has ended for whatever reason."""

    def __init__(self, timeout_s: float, on_lost: Callable[[], None]) -> None:
        import hiredis

        self._reader = hiredis.Reader(protocolError=ReplyError, replyError=ReplyError)
        self._pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self.on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._asked: deque[Waiter] = deque()
        self._unsent: list[bytes] = []
        self._heard_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.problem: str | None = None
        """Why it has ended."""
        self.writes = 0
        """Turns of the loop in which something was sent."""

    @property
    def waiting(self) -> int:
        """Commands without an answer."""
        return len(self._asked)

    def ask(self, command: tuple[Any, ...], waiter: Waiter) -> None:
        """Send with all others of this turn. After the end: `waiter` is told at once."""
        if self.problem is not None:
            waiter(ConnectionError(self.problem))
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
            if not self._asked:
                self._heard_at_s = self._loop.time()
        self._unsent.append(self._pack(command))
        self._asked.append(waiter)

    def end(self, problem: str) -> None:
        """Close now; who waits is told why."""
        if self.problem is not None:
            return
        self.problem = problem
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        asked, self._asked = self._asked, deque()
        self._unsent.clear()
        for waiter in asked:
            waiter(ConnectionError(problem))
        self.on_lost()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not say so

    def connection_lost(self, error: Exception | None) -> None:
        self.end(f"it closed the connection{f' ({error})' if error else ''}")

    def data_received(self, data: bytes) -> None:
        self._heard_at_s = self._loop.time()
        reader, asked = self._reader, self._asked
        try:
            reader.feed(data)
            answer = reader.gets()
            while answer is not False:
                asked.popleft()(answer)
                answer = reader.gets()
        except (ReplyError, IndexError) as error:
            self.end(f"what it says is not RESP: {error}")

    def _flush(self) -> None:
        if not self._unsent:
            return
        transport = self._transport
        assert transport is not None
        self.writes += 1
        transport.write(self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent))
        self._unsent.clear()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)
        if transport.get_write_buffer_size() > MAX_BUFFERED:
            self.end("it does not read")

    def _look(self) -> None:
        """The one timer: armed while somebody waits."""
        self._timer = None
        if not self._asked:
            return
        left_s = self._heard_at_s + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            # A loop that was held up finds its timers before what has come meanwhile: that is read first.
            self._timer = self._loop.call_later(READ_FIRST_S, self._give_up, self._heard_at_s)

    def _give_up(self, heard_at_s: float) -> None:
        self._timer = None
        if self._heard_at_s == heard_at_s:
            self.end(f"no answer within {self._timeout_s:g} s")
        else:
            self._look()


async def connect(url: RedisUrl, on_lost: Callable[[], None]) -> RedisConnection:
    """Dial and greet. Raises OSError, TimeoutError, ReplyError."""
    options = url.options
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(options.connect_timeout_s):
        _, connection = await loop.create_connection(
            lambda: RedisConnection(options.command_timeout_s, on_lost), url.host, url.port, ssl=url.tls
        )
        try:
            await ask_all(connection, url.greeting)
        except BaseException:
            connection.end("the greeting failed")
            raise
    return connection


async def ask_all(connection: RedisConnection, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The answers. Raises ReplyError, ConnectionError."""
    loop = asyncio.get_running_loop()
    asked: list[asyncio.Future[Any]] = []
    for command in commands:
        future = loop.create_future()
        connection.ask(command, resolver(future))
        asked.append(future)
    answers = []
    for future in asked:
        answer = await future
        if isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    return answers


def resolver(future: asyncio.Future[Any]) -> Waiter:
    """Gives a future its answer, errors as values; who was cancelled does not get one."""

    def resolve(answer: Any) -> None:
        if not future.done():
            future.set_result(answer)

    return resolve
