"""The cache in a real pipeline, on a clock moved by hand: stale answers, refreshes, fallbacks, both forms, embeddings."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from hookline import Principal, Unavailable, UpstreamError
from hookline.builtins import cache
from hookline.builtins.cache.assemble import assemble
from hookline.plugin_host import Stores
from hookline.stores.memory import MemoryLimits, MemoryReplies
from hookline.testing.clock import FakeClock
from hookline.testing.kit import PipelineKit, ScriptedProvider, answer, make_plugin, stream

COLD = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
STREAMED = {**COLD, "stream": True}
WITH_USAGE = {**STREAMED, "stream_options": {"include_usage": True}}
HEAD = b'"id":"c","object":"chat.completion.chunk","created":1,"model":"m"'
DELTA = (
    b"data: {"
    + HEAD
    + b',"choices":[{"index":0,"delta":{"role":"assistant","content":"ho"},"finish_reason":null}]}\n\n'
)
STOP = b"data: {" + HEAD + b',"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b"data: {" + HEAD + b',"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}\n\n'
DONE = b"data: [DONE]\n\n"
DOWN = UpstreamError("up/m does not answer", kind="connect")


def said(text):
    return answer(orjson.dumps({**orjson.loads(answer().body), "id": text}))


class World:
    """Model "m" at one scripted upstream, the cache before it."""

    def __init__(self, *scripts, plugins=(), describe=dict, **options):
        self.clock = FakeClock()
        self.up = ScriptedProvider(*scripts)
        self.results = []
        self.kit = PipelineKit(
            cache.Plugin,
            *plugins,
            make_plugin("watch", call_ended=lambda call, result: self.results.append(result)),
            providers=[self.up],
            deployments={"m": ["up/m"]},
            stores=Stores(MemoryLimits(self.clock), MemoryReplies(self.clock), None),
            clock=self.clock,
            options={"cache": options},
            host_settings={"tenants": {}, "users": {}, "global": {}, "server": {}, "aliases": {"alias": "m"}},
        )
        self.kit.workshop.describe = describe

    async def ask(self, payload=COLD, **about):
        return await self.kit.call(payload, **about)

    async def refreshed(self):
        """Wait until nothing runs in the background."""
        await asyncio.gather(*self.kit.workshop.tasks)


def told(delivered):
    return (delivered.headers.get("x-hookline-cache"), delivered.headers.get("age"), delivered.json()["id"])


async def test_a_stale_answer_is_served_at_once_and_asked_anew_once():
    go = asyncio.Event()

    async def second(call, attempt):
        await go.wait()
        return said("new")

    world = World(said("old"), second, ttl_s=60.0, stale_s=60.0)
    await world.ask()
    world.clock.advance(90)

    stale = [await world.ask() for _ in range(3)]
    go.set()
    await world.refreshed()
    fresh = await world.ask()

    assert [told(d) for d in stale] == [("stale", "90", "old")] * 3
    assert told(fresh) == ("hit", "0", "new")
    assert len(world.up.sent) == 2
    assert world.kit.metric("hookline_cache_refreshes_total", outcome="ok") == 1


async def test_a_refresh_is_a_call_of_the_same_principal_and_of_nobody_elses_key():
    world = World(said("old"), said("new"), ttl_s=60.0, stale_s=60.0)
    await world.ask(principal=Principal(tenant="acme"), headers={"idempotency-key": "k", "x-mine": "kept"})
    world.clock.advance(90)
    await world.ask(principal=Principal(tenant="acme"), headers={"idempotency-key": "k", "x-mine": "kept"})
    await world.refreshed()

    call = world.up.sent[1][0]

    assert (call.principal.tenant, "idempotency-key" in call.headers, call.headers["x-mine"]) == ("acme", False, "kept")


async def test_an_answer_whose_request_is_edited_anew_each_time_is_not_asked_anew():
    def prepare(call):
        call.edit_payload()["messages"] = [*call.payload["messages"], {"role": "user", "content": "more"}]

    world = World(said("old"), plugins=(make_plugin("more", prepare=prepare),), ttl_s=60.0, stale_s=60.0)
    await world.ask()
    world.clock.advance(90)
    stale = await world.ask()
    for _ in range(50):
        await asyncio.sleep(0)  # a refresh that failed pauses before it ends

    assert told(stale) == ("stale", "90", "old")
    assert len(world.up.sent) == 1


async def test_beyond_its_time_an_answer_is_a_miss():
    world = World(said("old"), said("new"), ttl_s=60.0, stale_s=60.0)
    await world.ask()
    world.clock.advance(120)

    assert told(await world.ask()) == ("miss", None, "new")


@pytest.mark.parametrize(
    "error", [DOWN, Unavailable("no target"), answer(b"{}", status=500), answer(b"{}", status=429)]
)
async def test_when_no_provider_answers_an_old_answer_does(error):
    world = World(said("old"), error, ttl_s=60.0, stale_if_error_s=600.0)
    await world.ask()
    world.clock.advance(300)

    delivered = await world.ask()

    assert (delivered.status, told(delivered)) == (200, ("stale", "300", "old"))
    assert delivered.headers["x-hookline-rescue"] == "stale"
    assert world.results[-1].source == "rescue"


async def test_an_old_answer_rescues_streams_too():
    world = World(said("old"), DOWN, ttl_s=60.0, stale_if_error_s=600.0)
    await world.ask()
    world.clock.advance(300)

    delivered = await world.ask(WITH_USAGE)

    assert delivered.headers["x-hookline-cache"] == "stale"
    assert delivered.body.endswith(DONE)


async def test_followers_of_a_call_that_failed_are_rescued_too():
    go = asyncio.Event()

    async def fail(call, attempt):
        await go.wait()
        raise DOWN

    world = World(said("old"), fail, ttl_s=60.0, stale_if_error_s=600.0)
    await world.ask()
    world.clock.advance(300)
    running = [world.kit.start(world.kit.make_call(COLD)) for _ in range(5)]
    for _ in range(50):
        await asyncio.sleep(0)
    go.set()

    delivered = [await r.done() for r in running]

    assert {told(d) for d in delivered} == {("stale", "300", "old")}
    assert len(world.up.sent) == 2


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (answer(b'{"error":{}}', status=400), {}),
        (DOWN, {"cache-control": "no-cache"}),
        (DOWN, {"cache-control": "max-age=30"}),
    ],
)
async def test_an_old_answer_does_not_hide_what_the_caller_must_read(error, headers):
    world = World(said("old"), error, ttl_s=60.0, stale_if_error_s=600.0)
    await world.ask()
    world.clock.advance(300)

    assert (await world.ask(headers=headers)).status >= 400


async def test_max_stale_takes_an_old_answer_that_is_still_there():
    world = World(said("old"), ttl_s=60.0, stale_if_error_s=600.0)
    await world.ask()
    world.clock.advance(300)

    delivered = await world.ask(headers={"cache-control": "max-stale=300"})

    assert told(delivered) == ("stale", "300", "old")
    assert len(world.up.sent) == 1


async def test_only_if_cached_asks_no_upstream():
    world = World()

    refused = await world.ask(headers={"cache-control": "only-if-cached"})
    uncacheable = await world.ask({**COLD, "temperature": 1}, headers={"cache-control": "only-if-cached"})
    await world.ask()
    hit = await world.ask(headers={"cache-control": "only-if-cached"})

    assert (refused.status, refused.json()["error"]["code"], uncacheable.status) == (504, "not_cached", 504)
    assert (refused.headers["x-should-retry"], hit.headers["x-hookline-cache"]) == ("false", "hit")
    assert len(world.up.sent) == 1


async def test_a_stream_that_hid_its_usage_is_told_in_all_forms():
    def hidden(call, attempt):
        attempt.has_hidden_usage = True
        return asyncio.sleep(0, stream(DELTA, STOP, USAGE, DONE))

    world = World(hidden)
    first = await world.ask(STREAMED)
    again, usage, plain = [await world.ask(p) for p in (STREAMED, WITH_USAGE, COLD)]

    assert first.body == again.body == DELTA + STOP + DONE
    assert usage.body.startswith(DELTA + STOP)
    assert usage.body.count(b'"total_tokens":15') == 1
    assert plain.json()["choices"][0]["message"]["content"] == "ho"
    assert plain.json()["usage"]["total_tokens"] == 15
    assert plain.headers["content-type"] == "application/json"
    assert [r.source for r in world.results] == ["upstream", "cache", "cache", "cache"]
    assert [r.cost_nanousd for r in world.results[1:]] == [0, 0, 0]


async def test_a_plain_reply_is_told_as_a_stream():
    world = World(said("one"))
    await world.ask()

    delivered = await world.ask(WITH_USAGE)

    assert delivered.headers["content-type"].startswith("text/event-stream")
    assert (delivered.headers["x-hookline-cache"], delivered.headers["age"]) == ("hit", "0")
    assert delivered.body.endswith(DONE)
    assert b'"total_tokens":15' in delivered.body


async def test_what_cannot_be_told_exactly_is_a_miss():
    audio = orjson.loads(answer().body)
    audio["choices"][0]["message"]["audio"] = {"id": "a"}
    world = World(answer(orjson.dumps(audio)), lambda: stream(DELTA, STOP, USAGE, DONE))
    await world.ask()

    delivered = await world.ask(STREAMED)

    assert (delivered.headers["x-hookline-cache"], len(world.up.sent)) == ("miss", 2)


async def test_the_first_pace_is_bounded(monkeypatch):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    world = World(lambda: paced(), replay="first_pace", replay_max_s=2.0)

    async def body():
        for event in (DELTA, DELTA, STOP + DONE):
            yield event
            world.clock.advance(10)

    def paced():
        reply = stream()
        reply.body = body()
        return reply

    first = await world.ask(STREAMED)
    monkeypatch.setattr(cache.replay.asyncio, "sleep", sleep)
    again = await world.ask(STREAMED)

    assert first.body == again.body
    assert len(pauses) == len(again.chunks) - 1 >= 2
    assert sum(pauses) == pytest.approx(2.0)


RESPONSES = {"model": "m", "input": "hi", "temperature": 0, "store": False}


async def test_a_response_repeats_its_own_callers_metadata():
    body = {"object": "response", "status": "completed", "output": [], "metadata": {"who": "ann"}, "user": "ann"}
    world = World(answer(orjson.dumps(body)))
    ann = {**RESPONSES, "metadata": {"who": "ann"}, "user": "ann"}
    first, same, other = [
        await world.ask(p, path="/v1/responses") for p in (ann, ann, {**RESPONSES, "metadata": {"who": "bob"}})
    ]

    assert first.body == same.body
    assert (other.headers["x-hookline-cache"], other.json()["metadata"], other.json()["user"]) == (
        "hit",
        {"who": "bob"},
        None,
    )


async def test_a_name_that_means_something_else_after_a_reload_gets_no_old_answer():
    table = {"settings": {"models": {"m": {"deployments": ["up/m"]}}, "providers": {"up": {"base_url": "a"}}}}
    world = World(describe=lambda: table)
    plugin = world.kit.plugin(cache.Plugin)
    await world.ask()
    assert (await world.ask()).headers["x-hookline-cache"] == "hit"

    seen = []
    for change in (
        {"models": {"m": {"deployments": [{"provider": "up", "model": "other"}]}}},
        {"providers": {"up": {"base_url": "b"}}},
        {"providers": {"up": {"base_url": "a", "connect_timeout_s": 9}}},
    ):
        described = {"settings": {**table["settings"], **change}}
        plugin._meanings._known.clear()
        plugin._meanings._described = None
        world.kit.workshop.describe = lambda described=described: described
        seen.append((await world.ask()).headers["x-hookline-cache"])

    assert seen == ["miss", "miss", "hit"]


async def test_an_alias_shares_the_entries_of_its_model():
    world = World()
    await world.ask()
    world.kit.pipeline.catalog._by_name["alias"] = world.kit.pipeline.catalog._by_name["m"]

    assert (await world.ask({**COLD, "model": "alias"})).headers["x-hookline-cache"] == "hit"


async def test_a_shared_cache_is_shared_on_purpose_only():
    for scope, status in (("tenant", "miss"), ("shared", "hit")):
        world = World(scope=scope)
        await world.ask(principal=Principal(tenant="acme"))

        delivered = await world.ask(principal=Principal(tenant="other"))

        assert delivered.headers["x-hookline-cache"] == status


async def test_a_header_that_changes_the_answer_is_in_the_key():
    world = World(headers_in_key=["x-style"])
    await world.ask(headers={"x-style": "a"})

    assert [(await world.ask(headers={"x-style": s})).headers["x-hookline-cache"] for s in "ab"] == ["hit", "miss"]


def vectors(call, attempt):
    given = call.payload["input"]
    items = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    data = [{"object": "embedding", "index": i, "embedding": [len(x) / 3, i * 0.0 - 0.1]} for i, x in enumerate(items)]
    tokens = sum(map(len, items))
    body = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return asyncio.sleep(0, answer(orjson.dumps(body)))


async def embed(world, given, **more):
    return await world.ask({"model": "m", "input": given, **more}, path="/v1/embeddings")


async def test_a_list_is_a_hit_if_all_its_inputs_are_known_from_whichever_calls():
    world = World(vectors)
    await embed(world, ["a", "bb"])
    await embed(world, "ccc")

    hit = await embed(world, ["ccc", "a", "a"])
    miss = await embed(world, ["a", "dddd"])

    assert (hit.headers["x-hookline-cache"], miss.headers["x-hookline-cache"], len(world.up.sent)) == ("hit", "miss", 3)
    assert [(d["index"], d["embedding"][0]) for d in hit.json()["data"]] == [(0, 1.0), (1, 1 / 3), (2, 1 / 3)]
    assert hit.json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize("given", ["text", ["one", "other"], [1, 2, 3], [[1, 2], [3]]])
async def test_the_same_inputs_are_the_same_reply(given):
    world = World(vectors)
    first, second = await embed(world, given), await embed(world, given)

    assert (second.headers["x-hookline-cache"], second.body) == ("hit", first.body)


async def test_a_text_and_a_list_of_it_share_an_entry_and_tokens_are_not_texts():
    world = World(vectors)
    await embed(world, "a")

    assert (await embed(world, ["a"])).headers["x-hookline-cache"] == "hit"
    await embed(world, [1, 2])
    assert (await embed(world, [[1, 2]])).headers["x-hookline-cache"] == "hit"
    assert (await embed(world, "[1,2]")).headers["x-hookline-cache"] == "miss"


@pytest.mark.parametrize("more", [{"dimensions": 2}, {"encoding_format": "base64"}, {"encoding_format": "float"}])
async def test_what_changes_a_vector_is_in_its_key(more):
    world = World(vectors)
    await embed(world, "a")

    assert (await embed(world, "a", **more)).headers["x-hookline-cache"] == "miss"


@pytest.mark.parametrize("data", [[], [{"index": 0}], [{"index": 1, "embedding": [1]}], "x", None])
async def test_a_reply_without_a_vector_for_each_input_is_not_kept(data):
    world = World(answer(orjson.dumps({"object": "list", "data": data})))
    await embed(world, "a")

    assert (await embed(world, "a")).headers["x-hookline-cache"] == "miss"


async def test_odd_inputs_are_cached_whole():
    world = World(answer(b'{"object":"list","data":[]}'))
    for given in ([{"image": "x"}], {"text": "x"}, [], ["a", [1]]):
        await embed(world, given)
        assert (await embed(world, given)).headers["x-hookline-cache"] == "hit", given


async def test_a_stream_is_put_together_once_for_all_plain_calls_and_anew_for_a_new_answer(monkeypatch):
    made = []

    def counted(*about):
        made.append(about)
        return assemble(*about)

    monkeypatch.setattr("hookline.builtins.cache.entry.assemble", counted)
    other = DELTA.replace(b'"ho"', b'"hi"')
    world = World(stream(DELTA, STOP, USAGE, DONE), stream(other, STOP, USAGE, DONE))
    await world.ask(WITH_USAGE)
    first, second = await world.ask(COLD), await world.ask(COLD)
    await world.ask(WITH_USAGE, headers={"cache-control": "no-cache"})
    third = await world.ask(COLD)

    assert first.body == second.body
    assert third.json()["choices"][0]["message"]["content"] == "hi"
    assert len(made) == 2
