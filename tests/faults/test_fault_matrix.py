"""Every way an upstream can fail, as a stream and not, with another deployment to go to and without: what the official SDK gets.

One table. Each line says what the upstream does, and what a client without a fallback gets for it: a status, "ok", or CUT_OFF: a stream that has begun and ends with an error.
With a fallback everything that failed before the first byte is answered by the other deployment. Never is a failure cached, booked as a success, or shown as a stream that has ended well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import openai
import orjson
import pytest

from hookline.stores.reports import LedgerQuery
from hookline.testing.upstream import (
    CUT,
    HALF_CLOSE,
    RESET,
    STALL,
    Script,
    bytes_reply,
    json_reply,
    reply_head,
    sse_reply,
)

OK, CUT_OFF = "ok", "an error inside the stream"
EITHER = "502, or an error inside the stream"
"""What comes together with the first event counts as before it."""
ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}
ERROR = {"error": {"message": "no", "type": "server_error", "code": None}}


def chunk(text: str | None, finish: str | None = None) -> str:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return orjson.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    ).decode()


HALF, STOP = chunk("we"), chunk(None, "stop")
WHOLE = [chunk("we"), chunk("ll"), STOP, "[DONE]"]
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}


def never_ending(head: bytes, piece: bytes) -> Script:
    def steps() -> Any:
        yield head
        while True:
            yield piece

    return steps()  # type: ignore[return-value]


class Fault(NamedTuple):
    """What the upstream does: to a call, to a streamed call; and what the client gets where there is no other deployment."""

    plain: Callable[[], Script]
    streamed: Callable[[], Script]
    gets: int | str
    gets_streamed: int | str


def both(script: Callable[[], Script], gets: int) -> Fault:
    return Fault(script, script, gets, gets)


def status(number: int, **headers: str) -> Fault:
    return both(lambda: json_reply(ERROR, status=number, headers=headers), number)


FAULTS = {
    "reset before an answer": both(lambda: [RESET], 502),
    "closed before an answer": both(lambda: [CUT], 502),
    "stalls before headers": both(lambda: [STALL], 504),
    "stalls after headers": Fault(
        lambda: [reply_head(200, {**JSON, "content-length": "100"}), STALL],
        lambda: [reply_head(200, {**SSE, "transfer-encoding": "chunked"}), STALL],
        504,
        504,
    ),
    "half-closed before an answer": both(lambda: [HALF_CLOSE], 502),
    "cut in the body": Fault(
        lambda: [reply_head(200, {**JSON, "content-length": "500"}) + b'{"id": "c", ', CUT],
        lambda: sse_reply(HALF, CUT),
        502,
        EITHER,
    ),
    "reset in the body": Fault(
        lambda: [reply_head(200, {**JSON, "content-length": "500"}) + b'{"id": "c", ', RESET],
        lambda: sse_reply(HALF, RESET),
        502,
        EITHER,
    ),
    "stalls in the body": Fault(
        lambda: [reply_head(200, {**JSON, "content-length": "500"}) + b'{"id": "c", ', STALL],
        lambda: sse_reply(HALF, STALL),
        504,
        CUT_OFF,
    ),
    "drips": Fault(
        lambda: [reply_head(200, {**JSON, "content-length": str(len(orjson.dumps(ANSWER)))})]
        + [bytes([byte]) for byte in orjson.dumps(ANSWER)],
        lambda: sse_reply(*[bytes([byte]) for text in WHOLE for byte in f"data: {text}\n\n".encode()]),
        OK,
        OK,
    ),
    "no HTTP": both(lambda: [b"\x16\x03\x01 220 smtp ready\r\n\r\n", CUT], 502),
    "garbled chunks": Fault(
        lambda: [reply_head(200, {**JSON, "transfer-encoding": "chunked"}) + b"zz\r\n{}", CUT],
        lambda: [*sse_reply(HALF)[:-1], b"zz\r\n", CUT],
        502,
        EITHER,
    ),
    "an HTML page with 500": both(
        lambda: bytes_reply(b"<html>oops</html>", status=500, headers={"content-type": "text/html"}), 500
    ),
    "a status that there is not": both(lambda: json_reply(ERROR, status=600), 502),
    "an HTML page with 200": both(lambda: bytes_reply(b"<html>login</html>", headers={"content-type": "text/html"}), 502),
    "half a JSON with its length": Fault(
        lambda: bytes_reply(b'{"id": "c", "choi', headers=JSON), lambda: sse_reply(b'data: {"choices": [{"ind'), 502, 502
    ),
    "nothing with 200": Fault(
        lambda: bytes_reply(b"", headers=JSON), lambda: sse_reply(), 502, 502
    ),
    "429 with retry-after": status(429, **{"retry-after": "7"}),
    "429 without": status(429),
    "401": status(401),
    "403": status(403),
    "404": status(404),
    "503": status(503),
    "529": status(529),
    "an error as the first event": Fault(
        lambda: json_reply(ERROR, status=500), lambda: sse_reply(orjson.dumps(ERROR)), 500, 502
    ),
    "an error inside the stream": Fault(
        lambda: json_reply(ERROR, status=502), lambda: sse_reply(HALF, orjson.dumps(ERROR).decode()), 502, EITHER
    ),
    "a clean end without [DONE]": Fault(lambda: [RESET], lambda: sse_reply(HALF), 502, EITHER),
    "a length that is too long": Fault(
        lambda: [reply_head(200, {**JSON, "content-length": "9999"}) + orjson.dumps(ANSWER), CUT],
        lambda: [reply_head(200, {**SSE, "content-length": "9999"}) + f"data: {HALF}\n\n".encode(), CUT],
        502,
        EITHER,
    ),
    "a length that is too short": Fault(
        lambda: [reply_head(200, {**JSON, "content-length": "20"}) + orjson.dumps(ANSWER), CUT],
        lambda: [reply_head(200, {**SSE, "content-length": "10"}) + f"data: {HALF}\n\n".encode(), CUT],
        502,
        502,
    ),
    "half an event": Fault(
        lambda: [RESET], lambda: [*sse_reply(HALF, f"data: {chunk('ll')}"[:40].encode(), CUT)], 502, EITHER
    ),
    "an event that is no JSON": Fault(
        lambda: bytes_reply(b"{oops", headers=JSON), lambda: sse_reply(HALF, b"data: {oops\n\n", STOP, "[DONE]"), 502, EITHER
    ),
    "a first event that is no object": Fault(
        lambda: bytes_reply(b"[1]", headers=JSON), lambda: sse_reply("[1]", *WHOLE), 502, 502
    ),
    "nothing but [DONE]": Fault(lambda: bytes_reply(b"null", headers=JSON), lambda: sse_reply("[DONE]"), 502, 502),
    "bytes": both(lambda: bytes_reply(bytes(range(256)), headers={"content-type": "application/octet-stream"}), 502),
    "HTML in pieces": both(
        lambda: [reply_head(200, {"content-type": "text/html", "transfer-encoding": "chunked"}), b"6\r\n<html>\r\n", b"5\r\nlogin\r\n", b"0\r\n\r\n"],
        502,
    ),
    "an object without choices": Fault(lambda: json_reply({}), lambda: json_reply({"choices": None}), 502, 502),
    "an error object with 200": both(lambda: json_reply(ERROR), 502),
    "JSON": both(lambda: json_reply(ANSWER), OK),
    "a stream": Fault(lambda: sse_reply(*WHOLE), lambda: sse_reply(*WHOLE), 502, OK),
    "a stream called text": Fault(
        lambda: json_reply(ANSWER), lambda: bytes_reply("".join(f"data: {one}\n\n" for one in WHOLE).encode(), headers={"content-type": "text/plain"}), OK, OK
    ),
    "never ends": Fault(
        lambda: never_ending(reply_head(200, {**JSON, "transfer-encoding": "chunked"}), b"1000\r\n%b\r\n" % (b" " * 4096)),
        lambda: never_ending(reply_head(200, {**SSE, "transfer-encoding": "chunked"}), b"1000\r\n:%b\n\n\r\n" % (b" " * 4093)),
        504,
        CUT_OFF,
    ),
}  # fmt: skip
FINE = {"drips", "JSON", "a stream", "a stream called text"}
"""No faults, or none in this form."""
NOT_DIALLED = {"refused": "http://127.0.0.1:{closed}/v1", "no-tls": "https://127.0.0.1:{plain}/v1"}
EXCEPTIONS: dict[int, type[openai.APIStatusError]] = {
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
}
TEXT = """
[server]
first_byte_timeout_s = 0.3
idle_timeout_s = 0.3
total_timeout_s = 2
[chain]
plugins = ["cache", "budget", "circuit_breaker", "fallback", "logging", "metrics"]
[plugins.logging]
to = "/dev/null"
[providers.up]
kind = "openai"
base_url = "{up}"
[providers.spare]
kind = "openai"
base_url = "{spare}"
{more}
"""


@pytest.fixture
async def smtp_port():
    """Somebody who speaks first, and no TLS."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ready\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def configuration(up: Any, spare: Any, closed: int, plain: int, *, with_fallback: bool) -> str:
    parts = []
    for name, url in NOT_DIALLED.items():
        url = url.format(closed=closed, plain=plain)
        parts.append(f'[providers."{name}"]\nkind = "openai"\nbase_url = "{url}"')
    for name in [*FAULTS, *NOT_DIALLED]:
        provider = name if name in NOT_DIALLED else "up"
        listed = [f'{{ provider = "{provider}", model = "{name}" }}']
        listed += [f'{{ provider = "spare", model = "{name}" }}'] * with_fallback
        parts.append(f'[models."{name}"]\ndeployments = [{", ".join(listed)}]')
    return TEXT.format(up=up.url, spare=spare.url, more="\n".join(parts))


