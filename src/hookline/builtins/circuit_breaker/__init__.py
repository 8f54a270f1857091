"""Circuit breaker: stop sending to a deployment that keeps failing.

Lives here: the plugin: it asks the circuits before attempts and tells them afterwards; log, metrics and alerts. Elsewhere: options (options.py), what counts as a vote (votes.py), the
table of states (circuit.py), other processes (sharing.py), operators (admin.py), what to try next (builtins/fallback).
Idea: a healthy call pays for two dictionary look-ups and one count. Panic: when no target would be let through, the one that opens first is forced; a deployment may be bad, no
deployment is worse."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from datetime import UTC, datetime
from math import inf
from typing import Any

from hookline import (
    AddRoute,
    Attempt,
    Call,
    Host,
    Skip,
    Target,
    Ticket,
    Unavailable,
    failure_of,
    hookimpl,
)
from hookline.builtins.alert_webhook import WebhookSender
from hookline.builtins.circuit_breaker.admin import BreakerRoutes
from hookline.builtins.circuit_breaker.circuit import Circuit, Event, choose_forced, open_time_s
from hookline.builtins.circuit_breaker.options import BreakerOptions
from hookline.builtins.circuit_breaker.sharing import SharedProbe, Sharing
from hookline.builtins.circuit_breaker.votes import vote_of
from hookline.builtins.labels import Labels

CIRCUITS_MAX = 10_000
ALERT_S = 10.0
"""Within so long all processes have heard of a refusal."""
LEVELS = {"closed": 0, "half_open": 1, "open": 2, "forced_closed": 0, "forced_open": 2}


class Plugin:
    """Asks the circuits before attempts, tells them afterwards."""

    Options = BreakerOptions
    supports_dry_run = True

    def __init__(self, options: BreakerOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self._host = host
        self._clock = host.clock
        self._draw = random.Random().random
        self._changes = host.metrics.counter(
            "hookline_circuit_changes_total", "Circuits that changed state.", ("deployment", "to")
        )
        self._opened = host.metrics.counter(
            "hookline_circuit_opened_total", "Why circuits opened.", ("deployment", "why")
        )
        self._level = host.metrics.gauge(
            "hookline_circuit_state", "0 while calls pass, 1 while one probe may, 2 while none does.", ("deployment",)
        )
        self._alerts = host.metrics.counter(
            "hookline_circuit_alerts_total",
            "Deployments that refused the gateway: credentials, permission, money.",
            ("deployment",),
        )
        sent = host.metrics.counter(
            "hookline_circuit_webhooks_total", "Alerts handed to the webhook, or lost.", ("outcome",)
        )
        webhook = options.alert_webhook
        self._sender = None if webhook is None else WebhookSender(host, webhook, what="circuit alert", sent=sent)
        self._label = Labels()
        self._circuits: dict[str, Circuit] = {}
        self._sharing: Sharing | None = None

    def start(self) -> None:
        """Begin to share; a store of somebody else may have no boards."""
        if self._sender is not None:
            self._sender.start()
        if hasattr(self._host.limits, "exchange"):
            sharing = self._sharing = Sharing(self._host, self._circuits, self._add, self._report)
            self._host.spawn("sharing", sharing.run(self._options.share_s if sharing.is_shared else None))

    async def stop(self) -> None:
        """Let alerts that wait go out."""
        if self._sender is not None:
            await self._sender.stop()

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        BreakerRoutes(self._host, self._circuits, self._force).register(add)

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        circuits: list[Circuit] = []
        for target in targets:
            circuit = self._circuits.get(target.deployment.id)
            if circuit is None or circuit.state == "closed":
                return targets
            circuits.append(circuit)
        if not circuits:
            return targets
        index = choose_forced(circuits, self._clock.monotonic())
        if index is not None:
            targets[index].is_forced = True
            targets[index].reason = "every circuit is open; this one opens first"
            call.note("circuit_breaker", "forced", f"{targets[index].deployment.id}: {targets[index].reason}")
        return targets

    @hookimpl
    def admit_attempt(
        self, call: Call, target: Target, attempt: Attempt
    ) -> Ticket | Coroutine[Any, Any, Ticket | None] | None:
        circuit = self._circuits.get(target.deployment.id)
        if circuit is None or circuit.state == "closed" or circuit.state == "forced_closed":
            return None
        now = self._clock.monotonic()
        if circuit.is_probe_well(now, self._options_of(call)):
            if not call.is_dry_run:
                self._end_probe(target.deployment.id, circuit, now)
            return None
        is_again = any(other.target is target for other in call.attempts)
        if target.is_forced and circuit.state != "forced_open" and not is_again:
            return None
        if not circuit.is_admitting(now):
            may_return = is_again and circuit.state != "forced_open"
            if not may_return or not circuit.was_waited_for(told_later_at(call, target), now):
                raise skip(circuit, now)
            target.is_forced = True
            return None
        if attempt.is_hedge:
            raise Skip("circuit half-open, and a hedge is no probe")
        if call.is_dry_run:
            return None
        if target.hedge_after_s is not None:
            target.hedge_after_s = max(target.hedge_after_s, self._options_of(call).patience_s)
        if circuit.take_probe(attempt, now):
            self._report(target.deployment.id, circuit)
        sharing = self._sharing
        if sharing is None or not sharing.is_up:
            return SharedProbe(circuit, attempt)
        return self._share_probe(circuit, attempt, sharing)

    @hookimpl
    def attempt_ended(self, call: Call, attempt: Attempt) -> None:
        options = self._options_of(call)
        deployment, slow_s = attempt.target.deployment.id, options.slow_call_s
        circuit, vote = self._circuits.get(deployment), vote_of(call, attempt, slow_s)
        if vote is None and circuit is not None and circuit.probe is attempt:
            slow_s = options.patience_s
            vote = vote_of(call, attempt, slow_s)
        if vote is None:
            return
        circuit = circuit or self._add(deployment)
        now = attempt.ended_at if attempt.ended_at is not None else self._clock.monotonic()
        event = circuit.event_of(vote, attempt, now, options)
        if event is None:
            return
        reason = f"no answer within {slow_s:g} s" if vote == "slow" else str(attempt.error or "")
        wait_s = open_time_s(event, circuit.opens, attempt, options, self._draw())
        self._apply(deployment, circuit, event, now, wait_s=wait_s, reason=reason)
        if vote == "refused" and not circuit.alerted:
            circuit.alerted = True
            if self._sharing is None or not self._sharing.is_up:
                self._alert(deployment, circuit.reason)
            else:
                self._host.spawn("alert", self._alert_once(deployment, circuit.reason, self._sharing))

    def _options_of(self, call: Call) -> BreakerOptions:
        options: BreakerOptions = self._options_by_model.get(call.model or "", self._options)
        return options

    async def _share_probe(self, circuit: Circuit, attempt: Attempt, sharing: Sharing) -> Ticket:
        """The probe, unless another process has it."""
        name: str | None = None
        try:
            name = await sharing.take_probe(attempt.deployment.id)
        finally:
            if name is None and circuit.probe is attempt:
                circuit.probe = None
        if name is None:
            raise skip(circuit, self._clock.monotonic())
        return SharedProbe(circuit, attempt, sharing, name)

    def _end_probe(self, deployment: str, circuit: Circuit, now: float) -> None:
        """Before its attempt ends; its slot in the shared store must not keep the next probe away."""
        probe = circuit.probe
        self._apply(deployment, circuit, "probe_ok", now)
        for ticket in probe.tickets if probe is not None else ():
            if isinstance(ticket, SharedProbe) and (given := ticket.give_back()) is not None:
                self._host.spawn("probe", given)

    def _apply(
        self, deployment: str, circuit: Circuit, event: Event, now: float, *, wait_s: float = 0.0, reason: str = ""
    ) -> None:
        until = circuit.open_until
        has_changed = circuit.apply(event, now, wait_s=wait_s, reason=reason)
        if self._sharing is not None and (has_changed or circuit.open_until != until):
            self._sharing.tell(circuit)
        if has_changed:
            self._report(deployment, circuit)

    def _force(self, deployment: str, event: Event, reason: str) -> Circuit:
        """What an operator decides."""
        circuit = self._circuits.get(deployment) or self._add(deployment)
        self._apply(deployment, circuit, event, self._clock.monotonic(), reason=reason)
        return circuit

    def _report(self, deployment: str, circuit: Circuit) -> None:
        """A circuit that has changed, here or in another process."""
        label, log = self._label(deployment), self._host.log
        if circuit.state == "open":
            open_s = circuit.open_until - circuit.changed_at
            log.warning("circuit of %s opened for %.1f s (%s): %s", deployment, open_s, circuit.why, circuit.reason)
            self._opened(label, circuit.why).inc()
        elif circuit.state in ("forced_open", "forced_closed"):
            log.warning("circuit of %s is %s: %s", deployment, circuit.state, circuit.reason)
        else:
            log.info("circuit of %s is %s", deployment, circuit.state)
        self._changes(label, circuit.state).inc()
        self._level(label).set(LEVELS[circuit.state])

    async def _alert_once(self, deployment: str, reason: str, sharing: Sharing) -> None:
        """Unless another process has, which may not have been heard of yet."""
        if await sharing.is_first_to_alert(deployment, max(ALERT_S, 2 * self._options.share_s)):
            self._alert(deployment, reason)

    def _alert(self, deployment: str, reason: str) -> None:
        """It will not heal by itself: somebody has to look. Once until it is well again."""
        self._alerts(self._label(deployment)).inc()
        self._host.log.error("%s refuses this gateway, look at its key and account: %s", deployment, reason)
        if self._sender is not None:
            data = {"deployment": deployment, "reason": reason}
            told = {"type": "circuit.refused", "timestamp": utc(self._host.clock.time()), "data": data}
            self._sender.send(told, about=deployment)

    def _add(self, deployment: str) -> Circuit:
        """Deployments of a default provider are named by clients, so there is no end of them: the oldest makes room, a closed one if there is one."""
        if len(self._circuits) >= CIRCUITS_MAX:
            closed = (name for name, circuit in self._circuits.items() if circuit.state == "closed")
            del self._circuits[next(closed, next(iter(self._circuits)))]
        circuit = self._circuits[deployment] = Circuit(self._options.window_s)
        return circuit


def utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


def told_later_at(call: Call, target: Target) -> float:
    """When this target last told this call to come later; never: infinity."""
    told = (a.ended_at for a in reversed(call.attempts) if a.target is target and failure_of(a.error) == "rate_limit")
    return next((at for at in told if at is not None), inf)


def skip(circuit: Circuit, now: float) -> Skip:
    """Why a target is dropped, and when to come back."""
    left_s = max(circuit.open_until - now, 0.0)
    if circuit.state == "half_open":
        reason = "circuit half-open, its probe is under way"
    elif circuit.state == "forced_open":
        reason = f"circuit held open: {circuit.reason}"
    else:
        reason = f"circuit open for another {left_s:.1f} s: {circuit.reason}"
    return Skip(reason, Unavailable(reason, retry_after_s=left_s))
