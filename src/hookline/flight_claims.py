"""Flights between processes: which process leads, and what the others are shown.

Lives here: claims of this process and their renewal, showing a reply to other processes, following one that is made elsewhere. Elsewhere: flights within a process
(flights.py), where claims live (the FlightStore).
Idea: to the callers of a process a flight made elsewhere is one like every other, only that a task of ours plays it onto the tape. Nothing is shown before
somebody waits: a flight that no other process wants costs one claim and one release.

The times: a claim ends CLAIM_S after its process died, and is renewed every RENEW_S; that is also when its holder learns that somebody waits. Who waits looks every FIRST_LOOK_S
at first, and every LAST_LOOK_S in the end; one task per flight and process, whatever number of callers.

What is shown is a row of frames: a letter, four bytes of length, so many bytes. H = the head, B = a piece of the body, E = the end ("1" complete, "0" cut)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import struct
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from hookline.errors import ClientGone, Unavailable
from hookline.flight import Flight, read_kept
from hookline.stores.protocols import Clock, FlightStore
from hookline.tape import Cut

log = logging.getLogger("hookline.flights")

CLAIM_S, RENEW_S = 3.0, 0.5
HAND_OVER_S = 10.0
"""How long a reply that is not kept is there for those in other processes who wait for it."""
FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.1
STORE_AWAY_S = 3.0
"""So long the store may be away before followers give up waiting for another process."""
_FRAME = struct.Struct(">cI")
Forget = Callable[[Flight], None]


class Claims:
    """The claims that this process holds, and the flights of other processes that it follows."""

    def __init__(self, store: FlightStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._held: dict[bytes, Flight] = {}
        self._showing: dict[bytes, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._tokens = map(f"C{uuid.uuid4().hex[:12]}.%010d:".__mod__, itertools.count())

    async def take(self, flight: Flight) -> bytes | None:
        """Claim the flight's key. None: it is ours. Else what is there. Raises Unavailable."""
        claim = b"%b%b:%b" % (next(self._tokens).encode(), flight.form.encode(), flight.note)
        found = await self._store.claim(flight.key, claim, ttl_s=CLAIM_S)
        if found is None:
            flight.claim = claim
            self._held[flight.key] = flight
            if self._renewing is None or self._renewing.done():
                self._renewing = self._spawn(self._renew())
        return found

    def follow(self, flight: Flight, found: bytes, forget: Forget) -> None:
        """`found` says who makes the reply, or is the reply that was kept."""
        if found[:1] == b"=":
            read_kept(flight, found[1:])
            forget(flight)
        else:
            _, form, flight.note = found.split(b":", 2)
            flight.form = form.decode()
            self._spawn(self._trail(flight, found, forget))

    async def end(self, flight: Flight, body: bytes | None, is_kept: bool, forget: Forget) -> None:
        """The leader's call has ended: the claim becomes the reply, or goes. `body` is None if there is nothing to have."""
        key, claim, store = flight.key, flight.claim, self._store
        assert claim is not None
        self._held.pop(key, None)
        value = flight.head(self._clock.time()) + body if body is not None else b""
        showing = self._showing.pop(key, None)
        try:
            if is_kept:
                await _done(store.keep(key, claim, value, ttl_s=flight.rules.keep_s))
            elif body is not None:
                if await store.release(key, claim, unless_wanted=True):
                    await _done(store.keep(key, claim, value, ttl_s=HAND_OVER_S))
            elif showing is not None and flight.tape.is_complete:
                await asyncio.wait({showing})  # too long to be handed over whole; the claim leaves by itself
            else:
                await store.release(key, claim, unless_wanted=False)
        except (
            Unavailable
        ):  # said by the store's own client; the claim ends by itself, and who waits for it asks an upstream
            if is_kept:
                raise
        finally:
            if showing is not None:
                showing.cancel()
            if is_kept:
                forget(flight)

    def drop(self, flight: Flight) -> None:
        """Give a claim up that nothing has come of."""
        if flight.claim is not None:
            self._spawn(self._drop(flight.key, flight.claim))
            self._held.pop(flight.key, None)
            flight.claim = None

    async def _drop(self, key: bytes, claim: bytes) -> None:
        with suppress(Unavailable):  # it ends by itself
            await self._store.release(key, claim, unless_wanted=False)

    async def aclose(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- what we lead

    async def _renew(self) -> None:
        """One task for all claims; it ends with the last of them."""
        while self._held:
            await asyncio.sleep(RENEW_S)
            held = list(self._held.values())
            asked = (self._store.renew(flight.key, flight.claim or b"", ttl_s=CLAIM_S) for flight in held)
            for flight, answer in zip(held, await asyncio.gather(*asked, return_exceptions=True), strict=True):
                if isinstance(answer, BaseException):
                    if not isinstance(answer, Unavailable):
                        log.error("a claim could not be renewed: %s: %s", type(answer).__name__, answer)
                elif answer is None:  # we were late; another process may lead by now, and ours goes on for its own
                    self._held.pop(flight.key, None)
                else:
                    self._show(flight, is_wanted=answer)

    def _show(self, flight: Flight, *, is_wanted: bool) -> None:
        """Begin, or end, to show a flight to other processes."""
        showing = self._showing.get(flight.key)
        if is_wanted and showing is None and flight.key in self._held:
            flight.audience.add(1)
            self._showing[flight.key] = self._spawn(self._write(flight))
        elif not is_wanted and showing is not None:
            del self._showing[flight.key]
            showing.cancel()

    async def _write(self, flight: Flight) -> None:
        """Others wait: they are an audience, and read what we show them."""
        key, claim = flight.key, flight.claim or b""
        try:
            await flight.changed.wait()
            if not flight.has_begun or not flight.tape.is_whole:
                return
            reader = flight.tape.read()
            try:
                frame = _framed(b"H", flight.head(self._clock.time()))
                while await self._store.append(key, claim, frame):
                    frame = _framed(b"B", await anext(reader))
            except StopAsyncIteration:
                await self._store.append(key, claim, _framed(b"E", b"1"))
            except (Cut, ClientGone):  # it ended so, or came faster than Redis took it
                await self._store.append(key, claim, _framed(b"E", b"0"))
            finally:
                reader.close()
        except Unavailable as error:
            log.warning("other processes can't be shown a reply: %s", error.message)
        finally:
            flight.audience.add(-1)

    # -- what others lead

    async def _trail(self, flight: Flight, held: bytes, forget: Forget) -> None:
        """Play a flight that is made elsewhere onto our tape, as long as somebody here reads it."""
        offset, shown, pause_s, away_s = 0, b"", FIRST_LOOK_S, 0.0
        try:
            while flight.audience.count:
                try:
                    found, piece = await self._store.peek(flight.key, offset)
                    away_s = 0.0
                except Unavailable:
                    found, piece = held, b""
                    away_s += max(pause_s, LAST_LOOK_S)
                    if away_s > STORE_AWAY_S:
                        return
                if found is None or (found != held and found[:1] != b"="):
                    return
                if found[:1] == b"=":
                    read_kept(flight, found[1:])
                    return
                offset += len(piece)
                shown = _play(flight, shown + piece)
                if flight.tape.is_complete is not None:
                    return
                pause_s = FIRST_LOOK_S if piece else min(pause_s * 1.5, LAST_LOOK_S)
                await asyncio.sleep(pause_s)
        finally:
            forget(flight)
            flight.cut()


def _play(flight: Flight, frames: bytes) -> bytes:
    """Do what whole frames say; the rest comes back."""
    at = 0
    while len(frames) - at >= _FRAME.size:
        kind, size = _FRAME.unpack_from(frames, at)
        end = at + _FRAME.size + size
        if end > len(frames):
            break
        data, at = frames[at + _FRAME.size : end], end
        if kind == b"H":
            with suppress(
                ValueError, KeyError, TypeError
            ):  # of another version: its reply will be kept, or not be there
                flight.begin_from(data)
        elif kind == b"B":
            flight.tape.feed(data)
        else:
            flight.end(data == b"1")
    return frames[at:]


def _framed(kind: bytes, data: bytes) -> bytes:
    return _FRAME.pack(kind, len(data)) + data


async def _done(pending: Any) -> None:
    if pending is not None:
        await pending
