from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'
BARE = "[server]\nport = 0\n[chain]\nplugins = []\n" + DEMO

SLOW_PLUGIN = '''
import asyncio, time
from hookline import Reply, hookimpl

class Plugin:
    """Answers "/v1/chat/completions" itself: waits until the file `go` exists."""
    @hookimpl
    async def lookup(self, call):
        if call.model == "block":
            time.sleep(1.6)
        if call.model != "wait":
            return None
        open("running", "w").close()
        async def until_there():
            import os
            while not os.path.exists("go"):
                await asyncio.sleep(0.02)
        await call.wait(until_there())
        return Reply(200, {"content-type": "application/json"}, b'{"waited": true}', source="cache")
'''
WITH_SLOW = "[server]\nport = 0\ndrain_s = 30\n[chain]\nplugins = [{ name = 'slow', path = 'slow.py' }]\n" + DEMO


def post(base_url: str, model: str = "demo/echo", text: str = "hi") -> tuple[int, Any]:
    connection = begin(base_url, model, text)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def begin(base_url: str, model: str, text: str = "hi") -> http.client.HTTPConnection:
    """Send a request and do not wait for its answer."""
    address = urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    return connection


def wait_until_exists(path: Path) -> None:
    """Bounded by the test's own timeout."""
    while not path.exists():
        time.sleep(0.02)


def wait_until_refused(base_url: str) -> None:
    """Bounded by the test's own timeout. A probe that was queued while the listener closed is reset, and the next one refused."""
    address = urlsplit(base_url)
    while True:
        try:
            socket.create_connection((address.hostname, address.port), 5).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue


def test_without_a_file_the_embedded_default_serves_and_the_ready_line_says_so(serve, folder: Path) -> None:
    server = serve(None, "--port", "0")

    status, answer = post(server.base_url, "gpt-4o", "Hello!")

    assert "from the embedded default (there is no ./proxy.toml) (12 plugins, 1 provider)" in server.lines[0]
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello!")


def test_the_ready_line_says_where_what_and_gives_a_curl_that_works(serve, folder: Path) -> None:
    server = serve()
    base = server.base_url

    assert "from proxy.toml (0 plugins, 1 provider)" in server.lines[0]
    words = server.wait_for("^try: curl .*").string.removeprefix("try: curl ").split("'")
    payload = json.loads(words[3])
    client = OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0)
    answer = client.chat.completions.create(**payload)

    assert words[0].strip() == f"{base}/v1/chat/completions -H"
    assert answer.choices[0].message.content == "Hello!"


def test_command_line_wins_over_the_file(serve) -> None:
    server = serve(BARE.replace("port = 0", "port = 1"), "--port", "0", "--host", "localhost")

    assert server.base_url.startswith("http://localhost:")
    assert post(server.base_url)[0] == 200


def test_a_port_that_is_taken_is_a_sentence_and_status_2(serve, run, folder: Path) -> None:
    server = serve()
    port = str(urlsplit(server.base_url).port)
    other = folder / "other"
    other.mkdir()
    (other / "proxy.toml").write_text(BARE)

    done = run("serve", "--port", port, "--config", "other/proxy.toml")

    assert done.returncode == 2
    assert f"hookline: can't listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((other / "hookline.db.journal").iterdir()) == []


def test_sigterm_stops_accepting_and_lets_running_calls_finish(serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW)
    running = begin(server.base_url, "wait")
    wait_until_exists(folder / "running")

    server.send(signal.SIGTERM)
    server.wait_for("stopping: running calls may go on for 30 s")
    wait_until_refused(server.base_url)
    (folder / "go").touch()

    assert json.loads(running.getresponse().read()) == {"waited": True}
    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: signal.Signals, serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW.replace("drain_s = 30", "drain_s = 3600"))
    running = begin(server.base_url, "wait")
    wait_until_exists(folder / "running")

    server.send(number)
    server.wait_for("stopping")
    server.send(number)

    assert server.wait() == 1
    server.wait_for("calls that still ran were cut")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        running.getresponse().read()


def test_calls_are_cut_after_drain_s(serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW.replace("drain_s = 30", "drain_s = 0.2"))
    running = begin(server.base_url, "wait")
    wait_until_exists(folder / "running")

    server.send(signal.SIGTERM)

    assert server.wait() == 1
    running.close()


def test_sighup_swaps_the_chain_and_running_calls_finish_on_the_old_one(serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW)
    base = server.base_url
    running = begin(base, "wait")
    wait_until_exists(folder / "running")

    (folder / "proxy.toml").write_text(BARE + '[models.new]\ndeployments = ["demo/echo"]\n')
    server.send(signal.SIGHUP)
    server.wait_for("reloaded proxy.toml")
    status, answer = post(base, "new", "after")
    (folder / "go").touch()

    assert (status, answer["choices"][0]["message"]["content"]) == (200, "after")
    assert json.loads(running.getresponse().read()) == {"waited": True}


