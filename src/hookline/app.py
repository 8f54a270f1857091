"""The app: a compiled configuration on a listening socket.

Lives here: the order in which things start, are replaced and end. Elsewhere: what is made of settings (compilation.py), signals and the process around
it (process.py), what connections do (surfaces/).
Idea: stores, metrics and the HTTP front live as long as the process; everything else is one `Compiled`, swapped by one assignment, so that a reload
can fail without anybody noticing and running calls end on the configuration they began with."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hookline.assembly import MadeProvider, plugin_entries
from hookline.chain import PHASES
from hookline.compilation import CLOSE_S, Compiled, Process, compile_settings, within
from hookline.config import Settings
from hookline.errors import StartupError
from hookline.launch import BACKLOG
from hookline.plugin_host import keep_running
from hookline.surfaces.http_front import HttpFront
from hookline.surfaces.settings import FrontSettings
from hookline.watchdog import Place, Watchdog

log = logging.getLogger("hookline.app")

IDLE_LOOK_S = 0.05
PARTING_S = 5.0
"""For a client that keeps a connection to a process that is being replaced: its next request is answered, with `connection: close`. Closing at once would
reset a request that is on its way."""
_FRONT_LIMITS = tuple(FrontSettings.__dataclass_fields__)
_NEEDS_RESTART = ("host", "port", "workers", "handover_socket", *_FRONT_LIMITS)


class App:
    """A server of one process. `start`, `reload` and `stop` run on the loop."""

    def __init__(self, settings: Settings, *, host: str | None = None, workers: int = 1) -> None:
        """In: checked settings; the host it listens on and how many processes share it, as the command line has it.

        Raises StartupError with everything that is wrong."""
        self._process = Process(settings.server.host if host is None else host, workers)
        self.current = compile_settings(settings, self._process)
        self._front: HttpFront | None = None
        self._server: asyncio.Server | None = None
        self._watchdog = Watchdog(self._process.metrics, self._find_hooks)
        self._reload_lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()
        self._is_stopping = False

    async def start(self, listener: socket.socket) -> None:
        """Start the plugins, then accept on `listener`. Raises StartupError; what had started is stopped again."""
        compiled = self.current
        try:
            await _start(compiled)
            self._front = HttpFront(_front_settings(compiled.settings), compiled.serving, self._process.clock)
            self._watchdog.start()
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._front, sock=listener, backlog=BACKLOG)
        except BaseException:
            await self.stop(0)
            raise

    def abandon(self) -> None:
        """Instead of `start`: close what was opened, where no loop runs."""
        self._process.close_unused()

    async def reload(self, load: Callable[[], Settings]) -> list[str]:
        """Serve what `load` answers from the next request on. Answers the problems: if there are any, nothing has changed."""
        async with self._reload_lock:
            if self._is_stopping or self._front is None:
                return ["the server is stopping"]
            try:
                compiled = compile_settings(load(), self._process, kept=self.current.providers)
            except StartupError as error:
                return _not_reloaded(error.problems)
            try:
                await _start(compiled)
            except StartupError as error:
                await _end(compiled, keep=self.current.providers)
                return _not_reloaded(error.problems)
            old, self.current = self.current, compiled
            self._front.serving = compiled.serving
            _tell_what_needs_a_restart(old.settings, compiled.settings)
            task = asyncio.get_running_loop().create_task(self._retire(old, compiled.providers))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            log.info("reloaded %s", compiled.settings.source.file)
            return []

    async def stop(self, drain_s: float, *, is_replaced: bool = False) -> bool:
        """Stop accepting, let running calls finish for `drain_s` (or until `hurry`), then end everything. False if calls were cut.

        `is_replaced`: another process accepts on the same socket, so idle clients have time to come with their next request, and are told to reconnect."""
        self._is_stopping = True
        if self._server is not None:
            self._server.close()
        is_drained = await self._drain(drain_s, is_replaced)
        self._watchdog.stop()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await _end(self.current, keep={})
        await self._process.aclose()
        return is_drained

    def close_idle(self) -> None:
        """Once `stop` has begun: give idle clients no more time."""
        if self._is_stopping and self._front is not None:
            self._front.stop_accepting()

    def hurry(self) -> None:
        """End `stop`'s waiting: running calls are cut."""
        self._hurry.set()

    def adopt(self) -> None:
        """Another process of this server has died: have its calls charged now."""
        if self._process.stores is not None:
            self._process.stores.records.adopt()

    def watched_files(self) -> Iterable[Path]:
        """What `--reload` looks at: proxy.toml, and the plugins that are single files."""
        settings = self.current.settings
        if settings.source.path is not None:
            yield settings.source.path
        yield from (entry.path for entry in plugin_entries(settings) if entry.path is not None)

    async def _drain(self, drain_s: float, is_replaced: bool) -> bool:
        front = self._front
        if front is None:
            return True
        loop = asyncio.get_running_loop()
        draining = loop.create_task(self._drain_calls(front, drain_s, is_replaced))
        hurried = loop.create_task(self._hurry.wait())
        try:
            await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
            return draining.done() and draining.result()
        finally:
            front.abort()
            for task in (draining, hurried):
                task.cancel()
            await asyncio.gather(draining, hurried, return_exceptions=True)

    async def _drain_calls(self, front: HttpFront, drain_s: float, is_replaced: bool) -> bool:
        """Connections first, then what reads on for clients that have left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_s
        is_drained = await front.drain(drain_s, idle_s=PARTING_S if is_replaced else 0.0)
        try:
            async with asyncio.timeout_at(deadline):
                await _idle(self.current, is_stopping=True)
        except TimeoutError:
            return False
        return is_drained

    async def _retire(self, old: Compiled, keep: Mapping[str, MadeProvider]) -> None:
        """End a configuration when its last call has ended, or at once when cancelled."""
        try:
            await _idle(old)
        finally:
            await _end(old, keep=keep)

    def _find_hooks(self) -> Mapping[Place, tuple[str, str]]:
        """Where each hook's code is, for the watchdog."""
        hooks: dict[Place, tuple[str, str]] = {}
        for name in PHASES:
            for impl in self.current.chain.hook(name):
                file, _, line = impl.location.rpartition(":")
                hooks[file, int(line)] = (impl.plugin, name)
        return hooks


