"""Flights: one reply in the making that many wait for.

Lives here: who leads, who follows, what followers get, who leads next. Elsewhere: which calls are equal and what is kept (builtins/cache, builtins/idempotency.py), the bytes
(tape.py), other processes (flight_claims.py), the leader's client (delivery.py).
Idea: between looking whether somebody leads and leading there is no `await`, so of any number of equal calls exactly one leads. All others wait for it to begin or to
give up, and look again.

A flight is | because the leader                                                     | its followers
waiting     | has asked, and no first byte is there                                  | wait
begun       | has its first byte; the reply as plugins listed after this one left it | read along, from the beginning
ended       | is complete, or was cut                                                | come to the same end: a cut stream has an error event and no clean end
vacant      | ended for a reason of its own: refused, late, left with nobody waiting | look again: one leads, the others follow it
failed      | got no answer after all fallbacks                                      | get the same error

A leader whose client leaves goes on while others want its reply (delivery.py). When the last one leaves, its upstream is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

from hookline.attempt import Attempt, Result, Ticket
from hookline.call import Call
from hookline.errors import Rejected, Skip, Unavailable, UpstreamError
from hookline.flight import AUDIENCE, SHARE, Audience, Flight, FlightRules, ReserveForFollower, read_kept
from hookline.flight_claims import Claims
from hookline.openai_wire import error_event, error_in, sequence_number_after
from hookline.reply import Reply
from hookline.results import end_of
from hookline.stores.protocols import Clock, FlightStore
from hookline.tape import Cut, TapeReader

Look = Callable[[], Awaitable[Reply | None]]
OPEN_MAX = 10_000
"""When so many are open, those whose plugin forgot to close them leave; calls in flight are bounded elsewhere."""


class FlightMismatch(Exception):
    """Somebody used the same key for a call with another note."""


class _Vacant(Exception):
    """Somebody else has to lead."""


class Lead:
    """The lead of a flight: a Ticket that `lookup` returns. Call `begin(reply)` in `edit_reply`: from there on others read along."""

    __slots__ = ("_candidate", "_flights", "flight")

    def __init__(self, flights: Flights, flight: Flight) -> None:
        self.flight = flight
        self._flights = flights
        self._candidate: Reply | None = None

    def begin(self, reply: Reply, attempt: Attempt | None = None) -> bool:
        """Share this reply as it is now. One with an error status waits for the end of the call, which says whose error it is.

        `attempt`: whose answer it is, for followers that pay. Returns whether it is a stream that is read along: see `body`."""
        flight, body = self.flight, reply.body
        flight.attempt = attempt
        if flight.has_begun or flight.is_vacant:
            return False
        if not isinstance(body, bytes):
            flight.begin(reply.status, reply.headers)
            reply.tap(flight.tape)
            return True
        if reply.status < 400:
            flight.begin(reply.status, reply.headers, body)
        else:
            self._candidate = Reply(reply.status, reply.headers.copy(), body)
        return False

    @property
    def body(self) -> bytes | None:
        """All of a reply that has come to its end; None if it has not, was cut, or is larger than `rules.max_bytes`."""
        tape = self.flight.tape
        return tape.whole() if tape.is_complete else None

    def settle(self, result: Result) -> Coroutine[Any, Any, None] | None:
        """The call has ended: whoever still waits is told what comes of it."""
        flight, candidate = self.flight, self._candidate
        if flight.has_begun:
            if flight.body is None:
                flight.tape.end(False)  # a body that nobody has read to its end
        elif candidate is not None and flight.rules.is_shared(result, candidate.status):
            assert isinstance(candidate.body, bytes)
            flight.begin(candidate.status, candidate.headers, candidate.body)
        elif result.error is not None and result.source == "rescue":
            flight.fail(result.error)
        else:
            flight.vacate()
        return self._flights.ended(self, result)

    def close(self) -> None:
        """The reply can be found elsewhere now, or nowhere: new calls don't join any more. May be called twice."""
        self._flights.forget(self.flight)


class Seat:
    """A follower's place, as the ticket of its reply; with what it pays, if it pays."""

    __slots__ = ("_payment", "_reader")

    def __init__(self, reader: TapeReader, payment: Payment | None) -> None:
        self._reader = reader
        self._payment = payment

    def settle(self, result: Result) -> Awaitable[None] | None:
        self._reader.close()
        return None if self._payment is None else self._payment.settle(result)