def test_a_broken_file_changes_nothing_and_the_log_says_why(serve, folder: Path) -> None:
    server = serve(BARE + '[models.old]\ndeployments = ["demo/echo"]\n')
    base = server.base_url

    (folder / "proxy.toml").write_text("[server]\nprot = 1\n[providers.x]\nkind = 'nope'\n")
    server.send(signal.SIGHUP)
    server.wait_for("not reloaded, the former configuration serves on:")
    server.wait_for(r'proxy.toml:2: \[server\] prot: unknown key; did you mean "port"\?')

    assert post(base, "old")[0] == 200
    server.send(signal.SIGHUP)
    server.wait_for("not reloaded", count=2)
    assert post(base, "old")[0] == 200


def test_a_reload_says_what_needs_a_restart(serve, folder: Path) -> None:
    server = serve()

    (folder / "proxy.toml").write_text(BARE.replace("port = 0", "port = 0\nmax_body_bytes = 1000"))
    server.send(signal.SIGHUP)

    server.wait_for(r"reloaded, but \[server\] max_body_bytes keep their former values until a restart")


def test_reload_watches_the_file_and_single_file_plugins(serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW, "--reload")
    base = server.base_url

    (folder / "slow.py").write_text(SLOW_PLUGIN.replace('call.model != "wait"', 'call.model != "other"'))
    server.wait_for("reloaded", count=1)
    assert post(base, "wait")[0] == 200
    (folder / "proxy.toml").write_text(BARE)
    server.wait_for("reloaded", count=2)

    assert post(base, "other")[0] == 200


def test_a_missing_upstream_key_is_named_when_the_provider_is_used(serve) -> None:
    server = serve(
        BARE + '[providers.real]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\napi_key = "${SOME_KEY}"\n'
    )

    status, answer = post(server.base_url, "real/gpt-4o")

    server.wait_for("environment variable SOME_KEY is not set; calls that need it will fail")
    assert status == 500
    assert "SOME_KEY" in answer["error"]["message"]


def test_a_hook_that_blocks_the_loop_is_named(serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW)

    assert post(server.base_url, "block")[0] == 200

    found = server.wait_for(
        r'plugin "slow", hook lookup \((\S+)\) has blocked the event loop for [\d.]+ s, now at (\S+)'
    )
    assert found[1] == f"{folder}/slow.py:7"
    assert found[2] == f"{folder}/slow.py:10"


def test_two_workers_share_one_port_and_a_dead_one_is_replaced(serve) -> None:
    server = serve(BARE, "--workers", "2")
    base = server.base_url
    first, second = server.worker_pids

    os.kill(first, signal.SIGKILL)
    server.wait_for(rf"a worker has died \({first} with status -9\); another one starts in")
    for _ in range(20):
        assert post(base)[0] == 200
    while len(server.worker_pids) < 2:
        time.sleep(0.02)

    assert second in server.worker_pids
    assert first not in server.worker_pids
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_workers_drain_reload_and_end_with_the_supervisor(serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW, "--workers", "2")
    base = server.base_url
    server.send(signal.SIGHUP)
    server.wait_for("reloaded proxy.toml", count=2)
    running = begin(base, "wait")
    wait_until_exists(folder / "running")

    server.send(signal.SIGTERM)
    server.wait_for("stopping", count=2)
    wait_until_refused(base)
    (folder / "go").touch()

    assert json.loads(running.getresponse().read()) == {"waited": True}
    assert server.wait() == 0


def test_a_worker_that_is_replaced_finishes_its_call_first(serve, folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    server = serve(WITH_SLOW, "--workers", "2")
    former = set(server.worker_pids)
    running = begin(server.base_url, "wait")
    wait_until_exists(folder / "running")

    server.send(signal.SIGUSR2)
    server.wait_for("rolling restart: 2 new workers serve")
    served = [post(server.base_url)[0] for _ in range(10)]
    (folder / "go").touch()

    assert served == [200] * 10
    assert json.loads(running.getresponse().read()) == {"waited": True}
    while former & set(server.worker_pids):
        time.sleep(0.02)
    assert len(server.worker_pids) == 2


def test_workers_end_when_the_supervisor_is_killed(serve) -> None:
    server = serve(BARE, "--workers", "2")
    base = server.base_url
    pids = server.worker_pids

    server.send(signal.SIGKILL)
    server.wait()
    server.wait_for("the supervisor has died; this worker stops", count=2)
    server.wait_for(r": stopped$", count=2)

    assert len(pids) == 2
    wait_until_refused(base)


def test_a_configuration_that_is_wrong_is_said_once_however_many_workers(serve, run, folder: Path) -> None:
    (folder / "proxy.toml").write_text(BARE.replace("plugins = []", "plugins = ['nope']"))

    done = run("serve", "--workers", "3")

    assert done.returncode == 2
    assert done.stderr.count('plugin "nope" is not installed') == 1
    assert "Traceback" not in done.stderr
