"""A pipeline without sockets: your plugins, a scripted provider, one call at a time.

Lives here: `PipelineKit`, `ScriptedProvider`, `Delivered`. Elsewhere: a scripted upstream on a real socket (upstream.py).
Idea: everything between the provider and the client is the real thing: chain, pipeline, settlement.

    kit = PipelineKit(MyPlugin, options={"MyPlugin": {"limit": 3}})
    delivered = await kit.call({"model": "up/m", "messages": []})
    assert delivered.status == 429"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from multidict import CIMultiDict

from hookline.attempt import Attempt
from hookline.call import ENDPOINTS, Call
from hookline.catalog import Catalog
from hookline.chain import Chain, compile_chain
from hookline.deployment import Deployment
from hookline.metrics_registry import MetricsRegistry
from hookline.money import Price
from hookline.pipeline import Pipeline
from hookline.pipeline_settings import PipelineSettings
from hookline.plugin_host import Stores, Workshop
from hookline.plugin_loading import PluginEntry
from hookline.principal import Principal
from hookline.reply import Reply
from hookline.testing.clock import FakeClock

CHAT: dict[str, Any] = {"model": "up/m", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
)
PRICE = Price(1_000_000, 2_000_000)
"""1 and 2 USD per million tokens."""
Script = Reply | Exception | Callable[[Call, Attempt], Awaitable[Reply]]


def answer(body: bytes = ANSWER, status: int = 200, **headers: str) -> Reply:
    """A JSON reply of an upstream."""
    return Reply(status, {"content-type": "application/json", **headers}, body)


def stream(*events: bytes | Exception, closed: list[str] | None = None) -> Reply:
    """An event-stream reply: bytes are yielded one by one, an exception is raised in its place. `closed` learns of its end."""

    async def body() -> AsyncIterator[bytes]:
        try:
            for event in events:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            if closed is not None:
                closed.append("closed")

    return Reply(200, {"content-type": "text/event-stream"}, body())


class ScriptedProvider:
    """Plays `scripts` in order, one per attempt; the last one again and again. `sent` has the attempts."""

    def __init__(
        self, *scripts: Script | Callable[[], Reply], name: str = "up", endpoints: Sequence[str] | None = None
    ) -> None:
        self.name = name
        self.endpoints = frozenset(endpoints or [*ENDPOINTS.values(), "models", "relay"])
        self.scripts = list(scripts) or [answer]
        self.sent: list[tuple[Call, Attempt]] = []

    async def send(self, call: Call, attempt: Attempt, /) -> Reply:
        script = self.scripts[min(len(self.sent), len(self.scripts) - 1)]
        self.sent.append((call, attempt))
        if isinstance(script, Exception):
            raise script
        if isinstance(script, Reply):
            return script
        made: Any = script() if not _takes_call(script) else script(call, attempt)  # type: ignore[call-arg]
        reply: Reply = await made if asyncio.iscoroutine(made) else made
        return reply

    async def aclose(self) -> None:
        pass


@dataclass
class Delivered:
    """What a client would have seen. `error` is what the body raised after its last byte: the connection was cut."""

    status: int = 0
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    error: Exception | None = None
    times: int = 0
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    def json(self) -> Any:
        return orjson.loads(self.body)

    async def deliver(self, reply: Reply) -> None:
        """A surface's `deliver` that keeps everything."""
        self.times += 1
        self.status, self.headers = reply.status, reply.headers
        if isinstance(reply.body, bytes):
            self.body, self.chunks = reply.body, [reply.body]
            self.has_begun.set()
            return
        try:
            async for chunk in reply.body:
                self.chunks.append(chunk)
                self.body += chunk
                self.has_begun.set()
        except Exception as error:
            self.error = error
            raise


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
        self.workshop = Workshop(
            clock=self.clock,
            metrics=self.metrics,
            stores=stores or Stores(None, None, None),  # type: ignore[arg-type]
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
        self._calls = 0

    def make_call(
        self,
        payload: Mapping[str, Any] | None = None,
        *,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        principal: Principal | None = None,
    ) -> Call:
        """A call as a surface builds it, its body read by `load`."""
        self._calls += 1
        call = Call(
            id=f"req_{self._calls}",
            method=method,
            path=path,
            endpoint=ENDPOINTS.get(path, "relay"),
            headers=CIMultiDict(headers or {}),
            started_at=self.clock.monotonic(),
            started_time=self.clock.time(),
            principal=principal,
        )

        async def load(call: Call) -> None:
            wanted = dict(CHAT if payload is None else payload)
            call.set_json(orjson.dumps(wanted), wanted)

        call.load = load
        return call

    async def call(self, payload: Mapping[str, Any] | None = None, **about: Any) -> Delivered:
        """Make a call, run it, and return what was delivered."""
        return await self.run(self.make_call(payload, **about))

    async def run(self, call: Call) -> Delivered:
        delivered = Delivered()
        await self.pipeline.run(call, delivered.deliver)
        return delivered

    def plugin(self, cls: type) -> Any:
        """The instance of a plugin class."""
        return next(p.instance for p in self.chain.plugins if isinstance(p.instance, cls))


def plugin_name(cls: type) -> str:
    """Built-ins and packages: their module's last name; a class of a test: its own."""
    return cls.__name__ if cls.__name__ != "Plugin" else cls.__module__.rsplit(".", 1)[-1]


def _takes_call(script: Any) -> bool:
    code = getattr(script, "__code__", None)
    return code is not None and code.co_argcount - len(script.__defaults__ or ()) >= 2
