"""Mirroring through the real chain: what the shadow is asked, who pays, and what the client never notices."""

from __future__ import annotations

import asyncio

import pytest

from hookline import ANONYMOUS, OBJECTS_OF, Principal, StartupError, UpstreamError, hookimpl
from hookline.builtins import cache, degradation, fallback, mirror
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryReplies
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, answer, stream

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class World:
    """Model "m" at provider "up", its shadow at provider "shadow"; `ended` has every call that has ended with its result."""

    def __init__(self, *plugins, shadow=None, up=None, options=None, **others) -> None:
        self.ended = ended = []

        class Watch:
            @hookimpl
            def call_ended(self, call, result):
                ended.append((call, result))

        self.up = up or ScriptedProvider(name="up")
        self.shadow = shadow or ScriptedProvider(name="shadow")
        clock = FakeClock()
        self.kit = PipelineKit(
            mirror.Plugin,
            Watch,
            *plugins,
            providers=[self.up, self.shadow],
            deployments={"m": ["up/m"], "other": ["up/other"]},
            options={"mirror": {"to": "shadow/m", "share": 1.0, **(options or {})}, **others},
            stores=Stores(None, MemoryReplies(clock), None),
            clock=clock,
        )

    async def ask(self, payload=None, **about):
        delivered = await self.kit.call({**CHAT, "model": "m", **(payload or {})}, **about)
        await self.settle()
        return delivered

    async def settle(self):
        while tasks := list(self.kit.workshop.tasks):
            await asyncio.wait(tasks)

    def count(self, outcome: str) -> float:
        return self.kit.metric("hookline_mirrored_calls_total", outcome=outcome)


async def test_the_shadow_is_asked_the_same_and_pays_apart():
    world = World()
    caller = Principal("k1", "ci", "acme", "ann", tags=("batch",))

    delivered = await world.ask({"temperature": 0.5, "seed": 7}, principal=caller)

    (asked, attempt), (first, first_result), (second, second_result) = world.shadow.sent[0], *world.ended
    assert asked.payload == {**CHAT, "model": "shadow/m", "temperature": 0.5, "seed": 7}
    assert attempt.deployment.id == "shadow/m"
    assert (first.principal, first_result.attempt.deployment.id) == (caller, "up/m")
    assert (second.principal.key_id, second.principal.tenant, second.principal.user) == ("mirror", "mirror", None)
    assert (second.id, second.tags, second.surface) == (f"{first.id}-mirror", ["mirror"], "mirror")
    assert second_result.outcome == "ok"
    assert delivered.headers["x-hookline-deployment"] == "up/m"
    assert world.count("ok") == 1


async def test_a_stream_is_mirrored_as_a_stream_and_read_to_its_end():
    closed: list[str] = []
    world = World(
        up=ScriptedProvider(lambda: stream(EVENT, DONE), name="up"),
        shadow=ScriptedProvider(lambda: stream(EVENT, DONE, closed=closed), name="shadow"),
    )

    delivered = await world.ask({"stream": True})

    assert delivered.body == EVENT + DONE
    assert (world.shadow.sent[0][0].is_stream, closed, world.count("ok")) == (True, ["closed"], 1)


async def test_the_client_does_not_wait_for_a_shadow_that_hangs():
    release = asyncio.Event()

    async def hang(call, attempt):
        await release.wait()
        return answer()

    world = World(shadow=ScriptedProvider(hang, name="shadow"), options={"max_in_flight": 1})

    first = await world.kit.call({**CHAT, "model": "m"})
    second = await world.kit.call({**CHAT, "model": "m"})

    assert (first.status, second.status) == (200, 200)
    assert world.count("dropped") == 1
    release.set()
    await world.settle()
    await world.ask()
    assert (len(world.shadow.sent), world.count("ok")) == (2, 2)


@pytest.mark.parametrize("failure", [lambda: answer(b"{}", 500), UpstreamError("gone", kind="reset")])
async def test_a_failing_shadow_is_counted_and_nothing_else(failure):
    world = World(shadow=ScriptedProvider(failure, name="shadow"))

    delivered = await world.ask()

    assert (delivered.status, world.count("failed"), world.count("ok")) == (200, 1, 0)


async def test_nothing_stands_in_for_a_shadow_that_fails():
    world = World(
        degradation.Plugin,
        shadow=ScriptedProvider(lambda: answer(b"{}", 500), name="shadow"),
        degradation={"model": "other", "static": "not now"},
    )

    await world.ask()

    assert [(call.surface, result.source, result.outcome) for call, result in world.ended] == [
        ("http", "upstream", "ok"),
        ("mirror", "upstream", "upstream_error"),
    ]
    assert (len(world.up.sent), world.count("failed")) == (1, 1)


async def test_a_stream_of_the_shadow_that_dies_is_a_failure():
    dying = ScriptedProvider(lambda: stream(EVENT[:30], UpstreamError("gone", kind="reset")), name="shadow")
    world = World(up=ScriptedProvider(lambda: stream(EVENT, DONE), name="up"), shadow=dying)

    await world.ask({"stream": True})

    assert (world.count("failed"), world.count("ok")) == (1, 0)


async def test_a_mirror_is_never_mirrored():
    world = World()

    await world.ask({"model": "other"})
    mirrored = [call for call, _ in world.ended if call.surface == "mirror"]

    assert (len(world.shadow.sent), len(mirrored)) == (1, 1)


