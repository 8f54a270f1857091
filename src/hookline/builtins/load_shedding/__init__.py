"""Load shedding: under overload, fast 503s to the least important and steady latency to the rest.

Lives here: priorities, who is turned away, what is counted. Elsewhere: the limit and what moves it (limiter.py), limits per key (rate_limit), waiting in a queue (rate_limit's, by tenant).
Idea: an upstream that has more calls than places makes all of them slow, and what is slow is given up and asked again. So what does not fit is refused before it costs
anything: each priority may fill a share of the limit, the important the whole of it. There is no queue: a call that waits here would only be slow in another place.

What counts is the time to the first byte of one attempt that was answered, so neither a retry's pause nor a cache hit says anything about the model."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hookline import BadRequest, Call, Host, Principal, Rejected, Result, Ticket, Unavailable, UpstreamError, hookimpl
from hookline.builtins.carried import carried
from hookline.builtins.load_shedding.limiter import Kind, Limiter

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
HEADER = "x-hookline-priority"
OTHER = "other"
"""The limiter of all models that are not in `[models]`: their names come from clients."""
OVERLOAD_STATUSES = frozenset({429, 503, 529})
OVERLOAD_KINDS = frozenset({"connect_timeout", "first_byte_timeout", "pool_timeout", "write_timeout"})
"""Signs that more is in flight than can be carried. The breaker asks something else, whether the upstream is ill: our own full pool is a sign here and none there."""
Share = Annotated[float, Field(gt=0, le=1)]


class SheddingOptions(BaseModel):
    """`[plugins.load_shedding]`: how many calls to one model there may be at once, and who goes first."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    initial_limit: int = Field(
        40, ge=1, le=1_000_000, description="Calls in flight to one model, in one process, at first."
    )
    min_limit: int = Field(4, ge=1, le=1_000_000, description="Never fewer.")
    max_limit: int = Field(1_000, ge=1, le=1_000_000, description="Never more. The same as min_limit: a fixed limit.")
    tolerance: float = Field(
        1.5,
        gt=1,
        le=10,
        description="How many times the latency of an idle model is still good; above, the limit falls.",
    )
    shares: dict[Priority, Share] = Field(
        {"low": 0.6, "normal": 0.8, "high": 1.0}, description="Up to which share of the limit each priority is let in."
    )
    default: Priority = Field(
        "normal", json_schema_extra={"per_model": False}, description="The priority of everybody else; not per model."
    )
    keys: dict[str, Priority] = Field(
        {}, json_schema_extra={"per_model": False}, description="Priorities by name or id of a key; not per model."
    )
    tenants: dict[str, Priority] = Field(
        {},
        json_schema_extra={"per_model": False},
        description="Priorities by tenant, where the key has none; not per model.",
    )
    tags: dict[str, Priority] = Field({}, description="Priorities by tag of a key, where key and tenant have none.")
    retry_after_s: float = Field(1.0, gt=0, le=3_600, description="What refused clients are told to wait.")

    @model_validator(mode="after")
    def _check_limits(self) -> SheddingOptions:
        if self.min_limit > self.max_limit:
            raise ValueError(f"min_limit {self.min_limit} is above max_limit {self.max_limit}: swap them")
        if missing := [name for name in PRIORITIES if name not in self.shares]:
            raise ValueError(f"shares lacks {', '.join(missing)}: name low, normal and high")
        return self


class Place:
    """A call's place in flight."""

    __slots__ = ("_entry", "_kind", "_plugin", "line")

    def __init__(self, plugin: Plugin, line: Line, kind: Kind, share: float) -> None:
        self._plugin = plugin
        self.line = line
        self._kind = kind
        self._entry = line.limiter.enter(share, plugin.clock.monotonic())
        line.in_flight.set(line.limiter.in_flight)

    def settle(self, result: Result) -> None:
        limiter, attempt, now = self.line.limiter, result.attempt, self._plugin.clock.monotonic()
        limiter.in_flight -= 1
        self.line.in_flight.set(limiter.in_flight)
        if attempt is None or result.source != "upstream" or attempt.started_at < self._entry.began_at:
            return
        error = attempt.error
        if isinstance(error, UpstreamError):
            if error.kind not in OVERLOAD_KINDS and error.upstream_status not in OVERLOAD_STATUSES:
                return
            has_changed = limiter.overloaded(self._entry, now=now)
        elif error is None and attempt.first_byte_at is not None:
            latency_s = attempt.first_byte_at - attempt.started_at
            took_s = (attempt.ended_at or now) - attempt.started_at
            has_changed = limiter.answered(self._kind, self._entry, latency_s=latency_s, took_s=took_s, now=now)
        else:
            return
        if has_changed:
            self.line.limit.set(limiter.limit)


