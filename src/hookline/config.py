"""proxy.toml: what may stand in it.

Lives here: one model per table, and `Settings`, the checked whole. Elsewhere: reading and checking it (config_loading.py), rules between tables
(config_rules.py), options of plugins and providers (their own models; here they are raw tables).
Idea: strict: an unknown key or a wrong type is refused, so a misspelt limit is never a limit that silently does not hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from hookline.config_source import Source
from hookline.limit_tables import BudgetTable, LimitTable, ScopedLimitTable

PROVIDER_NAME = r"^[A-Za-z0-9_.-]{1,64}$"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Bytes = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CorsTable(_Table):
    """`[server.cors]`: which web pages may call. Off unless origins are listed."""

    allow_origins: list[str] = Field(default=[], description='As in "https://app.example"; "*" is everyone.')
    allow_headers: list[str] = Field(default=["*"], description='"*" allows what is asked for.')
    expose_headers: list[str] = Field(default=[], description="Beside the ones that are always exposed.")
    max_age_s: int = Field(default=600, ge=0)


class Server(_Table):
    """`[server]`: where it listens and what it waits for."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535, description="0 takes a free port.")
    workers: int = Field(default=1, ge=1, le=256, description="Processes that share the port.")
    open: bool = Field(default=False, description="Serve everyone who reaches a non-loopback host, without keys.")
    drain_s: float = Field(default=30.0, ge=0, description="How long running calls may go on after SIGTERM.")
    handover_socket: str | None = Field(
        default=None,
        description="A Unix socket, relative to this file, at which `serve --takeover` takes the port over.",
    )
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    default_completion_model: str | None = Field(default=None, description="For /v1/completions without a model.")
    heartbeat_s: float = Field(default=0.0, ge=0, description="SSE comments while waiting; 0 is off.")
    hook_timeout_s: Seconds = Field(default=5.0, description="Time budget of one async hook.")
    settle_timeout_s: Seconds = Field(default=2.0, description="Time budget of one ticket's settlement.")
    total_timeout_s: Seconds = Field(
        default=600.0, description="Deadline of a call, and the most that x-hookline-timeout-s may ask for."
    )
    connect_timeout_s: Seconds = Field(default=5.0, description="Where no `timeouts` table says connect_s.")
    first_byte_timeout_s: Seconds = Field(default=120.0, description="Where no `timeouts` table says first_byte_s.")
    idle_timeout_s: Seconds = Field(default=60.0, description="Where no `timeouts` table says idle_s.")
    max_pumps: int = Field(default=100, ge=0, description="Bodies that are read on after their client has left.")
    header_timeout_s: Seconds = Field(default=10.0, description="For a whole request head, from its first byte.")
    body_idle_timeout_s: Seconds = 30.0
    keepalive_timeout_s: Seconds = 75.0
    write_timeout_s: Seconds = Field(default=30.0, description="For a client that has stopped reading.")
    linger_s: Seconds = Field(default=5.0, description="How long a refused body is read and thrown away.")
    max_head_bytes: Bytes = 32 * 1024
    max_body_bytes: Bytes = Field(default=32 * 1024 * 1024, description="A JSON request body.")
    max_upload_bytes: Bytes = Field(default=512 * 1024 * 1024, description="A multipart or binary request body.")
    max_spool_bytes: Bytes = Field(
        default=2 * 1024 * 1024 * 1024,
        description="All request bodies in progress together: spooled uploads, and JSON beyond what comes in one read.",
    )
    cors: CorsTable = CorsTable()


