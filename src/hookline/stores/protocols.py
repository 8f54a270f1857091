"""The store protocols: limits, replies, records.

Lives here: what a store must do. Elsewhere: implementations (memory.py, sqlite.py, postgres.py, redis_*.py), the suites that every implementation passes (testing/store_contracts.py),
what the numbers mean (builtins/rate_limit, builtins/budget).
Idea: a store decides atomically over all scopes of one call in one question, so that a remote store costs one round trip; what is the same for every call of
a principal (`Take`, `Spend`) is made once and passed by reference, what differs (`amounts`) is plain integers."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from hookline.stores.keys import KeyStore
from hookline.stores.owners import OwnerStore
from hookline.stores.plugin_tables import TableStore
from hookline.stores.reports import LedgerPage, LedgerQuery, SpendQuery, SpendSum

if TYPE_CHECKING:
    from pydantic import BaseModel

M = TypeVar("M", bound="BaseModel")


class Clock(Protocol):
    """Time, injected: tests move it by hand."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...


class Take(NamedTuple):
    """One ceiling that calls draw on: at most `limit` per `window_s` in `scope`; `window_s = 0`: held in parallel until given back."""

    scope: str
    limit: int
    window_s: float


class Level(NamedTuple):
    """Where one ceiling stands after the decision: what is left, and in how many seconds it is full again (0 for parallel ones)."""

    remaining: int
    reset_s: float


class Refusal(NamedTuple):
    """Nothing was taken. `take` is the one that needs longest, `retry_after_s` when it would fit (inf: never); `levels` are those of all takes."""

    take: Take
    retry_after_s: float
    levels: Sequence[Level]


class Spend(NamedTuple):
    """One budget window that pays: at most `limit_nanousd`.

    `window` names its scope and when it is ("key:ci/day:2026-11-24"). A fixed one ends at `resets_at` (Unix seconds; inf = never), and the next has another name, so it starts at 0.
    A rolling one (`window_s > 0`) counts what was spent in the last `window_s`. A soft one never refuses."""

    window: str
    limit_nanousd: int
    resets_at: float
    is_hard: bool = True
    window_s: float = 0.0
    alert_nanousd: int | None = None
    """`settle` reports the window once, when its spend has reached this."""


class SpendRefusal(NamedTuple):
    """A Spend into which the amount did not fit; nothing was reserved. `held_nanousd` includes what is reserved."""

    spend: Spend
    spent_nanousd: int
    held_nanousd: int
    amount_nanousd: int


class SpendAlert(NamedTuple):
    """A window whose spend has reached its alert line."""

    spend: Spend
    spent_nanousd: int


class Notice(NamedTuple):
    """What one process tells the others: of two with one name the one with the higher version stays. It leaves after `ttl_s`, unless it is told again."""

    name: str
    version: int
    """Below 2^53; microseconds since 1970 fit."""
    value: bytes
    ttl_s: float = 0.0
    """Not told in answers."""


class LimitStore(Protocol):
    """Windows and money in flight. Every method raises `Unavailable` when the store can't decide.

    What settles answers at once where it can, and an awaitable only where it must wait: an end that is awaited runs in a task of its own, which costs more
    than all of a call's other bookkeeping."""

    is_shared: bool
    """Other processes see it."""

    async def take(
        self, id: str, takes: Sequence[Take], amounts: Sequence[int], *, expires_s: float
    ) -> Sequence[Level] | Refusal:
        """Draw `amounts[i]` on `takes[i]`, on all or on none, under `id`, which is used once.

        An amount counts for `window_s`, and at most 1/50 of it longer, never shorter. After `expires_s` without `give_back` parallel holds end and
        amounts stay as they were taken."""

    def give_back(self, id: str, amounts: Sequence[int]) -> Awaitable[None] | None:
        """Settle `id`: the amount of each Take becomes `amounts[i]`; parallel ones end. Unknown or settled ids: nothing happens."""

    async def reserve(
        self, id: str, spends: Sequence[Spend], amount_nanousd: int, *, expires_s: float
    ) -> SpendRefusal | None:
        """Hold `amount_nanousd` in every window or in none, under `id`, which is used once. After `expires_s` the whole amount is spent."""

    def settle(self, id: str, amount_nanousd: int) -> Awaitable[Sequence[SpendAlert]] | Sequence[SpendAlert]:
        """Turn reservation `id` into spend of `amount_nanousd`, once, in the windows that hold it. Unknown, settled or expired ids: nothing happens."""

    async def restore(self, spend: Spend, charges: Sequence[tuple[float, int]]) -> None:
        """Tell a store that does not know this window what was spent in it: (Unix seconds, nano-dollars). A window it knows stays as it is."""

    async def knows(self, spend: Spend) -> bool:
        """Whether this window has been restored or spent from, so that `restore` would leave it as it is."""

    async def held(self, windows: Sequence[str]) -> Sequence[int]:
        """Spent plus reserved nano-dollars of each window; 0 for unknown ones."""

    async def exchange(self, board: str, notices: Sequence[Notice]) -> Sequence[Notice]:
        """Put notices on a board; all that are there now, other processes' included. For some hundred notices: every answer has them all."""

    async def aclose(self) -> None: ...


