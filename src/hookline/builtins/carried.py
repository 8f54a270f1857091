"""Carried: what a plugin has learned, and hands to the instance that a reload of the configuration makes.

Lives here: where it is kept between the two. Elsewhere: what is learned, and how new options change it (fallback's retry budget, hedging's first bytes); circuits, which are told
through the limits store (circuit_breaker/sharing.py).
Idea: a gateway has one limits store through all its reloads, so what is carried hangs on that and goes with it. During a reload both instances use it: calls finish on the old one.
A configuration that is refused has made instances, too: what is carried changes in `start` and later, never in a constructor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from hookline import Host, LimitStore

T = TypeVar("T")
_BY_STORE: WeakKeyDictionary[LimitStore, dict[tuple[str, str], Any]] = WeakKeyDictionary()


def carried(host: Host, name: str, make: Callable[[], T]) -> T:
    """What this plugin's predecessor kept under `name`; where there was none, what `make` makes."""
    if host.limits is None:  # a plugin that is only described
        return make()
    kept = _BY_STORE.setdefault(host.limits, {})
    found: T | None = kept.get((host.plugin, name))
    if found is None:
        found = kept[host.plugin, name] = make()
    return found
