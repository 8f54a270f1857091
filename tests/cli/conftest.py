"""Real `hookline` processes, in a folder of their own, ended with the test."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hookline.testing.process import HOOKLINE, ProxyProcess, clean_environ

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end: `run("check", "-c", "proxy.toml")`."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HOOKLINE, *arguments],
            cwd=folder,
            env=clean_environ(environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., ProxyProcess]]:
    """Start `hookline serve` with a proxy.toml of this text (None: without one) and wait until it is ready."""
    proxies: list[ProxyProcess] = []

    def serve(text: str | None = BARE, *arguments: str, **environ: str) -> ProxyProcess:
        proxies.append(ProxyProcess(folder, text, *arguments, environ=environ))
        return proxies[-1]

    yield serve
    for proxy in proxies:
        proxy.kill()
