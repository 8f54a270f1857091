"""When there are several tenants: processes that share records learn of each other's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hookline import Unavailable
from hookline.builtins.owners import tenancy
from hookline.builtins.owners.tenancy import Tenancy
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.clock import FakeClock


@pytest.fixture
async def make_process(tmp_path):
    """A process's view of who there is: each has records of its own on one file."""
    opened = []

    def make(*named: str, always: bool = False) -> Tenancy:
        opened.append(SqliteRecords(tmp_path / "records.db"))
        host: Any = SimpleNamespace(records=opened[-1], clock=FakeClock())
        return Tenancy(host, named, is_always_shared=always)

    yield make
    for records in opened:
        await records.aclose()


async def test_the_first_tenant_is_alone_everywhere(make_process) -> None:
    for process in (make_process(), make_process("acme"), make_process()):
        assert not process.is_alone("acme"), "nobody is known before a call"
        assert await process.meet("acme")
        assert process.is_alone("acme")
        assert not process.is_alone("globex")


async def test_two_processes_never_each_believe_in_one_tenant(make_process) -> None:
    """Tenants that only tokens name: no table knows them beforehand."""
    one, other = make_process(), make_process()

    alone = await asyncio.gather(one.meet("acme"), other.meet("globex"))

    assert not all(alone)
    assert not await make_process().meet("acme")


async def test_a_process_notices_a_tenant_that_another_has_met(make_process, monkeypatch) -> None:
    monkeypatch.setattr(tenancy, "LOOK_EVERY_S", 0)
    one, other = make_process(), make_process()
    await one.meet("acme")
    watching = asyncio.ensure_future(one.watch())

    assert not await other.meet("globex")
    await watching

    assert not one.is_alone("acme")


async def test_named_tenants_count_before_anybody_calls(make_process) -> None:
    assert make_process("acme", "globex").is_shared
    assert make_process(always=True).is_shared
    assert not await make_process("acme").meet("globex")


async def test_a_burst_of_first_calls_asks_once_and_one_who_leaves_takes_nobody_along(make_process) -> None:
    """500 first calls at once asked 500 times: a database's few connections were busy for longer than a question may take, and calls were refused."""
    process = make_process()
    owners, asked = process._host.records.owners, []

    async def claim(claims: Any) -> Any:
        asked.append(claims)
        return await owners.claim(claims)

    process._host.records.owners = SimpleNamespace(claim=claim, tenants=owners.tenants)

    first, *others = [asyncio.ensure_future(process.meet("acme")) for _ in range(500)]
    await asyncio.sleep(0)
    first.cancel()

    assert all(await asyncio.gather(*others))
    assert len(asked) == 1


async def test_who_can_not_ask_assumes_that_there_are_others_until_it_can(make_process) -> None:
    process = make_process()
    owners = process._host.records.owners

    async def refuse(*_: object) -> None:
        raise Unavailable("down")

    process._host.records.owners = SimpleNamespace(claim=refuse)
    assert not await process.meet("acme")
    process._host.records.owners = owners

    assert await process.meet("acme")