async def ask(client: openai.AsyncOpenAI, name: str, *, is_stream: bool) -> tuple[int | str, Any]:
    """What the SDK makes of it: "ok", a status, or CUT_OFF."""
    messages: Any = [{"role": "user", "content": name}]
    try:
        if not is_stream:
            completion = await client.chat.completions.create(model=name, messages=messages, temperature=0)
            assert completion.choices[0].message.content == "well"
            return OK, None
        text, is_finished = "", False
        async for event in await client.chat.completions.create(
            model=name, messages=messages, temperature=0, stream=True
        ):
            text += event.choices[0].delta.content or ""
            is_finished = is_finished or event.choices[0].finish_reason is not None
        assert (text, is_finished) == ("well", True), f"{name}: shown as a stream that has ended well"
        return OK, None
    except openai.APIStatusError as error:
        return error.status_code, error
    except openai.APIError as error:
        return CUT_OFF, error


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("with_fallback", [False, True], ids=["alone", "with a fallback"])
async def test_every_fault_is_an_answer_from_elsewhere_or_the_right_exception(
    start_gateway, upstream, spare, free_port, smtp_port, with_fallback, is_stream
):
    def fail(request: Any) -> Script:
        fault = FAULTS[request.json()["model"]]
        return fault.streamed() if is_stream else fault.plain()

    upstream.always(fail)
    spare.always(lambda request: sse_reply(*WHOLE) if is_stream else json_reply(ANSWER))
    gateway = await start_gateway(configuration(upstream, spare, free_port, smtp_port, with_fallback=with_fallback))
    got, expected = {}, {}

    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="x", max_retries=0) as client:
        for name in [*FAULTS, *NOT_DIALLED]:
            fault = FAULTS.get(name)
            alone = 502 if fault is None else fault.gets_streamed if is_stream else fault.gets
            got[name], error = await ask(client, name, is_stream=is_stream)
            if alone == EITHER:
                alone = CUT_OFF if got[name] == CUT_OFF else 502
            if name == "never ends" and not is_stream:  # the size of a reply is bounded, and so is the call's time
                alone = 504 if got[name] == 504 else 502
            is_saved = with_fallback and alone not in (CUT_OFF, 504 if name == "never ends" else None)
            expected[name] = OK if is_saved else alone
            if isinstance(error, openai.APIStatusError):
                assert type(error) is EXCEPTIONS.get(error.status_code, openai.InternalServerError), name
            if got[name] == 429 and name == "429 with retry-after":
                assert error.response.headers["retry-after"] == "7"

        asked = len(upstream.requests)
        if not with_fallback and not is_stream:  # asked once more: nothing of it was kept
            for name in FAULTS:
                if name not in (
                    *(FINE - {"a stream"}),
                    "never ends",
                    "stalls before headers",
                    "stalls after headers",
                    "stalls in the body",
                ):
                    await ask(client, name, is_stream=False)
                    asked += 1
            assert len(upstream.requests) == asked

    assert got == expected
    await gateway.idle()
    records = gateway.app.current.workshop.stores.records
    await records.flush()
    booked = (await records.read_ledger(LedgerQuery(limit=1_000))).rows
    assert {row.model for row in booked if row.outcome == "ok" and row.deployment.startswith("up/")} <= FINE
