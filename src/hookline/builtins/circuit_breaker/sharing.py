"""Sharing: processes that tell each other about their circuits, through the limits store.

Lives here: what is told and what is learned, the task that does it, the one probe of all processes. Elsewhere: states (circuit.py), the board (the limits store's `exchange`).
Idea: no call waits for it. A task of its own tells and asks every `share_s`, and at once when a circuit changes: one round trip that goes with others of its turn. What there is to
tell is short, for who is well has nothing to say. Only a probe asks the store on its call's path, and a call that probes is none of the healthy ones.

What is told
- A state that is not closed, and for LINGER_S one that has closed: of two with the same deployment the later change counts, so all agree after one exchange.
- Ballots: votes of the window, of deployments that somebody has seen failing. They are added to each process's own, so four processes with two failures each see eight.
In one process the store's memory is told changes only: so a reload of the configuration, which makes new circuits, forgets none.
Away, the store is not missed: each process decides by its own votes, and probes for itself."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import orjson

from hookline import Attempt, Host, LimitStore, Notice, Refusal, Result, Take, Unavailable
from hookline.builtins.circuit_breaker.circuit import Ballot, Circuit, Counts

BOARD = "circuits"
LINGER_S = 30.0
BALLOT_S = 2.0
"""A ballot that is not told again is of a process that has gone."""
FORCED_S = 30 * 86_400.0
PROBE_S = 120.0
"""The probe's slot comes free by itself after so long, should its process die."""
NOTICES_MAX = 500


