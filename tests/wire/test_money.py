"""Money as clients and operators meet it: a real gateway, a real ledger, and an upstream that keeps its own books."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import (
    RESET,
    RecordedRequest,
    Script,
    ScriptedUpstream,
    bytes_reply,
    json_reply,
    sse_reply,
)

ADMIN = {"authorization": "Bearer admin-key-of-this-test"}
INPUT_TOKENS, OUTPUT_TOKENS = 20, 5
TOKENS_USD = Decimal(INPUT_TOKENS) / 1_000_000 + Decimal(OUTPUT_TOKENS) * 2 / 1_000_000
CALL_USD = Decimal("0.0004")


class StrictUpstream:
    """Answers every route with usage and remembers what it would bill, in USD."""

    def __init__(self) -> None:
        self.billed = Decimal(0)
        self.served = 0

    def __call__(self, request: RecordedRequest) -> Script:
        self.served += 1
        if request.target == "/v1/audio/speech":
            self.billed += CALL_USD
            return bytes_reply(b"\x00\x01\x02", headers={"content-type": "audio/mpeg"})
        asked = request.json()
        chat = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": 25}
        responses = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "total_tokens": 25}
        if request.target == "/v1/embeddings":
            self.billed += Decimal(INPUT_TOKENS) / 1_000_000
            return json_reply(
                {"object": "list", "data": [], "usage": {"prompt_tokens": INPUT_TOKENS, "total_tokens": INPUT_TOKENS}}
            )
        self.billed += TOKENS_USD
        if request.target == "/v1/responses":
            told = {"id": "resp_1", "object": "response", "status": "completed", "output": [], "usage": responses}
            if not asked.get("stream"):
                return json_reply(told)
            end = orjson.dumps({"type": "response.completed", "sequence_number": 1, "response": told}).decode()
            return sse_reply(
                b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n', f"{end}"
            )
        if not asked.get("stream"):
            return json_reply(
                {
                    "id": "c",
                    "object": "chat.completion",
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ho"}}
                    ],
                    "usage": chat,
                }
            )
        return sse_reply(
            '{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":null}]}',
            '{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
            json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": chat}),
            "[DONE]",
        )


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 50}),
    ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 50, "stream": True}),
    ("/v1/completions", {"model": "legacy", "prompt": "hi", "max_tokens": 50}),
    ("/v1/embeddings", {"model": "e", "input": "hi"}),
    ("/v1/audio/speech", {"model": "voice", "input": "hi", "voice": "alloy"}),
]


def config(upstream: ScriptedUpstream, budget: str, *, more: str = "", options: str = "") -> str:
    return f"""
