"""Health probes through the real chain: who is asked, what a circuit breaker makes of the answer, who pays."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from hookline import Attempt, RouteRequest, Target, UpstreamError, hookimpl
from hookline.builtins import circuit_breaker, fallback, health_probes, model_selection
from hookline.builtins.health_probes import verdict_of
from hookline.builtins.health_probes.findings import ProbeRoutes
from hookline.deployment import Deployment
from hookline.errors import BadRequest
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryLimits
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, answer

DOWN = UpstreamError("refused", kind="connect")
CHAIN = (health_probes.Plugin, model_selection.Plugin, circuit_breaker.Plugin, fallback.Plugin)
MODELS = {"m": ["a/m", "b/m"], "alias": ["a/m", "b/m"], "other": ["b/other"]}


def failing(status: int):
    return lambda: answer(b'{"error":{"message":"no"}}', status)


class World:
    """Provider "a" and "b"; model "m" at both. The probes' timers are not started: `probe` asks at once."""

    def __init__(self, *, a=(), b=(), chain=CHAIN, limits=None, clock=None, **options) -> None:
        self.clock = clock or FakeClock()
        self.ended = ended = []

        class Watch:
            @hookimpl
            def call_ended(self, call, result):
                ended.append((call, result))

        self.a, self.b = ScriptedProvider(*a, name="a"), ScriptedProvider(*b, name="b")
        self.kit = PipelineKit(
            *chain,
            Watch,
            providers=[self.a, self.b],
            deployments=MODELS,
            options={"health_probes": options, "circuit_breaker": {"consecutive_failures": 2, "open_s": 60.0}},
            stores=Stores(limits or MemoryLimits(self.clock), None, None),
            clock=self.clock,
        )
        self.plugin = self.kit.plugin(health_probes.Plugin)
        providers = {"a/m": "a", "b/m": "b", "b/other": "b"}
        found = health_probes.find_probed(MODELS, providers, self.plugin._options, {})
        self.probed = {probed.id: probed for probed in found}

    async def probe(self, id: str = "a/m", *, after_s: float = 100.0):
        self.clock.advance(after_s)
        return await self.plugin.probe(self.probed[id])

    async def answers_of(self, model: str = "m") -> str:
        delivered = await self.kit.call({**CHAT, "model": model})
        return delivered.headers.get("x-hookline-deployment", str(delivered.status))

    def changes(self, to: str) -> float:
        return self.kit.metric("hookline_circuit_changes_total", deployment="a/m", to=to)


async def test_every_deployment_is_asked_once_whatever_its_models():
    world = World()

    assert list(world.probed) == ["a/m", "b/m", "b/other"]
    assert [await world.probe(id) for id in world.probed] == ["ok"] * 3
    asked = [(call.method, call.path, attempt.deployment.id) for call, attempt in (*world.a.sent, *world.b.sent)]
    assert asked == [("GET", "/v1/models", id) for id in world.probed]
    assert all(call.endpoint == "models" and call.body == b"" for call, _ in world.a.sent)


async def test_a_probe_is_booked_apart():
    world = World(ask="chat", tenant="ops")

    await world.probe()

    call, result = world.ended[0]
    assert (call.principal.key_id, call.principal.tenant, call.tags) == ("health_probes", "ops", ["health_probes"])
    assert (call.payload["max_tokens"], call.model, result.cost_nanousd) == (1, "m", 20_000)


@pytest.mark.parametrize("ask", ["get", "chat", "embeddings"])
async def test_a_dead_deployment_is_found_before_a_call(ask):
    world = World(a=[DOWN], ask=ask)

    assert [await world.probe(), await world.probe(after_s=2)] == ["failed", "failed"]

    assert world.changes("open") == 1
    assert await world.answers_of() == "b/m"
    assert [call.surface for call, _ in world.a.sent] == ["health_probes"] * 2
    assert world.b.sent[-1][0].attempts[-1].number == 1


