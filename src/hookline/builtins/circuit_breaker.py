"""Circuit breaker: stop sending to a deployment that keeps failing.

Lives here: what counts as a vote, the vote window, the closed/open/half-open table. Elsewhere: which errors may be tried elsewhere (errors.py), what to try next (fallback.py).
Idea: state changes only by `TRANSITIONS`; everything else makes events for it or asks it. Time comes in as a number.

The rules
- A vote is an answer about the deployment: a complete reply, a failure, a 429. A hedge that lost and a client that left say nothing.
- Votes of attempts that began before the state last changed are stale and count for nothing.
- Half-open lets one probe through at a time. It is a Ticket, so it is given back on every exit, also when nobody learned anything.
- Panic: when no target would be let through, the one that opens first is forced. A deployment may be bad; no deployment is worse."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    Attempt,
    Call,
    Host,
    Result,
    Skip,
    Target,
    Ticket,
    Unavailable,
    UpstreamError,
    bound_input,
    hookimpl,
)

State = Literal["closed", "open", "half_open"]
Event = Literal["tripped", "cooldown", "time_over", "probe_ok", "probe_failed", "forced_ok"]
Vote = Literal["ok", "failed", "cooldown"]

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
}
"""An event that is not listed for a state leaves it as it is."""

SILENT_KINDS = frozenset({"deadline", "pool_timeout"})
"""Failures that are the caller's or our own: no vote."""
FAILED_STATUSES = frozenset({401, 402, 403, 404, 408})
"""4xx by which the deployment refuses us, not this request."""
BUCKETS = 10
CIRCUITS_MAX = 10_000
LABELS_MAX = 1_000


class BreakerOptions(BaseModel):
    """`[plugins.circuit_breaker]`: when a deployment's circuit opens, and for how long."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    consecutive_failures: int = Field(5, ge=1, description="Opens after this many failures in a row.")
    failure_rate: float = Field(0.5, gt=0, le=1, description="Opens at this share of failures over the window ...")
    min_votes: int = Field(20, ge=1, description="... once it holds this many votes.")
    window_s: float = Field(30.0, gt=0, description="Length of the window; not per model, deployments have one each.")
    open_s: float = Field(5.0, gt=0, description="First time open; doubled each time a probe fails.")
    max_open_s: float = Field(300.0, gt=0, description="Longest time open, also for what a retry-after says.")
    cooldown_s: float = Field(5.0, gt=0, description="Time open after a 429 without retry-after.")


class VoteWindow:
    """Votes of the last `window_s`, in BUCKETS slices."""

    __slots__ = ("_failed", "_ok", "_slices", "_slices_per_s")

    def __init__(self, window_s: float) -> None:
        self._slices_per_s = BUCKETS / window_s
        self._slices = [-1] * BUCKETS
        self._ok = [0] * BUCKETS
        self._failed = [0] * BUCKETS

    def add(self, is_ok: bool, now: float) -> None:
        number = int(now * self._slices_per_s)
        index = number % BUCKETS
        if self._slices[index] != number:
            self._slices[index], self._ok[index], self._failed[index] = number, 0, 0
        votes = self._ok if is_ok else self._failed
        votes[index] += 1

    def count(self, now: float) -> tuple[int, int]:
        """How many votes, and how many of them failures."""
        ended = int(now * self._slices_per_s) - BUCKETS
        live = [index for index, number in enumerate(self._slices) if number > ended]
        failed = sum(self._failed[index] for index in live)
        return failed + sum(self._ok[index] for index in live), failed


class Circuit:
    """One deployment's circuit. No clock, no logger: what happened comes in, the new state is there to read."""

    __slots__ = (
        "_window_s", "changed_at", "failures_in_row", "open_until", "opens", "probe", "reason", "state", "window",
    )  # fmt: skip

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self.state: State = "closed"
        self.changed_at = float("-inf")
        self.failures_in_row = 0
        self.window = VoteWindow(window_s)
        self.open_until = 0.0
        self.opens = 0
        """Times opened since last closed: the exponent of the open time."""
        self.probe: Attempt | None = None
        self.reason = ""

    def is_admitting(self, now: float) -> bool:
        if self.state == "open":
            return now >= self.open_until
        return self.state == "closed" or self.probe is None

    def take_probe(self, attempt: Attempt, now: float) -> bool:
        """Let one attempt through a circuit that is admitting and not closed. Returns whether the state changed."""
        has_changed = self.apply("time_over", now)
        self.probe = attempt
        return has_changed

    def event_of(self, vote: Vote, attempt: Attempt, now: float, options: BreakerOptions) -> Event | None:
        """Count the vote; the event it makes, if any."""
        if vote == "cooldown":
            return "cooldown"
        if self.state != "closed":
            if self.probe is attempt:
                return "probe_ok" if vote == "ok" else "probe_failed"
            return "forced_ok" if vote == "ok" and attempt.target.is_forced else None
        if attempt.started_at < self.changed_at:
            return None
        self.window.add(vote == "ok", now)
        if vote == "ok":
            self.failures_in_row = 0
            return None
        self.failures_in_row += 1
        if self.failures_in_row >= options.consecutive_failures:
            return "tripped"
        votes, failed = self.window.count(now)
        return "tripped" if votes >= options.min_votes and failed >= votes * options.failure_rate else None

    def apply(self, event: Event, now: float, *, wait_s: float = 0.0, reason: str = "") -> bool:
        """Follow the table. Returns whether the state changed."""
        before, after = self.state, TRANSITIONS.get((self.state, event), self.state)
        if after == "open" and event in ("tripped", "probe_failed", "cooldown"):
            self.open_until = max(self.open_until, now + wait_s)
            self.opens += event != "cooldown"
            self.reason = reason
        elif after == "closed" and before != "closed":
            self.opens, self.failures_in_row, self.window = 0, 0, VoteWindow(self._window_s)
        if after != "half_open":
            self.probe = None
        if after != before:
            self.state, self.changed_at = after, now
        return after != before


