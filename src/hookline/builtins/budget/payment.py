"""Payment: one attempt's reserved money, from before it is sent until it is booked.

Lives here: the ticket, its ledger row, corrections of windows that came while it was under way. Elsewhere: what the attempt cost (charges.py), who pays
(windows.py), reserving (the package).
Idea: settled once, with whatever is known then; a budget that pays nobody is only booked."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from hookline import (
    Call,
    Deployment,
    LedgerEntry,
    LimitStore,
    Result,
    Spend,
    SpendAlert,
    Usage,
    bound_input,
)
from hookline.builtins.budget.charges import Charge, charge_of
from hookline.builtins.budget.rules import Bound, bound_of
from hookline.builtins.budget.windows import Plan

if TYPE_CHECKING:
    from hookline.builtins.budget import Plugin

NO_USAGE = Usage()
_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor."""
ADJUST_EXPIRES_S = 60.0


class Payment:
    """A ticket. `bound` is None where no budget pays."""

    __slots__ = ("_plugin", "at", "bound", "call", "deployment", "name", "plan")

    def __init__(
        self, plugin: Plugin, call: Call, plan: Plan, deployment: Deployment, name: str, bound: Bound | None, at: float
    ) -> None:
        self._plugin = plugin
        self.call = call
        self.plan = plan
        self.deployment = deployment
        self.name = name
        self.bound = bound
        self.at = at
        """When it was admitted (Unix seconds): the windows it pays in are those of that moment, and so is its row."""

    def settle(self, result: Result) -> Awaitable[None] | None:
        plugin = self._plugin
        outcome, _, attempt, _, usage, cost, is_estimated, *_ = result
        if self.deployment.price is None or usage is None or is_estimated or usage.tool_calls:
            cost, is_estimated = self._charge(result)
        if attempt is not None:
            attempt.charged_nanousd, attempt.is_charge_estimated = cost, is_estimated
        if cost != 0 or outcome == "ok":
            row = self.row(outcome, usage or NO_USAGE, cost, is_estimated)
            if self.plan.edition == plugin.open.edition or not (late := plugin.open.missing(self.plan, self.at)):
                plugin.records.book(row)
            else:
                plugin.book_and_adjust(row, late)
            if is_estimated and outcome == "ok":
                plugin.late.expect(self, result, row)
        else:
            plugin.records.withdraw(self.name)
        if self.bound is None:
            return None
        alerts = plugin.limits.settle(self.name, cost or 0)
        if not alerts:
            return None
        if isinstance(alerts, Awaitable):
            return self._tell_later(alerts)
        plugin.alerts.tell(alerts, self.plan)
        return None

    def row(self, outcome: str, usage: Usage, cost: int | None, is_estimated: bool) -> LedgerEntry:
        """The ledger row."""
        call, deployment = self.call, self.deployment
        principal, price, tags = call.principal, deployment.price, call.tags
        inputs, outputs, cached = usage[:3]
        values = (
            self.name,
            call.id,
            self.at,
            principal.tenant,
            principal.key_id,
            principal.user,
            call.model or "",
            deployment.id,
            call.endpoint,
            outcome,
            inputs,
            outputs,
            cached,
            cost,
            is_estimated,
            self.plan.payers,
            None if price is None else price.version,
            None,
            (*principal.tags, *tags) if tags else principal.tags,
        )
        return _new(LedgerEntry, values)

    def _charge(self, result: Result) -> Charge:
        bound = self.bound
        if bound is None and self.deployment.price is not None:  # nothing was reserved: what could have been?
            measured = bound_input(self.call)
            found = bound_of(self.call, self.deployment, measured, 0, is_capped=False)
            is_known = measured.open_field is None or self.deployment.context_tokens is not None
            bound = found if is_known and (found.is_firm or self.deployment.context_tokens is not None) else None
        return charge_of(self.call, result, self.deployment.price, bound)

    async def _tell_later(self, settling: Awaitable[Sequence[SpendAlert]]) -> None:
        self._plugin.alerts.tell(await settling, self.plan)


async def add_to_windows(limits: LimitStore, name: str, spends: Sequence[Spend], nanousd: int) -> Sequence[SpendAlert]:
    """Count `nanousd` in windows without asking whether it fits; negative takes back. Rolling windows take nothing back: what they counted leaves them with its
    time, and a credit that outlives its charge would be money nobody has. Raises Unavailable."""
    kept = [spend._replace(is_hard=False) for spend in spends if nanousd > 0 or not spend.window_s]
    if not kept or not nanousd:
        return ()
    await limits.reserve(name, kept, 0, expires_s=ADJUST_EXPIRES_S)
    alerts = limits.settle(name, nanousd)
    return await alerts if isinstance(alerts, Awaitable) else alerts
