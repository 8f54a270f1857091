"""Clients that leave a call which drains: it is read to its end without them, and so many at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hookline.pipeline_settings import PipelineSettings
from hookline.testing.kit import CHAT, Delivered, PipelineKit, ScriptedProvider, answer, stream

STREAMED = {**CHAT, "stream": True}


class Draining:
    """Streams that stop after their first event until `go` is set, then end with `last`."""

    def __init__(self, journal: Any, wire: Any, *last: Any, max_pumps: int = 100) -> None:
        self.go = asyncio.Event()
        self.closed: list[str] = []
        last = last or (wire.chunk(finish="stop"), wire.usage, wire.done)
        provider = ScriptedProvider(lambda: stream(wire.chunk("a"), self.go, *last, closed=self.closed))
        settings = PipelineSettings(on_disconnect="drain", max_pumps=max_pumps)
        self.kit = PipelineKit(journal.observer("watch"), providers=[provider], settings=settings)

    async def begin(self) -> Any:
        running = self.kit.start(self.kit.make_call(STREAMED))
        await running.delivered.has_begun.wait()
        return running

    def outcomes(self, journal: Any) -> list[tuple[str, int | None, bool]]:
        return [
            (r.outcome, r.usage and r.usage.output_tokens, r.is_estimated) for r in journal.results["call_ended watch"]
        ]


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_stream_is_read_to_its_end_and_its_usage_known(journal: Any, wire: Any, is_told: bool) -> None:
    """Told by the connection, or found out at the next write."""
    draining = Draining(journal, wire)
    running = await draining.begin()

    running.delivered.gone_after = 1
    if is_told:
        running.leave()
        running.leave()
    draining.go.set()
    await running.done()

    assert draining.outcomes(journal) == [("client_gone", 5, False)]
    assert (draining.kit.pipeline.pumps.running, draining.closed) == (0, ["closed"])


async def test_beyond_so_many_the_upstream_is_cancelled(journal: Any, wire: Any) -> None:
    draining = Draining(journal, wire, max_pumps=1)
    first, second = await draining.begin(), await draining.begin()

    first.leave()
    second.leave()
    await second.done()
    assert (draining.closed, draining.kit.pipeline.pumps.running) == (["closed"], 1)
    draining.go.set()
    await first.done()

    assert [(outcome, estimated) for outcome, _, estimated in draining.outcomes(journal)] == [
        ("client_gone", True),
        ("client_gone", False),
    ]
    assert draining.kit.pipeline.pumps.running == 0


async def test_an_upstream_that_dies_while_nobody_listens_ends_the_call(journal: Any, wire: Any) -> None:
    draining = Draining(journal, wire, ConnectionResetError())
    running = await draining.begin()

    running.delivered.gone_after = 1
    running.leave()
    draining.go.set()
    await running.done()

    assert journal == ["attempt_ended watch 1", "call_ended watch client_gone"]
    assert draining.kit.pipeline.pumps.running == 0


async def test_the_deadline_ends_a_call_that_drains(journal: Any, wire: Any) -> None:
    draining = Draining(journal, wire)
    running = await draining.begin()

    running.leave()
    draining.kit.expire(running.call)
    await running.done()

    assert draining.kit.pipeline.pumps.running == 0
    assert draining.closed == ["closed"]
    assert len(journal.results["call_ended watch"]) == 1


async def test_a_call_that_is_no_stream_is_asked_to_its_end(journal: Any) -> None:
    go, is_there = asyncio.Event(), asyncio.Event()

    async def play(call: Any, attempt: Any) -> Any:
        is_there.set()
        await go.wait()
        return answer()

    kit = PipelineKit(
        journal.observer("watch"), providers=[ScriptedProvider(play)], settings=PipelineSettings(on_disconnect="drain")
    )
    running = kit.start(delivered=Delivered())
    await is_there.wait()

    running.leave()
    go.set()
    delivered = await running.done()

    assert delivered.times == 0
    assert journal.results["call_ended watch"][0].usage.output_tokens == 5
    assert journal == ["attempt_ended watch 1", "call_ended watch client_gone"]


async def test_a_stream_that_ends_well_and_says_that_it_failed_is_no_success(journal: Any) -> None:
    """Symptom: the log line of a stream with `response.failed` said "ok"."""
    created = b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{}}\n\n'
    failed = b'event: response.failed\ndata: {"type":"response.failed","sequence_number":1,"response":{"status":"failed"}}\n\n'
    provider = ScriptedProvider(lambda: stream(created, failed))
    kit = PipelineKit(journal.observer("watch"), providers=[provider])

    delivered = await kit.run(kit.make_call({"model": "up/m", "input": "hi", "stream": True}, path="/v1/responses"))

    assert (delivered.body, delivered.error) == (created + failed, None)
    assert [result.outcome for result in journal.results["call_ended watch"]] == ["upstream_error"]