class Payment:
    """What a follower pays: what its leader's attempt came to; its whole reservation if that is not known yet. A `Share`."""

    __slots__ = ("_attempt", "_call", "_is_settled", "_leaders", "_pending", "_ticket")

    def __init__(self, call: Call, attempt: Attempt, leaders: Attempt, ticket: Ticket) -> None:
        self._call = call
        self._attempt = attempt
        self._leaders = leaders
        self._ticket = ticket
        self._is_settled = False
        self._pending: Awaitable[None] | None = None

    @property
    def cost_nanousd(self) -> int | None:
        return self._known.charged_nanousd

    @property
    def is_estimated(self) -> bool:
        return self._known.is_charge_estimated

    @property
    def _known(self) -> Attempt:
        return self._attempt if self._is_settled else self._leaders

    def settle_now(self) -> None:
        """The reply is whole: what it cost is told with it. `settle` waits for what is left of this."""
        ended_at = self._leaders.ended_at
        if ended_at is not None:
            self._pending = self.settle(Result("ok", "coalesced", ended_at=ended_at))

    def settle(self, result: Result) -> Awaitable[None] | None:
        if self._is_settled:
            return self._pending
        self._is_settled = True
        own, leaders = self._attempt, self._leaders
        own.status, own.usage, own.error, own.is_complete = (
            leaders.status,
            leaders.usage,
            leaders.error,
            leaders.is_complete,
        )
        own.first_byte_at, own.ended_at = leaders.first_byte_at, result.ended_at
        return self._ticket.settle(end_of(self._call, own, result.outcome)._replace(source=result.source))


