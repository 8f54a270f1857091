from __future__ import annotations

import asyncio
import json

import pytest

from hookline.app import App
from hookline.errors import StartupError
from hookline.plugin_host import keep_running

DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'

HOSTED = """
import asyncio, json
from multidict import CIMultiDict
from hookline import Call, Principal, Reply, hookimpl

class Plugin:
    def __init__(self, options, host):
        self.host = host
        self.spawned = []

    async def start(self):
        async def breaks():
            raise ValueError("broken on purpose")
        async def waits():
            try:
                await asyncio.Event().wait()
            finally:
                self.spawned.append("ended")
        self.host.spawn("breaks", breaks())
        self.host.spawn("waits", waits())

    @hookimpl
    def register_routes(self, add):
        async def ask(request):
            call = Call(id="job-1", method="POST", path="/v1/chat/completions", endpoint="chat",
                        headers=CIMultiDict(), started_at=self.host.clock.monotonic(), started_time=self.host.clock.time(),
                        surface="job", principal=Principal(key_id="k", key_name="job"))
            payload = json.loads(request.body)
            async def load(call):
                call.set_json(request.body, payload)
            call.load = load
            return await self.host.run(call)
        async def describe(request):
            return Reply(200, {"content-type": "application/json"}, json.dumps(self.host.describe()).encode())
        async def fetch(request):
            async with self.host.http.get("http://" + request.headers["host"] + "/healthz") as response:
                return Reply(200, {}, await response.read())
        add("POST", "/ask", ask, access="open")
        add("GET", "/describe", describe, access="open")
        add("GET", "/fetch", fetch, access="open")
"""
TEXT = (
    "[chain]\nplugins = [{ name = 'hosted', path = 'hosted.py' }]\n[models.best]\ndeployments = ['demo/echo']\n"
    + DEMO
    + "[providers.real]\nkind = 'openai'\nbase_url = 'https://up.example/v1'\napi_key = 'sk-canary-1'\n"
    "headers = { x-secret = 'canary-2' }\n[admin]\nkey = 'admin-canary-3'\n"
    "[tenants.acme]\nrequests_per_minute = 5\n"
)


async def post(running, body: dict) -> tuple[int, dict]:
    async with running.http.post(f"{running.base_url}/ask", json=body) as response:
        return response.status, await response.json(content_type=None)


async def test_run_sends_a_call_through_the_chain_as_a_principal(start) -> None:
    running = await start(TEXT, hosted=HOSTED)

    status, answer = await post(running, {"model": "best", "messages": [{"role": "user", "content": "x"}]})

    assert (status, answer["choices"][0]["message"]["content"]) == (200, "x")


