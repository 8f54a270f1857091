"""Rules between the tables of proxy.toml, and what is refused although every table is right.

Lives here: pure checks over checked settings. Elsewhere: single tables (config.py), plugin and provider options (where they are built).
Idea: each rule is a generator of sentences; nothing here raises, so all of them are said at once."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from hookline.config import PROVIDER_NAME, DeploymentTable, Settings
from hookline.config_locator import Path
from hookline.limit_tables import LimitTable
from hookline.model_problems import nearest

LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost"})
_SAME_ID_SAME = (
    "provider",
    "model",
    "api_key",
    "mode",
    "context_tokens",
    "max_output_tokens",
    "region",
    "tags",
    *LimitTable.model_fields,
)


def rule_problems(settings: Settings) -> list[str]:
    """What is wrong between the tables."""
    rules = (_providers, _unknown_providers, _deployments, _aliases, _chain, _prices)
    return [problem for rule in rules for problem in rule(settings)]


def exposure_problems(settings: Settings, *, has_other_authentication: bool, host: str) -> Iterator[str]:
    """A host that others can reach is refused while everyone would be let in."""
    if is_loopback(host) or settings.server.open or has_other_authentication:
        return
    auth = next((settings.options_of(entry) for entry in settings.chain.plugins if entry.name == "auth"), {})
    if (auth.get("keys") or auth.get("issuers")) and auth.get("open") is not True:
        return
    yield settings.source.problem(
        ("server", "host"),
        f'{host or "every address of this machine"} can be reached by others, and nobody is asked for a key; add [[plugins.auth.keys]] (and "auth" to '
        "[chain] plugins), or make one by `hookline keys create`, or add `open = true` to [server] to serve everyone",
    )


def worker_problems(settings: Settings, stateful_plugins: Sequence[str], workers: int) -> Iterator[str]:
    """Several processes need a shared store, unless no active plugin keeps shared state."""
    if workers == 1 or settings.state.shared != "memory" or not stateful_plugins:
        return
    names = ", ".join(stateful_plugins)
    yield settings.source.problem(
        ("server", "workers"),
        f"{workers} processes would each keep their own limits, money and cache ({names}), so none of them would hold; "
        'add `shared = "redis://127.0.0.1:6379/0"` to [state], or take these plugins out of [chain], or set `workers = 1`',
    )


def unused_plugin_tables(settings: Settings, installed: Iterable[str]) -> Iterator[str]:
    """`[plugins.x]` for a plugin that is neither active nor installed is a misspelt name."""
    active = [entry.name for entry in settings.chain.plugins]
    known = sorted({*active, *installed})
    tables: list[tuple[Path, str]] = [(("plugins", name), name) for name in settings.plugins]
    for model, table in settings.models.items():
        tables += [(("models", model, "plugins", name), name) for name in table.plugins]
    for path, name in tables:
        if name not in known:
            yield settings.source.problem(path, f"no plugin of this name{nearest(name, known)}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES


def _providers(settings: Settings) -> Iterator[str]:
    has_default: str | None = None
    for name, table in settings.providers.items():
        if not re.match(PROVIDER_NAME, name):
            yield settings.source.problem(
                ("providers", name), "a provider's name may hold letters, digits, `_`, `-`, `.`; at most 64"
            )
        if table.default and has_default is not None:
            yield settings.source.problem(
                ("providers", name, "default"), f'"{has_default}" is the default already; one provider may be'
            )
        if table.default:
            has_default = name


def _unknown_providers(settings: Settings) -> Iterator[str]:
    """Over the raw tables, so that another mistake in a deployment does not hide this one."""
    data = settings.source.data
    known = sorted(name for name, _ in _tables(data.get("providers")))
    for name, table in _tables(data.get("models")):
        deployments = table.get("deployments")
        for index, item in enumerate(deployments if isinstance(deployments, list) else ()):
            provider = item.get("provider") if isinstance(item, dict) else item
            if isinstance(item, str):
                provider = item.partition("/")[0] if "/" in item else None
            if isinstance(provider, str) and provider not in known:
                hint = nearest(provider, known) or "; there is no [providers.*] table"
                yield settings.source.problem(
                    ("models", name, "deployments", index), f'provider "{provider}" is not configured{hint}'
                )


def _tables(value: object) -> Iterator[tuple[str, dict[str, object]]]:
    if isinstance(value, dict):
        yield from ((name, table) for name, table in value.items() if isinstance(table, dict))


def _deployments(settings: Settings) -> Iterator[str]:
    first_by_id: dict[str, tuple[str, DeploymentTable]] = {}
    for name, table in settings.models.items():
        ids_here: set[str] = set()
        for index, deployment in enumerate(table.deployments):
            path = ("models", name, "deployments", index)
            id = deployment.deployment_id
            if id in ids_here:
                yield settings.source.problem(path, f'"{id}" is listed twice; give one of them an `id` of its own')
            ids_here.add(id)
            other_name, other = first_by_id.setdefault(id, (name, deployment))
            if any(getattr(other, key) != getattr(deployment, key) for key in _SAME_ID_SAME):
                yield settings.source.problem(
                    path, f'"{id}" has other settings in [models."{other_name}"]; give one of them an `id` of its own'
                )


def _aliases(settings: Settings) -> Iterator[str]:
    owner_by_name = {name: name for name in settings.models}
    for name, table in settings.models.items():
        for index, alias in enumerate(table.aliases):
            owner = owner_by_name.setdefault(alias, name)
            if owner != name or alias == name:
                yield settings.source.problem(
                    ("models", name, "aliases", index), f'"{alias}" already names [models."{owner}"]'
                )


def _chain(settings: Settings) -> Iterator[str]:
    seen: set[str] = set()
    for index, entry in enumerate(settings.chain.plugins):
        path = ("chain", "plugins", index)
        if entry.name in seen:
            yield settings.source.problem(path, f'plugin "{entry.name}" is listed twice')
        seen.add(entry.name)
        for key in entry.options.keys() & settings.plugins.get(entry.name, {}).keys():
            yield settings.source.problem((*path, key), f"also set in [plugins.{entry.name}]; keep one of them")


def _prices(settings: Settings) -> Iterator[str]:
    for name, price in settings.prices.items():
        if " " in name and (price.input or price.output):
            yield settings.source.problem(("prices", name), "a route is priced by `call`, not by tokens")
        if name.startswith("tool:") and (price.input or price.output):
            yield settings.source.problem(("prices", name), "a hosted tool is priced by `call`, not by tokens")
