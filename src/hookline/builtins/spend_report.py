"""Spend reports: `GET /admin/spend` and `GET /admin/ledger`, as JSON or CSV.

Lives here: query parameters, the two forms of an answer. Elsewhere: the sums (the record store), who registers these routes (the budget plugin), what a row means
(budget).
Idea: a parameter that is not understood is refused by name, so that a misspelt filter never answers for everybody."""

from __future__ import annotations

import base64
import binascii
import csv
import difflib
import io
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson

from hookline import (
    REPORT_BUCKETS,
    REPORT_MEMBERS,
    AddRoute,
    BadRequest,
    LedgerEntry,
    LedgerQuery,
    Principal,
    RecordStore,
    Reply,
    RouteRequest,
    SpendQuery,
    SpendSum,
    format_usd,
)

SPEND_LIMIT, SPEND_LIMIT_MAX = 1_000, 10_000
ROWS_LIMIT, ROWS_LIMIT_MAX = 100, 1_000
HOUR_S, DAY_S = 3600, 86_400
HOURLY_DAYS_MAX = 8
"""Reports by hour read sums by hour, of which a month has very many."""
LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


FindPrincipal = Callable[[str], Awaitable[Principal | None]]


def register_spend_routes(add: AddRoute, records: RecordStore, find_principal: FindPrincipal) -> None:
    """Add both routes. `find_principal`: who has the key of this name or id, for the ledger keeps ids."""

    async def where_of(asked: _Asked) -> Mapping[str, Sequence[str]]:
        if "key" not in asked.where:
            return asked.where
        found = [(name, await find_principal(name)) for name in asked.where["key"]]
        return {**asked.where, "key": [name if known is None else known.key_id for name, known in found]}

    async def report(request: RouteRequest) -> Reply:
        asked = _read(request, {"by", "limit"})
        by = tuple(name for value in asked.values("by") for name in value.split(",") if name)
        for name in by:
            _check_name("by", name, (*REPORT_MEMBERS, *REPORT_BUCKETS))
        if len(set(by)) != len(by) or {"hour", "day"} <= set(by):
            raise _refused("by", ",".join(by), "each name once, and one of hour and day")
        limit = asked.number("limit", SPEND_LIMIT, SPEND_LIMIT_MAX)
        query = SpendQuery(asked.since, asked.until, await where_of(asked), by, limit)
        if "hour" in by and not query.until - query.since <= HOURLY_DAYS_MAX * DAY_S:
            raise _refused("by", ",".join(by), f"by hour at most {HOURLY_DAYS_MAX} days: give since and until")
        sums = await records.report(query)
        return _answer_spend(asked, query, sums)

    async def rows(request: RouteRequest) -> Reply:
        asked = _read(request, {"after", "limit"})
        before = _read_cursor(asked.one("after"))
        limit = asked.number("limit", ROWS_LIMIT, ROWS_LIMIT_MAX)
        page = await records.read_ledger(LedgerQuery(asked.since, asked.until, await where_of(asked), limit, before))
        found = [_shown_row(row) for row in page.rows]
        cursor = None if page.next is None else _make_cursor(page.next)
        if asked.is_csv:
            return _csv(list(_shown_row(NOBODY)), found, {} if cursor is None else {"x-hookline-next": cursor})
        return Reply.from_json({"object": "list", "data": found, "has_more": cursor is not None, "next": cursor})

    add("GET", "/admin/spend", report, access="admin")
    add("GET", "/admin/ledger", rows, access="admin")