async def test_run_answers_errors_as_replies_and_reads_streams_whole(start) -> None:
    running = await start(TEXT, hosted=HOSTED)

    status, answer = await post(running, {"messages": []})
    assert (status, answer["error"]["message"]) == (400, "you must provide a model parameter")

    body = {"model": "best", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with running.http.post(f"{running.base_url}/ask", json=body) as response:
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_describe_shows_everything_but_secrets(start) -> None:
    running = await start(TEXT, hosted=HOSTED)

    text = (await running.get("/describe"))[1]
    described = json.loads(text)

    assert "canary" not in text
    assert described["models"] == {"best": ["demo/echo"]}
    assert described["providers"] == {"demo": "demo", "real": "openai"}
    assert described["default_provider"] == "demo"
    assert described["settings"]["providers"]["real"]["base_url"] == "https://up.example/v1"
    assert described["settings"]["tenants"] == {"acme": {"requests_per_minute": 5}}


async def test_http_is_a_client_of_the_process(start) -> None:
    running = await start(TEXT, hosted=HOSTED)

    assert await running.get("/fetch") == (200, '{"status":"ok"}')


async def test_spawned_tasks_are_supervised_and_end_at_stop(start, caplog) -> None:
    running = await start(TEXT, hosted=HOSTED)
    plugin = running.app.current.chain.plugins[0].instance
    await asyncio.sleep(0)

    assert 'plugin "hosted": background task "breaks" failed' in caplog.text
    await running.app.stop(0)
    assert plugin.spawned == ["ended"]


async def test_settings_are_plain_data_without_secrets(start) -> None:
    running = await start(TEXT, hosted=HOSTED)
    settings = running.app.current.chain.plugins[0].instance.host.settings

    assert settings["tenants"] == {"acme": {"requests_per_minute": 5}}
    assert settings["models"] == ["best"]
    assert settings["admin_key_set"] is True
    assert "canary" not in json.dumps(settings)


async def test_settings_have_the_host_and_the_workers_of_the_command_line(settle, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Plugin:\n    def __init__(self, options, host):\n        self.server = host.settings['server']\n"
    )
    text = f'[chain]\nplugins = [{{ name = "mine", path = "mine.py" }}]\n[server]\nworkers = 2\n{DEMO}'

    app = App(settle(text), host="127.0.0.9", workers=3)

    server = app.current.chain.plugins[0].instance.server
    assert (server["host"], server["workers"]) == ("127.0.0.9", 3)
    await app.stop(0)


async def test_spawning_in_a_constructor_is_refused_with_a_sentence(settle, tmp_path) -> None:
    code = "class Plugin:\n    def __init__(self, options, host):\n        async def run(): ...\n        host.spawn('early', run())\n"
    (tmp_path / "early.py").write_text(code)
    settings = settle("[chain]\nplugins = [{ name = 'early', path = 'early.py' }]\n" + DEMO)

    with pytest.raises(StartupError, match='spawn\\("early"\\) belongs in start'):
        await asyncio.to_thread(App, settings)


async def test_a_worker_that_fails_starts_again_later_each_time(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    pauses: list[float] = []
    runs = 0

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise OSError("down")

    monkeypatch.setattr("hookline.plugin_host.asyncio.sleep", sleep)
    await keep_running("jobs", "sweep", run)

    assert runs == 4
    assert pauses == [1.0, 2.0, 4.0]
    assert 'plugin "jobs": worker "sweep" failed' in caplog.text


async def test_a_worker_that_fails_is_told_with_its_plugin_s_name(start, caplog) -> None:
    code = """
from hookline import hookimpl

class Plugin:
    @hookimpl
    def register_workers(self, add):
        add("sweep", self.run)

    async def run(self):
        raise OSError("down")
"""
    await start("[chain]\nplugins = [{ name = 'sweeper', path = 'sweeper.py' }]\n" + DEMO, sweeper=code)
    await asyncio.sleep(0)

    assert 'plugin "sweeper": worker "sweep" failed' in caplog.text


async def test_a_plugin_brings_its_own_stores_and_provider_kinds(start) -> None:
    code = """
from hookline import Reply, hookimpl
from pydantic import BaseModel
from hookline.stores.memory import MemoryLimits, MemoryReplies

class Mine:
    endpoints = frozenset({"chat"})
    def __init__(self, name, options, clock):
        self.name, self.options = name, options
    async def send(self, call, attempt):
        return Reply(200, {"content-type": "application/json"}, b'{"choices": [], "word": "%s"}' % self.options.word.encode())
    async def aclose(self):
        pass

class Options(BaseModel):
    word: str

class Plugin:
    def __init__(self, options, host):
        self.host = host
    @hookimpl
    def register_stores(self, add):
        add("mystore", lambda url, clock: MemoryLimits(clock), store="limits")
        add("mystore", lambda url, clock: MemoryReplies(clock), store="replies")
    @hookimpl
    def register_providers(self, add):
        add("mine", Mine, options=Options)
"""
    running = await start(
        "[chain]\nplugins = [{ name = 'mine', path = 'mine.py' }]\n[state]\nshared = 'mystore://x'\n"
        "[providers.m]\nkind = 'mine'\nword = 'w'\ndefault = true\n",
        mine=code,
    )

    assert await running.ask("any") == (200, {"choices": [], "word": "w"})