async def test_what_stands_in_for_a_failed_call_is_not_mirrored():
    """The stand-in is asked as a call of its own, on the client's surface and as its principal; but the client did not make it."""
    down = UpstreamError("gone", kind="connect", is_written=False)
    world = World(
        degradation.Plugin,
        up=ScriptedProvider(down, answer, name="up"),
        options={"to": "shadow/m"},
        degradation={"model": "other"},
    )

    delivered = await world.ask()

    assert (delivered.status, delivered.headers["x-hookline-rescue"]) == (200, "model")
    assert [(call.model, result.outcome) for call, result in world.ended] == [("other", "ok"), ("m", "ok")]
    assert world.shadow.sent == []


async def test_failures_dry_runs_and_calls_to_the_shadow_itself_are_not_mirrored():
    world = World(up=ScriptedProvider(lambda: answer(b"{}", 500), name="up"))
    await world.ask()
    await world.ask(is_dry_run=True)
    await world.ask({"model": "shadow/m"})

    assert [call.surface for call, _ in world.ended] == ["http", "http"]  # a dry run is nobody's end
    assert len(world.shadow.sent) == 1


async def test_cache_hits_are_not_mirrored_and_a_mirror_is_not_cached():
    world = World(cache.Plugin)
    cold = {"temperature": 0}

    await world.ask(cold)
    hit = await world.ask(cold)
    await world.ask({**cold, "model": "shadow/m"})

    assert hit.headers["x-hookline-cache"] == "hit"
    assert [call.surface for call, _ in world.shadow.sent] == ["mirror", "http"]


async def test_a_retried_call_is_mirrored_once():
    failing = ScriptedProvider(lambda: answer(b"{}", 503), answer, name="up")
    world = World(fallback.Plugin, up=failing)
    world.kit.pipeline.catalog._by_name["m"] *= 2

    delivered = await world.ask()

    assert (delivered.headers["x-hookline-attempts"], len(world.shadow.sent)) == ("2", 1)


async def test_excluded_tenants_and_tags_are_left_alone():
    world = World(options={"exclude_tenants": ["bank-*"], "exclude_tags": ["private"]})

    await world.ask(principal=Principal("k", "k", "bank-eu"))
    await world.ask(principal=Principal("k", "k", "acme", tags=("private",)))
    assert world.shadow.sent == []
    await world.ask(principal=Principal("k", "k", "acme", tags=("public",)))
    assert len(world.shadow.sent) == 1


async def test_no_header_of_the_client_goes_to_the_shadow():
    world = World()

    await world.ask(
        headers={"authorization": "Bearer sk-secret", "x-user": "ann", "openai-beta": "x=1", "idempotency-key": "1"}
    )

    assert set(world.shadow.sent[0][0].headers) == {"openai-beta", "cache-control", "x-hookline-priority"}


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {"tools": [{"type": "web_search"}]}),
        ("/v1/responses", {"tools": [{"type": "function", "name": "f"}, {"type": "mcp", "server_url": "x"}]}),
        ("/v1/responses", {"background": True}),
        ("/v1/responses", {"previous_response_id": "resp_1"}),
        ("/v1/responses", {"conversation": {"id": "conv_1"}}),
        ("/v1/responses", {"prompt": {"id": "pmpt_1"}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 2000}]}),
    ],
)
async def test_what_must_not_be_asked_twice_is_left_out(path, more):
    world = World(options={"max_body_bytes": 1500})

    await world.ask(more, path=path)

    assert (world.shadow.sent, world.count("left_out")) == ([], 1)


@pytest.mark.parametrize(("path", "store"), [("/v1/responses", None), ("/v1/chat/completions", True)])
async def test_nothing_is_kept_at_the_shadow(path, store):
    world = World()

    await world.ask({} if store is None else {"store": store}, path=path)

    call = world.shadow.sent[0][0]
    assert call.payload["store"] is False
    assert call[OBJECTS_OF] == ANONYMOUS.tenant


async def test_the_share_is_drawn_for_each_call():
    world = World(options={"share": 0.25})
    draws = iter([0.1, 0.25, 0.9, 0.2499])
    world.kit.plugin(mirror.Plugin)._draw = lambda: next(draws)

    for _ in range(4):
        await world.ask()

    assert len(world.shadow.sent) == 2


async def test_a_mirrored_call_ends_at_its_own_time():
    async def hang(call, attempt):
        await asyncio.Event().wait()

    world = World(shadow=ScriptedProvider(hang, name="shadow"), options={"timeout_s": 0.01})

    await world.ask()

    assert (world.ended[1][1].outcome, world.count("failed")) == ("timeout", 1)


@pytest.mark.parametrize("begins", [False, True])
async def test_a_stop_ends_a_mirrored_call(begins):
    never, asked = asyncio.Event(), asyncio.Event()

    async def hang(call, attempt):
        asked.set()
        if not begins:
            await never.wait()
        return stream(EVENT, never)

    world = World(shadow=ScriptedProvider(hang, name="shadow"))
    await world.kit.call({**CHAT, "model": "m"})
    await asked.wait()
    await asyncio.sleep(0)

    await world.kit.workshop.cancel_tasks()

    assert (len(world.ended), world.kit.pipeline.running, world.count("failed")) == (2, 0, 1)


@pytest.mark.parametrize(
    ("to", "said"), [("nowhere/m", 'model "nowhere/m" does not exist'), ("up", 'model "up" does not exist')]
)
def test_a_shadow_that_is_not_there_is_refused_at_start(to, said):
    settings = {
        "tenants": {},
        "users": {},
        "global": {},
        "models": ["m"],
        "providers": ["up"],
        "default_provider": None,
    }

    with pytest.raises(StartupError, match=said):
        PipelineKit(mirror.Plugin, options={"mirror": {"to": to}}, host_settings=settings)
    PipelineKit(mirror.Plugin, options={"mirror": {"to": "up/m"}}, host_settings=settings)
