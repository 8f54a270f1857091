"""The response cache: what is cached, under which key, and what comes back."""

from __future__ import annotations

import orjson
import pytest

from hookline import CACHE_STATUS, Principal, Rejected, Reply, Result
from hookline.builtins.cache import CacheOptions, Plugin
from hookline.builtins.cache.entry import Entry
from hookline.builtins.cache.key import cache_key, form_of
from hookline.builtins.cache.wishes import ANY_AGE, BYPASS, Wishes, obey, read_wishes

CHAT = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}


async def ask(plugin, call, body=b'{"answer":1}', *, status=200, headers=JSON, source="upstream", attempts=()):
    """What the pipeline does: the hit, or the upstream's reply after it went through the plugin and the call ended."""
    hit = await plugin.lookup(call)
    if isinstance(hit, Reply):
        return hit
    call.attempts += attempts
    reply = plugin.edit_reply(call, Reply(status, dict(headers), body, source=source))
    plugin.call_ended(call, Result("ok"))
    return reply


def key_of(plugin, call):
    return plugin._ask(call, plugin._options, ANY_AGE).key


@pytest.fixture
def host(make_host):
    return make_host()


@pytest.fixture
def plugin(host):
    return Plugin(CacheOptions(), host)


async def test_the_second_of_two_equal_calls_is_a_hit_with_the_same_body(plugin, make_call, clock):
    first = await ask(plugin, make_call(CHAT), b'{"answer":1}')
    clock.advance(90)
    call = make_call(CHAT)
    second = await ask(plugin, call, b'{"answer":2}')

    assert (first.headers["x-hookline-cache"], first.source) == ("miss", "upstream")
    assert (second.status, second.body, second.source) == (200, b'{"answer":1}', "cache")
    key = first.headers["x-hookline-cache-key"]
    assert second.headers == {
        **JSON,
        "x-hookline-cache": "hit",
        "x-hookline-cache-key": key,
        "age": "90",
    }
    assert call[CACHE_STATUS] == "hit"


async def test_an_entry_lives_for_its_ttl(host, make_call, clock):
    plugin = Plugin(CacheOptions(ttl_s=60), host)
    await ask(plugin, make_call(CHAT))

    clock.advance(59)
    fresh = await ask(plugin, make_call(CHAT))
    clock.advance(2)
    expired = await ask(plugin, make_call(CHAT))

    assert [r.headers["x-hookline-cache"] for r in (fresh, expired)] == ["hit", "miss"]


async def test_ttl_can_differ_per_model(make_host, make_call, clock):
    plugin = Plugin(CacheOptions(), make_host(options_by_model={"m": CacheOptions(ttl_s=10)}))
    await ask(plugin, make_call(CHAT))

    clock.advance(11)

    assert (await ask(plugin, make_call(CHAT))).headers["x-hookline-cache"] == "miss"


@pytest.mark.parametrize(
    ("payload", "path", "is_cached"),
    [
        ({"model": "m", "input": "x"}, "/v1/embeddings", True),
        ({"model": "m", "input": "x"}, "/v1/moderations", True),
        ({**CHAT, "temperature": 0.0}, "/v1/chat/completions", True),
        ({**CHAT, "temperature": 0.7}, "/v1/chat/completions", False),
        ({"model": "m", "messages": []}, "/v1/chat/completions", False),
        ({"model": "m", "prompt": "x", "temperature": 0}, "/v1/completions", True),
        ({"model": "m", "input": "x", "temperature": 0, "store": False}, "/v1/responses", True),
        ({"model": "m", "input": "x", "temperature": 0}, "/v1/responses", False),  # kept by the provider by default
        ({**CHAT, "store": True}, "/v1/chat/completions", False),
        ({"model": "m", "input": "x", "temperature": 0, "background": True}, "/v1/responses", False),
        ({"model": "m", "input": "x", "temperature": 0, "conversation": "conv_1"}, "/v1/responses", False),
        ({"model": "m", "prompt": "a fox", "temperature": 0}, "/v1/images/generations", False),
        ({"input_file_id": "file-1", "endpoint": "/v1/embeddings", "temperature": 0}, "/v1/batches", False),
    ],
)
def test_what_is_cached_by_default(make_call, payload, path, is_cached):
    assert read_wishes(make_call(payload, path=path), CacheOptions()).may_store is is_cached


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_calls_without_a_json_body_are_never_cached(make_call, method):
    call = make_call(method=method, path="/v1/files/file-1", headers={"x-hookline-cache": "use"})

    assert read_wishes(call, CacheOptions(when="always")) == BYPASS