[server]
port = 0
[chain]
plugins = ["auth", "budget", "fallback", {{ name = "logging", to = "calls.log" }}, "metrics"]
[providers.up]
kind = "openai"
base_url = "{upstream.url}"
default = true
[prices."m"]
input = 1.0
output = 2.0
[prices."legacy"]
input = 1.0
output = 2.0
[prices."e"]
input = 1.0
[prices."POST /v1/audio/*"]
call = {CALL_USD}
[plugins.budget]
{options}
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
tenant = "acme"
user = "ann"
budget = {budget}
[[plugins.auth.keys]]
name = "free"
key = "sk-free"
tenant = "acme"
[admin]
key = "admin-key-of-this-test"
{more}
"""


class Client:
    """What the tests ask of a gateway."""

    def __init__(self, proxy: ProxyProcess, session: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self.session = session

    async def post(self, path: str, payload: Any, *, key: str = "sk-ci") -> tuple[int, Any, bytes]:
        """(status, headers, body)."""
        headers = {"authorization": f"Bearer {key}"}
        async with self.session.post(self.proxy.base_url + path, json=payload, headers=headers) as reply:
            return reply.status, reply.headers, await reply.read()

    async def admin(self, method: str, path: str, **more: Any) -> Any:
        async with self.session.request(method, self.proxy.base_url + path, headers=ADMIN, **more) as reply:
            return await reply.json(content_type=None)

    async def used(self, scope_part: str) -> Decimal:
        """Spent plus reserved of the window whose scope holds this text."""
        windows = (await self.admin("GET", "/admin/budgets?key=ci"))["data"]
        return next(Decimal(str(w["used_usd"])) for w in windows if scope_part in w["window"])


@asynccontextmanager
async def client_of(proxy: ProxyProcess) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
        yield Client(proxy, session)


def ledger(folder: Path) -> list[dict[str, Any]]:
    """Rows of the ledger, when the process that wrote them has ended."""
    connection = sqlite3.connect(folder / "hookline.db")
    connection.row_factory = sqlite3.Row
    rows = [dict(row) for row in connection.execute("SELECT * FROM ledger ORDER BY at, id")]
    connection.close()
    return rows


async def end(proxy: ProxyProcess) -> None:
    """Stop it; the upstream goes on in this loop meanwhile."""
    proxy.process.terminate()
    assert await asyncio.to_thread(proxy.wait) == 0, proxy.lines


Serve = Callable[..., ProxyProcess]


async def test_five_hundred_calls_at_once_never_hold_more_than_there_is(
    serve: Serve, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The budget pays for 100 calls by what they really cost; bounds are many times that."""
    strict = StrictUpstream()
    limit = 100 * TOKENS_USD
    over: list[Decimal] = []
    proxy = serve(config(upstream, f"{{ total_usd = {limit} }}"))

    async with client_of(proxy) as client:

        async def watch() -> None:
            while True:
                if (used := await client.used("key:ci/total")) > limit:
                    over.append(used)

        upstream.always(strict)
        watching = asyncio.create_task(watch())
        asked = [ROUTES[i % 6] for i in range(500)]
        answers = await asyncio.gather(*(client.post(path, payload) for path, payload in asked))
        watching.cancel()

        refused = [(headers, json.loads(body)["error"]) for status, headers, body in answers if status != 200]
        assert {status for status, _, _ in answers} == {200, 429}
        for headers, error in refused:
            assert (error["code"], headers["x-should-retry"]) == ("insufficient_quota", "false")
            assert_does_not_fit(error["message"], limit)
        one_by_one = 0
        while (answer := await client.post(*ROUTES[0]))[0] == 200:
            one_by_one += 1
        used = await client.used("key:ci/total")
        bound = said(json.loads(answer[2])["error"]["message"])[3]
    await end(proxy)

    assert not over
    assert used == strict.billed <= limit
    assert limit - used < bound
    assert one_by_one > 10  # most of the money was held, not spent, while all asked at once
    rows = ledger(tmp_path)
    assert sum(row["cost_nanousd"] for row in rows) == strict.billed * 10**9
    assert not any(row["is_estimated"] for row in rows)
    assert {row["endpoint"] for row in rows} >= {"chat", "responses", "completions", "embeddings"}


def said(message: str) -> tuple[Decimal, Decimal, Decimal, Decimal]:
    """(spent, limit, reserved, bound) of a refusal."""
    words = message.split()
    spent, limit = words[words.index("spent:") + 1], words[words.index("of", words.index("spent:")) + 1]
    reserved = words[words.index("reserved") - 1] if "reserved" in words else "0"
    if reserved == "USD":
        reserved = words[words.index("reserved") - 2]
    return Decimal(spent), Decimal(limit), Decimal(reserved), Decimal(words[words.index("cost") + 3])


def assert_does_not_fit(message: str, limit: Decimal) -> None:
    spent, told_limit, reserved, bound = said(message)
    assert 'budget "ci" (key, total)' in message
    assert told_limit == limit
    assert spent + reserved + bound > limit, message


