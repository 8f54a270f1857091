"""Loads: how busy and how fast each deployment is, as this process sees it.

Lives here: attempts under way, peak-EWMA latency, limits the upstream told of. Elsewhere: reading those headers (the core's told_limits.py), who goes first by them (orders.py).
Idea: one object per deployment, which is the ticket of every attempt at it: it is counted when the attempt is admitted, and learns when that settles.

Peak-EWMA (Finagle's `PeakEwma`): a latency above the average replaces it at once, one below pulls it down over `decay_s`; with nothing new it decays towards 0, so that a
deployment that was slow is asked again after a while. Streams are measured to their first byte, plain replies to their end: two averages, for they differ by an order of magnitude.
A failure counts as `FAILURE_S` or twice the average, however fast it came: else whoever fails at once looks fastest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hookline import Attempt, Clock, LimitKind, Result, Told, UpstreamError, read_told

FAILURE_S = 10.0
TOLD_MAX_S = 60.0
"""What an upstream told is believed for so long at most; then one attempt asks it anew."""
LOADS_MAX = 4_096
NO_FAULT = frozenset({400, 404, 405, 409, 411, 413, 414, 415, 422})
"""Upstream statuses that speak of the request and not of the deployment."""


class Load:
    """One deployment's. Seconds are the clock's monotonic ones. `decay_s` None: nobody asks for its latency, so none is kept."""

    __slots__ = ("_clock", "_costs", "_stamps", "decay_s", "in_flight", "since_told", "told")

    def __init__(self, clock: Clock, decay_s: float | None) -> None:
        self._clock = clock
        self.decay_s = decay_s
        self._costs = [0.0, 0.0]
        self._stamps = [0.0, 0.0]
        self.in_flight = 0
        self.told: dict[LimitKind, tuple[int, float]] = {}
        """By kind: what was left, and until when that holds."""
        self.since_told = 0
        """Attempts begun since the upstream last told of requests."""

    def begin(self) -> Load:
        """One more attempt; the answer is its ticket."""
        self.in_flight += 1
        self.since_told += 1
        return self

    def settle(self, result: Result) -> None:
        """See `Ticket.settle`."""
        self.in_flight -= 1
        attempt = result.attempt
        if attempt is None or attempt.ended_at is None:
            return
        if self.decay_s is not None:
            self._learn(attempt, attempt.ended_at, result.outcome == "ok")
        reply = attempt.reply
        if reply is not None and isinstance(reply.body, bytes):  # of a stream its head has told
            told = read_told(reply.headers, self._clock.time())
            if told:
                self.learn(told, attempt.ended_at)

    def _learn(self, attempt: Attempt, ended_at: float, is_ok: bool) -> None:
        reply = attempt.reply
        is_stream = reply is not None and not isinstance(reply.body, bytes)
        until = attempt.first_byte_at if is_stream and attempt.first_byte_at is not None else ended_at
        seconds, error = until - attempt.started_at, attempt.error
        if error is None and not is_ok:  # a hedge that lost, a client that left: it took at least that long
            if seconds > self.latency_s(is_stream, ended_at):
                self.observe(seconds, is_stream, ended_at)
            return
        if error is not None:
            if not isinstance(error, UpstreamError) or error.upstream_status in NO_FAULT:
                return
            for kind in (False, True):  # it is not known how the answer would have come
                self.observe(max(seconds, FAILURE_S, 2 * self.latency_s(kind, ended_at)), kind, ended_at)
            return
        self.observe(seconds, is_stream, ended_at)

    def observe(self, seconds: float, is_stream: bool, now: float) -> None:
        """One measured latency."""
        cost = self.latency_s(is_stream, now)
        if seconds < cost:
            kept = self._kept(is_stream, now)
            seconds = cost + seconds * (1 - kept)  # `cost` has decayed by `kept` already
        self._costs[is_stream], self._stamps[is_stream] = seconds, now

    def latency_s(self, is_stream: bool, now: float) -> float:
        """The average as it is now."""
        cost = self._costs[is_stream]
        return cost and cost * self._kept(is_stream, now)

    def _kept(self, is_stream: bool, now: float) -> float:
        """The share of an average that time has left."""
        return math.exp(min(self._stamps[is_stream] - now, 0.0) / (self.decay_s or 1.0))

    def weight_of_one_more(self, is_stream: bool, now: float) -> float:
        """How long one more attempt would take, roughly: the latency, once for each that is under way and once for it. Nothing known: as many seconds as are under way."""
        cost = self.latency_s(is_stream, now)
        return cost * (self.in_flight + 1) if cost else float(self.in_flight)

    def learn(self, told: Sequence[Told], now: float) -> None:
        """Keep what an upstream told; of two limits of a kind the tighter one."""
        for kind in {one.kind for one in told}:
            one = min((one for one in told if one.kind == kind), key=lambda one: one.remaining)
            self.told[kind] = (one.remaining, now + min(one.reset_s, TOLD_MAX_S))
            if kind == "requests":
                self.since_told = 0

    def wait_s(self, input_tokens: int = 0, output_tokens: int = 0) -> float:
        """For how long the upstream would refuse a call that needs at least so many tokens, by what it told; 0: it would not."""
        if not self.told:
            return 0.0
        wanted: dict[LimitKind, int] = {
            "requests": self.since_told + 1,
            "tokens": max(input_tokens + output_tokens, 1),  # no call has none
            "input_tokens": max(input_tokens, 1),
            "output_tokens": 1,  # what it will write is not known, and nobody holds the limit against it
        }
        now, wait_s = self._clock.monotonic(), 0.0
        for kind, (remaining, until) in self.told.items():
            if remaining < wanted[kind] and until > now:
                wait_s = max(wait_s, until - now)
        return wait_s


class Loads:
    """By deployment id, as far as they stand beside others: who is alone has nothing to be compared with."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_id: dict[str, Load] = {}

    def find(self, deployment_id: str) -> Load | None:
        return self._by_id.get(deployment_id)

    def get(self, deployment_id: str, decay_s: float | None) -> Load:
        """That of this deployment, which is kept from now on. Ids may come from clients: of too many the idle ones are forgotten."""
        load = self._by_id.get(deployment_id)
        if load is None:
            if len(self._by_id) >= LOADS_MAX:
                self._by_id = {id: load for id, load in self._by_id.items() if load.in_flight}
            load = self._by_id[deployment_id] = Load(self._clock, decay_s)
        elif load.decay_s is None:
            load.decay_s = decay_s
        return load
