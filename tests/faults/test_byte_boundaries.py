"""Every fault at every byte of a small reply, through the whole gateway: the client sees the whole truth, the spare deployment's answer, or an error.

Never: half an answer that looks whole, two answers in one, an answer to somebody else's question."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import pytest

from hookline.testing.raw_client import RawReply, chat_request
from hookline.testing.upstream import CUT, HALF_CLOSE, RESET, STALL, Script, json_reply, sse_reply
from hookline.transport import SseSplitter, parse_event

GARBAGE = b"\x00\xff\r\r\n\x00 garbage \x00"
ENDS: dict[str, Script] = {
    "cut": [CUT],
    "half-close": [HALF_CLOSE],
    "reset": [RESET],
    "stall": [STALL],
    "garbage": [GARBAGE, CUT],
}
TOGETHER = 64
"""Cases under way at a time."""

ANSWER = b'{"choices":[{"index":0,"message":{"content":"\xc3\xbc"}}],"usage":{"total_tokens":1}}'
FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xbc"}}]}\r\n\r\n'
FINISH = b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n'
EVENTS = FIRST + FINISH + USAGE + b"data: [DONE]\n\n"
SPARE_ANSWER = {"choices": [{"index": 0, "message": {"content": "spare"}}]}
SPARE_EVENT = '{"choices":[{"index":0,"delta":{"content":"spare"},"finish_reason":"stop"}]}'


@dataclass(frozen=True)
class Sent:
    """A reply as an upstream would send it; `pieces` are its body, one chunk each."""

    framing: str
    pieces: tuple[bytes, ...]
    content_type: str

    @property
    def head(self) -> bytes:
        framing = {
            "length": b"content-length: %d\r\n" % len(b"".join(self.pieces)),
            "chunked": b"transfer-encoding: chunked\r\n",
            "eof": b"",
        }
        return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n" % (self.content_type.encode(), framing[self.framing])

    @property
    def whole(self) -> bytes:
        if self.framing != "chunked":
            return self.head + b"".join(self.pieces)
        return self.head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in self.pieces) + b"0\r\n\r\n"

    def body_within(self, cut: int) -> bytes | None:
        """How much of the body the first `cut` bytes hold; None: not even the head."""
        if cut < len(self.head):
            return None
        if self.framing != "chunked":
            return self.whole[len(self.head) : cut]
        position, body = len(self.head), b""
        for piece in self.pieces:
            position += len(b"%x\r\n" % len(piece))
            body += piece[: max(0, cut - position)]
            position += len(piece) + 2
        return body


JSON = {framing: Sent(framing, (ANSWER[:9], ANSWER[9:]), "application/json") for framing in ("length", "chunked")}
SSE = {
    framing: Sent(
        framing, (FIRST[:50], FIRST[50:] + FINISH[:4], FINISH[4:] + USAGE, b"data: [DONE]\n\n"), "text/event-stream"
    )
    for framing in ("length", "chunked", "eof")
}


PROXY = """
[chain]
plugins = ["fallback"]
[providers.up]
kind = "openai"
base_url = "{up}"
first_byte_timeout_s = {first_byte_s}
idle_timeout_s = {idle_s}
[providers.spare]
kind = "openai"
base_url = "{spare}"
[models.alone]
deployments = ["up/alone"]
[models.pair]
deployments = ["up/pair", "spare/pair"]
"""


@pytest.fixture
def cut_everywhere(start_gateway, upstream, spare) -> Callable:
    """`await cut_everywhere(sent, end, model)`: what the client sees for each proper prefix of the reply, then the fault."""
    spare.always(lambda request: sse_reply(SPARE_EVENT) if request.json()["stream"] else json_reply(SPARE_ANSWER))

    async def run(sent: Sent, end: str, model: str, last: int) -> list[tuple[int, RawReply]]:
        whole, places = sent.whole, asyncio.Semaphore(TOGETHER)

        def play(request) -> Script:
            cut = int(request.json()["user"])
            return [whole[:cut], *ENDS[end]] if cut else ENDS[end]

        async def one(cut: int) -> tuple[int, RawReply]:
            async with places:
                is_stream = sent.content_type == "text/event-stream"
                return cut, await gateway.ask(chat_request(model, stream=is_stream, user=str(cut)))

        first_byte_s, idle_s = (1.5, 0.6) if end == "stall" else (60, 60)
        gateway = await start_gateway(
            PROXY.format(up=upstream.url, spare=spare.url, first_byte_s=first_byte_s, idle_s=idle_s)
        )
        upstream.always(play)
        seen = await asyncio.gather(*[one(cut) for cut in range(last)])
        await gateway.idle()
        assert gateway.pool().open == 0, "a connection that broke was kept"
        upstream.always(json_reply({"choices": []}))
        assert (await gateway.ask(chat_request("alone"))).body == b'{"choices":[]}'
        return seen

    return run


def is_error(reply: RawReply, *codes: str) -> bool:
    return reply.is_whole and reply.status in (502, 504) and orjson.loads(reply.body)["error"]["code"] in codes


def is_spare(reply: RawReply, attempts: str = "2") -> bool:
    said = SPARE_EVENT.encode() if "event-stream" in reply.headers["content-type"] else orjson.dumps(SPARE_ANSWER)
    is_whole = reply.status == 200 and reply.is_whole and said in reply.body
    return is_whole and reply.headers["x-hookline-attempts"] == attempts


@pytest.mark.parametrize("framing", JSON)
@pytest.mark.parametrize("end", ["cut", "half-close", "reset", "stall"])
async def test_half_an_answer_is_an_error_or_the_spares(framing, end, cut_everywhere):
    sent = JSON[framing]
    code = "upstream_timeout" if end == "stall" else "upstream_reset"

    alone = await cut_everywhere(sent, end, "alone", len(sent.whole))
    pair = await cut_everywhere(sent, end, "pair", len(sent.whole))

    assert [(cut, reply) for cut, reply in alone if not is_error(reply, code)] == []
    assert [(cut, reply) for cut, reply in pair if not is_spare(reply)] == []


def visible(came: bytes) -> bytes:
    """What of these bytes the client may see: whole events, the last perhaps without its blank line; the usage was ours to ask."""
    splitter = SseSplitter()
    whole = b"".join(splitter.feed(came)) + (splitter.tail if is_readable(parse_event(splitter.tail).data) else b"")
    return re.sub(re.escape(USAGE.rstrip()) + b"\n{0,2}", b"", whole)


def is_readable(data: bytes) -> bool:
    try:
        return data == b"[DONE]" or isinstance(orjson.loads(data), dict)
    except orjson.JSONDecodeError:
        return False


def split_error(body: bytes) -> tuple[bytes, bytes]:
    """The body without the gateway's error event, and that."""
    at = body.rfind(b'data: {"error"')
    return (body, b"") if at < 0 else (body[:at], body[at:])


