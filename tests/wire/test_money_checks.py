"""`POST /admin/budgets/check` against what the very call meets: no answer of it may be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from yarl import URL

from hookline.testing.process import ProxyProcess
from hookline.testing.upstream import ScriptedUpstream, json_reply

ADMIN = {"authorization": "Bearer admin-key-of-this-test"}
HI = [{"role": "user", "content": "hi"}]
PICTURE = [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://pictures.example.com/1.png"}}]}
]
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
NINE = {"model": "m", "messages": HI, "max_tokens": 9}
ASKED: list[tuple[str, dict[str, Any]]] = [
    *(
        (CHAT, {"model": "m", "messages": HI, **members})
        for members in (
            {}, {"max_tokens": 50}, {"max_tokens": 50, "n": 3}, {"max_tokens": 50, "n": 30}, {"n": "3"}, {"stream": True}, {"service_tier": "flex"},
            {"tools": [{"type": "web_search"}]}, {"web_search_options": {}}, {"max_completion_tokens": 10, "max_tokens": 5000},
        )
    ),
    (CHAT, {"model": "m", "messages": PICTURE, "max_tokens": 5}),
    (CHAT, {"model": "unpriced", "messages": HI}),
    (CHAT, {"model": 5, "messages": HI}),
    (CHAT, {"messages": HI}),
    (RESPONSES, {"model": "m", "input": "hi", "background": True}),
    (RESPONSES, {"model": "m", "input": "hi", "previous_response_id": "resp_1"}),
    (EMBEDDINGS, {"model": "m", "input": [[1, 2, 3], [4, 5]]}),
    ("/v1/images/generations", {"model": "m", "prompt": "x"}),
    ("/v1/vector_stores/vs_1/search", {"query": "y"}),
    ("/v1/vector_stores/vs_1/%73earch", {"query": "y"}),
    ("/v1/vector_stores", {"name": "x"}),
    ("/v1//chat/completions", NINE),
    ("/v1/chat/completions/", NINE),
    ("/v1/%63hat/completions", NINE),
    ("/v1/files/../chat/completions", NINE),
    ("/v1/files/..%2fchat/completions", NINE),
    ("/V1/chat/completions", NINE),
]  # fmt: skip
CONFIG = """
[server]
port = 0
[chain]
plugins = ["auth", "budget", "fallback"]
[providers.up]
kind = "openai"
base_url = "{url}"
default = true
[prices."m"]
input = 1.0
output = 2.0
[[plugins.auth.keys]]
name = "ci"
key = "sk-ci"
budget = {{ total_usd = {usd} }}
[plugins.budget]
max_output_tokens = 100
clamp = {clamp}
[admin]
key = "admin-key-of-this-test"
"""


@pytest.mark.parametrize(("usd", "clamp"), [("0.0005", "false"), ("0.0005", "true"), ("0.02", "false")])
async def test_a_check_never_says_anything_else_than_the_call_meets(
    serve: Callable[..., ProxyProcess], upstream: ScriptedUpstream, usd: str, clamp: str
) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "a"},
        "finish_reason": "stop",
    }  # streams get it too
    upstream.always(json_reply({"id": "c", "object": "list", "data": [], "choices": [choice], "usage": usage}))
    proxy = serve(CONFIG.format(url=upstream.url, usd=usd, clamp=clamp))

    differences = []
    async with aiohttp.ClientSession() as session:
        for path, payload in ASKED:
            asked = {"key": "ci", "path": path, "request": payload}
            async with session.post(proxy.base_url + "/admin/budgets/check", json=asked, headers=ADMIN) as reply:
                told = await reply.json()
            url, key = URL(proxy.base_url + path, encoded=True), {"authorization": "Bearer sk-ci"}
            async with session.post(url, json=payload, headers=key) as reply:
                is_served, body = reply.status == 200, await reply.read()
            met = None if is_served else json.loads(body)["error"]
            if (told["can_proceed"], told["error"]) != (is_served, met):
                differences.append((path, payload, told["error"], met))

    assert not differences