class ReplyStore(Protocol):
    """Cached bytes by key, bounded, with a time to live. One that other processes see has `is_shared = True`."""

    @property
    def is_shared(self) -> bool:
        """Other processes see it."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The same for several keys, in one question."""

    def put(self, key: bytes, value: bytes, *, ttl_s: float, tags: Sequence[str] = ()) -> Awaitable[None] | None:
        """Keep it, at once where that is possible: a call's end that is awaited needs a task of its own."""

    def put_many(
        self, entries: Mapping[bytes, bytes], *, ttl_s: float, tags: Sequence[str] = ()
    ) -> Awaitable[None] | None:
        """The same for several entries."""

    async def delete_tagged(self, tag: str) -> int:
        """Remove every entry with this tag; returns how many."""

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Remove these entries; returns how many there were."""

    async def aclose(self) -> None: ...


class FlightStore(Protocol):
    """Who makes a reply that others wait for, and replies that are kept for whoever comes later. Every method raises `Unavailable` when the store can't say.

    A key holds a claim (it is being made) or a reply, never both. A claim is bytes that no other claim equals; it ends by itself when its maker no longer
    renews it. Whoever is refused a claim, or peeks at one, is known to wait for `waits_s`."""

    is_shared: bool
    """Other processes see it. If not, nobody needs to claim."""

    async def claim(self, key: bytes, claim: bytes, *, ttl_s: float) -> bytes | None:
        """Claim `key` for `ttl_s`. None: it is yours. Else what it holds: a claim as it was made, or b"=" and the reply."""

    async def renew(self, key: bytes, claim: bytes, *, ttl_s: float) -> bool | None:
        """Hold the claim for `ttl_s` from now. True: somebody waits; False: nobody; None: it is not yours any more."""

    async def append(self, key: bytes, claim: bytes, piece: bytes) -> bool:
        """Show those who wait more of the reply. False: it is not yours any more."""

    async def peek(self, key: bytes, offset: int) -> tuple[bytes | None, bytes]:
        """What the key holds, as `claim` tells it, and what was appended from byte `offset` on."""

    async def read(self, key: bytes) -> bytes | None:
        """The reply that is kept, or None."""

    def keep(self, key: bytes, claim: bytes | None, reply: bytes, *, ttl_s: float) -> Awaitable[Any] | None:
        """Put the reply in place of the claim, for `ttl_s`. Nothing happens if another one holds the key; `claim` None: whatever it holds is replaced."""

    async def release(self, key: bytes, claim: bytes, *, unless_wanted: bool) -> bool:
        """Give the claim up. True: `unless_wanted`, and somebody waits, so it is still yours."""

    async def aclose(self) -> None: ...


class LedgerEntry(NamedTuple):
    """One paid attempt. `id` is unique: booking it twice counts once. A correction is a second entry, which may be negative."""

    id: str
    call_id: str
    at: float
    """Unix seconds."""
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
    """None: no price is known."""
    is_estimated: bool
    scopes: Sequence[str] = ()
    """Who paid ("key:ci", "tenant:acme", ...): spend is summed by these, and by "model:<model>"."""
    price_version: str | None = None
    """Which price made the cost; None: not told."""
    corrects: str | None = None
    """The id of the entry that this one corrects: its cost and tokens are what is to be added to that one's, and it counts as no call."""
    tags: Sequence[str] = ()


class RecordStore(Protocol):
    """What must outlive the process."""

    @property
    def keys(self) -> KeyStore:
        """Virtual keys."""

    @property
    def owners(self) -> OwnerStore:
        """Whose the objects are that live at providers."""

    @property
    def readiness(self) -> str | None:
        """Why nothing more can be kept right now, in a sentence; None when all is well."""

    async def ping(self) -> None:
        """See whether it answers, asking at most once a second. Raises `Unavailable`."""

    def intend(self, entry: LedgerEntry) -> None:
        """Say what is to be booked if neither `book` nor `withdraw` comes for `entry.id`, because the process died: an attempt may cost `entry.cost_nanousd`.

        When this returns, `kill -9` does not undo it. Raises `Unavailable` where there is no room: then the attempt must not be made on a budget."""

    def withdraw(self, id: str) -> None:
        """The attempt `id` cost nothing, and no row comes. Unknown ids: nothing happens."""

    def book(self, entry: LedgerEntry) -> None:
        """Keep a ledger row, which closes its intent; `kill -9` does not undo it. Rows are committed in groups, off the loop.

        What may wait is bounded: a row beyond it is lost, counted, and said in `readiness`."""

    async def flush(self) -> None:
        """Wait until everything booked so far is committed. Raises `Unavailable` if it can't be."""

    async def spent_in(self, scope: str, *, since: float = 0.0, until: float = float("inf")) -> int:
        """Nano-dollars of one scope's entries ("key:ci", "model:gpt-4o") with `since <= at < until`, exact where both are multiples of 15 minutes.

        Between two such moments the whole quarter of an hour that holds `since` counts, and the whole one that holds `until` does not. The cost of asking does
        not grow with the ledger."""

    async def charges_in(self, scope: str, *, since: float = 0.0) -> Sequence[tuple[float, int]]:
        """The same, by quarters of an hour: (Unix seconds at their end, nano-dollars), oldest first. What a window is restored from."""

    async def report(self, query: SpendQuery) -> Sequence[SpendSum]:
        """Sums of the ledger by tenant, key, user, model, deployment, tag, hour, day. Time comes first in their order, then the most expensive.

        One line more than `query.limit` says that there are more. Raises ValueError for a member that there is not."""

    async def read_ledger(self, query: LedgerQuery) -> LedgerPage:
        """The rows themselves, the newest first. Raises ValueError for a member that there is not."""

    def table(self, model: type[M]) -> TableStore[M]:
        """A plugin's own table (plugin_tables.py). Raises StartupError for one that can't be, or that `hookline migrate` has to make first."""

    def adopt(self) -> None:
        """A process next to this one has died: look now, and not in a few seconds, for what it left."""

    async def recovered(self) -> Sequence[tuple[str, int]]:
        """Wait for attempts of processes that died, whose rows this store has booked: (id, nano-dollars), each told once.

        Their reservations are settled to these amounts by whoever reserved under these ids (`LimitStore.settle`)."""

    async def aclose(self) -> None:
        """Commit what waits, then close."""
