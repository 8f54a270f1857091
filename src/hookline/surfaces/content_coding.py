"""Compressed request bodies: gzip and zstd, undone within the body limit.

Lives here: which codings are understood, decoding piece by piece. Elsewhere: limits (who reads the pieces), compressed replies
(transport/decode.py).
Idea: output is made in bounded pieces, so that a small body that unpacks into a huge one is refused long before it is huge; what goes
upstream is plain."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Final

from aiohttp import hdrs

from hookline.errors import BadRequest, UnsupportedMedia
from hookline.surfaces.exchange import Exchange, too_large
from hookline.surfaces.spool import SpoolRoom

PIECE_BYTES: Final = 262_144
MEMBERS_MAX: Final = 10_000
"""Frames of one body: each costs a copy of what follows it, an empty one adds nothing that a limit would see."""
ZSTD_WINDOW_LOG_MAX: Final = 25
"""32 MiB: what one decoder may be made to hold."""


class _Decoder:
    """What gzip and zstd have in common: frames one after the other, each decoded in pieces."""

    def __init__(self, make: Callable[[], Any], failures: type[Exception], name: str) -> None:
        self._make = make
        self._failures = failures
        self._name = name
        self._frame: Any = None
        self._members = 0

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most PIECE_BYTES. Raises BadRequest for bytes that are not of this coding."""
        try:
            while data or (self._frame is not None and not self._frame.eof):
                if self._frame is None:
                    self._members += 1
                    if self._members > MEMBERS_MAX:
                        raise BadRequest(
                            f"the request body has more than {MEMBERS_MAX} {self._name} members",
                            code="bad_content_encoding",
                        )
                    self._frame = self._make()
                piece = self._frame.decompress(data, PIECE_BYTES)
                data = getattr(self._frame, "unconsumed_tail", b"")
                if self._frame.eof:
                    data = self._frame.unused_data
                    self._frame = None
                if piece:
                    yield piece
                elif not data:
                    return
        except self._failures:
            raise BadRequest(f"the request body is not valid {self._name}", code="bad_content_encoding") from None

    def finish(self) -> None:
        """Raises BadRequest if the body ended inside a frame."""
        if self._frame is not None:
            raise BadRequest(
                f"the request body ends in the middle of its {self._name} data", code="bad_content_encoding"
            )


def choose_decoder(exchange: Exchange) -> _Decoder | None:
    """The decoder for the request's content-encoding, None for a plain body. Raises UnsupportedMedia."""
    coding = exchange.headers.get(hdrs.CONTENT_ENCODING)
    if coding is None:
        return None
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip"):
        return _Decoder(lambda: zlib.decompressobj(wbits=31), zlib.error, "gzip")
    if coding == "zstd":
        return _make_zstd_decoder()
    raise UnsupportedMedia("this content-encoding is not understood: send the body plain, as gzip or as zstd")


def _make_zstd_decoder() -> _Decoder:
    zstd = _find_zstd()
    if zstd is None:
        raise UnsupportedMedia("zstd bodies are not understood by this installation: send the body plain or as gzip")
    options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    return _Decoder(lambda: zstd.ZstdDecompressor(options=options), zstd.ZstdError, "zstd")


def _find_zstd() -> Any:
    """Python 3.14 has it; before, a package brings it."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


async def read_pieces(exchange: Exchange, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in plain pieces as it arrives. Raises TooLarge beyond `max_bytes`, UnsupportedMedia, and what `read_piece` raises."""
    decoder = choose_decoder(exchange)
    declared_bytes = exchange.declared_bytes
    if declared_bytes is not None and declared_bytes > max_bytes:
        raise too_large(max_bytes)
    size_bytes = raw_bytes = 0
    while raw := await exchange.read_piece():
        raw_bytes += len(raw)
        if raw_bytes > max_bytes:
            raise too_large(max_bytes)
        for piece in decoder.decode(raw) if decoder is not None else (raw,):
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                raise too_large(max_bytes)
            yield piece
    if decoder is not None:
        decoder.finish()


async def read_whole(exchange: Exchange, max_bytes: int, room: SpoolRoom) -> bytes:
    """The whole body, plain. Raises like `read_pieces`, and Unavailable without room."""
    if hdrs.CONTENT_ENCODING not in exchange.headers:
        return await exchange.read_body(max_bytes, room)
    pieces = []
    async for piece in read_pieces(exchange, max_bytes):
        exchange.keep(piece, room)
        pieces.append(piece)
    return b"".join(pieces)
