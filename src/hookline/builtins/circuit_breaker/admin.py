"""What operators ask of the breaker: where each circuit stands; and what they decide.

Lives here: `GET /admin/breakers`, `POST /admin/breakers`, both behind the admin key. Elsewhere: the states (circuit.py), other processes (sharing.py).
Idea: forcing is an event like any other, so it reaches the other processes the same way, within a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from hookline import AddRoute, Conflict, Host, ListParameters, NotFound, Parameters, Reply, RouteRequest, list_object
from hookline.builtins.circuit_breaker.circuit import Circuit, Event, State

EVENTS: dict[str, Event] = {"open": "force_open", "closed": "force_closed", "auto": "release"}


class CircuitFilters(ListParameters):
    """What `GET /admin/breakers` takes."""

    state: list[State] = Field([], description="Only circuits in one of these states.")


class Decision(Parameters):
    """What `POST /admin/breakers` takes."""

    deployment: str = Field(min_length=1, max_length=1_000, description="Its id, as the list has it.")
    state: Literal["open", "closed", "auto"] = Field(description="What it is held at; auto: what votes say.")
    reason: str = Field(
        "forced by an operator",
        min_length=1,
        max_length=200,
        description="Told in the log, and to calls that find no other.",
    )


class BreakerRoutes:
    """The two routes. `force(deployment, event, reason)` is the plugin's."""

    def __init__(
        self, host: Host, circuits: Mapping[str, Circuit], force: Callable[[str, Event, str], Circuit]
    ) -> None:
        self._host = host
        self._circuits = circuits
        self._force = force

    def register(self, add: AddRoute) -> None:
        """Both need the admin key."""
        add("GET", "/admin/breakers", self.list_circuits, access="admin")
        add("POST", "/admin/breakers", self.decide, access="admin")

    async def list_circuits(self, request: RouteRequest) -> Reply:
        """Every deployment of `[models]`, and every other one that was called, by name."""
        asked = request.parameters(CircuitFilters)
        now = self._host.clock.monotonic()
        names = sorted({*self._configured(), *self._circuits})
        if asked.after is not None:
            names = [name for name in names if name > asked.after]
        found = [describe(name, self._circuits.get(name), now) for name in names]
        if asked.state:
            found = [line for line in found if line["state"] in asked.state]
        cursors = [str(line["deployment"]) for line in found]
        return Reply.from_json(list_object(found[: asked.limit + 1], asked.limit, cursors))

    async def decide(self, request: RouteRequest) -> Reply:
        """`auto` closes a circuit and lets votes decide again."""
        asked = request.json_object(Decision)
        name = asked.deployment
        if name not in self._circuits and name not in self._configured():
            raise NotFound(f'there is no deployment "{name[:100]}"; GET /admin/breakers lists them')
        processes = int(self._host.settings.get("server", {}).get("workers", 1))
        if processes > 1 and not self._host.limits.is_shared:
            raise Conflict(
                f"this server has {processes} processes, and this would hold in one of them: "
                'set [state] shared = "redis://...", by which they tell each other'
            )
        circuit = self._force(name, EVENTS[asked.state], asked.reason)
        return Reply.from_json(describe(name, circuit, self._host.clock.monotonic()))

    def _configured(self) -> list[str]:
        models: Mapping[str, list[str]] = self._host.describe().get("models", {})
        return list(dict.fromkeys(deployment for deployments in models.values() for deployment in deployments))


def describe(name: str, circuit: Circuit | None, now: float) -> dict[str, Any]:
    """One line of the list; a deployment without a circuit was never voted on, so it is closed."""
    circuit = circuit or Circuit(1.0)
    counts = circuit.window.count(now)
    return {
        "deployment": name,
        "state": circuit.state,
        "why": circuit.why or None,
        "reason": circuit.reason or None,
        "probe_in_s": round(max(circuit.open_until - now, 0.0), 1) if circuit.state == "open" else None,
        "failures_in_row": circuit.failures_in_row,
        "votes": {"total": counts.total, "failed": counts.failed, "slow": counts.slow},
    }
