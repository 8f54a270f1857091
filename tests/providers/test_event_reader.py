"""Bodies read event by event, for translations."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hookline import UpstreamError
from hookline.providers import event_reader
from hookline.providers.event_reader import ReadEvent, read_events


class Body:
    """Chunks, and whether it was closed."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.is_closed = True


async def test_events_comments_and_the_end_are_told_apart_however_they_are_cut() -> None:
    raw = b': hi\r\n\r\nevent: a\r\ndata: {"n":\r\ndata: 1}\r\n\r\ndata: [1]\n\ndata: no json\n\ndata: [DONE]'
    expected = [
        ReadEvent(None, None, comment=b": hi\r\n\r\n"),
        ReadEvent("a", {"n": 1}),
        ReadEvent(None, None),
        ReadEvent(None, None),
        ReadEvent(None, None, is_done=True),
    ]

    for size in range(1, len(raw) + 1):
        body = Body(*(raw[at : at + size] for at in range(0, len(raw), size)))
        assert [event async for event in read_events(body, "up/m")] == expected
        assert body.is_closed


async def test_an_event_without_end_is_refused_and_the_body_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "MAX_EVENT_BYTES", 100)
    body = Body(b"data: 1\n\n", *[b"x" * 10] * 20)

    with pytest.raises(UpstreamError, match="more than 100 bytes") as failed:
        async for _ in read_events(body, "up/m"):
            pass

    assert (failed.value.kind, body.is_closed) == ("garbage", True)


async def test_many_small_events_are_no_giant_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "MAX_EVENT_BYTES", 100)
    body = Body(*[b"data: 1", b"\n\n"] * 100)

    assert len([event async for event in read_events(body, "up/m")]) == 100


async def test_leaving_early_closes_the_body() -> None:
    body = Body(b"data: {}\n\n", b"data: {}\n\n")
    events = read_events(body, "up/m")
    await anext(events)

    await events.aclose()

    assert body.is_closed