class State(_Table):
    """`[state]`: where keys, money and limits are kept."""

    records: str = Field(
        default="sqlite:///hookline.db",
        description="Keys, ledger, request log: a file relative to this one, or postgresql://...",
    )
    fsync_ms: int = Field(
        default=100,
        ge=0,
        le=60_000,
        description="How often the ledger's journal is synced to disk: what a power loss may cost. 0 leaves it to the kernel.",
    )
    shared: str = Field(
        default="memory",
        description="Limits, money in flight, cached and kept replies: `memory`, or `redis://host:6379/0` (rediss:// with TLS) for several processes.",
    )
    reply_cache_bytes: Bytes = Field(
        default=16 * 1024 * 1024, description="Cached answers in this process, keys and overhead included."
    )
    queue: Literal["embedded"] = Field(default="embedded", description="How jobs reach workers: within the process.")


class ChainEntry(BaseModel):
    """One plugin of `[chain] plugins`: a name, or `{ name, path, <options> }`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str = Field(min_length=1)
    path: str | None = Field(default=None, description="A .py file with a class `Plugin`, relative to this file.")

    @property
    def options(self) -> dict[str, Any]:
        """Options written beside the name."""
        return dict(self.model_extra or {})


def _as_entry(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_deployment(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    provider, slash, model = value.partition("/")
    if not (provider and slash and model):
        raise ValueError('must be "provider/model" or a table')
    return {"provider": provider, "model": model}


DEFAULT_PLUGINS = (
    "auth", "owners", "rate_limit", "idempotency", "cache", "budget", "model_selection", "circuit_breaker", "fallback", "logging", "metrics", "explain",
)  # fmt: skip


class ChainTable(_Table):
    """`[chain]`: who is active, in order."""

    plugins: list[Annotated[ChainEntry, BeforeValidator(_as_entry, json_schema_input_type=str | ChainEntry)]] = Field(
        default_factory=lambda: [ChainEntry(name=name) for name in DEFAULT_PLUGINS]
    )
    order: dict[str, list[str]] = Field(default={}, description="Plugins that come first in one hook.")


class TimeoutsTable(_Table):
    """`timeouts` of a provider, a model or a deployment: how long one attempt may take. The nearest that says a thing wins: deployment, model, provider, `[server]`."""

    connect_s: Seconds | None = Field(default=None, description="Resolving, TCP and TLS together.")
    first_byte_s: Seconds | None = Field(
        default=None, description="From the request to the first byte of the answer; before it, a fallback is tried."
    )
    idle_s: Seconds | None = Field(default=None, description="Between two arrivals of an answer that has begun.")
    total_s: Seconds | None = Field(default=None, description="From the request to the last byte of the answer.")
    min_bytes_per_s: float | None = Field(
        default=None, ge=0, description="An answer that comes slower for ten seconds is cut; 0 is off."
    )


class ProviderTable(BaseModel):
    """`[providers.x]`: an upstream. All other keys belong to its kind and are checked there."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    kind: str
    default: bool = Field(default=False, description="Takes model names that nothing else knows; at most one.")
    region: str | None = Field(default=None, description="Where its deployments run.")
    tags: list[str] = Field(default=[], description="Tags of all its deployments.")
    timeouts: TimeoutsTable = TimeoutsTable()

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def options_for(self, model: type[BaseModel]) -> dict[str, Any]:
        """Its options, and what stands here but means something to the kind, too (a cloud's `region`)."""
        both = self.model_fields_set & {"region", "tags"} & model.model_fields.keys()
        return self.options | {name: getattr(self, name) for name in both}


class DeploymentTable(LimitTable):
    """One deployment of a model."""

    provider: str
    model: str = Field(min_length=1)
    id: str | None = Field(default=None, description='Default: "provider/model".')
    weight: float = Field(
        default=1.0, ge=0, le=1_000_000, description="Its part of the calls; 0 is only for when others fail."
    )
    api_key: str | None = None
    mode: Literal["chat", "completions"] | None = None
    context_tokens: Count | None = None
    max_output_tokens: Count | None = None
    capabilities: list[Literal["vision", "tools", "json_schema", "audio"]] | None = Field(
        default=None, description="What of these it can do; [] is nothing of it. What is not said is not asked."
    )
    region: str | None = Field(default=None, description="Where it runs; default: its provider's.")
    tags: list[str] = Field(
        default=[], description="What rules of `model_selection` may ask for, beside its provider's."
    )
    priority: int = Field(
        default=0, ge=0, le=1_000_000, description="Smaller ones are tried first; others take what spills over."
    )
    timeouts: TimeoutsTable = TimeoutsTable()

    @property
    def deployment_id(self) -> str:
        return self.id or f"{self.provider}/{self.model}"

    @property
    def is_bare(self) -> bool:
        """It is named and nothing else is said of it."""
        return self.model_fields_set == {"provider", "model"}


