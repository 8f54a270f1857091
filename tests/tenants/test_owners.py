"""One tenant, several providers, records that are down, a second tenant that comes later."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from typing import Any

import openai

from hookline.builtins import owners
from hookline.stores.sqlite_owners import SqliteOwners
from hookline.testing.upstream import json_reply

USER: Any = [{"role": "user", "content": "hi"}]


def rows(proxy_folder) -> list[tuple[str, str, str, str]]:
    with sqlite3.connect(proxy_folder / "hookline.db") as connection:
        found = connection.execute(
            "SELECT object_id, tenant, provider, kind FROM owners ORDER BY created_at"
        ).fetchall()
    return [row for row in found if not row[0].startswith("tenant:")]


async def test_with_one_tenant_nothing_is_recorded_or_checked(serve, sdk, ask, upstream) -> None:
    proxy = await serve(keys=one_key("acme"))
    client = sdk(proxy, "acme")

    file = await client.files.create(file=b"x", purpose="user_data")
    unknown = await ask(proxy, "acme", "GET", "/v1/files/file-nobodys")
    account = await ask(proxy, "acme", "GET", "/v1/organization/users")

    assert (await client.files.retrieve(file.id)).id == file.id
    assert (unknown[0], account[0], len(upstream.requests)) == (200, 200, 4)
    assert rows(proxy.folder) == []


def one_key(tenant: str) -> str:
    return f'[[plugins.auth.keys]]\nname = "{tenant}"\nkey = "sk-{tenant}"\ntenant = "{tenant}"\n'


async def test_tenants_of_keys_that_are_made_while_it_serves(serve, ask, upstream) -> None:
    """Nothing in proxy.toml names a tenant: the first one is alone until the second one's first call."""
    proxy = await serve('[admin]\nkey = "sk-administrator"\n', keys="")
    keys = {}
    for tenant in ("acme", "globex"):
        if tenant == "globex":
            assert (await ask(proxy, "-", "GET", "/v1/files/file-x", headers=keys["acme"]))[0] == 200, (
                "alone: not checked"
            )
        status, made = await ask(proxy, "administrator", "POST", "/admin/keys", json={"name": tenant, "tenant": tenant})
        assert status in (200, 201), made
        keys[tenant] = {"authorization": f"Bearer {made['key']}"}
    read = await ask(proxy, "-", "GET", "/v1/files", headers=keys["globex"])
    made = (await ask(proxy, "-", "POST", "/v1/conversations", headers=keys["acme"], json={}))[1]
    asked = len(upstream.requests)

    hostile = await ask(proxy, "-", "GET", f"/v1/conversations/{made['id']}", headers=keys["globex"])
    admin = [await ask(proxy, "-", method, "/admin/keys", headers=keys["globex"]) for method in ("GET", "POST")]

    assert (read[0], read[1]["data"], hostile[0], len(upstream.requests)) == (200, [], 404, asked)
    assert {status for status, _ in admin} <= {401, 403, 404}
    assert (await ask(proxy, "-", "GET", f"/v1/conversations/{made['id']}", headers=keys["acme"]))[0] == 200


async def test_always_records_for_the_day_when_a_second_one_comes(serve, sdk) -> None:
    proxy = await serve('[plugins.owners]\nwhen = "always"\n', keys=one_key("acme"))

    file = await sdk(proxy, "acme").files.create(file=b"x", purpose="user_data")

    assert rows(proxy.folder) == [(file.id, "acme", "up", "files")]


async def test_an_owner_outlives_the_process_and_a_deleted_object_is_forgotten(serve, sdk) -> None:
    first = await serve()
    file = await sdk(first, "acme").files.create(file=b"x", purpose="user_data")
    await first.stop()

    second = await serve()

    assert (await sdk(second, "acme").files.retrieve(file.id)).id == file.id
    assert await status_of(sdk(second, "globex").files.retrieve(file.id)) == 404
    assert (await sdk(second, "acme").files.delete(file.id)).deleted
    assert rows(second.folder) == []
    assert await status_of(sdk(second, "acme").files.retrieve(file.id)) == 404


