"""Metrics: what calls cost in time, tokens and money, for Prometheus.

Lives here: the families about calls, their labels, `GET /metrics`. Elsewhere: families about hooks (chain.py) and about single plugins (theirs), how families are kept and shown (`host.metrics`).
Idea: label values come from the outside, so every one is bounded; and the children of one (model, deployment) are found once and then only added to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    CACHE_STATUS,
    NANO_PER_USD,
    AddRoute,
    Attempt,
    Call,
    Host,
    Metrics,
    Reply,
    Result,
    RouteRequest,
    UpstreamError,
    hookimpl,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS_S = (0.1, 0.5, 1, 2, 5, 10, 30)
TTFT_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
OTHER_MODELS_MAX = 200
"""Names that are neither in `[models]` nor priced; later ones are counted as "other"."""
PRICED_MODELS_MAX = 1_000
"""Prices match by pattern, so there is no end of names that have one."""
LABEL_CHARS_MAX = 200
"""A longer name, which comes from a client and may be megabytes, is counted as "other"."""
CHILDREN_MAX = 5_000
NO_MODEL = NO_DEPLOYMENT = "none"
OTHER = "other"


class MetricsOptions(BaseModel):
    """`[plugins.metrics]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    open: bool = Field(False, description="Let everyone read /metrics; else loopback clients and the admin key.")


class Plugin:
    """Counts every call at its end."""

    Options = MetricsOptions
    has_model_options = False

    def __init__(self, options: MetricsOptions, host: Host) -> None:
        self._is_open = options.open
        self._metrics = host.metrics
        self._families = Families(host.metrics)
        self._labels = ModelLabels(host.settings.get("models", ()))
        self._deployments = ModelLabels(id for ids in host.settings.get("deployments", {}).values() for id in ids)
        self._children: dict[tuple[str | None, str], Children] = {}

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        add("GET", "/metrics", self._show, access="open" if self._is_open else "loopback")

    async def _show(self, request: RouteRequest) -> Reply:
        return Reply(200, {"content-type": CONTENT_TYPE}, self._metrics.render(), source="local")

    @hookimpl
    def call_ended(self, call: Call, result: Result) -> None:
        outcome, source, attempt, _, usage, cost_nanousd, _, _, ended_at, first_byte_at = result
        deployment = attempt.target.deployment.id if attempt is not None else NO_DEPLOYMENT
        children = self._children.get((call.model, deployment)) or self._find_children(call, attempt)
        if outcome == "ok" and source == "rescue":  # what stood in was no success of the provider that had failed
            (self._children.get((call.model, NO_DEPLOYMENT)) or self._find_children(call, None)).succeeded()
        elif outcome == "ok":
            children.succeeded()
        else:
            children.failed()
        children.duration_s(ended_at - call.started_at)
        if first_byte_at is not None:
            children.ttft_s(first_byte_at - call.started_at)
        if usage is not None:
            inputs, outputs = usage[:2]
            children.prompt_tokens(inputs)
            children.completion_tokens(outputs)
        if cost_nanousd:
            children.cost_usd(cost_nanousd / NANO_PER_USD)
        cache_status = call.slots.get(CACHE_STATUS)
        if cache_status is not None:
            children.cache(cache_status)
        for tried in call.attempts:
            if tried is attempt and tried.is_complete and tried.error is None:
                children.attempt_ok()
            else:
                label, provider = self._deployment_label(tried), tried.deployment.provider
                self._families.attempt(label, provider, attempt_outcome(tried)).inc()

    def _find_children(self, call: Call, attempt: Attempt | None) -> Children:
        if attempt is None:
            label = self._labels.label(call.model, is_priced=False)
            deployment = at = provider = NO_DEPLOYMENT
        else:
            deployment, provider = attempt.deployment.id, attempt.deployment.provider
            label = self._labels.label(call.model, is_priced=attempt.deployment.price is not None)
            at = self._deployment_label(attempt)
        children = Children(self._families, label, provider, at)
        # Names counted as "other" are not remembered: they have no end.
        if OTHER not in (label, at) and len(self._children) < CHILDREN_MAX:
            self._children[(call.model, deployment)] = children
        return children

    def _deployment_label(self, attempt: Attempt) -> str:
        deployment = attempt.deployment
        return self._deployments.label(deployment.id, is_priced=deployment.price is not None)


class ModelLabels:
    """Which names may be a `model` or `deployment` label: the configured ones, PRICED_MODELS_MAX that have a price, OTHER_MODELS_MAX others."""

    def __init__(self, configured: Iterable[str]) -> None:
        self._configured = frozenset(configured)
        self._priced: set[str] = set()
        self._others: set[str] = set()

    def label(self, model: str | None, *, is_priced: bool) -> str:
        if model is None:
            return NO_MODEL
        if model in self._configured or model in self._priced or model in self._others:
            return model
        names, names_max = (self._priced, PRICED_MODELS_MAX) if is_priced else (self._others, OTHER_MODELS_MAX)
        if len(names) >= names_max or len(model) > LABEL_CHARS_MAX:
            return OTHER
        names.add(model)
        return model


class Families:
    """Every family about calls. Its names and labels are a contract with people's dashboards."""

    def __init__(self, metrics: Metrics) -> None:
        of_model = ("model", "provider")
        self.requests = metrics.counter("ai_requests_total", "Calls, by how they ended.", (*of_model, "status"))
        self.duration_s = metrics.histogram(
            "ai_request_duration_seconds", "From the request's head to the end.", of_model, buckets=DURATION_BUCKETS_S
        )
        self.tokens = metrics.counter("ai_tokens_total", "Tokens read and written.", (*of_model, "type"))
        self.cost_usd = metrics.counter("ai_cost_dollars_total", "Money spent, in USD.", of_model)
        self.ttft_s = metrics.histogram(
            "hookline_ttft_seconds",
            "From the request's head to the first byte.",
            (*of_model, "deployment"),
            buckets=TTFT_BUCKETS_S,
        )
        self.cache = metrics.counter("hookline_cache_total", "Calls by the cache's part.", ("model", "status"))
        self.attempt = metrics.counter(
            "hookline_attempts_total", "Attempts by how they ended.", ("deployment", "provider", "outcome")
        )


class Children:
    """What one model at one deployment adds to, as bound methods."""

    __slots__ = (
        "_cache", "_families", "_label", "attempt_ok", "completion_tokens", "cost_usd", "duration_s", "failed", "prompt_tokens",
        "succeeded", "ttft_s",
    )  # fmt: skip

    def __init__(self, families: Families, label: str, provider: str, deployment: str) -> None:
        self._families = families
        self._label = label
        self._cache: dict[str, Callable[[], None]] = {}
        self.attempt_ok = families.attempt(deployment, provider, "ok").inc
        self.succeeded = families.requests(label, provider, "success").inc
        self.failed = families.requests(label, provider, "error").inc
        self.duration_s = families.duration_s(label, provider).observe
        self.prompt_tokens = families.tokens(label, provider, "prompt").inc
        self.completion_tokens = families.tokens(label, provider, "completion").inc
        self.cost_usd = families.cost_usd(label, provider).inc
        self.ttft_s = families.ttft_s(label, provider, deployment).observe

    def cache(self, status: str) -> None:
        inc = self._cache.get(status)
        if inc is None:
            inc = self._cache[status] = self._families.cache(self._label, status).inc
        inc()


def attempt_outcome(attempt: Attempt) -> str:
    """A bounded word for how an attempt ended: "ok", "lost_hedge", the upstream's status, the kind of failure, the error's type."""
    error = attempt.error
    if attempt.is_loser:
        return "lost_hedge"
    if error is None:
        return "ok" if attempt.is_complete else "cut"
    if not isinstance(error, UpstreamError):
        return error.type
    return str(error.upstream_status) if error.upstream_status is not None else error.kind