HOT = {**CHAT, "temperature": 1}


@pytest.mark.parametrize(
    ("payload", "when", "header", "is_cached"),
    [
        (HOT, "default", "use", True),
        (HOT, "always", None, True),
        (HOT, "always", "bypass", False),
        (CHAT, "default", "bypass", False),
        (CHAT, "never", None, False),
        (CHAT, "never", "use", False),
    ],
)
def test_what_headers_and_options_change(make_call, payload, when, header, is_cached):
    call = make_call(payload, headers={"x-hookline-cache": header} if header else {})

    assert read_wishes(call, CacheOptions(when=when)).may_store is is_cached


async def test_an_unknown_wish_is_a_clear_400(plugin, make_call):
    with pytest.raises(Rejected) as raised:
        await plugin.lookup(make_call(CHAT, headers={"x-hookline-cache": "yes"}))

    assert (raised.value.error.status, "use" in raised.value.error.message) == (400, True)


@pytest.mark.parametrize(
    ("header", "wishes"),
    [
        ("no-store", BYPASS),
        ("no-cache, no-store", BYPASS),
        ("No-Cache", Wishes(False, True)),
        ("max-age=60", Wishes(True, True, 60)),
        ('private, max-age="5"', Wishes(True, True, 5)),
        ("max-age=soon", Wishes(True, True)),
        ("", Wishes(True, True)),
    ],
)
def test_cache_control_is_obeyed(header, wishes):
    assert obey(header) == wishes


async def test_no_cache_asks_anew_and_keeps_the_new_answer(plugin, make_call):
    await ask(plugin, make_call(CHAT), b"1")

    anew = await ask(plugin, make_call(CHAT, headers={"cache-control": "no-cache"}), b"2")
    then = await ask(plugin, make_call(CHAT), b"3")

    assert (anew.body, anew.headers["x-hookline-cache"], then.body) == (b"2", "miss", b"2")


@pytest.mark.parametrize(("max_age", "status"), [(0, "miss"), (29, "miss"), (30, "hit"), (31, "hit")])
async def test_max_age_refuses_older_entries(plugin, make_call, clock, max_age, status):
    await ask(plugin, make_call(CHAT))
    clock.advance(30)

    reply = await ask(plugin, make_call(CHAT, headers={"cache-control": f"max-age={max_age}"}))

    assert reply.headers["x-hookline-cache"] == status


def test_the_key_ignores_order_and_what_cannot_change_the_answer(make_call):
    one = make_call({"model": "m", "temperature": 0, "user": "ann", "metadata": {"a": "1"}})
    other = make_call({"temperature": 0, "user": "bob", "model": "m"})

    assert cache_key(one) == cache_key(other)


def test_the_key_separates_everything_that_can_change_the_answer(make_call):
    streamed = {**CHAT, "stream": True}
    calls = [
        make_call(CHAT),
        make_call({**CHAT, "model": "n"}),
        make_call({**CHAT, "seed": 1}),
        make_call({**CHAT, "messages": [{"role": "user", "content": "ho"}]}),
        make_call(CHAT, principal=Principal(tenant="acme")),
        make_call(CHAT, path="/v1/completions"),
        make_call(CHAT, query="api-version=2"),
        make_call(CHAT, headers={"openai-beta": "x"}),
        make_call(streamed),
        make_call({**streamed, "stream_options": {"include_usage": True}}),
    ]

    assert len({(cache_key(call), form_of(call)) for call in calls}) == len(calls)


