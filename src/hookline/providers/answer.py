"""Answer: an upstream's response as a `Reply`.

Lives here: what is read whole and what is handed on as it comes, and the bounds of both. Elsewhere: which headers go back (headers.py), streams and their ends (the pipeline), other
dialects' replies (anthropic.py).
Idea: errors and JSON are small and everybody wants to look at them, so they are bytes; event streams and everything else are the transport's own iterator, with no layer
between it and the client.

| reply | becomes |
|---|---|
| 4xx, 5xx | bytes, at most `MAX_ERROR_BYTES`; what is no JSON becomes an error object |
| `text/event-stream` | iterator; decoded if it came compressed although we asked for identity |
| from a route that answers in JSON (not `relay`), also without its content type | bytes, at most `MAX_JSON_BYTES` |
| JSON from any other route | bytes up to `MAX_JSON_BYTES`; what is larger is an iterator |
| to a stream of chat, completions or responses, of another type than these | what its first bytes are: an event stream, else bytes |
| everything else | iterator, or bytes if all of it is there already |"""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from multidict import CIMultiDict

from hookline.call import Call
from hookline.chat_view import EVENTS_OF_JSON
from hookline.deployment import Deployment
from hookline.errors import UpstreamError
from hookline.providers.upstream import Upstream, to_upstream_error
from hookline.reply import Reply
from hookline.transport import DECODABLE, BodyTooLarge, TransportError, UpstreamResponse, decoded

STATUS_MAX = 599
"""RFC 9110, section 15: a status outside 100-599 is invalid."""
MAX_ERROR_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
QUOTED_CHARS_MAX = 300
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
MAX_DECODED_BYTES = 1 << 30
"""Of a compressed event stream; there is never more than 64 KiB of it in memory."""


async def to_reply(upstream: Upstream, call: Call, deployment: Deployment, response: UpstreamResponse) -> Reply:
    """The reply for the pipeline. Raises UpstreamError if the body breaks off or is larger than its bound."""
    headers = upstream.reply_headers.read(response.headers)
    status = response.status
    if status > STATUS_MAX:
        raise UpstreamError(f"{deployment.id} answered with the status {status}, which means nothing", kind="garbage")
    if status >= 400:
        body = upstream.hide_secrets(headers, await read_error(response, headers, deployment), deployment)
        if call.endpoint != "relay" and "content-encoding" not in headers:
            body = error_object(body, status, headers, deployment)
        return Reply(status, headers, body)
    content_type = headers.get("content-type", "")
    is_json = content_type == "application/json"
    if not is_json:
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            return Reply(status, headers, plain_events(response, headers, deployment))
        is_json = kind == "application/json" or kind.endswith("+json")
    if call.is_stream and not is_json and call.endpoint in EVENTS_OF_JSON:
        return await read_by_its_start(response, headers, deployment)
    if call.endpoint != "relay" and (is_json or not call.is_stream):
        reply = Reply(status, headers, await read_plain(response, headers, deployment, MAX_JSON_BYTES))
        # The end of the connection says nothing of the end of the answer: half a JSON is a connection that died.
        if response.is_eof_delimited and is_json and "content-encoding" not in headers and reply.json() is None:
            raise UpstreamError(f"{deployment.id} closed the connection before the end of its reply", kind="reset")
        return reply
    if response.is_complete:
        return Reply(status, headers, await read_whole(response, deployment, None))
    if is_json:
        return Reply(status, headers, await _read_or_stream(response, deployment))
    return Reply(status, headers, response.chunks())


async def read_whole(response: UpstreamResponse, deployment: Deployment, max_bytes: int | None) -> bytes:
    """The body. Raises UpstreamError."""
    try:
        return await response.read(max_bytes)
    except TransportError as error:
        raise to_upstream_error(error, deployment) from error


async def read_error(response: UpstreamResponse, headers: CIMultiDict[str], deployment: Deployment) -> bytes:
    """The body of an error. The status is news enough: a body that is too large is replaced by a sentence. Raises UpstreamError if it breaks off."""
    try:
        return await response.read(MAX_ERROR_BYTES)
    except BodyTooLarge:
        headers.popall("content-encoding", None)
        return told_in_json(
            f"{deployment.id} answered {response.status} with more than {MAX_ERROR_BYTES} bytes, which are not passed on",
            headers,
        )
    except TransportError as error:
        raise to_upstream_error(error, deployment) from error


