"""The store protocols: limits, replies, records.

Lives here: what a store must do. Elsewhere: implementations (memory.py, sqlite.py), what the numbers mean (builtins/rate_limit.py, builtins/budget.py).
Idea: a store decides atomically over all scopes of one call in one question, so that a remote store costs one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Take:
    """One limit that a call draws on: `amount` of at most `limit` per `window_s` in `scope`; `window_s = 0`: held in parallel until settled."""

    scope: str
    limit: int
    amount: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Level:
    """Where one limit stands after the decision: what is left, and in how many seconds it is full again."""

    scope: str
    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """A Take that did not fit; nothing was taken. `retry_after_s`: when it would."""

    take: Take
    level: Level
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Spend:
    """One budget window that pays: at most `limit_nanousd` in `scope` until `resets_at` (Unix seconds; inf = never)."""

    scope: str
    limit_nanousd: int
    resets_at: float
    is_hard: bool = True


@dataclass(frozen=True, slots=True)
class SpendRefusal:
    """A Spend into which the amount did not fit; nothing was reserved. `spent_nanousd` includes what is reserved."""

    spend: Spend
    spent_nanousd: int
    amount_nanousd: int


class LimitStore(Protocol):
    """Windows and money in flight."""

    async def take(self, id: str, takes: Sequence[Take]) -> Sequence[Level] | Refusal:
        """Draw on all limits or on none, under `id`."""

    async def give_back(self, id: str, amounts: Sequence[int]) -> None:
        """Settle `id`: the amount of each Take becomes `amounts[i]`; parallel ones end. Unknown or settled ids: nothing happens."""

    async def reserve(
        self, id: str, spends: Sequence[Spend], amount_nanousd: int, *, expires_s: float
    ) -> SpendRefusal | None:
        """Hold `amount_nanousd` in every window or in none. An expired reservation is charged whole."""

    async def settle(self, id: str, amount_nanousd: int) -> None:
        """Turn reservation `id` into spend of `amount_nanousd`, once. Unknown or settled ids: nothing happens."""

    async def spent(self, scopes: Sequence[str]) -> Sequence[int]:
        """Spent plus reserved nano-dollars of each scope's open window."""

    async def aclose(self) -> None: ...


class ReplyStore(Protocol):
    """Cached bytes by key, bounded, with a time to live."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> None: ...

    async def delete(self, *, tag: str) -> int:
        """Remove every entry with this tag; returns how many."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One paid attempt. `id` is unique: writing it twice books it once."""

    id: str
    call_id: str
    at: float
    tenant: str
    key_id: str
    user: str | None
    model: str
    deployment: str
    endpoint: str
    outcome: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nanousd: int | None
    is_estimated: bool
    scopes: tuple[str, ...] = ()
    """Budget windows that paid: how spend is rebuilt at start."""


class RecordStore(Protocol):
    """What must outlive the process."""

    def book(self, entry: LedgerEntry) -> None:
        """Queue a ledger row; it is group-committed off the loop. The queue is bounded: beyond it the store says so in `readiness`."""

    async def flush(self) -> None:
        """Wait until everything booked so far is durable."""

    async def spent_by_scope(self) -> dict[str, int]:
        """Nano-dollars per budget window, from the ledger: read at start."""

    async def aclose(self) -> None: ...
