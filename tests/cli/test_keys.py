"""Virtual keys as an operator and a client meet them: `hookline keys`, `/admin/keys`, real gateways on one database, the database going away."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from hookline.testing.process import HOOKLINE, ProxyProcess, clean_environ

ROOT = Path(__file__).resolve().parents[2]
ADMIN = "admin-canary-4711"
TEXT = """
[server]
port = 0
[state]
records = "{records}"
[admin]
key = "{admin}"
[providers.demo]
kind = "demo"
default = true
[tenants.narrow]
models = ["demo/echo", "demo/lorem"]
[users.bob]
models = ["demo/echo", "demo/slow"]
[global]
models = ["demo/*"]
[prices."demo/echo"]
input = 1.0
output = 1.0
"""


class Answer:
    """Status, headers and JSON of one reply; `text` is all of it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        body = response.read()
        self.text = body.decode()
        self.json: Any = json.loads(body) if body else None

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


def ask(
    proxy: ProxyProcess, method: str, path: str, body: Any = None, *, key: str | None = ADMIN, **headers: str
) -> Answer:
    address = urlsplit(proxy.base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    sent = body if isinstance(body, str | bytes) or body is None else json.dumps(body)
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    connection.request(method, path, sent, {"content-type": "application/json", **headers})
    answer = Answer(connection.getresponse())
    connection.close()
    return answer


def chat(proxy: ProxyProcess, key: str | None, model: str = "demo/echo", **headers: str) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "user": "end-user-9"}
    return ask(proxy, "POST", "/v1/chat/completions", body, key=key, **headers)


def until(wanted: int, question: Callable[[], Answer]) -> Answer:
    """Ask again until the answer has this status; bounded by the test's own timeout."""
    while (answer := question()).status != wanted:
        pass
    return answer


def make(proxy: ProxyProcess, **fields: Any) -> dict[str, Any]:
    answer = ask(proxy, "POST", "/admin/keys", {"name": "ci", **fields})
    assert answer.status == 200, answer.text
    return answer.json


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def proxies(folder: Path) -> Iterator[list[ProxyProcess]]:
    """Two gateways on one SQLite file."""
    opened = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        text = TEXT.format(records=f"sqlite:///{folder / 'records.db'}", admin=ADMIN)
        opened.append(ProxyProcess(folder / name, text))
    yield opened
    for proxy in opened:
        proxy.kill()


@pytest.fixture
def proxy(proxies: list[ProxyProcess]) -> ProxyProcess:
    return proxies[0]


