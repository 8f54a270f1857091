"""What plugins are given: the `Host` of host.py.

Lives here: `PluginHost`, one per plugin, over one `Workshop` per compiled configuration; background tasks and workers. Elsewhere: the protocol (host.py),
who makes them (assembly.py).
Idea: everything that is only known after the plugins exist (the pipeline, the description) is reached through the workshop when it is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from hookline.begun_reply import BegunReply
from hookline.call import Call
from hookline.catalog import Catalog
from hookline.chain import Chain
from hookline.deployment import Deployment
from hookline.errors import ClientGone, InternalError, StartupError, TooLarge
from hookline.flights import Flights
from hookline.host import Clock, Metrics
from hookline.own_calls import IN_BACKGROUND
from hookline.principal import Principal
from hookline.reply import Reply
from hookline.slots import Slot
from hookline.stores.protocols import LimitStore, RecordStore, ReplyStore

log = logging.getLogger("hookline.plugins")

REPLY_BYTES_MAX = 64 * 1024 * 1024
"""Of a reply that a plugin asked for; it is held in memory whole."""
RESTART_FIRST_S, RESTART_MAX_S = 1.0, 60.0


Deliver = Callable[[Reply], Coroutine[Any, Any, None]]


class RunsCalls(Protocol):
    catalog: Catalog

    async def run(self, call: Call, deliver: Deliver, /) -> None: ...


@dataclass(slots=True)
class Stores:
    """The process's stores; they outlive reloads."""

    limits: LimitStore
    replies: ReplyStore
    records: RecordStore
    flights: Flights | None = None


@dataclass(slots=True)
class Workshop:
    """What the plugins of one compiled configuration share."""

    clock: Clock
    metrics: Metrics
    stores: Stores
    settings: Mapping[str, Any]
    find_http: Callable[[], Any]
    describe: Callable[[], Mapping[str, Any]] = dict
    pipeline: RunsCalls | None = None
    find_principal: Sequence[Callable[[str], Any]] = ()
    """Of the plugins that know keys."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    offers: dict[Slot[Any], Any] = field(default_factory=dict)
    in_background: int = 0
    """Running calls for which nobody waits."""

    def make_host(self, plugin: str, options_by_model: Mapping[str, Any]) -> PluginHost:
        return PluginHost(self, plugin, options_by_model)

    def know_keys(self, chain: Chain) -> None:
        """From now on `find_principal` asks the plugins of this chain that have one."""
        found = (getattr(plugin.instance, "find_principal", None) for plugin in chain.plugins)
        self.find_principal = [find for find in found if find is not None]

    def spawn(self, plugin: str, name: str, coro: Coroutine[Any, Any, Any]) -> None:
        """Run in the background; an error is logged with the plugin's name."""
        try:
            task = asyncio.get_running_loop().create_task(_logged(plugin, name, coro), name=f"{plugin}: {name}")
        except RuntimeError as error:
            coro.close()
            raise StartupError(
                [f'plugin "{plugin}": spawn("{name}") belongs in start(), not in the constructor']
            ) from error
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: coro.close())  # one that was cancelled before its first step

    async def cancel_tasks(self) -> None:
        """End what was spawned."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class PluginHost:
    """Implements `Host`."""

    def __init__(self, workshop: Workshop, plugin: str, options_by_model: Mapping[str, Any]) -> None:
        self._workshop = workshop
        self.plugin = plugin
        self.clock = workshop.clock
        self.metrics = workshop.metrics
        self.limits = workshop.stores.limits
        self.replies = workshop.stores.replies
        self.records = workshop.stores.records
        self.flights = workshop.stores.flights or Flights(None, workshop.clock)
        self.offers = workshop.offers
        self.log = logging.getLogger(f"hookline.plugins.{plugin}")
        self.options_by_model = options_by_model
        self.settings = workshop.settings

    @property
    def http(self) -> Any:
        return self._workshop.find_http()

    async def run(self, call: Call) -> Reply:
        """See `Host.run`. The call has a task of its own, so that its deadline is not the caller's."""
        pipeline, collector = self._find_pipeline(), _Collector()
        await asyncio.get_running_loop().create_task(self._run(pipeline, call, collector.deliver))
        return collector.take()

    async def begin(self, call: Call) -> Reply:
        """See `Host.begin`."""
        return await BegunReply(call).begin(partial(self._run, self._find_pipeline()))

    def _find_pipeline(self) -> RunsCalls:
        if self._workshop.pipeline is None:
            raise RuntimeError(f'plugin "{self.plugin}": calls and deployments are there from start() on')
        return self._workshop.pipeline

    async def _run(self, pipeline: RunsCalls, call: Call, deliver: Deliver) -> None:
        in_background = 1 if IN_BACKGROUND in call.slots else 0
        self._workshop.in_background += in_background
        try:
            await pipeline.run(call, deliver)
        finally:
            self._workshop.in_background -= in_background

    async def find_principal(self, key: str) -> Principal | None:
        """See `Host.find_principal`."""
        for knows in self._workshop.find_principal:
            found = knows(key)
            principal: Principal | None = (await found) if isinstance(found, Awaitable) else found
            if principal is not None:
                return principal
        return None

    def find_deployments(self, name: str, call: Call) -> Sequence[Deployment]:
        """See `Host.find_deployments`."""
        pipeline = self._find_pipeline()
        found = pipeline.catalog.resolve(name, call)
        pipeline.catalog.check_allowed(call.principal, name, call)
        return found

    def describe(self) -> Mapping[str, Any]:
        return self._workshop.describe()

    def spawn(self, name: str, coro: Coroutine[Any, Any, Any]) -> None:
        self._workshop.spawn(self.plugin, name, coro)


class _Collector:
    """A deliverer that keeps the reply, its body read whole."""

    def __init__(self) -> None:
        self._reply: Reply | None = None
        self._is_too_large = False

    async def deliver(self, reply: Reply) -> None:
        body = reply.body
        if not isinstance(body, bytes):
            pieces = bytearray()
            async for piece in body:
                pieces += piece
                if len(pieces) > REPLY_BYTES_MAX:
                    self._is_too_large = True
                    raise ClientGone("the reply is too large to be held")
            body = bytes(pieces)
        self._reply = Reply(reply.status, reply.headers, body, source=reply.source)

    def take(self) -> Reply:
        if self._is_too_large:
            return Reply.from_error(TooLarge(f"the reply is larger than {REPLY_BYTES_MAX} bytes"))
        return self._reply or Reply.from_error(InternalError("the call ended without a reply"))


async def _logged(plugin: str, name: str, coro: Coroutine[Any, Any, Any]) -> None:
    try:
        await coro
    except Exception:
        log.exception('plugin "%s": background task "%s" failed', plugin, name)


async def keep_running(plugin: str, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A registered worker: started again after a failure, later each time, until it is cancelled or ends by itself."""
    pause_s = RESTART_FIRST_S
    loop = asyncio.get_running_loop()
    while True:
        started_at = loop.time()
        try:
            await run()
            return
        except Exception:
            if loop.time() - started_at > RESTART_MAX_S:
                pause_s = RESTART_FIRST_S
            log.exception('plugin "%s": worker "%s" failed; it starts again in %g s', plugin, name, pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, RESTART_MAX_S)
