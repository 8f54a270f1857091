"""A gateway in this process, on real sockets, between a raw client and scripted upstreams.

On uvloop, as `hookline serve` runs; tests/transport and tests/surfaces run on asyncio's loop too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from hookline.app import App
from hookline.config_loading import load
from hookline.launch import open_listener
from hookline.testing.raw_client import RawReply, read_reply
from hookline.testing.upstream import ScriptedUpstream
from hookline.transport import PoolStats


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


class Gateway:
    """A served app, and raw clients for it."""

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.port = port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)

    async def ask(self, request: bytes) -> RawReply:
        """One request on a connection of its own."""
        reader, writer = await self.connect()
        try:
            writer.write(request)
            return await read_reply(reader)
        finally:
            writer.transport.abort()

    def pool(self, provider: str = "up") -> PoolStats:
        """The connections to one provider."""
        stats: PoolStats = self.app.current.providers[provider].provider._provider._upstream._pool.stats()  # type: ignore[attr-defined]
        return stats

    async def idle(self) -> None:
        """Wait until no call runs and no connection to an upstream is busy."""
        pipeline = self.app.current.pipeline
        while pipeline.running or any(self.pool(name).in_use for name in self.app.current.providers):  # noqa: ASYNC110 - asked at ends only
            await asyncio.sleep(0.001)
        await pipeline.drained()


StartGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """`await start_gateway(toml, **{"mine.py": code})`."""
    gateways: list[Gateway] = []

    async def start(text: str, **files: str) -> Gateway:
        for name, code in files.items():
            (tmp_path / f"{name}.py").write_text(code)
        (tmp_path / "proxy.toml").write_text(text)
        app = App(load(tmp_path / "proxy.toml", {}))
        listener = open_listener("127.0.0.1", 0)
        port: int = listener.getsockname()[1]
        await app.start(listener)
        gateways.append(Gateway(app, port))
        return gateways[-1]

    yield start
    for gateway in gateways:
        await gateway.app.stop(0)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def spare() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as spare:
        yield spare


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
