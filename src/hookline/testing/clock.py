"""A clock that tests move by hand."""

from __future__ import annotations


class FakeClock:
    """`Clock` of host.py. Starts at 1,000 monotonic and 1,700,000,000 Unix seconds; `advance` moves both."""

    def __init__(self, *, monotonic_s: float = 1_000.0, unix_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s

    def monotonic(self) -> float:
        return self._monotonic_s

    def time(self) -> float:
        return self._unix_s

    def advance(self, seconds: float) -> None:
        self._monotonic_s += seconds
        self._unix_s += seconds