class Probe:
    """The one attempt that a half-open circuit lets through; held until the attempt ends."""

    __slots__ = ("_attempt", "_circuit")

    def __init__(self, circuit: Circuit, attempt: Attempt) -> None:
        self._circuit = circuit
        self._attempt = attempt

    def settle(self, result: Result) -> None:
        if self._circuit.probe is self._attempt:
            self._circuit.probe = None


class Plugin:
    """Asks the circuits before attempts, tells them afterwards."""

    Options = BreakerOptions
    supports_dry_run = True

    def __init__(self, options: BreakerOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self._clock = host.clock
        self._log = host.log
        self._changes = host.metrics.counter(
            "hookline_circuit_changes_total", "Circuits that changed state.", ("deployment", "to")
        )
        self._labels: set[str] = set()
        self._circuits: dict[str, Circuit] = {}

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        circuits: list[Circuit] = []
        for target in targets:
            circuit = self._circuits.get(target.deployment.id)
            if circuit is None or circuit.state == "closed":
                return targets
            circuits.append(circuit)
        if not circuits:
            return targets
        index = choose_forced(circuits, self._clock.monotonic())
        if index is not None:
            targets[index].is_forced = True
            targets[index].reason = "every circuit is open; this one opens first"
            call.note("circuit_breaker", "forced", f"{targets[index].deployment.id}: {targets[index].reason}")
        return targets

    @hookimpl
    def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Ticket | None:
        circuit = self._circuits.get(target.deployment.id)
        if circuit is None or circuit.state == "closed" or target.is_forced:
            return None
        now = self._clock.monotonic()
        if not circuit.is_admitting(now):
            raise skip(circuit, now)
        if call.is_dry_run:
            return None
        if circuit.take_probe(attempt, now):
            self._report(target.deployment.id, circuit)
        return Probe(circuit, attempt)

    @hookimpl
    def attempt_ended(self, call: Call, attempt: Attempt) -> None:
        vote = vote_of(call, attempt)
        if vote is None:
            return
        deployment = attempt.target.deployment.id
        circuit = self._circuits.get(deployment) or self._add(deployment)
        options: BreakerOptions = self._options_by_model.get(call.model or "", self._options)
        now = attempt.ended_at if attempt.ended_at is not None else self._clock.monotonic()
        event = circuit.event_of(vote, attempt, now, options)
        if event is None:
            return
        reason = attempt.error.message if attempt.error is not None else ""
        wait_s = open_time_s(event, circuit.opens, attempt, options)
        if circuit.apply(event, now, wait_s=wait_s, reason=reason):
            self._report(deployment, circuit)

    def _report(self, deployment: str, circuit: Circuit) -> None:
        if circuit.state == "open":
            open_s = circuit.open_until - circuit.changed_at
            self._log.warning("circuit of %s opened for %.1f s: %s", deployment, open_s, circuit.reason)
        else:
            self._log.info("circuit of %s is %s", deployment, circuit.state)
        if deployment in self._labels or len(self._labels) < LABELS_MAX:
            self._labels.add(deployment)
        else:
            deployment = "other"
        self._changes(deployment, circuit.state).inc()

    def _add(self, deployment: str) -> Circuit:
        """Deployments of a default provider are named by clients, so there is no end of them: the oldest makes room, a closed one if there is one."""
        if len(self._circuits) >= CIRCUITS_MAX:
            closed = (name for name, circuit in self._circuits.items() if circuit.state == "closed")
            del self._circuits[next(closed, next(iter(self._circuits)))]
        circuit = self._circuits[deployment] = Circuit(self._options.window_s)
        return circuit


def vote_of(call: Call, attempt: Attempt) -> Vote | None:
    """What an ended attempt says about its deployment; None = nothing."""
    error = attempt.error
    if attempt.is_loser:
        return None
    if error is None:
        return "ok" if attempt.is_complete else None
    if not isinstance(error, UpstreamError) or error.kind in SILENT_KINDS:
        return None
    status = error.upstream_status
    if status == 429:
        return "cooldown"
    if status is None or status >= 500:
        return "failed"
    if status == 404 and (call.endpoint == "relay" or bound_input(call).open_field is not None):
        return "ok"  # an object that the call named is not there; the deployment is
    return "failed" if status in FAILED_STATUSES else "ok"


def open_time_s(event: Event, opens: int, attempt: Attempt, options: BreakerOptions) -> float:
    """For how long the circuit opens by this event."""
    if event == "cooldown":
        retry_after_s = attempt.error.retry_after_s if attempt.error is not None else None
        return min(options.cooldown_s if retry_after_s is None else max(retry_after_s, 0.0), options.max_open_s)
    # 2.0 ** 64 is far beyond any max_open_s, and float, so a long outage can't overflow.
    return min(options.open_s * 2.0 ** min(opens, 64), options.max_open_s)


def choose_forced(circuits: list[Circuit], now: float) -> int | None:
    """The index of the target to try when none would be let through; None if one would. A rate limit is better than a failure, an early end better than a late one."""
    if any(circuit.is_admitting(now) for circuit in circuits):
        return None
    return min(range(len(circuits)), key=lambda i: (circuits[i].opens, circuits[i].open_until))


def skip(circuit: Circuit, now: float) -> Skip:
    """Why a target is dropped, and when to come back."""
    left_s = max(circuit.open_until - now, 0.0)
    if circuit.state == "half_open":
        reason = "circuit half-open, its probe is under way"
    else:
        reason = f"circuit open for another {left_s:.1f} s: {circuit.reason}"
    return Skip(reason, Unavailable(reason, retry_after_s=left_s))
