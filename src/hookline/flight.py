"""A flight: one reply in the making.

Lives here: its states, what is told of it, how it is written where it is kept. Elsewhere: who leads and who follows (flights.py), other processes (flight_claims.py), the bytes (tape.py).
Idea: a flight knows nobody who reads it; it only says that it has begun, or will not, and its tape has the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol

import orjson

from hookline.attempt import Attempt, Result, Ticket
from hookline.call import Call
from hookline.deployment import Target
from hookline.errors import ApiError
from hookline.reply import Source
from hookline.slots import Slot
from hookline.tape import Tape

KEPT_HEADERS = (
    "content-type", "content-encoding", "content-language", "retry-after", "x-should-retry", "x-hookline-output-capped",
    "x-hookline-deployment",
)  # fmt: skip
"""What a follower gets of its leader's headers: what describes the body, and what belongs to an error."""


class FlightRules(NamedTuple):
    """What one plugin wants of its flights; made once.

    `source`: what the log says of followers. `keep_s`: complete replies for which `keeps(result, status)` (None: all) are kept so long, for whoever comes later (0: the
    plugin keeps them itself, and calls `lead.close()` when it has). `shares(result, status)`: whether an answer with an error status is everybody's, or was the leader's own
    (None: what the upstream said is everybody's).
    `is_required`: a store that can't say whether another process leads is an error; else the call leads in this process."""

    name: str
    source: Source
    max_bytes: int
    keep_s: float = 0.0
    keeps: Callable[[Result, int], bool] | None = None
    shares: Callable[[Result, int], bool] | None = None
    is_required: bool = False

    def is_kept(self, result: Result, status: int) -> bool:
        return self.keep_s > 0 and (self.keeps is None or self.keeps(result, status))

    def is_shared(self, result: Result, status: int) -> bool:
        return result.outcome == "upstream_error" if self.shares is None else self.shares(result, status)