@pytest.fixture
def keys(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`hookline keys ...` on the configuration of the first gateway."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HOOKLINE, "keys", *arguments],
            cwd=folder / "a",
            env=clean_environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_key_from_the_command_line_works_at_once_and_its_life_reaches_every_gateway(proxies, keys):
    made = json.loads(keys("create", "cli", "--tenant", "acme", "--model", "demo/*", "--json").stdout)
    assert [chat(proxy, made["key"]).status for proxy in proxies] == [200, 200]
    for proxy in proxies:
        until(401, lambda proxy=proxy: chat(proxy, None))
    assert chat(proxies[1], made["key"], model="gpt-4o").error["code"] == "model_not_allowed"

    assert keys("update", "cli", "--disable").stdout == f"{made['id']} cli: disabled\n"
    for proxy in proxies:
        until(401, lambda proxy=proxy: chat(proxy, made["key"]))
    keys("update", made["id"], "--enable", "--name", "renamed")
    for proxy in proxies:
        until(200, lambda proxy=proxy: chat(proxy, made["key"]))
    rotated = json.loads(keys("rotate", "renamed", "--overlap", "1h", "--json").stdout)
    for proxy in proxies:
        assert [chat(proxy, key).status for key in (made["key"], rotated["key"])] == [200, 200]
    assert keys("revoke", "renamed").stdout == f"{made['id']} renamed: revoked\n"
    for proxy in proxies:
        for key in (made["key"], rotated["key"]):
            assert "revoked" in until(401, lambda proxy=proxy, key=key: chat(proxy, key)).error["message"]


def test_the_admin_api_makes_shows_lists_changes_rotates_and_revokes(proxy):
    made = make(proxy, tenant="api", user="ann", models=["demo/*"], tokens_per_minute=10_000, metadata={"a": "b"})
    assert made["key"].startswith(made["prefix"])
    assert (made["object"], made["status"], made["tenant"]) == ("hookline.key", "active", "api")
    path = f"/admin/keys/{made['id']}"

    shown = ask(proxy, "GET", path)

    assert shown.json == {name: value for name, value in made.items() if name != "key"}
    assert made["key"] not in shown.text
    listed = ask(proxy, "GET", "/admin/keys?tenant=api")
    assert (listed.json["object"], listed.json["data"], listed.json["has_more"]) == ("list", [shown.json], False)
    changed = ask(proxy, "PATCH", path, {"tokens_per_minute": None, "max_parallel": 3, "name": "new"}).json
    assert changed == {**shown.json, "tokens_per_minute": None, "max_parallel": 3, "name": "new"}
    rotated = ask(proxy, "POST", f"{path}/rotate", {"overlap_s": 3600})
    assert rotated.headers["cache-control"] == "no-store"
    assert rotated.json["key"] != made["key"]
    assert [chat(proxy, key).status for key in (made["key"], rotated.json["key"])] == [200, 200]
    revoked = ask(proxy, "DELETE", path)
    assert (revoked.status, revoked.json["status"]) == (200, "revoked")
    assert [chat(proxy, key).status for key in (made["key"], rotated.json["key"])] == [401, 401]
    assert ask(proxy, "DELETE", path).json == revoked.json
    for answer in (ask(proxy, "PATCH", path, {"name": "x"}), ask(proxy, "POST", f"{path}/rotate")):
        assert (answer.status, answer.error["code"]) == (409, "key_revoked")


def test_pages_of_the_list(proxy):
    ids = [make(proxy, tenant="pages")["id"] for _ in range(5)]

    first = ask(proxy, "GET", "/admin/keys?tenant=pages&limit=2").json
    rest = ask(proxy, "GET", f"/admin/keys?tenant=pages&limit=100&after={first['last_id']}").json

    assert [key["id"] for key in (*first["data"], *rest["data"])] == ids
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (first["first_id"], first["last_id"]) == (ids[0], ids[1])
    ask(proxy, "DELETE", f"/admin/keys/{ids[0]}")
    assert ask(proxy, "GET", "/admin/keys?tenant=pages&revoked=true").json["last_id"] == ids[0]
    assert ask(proxy, "GET", "/admin/keys?tenant=pages&revoked=false").json["first_id"] == ids[1]
    assert ask(proxy, "GET", "/admin/keys?tenant=nobody").json["data"] == []


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, {"name": "must be given"}),
        ({"name": ""}, {"name": "must not be empty"}),
        ({"name": 7, "modls": []}, {"name": "must be text", "modls": 'unknown parameter; did you mean "models"?'}),
        ({"name": "x", "models": []}, {"models": "must not be empty"}),
        ({"name": "x", "models": "gpt"}, {"models": "must be a list"}),
        ({"name": "x", "requests_per_minute": "60"}, {"requests_per_minute": "must be a whole number"}),
        ({"name": "x", "requests_per_minute": True}, {"requests_per_minute": "must be a whole number"}),
        ({"name": "x", "max_parallel": -1}, {"max_parallel": "must be greater than or equal to 1"}),
        ({"name": "x", "budget": {"daily_usd": -1}}, {"budget.daily_usd": "must be greater than or equal to 0"}),
        ({"name": "x", "budget": {"rolling": [{"hours": 1}]}}, {"budget.rolling[0].usd": "must be given"}),
        ({"name": "x", "budget": {"time_zone": "Mars"}}, {"budget.time_zone": "unknown time zone"}),
        ({"name": "x", "expires_at": "tomorrow"}, {"expires_at": "must be Unix seconds"}),
        ({"name": "x", "expires_at": "2099-01-01"}, {"expires_at": "must say its time zone"}),
        ({"name": "x", "expires_in_s": 0}, {"expires_in_s": "must be greater than 0"}),
        ({"name": "x\u0000"}, {"name": "must be printable text"}),
        ({"name": "x", "metadata": {"a": 1}}, {"metadata.a": "must be text"}),
        ({"name": "x", "team": "a"}, {"team": "unknown parameter"}),
        ({"name": "x", "key": "sk-my-own"}, {"key": "unknown parameter"}),
    ],
)
def test_every_wrong_field_is_named_and_nothing_is_kept(proxy, body, wrong):
    before = ask(proxy, "GET", "/admin/keys?limit=100").text

    answer = ask(proxy, "POST", "/admin/keys", body)

    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        400,
        "invalid_request_error",
        "invalid_parameter",
    )
    assert answer.error["param"] in wrong
    for field, words in wrong.items():
        assert f'"{field}": {words}' in answer.error["message"]
    assert ask(proxy, "GET", "/admin/keys?limit=100").text == before


