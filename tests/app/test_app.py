from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from hookline.app import App
from hookline.errors import StartupError
from hookline.launch import open_listener

DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'
BARE = "[chain]\nplugins = []\n" + DEMO

LIFE = """
from pydantic import BaseModel
from hookline import Reply, hookimpl

class Plugin:
    class Options(BaseModel):
        tag: str = "one"
        fails: str = ""

    def __init__(self, options, host):
        self.options, self.host = options, host
        self.seen = open(host.settings["server"]["default_completion_model"], "a")

    def say(self, text):
        print(self.options.tag, text, file=self.seen, flush=True)

    async def start(self):
        self.say("start")
        if self.options.fails == "start":
            raise OSError("no such thing")

    async def stop(self):
        self.say("stop")
        if self.options.fails == "stop":
            raise OSError("no such thing")

    @hookimpl
    async def lookup(self, call):
        if call.model == "tag":
            return Reply(200, {"content-type": "application/json"}, b'{"tag": "%s"}' % self.options.tag.encode(), source="cache")
        if call.model == "wait":
            self.say("waiting")
            await call.wait(self.host.log.go.wait())
        return None
"""


def life(folder: Path, options: str = "") -> str:
    return (
        f"[server]\ndefault_completion_model = '{folder}/life.txt'\n"
        f"[chain]\nplugins = [{{ name = 'life', path = 'life.py'{options} }}]\n" + DEMO
    )


def said(folder: Path) -> list[str]:
    return (folder / "life.txt").read_text().splitlines()


async def test_plugins_start_before_the_first_call_and_stop_after_the_last(start, tmp_path: Path) -> None:
    running = await start(life(tmp_path), life=LIFE)
    assert said(tmp_path) == ["one start"]

    assert await running.ask("tag") == (200, {"tag": "one"})
    assert await running.app.stop(1)

    assert said(tmp_path) == ["one start", "one stop"]


async def test_a_plugin_that_can_t_start_is_a_sentence_and_stop_still_runs(settle, tmp_path: Path) -> None:
    (tmp_path / "life.py").write_text(LIFE)
    app = App(settle(life(tmp_path, ", fails = 'start'")))

    with pytest.raises(StartupError, match="start\\(\\) failed: OSError: no such thing"):
        await app.start(open_listener("127.0.0.1", 0))

    assert said(tmp_path) == ["one start", "one stop"]


async def test_a_reload_starts_the_new_plugins_then_stops_the_old(start, tmp_path: Path) -> None:
    running = await start(life(tmp_path), life=LIFE)

    assert await running.reload(life(tmp_path, ", tag = 'two'")) == []
    assert await running.ask("tag") == (200, {"tag": "two"})
    await asyncio.gather(*running.app._retiring)

    assert said(tmp_path) == ["one start", "two start", "one stop"]


async def test_the_old_plugins_stop_only_after_their_last_call(start, tmp_path: Path) -> None:
    running = await start(life(tmp_path), life=LIFE)
    go = logging.getLogger("hookline.plugins.life").go = asyncio.Event()  # type: ignore[attr-defined]
    call = asyncio.create_task(running.ask("wait"))
    while "one waiting" not in said(tmp_path):  # noqa: ASYNC110 - another task writes the file
        await asyncio.sleep(0)

    await running.reload(life(tmp_path, ", tag = 'two'"))
    for _ in range(3):
        assert await running.ask("tag") == (200, {"tag": "two"})
    assert said(tmp_path) == ["one start", "one waiting", "two start"]
    go.set()
    assert (await call)[0] == 200
    await asyncio.gather(*running.app._retiring)

    assert said(tmp_path)[-1] == "one stop"


async def test_a_reload_whose_plugin_can_t_start_changes_nothing(start, tmp_path: Path, caplog) -> None:
    running = await start(life(tmp_path), life=LIFE)

    (problem,) = await running.reload(life(tmp_path, ", tag = 'two', fails = 'start'"))

    assert "no such thing" in problem
    assert "not reloaded, the former configuration serves on" in caplog.text
    assert await running.ask("tag") == (200, {"tag": "one"})
    assert said(tmp_path) == ["one start", "two start", "two stop"]


