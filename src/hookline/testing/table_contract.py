"""What every plugin table must do, as a pytest class: inherit it, and say in a fixture how a record store is opened with a table in it.

Lives here: `TableStoreContract`, and the model it keeps. Elsewhere: ledgers (record_contract.py), the protocol in words (stores/plugin_tables.py).
Idea: each test takes its owner from `owner`, so that one server can carry a whole run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel

from hookline.stores.plugin_tables import Row, Table, TableStore


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Note(BaseModel):
    """One field of each kind."""

    __table__: ClassVar[Table] = Table("contract_notes", key="id", indexes=(("owner", "made_at"), ("state",)))

    id: str
    owner: str
    made_at: float
    state: Literal["new", "done"] = "new"
    color: Color = Color.RED
    count: int = 0
    is_pinned: bool = False
    parent: str | None = None
    tags: list[str] = []
    extra: dict[str, Any] | None = None


OpenTable = Callable[[type[Any]], Awaitable[TableStore[Any]]]


class TableStoreContract:
    """Fixture `open_table`: an async function from a model to its table, made or widened if need be, each time in a new RecordStore on the same database."""

    @pytest.fixture
    def owner(self) -> str:
        return f"owner-{random.getrandbits(64):x}"

    @pytest.fixture
    async def notes(self, open_table: OpenTable) -> TableStore[Note]:
        return await open_table(Note)

    async def test_what_is_inserted_is_there_for_the_next_process(
        self, open_table: OpenTable, notes: TableStore[Note], owner: str
    ) -> None:
        full = Note(
            id=f"{owner}/1", owner=owner, made_at=1.5, state="done", color=Color.BLUE, count=2**62, is_pinned=True,
            parent="it's", tags=["a", "b"], extra={"deep": [1, None, {"é": True}]},
        )  # fmt: skip
        plain = Note(id=f"{owner}/2", owner=owner, made_at=2)

        assert await notes.insert(full)
        assert await notes.insert(plain)

        other = await open_table(Note)
        assert await other.get(full.id) == Row(full, 1)
        assert await other.get(plain.id) == Row(plain, 1)
        assert await other.get("nothing") is None

    async def test_a_key_is_there_once(self, notes: TableStore[Note], owner: str) -> None:
        assert await notes.insert(Note(id=owner, owner=owner, made_at=1))
        assert not await notes.insert(Note(id=owner, owner="another", made_at=2))

        assert (await notes.get(owner) or pytest.fail("it is gone")).value.owner == owner

    async def test_of_two_that_change_one_row_one_wins(self, open_table: OpenTable, owner: str) -> None:
        first, second = await open_table(Note), await open_table(Note)
        await first.insert(Note(id=owner, owner=owner, made_at=0))

        won = await asyncio.gather(
            *(
                store.update(Note(id=owner, owner=owner, made_at=number), revision=1)
                for number, store in enumerate((first, second) * 5)
            )
        )

        assert sum(won) == 1
        assert await first.get(owner) == Row(Note(id=owner, owner=owner, made_at=won.index(True)), 2)
        assert not await first.update(Note(id="nothing", owner=owner, made_at=0), revision=1)

    async def test_rows_are_removed_once_and_only_as_they_were(self, notes: TableStore[Note], owner: str) -> None:
        await notes.insert(Note(id=owner, owner=owner, made_at=0))

        assert not await notes.delete(owner, revision=2)
        assert await notes.delete(owner, revision=1)
        assert not await notes.delete(owner)

    @pytest.mark.parametrize("descending", [False, True])
    async def test_rows_are_found_in_order_page_by_page(
        self, notes: TableStore[Note], owner: str, descending: bool
    ) -> None:
        for number in range(25):
            await notes.insert(Note(id=f"{owner}/{number:02d}", owner=owner, made_at=number // 3))
        await notes.insert(Note(id=f"{owner}/x", owner="another", made_at=3))

        found, after = list[str](), None
        while True:
            page = await notes.find(
                equal={"owner": owner}, order="made_at", descending=descending, limit=4, after=after
            )
            assert len(page.rows) <= 4
            found += [row.value.id for row in page.rows]
            if (after := page.next) is None:
                break

        assert found == sorted((f"{owner}/{number:02d}" for number in range(25)), reverse=descending)
        some = await notes.find(equal={"owner": owner}, order="made_at", at_least=2.0, below=4.0)
        assert [row.value.made_at for row in some.rows] == [2, 2, 2, 3, 3, 3]

    async def test_rows_are_found_by_key_and_by_any_index(self, notes: TableStore[Note], owner: str) -> None:
        for number in range(3):
            await notes.insert(Note(id=f"{owner}/{number}", owner=owner, made_at=number, state="done"))

        by_key = await notes.find(at_least=f"{owner}/1", below=f"{owner}/2")
        by_state = await notes.find(equal={"state": "done"}, limit=1_000)

        assert [row.value.id for row in by_key.rows] == [f"{owner}/1"]
        assert {f"{owner}/{number}" for number in range(3)} <= {row.value.id for row in by_state.rows}

    @pytest.mark.parametrize(
        ("asked", "told"),
        [
            ({"equal": {"count": 1}}, "no index begins with count, id"),
            ({"equal": {"made_at": 1.0}, "order": "owner"}, "no index begins with made_at, owner"),
            ({"order": "count"}, "no index begins with count"),
            ({"equal": {"owner": None}}, "nothing equals None"),
            ({"limit": 0}, "limit=0: must be from 1 to 1000"),
            ({"after": "abc"}, "after=abc: must be what a page gave"),
        ],
    )
    async def test_what_no_index_holds_is_refused(
        self, notes: TableStore[Note], asked: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(ValueError, match=told):
            await notes.find(**asked)

    async def test_what_no_database_keeps_is_a_value_error(self, notes: TableStore[Note], owner: str) -> None:
        with pytest.raises(ValueError, match="can't be kept"):
            await notes.insert(Note(id=owner, owner=owner, made_at=0, count=2**70))

    async def test_a_new_field_has_its_default_in_old_rows(self, open_table: OpenTable, owner: str) -> None:
        name = f"contract_{random.getrandbits(48):x}"

        class Before(BaseModel):
            __table__: ClassVar[Table] = Table(name)
            id: str
            gone: int

        class After(BaseModel):
            __table__: ClassVar[Table] = Table(name, indexes=(("owner",),))
            id: str
            owner: str = "it's nobody"
            tags: list[str] = ["x"]
            ratio: float | None = None
            is_new: bool = True

        before = await open_table(Before)
        await before.insert(Before(id="a", gone=7))
        after = await open_table(After)

        assert await after.get("a") == Row(After(id="a"), 1)
        assert await after.insert(After(id="b", is_new=False)), "a field that is gone is left empty"
        assert len((await after.find(equal={"owner": "it's nobody"})).rows) == 2
        assert (await before.get("a") or pytest.fail("it is gone")).value.gone == 7
