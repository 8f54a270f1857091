"""Compressed replies, undone within a bound.

Lives here: gzip and deflate, as a stream. Elsewhere: who asks for identity and when a reply must be readable (providers).
Idea: output is bounded as it is made, so a small reply cannot become a large one first and be measured afterwards."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator

from hookline.transport.errors import BodyTooLarge, TransportError

DECODABLE = frozenset(("gzip", "x-gzip", "deflate"))
_STEP_BYTES = 64 * 1024


async def decoded(chunks: AsyncIterator[bytes], encoding: str, max_bytes: int) -> AsyncIterator[bytes]:
    """Decode a body; what one chunk decodes to is there before the next chunk is awaited.

    Raises ValueError for an encoding not in `DECODABLE`, `BodyTooLarge` above `max_bytes` of output, and
    TransportError("garbage") for a body that is damaged or cut."""
    inflater = _Inflater(encoding, max_bytes)
    async for chunk in chunks:
        for piece in inflater.feed(chunk):
            yield piece
    inflater.end()


class _Inflater:
    def __init__(self, encoding: str, max_bytes: int) -> None:
        if encoding not in DECODABLE:
            raise ValueError(f"content encoding {encoding!r} cannot be decoded; known: {', '.join(sorted(DECODABLE))}")
        self._window_bits = zlib.MAX_WBITS if encoding == "deflate" else zlib.MAX_WBITS | 16
        self._zlib = zlib.decompressobj(self._window_bits)
        self._is_form_known = encoding != "deflate"
        self._start = b""
        self._max_bytes = max_bytes
        self._made_bytes = 0
        self._has_input = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not self._is_form_known:
            data = self._start = self._start + data
            if len(data) < 2:
                return
            self._is_form_known = True
            if data[0] & 15 != zlib.DEFLATED or int.from_bytes(data[:2], "big") % 31:  # RFC 1950, 2.2
                self._window_bits = -zlib.MAX_WBITS  # deflate without its header, as some servers send it
                self._zlib = zlib.decompressobj(self._window_bits)
        while data:
            if self._zlib.eof:  # gzip members may follow one another
                self._zlib = zlib.decompressobj(self._window_bits)
            try:
                piece = self._zlib.decompress(data, _STEP_BYTES)
            except zlib.error as error:
                raise _damaged(str(error)) from None
            self._has_input = True
            data = self._zlib.unconsumed_tail or self._zlib.unused_data
            if piece:
                self._made_bytes += len(piece)
                if self._made_bytes > self._max_bytes:
                    raise BodyTooLarge(self._max_bytes)
                yield piece

    def end(self) -> None:
        if (self._has_input or self._start) and not self._zlib.eof:
            raise _damaged("it ends in the middle")


def _damaged(what: str) -> TransportError:
    return TransportError("garbage", f"compressed reply body is damaged: {what}", is_written=True)