class ModelTable(LimitTable):
    """`[models."x"]`: a name clients ask for. Limits hold for all calls to it together."""

    deployments: list[
        Annotated[DeploymentTable, BeforeValidator(_as_deployment, json_schema_input_type=str | DeploymentTable)]
    ] = Field(min_length=1)
    aliases: list[str] = Field(default=[], description="Other names for the same model.")
    plugins: dict[str, dict[str, Any]] = Field(default={}, description="Merged over [plugins.*] for this model.")
    timeouts: TimeoutsTable = TimeoutsTable()


class PriceEntry(_Table):
    """`[prices."x"]`: USD per million tokens; `call` is USD per call. x is "provider/model", "model", "POST /v1/path/*" or "tool:web_search"."""

    input: Usd = 0.0
    output: Usd = 0.0
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    call: Usd = Field(default=0.0, description="The most that one call of a model, a route or a hosted tool costs.")
    audio_input: Usd | None = Field(default=None, description="Of audio tokens; without it hard budgets refuse audio.")
    audio_output: Usd | None = None


class Scope(ScopedLimitTable):
    """What a tenant, a user or everyone together may use."""

    models: list[str] | None = Field(default=None, description="Globs over model names.")
    budget: BudgetTable | None = None


class Admin(_Table):
    """`[admin]`: without a key there are no /admin routes."""

    key: str | None = Field(default=None, min_length=8)


class Settings(_Table):
    """The checked whole of one proxy.toml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, title="proxy.toml")
    server: Server = Server()
    state: State = State()
    chain: ChainTable = Field(default_factory=ChainTable)
    providers: dict[str, ProviderTable] = {}
    models: dict[str, ModelTable] = {}
    prices: dict[str, PriceEntry] = {}
    plugins: dict[str, dict[str, Any]] = {}
    tenants: dict[str, Scope] = {}
    users: dict[str, Scope] = {}
    everyone: Scope = Field(default=Scope(), alias="global")
    admin: Admin = Admin()
    _source: Source = PrivateAttr()
    _described: dict[str, DeploymentTable] = PrivateAttr(default={})

    @model_validator(mode="after")
    def _complete_bare_deployments(self) -> Settings:
        self._described = {
            d.deployment_id: d.model_copy(update={"weight": 1.0, "priority": 0, "api_key": None})
            for table in self.models.values()
            for d in table.deployments
            if not d.is_bare and d.deployment_id == f"{d.provider}/{d.model}"
        }
        for table in self.models.values():
            table.deployments[:] = [
                self._described.get(d.deployment_id, d) if d.is_bare else d for d in table.deployments
            ]
        return self

    def deployment_named(self, provider: str, model: str) -> DeploymentTable:
        """A deployment that is only named, by a model or by a client, is what some model says of it; `weight`, `priority` and keys are each model's own to say."""
        bare = DeploymentTable.model_construct(provider=provider, model=model)
        return self._described.get(bare.deployment_id, bare)

    @property
    def source(self) -> Source:
        """Where it was read: for problems found later."""
        return self._source

    def options_of(self, entry: ChainEntry) -> dict[str, Any]:
        """What a plugin in [chain] is given, unchecked: its table, and what stands beside its name."""
        return {**self.plugins.get(entry.name, {}), **entry.options}

    @property
    def is_embedded_default(self) -> bool:
        """There was no proxy.toml."""
        return self._source.path is None
