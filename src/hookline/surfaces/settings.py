"""What the doors are told: limits of the front, and what one compiled configuration serves.

Lives here: `FrontSettings` and `Serving`. Elsewhere: proxy.toml (config.py), who fills these (app.py).
Idea: limits stay for the life of the process; `Serving` is replaced whole on a reload, and a running call keeps the one it began with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hookline.call import Call
from hookline.principal import Principal
from hookline.reply import Reply

if TYPE_CHECKING:
    from hookline.surfaces.cors import Cors
    from hookline.surfaces.routes import Routes

Deliver = Callable[[Reply], Awaitable[None]]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """Limits of every connection. Sizes are bytes, times are seconds."""

    header_timeout_s: float = 10.0
    body_idle_timeout_s: float = 30.0
    keepalive_timeout_s: float = 75.0
    write_timeout_s: float = 30.0
    linger_s: float = 5.0
    max_head_bytes: int = 32_768
    max_body_bytes: int = 32 * MIB
    max_upload_bytes: int = 512 * MIB
    max_spool_bytes: int = 2048 * MIB
    """Of all request bodies together: uploads in memory and on disk, JSON in memory."""


class RunsCalls(Protocol):
    """The pipeline, as a door sees it."""

    async def run(self, call: Call, deliver: Deliver, /) -> None: ...


class NamesModels(Protocol):
    """The catalog, as `/v1/models` sees it."""

    @property
    def default_provider(self) -> str | None: ...
    def model_names(self) -> Sequence[str]: ...
    def is_allowed(self, principal: Principal, name: str, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Serving:
    """What one compiled configuration gives the doors."""

    pipeline: RunsCalls
    catalog: NamesModels
    routes: Routes
    find_what_is_missing: Callable[[], Sequence[str]] = tuple
    """What keeps this process from serving, as sentences; empty = ready."""
    tenants: frozenset[str] | None = None
    """The tenants of proxy.toml; None: whose stored objects are is known (the plugin `owners`), so nothing is refused unseen."""
    default_completion_model: str | None = None
    cors: Cors | None = None
    max_timeout_s: float = 600.0
    """The most that a client may ask for by `x-hookline-timeout-s`."""
    explains: bool = False
    """Clients may ask what would become of their own calls."""

    def refuses_stored_objects(self, tenant: str) -> bool:
        """Whether a caller of this tenant may not name stored objects, for they could be another's: with more than one tenant and no owners."""
        tenants = self.tenants
        return tenants is not None and (len(tenants) > 1 or (tenant != "default" and tenant not in tenants))
