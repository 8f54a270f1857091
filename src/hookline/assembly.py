"""Assembly: checked settings -> the parts of a running configuration.

Lives here: plugin entries, stores, providers and the catalog, each made from its tables. Elsewhere: the life of what is made (app.py), the tables (config.py).
Idea: built-in provider kinds and stores come through the same `register_*` functions that plugins have; each maker returns what it made and adds
its problems to a list, so that one run says everything that is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ValidationError

from hookline import providers as builtin_providers
from hookline.attempt import Provider
from hookline.attempt_timeouts import resolve_timeouts
from hookline.catalog import Catalog
from hookline.config import DeploymentTable, ProviderTable, Scope, Settings, TimeoutsTable
from hookline.config_problems import merged_problems_of, problems_of
from hookline.config_source import Source
from hookline.deployment import Deployment
from hookline.errors import StartupError
from hookline.flights import Flights
from hookline.host import Clock
from hookline.limit_tables import LimitTable
from hookline.model_problems import nearest
from hookline.plugin_host import Stores
from hookline.plugin_loading import PluginEntry, said
from hookline.prices import PriceTable, find_facts, price_from_usd
from hookline.principal import Limits
from hookline.stores.schema import NotMigrated
from hookline.stores.store_address import check_address

log = logging.getLogger("hookline.assembly")

_LIMITS = set(LimitTable.model_fields)

ProviderFactory = Callable[..., Provider]
StoreKind = Literal["limits", "replies", "records", "flights"]


@dataclass(slots=True)
class Registry:
    """What was registered: provider kinds, and stores by kind and URL scheme."""

    kinds: dict[str, tuple[ProviderFactory, type[BaseModel] | None]] = field(default_factory=dict)
    stores: dict[tuple[StoreKind, str], Callable[..., Any]] = field(default_factory=dict)

    def add_provider(self, kind: str, factory: ProviderFactory, *, options: type[Any] | None = None) -> None:
        if kind in self.kinds:
            raise StartupError([f'provider kind "{kind}" is there already; choose another name'])
        self.kinds[kind] = (factory, options)

    def add_store(self, scheme: str, factory: Callable[..., Any], *, store: StoreKind) -> None:
        if store not in get_args(StoreKind):
            raise StartupError([f'store="{store}": there are {", ".join(get_args(StoreKind))}'])
        if (store, scheme) in self.stores:
            raise StartupError([f'{store} in "{scheme}" are kept by another store already; choose another scheme'])
        self.stores[store, scheme] = factory


def builtin_registry(settings: Settings, *, workers: int = 1) -> Registry:
    """The kinds that ship with Hookline. `workers`: processes of this server."""
    registry = Registry()
    builtin_providers.register_providers(registry.add_provider)
    _register_builtin_stores(registry.add_store, settings.state.reply_cache_bytes, workers)
    return registry


def _register_builtin_stores(add: Callable[..., None], reply_cache_bytes: int, workers: int) -> None:
    def limits(url: str, clock: Clock) -> Any:
        from hookline.stores.memory import MemoryLimits

        return MemoryLimits(clock)

    def replies(url: str, clock: Clock) -> Any:
        from hookline.stores.memory import MemoryReplies

        return MemoryReplies(clock, max_bytes=reply_cache_bytes)

    def redis_limits(url: str, clock: Clock) -> Any:
        from hookline.stores.redis_client import RedisClient
        from hookline.stores.redis_limits import RedisLimits

        return RedisLimits(RedisClient(url, monotonic=clock.monotonic), workers=workers)

    def redis_replies(url: str, clock: Clock) -> Any:
        from hookline.stores.redis_client import RedisClient
        from hookline.stores.redis_replies import RedisReplies, TwoLevelReplies

        client = RedisClient(url, monotonic=clock.monotonic)  # one of its own: a breaker per store
        l2 = RedisReplies(client, clock)
        return TwoLevelReplies(l2, clock, l1_ttl_s=client.options.l1_ttl_s, l1_max_bytes=reply_cache_bytes)

    def flights(url: str, clock: Clock) -> Any:
        from hookline.stores.memory_flights import MemoryFlights

        return MemoryFlights(clock)

    def redis_flights(url: str, clock: Clock) -> Any:
        from hookline.stores.redis_client import RedisClient
        from hookline.stores.redis_flights import RedisFlights

        return RedisFlights(RedisClient(url, monotonic=clock.monotonic))

    def records(url: str, clock: Clock) -> Any:
        from hookline.stores.records_url import split_url
        from hookline.stores.sqlite import SqliteRecords

        plain, _, fsync_ms = split_url(url)
        return SqliteRecords(plain.removeprefix("sqlite:///"), fsync_ms=fsync_ms)

    def shared_records(url: str, clock: Clock) -> Any:
        from hookline.stores.postgres import PostgresRecords  # imports asyncpg: only where it is used

        return PostgresRecords(url)

    add("memory", limits, store="limits")
    add("memory", replies, store="replies")
    add("memory", flights, store="flights")
    for scheme in ("redis", "rediss"):
        add(scheme, redis_limits, store="limits")
        add(scheme, redis_replies, store="replies")
        add(scheme, redis_flights, store="flights")
    add("sqlite", records, store="records")
    add("postgresql", shared_records, store="records")


def explainer(source: Source) -> Callable[[ValidationError, tuple[str, ...], type[BaseModel]], list[str]]:
    """Words for options that a plugin's own model refuses."""

    def explain(error: ValidationError, prefix: tuple[str, ...], model: type[BaseModel]) -> list[str]:
        # A table per model is merged over the plugin's own: what is wrong in that one is said there.
        words = merged_problems_of if prefix[0] == "models" else problems_of
        return words(error, prefix, source, model)

    return explain


