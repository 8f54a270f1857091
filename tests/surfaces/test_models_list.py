"""`GET /v1/models` and `/v1/models/{id}`: own names, and what the default provider lists."""

from __future__ import annotations

import orjson
import pytest

from hookline.attempt import Attempt
from hookline.call import Call
from hookline.deployment import Deployment, Target
from hookline.errors import Unauthenticated
from hookline.principal import Principal
from hookline.reply import Reply


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def ids(body: bytes) -> list[str]:
    listed = orjson.loads(body)
    assert listed["object"] == "list"
    assert all({"id", "object", "created", "owned_by"} <= model.keys() for model in listed["data"])
    return [model["id"] for model in listed["data"]]


def upstream(status: int, body: bytes):
    async def answer(call: Call) -> Reply:
        call.attempts.append(Attempt(Target(Deployment("up/", "up", "")), 1, 0.0))
        return Reply(status, {"content-type": "application/json", "x-hookline-deployment": "up/"}, body)

    return answer


def described(*names: str) -> bytes:
    models = [{"id": name, "object": "model", "created": 1, "owned_by": "up"} for name in names]
    return orjson.dumps({"object": "list", "data": models})


def as_team(call: Call) -> None:
    call.principal = Principal(key_id="k", models=("gpt-*",))


async def test_own_models_are_listed_without_a_provider(open_door, make_catalog):
    door = await open_door(catalog=make_catalog("gpt-4o", "mine"))

    reply = await door.ask(get("/v1/models"))

    (call,) = door.pipeline.calls
    assert (call.endpoint, ids(reply.body)) == ("models", ["gpt-4o", "mine"])


async def test_default_providers_models_come_after_the_own_ones_once(open_door, make_catalog):
    answer = upstream(200, described("up-1", "mine", "gpt-x"))
    door = await open_door(answer, catalog=make_catalog("gpt-4o", "mine", default="up"))

    reply = await door.ask(get("/v1/models"))

    assert ids(reply.body) == ["gpt-4o", "mine", "up-1", "gpt-x"]
    assert reply.headers["x-hookline-deployment"] == "up/"


@pytest.mark.parametrize("path", ["/v1/%6dodels", "/v1/Models", "/v1/models/", "/v1/%2fmodels"])
async def test_list_is_the_list_however_its_path_is_spelled(open_door, make_catalog, path):
    door = await open_door(
        upstream(200, described("up-1")), check=as_team, catalog=make_catalog("gpt-4o", default="up")
    )

    reply = await door.ask(get(path))

    assert ids(reply.body) == ["gpt-4o"]


@pytest.mark.parametrize("default", [None, "up"])
async def test_list_holds_only_what_the_key_may_use(open_door, make_catalog, default):
    door = await open_door(
        upstream(200, described("up-1", "gpt-x")),
        check=as_team,
        catalog=make_catalog("gpt-4o", "mine", default=default),
    )

    reply = await door.ask(get("/v1/models"))

    assert ids(reply.body) == (["gpt-4o"] if default is None else ["gpt-4o", "gpt-x"])


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (401, b"{}"),
        (404, b"nothing here"),
        (200, b"not json"),
        (200, b'{"data": 3}'),
        (200, b'{"data": [{}, 1]}'),
    ],
)
async def test_own_models_are_listed_when_the_provider_fails(open_door, make_catalog, status, body):
    door = await open_door(upstream(status, body), catalog=make_catalog("mine", default="up"))

    reply = await door.ask(get("/v1/models"))

    assert (reply.status, ids(reply.body)) == (200, ["mine"])


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/mine", "/v1/models/other"])
@pytest.mark.parametrize("default", [None, "up"])
async def test_gateways_own_refusal_is_passed_on(open_door, make_catalog, path, default):
    def check(call: Call) -> None:
        raise Unauthenticated("no key was shown")

    door = await open_door(check=check, catalog=make_catalog("mine", default=default))

    assert (await door.ask(get(path))).status == 401


@pytest.mark.parametrize("path", ["/v1/models/team/big", "/v1/models/team%2Fbig", "/v1/models/te%61m/big"])
async def test_own_model_is_described(open_door, make_catalog, path):
    door = await open_door(catalog=make_catalog("team/big", default="up"))

    reply = await door.ask(get(path))

    assert orjson.loads(reply.body) == {"id": "team/big", "object": "model", "created": 0, "owned_by": "hookline"}


async def test_own_model_that_the_key_may_not_use_is_404(open_door, make_catalog):
    door = await open_door(check=as_team, catalog=make_catalog("mine"))

    reply = await door.ask(get("/v1/models/mine"))

    assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (404, "model_not_found")


async def test_other_model_is_a_call_that_names_it(open_door, make_catalog):
    door = await open_door(catalog=make_catalog("mine"))

    reply = await door.ask(get("/v1/models/up%2Fllama%3A8b"))

    (call,) = door.pipeline.calls
    assert (call.endpoint, call.model, call.local, reply.body) == ("models", "up/llama:8b", None, b'{"ok":true}')


async def test_head_of_the_list_has_the_length_of_the_list(open_door, make_catalog):
    door = await open_door(upstream(200, described("up-1")), catalog=make_catalog("mine", default="up"))
    client = await door.connect()

    await client.send(get("/v1/models", "HEAD"))
    head = await client.read_reply(is_head=True)
    whole = await client.ask(get("/v1/models"))

    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_deleting_a_model_is_relayed(open_door, make_catalog):
    door = await open_door(catalog=make_catalog("mine"))

    await door.ask(get("/v1/models/mine", "DELETE"))

    (call,) = door.pipeline.calls
    assert (call.endpoint, call.method, call.local) == ("relay", "DELETE", None)