async def test_an_id_that_one_process_deleted_and_another_tenant_got_is_not_the_first_ones_anywhere(
    serve, sdk, upstream
) -> None:
    """A provider, or a test's, may give an id again: no process goes by what it knew of it."""
    records = f'[state]\nrecords = "sqlite:///{(await serve()).folder}/hookline.db"\n'
    one, two = await serve(records, folder="one"), await serve(records, folder="two")
    file = (await sdk(one, "acme").files.create(file=b"x", purpose="user_data")).id
    assert (await sdk(two, "acme").files.retrieve(file)).id == file

    await sdk(one, "acme").files.delete(file)
    upstream._numbers = itertools.count(1)
    assert (await sdk(one, "globex").files.create(file=b"y", purpose="user_data")).id == file

    assert await status_of(sdk(two, "acme").files.retrieve(file)) == 404
    assert (await sdk(two, "globex").files.delete(file)).id == file
    upstream._numbers = itertools.count(1)
    assert (await sdk(one, "globex").files.create(file=b"z", purpose="user_data")).id == file
    assert (await sdk(two, "globex").files.retrieve(file)).id == file


async def status_of(asked: Any) -> int:
    try:
        await asked
    except openai.APIStatusError as error:
        return error.status_code
    return 200


MODELS = """
[models.near]
deployments = ["up/gpt-4o"]
[models.far]
deployments = ["elsewhere/gpt-4o"]
[models.keyed]
deployments = [{ provider = "elsewhere", model = "gpt-4o", id = "elsewhere/keyed", api_key = "another-account" }]
[models.both]
deployments = ["up/gpt-4o", "elsewhere/gpt-4o"]
"""


async def test_follow_ups_go_to_the_provider_and_account_that_made_the_id(serve, sdk, upstream, elsewhere) -> None:
    proxy = await serve(MODELS)
    client = sdk(proxy, "acme")

    near = await client.responses.create(model="near", input="hi")
    far = await client.responses.create(model="far", input="hi")
    keyed = await client.responses.create(model="keyed", input="hi")

    assert (await client.responses.retrieve(far.id)).id == far.id
    assert (await client.responses.cancel(far.id)).id == far.id
    await client.responses.input_items.list(far.id)
    assert {r.header("authorization") for r in elsewhere.requests if far.id in r.target} == {"Bearer k"}
    assert (await client.responses.retrieve(keyed.id)).id == keyed.id
    assert elsewhere.requests[-1].header("authorization") == "Bearer another-account"
    went_on = await client.responses.create(model="both", input="?", previous_response_id=far.id)
    assert went_on.id in {o["id"] for o in elsewhere.objects.values()}
    assert await status_of(client.responses.create(model="near", input="?", previous_response_id=far.id)) == 400
    assert (
        await status_of(client.responses.create(model="both", input=[{"id": far.id}], previous_response_id=near.id))
        == 400
    )
    assert len(upstream.requests) == 1
    await client.responses.delete(far.id)
    assert elsewhere.requests[-1].method == "DELETE"


async def test_what_the_operator_shares_may_be_read_and_not_changed(serve, sdk, ask, upstream) -> None:
    upstream.objects["vector_stores/vs_handbook1"] = {"id": "vs_handbook1", "object": "vector_store"}
    upstream.objects["models/ft:gpt-4o:us::1"] = {"id": "ft:gpt-4o:us::1", "object": "model"}
    proxy = await serve('[plugins.owners]\nshared = ["vs_handbook*", "ft:gpt-4o:us:*", "pmpt_1"]\n')
    client = sdk(proxy, "globex")

    tools: Any = [{"type": "file_search", "vector_store_ids": ["vs_handbook1"]}]
    assert (await client.responses.create(model="ft:gpt-4o:us::1", input="hi", tools=tools, prompt={"id": "pmpt_1"})).id
    assert (await client.vector_stores.retrieve("vs_handbook1")).id
    assert [store.id async for store in client.vector_stores.list()] == ["vs_handbook1"]
    assert await status_of(client.vector_stores.search("vs_handbook1", query="x")) == 200
    for change in (client.vector_stores.delete("vs_handbook1"), client.vector_stores.update("vs_handbook1", name="x"),
                   client.vector_stores.files.create("vs_handbook1", file_id="vs_handbook1"), client.models.delete("ft:gpt-4o:us::1")):  # fmt: skip
        assert await status_of(change) == 404