@pytest.mark.parametrize(
    ("body", "may_be_cached"),
    [
        (
            b'{"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "a \\u00e9 \\ud83d\\ude00"}]}',
            True,
        ),
        (b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"one","content":"two"}]}', False),
        (b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"one","c\\u006fntent":"two"}]}', False),
        (b'{"model":"m","temperature":0,"seed":18446744073709551617,"messages":[]}', False),
        (
            b'{"model":"m","temperature":0,"seed":18446744073709551615,"top_p":1.00000000000000000001,"messages":[]}',
            True,
        ),
        (b'{"model":"m","temperature":0,"x":' + b"[" * 200 + b"]" * 200 + b"}", True),
        (b'{"model":"m","temperature":0,"x":' + b"[" * 500 + b"]" * 500 + b"}", False),
    ],
)
async def test_a_body_that_two_readers_could_take_for_two_questions_is_not_cached(
    plugin, host, make_call, body, may_be_cached
):
    """Else whoever asks so leaves the answer to the first under the key of the second, for everybody."""
    call = make_call(CHAT)
    call.set_json(body, orjson.loads(body))

    await ask(plugin, call)

    assert bool(host.replies.entries) is may_be_cached
    assert call[CACHE_STATUS] == ("miss" if may_be_cached else "bypass")


async def test_another_tenant_never_sees_the_answer(plugin, make_call):
    await ask(plugin, make_call(CHAT, principal=Principal(tenant="acme")))

    assert not isinstance(await plugin.lookup(make_call(CHAT, principal=Principal(tenant="evil"))), Reply)


@pytest.mark.parametrize("status", [199, 300, 400, 429, 500])
async def test_only_2xx_is_kept(plugin, host, make_call, status):
    await ask(plugin, make_call(CHAT), status=status)

    assert host.replies.entries == {}


async def test_a_rescued_answer_is_not_kept(plugin, host, make_call):
    await ask(plugin, make_call(CHAT), source="rescue")

    assert host.replies.entries == {}


@pytest.mark.parametrize(
    ("body", "cap", "is_kept"),
    [
        (b'{"choices":[{"finish_reason":"length"}]}', 100, False),
        (b'{"choices":[{"finish_reason": "length"}]}', 100, False),
        (b'{"status":"incomplete"}', 100, False),
        (b'{"choices":[{"finish_reason":"length"}]}', None, True),
        (b'{"choices":[{"finish_reason":"stop"}]}', 100, True),
        (rb'{"content":"\"finish_reason\":\"length\""}', 100, True),
    ],
)
async def test_an_answer_that_our_cap_cut_is_not_kept(plugin, host, make_call, make_attempt, body, cap, is_kept):
    attempt = make_attempt()
    attempt.output_cap = cap

    await ask(plugin, make_call(CHAT), body, attempts=[attempt])

    assert bool(host.replies.entries) is is_kept


async def test_an_answer_that_says_nothing_is_not_kept(plugin, host, make_call):
    await ask(plugin, make_call(CHAT), b'{"id":"x","object":"chat.completion","choices":[]}')

    assert host.replies.entries == {}


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: [DONE]\n\n"],
        [b": ping\n\ndata:[DONE]\n\n"],
        [b": ping\n\n"],
        [b'event: response.failed\ndata: {"response":{"status":"failed"}}\n\n'],
        [b'event: error\ndata: {"code":"x"}\n\n'],
        [b'data: {}\n\ndata: {"er', b'ror":{"message":"overloaded"}}\n\ndata: [DONE]\n\n'],
    ],
)
async def test_a_stream_that_ended_in_a_failure_is_not_kept(plugin, host, make_call, chunks):
    await stream(plugin, make_call({**CHAT, "stream": True}), chunks)

    assert host.replies.entries == {}


async def test_a_response_that_failed_is_not_kept(plugin, host, make_call):
    await ask(plugin, make_call(CHAT), b'{"object":"response","status": "failed"}')

    assert host.replies.entries == {}


