"""Late usage: what an answer really cost, told after it was charged by a bound.

Lives here: which answers may still be asked for, the second ledger row. Elsewhere: the first charge (charges.py), the ticket (payment.py).
Idea: a response that was answered without usage (`background`, still under way) is read later under its id; the usage in that reply corrects the charge: a second row
with the difference, which may be negative, and the same in the windows that paid.

With a shared store any process may see that reply: what is expected stands there too, and whoever removes it corrects, once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from hookline import Call, LedgerEntry, Price, ReplyStore, Result, Spend, Unavailable, Usage, usage_in

if TYPE_CHECKING:
    from hookline.builtins.budget import Plugin
    from hookline.builtins.budget.payment import Payment

EXPECTED_MAX = 10_000
EXPECTED_S = 86_400.0
"""How long it stands in the shared store."""
KEPT_PATHS = ("/v1/responses/", "/v1/chat/completions/")
NEVER = float("inf")


class Expected(NamedTuple):
    """An answer that was charged by a bound."""

    row: LedgerEntry
    charged_nanousd: int
    price: Price
    spends: Sequence[Spend]

    def to_bytes(self) -> bytes:
        spends = [[None if member == NEVER else member for member in spend] for spend in self.spends]
        return orjson.dumps([list(self.row), self.charged_nanousd, self.price, spends])

    @classmethod
    def from_bytes(cls, kept: bytes) -> Expected:
        row, charged_nanousd, price, spends = orjson.loads(kept)
        windows = [
            Spend(*members)._replace(resets_at=NEVER if members[2] is None else members[2]) for members in spends
        ]
        return cls(LedgerEntry(*row), charged_nanousd, _to_price(price), windows)


class LateUsage:
    """Answers whose usage is not known yet: those of this process, oldest first out, and those that all processes know of."""

    def __init__(self, plugin: Plugin, replies: ReplyStore | None) -> None:
        self._plugin = plugin
        self._expected: OrderedDict[str, Expected] = OrderedDict()
        self._shared = replies if getattr(replies, "is_shared", False) else None

    def expect(self, payment: Payment, result: Result, row: LedgerEntry) -> None:
        """An answer was charged by a bound: remember it by its id, if it has one."""
        reply = result.attempt.reply if result.attempt is not None else None
        told = reply.json() if reply is not None and isinstance(reply.body, bytes) else None
        id = told.get("id") if isinstance(told, dict) else None
        price = payment.deployment.price
        if price is None or not isinstance(id, str) or payment.call.endpoint not in ("responses", "chat"):
            return
        key = _key(payment.call, id)
        self._expected[key] = expected = Expected(row, row.cost_nanousd or 0, price, payment.plan.spends)
        if len(self._expected) > EXPECTED_MAX:
            self._expected.popitem(last=False)
        if self._shared is not None:
            self._shared.put(_shared_key(key), expected.to_bytes(), ttl_s=EXPECTED_S)

    def find(self, call: Call) -> LateTicket | None:
        """What a free call may bring to light: a ticket that looks at its reply."""
        if call.method != "GET" or not call.path.startswith(KEPT_PATHS):
            return None
        key = _key(call, call.path.rpartition("/")[2])
        return LateTicket(self, key) if self._shared is not None or key in self._expected else None

    def learn(self, key: str, result: Result) -> Awaitable[None] | None:
        """The answer was read again: if its usage is there now, book the difference."""
        reply = result.attempt.reply if result.attempt is not None else None
        usage = usage_in(reply.json()) if reply is not None and reply.status == 200 else None
        if usage is None:
            return None
        if self._shared is not None:
            return self._learn_first(self._shared, key, usage)
        expected = self._expected.pop(key, None)
        if expected is not None:
            self._correct(expected, usage)
        return None

    async def _learn_first(self, shared: ReplyStore, key: str, usage: Usage) -> None:
        """Correct, if no other process has. While the store is away nobody does; the answer may be read once more."""
        try:
            expected = self._expected.get(key)
            if expected is None and (kept := await shared.get(_shared_key(key))) is not None:
                expected = Expected.from_bytes(kept)
            if expected is None:
                return
            is_first = await shared.delete([_shared_key(key)]) == 1
        except Unavailable:
            return
        self._expected.pop(key, None)
        if is_first:
            self._correct(expected, usage)

    def _correct(self, expected: Expected, usage: Usage) -> None:
        row, difference = expected.row, expected.price.cost_nanousd(usage) - expected.charged_nanousd
        self._plugin.records.book(
            row._replace(
                id=f"{row.id}.late",
                outcome="ok",
                input_tokens=usage.input_tokens - row.input_tokens,
                output_tokens=usage.output_tokens - row.output_tokens,
                cached_tokens=usage.cached_tokens - row.cached_tokens,
                cost_nanousd=difference,
                is_estimated=False,
                corrects=row.id,
            )
        )
        self._plugin.adjust(expected.spends, difference)


class LateTicket:
    """Reads the reply of the call it was taken for."""

    __slots__ = ("_key", "_late")

    def __init__(self, late: LateUsage, key: str) -> None:
        self._late = late
        self._key = key

    def settle(self, result: Result) -> Awaitable[None] | None:
        return self._late.learn(self._key, result)


def _key(call: Call, id: str) -> str:
    return f"{call.principal.tenant}\n{id}"


def _shared_key(key: str) -> bytes:
    return b"late usage\n" + key.encode()


def _to_price(members: dict[str, Any]) -> Price:
    told = {name: value for name, value in members.items() if name != "version"}
    tiers = tuple((above, _to_price(price)) for above, price in told.pop("tiers"))
    return Price(**{**told, "tools": tuple((name, nano) for name, nano in told["tools"])}, tiers=tiers)
