"""Comments while an upstream thinks: the first commits 200, and from then on the truth comes as events."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from hookline import Fallback, RateLimited, Rejected, UpstreamError
from hookline.heartbeats import HEARTBEAT
from hookline.pipeline_settings import PipelineSettings
from hookline.testing.kit import ANSWER_AS_STREAM, CHAT, PipelineKit, ScriptedProvider, answer, make_plugin, stream

STREAMED = {**CHAT, "stream": True}
BEATING = PipelineSettings(heartbeat_s=0.001)
FALLBACK = make_plugin("fallback", after_failure=lambda call, attempt: Fallback())


class Slow:
    """Answers with `reply` when `go` is set."""

    def __init__(self, reply: Any) -> None:
        self.go = asyncio.Event()
        self.reply = reply

    async def play(self, call: Any, attempt: Any) -> Any:
        await self.go.wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply()


def kit_of(
    *scripts: Any, plugins: tuple[type, ...] = (), settings: PipelineSettings = BEATING, **more: Any
) -> PipelineKit:
    plays = [script.play if isinstance(script, Slow) else script for script in scripts]
    return PipelineKit(*plugins, providers=[ScriptedProvider(*plays)], settings=settings, **more)


async def begun(kit: PipelineKit, slow: Slow, **about: Any) -> Any:
    """A call whose client has its first comment, and its upstream's answer."""
    running = kit.start(kit.make_call(STREAMED, **about))
    await running.delivered.has_begun.wait()
    assert (running.delivered.status, running.delivered.chunks[0]) == (200, HEARTBEAT)
    assert running.delivered.headers["content-type"] == "text/event-stream"
    slow.go.set()
    return await running.done()


def events(body: bytes) -> bytes:
    """What is no heartbeat."""
    return body.replace(HEARTBEAT, b"")


async def test_a_stream_that_comes_after_comments_is_relayed_whole(wire: Any, journal: Any) -> None:
    said = (wire.chunk("ho"), wire.chunk(finish="stop"), wire.done)
    slow = Slow(lambda: stream(*said))

    delivered = await begun(kit_of(slow, plugins=(journal.observer("log"),)), slow)

    assert events(delivered.body) == b"".join(said)
    assert delivered.error is None
    assert journal == ["attempt_ended log 1", "call_ended log ok"]


async def test_fallback_still_works_after_the_first_comment(wire: Any, journal: Any) -> None:
    slow = Slow(UpstreamError("died", kind="reset"))
    said = (wire.chunk("ho"), wire.chunk(finish="stop"))
    kit = kit_of(
        slow, lambda: stream(*said), plugins=(FALLBACK, journal.observer("log")), deployments={"up/m": ["up/1", "up/2"]}
    )

    delivered = await begun(kit, slow)

    assert events(delivered.body) == b"".join(said)
    assert journal == ["attempt_ended log 1", "attempt_ended log 2", "call_ended log ok"]


ODD_BODIES = [
    (b'{"error":{"message":"m","type":"t","code":"c"}}', {"message": "m", "type": "t", "code": "c"}),
    (b'{"error":"not here"}', {"message": "not here", "type": "upstream_error"}),
    (b'"not here"', {"message": "not here", "type": "upstream_error"}),
    (b"[1]", {"message": "the upstream answered 503", "type": "upstream_error"}),
    (b"<html>", {"message": "the upstream answered 503", "type": "upstream_error"}),
    (b"", {"message": "the upstream answered 503", "type": "upstream_error"}),
]


@pytest.mark.parametrize(("body", "told"), ODD_BODIES)
async def test_a_final_error_is_an_error_event_and_no_clean_end(
    body: bytes, told: dict[str, str], journal: Any
) -> None:
    """Symptom: an error whose body is no object broke the body itself: the client saw nothing at all, the log a failure of the gateway."""
    slow = Slow(lambda: answer(body, status=503))

    delivered = await begun(kit_of(slow, plugins=(journal.observer("log"),)), slow)

    data = orjson.loads(events(delivered.body).removeprefix(b"data: "))
    assert told == {name: data["error"][name] for name in told}
    assert delivered.error is not None, "the surface must not end it cleanly"
    assert journal == ["attempt_ended log 1", "call_ended log upstream_error"]


