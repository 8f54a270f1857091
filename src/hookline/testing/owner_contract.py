"""What every owner store must do, as a pytest class: inherit it, and say in a fixture how your records are opened.

Lives here: `OwnerStoreContract`. Elsewhere: the ledger (record_contract.py), the protocol in words (stores/owners.py).
Idea: each test takes ids and tenants of its own, so that one server can carry a whole run.

    class TestMyOwners(OwnerStoreContract):
        @pytest.fixture
        async def open_records(self): ..."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from hookline.stores.owners import Owner
from hookline.stores.protocols import RecordStore

MakeRecords = Callable[[], RecordStore]


class OwnerStoreContract:
    """Fixture `open_records`: a function that opens the same database, each time as a new RecordStore; the fixture closes them."""

    @pytest.fixture
    def name(self) -> str:
        """The beginning of this test's ids and tenants."""
        return f"t{random.getrandbits(64):x}"

    async def test_a_claim_is_there_for_another_process_when_it_answers(
        self, open_records: MakeRecords, name: str
    ) -> None:
        claimed = owner(f"file-{name}", kind="files", deployment="up/m")

        answered = await open_records().owners.claim([claimed])

        assert answered == {claimed.object_id: claimed}
        assert await open_records().owners.find([claimed.object_id]) == {claimed.object_id: claimed}

    async def test_the_first_claim_wins_and_the_second_is_told(self, open_records: MakeRecords, name: str) -> None:
        first, second, other = (
            owner(f"file-{name}", "acme"),
            owner(f"file-{name}", "globex"),
            owner(f"vs-{name}", "globex"),
        )
        owners = open_records().owners
        await owners.claim([first])

        answered = await owners.claim([second, other])

        assert answered == {first.object_id: first, other.object_id: other}

    async def test_of_many_claims_at_once_one_wins_everywhere(self, open_records: MakeRecords, name: str) -> None:
        stores = [open_records().owners for _ in range(3)]
        ids = [f"file-{name}-{number}" for number in range(5)]

        answers = await asyncio.gather(
            *(
                store.claim([owner(id, f"{name}-{n}-{turn}") for id in (ids if turn % 2 else reversed(ids))])
                for n, store in enumerate(stores)
                for turn in range(4)
            )
        )

        assert all(answer == answers[0] for answer in answers)

    async def test_an_unknown_id_is_nobodys(self, open_records: MakeRecords, name: str) -> None:
        owners = open_records().owners
        await owners.claim([owner(f"file-{name}")])

        found = await owners.find([f"file-{name}".upper(), f"file-{name}x", f"file-{name}%", "", f"file-{name}\0"])

        assert found == {}

    async def test_without_ids_there_is_nothing(self, open_records: MakeRecords) -> None:
        owners = open_records().owners

        assert (await owners.find([]), await owners.claim([])) == ({}, {})

    async def test_only_its_tenant_forgets_an_id(self, open_records: MakeRecords, name: str) -> None:
        owners, id = open_records().owners, f"file-{name}"
        await owners.claim([owner(id, "acme")])

        await owners.forget("globex", [id])
        assert id in await owners.find([id])
        await owners.forget("acme", [id, "never-there"])

        assert await owners.find([id]) == {}

    async def test_many_ids_are_one_question(self, open_records: MakeRecords, name: str) -> None:
        owners = open_records().owners
        claims = [owner(f"msg_{name}_{number}") for number in range(1_000)]

        await owners.claim(claims)

        assert len(await owners.find([claim.object_id for claim in claims])) == 1_000

    async def test_owners_of_objects_are_known_tenants(self, open_records: MakeRecords, name: str) -> None:
        owners = open_records().owners
        await owners.claim([owner(f"file-{name}", f"{name}-a"), owner(f"vs-{name}", f"{name}-b")])

        assert len(set(await owners.tenants())) >= 2


def owner(id: str, tenant: str = "acme", *, kind: str = "", deployment: str = "") -> Owner:
    """An owner; what is not given is plausible."""
    return Owner(id, tenant, "openai", 1_700_000_000.0, kind, deployment)
