"""The catalog: which deployments a model name means, and who may ask for it.

Lives here: exact names, "provider/model", the default provider, calls without a model, permission. Elsewhere: which of the deployments is tried first
(builtins/model_selection), where they come from (assembly.py).
Idea: names that are configured are one dict lookup; all other names become deployments on the fly, through a bounded cache, for clients choose them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from hookline.deployment import MADE_AT, Deployment
from hookline.errors import ApiError, BadRequest, Forbidden, NotFound
from hookline.money import Price
from hookline.principal import Principal
from hookline.slots import Slot

Deployments = tuple[Deployment, ...]
UNKNOWN_NAMES_MAX = 2_000
ALLOWED_MAX = 4_096
NAME_MAX = 512
"""Longer names are refused: they come from clients and end in logs."""

_NEEDS_MODEL = frozenset({"chat", "completions", "embeddings"})
_FREE_METHODS = frozenset({"GET", "HEAD", "DELETE"})
_FREE_PATHS = ("/v1/files", "/v1/uploads")


class Request(Protocol):
    """What the catalog reads of a Call."""

    method: str
    path: str
    principal: Principal

    @property
    def endpoint(self) -> str: ...
    def find(self, slot: Slot[tuple[str, str]], /) -> tuple[str, str] | None: ...


class Catalog:
    """Model names -> deployments. Immutable but for its caches; a reload makes a new one.

    `by_name` holds `[models]` and aliases; `build(provider, model)` makes the deployment of a name that is not configured, `count_keys(provider)` says how many keys share it; `find_route_price(method,
    path)` is the price of a call whose deployment has none; `scopes` holds the model globs of `[tenants]`, `[users]` and `[global]`."""

    def __init__(
        self,
        by_name: Mapping[str, Deployments],
        *,
        providers: Sequence[str],
        default_provider: str | None,
        build: Callable[[str, str], Deployment],
        count_keys: Callable[[str], int] = lambda provider: 1,
        find_route_price: Callable[[str, str], Price | None] | None = None,
        canonical_by_alias: Mapping[str, str] | None = None,
        tenant_models: Mapping[str, Sequence[str]] | None = None,
        user_models: Mapping[str, Sequence[str]] | None = None,
        global_models: Sequence[str] | None = None,
    ) -> None:
        self._by_name = dict(by_name)
        self._canonical_by_alias = dict(canonical_by_alias or {})
        self._build = build
        self._count_keys = count_keys
        self._find_route_price = find_route_price
        self._tenant_models = tenant_models or {}
        self._user_models = user_models or {}
        self._global_models = global_models
        self._has_scopes = bool(tenant_models or user_models or global_models is not None)
        self._unknown: dict[str, Deployments] = {}
        self._without_model: Deployments | None = None
        self._allowed: dict[tuple[int, str], Principal] = {}
        """Found allowed before, by identity: hashing a principal costs more than asking its globs."""
        self.providers = tuple(providers)
        self.default_provider = default_provider

    def model_names(self) -> list[str]:
        """Names in `[models]`, aliases included, as configured."""
        return list(self._by_name)

    def resolve(self, name: str, call: Request | None = None) -> Deployments:
        """The deployments behind a name, in the order listed. Raises NotFound, naming names that are close."""
        found = self._by_name.get(name) or self._unknown.get(name) or self._resolve_unknown(name, call)
        return found if self._find_route_price is None or call is None else self._with_route_price(found, call)

    def resolve_without_model(self, call: Request) -> Deployments:
        """Where a call goes that names no model. Raises BadRequest where one is needed, NotFound without a default provider."""
        if call.endpoint in _NEEDS_MODEL and call.method == "POST":
            raise BadRequest("you must provide a model parameter", param="model")
        if (place := call.find(MADE_AT)) is not None:
            there = self._resolve_place(*place)
            return there if self._find_route_price is None else self._with_route_price(there, call)
        if self.default_provider is None:
            raise NotFound(
                f"{call.method} {call.path} names no model, and no provider is the default; add `default = true` to one "
                "[providers.*] table"
            )
        provider = self.default_provider
        found = self._without_model
        if found is None:
            found = self._without_model = (self._build(provider, ""),)
        return found if self._find_route_price is None else self._with_route_price(found, call)

    def _resolve_place(self, provider: str, deployment: str) -> Deployments:
        """Where an object lives. Raises NotFound if that is configured no more."""
        if provider in self.providers and not deployment:
            return (self._build(provider, ""),)
        for keyed in (d for found in self._by_name.values() for d in found):
            if (keyed.id, keyed.provider) == (deployment, provider):
                return (replace(keyed, model=""),)
        raise NotFound("the provider at which this object lives is not configured any more")

    def check_allowed(self, principal: Principal, name: str | None, call: Request) -> None:
        """Raises Forbidden if the principal may not use this model, or not make this call without one."""
        if name is not None:
            key = (id(principal), name)
            if self._allowed.get(key) is principal:
                return
            if not self.is_allowed(principal, name):
                raise Forbidden(
                    f'key "{principal.key_name}" may not use model {_quoted(name)}', code="model_not_allowed"
                )
            if len(self._allowed) >= ALLOWED_MAX:
                self._allowed.clear()
            self._allowed[key] = principal
            return
        if all("*" in globs for globs in self._globs(principal)) or _is_free(call):
            return
        raise Forbidden(
            f'key "{principal.key_name}" is limited to some models, and {call.method} {call.path} names none',
            code="model_not_allowed",
        )

    def is_allowed(self, principal: Principal, name: str) -> bool:
        """Whether the principal, its user, its tenant and everyone may use this name. An alias is allowed as the name it stands for, too."""
        if not self._has_scopes and "*" in principal.models:
            return True
        names = (name, self._canonical_by_alias.get(name, name))
        return all(_fits(globs, names) for globs in self._globs(principal))

    def _globs(self, principal: Principal) -> Iterable[Sequence[str]]:
        yield principal.models
        if not self._has_scopes:
            return
        if principal.tenant in self._tenant_models:
            yield self._tenant_models[principal.tenant]
        if principal.user is not None and principal.user in self._user_models:
            yield self._user_models[principal.user]
        if self._global_models is not None:
            yield self._global_models

    def _resolve_unknown(self, name: str, call: Request | None) -> Deployments:
        if not name or len(name) > NAME_MAX:
            raise self._not_found(name, call)
        first, slash, rest = name.partition("/")
        if slash and first in self.providers:
            if not rest:
                raise self._not_found(name, call)
            found = self._build(first, rest).by_key(self._count_keys(first))
        elif self.default_provider is not None:
            default = self.default_provider
            found = self._build(default, name).by_key(self._count_keys(default))
        else:
            raise self._not_found(name, call)
        if len(self._unknown) >= UNKNOWN_NAMES_MAX:
            self._unknown.clear()  # a plain dict: an LRU would cost a microsecond per call to keep its order
        self._unknown[name] = found
        return found

    def _not_found(self, name: str, call: Request | None) -> ApiError:
        known = [*self._by_name, *(f"{provider}/..." for provider in self.providers)]
        if call is not None:
            known = [k for k in known if k.endswith("/...") or self.is_allowed(call.principal, k)]
        near = difflib.get_close_matches(name[:NAME_MAX], known, 3, 0.5)
        hint = f"; did you mean {' or '.join(map(_quoted, near))}?" if near else ""
        return NotFound(f"model {_quoted(name)} does not exist{hint}", code="model_not_found", param="model")

    def _with_route_price(self, found: Deployments, call: Request) -> Deployments:
        assert self._find_route_price is not None
        is_relay = call.endpoint == "relay"
        if all(_has_price(deployment, is_relay) for deployment in found):
            return found
        price = self._find_route_price(call.method, call.path)
        if price is None:
            return found
        return tuple(d if _has_price(d, is_relay) else replace(d, price=price) for d in found)


def _has_price(deployment: Deployment, is_relay: bool) -> bool:
    """Whether the model's own price counts. On relayed routes one by tokens alone gives way to the route's: nothing bounds their tokens."""
    price = deployment.price
    return price is not None and (not is_relay or price.call_nanousd > 0 or not price.has_token_price)


def _fits(globs: Sequence[str], names: Sequence[str]) -> bool:
    return any(glob == "*" or _is_match(name, glob) for glob in globs for name in names)


_is_match = lru_cache(4_096)(fnmatch.fnmatchcase)
"""`fnmatchcase` costs 1 µs, remembered 0.1."""


def _is_free(call: Request) -> bool:
    """Calls without a model that cost nothing: reading, deleting, files and uploads."""
    if call.method in _FREE_METHODS:
        return True
    return call.method == "POST" and any(call.path == p or call.path.startswith(f"{p}/") for p in _FREE_PATHS)


def _quoted(name: str) -> str:
    """A client's name in a message: cut, so that an error stays an error."""
    return f'"{name[:100]}..."' if len(name) > 100 else f'"{name}"'