def plugin_entries(settings: Settings) -> list[PluginEntry]:
    """`[chain] plugins` with each plugin's options, also those per model."""
    source = settings.source
    entries = []
    for index, entry in enumerate(settings.chain.plugins):
        by_model: dict[str, Mapping[str, Any]] = {}
        for name, table in settings.models.items():
            if entry.name in table.plugins:
                by_model |= dict.fromkeys((name, *table.aliases), table.plugins[entry.name])
        entries.append(
            PluginEntry(
                name=entry.name,
                path=(source.directory / entry.path).absolute() if entry.path is not None else None,
                options=settings.options_of(entry),
                options_by_model=by_model,
                where=source.at(("chain", "plugins", index)),
            )
        )
    return entries


def choose_stores(settings: Settings, registry: Registry) -> Callable[[Clock], Stores]:
    """Which stores `[state]` names; the answer opens them. Raises StartupError for a scheme nobody has registered."""
    source, state, problems = settings.source, settings.state, list[str]()

    def find(store: StoreKind, url: str, key: str) -> Callable[[Clock], Any]:
        scheme = url.partition("?")[0].split(":", 1)[0]
        factory = registry.stores.get((store, scheme))
        if factory is None:
            known = ", ".join(sorted(s for kind, s in registry.stores if kind == store))
            problems.append(source.problem(("state", key), f'no store for "{scheme}"; known: {known}'))
            return lambda clock: None
        try:
            check_address(scheme, url)
        except StartupError as error:
            problems.extend(where_it_stands(error, source))
        return partial(factory, url)

    limits = find("limits", state.shared, "shared")
    replies = find("replies", state.shared, "shared")
    flights = find("flights", state.shared if _keeps_flights(state.shared, registry) else "memory", "shared")
    records = find("records", records_url(settings), "records")
    if problems:
        raise StartupError(list(dict.fromkeys(problems)))

    def open_records(clock: Clock) -> Any:
        try:
            return records(clock)
        except NotMigrated as error:
            given = f" --config {source.path}" if source.path is not None else ""
            raise StartupError(
                [source.problem(("state", "records"), f"{error.problems[0]}; run: hookline migrate{given}")]
            ) from error

    return lambda clock: Stores(limits(clock), replies(clock), open_records(clock), Flights(flights(clock), clock))


def where_it_stands(error: StartupError, source: Source) -> list[str]:
    """What a store says of its address, `[state] shared: ...`, with file and line."""
    told = []
    for problem in error.problems:
        begin, _, rest = problem.partition(": ")
        is_ours = begin in ("[state] shared", "[state] records")
        told.append(source.problem(("state", begin.removeprefix("[state] ")), rest) if is_ours else problem)
    return told


def _keeps_flights(shared: str, registry: Registry) -> bool:
    """Whether the shared store has them; one that a plugin brings may have limits and replies only."""
    scheme = shared.split(":", 1)[0]
    if ("flights", scheme) in registry.stores or ("limits", scheme) not in registry.stores:
        return True
    log.warning('[state] shared: "%s" keeps no flights, so each process has its own Idempotency-Keys', scheme)
    return False