class Signal:
    """Set once, waited for by many; `asyncio.Event` at a third of its cost, for most flights have nobody who waits."""

    __slots__ = ("_waiters", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiters: list[asyncio.Future[None]] | None = None

    def set(self) -> None:
        self.is_set = True
        if self._waiters is not None:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters = None

    async def wait(self) -> None:
        if self.is_set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if self._waiters is not None and waiter in self._waiters:
                self._waiters.remove(waiter)


class Audience:
    """How many wait for what a call makes, beside its own client. `changed` is told."""

    __slots__ = ("changed", "count", "tapes")

    def __init__(self) -> None:
        self.count = 0
        self.tapes: list[Tape] = []
        """What they read from."""
        self.changed: Callable[[], None] | None = None

    def add(self, number: int) -> None:
        self.count += number
        if self.changed is not None:
            self.changed()


ReserveForFollower = Callable[[Call, Target, Attempt], Awaitable[Ticket | None]]
RESERVE_FOR_FOLLOWER: Slot[ReserveForFollower] = Slot("reserve for follower")
"""In `host.offers`: how `budget` takes money for a call that follows, as if it had made its leader's attempt. Raises Skip or Rejected where it doesn't fit."""


class Share(Protocol):
    """What a call that follows pays itself."""

    @property
    def cost_nanousd(self) -> int | None:
        """None while its leader's attempt has not ended, and where nobody knows a price."""

    @property
    def is_estimated(self) -> bool: ...


SHARE: Slot[Share] = Slot("share")
"""On a call that follows and pays."""
AUDIENCE: Slot[Audience] = Slot("audience")
"""On a call that leads."""


class Flight:
    """One reply in the making; plugins see it as `Lead`, or as the Reply of a follower."""

    __slots__ = (
        "_tape", "attempt", "audience", "body", "changed", "claim", "closed", "error", "form", "has_begun", "has_ended", "headers", "is_vacant", "is_whole", "kept_at", "key", "note", "placed",
        "rules", "status",
    )  # fmt: skip

    def __init__(self, key: bytes, rules: FlightRules, *, form: str, note: bytes) -> None:
        self.key = key
        self.form = form
        self.note = note
        self.rules = rules
        self.audience = Audience()
        self.body: bytes | None = None
        """A reply that was whole when it began: nobody has to read along, and most are never asked for again."""
        self._tape: Tape | None = None
        self.attempt: Attempt | None = None
        """Whose answer it is, where followers are to pay for it."""
        self.claim: bytes | None = None
        """What this process has claimed the key with, if it has."""
        self.placed = Signal() if note else None
        """It is known who leads, here or elsewhere: until then the note is only that of who asked first."""
        self.changed = Signal()
        """It has begun, or will not."""
        self.closed = Signal()
        """Nobody joins any more; what is kept of it is kept."""
        self.has_begun = False
        self.is_vacant = False
        self.is_whole = False
        """The reply is bytes, and all are there."""
        self.error: ApiError | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.kept_at: float | None = None
        self.has_ended = False
        """Its leader's call has."""

    @property
    def tape(self) -> Tape:
        """What is read along; made for the first who asks."""
        tape = self._tape
        if tape is None:
            tape = self._tape = Tape(self.rules.max_bytes)
            self.audience.tapes.append(tape)
            if self.body is not None:
                self._play(tape, self.body)
        return tape

    def has_whole_body(self, max_bytes: int) -> bool:
        """All of the reply is there, and it is no longer than that."""
        if self.body is not None:
            return len(self.body) <= max_bytes
        tape = self._tape
        return tape is not None and bool(
            self.has_begun and tape.is_complete and tape.is_whole and tape.size_bytes <= max_bytes
        )

    def begin(self, status: int, headers: Mapping[str, str], body: bytes | None = None) -> None:
        """The first byte is there; `body` if all of them are."""
        self.status, self.has_begun = status, True
        self.headers = {name: headers[name] for name in KEPT_HEADERS if name in headers}
        if body is not None:
            self.is_whole = True
            self.body = body
            if self._tape is not None:
                self._play(self._tape, body)
        self.changed.set()

    def _play(self, tape: Tape, body: bytes) -> None:
        tape.max_bytes = max(tape.max_bytes, len(body))  # it is here, and those who wait for it get it
        tape.feed(body)
        tape.end(True)

    def vacate(self) -> None:
        """Nothing comes of it; whoever waits looks again."""
        self.is_vacant = True
        self.changed.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.changed.set()

    def end(self, is_complete: bool) -> None:
        """What `begin_from` began has ended."""
        self.tape.end(is_complete)
        self.changed.set()

    def cut(self) -> None:
        """Whoever made it is gone. Where nobody has had a byte of it, another one may make it."""
        if self.has_begun and self.changed.is_set:
            self.tape.end(False)
        elif self.error is None:
            self.vacate()

    def head(self, at: float) -> bytes:
        """One line that stands before the body where the reply is kept or handed to another process."""
        told = {
            "status": self.status,
            "headers": self.headers,
            "whole": self.is_whole,
            "note": self.note.hex(),
            "at": at,
        }
        return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)

    def begin_from(self, line: bytes) -> None:
        """Begin from what `head` wrote. Raises ValueError if it is something else."""
        told = orjson.loads(line)
        if not isinstance(told, dict):
            raise ValueError("not the head of a reply")
        self.note, self.kept_at = bytes.fromhex(told["note"]), told["at"]
        self.is_whole = told["whole"]
        self.status, self.headers, self.has_begun = told["status"], told["headers"], True
        if not self.is_whole:
            self.changed.set()


def read_kept(flight: Flight, kept: bytes) -> None:
    """End a flight with the reply that was kept, or go on with it; one that can't be read (another version wrote it) leaves it vacant."""
    line, _, body = kept.partition(b"\n")
    if not flight.has_begun:
        try:
            flight.begin_from(line)
        except (ValueError, KeyError, TypeError):
            flight.vacate()
            return
        flight.tape.max_bytes = max(flight.tape.max_bytes, len(body))
    flight.tape.feed(body[flight.tape.size_bytes :])
    flight.end(True)
