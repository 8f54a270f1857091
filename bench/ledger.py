"""How long questions about spend take on a ledger of 10,000 rows and one of 1,000,000.

Lives here: a ledger of made-up calls, the questions of the admin API, their medians. Elsewhere: the plans (tests/stores), what a call costs (run.py).
Idea: 30 days, 50 keys of 10 tenants, 200 users, 10 deployments, 3 sets of tags: 6,000 groups, so that few calls of an hour share one.

Run: python -m bench.ledger [--rows N] [--records URL]     (a SQLite file of its own unless a migrated PostgreSQL database is named)"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from hookline.stores.postgres import PostgresRecords
from hookline.stores.protocols import LedgerEntry
from hookline.stores.reports import LedgerQuery, SpendQuery
from hookline.stores.sqlite import SqliteRecords

DAYS = 30
BEGIN = 1_793_000_000.0
ROUNDS = 15
BATCH = 5_000
TAGS = ((), ("prod",), ("prod", "batch"))

DAY = 86_400.0
END = BEGIN + DAYS * DAY
QUESTIONS: dict[str, Any] = {
    "all, by tenant": SpendQuery(by=("tenant",)),
    "all, by key": SpendQuery(by=("key",)),
    "all, by user": SpendQuery(by=("user",)),
    "all, by tag": SpendQuery(by=("tag",)),
    "all, by model and day": SpendQuery(by=("model", "day")),
    "all, by day": SpendQuery(by=("day",)),
    "last day, by hour": SpendQuery(since=END - DAY, by=("hour",)),
    "8 days, by hour": SpendQuery(since=END - 8 * DAY, by=("hour",)),
    "a tenant, by model": SpendQuery(where={"tenant": ["tenant-3"]}, by=("model",)),
    "a key, by day": SpendQuery(where={"key": ["key-7"]}, by=("day",)),
    "a key, 8 days by hour": SpendQuery(since=END - 8 * DAY, where={"key": ["key-7"]}, by=("hour",)),
    "a tag, by tenant": SpendQuery(where={"tag": ["batch"]}, by=("tenant",)),
    "7 days, by user and model": SpendQuery(since=END - 7 * DAY - 1_000, by=("user", "model")),
    "rows": LedgerQuery(),
    "rows of a tenant": LedgerQuery(where={"tenant": ["tenant-3"]}),
    "rows of a user": LedgerQuery(where={"user": ["user-77"]}),
    "rows of a user and model, an old page": LedgerQuery(
        where={"user": ["user-77"], "model": ["model-1"]}, before=(BEGIN + 3 * DAY, "x")
    ),
    "rows of nobody": LedgerQuery(where={"user": ["nobody"]}),
}


def make_entry(number: int, at: float, pick: random.Random) -> LedgerEntry:
    key, deployment = pick.randrange(50), pick.randrange(10)
    return LedgerEntry(
        f"row-{number}",
        f"call-{number}",
        at,
        f"tenant-{key % 10}",
        f"key-{key}",
        f"user-{key * 4 + pick.randrange(4)}",
        f"model-{deployment // 2}",
        f"up/{deployment}",
        "chat",
        "ok",
        1_000,
        200,
        0,
        pick.randrange(10_000_000),
        False,
        (f"key:key-{key}", f"tenant:tenant-{key % 10}", "global"),
        "v1",
        None,
        pick.choice(TAGS),
    )


async def fill(records: Any, rows: int) -> float:
    """Book rows in batches; microseconds of CPU per row, all threads."""
    pick = random.Random(1)
    entries = [make_entry(i, BEGIN + i * DAYS * DAY / rows, pick) for i in range(rows)]
    began = time.process_time()
    for first in range(0, rows, BATCH):
        for entry in entries[first : first + BATCH]:
            records.book(entry)
        await records.flush()
    return (time.process_time() - began) / rows * 1e6


async def measure(ask: Callable[[], Awaitable[object]]) -> float:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - began)
    return median(taken) * 1e3


async def run(records: Any, rows: int) -> dict[str, float]:
    cost = await fill(records, rows)
    print(f"{rows:,} rows: {cost:.1f} µs of CPU per row booked and committed")
    medians = {}
    for name, query in QUESTIONS.items():
        ask = records.report if isinstance(query, SpendQuery) else records.read_ledger
        medians[name] = await measure(lambda ask=ask, query=query: ask(query))  # type: ignore[misc]
    return medians


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--records", action="append", help="postgresql://...; once for each of the two ledgers")
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, rows in enumerate((10_000, options.rows)):
            if options.records:
                records: Any = PostgresRecords(f"{options.records[index]}?spool={folder}/spool")
            else:
                records = SqliteRecords(Path(folder) / f"{rows}.db")
            try:
                found[rows] = await run(records, rows)
            finally:
                await records.aclose()
    small, large = found.values()
    print(f"\n| milliseconds, median of {ROUNDS} | 10,000 rows | {options.rows:,} rows |\n|---|---|---|")
    for name in QUESTIONS:
        print(f"| {name} | {small[name]:.1f} | {large[name]:.1f} |")


if __name__ == "__main__":
    asyncio.run(main())
