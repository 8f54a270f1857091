"""Bodies read event by event, for translations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from hookline import UpstreamError
from hookline.providers import event_reader
from hookline.providers.event_reader import ReadEvent, TranslatedBody, read_events


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
    raw = b': hi\r\n\r\nevent: a\r\ndata: {"n":\r\ndata: 1}\r\n\r\nevent: ping\ndata: now\n\ndata: [DONE]'
    expected = [
        ReadEvent(None, None, comment=b": hi\r\n\r\n"),
        ReadEvent("a", {"n": 1}),
        ReadEvent("ping", None),
        ReadEvent(None, None, is_done=True),
    ]

    for size in range(1, len(raw) + 1):
        body = Body(*(raw[at : at + size] for at in range(0, len(raw), size)))
        assert [event async for event in read_events(body, "up/m")] == expected
        assert body.is_closed


async def test_an_event_without_end_is_refused_and_the_body_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "MAX_EVENT_BYTES", 100)
    body = Body(b"data: {}\n\n", *[b"x" * 10] * 20)

    with pytest.raises(UpstreamError, match="more than 100 bytes") as failed:
        async for _ in read_events(body, "up/m"):
            pass

    assert (failed.value.kind, body.is_closed) == ("garbage", True)


async def test_many_small_events_are_no_giant_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "MAX_EVENT_BYTES", 100)
    body = Body(*[b"data: {}", b"\n\n"] * 100)

    assert len([event async for event in read_events(body, "up/m")]) == 100


@pytest.mark.parametrize(
    "broken", [b"data: no json\n\n", b"data: [1]\n\n", b'data: {"a"\n\n', b"event: error\ndata: busy\n\n"]
)
async def test_an_event_that_is_no_object_is_refused_and_the_body_closed(broken: bytes) -> None:
    body = Body(b"data: {}\n\n", broken, b"data: {}\n\n")
    read = []

    with pytest.raises(UpstreamError, match="no JSON object") as failed:
        async for event in read_events(body, "up/m"):
            read.append(event)

    assert (failed.value.kind, len(read), body.is_closed) == ("garbage", 1, True)


async def test_where_every_event_is_an_object_a_name_is_no_excuse() -> None:
    body = Body(b"event: content_block_delta\ndata: {\n\n")

    with pytest.raises(UpstreamError):
        async for _ in read_events(body, "up/m", are_objects=True):
            pass


async def test_half_an_event_at_the_end_is_none() -> None:
    assert [event.data async for event in read_events(Body(b'data: {}\n\ndata: {"a'), "up/m")] == [{}]


async def test_closing_a_translation_that_nobody_began_closes_what_it_is_made_of() -> None:
    body = Body(b"data: {}\n\n")

    async def translated() -> AsyncGenerator[bytes, None]:
        async for _ in read_events(body, "up/m"):
            yield b""

    await TranslatedBody(translated(), body).aclose()

    assert body.is_closed


async def test_leaving_early_closes_the_body() -> None:
    body = Body(b"data: {}\n\n", b"data: {}\n\n")
    events = read_events(body, "up/m")
    await anext(events)

    await events.aclose()

    assert body.is_closed