async def test_every_reply_tells_its_cost_where_its_kind_allows_it(
    serve: Serve, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.always(StrictUpstream())
    proxy = serve(config(upstream, "{ daily_usd = 1.0 }"))

    async with client_of(proxy) as client:
        told = [await client.post(path, payload) for path, payload in ROUTES]
        silent = await client.post("/v1/chat/completions", {**CHAT, "stream": True})
        missing = await client.post("/v1/images/generations", {"model": "m", "prompt": "x"})
    await end(proxy)

    chat, chat_stream, responses, responses_stream, _, embeddings, speech = told
    header = "x-hookline-cost-usd"
    assert Decimal(chat[1][header]) == Decimal(responses[1][header]) == TOKENS_USD
    assert Decimal(embeddings[1][header]) == Decimal(INPUT_TOKENS) / 1_000_000
    assert [header in reply[1] for reply in (chat_stream, responses_stream, speech, silent)] == [False] * 4
    usages = [json.loads(line[6:]) for line in chat_stream[2].decode().splitlines() if '"usage"' in line]
    assert Decimal(str(usages[-1]["usage"]["cost_usd"])) == TOKENS_USD
    completed = json.loads(responses_stream[2].decode().strip().splitlines()[-1][6:])
    assert Decimal(str(completed["response"]["usage"]["cost_usd"])) == TOKENS_USD
    assert b"cost_usd" not in silent[2]
    assert (missing[0], json.loads(missing[2])["error"]["code"]) == (400, "unpriced_route")
    assert '[prices."POST /v1/images/generations"]' in json.loads(missing[2])["error"]["message"]
    lines = [json.loads(line) for line in (tmp_path / "calls.log").read_text().splitlines()]
    rows = {row["call_id"]: row for row in ledger(tmp_path)}
    assert len(rows) == 8
    for line in lines:
        booked = rows[line["id"]]["cost_nanousd"] if line["id"] in rows else 0
        assert round(line["cost_usd"] * 10**9) == booked
    assert all(row["price_version"] for row in rows.values())
    assert len({row["price_version"] for row in rows.values()}) == 3  # m and legacy have the same numbers


async def test_a_cost_is_spliced_and_nothing_else_is_touched(serve: Serve, upstream: ScriptedUpstream) -> None:
    upstream.always(StrictUpstream())
    proxy = serve(config(upstream, "{ daily_usd = 1.0 }"))
    path, payload = ROUTES[1]

    async with client_of(proxy) as client:
        _, _, body = await client.post(path, payload)

    sent = b"".join(step for step in sse_plain(StrictUpstream(), payload) if isinstance(step, bytes))
    assert body.replace(b',"cost_usd":0.00003', b"") == sent


def sse_plain(strict: StrictUpstream, payload: Any) -> list[bytes]:
    script = strict(RecordedRequest("POST", "/v1/chat/completions", [], orjson.dumps(payload), 1))
    chunks = [step for step in script[1:] if isinstance(step, bytes)]
    return [chunk.split(b"\r\n", 1)[1][:-2] for chunk in chunks if not chunk.startswith(b"0\r\n")]


async def test_what_an_attempt_without_an_answer_is_charged_is_logged_too(
    serve: Serve, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.always([RESET])
    proxy = serve(config(upstream, "{ daily_usd = 1.0 }"))

    async with client_of(proxy) as client:
        status, headers, _ = await client.post("/v1/chat/completions", CHAT)
        used = await client.used("key:ci/day")
    await end(proxy)

    (row,) = ledger(tmp_path)
    (line,) = [json.loads(line) for line in (tmp_path / "calls.log").read_text().splitlines()]
    assert status == 502
    assert row["is_estimated"]
    assert row["cost_nanousd"] / 10**9 == line["cost_usd"] == float(headers["x-hookline-cost-usd"]) == float(used)
    assert row["cost_nanousd"] > 50 * 2_000  # the whole completion limit, and the input


async def test_a_budget_added_by_a_reload_counts_what_was_spent_and_what_is_under_way(
    serve: Serve, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    strict = StrictUpstream()
    go_on, text = asyncio.Event(), config(upstream, "{ daily_usd = 1.0 }")
    proxy = serve(text)
    body = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 5}})

    async with client_of(proxy) as client:
        upstream.always(strict)
        await client.post("/v1/chat/completions", CHAT, key="sk-free")
        whole = bytes_reply(body, headers={"content-type": "application/json"})[0]
        assert isinstance(whole, bytes)
        upstream.play([whole[:-1], go_on, whole[-1:]])
        under_way = asyncio.create_task(client.post("/v1/chat/completions", CHAT, key="sk-free"))
        await upstream.wait_for_requests(2)
        (tmp_path / "proxy.toml").write_text(text + "[tenants.acme]\nbudget = { daily_usd = 1.0 }\n")
        proxy.send(signal.SIGHUP)
        proxy.wait_for("reload|loaded")
        await client.post("/v1/chat/completions", CHAT, key="sk-free")
        go_on.set()
        assert (await under_way)[0] == 200
        used = await find_used(client, "free", "tenant:acme/day", 3 * TOKENS_USD)

    assert used == 3 * TOKENS_USD