@pytest.mark.parametrize("ask", ["get", "chat"])
@pytest.mark.parametrize("chain", [CHAIN, (circuit_breaker.Plugin, health_probes.Plugin, fallback.Plugin)])
async def test_one_that_is_well_again_is_closed_within_its_open_time(ask, chain):
    world = World(a=[DOWN, DOWN, answer], ask=ask, chain=chain)
    await world.probe()
    await world.probe(after_s=2)

    assert await world.probe(after_s=2) == "ok"

    assert world.changes("closed") == 1
    assert await world.answers_of() == "a/m"


async def test_the_list_of_models_closes_no_circuit_that_calls_have_opened():
    """The list is served while the model is not."""
    world = World(a=[failing(500), failing(500), answer])
    assert [await world.answers_of(), await world.answers_of()] == ["b/m", "b/m"]

    assert await world.probe(after_s=2) == "ok"

    assert (world.changes("open"), world.changes("closed")) == (1, 0)
    assert await world.answers_of() == "b/m"


async def test_the_list_of_models_does_not_interrupt_a_row_of_failures():
    world = World(a=[failing(500), answer, failing(500)])

    await world.answers_of()
    await world.probe(after_s=1)
    await world.answers_of()

    assert world.changes("open") == 1


@pytest.mark.parametrize("status", [400, 403, 404, 405, 429, 501])
async def test_a_path_that_is_not_there_says_nothing_of_the_deployment(status):
    world = World(a=[failing(status)])

    assert [await world.probe() for _ in range(5)] == ["unclear"] * 5

    assert world.changes("open") == 0


async def test_a_provider_that_has_no_such_route_is_not_asked(caplog):
    world = World()
    world.a.endpoints = frozenset({"chat"})

    assert await world.probe() == "not_sent"

    assert world.a.sent == []
    assert "a/m could not be probed" in caplog.text


async def test_a_hanging_deployment_has_failed():
    """The target's own time passes before the call's deadline, of which no breaker hears."""
    world = World(ask="chat", timeout_s=3.0)

    await world.probe()

    call, attempt = world.a.sent[0]
    assert (attempt.target.connect_timeout_s, attempt.target.first_byte_timeout_s) == (3.0, 3.0)
    assert call.deadline is not None
    assert call.deadline - call.started_at > 6.0


async def test_of_several_who_share_a_store_one_asks():
    clock = FakeClock()
    limits = MemoryLimits(clock)
    worlds = [World(clock=clock, limits=limits, interval_s=30.0) for _ in range(3)]

    first = [await world.probe(after_s=0) for world in worlds]
    again = [await world.probe(after_s=0) for world in worlds]
    later = [await world.probe(after_s=27 if world is worlds[0] else 0) for world in worlds]

    assert (first, again, later) == (["ok", None, None], [None] * 3, ["ok", None, None])


async def test_who_shares_a_store_knows_what_the_others_have_seen_fail():
    clock = FakeClock()
    limits = MemoryLimits(clock)
    one, other = World(clock=clock, limits=limits, a=[DOWN]), World(clock=clock, limits=limits, a=[DOWN, DOWN, answer])
    await other.answers_of()
    await other.answers_of()
    assert other.changes("open") == 1

    assert await one.probe(after_s=20) == "failed"
    assert await other.probe(after_s=30) == "ok"

    assert other.changes("closed") == 1


async def findings_of(world: World, query: str = "") -> dict[str, dict]:
    """What `GET /admin/health_probes` tells, by deployment."""
    routes = ProbeRoutes(world.plugin.board, list(world.probed.values()))
    reply = await routes.list_findings(RouteRequest("GET", "/admin/health_probes", query, {}, b"", True, True))
    return {line["deployment"]: line for line in orjson.loads(reply.body)["data"]}


