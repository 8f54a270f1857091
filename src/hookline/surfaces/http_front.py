"""The HTTP front: all client connections of this process.

Lives here: making connections, the one clock hand over all their deadlines, request ids, the date line, draining. Elsewhere: one
connection (http_server.py), who answers (front_door.py). app.py uses it like this:

    front = HttpFront(FrontSettings(), Serving(pipeline, catalog, routes), clock)
    server = await loop.create_server(front, sock=listener)   # the front is the protocol factory
    front.serving = Serving(...)                              # reload: the next request sees it
    server.close(); await front.drain(drain_s); front.abort() # stop

Idea: deadlines are plain numbers on the connections; one timer per process looks at them, so a call sets none."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from email.utils import formatdate
from typing import Final

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse
from aiohttp.web_server import Server

from hookline.host import Clock
from hookline.surfaces.cors import Cors
from hookline.surfaces.front_door import FrontDoor
from hookline.surfaces.http_server import Connection
from hookline.surfaces.settings import FrontSettings, Serving
from hookline.transport.write_batch import WriteBatch

SWEEP_MAX_S: Final = 0.5
"""How late a deadline may be noticed. A client that hung up while reading is paused is noticed as late."""
SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestIds:
    """Names requests: the client's own id if it is sane, else a new one."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))

    def choose(self, given: str | None) -> str:
        if given is not None and SANE_ID.fullmatch(given):
            return given
        return f"req_{self._random.getrandbits(96):024x}"


class HttpFront(Server):
    """The protocol factory for `loop.create_server`, and the book of live connections. Made inside the running loop."""

    def __init__(self, settings: FrontSettings, serving: Serving, clock: Clock) -> None:
        super().__init__(_never_called)
        self.settings = settings
        self.serving = serving
        self.door = FrontDoor(self, clock)
        self.ids = RequestIds()
        self.batch = WriteBatch()
        self.is_draining = False
        self.is_stopping = False
        """Draining, and no successor accepts on the same socket."""
        self.idle_until = 0.0
        """While draining: until when an idle connection may still bring a request; the loop's seconds."""
        self._date = (0, "")
        self._hand: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event = asyncio.Event()
        limits = (settings.header_timeout_s, settings.body_idle_timeout_s, settings.keepalive_timeout_s)
        self._sweep_s = min(
            SWEEP_MAX_S, *(limit / 4 for limit in (*limits, settings.write_timeout_s, settings.linger_s))
        )

    def __call__(self) -> Connection:
        return Connection(self, self._loop)

    @property
    def cors(self) -> Cors | None:
        return self.serving.cors

    @property
    def connection_count(self) -> int:
        """Connections that are open, or whose last call is still being ended."""
        return len(self._connections)

    def date_line(self) -> str:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, f"date: {formatdate(now, usegmt=True)}\r\n")
        return self._date[1]

    # -- the book

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._emptied.clear()
        if self._hand is None:
            self._hand = self._loop.call_later(self._sweep_s, self._sweep)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        task = handler._task_handler
        if task is None or task.done():
            self._forget(handler)
        else:
            task.add_done_callback(lambda _: self._forget(handler))

    def _forget(self, handler: RequestHandler) -> None:
        self._connections.pop(handler, None)
        if not self._connections:
            self._emptied.set()
            if self._hand is not None:
                self._hand.cancel()
                self._hand = None

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self._connections):
            assert isinstance(connection, Connection)
            if connection.deadline_at <= now:
                connection.time_is_up(now)
            if connection.write_deadline_at <= now:
                connection.write_time_is_up(now)
            connection.look_for_hangup()
        self._hand = self._loop.call_later(self._sweep_s, self._sweep) if self._connections else None

    # -- the end

    def stop_accepting(self, idle_s: float = 0.0) -> None:
        """Idle connections close after `idle_s`, others after their next reply, which says so. Close the listener beside it."""
        self.is_draining, self.is_stopping = True, idle_s <= 0
        self.idle_until = self._loop.time() + idle_s
        for connection in list(self._connections):
            assert isinstance(connection, Connection)
            connection.close_when_idle(idle_s)

    async def drain(self, drain_s: float, *, idle_s: float = 0.0) -> bool:
        """`stop_accepting`, then wait for running calls. False if some still ran after `drain_s`."""
        self.stop_accepting(min(idle_s, drain_s))
        if self._connections:
            try:
                await asyncio.wait_for(self._emptied.wait(), drain_s)
            except TimeoutError:
                return False
        return True

    def abort(self) -> None:
        """Cut every connection and cancel what runs on it (calls end with the outcome `shutdown`)."""
        for connection in list(self._connections):
            assert isinstance(connection, Connection)
            task = connection._task_handler
            if task is None:
                connection.abort()
            else:
                connection.reset()  # what has no framing (HTTP/1.0: proxies speak it) would look complete
                task.cancel()


async def _never_called(request: BaseRequest) -> StreamResponse:
    raise NotImplementedError(f"{request!r}: Connection.start answers requests, not aiohttp's request handler")