@pytest.mark.parametrize("framing", SSE)
@pytest.mark.parametrize("end", ["cut", "half-close", "stall", "reset"])
@pytest.mark.parametrize("model", ["alone", "pair"])
async def test_half_a_stream_is_what_came_and_an_error_event(framing, end, model, cut_everywhere):
    sent = SSE[framing]
    ended_at = len(sent.whole) if framing != "eof" else len(sent.whole) - 1

    for cut, reply in await cut_everywhere(sent, end, model, ended_at):
        came = sent.body_within(cut)
        is_refused = is_spare(reply) if model == "pair" else is_error(reply, "upstream_reset", "upstream_timeout")
        if came is None:
            assert is_refused, cut
            continue
        if (
            is_refused
        ):  # a reset may overtake what came; only the end of the connection ends an event without its blank line
            assert end == "reset" or FIRST not in came, cut
            continue
        if model == "pair" and came.rstrip() == FIRST.rstrip() and is_spare(reply, "1"):
            continue  # the head has left, but not the event, which waited for its blank line
        told, error = split_error(reply.body)
        is_finished = FINISH.rstrip() in told
        assert (reply.status, reply.is_whole, bool(error)) == (200, is_finished, not is_finished), cut
        assert FIRST.rstrip() in told, cut
        if end == "reset":
            assert visible(came).startswith(told.rstrip()), cut
        else:
            assert visible(came).rstrip() == told.rstrip(), cut
        assert all(map(is_readable, dispatched(reply.body))), cut
        assert not error or dispatched(reply.body)[-1].startswith(b'{"error"'), cut


def dispatched(body: bytes) -> list[bytes]:
    """The data of the events that a client would dispatch."""
    return [event.data for event in map(parse_event, SseSplitter().feed(body)) if not event.is_comment_only]


@pytest.mark.parametrize(
    "sent", [*JSON.values(), *SSE.values()], ids=lambda sent: f"{sent.content_type[-4:]}-{sent.framing}"
)
async def test_garbage_is_never_an_answer_of_its_own(sent, cut_everywhere):
    """Bytes inside a body that keep its framing are the provider's word; all others are an error, the spare's answer, or an error event."""
    is_json = sent.content_type == "application/json"
    for cut, reply in await cut_everywhere(sent, "garbage", "pair", len(sent.whole)):
        came = sent.body_within(cut)
        if is_spare(reply):
            continue
        assert reply.status == 200, cut
        assert came is not None, cut
        if is_json:
            assert reply.body.startswith(came), cut
            assert GARBAGE[:1] in reply.body, cut
        else:
            told, error = split_error(reply.body)
            assert all(map(is_readable, dispatched(reply.body))), cut
            events = dispatched(visible(EVENTS))
            assert dispatched(told) == events[: len(dispatched(told))], cut
            assert reply.is_whole is not bool(error), cut
            assert error or FINISH.rstrip() in told, cut
