"""What every record store must do, as a pytest class: inherit it, and say in a fixture how your store is opened.

Lives here: `RecordStoreContract`, `entry`. Elsewhere: limits and replies (store_contracts.py), the protocol in words (stores/protocols.py), what only one
implementation promises (its own tests).
Idea: each test takes its scopes from `scope`, so that one server can carry a whole run.

    class TestMyRecords(RecordStoreContract):
        @pytest.fixture
        async def open_records(self): ..."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from hookline.stores.protocols import LedgerEntry, RecordStore
from hookline.stores.reports import LedgerQuery, SpendQuery

_ids = count(1)


def _id() -> str:
    return f"contract-{next(_ids)}-{random.getrandbits(64):x}"


REPORTS = [
    SpendQuery(),
    SpendQuery(by=("model", "day")),
    SpendQuery(since=1_700_000_000.0, until=1_700_500_000.0, where={"key": ["ci"]}, by=("hour",)),
    SpendQuery(since=1_700_000_000.0, where={"user": ["ann"], "tag": ["x"]}, by=("deployment",)),
    SpendQuery(where={"tenant": ["acme"]}, by=("tag", "day")),
]
ROWS = [
    LedgerQuery(),
    LedgerQuery(where={"tenant": ["acme"], "tag": ["x"]}, before=(1_700_000_000.0, "a"), until=1_700_100_000.0),
]
"""Questions whose plans are worth a look: none of them may read a whole table."""

MakeRecords = Callable[[], RecordStore]


class RecordStoreContract:
    """Fixture `open_records`: a function that opens the same database, each time as a new RecordStore; the fixture closes them."""

    @pytest.fixture
    def scope(self) -> str:
        """A scope of this test alone."""
        return f"scope:{_id()}"

    async def test_what_is_flushed_is_there_for_the_next_process(self, open_records: MakeRecords, scope: str) -> None:
        first = open_records()
        first.book(entry(scopes=(scope, scope + ":b"), cost_nanousd=40))
        first.book(entry(scopes=(scope,), cost_nanousd=2))
        await first.flush()

        second = open_records()

        assert [await second.spent_in(scope), await second.spent_in(scope + ":b")] == [42, 40]

    async def test_closing_commits_what_waits(self, open_records: MakeRecords, scope: str) -> None:
        first = open_records()
        first.book(entry(scopes=(scope,), cost_nanousd=7))

        await first.aclose()

        assert await open_records().spent_in(scope) == 7

    async def test_booking_twice_counts_once(self, open_records: MakeRecords, scope: str) -> None:
        records, id = open_records(), _id()
        for _ in range(2):
            records.book(entry(id=id, scopes=(scope,), cost_nanousd=5))
        await records.flush()

        records.book(entry(id=id, scopes=(scope,), cost_nanousd=5))

        assert await records.spent_in(scope) == 5

    async def test_reads_see_what_was_booked_before(self, open_records: MakeRecords, scope: str) -> None:
        records = open_records()
        for _ in range(1_000):
            records.book(entry(scopes=(scope,), cost_nanousd=1))

        assert await records.spent_in(scope) == 1_000

    async def test_a_correction_is_a_second_entry(self, open_records: MakeRecords, scope: str) -> None:
        records = open_records()
        records.book(entry(scopes=(scope,), cost_nanousd=100))
        records.book(entry(scopes=(scope,), cost_nanousd=-60))

        assert await records.spent_in(scope) == 40

    async def test_an_intent_without_a_row_is_charged_once_its_store_is_gone(
        self, open_records: MakeRecords, scope: str
    ) -> None:
        first, id = open_records(), _id()
        first.intend(entry(id=id, scopes=(scope,), cost_nanousd=90))
        await first.flush()
        assert await first.spent_in(scope) == 0, "it may still come"
        await first.aclose()

        second = open_records()

        assert await second.spent_in(scope) == 90
        assert (id, 90) in await second.recovered()
        await second.aclose()
        assert await open_records().spent_in(scope) == 90, "once"

    async def test_a_row_takes_the_place_of_its_intent(self, open_records: MakeRecords, scope: str) -> None:
        first, id = open_records(), _id()
        first.intend(entry(id=id, scopes=(scope,), cost_nanousd=90))
        first.book(entry(id=id, scopes=(scope,), cost_nanousd=30))
        await first.aclose()

        assert await open_records().spent_in(scope) == 30

    async def test_a_withdrawn_intent_is_not_charged(self, open_records: MakeRecords, scope: str) -> None:
        first, id = open_records(), _id()
        first.intend(entry(id=id, scopes=(scope,), cost_nanousd=90))
        first.withdraw(id)
        first.withdraw("unknown")
        await first.aclose()

        assert await open_records().spent_in(scope) == 0

    async def test_sums_between_two_moments(self, open_records: MakeRecords, scope: str) -> None:
        records, midnight = open_records(), 1_700_006_400.0
        for at, cost in ((midnight - 0.1, 1), (midnight, 10), (midnight + 86_399, 100), (midnight + 86_400, 1_000)):
            records.book(entry(scopes=(scope,), cost_nanousd=cost, at=at))

        assert await records.spent_in(scope, since=midnight) == 1_110
        assert await records.spent_in(scope, since=midnight, until=midnight + 86_400) == 110

    async def test_an_unknown_cost_is_kept_and_not_summed(self, open_records: MakeRecords, scope: str) -> None:
        records = open_records()
        records.book(entry(scopes=(scope,), cost_nanousd=None, user=None))
        await records.flush()

        assert await records.spent_in(scope) == 0

    async def test_one_scope_is_asked_for_alone(self, open_records: MakeRecords, scope: str) -> None:
        records, midnight = open_records(), 1_700_006_400.0
        for at, cost in ((midnight - 0.1, 1), (midnight, 10), (midnight + 86_400, 1_000)):
            records.book(entry(scopes=(scope, scope + ":b"), cost_nanousd=cost, at=at))

        assert await records.spent_in(scope) == 1_011
        assert await records.spent_in(scope, since=midnight, until=midnight + 86_400) == 10
        assert await records.spent_in(scope + ":unknown") == 0

    async def test_charges_come_by_the_quarter_of_an_hour(self, open_records: MakeRecords, scope: str) -> None:
        records, noon = open_records(), 1_700_049_600.0
        for at, cost in ((noon - 1, 1), (noon, 10), (noon + 899, 20), (noon + 3_600, 300)):
            records.book(entry(scopes=(scope,), cost_nanousd=cost, at=at))

        assert list(await records.charges_in(scope, since=noon + 60)) == [(noon + 900, 30), (noon + 4_500, 300)]
        assert list(await records.charges_in(scope + ":unknown")) == []

    async def test_spend_is_summed_by_model_too(self, open_records: MakeRecords, scope: str) -> None:
        records, model = open_records(), scope + ":model"
        for cost in (3, 4):
            records.book(entry(cost_nanousd=cost)._replace(model=model))

        assert await records.spent_in("model:" + model) == 7

    async def test_reports_sum_by_what_is_asked(self, open_records: MakeRecords, scope: str) -> None:
        records, midnight = open_records(), 1_700_006_400.0
        for hours, user, model, cost, tags in (
            (-1, "ann", "a", 1, ("x",)),
            (0, "ann", "a", 10, ("x", "y")),
            (1, "bob", "a", 100, ()),
            (25, None, "b", 1_000, ("y",)),
            (25, None, "b", None, ("y",)),
        ):
            row = entry(at=midnight + hours * 3_600 + 5, cost_nanousd=cost, user=user)
            records.book(row._replace(tenant=scope, model=model, tags=tags, is_estimated=cost == 100))

        async def ask(*by: str, **where: Any) -> dict[Any, Any]:
            span = {name: where.pop(name) for name in ("since", "until") if name in where}
            filters = {"tenant": [scope], **{name: [value] for name, value in where.items()}}
            sums = await records.report(SpendQuery(**span, where=filters, by=by))
            return {line.group[0] if len(by) == 1 else line.group: line.cost_nanousd for line in sums}

        assert await ask("user") == {None: 1_000, "bob": 100, "ann": 11}
        assert await ask("tag") == {"x": 11, "y": 1_010}
        assert await ask("model", "user") == {("a", "ann"): 11, ("a", "bob"): 100, ("b", None): 1_000}
        assert await ask("day") == {midnight - 86_400: 1, midnight: 110, midnight + 86_400: 1_000}
        assert await ask("hour", since=midnight, until=midnight + 3_601) == {midnight: 10, midnight + 3_600: 100}
        assert await ask("model", since=midnight - 3_600, until=midnight + 2 * 86_400) == {"a": 111, "b": 1_000}
        assert await ask("tenant", since=midnight, until=midnight + 86_400) == {scope: 110}
        assert await ask("tenant", user="ann", tag="y") == {scope: 10}
        assert await ask("tenant", user="") == {scope: 1_000}
        (line,) = await records.report(SpendQuery(where={"tenant": [scope]}))
        assert line == ((), 5, 50, 25, 0, 1_111, 1, 1)
        with pytest.raises(ValueError, match="no nothing; there are tenant, key"):
            await records.report(SpendQuery(by=("nothing",)))

    async def test_a_correction_changes_sums_and_is_no_call(self, open_records: MakeRecords, scope: str) -> None:
        records, id = open_records(), _id()
        records.book(entry(id=id, cost_nanousd=100)._replace(tenant=scope))
        fixed = entry(cost_nanousd=-60)._replace(tenant=scope, corrects=id, input_tokens=-4, output_tokens=0)
        records.book(fixed)

        (line,) = await records.report(SpendQuery(where={"tenant": [scope]}))

        assert (line.calls, line.cost_nanousd, line.input_tokens, line.output_tokens) == (1, 40, 6, 5)
        page = await records.read_ledger(LedgerQuery(where={"tenant": [scope]}))
        assert {row.id: row.corrects for row in page.rows} == {id: None, fixed.id: id}

    async def test_ledger_rows_are_read_page_by_page(self, open_records: MakeRecords, scope: str) -> None:
        records = open_records()
        ids = [_id() for _ in range(25)]
        for number, id in enumerate(ids):
            row = entry(id=id, at=1_700_000_000.0 + number // 2, cost_nanousd=number, user=None)
            records.book(row._replace(tenant=scope, price_version="p1", tags=("x",), is_estimated=True))

        read: list[LedgerEntry] = []
        query = LedgerQuery(where={"tenant": [scope], "tag": ["x"]}, limit=4)
        while True:
            page = await records.read_ledger(query)
            assert len(page.rows) <= 4
            read += page.rows
            if page.next is None:
                break
            query = query._replace(before=page.next)

        assert sorted(row.id for row in read) == sorted(ids)
        assert [row.at for row in read] == sorted((row.at for row in read), reverse=True)
        last = next(row for row in read if row.id == ids[-1])
        assert (last.cost_nanousd, last.is_estimated, last.price_version, last.tags) == (24, True, "p1", ["x"])
        some = await records.read_ledger(query._replace(before=None, since=1_700_000_003.0, until=1_700_000_005.0))
        assert {row.id for row in some.rows} == set(ids[6:10])

    async def test_is_ready(self, open_records: MakeRecords) -> None:
        records = open_records()

        await records.ping()

        assert records.readiness is None


def entry(
    *,
    id: str | None = None,
    at: float = 1_700_000_000.0,
    cost_nanousd: int | None = 0,
    scopes: tuple[str, ...] = (),
    user: str | None = "ann",
) -> LedgerEntry:
    """A ledger entry; what is not given is plausible."""
    return LedgerEntry(
        id or _id(), "call-1", at, "acme", "ci", user, "m", "up/m", "chat", "ok", 10, 5, 0, cost_nanousd, False, scopes
    )