async def test_operators_are_told_what_probes_have_found():
    world = World(a=[DOWN, DOWN, failing(429), answer], b=[failing(404)])
    assert {line["state"] for line in (await findings_of(world)).values()} == {"unknown"}

    await world.probe("a/m")
    await world.probe("a/m", after_s=2)
    await world.probe("b/m")

    found = await findings_of(world)
    assert {id: line["state"] for id, line in found.items()} == {
        "a/m": "failing",
        "b/m": "unclear",
        "b/other": "unknown",
    }
    down = found["a/m"]
    assert (down["failures_in_row"], down["last_verdict"], down["ask"], down["model"]) == (2, "failed", "get", "m")
    assert "refused" in down["last_error"]
    assert down["last_probe_at"].endswith("+00:00")
    assert world.kit.metric("hookline_health_probe_up", deployment="a/m") == 0

    assert await world.probe("a/m") == "unclear"
    assert (await findings_of(world))["a/m"]["state"] == "failing"
    assert await world.probe("a/m") == "ok"
    assert (await findings_of(world))["a/m"]["state"] == "ok"
    assert world.kit.metric("hookline_health_probe_up", deployment="a/m") == 1


async def test_findings_are_listed_by_state_and_page():
    world = World(a=[DOWN])
    await world.probe("a/m")
    await world.probe("b/other")

    assert list(await findings_of(world, "state=failing")) == ["a/m"]
    assert list(await findings_of(world, "state=ok&limit=1")) == ["b/other"]
    assert list(await findings_of(world, "limit=1&after=a/m")) == ["b/m"]


async def test_every_process_can_tell_what_one_of_them_has_found():
    clock = FakeClock()
    limits = MemoryLimits(clock)
    one, other = World(clock=clock, limits=limits, a=[DOWN]), World(clock=clock, limits=limits)

    await one.probe(after_s=0)

    assert (await findings_of(other))["a/m"]["state"] == "failing"
    assert await other.probe(after_s=0) is None
    assert other.kit.metric("hookline_health_probe_up", deployment="a/m") == 0
    assert other.a.sent == []


async def test_it_asks_at_its_pace_and_faster_while_something_fails():
    world = World(a=[DOWN, answer], interval_s=30.0, failing_interval_s=2.0)
    pauses: list[float] = []
    waited = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        world.clock.advance(seconds)
        if len(pauses) == 4:
            waited.set()
            await asyncio.Event().wait()

    world.plugin._sleep = sleep
    world.plugin._draw = lambda low, high: high
    task = asyncio.ensure_future(world.plugin._keep_asking(world.probed["a/m"]))
    await waited.wait()
    task.cancel()

    assert pauses == pytest.approx([30.0, 2.2, 33.0, 33.0])


def attempt_with(error=None, *, is_complete=True) -> Attempt:
    attempt = Attempt(Target(Deployment("a/m", "a", "m")), 1, 0.0)
    attempt.error, attempt.is_complete = error, is_complete
    return attempt


@pytest.mark.parametrize(
    ("error", "get", "chat"),
    [
        (None, "ok", "ok"),
        (DOWN, "failed", "failed"),
        (UpstreamError("x", kind="first_byte_timeout"), "failed", "failed"),
        (UpstreamError("x", kind="deadline"), "unclear", "unclear"),
        (UpstreamError("x", kind="pool_timeout"), "unclear", "unclear"),
        (UpstreamError("x", kind="status", upstream_status=401), "failed", "failed"),
        (UpstreamError("x", kind="status", upstream_status=403), "unclear", "failed"),
        (UpstreamError("x", kind="status", upstream_status=404), "unclear", "failed"),
        (UpstreamError("x", kind="status", upstream_status=429), "unclear", "unclear"),
        (UpstreamError("x", kind="status", upstream_status=501), "unclear", "unclear"),
        (UpstreamError("x", kind="status", upstream_status=503), "failed", "failed"),
        (BadRequest("no"), "unclear", "unclear"),
    ],
)
def test_what_an_answer_says(error, get, chat):
    assert (verdict_of("get", [attempt_with(error)]), verdict_of("chat", [attempt_with(error)])) == (get, chat)
    assert verdict_of("get", []) == "not_sent"
