"""Health probes: deployments are asked by themselves, so that one that is dead is found before a client's call, and one that is well again without one.

Lives here: what is asked of whom and when, what an answer is worth. Elsewhere: what was found, for others to know (findings.py), what follows from it (circuit_breaker, by the vote of an ordinary
attempt), limits and cost (a probe is a call like any other, as a principal of its own).
Idea: a call that may go to one deployment only, and is let through an open circuit: its target is `forced`. So the breaker needs to know nothing of probes.

What a probe is worth
- A chat or an embedding is what clients ask for: the breaker takes it for what it is.
- `GET /v1/models` only shows that somebody is there. Its failure counts; that it went well counts for nothing, unless a probe failed before: it can end only an outage it has seen. Else the list of
  models, which is served while the model is not, would close circuits that calls have opened.
- That the path is not there, or not allowed, or asked too often, says nothing of the deployment."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import orjson
from multidict import CIMultiDict
from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    IN_BACKGROUND,
    IS_EVIDENCE,
    MADE_AT,
    OBJECTS_OF,
    OWN_CALL,
    AddRoute,
    Attempt,
    Call,
    Endpoint,
    GiveUp,
    Host,
    Principal,
    Refusal,
    Slot,
    Step,
    Take,
    Target,
    Unavailable,
    UpstreamError,
    endpoint_of,
    failure_of,
    hookimpl,
)
from hookline.builtins.health_probes.findings import NOTHING, Board, ProbeRoutes, Verdict

NAME = "health_probes"
PROBED: Slot[Probed] = Slot("health_probes")

JITTER = 0.1
SHARED_PART = 0.8
"""Of a pause: so long nobody else who shares the limits store asks the same deployment. Less than the shortest pause."""
SILENT = frozenset({"deadline", "crowded"})
REFUSALS = frozenset({401})
"""Of a GET: other 4xx are about the path."""
NOT_THERE = 501


class ProbeOptions(BaseModel):
    """`[plugins.health_probes]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    ask: Literal["get", "chat", "embeddings", "off"] = Field(
        "get",
        description='What each deployment of `[models]` is asked: "get": `path`, which costs nothing; "chat", "embeddings": the shortest request there is, which costs money; "off": nothing.',
    )
    path: str = Field("/v1/models", pattern=r"^/v1/[^?#\s]+$", description='What "get" gets.')
    interval_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        30.0, description="Between two probes, give or take a tenth."
    )
    failing_interval_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(
        2.0, description="The same after one that failed."
    )
    timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(10.0, description="Until a probe's answer begins.")
    max_parallel: int = Field(
        4,
        gt=0,
        le=1_000,
        json_schema_extra={"per_model": False},
        description="Probes under way at a time, in one process; not per model.",
    )
    tenant: str = Field(
        NAME,
        min_length=1,
        json_schema_extra={"per_model": False},
        description="Who pays: `[tenants.X]` may give it a budget and limits; not per model.",
    )


class Probed:
    """One deployment, how it is asked, and what is known."""

    def __init__(self, id: str, provider: str, model: str, options: ProbeOptions) -> None:
        self.id = id
        self.provider = provider
        self.model = model
        self.options = options
        self.finding = NOTHING

    @property
    def ask(self) -> str:
        return self.options.ask

    @property
    def interval_s(self) -> float:
        return self.options.interval_s

    @property
    def is_failing(self) -> bool:
        return self.finding.failures_in_row > 0

    @property
    def pause_s(self) -> float:
        return self.options.failing_interval_s if self.is_failing else self.options.interval_s


class Plugin:
    """Asks each deployment of `[models]` now and then."""

    Options = ProbeOptions
    supports_dry_run = True

    def __init__(self, options: ProbeOptions, host: Host) -> None:
        self._host = host
        self._options = options
        self._principal = Principal(key_id=NAME, key_name=NAME, tenant=options.tenant, tags=(NAME,))
        self._ids = map(f"health_probe-{uuid.uuid4().hex[:12]}-%d".__mod__, itertools.count(1))
        self._slots = asyncio.Semaphore(options.max_parallel)
        self._draw = random.Random().uniform
        self._sleep = asyncio.sleep
        self._probes = host.metrics.counter(
            "hookline_health_probes_total", "Probes by what they found: ok, failed, unclear, not_sent.", ("deployment", "outcome")
        )  # fmt: skip
        self._is_up = host.metrics.gauge(
            "hookline_health_probe_up", "1 while probes of a deployment go well, 0 while they fail.", ("deployment",)
        )
        self.board = Board(host)
        self.probed: list[Probed] = []

    def start(self) -> None:
        """Begin."""
        told = self._host.describe()
        self.probed += find_probed(told["models"], told["deployments"], self._options, self._host.options_by_model)
        for one in self.probed:
            self._host.spawn(f"probe {one.id}", self._keep_asking(one))

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        ProbeRoutes(self.board, self.probed).register(add)

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        probed = call.slots.get(PROBED)
        if probed is None:
            return targets
        targets = [target for target in targets if target.deployment.id == probed.id]
        timeout_s = probed.options.timeout_s
        for target in targets:
            target.is_forced, target.reason, target.hedge_after_s = True, "health probe", None
            target.connect_timeout_s = min(target.connect_timeout_s, timeout_s)
            target.first_byte_timeout_s = target.idle_timeout_s = timeout_s
        return targets

    @hookimpl
    def after_failure(self, call: Call, attempt: Attempt) -> Step | None:
        return GiveUp() if PROBED in call.slots else None

    async def _keep_asking(self, probed: Probed) -> None:
        await self._sleep(self._draw(0, probed.options.interval_s))
        while True:
            async with self._slots:
                await self.probe(probed)
            await self._sleep(probed.pause_s * self._draw(1 - JITTER, 1 + JITTER))

    async def probe(self, probed: Probed) -> Verdict | None:
        """Ask once; None: somebody else has."""
        await self.board.learn(probed)
        if not await self._is_our_turn(probed):
            self._measure(probed)
            return None
        call, was_failing = self._make_call(probed), probed.is_failing
        await self._host.run(call)
        verdict = verdict_of(probed.ask, call.attempts)
        error = call.attempts[-1].error if call.attempts else None
        probed.finding = probed.finding.followed_by(verdict, self._host.clock.time(), str(error) if error else None)
        self._probes(probed.id, verdict).inc()
        self._measure(probed)
        if verdict == "not_sent":
            self._host.log.warning("%s could not be probed; its call in the log says why", probed.id)
        if was_failing != probed.is_failing:
            self._host.log.warning("health probe of %s: %s", probed.id, verdict)
        await self.board.tell(probed)
        return verdict

    async def _is_our_turn(self, probed: Probed) -> bool:
        """Whether nobody else who shares the limits store has asked just now."""
        window_s = probed.pause_s * SHARED_PART
        if 0 <= self._host.clock.time() - probed.finding.at < window_s:
            return False
        turn = Take(f"health_probe:{probed.id}:{'failing' if probed.is_failing else 'turn'}", 1, window_s)
        try:
            answer = await self._host.limits.take(next(self._ids), (turn,), (1,), expires_s=window_s)
        except Unavailable:
            return True
        return not isinstance(answer, Refusal)

    def _measure(self, probed: Probed) -> None:
        if probed.finding.state in ("ok", "failing"):
            self._is_up(probed.id).set(not probed.is_failing)

    def _make_call(self, probed: Probed) -> Call:
        ask, has_failed, now = probed.ask, probed.is_failing, self._host.clock.monotonic()
        method, path, payload = request_of(probed)
        endpoint: Endpoint = "models" if path == "/v1/models" else endpoint_of(method, path)[0]
        call = Call(
            id=f"probe-{uuid.uuid4().hex[:24]}",
            method=method,
            path=path,
            endpoint=endpoint,
            headers=CIMultiDict({"cache-control": "no-store", "content-type": "application/json"} if payload else {}),
            started_at=now,
            started_time=self._host.clock.time(),
            surface=NAME,
            principal=self._principal,
        )
        call.tags = [NAME]
        call.deadline = now + 2 * probed.options.timeout_s + 1  # behind the target's own, which the breaker hears of
        call[OWN_CALL] = NAME
        call[IN_BACKGROUND] = True
        call[PROBED] = probed
        call[OBJECTS_OF] = None
        call[IS_EVIDENCE] = lambda attempt: is_evidence(ask, attempt, has_failed=has_failed)
        if payload is not None:
            call.set_json(orjson.dumps(payload), payload)
        else:
            call[MADE_AT] = (probed.provider, probed.id)
        return call


def find_probed(
    models: Mapping[str, Iterable[str]],
    providers: Mapping[str, str],
    options: ProbeOptions,
    options_by_model: Mapping[str, ProbeOptions],
) -> Iterable[Probed]:
    """Each deployment once, as the first of its models that has it probed says."""
    seen: set[str] = set()
    for model, ids in models.items():
        own = options_by_model.get(model, options)
        for id in ids:
            if own.ask != "off" and id not in seen:
                seen.add(id)
                yield Probed(id, providers[id], model, own)


def request_of(probed: Probed) -> tuple[str, str, dict[str, Any] | None]:
    """Method, path, payload."""
    ask, model = probed.options.ask, probed.model
    if ask == "chat":
        messages = [{"role": "user", "content": "hi"}]
        return "POST", "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 1}
    if ask == "embeddings":
        return "POST", "/v1/embeddings", {"model": model, "input": "hi"}
    return "GET", probed.options.path, None


def verdict_of(ask: str, attempts: list[Attempt]) -> Verdict:
    """What a probe has found."""
    if not attempts:
        return "not_sent"
    error = attempts[-1].error
    if error is None:
        return "ok" if attempts[-1].is_complete else "unclear"
    if not isinstance(error, UpstreamError) or failure_of(error) in SILENT:
        return "unclear"
    status = error.upstream_status
    if status is None or (status >= 500 and status != NOT_THERE):
        return "failed"
    is_refused = status in REFUSALS if ask == "get" else status in (401, 402, 403, 404)
    return "failed" if is_refused else "unclear"


def is_evidence(ask: str, attempt: Attempt, *, has_failed: bool) -> bool:
    """See the module's "What a probe is worth"."""
    if ask != "get":
        return True
    verdict = verdict_of(ask, [attempt])
    return verdict == "failed" or (verdict == "ok" and has_failed)