async def test_an_error_of_ours_keeps_its_type_and_the_call_its_outcome(journal: Any) -> None:
    go = asyncio.Event()

    async def admit(call: Any) -> None:
        await go.wait()
        raise Rejected(RateLimited("too many"))

    kit = kit_of(plugins=(make_plugin("limit", admit=admit), journal.observer("log")))
    running = kit.start(kit.make_call(STREAMED))
    await running.delivered.has_begun.wait()
    go.set()
    delivered = await running.done()

    error = orjson.loads(events(delivered.body).removeprefix(b"data: "))["error"]
    assert (error["type"], error["message"]) == ("rate_limit_error", "too many")
    assert journal == ["call_ended log rejected"]


async def test_a_responses_stream_is_told_in_its_own_words(journal: Any) -> None:
    slow = Slow(lambda: answer(b'{"error":{"message":"m","code":"c"}}', status=500))

    delivered = await begun(kit_of(slow), slow, path="/v1/responses")

    name, data = events(delivered.body).split(b"\n")[:2]
    assert name == b"event: error"
    assert orjson.loads(data[6:]) == {"type": "error", "code": "c", "message": "m", "param": None, "sequence_number": 0}


async def test_an_answer_that_is_no_stream_after_all_comes_as_one() -> None:
    slow = Slow(answer)

    delivered = await begun(kit_of(slow), slow)

    assert events(delivered.body) == ANSWER_AS_STREAM


async def test_the_deadline_still_counts_while_it_beats(journal: Any) -> None:
    slow = Slow(answer)
    kit = kit_of(slow, plugins=(journal.observer("log"),))
    running = kit.start(kit.make_call(STREAMED))
    await running.delivered.has_begun.wait()

    kit.expire(running.call)
    delivered = await running.done()

    assert b"deadline_exceeded" in events(delivered.body)
    assert delivered.error is not None
    assert journal == ["attempt_ended log 1", "call_ended log timeout"]


@pytest.mark.parametrize("begins", [False, True])
async def test_a_client_that_leaves_while_it_beats_ends_everything(journal: Any, begins: bool) -> None:
    """Before the body was read for the first time as well as between two comments."""
    slow = Slow(answer)
    taking = make_plugin(
        "a",
        admit=lambda call: journal.ticket("slot"),
        admit_attempt=lambda call, target, attempt: journal.ticket("try"),
    )
    kit = kit_of(slow, plugins=(taking, journal.observer("log")))
    running = kit.start(kit.make_call(STREAMED))
    if begins:
        await running.delivered.has_begun.wait()
    else:
        while not kit.providers["up"].sent:  # noqa: ASYNC110 - there is no event for "was asked"
            await asyncio.sleep(0)

    running.leave()
    await running.done()

    assert journal == ["attempt_ended log 1", "settle try", "settle slot", "call_ended log client_gone"]
    assert len(asyncio.all_tasks()) == 1


async def test_a_client_that_leaves_a_call_that_drains_is_not_missed(journal: Any, wire: Any) -> None:
    slow = Slow(lambda: stream(wire.chunk("ho"), wire.chunk(finish="stop"), wire.usage))
    kit = kit_of(
        slow, plugins=(journal.observer("log"),), settings=PipelineSettings(heartbeat_s=0.001, on_disconnect="drain")
    )
    running = kit.start(kit.make_call(STREAMED))
    await running.delivered.has_begun.wait()

    running.delivered.gone_after = 0
    running.leave()
    slow.go.set()
    await running.done()

    assert journal == ["attempt_ended log 1", "call_ended log client_gone"]
    assert journal.results["call_ended log"][0].usage.output_tokens == 5
    assert kit.pipeline.pumps.running == 0


async def test_calls_that_are_no_streams_are_not_beaten_for() -> None:
    slow = Slow(answer)
    kit = kit_of(slow)
    running = kit.start()
    asyncio.get_running_loop().call_later(0.02, slow.go.set)

    delivered = await running.done()

    assert (delivered.times, delivered.json()["choices"][0]["message"]["content"]) == (1, "ho")
