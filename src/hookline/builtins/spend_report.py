"""Spend reports: `GET /admin/spend` and `GET /admin/ledger`, as JSON or CSV, and what `hookline spend` and `hookline ledger` print.

Lives here: what may be asked, the two forms of an answer. Elsewhere: the sums (the record store), who registers the routes and the commands (the budget plugin), what is
printed (budget/commands.py), what a row means (budget).
Idea: the routes and the commands read the same parameters and show the same lines."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from hookline import (
    REPORT_BUCKETS,
    REPORT_MEMBERS,
    AddRoute,
    LedgerEntry,
    LedgerQuery,
    ListParameters,
    Principal,
    RecordStore,
    Reply,
    RouteRequest,
    SpendQuery,
    SpendSum,
    format_usd,
    list_object,
)

HOUR_S, DAY_S = 3600, 86_400
HOURLY_DAYS_MAX = 8
"""Reports by hour read sums by hour, of which a month has very many."""
LINES_MAX = 100_000
"""Of all pages of one report together."""
LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

FindPrincipal = Callable[[str], Awaitable[Principal | None]]


def _read_moment(value: Any) -> float:
    """Unix seconds, or ISO 8601; UTC where no zone is given."""
    text = str(value)
    try:
        if text.replace(".", "", 1).isdigit() and text.isascii() and len(text) > 8:
            at = float(text)
        else:
            moment = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped + comes as a space
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        at = -1.0
    if not 0 <= at <= LATEST:
        raise ValueError("must be Unix seconds, or a moment as in 2026-11-01 or 2026-11-01T12:00:00Z")
    return at


def _split_names(values: Any) -> Any:
    return [name for value in values for name in value.split(",") if name] if isinstance(values, list) else values


Moment = Annotated[float, BeforeValidator(_read_moment)]
Group = Literal["tenant", "key", "user", "model", "deployment", "tag", "hour", "day"]


class Filters(ListParameters):
    """What both reports take. A filter that is given twice means one or the other."""

    tenant: list[str] = Field(default=[])
    key: list[str] = Field(default=[], description="A key's name or id.")
    user: list[str] = Field(default=[], description='"" is calls without a user.')
    model: list[str] = Field(default=[])
    deployment: list[str] = Field(default=[])
    tag: list[str] = Field(default=[])
    since: Moment = Field(0.0, description="Sums count the hours that hold it and `until` whole.")
    until: Moment = Field(math.inf, description="The moment after the last one.")
    format: Literal["json", "csv"] | None = Field(
        None, description="Default: CSV where `accept` says text/csv, else JSON."
    )

    @field_validator("until")
    @classmethod
    def _check_until(cls, until: float, info: ValidationInfo) -> float:
        if until <= info.data.get("since", 0.0):
            raise ValueError("must be a moment after since")
        return until


class SpendParameters(Filters):
    """`GET /admin/spend`."""

    limit: int = Field(1_000, ge=1, le=10_000, description="Of one page, 10,000 at most.")
    by: Annotated[list[Group], BeforeValidator(_split_names)] = Field(
        default=[], description=f"What to group by, with commas; by hour at most {HOURLY_DAYS_MAX} days."
    )

    @field_validator("after")
    @classmethod
    def _check_after(cls, after: str | None) -> str | None:
        if after is not None and not (after.isascii() and after.isdigit() and int(after[:9]) < LINES_MAX):
            raise ValueError("must be what an answer gave as `last_id`")
        return after

    @field_validator("by")
    @classmethod
    def _check_by(cls, by: list[Group], info: ValidationInfo) -> list[Group]:
        if len(set(by)) != len(by) or {"hour", "day"} <= set(by):
            raise ValueError("must be each name once, and one of hour and day")
        span_s = info.data.get("until", math.inf) - info.data.get("since", 0.0)
        if "hour" in by and not span_s <= HOURLY_DAYS_MAX * DAY_S:
            raise ValueError(f"by hour at most {HOURLY_DAYS_MAX} days: give since and until")
        return by


class LedgerParameters(Filters):
    """`GET /admin/ledger`."""

    limit: int = Field(100, ge=1, le=1_000, description="Of one page, 1,000 at most.")

    @field_validator("after")
    @classmethod
    def _check_after(cls, after: str | None) -> str | None:
        if after is not None:
            _place_in(after)
        return after


class SpendReports:
    """Both reports. `find_principal`: who has the key of this name or id, for the ledger keeps ids. Every method raises `Unavailable` when records can't answer."""

    def __init__(self, records: RecordStore, find_principal: FindPrincipal) -> None:
        self._records = records
        self._find_principal = find_principal

    def register(self, add: AddRoute) -> None:
        """Add both routes."""
        add("GET", "/admin/spend", self._answer_sums, access="admin")
        add("GET", "/admin/ledger", self._answer_rows, access="admin")

    async def sum(self, asked: SpendParameters) -> dict[str, Any]:
        """A page of sums, as the route answers it."""
        first = 0 if asked.after is None else int(asked.after)
        where = await self._where(asked)
        sums = await self._records.report(SpendQuery(asked.since, asked.until, where, asked.by, first + asked.limit))
        until = None if math.isinf(asked.until) else _iso(math.ceil(asked.until / HOUR_S) * HOUR_S)
        return list_object(
            [_shown_sum(asked.by, line) for line in sums[first:]],
            asked.limit,
            [str(number + 1) for number in range(first, len(sums))],
            since=_iso(asked.since // HOUR_S * HOUR_S),
            until=until,
            by=list(asked.by),
        )

    async def rows(self, asked: LedgerParameters) -> dict[str, Any]:
        """A page of rows, as the route answers it."""
        before = None if asked.after is None else _place_in(asked.after)
        where = await self._where(asked)
        page = await self._records.read_ledger(LedgerQuery(asked.since, asked.until, where, asked.limit, before))
        found = list_object(
            [_shown_row(row) for row in page.rows], asked.limit, [f"{row.at!r}~{row.id}" for row in page.rows]
        )
        return {**found, "has_more": page.next is not None}

    async def _where(self, asked: Filters) -> Mapping[str, Sequence[str]]:
        where = {name: values for name in REPORT_MEMBERS if (values := getattr(asked, name))}
        if "key" in where:
            known = [(name, await self._find_principal(name)) for name in where["key"]]
            where["key"] = [name if principal is None else principal.key_id for name, principal in known]
        return where

    async def _answer_sums(self, request: RouteRequest) -> Reply:
        asked = request.parameters(SpendParameters)
        found = await self.sum(asked)
        return _reply(request, asked, found, sum_columns(asked))

    async def _answer_rows(self, request: RouteRequest) -> Reply:
        asked = request.parameters(LedgerParameters)
        return _reply(request, asked, await self.rows(asked), ROW_COLUMNS)


def sum_columns(asked: SpendParameters) -> list[str]:
    """What a line of sums holds."""
    return [*asked.by, *_numbers_of(SpendSum((), 0, 0, 0, 0, 0, 0, 0))]


def to_csv(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines as CSV, the columns' names first."""
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in line.values()] for line in lines)
    return written.getvalue()