class _Asked(NamedTuple):
    """Query parameters, checked as far as both routes have them."""

    given: Mapping[str, Sequence[str]]
    since: float
    until: float
    where: Mapping[str, Sequence[str]]
    is_csv: bool

    def values(self, name: str) -> Sequence[str]:
        return self.given.get(name, ())

    def one(self, name: str) -> str | None:
        return _one(self.given, name)

    def number(self, name: str, default: int, most: int) -> int:
        text = self.one(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
            raise _refused(name, text, f"a whole number from 1 to {most}")
        return int(text)


def _read(request: RouteRequest, own: set[str]) -> _Asked:
    given: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, errors="strict", max_num_fields=1_000)
    except ValueError as error:
        raise BadRequest(f"the query can't be read: {error}", code="invalid_parameter") from None
    known = (*REPORT_MEMBERS, "since", "until", "format", *sorted(own))
    for name, value in pairs:
        _check_name("parameter", name, known)
        if "\0" in value:
            raise _refused(name, value, "no NUL")
        given.setdefault(name, []).append(value)
    since = _read_moment(given, "since", 0.0)
    until = _read_moment(given, "until", math.inf)
    if until <= since:
        raise _refused("until", _one(given, "until") or "", "a moment after since")
    form = _one(given, "format") or ("csv" if "text/csv" in request.headers.get("accept", "") else "json")
    _check_name("format", form, ("json", "csv"))
    where = {name: values for name, values in given.items() if name in REPORT_MEMBERS}
    return _Asked(given, since, until, where, form == "csv")


def _one(given: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = given.get(name, ())
    if len(values) > 1:
        raise _refused(name, ", ".join(values), "one value")
    return values[0] if values else None


def _read_moment(given: Mapping[str, Sequence[str]], name: str, default: float) -> float:
    """Unix seconds, or ISO 8601; UTC where no zone is given."""
    text = _one(given, name)
    if text is None:
        return default
    try:
        if text.replace(".", "", 1).isdigit() and text.isascii() and len(text) > 8:
            at = float(text)
        else:
            moment = datetime.fromisoformat(text.replace(" ", "+"))  # an unescaped + comes as a space
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        at = -1.0
    if not 0 <= at <= LATEST:
        raise _refused(name, text, "Unix seconds, or a moment as in 2026-11-01 or 2026-11-01T12:00:00Z")
    return at


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    told = f'{what} "{name[:100]}" is not known; {hint}there are {", ".join(known)}'
    raise BadRequest(told, code="invalid_parameter", param=name[:100] if what == "parameter" else what)


def _refused(name: str, value: str, wanted: str) -> BadRequest:
    return BadRequest(f"{name}={value[:100]}: must be {wanted}", code="invalid_parameter", param=name)


def _answer_spend(asked: _Asked, query: SpendQuery, sums: Sequence[SpendSum]) -> Reply:
    has_more = len(sums) > query.limit
    lines = [_shown_sum(query.by, line) for line in sums[: query.limit]]
    if asked.is_csv:
        head = [*query.by, *_numbers_of(SpendSum((), 0, 0, 0, 0, 0, 0, 0))]
        return _csv(head, lines, {"x-hookline-has-more": "true"} if has_more else {})
    until = None if math.isinf(query.until) else _iso(math.ceil(query.until / HOUR_S) * HOUR_S)
    span = {"since": _iso(query.since // HOUR_S * HOUR_S), "until": until}
    return Reply.from_json({"object": "spend", **span, "by": list(query.by), "data": lines, "has_more": has_more})


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


NOBODY = LedgerEntry("", "", 0.0, "", "", None, "", "", "", "", 0, 0, 0, None, False)


def _make_cursor(place: tuple[float, str]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode()


def _read_cursor(text: str | None) -> tuple[float, str] | None:
    if text is None:
        return None
    try:
        at, id = orjson.loads(base64.urlsafe_b64decode(text))
        if type(at) is float and type(id) is str and "\0" not in id:
            return at, id
    except (ValueError, TypeError, binascii.Error):
        pass
    raise _refused("after", text, "what an answer gave as `next`")


def _iso(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{moment.microsecond:06d}Z" if moment.microsecond else "Z")


def _csv(head: Sequence[str], lines: Sequence[Mapping[str, Any]], headers: Mapping[str, str]) -> Reply:
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(head)
    writer.writerows([_cell(value) for value in line.values()] for line in lines)
    return Reply(
        200, {"content-type": "text/csv; charset=utf-8", **headers}, written.getvalue().encode(), source="local"
    )


def _cell(value: Any) -> Any:
    """What a spreadsheet would take for a formula gets an apostrophe: clients choose users and tags."""
    if isinstance(value, list):
        value = ";".join(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
