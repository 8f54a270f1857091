"""What a model's name stands for.

Lives here: `Meanings`: a digest of a name's deployments and their providers, and its canonical name. Elsewhere: who puts it into the key (key.py).
Idea: after a reload that sends a name elsewhere, old answers are not this name's answers any more; the digest is in the key, so they are simply not found.

Not seen: values that come from the environment, which `describe()` masks."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from hookline import Host

NAMES_MAX = 2_000
"""Names come from clients; so many are remembered."""
NO_MATTER = frozenset(
    {
        "default",
        "api_key",
        "weight",
        "requests_per_minute",
        "id",
        "context_tokens",
        "stream_usage",
        "region",
        "tags",
        "priority",
    }
)
"""Of a provider or deployment: what can't change an answer. Neither can times and sizes."""


class Meanings:
    """By model name, for one compiled configuration."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._aliases = host.settings.get("aliases", {})
        self._known: dict[str, tuple[str, bytes]] = {}
        self._described: tuple[dict[str, Any], dict[str, Any], str | None] | None = None

    def find(self, name: str) -> tuple[str, bytes]:
        """Its canonical name, and what it stands for."""
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= NAMES_MAX:
                self._known.clear()
            canonical = self._aliases.get(name, name)
            found = self._known[name] = (canonical, self._digest(canonical))
        return found

    def _digest(self, name: str) -> bytes:
        if self._described is None:
            described = self._host.describe()
            settings = described.get("settings", {})
            self._described = (
                settings.get("models", {}),
                settings.get("providers", {}),
                described.get("default_provider"),
            )
        models, providers, default = self._described
        if name in models:
            deployments = [_as_table(deployment) for deployment in models[name].get("deployments", ())]
        else:
            first, slash, _ = name.partition("/")
            deployments = [{"provider": first if slash and first in providers else default}]
        names = sorted({str(deployment.get("provider")) for deployment in deployments})
        said = [
            sorted(
                orjson.dumps(_that_matter(table), option=orjson.OPT_SORT_KEYS, default=str) for table in deployments
            ),
            [
                [p, orjson.dumps(_that_matter(providers.get(p, {})), option=orjson.OPT_SORT_KEYS, default=str)]
                for p in names
            ],
        ]
        return hashlib.blake2b(repr(said).encode(), digest_size=8).digest()


def _as_table(deployment: Any) -> dict[str, Any]:
    if isinstance(deployment, dict):
        return deployment
    provider, _, model = str(deployment).partition("/")
    return {"provider": provider, "model": model}


def _that_matter(table: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in table.items()
        if name not in NO_MATTER and not name.endswith(("_s", "_bytes", "connections"))
    }
