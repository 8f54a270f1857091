"""A body that its client reads, and others through taps on the way.

Lives here: who pulls it. Elsewhere: the others (flights.py), when they come and go (delivery.py), the chunks (tape.py).
Idea: alone, the client pulls the body itself, or has it pushed (ADR 0018), as every other body. From the moment there are others a task pulls it, as fast as the
fastest of all readers, and the client reads what the task has read: so a client that reads slowly, or whose own time is up, holds nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from hookline.call import Call
from hookline.errors import UpstreamError
from hookline.flight import Audience
from hookline.openai_wire import error_event, sequence_number_after
from hookline.peek import close_body
from hookline.relay import RelayedBody
from hookline.settling import end_tasks
from hookline.tape import Tape, TapeReader

AHEAD_BYTES, LOOK_S = 1 << 20, 0.02
"""The task waits while every reader has so much to read still, and looks again so often."""


class SharedBody:
    """Takes the place of `body` towards the client. `share()` is called when others come."""

    def __init__(self, body: AsyncIterator[bytes], call: Call, audience: Audience, *, is_events: bool) -> None:
        self.sink: Callable[[bytes], bool] | None = None
        """As in RelayedBody."""
        self._body = body
        self._chunks = aiter(body)
        self._relayed = body if isinstance(body, RelayedBody) else None
        self._call = call
        self._audience = audience
        self._is_events = is_events
        self._is_pulling = False
        self._is_shared = False
        self._last = b""
        self._pushed: list[bytes] = []
        """What was pushed after others had come."""
        self._reader: TapeReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._untold: UpstreamError | None = None
        """The client's own time is up, and it has not been told yet."""

    def __aiter__(self) -> SharedBody:
        return self

    async def __anext__(self) -> bytes:
        if self._reader is None:
            self._is_pulling = True
            if self._relayed is not None and self.sink is not None:
                self._relayed.sink = self._keep if self._is_shared else self.sink
            try:
                chunk = await anext(self._chunks)
            finally:
                self._is_pulling = False
                if self._relayed is not None:
                    self._relayed.sink = None
            if self._is_shared:
                self._start()
                if self._pushed:
                    return b"".join([*self._pushed, chunk])
            return chunk
        try:
            self._last = await anext(self._reader)
        except UpstreamError as error:
            if error is not self._untold or not self._is_events:
                raise
            self._untold = None
            told = error.to_object()["error"]
            return b"\n\n" + error_event(self._call.endpoint, told, sequence_number_after(self._last))
        return self._last

    @property
    def goes_on(self) -> bool:
        """The task has still to read."""
        return self._task is not None and not self._task.done()

    def share(self) -> None:
        """Others read too: from here on, or from the next chunk on, a task pulls."""
        self._is_shared = True
        if self._reader is None and not self._is_pulling:
            self._start()
        elif self._relayed is not None and self._relayed.sink is not None:
            self._relayed.sink = self._keep

    async def read_on(self) -> None:
        """Without the client, to the end. Raises what the body raises where it is pulled from here."""
        if self._task is None:
            async for _ in self:
                if self._task is not None:
                    break
        if self._task is not None:
            assert self._reader is not None
            self._reader.close()
            await asyncio.wait({self._task})

    async def aclose(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if self._reader is not None:
            self._reader.close()
        if self._task is not None:
            await end_tasks({self._task})
        await close_body(self._body)

    def _keep(self, chunk: bytes) -> bool:
        """The sink once others have come: no more of it, the task pulls from here on."""
        self._pushed.append(chunk)
        return False

    def _start(self) -> None:
        tape = Tape(0)
        self._reader = tape.read()
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._pull(tape))
        timer: Any = self._call._timer
        deadline = timer.hand_over(self._task)
        if deadline < float("inf"):
            self._alarm = loop.call_at(deadline, self._be_late)

    def _be_late(self) -> None:
        assert self._reader is not None
        self._untold = UpstreamError("the call reached its deadline", kind="deadline")
        self._reader.cut(self._untold)

    async def _pull(self, tape: Tape) -> None:
        try:
            async for chunk in self._chunks:
                tape.feed(chunk)
                while AHEAD_BYTES < min(t.nearest_bytes for t in (tape, *self._audience.tapes)) < float("inf"):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
        except asyncio.CancelledError:
            tape.end(False)
            raise
        except Exception as error:
            tape.end(False, error)
        else:
            tape.end(True)
