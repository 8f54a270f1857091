"""Requests that must not be answered as they stand: heads the parser lets through, and its own complaints as errors.

Lives here: the checks beside llhttp's, the translation of what it raises. Elsewhere: when they are asked (http_server.py).
Idea: what two servers could read differently is refused; and no message quotes the request, which may hold a key."""

from __future__ import annotations

from aiohttp import hdrs
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from hookline.errors import ApiError, BadRequest, HeadTooLarge


def count_head_bytes(message: RawRequestMessage) -> int:
    return len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)


def head_too_large(max_head_bytes: int) -> HeadTooLarge:
    return HeadTooLarge(f"the request's head is larger than {max_head_bytes} bytes: send fewer or shorter headers")


def find_fault(message: RawRequestMessage, payload: StreamReader) -> ApiError | None:
    """What llhttp accepts and a gateway must not: it would let two servers disagree about where a request ends."""
    headers = message.headers
    version = message.version
    if version is not HttpVersion11 and version is not HttpVersion10:
        return BadRequest("only HTTP/1.0 and HTTP/1.1 are spoken here", code="bad_http_version")
    coding = headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and (coding.lower() != "chunked" or version is HttpVersion10):
        return BadRequest("the only transfer coding understood is chunked, in HTTP/1.1", code="bad_transfer_encoding")
    if payload is EMPTY_PAYLOAD and headers.get(hdrs.CONTENT_LENGTH, "0").strip("0"):
        return BadRequest("content-length is out of range", code="bad_content_length")
    return None


def translate(error: HttpProcessingError) -> ApiError:
    """The parser's complaint without the bytes it quotes, which may hold a key."""
    text = str(error.message)
    if isinstance(error, LineTooLong) or text.startswith("Too many headers"):
        return HeadTooLarge("a line of the request's head is too long, or there are too many headers")
    reason, separator, _ = text.partition(":\n\n")
    if not separator:  # only llhttp's own fixed sentences end that way; other texts may quote the request
        return BadRequest("the request is not valid HTTP/1.1", code="bad_http")
    reason = reason.rpartition("\n")[2].strip()
    return BadRequest(f"the request is not valid HTTP/1.1: {reason}", code="bad_http")
