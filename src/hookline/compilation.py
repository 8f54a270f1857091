"""Compiling: settings -> one configuration, made whole and started by nobody.

Lives here: `Process` (what outlives a reload), `Compiled`, `compile_settings`. Elsewhere: each part (assembly.py), start, swap and stop (app.py).
Idea: whatever can be wrong is found before anything of a running configuration is touched; `hookline check` is this and nothing more."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

from hookline.assembly import (
    MadeProvider,
    Registry,
    builtin_registry,
    choose_stores,
    explainer,
    make_catalog,
    make_providers,
    may_hold_keys,
    plugin_entries,
    public_settings,
    tenant_names,
    where_it_stands,
)
from hookline.catalog import Catalog
from hookline.chain import ActivePlugin, Chain, compile_chain
from hookline.config import Settings
from hookline.config_masking import masked
from hookline.config_rules import exposure_problems, is_loopback, unused_plugin_tables, worker_problems
from hookline.errors import StartupError
from hookline.host import AddCommand
from hookline.metrics_registry import MetricsRegistry
from hookline.pipeline import Pipeline
from hookline.pipeline_settings import PipelineSettings
from hookline.plugin_host import Stores, Workshop
from hookline.plugin_loading import PluginEntry, load_class, load_plugin, said
from hookline.stores.plugin_tables import check_table
from hookline.surfaces.cors import Cors
from hookline.surfaces.routes import Routes
from hookline.surfaces.settings import Serving


class SystemClock:
    """The real time. The functions themselves, not methods around them: a call asks a dozen times."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


CLOSE_S = 5.0
"""How long one step of an end may take: the last rows of the ledger, a plugin's `stop()`."""

log = logging.getLogger("hookline.compilation")


async def within(timeout_s: float, awaitable: Awaitable[object], complaint: str) -> None:
    """One step of an end: it may fail or hang, the others still run."""
    try:
        async with asyncio.timeout(timeout_s):
            await awaitable
    except TimeoutError:
        log.error("%s within %g s", complaint, timeout_s)
    except Exception:
        log.exception("%s", complaint)


@dataclass(slots=True)
class Process:
    """What lives as long as the process. `host` and `workers` are what the command line made of `[server]`."""

    host: str
    workers: int = 1
    clock: SystemClock = field(default_factory=SystemClock)
    metrics: MetricsRegistry = field(default_factory=MetricsRegistry)
    opens_stores: bool = True
    """False: nothing will be started, so no database is created."""
    stores: Stores | None = None
    http: Any = None

    def find_http(self) -> Any:
        """The client for everything but LLM calls, made at first use; it keeps no cookies."""
        if self.http is None:
            import aiohttp

            self.http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        return self.http

    async def aclose(self) -> None:
        """Close what the process has opened; each step may fail or hang, the others still run."""
        if self.stores is not None and self.opens_stores:
            stores = self.stores
            for store in (
                stores.records,
                stores.limits,
                stores.replies,
                *((stores.flights,) if stores.flights else ()),
            ):
                await within(CLOSE_S, store.aclose(), f"{type(store).__name__} did not close")
        if self.http is not None:
            await within(CLOSE_S, self.http.close(), "the HTTP client did not close")

    def close_unused(self) -> None:
        """`aclose` for a process that never served: what it has opened leaves nothing behind. A loop may run here, or none."""
        closing = threading.Thread(target=lambda: asyncio.run(self.aclose()), name="hookline-close")
        closing.start()
        closing.join()
        self.stores = None

    def find_what_is_missing(self) -> Sequence[str]:
        """Why this process can't serve right now."""
        readiness = self.stores.records.readiness if self.stores is not None else None
        return () if readiness is None else (readiness,)


class Worker(NamedTuple):
    """A registered worker and whose it is."""

    plugin: str
    name: str
    run: Callable[[], Any]


@dataclass(slots=True)
class Compiled:
    """One configuration, ready to be started."""

    settings: Settings
    chain: Chain
    providers: dict[str, MadeProvider]
    catalog: Catalog
    pipeline: Pipeline
    serving: Serving
    workshop: Workshop
    registry: Registry
    workers: list[Worker]


