"""A provider that plays what a test wrote down.

Lives here: `ScriptedProvider`, and the replies it is given: `answer`, `stream`. Elsewhere: the pipeline around it (kit.py), a scripted upstream on a
real socket (upstream.py).
Idea: one script per attempt, in order, the last one again and again; `sent` remembers who asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import orjson

from hookline.attempt import Attempt
from hookline.call import ENDPOINTS, Call
from hookline.plain_as_stream import disassemble
from hookline.reply import Reply

ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        "data": [],
        "output": [],
        "results": [],
    }
)
"""An answer on every endpoint."""
Script = Reply | Exception | Callable[[Call, Attempt], Awaitable[Reply]]
ANSWER_AS_STREAM = b"".join(disassemble("chat", ANSWER, wants_usage=False))
"""What a call that asked for a stream gets for it."""


def answer(body: bytes = ANSWER, status: int = 200, **headers: str) -> Reply:
    """A JSON reply of an upstream."""
    return Reply(status, {"content-type": "application/json", **headers}, body)


def stream(
    *events: bytes | Exception | asyncio.Event,
    closed: list[str] | None = None,
    content_type: str = "text/event-stream",
) -> Reply:
    """An event-stream reply: bytes are yielded one by one, an exception is raised in its place, an `asyncio.Event` is waited for.
    `closed` learns of its end."""

    async def body() -> AsyncIterator[bytes]:
        try:
            for event in events:
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, asyncio.Event):
                    await event.wait()
                    continue
                yield event
        finally:
            if closed is not None:
                closed.append("closed")

    return Reply(200, {"content-type": content_type}, body())


class ScriptedProvider:
    """Plays `scripts` in order, one per attempt; the last one again and again. `sent` has the attempts."""

    def __init__(
        self, *scripts: Script | Callable[[], Reply], name: str = "up", endpoints: Sequence[str] | None = None
    ) -> None:
        self.name = name
        self.endpoints = frozenset(endpoints or [*ENDPOINTS.values(), "models", "relay"])
        self.scripts = list(scripts) or [answer]
        self.sent: list[tuple[Call, Attempt]] = []

    async def send(self, call: Call, attempt: Attempt, /) -> Reply:
        script = self.scripts[min(len(self.sent), len(self.scripts) - 1)]
        self.sent.append((call, attempt))
        if isinstance(script, Exception):
            raise script
        if isinstance(script, Reply):
            return script
        made: Any = script() if not _takes_call(script) else script(call, attempt)  # type: ignore[call-arg]
        reply: Reply = await made if asyncio.iscoroutine(made) else made
        return reply

    async def aclose(self) -> None:
        pass


def _takes_call(script: Any) -> bool:
    code = getattr(script, "__code__", None)
    return code is not None and code.co_argcount - len(script.__defaults__ or ()) >= 2