class Sharing:
    """This process's side. `circuits` are the plugin's, `add` makes one, `changed` is told of one that another process has changed."""

    def __init__(
        self,
        host: Host,
        circuits: Mapping[str, Circuit],
        add: Callable[[str], Circuit],
        changed: Callable[[str, Circuit], None],
    ) -> None:
        self._limits: LimitStore = host.limits
        self._clock = host.clock
        self._circuits = circuits
        self._add = add
        self._changed = changed
        self._node = uuid.uuid4().hex[:12]
        self._names = map(f"probe-{self._node}.%d".__mod__, itertools.count())
        self._wake = asyncio.Event()
        self.is_shared = bool(host.limits.is_shared)
        self.is_up = False
        """There are other processes, and the last exchange worked."""

    async def run(self, every_s: float | None) -> None:
        """For ever; None: only when there is something to tell."""
        while True:
            self._wake.clear()
            await self.exchange()
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._wake.wait()

    def tell(self, circuit: Circuit) -> None:
        """It has changed: tell it now."""
        circuit.version = max(circuit.version + 1, int(self._clock.time() * 1e6))
        self._wake.set()

    async def exchange(self) -> None:
        """Tell and learn, once."""
        try:
            told = await self._limits.exchange(BOARD, list(itertools.islice(self._notices(), NOTICES_MAX)))
        except Unavailable:
            self.is_up = False
            for circuit in self._circuits.values():
                circuit.others = None
            return
        self.is_up = self.is_shared
        self._learn(told)

    async def take_probe(self, deployment: str) -> str | None:
        """The id of the probe's slot, '' while the store is away; None: another process has it."""
        name = next(self._names)
        try:
            answer = await self._limits.take(name, (Take(f"probe:{deployment}", 1, 0.0),), (1,), expires_s=PROBE_S)
        except Unavailable:
            return ""
        return None if isinstance(answer, Refusal) else name

    async def is_first_to_alert(self, deployment: str, within_s: float) -> bool:
        """Whether no other process has; also while the store is away, for an alert too many is better than none."""
        slot = (Take(f"alert:{deployment}", 1, 0.0),)
        try:
            return not isinstance(await self._limits.take(next(self._names), slot, (1,), expires_s=within_s), Refusal)
        except Unavailable:
            return True

    def give_probe_back(self, name: str) -> Any:
        return self._limits.give_back(name, (0,)) if name else None

    def _notices(self) -> Iterator[Notice]:
        """States before ballots: made-up names that fail must not crowd out what is open."""
        now, unix = self._clock.monotonic(), self._clock.time()
        for name, circuit in self._circuits.items():
            is_closed = circuit.state == "closed"
            if circuit.version and (not is_closed or now - circuit.changed_at < LINGER_S):
                left_s = circuit.open_until - now
                state = "open" if circuit.state == "half_open" else circuit.state
                said = [state, unix + left_s, circuit.opens, circuit.why, circuit.reason]
                keep_s = FORCED_S if state.startswith("forced") else max(left_s, 0.0) + LINGER_S
                yield Notice(f"s {name}", circuit.version, orjson.dumps(said), keep_s)
        if not self.is_shared:
            return
        for name, circuit in self._circuits.items():
            counts = circuit.window.count(now)
            if circuit.state == "closed" and (counts.failed or counts.slow or circuit.others is not None):
                row_at, ok_at = max(unix - now + circuit.row_at, 0.0), max(unix - now + circuit.ok_at, 0.0)
                ballot = [*counts, circuit.failures_in_row, row_at, ok_at]
                yield Notice(f"v {self._node} {name}", int(unix * 1e6), orjson.dumps(ballot), BALLOT_S)

    def _learn(self, notices: Any) -> None:
        ballots: dict[str, list[Ballot]] = {}
        for notice in notices:
            kind, _, name = notice.name.partition(" ")
            if kind == "s":
                circuit = self._circuits.get(name)
                if circuit is None and not notice.value.startswith(b'["closed"'):
                    circuit = self._add(name)
                if circuit is not None and notice.version > circuit.version:
                    self._adopt(name, circuit, notice)
            elif kind == "v":
                node, _, name = name.partition(" ")
                if node != self._node:
                    total, failed, slow, row, row_at, ok_at = orjson.loads(notice.value)
                    ballots.setdefault(name, []).append(Ballot(Counts(total, failed, slow), row, row_at, ok_at))
        to_monotonic = self._clock.monotonic() - self._clock.time()
        for name, circuit in self._circuits.items():
            circuit.others = _sum_of(ballots[name], to_monotonic) if name in ballots else None
        for name in ballots.keys() - self._circuits.keys():
            self._add(name).others = _sum_of(ballots[name], to_monotonic)

    def _adopt(self, name: str, circuit: Circuit, notice: Notice) -> None:
        """The state as another process has it."""
        now = self._clock.monotonic()
        state, until, opens, why, reason = orjson.loads(notice.value)
        before, circuit.version = circuit.state, notice.version
        if state == "closed":
            circuit.close()
        circuit.state, circuit.changed_at, circuit.probe = state, now, None
        circuit.open_until, circuit.opens = now + until - self._clock.time(), opens
        circuit.why, circuit.reason = why, reason
        circuit.cooldown_s = circuit.open_until - now if why == "rate_limit" else None
        circuit.alerted = circuit.alerted or why == "refused"  # by whoever has seen it
        if before != state:
            self._changed(name, circuit)


def _sum_of(ballots: list[Ballot], to_monotonic: float) -> Ballot:
    """Several as one, in this process's time. Their rows are one row if nobody has seen a success since the first of them began."""
    counts = Counts(*(sum(column) for column in zip(*(ballot.counts for ballot in ballots), strict=True)))
    ok_at = max(ballot.ok_at for ballot in ballots)
    rows = [ballot for ballot in ballots if ballot.row and ballot.row_at > ok_at]
    row_at = min((ballot.row_at for ballot in rows), default=0.0)
    return Ballot(counts, sum(ballot.row for ballot in rows), row_at + to_monotonic, ok_at + to_monotonic)


class SharedProbe:
    """The one attempt that a half-open circuit lets through; held until the attempt ends, or has gone well for long enough."""

    __slots__ = ("_attempt", "_circuit", "_name", "_sharing")

    def __init__(self, circuit: Circuit, attempt: Attempt, sharing: Sharing | None = None, name: str = "") -> None:
        self._circuit = circuit
        self._attempt = attempt
        self._sharing = sharing
        self._name = name

    def settle(self, result: Result) -> Any:
        if self._circuit.probe is self._attempt:
            self._circuit.probe = None
        return self.give_back()

    def give_back(self) -> Any:
        """The slot, once."""
        name, self._name = self._name, ""
        return self._sharing.give_probe_back(name) if self._sharing is not None else None