@pytest.mark.parametrize("body", ["", "[]", "{", '"x"', b"\xff"])
def test_a_body_that_is_no_object_is_a_400(proxy, body):
    assert ask(proxy, "POST", "/admin/keys", body).error["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/keys/nobody", 404),
        ("PATCH", "/admin/keys/nobody", 404),
        ("DELETE", "/admin/keys/nobody", 404),
        ("POST", "/admin/keys/nobody/rotate", 404),
        ("POST", "/admin/keys/nobody", 404),
        ("GET", "/admin/keys/", 404),
        ("GET", "/admin/keys/a%00b", 404),
        ("GET", "/admin/keys?limit=0", 400),
        ("GET", "/admin/keys?limit=x", 400),
        ("GET", "/admin/keys?limit=1&limit=2", 400),
        ("GET", "/admin/keys?tenat=x", 400),
        ("GET", "/admin/keys?after=%00", 400),
        ("PUT", "/admin/keys", 405),
    ],
)
def test_what_is_not_there_or_not_understood(proxy, method, path, status):
    body = "{}" if method in ("PATCH", "POST", "PUT") else None

    assert ask(proxy, method, path, body).status == status


def test_nobody_but_the_admin_gets_at_keys(proxy):
    key = make(proxy)["key"]

    assert ask(proxy, "GET", "/admin/keys", key=None).status == 401
    for stranger in (key, "wrong", ADMIN[:-1]):
        assert ask(proxy, "GET", "/admin/keys", key=stranger).status == 403
        assert ask(proxy, "POST", "/admin/keys", {"name": "x"}, key=stranger).status == 403
    assert chat(proxy, ADMIN).status == 401


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, ["demo/echo", "demo/lorem", "demo/tools"]),
        ({"models": ["demo/l*"]}, ["demo/lorem"]),
        ({"tenant": "narrow"}, ["demo/echo", "demo/lorem"]),
        ({"tenant": "narrow", "user": "bob"}, ["demo/echo"]),
        ({"tenant": "narrow", "user": "bob", "models": ["demo/lorem"]}, []),
    ],
)
def test_key_user_tenant_and_everyone_must_all_allow_a_model(proxy, fields, allowed):
    key = make(proxy, **fields)["key"]
    models = ["demo/echo", "demo/lorem", "demo/tools"]

    answers = {model: chat(proxy, key, model=model) for model in models}

    assert [model for model, answer in answers.items() if answer.status == 200] == allowed
    assert {a.error["code"] for a in answers.values() if a.status != 200} <= {"model_not_allowed"}
    assert chat(proxy, key, model="gpt-4o").status == 403


def test_limits_and_budget_of_a_virtual_key_hold_and_can_be_raised(proxy):
    limited, paying = make(proxy, requests_per_minute=2), make(proxy, budget={"daily_usd": 0})

    assert [chat(proxy, limited["key"]).status for _ in range(3)] == [200, 200, 429]
    assert chat(proxy, paying["key"]).error["code"] == "insufficient_quota"

    ask(proxy, "PATCH", f"/admin/keys/{limited['id']}", {"requests_per_minute": 5})
    ask(proxy, "PATCH", f"/admin/keys/{paying['id']}", {"budget": None})
    assert [chat(proxy, limited["key"]).status for _ in range(3)] == [200, 200, 200]
    assert chat(proxy, paying["key"]).status == 200


def test_an_openai_client_uses_a_virtual_key(proxy):
    key = make(proxy, models=["demo/*"])["key"]

    client = openai.OpenAI(base_url=f"{proxy.base_url}/v1", api_key=key)
    reply = client.chat.completions.create(model="demo/echo", messages=[{"role": "user", "content": "hello"}])

    assert "hello" in (reply.choices[0].message.content or "")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key=key[:-1]).models.list()


