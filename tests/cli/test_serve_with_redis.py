"""Several `hookline serve` processes on one Redis are one gateway: one rate limit, one budget, one cache."""

from __future__ import annotations

import http.client
import json
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


def test_a_redis_that_is_away_is_a_503_for_limited_calls_and_comes_back(tmp_path: Path, redis_server) -> None:
    with ProxyProcess(tmp_path, TEXT.format(url=redis_server.url)) as proxy:
        assert post(proxy.base_url, "sk-limited", "before")[0] == 200
        redis_server.stop()
        assert {post(proxy.base_url, "sk-limited", "during")[0] for _ in range(5)} == {503}

        redis_server.start()

        while post(proxy.base_url, "sk-limited", "after")[0] != 200:  # bounded by the test's own timeout
            pass
