"""A pipeline without sockets: your plugins, a scripted provider, one call at a time.

Lives here: `PipelineKit`, `make_plugin`, `Delivered`, `Running`. Elsewhere: the provider (scripted.py), a scripted upstream on a real socket (upstream.py).
Idea: everything between the provider and the client is the real thing: chain, pipeline, settlement.

    kit = PipelineKit(MyPlugin, options={"MyPlugin": {"limit": 3}})
    delivered = await kit.call({"model": "up/m", "messages": []})
    assert delivered.status == 429"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from multidict import CIMultiDict

from hookline.call import ENDPOINTS, Call
from hookline.catalog import Catalog
from hookline.chain import Chain, compile_chain
from hookline.deployment import Deployment
from hookline.errors import ClientGone
from hookline.flights import Flights
from hookline.hookspecs import hookimpl
from hookline.metrics_registry import MetricsRegistry
from hookline.money import Price
from hookline.pipeline import Pipeline
from hookline.pipeline_settings import PipelineSettings
from hookline.plugin_checks import ARGUMENTS
from hookline.plugin_host import Stores, Workshop
from hookline.plugin_loading import PluginEntry
from hookline.principal import Principal
from hookline.reply import Reply
from hookline.stores.memory_flights import MemoryFlights
from hookline.testing.clock import FakeClock
from hookline.testing.scripted import ANSWER, ANSWER_AS_STREAM, Script, ScriptedProvider, answer, stream

__all__ = [
    "ANSWER",
    "ANSWER_AS_STREAM",
    "CHAT",
    "PRICE",
    "Delivered",
    "PipelineKit",
    "Running",
    "Script",
    "ScriptedProvider",
    "answer",
    "make_plugin",
    "plugin_name",
    "stream",
]

CHAT: dict[str, Any] = {"model": "up/m", "messages": [{"role": "user", "content": "hi"}]}
PRICE = Price(1_000_000, 2_000_000)
"""1 and 2 USD per million tokens."""


def make_plugin(name: str, /, **members: Any) -> type:
    """A plugin class made of plain functions without `self`, by hook name: `make_plugin("gate", admit=lambda call: ticket)`.
    What is no function becomes a class attribute: `on_error="closed"`."""
    made: dict[str, Any] = {}
    for key, member in members.items():
        is_function = inspect.isfunction(member)
        marked = hookimpl(member) if is_function and key in ARGUMENTS else member
        made[key] = staticmethod(marked) if is_function else member
    return type(name, (), made)


@dataclass
class Delivered:
    """What a client would have seen. `error` is what the body raised after its last byte: the connection was cut.

    `gone_after`: the client is found gone when more than this many chunks are written (0: at the first write).
    `is_reading`: cleared, it is a client that stopped reading."""

    status: int = 0
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    error: Exception | None = None
    times: int = 0
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    gone_after: int | None = None
    is_reading: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.is_reading.set()

    def json(self) -> Any:
        return orjson.loads(self.body)

    async def deliver(self, reply: Reply) -> None:
        """A surface's `deliver` that keeps everything."""
        self.times += 1
        self.status, self.headers = reply.status, reply.headers
        if isinstance(reply.body, bytes):
            await self._write(reply.body)
            return
        try:
            async for chunk in reply.body:
                await self._write(chunk)
        except ClientGone:
            raise
        except Exception as error:
            self.error = error
            raise

    async def _write(self, chunk: bytes) -> None:
        if self.gone_after is not None and len(self.chunks) >= self.gone_after:
            raise ClientGone("the client closed its connection")
        self.chunks.append(chunk)
        self.body += chunk
        self.has_begun.set()
        await self.is_reading.wait()


@dataclass
class Running:
    """A call on its way in a task of its own."""

    call: Call
    delivered: Delivered
    task: asyncio.Task[None]

    def leave(self) -> None:
        """The client closes its connection."""
        if self.call.client_closed is not None:
            self.call.client_closed()

    async def done(self) -> Delivered:
        await self.task
        return self.delivered


class NoRecords:
    """The `records` of a kit that was given none: there, and of no use."""

    async def ping(self) -> None:
        pass


