"""Uploads: multipart and binary bodies on their way to a provider.

Lives here: what is spooled before the call can be routed, what streams through after it, the model's name rewritten on the way.
Elsewhere: the form (multipart.py), the bytes at rest (spool.py), compressed bodies (content_coding.py).
Idea: a body is read until its model is known. If little is left then, it is spooled whole and may be sent again; the rest of a large one
streams through, once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from aiohttp import hdrs

from hookline.call import Call
from hookline.errors import BadRequest
from hookline.surfaces.exchange import Exchange
from hookline.surfaces.multipart import ModelFinder, get_boundary
from hookline.surfaces.spool import MEMORY_BYTES, Spool, SpoolRoom
from hookline.upload import FormField

Pieces = AsyncGenerator[bytes, None]


class SpooledUpload:
    """A body as `call.Upload`: spooled bytes, then (once) what still arrives."""

    __slots__ = ("_finder", "_rest", "_spool", "_was_sent", "content_length", "content_type", "is_replayable")

    def __init__(
        self,
        spool: Spool,
        *,
        content_type: str,
        content_length: int | None,
        finder: ModelFinder | None = None,
        rest: Pieces | None = None,
    ) -> None:
        self.content_type = content_type
        self.content_length = content_length
        """Of the body as the client sent it; another model name makes it another one."""
        self.is_replayable = rest is None
        self._spool = spool
        self._finder = finder
        self._rest = rest
        self._was_sent = False

    @property
    def model(self) -> str | None:
        """See `Upload.model`."""
        return self._finder.model if self._finder is not None else None

    @property
    def fields(self) -> Sequence[FormField]:
        """See `Upload.fields`."""
        return self._finder.fields if self._finder is not None else ()

    async def complete(self) -> None:
        """See `Upload.complete`."""
        if self._rest is None or self._was_sent:
            return
        async for piece in self._rest:
            await self._spool.write(piece)
            if self._finder is not None:
                self._finder.feed(piece)
        _check_end(self._finder)
        self._rest, self.is_replayable = None, True
        self.content_length = self._spool.size_bytes

    async def chunks(self, model: str | None, /) -> AsyncIterator[bytes]:
        """The body, with another model name if given. Raises BadRequest for a form whose rest contradicts its beginning, and
        RuntimeError if a body that streamed through is asked for again."""
        if self._was_sent and not self.is_replayable:
            raise RuntimeError("this upload streamed through and can't be sent again")
        self._was_sent = True
        at = self._finder.value_at if self._finder is not None else None
        if model is None or at is None:
            async for piece in self._spool.pieces():
                yield piece
        else:
            async for piece in self._spool.pieces(0, at[0]):
                yield piece
            yield model.encode()
            async for piece in self._spool.pieces(at[1]):
                yield piece
        if self._rest is not None:
            async for piece in self._rest:
                if self._finder is not None:
                    # A second model field would make the upstream read another form than the gateway.
                    self._finder.feed(piece)
                yield piece
            _check_end(self._finder)

    async def aclose(self) -> None:
        """Forget the body. Called when the call has ended; may be called twice."""
        self._spool.close()
        if self._rest is not None:
            await self._rest.aclose()


async def load_upload(exchange: Exchange, room: SpoolRoom, pieces: Pieces, call: Call) -> None:
    """Read a body that is not JSON, arriving in `pieces`, as far as the call needs it, and set it on the call. Raises ApiError."""
    content_type = exchange.headers.get(hdrs.CONTENT_TYPE, "application/octet-stream")
    is_form = content_type.lower().startswith("multipart/form-data")
    finder = ModelFinder(get_boundary(content_type)) if is_form else None
    declared_bytes = None if hdrs.CONTENT_ENCODING in exchange.headers else exchange.declared_bytes
    spool = Spool(room)
    try:
        is_whole = await _spool_what_is_needed(pieces, spool, finder, declared_bytes)
    except BaseException:
        spool.close()
        raise
    call.upload = SpooledUpload(
        spool,
        content_type=content_type,
        content_length=spool.size_bytes if is_whole else declared_bytes,
        finder=finder,
        rest=None if is_whole else pieces,
    )
    if finder is not None:
        call.model = finder.model


async def _spool_what_is_needed(
    pieces: Pieces, spool: Spool, finder: ModelFinder | None, declared_bytes: int | None
) -> bool:
    """Spool until the model is known, or to the end. True: the whole body."""
    async for piece in pieces:
        await spool.write(piece)
        if finder is not None:
            finder.feed(piece)
            if finder.model is not None and may_stream_rest(declared_bytes, spool.size_bytes):
                return False
    _check_end(finder)
    return True


def may_stream_rest(declared_bytes: int | None, spooled_bytes: int) -> bool:
    """Whether what is left is worth giving up a second attempt: more than memory would hold."""
    left_bytes = spooled_bytes if declared_bytes is None else declared_bytes - spooled_bytes
    return left_bytes > MEMORY_BYTES


def _check_end(finder: ModelFinder | None) -> None:
    if finder is not None and not finder.is_complete:
        raise BadRequest("the multipart body ends before its closing boundary", code="bad_multipart")
