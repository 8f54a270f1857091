"""Findings: what probes have found, told to the other processes and to operators.

Lives here: the finding, the board on which processes tell it, `GET /admin/health_probes`. Elsewhere: asking (the package), what follows from it for calls (circuit_breaker).
Idea: of two findings the later one counts, whoever made it: so every process knows what any of them has found, though only one asks at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

import orjson
from pydantic import Field

from hookline import AddRoute, Host, ListParameters, Notice, Reply, RouteRequest, Unavailable, list_object

Verdict = Literal["ok", "failed", "unclear", "not_sent"]
State = Literal["ok", "failing", "unclear", "not_sent", "unknown"]

MEMORY = 3
"""Pauses for which a finding is told to others."""
ERROR_CHARS_MAX = 300


class Finding(NamedTuple):
    """What one probe has found. `failures_in_row` counts probes, those that were unclear left out."""

    verdict: Verdict
    at: float
    """Unix time."""
    failures_in_row: int
    error: str | None = None

    @property
    def state(self) -> State:
        """What is unclear ends no outage."""
        if self.failures_in_row or self.verdict == "failed":
            return "failing"
        return self.verdict if self.at else "unknown"

    def followed_by(self, verdict: Verdict, at: float, error: str | None) -> Finding:
        """The finding after this one: later than it, also where another process's clock is ahead."""
        at = max(at, self.at + 1e-6)
        row = {"failed": self.failures_in_row + 1, "ok": 0}.get(verdict, self.failures_in_row)
        return Finding(verdict, at, row, error[:ERROR_CHARS_MAX] if error else None)


NOTHING = Finding("not_sent", 0.0, 0)
"""Before the first."""


class Asked(Protocol):
    """What is told of a deployment."""

    id: str
    model: str
    finding: Finding

    @property
    def ask(self) -> str: ...
    @property
    def interval_s(self) -> float: ...


class Board:
    """What all who share the limits store have found. A store of somebody else may have no boards, and one that is away tells nothing: then each process knows its own."""

    def __init__(self, host: Host) -> None:
        self._limits = host.limits if hasattr(host.limits, "exchange") else None

    async def learn(self, asked: Asked) -> None:
        """Adopt what another process has found since."""
        await self._exchange(asked, ())

    async def tell(self, asked: Asked) -> None:
        """Tell the others what was found."""
        version, keep_s = int(asked.finding.at * 1e6), MEMORY * asked.interval_s
        await self._exchange(asked, [Notice("found", version, orjson.dumps(tuple(asked.finding)), keep_s)])

    async def _exchange(self, asked: Asked, notices: Sequence[Notice]) -> None:
        if self._limits is None:
            return
        try:
            told = await self._limits.exchange(f"health_probe:{asked.id}", notices)
        except Unavailable:
            return
        for notice in told:
            found = Finding(*orjson.loads(notice.value))
            if found.at > asked.finding.at:
                asked.finding = found


class ProbeFilters(ListParameters):
    """What `GET /admin/health_probes` takes."""

    state: list[State] = Field([], description="Only deployments in one of these states.")


class ProbeRoutes:
    """The one route."""

    def __init__(self, board: Board, probed: Sequence[Asked]) -> None:
        self._board = board
        self._probed = probed

    def register(self, add: AddRoute) -> None:
        """It needs the admin key."""
        add("GET", "/admin/health_probes", self.list_findings, access="admin")

    async def list_findings(self, request: RouteRequest) -> Reply:
        """Every deployment that is asked, by name."""
        filters = request.parameters(ProbeFilters)
        later = sorted((one for one in self._probed if one.id > (filters.after or "")), key=lambda one: one.id)
        page: list[dict[str, Any]] = []
        for at in range(0, len(later), filters.limit):
            some = later[at : at + filters.limit]
            await asyncio.gather(*map(self._board.learn, some))  # one turn of the loop is one round trip
            page += [line for line in map(describe, some) if not filters.state or line["state"] in filters.state]
            if len(page) > filters.limit:
                break
        cursors = [line["deployment"] for line in page]
        return Reply.from_json(list_object(page[: filters.limit + 1], filters.limit, cursors))


def describe(asked: Asked) -> dict[str, Any]:
    """One line of the list."""
    found = asked.finding
    return {
        "deployment": asked.id,
        "model": asked.model,
        "ask": asked.ask,
        "state": found.state,
        "failures_in_row": found.failures_in_row,
        "last_probe_at": datetime.fromtimestamp(found.at, UTC).isoformat() if found.at else None,
        "last_verdict": found.verdict if found.at else None,
        "last_error": found.error,
    }
