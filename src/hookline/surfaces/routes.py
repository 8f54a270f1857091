"""Hookline's own paths: /healthz, /readyz and what plugins registered.

Lives here: the route table, who may use a route, 404 and 405 outside `/v1`. Elsewhere: what a plugin's route answers (the plugin).
Idea: no admin key, no admin routes: they are not found, rather than forbidden. Nothing here reaches the pipeline."""

from __future__ import annotations

import hmac
import inspect
import ipaddress
from dataclasses import dataclass
from typing import Final, get_args

from aiohttp import hdrs

from hookline.errors import (
    ApiError,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    StartupError,
    Unauthenticated,
)
from hookline.host import Access, RouteHandler, RouteRequest
from hookline.paths import RequestTarget
from hookline.reply import Reply
from hookline.surfaces.exchange import Exchange, log
from hookline.surfaces.settings import Serving

OWN_PATHS: Final = frozenset({"/healthz", "/readyz"})
BODY_BYTES_MAX: Final = 1 << 20
"""Of a request to a plugin's route."""
FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""A request that came through a reverse proxy is not from this machine, whatever its socket says."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    handler: RouteHandler
    access: Access


class Routes:
    """The route table of one compiled configuration: `add` is what `register_routes` hooks are given.

    A path that ends in "/*" takes everything below it; the longest match wins."""

    def __init__(self, admin_key: str | None = None) -> None:
        self.admin_key = admin_key or None
        self._exact: dict[str, dict[str, Route]] = {}
        self._below: dict[str, dict[str, Route]] = {}

    def add(self, method: str, path: str, handler: RouteHandler, *, access: Access = "admin") -> None:
        """Register a route. Raises StartupError for a path that is taken, reserved, or not a path."""
        if path in OWN_PATHS or path == "/v1" or path.startswith("/v1/") or not path.startswith("/"):
            raise StartupError(
                [f'route {method} "{path}": plugins add routes outside /v1, /healthz and /readyz, as "/name"']
            )
        if access not in get_args(Access):
            raise StartupError([f'route {method} "{path}": access "{access}" is none of {", ".join(get_args(Access))}'])
        if not inspect.iscoroutinefunction(handler):
            raise StartupError([f'route {method} "{path}": its handler must be `async def handler(request) -> Reply`'])
        table, key = (self._below, path[:-1]) if path.endswith("/*") else (self._exact, path)
        methods = table.setdefault(key, {})
        if method.upper() in methods:
            raise StartupError([f'route {method} "{path}" is registered twice; each route belongs to one plugin'])
        methods[method.upper()] = Route(handler, access)

    def find(self, path: str) -> dict[str, Route]:
        """The methods of a path; empty if it is nobody's, or all are for an admin and there is no admin key."""
        methods = self._exact.get(path)
        if methods is None:
            prefixes = [prefix for prefix in self._below if path.startswith(prefix)]
            methods = self._below[max(prefixes, key=len)] if prefixes else {}
        if self.admin_key is None:
            return {method: route for method, route in methods.items() if route.access != "admin"}
        return methods

    def get_allowed(self, path: str) -> str:
        """The value of `allow` for a path. Raises NotFound if it is nobody's."""
        methods = {"GET"} if path in OWN_PATHS else set(self.find(path))
        if not methods:
            raise _not_found(path, self.admin_key)
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted({*methods, "OPTIONS"}))


async def serve_route(exchange: Exchange, target: RequestTarget, serving: Serving) -> None:
    """Answer a request outside `/v1`. Raises ApiError."""
    method = "GET" if exchange.method == "HEAD" else exchange.method
    if target.path in OWN_PATHS:
        if method != "GET":
            raise _method_not_allowed(exchange.method, serving.routes.get_allowed(target.path))
        is_stopping = exchange.connection.front.is_stopping
        await exchange.send(_report_health() if target.path == "/healthz" else _report_readiness(serving, is_stopping))
        return
    methods = serving.routes.find(target.path)
    if not methods:
        raise _not_found(target.path, serving.routes.admin_key)
    route = methods.get(exchange.method) or methods.get(method)
    if route is None:
        raise _method_not_allowed(exchange.method, serving.routes.get_allowed(target.path))
    is_admin = _shows_admin_key(exchange, serving.routes.admin_key)
    is_loopback = _is_from_this_machine(exchange)
    _check_access(route.access, exchange, is_admin=is_admin, is_loopback=is_loopback)
    body = await exchange.read_body(BODY_BYTES_MAX)
    request = RouteRequest(exchange.method, target.path, target.query, exchange.headers, body, is_admin, is_loopback)
    await exchange.send(await _ask(route, request, exchange))


async def _ask(route: Route, request: RouteRequest, exchange: Exchange) -> Reply:
    try:
        return await route.handler(request)
    except ApiError as error:
        return Reply.from_error(error)
    except Exception:
        log.exception("request %s: the route %s %s failed", exchange.request_id, request.method, request.path)
        return Reply.from_error(InternalError("this route failed; see the gateway's log"))


def _check_access(access: Access, exchange: Exchange, *, is_admin: bool, is_loopback: bool) -> None:
    if access == "open" or is_admin or (access == "loopback" and is_loopback):
        return
    if hdrs.AUTHORIZATION not in exchange.headers:
        raise Unauthenticated("this route needs the admin key: send it as `authorization: Bearer ...`")
    raise Forbidden("this route needs the admin key, and the key shown is not it", code="admin_key_required")


def _shows_admin_key(exchange: Exchange, admin_key: str | None) -> bool:
    scheme, _, shown = exchange.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if admin_key is None or scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(shown.strip().encode("utf-8", "surrogateescape"), admin_key.encode())


def _is_from_this_machine(exchange: Exchange) -> bool:
    remote = exchange.connection.remote
    if remote is None or any(n in FORWARDED or n.startswith("x-forwarded-") for n in map(str.lower, exchange.headers)):
        return False
    address = ipaddress.ip_address(remote.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _report_health() -> Reply:
    return Reply.from_json({"status": "ok"})


def _report_readiness(serving: Serving, is_stopping: bool) -> Reply:
    missing = [*serving.find_what_is_missing(), *(["this process is stopping"] if is_stopping else [])]
    if missing:
        return Reply.from_json({"status": "not ready", "missing": missing}, status=503)
    return Reply.from_json({"status": "ready"})


def _not_found(path: str, admin_key: str | None) -> NotFound:
    hint = "the OpenAI API is below /v1/"
    if path.startswith("/admin/") and admin_key is None:
        hint = "routes for administrators exist once proxy.toml has `[admin] key`"
    return NotFound(f"there is nothing at this path; {hint}", code="unknown_url")


def _method_not_allowed(method: str, allowed: str) -> MethodNotAllowed:
    return MethodNotAllowed(f"{method} is not served at this path; {allowed} are", headers={"allow": allowed})
