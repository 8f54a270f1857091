"""Several `hookline serve` processes on one Redis are one gateway: one rate limit, one budget, one cache."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.redis import RedisServer

TEXT = """
[server]
port = 0
[state]
shared = "{url}"
[chain]
plugins = ["auth", "rate_limit", "cache", "budget", "model_selection"]
[providers.demo]
kind = "demo"
default = true
[prices."demo/echo"]
input = 1.0
output = 1.0
[[plugins.auth.keys]]
name = "limited"
key = "sk-limited"
requests_per_minute = 20
[[plugins.auth.keys]]
name = "paying"
key = "sk-paying"
budget = {{ total_usd = 0.002 }}
"""


@pytest.fixture
def redis_server(tmp_path: Path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def two_processes(tmp_path: Path, redis_server):
    opened = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        opened.append(ProxyProcess(folder, TEXT.format(url=redis_server.url)))
    yield opened
    for process in opened:
        process.kill()


def post(base_url: str, key: str, text: str) -> tuple[int, dict[str, str], Any]:
    address = urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    body = {"model": "demo/echo", "max_tokens": 100, "messages": [{"role": "user", "content": text}], "temperature": 0}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())


def get(base_url: str, path: str) -> str:
    address = urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def test_two_processes_share_one_rate_limit(two_processes) -> None:
    with ThreadPoolExecutor(10) as threads:
        answers = list(
            threads.map(lambda n: post(two_processes[n % 2].base_url, "sk-limited", f"question {n}"), range(50))
        )

    assert sorted(status for status, _, _ in answers) == [200] * 20 + [429] * 30
    assert {headers["x-ratelimit-limit-requests"] for status, headers, _ in answers if status == 200} == {"20"}


def test_two_processes_share_one_budget(two_processes) -> None:
    with ThreadPoolExecutor(10) as threads:
        answers = list(
            threads.map(lambda n: post(two_processes[n % 2].base_url, "sk-paying", f"question {n}"), range(200))
        )

    served = [body for status, _, body in answers if status == 200]
    refused = [body["error"] for status, _, body in answers if status == 429]
    assert len(served) + len(refused) == 200
    assert {error["code"] for error in refused} == {"insufficient_quota"}
    spent_usd = sum(body["usage"]["total_tokens"] for body in served) * 1e-6
    assert 0.001 < spent_usd <= 0.002


def test_two_processes_share_cached_replies(two_processes) -> None:
    first, second = (process.base_url for process in two_processes)
    answer = post(first, "sk-paying", "the same")[2]

    assert post(second, "sk-paying", "the same")[2] == answer


def test_workers_are_allowed_with_a_shared_store_and_share_the_limit(tmp_path: Path, redis_server) -> None:
    with ProxyProcess(tmp_path, TEXT.format(url=redis_server.url), "--workers", "2") as proxy:
        statuses = [post(proxy.base_url, "sk-limited", f"question {n}")[0] for n in range(40)]

    assert statuses == [200] * 20 + [429] * 20


LIMIT_NANOUSD = 40_000_000
OUTAGE = """
[server]
port = 0
[state]
shared = "{url}"
[chain]
plugins = ["auth", "rate_limit", "budget", "model_selection", "metrics"]
[providers.demo]
kind = "demo"
default = true
[prices."demo/echo"]
input = 1.0
output = 1.0
[[plugins.auth.keys]]
name = "free"
key = "sk-free"
[[plugins.auth.keys]]
name = "limited"
key = "sk-limited"
requests_per_minute = 20
[[plugins.auth.keys]]
name = "paying"
key = "sk-paying"
budget = {{ total_usd = 0.04 }}
"""
WORDS = " ".join(f"word{n}" for n in range(40))


def cost_of(body: Any) -> int:
    return int(body["usage"]["total_tokens"]) * 1_000


def test_redis_is_killed_under_load_and_comes_back_empty(tmp_path: Path, redis_server) -> None:
    """Design section 8, and not one nano-dollar more than the budget although everything in Redis was lost."""
    with (
        ProxyProcess(tmp_path, OUTAGE.format(url=redis_server.url), "--workers", "2") as proxy,
        ThreadPoolExecutor(8) as threads,
    ):

        def ask(key: str, count: int) -> list[tuple[int, dict[str, str], Any]]:
            return list(threads.map(lambda n: post(proxy.base_url, key, f"{n} {WORDS}"), range(count)))

        answers = ask("sk-paying", 60)
        assert {status for status, _, _ in ask("sk-limited", 4)} == {200}

        redis_server.stop()
        away = ask("sk-paying", 40)
        answers += away
        free, limited = ask("sk-free", 20), ask("sk-limited", 60)
        shown = get(proxy.base_url, "/metrics")

        assert {status for status, _, _ in away} in ({503}, {200, 503}), "what is leased, then no more"
        assert all("retry-after" in headers for status, headers, _ in away if status == 503)
        assert {status for status, _, _ in free} == {200}
        assert 0 < sum(status == 200 for status, _, _ in limited) <= 20
        assert {status for status, _, _ in limited} == {200, 429}
        assert 'hookline_store_open{store="limits"} 1.0' in shown
        assert 'hookline_store_bypassed_total{store="limits"}' in shown

        redis_server.start()
        while (answer := post(proxy.base_url, "sk-paying", WORDS))[0] == 503:  # bounded by the test's own timeout
            pass
        answers.append(answer)
        more = ask("sk-paying", 40)
        while any(status == 200 for status, _, _ in more):
            answers += more
            more = ask("sk-paying", 40)
        refused = [body["error"]["code"] for status, _, body in more if status == 429]

    assert refused == ["insufficient_quota"] * 40
    spent = sum(cost_of(body) for status, _, body in answers if status == 200)
    assert LIMIT_NANOUSD * 0.9 < spent <= LIMIT_NANOUSD


IS_LONG = os.environ.get("HOOKLINE_LONG") == "1"


@pytest.mark.skipif(not IS_LONG, reason="ten seconds without Redis: ./scripts/test --long")
@pytest.mark.parametrize("has_lost_all", [True, False])
def test_redis_is_away_for_ten_seconds_under_load(tmp_path: Path, redis_server, has_lost_all: bool) -> None:
    """Four workers, every key all the time: calls without a budget are all served, nobody is told 401, and the budget holds."""
    text = OUTAGE.format(url=redis_server.url).replace("0.04", "0.8")
    until, statuses = (
        threading.Event(),
        {"sk-free": Counter[int](), "sk-limited": Counter[int](), "sk-paying": Counter[int]()},
    )
    costs: list[int] = []
    with ProxyProcess(tmp_path, text, "--workers", "4") as proxy, ThreadPoolExecutor(12) as threads:

        def keep_asking(key: str) -> None:
            while not until.is_set():
                status, _, body = post(proxy.base_url, key, WORDS)
                statuses[key][status] += 1
                if key == "sk-paying" and status == 200:
                    costs.append(cost_of(body))

        asking = [threads.submit(keep_asking, key) for key in statuses for _ in range(3)]
        time.sleep(2)
        redis_server.stop() if has_lost_all else redis_server.freeze()
        time.sleep(10)
        redis_server.start() if has_lost_all else redis_server.thaw()
        back_at = time.monotonic()
        while post(proxy.base_url, "sk-paying", WORDS)[0] not in (200, 429):
            pass
        recovered_s = time.monotonic() - back_at
        time.sleep(2)
        until.set()
        for task in asking:
            task.result()
        while any(
            cost := [
                cost_of(b)
                for s, _, b in threads.map(lambda n: post(proxy.base_url, "sk-paying", WORDS), range(40))
                if s == 200
            ]
        ):
            costs += cost

    print(f"recovered after {recovered_s:.2f} s", statuses)
    assert set(statuses["sk-free"]) == {200}
    assert set(statuses["sk-limited"]) == {200, 429}
    assert set(statuses["sk-paying"]) <= {200, 429, 503}
    assert sum(costs) <= LIMIT_NANOUSD * 20
