"""Delivery: handing a reply to a client who may leave meanwhile.

Lives here: what a client's leaving does to the call, what an error of the body makes of its outcome, reading on without a client. Elsewhere: who writes
(surfaces), who made the reply (pipeline.py).
Idea: a client that leaves cancels the call's task. A call that drains is read to its end instead, by a bounded number of calls at a time: its one task
is the pump, so the end of the call follows the end of the body by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from hookline.attempt import Outcome, outcome_of
from hookline.call import Call
from hookline.errors import ApiError, ClientGone, UpstreamError
from hookline.peek import close_body
from hookline.reply import AlreadyTold, Reply

log = logging.getLogger("hookline.delivery")

Deliver = Callable[[Reply], Awaitable[None]]
"""How a surface writes a reply. Raises ClientGone; lets an error of the body through after ending the connection without a clean terminator."""


class Pumps:
    """How many calls go on without their client, and how many may."""

    __slots__ = ("maximum", "running")

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.running = 0


class Delivery:
    """One call's reply on its way to its client. `outcome` and `error` are set where the delivery decided them."""

    __slots__ = ("_call", "_deliver", "_is_pumping", "_pumps", "_task", "error", "is_client_gone", "is_cut", "outcome")

    def __init__(self, call: Call, deliver: Deliver, *, task: asyncio.Task[Any], pumps: Pumps) -> None:
        self._call = call
        self._deliver = deliver
        self._task = task
        self._pumps = pumps
        self._is_pumping = False
        self.is_client_gone = False
        self.is_cut = False
        """The client left, and so the task was cancelled."""
        self.outcome: Outcome | None = None
        self.error: ApiError | None = None

    def client_closed(self) -> None:
        """The surface says that the client has gone: stop, or go on without it."""
        if not self.is_client_gone:
            self._lose_client()
            if not self._is_pumping:
                self.is_cut = True
                self._task.cancel()

    async def hand_over(self, reply: Reply) -> None:
        """Deliver; without its client a call that drains is read to its end."""
        body = reply.body
        try:
            try:
                if not self.is_client_gone:
                    await self._deliver(reply)
            except ClientGone:
                if not self.is_client_gone:
                    self._lose_client()
            except AlreadyTold:
                pass
            except ApiError as error:
                self.error, self.outcome = error, outcome_of(error)
                if isinstance(error, UpstreamError) and self.outcome != "timeout":
                    self.outcome = "upstream_lost"
            except Exception as error:
                log.error("call %s: the reply could not be delivered", self._call.id, exc_info=error)
                self.outcome = "internal_error"
            if self._is_pumping and not isinstance(body, bytes):
                await _read_on(body)
        finally:
            await close_body(body)
        if self.is_client_gone:
            self.outcome = "client_gone"

    def stop(self) -> None:
        if self._is_pumping:
            self._pumps.running -= 1
            self._is_pumping = False

    def _lose_client(self) -> None:
        self.is_client_gone = True
        if self._call.on_disconnect == "drain" and self._pumps.running < self._pumps.maximum:
            self._pumps.running += 1
            self._is_pumping = True


async def _read_on(body: Any) -> None:
    try:
        async for _ in body:
            pass
    except (AlreadyTold, ApiError):
        pass  # nobody is left to tell; the attempt has its error
