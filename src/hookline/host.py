"""What a plugin is given (`Host`) and what it may register: routes, providers, stores, commands, workers.

Lives here: the protocols a plugin sees. Elsewhere: the hooks (hookspecs.py), who fulfils these (app.py).
Idea: a plugin never sees the app; what is not here, it can't reach."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from hookline.attempt import Provider
from hookline.call import Call
from hookline.deployment import Deployment
from hookline.principal import Principal
from hookline.reply import Reply
from hookline.slots import Slot
from hookline.stores.protocols import LimitStore, RecordStore, ReplyStore

if TYPE_CHECKING:
    from pydantic import BaseModel

    from hookline.flights import Flights

M = TypeVar("M", bound="BaseModel")


class Clock(Protocol):
    """Time, injected: tests move it by hand."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...


class Counter(Protocol):
    def inc(self, amount: float = 1) -> None: ...


class Gauge(Protocol):
    def set(self, value: float) -> None: ...


class Histogram(Protocol):
    def observe(self, amount: float) -> None: ...


class Metrics(Protocol):
    """Metric families by name, made once and shared by reloads. The functions return the child for these label values: keep it, don't ask per call."""

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., Counter]: ...
    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., Gauge]: ...
    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> Callable[..., Histogram]: ...
    def render(self) -> bytes:
        """All families in the Prometheus text format."""


class Host(Protocol):
    """What a plugin is given beside its options: never the app."""

    plugin: str
    """This plugin's name."""
    clock: Clock
    limits: LimitStore
    replies: ReplyStore
    records: RecordStore
    flights: Flights
    metrics: Metrics
    log: logging.Logger
    offers: dict[Slot[Any], Any]
    """What the plugins of one configuration offer each other: put in by a constructor, looked up per call."""
    options_by_model: Mapping[str, Any]
    """`[models."x".plugins.<this plugin>]`, merged over the options and checked by the same model."""
    settings: Mapping[str, Any]
    """What `[tenants]`, `[users]`, `[global]` and `[server]` say: read-only."""

    @property
    def http(self) -> Any:
        """An aiohttp.ClientSession without cookies, for everything but LLM calls; made at first use."""

    async def run(self, call: Call) -> Reply:
        """Send a call through the whole chain; the reply's body is bytes, read whole."""

    async def begin(self, call: Call) -> Reply:
        """Like `run`, but as soon as the reply has begun: a streamed body comes as it is made. Read it to its end or close it (`aclose`)."""

    async def find_principal(self, key: str) -> Principal | None:
        """Who calls with the virtual key of this name or id, as a plugin knows that has `find_principal(key)` itself (auth); None if nobody does."""

    def find_deployments(self, name: str, call: Call) -> Sequence[Deployment]:
        """The deployments of another model, from `start()` on. Raises NotFound, and Forbidden if who makes this call may not use that model."""

    def describe(self) -> Mapping[str, Any]:
        """The compiled chain, deployments and settings, secrets masked."""

    def spawn(self, name: str, coro: Coroutine[Any, Any, Any]) -> None:
        """Run in the background, supervised: errors are logged with the plugin's name, cancelled at stop."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a plugin's own route is given. `is_admin`: the admin key was shown; `is_loopback`: the client is on this machine."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    is_admin: bool
    is_loopback: bool

    def parameters(self, model: type[M]) -> M:
        """The query as `model` (`Parameters` or `ListParameters`, or one made from them); a field that is a list takes its parameter as often as it comes.

        Raises BadRequest that names every parameter that is unknown (and the nearest right name), wrong, missing, or given twice."""
        from hookline.parameters import parse_query

        return parse_query(model, self.query)

    def json_object(self, model: type[M], *, may_be_empty: bool = False) -> M:
        """The body as `model`, in the same way. Raises BadRequest, and UnsupportedMedia for a body that says it is something else than JSON."""
        from hookline.parameters import parse_body

        return parse_body(model, self.body, self.headers.get("content-type", ""), may_be_empty=may_be_empty)


RouteHandler = Callable[[RouteRequest], Awaitable[Reply]]
Access = Literal["open", "loopback", "admin"]
"""Who may use a route: everyone; loopback clients or the admin key; the admin key only."""


class AddRoute(Protocol):
    def __call__(self, method: str, path: str, handler: RouteHandler, *, access: Access = "admin") -> None: ...


class AddProvider(Protocol):
    def __call__(self, kind: str, factory: Callable[..., Provider], *, options: type[Any] | None = None) -> None: ...


class AddStore(Protocol):
    def __call__(
        self, scheme: str, factory: Callable[..., Any], *, store: Literal["limits", "replies", "records", "flights"]
    ) -> None: ...


class AddCommand(Protocol):
    def __call__(self, name: str, function: Callable[..., Any]) -> None: ...


class AddWorker(Protocol):
    def __call__(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None: ...
