"""Streams whose events a plugin edits: the same events, wherever they are cut, to the last byte."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hookline.testing.kit import CHAT, PipelineKit, ScriptedProvider, make_plugin, stream

STREAMED = {**CHAT, "stream": True}
UNCHANGED = make_plugin("reader", edit_event=lambda call, event: event)
ERROR = b'data: {"error":{"message":"m"}}'


def shout(call: Any, event: Any) -> Any:
    data = event.json()
    if isinstance(data, dict) and data.get("choices"):
        delta = data["choices"][0]["delta"]
        event.replace_json(
            {**data, "choices": [{**data["choices"][0], "delta": {k: v.upper() for k, v in delta.items()}}]}
        )
    return event


def kit_of(plugin: type, *pieces: Any) -> PipelineKit:
    return PipelineKit(plugin, providers=[ScriptedProvider(lambda: stream(*pieces))])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
async def test_events_are_the_same_wherever_they_are_cut(wire: Any, line_end: bytes) -> None:
    whole = (
        b": hi\n\n"
        + wire.chunk("ü€𝄞")
        + b"event: x\nid: 7\ndata: 1\ndata: 2\n\n"
        + wire.chunk(finish="stop")
        + wire.done
    )
    whole = whole.replace(b"\n", line_end)
    for cut in range(1, len(whole)):
        delivered = await kit_of(UNCHANGED, whole[:cut], whole[cut:]).call(STREAMED)

        assert (delivered.body, delivered.error) == (whole, None), cut


async def test_an_event_that_is_edited_leaves_changed_and_in_its_place(wire: Any) -> None:
    pieces = [
        wire.chunk("a")[:30],
        wire.chunk("a")[30:] + b": comment\n\n" + wire.chunk("b"),
        wire.chunk(finish="stop"),
    ]

    delivered = await kit_of(make_plugin("shout", edit_event=shout), *pieces).call(STREAMED)

    assert delivered.body == wire.chunk("A") + b": comment\n\n" + wire.chunk("B") + wire.chunk(finish="stop")


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
async def test_an_error_event_is_seen_however_it_ends(wire: Any, end: bytes) -> None:
    """Symptom: without its blank line it stayed in the splitter of the edits when the body broke off, and the client saw no error."""
    delivered = await kit_of(UNCHANGED, wire.chunk("a"), ERROR + end).call(STREAMED)

    assert delivered.body.rstrip() == wire.chunk("a") + ERROR
    assert delivered.body.endswith(b"\n\n")
    assert delivered.error is not None


async def test_what_came_of_a_cut_event_is_nobodys(wire: Any) -> None:
    delivered = await kit_of(UNCHANGED, wire.chunk("a"), wire.chunk("b")[:20], ConnectionResetError()).call(STREAMED)

    assert delivered.body.startswith(wire.chunk("a") + b'data: {"error":')


async def test_an_event_without_end_does_not_fill_the_memory(
    wire: Any, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline.relay.EDITED_EVENT_BYTES_MAX", 4 << 20)
    closed: list[str] = []
    piece, never = b"x" * (1 << 20), asyncio.Event()
    provider = ScriptedProvider(lambda: stream(wire.chunk("a"), b"data: ", *[piece] * 6, never, closed=closed))
    kit = PipelineKit(UNCHANGED, journal.observer("watch"), providers=[provider])

    delivered = await kit.call(STREAMED)

    assert delivered.body.startswith(wire.chunk("a") + b'data: {"error":')
    assert len(delivered.body) < 1000
    assert closed == ["closed"]
    assert journal == ["attempt_ended watch 1", "call_ended watch upstream_lost"]
