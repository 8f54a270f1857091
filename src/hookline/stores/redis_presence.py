"""Being there: a worker shows that it lives, and puts right what a Redis that was away does not know.

Lives here: `Presence`: the heartbeat, holding on to parallel slots, the epoch, what is told on every new connection before anything else. Elsewhere: the grace in which no money is granted (lua/prelude.lua),
reading the ledger (builtins/budget, when it is told `Unavailable`).
Idea: whatever is told here can be told twice. So nobody has to know whether it arrived.

On a new connection, in this order
1. Hello: the epoch. Another one than before = Redis came back empty (or another server took over): reservations and parallel slots of calls in flight are told.
2. Leases: what was spent of them and what is left.
3. What could not be settled, undone or freed meanwhile."""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hookline.errors import Unavailable
from hookline.stores.redis_client import RedisClient
from hookline.stores.redis_connection import RedisConnection, ask_all
from hookline.stores.redis_leases import LeaseKeeper, to_us, until_us
from hookline.stores.redis_scripts import LimitKeys

if TYPE_CHECKING:
    from hookline.stores.redis_limits import Reserved

BEAT_S = 0.1
"""While leases are out: how soon a recall is heard."""
IDLE_BEAT_S = 0.5
LOOK_AFTER_S = 2.0
SLOT_S = 10.0
"""A parallel slot is held this long unless its worker says that it is needed longer: those of a worker that died come free."""
RENEW_S = 3.0
LATER_MAX = 100_000
COUNTS_KEPT = 20
Slots = list[tuple[str, int]]
log = logging.getLogger("hookline.shared")