def _reply(request: RouteRequest, asked: Filters, found: Mapping[str, Any], columns: Sequence[str]) -> Reply:
    accepts_csv = "text/csv" in request.headers.get("accept", "")
    if asked.format == "json" or (asked.format is None and not accepts_csv):
        return Reply.from_json(found)
    headers = {"content-type": "text/csv; charset=utf-8"}
    if found["has_more"]:
        headers["x-hookline-last-id"] = found["last_id"]
    return Reply(200, headers, to_csv(columns, found["data"]).encode(), source="local")


def _place_in(cursor: str) -> tuple[float, str]:
    at, tilde, id = cursor.partition("~")
    try:
        place = (float(at), id)
    except ValueError:
        place = (math.nan, id)
    if not tilde or not id or not 0 <= place[0] <= LATEST:
        raise ValueError("must be what an answer gave as `last_id`")
    return place


def _shown_sum(by: Sequence[str], line: SpendSum) -> dict[str, Any]:
    group = {
        name: _iso(float(value)) if name in REPORT_BUCKETS and value is not None else value
        for name, value in zip(by, line.group, strict=True)
    }
    return {**group, **_numbers_of(line)}


def _numbers_of(line: SpendSum) -> dict[str, Any]:
    return {
        "calls": line.calls,
        "input_tokens": line.input_tokens,
        "output_tokens": line.output_tokens,
        "cached_tokens": line.cached_tokens,
        "cost_usd": format_usd(line.cost_nanousd),
        "cost_nanousd": line.cost_nanousd,
        "unpriced_calls": line.unpriced_calls,
        "estimated_calls": line.estimated_calls,
    }


def _shown_row(row: LedgerEntry) -> dict[str, Any]:
    cost = row.cost_nanousd
    return {
        "id": row.id,
        "call_id": row.call_id,
        "at": _iso(row.at),
        "tenant": row.tenant,
        "key": row.key_id,
        "user": row.user,
        "model": row.model,
        "deployment": row.deployment,
        "endpoint": row.endpoint,
        "outcome": row.outcome,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cached_tokens": row.cached_tokens,
        "cost_usd": None if cost is None else format_usd(cost),
        "cost_nanousd": cost,
        "is_estimated": row.is_estimated,
        "price_version": row.price_version,
        "corrects": row.corrects,
        "tags": list(row.tags),
    }


def _iso(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{moment.microsecond:06d}Z" if moment.microsecond else "Z")


ROW_COLUMNS = list(_shown_row(LedgerEntry("", "", 0.0, "", "", None, "", "", "", "", 0, 0, 0, None, False)))


def _cell(value: Any) -> Any:
    """What a spreadsheet would take for a formula gets an apostrophe: clients choose users and tags."""
    if isinstance(value, list):
        value = ";".join(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
