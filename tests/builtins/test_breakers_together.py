"""Breakers of several processes on one store, and what operators and receivers of alerts see. Here a process is a kit; real ones: tests/wire/test_breakers_with_redis.py."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from hookline import BadRequest, Conflict, NotFound, RouteRequest, Unavailable
from hookline.builtins.circuit_breaker import Plugin
from hookline.builtins.circuit_breaker.sharing import Sharing
from hookline.builtins.fallback import Plugin as Fallback
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryLimits
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, stream

ASKED = {"model": "m", "messages": []}
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


class SharedMemory(MemoryLimits):
    """A store that all kits of a test have, and that can be away."""

    is_shared = True
    is_away = False

    async def exchange(self, board: str, notices: Any) -> Any:
        if self.is_away:
            raise Unavailable("away")
        return await super().exchange(board, notices)

    async def take(self, id: str, takes: Any, amounts: Any, *, expires_s: float) -> Any:
        if self.is_away:
            raise Unavailable("away")
        return await super().take(id, takes, amounts, expires_s=expires_s)


class Process:
    """A gateway with one deployment that fails as long as `is_dead`, and one that is well."""

    def __init__(self, store: SharedMemory, clock: FakeClock, **options: Any) -> None:
        self.is_dead, self.status = True, 500
        self.kit = PipelineKit(
            Plugin,
            Fallback,
            providers=[
                ScriptedProvider(lambda: answer(status=self.status) if self.is_dead else answer(), name="bad"),
                ScriptedProvider(answer, name="good"),
            ],
            deployments={"m": ["bad/m", "good/m"]},
            options={"circuit_breaker": {"jitter": 0.0, "open_s": 10.0, **options}},
            stores=Stores(store, None, None),
            clock=clock,
        )
        self.plugin: Plugin = self.kit.plugin(Plugin)
        self.sharing = self.plugin._sharing = Sharing(
            self.plugin._host, self.plugin._circuits, self.plugin._add, self.plugin._report
        )

    async def ask(self) -> str:
        """Where the answer came from, and after how many attempts."""
        headers = (await self.kit.call(ASKED)).headers
        return f"{headers['x-hookline-deployment']} {headers['x-hookline-attempts']}"

    @property
    def state(self) -> str | None:
        circuit = self.plugin._circuits.get("bad/m")
        return None if circuit is None else circuit.state


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> SharedMemory:
    return SharedMemory(clock)


@pytest.fixture
def four(store: SharedMemory, clock: FakeClock) -> list[Process]:
    return [Process(store, clock) for _ in range(4)]


async def exchange(processes: list[Process], rounds: int = 2) -> None:
    for _ in range(rounds):
        for process in processes:
            await process.sharing.exchange()


async def test_what_one_opens_is_open_everywhere_for_as_long(four, clock):
    for _ in range(5):
        await four[0].ask()
    await exchange(four, 1)

    assert [process.state for process in four] == ["open"] * 4
    assert [await process.ask() for process in four] == ["good/m 1"] * 4
    clock.advance(9.9)
    assert await four[3].ask() == "good/m 1"


async def test_votes_of_all_are_counted_together(four):
    """Two failures each are no reason for any of them, and eight are."""
    for process in four[:3]:
        await process.ask()
        await process.ask()
    await exchange(four)
    assert [process.state for process in four] == ["closed"] * 4

    await four[3].ask()
    await exchange(four)

    assert [process.state for process in four] == ["open"] * 4


async def test_a_success_anywhere_ends_the_row_of_all(four, clock):
    for process in four[:3]:
        await process.ask()
        await process.ask()
    clock.advance(0.1)
    four[3].is_dead = False
    await four[3].ask()
    four[3].is_dead = True
    await exchange(four, 3)  # who is well speaks when it has heard of others' trouble

    await four[0].ask()
    await exchange(four)

    assert "open" not in [process.state for process in four]


async def test_all_together_send_one_probe_and_learn_how_it_ended(four, clock):
    for _ in range(5):
        await four[0].ask()
    await exchange(four)
    clock.advance(10)
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slow(call: Any, attempt: Any) -> Any:
        arrived.set()
        await release.wait()
        return answer()

    for process in four:
        process.kit.providers["bad"].scripts.append(slow)
        process.kit.providers["bad"].scripts[0] = slow
    probe = asyncio.create_task(four[1].ask())
    await arrived.wait()
    others = [await process.ask() for process in four]
    release.set()

    assert others == ["good/m 1"] * 4
    assert await probe == "bad/m 1"
    await exchange(four)
    assert [process.state for process in four] == ["closed"] * 4


async def test_a_probe_that_goes_on_after_it_has_closed_the_circuit_keeps_no_other_away(four, clock):
    """It holds the one slot of all processes; if the circuit opens again meanwhile, somebody else has to be the probe."""
    for _ in range(5):
        await four[0].ask()
    await exchange(four)
    clock.advance(10)
    gate = asyncio.Event()
    bad = four[1].kit.providers["bad"]
    failing = bad.scripts[0]
    bad.scripts[0] = lambda: stream(EVENT, gate, b"data: [DONE]\n\n")
    probe = four[1].kit.start(four[1].kit.make_call({**ASKED, "stream": True}))
    await probe.delivered.has_begun.wait()
    clock.advance(10)
    bad.scripts[0] = failing

    for _ in range(5):
        await four[1].ask()
    await exchange(four)
    reopened = [process.state for process in four]
    clock.advance(20)
    four[2].is_dead = False
    probed = await four[2].ask()

    gate.set()
    await probe.done()
    assert (reopened, probed) == (["open"] * 4, "bad/m 1")


async def test_without_the_store_each_decides_for_itself_and_they_agree_again_when_it_is_back(four, store):
    await exchange(four)
    store.is_away = True
    for _ in range(5):
        await four[0].ask()
    await exchange(four)
    assert [process.state for process in four] == ["open", None, None, None]

    store.is_away = False
    await exchange(four)

    assert [process.state for process in four] == ["open"] * 4


async def test_a_probe_needs_no_store_that_is_away(four, store, clock):
    for _ in range(5):
        await four[0].ask()
    await exchange(four)
    store.is_away = True
    await exchange(four)
    clock.advance(10)
    four[1].is_dead = False

    assert await four[1].ask() == "bad/m 1"
    assert four[1].state == "closed"


async def test_what_an_operator_forces_holds_everywhere_until_it_is_taken_back(four, clock):
    routes = await routes_of(four[0])
    decide = routes["POST", "/admin/breakers"]

    await decide(request(b'{"deployment": "bad/m", "state": "open", "reason": "moving house"}'))
    await exchange(four)
    clock.advance(3_600)
    assert [await process.ask() for process in four] == ["good/m 1"] * 4

    await decide(request(b'{"deployment": "bad/m", "state": "closed"}'))
    await exchange(four)
    assert [await four[2].ask() for _ in range(10)] == ["good/m 2"] * 10

    await decide(request(b'{"deployment": "bad/m", "state": "auto"}'))
    await exchange(four)
    assert [process.state for process in four] == ["closed"] * 4


async def test_a_deployment_held_open_is_not_even_asked_in_a_panic(four):
    kit = PipelineKit(Plugin, providers=[ScriptedProvider(answer, name="bad")], deployments={"m": ["bad/m"]})
    kit.plugin(Plugin)._force("bad/m", "force_open", "moving house")

    delivered = await kit.call(ASKED)

    assert delivered.status == 503
    assert "moving house" in delivered.json()["error"]["message"]
    assert kit.providers["bad"].sent == []


async def routes_of(process: Process) -> dict[tuple[str, str], Any]:
    routes: dict[tuple[str, str], Any] = {}
    process.kit.workshop.describe = lambda: {"models": {"m": ["bad/m", "good/m"]}}
    process.plugin.register_routes(lambda method, path, handler, access: routes.update({(method, path): handler}))
    return routes


def request(body: bytes = b"", query: str = "") -> RouteRequest:
    return RouteRequest("POST", "/admin/breakers", query, {"content-type": "application/json"}, body, True, True)


async def test_the_list_has_every_deployment_and_why_it_is_as_it_is(four):
    for _ in range(5):
        await four[0].ask()
    routes = await routes_of(four[0])

    reply = await routes["GET", "/admin/breakers"](request())

    bad, good = orjson.loads(reply.body)["data"]
    assert (bad["deployment"], bad["state"], bad["why"], bad["probe_in_s"]) == (
        "bad/m", "open", "consecutive_failures", 10.0,
    )  # fmt: skip
    assert bad["reason"] == "bad/m answered 500"
    assert (good["deployment"], good["state"], good["votes"]["total"]) == ("good/m", "closed", 5)
    page = orjson.loads((await routes["GET", "/admin/breakers"](request(query="limit=1"))).body)
    assert ([one["deployment"] for one in page["data"]], page["last_id"], page["has_more"]) == (
        ["bad/m"],
        "bad/m",
        True,
    )
    page = orjson.loads((await routes["GET", "/admin/breakers"](request(query="state=open&after=bad/m"))).body)
    assert (page["data"], page["has_more"]) == ([], False)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", BadRequest),
        (b"[]", BadRequest),
        (b'{"deployment": "bad/m"}', BadRequest),
        (b'{"deployment": "bad/m", "state": "ajar"}', BadRequest),
        (b'{"deployment": "bad/m", "state": "open", "for": "ever"}', BadRequest),
        (b'{"deployment": 7, "state": "open"}', BadRequest),
        (b'{"deployment": "no/such", "state": "open"}', NotFound),
    ],
)
async def test_wrong_orders_are_refused(four, body, error):
    routes = await routes_of(four[0])

    with pytest.raises(error):
        await routes["POST", "/admin/breakers"](request(body))


async def test_what_would_hold_in_one_process_of_several_is_refused(clock):
    process = Process(MemoryLimits(clock), clock)
    process.plugin._host.settings = {"server": {"workers": 4}}
    routes = await routes_of(process)

    with pytest.raises(Conflict, match="4 processes"):
        await routes["POST", "/admin/breakers"](request(b'{"deployment": "bad/m", "state": "open"}'))

    assert process.state is None


async def test_a_deployment_that_refuses_us_opens_at_once_with_one_alert(caplog):
    kit = PipelineKit(
        Plugin,
        Fallback,
        providers=[ScriptedProvider(lambda: answer(b"{}", 401), name="bad"), ScriptedProvider(answer, name="good")],
        deployments={"m": ["bad/m", "good/m"]},
    )

    for _ in range(3):
        await kit.call(ASKED)
        kit.clock.advance(6)  # a probe each time

    assert kit.metric("hookline_circuit_alerts_total", deployment="bad/m") == 1
    assert kit.metric("hookline_circuit_opened_total", deployment="bad/m", why="refused") >= 2
    assert kit.metric("hookline_circuit_state", deployment="bad/m") == 2
    assert caplog.text.count("bad/m refuses this gateway") == 1


async def test_of_several_processes_that_are_refused_one_alerts(four, store, clock, caplog):
    """At once, before they have heard of each other, and the others later with their own probes."""
    await exchange(four)
    for process in four:
        process.status = 401
        await process.ask()
    for process in four:
        await asyncio.gather(*process.kit.workshop.tasks)
    await exchange(four)
    reloaded = Process(store, clock)
    await reloaded.sharing.exchange()
    reloaded.status = 401
    for process in [*four, reloaded]:
        clock.advance(60)
        assert await process.ask() == "good/m 2", "its probe is refused"
        await exchange([*four, reloaded])

    assert caplog.text.count("bad/m refuses this gateway") == 1


async def test_a_reload_forgets_nothing(clock):
    """Its new circuits learn from the process's own store what the old ones told it."""
    store = MemoryLimits(clock)
    old, new = (Process(store, clock) for _ in range(2))
    old.plugin._force("bad/m", "force_open", "moving house")
    await old.sharing.exchange()
    assert not old.sharing.is_up  # nobody shares: probes need no slot there

    await new.sharing.exchange()

    assert await new.ask() == "good/m 1"


async def test_an_alert_is_sent_to_the_webhook_of_the_breaker():
    kit = PipelineKit(
        Plugin,
        providers=[ScriptedProvider(lambda: answer(b"{}", 403), name="bad")],
        deployments={"m": ["bad/m"]},
        options={
            "circuit_breaker": {
                "alert_webhook": {"url": "http://127.0.0.1:1/", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
            }
        },
    )

    await kit.call(ASKED)

    sent = orjson.loads(kit.plugin(Plugin)._sender._queue.get_nowait().text)
    assert (sent["type"], sent["data"]) == (
        "circuit.refused", {"deployment": "bad/m", "reason": "bad/m answered 403"},
    )  # fmt: skip
