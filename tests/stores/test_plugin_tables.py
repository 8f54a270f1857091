"""Plugins' tables on SQLite and PostgreSQL: the contract, what is refused, a plugin of one file that keeps notes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from hookline import StartupError, Table
from hookline.stores.plugin_tables import check_table
from hookline.stores.postgres import PostgresRecords
from hookline.stores.sqlite import SqliteRecords
from hookline.stores.table_migration import migrate_tables
from hookline.stores.table_sql import check_indexes, creations
from hookline.testing.process import ProxyProcess
from hookline.testing.table_contract import Note, TableStoreContract


@pytest.fixture
async def close_at_end():
    opened: list[Any] = []
    yield opened
    for records in opened:
        await records.aclose()


class TestInSqlite(TableStoreContract):
    @pytest.fixture
    def open_table(self, tmp_path, close_at_end):
        async def open_table(model):
            close_at_end.append(SqliteRecords(tmp_path / "records.db"))
            return close_at_end[-1].table(model)

        return open_table


class TestInPostgres(TableStoreContract):
    @pytest.fixture
    def open_table(self, tmp_path, close_at_end, shared_url):
        async def open_table(model):
            await asyncio.to_thread(migrate_tables, shared_url, [model])
            close_at_end.append(PostgresRecords(f"{shared_url}?spool={tmp_path / 'spool'}"))
            return close_at_end[-1].table(model)

        return open_table


async def test_postgres_names_the_command_that_makes_a_table(tmp_path, close_at_end, postgres_url):
    records = PostgresRecords(f"{postgres_url}?spool={tmp_path / 'spool'}")
    close_at_end.append(records)

    with pytest.raises(
        StartupError, match=r"the table plugin_contract_notes in .* is not there; run: hookline migrate"
    ):
        records.table(Note)


def test_a_migrated_table_is_left_alone(tmp_path):
    url = f"sqlite:///{tmp_path / 'records.db'}"

    assert migrate_tables(url, [Note]) == ["table plugin_contract_notes made"]
    assert migrate_tables(url, [Note]) == []


def make_model(fields: dict[str, Any], **table: Any) -> Any:
    return type(
        "Odd",
        (BaseModel,),
        {
            "__module__": __name__,
            "__annotations__": {"__table__": ClassVar[Table], "id": str, **fields},
            "__table__": Table(**{"name": "odd", **table}),
        },
    )


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (BaseModel, "give it `__table__ = Table"),
        (make_model({}, name="Bad-Name"), '"Bad-Name" must be like "snake_case"'),
        (make_model({}, key="key"), 'there is no field "key"'),
        (make_model({"number": int}, key="number"), 'its key "number" must be a str'),
        (make_model({}, indexes=(("owner",),)), 'there is no field "owner"'),
        (make_model({"revision": int}), '"revision" is kept by the store'),
        (make_model({"tags": list[str]}, indexes=(("tags",),)), "tags can't be in an index"),
    ],
)
def test_a_table_that_cannot_be_is_refused(model, told):
    with pytest.raises(StartupError, match=told):
        check_table(model)
        check_indexes(model)


def test_a_new_field_without_a_default_is_refused():
    with pytest.raises(ValueError, match='the new field "number" needs a default'):
        creations(make_model({"number": int}), dialect=0, existing=["id", "revision"])


def plugin_of_the_docs() -> str:
    text = (Path(__file__).parents[2] / "docs" / "howto" / "plugin-tables.md").read_text()
    return text.split("```python\n", 1)[1].split("```", 1)[0]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_the_plugin_of_the_docs_keeps_notes_across_restarts(tmp_path, request, database):
    (tmp_path / "notes.py").write_text(plugin_of_the_docs())
    state = ""
    if database == "postgres":
        state = f'[state]\nrecords = "{request.getfixturevalue("postgres_url")}"'
    text = f"""
{state}
[admin]
key = "sk-admin"
[chain]
plugins = [{{ name = "notes", path = "notes.py" }}]
[providers.demo]
kind = "demo"
default = true
"""
    (tmp_path / "proxy.toml").write_text(text)
    migrate = [sys.executable, "-m", "hookline", "migrate"]
    said = subprocess.run(migrate, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "table plugin_notes made" in said

    def ask(proxy: ProxyProcess, method: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"{proxy.base_url}/notes", body, method=method)
        request.add_header("authorization", "Bearer sk-admin")
        return json.load(urllib.request.urlopen(request))

    with ProxyProcess(tmp_path, None, "--port", "0") as proxy:
        ask(proxy, "POST", b"remember the milk")
    with ProxyProcess(tmp_path, None, "--port", "0") as proxy:
        notes = ask(proxy, "GET")

    assert [note["text"] for note in notes] == ["remember the milk"]
