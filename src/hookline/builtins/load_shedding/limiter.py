"""The adaptive limit: how many calls to one model are good for it at the same time.

Lives here: the limit, and what moves it. Elsewhere: who is turned away at which part of it (the package), what a call is (hookline).
Idea: additive increase, multiplicative decrease (as in TCP; Chiu and Jain, 1989) on one question: how much slower are calls than when the model had nothing else to do?
No clock, no logger: time and latencies come in as numbers.

Theory. A server with N places makes everybody wait once more than N calls are there: with L calls in flight, latency is about L / N times that of an idle server (Little's law), while
the work done stays the same. So the *ratio* of latency to idle latency says how far the limit lies above N. It is held between 1 and `tolerance`: never below 1, where places would stand empty.
A stream holds its place long after its first byte, which is all its latency tells: there, twice the latency may be one call too many of a hundred. What a call waited beyond the latency that
is good, as a share of the whole time it took, is the share of calls that are too many (Little again: who waits is in flight, too). For a plain reply, whose first byte is its last, the two say the same.

Rules
- Idle latency is that of *quiet* calls, which began with at most a quarter of the limit in flight: a mean per kind of call, for an embedding is no chat.
- The limit is judged once per window of calls, and only by calls that began after it was last changed: the others tell of the limit before.
- It grows only if calls found their share of it nearly reached, or were refused, for otherwise nobody needs more: by half at first, where those that were let in show it, by 5 %
  once calls have become slower.
- Calls that are slower although the limit has halved are slower for another reason (longer answers, another model behind the name): then what is seen becomes the idle latency.
- An upstream that says it is overloaded, or does not answer in time, counts like a ratio above the tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

WINDOW_MIN, WINDOW_MAX = 40, 200
"""Calls per judgement: as many as are in flight, so about one round trip, within these."""
CUT, CUT_MAX = 0.8, 0.5
"""A cut aims at this share of the tolerance; as much stays of the limit of an upstream that says it is overloaded. No cut leaves less than the second."""
FIRST_GROWTH, GROWTH = 0.5, 0.05
HARDLY_SLOWER = 1.2
NEARLY = 0.9
GROWS_BY = 0.5
"""So many calls must have found the limit nearly reached, or been refused, for each of a window."""
HALVED = 0.55
"""About three cuts. Latency should then have fallen by as much."""
UNHELPED = 0.85
"""Of the ratio before the cuts: above it, cutting has not helped."""
OVERLOADS_MAX = 0.1
"""Share of calls that may find the upstream overloaded."""
QUIET = 0.25
QUIET_CALLS_MAX = 100
"""The idle latency is the mean over about so many quiet calls."""
KINDS_MAX = 256
SHORTEST_S = 1e-6
"""Clocks tick; nothing takes no time."""

Kind = tuple[str | None, str, bool]
"""Model, endpoint, whether it streams."""


@dataclass(slots=True)
class Idle:
    """The idle latency of one kind of call, in seconds."""

    latency_s: float
    calls: int = 1

    def add(self, latency_s: float) -> None:
        self.calls = min(self.calls + 1, QUIET_CALLS_MAX)
        self.latency_s += (latency_s - self.latency_s) / self.calls


class Entry(NamedTuple):
    """How a call found the model when it began."""

    began_at: float
    was_quiet: bool
    was_full: bool


class Limiter:
    """The limit of one model. `in_flight` is counted by its user."""

    __slots__ = (
        "_answers", "_full", "_has_cut", "_idle", "_idle_calls", "_max", "_min", "_overloads", "_ratio_before", "_ratios", "_refused", "_seen",
        "_squares", "_tolerance", "_uncut", "_wholes", "changed_at", "in_flight", "limit",
    )  # fmt: skip

    def __init__(self, initial: float) -> None:
        """`tune` it before the first call."""
        self.limit = initial
        self.in_flight = 0
        self.changed_at = float("-inf")
        self._idle: dict[Kind, Idle] = {}
        self._has_cut = False
        self._seen = self._full = self._refused = self._overloads = self._answers = 0
        self._idle_calls = QUIET_CALLS_MAX
        self._ratios = self._squares = self._wholes = 0.0
        self._uncut = self.limit
        self._ratio_before = 0.0

    def tune(self, *, min_limit: float, max_limit: float, tolerance: float) -> None:
        """What holds from now on; what has been learned stays, as far as it may."""
        self._min, self._max, self._tolerance = min_limit, max_limit, tolerance
        self._set(self.limit)

    def fits(self, share: float) -> bool:
        """Whether one more call that may use `share` of the limit fits; at least one always does."""
        return self.in_flight < max(int(self.limit * share), 1)

    def refused(self) -> None:
        """One call did not fit."""
        self._refused += 1

    def enter(self, share: float, now: float) -> Entry:
        """One more in flight; whoever lets it in counts it out, too."""
        entry = Entry(now, self.in_flight <= self.limit * QUIET, self.in_flight + 1 >= self.limit * share * NEARLY)
        self.in_flight += 1
        return entry

    def answered(self, kind: Kind, entry: Entry, *, latency_s: float, took_s: float, now: float) -> bool:
        """A call was answered: its first byte came after `latency_s`, its last after `took_s`. Returns whether the limit has changed."""
        latency_s = max(latency_s, SHORTEST_S)
        idle = self._idle.get(kind)
        if idle is None:
            if len(self._idle) >= KINDS_MAX:
                del self._idle[next(iter(self._idle))]
            # The first of its kind: right if it was quiet, and corrected by those that are.
            self._idle[kind] = Idle(latency_s)
            return False
        if entry.was_quiet:
            idle.add(latency_s)
        if entry.began_at < self.changed_at:
            return False
        self._seen += 1
        self._full += entry.was_full
        ratio = latency_s / idle.latency_s
        self._answers += 1
        self._idle_calls = min(self._idle_calls, idle.calls)
        self._ratios += ratio
        self._squares += ratio * ratio
        self._wholes += max(took_s, latency_s) / idle.latency_s
        return self._judge(now)

    def overloaded(self, entry: Entry, *, now: float) -> bool:
        """A call found the upstream overloaded. Returns whether the limit has changed."""
        if entry.began_at < self.changed_at:
            return False
        self._seen += 1
        self._overloads += 1
        return self._judge(now)

    def _judge(self, now: float) -> bool:
        if self._seen < min(max(self.limit, WINDOW_MIN), WINDOW_MAX):
            return False
        ratio, doubt = self._mean_ratio()
        whole = self._wholes / self._answers if self._answers else ratio
        is_overloaded = self._overloads > self._seen * OVERLOADS_MAX
        is_full = self._full >= self._seen * GROWS_BY
        is_needed, before = self._full + self._refused >= self._seen * GROWS_BY, self.limit
        self._start_window()
        if not is_overloaded and ratio <= self._tolerance:
            self._ratio_before = 0.0
            if is_needed:
                is_first = is_full and not self._has_cut and ratio <= HARDLY_SLOWER
                self._set(self.limit + max(1.0, self.limit * (FIRST_GROWTH if is_first else GROWTH)))
        elif not is_overloaded and ratio - doubt <= self._tolerance:
            pass  # too few calls, or too different ones, to say
        elif not is_overloaded and self._is_unhelped(ratio):
            for idle in self._idle.values():
                idle.latency_s *= ratio
            self._ratio_before = 0.0
            self._set(self._uncut)
        else:
            if not self._ratio_before:
                self._ratio_before, self._uncut = ratio, self.limit
            self._has_cut = True
            stays = self._share_that_stays(ratio, whole)
            self._set(self.limit * (min(stays, CUT) if is_overloaded else stays))
        if self.limit == before:
            return False
        self.changed_at = now
        return True

    def _mean_ratio(self) -> tuple[float, float]:
        """The mean of the window's ratios, and its standard error: that of the window and that of the idle latency."""
        if not self._answers:
            return self._tolerance, 0.0
        mean = self._ratios / self._answers
        variance = max(self._squares / self._answers - mean * mean, 0.0)
        return mean, math.sqrt(variance * (1 / self._answers + 1 / self._idle_calls))

    def _share_that_stays(self, ratio: float, whole: float) -> float:
        """Of a limit whose calls wait `ratio` times as long as with an idle model, and take `whole` times as long as that till their end."""
        too_long = ratio - CUT * self._tolerance
        return max(1.0 - too_long / whole, CUT_MAX)

    def _is_unhelped(self, ratio: float) -> bool:
        return bool(self._ratio_before) and self.limit <= self._uncut * HALVED and ratio > self._ratio_before * UNHELPED

    def _set(self, limit: float) -> None:
        self.limit = min(max(limit, self._min), self._max)

    def _start_window(self) -> None:
        self._seen = self._full = self._refused = self._overloads = 0
        self._answers, self._idle_calls = 0, QUIET_CALLS_MAX
        self._ratios = self._squares = self._wholes = 0.0
