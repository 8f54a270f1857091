"""Plans: which ceilings a call draws on.

Lives here: the scopes of a principal and a model, the names of their windows in the store, the headers that tell them. Elsewhere: whether a call fits (the limits
store), what it draws (the plugin), what is told about it (telling.py).
Idea: everything that is the same for all calls of a principal and model is worked out once: parallel tuples that the store walks, and indices into them.

Names of windows are quoted, so that no name that somebody chose can mean the window of another; a user belongs to a tenant, so two tenants' "ann" are two."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from multidict import istr

from hookline import Limits, Principal, Take

Kind = Literal["requests", "tokens", "parallel"]

MINUTE_S = 60.0
WINDOWS: tuple[tuple[str, Kind, str, float], ...] = (
    ("requests_per_second", "requests", "second", 1.0),
    ("requests_per_minute", "requests", "minute", MINUTE_S),
    ("requests_per_hour", "requests", "hour", 3_600.0),
    ("requests_per_day", "requests", "day", 86_400.0),
    ("tokens_per_minute", "tokens", "minute", MINUTE_S),
    ("tokens_per_hour", "tokens", "hour", 3_600.0),
    ("tokens_per_day", "tokens", "day", 86_400.0),
    ("max_parallel", "parallel", "", 0.0),
)
"""(field of `Limits`, what it counts, its window, that in seconds; 0: held until given back)."""
HEADERS = "x-ratelimit-"


class Ceiling(NamedTuple):
    """What clients and metrics are told of one Take: "key:ci", "requests", "requests per minute"."""

    scope: str
    kind: Kind
    unit: str


class Shown(NamedTuple):
    """The ceilings of one kind in a plan, by their index there, and the three headers that tell the tightest of them."""

    first: int
    others: tuple[int, ...]
    is_tokens: bool
    limit: str
    remaining: str
    reset: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The ceilings of one principal and model: parallel tuples."""

    takes: tuple[Take, ...]
    ceilings: tuple[Ceiling, ...]
    tokens_at: tuple[int, ...]
    """Indices of the ceilings that count tokens."""
    ones: tuple[int, ...]
    """What a call draws on each, before its tokens are known."""
    shown: tuple[Shown, ...]


class Scope(NamedTuple):
    """Somebody's or something's limits. `label` is what people read, `name` what the store's windows are named after."""

    label: str
    name: str
    limits: Limits


class Scopes:
    """The scopes that calls fall into, from proxy.toml."""

    def __init__(self, settings: Mapping[str, Any], defaults: Mapping[str, Limits]) -> None:
        self._settings = settings
        self._defaults = defaults

    def of_call(self, principal: Principal, model: str | None) -> Plan:
        """The ceilings of every call of this principal to this model."""
        names = [] if model is None else [model, self._canonical(model)]
        return make_plan(self._of_call(principal, names), names)

    def of_deployment(self, id: str, own: Limits) -> Plan:
        """The ceilings of every attempt at this deployment."""
        return make_plan([self._scope("deployment", id, own)], ())

    def of_other_model(self, id: str, own: Limits, principal: Principal, model: str) -> Plan:
        """The ceilings of an attempt that goes to another model than the call asked for: the deployment's, that model's, and those that others have for it."""
        names = [model, self._canonical(model)]
        scopes = [self._scope("deployment", id, own)]
        for scope in self._of_call(principal, names):
            of_model = scope.label.startswith("model:")
            scopes.append(scope if of_model else scope._replace(limits=Limits(by_model=scope.limits.by_model)))
        return make_plan(scopes, names)

    def _of_call(self, principal: Principal, names: Sequence[str]) -> Iterator[Scope]:
        tenant, user = principal.tenant, principal.user
        yield self._scope("key", principal.key_id, principal.limits)
        if user is not None:
            name = f"user:{quote(tenant, safe='')}/{quote(user, safe='')}"
            yield Scope(f"user:{user}", name, self._merged("user", self._own("users", user)))
        yield self._scope("tenant", tenant, self._own("tenants", tenant))
        if names:  # under one name, whichever of its aliases was asked for
            yield self._scope("model", names[-1], self._own("model_limits", names[-1]))
        everyone = Limits.from_table(self._settings.get("global", {}))
        yield Scope("global", "global", self._merged("global", everyone))

    def _scope(self, kind: str, name: str, own: Limits) -> Scope:
        return Scope(f"{kind}:{name}", f"{kind}:{quote(name, safe='')}", self._merged(kind, own))

    def _merged(self, kind: str, own: Limits) -> Limits:
        """Each ceiling of its own, else the default one."""
        default = self._defaults[kind]
        ceilings = {}
        for field, *_ in WINDOWS:
            limit = getattr(own, field)
            ceilings[field] = getattr(default, field) if limit is None else limit
        return Limits(**ceilings, by_model=own.by_model)

    def _own(self, group: str, name: str) -> Limits:
        return Limits.from_table(self._settings.get(group, {}).get(name, {}))

    def _canonical(self, model: str) -> str:
        canonical: str = self._settings.get("aliases", {}).get(model, model)
        return canonical


def make_plan(scopes: Sequence[Scope] | Iterator[Scope], models: Sequence[str]) -> Plan:
    """The plan of a call to `models` (a name and what it stands for) in these scopes."""
    takes: list[Take] = []
    ceilings: list[Ceiling] = []

    def add(label: str, name: str, limits: Limits) -> None:
        for field, kind, window, window_s in WINDOWS:
            limit = getattr(limits, field)
            if limit is None:
                continue
            takes.append(Take(f"{name}/{kind}/{window}" if window else f"{name}/{kind}", limit, window_s))
            ceilings.append(Ceiling(label, kind, f"{kind} per {window}" if window else "calls in parallel"))

    for label, name, limits in scopes:
        add(label, name, limits)
        for glob, inner in limits.by_model:
            if any(fnmatch.fnmatchcase(model, glob) for model in models):
                add(f"{label} model:{glob}", f"{name}/model:{quote(glob, safe='')}", inner)
    indices_by_kind = {
        of: tuple(i for i, ceiling in enumerate(ceilings) if ceiling.kind == of) for of in ("requests", "tokens")
    }
    shown = tuple(
        Shown(
            at[0],
            at[1:],
            kind == "tokens",
            *(istr(f"{HEADERS}{what}-{kind}") for what in ("limit", "remaining", "reset")),
        )
        for kind, at in indices_by_kind.items()
        if at
    )
    return Plan(tuple(takes), tuple(ceilings), indices_by_kind["tokens"], (1,) * len(takes), shown)
