"""Ids that a reply shows: what its reader owns from now on.

Lives here: ids in JSON replies and in the events of a stream. Elsewhere: ids in requests (references.py), recording them (__init__.py).
Idea: what an owner is shown of what it owns is its own: a batch's output file, a thread's messages, the items of a response. The words of clients and models
are never looked at, and the first owner of an id stays its owner."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import orjson

from hookline import ApiError, Rejected, Unavailable, UpstreamError
from hookline.builtins.owners.references import DATA, OF_THE_CLIENT, is_reference_name
from hookline.builtins.owners.routes import is_plain

IDS_MAX: Final = 10_000
"""Of one reply. What is beyond stays unknown."""
UNFINISHED_BYTES_MAX: Final = 16 << 20
_NOT_LOOKED_INTO: Final = OF_THE_CLIENT | DATA
_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE: Final = re.compile(rb"\r\n|\n|\r")
_SHOWN: Final = re.compile(
    rb'"(?:\w*_ids?|id|fine_tuned_model\w*|conversation|result_files)"\s*:\s*\[?\s*"([^"\\]{1,512})"'
)


def ids_in(value: Any) -> Iterator[str]:
    """The ids that a JSON reply shows, members of the client's own excepted."""
    waiting: list[tuple[str, Any]] = [("", value)]
    count = 0
    while waiting and count < IDS_MAX:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [pair for pair in reversed(value.items()) if pair[0] not in _NOT_LOOKED_INTO]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in reversed(value)]
        elif isinstance(value, str) and (name == "id" or is_reference_name(name)) and is_plain(value):
            count += 1
            yield value


def ids_of_chat(value: Any, *, is_stored: bool) -> Iterator[str]:
    """The ids of a chat completion or its chunk: its own if it is stored, and those of its audio. (Those of tool calls name nothing.)"""
    if not isinstance(value, dict):
        return
    if is_stored and isinstance(value.get("id"), str):
        yield value["id"]
    for choice in value.get("choices") or ():
        told = (choice.get("message") or choice.get("delta")) if isinstance(choice, dict) else None
        audio = told.get("audio") if isinstance(told, dict) else None
        if isinstance(audio, dict) and isinstance(audio.get("id"), str):
            yield audio["id"]


class ClaimedStream:
    """An event stream whose events leave when the ids in them are recorded. `claim` records them; `read` finds them in an event's JSON."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        claim: Callable[[Iterable[str]], Awaitable[None]],
        read: Callable[[Any], Iterable[str]],
    ) -> None:
        self._body = body
        self._rest = aiter(body)
        self._claim = claim
        self._read = read
        self._seen: set[bytes] = set()
        self._unfinished = b""
        self._first: bytes | None = None
        self._error: ApiError | None = None
        self._is_over = False

    async def begin(self) -> None:
        """Read the first chunk, while a failure can still be the reply. Raises Rejected."""
        chunk = await anext(self._rest, None)
        self._first = await self._take(chunk) if chunk is not None else await self._finish()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._error is not None:
            raise self._error
        if self._is_over:
            raise StopAsyncIteration
        try:
            chunk = await anext(self._rest, None)
            return await self._take(chunk) if chunk is not None else await self._finish()
        except Rejected as rejected:
            self._error = rejected.error
            told = {"type": "error", **rejected.error.to_object()["error"], **rejected.error.to_object()}
            return b"event: error\ndata: " + orjson.dumps(told) + b"\n\n"

    async def aclose(self) -> None:
        """Close what is below."""
        closing = getattr(self._body, "aclose", None)
        if closing is not None:
            await closing()

    async def _take(self, chunk: bytes) -> bytes:
        data = self._unfinished + chunk
        end = max((match.end() for match in _END.finditer(data)), default=0)
        whole, self._unfinished = data[:end], data[end:]
        if len(self._unfinished) > UNFINISHED_BYTES_MAX:
            raise Rejected(UpstreamError("an event of the stream has no end", kind="garbage"))
        await self._claim_all(whole)
        return whole

    async def _finish(self) -> bytes:
        self._is_over = True
        rest, self._unfinished = self._unfinished, b""
        await self._claim_all(rest)
        return rest

    async def _claim_all(self, data: bytes) -> None:
        """Record what these events show for the first time. A quick look tells whether there is anything new."""
        if self._seen.issuperset(_SHOWN.findall(data)):
            return
        if len(self._seen) > IDS_MAX:
            self._seen.clear()
        self._seen.update(_SHOWN.findall(data))
        ids: dict[str, None] = {}
        for block in _END.split(data):
            lines = [line[5:] for line in _LINE.split(block) if line.startswith(b"data:")]
            try:
                ids |= dict.fromkeys(self._read(orjson.loads(b"\n".join(lines))))
            except orjson.JSONDecodeError:
                continue
        if ids:
            await self._claim(ids)


def unavailable(error: Unavailable) -> Rejected:
    """What a client is told while owners can't be looked up: nothing is served that could be another's."""
    return Rejected(
        Unavailable(
            "whose this is can't be looked up or recorded right now; try again",
            code="owners_unavailable",
            retry_after_s=error.retry_after_s or 1.0,
        )
    )