def test_the_first_key_of_a_host_that_others_reach_is_made_before_it_serves(tmp_path):
    text = TEXT.format(records="sqlite:///own.db", admin=ADMIN).replace("port = 0", 'port = 0\nhost = "0.0.0.0"')
    (tmp_path / "proxy.toml").write_text(text)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = clean_environ()
        return subprocess.run(
            [*HOOKLINE, *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    assert "hookline keys create" in run("check").stderr
    assert "hookline keys create" in run("serve").stderr

    made = json.loads(run("keys", "create", "first", "--json").stdout)

    assert run("check").returncode == 0
    with ProxyProcess(tmp_path, None) as proxy:
        assert [chat(proxy, key).status for key in (None, made["key"])] == [401, 200]


def test_secrets_are_nowhere_but_in_the_one_reply(tmp_path):
    """Keys, admin key, tokens' secret: searched for in logs, errors, metrics, `check`, the list and the database's bytes."""
    secret = "canary-of-an-issuer-0123456789abcdef"
    text = TEXT.format(records="sqlite:///own.db", admin=ADMIN) + (
        '[[plugins.auth.keys]]\nname = "old"\nkey = "canary-toml-key"\n[[plugins.auth.issuers]]\nname = "corp"\n'
        f'issuer = "https://id.example"\naudience = "x"\nsecret = "{secret}"\n'
        '[plugins.logging]\nto = "calls.log"\n'
    )
    with ProxyProcess(tmp_path, text) as proxy:
        made = make(proxy)
        rotated = ask(proxy, "POST", f"/admin/keys/{made['id']}/rotate", {"overlap_s": 60}).json
        token = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUifQ.canary"
        shown = [made["key"], rotated["key"], "canary-toml-key", "sk-hk-canary", token, ADMIN, "canary-bearer"]
        answers = [chat(proxy, key).text + str(chat(proxy, key).headers) for key in shown]
        answers += [ask(proxy, "GET", "/admin/keys", key=key).text for key in ("canary-bearer", made["key"], ADMIN)]
        answers += [ask(proxy, "POST", "/admin/keys", {"name": "x", "key": "canary-body"}).text]
        answers += [ask(proxy, "GET", path).text for path in ("/admin/keys", f"/admin/keys/{made['id']}", "/v1/models")]
        address = urlsplit(proxy.base_url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        connection.request("GET", "/metrics")
        answers.append(connection.getresponse().read().decode())
        checked = subprocess.run(
            [*HOOKLINE, "check"], cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=False
        )
        answers += [checked.stdout, checked.stderr]
        import signal

        proxy.send(signal.SIGTERM)
        proxy.wait()
        answers.append("\n".join(proxy.lines))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "proxy.toml")
    assert made["id"].encode() in kept

    for canary in (*shown, secret, "canary-body", token.split(".")[1]):
        assert not [answer for answer in answers if canary in answer], canary
        assert canary.encode() not in kept, canary


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A server of our own: its URL, and a function to stop and start it."""
    folder = ""

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"source {ROOT}/scripts/services.sh; {script}"],
            env={**os.environ, "SERVICES_DIR": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    folder, url = run("install_postgres && start_postgres && echo $SERVICES_DIR $POSTGRES_DSN").split()
    subprocess.run([sys.executable, "-m", "hookline.stores.migration", url], check=True, capture_output=True)
    yield url, lambda what: run(f"{what}_postgres") and None
    run("stop_services")


def test_gateways_on_postgresql_know_each_others_keys_and_outlive_its_outage(tmp_path, postgres):
    """Design, section 8: a key seen in the last minute goes on; any other is 503, never 401; afterwards all is as before."""
    url, server = postgres
    opened = []
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            opened.append(ProxyProcess(tmp_path / name, TEXT.format(records=url, admin=ADMIN)))
        first, second = opened
        seen, unseen, revoked = (make(first, name=name) for name in ("seen", "unseen", "revoked"))
        assert [chat(proxy, seen["key"]).status for proxy in opened] == [200, 200]
        assert chat(second, revoked["key"]).status == 200
        assert ask(first, "DELETE", f"/admin/keys/{revoked['id']}").status == 200
        until(401, lambda: chat(second, revoked["key"]))
        until(401, lambda: chat(second, None))
        server("stop")

        statuses = {key: {chat(second, key).status for _ in range(5)} for key in (seen["key"], unseen["key"])}
        refused = chat(second, "sk-hk-never-made")
        administered = ask(second, "POST", "/admin/keys", {"name": "x"})

        assert statuses == {seen["key"]: {200}, unseen["key"]: {503}}
        assert (refused.status, administered.status) == (503, 503)
        assert int(refused.headers["retry-after"]) >= 1
        server("start")
        until(200, lambda: chat(second, unseen["key"]))
        assert [chat(second, key).status for key in (seen["key"], revoked["key"])] == [200, 401]
    finally:
        for proxy in opened:
            proxy.kill()