async def find_used(client: Client, key: str, scope: str, wanted: Decimal) -> Decimal:
    """What a window holds, as soon as it is what is waited for; corrections come a moment after their call."""
    used = Decimal(-1)
    for _ in range(200):
        windows = (await client.admin("GET", f"/admin/budgets?key={key}"))["data"]
        used = next(Decimal(str(w["used_usd"])) for w in windows if scope in w["window"])
        if used == wanted:
            break
    return used


async def test_a_check_says_what_the_call_would_meet_and_takes_nothing(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    strict = StrictUpstream()
    upstream.always(strict)
    proxy = serve(config(upstream, "{ daily_usd = 0.0003 }"))  # the bound of one call, and not of two

    async with client_of(proxy) as client:
        asked = {"key": "ci", "path": "/v1/chat/completions", "request": CHAT}
        first = [await client.admin("POST", "/admin/budgets/check", json=asked) for _ in range(20)]
        unknown = await client.admin("POST", "/admin/budgets/check", json={**asked, "key": "nobody"})
        dear = await client.admin(
            "POST", "/admin/budgets/check", json={**asked, "request": {**CHAT, "max_tokens": 500}}
        )
        unpriced = await client.admin("POST", "/admin/budgets/check", json={**asked, "path": "/v1/images/edits"})
        served = strict.served
        met = json.loads((await client.post("/v1/chat/completions", {**CHAT, "max_tokens": 500}))[2])["error"][
            "message"
        ]
        status, _, _ = await client.post("/v1/chat/completions", CHAT)
        misspelt = await client.admin("GET", "/admin/budgets?kye=ci")
        assert misspelt["error"]["message"] == '"kye": unknown parameter; did you mean "key"?'
        async with client.session.post(proxy.base_url + "/admin/budgets/check", json=asked) as reply:
            closed = reply.status

    assert all(answer["can_proceed"] for answer in first)
    assert first[0]["expected_usd"] < first[0]["bound_usd"] <= 0.0003
    assert [w["left_usd"] for w in first[-1]["windows"]] == [0.0003]
    assert unknown["error"]["code"] == "key_not_found"
    assert (dear["can_proceed"], dear["error"]["code"]) == (False, "insufficient_quota")
    assert not dear["windows"][0]["fits"]
    assert said(met)[3] <= said(dear["error"]["message"])[3] <= said(met)[3] + 30 * Decimal("0.000001")
    assert unpriced["error"]["code"] == "unpriced_route"
    assert (served, status, closed) == (0, 200, 401)


async def test_a_response_that_ends_later_is_booked_by_a_bound_first_and_corrected_when_it_is_read(
    serve: Serve, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "total_tokens": 25}
    queued = {"id": "resp_b", "object": "response", "status": "queued", "usage": None}
    upstream.play(json_reply(queued), json_reply(queued), json_reply({**queued, "status": "completed", "usage": usage}))
    upstream.always(json_reply({**queued, "status": "completed", "usage": usage}))
    proxy = serve(config(upstream, '{ daily_usd = 1.0, mode = "soft" }'))

    async with client_of(proxy) as client:
        payload = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 500}
        await client.post("/v1/responses", payload)
        before = await client.used("key:ci/day")
        for _ in range(3):  # still under way; done; read once more
            async with client.session.get(
                proxy.base_url + "/v1/responses/resp_b", headers={"authorization": "Bearer sk-ci"}
            ) as got:
                await got.read()
        after = await find_used(client, "ci", "key:ci/day", TOKENS_USD)
    await end(proxy)

    assert before > after == TOKENS_USD
    rows = ledger(tmp_path)
    assert [row["is_estimated"] for row in rows] == [1, 0]
    assert rows[1]["cost_nanousd"] < 0
    assert sum(row["cost_nanousd"] for row in rows) == TOKENS_USD * 10**9