def compile_settings(
    settings: Settings,
    process: Process,
    *,
    kept: Mapping[str, MadeProvider] | None = None,
    problems: Sequence[str] = (),
    add_command: AddCommand | None = None,
) -> Compiled:
    """Make every part of a configuration. Raises StartupError with `problems` (known before) and all that is found here; stores that were opened for it are closed again."""
    are_stores_kept = process.stores is not None
    try:
        return _compile(settings, process, kept or {}, list(problems), add_command)
    except BaseException:
        if not are_stores_kept:
            process.close_unused()
        raise


def _compile(
    settings: Settings,
    process: Process,
    kept: Mapping[str, MadeProvider],
    found: list[str],
    add_command: AddCommand | None,
) -> Compiled:
    registry = builtin_registry(settings)
    workshop = _make_workshop(settings, process, registry, found)
    chain = _compile_chain(settings, process, workshop, found)
    routes = Routes(settings.admin.key)
    workers: list[Worker] = []
    registrations: list[tuple[str, Callable[..., Any] | None]] = [
        ("register_providers", registry.add_provider),
        ("register_routes", routes.add),
        ("register_commands", add_command),
    ]
    for hook, add in registrations:
        if add is not None:
            _register(chain, hook, add, found)
    for plugin in chain.plugins:
        _register(Chain((plugin,), {}), "register_workers", partial(_add_worker, workers, plugin.name), found)
    providers = make_providers(settings, registry, process.clock, found, kept=kept)
    found += _refusals(settings, process, chain)
    if found:
        raise StartupError(settings.source.in_order(found))
    return _join(settings, process, workshop, chain, routes, providers, registry, workers)


def _register(chain: Chain, hook: str, add: Callable[..., Any], found: list[str]) -> None:
    try:
        chain.register(hook, add)
    except StartupError as error:
        found += error.problems


def _add_worker(workers: list[Worker], plugin: str, name: str, run: Callable[[], Any]) -> None:
    workers.append(Worker(plugin, name, run))


def _make_workshop(settings: Settings, process: Process, registry: Registry, found: list[str]) -> Workshop:
    """The plugins' surroundings. Stores may come from plugins, so those are asked first; without stores the plugins are checked all the same."""
    stores = process.stores
    try:
        if stores is None:
            _register_plugin_stores(settings, process, registry, found)
            open_stores = choose_stores(settings, registry)
            stores = process.stores = open_stores(process.clock) if process.opens_stores and not found else _unopened()
            for store in (stores.limits, stores.replies):
                if (report_to := getattr(type(store), "report_to", None)) is not None:
                    report_to(store, process.metrics)
    except StartupError as error:
        found += where_it_stands(error, settings.source)
    except Exception as error:  # the factory may be a plugin's
        found.append(settings.source.problem(("state",), f"a store can't be opened: {said(error)}"))
    stores = stores or _unopened()
    return Workshop(process.clock, process.metrics, stores, _shown_settings(settings, process), process.find_http)


def _shown_settings(settings: Settings, process: Process) -> dict[str, Any]:
    """What plugins may read, with what the command line made of `[server]`."""
    shown = public_settings(settings)
    shown["server"] |= {"host": process.host, "is_loopback": is_loopback(process.host), "workers": process.workers}
    return shown


def _register_plugin_stores(settings: Settings, process: Process, registry: Registry, found: list[str]) -> None:
    """Call `register_stores` of plugins that have it, on an instance made for this: no store is open yet."""
    shown = _shown_settings(settings, process)
    workshop = Workshop(process.clock, process.metrics, _unopened(), shown, process.find_http)
    for entry in plugin_entries(settings):
        try:
            if not hasattr(load_class(entry), "register_stores"):
                continue
            plugin = load_plugin(entry, workshop.make_host, explainer(settings.source))
        except StartupError:
            continue  # said when the chain is compiled
        try:
            Chain((ActivePlugin(entry.name, plugin, 0, False, False),), {}).register(
                "register_stores", registry.add_store
            )
        except StartupError as error:
            found += error.problems


def _unopened() -> Stores:
    unopened: Any = _Unopened()
    return Stores(unopened, unopened, unopened)