class Flights:
    """All flights of this process. They outlive a reload: equal calls of two configurations are equal all the same."""

    def __init__(self, store: FlightStore | None, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[bytes, Flight] = {}
        self._store = store
        self._claims = Claims(store, clock) if store is not None and store.is_shared else None

    @property
    def is_shared(self) -> bool:
        """Other processes may lead."""
        return self._claims is not None

    @property
    def in_flight(self) -> int:
        return len(self._open)

    async def board(
        self,
        call: Call,
        key: bytes,
        rules: FlightRules,
        *,
        form: str = "",
        note: bytes = b"",
        look: Look | None = None,
        reserve: ReserveForFollower | None = None,
    ) -> Lead | Reply | None:
        """Lead the flight of this key, or wait until it has begun and get its reply. None: it is too long to be joined.

        `look` is for a plugin that keeps replies itself: it looks there again before this call leads after all, for the reply may have come while it waited, or from
        another process. A flight of another `form` (a stream, where this call wants none) can't be joined: its end is waited for, and then `look` asked. A Lead, and a Reply as it is, are what `lookup` should return.
        `reserve` (`host.offers[RESERVE_FOR_FOLLOWER]`): a follower pays, too, before it gets anything; such flights stay within this process.
        Raises FlightMismatch if the key was used with another note, Unavailable by `rules.is_required`, and the flight's own error. Waits as `call.wait` does."""
        key = rules.name.encode() + b":" + key
        has_waited = False
        while True:
            if has_waited and look is not None and (reply := await _looked(look)) is not None:
                return reply
            flight = self._open.get(key)
            if flight is None or flight.tape.is_complete is False:
                if len(self._open) >= OPEN_MAX:
                    self._sweep()
                flight = self._open[key] = Flight(key, rules, form=form, note=note)
                if self._claims is None and not rules.keep_s and not note:  # nobody else has to be asked
                    flight.audience = _merged(flight.audience, call)
                    return Lead(self, flight)
                if (
                    found := await self._ask(flight, None if has_waited else look, is_local=reserve is not None)
                ) is not None:
                    if isinstance(found, Lead):
                        flight.audience = _merged(flight.audience, call)
                    return found
            if flight.note != note:
                if flight.placed is None or flight.placed.is_set:
                    raise FlightMismatch
                await call.wait(flight.placed.wait())
                continue
            has_waited = True
            if flight.form != form:
                await self._outlast(flight, call)
                if flight.error is None and flight.status < 400:
                    continue  # an error has no form
            try:
                return await self._follow(flight, call, reserve)
            except _Vacant:
                self.forget(flight)

    def forget(self, flight: Flight) -> None:
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]
        flight.closed.set()

    def ended(self, lead: Lead, result: Result) -> Coroutine[Any, Any, None] | None:
        """What is left to do when a leader's call has ended; the flight has its end."""
        flight, rules = lead.flight, lead.flight.rules
        flight.has_ended = True
        has_body = flight.has_whole_body(rules.max_bytes)
        is_kept = has_body and rules.keep_s > 0 and rules.is_kept(result, flight.status)
        if not is_kept and (rules.keep_s > 0 or not has_body or flight.status >= 400):
            lead.close()
        # Joined only where somebody keeps it, or may hand it to another process.
        body = flight.tape.whole() if has_body and (is_kept or flight.claim is not None) else None
        if flight.claim is not None:
            assert self._claims is not None
            return self._claims.end(flight, body, is_kept, self.forget)
        if not is_kept or self._store is None:
            return None
        assert body is not None
        value = flight.head(self._clock.time()) + body
        pending = self._store.keep(flight.key, None, value, ttl_s=rules.keep_s)
        lead.close()
        return None if pending is None else _wait_for(pending)

    def _sweep(self) -> None:
        for flight in [flight for flight in self._open.values() if flight.has_ended]:
            self.forget(flight)

    async def aclose(self) -> None:
        if self._claims is not None:
            await self._claims.aclose()
        if self._store is not None:
            await self._store.aclose()

    async def _ask(self, flight: Flight, look: Look | None, *, is_local: bool) -> Lead | Reply | None:
        """A Lead: nobody else makes this reply. A Reply: `look` has found it. None: it is made elsewhere, or was kept, and `flight` follows."""
        try:
            return await self._place(flight, look, is_local=is_local)
        finally:
            if flight.placed is not None:
                flight.placed.set()

    async def _place(self, flight: Flight, look: Look | None, *, is_local: bool) -> Lead | Reply | None:
        rules, found, reply = flight.rules, None, None
        try:
            if self._claims is not None and not is_local:
                claiming = asyncio.ensure_future(self._claims.take(flight))
                try:
                    # One round trip for both; an answer that needs none comes before the claim has left.
                    reply = await _looked(look) if look is not None else None
                    if reply is None:
                        found = await claiming
                finally:
                    if not claiming.done():
                        claiming.cancel()
                    elif not claiming.cancelled():
                        claiming.exception()  # taken: nobody else will ask
            elif self._store is not None and rules.keep_s > 0:
                found = await self._store.read(flight.key)
        except Unavailable:
            if rules.is_required:
                self._give_up(flight)
                raise
        except BaseException:
            self._give_up(flight)
            raise
        if reply is not None:
            self._give_up(flight)
            return reply
        if found is None:
            return Lead(self, flight)
        if self._claims is not None:
            self._claims.follow(flight, found, self.forget)
        else:
            read_kept(flight, found)
            self.forget(flight)
        return None

    def _give_up(self, flight: Flight) -> None:
        """Nothing comes of it here, and others may look again."""
        self.forget(flight)
        flight.vacate()
        if self._claims is not None:
            self._claims.drop(flight)

    async def _outlast(self, flight: Flight, call: Call) -> None:
        """Wait for the end of a flight that this call can't read, but what is kept of it."""
        flight.audience.add(1)
        try:
            await call.wait(flight.closed.wait())
        finally:
            flight.audience.add(-1)

    async def _follow(self, flight: Flight, call: Call, reserve: ReserveForFollower | None) -> Reply | None:
        """The reply of a flight that has begun; None if it can't be joined. Raises _Vacant, and the flight's own error."""
        flight.audience.add(1)
        reader: TapeReader | None = None
        try:
            if not flight.changed.is_set:
                await call.wait(flight.changed.wait())
            if flight.error is not None:
                raise flight.error
            if flight.is_vacant:
                raise _Vacant
            if not flight.tape.is_whole:
                return None
            reader = flight.tape.read(lambda: flight.audience.add(-1))
            payment = None
            if reserve is not None and flight.attempt is not None:
                own = Attempt(flight.attempt.target, 1, self._clock.monotonic())
                ticket = await reserve(call, flight.attempt.target, own)
                if ticket is not None:
                    payment = call.slots[SHARE] = Payment(call, own, flight.attempt, ticket)
                    if flight.is_whole:
                        payment.settle_now()
            return self._reply(flight, Seat(reader, payment), reader, call)
        except BaseException as error:
            if reader is not None:
                reader.close()
            if isinstance(error, Skip):
                raise Rejected(error.error or Unavailable(error.reason)) from error
            raise
        finally:
            if reader is None:
                flight.audience.add(-1)

    def _reply(self, flight: Flight, seat: Seat, reader: TapeReader, call: Call) -> Reply:
        reply = Reply(flight.status, flight.headers, source=flight.rules.source)
        body = flight.tape.whole() if flight.is_whole and flight.tape.is_complete else None
        reply.body = body if body is not None else _read(reader, call, is_events=reply.is_event_stream)
        reply.ticket = seat
        return reply


def _merged(own: Audience, call: Call) -> Audience:
    """The audience of the call, who may lead a second flight; who waits already is counted there from now on."""
    audience = call.find(AUDIENCE)
    if audience is None:
        call.slots[AUDIENCE] = own
        return own
    audience.tapes += own.tapes
    audience.add(own.count)
    return audience


async def _read(reader: TapeReader, call: Call, *, is_events: bool) -> AsyncGenerator[bytes, None]:
    last = b""
    try:
        async for chunk in reader:
            last = chunk
            yield chunk
    except Cut:
        lost = UpstreamError("the reply that this call shared with an equal one was cut", kind="reset")
        if is_events and not _tells_error(last):
            told = lost.to_object()["error"]
            yield b"\n\n" + error_event(call.endpoint, told, sequence_number_after(last))
        raise lost from None


def _tells_error(events: bytes) -> bool:
    """Whether the last event is an error."""
    last = events.replace(b"\r\n", b"\n").rstrip(b"\n").rpartition(b"\n\n")[2]
    return error_in(last) is not None


async def _looked(look: Look) -> Reply | None:
    """What is found; a store that is away has nothing."""
    try:
        return await look()
    except Unavailable:
        return None


async def _wait_for(pending: Any) -> None:
    await pending