class PipelineKit:
    """Plugins by class (in chain order), providers, and the models they serve.

    `deployments` maps a model name to deployment ids "provider/model"; by default "up/m" is one deployment of provider "up"."""

    def __init__(
        self,
        *plugins: type,
        providers: Sequence[ScriptedProvider] = (),
        deployments: Mapping[str, Sequence[str]] | None = None,
        price: Price | None = PRICE,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        order: Mapping[str, Sequence[str]] | None = None,
        settings: PipelineSettings | None = None,
        stores: Stores | None = None,
        host_settings: Mapping[str, Any] | None = None,
        hook_timeout_s: float = 5.0,
        clock: FakeClock | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.metrics = MetricsRegistry()
        self.providers = {p.name: p for p in (providers or [ScriptedProvider()])}
        stores = stores or Stores(None, None, NoRecords())  # type: ignore[arg-type]
        stores.flights = stores.flights or Flights(MemoryFlights(self.clock), self.clock)
        self.workshop = Workshop(
            clock=self.clock,
            metrics=self.metrics,
            stores=stores,
            settings=host_settings or {"tenants": {}, "users": {}, "global": {}, "server": {}, "models": []},
            find_http=lambda: None,
        )
        entries = [
            PluginEntry(plugin_name(p), options=(options or {}).get(plugin_name(p), {}), factory=p) for p in plugins
        ]
        self.chain: Chain = compile_chain(
            entries,
            make_host=self.workshop.make_host,
            metrics=self.metrics,
            order=order,
            hook_timeout_s=hook_timeout_s,
        )

        def build(provider: str, model: str) -> Deployment:
            return Deployment(f"{provider}/{model}", provider, model, price=price)

        by_name = {
            name: tuple(build(*identity.split("/", 1)) for identity in identities)
            for name, identities in (deployments or {}).items()
        }
        first = next(iter(self.providers))
        catalog = Catalog(by_name, providers=list(self.providers), default_provider=first, build=build)
        self.pipeline = Pipeline(
            chain=self.chain,
            catalog=catalog,
            providers=self.providers,
            clock=self.clock,
            metrics=self.metrics,
            settings=settings,
        )
        self.workshop.pipeline = self.pipeline
        self.workshop.know_keys(self.chain)
        self._calls = 0

    def make_call(
        self,
        payload: Mapping[str, Any] | None = None,
        *,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        principal: Principal | None = None,
        load: Callable[[Call], Awaitable[None]] | None = None,
        is_dry_run: bool = False,
    ) -> Call:
        """A call as a surface builds it, its body read by `load`."""
        self._calls += 1
        call = Call(
            id=f"req_{self._calls}",
            method=method,
            path=path,
            endpoint=ENDPOINTS.get(path, "relay") if method == "POST" else "relay",
            headers=CIMultiDict(headers or {}),
            started_at=self.clock.monotonic(),
            started_time=self.clock.time(),
            principal=principal,
        )

        async def load_json(call: Call) -> None:
            wanted = dict(CHAT if payload is None else payload)
            call.set_json(orjson.dumps(wanted), wanted)

        if load is not None or method == "POST":
            call.load = load or load_json
        call.is_dry_run = is_dry_run
        return call

    async def call(self, payload: Mapping[str, Any] | None = None, **about: Any) -> Delivered:
        """Make a call, run it, and return what was delivered."""
        return await self.run(self.make_call(payload, **about))

    async def run(self, call: Call, delivered: Delivered | None = None) -> Delivered:
        delivered = delivered or Delivered()
        await self.pipeline.run(call, delivered.deliver)
        return delivered

    def start(self, call: Call | None = None, delivered: Delivered | None = None) -> Running:
        """Begin a call and come back at once."""
        call, delivered = call or self.make_call(), delivered or Delivered()
        return Running(call, delivered, asyncio.ensure_future(self.pipeline.run(call, delivered.deliver)))

    @staticmethod
    def expire(call: Call) -> None:
        """The call's deadline passes now."""
        call._timer.set_deadline(0.0)  # type: ignore[union-attr]

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample, 0 if it never moved."""
        for line in self.metrics.render().decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(
                f'{key}="{wanted}"' in sample for key, wanted in labels.items()
            ):
                return float(value)
        return 0.0

    def plugin(self, cls: type) -> Any:
        """The instance of a plugin class."""
        return next(p.instance for p in self.chain.plugins if isinstance(p.instance, cls))


def plugin_name(cls: type) -> str:
    """Built-ins and packages: their module's last name; a class of a test: its own."""
    return cls.__name__ if cls.__name__ != "Plugin" else cls.__module__.rsplit(".", 1)[-1]