class Presence:
    """Of one limits store. `epoch` is the one this worker knows, '' at first."""

    def __init__(
        self,
        client: RedisClient,
        keys: LimitKeys,
        leases: LeaseKeeper,
        reserved: Mapping[str, Reserved],
        workers: int = 1,
        *,
        find_slots: Callable[[], list[tuple[str, float, Slots]]],
        now: Callable[[], int | str],
    ) -> None:
        self._client = client
        self._keys = keys
        self._leases = leases
        self._reserved = reserved
        self._find_slots = find_slots
        self._now = now
        self._hello, self._announce, self._hold, self._settle = client.load("hello", "announce", "hold", "settle")
        self._name = uuid.uuid4().hex
        self._settling: dict[str, int] = {}
        self._freeing: dict[str, Slots] = {}
        self._recalls = 0
        self._beat: asyncio.TimerHandle | None = None
        self._look_after_at_s = self._renew_at_s = 0.0
        self._held_before: set[str] = set()
        self.look_after: Callable[[], None] = leases.look_after
        self.epoch = ""
        self.must_know = False
        """Redis was lost once: only windows that were restored since may be spent from."""
        self._least = workers
        self._counts: deque[int] = deque((1,), maxlen=COUNTS_KEPT)
        client.on_connect.append(self._reconcile)

    @property
    def workers(self) -> int:
        """How many live: the most that were seen lately, for a Redis that came back empty, or is new, does not know all of them at once."""
        return max(self._least, *self._counts)

    def fresh(self) -> str:
        """A name for a new epoch, should there be none."""
        return secrets.token_hex(8)

    def learn(self, said: bytes) -> None:
        """The epoch, as an answer has it. Another one: tell what is in flight."""
        epoch = said.decode()
        if epoch == self.epoch:
            return
        if self.epoch:
            self._came_back_empty()
            self.epoch = epoch
            for command in self._in_flight():
                self._client.send(*command)
            self._leases.ask_all()
        self.epoch = epoch

    def settle_later(self, id: str, amount_nanousd: int) -> None:
        """Now if Redis answers, else as soon as it does."""
        if len(self._settling) < LATER_MAX:
            self._settling[id] = amount_nanousd
        if not self._client.is_open:
            self._tell_later()

    def free_later(self, id: str, slots: Slots) -> None:
        """Parallel slots that may be held in Redis and are not needed."""
        if slots and len(self._freeing) < LATER_MAX:
            self._freeing[id] = slots

    async def aclose(self) -> None:
        if self._beat is not None:
            self._beat.cancel()

    async def _reconcile(self, connection: RedisConnection) -> None:
        """See the top. Raises Unavailable where the server can't be told."""
        (answer,) = await ask_all(connection, [("EVALSHA", self._hello.digest, *self._hello_arguments())])
        epoch, self._recalls = answer[0].decode(), answer[2]
        self._counts.append(answer[1])
        commands: list[tuple[Any, ...]] = []
        if self.epoch and epoch != self.epoch:
            self._came_back_empty()
            commands += self._in_flight()
        commands += self._leases.reports()
        self.epoch = epoch
        settling, self._settling = self._settling, {}
        freeing, self._freeing = self._freeing, {}
        commands += [self._settle_command(id, amount) for id, amount in settling.items()]
        commands += [
            ("ZREM", key, *(f"{id}/{n + 1}" for n in range(count)))
            for id, slots in freeing.items()
            for key, count in slots
        ]
        try:
            await ask_all(connection, commands)
        except BaseException:
            self._settling |= settling
            self._freeing |= freeing
            raise
        self._leases.lost_answers()
        if self._beat is None:
            self._beat = asyncio.get_running_loop().call_later(BEAT_S, self._on_beat)

    def _came_back_empty(self) -> None:
        log.warning(
            "the shared store (Redis) came back empty: budgets are read from the ledger, windows of rate limits begin anew"
        )
        self.must_know = True

    def _in_flight(self) -> list[tuple[Any, ...]]:
        keys, commands, now = self._keys, list[tuple[Any, ...]](), self._now()
        now_s = self._client.monotonic()
        for id, (spends, amount, ends_at_s) in self._reserved.items():
            names = (keys.in_flight, keys.record + id, *(keys.money + spend.window for spend in spends))
            arguments: list[Any] = [now, id, max(to_us(ends_at_s - now_s), 1), amount]
            for spend in spends:
                line = -1 if spend.alert_nanousd is None else spend.alert_nanousd
                arguments += (to_us(spend.window_s), until_us(spend), line)
            commands.append(("EVALSHA", self._announce.digest, len(names), *names, *arguments))
        return commands + [self._hold_command(*held) for held in self._find_slots()]

    def _hold_command(self, id: str, left_s: float, slots: Slots) -> tuple[Any, ...]:
        arguments = (self._now(), id, max(to_us(left_s), 1), *(n for _, n in slots))
        return ("EVALSHA", self._hold.digest, len(slots), *(key for key, _ in slots), *arguments)

    def _hello_arguments(self) -> tuple[Any, ...]:
        return (2, self._keys.epoch, self._keys.workers, self._name, self.epoch, self.fresh())

    def _settle_command(self, id: str, amount: int) -> tuple[Any, ...]:
        keys = self._keys
        return ("EVALSHA", self._settle.digest, 2, keys.in_flight, keys.record + id, self._now(), id, amount)

    def _tell_later(self) -> None:
        settling, self._settling = self._settling, {}
        for id, amount in settling.items():

            def told(answer: Any, id: str = id, amount: int = amount) -> None:
                if isinstance(answer, Unavailable):
                    self._settling[id] = amount

            names = (self._keys.in_flight, self._keys.record + id)
            try:
                self._client.tell(self._settle, (2, *names, self._now(), id, amount), told)
            except Unavailable as error:
                told(error)

    def _on_beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._beat = loop.call_later(BEAT_S if self._leases.has_any else IDLE_BEAT_S, self._on_beat)
        if self._client.is_open:
            return
        try:
            self._client.tell(self._hello, self._hello_arguments(), self._heard)
        except Unavailable:
            return
        if loop.time() >= self._look_after_at_s:
            self._look_after_at_s = loop.time() + LOOK_AFTER_S
            self.look_after()
        if loop.time() >= self._renew_at_s:
            self._renew_at_s = loop.time() + RENEW_S
            self._renew()

    def _renew(self) -> None:
        """Hold on to the slots of calls that were there at the last turn already; most calls have ended by then."""
        held = self._find_slots()
        for id, left_s, slots in held:
            if id in self._held_before:
                self._client.tell(self._hold, self._hold_command(id, left_s, slots)[2:], None)
        self._held_before = {id for id, _, _ in held}

    def _heard(self, answer: Any) -> None:
        if isinstance(answer, Unavailable):
            return
        epoch, workers, recalls = answer
        self._counts.append(workers)
        self.learn(epoch)
        if recalls != self._recalls:
            self._recalls = recalls
            self._leases.ask_all()
