"""One deployment's circuit: the window of votes, the table of states.

Lives here: `Circuit`, `TRANSITIONS`, `VoteWindow`; for how long one opens, which one is forced. Elsewhere: what a vote is (votes.py), other processes' circuits (sharing.py), who asks (the package's __init__).
Idea: the state changes only by `TRANSITIONS`; everything else makes events for it or asks it. No clock, no logger: time comes in as a number.

The rules
- Votes of attempts that began before the state last changed are stale and count for nothing.
- Half-open lets one probe through at a time. It is a Ticket, so it is given back on every exit, also when nobody learned anything.
- The time open doubles each time a probe fails, and goes on doubling if the circuit opens again within one window after it closed: a deployment that is well for one call is not well.
- A probe is not hedged, nor given up in vain, before its patience is over: who loses a race learns nothing, and the next probe would lose as well. No hedge is a probe.
- A probe whose answer has begun in time and has come for `open_s` counts as well: a stream may go on for minutes, and what it ends in then is a vote no more.
- A call that has waited as long as its own 429 said goes back, whether others wait too or one of them is the probe: it does what the provider asked for.
- Where every circuit is open, a call is forced through once: what fails then is not asked again by the same call.
- What an operator has forced stays until an operator takes it back; votes are not counted meanwhile."""

from __future__ import annotations

from typing import Literal, NamedTuple

from hookline import Attempt
from hookline.builtins.circuit_breaker.options import BreakerOptions
from hookline.builtins.circuit_breaker.votes import Vote

State = Literal["closed", "open", "half_open", "forced_open", "forced_closed"]
Event = Literal[
    "tripped", "cooldown", "time_over", "probe_ok", "probe_failed", "forced_ok", "force_open", "force_closed", "release"
]  # fmt: skip
Why = Literal[
    "", "consecutive_failures", "failure_rate", "slow_calls", "refused", "rate_limit", "probe_failed", "admin"
]

TRANSITIONS: dict[tuple[State, Event], State] = {
    ("closed", "tripped"): "open",
    ("closed", "cooldown"): "open",
    ("open", "time_over"): "half_open",
    ("open", "cooldown"): "open",
    ("open", "forced_ok"): "closed",
    ("half_open", "probe_ok"): "closed",
    ("half_open", "probe_failed"): "open",
    ("half_open", "cooldown"): "open",
    ("half_open", "forced_ok"): "closed",
    ("closed", "force_open"): "forced_open",
    ("open", "force_open"): "forced_open",
    ("half_open", "force_open"): "forced_open",
    ("forced_closed", "force_open"): "forced_open",
    ("closed", "force_closed"): "forced_closed",
    ("open", "force_closed"): "forced_closed",
    ("half_open", "force_closed"): "forced_closed",
    ("forced_open", "force_closed"): "forced_closed",
    ("forced_open", "release"): "closed",
    ("forced_closed", "release"): "closed",
    ("open", "release"): "closed",
    ("half_open", "release"): "closed",
}
"""An event that is not listed for a state leaves it as it is."""
BUCKETS = 10
TIMER_S = 0.01
"""A loop's timers count milliseconds, and may come a little early."""


class Counts(NamedTuple):
    """Votes of a window."""

    total: int = 0
    failed: int = 0
    slow: int = 0


class Ballot(NamedTuple):
    """What other processes have seen of a deployment. Times are Unix seconds on the board, and this process's monotonic ones in `Circuit.others`."""

    counts: Counts = Counts()
    row: int = 0
    row_at: float = 0.0
    ok_at: float = 0.0


class VoteWindow:
    """Votes of the last `window_s`, in BUCKETS slices."""

    __slots__ = ("_failed", "_ok", "_slices", "_slices_per_s", "_slow")

    def __init__(self, window_s: float) -> None:
        self._slices_per_s = BUCKETS / window_s
        self._slices = [-1] * BUCKETS
        self._ok = [0] * BUCKETS
        self._failed = [0] * BUCKETS
        self._slow = [0] * BUCKETS

    def add(self, vote: Vote, now: float) -> None:
        number = int(now * self._slices_per_s)
        index = number % BUCKETS
        if self._slices[index] != number:
            self._slices[index], self._ok[index], self._failed[index], self._slow[index] = number, 0, 0, 0
        votes = self._ok if vote == "ok" else self._slow if vote == "slow" else self._failed
        votes[index] += 1

    def count(self, now: float) -> Counts:
        ended = int(now * self._slices_per_s) - BUCKETS
        live = [index for index, number in enumerate(self._slices) if number > ended]
        failed, slow = sum(self._failed[index] for index in live), sum(self._slow[index] for index in live)
        return Counts(failed + slow + sum(self._ok[index] for index in live), failed, slow)


