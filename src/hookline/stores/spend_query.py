"""Reports as SQL, for SQLite and PostgreSQL.

Lives here: the text of a question, its arguments, the reading of rows. Elsewhere: questions and answers (reports.py), the sums (spend_groups.py), who runs it
(sqlite.py, postgres.py).
Idea: sums per group come from `spend_days`, and from `spend_hours` for the hours at both ends, of the kind of groups that is just wide enough, and are then
summed by the members that were asked for. Groups are few beside calls, so the ledger's size matters little. The text is put together here and not compiled beforehand (ADR 0009)
because filters and groupings have too many combinations; only names of this module are put in, values are arguments.

Ledger rows are read by time, and where they are filtered only on days of which the sums say that they have some: an index by group would cost every row 8 µs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from hookline.stores.protocols import LedgerEntry
from hookline.stores.reports import REPORT_BUCKETS, LedgerPage, LedgerQuery, SpendQuery, SpendSum
from hookline.stores.spend_groups import HOUR_S, HOURS_A_DAY, kind_of

LAST_HOUR = 2**31 - HOURS_A_DAY
NUMBERS = ("calls", "input_tokens", "output_tokens", "cached_tokens", "nanousd", "unpriced_calls", "estimated_calls")
COLUMNS = {"tenant": "tenant", "key": "key_id", "user": '"user"', "model": "model", "deployment": "deployment"}
LEDGER_COLUMNS = (*(f'l."{name}"' for name in LedgerEntry._fields[:15]), "l.price_version", "l.corrects", "g.tags")


class Question(NamedTuple):
    """SQL with numbered parameters, `?1` or `$1`."""

    text: str
    arguments: list[Any]


class _Writer:
    """Collects arguments while text is written."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self.arguments: list[Any] = []

    def put(self, value: Any) -> str:
        self.arguments.append(value)
        return f"{self._mark}{len(self.arguments)}"

    def put_all(self, values: Sequence[str]) -> str:
        return ", ".join(map(self.put, values))


