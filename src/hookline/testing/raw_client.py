"""A client of bytes: what an SDK would hide.

Lives here: a chat request as bytes, a reply as it came off the socket. Elsewhere: the other side (upstream.py), a gateway between them (process.py).
Idea: a reply that broke off and one that ended look alike to most clients; here `is_whole` tells them apart."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import orjson


@dataclass
class RawReply:
    """A reply as read from the socket. `is_whole` False: the connection ended before its framing did."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool


def chat_request(model: str, *, stream: bool = False, version: str = "1.1", **members: object) -> bytes:
    """A chat request as bytes."""
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **members})
    return b"POST /v1/chat/completions HTTP/%b\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        version.encode(),
        len(body),
        body,
    )


async def read_reply(reader: asyncio.StreamReader) -> RawReply:
    """One reply. Raises ConnectionResetError, and IncompleteReadError where not even its head came."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    status = int(first.split(" ")[1])
    if headers.get("transfer-encoding") == "chunked":
        chunks: list[bytes] = []
        try:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                chunks.append((await reader.readexactly(size + 2))[:-2])
            await reader.readexactly(2)
        except asyncio.IncompleteReadError:
            return RawReply(status, headers, b"".join(chunks), False)
        return RawReply(status, headers, b"".join(chunks), True)
    if "content-length" in headers:
        return RawReply(status, headers, await reader.readexactly(int(headers["content-length"])), True)
    return RawReply(status, headers, await reader.read(), True)
