"""What operators ask of the breaker: where each circuit stands; and what they decide.

Lives here: `GET /admin/breakers`, `POST /admin/breakers`, both behind the admin key. Elsewhere: the states (circuit.py), other processes (sharing.py).
Idea: forcing is an event like any other, so it reaches the other processes the same way, within a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from hookline import AddRoute, BadRequest, Host, NotFound, Reply, RouteRequest
from hookline.builtins.circuit_breaker.circuit import Circuit, Event

EVENTS: dict[str, Event] = {"open": "force_open", "closed": "force_closed", "auto": "release"}
MEMBERS = ("deployment", "state", "reason")
REASON_MAX = 200


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
        """Every deployment of `[models]`, and every other one that was called."""
        if request.query:
            raise BadRequest("/admin/breakers has no parameters")
        now = self._host.clock.monotonic()
        names = dict.fromkeys([*self._configured(), *self._circuits])
        return Reply.from_json(
            {"object": "list", "data": [describe(name, self._circuits.get(name), now) for name in names]}
        )

    async def decide(self, request: RouteRequest) -> Reply:
        """`{"deployment": ..., "state": "open" | "closed" | "auto"}`: auto closes it and lets votes decide again."""
        asked = _read(request.body)
        name = asked["deployment"]
        if name not in self._circuits and name not in self._configured():
            raise NotFound(f'there is no deployment "{name[:100]}"; GET /admin/breakers lists them')
        circuit = self._force(name, EVENTS[asked["state"]], asked.get("reason") or "forced by an operator")
        return Reply.from_json(describe(name, circuit, self._host.clock.monotonic()))

    def _configured(self) -> list[str]:
        models: Mapping[str, list[str]] = self._host.describe().get("models", {})
        return list(dict.fromkeys(deployment for deployments in models.values() for deployment in deployments))


def describe(name: str, circuit: Circuit | None, now: float) -> dict[str, Any]:
    """For the answer."""
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


def _read(body: bytes) -> dict[str, str]:
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("the body must be JSON") from None
    if not isinstance(asked, dict):
        raise BadRequest("the body must be a JSON object")
    for name, value in asked.items():
        if name not in MEMBERS:
            raise BadRequest(f'unknown member "{name[:40]}"; there are {", ".join(MEMBERS)}', param=name[:40])
        if not isinstance(value, str) or len(value) > (REASON_MAX if name == "reason" else 1_000):
            raise BadRequest(f'"{name}" must be a short string', param=name)
    if not asked.get("deployment"):
        raise BadRequest('"deployment" is missing', param="deployment")
    if asked.get("state") not in EVENTS:
        raise BadRequest(f'"state" must be one of {", ".join(EVENTS)}', param="state")
    return asked