class _Unopened:
    """In place of a store: `hookline check` must not create a database. A constructor may keep its methods, not call them."""

    readiness = None

    def table(self, model: Any) -> _Unopened:
        """A plugin's table, checked as far as that goes without a database."""
        check_table(model)
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"no store is open yet: call {name}() from start() on, not in the constructor")

        return refuse


def _compile_chain(settings: Settings, process: Process, workshop: Workshop, found: list[str]) -> Chain:
    """The chain; with problems, one of the sound plugins without hooks: what they register is not missing, too."""

    def compiled(entries: Sequence[PluginEntry], order: Mapping[str, Sequence[str]]) -> Chain:
        return compile_chain(
            entries,
            make_host=workshop.make_host,
            metrics=process.metrics,
            order=order,
            explain=explainer(settings.source),
            explain_order=lambda hook, text: settings.source.problem(("chain", "order", hook), text),
            hook_timeout_s=settings.server.hook_timeout_s,
        )

    entries = plugin_entries(settings)
    try:
        return compiled(entries, settings.chain.order)
    except StartupError as error:
        found += error.problems
    sound: list[ActivePlugin] = []
    for entry in {entry.name: entry for entry in entries}.values():
        with suppress(StartupError):
            sound += compiled([entry], {}).plugins
    return Chain(sound, {})


def _refusals(settings: Settings, process: Process, chain: Chain) -> Iterator[str]:
    """What is refused although each part is right."""
    others = {impl.plugin for impl in chain.hook("authenticate")} - {"auth"}
    stateful = [plugin.name for plugin in chain.plugins if plugin.needs_shared_state]
    if not is_loopback(process.host) and not may_hold_keys(settings):  # else `auth` looks, when it starts
        yield from exposure_problems(settings, has_other_authentication=bool(others), host=process.host)
    yield from worker_problems(settings, stateful, process.workers)
    yield from unused_plugin_tables(settings, importlib.metadata.entry_points(group="hookline").names)


def _join(
    settings: Settings,
    process: Process,
    workshop: Workshop,
    chain: Chain,
    routes: Routes,
    providers: dict[str, MadeProvider],
    registry: Registry,
    workers: list[Worker],
) -> Compiled:
    server = settings.server
    catalog = make_catalog(settings, providers)
    pipeline = Pipeline(
        chain=chain,
        catalog=catalog,
        providers={name: made.provider for name, made in providers.items()},
        clock=process.clock,
        metrics=process.metrics,
        settings=PipelineSettings(**{f.name: getattr(server, f.name) for f in fields(PipelineSettings)}),
    )
    serving = Serving(
        pipeline=pipeline,
        catalog=catalog,
        routes=routes,
        find_what_is_missing=process.find_what_is_missing,
        tenants=None if any(plugin.name == "owners" for plugin in chain.plugins) else frozenset(tenant_names(settings)),
        default_completion_model=server.default_completion_model,
        cors=_cors(settings),
        max_timeout_s=server.total_timeout_s,
        explains=any(getattr(plugin.instance, "explains_to_clients", False) for plugin in chain.plugins),
    )
    compiled = Compiled(settings, chain, providers, catalog, pipeline, serving, workshop, registry, workers)
    workshop.pipeline = pipeline
    workshop.know_keys(chain)
    workshop.describe = lambda: describe(compiled)
    return compiled


def describe(compiled: Compiled) -> Mapping[str, Any]:
    """The compiled chain, deployments and settings, secrets masked."""
    catalog = compiled.catalog
    return {
        "chain": [
            {"hook": hook, "order": order, "plugin": plugin, "location": location}
            for hook, order, plugin, location in compiled.chain.table()
        ],
        "providers": {name: made.kind for name, made in compiled.providers.items()},
        "models": {name: [d.id for d in catalog.resolve(name)] for name in catalog.model_names()},
        "deployments": {d.id: d.provider for name in catalog.model_names() for d in catalog.resolve(name)},
        "default_provider": catalog.default_provider,
        "settings": masked(compiled.settings.source),
    }


def _cors(settings: Settings) -> Cors | None:
    table = settings.server.cors
    if not table.allow_origins:
        return None
    return Cors(
        allow_origins=tuple(table.allow_origins),
        allow_headers=tuple(table.allow_headers),
        expose_headers=tuple(table.expose_headers),
        max_age_s=table.max_age_s,
    )