class Line:
    """One model's limiter, its options and its gauges."""

    __slots__ = ("in_flight", "limit", "limiter", "name", "options")

    def __init__(self, plugin: Plugin, name: str, options: SheddingOptions) -> None:
        self.name = name
        self.options = options
        self.limiter = plugin.limiters.setdefault(name, Limiter(options.initial_limit))
        self.limiter.tune(min_limit=options.min_limit, max_limit=options.max_limit, tolerance=options.tolerance)
        self.limit = plugin.limits(name)
        self.in_flight = plugin.places(name)
        self.limit.set(self.limiter.limit)


class Plugin:
    """Lets calls in while they fit."""

    Options = SheddingOptions
    supports_dry_run = True

    def __init__(self, options: SheddingOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self.clock = host.clock
        self._models = frozenset(host.settings.get("models", ()))
        self._aliases = dict(host.settings.get("aliases", {}))
        self._lines: dict[str, Line] = {}
        self.limiters: dict[str, Limiter] = carried(host, "limiters", dict)
        self.limits = host.metrics.gauge(
            "hookline_shedding_limit", "Calls to one model that are good for it.", ("model",)
        )
        self.places = host.metrics.gauge("hookline_shedding_in_flight", "Calls to one model in flight.", ("model",))
        self._shed = host.metrics.counter(
            "hookline_shed_total", "Calls refused because the model is busy.", ("model", "priority")
        )

    def start(self) -> None:
        """Forget the models that there are no more."""
        for gone in self.limiters.keys() - self._models - {OTHER}:
            del self.limiters[gone]

    @hookimpl
    def admit(self, call: Call) -> Ticket | None:
        model = call.model
        if model is None:
            return None
        line = self._line_of(model)
        priority = self._priority_of(call)
        limiter = line.limiter
        if call.is_dry_run:
            call.note(
                "load_shedding", priority, f"{limiter.in_flight} calls in flight, {limiter.limit:.0f} are good for it"
            )
        share = line.options.shares[priority]
        if not limiter.fits(share):
            if not call.is_dry_run:
                limiter.refused()
                self._shed(line.name, priority).inc()
            raise Rejected(self._refusal(line, priority))
        return None if call.is_dry_run else Place(self, line, (model, call.endpoint, call.is_stream), share)

    def _line_of(self, model: str) -> Line:
        line = self._lines.get(model)
        if line is None:
            name = self._aliases.get(model, model)
            name = name if name in self._models else OTHER
            line = self._lines.get(name)
            if line is None:
                line = self._lines[name] = Line(self, name, self._options_by_model.get(name, self._options))
            if model in self._models:
                self._lines[model] = line
        return line

    def _priority_of(self, call: Call) -> Priority:
        """What the key is worth, or less where the client asks for less. Raises Rejected for a word that is none."""
        allowed = self._allowed(call.principal)
        asked = call.headers.get(HEADER)
        if asked is None:
            return allowed
        asked = asked.strip().lower()
        if asked not in PRIORITIES:
            told = f'{HEADER}: "{asked[:40]}" is no priority; there are {", ".join(PRIORITIES)}'
            raise Rejected(BadRequest(told, code="invalid_priority"))
        return min(allowed, asked, key=PRIORITIES.index)

    def _allowed(self, principal: Principal) -> Priority:
        options = self._options
        of_key = options.keys.get(principal.key_id) or options.keys.get(principal.key_name)
        of_key = of_key or options.tenants.get(principal.tenant)
        if of_key is None and options.tags:
            found = [options.tags[tag] for tag in principal.tags if tag in options.tags]
            of_key = max(found, key=PRIORITIES.index, default=None)
        return of_key or options.default

    def _refusal(self, line: Line, priority: Priority) -> Unavailable:
        """The least important are told not to try again by themselves; others may, after a while."""
        may_retry = priority != "low"
        return Unavailable(
            f'"{line.name}" is busy: calls of priority {priority} are refused until others have ended; try again later',
            code="overloaded",
            retry_after_s=line.options.retry_after_s,
            may_retry=may_retry,
            headers={"x-should-retry": "true"} if may_retry else None,
        )
