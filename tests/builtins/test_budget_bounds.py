"""Bounds against an upstream that bills as much as the rules allow: no bound is ever below a bill."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from hookline import ENDPOINTS, Call, Deployment, Price, Usage, bound_input
from hookline.builtins.budget.rules import bound_of, find_unbounded
from hookline.prices import price_from_usd

CAP = 4_096
IMAGE_TOKENS_MAX = 48_169
PRICE = Price(
    1_000,
    2_000,
    cached_picousd=1_500,
    cache_write_picousd=1_900,
    tiers=((200, Price(3_000, 5_000)),),
    audio_input_picousd=40_000,
    audio_output_picousd=80_000,
).with_tools((("web_search", 10_000_000),))
DEPLOYMENT = Deployment("up/m", "up", "m", price=PRICE, context_tokens=100_000)


def make(payload: dict[str, Any], path: str = "/v1/chat/completions") -> Call:
    call = Call(
        id="c",
        method="POST",
        path=path,
        endpoint=ENDPOINTS.get(path, "relay"),
        headers=CIMultiDict(),
        started_at=0,
        started_time=0,
    )
    call.set_json(orjson.dumps(payload), payload)
    call.freeze()
    return call


def bound(call: Call, deployment: Deployment = DEPLOYMENT, *, is_hard: bool = True) -> int:
    return bound_of(call, deployment, bound_input(call), CAP, is_capped=is_hard).amount_nanousd


def refused(
    payload: dict[str, Any], path: str = "/v1/responses", deployment: Deployment = DEPLOYMENT
) -> tuple[str | None, str | None, str]:
    call = make(payload, path)
    problem = find_unbounded(call, deployment, bound_input(call))
    return (None, None, "") if problem is None else (problem.error_code, problem.param, problem.message)


texts = st.text(max_size=200)
images = st.just({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400}})
audio = st.builds(
    lambda n: {"type": "input_audio", "input_audio": {"data": "A" * n, "format": "wav"}}, st.integers(100, 400)
)
parts = st.lists(st.one_of(st.builds(lambda t: {"type": "text", "text": t}, texts), images, audio), max_size=4)
messages = st.lists(
    st.builds(lambda c: {"role": "user", "content": c}, st.one_of(texts, parts)), min_size=1, max_size=5
)


@given(
    messages=messages,
    limit=st.none() | st.integers(0, 10_000),
    n=st.integers(1, 4),
    best_of=st.integers(1, 3),
    split=st.floats(0, 1),
    predicted=st.none() | texts,
    has_audio_out=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_chat_costs_more_than_its_bound(messages, limit, n, best_of, split, predicted, has_audio_out) -> None:
    """The upstream counts a token per UTF-8 byte, the most per message and per image, fills every limit, and takes the dearest price for a share."""
    payload: dict[str, Any] = {"model": "m", "messages": messages, "n": n, "best_of": best_of}
    if limit is not None:
        payload["max_completion_tokens"] = limit
    if predicted is not None:
        payload["prediction"] = {"type": "content", "content": predicted}
    if has_audio_out:
        payload["audio"] = {"voice": "alloy", "format": "mp3"}
    call = make(payload)

    inputs, heard = 3, 0
    for message in messages:
        inputs += 4
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                inputs += len(part["text"].encode())
            elif part["type"] == "image_url":
                inputs += IMAGE_TOKENS_MAX
            else:
                heard += len(part["input_audio"]["data"])
    inputs = min(inputs + heard, DEPLOYMENT.context_tokens or 0)
    heard = min(heard, inputs)
    outputs = (CAP if limit is None else limit) * n * best_of + (
        0 if predicted is None else len(predicted.encode()) * n * best_of
    )
    cached = int((inputs - heard) * split)
    spoken = outputs if has_audio_out else 0
    bill = Usage(inputs, outputs, cached, inputs - heard - cached, 0, False, heard, spoken)

    assert PRICE.cost_nanousd(bill) <= bound(call)


@given(
    items=st.lists(texts, min_size=1, max_size=20),
    path=st.sampled_from(["/v1/embeddings", "/v1/completions"]),
    limit=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_no_list_costs_more_than_its_bound(items: list[str], path: str, limit: int) -> None:
    """Each text of a list may fill the context window of its own."""
    deployment = Deployment("up/m", "up", "m", price=PRICE, context_tokens=50)
    is_text = path == "/v1/completions"
    payload = {"model": "m", "prompt": items, "max_tokens": limit} if is_text else {"model": "m", "input": items}
    inputs = sum(min(len(item.encode()) + 2, 50) for item in items)

    bill = Usage(inputs, limit * len(items) if is_text else 0)

    assert PRICE.cost_nanousd(bill) <= bound(make(payload, path), deployment)


@given(times=st.integers(0, 20), limit=st.integers(1, 1_000))
@settings(max_examples=40, deadline=None)
def test_no_hosted_tool_costs_more_than_its_bound(times: int, limit: int) -> None:
    payload = {
        "model": "m",
        "input": "x",
        "tools": [{"type": "web_search_preview"}],
        "max_tool_calls": times,
        "max_output_tokens": limit,
    }
    call = make(payload, "/v1/responses")

    bill = Usage(100_000 * (1 + times), limit, tool_calls=(("web_search", times),))

    assert find_unbounded(call, DEPLOYMENT, bound_input(call)) is None
    assert PRICE.cost_nanousd(bill) <= bound(call)


def test_what_was_predicted_is_read_and_may_be_charged_as_output_too() -> None:
    plain = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    predicted = {**plain, "prediction": {"type": "content", "content": "y" * 10_000}}

    assert bound(make(predicted)) - bound(make(plain)) > 10_000 * (3 + 5)


def test_an_inline_image_counts_by_its_documented_bound_and_not_by_its_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000_000}}
    call = make({"model": "m", "messages": [{"role": "user", "content": [image]}]})

    assert IMAGE_TOKENS_MAX < bound_input(call).tokens < IMAGE_TOKENS_MAX + 500
    assert bound_input(call).open_field is None


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}, "image_url"),
        ({"type": "input_image", "file_id": "file_1"}, "file_id"),
        ({"type": "input_file", "file_id": "file_1"}, "file_id"),
        ({"type": "file", "file": {"file_data": "JVBERi0="}}, "file_data"),
        ({"type": "input_audio", "input_audio": {"data": "AA", "format": "flac"}}, "input_audio"),
        ({"type": "video_url", "video_url": {"url": "https://example.com/x.mp4"}}, "video_url"),
    ],
)
def test_what_refers_outside_or_is_no_text_counts_as_the_context_window(part: dict[str, Any], field: str) -> None:
    payload = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}],
        "max_tokens": 1,
    }
    unknown = Deployment("up/m", "up", "m", price=PRICE)

    assert bound(make(payload)) >= 100_000 * 3_000 // 1_000
    assert refused(payload, "/v1/chat/completions") == (None, None, "")
    assert refused(payload, "/v1/chat/completions", unknown)[:2] == ("unbounded_cost", field)


@pytest.mark.parametrize("member", [{"previous_response_id": "r"}, {"conversation": "c"}, {"prompt": {"id": "p"}}])
def test_stored_state_counts_as_the_context_window(member: dict[str, Any]) -> None:
    assert bound(make({"model": "m", "input": "x", "max_output_tokens": 1, **member}, "/v1/responses")) >= 100_000 * 3


@pytest.mark.parametrize(
    ("members", "code", "field"),
    [
        ({"tools": [{"type": "web_search"}]}, "unbounded_cost", "max_tool_calls"),
        ({"tools": [{"type": "code_interpreter"}], "max_tool_calls": 1}, "unpriced_route", "tools"),
        ({"tools": [{"type": "web_search"}], "max_tool_calls": "3"}, "unbounded_cost", "max_tool_calls"),
        ({"background": True}, "unpriced_route", "background"),
        ({"service_tier": "priority"}, "unpriced_route", "service_tier"),
        ({"models": ["dear/model"]}, "unpriced_route", "models"),
        ({"max_output_tokens": -1}, "unbounded_cost", "max_output_tokens"),
        ({"max_output_tokens": 0}, "unbounded_cost", "max_output_tokens"),
    ],
)
def test_what_has_no_bound_is_refused_by_the_name_of_its_field(members: dict[str, Any], code: str, field: str) -> None:
    assert refused({"model": "m", "input": "x", **members})[:2] == (code, field)


def test_a_price_of_a_tool_that_is_missing_is_the_line_to_add() -> None:
    told = refused({"model": "m", "input": "x", "tools": [{"type": "code_interpreter"}], "max_tool_calls": 1})[2]

    assert '[prices."tool:code_interpreter"]' in told


def test_audio_without_a_price_of_its_own_is_refused() -> None:
    text_only = Deployment("up/m", "up", "m", price=Price(1_000, 2_000), context_tokens=1_000)
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    payload = {"model": "m", "messages": [{"role": "user", "content": [part]}]}

    assert refused(payload, "/v1/chat/completions", text_only)[:2] == ("unpriced_route", "audio")
    assert refused(payload, "/v1/chat/completions")[0] is None


def test_a_bound_does_not_depend_on_what_is_left_but_a_soft_budget_expects_what_the_model_can_write() -> None:
    call = make({"model": "m", "messages": [{"role": "user", "content": "x"}]})

    assert bound(call, is_hard=False) - bound(call) == (100_000 - CAP) * 2_000 // 1_000


@pytest.mark.parametrize(
    "change", [{"input": 2.0}, {"output": 3.0}, {"call": 0.1}, {"cached_input": 0.5}, {"audio_input": 1.0}]
)
def test_every_number_of_a_price_is_in_its_version(change: dict[str, float]) -> None:
    plain = {"input": 1.0, "output": 2.0}

    assert price_from_usd(**plain).version == price_from_usd(**plain).version
    assert price_from_usd(**{**plain, **change}).version != price_from_usd(**plain).version
    assert Price(1, 2, source="proxy.toml").version != Price(1, 2, source="built-in").version
