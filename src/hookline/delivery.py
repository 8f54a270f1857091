"""Delivery: handing a reply to a client who may leave meanwhile.

Lives here: what a client's leaving does to the call, what an error of the body makes of its outcome, reading on without a client. Elsewhere: who writes
(surfaces), who made the reply (pipeline.py), others that want it too (flights.py).
Idea: a client that leaves cancels the call's task. A call that drains, or whose reply others want, is read to its end instead, by a bounded number of calls at a time:
its one task is the pump, so the end of the call follows the end of the body by itself. When the last of the others leaves, that cancels it, too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from hookline.attempt import Outcome, outcome_of
from hookline.call import Call
from hookline.errors import ApiError, ClientGone, UpstreamError
from hookline.flight import AUDIENCE, Audience
from hookline.peek import close_body
from hookline.reply import AlreadyTold, Reply
from hookline.shared_body import SharedBody

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

    __slots__ = (
        "_audience", "_call", "_deliver", "_is_pumping", "_pumps", "_shared", "_task", "error", "is_client_gone", "is_cut", "outcome",
    )  # fmt: skip

    def __init__(self, call: Call, deliver: Deliver, *, task: asyncio.Task[Any], pumps: Pumps) -> None:
        self._call = call
        self._deliver = deliver
        self._task = task
        self._pumps = pumps
        self._is_pumping = False
        self._audience: Audience | None = None
        self._shared: SharedBody | None = None
        self.is_client_gone = False
        self.is_cut = False
        """The client left and nobody else waits, and so the task was cancelled."""
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
        body = own = reply.body
        audience = self._call.slots.get(AUDIENCE)
        if audience is not None and not isinstance(body, bytes):
            body = self._shared = SharedBody(body, self._call, audience, is_events=reply.is_event_stream)
            reply.body = body
            self._listen()
            if self._call.deadline is not None:
                body.share()  # who comes later must not be cut by it, while its client waits for the next chunk
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
            else:
                self._look_at_end()
            if self._shared is not None and self._shared.goes_on and self._has_others:
                self._take_pump()
            if self._is_pumping and not isinstance(body, bytes):
                await _read_on(body)
        finally:
            reply.body = own  # the shared one knows its call, which knows this reply: a cycle, with every chunk of the stream in it
            await close_body(body)
        if self.is_client_gone:
            self.outcome = "client_gone"

    def _look_at_end(self) -> None:
        """A stream can end as it should and say that there is no answer (`response.failed`)."""
        relayed = next((attempt for attempt in reversed(self._call.attempts) if attempt.is_relayed), None)
        if relayed is not None and relayed.error is not None:
            self.error, self.outcome = relayed.error, outcome_of(relayed.error)

    def stop(self) -> None:
        if self._audience is not None:
            self._audience.changed = None
        if self._is_pumping:
            self._pumps.running -= 1
            self._is_pumping = False

    def _lose_client(self) -> None:
        self.is_client_gone = True
        self._listen()
        if self._call.on_disconnect == "drain" or self._has_others:
            self._take_pump()

    def _take_pump(self) -> None:
        if not self._is_pumping and self._pumps.running < self._pumps.maximum:
            self._pumps.running += 1
            self._is_pumping = True

    @property
    def _has_others(self) -> bool:
        return self._audience is not None and self._audience.count > 0

    def _listen(self) -> None:
        """Be told who else wants the reply, if the call leads a flight."""
        self._audience = self._call.slots.get(AUDIENCE)
        if self._audience is not None:
            self._audience.changed = self._look
            self._look()

    def _look(self) -> None:
        if self._has_others:
            if self._shared is not None:
                self._shared.share()
        elif self._is_pumping and self._call.on_disconnect != "drain" and not self.is_cut:
            self.is_cut = True
            self._task.cancel()


async def _read_on(body: Any) -> None:
    try:
        if isinstance(body, SharedBody):
            await body.read_on()
            return
        async for _ in body:
            pass
    except (AlreadyTold, ApiError):
        pass  # nobody is left to tell; the attempt has its error