async def test_an_answer_beyond_the_bound_is_not_kept(host, make_call):
    plugin = Plugin(CacheOptions(max_entry_bytes=10), host)

    await ask(plugin, make_call(CHAT), b"x" * 11)

    assert host.replies.entries == {}


async def stream(plugin, call, chunks, *, is_complete=True):
    """An upstream's stream, its bytes relayed through the tap as the pipeline does."""
    assert not isinstance(await plugin.lookup(call), Reply)
    reply = plugin.edit_reply(call, Reply(200, dict(SSE), empty()))
    for tap in reply.taps or ():
        for chunk in chunks:
            tap.feed(chunk)
        tap.end(is_complete)
    plugin.call_ended(call, Result("ok"))


async def empty():
    for chunk in ():
        yield chunk


async def test_a_stream_is_replayed_byte_for_byte(plugin, make_call):
    payload = {**CHAT, "stream": True}
    await stream(plugin, make_call(payload), [b"data: {}\n", b"\ndata: [DONE]\n\n"])

    hit = await plugin.lookup(make_call(payload))

    assert hit.is_event_stream
    assert [chunk async for chunk in hit.body] == [b"data: {}\n\ndata: [DONE]\n\n"]


@pytest.mark.parametrize(
    "options", [CacheOptions(), CacheOptions(coalesce=False), CacheOptions(replay="first_pace", replay_max_s=0.001)]
)
async def test_a_stream_is_kept_whoever_else_reads_along(host, make_call, options):
    """Who leads a flight reads along anyway, and the bytes are held once."""
    plugin, payload = Plugin(options, host), {**CHAT, "stream": True}
    await stream(plugin, make_call(payload), [b"data: {}\n", b"\ndata: [DONE]\n\n"])

    hit = await plugin.lookup(make_call(payload))

    assert b"".join([chunk async for chunk in hit.body]) == b"data: {}\n\ndata: [DONE]\n\n"


async def test_the_bytes_of_a_stream_are_held_once(plugin, make_call):
    call = make_call({**CHAT, "stream": True})
    await plugin.lookup(call)

    reply = plugin.edit_reply(call, Reply(200, dict(SSE), empty()))

    assert len(reply.taps) == 1


async def test_a_stream_that_was_cut_is_not_kept(plugin, host, make_call):
    await stream(plugin, make_call({**CHAT, "stream": True}), [b"data: {}\n\n"], is_complete=False)

    assert host.replies.entries == {}


async def test_a_stream_beyond_the_bound_is_neither_kept_nor_held(host, make_call):
    plugin = Plugin(CacheOptions(max_entry_bytes=100), host)
    call = make_call({**CHAT, "stream": True})

    await stream(plugin, call, [b"x" * 60] * 10)

    assert host.replies.entries == {}


@pytest.mark.parametrize(
    "entry", [b"", b"junk", b"[1]\nx", b'{"version":0}\nx', Entry("application/json", "json", b"x", 0.0).to_bytes()[1:]]
)
async def test_an_entry_that_cannot_be_read_is_a_miss(plugin, host, make_call, entry):
    host.replies.put(key_of(plugin, make_call(CHAT)), entry, ttl_s=60)

    assert not isinstance(await plugin.lookup(make_call(CHAT)), Reply)


async def test_entries_can_be_purged_by_tenant_and_by_model(plugin, host, make_call):
    await ask(plugin, make_call(CHAT, principal=Principal(tenant="acme")))
    await ask(plugin, make_call({**CHAT, "model": "n"}))

    assert await host.replies.delete_tagged("tenant:acme") == 1
    assert await host.replies.delete_tagged("model:n") == 1


async def test_a_call_that_may_not_be_cached_says_bypass(plugin, make_call):
    call = make_call({**CHAT, "temperature": 1})

    reply = await ask(plugin, call)

    assert (reply.headers["x-hookline-cache"], call[CACHE_STATUS]) == ("bypass", "bypass")