@pytest.mark.parametrize("drains", [False, True])
async def test_a_client_that_leaves_pays_what_was_made_as_far_as_it_is_known(
    serve: Serve, upstream: ScriptedUpstream, tmp_path: Path, drains: bool
) -> None:
    go_on = asyncio.Event()
    first = '{"choices":[{"index":0,"delta":{"content":"ho"},"finish_reason":null}]}'
    usage = (
        '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":5}}'
    )
    upstream.always(sse_reply(first, go_on, usage, "[DONE]"))
    text = config(upstream, "{ daily_usd = 1.0 }")
    proxy = serve(text.replace("port = 0", 'port = 0\non_disconnect = "drain"') if drains else text)

    async with client_of(proxy) as client:
        posting = client.session.post(
            proxy.base_url + "/v1/chat/completions",
            json={**CHAT, "stream": True},
            headers={"authorization": "Bearer sk-ci"},
        )
        async with posting as reply:
            await reply.content.readuntil(b"\n\n")
            reply.close()
        if drains:
            go_on.set()
        else:
            await upstream.requests[0].left.wait()
    await end(proxy)

    (row,) = ledger(tmp_path)
    assert bool(row["is_estimated"]) is not drains
    if drains:
        assert row["cost_nanousd"] == TOKENS_USD * 10**9
    else:
        assert TOKENS_USD * 10**9 < row["cost_nanousd"] <= 50 * 2_000 + 300_000


async def test_forms_pictures_and_sound_have_a_price_per_call(
    serve: Serve, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.always(lambda request: bytes_reply(b"hello", headers={"content-type": "text/plain"}))
    more = '[prices."POST /v1/images/*"]\ncall = 0.25\n[prices."POST /v1/images/edits"]\ncall = 0.5\n'
    proxy = serve(config(upstream, "{ daily_usd = 1.0 }", more=more))
    form = {"model": "whisper-1", "file": b"\x00" * 100}

    async with client_of(proxy) as client:
        for path in ("/v1/audio/transcriptions", "/v1/images/edits", "/v1/images/variations", "/v1/images/edits"):
            data = aiohttp.FormData()
            data.add_field("model", form["model"])
            data.add_field("file", form["file"], filename="a.mp3")
            async with client.session.post(
                proxy.base_url + path, data=data, headers={"authorization": "Bearer sk-ci"}
            ) as reply:
                status, error = reply.status, await reply.text()
        windows = (await client.admin("GET", "/admin/budgets"))["data"]
    await end(proxy)

    assert status == 429  # 0.0004 + 0.5 + 0.25, and 0.5 does not fit
    assert "may cost up to 0.50 USD" in error
    assert [row["cost_nanousd"] for row in ledger(tmp_path)] == [400_000, 500_000_000, 250_000_000]
    assert [(w["scope"], w["used_usd"]) for w in windows] == [("key:ci", 0.7504)]