def hours_of(since: float, until: float) -> tuple[int, int]:
    """The first hour, and the one after the last."""
    first = int(max(since, 0) // HOUR_S)
    end = LAST_HOUR if math.isinf(until) else min(math.ceil(max(until, 0) / HOUR_S), LAST_HOUR)
    return first, max(end, first)


def spend_question(query: SpendQuery, mark: str) -> Question:
    """The sums; one line more than `limit` says that there are more."""
    writer = _Writer(mark)
    kind = kind_of({*query.where, *query.by} - set(REPORT_BUCKETS))
    bucket = next((name for name in REPORT_BUCKETS if name in query.by), None)
    names = [_name_of(member) for member in query.by]
    facts = " UNION ALL ".join(_facts(writer, query, bucket, kind))
    tags = " JOIN spend_tags AS t ON t.group_id = s.group_id" if "tag" in query.by else ""
    text = f"SELECT {', '.join([*names, *(f'SUM(s.{name})' for name in NUMBERS)])} FROM ({facts}) AS s{tags}"
    if names:
        order = [name for name in names if name == "s.bucket"] + ["SUM(s.nanousd) DESC", "SUM(s.calls) DESC", *names]
        text += f" GROUP BY {', '.join(names)} ORDER BY {', '.join(order)}"
    return Question(f"{text} LIMIT {query.limit + 1:d}", writer.arguments)


def read_sums(query: SpendQuery, rows: Sequence[Sequence[Any]]) -> list[SpendSum]:
    """Rows as lines of the report."""
    width = len(query.by)
    seconds = {"hour": HOUR_S, "day": HOUR_S * HOURS_A_DAY}
    lines = []
    for row in rows:
        group = tuple(
            value * seconds[member] if member in seconds else (value if value != "" else None)
            for member, value in zip(query.by, row[:width], strict=True)
        )
        lines.append(SpendSum(group, *(int(number or 0) for number in row[width:])))
    return lines


def _facts(writer: _Writer, query: SpendQuery, bucket: str | None, kind: int) -> list[str]:
    """Where the sums of the span stand, with the members that are asked for: whole days, and the hours before and after them.

    Of the widest kind, which has many groups, the groups are found first and then their days; of the others all sums of the span are read."""
    first, end = hours_of(query.since, query.until)
    first_day, end_day = -(-first // HOURS_A_DAY), end // HOURS_A_DAY
    spans = [("spend_hours", "hour", first, end)]
    if bucket != "hour" and first_day < end_day:
        spans = [
            ("spend_days", "day", first_day, end_day),
            ("spend_hours", "hour", first, first_day * HOURS_A_DAY),
            ("spend_hours", "hour", end_day * HOURS_A_DAY, end),
        ]
    selected = ["f.group_id AS group_id", *(f"f.{name} AS {name}" for name in NUMBERS)]
    selected += [f"g.{COLUMNS[member]} AS {COLUMNS[member]}" for member in query.by if member in COLUMNS]
    arms = []
    for table, column, since, until in spans:
        if since >= until and len(spans) > 1:
            continue
        named = f"f.{column} / {HOURS_A_DAY}" if bucket == "day" and column == "hour" else f"f.{column}"
        bucketed = [] if bucket is None else [f"{named} AS bucket"]
        where = f"f.kind = {kind:d} AND f.{column} >= {writer.put(since)} AND f.{column} < {writer.put(until)}"
        source = f"{table} AS f CROSS JOIN spend_groups AS g"
        if kind == 0 and query.where and table == "spend_days":
            source, where = f"spend_groups AS g CROSS JOIN {table} AS f", where.replace("f.kind = 0", "g.kind = 0")
        arms.append(
            f"SELECT {', '.join([*selected, *bucketed])} FROM {source} "
            f"WHERE f.group_id = g.id AND {where}{_groups_where(writer, query.where)}"
        )
    return arms


def _name_of(member: str) -> str:
    if member == "tag":
        return "t.tag"
    return f"s.{COLUMNS[member]}" if member in COLUMNS else "s.bucket"


def _groups_where(writer: _Writer, where: Mapping[str, Sequence[str]]) -> str:
    """Further conditions on the group."""
    text = ""
    for member, values in where.items():
        if member == "tag":
            text += f" AND g.id IN (SELECT group_id FROM spend_tags WHERE tag IN ({writer.put_all(values)}))"
        else:
            text += f" AND g.{COLUMNS[member]} IN ({writer.put_all(values)})"
    return text


def days_question(query: LedgerQuery, mark: str) -> Question:
    """The days that have rows which the filter leaves, the newest first."""
    writer = _Writer(mark)
    first, end = hours_of(query.since, min(query.until, query.before[0] + 1 if query.before else math.inf))
    days = f"f.day >= {writer.put(first // HOURS_A_DAY)} AND f.day <= {writer.put(end // HOURS_A_DAY)}"
    return Question(
        "SELECT DISTINCT f.day FROM spend_groups AS g CROSS JOIN spend_days AS f "
        f"WHERE g.kind = {kind_of(query.where):d} AND f.group_id = g.id AND {days}{_groups_where(writer, query.where)} "
        "ORDER BY f.day DESC",
        writer.arguments,
    )


def runs_of(days: Sequence[int], query: LedgerQuery) -> list[LedgerQuery]:
    """The question for each run of neighbouring days, the newest first: days between them are not read."""
    runs: list[list[int]] = []
    for day in days:
        if runs and runs[-1][0] == day + 1:
            runs[-1][0] = day
        else:
            runs.append([day, day + 1])
    day_s = float(HOUR_S * HOURS_A_DAY)
    return [
        query._replace(since=max(query.since, first * day_s), until=min(query.until, end * day_s))
        for first, end in runs
    ]


def rows_question(query: LedgerQuery, mark: str) -> Question:
    """The rows of a page; one more than `limit` says that there is another page."""
    writer = _Writer(mark)
    where = f"l.at >= {writer.put(query.since)}"
    if not math.isinf(query.until):
        where += f" AND l.at < {writer.put(query.until)}"
    if query.before is not None:
        at, id = query.before
        mark_at = writer.put(at)
        where += f" AND l.at <= {mark_at} AND (l.at < {mark_at} OR l.id < {writer.put(id)})"
    for member, values in query.where.items():
        if member == "tag":
            tagged = f"SELECT group_id FROM spend_tags WHERE tag IN ({writer.put_all(values)})"
            where += f" AND l.group_id IN ({tagged})"
        else:
            where += f" AND COALESCE(l.{COLUMNS[member]}, '') IN ({writer.put_all(values)})"
    text = f"SELECT {', '.join(LEDGER_COLUMNS)} FROM ledger AS l LEFT JOIN spend_groups AS g ON g.id = l.group_id"
    return Question(f"{text} WHERE {where} ORDER BY l.at DESC, l.id DESC LIMIT {query.limit + 1:d}", writer.arguments)


def read_page(query: LedgerQuery, rows: Sequence[Sequence[Any]]) -> LedgerPage:
    """Rows as a page."""
    entries = []
    for row in rows[: query.limit]:
        *columns, is_estimated, price_version, corrects, tags = row
        entries.append(
            LedgerEntry._make((*columns, bool(is_estimated), (), price_version, corrects, orjson.loads(tags or "[]")))
        )
    last = entries[-1] if len(rows) > query.limit else None
    return LedgerPage(entries, None if last is None else (last.at, last.id))
