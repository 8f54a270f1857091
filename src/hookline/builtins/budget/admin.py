"""What operators ask: where each window stands, and whether a call could proceed.

Lives here: `GET /admin/budgets`, `POST /admin/budgets/check`, both behind the admin key. Elsewhere: the answers themselves (the package's dry run, the limits store).
Idea: a check is a dry run of the very call through the chain, so it can't say anything else than the call would meet; nothing is taken and nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import Field

from hookline import (
    FINDINGS,
    AddRoute,
    ApiError,
    Call,
    Deployment,
    Host,
    ListParameters,
    Parameters,
    Rejected,
    Reply,
    RouteRequest,
    Slot,
    Spend,
    Usage,
    format_usd,
    list_object,
)
from hookline.builtins.asked_call import AskedCall, get_principal, make_call, run_asked
from hookline.builtins.budget.rules import TYPICAL_OUTPUT_TOKENS, Bound
from hookline.builtins.budget.windows import (
    NEVER,
    Opened,
    Plan,
    Window,
    budgets_of,
    payer_of,
    shared_budgets,
    utc,
    windows_of,
)

if TYPE_CHECKING:
    from hookline.builtins.budget import Plugin

BYTES_PER_TOKEN = 4
"""What an estimate expects of English."""


class WindowFilters(ListParameters):
    """The query of `GET /admin/budgets`."""

    limit: int = Field(100, ge=1, le=1_000, description="Of one page, 1,000 at most.")
    key: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Only those that pay for the key of this name or id."
    )


class Check:
    """What a dry run found for one deployment; `bound` is None where there is none."""

    def __init__(self, deployment: Deployment, plan: Plan) -> None:
        self.deployment = deployment
        self.plan = plan
        self.bound: Bound | None = None
        self.held_nanousd: list[int] = []
        """Spent plus reserved, of each of the plan's windows."""

    @property
    def fits(self) -> bool:
        return self.bound is not None and all(self.has_room(w.spend, held) for w, held in self._windows)

    def has_room(self, spend: Spend, held_nanousd: int) -> bool:
        """Whether the bound fits into a window that holds so much."""
        amount = self.bound.amount_nanousd if self.bound is not None else 0
        return not spend.is_hard or held_nanousd + amount <= spend.limit_nanousd

    @property
    def _windows(self) -> list[tuple[Window, int]]:
        return list(zip(self.plan.windows, self.held_nanousd, strict=False))

    def tell(self, call: Call) -> None:
        """For an explanation: where the windows stand, and what this deployment would cost at most."""
        findings = call.slots.setdefault(FINDINGS, {})
        findings["budgets"] = [_describe(window, held) for window, held in self._windows]
        if self.bound is not None and self.deployment.price is not None:
            findings.setdefault("worst_case_usd", {})[self.deployment.id] = _usd(self.bound.amount_nanousd)

    def to_object(self) -> dict[str, Any]:
        """For the answer."""
        price, bound = self.deployment.price, self.bound
        expected = None
        if bound is not None and price is not None:
            usage = Usage(bound.input_tokens // BYTES_PER_TOKEN, min(bound.output_tokens, TYPICAL_OUTPUT_TOKENS))
            expected = min(price.cost_nanousd(usage), bound.amount_nanousd)
        return {
            "deployment": self.deployment.id,
            "fits": self.fits,
            "bound_usd": _usd(bound.amount_nanousd) if bound is not None and price is not None else None,
            "expected_usd": _usd(expected) if expected is not None else None,
            "windows": [{**_describe(w, held), "fits": self.has_room(w.spend, held)} for w, held in self._windows],
        }


CHECKS: Slot[list[Check]] = Slot("budget checks")


class BudgetRoutes:
    """The two routes."""

    def __init__(self, plugin: Plugin, host: Host) -> None:
        self._plugin = plugin
        self._host = host

    def register(self, add: AddRoute) -> None:
        """Both need the admin key."""
        add("GET", "/admin/budgets", self.list_windows, access="admin")
        add("POST", "/admin/budgets/check", self.check, access="admin")

    async def list_windows(self, request: RouteRequest) -> Reply:
        """Every window of `[tenants]`, `[global]` and of the keys and users that have called; `?key=name` asks for those that pay for one key."""
        now = self._host.clock.time()
        asked = request.parameters(WindowFilters)
        if asked.key is not None:
            found = windows_of(budgets_of(await get_principal(asked.key, self._host), self._plugin.settings), now)
        else:
            found = windows_of(shared_budgets(self._plugin.settings), now)
            for principal in self._plugin.known_principals():
                found += windows_of(budgets_of(principal, self._plugin.settings), now)
        by_name = {one.window.spend.window: one for one in found}
        names = sorted(name for name in by_name if name > (asked.after or ""))[: asked.limit + 1]
        stand = await self._stand([by_name[name] for name in names], now)
        return Reply.from_json(list_object(stand, asked.limit, names))

    async def check(self, request: RouteRequest) -> Reply:
        """Whether a call could proceed now."""
        request.parameters(Parameters)
        asked = request.json_object(AskedCall)
        try:
            call = make_call(asked, request, self._host)
        except ApiError as error:
            return Reply.from_json({"can_proceed": False, "deployments": [], **error.to_object()})
        reply = await run_asked(asked, call, self._host)
        checks = call.slots.get(CHECKS, [])
        best = next((check for check in checks if check.fits), checks[0] if checks else None)
        is_served = reply.status < 400
        answer: dict[str, Any] = {
            "can_proceed": is_served,
            "from_cache": reply.source == "cache",
            **({"bound_usd": 0, "expected_usd": 0, "windows": []} if best is None else best.to_object()),
            "deployments": [check.to_object() for check in checks],
            "error": None if is_served else (reply.json() or {}).get("error"),
        }
        return Reply.from_json(answer)

    async def _stand(self, opened: Sequence[Opened], now: float) -> list[dict[str, Any]]:
        try:
            await self._plugin.restore(opened, now)
        except Rejected as rejected:
            raise rejected.error from rejected
        held = await self._plugin.limits.held([one.window.spend.window for one in opened]) if opened else []
        return [_describe(one.window, nanousd) for one, nanousd in zip(opened, held, strict=True)]


def _describe(window: Window, held_nanousd: int) -> dict[str, Any]:
    spend = window.spend
    return {
        "budget": window.name,
        "scope": payer_of(spend.window),
        "window": spend.window,
        "mode": "hard" if spend.is_hard else "soft",
        "limit_usd": _usd(spend.limit_nanousd),
        "used_usd": _usd(held_nanousd),
        "left_usd": _usd(max(spend.limit_nanousd - held_nanousd, 0)),
        "resets_at": None if spend.resets_at == NEVER else utc(spend.resets_at),
        "rolling_hours": spend.window_s / 3600 or None,
    }


def _usd(nanousd: int) -> orjson.Fragment:
    return orjson.Fragment(format_usd(nanousd).encode())
