"""Auth with virtual keys: real records in SQLite, the real pipeline, time moved by hand, several gateways on one file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from hookline import (
    ANONYMOUS,
    END_USER,
    Budget,
    KeyChanges,
    Limits,
    Principal,
    Rejected,
    StartupError,
    StoredKey,
    Unavailable,
    hookimpl,
)
from hookline.builtins.auth import Plugin as Auth
from hookline.builtins.auth import recorded_keys
from hookline.builtins.auth.end_user import PayingUsers
from hookline.builtins.auth.key_desk import KeyDesk
from hookline.builtins.auth.key_fields import KeyUpdate, NewKey
from hookline.plugin_host import Stores
from hookline.stores.sqlite import SqliteRecords
from hookline.testing.clock import FakeClock
from hookline.testing.kit import Delivered, PipelineKit


class Witness:
    """Keeps the principals that got through."""

    def __init__(self, options: None, host: Any) -> None:
        self.seen: list[Principal] = []

    @hookimpl
    def admit(self, call: Any) -> None:
        self.seen.append(call.principal)


class Records:
    """Records whose keys may go down, be slow, and count what they are asked."""

    def __init__(self, path: Any) -> None:
        self._records = SqliteRecords(path)
        self.keys = self
        self.is_down = False
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        self.after_find: list[Any] = []
        """Coroutine functions, one run after each reading and before its answer arrives."""

    async def _pass(self, what: str) -> None:
        self.asked.append(what)
        if self.gate is not None:
            await self.gate.wait()
        if self.is_down:
            raise Unavailable("records: down")

    async def find(self, hash: str) -> StoredKey | None:
        found = None if self.is_down else await self._records.keys.find(hash)
        await self._pass("find")
        if self.after_find:
            await self.after_find.pop(0)()
        return found

    async def get(self, id: str) -> StoredKey | None:
        return await self._records.keys.get(id)

    async def page(self, **about: Any) -> Sequence[StoredKey]:
        return await self._records.keys.page(**about)

    async def changes(self, after: int, *, limit: int) -> KeyChanges:
        await self._pass("changes")
        return await self._records.keys.changes(after, limit=limit)

    async def aclose(self) -> None:
        await self._records.aclose()


class Gateway:
    """One process: a kit whose auth follows the changes when a test says so."""

    def __init__(self, records: Any, clock: FakeClock, server: dict[str, Any], options: dict[str, Any]) -> None:
        self.records = records
        settings = {"tenants": {}, "users": {}, "global": {}, "server": server, "models": []}
        stores = Stores(None, None, records)  # type: ignore[arg-type]
        self.kit = PipelineKit(
            Auth, Witness, options={"auth": options}, stores=stores, clock=clock, host_settings=settings
        )

    async def follow(self) -> None:
        """What the watching task does every 0.4 s."""
        await self.kit.plugin(Auth)._refresh()

    async def call(self, key: str | None = None, **about: Any) -> Delivered:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await self.kit.call(headers=headers, **about)

    async def status(self, key: str | None = None) -> int:
        return (await self.call(key)).status

    @property
    def last(self) -> Principal:
        return self.kit.plugin(Witness).seen[-1]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def make_gateway(tmp_path, clock):
    opened: list[Gateway] = []

    async def make(
        *, server: dict[str, Any] | None = None, is_down: bool = False, before: Gateway | None = None, **options: Any
    ) -> Gateway:
        """`before`: of which this one is a reload."""
        records = Records(tmp_path / "records.db") if before is None else before.records
        records.is_down = is_down
        opened.append(Gateway(records, clock, server or {}, options))
        await opened[-1].kit.chain.start()
        return opened[-1]

    yield make
    for gateway in opened:
        await gateway.kit.chain.stop()
        await gateway.records.aclose()


@pytest.fixture
async def desk(tmp_path, clock):
    records = SqliteRecords(tmp_path / "records.db")
    yield KeyDesk(lambda: records.keys, clock)
    await records.aclose()


def new(**fields: Any) -> NewKey:
    return NewKey.model_validate({"name": "ci", **fields})


def message(delivered: Delivered) -> str:
    return delivered.json()["error"]["message"]


async def test_every_field_of_a_key_reaches_the_principal(make_gateway, desk):
    fields = {
        "tenant": "acme",
        "user": "ann",
        "models": ["up/*"],
        "requests_per_minute": 60,
        "max_parallel": 2,
        "budget": {"daily_usd": 0.1, "rolling": [{"hours": 5, "usd": 1.5}], "mode": "soft"},
        "tags": ["a", "b"],
    }
    key, secret = await desk.create(new(**fields))
    gateway = await make_gateway()

    assert await gateway.status(secret) == 200
    assert gateway.last == Principal(
        key.id, "ci", "acme", "ann", ("up/*",), Limits(60, None, 2),
        Budget(100_000_000, rolling=((5.0, 1_500_000_000),), mode="soft"), ("a", "b"),
    )  # fmt: skip


async def test_limits_by_model_reach_the_principal_and_can_be_taken_away(make_gateway, desk):
    inner = {"requests_per_hour": 5}
    key, secret = await desk.create(new(requests_per_day=9, limits_by_model={"gpt-*": inner}))
    gateway = await make_gateway()
    assert await gateway.status(secret) == 200
    assert gateway.last.limits == Limits(requests_per_day=9, by_model=(("gpt-*", Limits(requests_per_hour=5)),))

    await desk.update(key.id, KeyUpdate(requests_per_day=None, limits_by_model={}))
    await gateway.follow()

    assert await gateway.status(secret) == 200
    assert gateway.last.limits == Limits()


async def test_other_plugins_find_a_principal_by_name_or_id(make_gateway, desk):
    key, _ = await desk.create(new(tenant="acme"))
    gateway = await make_gateway(keys=[{"name": "old", "key": "sk-old", "tenant": "toml"}])
    find = gateway.kit.plugin(Auth).find_principal
    unknown = await find("nobody")

    assert [found and found.tenant for found in (await find("old"), await find("ci"), await find(key.id), unknown)] == [
        "toml", "acme", "acme", None,
    ]  # fmt: skip


async def test_a_known_key_costs_no_question_and_keeps_its_principal(make_gateway, desk):
    _, secret = await desk.create(new())
    gateway = await make_gateway()
    await gateway.status(secret)
    first = gateway.last
    gateway.records.asked.clear()

    for _ in range(20):
        await gateway.status(secret)

    assert gateway.records.asked == []
    assert gateway.last is first


async def test_keys_of_proxy_toml_go_on_beside_virtual_ones(make_gateway, desk):
    _, secret = await desk.create(new())
    gateway = await make_gateway(keys=[{"name": "old", "key": "sk-old"}])

    assert [await gateway.status(key) for key in ("sk-old", secret, "sk-other", None)] == [200, 200, 401, 401]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("revoke", "This API key was revoked. Ask whoever runs this gateway for a new one."),
        ("disable", "This API key is disabled. Ask whoever runs this gateway for a new one."),
        ("rotate", "This API key was replaced by a newer one. Ask whoever runs this gateway for a new one."),
        ("expire", "This API key has expired. Ask whoever runs this gateway for a new one."),
    ],
)
async def test_a_key_that_is_no_longer_good_is_refused_by_every_gateway(make_gateway, desk, clock, change, told):
    key, secret = await desk.create(new(expires_in_s=100))
    gateways = [await make_gateway() for _ in range(2)]
    assert [await gateway.status(secret) for gateway in gateways] == [200, 200]

    if change == "revoke":
        await desk.revoke(key.id)
    elif change == "disable":
        await desk.update(key.id, KeyUpdate(disabled=True))
    elif change == "rotate":
        await desk.rotate(key.id, 0)
    else:
        clock.advance(100)
    for gateway in gateways:
        await gateway.follow()

    for gateway in gateways:
        delivered = await gateway.call(secret)
        assert (delivered.status, message(delivered)) == (401, told)


async def test_a_disabled_key_can_be_enabled_and_an_update_takes_hold(make_gateway, desk):
    key, secret = await desk.create(new(disabled=True))
    gateway = await make_gateway()
    assert await gateway.status(secret) == 401

    await desk.update(key.id, KeyUpdate(disabled=False, tenant="acme"))
    await gateway.follow()

    assert await gateway.status(secret) == 200
    assert gateway.last.tenant == "acme"
    await desk.update(key.id, KeyUpdate(models=["other"]))
    await gateway.follow()
    assert await gateway.status(secret) == 403


async def test_rotation_lets_the_old_secret_go_on_for_the_overlap(make_gateway, desk, clock):
    key, old = await desk.create(new())
    gateway = await make_gateway()
    assert await gateway.status(old) == 200
    _, current = await desk.rotate(key.id, 60)
    await gateway.follow()
    assert [await gateway.status(secret) for secret in (old, current)] == [200, 200]
    assert gateway.last.key_id == key.id

    clock.advance(59)
    await gateway.follow()
    assert [await gateway.status(secret) for secret in (old, current)] == [200, 200]
    clock.advance(1)

    assert [await gateway.status(secret) for secret in (old, current)] == [401, 200]


async def test_rotating_twice_ends_the_first_secret_at_once(make_gateway, desk):
    key, first = await desk.create(new())
    _, second = await desk.rotate(key.id, 60)
    _, third = await desk.rotate(key.id, 60)
    gateway = await make_gateway()

    assert [await gateway.status(secret) for secret in (first, second, third)] == [401, 200, 200]


async def test_a_revoked_key_is_refused_with_its_old_secret_too(make_gateway, desk):
    key, old = await desk.create(new())
    _, current = await desk.rotate(key.id, 60)
    gateway = await make_gateway()
    assert [await gateway.status(secret) for secret in (old, current)] == [200, 200]

    await desk.revoke(key.id)
    await gateway.follow()

    assert [await gateway.status(secret) for secret in (old, current)] == [401, 401]


async def test_a_key_revoked_while_it_is_looked_for_does_not_stay(make_gateway, desk):
    """The store answered before the revocation, and the answer arrives after it was learnt."""
    key, secret = await desk.create(new())
    gateway = await make_gateway()
    gate = gateway.records.gate = asyncio.Event()
    call = asyncio.ensure_future(gateway.status(secret))
    while "find" not in gateway.records.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    gateway.records.gate = None
    await desk.revoke(key.id)
    await gateway.follow()

    gate.set()

    assert await call == 401
    assert await gateway.status(secret) == 401


async def test_an_answer_that_changes_have_overtaken_twice_is_given_and_not_kept(make_gateway, desk):
    (key, secret), (other, _) = await desk.create(new()), await desk.create(new())
    gateway = await make_gateway()

    async def change_another() -> None:
        await desk.update(other.id, KeyUpdate(tenant="acme"))
        await gateway.follow()

    async def revoke() -> None:
        await desk.revoke(key.id)
        await gateway.follow()

    gateway.records.after_find = [change_another, revoke]

    assert await gateway.status(secret) == 200  # it was good when it was read
    assert await gateway.status(secret) == 401


async def test_without_any_key_everyone_is_anonymous_until_the_first_one(make_gateway, desk):
    gateways = [await make_gateway() for _ in range(2)]
    assert [await gateway.status(key) for gateway in gateways for key in (None, "whatever", "sk-hk-x")] == [200] * 6
    assert gateways[0].last is ANONYMOUS

    key, secret = await desk.create(new())
    for gateway in gateways:
        await gateway.follow()

    assert [await gateway.status(key) for gateway in gateways for key in (None, "whatever", secret)] == [
        401,
        401,
        200,
    ] * 2
    await desk.revoke(key.id)
    for gateway in (*gateways, await make_gateway()):
        await gateway.follow()
        assert [await gateway.status(key) for key in (None, "whatever", secret)] == [401] * 3


async def test_open_lets_strangers_in_although_there_are_keys(make_gateway, desk):
    key, secret = await desk.create(new())
    gateway = await make_gateway(open=True)

    assert [await gateway.status(key) for key in (None, "whatever", secret)] == [200] * 3
    assert gateway.last.key_name == "ci"
    await desk.revoke(key.id)
    await gateway.follow()
    assert [await gateway.status(key) for key in (None, "whatever", secret)] == [200, 200, 401]


async def test_records_unreadable_at_start_is_closed_and_says_503(make_gateway, desk):
    gateway = await make_gateway(is_down=True)

    for key in (None, "whatever", "sk-hk-x"):
        delivered = await gateway.call(key)
        assert delivered.status == 503
        assert int(delivered.headers["retry-after"]) >= 1

    gateway.records.is_down = False
    await gateway.follow()
    assert await gateway.status() == 200


async def test_with_keys_in_proxy_toml_records_down_means_401_only_where_it_is_certain(make_gateway):
    gateway = await make_gateway(is_down=True, keys=[{"name": "old", "key": "sk-old"}])

    assert [await gateway.status(key) for key in ("sk-old", None, "sk-hk-x", "whatever")] == [200, 401, 503, 503]


async def test_records_down_keys_seen_in_the_last_minute_go_on(make_gateway, desk, clock):
    secrets = [(await desk.create(new(name=f"k{n}")))[1] for n in range(3)]
    used, idle, unseen = secrets
    gateway = await make_gateway()
    assert [await gateway.status(key) for key in (used, idle)] == [200, 200]
    gateway.records.is_down = True

    async def after(seconds: float) -> list[int]:
        clock.advance(seconds)
        await gateway.follow()
        return [await gateway.status(key) for key in (used, unseen, None)]

    assert await after(30) == [200, 503, 401]
    assert await after(59) == [200, 503, 401]
    assert await gateway.status(idle) == 503
    gateway.records.is_down = False
    assert await after(59) == [200, 200, 401]
    assert await gateway.status(idle) == 200


async def test_a_reload_while_records_are_down_knows_the_keys_that_were_known(make_gateway, desk, clock):
    secrets = [(await desk.create(new(name=f"k{n}")))[1] for n in range(3)]
    used, revoked, unseen = secrets
    gateway = await make_gateway()
    assert [await gateway.status(key) for key in (used, revoked)] == [200, 200]

    reloaded = await make_gateway(before=gateway, is_down=True)
    clock.advance(10)
    await reloaded.follow()
    during = [await reloaded.status(key) for key in (used, unseen, None)]
    gateway.records.is_down = False
    await desk.revoke((await desk.get_named("k1")).id)
    again = await make_gateway(before=reloaded)

    assert during == [200, 503, 401]
    assert [await again.status(key) for key in secrets] == [200, 401, 200]


async def test_a_change_to_a_key_is_not_a_use_of_it(make_gateway, desk, clock):
    key, secret = await desk.create(new())
    gateway = await make_gateway()
    assert await gateway.status(secret) == 200
    clock.advance(50)
    await desk.update(key.id, KeyUpdate(tenant="acme"))
    await gateway.follow()
    gateway.records.is_down = True
    clock.advance(9)
    assert await gateway.status(secret) == 200

    key, idle = await desk.create(new())
    gateway.records.is_down = False
    assert await gateway.status(idle) == 200
    clock.advance(50)
    await desk.update(key.id, KeyUpdate(tenant="acme"))
    await gateway.follow()
    gateway.records.is_down = True
    clock.advance(10)

    assert await gateway.status(idle) == 503


async def test_a_key_that_was_none_before_the_outage_is_503_during_it(make_gateway, desk, clock):
    await desk.create(new())
    gateway = await make_gateway()
    assert await gateway.status("sk-hk-none") == 401
    gateway.records.is_down = True
    clock.advance(3)

    assert await gateway.status("sk-hk-none") == 503


async def test_records_that_hang_are_503_in_their_time_and_nothing_for_known_keys(make_gateway, desk, monkeypatch):
    monkeypatch.setattr(recorded_keys, "ANSWER_S", 0.05)
    (_, used), (_, unseen) = await desk.create(new()), await desk.create(new())
    gateway = await make_gateway()
    assert await gateway.status(used) == 200
    gateway.records.gate = asyncio.Event()

    await gateway.follow()

    assert [await gateway.status(key) for key in (used, unseen, "sk-hk-none", None)] == [200, 503, 503, 401]


async def test_what_is_no_key_is_asked_for_once_in_a_while(make_gateway, desk, clock):
    await desk.create(new())
    gateway = await make_gateway()
    gateway.records.asked.clear()

    for _ in range(10):
        assert await gateway.status("sk-hk-none") == 401
    for n in range(10):
        assert await gateway.status(f"other-{n}") == 401

    assert gateway.records.asked == ["find"]
    clock.advance(recorded_keys.REFUSED_S)
    await gateway.follow()
    await gateway.status("sk-hk-none")
    assert gateway.records.asked == ["find", "changes", "find"]


async def test_many_callers_with_one_unknown_key_ask_once_and_too_many_keys_are_503(make_gateway, desk, monkeypatch):
    monkeypatch.setattr(recorded_keys, "ASKING_MAX", 3)
    _, secret = await desk.create(new())
    gateway = await make_gateway()
    gateway.records.asked.clear()
    gate = gateway.records.gate = asyncio.Event()
    same = [asyncio.ensure_future(gateway.status(secret)) for _ in range(20)]
    others = [asyncio.ensure_future(gateway.status(f"sk-hk-{n}")) for n in range(5)]
    leaver = same.pop(0)
    while len(gateway.records.asked) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    leaver.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaver
    gate.set()

    assert set(await asyncio.gather(*same)) == {200}
    assert sorted(await asyncio.gather(*others)) == [401, 401, 503, 503, 503]
    assert gateway.records.asked.count("find") == 3


async def test_what_is_known_is_bounded(make_gateway, desk, monkeypatch):
    monkeypatch.setattr(recorded_keys, "KNOWN_MAX", 5)
    monkeypatch.setattr(recorded_keys, "REFUSED_MAX", 5)
    secrets = [(await desk.create(new()))[1] for _ in range(8)]
    gateway = await make_gateway()

    assert [await gateway.status(secret) for secret in secrets * 2] == [200] * 16
    assert {await gateway.status(f"sk-hk-{n}") for n in range(20)} == {401}

    recorded = gateway.kit.plugin(Auth)._recorded
    assert len(recorded._known) == len(recorded._digests_by_id) == 5
    assert len(recorded._refused) <= 5


async def test_records_that_came_back_older_are_believed(make_gateway, desk, tmp_path, clock):
    key, secret = await desk.create(new())
    gateway = await make_gateway()
    assert await gateway.status(secret) == 200
    await desk.update(key.id, KeyUpdate(tenant="acme"))
    await gateway.follow()
    assert await gateway.status(secret) == 200
    fresh = Records(tmp_path / "restored.db")
    restored = KeyDesk(lambda: fresh._records.keys, clock)
    _, other = await restored.create(new())
    gateway.kit.plugin(Auth)._recorded._store = fresh

    await gateway.follow()

    assert [await gateway.status(key) for key in (secret, other, None)] == [401, 200, 401]
    await fresh.aclose()


async def test_more_changes_than_a_page_are_all_learnt(make_gateway, desk, monkeypatch):
    monkeypatch.setattr(recorded_keys, "PAGE", 3)
    made = [await desk.create(new()) for _ in range(10)]
    gateway = await make_gateway()
    assert {await gateway.status(secret) for _, secret in made} == {200}

    for key, _ in made:
        await desk.revoke(key.id)
    await gateway.follow()

    assert {await gateway.status(secret) for _, secret in made} == {401}


@pytest.mark.parametrize(("server", "is_refused"), [({"open": True}, False), ({}, True)])
async def test_a_host_that_others_reach_is_not_served_without_any_key(make_gateway, desk, server, is_refused):
    reached = {"host": "0.0.0.0", "is_loopback": False, **server}
    if not is_refused:
        assert await (await make_gateway(server=reached)).status() == 200
        return

    with pytest.raises(StartupError, match="hookline keys create"):
        await make_gateway(server=reached)

    await desk.create(new())
    assert await (await make_gateway(server=reached)).status() == 401


async def test_a_store_of_records_that_keeps_no_keys_will_do(make_gateway, clock):
    class Bare:
        readiness = None

    gateway = Gateway(Bare(), clock, {}, {"keys": [{"name": "old", "key": "sk-old"}]})
    await gateway.kit.chain.start()

    assert [await gateway.status(key) for key in ("sk-old", "sk-hk-x", None)] == [200, 401, 401]


@pytest.mark.parametrize(
    ("headers", "payload", "expected"),
    [
        ({}, {}, None),
        ({}, {"user": "eve"}, "eve"),
        ({}, {"user": "eve", "safety_identifier": "s-1"}, "s-1"),
        ({"x-end-user": "hans"}, {"user": "eve"}, "hans"),
        ({}, {"user": 7}, None),
        ({}, {"user": ["eve"]}, None),
        ({}, {"user": "a\nb"}, None),
        ({}, {"user": "x" * 300}, "x" * 200),
    ],
)
async def test_the_end_user_is_what_the_client_says(make_gateway, headers, payload, expected):
    gateway = await make_gateway(end_user_header="X-End-User")
    call = gateway.kit.make_call({"model": "up/m", "messages": [], **payload}, headers=headers)

    await gateway.kit.run(call)

    assert call.find(END_USER) == expected


def names(seen: Sequence[Principal]) -> list[str | None]:
    return [principal.user for principal in seen]


async def test_who_pays_is_not_what_the_client_claims(make_gateway):
    gateway = await make_gateway(keys=[{"name": "a", "key": "sk-a", "user": "ann"}, {"name": "b", "key": "sk-b"}])
    payload = {"model": "up/m", "messages": [], "user": "eve"}

    for key in ("sk-a", "sk-b"):
        await gateway.call(key, payload=payload)

    assert names(gateway.kit.plugin(Witness).seen) == ["ann", None]


async def test_end_user_pays_where_that_is_configured_and_the_key_has_no_user(make_gateway):
    keys = [{"name": "a", "key": "sk-a", "user": "ann"}, {"name": "b", "key": "sk-b"}]
    gateway = await make_gateway(keys=keys, end_user_pays=True)
    payload = {"model": "up/m", "messages": [], "user": "eve"}

    for key in ("sk-a", "sk-b", "sk-b"):
        await gateway.call(key, payload=payload)

    seen = gateway.kit.plugin(Witness).seen
    assert names(seen) == ["ann", "eve", "eve"]
    assert seen[1] is seen[2]
    assert seen[1].key_id == "b"


async def test_a_key_that_makes_up_end_users_gets_no_new_ones_and_keeps_those_it_has():
    paying, principal = PayingUsers(2), Principal(key_id="k", key_name="k")
    first = paying.find(principal, "a", 1)
    paying.find(principal, "b", 1)

    with pytest.raises(Rejected) as raised:
        paying.find(principal, "c", 1)

    assert (raised.value.error.status, raised.value.error.error_code) == (429, "too_many_end_users")
    assert paying.find(principal, "a", 1) is first
    assert paying.find(Principal(key_id="other"), "c", 1).user == "c"
    assert paying.find(principal, "c", 2).user == "c", "the next day"