def error_object(body: bytes, status: int, headers: CIMultiDict[str], deployment: Deployment) -> bytes:
    """The body of an error as clients can read it: JSON as it is; of a proxy's page or words a sentence, for they parse what they get."""
    try:
        orjson.loads(body)
        return body
    except orjson.JSONDecodeError:
        words = body.decode(errors="replace").strip()
        if not words or words.startswith("<"):
            words = f"a page and no error object ({headers.get('content-type', 'no type')})" if words else "no body"
        return told_in_json(f"{deployment.id} answered {status}: {words[:QUOTED_CHARS_MAX]}", headers)


def told_in_json(message: str, headers: CIMultiDict[str]) -> bytes:
    headers["content-type"] = "application/json"
    headers.popall("content-length", None)
    return orjson.dumps({"error": {"message": message, "type": "upstream_error", "param": None, "code": None}})


async def read_plain(
    response: UpstreamResponse, headers: CIMultiDict[str], deployment: Deployment, max_bytes: int
) -> bytes:
    """The body made plain, so that it can be read: usage, errors, garbage. `headers` no longer name a coding that was undone. Raises UpstreamError."""
    encoding = _coding_of(headers)
    if encoding not in DECODABLE:
        return await read_whole(response, deployment, max_bytes)
    headers.popall("content-encoding")
    pieces: list[bytes] = []
    try:
        async for piece in decoded(response.chunks(), encoding, max_bytes):
            pieces.append(piece)
    except TransportError as error:
        response.close()
        raise to_upstream_error(error, deployment) from error
    return b"".join(pieces)


def _coding_of(headers: CIMultiDict[str]) -> str:
    return headers.get("content-encoding", "identity").strip().lower()


def plain_events(response: UpstreamResponse, headers: CIMultiDict[str], deployment: Deployment) -> AsyncIterator[bytes]:
    """The body of an event stream. One that came compressed is made plain; raises UpstreamError for a coding we can't undo."""
    encoding = _coding_of(headers)
    if encoding in ("identity", ""):
        return response.chunks()
    if encoding not in DECODABLE:
        response.close()
        raise UpstreamError(
            f'{deployment.id} sent its stream in the coding "{encoding[:40]}" although it was asked for identity; '
            "turn compression off there",
            kind="garbage",
        )
    headers.popall("content-encoding")
    return Decoded(response, encoding)


class Decoded:
    """A compressed event stream, made plain. Closing it closes the response."""

    def __init__(self, response: UpstreamResponse, encoding: str) -> None:
        self._response = response
        self._plain = decoded(response.chunks(), encoding, MAX_DECODED_BYTES)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._plain)

    async def aclose(self) -> None:
        self._response.close()


class Prefixed:
    """Chunks that were read already, then the rest of the response. Closing it closes the response."""

    def __init__(self, pieces: list[bytes], response: UpstreamResponse) -> None:
        self._pieces = pieces[::-1]
        self._response = response
        self._rest = response.chunks()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return self._pieces.pop() if self._pieces else await anext(self._rest)

    async def aclose(self) -> None:
        self._response.close()


async def read_by_its_start(response: UpstreamResponse, headers: CIMultiDict[str], deployment: Deployment) -> Reply:
    """The reply to a stream that is not called one (text/plain, or nothing), by what it is. Raises UpstreamError for what is neither a stream nor JSON."""
    pieces: list[bytes] = []
    size_bytes, is_known = 0, False
    try:
        async for chunk in response.chunks():
            pieces.append(chunk)
            size_bytes += len(chunk)
            start = b"" if is_known else b"".join(pieces).lstrip()
            if start.startswith(_FIELDS):
                headers["content-type"] = "text/event-stream"
                return Reply(response.status, headers, Prefixed(pieces, response))
            is_known = is_known or len(start) > len(b"event:")
            if size_bytes > MAX_JSON_BYTES or (is_known and start and not start.startswith((b"{", b"["))):
                response.close()
                message = f"{deployment.id} answered a stream with what is neither that nor JSON"
                raise UpstreamError(message, kind="garbage")
    except TransportError as error:
        raise to_upstream_error(error, deployment) from error
    return Reply(response.status, headers, b"".join(pieces))


async def _read_or_stream(response: UpstreamResponse, deployment: Deployment) -> bytes | AsyncIterator[bytes]:
    """The body as bytes, or as an iterator if it is larger than JSON that anyone would look at."""
    length = next((value for name, value in response.headers if name == b"content-length"), b"")
    if length.isdigit() and int(length) > MAX_JSON_BYTES:
        return response.chunks()
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        async for chunk in response.chunks():
            pieces.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > MAX_JSON_BYTES:
                return Prefixed(pieces, response)
    except TransportError as error:
        raise to_upstream_error(error, deployment) from error
    return b"".join(pieces)
