"""Uploads: request bodies that are not one JSON document.

Lives here: what the chain and a provider know of a multipart or binary body. Elsewhere: reading and spooling it (surfaces/multipart.py, surfaces/spool.py).
Idea: a body that was spooled whole can be sent again, one that streams through can't, and the chain only needs to know which."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol


class FormField(NamedTuple):
    """A part of a form: its name, the beginning of its value, whether that is all of it, and whether it is a file (has a file name)."""

    name: str
    start: bytes
    is_whole: bool
    is_file: bool = False


class Upload(Protocol):
    """A request body that is not one JSON document: multipart or binary, spooled or streaming through."""

    content_type: str
    content_length: int | None
    is_replayable: bool
    """False: part of it was never spooled, so there is a single attempt."""

    @property
    def model(self) -> str | None:
        """What the form's field `model` says; None: there is none. The call's model may be another one by now."""

    @property
    def fields(self) -> Sequence[FormField]:
        """The parts of a form that were seen so far; () for other bodies."""

    async def complete(self) -> None:
        """Read what still arrives: all fields are known then, and the body can be sent again. Raises ApiError."""

    def chunks(self, model: str | None, /) -> AsyncIterator[bytes]:
        """The bytes to send, with the multipart field `model` rewritten if given."""

    async def aclose(self) -> None: ...
