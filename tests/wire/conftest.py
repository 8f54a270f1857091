"""A real gateway process and the upstream it calls, scripted in this test's loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import openai
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import ScriptedUpstream

KEY = "sk-upstream-canary"


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ProxyProcess]]:
    """Start a gateway with this proxy.toml; `{upstream}` is not replaced: use f-strings."""
    proxies: list[ProxyProcess] = []

    def serve(text: str, *arguments: str, **environ: str) -> ProxyProcess:
        proxies.append(ProxyProcess(tmp_path, text, *arguments, environ=environ))
        return proxies[-1]

    yield serve
    for proxy in proxies:
        proxy.kill()


@pytest.fixture
def proxy(serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream) -> ProxyProcess:
    """A gateway with fallback and logging before the scripted upstream."""
    return serve(
        f"""
[server]
port = 0
[chain]
plugins = ["fallback", "logging"]
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
api_key = "{KEY}"
default = true
"""
    )


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official SDK, unchanged but for base_url; it does not retry unless the test says so."""
    async with openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="sk-client-canary", max_retries=0) as client:
        yield client
