"""Replies and the events of a stream.

Lives here: what goes back to the client and what plugins may do to it. Elsewhere: who drives a streamed body (pipeline.py), what an event means on the OpenAI wire (stream.py).
Idea: a body is bytes, or an iterator of byte chunks that nobody has parsed; parsing happens once, when somebody asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson
from multidict import CIMultiDict

from hookline.errors import ApiError

if TYPE_CHECKING:
    from hookline.attempt import Ticket

Source = Literal["upstream", "cache", "coalesced", "replay", "rescue", "local"]


class Reply:
    """What goes back: status, headers, and a body of bytes or an async iterator of byte chunks (which may have `aclose`).

    A plugin's own reply says where it comes from: `Reply(200, {...}, body, source="cache")`."""

    __slots__ = ("_json", "body", "headers", "source", "status", "taps", "ticket")

    def __init__(
        self,
        status: int,
        headers: CIMultiDict[str] | Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        *,
        source: Source = "upstream",
    ) -> None:
        self.status = status
        self.headers: CIMultiDict[str] = headers if isinstance(headers, CIMultiDict) else CIMultiDict(headers or {})
        self.body = body
        self.source: Source = source
        self.taps: list[Tap] | None = None
        self.ticket: Ticket | None = None
        """What a reply from `lookup` holds until the call ends (a place among the readers of a shared body); it settles like every ticket."""
        self._json: Any = None

    @classmethod
    def from_error(cls, error: ApiError) -> Reply:
        """The OpenAI error object as a reply, with `retry-after` and `x-should-retry` where the error says so."""
        return cls.from_json(error.to_object(), status=error.reply_status, headers=error.reply_headers())

    @classmethod
    def from_json(
        cls, value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None, source: Source = "local"
    ) -> Reply:
        """`value` as a JSON reply, as routes answer. Raises TypeError for what is no JSON."""
        named = CIMultiDict({"content-type": "application/json", **(headers or {})})
        return cls(status, named, orjson.dumps(value), source=source)

    @property
    def is_event_stream(self) -> bool:
        """The content type decides, not the request."""
        return self.headers.get("content-type", "").lower().startswith("text/event-stream")

    def json(self) -> Any:
        """The body parsed once (shared: copy before editing); None if it is a stream or not JSON."""
        if self._json is None and isinstance(self.body, bytes) and self.body:
            try:
                self._json = orjson.loads(self.body)
            except orjson.JSONDecodeError:
                return None
        return self._json

    def replace_json(self, value: Any) -> None:
        """Make `value` the body, and drop the headers that described the old bytes."""
        self._json = value
        self.replace_body(orjson.dumps(value))

    def replace_body(self, body: bytes | AsyncIterator[bytes]) -> None:
        """Make `body` the body, and drop the headers that described the old bytes."""
        self.body = body
        for name in ("content-length", "content-encoding", "etag", "content-md5", "digest"):
            self.headers.pop(name, None)

    def tap(self, tap: Tap) -> None:
        """Attach a reader of the relayed bytes. It must be bounded by itself; one that raises is dropped."""
        if self.taps is None:
            self.taps = []
        self.taps.append(tap)


class AlreadyTold(Exception):
    """Raised by a body whose last event told the call's own error: the client must see no clean end, and the call has its outcome."""


class Tap(Protocol):
    """Sees the bytes of a streamed body as plugins after its own produced them."""

    def feed(self, chunk: bytes, /) -> None: ...

    def end(self, is_complete: bool, /) -> None:
        """The body ended; `is_complete` is False when it was cut or the client left."""


class Event:
    """One parsed SSE message of a stream, as `edit_event` sees it. `json()` is parsed once; `replace_json` marks it changed."""

    __slots__ = ("_json", "data", "is_changed", "name")

    def __init__(self, name: str | None, data: bytes) -> None:
        self.name = name
        self.data = data
        self.is_changed = False
        self._json: Any = None

    def json(self) -> Any:
        """The data parsed (shared: copy before editing); None if it is not JSON (`[DONE]`)."""
        if self._json is None:
            try:
                self._json = orjson.loads(self.data)
            except orjson.JSONDecodeError:
                return None
        return self._json

    def replace_json(self, value: Any) -> None:
        self._json, self.data, self.is_changed = value, orjson.dumps(value), True
