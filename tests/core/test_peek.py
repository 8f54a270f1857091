"""The beginning of a stream: what counts as its first event, and what may still fall back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hookline import Fallback
from hookline.testing.kit import (
    ANSWER,
    ANSWER_AS_STREAM,
    CHAT,
    PipelineKit,
    ScriptedProvider,
    answer,
    make_plugin,
    stream,
)

STREAMED = {**CHAT, "stream": True}
FALLBACK = make_plugin("fallback", after_failure=lambda call, attempt: Fallback())
ERROR = b'data: {"error":{"message":"overloaded"}}\n\n'
BOM = b"\xef\xbb\xbf"


def kit_of(*scripts: Any) -> PipelineKit:
    return PipelineKit(FALLBACK, providers=[ScriptedProvider(*scripts)], deployments={"up/m": ["up/1", "up/2"]})


async def first_pieces(*pieces: Any, **about: Any) -> Any:
    """What the client of a stream that begins with these pieces sees; a second deployment would answer ANSWER_AS_STREAM."""
    kit = kit_of(lambda: stream(*pieces), answer)
    return await kit.run(kit.make_call(STREAMED, **about))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not decided by bytes is not decided at all."""
    monkeypatch.setattr("hookline.peek.PEEK_S", 3600.0)


@pytest.mark.parametrize(
    "before",
    [
        b": ping\n\n",
        BOM + b": ping\n\n",
        b"retry: 3000\n\n",
        b"\n",
        b"\r\n\r\n",
        b": a\r\r: b\r\r",
        b": a\r\n\r\n: b\n\n",
    ],
)
@pytest.mark.usefixtures("patient")
async def test_what_no_client_would_dispatch_is_no_first_event(before: bytes) -> None:
    delivered = await first_pieces(before, ERROR)

    assert delivered.body == ANSWER_AS_STREAM


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("start", [b"", BOM, b": ping\n\n"])
@pytest.mark.usefixtures("patient")
async def test_a_first_error_is_found_wherever_it_is_cut(line_end: bytes, start: bytes) -> None:
    error = (start + b"event: error\n" + ERROR).replace(b"\n", line_end)
    for cut in range(1, len(error)):
        delivered = await first_pieces(error[:cut], error[cut:])

        assert delivered.body == ANSWER_AS_STREAM, cut


@pytest.mark.parametrize("begun", [b": ping\n\n", b": pi", b"data", b"data: ", b'data: {"id', b"event: x\n", BOM])
@pytest.mark.usefixtures("patient")
async def test_a_stream_that_ends_before_its_first_event_has_not_begun(begun: bytes) -> None:
    """Symptom: a reset there fell back, a clean end left 200 and an error event."""
    delivered = await first_pieces(begun)

    assert delivered.body == ANSWER_AS_STREAM


@pytest.mark.parametrize(
    "last",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\r',
    ],
)
@pytest.mark.usefixtures("patient")
async def test_a_stream_whose_only_event_lacks_its_blank_line_is_relayed_as_it_is(last: bytes) -> None:
    delivered = await first_pieces(last)

    assert (delivered.status, delivered.body, delivered.error) == (200, last, None)


async def test_another_endpoints_stream_may_be_any_text() -> None:
    delivered = await first_pieces(b"data: hello", path="/v1/threads/runs")

    assert (delivered.status, delivered.body, delivered.error) == (200, b"data: hello", None)


async def test_a_named_first_event_may_be_any_text(wire: Any) -> None:
    rest = (wire.chunk("a"), wire.chunk(finish="stop"))

    delivered = await first_pieces(b"event: ping\ndata: now\n\n", *rest)

    assert delivered.body == b"event: ping\ndata: now\n\n" + b"".join(rest)


@pytest.mark.parametrize(
    "first",
    [
        b'data: {"choices": [{"ind\n\n',
        b"data: no JSON\n\n",
        b': ping\r\n\r\ndata: {"a"\r\n\r\n',
        b"data:{]\n\n",
        b"data: null\n\n",
        b'data: ["a"]\n\n',
        b"data: [DONE]\n\n",
        b": ping\n\ndata: [DONE]\n\n",
        b'{"id": "c"}\n\n',
        b"<html>\n\n",
    ],
)
async def test_garbage_as_the_first_event_counts_as_before_it(first: bytes, wire: Any) -> None:
    alone = PipelineKit(FALLBACK, providers=[ScriptedProvider(lambda: stream(first, wire.chunk("a")))])

    assert (await first_pieces(first, wire.chunk("a"))).body == ANSWER_AS_STREAM
    assert (await alone.run(alone.make_call(STREAMED))).json()["error"]["code"] == "upstream_garbage"


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\r"])
@pytest.mark.usefixtures("patient")
async def test_a_stream_that_says_nothing_but_done_is_no_answer(last: bytes) -> None:
    assert (await first_pieces(last)).body == ANSWER_AS_STREAM