def may_hold_keys(settings: Settings) -> bool:
    """Whether `auth` is active and `records` may hold virtual keys; False only where it is known to have held none."""
    if not any(entry.name == "auth" for entry in settings.chain.plugins) or auth_options(settings).get("open") is True:
        return False
    url = records_url(settings)
    if not url.startswith("sqlite:"):
        return True
    from hookline.stores.records_url import split_url
    from hookline.stores.sqlite import may_hold_keys as file_may_hold_keys

    return file_may_hold_keys(split_url(url).plain.removeprefix("sqlite:///"))


def records_url(settings: Settings) -> str:
    """`[state] records` with absolute paths: `sqlite:///hookline.db` and `?spool=` are relative to the file they stand in; `fsync_ms` as an option of it."""
    source, url = settings.source, settings.state.records
    scheme = url.split(":", 1)[0]
    if scheme not in ("postgresql", "sqlite"):
        return url
    plain, _, query = url.partition("?")
    options = {"fsync_ms": str(settings.state.fsync_ms), **dict(parse_qsl(query))}
    if scheme == "postgresql":
        options["spool"] = str((source.directory / options.get("spool", "hookline-spool")).absolute())
    else:
        _, separator, path = plain.partition(":///")
        if separator and not path.startswith("/") and path not in ("", ":memory:"):
            plain = f"sqlite:///{(source.directory / path).absolute()}"
    return f"{plain}?{urlencode(options)}"


def make_providers(
    settings: Settings, registry: Registry, clock: Clock, problems: list[str], *, kept: Mapping[str, MadeProvider]
) -> dict[str, MadeProvider]:
    """Every configured provider. One whose table has not changed is taken from `kept`, with its connections."""
    made: dict[str, MadeProvider] = {}
    for name, table in settings.providers.items():
        path = ("providers", name)
        if table.kind not in registry.kinds:
            hint = nearest(table.kind, sorted(registry.kinds))
            problems.append(settings.source.problem((*path, "kind"), f'no provider kind "{table.kind}"{hint}'))
            continue
        old = kept.get(name)
        if old is not None and (old.kind, old.raw) == (table.kind, table.options):
            made[name] = old
            continue
        factory, model = registry.kinds[table.kind]
        try:
            options = model.model_validate(table.options_for(model)) if model is not None else None
            provider = builtin_providers.Bridged(factory(name, options, clock))
            keys = options.keys if isinstance(options, builtin_providers.UpstreamOptions) else ()
            base_url = getattr(options, "base_url", None)
            made[name] = MadeProvider(provider, table.kind, table.options, base_url, len(keys))
        except ValidationError as error:
            problems += problems_of(error, path, settings.source, model)
        except StartupError as error:
            problems += [
                settings.source.problem(path, text.removeprefix(f"[providers.{name}] ")) for text in error.problems
            ]
        except Exception as error:  # the factory may be a plugin's
            problems.append(settings.source.problem(path, f'kind "{table.kind}" can\'t be made: {said(error)}'))
    return made


@dataclass(frozen=True, slots=True)
class MadeProvider:
    """A provider, and what it was made from."""

    provider: Provider
    kind: str
    raw: dict[str, Any]
    base_url: str | None
    keys: int = 0


