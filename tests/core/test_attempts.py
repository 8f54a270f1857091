"""The attempt loop: what is tried next, the peek, continuing mid-stream, and what the client is told when nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from hookline import (
    BadRequest,
    Continue,
    Deployment,
    Fallback,
    GiveUp,
    InsufficientQuota,
    NotFound,
    RateLimited,
    Rejected,
    Reply,
    Retry,
    Skip,
    Target,
    Unavailable,
    UpstreamError,
    Usage,
)
from hookline.attempt_errors import no_target_error, retry_after_of, seconds_of
from hookline.attempts import ATTEMPTS_MAX
from hookline.testing.kit import (
    ANSWER_AS_STREAM,
    CHAT,
    PipelineKit,
    ScriptedProvider,
    answer,
    make_plugin,
    stream,
)

THREE = {"m": ["up/1", "up/2", "up/3"]}
ASKED = {**CHAT, "model": "m"}
STREAMED = {**ASKED, "stream": True}
ERROR_EVENT = b'data: {"error":{"message":"overloaded","code":"529"}}\n\n'


def refused(message: str = "refused") -> UpstreamError:
    return UpstreamError(message, kind="connect", is_written=False)


def following(step: Any) -> type:
    return make_plugin("fallback", after_failure=lambda call, attempt: step)


FALLBACK = following(Fallback())


def kit_of(*scripts: Any, plugins: tuple[type, ...] = (FALLBACK,), **more: Any) -> PipelineKit:
    more.setdefault("deployments", THREE)
    return PipelineKit(*plugins, providers=[ScriptedProvider(*scripts)], **more)


def sent(kit: PipelineKit) -> list[str]:
    return [attempt.deployment.id for _, attempt in kit.providers["up"].sent]


# -- one after the other


async def test_fallback_tries_the_next_target_in_the_order_of_select() -> None:
    kit = kit_of(refused("one"), lambda: answer(b'{"error":{"message":"two"}}', 500), answer)

    delivered = await kit.call(ASKED)

    assert delivered.status == 200
    assert sent(kit) == ["up/1", "up/2", "up/3"]
    assert delivered.headers["x-hookline-attempts"] == "3"


async def test_when_every_target_failed_the_last_error_is_passed_on_with_its_status_and_body() -> None:
    kit = kit_of(refused("one"), refused("two"), lambda: answer(b'{"error":{"message":"three"}}', 503))

    delivered = await kit.call(ASKED)

    assert (delivered.status, delivered.body) == (503, b'{"error":{"message":"three"}}')


async def test_without_a_step_or_with_give_up_the_first_error_is_the_answer() -> None:
    for plugins in ((), (following(None),), (following(GiveUp()),)):
        kit = kit_of(refused("one"), answer, plugins=plugins)

        delivered = await kit.call(ASKED)

        assert (delivered.status, sent(kit)) == (502, ["up/1"])
        assert delivered.json()["error"]["message"] == "one"


async def test_retry_asks_the_same_target_again_through_its_own_admission(journal: Any) -> None:
    def after_failure(call: Any, attempt: Any) -> Any:
        return Retry(0.001) if len(call.attempts) < 3 else Fallback()

    taking = make_plugin("money", admit_attempt=lambda call, target, attempt: journal.ticket(str(attempt.number)))
    kit = kit_of(
        refused(), refused(), refused(), answer, plugins=(taking, make_plugin("retry", after_failure=after_failure))
    )

    assert (await kit.call(ASKED)).status == 200
    assert sent(kit) == ["up/1", "up/1", "up/1", "up/2"]
    assert journal == ["settle 1", "settle 2", "settle 3", "settle 4"]


async def test_retrying_for_ever_ends() -> None:
    kit = kit_of(refused(), plugins=(following(Retry()),))

    delivered = await kit.call(ASKED)

    assert delivered.status == 502
    assert len(sent(kit)) == ATTEMPTS_MAX


async def test_a_retrys_delay_is_cut_by_the_deadline() -> None:
    def after_failure(call: Any, attempt: Any) -> Any:
        asyncio.get_running_loop().call_soon(PipelineKit.expire, call)
        return Retry(3600.0)

    kit = kit_of(refused(), plugins=(make_plugin("retry", after_failure=after_failure),))

    delivered = await kit.call(ASKED)

    assert (delivered.status, delivered.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_what_differs_per_attempt_lives_on_it_and_the_frozen_request_is_the_same_for_all() -> None:
    caps = iter([7, 3])

    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        attempt.lower_output_cap(next(caps))
        attempt.lower_output_cap(100)

    kit = kit_of(refused(), answer, plugins=(FALLBACK, make_plugin("cap", admit_attempt=admit_attempt)))

    delivered = await kit.call(ASKED)

    (first_call, first), (second_call, second) = kit.providers["up"].sent
    assert first_call is second_call
    assert (first.output_cap, second.output_cap) == (7, 3)
    assert delivered.headers["x-hookline-output-capped"] == "3"


async def test_a_provider_that_breaks_is_an_upstream_that_sent_garbage_and_may_fall_back(caplog: Any) -> None:
    kit = kit_of(ZeroDivisionError("division by zero"), answer)

    assert (await kit.call(ASKED)).status == 200
    assert "up/1: the provider failed: ZeroDivisionError" in caplog.text


async def test_a_provider_that_cancels_itself_has_failed_and_the_call_is_not_cancelled() -> None:
    async def send(call: Any, attempt: Any) -> Reply:
        if attempt.number == 2:
            return answer()
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task
        raise AssertionError

    assert (await kit_of(send).call(ASKED)).status == 200


class OneWayUpload:
    content_type = "multipart/form-data"
    content_length = None
    is_replayable = False

    fields = ()
    model = None

    async def complete(self) -> None: ...

    async def chunks(self, model: str | None) -> AsyncIterator[bytes]:
        yield b"x"

    async def aclose(self) -> None: ...


async def test_a_body_that_streamed_through_has_a_single_attempt(journal: Any) -> None:
    async def load(call: Any) -> None:
        call.upload, call.model = OneWayUpload(), "m"

    def select(call: Any, targets: Any) -> Any:
        for target in targets:
            target.hedge_after_s = 0.0
        return targets

    plugins = (following(Retry()), make_plugin("hedge", select=select))
    kit = kit_of(refused(), plugins=plugins)

    delivered = await kit.run(kit.make_call(path="/v1/audio/transcriptions", load=load))

    assert delivered.status == 502
    assert sent(kit) == ["up/1"]


# -- nothing left to try


def skips(*errors: Any) -> list[tuple[Target, Skip]]:
    return [
        (Target(Deployment(f"up/{n}", "up", str(n))), Skip(f"reason {n}", error)) for n, error in enumerate(errors, 1)
    ]


QUOTA = InsufficientQuota('budget "team-a" spent')
SLOW_3, SLOW_9, SLOW = RateLimited("3", retry_after_s=3), RateLimited("9", retry_after_s=9), RateLimited("?")
BAD, LOST = BadRequest("no such endpoint"), NotFound("no such model")


@pytest.mark.parametrize(
    ("errors", "kind", "retry_after_s", "message"),
    [
        ((), Unavailable, 1.0, "no deployment can take this call: no target was chosen"),
        ((None,), Unavailable, 1.0, "no deployment can take this call: up/1: reason 1"),
        ((None, None), Unavailable, 1.0, "no deployment can take this call: up/1: reason 1; up/2: reason 2"),
        ((QUOTA,), InsufficientQuota, None, 'budget "team-a" spent'),
        ((QUOTA, QUOTA), InsufficientQuota, None, "no deployment fits what is left: up/1: reason 1; up/2: reason 2"),
        ((SLOW_9,), RateLimited, 9, "no deployment may be called now: up/1: reason 1"),
        ((SLOW_9, SLOW_3, SLOW), RateLimited, 3, None),
        ((SLOW,), RateLimited, 1.0, None),
        ((QUOTA, SLOW_9), Unavailable, 9, None),
        ((QUOTA, None), Unavailable, 1.0, None),
        ((SLOW_9, None), Unavailable, 9, None),
        ((BAD,), BadRequest, None, "no such endpoint"),
        ((LOST, BAD), NotFound, None, "no such model"),
        ((BAD, SLOW_3), Unavailable, 3, None),
        ((BAD, None), Unavailable, 1.0, None),
        ((Unavailable("store down"),), Unavailable, 1.0, None),
    ],
)
def test_what_the_client_is_told_follows_from_why_each_target_was_skipped(
    errors: Any, kind: type, retry_after_s: float | None, message: str | None
) -> None:
    error = no_target_error(skips(*errors))

    assert type(error) is kind
    assert error.retry_after_s == retry_after_s
    if message is not None:
        assert error.message == message
    for n in range(1, len(errors) + 1) if kind is Unavailable else ():
        assert f"up/{n}: reason {n}" in error.message


async def test_a_skip_after_a_failure_leaves_the_failure_as_the_answer() -> None:
    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        if attempt.number > 1:
            raise Skip("circuit open")

    kit = kit_of(refused("one"), plugins=(FALLBACK, make_plugin("breaker", admit_attempt=admit_attempt)))

    delivered = await kit.call(ASKED)

    assert delivered.json()["error"]["message"] == "one"


async def test_a_provider_without_the_endpoint_is_a_skipped_target(journal: Any) -> None:
    chat_only = ScriptedProvider(name="chatty", endpoints=["chat"])
    able = ScriptedProvider()
    asking = make_plugin("a", admit_attempt=lambda call, target, attempt: journal.append(target.deployment.id))
    kit = PipelineKit(asking, providers=[chat_only, able], deployments={"m": ["chatty/e", "up/e"]})

    delivered = await kit.call({"model": "m", "input": "x"}, path="/v1/embeddings")

    assert delivered.headers["x-hookline-deployment"] == "up/e"
    assert (chat_only.sent, journal) == ([], ["up/e"])


async def test_an_endpoint_that_no_provider_has_is_a_400_naming_it() -> None:
    kit = PipelineKit(providers=[ScriptedProvider(endpoints=["chat"])])

    delivered = await kit.call({"model": "up/e", "input": "x"}, path="/v1/embeddings")

    assert (delivered.status, delivered.json()["error"]["code"]) == (400, "unsupported_endpoint")
    assert "POST /v1/embeddings" in delivered.json()["error"]["message"]
    assert (delivered.headers["x-hookline-attempts"], delivered.headers["x-hookline-deployment"]) == ("0", "none")


async def test_what_a_provider_cannot_translate_is_a_late_skip_and_costs_nothing(journal: Any) -> None:
    taking = make_plugin("money", admit_attempt=lambda call, target, attempt: journal.ticket(str(attempt.number)))
    kit = kit_of(BadRequest('"logprobs" has no counterpart', param="logprobs"), answer, plugins=(taking,))

    delivered = await kit.call(ASKED)

    assert delivered.headers["x-hookline-deployment"] == "up/2"
    assert journal == ["settle 1", "settle 2"]
    assert journal.results["1"][0].cost_nanousd == 0


async def test_what_no_provider_can_translate_is_the_first_ones_400() -> None:
    kit = kit_of(BadRequest("first", param="logprobs"), BadRequest("second"))

    delivered = await kit.call(ASKED)

    assert (delivered.status, delivered.json()["error"]["message"]) == (400, "first")
    assert len(sent(kit)) == 3


# -- rescue


def saving(journal: Any) -> type:
    def rescue(call: Any, error: Any) -> Reply:
        journal.append(type(error).__name__)
        return Reply(200, {}, b"stale", source="rescue")

    return make_plugin("stale", rescue=rescue)


async def test_rescue_answers_for_upstream_errors_after_all_fallbacks(journal: Any) -> None:
    kit = kit_of(refused(), plugins=(FALLBACK, saving(journal), journal.observer("watch")))

    delivered = await kit.call(ASKED)

    assert delivered.body == b"stale"
    assert (len(sent(kit)), journal.count("UpstreamError")) == (3, 1)
    result = journal.results["call_ended watch"][0]
    assert (result.outcome, result.source) == ("ok", "rescue")
    assert isinstance(result.error, UpstreamError)


async def test_rescue_answers_when_no_deployment_can_take_the_call(journal: Any) -> None:
    def skip(call: Any, target: Any, attempt: Any) -> None:
        raise Skip("circuit open")

    kit = kit_of(answer, plugins=(make_plugin("breaker", admit_attempt=skip), saving(journal)))

    assert (await kit.call(ASKED)).body == b"stale"
    assert journal == ["Unavailable"]


@pytest.mark.parametrize(
    ("signal", "status"),
    [
        (Rejected(Unavailable("closed")), 503),
        (Rejected(RateLimited("slow")), 429),
        (Skip("spent", QUOTA), 429),
        (Skip("limit", SLOW_3), 429),
        (Skip("no vision", BAD), 400),
    ],
)
async def test_rescue_is_not_asked_after_rejected_or_budget_skips(signal: Any, status: int, journal: Any) -> None:
    def admit_attempt(call: Any, target: Any, attempt: Any) -> None:
        raise signal

    kit = kit_of(answer, plugins=(make_plugin("gate", admit_attempt=admit_attempt), saving(journal)))

    assert (await kit.call(ASKED)).status == status
    assert journal == []


# -- the peek


async def test_an_error_as_first_event_counts_as_before_the_first_byte(journal: Any) -> None:
    closed: list[str] = []
    kit = kit_of(lambda: stream(ERROR_EVENT, closed=closed), answer)

    delivered = await kit.call(STREAMED)

    assert (delivered.status, delivered.body) == (200, ANSWER_AS_STREAM)
    assert closed == ["closed"]


@pytest.mark.parametrize(("code", "status"), [(b'"429"', 429), (b"503", 503), (b'"overloaded"', 502), (b"200", 502)])
async def test_an_error_as_first_event_is_a_status_where_nothing_else_is_left(code: bytes, status: int) -> None:
    event = b'data: {"error":{"message":"m","code":%b}}\n\n' % code
    kit = kit_of(lambda: stream(event), plugins=())

    delivered = await kit.call(STREAMED)

    assert delivered.status == status
    assert delivered.json() == {"error": orjson.loads(event[6:])["error"]}
    assert delivered.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "pieces",
    [
        [b": ping\n\n", ERROR_EVENT],
        [ERROR_EVENT[:9], ERROR_EVENT[9:]],
        [ERROR_EVENT.replace(b"\n", b"\r\n")[:-1], b"\n"],
        [b": ping\r\n\r\n: ping\r\n\r\n" + ERROR_EVENT.replace(b"\n", b"\r\n")],
        [bytes([b]) for b in ERROR_EVENT],
    ],
)
async def test_comments_and_cuts_do_not_hide_a_first_error(pieces: list[bytes]) -> None:
    kit = kit_of(lambda: stream(*pieces), answer)

    assert (await kit.call(STREAMED)).body == ANSWER_AS_STREAM


@pytest.mark.parametrize("pieces", [[], [b"data: {"], [b": ping\n\n"]])
async def test_a_stream_that_dies_before_its_first_event_may_fall_back(pieces: list[bytes]) -> None:
    """A half event that was only peeked has not left: it is as if nothing had come."""
    kit = kit_of(lambda: stream(*pieces, ConnectionResetError()), answer)

    assert (await kit.call(STREAMED)).body == ANSWER_AS_STREAM


async def test_a_stream_that_ends_before_its_first_event_may_fall_back() -> None:
    kit = kit_of(stream, answer)

    assert (await kit.call(STREAMED)).body == ANSWER_AS_STREAM


async def test_comments_are_held_for_50_ms_at_most(wire: Any) -> None:
    gate, comment = asyncio.Event(), b": thinking\n\n"
    rest = (wire.chunk("ho"), wire.chunk(finish="stop"), wire.done)
    kit = kit_of(lambda: stream(comment, gate, *rest))
    running = kit.start(kit.make_call(STREAMED))

    await running.delivered.has_begun.wait()
    assert running.delivered.body == comment
    gate.set()

    assert (await running.done()).body == b"".join((comment, *rest))


async def test_a_giant_first_event_leaves_when_it_is_known_to_be_one() -> None:
    never, piece = asyncio.Event(), b"x" * (1 << 18)
    kit = kit_of(lambda: stream(b"data: ", piece, piece, piece, piece, never))
    running = kit.start(kit.make_call(STREAMED))

    await running.delivered.has_begun.wait()
    assert running.delivered.body == b"data: " + piece * 4
    running.leave()
    await running.done()


async def test_a_client_that_leaves_during_the_peek_ends_the_call_whole(journal: Any) -> None:
    """Symptom: the read in flight was cancelled but not awaited, closing its body raised, and no ticket of the call settled."""
    closed: list[str] = []
    reading = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"data: {"
            reading.set()
            await asyncio.Event().wait()
        finally:
            closed.append("closed")

    taking = make_plugin("a", admit=lambda call: journal.ticket("slot"))
    kit = kit_of(lambda: Reply(200, {"content-type": "text/event-stream"}, body()), plugins=(taking,))
    running = kit.start(kit.make_call(STREAMED))
    await reading.wait()

    running.leave()
    await running.done()

    assert closed == ["closed"]
    assert journal == ["settle slot"]


async def test_streams_that_are_no_events_are_not_peeked_into() -> None:
    kit = kit_of(lambda: stream(b"error", b"\0\1", content_type="audio/mpeg"))

    delivered = await kit.call({"model": "m", "input": "x"}, path="/v1/audio/speech")

    assert delivered.chunks == [b"error", b"\0\1"]


# -- continuing mid-stream


MORE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one "}]


def continuing(messages: Any = MORE) -> type:
    return following(Continue(messages))


async def test_continue_makes_one_stream_of_two_attempts_and_pays_for_both(journal: Any, wire: Any) -> None:
    first, second = wire.chunk("one "), wire.chunk("two")
    rest = (wire.chunk(finish="stop"), wire.usage, wire.done)
    taking = make_plugin(
        "money",
        admit=lambda call: journal.ticket("call"),
        admit_attempt=lambda call, target, attempt: journal.ticket(str(attempt.number)),
    )
    kit = kit_of(
        lambda: stream(first, ConnectionResetError()),
        lambda: stream(second, *rest),
        plugins=(continuing(), taking, journal.observer("watch")),
    )
    call = kit.make_call(STREAMED)

    delivered = await kit.run(call)

    mark = b',"hookline":{"continued":["up/1","up/2"]}}\n\n'
    assert delivered.body == b"".join((first, second, rest[0][:-3] + mark, *rest[1:]))
    assert delivered.error is None
    sent_call, _ = kit.providers["up"].sent[1]
    assert sent_call.payload == {**STREAMED, "messages": MORE}
    assert orjson.loads(sent_call.body) == sent_call.payload
    assert sent_call.chat.messages == MORE
    assert call.payload == STREAMED
    assert journal == [
        "attempt_ended watch 1", "settle 1", "attempt_ended watch 2", "settle 2", "settle call", "call_ended watch ok",
    ]  # fmt: skip
    lost, won, ended = (journal.results[name][0] for name in ("1", "2", "call"))
    assert (lost.outcome, won.outcome, ended.outcome) == ("upstream_lost", "ok", "ok")
    assert ended.cost_nanousd == lost.cost_nanousd + won.cost_nanousd
    assert lost.cost_nanousd > 0
    assert ended.usage == Usage(
        lost.usage.input_tokens + won.usage.input_tokens,
        lost.usage.output_tokens + won.usage.output_tokens,
        is_estimated=True,
    )
    assert ended.is_estimated


async def test_continue_goes_on_to_the_next_target_until_one_answers_with_a_stream(wire: Any) -> None:
    kit = kit_of(
        lambda: stream(wire.chunk("one"), ConnectionResetError()),
        lambda: answer(b'{"no": "completion"}'),
        lambda: stream(wire.chunk("two"), wire.done),
        plugins=(continuing(),),
    )

    delivered = await kit.call(STREAMED)

    assert delivered.body == wire.chunk("one") + wire.chunk("two") + wire.done
    assert sent(kit) == ["up/1", "up/2", "up/3"]


async def test_when_nobody_can_go_on_the_stream_ends_with_the_first_error(wire: Any) -> None:
    kit = kit_of(lambda: stream(wire.chunk("one"), ConnectionResetError()), refused(), plugins=(continuing(),))

    delivered = await kit.call(STREAMED)

    assert delivered.error is not None
    assert delivered.chunks[0] == wire.chunk("one")
    assert b"[DONE]" not in delivered.body
    assert sent(kit) == ["up/1", "up/2", "up/3"]


TOOL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    ("why", "events"),
    [
        ("a tool call has begun", lambda w: [w.event({"choices": [{"index": 0, "delta": {"tool_calls": [TOOL]}}]})]),
        ("half a giant has left", lambda w: [w.chunk("one"), w.chunk("A" * (1 << 21))[:-12]]),
    ],
)
async def test_continue_is_not_followed_where_two_streams_would_not_fit(why: str, events: Any, wire: Any) -> None:
    kit = kit_of(
        lambda: stream(*events(wire), ConnectionResetError()), lambda: stream(wire.done), plugins=(continuing(),)
    )

    delivered = await kit.call(STREAMED)

    assert sent(kit) == ["up/1"], why
    assert b'"error"' in delivered.body
    assert delivered.error is not None


@pytest.mark.parametrize("step", [Retry(), Fallback(), GiveUp(), None])
async def test_after_the_first_byte_no_other_step_goes_on(step: Any, wire: Any) -> None:
    kit = kit_of(lambda: stream(wire.chunk("one"), ConnectionResetError()), answer, plugins=(following(step),))

    delivered = await kit.call(STREAMED)

    assert sent(kit) == ["up/1"]
    assert delivered.error is not None


async def test_nobody_is_asked_to_go_on_after_the_deadline(wire: Any, journal: Any) -> None:
    async def send(call: Any, attempt: Any) -> Reply:
        async def body() -> AsyncIterator[bytes]:
            yield wire.chunk("one")
            PipelineKit.expire(call)
            await asyncio.Event().wait()

        return Reply(200, CIMultiDict({"content-type": "text/event-stream"}), body())

    asked = make_plugin("z", after_failure=lambda call, attempt: journal.append("asked"))
    kit = kit_of(send, plugins=(asked,))

    delivered = await kit.call(STREAMED)

    assert journal == []
    assert b"deadline_exceeded" in delivered.body


async def test_the_upstreams_own_error_event_mid_stream_is_withdrawn_if_another_goes_on(wire: Any) -> None:
    kit = kit_of(
        lambda: stream(wire.chunk("one"), ERROR_EVENT),
        lambda: stream(wire.chunk("two"), wire.done),
        plugins=(continuing(),),
    )

    delivered = await kit.call(STREAMED)

    assert delivered.body == wire.chunk("one") + wire.chunk("two") + wire.done


async def test_a_plugin_that_fails_closed_while_it_decides_ends_the_stream_with_an_error_event(wire: Any) -> None:
    def after_failure(call: Any, attempt: Any) -> Any:
        raise ValueError

    broken = make_plugin("broken", on_error="closed", after_failure=after_failure)
    kit = kit_of(lambda: stream(wire.chunk("one"), ConnectionResetError()), plugins=(broken,))

    delivered = await kit.call(STREAMED)

    assert b'plugin \\"broken\\" failed in after_failure' in delivered.body
    assert delivered.error is not None


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("", None),
        ("soon", None),
        ("²", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("-3", None),
        ("inf", None),
        ("Thu, 01 Jan 1970 00:00:00", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(said: str, seconds: float | None) -> None:
    assert seconds == seconds_of(said)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "9", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"}, 9.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0.5s"}, 60.5),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1m"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "0",
          "x-ratelimit-reset-requests": "120ms", "x-ratelimit-reset-tokens": "6s"}, 6.0),
        ({"anthropic-ratelimit-output-tokens-remaining": "0", "anthropic-ratelimit-output-tokens-reset": "1970-01-01T00:00:00Z"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e9"}, None),
    ],
)  # fmt: skip
def test_a_429_says_when_to_come_again_in_many_ways(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(Reply(429, headers)) == seconds


def test_only_a_429_is_about_what_is_used_up() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"}

    assert retry_after_of(Reply(500, headers)) is None


@pytest.mark.parametrize("body", [b"<html>welcome to the hotel's network</html>", b'{"choices": [', b""])
async def test_a_200_that_is_no_json_is_garbage_and_the_next_target_is_tried(body: bytes) -> None:
    def hotel() -> Reply:
        return Reply(200, {"content-type": "text/html"}, body)

    providers = [ScriptedProvider(hotel, name="a"), ScriptedProvider(answer, name="b")]
    kit = PipelineKit(make_plugin("next", after_failure=lambda call, attempt: Fallback()), providers=providers,
                      deployments={"m": ["a/m", "b/m"]})  # fmt: skip

    delivered = await kit.call({"model": "m", "messages": []})

    assert (delivered.status, delivered.headers["x-hookline-deployment"]) == (200, "b/m")


async def test_a_plain_hook_may_answer_a_coroutine_where_it_seldom_waits(journal: Any) -> None:
    async def ask() -> Any:
        await asyncio.sleep(0)
        return journal.ticket("asked")

    rarely = make_plugin("rarely", admit_attempt=lambda call, target, attempt: ask())
    kit = kit_of(answer, plugins=(rarely,))

    delivered = await kit.call(ASKED)

    assert delivered.status == 200
    assert journal == ["settle asked"]


async def test_a_plain_hook_whose_coroutine_is_late_is_one_that_failed(journal: Any) -> None:
    async def ask() -> Any:
        await asyncio.Event().wait()

    rarely = make_plugin("rarely", admit_attempt=lambda call, target, attempt: ask())
    kit = kit_of(answer, plugins=(rarely,), hook_timeout_s=0.01)

    assert (await kit.call(ASKED)).status == 200
    assert kit.metric("hookline_hook_errors_total", plugin="rarely") == 1
