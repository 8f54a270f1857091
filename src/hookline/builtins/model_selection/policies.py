"""Policies: the options of a model, made ready for its calls.

Lives here: what is worked out once per model: the strategy behind "auto", which deployment serves which class, whether a lone deployment must be looked at.
Elsewhere: the options (options.py), what calls wish (wishes.py).
Idea: calls only look up; everything that can be refused is refused at start, with the names that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hookline import to_nanousd
from hookline.builtins.model_names import is_unknown
from hookline.builtins.model_selection.complexity import CLASSES
from hookline.builtins.model_selection.options import Place, SelectionOptions, Strategy

EVERY_CLASS = frozenset(range(len(CLASSES)))
IDS_MAX = 4_096


class Policy:
    """How one model's deployments are chosen."""

    __slots__ = (
        "_classes", "_served", "assumed_output_tokens", "cheapest_below", "client_wishes", "has_classes", "is_strict", "latency_decay_s", "max_cost_nanousd",
        "max_per_1k_nanousd", "places", "prefer_provider", "sticky_by", "strategy",
    )  # fmt: skip

    def __init__(self, options: SelectionOptions, places: Sequence[Place] = ()) -> None:
        """`places` hold beside those of the options: a model may add to them, and can't drop one."""
        self.strategy: Strategy = options.strategy
        if options.strategy == "auto" and options.complexity:
            self.strategy = "cheapest"
        self.sticky_by = options.sticky_by
        self.latency_decay_s = options.latency_decay_s if options.strategy == "lowest_latency" else None
        self.prefer_provider = options.prefer_provider
        self.max_cost_nanousd = _nanousd(options.max_cost_usd)
        self.max_per_1k_nanousd = _nanousd(options.max_cost_per_1k_usd)
        self.assumed_output_tokens = options.assumed_output_tokens
        self.cheapest_below = options.cheapest_below
        self.client_wishes = options.client_wishes
        self.places = (*places, *(place for place in options.places if place not in places))
        self.is_strict = (
            bool(self.places) or options.max_cost_usd is not None or options.max_cost_per_1k_usd is not None
        )
        """Something must hold even where there is no choice."""
        self.has_classes = bool(options.complexity)
        self._classes = [options.complexity.get(name, []) for name in CLASSES]
        self._served: dict[str, frozenset[int]] = {}

    def classes_of(self, deployment_id: str) -> frozenset[int]:
        """The classes of requests that a deployment is for, as places in `CLASSES`; by its id in proxy.toml."""
        served = self._served.get(deployment_id)
        if served is None:
            if len(self._served) >= IDS_MAX:
                self._served.clear()
            found = frozenset(n for n, globs in enumerate(self._classes) if _is_named(deployment_id, globs))
            served = self._served[deployment_id] = found or EVERY_CLASS
        return served


def option_problems(
    options: SelectionOptions, by_model: Mapping[str, SelectionOptions], settings: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong with names in the options, each with the nearest that would be right."""
    providers: Sequence[str] = settings.get("providers", ())
    deployments: Mapping[str, Sequence[str]] = settings.get("deployments", {})
    yield from _provider_problems("prefer_provider", options, providers)
    yield from _place_problems("places", options.places, settings.get("places", {}))
    yield from _meaning_problems(options, settings)
    for model, own in by_model.items():
        where = f'[models."{model}".plugins.model_selection]'
        yield from _provider_problems(f"{where} prefer_provider", own, providers)
        if own.places != options.places:
            yield from _place_problems(f"{where} places", own.places, settings.get("places", {}))
        if own.complexity and model in deployments:
            yield from _class_problems(f"{where} complexity", own, deployments[model])


def _provider_problems(where: str, options: SelectionOptions, providers: Sequence[str]) -> Iterator[str]:
    name = options.prefer_provider
    if name is not None and providers and name not in providers:
        yield f'{where}: provider "{name}" is not configured{_nearest(name, providers)}'


def _place_problems(where: str, places: Sequence[Place], known: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A misspelt region would leave out everybody."""
    for kind in ("regions", "tags"):
        names = known.get(kind)
        for name in dict.fromkeys(name for place in places for name in getattr(place, kind)):
            if names is not None and name not in names:
                yield f'{where}: no deployment or provider has the {kind[:-1]} "{name}"{_nearest(name, names)}'


def _meaning_problems(options: SelectionOptions, settings: Mapping[str, Any]) -> Iterator[str]:
    targets = [*options.aliases.values(), *(mapping.to for mapping in options.mappings)]
    for name in dict.fromkeys(targets):
        if is_unknown(name, settings):
            yield f'model "{name}" does not exist{_nearest(name, settings.get("models", ()))}'


def _class_problems(where: str, options: SelectionOptions, ids: Sequence[str]) -> Iterator[str]:
    for globs in options.complexity.values():
        for glob in globs:
            if not any(_is_named(id, [glob]) for id in ids):
                yield f'{where}: "{glob}" is none of the model\'s deployments{_nearest(glob, ids)}'
    policy = Policy(options)
    if ids and not any(len(CLASSES) - 1 in policy.classes_of(id) for id in ids):
        yield f'{where}: no deployment serves "{CLASSES[-1]}" requests, so these would be refused; add a list for them'


def _is_named(deployment_id: str, globs: Iterable[str]) -> bool:
    return any(glob == deployment_id or fnmatchcase(deployment_id, glob) for glob in globs)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; there is {', '.join(known)}" if known else ""


def _nanousd(usd: float | None) -> int | None:
    return None if usd is None else to_nanousd(usd)