def make_catalog(settings: Settings, providers: Mapping[str, MadeProvider]) -> Catalog:
    """`[models]`, `[prices]` and the providers as a catalog."""
    prices = PriceTable({name: price_from_usd(**entry.model_dump()) for name, entry in settings.prices.items()})

    def build(provider: str, model: str) -> Deployment:
        return deploy(settings.deployment_named(provider, model), "", TimeoutsTable())

    def deploy(table: DeploymentTable, name: str, of_model: TimeoutsTable) -> Deployment:
        made, at = providers.get(table.provider), settings.providers.get(table.provider)
        facts = None
        if made is not None and table.model:
            facts = find_facts(table.model, kind=made.kind, provider=table.provider, base_url=made.base_url)
        price = prices.find(table.deployment_id, f"{table.provider}/{table.model}", table.model, name)
        price = price or (facts.price if facts is not None else None)
        return Deployment(
            id=table.deployment_id,
            provider=table.provider,
            model=table.model,
            price=price.with_tools(prices.tools) if price is not None else None,
            weight=table.weight,
            mode=table.mode,
            context_tokens=table.context_tokens or (facts.context_tokens if facts is not None else None),
            max_output_tokens=table.max_output_tokens,
            limits=Limits.from_table(table.model_dump(include=_LIMITS)),
            capabilities=frozenset(table.capabilities) if table.capabilities is not None else None,
            api_key=table.api_key,
            region=table.region or (at.region if at is not None else None),
            tags=frozenset((*table.tags, *(at.tags if at is not None else ()))),
            priority=table.priority,
            timeouts=resolve_timeouts(settings.server, at, of_model, table.timeouts),
        )

    def count_keys(provider: str) -> int:
        made = providers.get(provider)
        return made.keys if made is not None else 0

    by_name: dict[str, tuple[Deployment, ...]] = {}
    canonical_by_alias: dict[str, str] = {}
    for name, table in settings.models.items():
        deployments = tuple(
            one for d in table.deployments for one in deploy(d, name, table.timeouts).by_key(count_keys(d.provider))
        )
        by_name |= dict.fromkeys((name, *table.aliases), deployments)
        canonical_by_alias |= dict.fromkeys(table.aliases, name)
    defaults = [name for name, provider in settings.providers.items() if provider.default]
    return Catalog(
        by_name,
        providers=list(settings.providers),
        default_provider=defaults[0] if defaults else None,
        build=build,
        count_keys=count_keys,
        find_route_price=prices.find_route if prices.has_routes else None,
        canonical_by_alias=canonical_by_alias,
        tenant_models={name: scope.models for name, scope in settings.tenants.items() if scope.models is not None},
        user_models={name: scope.models for name, scope in settings.users.items() if scope.models is not None},
        global_models=settings.everyone.models,
    )


def public_settings(settings: Settings) -> dict[str, Any]:
    """What plugins may read as `host.settings`: plain data, no secrets."""
    return {
        "server": settings.server.model_dump(),
        "tenants": {name: _said(scope) for name, scope in settings.tenants.items()},
        "key_tenants": sorted(tenant_names(settings)),
        "users": {name: _said(scope) for name, scope in settings.users.items()},
        "global": _said(settings.everyone),
        "model_limits": {
            name: limits
            for name, table in settings.models.items()
            if (limits := table.model_dump(include=_LIMITS, exclude_none=True))
        },
        "aliases": {alias: name for name, table in settings.models.items() for alias in table.aliases},
        "models": [name for model, table in settings.models.items() for name in (model, *table.aliases)],
        "deployments": {
            name: [deployment.deployment_id for deployment in table.deployments]
            for model, table in settings.models.items()
            for name in (model, *table.aliases)
        },
        "prices": list(settings.prices),
        "providers": list(settings.providers),
        "places": _places_of(settings),
        "default_provider": next((name for name, table in settings.providers.items() if table.default), None),
        "state": {"shared": settings.state.shared.split(":", 1)[0], "records": settings.state.records.split(":", 1)[0]},
        "admin_key_set": settings.admin.key is not None,
    }


def _places_of(settings: Settings) -> dict[str, list[str]]:
    """The regions and tags that stand anywhere."""
    tables: list[ProviderTable | DeploymentTable] = [*settings.providers.values()]
    tables += [deployment for table in settings.models.values() for deployment in table.deployments]
    return {
        "regions": sorted({table.region for table in tables if table.region is not None}),
        "tags": sorted({tag for table in tables for tag in table.tags}),
    }


def _said(scope: Scope) -> dict[str, Any]:
    """What was written about a scope, and nothing that was not."""
    return {key: value for key, value in scope.model_dump(exclude_none=True).items() if value != {}}


def tenant_names(settings: Settings) -> set[str]:
    """Every tenant that proxy.toml knows: with more than one, stored objects have owners."""
    return set(settings.tenants) | {str(key.get("tenant") or "default") for key in _auth_keys(settings)}


def auth_options(settings: Settings) -> dict[str, Any]:
    """What `auth` is given; its table where it is not in [chain]."""
    active = (settings.options_of(entry) for entry in settings.chain.plugins if entry.name == "auth")
    return next(active, settings.plugins.get("auth", {}))


def _auth_keys(settings: Settings) -> Iterator[Mapping[str, Any]]:
    keys = auth_options(settings).get("keys")
    yield from (key for key in keys if isinstance(key, dict)) if isinstance(keys, list) else ()
