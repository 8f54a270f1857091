"""A call on its way.

Lives here: one client request, its body and its notes. Elsewhere: who pays (principal.py), each try (attempt.py), what comes back (reply.py),
how it runs (pipeline.py).
Idea: the request is frozen after `prepare`; what differs per attempt lives on the `Attempt`, and the provider applies it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from hookline.attempt import Attempt
from hookline.chat_view import ChatView
from hookline.errors import BadRequest
from hookline.principal import ANONYMOUS, Principal
from hookline.reply import Reply
from hookline.upload import Upload

if TYPE_CHECKING:
    from hookline.call_timer import CallTimer
    from hookline.slots import Slot

T = TypeVar("T")

Endpoint = Literal["chat", "completions", "embeddings", "responses", "moderations", "models", "relay"]
"""What a path means to the chain; `relay` is every other `/v1/*` path."""

ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/moderations": "moderations",
}
"""POST on these paths is that endpoint; any other method or path is a `relay` (GET /v1/models: `models`)."""


NOTES_MAX = 200


@dataclass(frozen=True, slots=True)
class Note:
    """One reason, for explain and traces."""

    plugin: str
    verdict: str
    text: str


class Call:
    """One client request on its way through the chain.

    `headers` are the client's. `path` begins with "/v1/" and holds no dot segments; `query` is raw, without "?". `deadline` and `started_at` are the
    clock's monotonic seconds. `client_closed` is set by the pipeline: a surface calls it when its client has gone."""

    __slots__ = (
        "_body", "_chat", "_is_frozen", "_timer", "attempts", "client_closed", "deadline", "endpoint", "headers",
        "id", "is_dry_run", "is_explained", "is_stream", "load", "local", "method", "model", "notes", "on_disconnect",
        "path", "payload", "principal", "query", "remote", "slots", "started_at", "started_time", "surface", "tags",
        "upload",
    )  # fmt: skip

    def __init__(
        self,
        *,
        id: str,
        method: str,
        path: str,
        endpoint: Endpoint,
        headers: CIMultiDictProxy[str] | CIMultiDict[str],
        started_at: float,
        started_time: float,
        query: str = "",
        surface: str = "http",
        principal: Principal | None = None,
    ) -> None:
        self.id = id
        self.method = method
        self.path = path
        self.query = query
        self.endpoint: Endpoint = endpoint
        self.headers = headers
        self.surface = surface
        self.started_at = started_at
        self.started_time = started_time
        """Unix seconds."""
        self.deadline: float | None = None
        self.principal = principal or ANONYMOUS
        """Before `authenticate`: anonymous, unless the call was accepted earlier (job, batch line) and carries its principal."""
        self.payload: dict[str, Any] | None = None
        """The JSON body, parsed once. Change it in `prepare`, through `edit_payload()` only."""
        self.model: str | None = None
        """What the client asked for, or what `prepare` made of it."""
        self.is_stream = False
        """The client asked for a stream."""
        self.upload: Upload | None = None
        self.tags: list[str] = []
        self.slots: dict[Slot[Any], Any] = {}
        self.attempts: list[Attempt] = []
        self.notes: list[Note] | None = None
        self.is_dry_run = False
        self.is_explained = False
        self.on_disconnect: Literal["cancel", "drain"] = "cancel"
        self.remote: str | None = None
        self.load: Callable[[Call], Awaitable[None]] | None = None
        """Set by the surface: reads the body, after `authenticate`. It calls `set_json` or sets `upload`; raises ApiError."""
        self.local: Callable[[Call], Awaitable[Reply]] | None = None
        """Set by a door that answers itself (`GET /v1/models` without a default provider): stands in place of routing and attempts."""
        self.client_closed: Callable[[], None] | None = None
        self._body: bytes | None = None
        self._is_frozen = False
        self._chat: ChatView | None = None
        self._timer: CallTimer | None = None

    def __getitem__(self, slot: Slot[T]) -> T:
        value: T = self.slots[slot]
        return value

    def __setitem__(self, slot: Slot[T], value: T) -> None:
        self.slots[slot] = value

    def find(self, slot: Slot[T]) -> T | None:
        return self.slots.get(slot)

    def set_json(self, body: bytes, payload: dict[str, Any]) -> None:
        """Called once by whoever read the body: the client's bytes and what they parse to."""
        self._body, self.payload = body, payload
        model = payload.get("model")
        if model is not None and not isinstance(model, str):
            raise BadRequest('"model" must be a string', param="model")
        self.model = model
        self.is_stream = payload.get("stream") is True

    def edit_payload(self) -> dict[str, Any]:
        """The payload, to be changed in place during `prepare`; the bytes sent upstream are made from it afterwards."""
        if self._is_frozen:
            raise RuntimeError(
                f"call {self.id}: the request is frozen after `prepare`; per-attempt changes belong on the Attempt"
            )
        if self.payload is None:
            raise RuntimeError(f"call {self.id}: {self.method} {self.path} has no JSON body to edit")
        self._body = None
        return self.payload

    def freeze(self) -> None:
        """Called by the pipeline after `prepare`: body bytes, payload and model are one from here on."""
        self._is_frozen = True
        if self._body is None and self.payload is not None:
            self.set_json(orjson.dumps(self.payload), self.payload)

    @property
    def body(self) -> bytes:
        """The request's bytes (JSON bodies; b"" for uploads and bodyless methods)."""
        return self._body or b""

    @property
    def chat(self) -> ChatView:
        """Typed view of a chat-like payload; safe on any JSON."""
        view = self._chat
        if view is None:
            view = ChatView(self.payload or {})
            if self._is_frozen:  # before, it may be edited yet
                self._chat = view
        return view

    def note(self, plugin: str, verdict: str, text: str) -> None:
        """Leave a reason (bounded; nothing happens unless the call is explained or traced)."""
        if self.is_explained:
            if self.notes is None:
                self.notes = []
            if len(self.notes) < NOTES_MAX:
                self.notes.append(Note(plugin, verdict, text))

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await something on purpose inside a hook: the hook's time budget stands still, the call's deadline does not."""
        with self._unhurried():
            return await awaitable

    async def sleep(self, seconds: float) -> None:
        """`wait` for a time."""
        await self.wait(asyncio.sleep(seconds))

    @contextmanager
    def _unhurried(self) -> Iterator[None]:
        timer = self._timer
        left = timer.pause_hook_budget() if timer is not None else 0.0
        try:
            yield
        finally:
            if timer is not None:
                timer.resume_hook_budget(left)
