"""Uploads: request bodies that are not one JSON document.

Lives here: what the chain and a provider know of a multipart or binary body. Elsewhere: reading and spooling it (surfaces/multipart.py, surfaces/spool.py).
Idea: a body that was spooled whole can be sent again, one that streams through can't, and the chain only needs to know which."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol


class Upload(Protocol):
    """A request body that is not one JSON document: multipart or binary, spooled or streaming through."""

    content_type: str
    content_length: int | None
    is_replayable: bool
    """False: part of it was never spooled, so there is a single attempt."""

    @property
    def fields(self) -> Sequence[tuple[str, bytes, bool]]:
        """The parts of a form that were seen so far: name, the beginning of the value, whether that is the whole value. () for other bodies."""

    async def complete(self) -> None:
        """Read what still arrives: all fields are known then, and the body can be sent again. Raises ApiError."""

    def chunks(self, model: str | None, /) -> AsyncIterator[bytes]:
        """The bytes to send, with the multipart field `model` rewritten if given."""

    async def aclose(self) -> None: ...