async def test_a_stop_that_fails_is_logged_and_the_rest_still_ends(start, tmp_path: Path, caplog) -> None:
    running = await start(life(tmp_path, ", fails = 'stop'"), life=LIFE)

    assert await running.app.stop(1)

    assert 'plugin "life": stop() failed' in caplog.text


async def test_unchanged_providers_keep_their_connections_over_a_reload(start) -> None:
    running = await start(BARE + '[providers.other]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n')
    before = running.app.current.providers

    await running.reload(BARE + '[providers.other]\nkind = "openai"\nbase_url = "http://127.0.0.1:10/v1"\n')
    after = running.app.current.providers

    assert after["demo"].provider is before["demo"].provider
    assert after["other"].provider is not before["other"].provider


async def test_counters_go_on_over_a_reload(start, tmp_path: Path) -> None:
    code = """
from hookline import hookimpl
class Plugin:
    def __init__(self, options, host):
        self.count = host.metrics.counter("calls_total", "Calls.")()
        self.metrics = host.metrics
    @hookimpl
    def call_ended(self, call, result):
        self.count.inc()
    @hookimpl
    def register_routes(self, add):
        from hookline import Reply
        async def show(request):
            return Reply(200, {"content-type": "text/plain"}, self.metrics.render())
        add("GET", "/count", show, access="open")
"""
    text = "[chain]\nplugins = [{ name = 'count', path = 'count.py' }]\n" + DEMO
    running = await start(text, count=code)

    await running.ask()
    await running.reload(text)
    await running.ask()

    assert "\ncalls_total 2.0\n" in (await running.get("/count"))[1]


async def test_a_file_that_is_wrong_is_refused_with_every_problem(start) -> None:
    running = await start(BARE)

    problems = await running.reload("[server]\nprot = 1\n[providers.x]\nkind = 3\n")

    assert [p.split(": ", 1)[1] for p in problems] == [
        '[server] prot: unknown key; did you mean "port"?',
        "[providers.x] kind: must be text in quotes, not a whole number",
    ]
    assert (await running.ask())[0] == 200


async def test_models_resolve_as_configured_and_allowed(start) -> None:
    running = await start(
        BARE + '[models.best]\ndeployments = ["demo/echo"]\naliases = ["good"]\n[global]\nmodels = ["b*", "demo/*"]\n'
    )

    assert (await running.ask("best"))[0] == 200
    assert (await running.ask("good"))[0] == 200
    status, answer = await running.ask("other")
    assert (status, answer["error"]["code"]) == (403, "model_not_allowed")


async def test_ready_and_alive(start) -> None:
    running = await start(BARE)

    assert await running.get("/healthz") == (200, '{"status":"ok"}')
    assert await running.get("/readyz") == (200, '{"status":"ready"}')


async def test_a_browser_s_origin_is_allowed_where_cors_lists_it(start) -> None:
    running = await start(BARE + '[server.cors]\nallow_origins = ["https://app.example"]\n')

    async with running.http.get(f"{running.base_url}/v1/models", headers={"origin": "https://app.example"}) as response:
        assert response.headers["access-control-allow-origin"] == "https://app.example"


async def test_stopping_twice_and_reloading_after_is_harmless(start) -> None:
    running = await start(BARE)

    assert await running.app.stop(0)
    assert await running.reload(BARE) == ["the server is stopping"]
    assert await running.app.stop(0)


async def test_reload_says_what_it_did(start, caplog) -> None:
    running = await start(BARE)

    with caplog.at_level(logging.INFO, "hookline.app"):
        await running.reload(BARE + "[server]\nmax_head_bytes = 9000\n")

    assert "[server] max_head_bytes keep their former values until a restart" in caplog.text
    assert "reloaded" in caplog.text


async def test_every_reload_of_many_leaves_nothing_behind(start) -> None:
    running = await start(BARE)
    before = len(asyncio.all_tasks())

    for _ in range(20):
        assert await running.reload(BARE) == []
    await asyncio.gather(*running.app._retiring)
    await asyncio.sleep(0)

    assert len(asyncio.all_tasks()) <= before
    assert running.app._retiring == set()
    assert json.loads((await running.get("/readyz"))[1])["status"] == "ready"