async def _start(compiled: Compiled) -> None:
    """Run the plugins' `start()`, then their workers. Raises StartupError."""
    await compiled.chain.start()
    for plugin, name, run in compiled.workers:
        compiled.workshop.spawn(plugin, name, keep_running(plugin, name, run))


async def _idle(compiled: Compiled, *, is_stopping: bool = False) -> None:
    """Wait until no call runs on this configuration; to stop, none that somebody waits for. Every call has a deadline, so this ends."""
    pipeline, workshop = compiled.pipeline, compiled.workshop
    while pipeline.running > (workshop.in_background if is_stopping else 0):  # noqa: ASYNC110 - an event would cost every call; this waits at ends only
        await asyncio.sleep(IDLE_LOOK_S)
    await pipeline.drained()


async def _end(compiled: Compiled, *, keep: Mapping[str, MadeProvider]) -> None:
    """Stop a configuration's plugins and close its providers, but for those that the next one has taken over."""
    await within(CLOSE_S, compiled.workshop.cancel_tasks(), "background tasks did not end")
    await compiled.chain.stop()
    kept = {id(made.provider) for made in keep.values()}
    for name, made in compiled.providers.items():
        if id(made.provider) not in kept:
            await within(CLOSE_S, made.provider.aclose(), f'provider "{name}" did not close')


def _front_settings(settings: Settings) -> FrontSettings:
    return FrontSettings(**{name: getattr(settings.server, name) for name in _FRONT_LIMITS})


def _not_reloaded(problems: list[str]) -> list[str]:
    log.error("not reloaded, the former configuration serves on:\n  %s", "\n  ".join(problems))
    return problems


def _tell_what_needs_a_restart(old: Settings, new: Settings) -> None:
    changed = [f"[server] {name}" for name in _NEEDS_RESTART if getattr(old.server, name) != getattr(new.server, name)]
    changed += [
        f"[state] {name}"
        for name in type(old.state).model_fields
        if getattr(old.state, name) != getattr(new.state, name)
    ]
    if changed:
        log.warning("reloaded, but %s keep their former values until a restart", ", ".join(changed))
