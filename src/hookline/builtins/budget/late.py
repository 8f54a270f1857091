"""Late usage: what an answer really cost, told after it was charged by a bound.

Lives here: which answers may still be asked for, the second ledger row. Elsewhere: the first charge (charges.py), the ticket (payment.py).
Idea: a response that was answered without usage (`background`, still under way) is read later under its id; the usage in that reply corrects the charge: a second row
with the difference, which may be negative, and the same in the windows that paid."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from hookline import Call, Result, usage_in

if TYPE_CHECKING:
    from hookline.builtins.budget import Plugin
    from hookline.builtins.budget.payment import Payment

EXPECTED_MAX = 10_000
KEPT_PATHS = ("/v1/responses/", "/v1/chat/completions/")


class Expected(NamedTuple):
    payment: Payment
    charged_nanousd: int


class LateUsage:
    """Answers of this process whose usage is not known yet, oldest first out."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._expected: OrderedDict[str, Expected] = OrderedDict()

    def expect(self, payment: Payment, result: Result, charged_nanousd: int | None) -> None:
        """An answer was charged by a bound: remember it by its id, if it has one."""
        reply = result.attempt.reply if result.attempt is not None else None
        told = reply.json() if reply is not None and isinstance(reply.body, bytes) else None
        id = told.get("id") if isinstance(told, dict) else None
        if (
            payment.deployment.price is None
            or not isinstance(id, str)
            or payment.call.endpoint not in ("responses", "chat")
        ):
            return
        self._expected[_key(payment.call, id)] = Expected(payment, charged_nanousd or 0)
        if len(self._expected) > EXPECTED_MAX:
            self._expected.popitem(last=False)

    def find(self, call: Call) -> LateTicket | None:
        """What a free call may bring to light: a ticket that looks at its reply."""
        if not self._expected or call.method != "GET" or not call.path.startswith(KEPT_PATHS):
            return None
        key = _key(call, call.path.rpartition("/")[2])
        return LateTicket(self, key) if key in self._expected else None

    def learn(self, key: str, result: Result) -> None:
        """The answer was read again: if its usage is there now, book the difference."""
        reply = result.attempt.reply if result.attempt is not None else None
        usage = usage_in(reply.json()) if reply is not None and reply.status == 200 else None
        if usage is None:
            return
        expected = self._expected.pop(key, None)
        if expected is None:
            return
        payment = expected.payment
        assert payment.deployment.price is not None
        difference = payment.deployment.price.cost_nanousd(usage) - expected.charged_nanousd
        row = payment.row("ok", usage, difference, False, name=f"{payment.name}.late")
        self._plugin.records.book(row)
        self._plugin.adjust(payment.plan.spends, difference)


class LateTicket:
    """Reads the reply of the call it was taken for."""

    __slots__ = ("_key", "_late")

    def __init__(self, late: LateUsage, key: str) -> None:
        self._late = late
        self._key = key

    def settle(self, result: Result) -> None:
        self._late.learn(self._key, result)


def _key(call: Call, id: str) -> str:
    return f"{call.principal.tenant}\n{id}"