class Circuit:
    """A deployment's state in this process."""

    __slots__ = (
        "_window_s", "alerted", "changed_at", "cooldown_s", "failures_in_row", "ok_at", "open_until", "opens", "others", "probe", "reason", "row_at",
        "state", "version", "why", "window",
    )  # fmt: skip

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self.state: State = "closed"
        self.changed_at = float("-inf")
        self.version = 0
        """Unix microseconds of the last change, told to other processes: the latest one counts."""
        self.failures_in_row = 0
        self.row_at = self.ok_at = float("-inf")
        """When the row began, and when a call last went well."""
        self.window = VoteWindow(window_s)
        self.others: Ballot | None = None
        self.open_until = 0.0
        self.cooldown_s: float | None = None
        """For how long it opened, where it was the provider that said so; None: failures opened it."""
        self.opens = 0
        """Times opened since it was last well: the exponent of the open time."""
        self.probe: Attempt | None = None
        self.why: Why = ""
        self.reason = ""
        self.alerted = False

    def is_admitting(self, now: float) -> bool:
        if self.state == "open":
            return now >= self.open_until
        return self.state in ("closed", "forced_closed") or (self.state == "half_open" and self.probe is None)

    def take_probe(self, attempt: Attempt, now: float) -> bool:
        """Let one attempt through a circuit that is admitting and not closed. Returns whether the state changed."""
        has_changed = self.apply("time_over", now)
        self.probe = attempt
        return has_changed

    def is_probe_well(self, now: float, options: BreakerOptions) -> bool:
        """Whether the probe need not be waited for any longer."""
        probe = self.probe
        if self.state != "half_open" or probe is None or probe.first_byte_at is None:
            return False
        slow_s = options.slow_call_s
        is_slow = slow_s is not None and probe.first_byte_at - probe.started_at > slow_s
        return not is_slow and now - probe.first_byte_at >= options.open_s

    def was_waited_for(self, told_at: float, now: float) -> bool:
        """Whether who was told at `told_at` to come later has waited as long as the provider asks."""
        return self.cooldown_s is not None and now - told_at >= self.cooldown_s - TIMER_S

    def event_of(self, vote: Vote, attempt: Attempt, now: float, options: BreakerOptions) -> Event | None:
        """Count the vote; the event it makes, if any, with `why` set."""
        if self.state in ("forced_open", "forced_closed"):
            return None
        if vote == "cooldown":
            self.why = "rate_limit"
            return "cooldown"
        if self.state != "closed":
            if self.probe is attempt:
                if vote == "ok":
                    return "probe_ok"
                self.why = "refused" if vote == "refused" else "probe_failed"
                return "probe_failed"
            return "forced_ok" if vote == "ok" and attempt.target.is_forced else None
        if attempt.started_at < self.changed_at:
            return None
        self.window.add(vote, now)
        if vote == "ok" or (vote == "slow" and attempt.is_complete):
            self.failures_in_row, self.ok_at = 0, now
            if vote == "ok":
                return None
        why = self._why_open(vote, now, options)
        if not why:
            return None
        if now - self.changed_at > self._window_s:
            self.opens = 0
        self.why = why
        return "tripped"

    def apply(self, event: Event, now: float, *, wait_s: float = 0.0, reason: str = "") -> bool:
        """Follow the table. Returns whether the state changed."""
        before, after = self.state, TRANSITIONS.get((self.state, event), self.state)
        if after == "open" and event in ("tripped", "probe_failed", "cooldown"):
            if now + wait_s >= self.open_until:
                self.open_until = now + wait_s
                self.cooldown_s = wait_s if event == "cooldown" else None
            self.opens += event != "cooldown"
            self.reason = reason
        elif event in ("force_open", "force_closed"):
            self.why, self.reason = "admin", reason
        elif after == "closed" and before != "closed":
            self.close(event)
        if after != "half_open":
            self.probe = None
        if after != before:
            self.state, self.changed_at = after, now
        return after != before

    def close(self, event: Event = "probe_ok") -> None:
        """Begin anew; after a probe the exponent is kept for one window."""
        self.failures_in_row, self.window, self.others = 0, VoteWindow(self._window_s), None
        self.open_until, self.cooldown_s, self.why, self.reason, self.alerted = 0.0, None, "", "", False
        if event in ("forced_ok", "release"):
            self.opens = 0

    def _why_open(self, vote: Vote, now: float, options: BreakerOptions) -> Why:
        counts, row = self.window.count(now), self.failures_in_row
        others = self.others
        if others is not None:
            counts = Counts(*(own + theirs for own, theirs in zip(counts, others.counts, strict=True)))
        if vote != "slow":
            if not row:
                self.row_at = now
            self.failures_in_row = row = row + 1
            if others is not None and others.row and self.ok_at < others.row_at and others.ok_at < self.row_at:
                row += others.row
            if vote == "refused":
                return "refused"
            if row >= options.consecutive_failures:
                return "consecutive_failures"
        if counts.total < options.min_votes:
            return ""
        if counts.failed >= counts.total * options.failure_rate and vote != "slow":
            return "failure_rate"
        return "slow_calls" if counts.slow >= counts.total * options.slow_call_rate and vote == "slow" else ""


def open_time_s(event: Event, opens: int, attempt: Attempt, options: BreakerOptions, draw: float) -> float:
    """For how long the circuit opens by this event. `draw`: 0 <= draw < 1."""
    if event == "cooldown":
        retry_after_s = attempt.error.retry_after_s if attempt.error is not None else None
        return min(options.cooldown_s if retry_after_s is None else max(retry_after_s, 0.0), options.max_cooldown_s)
    # 2.0 ** 64 is far beyond any max_open_s, and float, so a long outage can't overflow.
    return min(options.open_s * 2.0 ** min(opens, 64), options.max_open_s) * (1 - options.jitter * draw)


def choose_forced(circuits: list[Circuit], now: float) -> int | None:
    """The index of the target to try when none would be let through; None if one would, or if all are forced open. A rate limit is better than
    a failure, an early end better than a late one."""
    if any(circuit.is_admitting(now) for circuit in circuits):
        return None
    free = [i for i, circuit in enumerate(circuits) if circuit.state != "forced_open"]
    return min(free, key=lambda i: (circuits[i].opens, circuits[i].open_until), default=None)