async def test_half_a_first_event_waits_for_the_rest_however_long(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it would leave: so its end may still be somebody else's beginning."""
    monkeypatch.setattr("hookline.peek.PEEK_S", 0.0)
    gate, first = asyncio.Event(), wire.chunk("a")
    kit = kit_of(lambda: stream(first[:9], gate, ConnectionResetError()), answer)
    running = kit.start(kit.make_call(STREAMED))
    for _ in range(50):  # turns of the loop: comments would have left in a few
        await asyncio.sleep(0)
    assert not running.delivered.has_begun.is_set()

    gate.set()

    assert (await running.done()).body == ANSWER_AS_STREAM


async def test_a_stream_that_was_not_asked_for_is_no_answer(wire: Any) -> None:
    kit = kit_of(lambda: stream(wire.chunk("a"), wire.chunk(finish="stop")), answer)

    assert (await kit.call()).body == ANSWER


@pytest.mark.parametrize(
    ("told", "status"),
    [(b'{"error": {"message": "no", "code": 429}}', 429), (b'{"type": "error", "error": {"message": "no"}}', 502)],
)
async def test_an_error_with_status_200_is_no_answer(told: bytes, status: int) -> None:
    alone = PipelineKit(FALLBACK, providers=[ScriptedProvider(lambda: answer(told))])

    assert (await kit_of(lambda: answer(told), answer).call()).body == ANSWER
    assert (await alone.call()).status == status


@pytest.mark.usefixtures("patient")
async def test_nothing_is_awaited_once_the_first_event_is_there(wire: Any) -> None:
    gate, first, last = asyncio.Event(), wire.chunk("a"), wire.chunk(finish="stop")
    kit = kit_of(lambda: stream(b": ping\n\n", first + first[:9], gate, first[9:], last))
    running = kit.start(kit.make_call(STREAMED))

    await running.delivered.has_begun.wait()
    gate.set()

    assert (await running.done()).body == b": ping\n\n" + first + first + last


async def test_an_error_that_came_together_with_content_may_fall_back(wire: Any) -> None:
    assert (await first_pieces(wire.chunk("a") + ERROR)).body == ANSWER_AS_STREAM


@pytest.mark.parametrize(
    ("before", "said_bytes"),
    [([], None), (["a"], 1), (["a", "ü"], 3), ([""], 0)],
    ids=["nothing", "text", "two events", "only a role"],
)
async def test_what_was_said_before_a_first_error_may_be_billed(
    before: list[str], said_bytes: int | None, wire: Any
) -> None:
    """By the texts, as of every stream that is cut; of one that has said nothing yet the request has been read."""
    kit = kit_of(lambda: stream(b": ping\n\n" + b"".join(map(wire.chunk, before)) + ERROR), answer)

    call = kit.make_call(STREAMED)
    await kit.run(call)

    usage = call.attempts[0].usage
    assert (usage and (usage.input_tokens, usage.output_tokens, usage.is_estimated)) == (
        None if said_bytes is None else (len(call.body), said_bytes, True)
    )


@pytest.mark.parametrize("failure", [ERROR, b"data: oops\n\n", b"data: {", ConnectionResetError()])
async def test_while_only_comments_have_left_it_may_fall_back(failure: Any) -> None:
    """Symptom: whoever sent ": processing" for a while and then an error got no second chance. Those comments are all that has left."""
    gate = asyncio.Event()
    kit = kit_of(lambda: stream(b": processing\n\n", gate, failure), answer)
    running = kit.start(kit.make_call(STREAMED))
    await running.delivered.has_begun.wait()
    assert running.delivered.body == b": processing\n\n"

    gate.set()
    delivered = await running.done()

    assert (delivered.body, delivered.error) == (b": processing\n\n" + ANSWER_AS_STREAM, None)


async def test_an_error_behind_content_is_mid_stream(wire: Any) -> None:
    delivered = await first_pieces(wire.chunk("a"), ERROR)

    assert (delivered.status, delivered.body) == (200, wire.chunk("a") + ERROR)
    assert delivered.error is not None


async def test_an_error_without_its_blank_line_is_given_one_so_that_clients_dispatch_it(wire: Any) -> None:
    delivered = await first_pieces(wire.chunk("a"), ERROR[:-2])

    assert delivered.body == wire.chunk("a") + ERROR
    assert delivered.error is not None


async def test_a_first_byte_is_noted_when_it_came_and_not_when_the_event_was_whole(wire: Any, journal: Any) -> None:
    gate, first = asyncio.Event(), wire.chunk("a")
    kit = kit_of(lambda: stream(first[:5], gate, first[5:], wire.chunk(finish="stop")))
    running = kit.start(kit.make_call(STREAMED))
    while not running.call.attempts or running.call.attempts[0].first_byte_at is None:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)

    kit.clock.advance(3.0)
    gate.set()
    await running.done()

    attempt = running.call.attempts[0]
    assert (attempt.first_byte_at, attempt.ended_at) == (attempt.started_at, attempt.started_at + 3.0)