async def test_without_the_plugin_such_routes_are_refused(serve, ask, upstream) -> None:
    proxy = await serve('[chain]\nplugins = ["auth"]\n')

    status, reply = await ask(proxy, "acme", "GET", "/v1/files/file-1")

    assert (status, reply["error"]["code"], upstream.requests) == (403, "stored_objects_not_shared", [])


async def test_while_records_are_down_nothing_is_made_or_shown_that_needs_them(serve, sdk, ask, upstream) -> None:
    proxy = await serve()
    client = sdk(proxy, "acme")
    file = await client.files.create(file=b"x", purpose="user_data")
    known = await client.files.create(file=b"x", purpose="user_data")
    other = sqlite3.connect(proxy.folder / "hookline.db", isolation_level=None)
    other.execute("DROP TABLE owners")
    asked = len(upstream.requests)

    status, reply = await ask(proxy, "globex", "GET", f"/v1/files/{file.id}")
    listed = await status_of(sdk(proxy, "globex").files.list())
    created = await ask(proxy, "acme", "POST", "/v1/conversations", json={})
    streamed = await ask(
        proxy, "acme", "POST", "/v1/responses", json={"model": "gpt-4o", "input": "hi", "stream": True}
    )
    chat = await client.chat.completions.create(model="gpt-4o", messages=USER)

    assert (status, reply["error"]["code"]) == (503, "owners_unavailable")
    assert (listed, created[0], bool(chat.id)) == (503, 503, True)
    assert "conv_" not in json.dumps(created[1])
    assert (streamed[0], streamed[1]["error"]["code"]) == (503, "owners_unavailable")
    assert (await client.files.retrieve(known.id)).id == known.id, "what this process knows is served"
    assert len(upstream.requests) >= asked
    other.close()


async def test_records_that_hang_do_not_hold_what_this_process_knows(serve, sdk, ask, monkeypatch) -> None:
    proxy = await serve()
    client = sdk(proxy, "acme")
    file = await client.files.create(file=b"x", purpose="user_data")

    async def hang(*args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(SqliteOwners, "find", hang)
    monkeypatch.setattr(owners, "SEEN_WAIT_S", 0.01)

    assert (await client.files.retrieve(file.id)).id == file.id


async def test_an_object_that_comes_back_as_anothers_is_not_shown(serve, sdk, ask, upstream) -> None:
    """A provider that answers two tenants with one id: whoever came first has it."""
    proxy = await serve()
    same = {"id": "file-same0001", "object": "file", "filename": "secret.txt"}
    upstream.play(json_reply(same), json_reply(same))

    first = await ask(proxy, "acme", "POST", "/v1/conversations", json={})
    second = await ask(proxy, "globex", "POST", "/v1/conversations", json={})

    assert (first[0], second[0]) == (200, 502)
    assert "secret" not in json.dumps(second[1])


async def test_an_owners_id_is_there_when_the_reply_is(serve, sdk) -> None:
    """Asked for the moment it is known, a hundred times at once, it is never unknown."""
    proxy = await serve()
    client = sdk(proxy, "acme")

    async def make_and_read() -> str:
        id = (await client.conversations.create()).id
        return (await client.conversations.retrieve(id)).id

    assert len(set(await asyncio.gather(*(make_and_read() for _ in range(100))))) == 100
